"""An elementwise operation of your own, in Numba, behind a kernel of fastpipe's on the same stream of the GPU.

    python examples/numba_cuda

It needs an NVIDIA GPU, the extra ``cuda`` and numba-cuda. The two kernels share a stream, so that nothing waits between
them: the batch is resized and normalised in one launch, Numba's kernel follows it, and the only wait is the last.
"""

from typing import Any

import numpy as np

import fastpipe
from fastpipe.kernels import cuda

try:
    import cupy
    from numba import cuda as numba_cuda
except ImportError as error:
    raise SystemExit(f"this example needs {error.name}: pip install 'fastpipe-engine[cuda]' numba-cuda") from None


@numba_cuda.jit
def bend(values: Any, strength: float) -> None:
    """Yours: what becomes of each number, in place."""
    at = numba_cuda.grid(1)
    if at < values.size:
        values[at] = values[at] / (1.0 + strength * abs(values[at]))


class ResizeThenBend(fastpipe.Backend):
    """uint8 images (h, w, 3) of any sizes -> float32 planes (3, side, side), on the GPU.

    Args:
        side: of the results.
        strength: of the bend.
    """

    max_batch = 16

    def __init__(self, *, side: int = 64, strength: float = 0.5) -> None:
        self.side, self.strength = side, strength
        self.workspace = cuda.Workspace(0)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.numba_stream = numba_cuda.external_stream(self.stream.ptr)

    def forward(self, batch: list[fastpipe.Request]) -> None:
        with cupy.cuda.Device(0), self.stream:
            images = [cupy.asarray(request["data"]) for request in batch]
            planes = self.workspace.resize_normalize(images, self.side, self.side, filter="pillow", std=255.0)
            # No copy, and no wait: Numba would otherwise wait for the stream that an array says it was made on.
            values = numba_cuda.as_cuda_array(planes.reshape(-1), sync=False)
            bend[-(-values.size // 256), 256, self.numba_stream](values, self.strength)
            self.stream.synchronize()
        for request, result in zip(batch, planes, strict=True):
            request["result"] = result


def main() -> None:
    """Send three images, and compare with NumPy."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (height, 100, 3), dtype=np.uint8) for height in (80, 120, 200)]
    with fastpipe.Pipe(backend=ResizeThenBend, side=64, strength=0.5, instance_num=2) as pipe:
        requests = [{"data": image} for image in images]
        pipe(requests)
    from fastpipe.kernels import reference

    for image, request in zip(images, requests, strict=True):
        plain = reference.resize_normalize([image], 64, 64, filter="pillow", std=255.0)[0]
        difference = np.abs(cupy.asnumpy(request["result"]) - plain / (1.0 + 0.5 * np.abs(plain))).max()
        print(f"{image.shape} -> {request['result'].shape}, right: {difference < 1e-6}")


if __name__ == "__main__":
    main()
