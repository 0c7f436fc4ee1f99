"""What ``fastpipe check`` has found, as lines: file, line, column and message, and the line of the file below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastpipe.cli.terminal import Part, blank, column_count, escaped, escaped_line

if TYPE_CHECKING:
    from fastpipe.cli.check import Finding, Report

__all__ = ["lines_of"]

LONGEST_SHOWN = 400  # of a line of a file, under each of its mistakes


def lines_of(report: Report) -> Iterator[tuple[Part, ...]]:
    """Yield the lines, each as parts with their styles; the last one counts."""
    for finding in report.findings:
        yield from _finding(report, finding)
    yield _summary(report)


def _finding(report: Report, finding: Finding) -> Iterator[tuple[Part, ...]]:
    position = [
        escaped_line(str(report.path)),
        *(str(number) for number in (finding.line, finding.column) if number is not None),
    ]
    kind = ("warning: ", "yellow") if finding.is_warning else ("", "")
    yield (f"{':'.join(position)}: ", "bold"), kind, (" ".join(finding.text.split()), "")
    if finding.line is None or finding.column is None or finding.line > len(report.lines):
        return
    start = finding.column - 1
    left_out = max(start - LONGEST_SHOWN // 2, 0) if len(report.lines[finding.line - 1]) > LONGEST_SHOWN else 0
    raw = report.lines[finding.line - 1][left_out : left_out + LONGEST_SHOWN]
    start, end = start - left_out, start - left_out + finding.length
    before, meant, rest = (escaped(part) for part in (raw[:start], raw[start:end], raw[end:]))
    margin = f"{finding.line:>5} | "
    caret = "^" + "~" * (column_count(meant) - 1)
    yield (margin, "dim"), (before + meant + rest, "")
    yield (" " * (len(margin) - 2) + "| ", "dim"), (blank(before), ""), (caret, "bold red")


def _summary(report: Report) -> tuple[Part, ...]:
    counts = ((report.mistake_count, "mistake"), (report.warning_count, "warning"))
    said = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
    nodes = f"{report.node_count} node{'s' if report.node_count != 1 else ''}"
    colour = "red" if report.mistake_count else "yellow" if said else "green"
    return (f"{escaped_line(str(report.path))}: ", "bold"), (", ".join(said) or f"no mistakes, {nodes}", colour)
