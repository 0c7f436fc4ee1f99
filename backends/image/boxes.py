"""Boxes, of which JPEG 2000, AVIF and HEIC files consist: a length, a kind, and a content, which may be boxes again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .header import MOST_STEPS

__all__ = ["Box", "boxes_of"]


class Box(NamedTuple):
    """A part of a file."""

    kind: bytes
    whole: memoryview
    content: memoryview
    content_at: int
    """Where the content begins in what the box is part of."""


def boxes_of(data: memoryview) -> Iterator[Box]:
    """Yield the boxes of a file or of a box; IndexError if one is damaged or reaches beyond the end."""
    at = 0
    for _ in range(MOST_STEPS):
        if at == len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        content_at = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, content_at)
            content_at += 8
        elif length == 0:
            length = len(data) - at
        end = at + length
        if not content_at <= end <= len(data):
            raise IndexError
        yield Box(kind, data[at:end], data[content_at:end], content_at)
        at = end
    raise IndexError
