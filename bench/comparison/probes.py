"""How a library is asked: a probe for each feature, run one after the other, one line of JSON for each answer.

Standard library only: probes run with the interpreter of the library that they ask.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

__all__ = ["CALLS", "NEUTRAL", "NO", "PARTLY", "RAN", "YES", "Cell", "at_end", "at_once", "documented", "main", "probe"]

YES, PARTLY, NO, NEUTRAL = "yes", "partly", "no", ""
RAN = "ran"
CALLS = ("__call__", "submit", "predict", "infer", "forward", "run_inference")
"""What a server's class would call a call in the process."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What one library does about one feature.

    Attributes:
        mark: YES, PARTLY, NO, or nothing where there is no better and worse.
        text: what was seen, in a few words.
        source: RAN, or the address of the documentation that says so.
    """

    mark: str
    text: str
    source: str = RAN


_probes: dict[str, Callable[[], Cell]] = {}
_at_end: list[Callable[[], None]] = []


def at_end(function: Callable[[], None]) -> None:
    """Have a function called behind the last probe."""
    _at_end.append(function)


def probe(*keys: str) -> Callable[[Callable[[], Cell]], Callable[[], Cell]]:
    """Register a function under the keys of features that it answers."""

    def register(function: Callable[[], Cell]) -> Callable[[], Cell]:
        for key in keys:
            _probes[key] = function
        return function

    return register


def documented(mark: str, text: str, source: str, *keys: str) -> None:
    """Say what was not run, and which page says so."""
    for key in keys:
        _probes[key] = lambda: Cell(mark, text, source)


def at_once(calls: Iterable[Callable[[], T]]) -> list[T | BaseException]:
    """Make calls, each on a thread of its own, and return their results, or what they have raised, in order."""
    made = list(calls)
    results: list[T | BaseException] = [TimeoutError("has not come back")] * len(made)

    def run(number: int, call: Callable[[], T]) -> None:
        try:
            results[number] = call()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(made)]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    return results


def licence_of(distribution: str) -> str:
    """Return what a package says of its licence."""
    about = importlib.metadata.metadata(distribution)
    for key in ("License-Expression", "License"):
        if 0 < len(about.get(key) or "") < 40:
            return str(about[key])
    kinds = [each.split("::")[-1].strip() for each in about.get_all("Classifier") or [] if each.startswith("License")]
    return ", ".join(kinds)


def main(distribution: str, *others: str) -> None:
    """Run the probes that the command line names, or all, and write a line of JSON for each.

    Args:
        distribution: the package whose version and licence are told.
        others: further packages whose versions are told.
    """
    # What a library prints, also from C and from its processes, goes to standard error; only answers go to the reader.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # A shell starts background jobs with SIGINT ignored, which children would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = (distribution, *others)
    versions = {name: importlib.metadata.version(name) for name in names}
    out.write(json.dumps({"versions": versions}) + "\n")
    _probes.setdefault("licence", lambda: Cell(NEUTRAL, licence_of(distribution)))
    for key, function in _probes.items():
        if sys.argv[1:] and key not in sys.argv[1:]:
            continue
        try:
            cell = function()
        except Exception as error:
            traceback.print_exc()
            cell = Cell("failed", f"{type(error).__name__}: {error}"[:300])
        out.write(json.dumps({"feature": key, **asdict(cell)}) + "\n")
        out.flush()
    for end in _at_end:
        end()
    out.flush()
    os._exit(0)  # not all libraries' threads let the interpreter end
