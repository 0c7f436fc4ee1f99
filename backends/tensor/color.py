"""The color of images as torch tensors, on the CPU or a GPU: see ``requests`` for what an image is."""

from __future__ import annotations

from typing import Literal

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.summaries import summarize

from .requests import PerTensor, image_of

__all__ = ["CvtColorTensor"]


class CvtColorTensor(PerTensor):
    """BGR <-> RGB. A tensor whose ``color`` is the wanted one already is handed on, the same object; sets ``color``.

    Args:
        color: what the channels are to be.

    Raises:
        KernelError: if there are not three channels, or ``color`` of the request is neither of the two.
    """

    keeps_input = True

    def __init__(self, *, color: Literal["rgb", "bgr"]) -> None:
        super().__init__()
        self.color = color

    def run(self, request: Request) -> None:
        image = image_of(request, self, channels=3)
        source = request.get("color", "bgr")
        if source not in ("rgb", "bgr"):
            got = summarize(source)
            raise KernelError(f"CvtColorTensor: expected a request whose color is 'rgb' or 'bgr', got {got}")
        request["result"] = image if source == self.color else image.flip(1)
        request["color"] = self.color
