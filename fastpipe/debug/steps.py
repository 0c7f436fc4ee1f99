"""What the debugger hands out: steps, their history, where it stopped, what is next.

How they look is the business of ``_debug_views.py``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastpipe.contract import Request
from fastpipe.filters import Status
from fastpipe.redaction import Secrets
from fastpipe.summaries import Summary

__all__ = ["Arrival", "Breakpoint", "Condition", "History", "Step", "Stop", "place_of"]

Condition = Callable[[Request], Any]
"""Called with the dict as it arrives at a node; a breakpoint stops where what it returns is true."""


def place_of(node: str, part: tuple[int, ...]) -> str:
    """``recognise``, or ``recognise[3]`` for a part."""
    return node + "".join(f"[{index}]" for index in part)


class Arrival(NamedTuple):
    """A request that has come to a node, whose filter has not been asked yet."""

    node: str
    part: tuple[int, ...]
    """Which part, where a Jump or MapReduce has sent it: indices, the outermost first. ``()``: the request itself."""
    request: Request
    """The dict as it is there, live: what is changed in it is what the node gets."""

    @property
    def place(self) -> str:
        """``recognise``, or ``recognise[3]`` for a part."""
        return place_of(self.node, self.part)


@dataclass(frozen=True, eq=False)
class Step:
    """What one node did with a request. ``repr`` is one line, ``str`` all of it, rich and notebooks draw a table."""

    number: int
    """From 1."""
    node: str
    part: tuple[int, ...]
    status: Status | None
    """What the filter said; None: it raised."""
    why: str
    """Which filter said so, and what that means."""
    arrived: Request
    """A copy of the dict as it arrived, before the filter. (Of the dict; the values are the request's own.)"""
    before: Request
    """A copy as the filter left it: what the node got."""
    after: Request
    """A copy behind the node; equal to ``before`` where it did not run."""
    before_summaries: dict[Any, Summary]
    """What the values were then, also of those that were changed in place since."""
    after_summaries: dict[Any, Summary]
    added: tuple[Any, ...]
    """Keys of ``after`` that ``before`` has not."""
    changed: tuple[Any, ...]
    """Keys with another value, or the same one with other content (see ``_describe.Summary.fingerprint``)."""
    removed: tuple[Any, ...]
    elapsed_s: float | None = None
    """In the backend; None: it did not run."""
    error: BaseException | None = None
    hidden: tuple[str, ...] = ()
    """The nodes that SerialSkip or SubGraphSkip has skipped, this one first."""
    batch: dict[str, Any] = field(default_factory=dict)
    """What its queue would have done with it: max_batch, instances, idle, queued, queued_in_bucket, weight, bucket,
    decision and reason; and place, where its instances are at several. Empty: it has no queue, or the request did not
    get there."""
    part_count: int | None = None
    """Of a Jump or MapReduce: into how many parts the request was split, which are steps of their own."""
    restarted_at: str | None = None
    """The request has passed its leaves and comes again, here."""
    inner: tuple[str, ...] = ()
    """What a Jump or MapReduce inside of a Sequential has run within this step, a line for each node."""
    secrets: Secrets = field(default=Secrets(), repr=False)
    """What is not shown where an error repeats it; ``error`` itself is as it was raised."""

    @property
    def place(self) -> str:
        return place_of(self.node, self.part)

    @property
    def traceback(self) -> str:
        """The error's traceback with its notes, as Python prints it but for secrets; empty without an error."""
        return "" if self.error is None else self.secrets.left_out_of("".join(traceback.format_exception(self.error)))

    def __repr__(self) -> str:
        from fastpipe.debug import views

        return f"<Step {views.step_in_a_line(self)}>"

    def __str__(self) -> str:
        from fastpipe.debug import views

        return views.step_text(self)

    def __rich__(self) -> Any:
        from fastpipe.debug import views

        return views.step_panel(self)

    def _repr_html_(self) -> str:
        from fastpipe.debug import views

        return views.step_html(self)


class History(tuple[Step, ...]):
    """All steps so far, as a tuple that prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        from fastpipe.debug import views

        return views.history_text(self)

    def __rich__(self) -> Any:
        from fastpipe.debug import views

        return views.history_table(self)

    def _repr_html_(self) -> str:
        from fastpipe.debug import views

        return views.history_html(self)


@dataclass(frozen=True, eq=False)
class Stop:
    """Where ``run`` came to a stop, and why."""

    reason: str
    """In words: ``breakpoint before recognise[3]``, ``the request has ended``, ..."""
    steps: History
    """The steps it took."""
    next: Arrival | None
    """None: the request has ended."""
    request: Request
    """The live dict of what is next; when the request has ended the caller's."""

    def __repr__(self) -> str:
        count = len(self.steps)
        return f"<Stop after {count} step{'s' if count != 1 else ''}: {self.reason}>"

    def __str__(self) -> str:
        from fastpipe.debug import views

        return views.stop_text(self)

    def __rich__(self) -> Any:
        from fastpipe.debug import views

        return views.stop_panel(self)

    def _repr_html_(self) -> str:
        from fastpipe.debug import views

        return views.stop_html(self)


@dataclass(eq=False)
class Breakpoint:
    """Where ``run`` stops; ``enabled`` may be changed at any time."""

    node: str | None
    """None: before any node."""
    when: Condition | None
    enabled: bool = True
    hits: int = 0

    def __str__(self) -> str:
        where = "any node" if self.node is None else self.node
        condition = "" if self.when is None else f", when {getattr(self.when, '__name__', 'the condition')} holds"
        hits = f"{self.hits} hit{'' if self.hits == 1 else 's'}"
        return f"before {where}{condition} ({hits}{'' if self.enabled else ', disabled'})"
