"""The debugger at a prompt: ``fastpipe debug FILE --data VALUE`` and ``fastpipe replay RECORD --debug``.

It reads commands from the standard input, a terminal or a file, and writes to the standard output.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastpipe.cli.data import HELP as HELP_ON_DATA
from fastpipe.cli.data import Inputs, loaded
from fastpipe.cli.modules import look_beside
from fastpipe.cli.terminal import show
from fastpipe.errors import PipeError, UnknownNode, nearest

if TYPE_CHECKING:
    from fastpipe.debug.debugger import Debugger

__all__ = ["add_arguments", "interact", "run"]

HELP = """\
  s, step [N]        take one step, or N; an empty line does the same as s
  r, run             go on to the next breakpoint, or to the end
  b, break NODE      stop before a node; without NODE: list where run stops
  clear              take all breakpoints away
  w, where           what was done, and what is next
  h, history [N]     all steps as a table, or step N in full
  p, print [KEY]     the request that is next, or one of its values, in full
  set KEY VALUE      give it another value: a Python literal, such as 3, 'text' or [1, 2]
  q, quit            leave; a request that has not ended is given up
"""
MOST_PRINTED = 20_000
PROMPT = "(fastpipe) "


def interact(debugger: Debugger) -> None:
    """Let whoever sits at the standard input drive ``debugger``, until the input ends or says quit."""
    prompt = _Prompt(debugger)
    show(debugger)
    if sys.stdin.isatty():
        show("s: step, r: run, b NODE: break, ?: help")
    while (line := _line()) is not None:
        try:
            if not prompt.obey(line.strip()):
                return
        except KeyboardInterrupt:  # while a node ran, or was waited for
            show("interrupted; the request was given up")


def _line() -> str | None:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        show(f"{PROMPT}{line.rstrip()}" if line else "")
        return line or None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history
    try:
        return input(PROMPT)
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None


class _Prompt:
    """The commands. Each takes the rest of its line."""

    def __init__(self, debugger: Debugger) -> None:
        self.debugger = debugger
        self.commands: dict[str, Callable[[str], None]] = {
            "step": self.step,
            "run": self.run,
            "break": self.break_at,
            "clear": lambda rest: self.debugger.clear(),
            "where": lambda rest: show(self.debugger),
            "history": self.history,
            "print": self.print,
            "set": self.set,
            "help": lambda rest: show(HELP.rstrip()),
        }
        self.short = {"s": "step", "r": "run", "c": "run", "b": "break", "w": "where", "h": "history", "p": "print"}

    def obey(self, line: str) -> bool:
        """Do what a line says; False: it says quit."""
        word, _, rest = line.partition(" ")
        word = "help" if word == "?" else self.short.get(word, word) or "step"
        if word in ("q", "quit", "exit"):
            return False
        command = self.commands.get(word)
        if command is None:
            show(f"there is no command {word!r}{nearest(word, self.commands)}; ? lists them")
            return True
        try:
            command(rest.strip())
        except Exception as error:  # a condition that raises, a request that has ended: said, and the prompt goes on
            show(f"{type(error).__name__}: {error}" if not isinstance(error, PipeError) else str(error))
        return True

    def step(self, rest: str) -> None:
        for _ in range(_count(rest, 1)):
            show(self.debugger.step())
        if self.debugger.next is None:
            show(self.debugger.state)

    def run(self, rest: str) -> None:
        show(self.debugger.run())

    def break_at(self, rest: str) -> None:
        if rest:
            try:
                self.debugger.break_at(rest)
            except UnknownNode as error:
                show(str(error))
                return
        points = [f"stops {breakpoint}" for breakpoint in self.debugger.breakpoints]
        show("\n".join(points) if points else "no breakpoints: break NODE sets one")

    def history(self, rest: str) -> None:
        steps = self.debugger.history
        if not rest:
            show(steps)
            return
        number = _count(rest, 1)
        show(steps[number - 1] if 1 <= number <= len(steps) else f"there are steps 1 to {len(steps)}")

    def print(self, rest: str) -> None:
        request = self.debugger.request
        if not rest:
            show(self.debugger)
        elif rest in request:
            text = repr(request[rest])  # asked for by name: the user's own repr, in full but for the longest
            show(text if len(text) <= MOST_PRINTED else f"{text[:MOST_PRINTED]}... ({len(text)} characters)")
        else:
            keys = [key for key in request if isinstance(key, str)]
            show(f"the request has no key {rest!r}; its keys are {keys}{nearest(rest, keys)}")

    def set(self, rest: str) -> None:
        key, _, literal = rest.partition(" ")
        if self.debugger.next is None:
            show("the request has ended")
            return
        try:
            self.debugger.request[key] = ast.literal_eval(literal.strip())
        except (ValueError, SyntaxError):
            show(f"set KEY VALUE, with a Python literal: {literal.strip()!r} is none (text needs quotes)")


def _count(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdigit():
        raise PipeError(f"a number is expected, got {text!r}")
    return int(text)


# ---- fastpipe debug --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe debug`` takes."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, action="append", help=f"{HELP_ON_DATA}; of many, the first is taken")
    parser.add_argument("--node", metavar="NODE", help="where the request enters (default: the root)")
    parser.add_argument("--break", dest="stops", metavar="NODE", action="append", default=[], help="stop before a node")


def run(arguments: argparse.Namespace) -> int:
    """Debug one request at the prompt; 0 if it has ended well, 1 if it failed or was given up."""
    from fastpipe.pipe import Pipe

    (request, *_), _ = loaded(Inputs(arguments.data), 1)
    look_beside(arguments.file)
    with Pipe(arguments.file) as pipe, pipe.debug() as debugger:
        for node in arguments.stops:
            debugger.break_at(node)
        debugger.start(request, entry=arguments.node)
        interact(debugger)
        return 0 if debugger.finished and debugger.error is None else 1
