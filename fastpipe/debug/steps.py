"""What the debugger hands out: what a node did, all of that, where it stopped, what is next; and how each is shown.

No value is looked at when it is shown, only its summary, which was made when the node ran.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastpipe.contract import Request
from fastpipe.faults import text_of
from fastpipe.filters import Status
from fastpipe.redaction import Secrets
from fastpipe.show.cards import MOST_ROWS, Card, Note, Row, Shown, Styled, Table, Words, limited, seconds
from fastpipe.summaries import Summary, summarize, summarize_under

__all__ = ["Arrival", "Breakpoint", "Condition", "History", "NodeRun", "Stop", "request_rows", "where_of"]

Condition = Callable[[Request], Any]
"""Called with the dict as it arrives at a node; a breakpoint stops where what it returns is true."""


def where_of(node: str, part: tuple[int, ...]) -> str:
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
    def where(self) -> str:
        """``recognise``, or ``recognise[3]`` for a part."""
        return where_of(self.node, self.part)


@dataclass(frozen=True, eq=False)
class NodeRun(Shown):
    """What one node did with a request: a step of the debugger. ``repr`` is one line, ``str`` all of it."""

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
    """Keys with another value, or the same one with other content (see ``summaries.Summary.fingerprint``)."""
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
    def where(self) -> str:
        """``recognise``, or ``recognise[3]`` for a part."""
        return where_of(self.node, self.part)

    @property
    def traceback(self) -> str:
        """The error's traceback with its notes, as Python prints it but for secrets; empty without an error."""
        return "" if self.error is None else self.secrets.left_out_of("".join(traceback.format_exception(self.error)))

    @property
    def verdict(self) -> str:
        """What the filter said, as a word."""
        return "no verdict" if self.status is None else self.status.name

    @property
    def took(self) -> str:
        """How long the backend took, and whether it failed, in words; empty: it did not run."""
        took = "" if self.elapsed_s is None else seconds(self.elapsed_s)
        if self.error is None:
            return took
        return f"failed after {took}" if took else "failed"

    def __repr__(self) -> str:
        """``<NodeRun 3: detect -> Run, 352 ms, +quads ~result>``."""
        failure = "" if self.error is None else type(self.error).__name__
        words = [f"{self.number}: {self.where} -> {self.verdict}", self.took, failure, _marks(self)]
        return f"<NodeRun {', '.join(filter(None, words))}>"

    def _pieces(self) -> Sequence[Card]:
        return [
            Card(
                line=f"step {self.number}: {self.where} -> {self.verdict}{f' ({self.took})' if self.took else ''}",
                title=[
                    (f" {self.number}  ", ""),
                    (self.where, "bold"),
                    ("  ", ""),
                    (self.verdict, _STATUS_STYLES[self.status]),
                    (f"  {self.took} ", ""),
                ],
                heading=(f"{self.number} {self.where}", f"→ {self.verdict} {self.took}"),
                notes=list(_notes(self)),
                rows=_rows(self),
                border="red" if self.error is not None else "cyan",
            )
        ]


class History(Shown, tuple[NodeRun, ...]):
    """All steps so far, as a tuple that prints as a table."""

    __slots__ = ()

    def _pieces(self) -> Sequence[Table]:
        return [Table(("#", "node", "filter", "took", "changes"), [_cells(run) for run in self], "no steps yet")]


@dataclass(frozen=True, eq=False)
class Stop(Shown):
    """Where ``run`` came to a stop, and why."""

    reason: str
    """In words: ``breakpoint before recognise[3]``, ``the request has ended``, ..."""
    steps: History
    """The steps it took."""
    next: Arrival | None
    """None: the request has ended."""
    request: Request
    """The live dict of what is next; when the request has ended the caller's."""

    @property
    def _count(self) -> str:
        return f"after {len(self.steps)} step{'s' if len(self.steps) != 1 else ''}"

    def __repr__(self) -> str:
        return f"<Stop {self._count}: {self.reason}>"

    def _pieces(self) -> Sequence[Card | Words]:
        title = [(" ", ""), (self.reason, "bold"), (f", {self._count} ", "")]
        rows = request_rows(self.request)
        card = Card(f"{self.reason} ({self._count})", title, (self.reason, ""), rows=rows)
        if self.next is None and self.steps and self.steps[-1].error is not None:
            return [card, Words(written=""), *self.steps[-1]._pieces()]
        return [card]


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


# ---- how they are shown ----------------------------------------------------------------------------------------

_REASONS = {
    "full": "it is full",
    "alone": "nobody else could come",
    "not worth waiting": "waiting for other requests would cost more than it saves",
    "company late": "the requests that were expected have not come",
    "timeout": "the oldest has waited for batching_timeout",
    "split": "idle instances share what is there",
    "preferred size": "it has a preferred size",
    "rule": "the rule says so",
}
_STATUS_STYLES = {
    Status.Run: "bold green",
    Status.Skip: "bold yellow",
    Status.SerialSkip: "bold yellow",
    Status.SubGraphSkip: "bold yellow",
    Status.Break: "bold magenta",
    Status.Error: "bold red",
    None: "bold red",
}


def _name(key: Any) -> str:
    return key if isinstance(key, str) and key.isprintable() else summarize(key).text


def _rows(run: NodeRun) -> list[Row]:
    """The keys of a step: first what stayed, then what changed, came and went."""
    before, after = run.before_summaries, run.after_summaries
    stayed = [key for key in before if key in after and key not in run.changed]
    rows: list[Row] = [(" ", _name(key), before[key].text, "") for key in stayed]
    for key in run.changed:
        in_place = run.before[key] is run.after[key]
        rows.append(("~", _name(key), before[key].text, after[key].text + (" (in place)" if in_place else "")))
    rows += [("+", _name(key), after[key].text, "") for key in run.added]
    rows += [("-", _name(key), before[key].text, "") for key in run.removed]
    return limited(rows)


def request_rows(request: Request) -> list[Row]:
    """Return a row for each key of a request, as it is now."""
    return limited([(" ", _name(key), summarize_under(key, value).text, "") for key, value in request.items()])


def _notes(run: NodeRun) -> Iterator[Note]:
    """Yield what is to be said of a step besides its dict."""
    yield "why", run.why
    if filtered := _filtered(run):
        yield "filter", filtered
    if run.hidden:
        yield "skipped", ", ".join(run.hidden)
    if run.batch:
        yield "batch", run.secrets.left_out_of(_batch(run.batch))
    if run.part_count is not None:
        yield "parts", f"{run.part_count}, which go through the graph one after the other"
    yield from (("inside", line) for line in run.inner)
    if run.elapsed_s is not None and run.error is None and "result" not in run.after:
        yield "result", "none: the node has left no result"
    if run.restarted_at is not None:
        yield "restart", f"it has passed its leaves, and comes again at {run.restarted_at}"
    if run.error is not None:
        yield "error", run.traceback.rstrip()


def _filtered(run: NodeRun) -> str:
    """What the filter has done to the dict, where its name does not say it."""
    arrived, before = run.arrived, run.before
    words = [f"+{_name(key)}" for key in before if key not in arrived]
    words += [f"~{_name(key)}" for key in before if key in arrived and before[key] is not arrived[key]]
    words += [f"-{_name(key)}" for key in arrived if key not in before]
    is_swap = "swap" in run.why and set(words) <= {"+data", "~data", "-result"}
    return "" if is_swap or not words else f"it has changed the request: {' '.join(words)}"


def _batch(batch: dict[str, Any]) -> str:
    """The batch that a request would have joined, in a sentence."""
    decision, reason = batch.get("decision", ""), batch.get("reason", "")
    if "max_batch" not in batch:
        return f"{decision}: {reason}"
    size = batch["queued_in_bucket"] + 1
    if decision == "dispatch" and batch["max_batch"] == 1:
        text = "alone, as the node takes one at a time"
    elif decision == "dispatch":
        others = "alone" if size == 1 else f"with {size - 1} more"
        text = f"{others}, of up to {batch['max_batch']}, at once: {_REASONS.get(reason, reason)}"
    elif decision == "wait for instance":
        text = f"{size} of up to {batch['max_batch']}, when an instance is free"
    elif decision == "wait until":
        text = f"{size} of up to {batch['max_batch']} so far; it would wait for others"
    else:
        text = f"{size} of up to {batch['max_batch']}, {decision} ({reason})"
    where = f" at {batch['place']}" if batch.get("place") is not None else ""
    text += f"; {batch['queued']} queued, {batch['idle']} of {batch['instances']} instances idle{where}"
    if batch["weight"] != 1:
        text += f"; it weighs {batch['weight']:.3g}"
    if batch["bucket"] is not None:
        text += f"; bucket {summarize(batch['bucket']).text}"
    return text


def _cells(run: NodeRun) -> list[Styled]:
    """Return a step's line in a table: number, node, filter, took, changes."""
    took = "" if run.elapsed_s is None else seconds(run.elapsed_s)
    remarks = (_remarks(run), "red" if run.error is not None else "")
    return [(str(run.number), ""), (run.where, ""), (run.verdict, _STATUS_STYLES[run.status]), (took, ""), remarks]


def _remarks(run: NodeRun) -> str:
    """What is worth a word in a table of steps."""
    if run.error is not None:
        first_line = text_of(run.error).partition("\n")[0]
        return f"{type(run.error).__name__}: {run.secrets.left_out_of(first_line)}"
    words = [_marks(run)]
    if run.part_count is not None:
        words.append(f"split into {run.part_count} parts")
    if run.hidden:
        words.append(f"skips {', '.join(run.hidden)}")
    if run.restarted_at is not None:
        words.append(f"comes again at {run.restarted_at}")
    return " ".join(filter(None, words))


def _marks(run: NodeRun) -> str:
    """Return which keys came, changed and went."""
    marked = [
        (mark, key) for mark, keys in zip("+~-", (run.added, run.changed, run.removed), strict=True) for key in keys
    ]
    return " ".join(f"{mark}{_name(key)}" for mark, key in marked[:MOST_ROWS])
