"""DecodeTensor: encoded images -> tensors on a GPU, whole batches at a time.

    {"backend": "S[DecodeTensor,ResizeNormalizeTensor,SyncTensor]", "resize_h": 224, "resize_w": 224}

``nvjpeg`` decodes on the GPU; whatever that does not take goes to ``DecodeMat``, on threads of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
import torch

from fastpipe.announcing import IMAGE_FILE
from fastpipe.contract import Backend, Between, Request, raise_failed
from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import ConfigError, DecodeError, MissingExtra
from fastpipe.kernels._images import Jpegs

from ..gpu.devices import DeviceId, OnGpu
from ..gpu.handed_on import Pixels
from ..gpu.streams import InstanceStream, hand_over
from ..image.header import MoreFormat
from ..image.tiff import MOST_PAGES
from ..ranges import MOST_PIXELS, MaxPixels
from . import nvjpeg
from .nvjpeg import REFUSED, SUCCESS, BatchDecoder, status_name

__all__ = ["DecodeTensor"]

# From how a picture is stored to how it is seen, by EXIF's number; the last two axes are height and width.
_TURNS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    2: lambda image: image.flip(-1),
    3: lambda image: image.flip(-2, -1),
    4: lambda image: image.flip(-2),
    5: lambda image: image.transpose(-2, -1),
    6: lambda image: image.transpose(-2, -1).flip(-1),
    7: lambda image: image.transpose(-2, -1).flip(-2, -1),
    8: lambda image: image.transpose(-2, -1).flip(-2),
}


class DecodeTensor(OnGpu):
    """JPEG, PNG, WebP or BMP bytes -> a uint8 tensor of shape (1, 3, height, width) on a GPU; sets ``color``.

    **Who decodes.** Baseline JPEGs that are complete, of 8 bits and gray or YCbCr, are decoded by the GPU's JPEG
    engines (A100, H100 and later have them; elsewhere by its cores), the whole batch by one call of nvJPEG. Everything
    else (other formats; progressive JPEGs; CMYK, RGB or 12 bits in a JPEG; JPEGs that the GPU refuses or fails at) is
    decoded by ``DecodeMat`` on threads of the CPU, meanwhile, and copied to the GPU. ``hybrid`` changes that. Which of
    them decoded an image is seen only in the last bits: each rounds in its own way, by 1 of 255 at most. All instances
    of a process that are on one GPU share a decoder, and take turns without the GIL. Two instances: while one decodes,
    the callers of the other are answered and come back.

    **Beside a model on the same GPU**, one of nvJPEG's two ways to use the engines is twenty times slower; elsewhere it
    is a seventh faster. The decoder measures which of them is quicker just now.

    **What fails, and what has no result**, is as with ``DecodeMat``: no image, or the beginning of one only, leaves no
    result; too many pixels are a ``DecodeError``. One image of a batch never changes the outcome of another. Gray has
    its channel three times, alpha is dropped, EXIF's orientation is applied.

    **Memory.** A result is a view of memory that was made for this batch: the pixels lie as (height, width, 3) rows,
    so that ``ResizeNormalizeTensor`` reads them without a copy; ``result.contiguous()`` is a copy of its own, in
    planes. It is nobody else's, and it keeps the images of the batch that are about as wide in memory, too: copy it to
    keep one for long. Where the next step of a Sequential takes ``Pixels``, as ``ResizeNormalizeTensor`` does, no
    tensors are made, and ``data`` is then what it was before.

    **The GIL** is given up once for a batch while it is decoded, and a few times more for its memory and its stream;
    for each image only when its tensor is dropped, if it is one. Inside of a Sequential with ``SyncTensor``, the work
    is queued on that one's stream.

    Args:
        color: the order of the channels.
        device_id: which GPU.
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the instance's other steps are, otherwise the first.
        max: the most images of a batch.
        hybrid: "auto": as above. "gpu": what the GPU does not take fails with DecodeError. "cpu": ``DecodeMat`` decodes
            everything, and only the result is on the GPU.
        fancy_upsampling: smooth chroma, as libjpeg and Pillow make it; False: nearest, which is different by far.
        threads: threads of the CPU for all instances together, for what the GPU does not take; without it, half of the
            CPUs.
        instance_num: the node's number of instances, which share ``threads``.
        more_formats: which formats are decoded beyond the four; on the CPU, as by ``DecodeMat``.
        page: of a TIFF, from 0; the request's own ``page`` counts before it.
        tiff_16_bit: what becomes of a TIFF of 16 bits a channel. "refuse": it fails with DecodeError. "reduce": the
            upper half of each number is kept.
        truncated: what becomes of a JPEG without its last bytes. "refuse": it has no result. "keep": it is decoded as
            far as it goes, on the CPU, and the request's ``truncated`` is set to True.
        max_pixels: larger images fail with DecodeError before anything is allocated for them.

    Raises:
        ConfigError: if there is no such GPU, or nvJPEG cannot use it.
        MissingExtra: if nvJPEG or OpenCV is not installed.
        DecodeError: for requests with more than ``max_pixels``; with hybrid = "gpu", for all that is left to others.
        TypeError: for requests whose ``data`` is not bytes, bytearray, memoryview or a uint8 array.
    """

    keeps_input = True
    announced_inputs = IMAGE_FILE
    offers_forms = (Pixels,)

    def __init__(
        self,
        *,
        color: Literal["rgb", "bgr"] = "rgb",
        device_id: DeviceId = None,
        device: list[str] | None = None,
        max: Annotated[int, Between(1, 4096)] = 64,
        hybrid: Literal["auto", "gpu", "cpu"] = "auto",
        fancy_upsampling: bool = True,
        threads: Annotated[int, Between(1, 4096)] | None = None,
        instance_num: Annotated[int, Between(1, 4096)] = 1,
        more_formats: Sequence[MoreFormat] = (),
        page: Annotated[int, Between(0, MOST_PAGES - 1)] = 0,
        tiff_16_bit: Literal["refuse", "reduce"] = "refuse",
        truncated: Literal["refuse", "keep"] = "refuse",
        max_pixels: MaxPixels = MOST_PIXELS,
    ) -> None:
        try:
            from ..image.codec import DecodeMat
        except ImportError as error:
            raise MissingExtra("DecodeTensor", "cpu", error) from error
        self.max_batch = max
        self.color: Literal["rgb", "bgr"] = color
        self.hybrid = hybrid
        self.max_pixels = max_pixels
        self._gives_pixels = False  # see hand_on()
        self._cupy: Any = None
        device_id = self._claim_gpu(device, device_id)
        self._stream = InstanceStream(device_id)
        self._on_cpu = DecodeMat(
            more_formats=more_formats,
            page=page,
            tiff_16_bit=tiff_16_bit,
            truncated=truncated,
            max_pixels=max_pixels,
        )
        self._threads = (threads or -(-usable_cpu_count() // 2)) // instance_num or 1
        self._pool: ThreadPoolExecutor | None = None
        self._decoder: BatchDecoder | None = None
        if hybrid != "cpu":
            library = nvjpeg.load()
            with self._stream.entered():
                self._decoder = BatchDecoder(
                    library, device=device_id, max_batch=max, color=color, fancy_upsampling=fancy_upsampling
                )
            self._warm_up(self._decoder, max)

    def forward(self, batch: list[Request]) -> None:
        """Decode a batch.

        Raises:
            ItemErrors: for the requests that failed.
            RuntimeError: if the GPU fails.
        """
        errors: dict[int, BaseException] = {}
        left = self._sort(batch, errors)
        with self._stream.entered() as current:
            decoding = self._on_threads(batch, left)
            made, failed = self._on_gpu(batch, current.handle)
            if self.hybrid == "gpu":
                for index, status in failed:
                    errors[index] = self._refusal(status)
            else:
                decoding += self._on_threads(batch, [index for index, _ in failed])
            made += self._upload(batch, decoding, errors)
            if current.is_outermost:
                hand_over(made)
        raise_failed(errors, batch)

    def hand_on(self, form: type, taker: Backend) -> None:
        """Give pixels instead of tensors.

        Raises:
            MissingExtra: if CuPy, whose memory they are in, is not installed.
        """
        try:
            import cupy
        except ImportError as error:
            raise MissingExtra("DecodeTensor, which hands on pixels,", "cuda", error) from error
        self._cupy = cupy
        self._gives_pixels = True

    def close(self) -> None:
        """Let go of the decoder and the threads; results stay valid."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._decoder is not None:
            with self._stream.entered():
                self._decoder.close()
            self._decoder = None

    def _warm_up(self, decoder: BatchDecoder, largest: int) -> None:
        """Decode a full batch, for which the library gets its memory, and a single image."""
        import cv2

        decoder.is_warming_up = True

        encoded = cv2.imencode(".jpg", np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
        for count in (largest, 1):
            batch: list[Request] = [{"data": encoded} for _ in range(count)]
            left = decoder.images.sort(batch, MOST_PIXELS, _unchanging, {})
            with self._stream.entered() as current:
                _, failed = self._on_gpu(batch, current.handle)
            if left or failed:
                status = failed[0][1] if failed else REFUSED
                reason = "its header cannot be read" if status == REFUSED else status_name(status)
                self.close()
                raise ConfigError(f"DecodeTensor: nvJPEG cannot decode a plain JPEG on this GPU: {reason}")
        decoder.is_warming_up = False
        self.warmed_up = f"batches of {largest} and 1"

    # ---- what goes where ----

    def _sort(self, batch: list[Request], errors: dict[int, BaseException]) -> list[int]:
        """Have the decoder take what the GPU takes; return the indices of what is left to the CPU.

        DecodeMat says what is wrong with those that nobody takes.
        """
        if self._decoder is None:
            return list(range(len(batch)))
        left = self._decoder.images.sort(batch, self.max_pixels, _unchanging, errors)
        if left and self.hybrid == "gpu":
            errors.update({index: self._refusal(REFUSED) for index in left})
            return []
        return left

    def _refusal(self, status: int) -> DecodeError:
        if status != REFUSED:
            return DecodeError(f"DecodeTensor: the GPU cannot decode the image: {status_name(status)}")
        return DecodeError(
            "DecodeTensor: hybrid = 'gpu' takes complete baseline JPEGs of 8 bits, gray or YCbCr, "
            f"with at most max_pixels = {self.max_pixels}"
        )

    # ---- on the GPU ----

    def _on_gpu(self, batch: list[Request], stream: int) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Decode what the decoder has taken.

        Returns:
            The memory made for it; and which requests are not decoded, each with its status.
        """
        failed: list[tuple[int, int]] = []
        if self._decoder is None:
            return [], failed
        images = self._decoder.images
        while images.count:
            made, status = self._decode(self._decoder, batch, images, stream)
            if status == SUCCESS:
                return made, failed
            if status == REFUSED:
                failed += [(index, REFUSED) for index in images.drop_refused()]
            elif images.count == 1:
                return made, [*failed, (images.targets()[0][0], status)]
            else:
                more, failed_alone = self._one_by_one(self._decoder, batch, images, stream)
                return made + more, failed + failed_alone
        return [], failed

    def _one_by_one(
        self, decoder: BatchDecoder, batch: list[Request], images: Jpegs, stream: int
    ) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Decode each image of a batch that has failed: the library decodes all or nothing, and one is at fault."""
        made: list[torch.Tensor] = []
        failed: list[tuple[int, int]] = []
        for number, (index, *_) in enumerate(images.targets()):
            more, status = self._decode(decoder, batch, images.alone(number), stream)
            made += more
            if status != SUCCESS:
                failed.append((index, status))
        return made, failed

    def _decode(
        self, decoder: BatchDecoder, batch: list[Request], images: Jpegs, stream: int
    ) -> tuple[list[torch.Tensor], int]:
        """Decode images together, and file them if that succeeds; return the memory made for them, and the status."""
        blocks = [self._allocate(rows, columns) for rows, columns in images.blocks()]
        memories = [memory for memory, _ in blocks]
        images.place([address for _, address in blocks])
        status = decoder.decode(images, stream)
        if self._gives_pixels:
            if status == SUCCESS:
                images.hand_on(batch, memories, self.color)
            return [], status
        made: list[torch.Tensor] = list(memories)
        for index, block, top, height, width, orientation in images.targets() if status == SUCCESS else ():
            tensor = memories[block][:, :, top : top + height, :width]
            if orientation != 1:
                tensor = _TURNS[orientation](tensor)
                made.append(tensor)
            batch[index]["result"] = tensor
            batch[index]["color"] = self.color
        return made, status

    def _allocate(self, rows: int, columns: int) -> tuple[Any, int]:
        """Return memory for rows of three bytes a pixel, and its address.

        Torch gives up the GIL here, and for each tensor that is dropped, though not for slices; CuPy never does.
        """
        if self._gives_pixels:
            memory = self._cupy.cuda.alloc(rows * columns * 3)  # on the stream that has been entered
            return memory, memory.ptr
        planes = torch.empty(
            (1, 3, rows, columns), dtype=torch.uint8, device=self.device, memory_format=torch.channels_last
        )
        return planes, planes.data_ptr()

    # ---- on the CPU ----

    def _on_threads(self, batch: list[Request], indices: list[int]) -> list[tuple[int, Future[Request]]]:
        """Begin to decode some requests on threads."""
        if indices and self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "fastpipe-decode")
        return [(index, self._pool.submit(self._decoded, batch[index])) for index in indices if self._pool is not None]

    def _decoded(self, request: Request) -> Request:
        """Return what ``DecodeMat`` makes of a request, which is not changed."""
        decoded: Request = {key: request[key] for key in ("data", "page") if key in request}
        self._on_cpu.run(decoded)
        return decoded

    def _upload(
        self,
        batch: list[Request],
        decoding: list[tuple[int, Future[Request]]],
        errors: dict[int, BaseException],
    ) -> list[torch.Tensor]:
        """Await what the threads decode, and copy it to the GPU; return the copies."""
        made = []
        for index, future in decoding:
            try:
                decoded = future.result()
            except Exception as error:  # its own request's
                errors[index] = error
                continue
            request = batch[index]
            if "result" not in decoded:
                request.pop("result", None)  # an older one is not the answer
                continue
            if "truncated" in decoded:
                request["truncated"] = True
            copied = torch.from_numpy(decoded["result"]).to(self.device)
            if self.color == "rgb":
                copied = copied.flip(2)
            made.append(copied)
            if self._gives_pixels:
                height, width, _ = copied.shape
                row = (copied.data_ptr(), copied.stride(0), height, width, *copied.stride()[1:], 0, 0, 0, 0)
                request["result"] = Pixels(row, self.color, copied)
            else:
                request["result"] = copied.permute(2, 0, 1)[None]
            request["color"] = self.color
        return made


def _unchanging(data: Any) -> bytes | None:
    """Return the bytes, which nobody can change while they are decoded; None: it is nothing that has any."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if isinstance(data, np.ndarray) and data.dtype == np.uint8:
        return data.tobytes()
    return None
