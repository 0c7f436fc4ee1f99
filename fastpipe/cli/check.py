"""Every mistake of a configuration file, with its place in the file: what ``fastpipe check`` reports.

TOML's reader in the standard library forgets where things stood, so lines and columns come from a second reader,
tree-sitter's, if it is installed: the extra ``cli``.
"""

from __future__ import annotations

import io
import re
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpipe.cli.modules import modules_beside
from fastpipe.cli.toml_places import Places, character_at, places_in
from fastpipe.config.described import NodeConfig
from fastpipe.config.nodes import ONE_NODE_NAME
from fastpipe.config.plan import StepPlan
from fastpipe.config.reading import BYTE_ORDER_MARK, examine, read_toml
from fastpipe.config.values import constructor_parameters, names_existing
from fastpipe.config.wiring import add_mistakes_of_the_graph
from fastpipe.errors import AT_KEY, ConfigError, Mistake
from fastpipe.redaction import lines_without

__all__ = ["Finding", "Report", "check"]

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True)
class Finding:
    """A mistake or a warning, and where."""

    text: str
    is_warning: bool = False
    line: int | None = None
    """The first line is 1; None: nobody knows."""
    column: int | None = None
    """In characters; the first is 1."""
    length: int = 1
    """How many characters of the line are meant."""


@dataclass(frozen=True)
class Report:
    """What was found in one file."""

    path: Path
    findings: tuple[Finding, ...]
    """In the order of the file; those without a place last."""
    lines: tuple[str, ...] = ()
    """The source."""
    node_count: int = 0
    has_positions: bool = True
    """False: tree-sitter is not installed."""

    @property
    def mistake_count(self) -> int:
        return sum(not finding.is_warning for finding in self.findings)

    @property
    def warning_count(self) -> int:
        return len(self.findings) - self.mistake_count


def check(path: Path, *, builds: bool = False) -> Report:
    """Find all mistakes of the nodes and, as far as those can be read, of the graph that they make.

    The backends that the file names are imported, and nothing is built; modules that lie beside the file are found. An
    optional library that is missing is a mistake, too, and so are a model file that is missing, and whatever a module
    of the user's raises while it is imported.

    Args:
        path: of a TOML file.
        builds: where nothing is wrong so far, build the pipe and close it: what its backends refuse is a mistake.
    """
    try:
        source = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        text = source.decode()
    except (OSError, UnicodeDecodeError) as error:
        return Report(path, (Finding(f"cannot be read: {error}"),))
    # TOML's lines, which "\u2028" does not end. They are shown beside what is wrong with them, but for keys of models.
    lines = tuple(lines_without(line.rstrip("\r\n") for line in io.StringIO(text)))
    try:
        written = read_toml(text)
    except tomllib.TOMLDecodeError as error:
        return Report(path, (_syntax_error(str(error), lines),), lines)
    places = places_in(source)
    try:
        nodes, mistakes, remarks = _examined(written, path)
    except Exception as error:
        return Report(path, (Finding(f"importing what it names raised {type(error).__name__}: {error}"),), lines)
    # A mistake in a default is one of every node.
    found = list(dict.fromkeys(_finding(mistake, written, places) for mistake in mistakes))
    found += [replace(_finding(Mistake(remark), written, places), is_warning=True) for remark in remarks]
    if builds and not mistakes:
        found += [_finding(Mistake(text), written, places) for text in _refused(path)]
    found.sort(key=lambda finding: (finding.line is None, finding.line or 0, finding.column or 0))
    return Report(path, tuple(found), lines, sum(not node.is_hidden for node in nodes), places is not None)


def _examined(written: dict[str, Any], path: Path) -> tuple[Sequence[NodeConfig], Sequence[Mistake], Sequence[str]]:
    with modules_beside(path):
        config, problems, remarks = examine(written, {}, path.absolute().parent)
        add_mistakes_of_the_graph(config.nodes, problems)
    mistakes = list(problems.mistakes)
    for node in config.nodes:
        mistakes += _missing_files(node)
        remarks += _slow_models(node)
    return config.nodes, mistakes, remarks


def _steps(plan: StepPlan | None) -> Iterator[StepPlan]:
    return iter(()) if plan is None else plan.steps()


def _missing_files(node: NodeConfig) -> Iterator[Mistake]:
    """Files and folders that have to be there, by the annotations of the backends, and are not."""
    for step in _steps(node.plan):
        if not isinstance(step.backend, type):
            continue
        for key, parameter in constructor_parameters(step.backend).items():
            value = step.parameters.get(key)
            if not isinstance(value, Path) or not names_existing(parameter.annotation):
                continue
            if not value.exists() and ":" not in value.name:  # TorchTensor's model may be "module:function"
                text = f"{step.name} needs it, and there is no file {str(value)!r}"
                yield Mistake(text, node.name, key)


def _slow_models(node: NodeConfig) -> Iterator[str]:
    """Models that run one request at a time because nobody has said how many they may take."""
    for step in _steps(node.plan):
        if isinstance(step.backend, type):
            takes = constructor_parameters(step.backend)
            if {"model", "max"} <= takes.keys() and step.parameters.get("max") is None:
                yield Mistake(
                    f"it is not set, so {step.name} runs one request at a time (unless the "
                    "model's own batch size is fixed); max = 8 lets up to 8 requests share a run",
                    node.name,
                    "max",
                )


def _refused(path: Path) -> Sequence[str]:
    """Build the pipe of a file, close it, and return what was refused."""
    from fastpipe.pipe import Pipe

    try:
        with modules_beside(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are among the remarks
            Pipe(path).close()
    except ConfigError as error:
        return error.problems
    except Exception as error:  # whatever a constructor raises
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return [f"building it raised {type(error).__name__}: {error}{notes}"]
    return []


def _syntax_error(message: str, lines: Sequence[str]) -> Finding:
    place = _AT.search(message)
    text = "not TOML: " + _AT.sub("", message)
    if place is None:
        return Finding(text)
    if place[1] is None:
        return Finding(text, line=max(len(lines), 1), column=len(lines[-1]) + 1 if lines else 1)
    return Finding(text, line=int(place[1]), column=int(place[2]))


# ---- where a mistake is -------------------------------------------------------------------------------------------


def _finding(mistake: Mistake, written: dict[str, Any], places: Places | None) -> Finding:
    """Say where a mistake is: at its value or a part of it, else at its key, else at its node's header."""
    path = () if places is None else _path(mistake, written, places)
    if places is not None and isinstance(mistake.part, tuple):
        path = _path_inside(path, mistake.part, places)
    if places is None or path not in places.spots:
        return Finding(mistake)
    spot, text = places.spots[path], str(mistake)
    inside = _table(mistake.node, written)
    if path[: len(inside)] != inside:
        text = f"defaults: {text.removeprefix(f'node {mistake.node!r}: ')}"
    start, end = spot.key
    is_at_key = mistake.part == AT_KEY or (isinstance(mistake.part, tuple) and mistake.part[-1:] == (AT_KEY,))
    if spot.value is not None and mistake.key is not None and not is_at_key:
        start, end = spot.value
        if isinstance(mistake.part, str):
            start, end = places.word_in(mistake.part, start, end) or spot.value
        elif isinstance(mistake.part, int):
            start = min(character_at(places.source, start, end, mistake.part - 1), end)
            end = start + 1
            text = text.replace(f"column {mistake.part}: ", "", 1)  # it is the file's column that is shown
    line, column = places.line_and_column(start)
    meant = places.source[start:end].split(b"\n")[0].rstrip(b"\r")
    return Finding(text, line=line, column=column, length=max(len(meant.decode(errors="replace")), 1))


def _path(mistake: Mistake, written: dict[str, Any], places: Places) -> tuple[str, ...]:
    """Return the path of the key that a mistake is about, or of its node's table."""
    inside, key = _table(mistake.node, written), mistake.key
    if key is None:
        return inside
    # A key may stand in the node, scoped to one of its backends, or among the defaults.
    for table in (inside, ("global",), ()):
        names = places.names_of(table, key)
        if len(names) > 1 and isinstance(mistake.part, str):
            # Of several, such as backend and "S::backend", the one that has the part in question.
            values = (places.spots[*table, name].value for name in names)
            having = [
                name
                for name, value in zip(names, values, strict=True)
                if value is not None and places.word_in(mistake.part, *value)
            ]
            names = having or names
        if names:
            return (*table, key if key in names else names[0])
    return inside


def _path_inside(path: tuple[str, ...], keys: tuple[str | int, ...], places: Places) -> tuple[str, ...]:
    """Follow the keys that lead to a mistake in a table, as far as they are written."""
    for key in keys:
        inner = (*path, str(key))
        if inner not in places.spots:
            break
        path = inner
    return path


def _table(node: str | None, written: dict[str, Any]) -> tuple[str, ...]:
    """Return the path of a node's table."""
    if node is None or (node == ONE_NODE_NAME and node not in written):
        return ()
    name, _, number = node.partition(".")
    table = written.get(name)
    is_unquoted = node not in written and isinstance(table, dict) and isinstance(table.get(number), dict)  # [rec.2]
    return (name, number) if is_unquoted else (node,)
