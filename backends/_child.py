"""One child of a container, run over the requests that are its share of a batch: each keeps its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from fastpipe.backend import Child, Request
from fastpipe.errors import BackendError, ConfigError, ItemErrors

__all__ = ["ChildRunner", "Failures", "common_size", "fail", "raise_failures", "refuse_filters", "sizes_in_words"]

Failures = dict[int, BaseException]
"""id of a request -> why it failed. The batch keeps its requests alive, so that no two have the same id."""


class ChildRunner:
    """Runs a child, and keeps the failure of one request from the others.

    If the child raises for several requests, they are put back to what they were before it and each is run in it
    again, alone (unless the child says ``retry_alone = False``). Those that raise again have failed.

    Args:
        child: what to run.
        gets_whole_batches: True: what :meth:`run` is given, the child gets at once. False: a child with a ``bucket``,
            a ``weigh`` or a ``max_batch`` gets it in parts of one bucket each and of no more than it takes.
    """

    def __init__(self, child: Child, *, gets_whole_batches: bool = False) -> None:
        self.name = child.name
        self.forward = child.backend.forward
        self.max_batch = child.backend.max_batch
        self.retry_alone = child.backend.retry_alone
        self.limit = None if gets_whole_batches else self.max_batch
        self.bucket: Callable[[Request], Hashable] | None = None if gets_whole_batches else child.backend.bucket
        self.weigh: Callable[[Request], float] | None = None if gets_whole_batches else child.backend.weigh

    def run(self, requests: list[Request], failed: Failures) -> None:
        """Run the child over ``requests``, noting failures."""
        if self.max_batch == 1:
            self._run_one_by_one(requests, failed)
            return
        is_small = self.limit is None or len(requests) <= self.limit
        if is_small and self.bucket is None and self.weigh is None:
            self._run_together(requests, failed)
            return
        for part in self._parts(requests, failed):
            self._run_together(part, failed)

    def run_alone(self, request: Request) -> None:
        """Run the child over one request; raises what failed it."""
        try:
            self.forward([request])
            return
        except ItemErrors as error:
            causes = self._by_index(error, 1)
        except Exception as error:
            error.add_note(f"in step {self.name!r}")
            raise
        for cause in causes.values():  # raised out here, its own cause and context stay what they were
            cause.add_note(f"in step {self.name!r}")
            raise cause

    def _run_one_by_one(self, requests: list[Request], failed: Failures) -> None:
        for request in requests:
            try:
                self.run_alone(request)
            except Exception as error:  # kept for this request's caller
                fail(request, error, failed)

    def _run_together(self, requests: list[Request], failed: Failures) -> None:
        if len(requests) == 1:
            self._run_one_by_one(requests, failed)
            return
        before = [request.copy() for request in requests] if self.retry_alone else []
        try:
            self.forward(list(requests))  # a copy: the list is the child's, `requests` is still needed
        except ItemErrors as error:
            for index, cause in self._by_index(error, len(requests)).items():
                cause.add_note(f"in step {self.name!r}")
                fail(requests[index], cause, failed)
        except Exception as error:
            if not self.retry_alone:
                error.add_note(f"in step {self.name!r}, in a batch of {len(requests)}")
                for request in requests:
                    fail(request, error, failed)
                return
            for request, content in zip(requests, before, strict=True):
                request.clear()
                request.update(content)
            self._run_one_by_one(requests, failed)

    def _by_index(self, error: ItemErrors, count: int) -> dict[int, BaseException]:
        unknown = [index for index in error.errors if index not in range(count)]
        if not unknown:
            return error.errors
        broken = BackendError(f"step {self.name!r} raised ItemErrors for item {unknown[0]} of a batch of {count}")
        broken.__cause__ = error
        return dict.fromkeys(range(count), broken)

    def _parts(self, requests: list[Request], failed: Failures) -> Iterable[list[Request]]:
        """Divide ``requests`` by bucket, and where they would weigh too much together."""
        limit = self.limit
        parts: list[list[Request]] = []
        open_parts: dict[Hashable, tuple[list[Request], float]] = {}  # bucket -> its last part, and the part's weight
        for request in requests:
            try:
                bucket = self.bucket(request) if self.bucket is not None else None
                weight = self.weigh(request) if self.weigh is not None else 1.0
                part, filled = open_parts.get(bucket, ([], 0.0))
            except Exception as error:  # a request that cannot be measured fails alone
                fail(request, error, failed)
                continue
            if not part or (limit is not None and filled + weight > limit):
                part, filled = [], 0.0
                parts.append(part)
            part.append(request)
            open_parts[bucket] = part, filled + weight
        return parts


def fail(request: Request, error: BaseException, failed: Failures) -> None:
    """Note that ``request`` has failed; an unfinished result goes."""
    request.pop("result", None)
    failed[id(request)] = error


def raise_failures(batch: list[Request], failed: Failures) -> None:
    """Raise what a container's ``forward`` has to raise: nothing, the one request's own error, or ItemErrors."""
    if not failed:
        return
    if len(batch) == 1:
        raise failed[id(batch[0])]
    raise ItemErrors({index: failed[id(request)] for index, request in enumerate(batch) if id(request) in failed})


def common_size(sizes: list[int | None]) -> int | None:
    """Return the largest batch that all children can share; None: there is no limit among them.

    Children that take one are run item by item, and do not count unless all are such.
    """
    if all(size == 1 for size in sizes):
        return 1
    return min((size for size in sizes if size is not None and size != 1), default=None)


def refuse_filters(container: str, children: list[Child]) -> None:
    """Raise ConfigError if a filter stands in front of a child of a container that asks none."""
    for child in children:
        if child.filter is not None:
            raise ConfigError(f"{container} asks no filters: take the one in front of {child.name} away")


def sizes_in_words(least: int, most: int | None) -> str:
    """Return batch sizes as in ``"1 to 8"``."""
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"
