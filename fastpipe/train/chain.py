"""A line of nodes, built once and run on the thread that calls: no engine, no thread, no queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastpipe.contract import Backend, Request, close_all
from fastpipe.errors import BackendError, ConfigError, ItemErrors, Mistake, NoResult
from fastpipe.filters import Status, swap
from fastpipe.instances.one import build_backend
from fastpipe.train.line import Link

__all__ = ["Chain"]

Augment = Callable[[Any], Any]


class Chain:
    """One instance of each node of a line; what it makes of a request is what a pipe of these nodes makes of it.

    Args:
        links: the nodes.
        augments: by the index of a link: what is called with the data just before it.

    Raises:
        ConfigError: a node is on a device.
        Exception: whatever a backend's constructor raises, with a note that names the node.

    Thread-safety: none; one thread at a time.
    """

    def __init__(self, links: Sequence[Link], augments: dict[int, Augment] | None = None) -> None:
        self._augments = augments or {}
        self._links = links
        self._backends: list[Backend] = []
        try:
            for link in links:
                backend = build_backend(link.plan, link.node, 0)
                self._backends.append(backend)
                _check_place(link.node, backend)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of what the backends hold."""
        backends, self._backends = self._backends, []
        close_all(backends)

    def attempt(self, request: Request) -> Exception | None:
        """Run a request, which is changed; return what has failed it, and None if ``result`` is there.

        Raises:
            Exception: what ``augments`` raise, which is not the request's fault.
        """
        ran: int | None = None
        for index, link in enumerate(self._links):
            try:
                status = self._decide(index, request)
            except Exception as error:
                return _noted(error, link.node)
            if status is Status.Skip:
                continue
            if status is not Status.Run:
                return self._without(ran, request)
            augment = self._augments.get(index)
            if augment is not None:
                request["data"] = augment(request["data"])
            failure = _run(self._backends[index], request)
            if failure is not None:
                return _noted(failure, link.node)
            ran = index
        return None if "result" in request else self._without(ran, request)

    def _decide(self, index: int, request: Request) -> Status:
        chosen = self._links[index].filter
        if chosen is None:
            return swap(request) if index else Status.Run
        status = chosen(request)
        if not isinstance(status, Status):
            raise BackendError(f"the filter returned {status!r:.100}, which is no Status")
        if status is Status.Error:
            raise BackendError("the filter failed the request")
        return status

    def _without(self, ran: int | None, request: Request) -> NoResult:
        """Say who has left a request without what the last node makes."""
        if ran is None or "result" in request:
            return NoResult(
                f"a filter ended the request in front of node {self._links[0 if ran is None else ran + 1].node!r}"
            )
        explain, link = self._backends[ran].why_no_result, self._links[ran]
        part = None if explain is None else explain(request)
        return NoResult(f"node {link.node!r}: step {part or link.plan.name} gave no result")


def _run(backend: Backend, request: Request) -> Exception | None:
    handed = [request]
    try:
        backend.forward(handed)
    except ItemErrors as error:
        cause = error.by_position(handed, [request]).get(0)
        return cause if isinstance(cause, Exception) else None
    except Exception as error:
        return error
    return None


def _noted(error: Exception, node: str) -> Exception:
    error.add_note(f"fastpipe: in node {node!r}, in a transform")
    return error


def _check_place(node: str, backend: Backend) -> None:
    if backend.place is not None:
        text = (
            f"it is at {backend.place}: a transform runs in workers of a DataLoader, which are better off without a "
            f"device; before={node!r} ends it in front"
        )
        raise ConfigError(Mistake(text, node))
