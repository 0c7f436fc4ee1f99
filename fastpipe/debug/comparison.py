"""Whether what came of a request now is what came of it then: encoded values (see ``record_files.py``) are compared."""

from __future__ import annotations

import math
import re
from typing import Any

from fastpipe.debug import record_files
from fastpipe.summaries import summarize

__all__ = ["TOLERANCE", "same", "without_addresses"]

# Of numbers computed alone and in a batch the last digits differ.
TOLERANCE = 1e-4

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def without_addresses(text: str) -> str:
    """Return text with the addresses of objects taken out: they differ between processes."""
    return _ADDRESS.sub("0x...", text)


def same(
    one: Any, ones_members: dict[str, bytes], other: Any, others_members: dict[str, bytes], tolerance: float = TOLERANCE
) -> str:
    """Compare two encoded values; return where and how they differ, or an empty string.

    Numbers may differ by ``tolerance``, relatively to the larger or, below 1, absolutely. Of what was lost, types are
    compared; pickles byte for byte.
    """
    return _Comparison(ones_members, others_members, tolerance).difference(one, other, "")


class _Comparison:
    def __init__(self, ones_members: dict[str, bytes], others_members: dict[str, bytes], tolerance: float) -> None:
        self.ones_members = ones_members
        self.others_members = others_members
        self.tolerance = tolerance

    def difference(self, one: Any, other: Any, where: str) -> str:
        if isinstance(one, dict) and isinstance(other, dict):
            return self._difference(one, other, where)
        if isinstance(one, float) and isinstance(other, float):
            close = math.isclose(one, other, rel_tol=self.tolerance, abs_tol=self.tolerance)
            return "" if close else f"{where}: {one!r}, now {other!r}"
        return "" if one == other and type(one) is type(other) else f"{where}: {_told(one)}, now {_told(other)}"

    def _difference(self, one: dict[str, Any], other: dict[str, Any], where: str) -> str:
        ((kind, inner),), ((other_kind, other_inner),) = one.items(), other.items()
        if kind != other_kind:
            return f"{where}: {_told(one)}, now {_told(other)}"
        if kind in ("ndarray", "scalar"):
            return self._arrays(self.ones_members[inner], self.others_members[other_inner], where)
        if kind == "tensor":
            return self._tensors(inner, other_inner, where)
        if kind in ("bytes", "bytearray", "pickle"):
            return "" if self.ones_members[inner] == self.others_members[other_inner] else f"{where}: other bytes"
        if kind == "lost":
            return (
                "" if inner["type"] == other_inner["type"] else f"{where}: {inner['type']}, now {other_inner['type']}"
            )
        if kind == "fields":
            if inner["type"] != other_inner["type"]:
                return f"{where}: {inner['type']}, now {other_inner['type']}"
            return self._pairs(inner["fields"], other_inner["fields"], where, ".{}")
        if kind == "dict":
            return self._pairs(inner, other_inner, where, "[{!r}]")
        if kind in record_files.COLLECTIONS:
            return self._items(inner, other_inner, where)
        return "" if inner == other_inner else f"{where}: {inner}, now {other_inner}"

    def _pairs(self, ones: list[Any], others: list[Any], where: str, form: str) -> str:
        by_key = {repr(key): (key, node) for key, node in ones}
        others_by_key = {repr(key): (key, node) for key, node in others}
        for written, (key, node) in by_key.items():
            here = where + form.format(key)
            if written not in others_by_key:
                return f"{here}: missing now"
            if found := self.difference(node, others_by_key[written][1], here):
                return found
        new = [key for written, (key, _) in others_by_key.items() if written not in by_key]
        return f"{where}{form.format(new[0])}: new" if new else ""

    def _items(self, ones: list[Any], others: list[Any], where: str) -> str:
        if len(ones) != len(others):
            return f"{where}: {len(ones)} items, now {len(others)}"
        pairs = zip(ones, others, strict=True)
        return next((d for i, (a, b) in enumerate(pairs) if (d := self.difference(a, b, f"{where}[{i}]"))), "")

    def _arrays(self, one: bytes, other: bytes, where: str) -> str:
        import numpy

        a, b = record_files.array_of(one, is_scalar=False), record_files.array_of(other, is_scalar=False)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where}: {a.dtype} {a.shape}, now {b.dtype} {b.shape}"
        if a.dtype.kind not in "fc":
            return "" if numpy.array_equal(a, b) else f"{where}: other values"
        if numpy.allclose(a, b, rtol=self.tolerance, atol=self.tolerance, equal_nan=True):
            return ""
        return f"{where}: values differ by up to {float(numpy.nanmax(abs(a - b))):.3g}"

    def _tensors(self, one: dict[str, Any], other: dict[str, Any], where: str) -> str:
        import torch

        a = record_files.tensor_of({**one, "device": "cpu"}, self.ones_members[one["member"]])
        b = record_files.tensor_of({**other, "device": "cpu"}, self.others_members[other["member"]])
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where}: {a.dtype} {tuple(a.shape)}, now {b.dtype} {tuple(b.shape)}"
        wide = torch.complex128 if a.is_complex() else torch.float64
        close = torch.allclose(a.to(wide), b.to(wide), rtol=self.tolerance, atol=self.tolerance, equal_nan=True)
        return "" if close else f"{where}: other values"


def _told(node: Any) -> str:
    if not isinstance(node, dict):
        return summarize(node).text
    ((kind, inner),) = node.items()
    return str(inner["type"]) if kind in ("lost", "fields") else str(kind)
