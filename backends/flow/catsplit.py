"""CatSplit: the items of a batch as one object, through a backend at once, and back; with its two halves for arrays.

    {"backend": "CatSplit[Embed]", "max": 16}        "CatSplit[Pad,Embed,Unpad]"

**The contract.** The items travel as *one* request of their own, which goes through ``cat``, body and ``split`` as
through the steps of a Sequential; each of the three is a backend, or a function of one item.

1. ``cat`` gets the list of the items' data under ``data``. Its result is what the body gets. It may write ``sizes``:
   how many rows of the whole belong to each item, for whoever splits.
2. The body gets that, once. If it leaves no result, none of the items has one.
3. ``split`` gets the body's result, and has as its result a list with one element for each item, in their order.

Without ``cat`` and ``split``, those for arrays are used: :class:`Concatenate` and :class:`SplitRows`.

**Whose rows.** The result of the body must have exactly as many rows as went in, or the batch fails. That row i of it
belongs to row i of the whole, and depends on no row of another item, is not proved: whoever writes ``CatSplit[A]``
vouches for it. A model as the body sees one request, the whole; what is proved of a model is of its batch axis.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import numpy as np

from fastpipe.contract import Child, Container, PerRequest, Request
from fastpipe.errors import BackendError, ConfigError, KernelError
from fastpipe.results import checked_results
from fastpipe.summaries import summarize

from ..odd_arrays import oddity
from .child import Before, ChildRunner, Failures, fail, raise_failures, refuse_filters, run_again

__all__ = ["CatSplit", "Concatenate", "SplitRows"]


class Concatenate(PerRequest):
    """Joins a list of arrays along their first axis, and writes their lengths under ``sizes``.

    **In**: ``data`` is a list of NumPy arrays or of torch tensors, at least one, with equal dtypes and equal shapes
    but for the first axis. **Out**: an array of the same kind, a copy; ``sizes`` is a list of numbers of rows.

    Raises:
        KernelError: for a list that cannot be joined; it has expected and got.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        arrays = request["data"]
        _check_joinable(arrays)
        request["sizes"] = [len(array) for array in arrays]
        request["result"] = sys.modules["torch"].cat(arrays) if _is_torch(arrays[0]) else np.concatenate(arrays)

    @staticmethod
    def kind(array: Any) -> Hashable:
        """Return what has to be equal of arrays that are joined; what is one's alone would else become that of all.

        Raises:
            KernelError: for anything but a NumPy array or a torch tensor with an axis to join along.
        """
        if not isinstance(array, np.ndarray) and not _is_torch(array):
            raise KernelError(f"expected a NumPy array or a torch tensor to join, got {type(array).__name__}")
        if odd := oddity(array):
            raise KernelError(f"expected a NumPy array or a torch tensor to join, got {odd}")
        if array.ndim < 1:
            raise KernelError("expected an array with at least one axis to join along, got one without axes")
        device = (array.device, array.requires_grad) if _is_torch(array) else None
        return type(array), device, array.dtype, tuple(array.shape[1:])


class SplitRows(PerRequest):
    """Divides an array along its first axis: the reverse of :class:`Concatenate`.

    **In**: ``data`` is a NumPy array or a torch tensor, ``sizes`` says how many rows each part has.
    **Out**: a list of parts, which are views.

    Raises:
        KernelError: where the rows are not as many as the sizes say; it has expected and got.
    """

    keeps_input = True

    def run(self, request: Request) -> None:
        array, sizes = request["data"], request["sizes"]
        problem = _split_problem(array, sizes)
        if problem:
            raise KernelError(problem)
        ends = np.cumsum(sizes).tolist()
        request["result"] = [array[end - size : end] for size, end in zip(sizes, ends, strict=True)]


class CatSplit(Container):
    """Joins the items of a batch, runs the body on the whole once, and splits what it gives; see the module's contract.

    With :class:`Concatenate` (the default), items that cannot be joined never share a run, and one that is no array
    fails alone. ``max_batch`` counts items, and is the node's ``max``; what the children say of theirs is about wholes.

    **Failures**: if any of the three raises, each item goes through them again, alone (unless the body says
    ``retry_alone = False``), and only those fail that raise again.

    Built, run and closed on one thread of its own if any child must be.

    Args:
        children: the body alone, or ``cat``, body and ``split``.
    """

    retry_alone = False  # it has already been done

    def __init__(self, children: list[Child]) -> None:
        super().__init__(children)
        if len(children) not in (1, 3):
            raise ConfigError(f"CatSplit takes a body, or cat, body and split; got {len(children)} children")
        refuse_filters("CatSplit", children)
        if self.streams:
            raise ConfigError(
                "CatSplit joins requests, and splits what comes out: none of its children may be Streaming"
            )
        self.thread_bound = any(child.backend.thread_bound for child in children)
        self._cuts_by_rows = len(children) == 1
        if self._cuts_by_rows:
            children = [Child("Concatenate", Concatenate()), *children, Child("SplitRows", SplitRows())]
        self._cat, self._body, self._split = (ChildRunner(child) for child in children)
        self._joins_arrays = isinstance(children[0].backend, Concatenate)
        # Concatenate copies: what the body changes is not what came.
        self.keeps_input = type(children[0].backend) is Concatenate or all(
            child.backend.keeps_input for child in children
        )
        self._why_no_result = ""
        if self._joins_arrays:
            self.bucket = self._bucket

    def forward(self, batch: list[Request]) -> None:
        failed: Failures = {}
        groups: dict[Hashable, list[Request]] = {}
        for request in batch:
            try:
                kind = Concatenate.kind(request["data"]) if self._joins_arrays else None
                groups.setdefault(kind, []).append(request)
            except Exception as error:  # an item that cannot be joined fails alone
                fail(request, error, failed)
        for group in groups.values():
            before = Before(group, self.keeps_input) if len(group) > 1 and self._body.retry_alone else None
            try:
                self._run(group)
            except Exception as error:
                if len(group) == 1:
                    fail(group[0], error, failed)
                else:
                    where = f"in a batch of {len(group)}"
                    run_again(group, before, lambda request: self._run([request]), failed, error, where)
        raise_failures(batch, failed)

    def why_no_result(self, request: Request) -> str:
        return self._why_no_result

    def _run(self, group: list[Request]) -> None:
        """Run the three on ``group``; its requests are changed only by what comes out."""
        whole: Request = {"data": [request["data"] for request in group]}
        self._cat.run_alone(whole)
        if "result" not in whole:
            raise BackendError(f"CatSplit: expected the joined object as the result of {self._cat.name!r}, got none")
        whole["data"] = whole.pop("result")
        sizes = list(whole["sizes"]) if self._cuts_by_rows else []
        self._body.run_alone(whole)
        if self._cuts_by_rows:
            whole["sizes"] = sizes  # what a body writes there moves no border between two requests
        if "result" not in whole:
            self._why_no_result = self._body.why_no_result(whole)
            return
        whole["data"] = whole.pop("result")
        self._split.run_alone(whole)
        parts = checked_results(whole.get("result"), len(group), f"CatSplit: {self._split.name!r}")
        for request, part in zip(group, parts, strict=True):
            request["result"] = part

    def _bucket(self, request: Request) -> Hashable:
        try:
            return Concatenate.kind(request["data"])
        except (KernelError, KeyError):
            return "misfit"  # forward() tells its caller why


def _split_problem(array: Any, sizes: Any) -> str:
    """Return what keeps an array from being split into so many rows each, in words; nothing if nothing does."""
    is_listed = isinstance(sizes, list | tuple)
    if not is_listed or not all(
        isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0 for size in sizes
    ):
        return f"expected sizes as a list of numbers of rows, 0 or more each, got {summarize(sizes)}"
    expected = f"expected an array of {sum(sizes)} rows to split into {summarize(list(sizes))}"
    shape = getattr(array, "shape", None)
    if odd := oddity(array):
        return f"{expected}, got {odd}"
    if not shape or shape[0] != sum(sizes):
        got = f"a {type(array).__name__}" if shape is None else f"shape {tuple(shape)}"
        return f"{expected}, got {got}"
    return ""


def _check_joinable(arrays: Any) -> None:
    if not isinstance(arrays, list | tuple) or not arrays:
        raise KernelError(f"expected a list of arrays to join, got {summarize(arrays)}")
    kinds = [Concatenate.kind(array) for array in arrays]
    for array, kind in zip(arrays, kinds, strict=True):
        if kind != kinds[0]:
            first = arrays[0]
            classes = [type(each).__name__ for each in (first, array)]
            raise KernelError(
                f"expected arrays like the first, of shape (n, ...) = {tuple(first.shape)}, {first.dtype}, to join; "
                f"got {tuple(array.shape)}, {array.dtype}"
                + (f", a {classes[1]} where the first is a {classes[0]}" if classes[0] != classes[1] else "")
            )


def _is_torch(value: Any) -> bool:
    # Who sends a tensor has imported torch; this module never does.
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))
