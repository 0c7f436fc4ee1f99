"""``fastpipe replay``: runs recorded requests again, eagerly, and compares what comes of them with what came then.

It reproduces if the same error comes (type and message), or an equal answer. ``recorder.py`` has how records are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpipe.cli.loading import pipe_named, pipe_of_record
from fastpipe.cli.prompt import interact
from fastpipe.cli.terminal import complain, escaped_line, show
from fastpipe.debug import comparison, record_files
from fastpipe.debug.description import sha256_of
from fastpipe.errors import PipeError
from fastpipe.faults import text_of
from fastpipe.pipe import Pipe
from fastpipe.summaries import type_name

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Outcome", "Replay", "add_arguments", "records_in", "replay", "run"]

USAGE_ERROR = 2


@dataclass(frozen=True)
class Outcome:
    """What came of one record."""

    name: str
    """Of the file, without what all end with."""
    recorded: str
    """What came then, in a few words."""
    now: str
    """What came now; or why nothing did."""
    reproduced: bool
    difference: str = ""
    remark: str = ""
    """What is to be known besides: the configuration is another one than then."""
    was_run: bool = True


class Replay(tuple[Outcome, ...]):
    """The outcomes of several records, which print as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [(_mark(outcome), escaped_line(outcome.name), *_told(outcome)) for outcome in self]
        width = max((len(name) for _, name, *_ in rows), default=0)
        lines = [f"{mark:9}  {name:{width}}  {'; '.join(filter(None, rest))}" for mark, name, *rest in rows]
        return "\n".join([*lines, self._total()])

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for heading in ("", "record", "then", "now"):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("", "record"))
        for outcome in self:
            style = _STYLES[_mark(outcome)]
            then, *now = _told(outcome)
            table.add_row(
                Text(_mark(outcome), style=style),
                Text(escaped_line(outcome.name)),
                Text(then),
                Text("\n".join(filter(None, now))),
            )
        return Group(table, Text(self._total(), style="bold"))

    def _total(self) -> str:
        return f"{sum(outcome.reproduced for outcome in self)} of {len(self)} reproduced"


_STYLES = {"same": "green", "different": "bold red", "not run": "bold yellow"}


def _mark(outcome: Outcome) -> str:
    if not outcome.was_run:
        return "not run"
    return "same" if outcome.reproduced else "different"


def _told(outcome: Outcome) -> list[str]:
    now = "" if outcome.reproduced or outcome.difference else outcome.now
    return [escaped_line(text) for text in (outcome.recorded, now, outcome.difference, outcome.remark)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe replay`` takes."""
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help=f"records (*{record_files.SUFFIX}), or directories of them"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--pipe", metavar="MODULE:ATTRIBUTE", help="the pipe: a Pipe, a configuration, or a function that returns one"
    )
    source.add_argument(
        "--config", metavar="FILE", type=Path, help="the configuration, instead of what the record names"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever the records name, code and files: for records that only you can have written",
    )
    parser.add_argument("--debug", action="store_true", help="take each request through the debugger, at a prompt")
    parser.add_argument(
        "--pickle", action="store_true", help="load pickles, too: this runs whatever the record's writer wanted"
    )
    parser.add_argument("--allow-missing", action="store_true", help="run requests without the keys that were not kept")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=comparison.TOLERANCE,
        help="by how much numbers of an answer may differ: relatively, below 1 absolutely (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, print a table, and return 0 if all reproduce, 1 if not, 2 if there is nothing to replay."""
    try:
        paths = list(records_in(arguments.paths))
    except OSError as error:
        complain(f"fastpipe replay: {error}")
        return USAGE_ERROR
    with _Pipes(arguments) as pipes:
        outcomes = Replay(_outcome(path, pipes, arguments) for path in paths)
    show(outcomes)
    return 0 if all(outcome.reproduced for outcome in outcomes) else 1


def is_trusted(arguments: argparse.Namespace) -> bool:
    """Say whether code of the user's is run: that of a configuration or a pipe of theirs, or of records they trust."""
    return arguments.trust or arguments.pipe is not None or arguments.config is not None


def records_in(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield files as they are given, and of directories the records in them, the oldest first.

    Raises:
        OSError: a path is not there, or a directory has no record.
    """
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"there is no {str(path)!r}")
            yield path
            continue
        found = sorted(path.glob(f"[!.]*{record_files.SUFFIX}"))
        if not found:
            raise FileNotFoundError(f"{str(path)!r} has no records (*{record_files.SUFFIX})")
        yield from found


class _Pipes:
    """Builds each pipe once, and closes all at the end."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.name: str | None = arguments.pipe
        self.config: Path | None = arguments.config
        self.trust: bool = arguments.trust
        self.allow_missing: bool = arguments.allow_missing
        self.built: dict[str, Pipe] = {}

    def of(self, record: record_files.Record) -> Pipe:
        configuration = record.manifest.get("configuration") or {}
        is_of_record = self.name is None and (self.config is None or self.trust)
        key = json.dumps(configuration, sort_keys=True) if is_of_record else ""
        if key not in self.built:
            self.built[key] = (
                pipe_named(self.name)
                if self.name is not None
                else pipe_of_record(configuration, self.config, trust=self.trust, allow_missing=self.allow_missing)
            )
        return self.built[key]

    def remark(self, record: record_files.Record) -> str:
        """What makes this pipe another one than the record's."""
        configuration = record.manifest.get("configuration") or {}
        path = configuration.get("file")
        if self.name is not None or self.config is not None or path is None:
            return ""
        return "" if sha256_of(Path(path)) == configuration.get("sha256") else f"{Path(path).name} has changed since"

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.built.values():
            pipe.close()


def _outcome(path: Path, pipes: _Pipes, arguments: argparse.Namespace) -> Outcome:
    recorded = "?"
    try:
        record = record_files.read(path, pickle=arguments.pickle)
        recorded = _recorded(record)
        if record.lost and not arguments.allow_missing:
            missing = "; ".join(record.lost)
            told = f"the record lacks {missing}; --allow-missing runs it without"
            return Outcome(_name(path), recorded, told, False, was_run=False)
        pipe = pipes.of(record)
        remark = pipes.remark(record)
        return replay(record, pipe, tolerance=arguments.tolerance, debug=arguments.debug, remark=remark)
    except Exception as error:  # what is wrong with one record, or its pipe, is its row in the table
        return Outcome(_name(path), recorded, _in_words(error), False, was_run=False)


def _in_words(error: Exception) -> str:
    return text_of(error) if isinstance(error, PipeError | OSError) else f"{type_name(error)}: {text_of(error)}"


def _recorded(record: record_files.Record) -> str:
    error = record.manifest.get("error")
    if error is None:
        return "answered"
    node = f" at {error['node']}" if error.get("node") else ""
    return f"{_last(error['type'])}{node}: {_first_line(error['message'])}"


def replay(
    record: record_files.Record,
    pipe: Pipe,
    *,
    tolerance: float = comparison.TOLERANCE,
    debug: bool = False,
    remark: str = "",
) -> Outcome:
    """Run a record's request through ``pipe``, eagerly or at the debugger's prompt, and compare.

    Raises:
        PipeError, ImportError: the record's values cannot be had back.
    """
    request = record.request()
    secrets = pipe._description().secrets().and_of(request)  # before a backend takes one out
    node = (record.manifest.get("error") or {}).get("node")
    if debug:
        error, is_finished = _debugged(record, pipe, request, node)
        if not is_finished:
            return Outcome(
                _name(record.path), _recorded(record), "left before it ended", False, remark=remark, was_run=False
            )
    else:
        error = _called(pipe, request, record.manifest.get("entry"))
    message = "" if error is None else secrets.and_of(error).left_out_of(text_of(error))  # as in the record
    now = "answered" if error is None else f"{_last(type_name(error))}: {_first_line(message)}"
    difference = _difference(record, request, error, message, tolerance)
    return Outcome(_name(record.path), _recorded(record), now, not difference, difference, remark)


def _called(pipe: Pipe, request: dict[str, Any], entry: str | None) -> BaseException | None:
    try:
        pipe(request, eager=True, entry=entry)
    except Exception as error:
        return error
    return None


def _debugged(
    record: record_files.Record, pipe: Pipe, request: dict[str, Any], node: str | None
) -> tuple[BaseException | None, bool]:
    with pipe.debug() as debugger:
        if node is not None and any(config.name == node for config in pipe._description().configs):
            debugger.break_at(node)
        debugger.start(request, entry=record.manifest.get("entry"))
        show(f"{record.path.name}: {_recorded(record)}")
        interact(debugger)
        return debugger.error, debugger.finished


def _difference(
    record: record_files.Record, request: dict[str, Any], error: BaseException | None, message: str, tolerance: float
) -> str:
    """What is not as it was; empty: it reproduces."""
    then = record.manifest.get("error")
    if error is not None:
        told = f"now {_last(type_name(error))}: {_first_line(message)}"
        if then is None or then["type"] != type_name(error):
            return told
        same = comparison.without_addresses(then["message"]) == comparison.without_addresses(message)
        return "" if same else told
    if then is not None:
        return "now answered"
    has_pickles = any(name.endswith(".pickle") for name in record.members)
    encoded, members = record_files.encode({"answer": request}, pickle=has_pickles)
    return comparison.same(record.manifest.get("answer"), record.members, encoded["answer"], members, tolerance)


def _name(path: Path) -> str:
    return path.name.removesuffix(record_files.SUFFIX)


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
