"""One child of a container, run over the requests that are its share of a batch: each keeps its own outcome."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from fastpipe.contract import Child, Request, raise_failed
from fastpipe.errors import BackendError, ConfigError, ItemErrors
from fastpipe.snapshots import CannotCopy, Snapshot, take

__all__ = [
    "Before",
    "ChildRunner",
    "Failures",
    "common_size",
    "fail",
    "raise_failures",
    "refuse_filters",
    "run_again",
    "sizes_in_words",
]

Failures = dict[int, BaseException]
"""id of a request -> why it failed. The batch keeps its requests alive, so that no two have the same id."""


class ChildRunner:
    """Runs a child, and keeps the failure of one request from the others.

    If the child raises for several requests, each is put back to what it was before it and is run in it again, alone
    (unless the child says ``retry_alone = False``). Those that raise again have failed; all of them, where a value
    cannot be put back (see ``Backend.keeps_input``).

    Args:
        child: what to run.
        gets_whole_batches: True: what :meth:`run` is given, the child gets at once. False: a child with a ``bucket``,
            a ``weigh`` or a ``max_batch`` gets it in parts of one bucket each and of no more than it takes.
    """

    def __init__(self, child: Child, *, gets_whole_batches: bool = False) -> None:
        self.name = child.name
        self.forward = child.backend.forward
        self.max_batch = child.backend.max_batch
        # What has handed on chunks would hand them on twice; who has, the engine alone knows.
        self.retry_alone = child.backend.retry_alone and not child.backend.streams
        self.keeps_input = child.backend.keeps_input
        self._explain = child.backend.why_no_result
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
        handed = [request]
        try:
            self.forward(handed)
            return
        except ItemErrors as error:
            causes = _by_position(error, handed, [request], self.name)
        except Exception as error:
            error.add_note(f"in step {self.name!r}")
            raise
        for cause in causes.values():  # raised out here, its own cause and context stay what they were
            cause.add_note(f"in step {self.name!r}")
            raise cause

    def why_no_result(self, request: Request) -> str:
        """Return which step has left a request, that the child has just run, without a result; "": a filter in it."""
        why = None if self._explain is None else self._explain(request)
        return self.name if why is None else why

    def note_results(self, requests: list[Request], without: dict[int, str]) -> None:
        """Note in ``without``, by id, why requests that the child has just run have no result."""
        for request in requests:
            if "result" not in request:
                without[id(request)] = self.why_no_result(request)

    def _run_one_by_one(self, requests: list[Request], failed: Failures) -> None:
        for request in requests:
            _run_alone(self.run_alone, request, failed)

    def _run_together(self, requests: list[Request], failed: Failures) -> None:
        if len(requests) == 1:
            self._run_one_by_one(requests, failed)
            return
        before = Before(requests, self.keeps_input) if self.retry_alone else None
        handed = list(requests)  # a copy: the list is the child's, `requests` is still needed
        try:
            self.forward(handed)
        except ItemErrors as error:
            for index, cause in _by_position(error, handed, requests, self.name).items():
                cause.add_note(f"in step {self.name!r}")
                fail(requests[index], cause, failed)
        except Exception as error:
            where = f"in step {self.name!r}, in a batch of {len(requests)}"
            run_again(requests, before, self.run_alone, failed, error, where)

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


class Before:
    """What requests were before they ran together, for whoever runs them again one by one.

    Args:
        requests: they must stay the dicts that they are.
        keeps_values: nobody changes the values in them: the dicts alone are put back.
    """

    refusal: str | None = None
    """Why they cannot be run again: what there is of a value that cannot be copied, and what to do."""

    def __init__(self, requests: list[Request], keeps_values: bool) -> None:
        self._requests = requests
        self._contents: list[Request] | list[Snapshot] = []
        if keeps_values:
            self._contents = [request.copy() for request in requests]
            return
        try:
            self._contents = take(requests)
        except CannotCopy as error:
            self.refusal = str(error)

    def put_back(self, index: int) -> None:
        """Make a request what it was; just before its second run, as others' may change what it shares with them."""
        request, content = self._requests[index], self._contents[index]
        if isinstance(content, Snapshot):
            content.put_back(request)
            return
        request.clear()
        request.update(content)


def run_again(
    requests: list[Request],
    before: Before | None,
    run_alone: Callable[[Request], None],
    failed: Failures,
    error: Exception,
    where: str,
) -> None:
    """Run requests again one by one, after they have failed together; those that raise again have failed.

    Args:
        requests: they must stay the dicts that they are.
        before: what they were before the first run; None: they are not to be run again.
        run_alone: runs one of them.
        failed: where failures are noted.
        error: what failed them together: that of all of them, if they are not run again.
        where: a note on it in that case.
    """
    if before is None or before.refusal is not None:
        error.add_note(where)
        if before is not None:
            error.add_note(f"the batch was not run again one by one: {before.refusal}")
        for request in requests:
            fail(request, error, failed)
        return
    for index, request in enumerate(requests):
        before.put_back(index)
        _run_alone(run_alone, request, failed)


def _run_alone(run_alone: Callable[[Request], None], request: Request, failed: Failures) -> None:
    try:
        run_alone(request)
    except Exception as error:  # kept for this request's caller
        fail(request, error, failed)


def _by_position(
    error: ItemErrors, handed: list[Request], requests: list[Request], name: str
) -> dict[int, BaseException]:
    """Return what a child's ItemErrors says of ``requests``, as they stand there; ``handed`` is the child's list."""
    try:
        return error.by_position(handed, requests)
    except BackendError as broken:
        broken.add_note(f"raised by step {name!r}")
        return dict.fromkeys(range(len(requests)), broken)


def fail(request: Request, error: BaseException, failed: Failures) -> None:
    """Note that ``request`` has failed; an unfinished result goes."""
    request.pop("result", None)
    failed[id(request)] = error


def raise_failures(batch: list[Request], failed: Failures) -> None:
    """Raise what a container's ``forward`` has to raise: nothing, the one request's own error, or ItemErrors."""
    if failed:
        raise_failed(
            {index: failed[id(request)] for index, request in enumerate(batch) if id(request) in failed}, batch
        )


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
