"""Color and arithmetic of images on the CPU: see ``requests`` for what an image is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastpipe.contract import Backend, PerRequest, Request, raise_failed, run_each
from fastpipe.errors import ConfigError, KernelError
from fastpipe.kernels import cpu
from fastpipe.summaries import summarize

from ..presets import Preset, levels_of
from ..ranges import check_levels, check_results
from .requests import Pixels, color_of, pixels_of

__all__ = ["CvtColorMat", "NormalizeMat"]


class CvtColorMat(PerRequest):
    """BGR <-> RGB. Pixels whose ``color`` is the wanted one already are handed on, the same array; sets ``color``.

    Args:
        color: what the channels are to be.

    Raises:
        KernelError: if there are not three channels, or ``color`` of the request is neither of the two.
    """

    keeps_input = True

    def __init__(self, *, color: Literal["rgb", "bgr"]) -> None:
        self.color: Literal["rgb", "bgr"] = color

    def run(self, request: Request) -> None:
        pixels = pixels_of(request, self, channels=3)
        source = request.get("color", "bgr")
        if source not in ("rgb", "bgr"):
            raise KernelError(f"CvtColorMat: expected a request whose color is 'rgb' or 'bgr', got {summarize(source)}")
        request["result"] = pixels if source == self.color else cpu.convert_color(pixels, source, self.color)
        request["color"] = self.color


class NormalizeMat(Backend):
    """Pixels -> ``(pixels - mean) / std`` as a float array of shape (channels, height, width).

    One pass: color, arithmetic and the change of axes; see ``fastpipe.kernels.cpu.normalize``. The requests of a batch
    that are equal in size and color are computed together, with one release of the GIL at most; their results lie one
    after the other in one block of memory, which lives as long as any of them.

    Args:
        color: what the channels are to be, "rgb", "bgr" or "gray"; by default what they are. Set in the request.
        mean: a number or one per channel of the result, in its order, on the scale 0-255; without it, 0.
        std: the same, none zero; without it, 1.
        preset: in place of both, the numbers of "imagenet" (torchvision, timm), "clip" (OpenAI's) or "yolo"
            (Ultralytics: 0 to 1). The color is then "rgb" unless it is given; for "bgr" the numbers are exchanged.
        dtype: of the result; computed in float32 and rounded once.

    Raises:
        ConfigError: while a pipe is built, if mean and std do not fit the color, or preset meets one of them.
        KernelError: if pixels have neither one nor three channels.
    """

    keeps_input = True

    def __init__(
        self,
        *,
        color: Literal["rgb", "bgr", "gray"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        preset: Preset | None = None,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        mean, std, color = levels_of("NormalizeMat", preset, color, mean, std)
        self.color: cpu.Color | None = color
        self.mean = mean
        self.std = std
        self.dtype = dtype
        sizes = {1} if color == "gray" else {1, 3}
        problems = [
            f"NormalizeMat: {name} must have {' or '.join(map(str, sorted(sizes)))} numbers, got {value}"
            for name, value in (("mean", mean), ("std", std))
            if len(value) not in sizes
        ]
        try:
            check_levels(mean, std)
            if not problems:
                check_results(mean, std, dtype)
        except ConfigError as error:
            problems += [f"NormalizeMat: {problem}" for problem in error.problems]
        if problems:
            raise ConfigError(*problems)

    def forward(self, batch: list[Request]) -> None:
        alike: dict[tuple[Any, ...], list[tuple[Request, Pixels]]] = {}

        def sort(request: Request) -> None:
            pixels = pixels_of(request, self)
            source = color_of(request, pixels, self)
            if source == "gray" and pixels.ndim == 3:
                pixels = pixels[..., 0]
            alike.setdefault((pixels.shape, source), []).append((request, pixels))

        failed = run_each(batch, sort)
        for (_, source), items in alike.items():
            target = self.color or source
            results = cpu.normalize(
                [pixels for _, pixels in items],
                mean=self.mean,
                std=self.std,
                source=source,
                target=target,
                dtype=self.dtype,
            )
            for (request, _), result in zip(items, results, strict=True):
                request["result"] = result
                request["color"] = target
        raise_failed(failed, batch)
