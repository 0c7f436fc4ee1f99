"""JPEG to class on a GPU that does nothing: what is left is what the host does. ``instructions.py`` runs it.

    python null_gpu.py LIBRARY IMAGE BATCHES WAY

The steps are the package's own; nvJPEG, the launches of kernels and the replay of a model's CUDA graph return at once,
and torch's tensors are small ones of the host. ``getppid()`` is called before and after what is to be counted.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastpipe

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
import emulated_gpu

from fastpipe.backends.gpu import devices, synchronization
from fastpipe.backends.model import torch as torch_model
from fastpipe.backends.model import torch_graphs
from fastpipe.backends.tensor import decode, nvjpeg, preprocess
from fastpipe.kernels import _device_arrays, cuda

BATCH, SIDE, CLASSES = 64, 8, 10
STREAM = 77


class Device(emulated_gpu.EmulatedDevice):
    """A GPU whose launches do nothing."""

    number = -1  # as torch calls the host

    def function(self, name: str, output: int) -> int:
        """Return a handle of nothing."""
        return 0

    def launch(self, *arguments: Any) -> None:
        """Launch nothing."""


class Stream:
    """The stream of an instance, around which another one has been entered."""

    def __init__(self, device_number: int) -> None:
        pass

    @contextmanager
    def entered(self) -> Iterator[Any]:
        """Return what is entered."""
        yield types.SimpleNamespace(handle=STREAM, is_outermost=False)


class Graphs:
    """One CUDA graph, whose replay does nothing."""

    is_complete = True

    def __init__(self) -> None:
        inputs = [torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.float16)]
        nothing = types.SimpleNamespace(replay=lambda: None)
        self._graph = torch_graphs.Graph(nothing, inputs, [torch.zeros(BATCH, CLASSES)])

    def find(self, *arguments: Any) -> Any:
        """Return the one."""
        return self._graph


def replace_gpu(library: str) -> None:
    """Have all steps take the GPU that does nothing."""
    cupy: Any = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(alloc=lambda size_bytes: types.SimpleNamespace(ptr=1 << 40))
    cupy.ndarray, cupy.empty = np.ndarray, np.empty
    sys.modules["cupy"] = cupy
    device, workspace = Device(Path()), cuda.Workspace
    anything: Any = workspace
    anything.prepare = lambda self, dtypes: None
    _device_arrays._known[np.ndarray] = emulated_gpu.NumpyArrays()
    replaced: list[tuple[Any, str, Any]] = [
        (cuda, "Workspace", lambda number, max_batch: workspace(device, max_batch=max_batch)),
        (devices, "torch_gpu", lambda backend, number: torch.device("cpu")),
        (devices.Claim, "place", property(lambda self: None)),
        (decode, "InstanceStream", Stream),
        (preprocess, "InstanceStream", Stream),
        (nvjpeg, "load", lambda: nvjpeg.Library(library, library)),
        (synchronization.SyncTensor, "surround", lambda self: nullcontext()),
        (synchronization, "hand_over", lambda value: None),
    ]
    for where, name, what in replaced:
        setattr(where, name, what)
    built = torch_model.TorchTensor.__init__

    @functools.wraps(built)
    def build(self: Any, **parameters: Any) -> None:
        built(self, **parameters)
        self._graphs = Graphs()

    anything = torch_model.TorchTensor
    anything.__init__ = build


class Model(torch.nn.Module):
    """Scores of so many classes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return images.flatten(1)[:, :CLASSES]


CONFIG = {
    "backend": "S[S[DecodeTensor,ResizeNormalizeTensor,TorchTensor,SyncTensor],(run)ThrowIfNoResult]",
    "max": f"{BATCH}x3x{SIDE}x{SIDE}",
    "ResizeNormalizeTensor::max": BATCH,
    "DecodeTensor::max": BATCH,
    "resize_h": SIDE,
    "resize_w": SIDE,
    "color": "rgb",
    "ResizeNormalizeTensor::dtype": "float16",
    "ResizeNormalizeTensor::mean": [123.675, 116.28, 103.53],
    "ResizeNormalizeTensor::std": [58.395, 57.12, 57.375],
    "model": Model(),
    "TorchTensor::device": "cpu",
    "precision": "fp16",
    "postprocessor": "SoftmaxArgMax",
}


def by_lists(pipe: fastpipe.Pipe, data: bytes, batches: int) -> None:
    """Send lists."""
    for _ in range(batches):
        pipe([{"data": data} for _ in range(BATCH)])


def by_map(pipe: fastpipe.Pipe, data: bytes, batches: int) -> None:
    """Send all by one map."""
    for _ in itertools.islice(pipe.map({"data": data} for _ in itertools.count()), batches * BATCH):
        pass


WAYS: dict[str, Callable[[fastpipe.Pipe, bytes, int], None]] = {"lists": by_lists, "map": by_map}


def main(library: str, image: str, batches: str, way: str) -> None:
    """Run it."""
    torch.set_num_threads(1)
    replace_gpu(library)
    data = Path(image).read_bytes()
    gc.disable()
    with fastpipe.Pipe(model=CONFIG) as pipe:
        checked: list[dict[str, Any]] = [{"data": data} for _ in range(BATCH)]
        pipe(checked)
        assert all("class" in request for request in checked)
        WAYS[way](pipe, data, 4)
        os.getppid()
        WAYS[way](pipe, data, int(batches))
        os.getppid()


if __name__ == "__main__":
    main(*sys.argv[1:])
