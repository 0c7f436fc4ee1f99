"""The debugger: one request through the graph, node by node, on the thread that asks for it.

    with pipe.debug({"data": jpeg_bytes}) as debugger:
        debugger.break_at("recognise", when=lambda request: request["width"] > 600)
        print(debugger.run())       # to the breakpoint, or to the end
        print(debugger.step())      # one node: its filter's verdict, its dict before and after, its batch
        debugger.request["data"] = other
        debugger.run()

Meanwhile the pipe serves everybody else; a node runs the request alone, in an instance that is free. A debugger belongs
to the thread that uses it. It keeps every dict it has shown until it is dropped, or starts another request.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastpipe.contract import Request
from fastpipe.debug.description import Description
from fastpipe.debug.observer import Event, Observer, own_event, summaries_of
from fastpipe.debug.steps import Arrival, Breakpoint, Condition, History, NodeRun, Stop, request_rows
from fastpipe.errors import PipeError, UnknownNode, nearest
from fastpipe.filters import Status
from fastpipe.show.cards import Card, Shown, Table, Words
from fastpipe.summaries import Summary

if TYPE_CHECKING:
    from fastpipe._core import Engine, Stepper
    from fastpipe.config.described import NodeConfig, PipeConfig
    from fastpipe.config.maps import MapEntry
    from fastpipe.redaction import Secrets

__all__ = ["Arrival", "Breakpoint", "Debugger", "History", "NodeRun", "Stop"]


class Debugger(Shown):
    """Takes one request through a pipe step by step; ``Pipe.debug`` makes it.

    As a context manager it gives up, at the end of the block, a request that has not ended: nothing stays in flight.

    Thread-safety: for one thread. Other threads may call the pipe, and other debuggers.
    """

    def __init__(
        self,
        engine: Engine,
        configs: Iterable[NodeConfig],
        secrets: Secrets,
        request: Request | None = None,
        *,
        entry: str | None = None,
    ) -> None:
        self.breakpoints: list[Breakpoint] = []
        self._engine = engine
        # Admitted with the first step, so that a debugger nobody uses leaves nothing in flight.
        self._first = request
        self._first_entry = entry
        self._stepper: Stepper | None = None
        self._observer = Observer(engine)
        self._steps: list[NodeRun] = []
        self._configs = {config.name: config for config in configs}
        self._configuration_secrets = secrets
        self._secrets = self._configuration_secrets  # and those of the request, so far
        self._stops_on_error = False
        self._was_given_up = False
        # What has been shown as next: run() does not stop again where it stands already.
        self._shown: Request | None = None
        self._entered: set[tuple[int, ...]] = set()
        self._restarts: dict[tuple[int, ...], str] = {}
        self._ran: dict[tuple[int, ...], set[str]] = {}  # by part, the nodes that have run since it entered
        self._thread_id = threading.get_ident()

    def note_change(self, made_of: PipeConfig) -> None:
        """The pipe is made of something else now, in which there may be other secrets."""
        description = Description.of(made_of)
        self._configuration_secrets = description.secrets(self._configuration_secrets)
        self._secrets = description.secrets(self._secrets)

    # ---- the request -------------------------------------------------------------------------------------------

    def start(self, request: Request, *, entry: str | None = None) -> None:
        """Admit a request, and stand before its first node. One that has not ended is given up; breakpoints stay.

        Args:
            request: as for a call.
            entry: the node where it enters; any. None: as for a call that does not say.

        Raises:
            UnknownNode, PipeClosed, ...: what a call of the pipe raises for this request.
        """
        self.cancel()
        self._was_given_up = False
        self._steps = []
        self._secrets = self._configuration_secrets.and_of(request)
        self._shown = None
        self._entered = set()
        self._restarts = {}
        self._ran = {}
        self._observer.take()
        self._thread_id = threading.get_ident()
        self._stepper = self._engine._stepper(request, self._observer, entry)

    def cancel(self) -> bool:
        """Give the request up; True if it had not ended."""
        self._first = None
        if self._stepper is None or not self._stepper.cancel():
            return False
        self._was_given_up = True
        return True

    def _started(self) -> Stepper:
        if self._first is not None:
            self.start(self._first, entry=self._first_entry)
        if self._stepper is None:
            raise PipeError("the debugger has no request: start(request)")
        return self._stepper

    @property
    def next(self) -> Arrival | None:
        """What runs next; None: the request has ended."""
        arrived = self._started().next
        return None if arrived is None else Arrival(*arrived)

    @property
    def waiting(self) -> list[Arrival]:
        """All that has come to a node and not run: branches and parts. The first is ``next``."""
        return [Arrival(*arrived) for arrived in self._started().waiting]

    @property
    def request(self) -> Request:
        """The live dict of what runs next; when the request has ended the caller's, with the answer."""
        arrived = self.next
        return self._started().request if arrived is None else arrived.request

    @property
    def finished(self) -> bool:
        """Whether the request has ended: with an answer, with an error, or because it was given up."""
        return self._started().finished

    @property
    def error(self) -> BaseException | None:
        """What the call would have raised; None: nothing, so far."""
        return self._started().error

    @property
    def state(self) -> str:
        """Where the request is, in words: ``next: detect``, ``the request has ended``, ``... has failed with ...``."""
        arrived = self.next
        return self._how_it_ended() if arrived is None else f"next: {arrived.where}"

    @property
    def history(self) -> History:
        """All steps of this request so far."""
        return History(self._steps)

    # ---- going on ----------------------------------------------------------------------------------------------

    def step(self) -> NodeRun:
        """Ask the filter of the next node, run the node if it says so, and return what happened.

        What the backend raises is in the step (and ends the request), not raised.

        Raises:
            PipeError: the request has ended.
        """
        stepper = self._started()
        arrived = self.next
        if arrived is None:
            raise PipeError(f"the request has ended after {len(self._steps)} steps; start(request) begins another one")
        before = Arrival(arrived.node, arrived.part, dict(arrived.request))
        waiting_count = len(stepper.waiting)
        stepper.step()
        step = self._step(before, self._observer.take(), len(stepper.waiting) - (waiting_count - 1))
        self._steps.append(step)
        self._shown = self._next_request()
        return step

    def run(self) -> Stop:
        """Take steps until the next breakpoint, or to the end of the request.

        A breakpoint before the node at which the debugger has stopped already does not count.

        Raises:
            Exception: what the condition of a breakpoint raises; the request stands where it stood.
        """
        first = len(self._steps)
        while (arrived := self.next) is not None:
            if arrived.request is not self._shown and (reason := self._reason_to_stop(arrived)):
                self._shown = arrived.request
                return Stop(reason, History(self._steps[first:]), arrived, arrived.request)
            step = self.step()
            self._shown = None  # nobody has seen this one
            if step.error is not None and self._stops_on_error and not self.finished:
                self._shown = self._next_request()
                return Stop(f"error in {step.where}", History(self._steps[first:]), self.next, self.request)
        return Stop(self._how_it_ended(), History(self._steps[first:]), None, self.request)

    def __iter__(self) -> Iterator[NodeRun]:
        """Take all steps that are left, and yield each."""
        while self.next is not None:
            yield self.step()

    def _next_request(self) -> Request | None:
        arrived = self.next
        return None if arrived is None else arrived.request

    def _how_it_ended(self) -> str:
        if self.error is not None:
            return f"the request has failed with {type(self.error).__name__}"
        if self._was_given_up:
            return "the request was given up"
        last = self._steps[-1]
        if last.status is Status.Break and not last.part:
            return f"the request has ended: Break at {last.where}"
        return "the request has ended"

    # ---- breakpoints -------------------------------------------------------------------------------------------

    def break_at(self, node: str, *, when: Condition | None = None) -> Breakpoint:
        """Let ``run`` stop before ``node``, if ``when`` holds for the request there.

        Args:
            node: its name; parts of a Jump or MapReduce stop there too, each of them.
            when: called with the dict as it arrives at the node: its filter has not been asked, so that what the node
                before has made is still under ``"result"``. It may raise; ``run`` then raises that.

        Raises:
            UnknownNode: no node has that name.
        """
        if node not in self._configs:
            raise UnknownNode(
                f"no node is named {node!r}; they are {list(self._configs)}{nearest(node, self._configs)}"
            )
        for known in self.breakpoints:
            if known.node == node and known.when is None and when is None:
                known.enabled = True
                return known
        return self._add(Breakpoint(node, when))

    def break_when(self, condition: Condition) -> Breakpoint:
        """Let ``run`` stop before any node for whose request ``condition`` holds; see ``break_at``."""
        return self._add(Breakpoint(None, condition))

    def break_on_error(self, enabled: bool = True) -> None:
        """Let ``run`` stop behind a node that failed, also where that does not end the request (``on_error``)."""
        self._stops_on_error = enabled

    def clear(self) -> None:
        """Take all breakpoints away."""
        self.breakpoints.clear()
        self._stops_on_error = False

    def _add(self, breakpoint: Breakpoint) -> Breakpoint:
        self.breakpoints.append(breakpoint)
        return breakpoint

    def _reason_to_stop(self, arrived: Arrival) -> str:
        for point in self.breakpoints:
            if not point.enabled or (point.node is not None and point.node != arrived.node):
                continue
            try:
                hit = point.when is None or bool(point.when(arrived.request))
            except Exception as error:
                error.add_note(f"fastpipe: raised by the condition of a breakpoint, before {arrived.where}")
                raise
            if hit:
                point.hits += 1
                return f"{'breakpoint' if point.node is not None else 'the condition holds'} before {arrived.where}"
        return ""

    # ---- what happened -----------------------------------------------------------------------------------------

    def _step(self, arrived: Arrival, events: list[Event], new_waiting: int) -> NodeRun:
        own, inner = own_event(arrived, events)
        error = own.error if own.error is not None else self._new_error()
        before = arrived.request if own.before is None else own.before
        before_summaries = summaries_of(before) if own.before_summaries is None else own.before_summaries
        after = before if own.after is None else own.after
        after_summaries = before_summaries if own.after is None else summaries_of(after)
        is_entry, came_again = self._note_entry(arrived), self._restarts.pop(arrived.part, None) is not None
        ran = self._ran.setdefault(arrived.part, set())
        read = () if is_entry else _read_by(self._configs[arrived.node].map or (), ran)
        if own.status is Status.Run:
            ran.add(arrived.node)
        restarted_at = next((event.node for event in events if event.kind == "restarted"), None)
        if restarted_at is not None:
            self._restarts[arrived.part] = restarted_at
            ran.clear()
        self._secrets = self._secrets.and_of(arrived.request, before, after, error)
        is_split = own.ran_s is None and own.status is Status.Run and error is None
        return NodeRun(
            number=len(self._steps) + 1,
            node=arrived.node,
            part=arrived.part,
            status=own.status,
            why=_why(self._configs[arrived.node], own.status, read, is_entry=is_entry, came_again=came_again),
            arrived=arrived.request,
            before=before,
            after=after,
            before_summaries=before_summaries,
            after_summaries=after_summaries,
            added=tuple(key for key in after if key not in before),
            changed=tuple(
                key
                for key in after
                if key in before and _is_changed(before[key], after[key], before_summaries[key], after_summaries[key])
            ),
            removed=tuple(key for key in before if key not in after),
            elapsed_s=own.ran_s,
            error=error,
            hidden=own.hidden,
            batch=own.batch,
            part_count=new_waiting if is_split else None,
            restarted_at=restarted_at,
            inner=tuple(str(event) for event in inner),
            secrets=self._secrets,
        )

    def _new_error(self) -> BaseException | None:
        """The request's error, if it came with this step: of a filter, a split or a merge."""
        error = self._started().error
        return None if any(step.error is error for step in self._steps) else error

    def _note_entry(self, arrived: Arrival) -> bool:
        is_entry = arrived.part not in self._entered
        self._entered.add(arrived.part)
        return is_entry

    # ---- life --------------------------------------------------------------------------------------------------

    def _pipe_closes(self) -> None:
        """Give up a request that can never go on: the thread that would take its next step waits in ``close``."""
        if self._stepper is not None and threading.get_ident() == self._thread_id:
            self.cancel()

    def __enter__(self) -> Self:
        if self._first is not None:
            self.start(self._first, entry=self._first_entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        if self._stepper is None:
            return "<fastpipe.Debugger; nothing has begun>"
        return f"<fastpipe.Debugger after {len(self._steps)} steps; {self.state}>"

    def _pieces(self) -> Sequence[Card | Table | Words]:
        """Return what was done, where it stops, what is next and what comes then."""
        table = replace(self.history._pieces()[0], is_drawn_empty=False)
        points = [f"stops {breakpoint}" for breakpoint in self.breakpoints]
        title = [(" ", ""), (self.state, "bold"), (" ", "")]
        waiting = [other.where for other in self.waiting[1:]]
        more = f" and {len(waiting) - 8} more" if len(waiting) > 8 else ""
        return [
            table,
            Words(in_terminal="" if self._steps else None),
            *(Words(written=point, in_terminal=point, style="dim") for point in points),
            Card(self.state, title, (self.state, ""), rows=request_rows(self.request)),
            Words(written=f"then: {', '.join(waiting[:8])}{more}" if waiting else None),
        ]


def _is_changed(before: Any, after: Any, summary_before: Summary, summary_after: Summary) -> bool:
    if before is after:
        return summary_before.fingerprint != summary_after.fingerprint
    if type(before) is type(after) and type(before) in (bool, int, float, str, bytes):
        return bool(before != after)
    return True


_WHAT_IT_MEANS = {
    Status.Run: "it runs",
    Status.Skip: "it does not run; the request goes on as it is",
    Status.Break: "the request ends here, with this dict",
    Status.Error: "the request fails",
    Status.SerialSkip: "skipped, with its chain up to the next fork or join",
    Status.SubGraphSkip: "skipped, with all that can only be reached through it",
}


def _read_by(entries: Iterable[MapEntry], ran: Collection[str]) -> tuple[str, ...]:
    """Return what each entry of a map has read, in words; of several nodes, that is the first that has run."""
    read: dict[str, None] = {}
    for entry in entries:
        text = "|".join(entry.sources) or "its parent"
        if len(entry.sources) > 1:
            found = next((name for name in entry.sources if name in ran), None)
            text = f"{found} (the first of {text} that has run)" if found else f"none of {text}"
        read[text] = None
    return tuple(read)


def _why(config: NodeConfig, status: Status | None, read: Sequence[str], *, is_entry: bool, came_again: bool) -> str:
    """Say which filter has decided, and what about; ``read``: what the node's map has read, in words."""
    if config.filter is not None:
        name = config.filter_name or getattr(config.filter, "__qualname__", None) or type(config.filter).__qualname__
        if status is None:
            return f"its filter {name!r} raised{'' if config.map is None else ', or its map could not be made'}"
        chosen = [text for text in read if "|" in text]
        made = f"; its map has read {', '.join(chosen)}" if chosen else ""
        return f"its filter {name!r} says {status.name}: {_WHAT_IT_MEANS[status]}{made}"
    if status is None:
        return "its request could not be made"
    if came_again and status is Status.Run:
        return "restart: the request comes again; 'swap' made its result the 'data'"
    if came_again:
        return "restart: the request comes again, without a result; 'swap' ends it"
    if is_entry:
        return "no filter: the request enters here"
    if read:
        return f"no filter: its map made a new request, of {', '.join(read)}"
    if status is Status.Run:
        return "default filter 'swap': the result of the node before became 'data'"
    return "default filter 'swap': there is no result, so the request ends here"
