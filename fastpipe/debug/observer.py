"""What the engine tells while a step is taken: who decided what about a request, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastpipe.contract import Request
from fastpipe.debug.steps import Arrival, where_of
from fastpipe.filters import Status
from fastpipe.show.cards import seconds
from fastpipe.summaries import Summary, summarize_under

if TYPE_CHECKING:
    from fastpipe._core import Engine

__all__ = ["Event", "Observer", "own_event", "summaries_of"]


@dataclass
class Event:
    """What the engine has told of one request, or part, at one node."""

    kind: str
    node: str
    part: tuple[int, ...]
    status: Status | None = None
    before: Request | None = None
    before_summaries: dict[Any, Summary] | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    ran_s: float | None = None
    after: Request | None = None
    error: BaseException | None = None

    def __str__(self) -> str:
        what = "" if self.status is None else f" -> {self.status.name}"
        took = "" if self.ran_s is None else f", {seconds(self.ran_s)}"
        failed = "" if self.error is None else f", {type(self.error).__name__}"
        return f"{where_of(self.node, self.part)}{what}{took}{failed}"


class Observer:
    """Notes what the engine tells while a step is taken. It does not know the debugger: that would be a cycle."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._events: list[Event] = []
        self._open: list[Event] = []  # decided Run, and not run yet: a node inside of a node's step is on top

    def take(self) -> list[Event]:
        """Return what was noted, and forget it."""
        events, self._events, self._open = self._events, [], []
        return events

    def decided(self, node: str, part: tuple[int, ...], status: Status, request: Request) -> None:
        event = Event("decided", node, part, status, dict(request), summaries_of(request))
        self._events.append(event)
        if status is Status.Run:
            self._open.append(event)
            try:
                event.batch = self._engine._preview(node, request)
            except Exception as error:  # a bucket or a weight that raises: the node's own run will say so
                event.batch = {"decision": "unknown", "reason": f"{type(error).__name__}: {error}"}

    def hidden(self, nodes: tuple[str, ...], part: tuple[int, ...]) -> None:
        self._events[-1].hidden = tuple(nodes)

    def ran(
        self, node: str, part: tuple[int, ...], request: Request, error: BaseException | None, elapsed_s: float
    ) -> None:
        while self._open:
            event = self._open.pop()
            if event.node == node and event.part == part:
                event.ran_s, event.error, event.after = elapsed_s, error, dict(request)
                return

    def restarted(self, node: str, part: tuple[int, ...], count: int) -> None:
        self._events.append(Event("restarted", node, part))


def own_event(arrived: Arrival, events: list[Event]) -> tuple[Event, list[Event]]:
    """The event of the node that has arrived, and those of the nodes that ran inside of it."""
    decided = [event for event in events if event.kind == "decided"]
    if not decided:  # the filter raised, or the map did before it
        return Event("decided", arrived.node, arrived.part), []
    return decided[0], decided[1:]


def summaries_of(request: Request) -> dict[Any, Summary]:
    """Return what each value of a request is now."""
    return {key: summarize_under(key, value) for key, value in request.items()}
