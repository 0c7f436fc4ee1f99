"""How the debugger's records look: as plain text, in a terminal (rich, if it is asked), in a notebook (HTML).

Every view is made from the same rows, :func:`_rows`; none looks at a value itself, only at its summary.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastpipe.filters import Status
from fastpipe.summaries import summarize, summarize_under

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fastpipe.contract import Request
    from fastpipe.debug.debugger import Debugger
    from fastpipe.debug.steps import Step, Stop

__all__ = [
    "debugger_html", "debugger_panel", "debugger_text", "history_html", "history_table", "history_text", "seconds",
    "step_html", "step_in_a_line", "step_panel", "step_text", "stop_html", "stop_panel", "stop_text",
]  # fmt: skip

MOST_KEYS = 40

_REASONS = {
    "full": "it is full",
    "alone": "nobody else could come",
    "not worth waiting": "waiting for company would cost more than it saves",
    "company late": "who was expected has not come",
    "timeout": "the oldest has waited for batching_timeout",
    "split": "idle instances share what is there",
    "preferred size": "it has a preferred size",
    "rule": "the rule says so",
}
_STYLES = {"+": "green", "~": "yellow", "-": "red", " ": ""}
_STATUS_STYLES = {
    Status.Run: "bold green",
    Status.Skip: "bold yellow",
    Status.SerialSkip: "bold yellow",
    Status.SubGraphSkip: "bold yellow",
    Status.Break: "bold magenta",
    Status.Error: "bold red",
    None: "bold red",
}

# mark, key, value, what became of it ("" if that is all)
Row = tuple[str, str, str, str]


def seconds(elapsed_s: float) -> str:
    """Return a duration as people say it."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if elapsed_s * factor >= 1:
            return f"{elapsed_s * factor:.3g} {unit}"
    return f"{elapsed_s * 1e6:.3g} us"


def _name(key: Any) -> str:
    return key if isinstance(key, str) and key.isprintable() else summarize(key).text


def _rows(step: Step) -> list[Row]:
    """The keys of a step: first what stayed, then what changed, came and went."""
    before, after = step.before_summaries, step.after_summaries
    stayed = [key for key in before if key in after and key not in step.changed]
    rows: list[Row] = [(" ", _name(key), before[key].text, "") for key in stayed]
    for key in step.changed:
        in_place = step.before[key] is step.after[key]
        rows.append(("~", _name(key), before[key].text, after[key].text + (" (in place)" if in_place else "")))
    rows += [("+", _name(key), after[key].text, "") for key in step.added]
    rows += [("-", _name(key), before[key].text, "") for key in step.removed]
    return _limited(rows)


def _limited(rows: list[Row]) -> list[Row]:
    if len(rows) <= MOST_KEYS:
        return rows
    return [*rows[:MOST_KEYS], (" ", f"... {len(rows) - MOST_KEYS} more keys", "", "")]


def _notes(step: Step) -> list[tuple[str, str]]:
    """What is to be said of a step besides its dict: pairs of a word and a sentence."""
    notes = [("why", step.why)]
    filtered = _filtered(step)
    if filtered:
        notes.append(("filter", filtered))
    if step.hidden:
        notes.append(("skipped", ", ".join(step.hidden)))
    if step.batch:
        notes.append(("batch", step.secrets.left_out_of(_batch(step.batch))))
    if step.part_count is not None:
        notes.append(("parts", f"{step.part_count}, which go through the graph one after the other"))
    notes += [("inside", line) for line in step.inner]
    if step.elapsed_s is not None and step.error is None and "result" not in step.after:
        notes.append(("result", "none: the node has left no result"))
    if step.restarted_at is not None:
        notes.append(("restart", f"it has passed its leaves, and comes again at {step.restarted_at}"))
    if step.error is not None:
        notes.append(("error", step.traceback.rstrip()))
    return notes


def _filtered(step: Step) -> str:
    """What the filter has done to the dict, where its name does not say it."""
    arrived, before = step.arrived, step.before
    words = [f"+{_name(key)}" for key in before if key not in arrived]
    words += [f"~{_name(key)}" for key in before if key in arrived and before[key] is not arrived[key]]
    words += [f"-{_name(key)}" for key in arrived if key not in before]
    is_swap = "swap" in step.why and set(words) <= {"+data", "~data", "-result"}
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
        company = "alone" if size == 1 else f"with {size - 1} more"
        text = f"{company}, of up to {batch['max_batch']}, at once: {_REASONS.get(reason, reason)}"
    elif decision == "wait for instance":
        text = f"{size} of up to {batch['max_batch']}, when an instance is free"
    elif decision == "wait until":
        text = f"{size} of up to {batch['max_batch']} so far; it would wait for company"
    else:
        text = f"{size} of up to {batch['max_batch']}, {decision} ({reason})"
    where = f" at {batch['place']}" if batch.get("place") is not None else ""
    text += f"; {batch['queued']} queued, {batch['idle']} of {batch['instances']} instances idle{where}"
    if batch["weight"] != 1:
        text += f"; it weighs {batch['weight']:.3g}"
    if batch["bucket"] is not None:
        text += f"; bucket {summarize(batch['bucket']).text}"
    return text


def _verdict(step: Step) -> str:
    return "no verdict" if step.status is None else step.status.name


def _took(step: Step) -> str:
    took = "" if step.elapsed_s is None else seconds(step.elapsed_s)
    if step.error is None:
        return took
    return f"failed after {took}" if took else "failed"


# ---- plain text ------------------------------------------------------------------------------------------------


def step_in_a_line(step: Step) -> str:
    """``3: detect -> Run, 352 ms, +quads ~result``."""
    words = [f"{step.number}: {step.place} -> {_verdict(step)}"]
    words += filter(None, [_took(step), f"{type(step.error).__name__}" if step.error is not None else "", _marks(step)])
    return ", ".join(words)


def _marks(step: Step) -> str:
    marked = [
        (mark, key) for mark, keys in zip("+~-", (step.added, step.changed, step.removed), strict=True) for key in keys
    ]
    return " ".join(f"{mark}{_name(key)}" for mark, key in marked[:MOST_KEYS])


def step_text(step: Step) -> str:
    """Return a step in full."""
    head = " ".join(
        filter(
            None, [f"step {step.number}: {step.place} -> {_verdict(step)}", f"({_took(step)})" if _took(step) else ""]
        )
    )
    return "\n".join([head, *_lines(_notes(step), _rows(step))])


def _lines(notes: Iterable[tuple[str, str]], rows: Sequence[Row]) -> list[str]:
    lines = []
    for word, sentence in notes:
        first, *more = sentence.split("\n")
        lines.append(f"  {word:8}{first}")
        lines += [f"          {line}" for line in more]
    width = max((len(key) for _, key, _, _ in rows), default=0)
    for mark, key, value, became in rows:
        lines.append(f"  {mark} {key:{width}}  {value}".rstrip())
        if became:
            lines.append(f"    {'':{width}}  -> {became}")
    return lines


def _request_rows(request: Request) -> list[Row]:
    return _limited([(" ", _name(key), summarize_under(key, value).text, "") for key, value in request.items()])


def stop_text(stop: Stop) -> str:
    """Return where ``run`` stopped, and what is there."""
    count = len(stop.steps)
    lines = [f"{stop.reason} (after {count} step{'s' if count != 1 else ''})"]
    lines += _lines([], _request_rows(stop.request))
    if stop.next is None and stop.steps and stop.steps[-1].error is not None:
        lines += ["", step_text(stop.steps[-1])]
    return "\n".join(lines)


def _remarks(step: Step) -> str:
    """What is worth a word in a table of steps."""
    if step.error is not None:
        return f"{type(step.error).__name__}: {step.secrets.left_out_of(_first_line(step.error))}"
    words = [_marks(step)]
    if step.part_count is not None:
        words.append(f"split into {step.part_count} parts")
    if step.hidden:
        words.append(f"skips {', '.join(step.hidden)}")
    if step.restarted_at is not None:
        words.append(f"comes again at {step.restarted_at}")
    return " ".join(filter(None, words))


def _history_cells(steps: Iterable[Step]) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            str(step.number),
            step.place,
            _verdict(step),
            "" if step.elapsed_s is None else seconds(step.elapsed_s),
            _remarks(step),
        )
        for step in steps
    ]


def _first_line(error: BaseException) -> str:
    try:
        return str(error).partition("\n")[0]
    except Exception:
        return "(its message cannot be shown)"


def history_text(steps: Sequence[Step]) -> str:
    """Return the steps as a table."""
    cells = _history_cells(steps)
    if not cells:
        return "no steps yet"
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join(
        "  ".join([f"{row[0]:>{widths[0]}}", *(f"{row[i]:{widths[i]}}" for i in (1, 2, 3)), row[4]]).rstrip()
        for row in cells
    )


def debugger_text(debugger: Debugger) -> str:
    """Return where a debugger stands: what it has done, and what comes next."""
    lines = [history_text(debugger.history)]
    lines += [f"stops {breakpoint}" for breakpoint in debugger.breakpoints]
    lines.append(debugger.state)
    arrived = debugger.next
    lines += _lines([], _request_rows(debugger.request))
    more = [other.place for other in debugger.waiting[1:]] if arrived is not None else []
    if more:
        lines.append(f"then: {', '.join(more[:8])}{f' and {len(more) - 8} more' if len(more) > 8 else ''}")
    return "\n".join(lines)


# ---- a terminal ------------------------------------------------------------------------------------------------


def step_panel(step: Step) -> RenderableType:
    """Return a step for rich."""
    from rich.text import Text

    title = Text.assemble(
        f" {step.number}  ",
        (step.place, "bold"),
        "  ",
        (_verdict(step), _STATUS_STYLES[step.status]),
        f"  {_took(step)} ",
    )
    return _panel(title, _notes(step), _rows(step), "red" if step.error is not None else "cyan")


def _panel(title: Any, notes: Iterable[tuple[str, str]], rows: Sequence[Row], border: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    told = Table.grid(padding=(0, 2))
    told.add_column(style="dim", no_wrap=True)
    told.add_column(overflow="fold")
    for word, sentence in notes:
        told.add_row(word, Text(sentence, style="red" if word == "error" else ""))
    keys = Table.grid(padding=(0, 1))
    keys.add_column(no_wrap=True)
    keys.add_column(no_wrap=True)
    keys.add_column(overflow="fold")
    for mark, key, value, became in rows:
        style = _STYLES[mark]
        is_gone = mark == "-" or bool(became)
        keys.add_row(
            Text(mark, style=style),
            Text(key, style=f"bold {style}".strip()),
            Text(value, style="dim" if is_gone else ""),
        )
        if became:
            keys.add_row("", "", Text(f"→ {became}", style=style))
    parts = [table for table in (told, keys) if table.row_count]
    return Panel(Group(*_with_gaps(parts)), title=title, title_align="left", border_style=border)


def _with_gaps(parts: Sequence[Table]) -> list[Any]:
    spaced: list[Any] = []
    for part in parts:
        spaced += ["", part] if spaced else [part]
    return spaced


def history_table(steps: Sequence[Step]) -> RenderableType:
    """Return the steps for rich."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("#", "node", "filter", "took", "changes"):
        table.add_column(heading, justify="right" if heading in "#took" else "left")
    for step, (number, place, verdict, took, remarks) in zip(steps, _history_cells(steps), strict=True):
        status = Text(verdict, style=_STATUS_STYLES[step.status])
        changes = Text(remarks, style="red") if step.error is not None else _coloured(remarks)
        table.add_row(number, Text(place), status, took, changes)
    return table


def _coloured(remarks: str) -> Any:
    from rich.text import Text

    text = Text()
    for word in remarks.split(" "):
        text.append(f"{word} ", style=_STYLES.get(word[:1], ""))
    return text


def stop_panel(stop: Stop) -> RenderableType:
    """Return where ``run`` stopped, for rich."""
    from rich.console import Group
    from rich.text import Text

    count = len(stop.steps)
    title = Text.assemble(" ", (stop.reason, "bold"), f", after {count} step{'s' if count != 1 else ''} ")
    panel = _panel(title, [], _request_rows(stop.request), "blue")
    if stop.next is None and stop.steps and stop.steps[-1].error is not None:
        return Group(panel, step_panel(stop.steps[-1]))
    return panel


def debugger_panel(debugger: Debugger) -> RenderableType:
    """Return where a debugger stands, for rich."""
    from rich.console import Group
    from rich.text import Text

    points = [Text(f"stops {breakpoint}", style="dim") for breakpoint in debugger.breakpoints]
    title = Text.assemble(" ", (debugger.state, "bold"), " ")
    panel = _panel(title, [], _request_rows(debugger.request), "blue")
    return Group(*([history_table(debugger.history), ""] if debugger.history else []), *points, panel)


# ---- a notebook ------------------------------------------------------------------------------------------------

_COLOURS = {"+": "#1a7f37", "~": "#9a6700", "-": "#cf222e", " ": "inherit"}


def step_html(step: Step) -> str:
    """Return a step for a notebook."""
    head = f"<b>{step.number} {_escaped(step.place)}</b> → {_verdict(step)} {_escaped(_took(step))}"
    return _html(head, _notes(step), _rows(step))


def _html(head: str, notes: Iterable[tuple[str, str]], rows: Sequence[Row]) -> str:
    told = "".join(
        f"<tr><td>{word}</td><td style='text-align:left;white-space:pre-wrap'>{_escaped(sentence)}</td></tr>"
        for word, sentence in notes
    )
    keys = "".join(
        f"<tr style='color:{_COLOURS[mark]}'><td>{mark}</td><td><b>{_escaped(key)}</b></td>"
        f"<td style='text-align:left'>{_escaped(value)}{f'<br>→ {_escaped(became)}' if became else ''}</td></tr>"
        for mark, key, value, became in rows
    )
    return f"<div>{head}<table>{told}</table><table>{keys}</table></div>"


def _escaped(text: str) -> str:
    return html.escape(text)


def history_html(steps: Sequence[Step]) -> str:
    """Return the steps for a notebook."""
    cells = (
        "".join(f"<td style='text-align:left'>{_escaped(cell)}</td>" for cell in row) for row in _history_cells(steps)
    )
    rows = "".join(f"<tr>{row}</tr>" for row in cells)
    heads = "".join(f"<th>{heading}</th>" for heading in ("", "node", "filter", "took", "changes"))
    return f"<table><tr>{heads}</tr>{rows}</table>"


def stop_html(stop: Stop) -> str:
    """Return where ``run`` stopped, for a notebook."""
    failed = stop.next is None and stop.steps and stop.steps[-1].error is not None
    told = _html(f"<b>{_escaped(stop.reason)}</b>", [], _request_rows(stop.request))
    return told + (step_html(stop.steps[-1]) if failed else "")


def debugger_html(debugger: Debugger) -> str:
    """Return where a debugger stands, for a notebook."""
    return history_html(debugger.history) + _html(
        f"<b>{_escaped(debugger.state)}</b>", [], _request_rows(debugger.request)
    )
