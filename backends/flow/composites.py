"""Batches composed of smaller ones: Range, and what a node with ``&`` in its keys is made of.

    {"backend": "Range[OnnxTensor]", "range": "1,10", "OnnxTensor::max": 4}
    {"backend": "OnnxTensor", "model": "b1.onnx&b4.onnx&b8.onnx", "min": "1&4&8", "max": "1&4&8"}

Both take batches that none of their children takes at once, and divide each into batches that one of them takes: the
largest first, as long as what is left can be composed, too. :func:`compose` is that policy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import Annotated

from fastpipe.config.shapes import batch_alone
from fastpipe.contract import Between, Child, Container, Request
from fastpipe.errors import BackendError, ConfigError

from .child import ChildRunner, Failures, raise_failures, refuse_filters, sizes_in_words

__all__ = ["Composite", "Range", "compose"]

_LARGEST_RANGE = 65536  # compose() takes about a microsecond for each size and child

Sizes = tuple[int, int]
"""The smallest and the largest batch that a child takes."""


def compose(children: Sequence[Sizes], largest: int) -> list[tuple[int, int] | None]:
    """Return, by size of a batch from 0 to ``largest``, its first part: the index of a child, and how many it takes.

    That is the largest part whose rest is a sum of parts, too; of children that can take as many, the one that takes
    the fewest at most. None: no parts have that sum (and for size 0, which has none).
    """
    indices = sorted(range(len(children)), key=lambda index: children[index][1])
    first: list[tuple[int, int] | None] = [None]
    reached = [0]  # the sizes that are sums of parts, ascending
    for size in range(1, largest + 1):
        best: tuple[int, int] | None = None
        for index in indices:
            low, high = children[index]
            rest = bisect_left(reached, size - high)  # the smallest rest is left by the largest part
            if rest < len(reached) and reached[rest] <= size - low:
                part = size - reached[rest]
                if best is None or part > best[1]:
                    best = index, part
        first.append(best)
        if best is not None:
            reached.append(size)
    return first


class _Composer(Container):
    """Divides batches into parts that a child takes; the order stays, and a failure is that of its request alone.

    If a child raises for a part, its requests are run again one by one (unless the child says
    ``retry_alone = False``): by itself, or where it takes no single request, by the child that does.

    Args:
        children: with the batch sizes that each takes; none may weigh its requests.
        smallest, largest: the batch sizes to be composed.
    """

    composes_sizes = True
    _name = ""  # in errors
    retry_alone = False  # it has already been done, child by child

    def __init__(self, children: list[Child], sizes: Sequence[Sizes], smallest: int, largest: int) -> None:
        super().__init__(children)
        refuse_filters(self._name, children)
        for child in children:
            if child.backend.weigh is not None:
                raise ConfigError(f"{self._name} composes numbers of requests; {child.name} weighs them")
        self._first = compose(sizes, largest)
        missing = [size for size in range(smallest, largest + 1) if self._first[size] is None]
        if missing:
            taken = ", ".join(
                f"{child.name} takes {sizes_in_words(*each)}" for child, each in zip(children, sizes, strict=True)
            )
            raise ConfigError(f"{self._name}: no batch of {_listed(missing)} can be composed; {taken}")
        self.min_batch = smallest
        self.max_batch = largest
        self.thread_bound = any(child.backend.thread_bound for child in children)
        self.keeps_input = all(child.backend.keeps_input for child in children)
        first = children[0].backend
        self.announced_inputs, self.announced_outputs = first.announced_inputs, first.announced_outputs
        self._without: dict[int, str] = {}  # by id of a request without a result: which child gave none
        single = self._first[1] if largest >= 1 else None
        runners = [ChildRunner(child, gets_whole_batches=True) for child in children]
        stand_in = None if single is None else runners[single[0]]
        self._runners = [
            runner if low == 1 else _BatchRunner(child, stand_in)
            for runner, child, (low, _) in zip(runners, children, sizes, strict=True)
        ]
        if any(child.backend.bucket is not None for child in children):
            self.bucket = self._bucket

    def forward(self, batch: list[Request]) -> None:
        failed: Failures = {}
        self._without = {}
        rest = batch
        while rest:
            first = self._first[min(len(rest), len(self._first) - 1)]
            if first is None:
                sizes = sizes_in_words(self.min_batch, self.max_batch)
                raise BackendError(f"{self._name} takes batches of {sizes}, got {len(batch)}")
            index, count = first
            self._runners[index].run(rest[:count], failed)
            self._runners[index].note_results(rest[:count], self._without)
            rest = rest[count:]
        raise_failures(batch, failed)

    def why_no_result(self, request: Request) -> str | None:
        return self._without.get(id(request))

    def _bucket(self, request: Request) -> Hashable:
        """Requests may share a batch if all children agree: which of them gets which request is not known yet."""
        return tuple(child.backend.bucket(request) for child in self.children if child.backend.bucket is not None)


class _BatchRunner(ChildRunner):
    """Runs a child that takes no single request; where a batch fails, another one runs its requests one by one."""

    def __init__(self, child: Child, stand_in: ChildRunner | None) -> None:
        super().__init__(child, gets_whole_batches=True)
        self._stand_in = stand_in
        self.retry_alone = self.retry_alone and stand_in is not None

    def run_alone(self, request: Request) -> None:
        if self._stand_in is None:
            raise BackendError(f"{self.name} takes no single request")
        self._stand_in.run_alone(request)


class Range(_Composer):
    """Takes every batch size in ``range``, composed of batches that its children take.

    A child takes ``min_batch`` to ``max_batch`` requests (as many as come, if it does not say), and no other number
    than from ``min`` to ``max``. Buckets are those on which all children agree.

    Built, run and closed on one thread of its own if any child must be.

    Args:
        range: the smallest and the largest size, ``"1,10"``. Where it begins above 1, the Range can only stand inside
            another one: a node's batches begin with 1.
        min: the smallest batch of a child; the node's key. Shapes are left to the children.
        max: the largest; the same.

    Raises:
        ConfigError: if a size in the range is no sum of sizes that the children take, or a child weighs requests.
    """

    _name = "Range"

    def __init__(
        self,
        children: list[Child],
        *,
        range: Annotated[tuple[int, int], Between(1, _LARGEST_RANGE)],
        min: int | str | None = None,
        max: int | str | None = None,
    ) -> None:
        smallest, largest = range
        if smallest > largest:
            raise ConfigError(f"Range: range must be the smallest size and the largest, got {smallest},{largest}")
        least, most = batch_alone(min), batch_alone(max)
        sizes = [_sizes(self._name, child, least, most, largest) for child in children]
        super().__init__(children, sizes, smallest, largest)


class Composite(_Composer):
    """What one instance of a node is whose keys have ``&``: several backends that together take 1 to the largest max.

    Args:
        limits: for each child, the node's ``min`` and ``max`` of it; None where they do not say.

    Raises:
        ConfigError: if none of the children takes a single request, so that not every size can be composed.
    """

    _name = "'&'"

    def __init__(self, children: list[Child], *, limits: Sequence[tuple[int | None, int | None]]) -> None:
        # A backend that names no limit takes one request where the node has no max: as in a node without "&".
        sizes = [_sizes(self._name, child, *each, 1) for child, each in zip(children, limits, strict=True)]
        super().__init__(children, sizes, 1, max(high for _, high in sizes))


def _sizes(name: str, child: Child, least: int | None, most: int | None, without: int) -> Sizes:
    """Return what both the child and the limits allow; ``without`` a limit, up to that."""
    backend = child.backend
    low = max(backend.min_batch, least or 1)
    high = min((each for each in (backend.max_batch, most) if each is not None), default=max(without, low))
    if low > high:
        raise ConfigError(
            f"{name}: {child.name} takes batches of {sizes_in_words(backend.min_batch, backend.max_batch)}, and its "
            f"min and max allow {sizes_in_words(least or 1, most)}"
        )
    return low, high


def _listed(sizes: Sequence[int]) -> str:
    shown = [str(size) for size in sizes[:5]]
    if len(sizes) > len(shown):
        return f"{', '.join(shown)} or {len(sizes) - len(shown)} more sizes"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
