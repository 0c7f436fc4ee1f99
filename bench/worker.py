"""One contestant of one case, in a process of its own: ``peers.py`` starts it and tells it when to run.

It writes a line of JSON for each line of JSON that it reads. Its own process, because some contestants print to
standard output, keep their threads for ever, or may crash; and so that nobody's idle threads, imports and
settings are in anybody's way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cases import BEFORE, OURS, all_cases
from common import Numbers, Window

__all__ = ["Crashed", "Skipped", "Worker"]


class Skipped(Exception):
    """A contestant cannot be measured here; the message says why."""


class Crashed(Exception):
    """A contestant's process ended by itself, or its work failed; the message says how."""


class Worker:
    """A running contestant, as ``peers.py`` sees it.

    Args:
        case: its name.
        contestant: likewise.
        options: ``images`` (a folder or None) and ``pages``, as ``all_cases`` takes them; ``baseline``, the folder of
            the fastpipe that ``BEFORE`` is, or None.
        log: where what the contestant prints goes.

    Raises:
        Skipped: if a library is missing.
        Crashed: if it cannot be built, or does not do what it should.
    """

    def __init__(self, case: str, contestant: str, options: Mapping[str, Any], log: IO[str]) -> None:
        environment = dict(os.environ)
        if contestant == BEFORE:
            contestant, environment["PYTHONPATH"] = OURS, str(options["baseline"])
        self._process = subprocess.Popen(
            [sys.executable, __file__, case, contestant, json.dumps(options)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            self._read()
        except BaseException:
            self.stop()
            raise

    def measure(self, clients: int, window: Window) -> tuple[Numbers, str | None]:
        """Measure one window; return its numbers, and the digest of the answers if there is one.

        Raises:
            Crashed: if it failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([clients, window.warm_up_s, window.measured_s]) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        return reply["numbers"], reply["answers"]

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Crashed(f"its process ended with status {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "skipped" in reply:
            raise Skipped(reply["skipped"])
        if "failed" in reply:
            raise Crashed(reply["failed"])
        return reply


def check_baseline(folder: str) -> None:
    """Raise RuntimeError if it is not the fastpipe of that folder that is measured here."""
    import fastpipe

    if not Path(fastpipe.__file__).is_relative_to(folder):
        raise RuntimeError(f"fastpipe is that of {fastpipe.__file__}, not that of {folder}")


def main() -> None:
    """Be the contestant."""
    # What a contestant prints, also from C, goes to standard error; only replies go where the parent reads.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**what: Any) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    case, contestant, options = sys.argv[1:]
    chosen = json.loads(options)
    folder = chosen["images"]
    try:
        if chosen["baseline"] is not None and os.environ.get("PYTHONPATH") == chosen["baseline"]:
            check_baseline(chosen["baseline"])
        trial = all_cases(folder and Path(folder), chosen["pages"])[case].contestants[contestant]()
        trial.verify()
        reply(ready=True)
        for line in sys.stdin:
            clients, warm_up_s, measured_s = json.loads(line)
            numbers = trial.run(clients, Window(warm_up_s, measured_s))
            reply(numbers=numbers, answers=trial.answers())
    except ImportError as error:
        reply(skipped=f"{error.name} is not installed" if error.name else str(error))
    except Exception as error:
        traceback.print_exc()
        reply(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
    # Not all contestants' threads let the interpreter end.
    os._exit(0)
