"""``fastpipe run``: takes a folder, files or lines through a pipe, and writes what comes of each.

Only so many inputs are in memory as are being worked on or wait for an earlier one to be written: results are in the
order of the inputs, whoever of the workers was faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from fastpipe.cli.data import HELP, Input, Inputs
from fastpipe.cli.loading import pipe_of_file
from fastpipe.cli.outputs import Outputs, failure_line
from fastpipe.cli.paths import check_folder, check_output, writing
from fastpipe.cli.terminal import complain, escaped_line, progress_console
from fastpipe.contract import Request
from fastpipe.errors import PipeError
from fastpipe.pipe import Pipe

__all__ = ["add_arguments", "run"]

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
# How many answers may wait, for each worker, for an earlier one to be written.
AHEAD = 16
LOOK_S = 0.1
MOST_SHOWN_FAILURES = 10

Line = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe run`` takes."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, a TOML file")
    parser.add_argument("--data", metavar="DATA", required=True, action="append", help=HELP)
    parser.add_argument(
        "--workers", metavar="N", type=int, default=8, help="how many requests are sent at once (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="OUT.jsonl", type=Path, help="results, a line each (default: standard output)")
    parser.add_argument(
        "--out-dir",
        metavar="FOLDER",
        type=Path,
        help="where larger arrays (.npy) and bytes (as they are) go; without it, results only describe them",
    )
    parser.add_argument("--failures", metavar="OUT.jsonl", type=Path, help="failures, a line each")
    parser.add_argument(
        "--resume", action="store_true", help="pass over the inputs that have a line in --out, and add to that file"
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=float, help="of each request")
    parser.add_argument("--node", metavar="NODE", help="where requests enter (default: the root)")
    parser.add_argument("--timeline", metavar="OUT.pftrace", type=Path, help="write a timeline of all requests, too")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Run all inputs; 0 if all were answered, 1 if some failed, 130 if Ctrl-C ended it."""
    if arguments.workers < 1:
        arguments.fail(f"--workers: at least 1, got {arguments.workers}")
    if arguments.resume and arguments.out is None:
        arguments.fail("--resume needs --out: what was done is read from there")
    for option, path in (
        ("--out", arguments.out),
        ("--failures", arguments.failures),
        ("--timeline", arguments.timeline),
    ):
        check_output(option, path)
    check_folder("--out-dir", arguments.out_dir)
    inputs = Inputs(arguments.data)
    done_names = _done_names(arguments.out) if arguments.resume else frozenset()
    job = _Job(inputs, Outputs(arguments.out_dir), done_names, arguments.workers)
    with contextlib.ExitStack() as stack:
        pipe = pipe_of_file(arguments.file)
        stack.callback(lambda: pipe.close(timeout=0 if job.is_given_up else None))
        # Only now: had the pipe been refused, the results of an earlier run would be lost.
        job.results = _opened(arguments.out, "a" if arguments.resume else "w", stack) or sys.stdout
        job.failures = _opened(arguments.failures, "w", stack)
        if arguments.timeline is not None:
            stack.enter_context(cast("Any", pipe).timeline(arguments.timeline))
        with _progress(job, inputs) as look:
            job.work(pipe, arguments.timeout, arguments.node, look)
    complain(job.told())
    if arguments.failures is None and job.failed > MOST_SHOWN_FAILURES:
        complain(f"{job.failed - MOST_SHOWN_FAILURES} more failed; --failures OUT.jsonl has all of them")
    if job.is_interrupted:
        return INTERRUPTED
    return 1 if job.failed else 0


def _opened(path: Path | None, mode: str, stack: contextlib.ExitStack) -> TextIO | None:
    if path is None:
        return None
    file = cast("TextIO", path.open(mode, encoding="utf-8"))
    stack.callback(_close, file, path)
    return file


def _close(file: TextIO, path: Path) -> None:
    with writing(path):  # what it still holds is written now
        file.close()


def _done_names(path: Path) -> frozenset[str]:
    """Return the names of the inputs that have a result, and cut off a line that was not written to its end."""
    names: set[str] = set()
    if not path.exists():
        return frozenset()
    with path.open("r+b") as file:
        whole_bytes = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole_bytes += len(line)
            try:
                names.add(json.loads(line)["input"])
            except (ValueError, TypeError, KeyError):
                raise PipeError(f"--resume: {path}:{number} is no line of fastpipe run") from None
        file.truncate(whole_bytes)
    return frozenset(names)


@dataclass
class _Job:
    """Workers take inputs from one list and put what comes of them into files, in the same order.

    Guarantees: each input has one line, in results or in failures; lines of one file are in the order of the inputs; at
    most ``AHEAD`` times as many are held as there are workers.
    """

    inputs: Inputs
    outputs: Outputs
    done_names: frozenset[str]
    workers: int
    results: TextIO = field(default_factory=lambda: sys.stdout)
    failures: TextIO | None = None
    done: int = 0
    failed: int = 0
    passed_over: int = 0
    is_interrupted: bool = False
    is_given_up: bool = False
    _error: BaseException | None = None
    _taken: int = 0
    _written: int = 0
    _running: int = 0
    _stops: bool = False
    _has_told_of_values: bool = False
    _held: dict[int, tuple[Line, bool] | None] = field(default_factory=dict)
    _began_s: float = field(default_factory=time.monotonic)
    # Taking an input may wait, for a line on the standard input; nobody who has an answer waits for that.
    _taking: threading.Lock = field(default_factory=threading.Lock)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def ended(self) -> int:
        return self.done + self.failed

    def work(self, pipe: Pipe, timeout_s: float | None, node: str | None, look: Callable[[], object]) -> None:
        """Take all inputs through a pipe. Ctrl-C lets the requests end that have begun; twice, it gives them up.

        ``look`` is called now and then, to show how far it is.
        """
        source = iter(self.inputs)
        self._began_s = time.monotonic()

        def loop() -> None:
            try:
                while (taken := self._take(source)) is not None:
                    index, item = taken
                    self._put(index, *self._line(pipe, index, item, timeout_s, node))
            except BaseException as error:  # of the files that are written, or the list of inputs
                with self._changed:
                    self._error = self._error or error
                    self._stops = True
                    self._changed.notify_all()

        # Daemons: one may wait for a line on the standard input that never comes.
        threads = [threading.Thread(target=loop, name=f"run-{number}", daemon=True) for number in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(LOOK_S)
                    look()
        except KeyboardInterrupt:
            if not self._let_end():
                self._give_up()
        if self._error is not None:
            raise self._error

    def _let_end(self) -> bool:
        self.is_interrupted = True
        complain("interrupted: waiting for the requests that have begun; Ctrl-C again gives them up")
        try:
            with self._changed:
                self._stops = True
                self._changed.notify_all()
                while self._running:
                    self._changed.wait(LOOK_S)
        except KeyboardInterrupt:
            return False
        return True

    def _give_up(self) -> None:
        """Write what waits for requests that will not be waited for, and nothing that comes later."""
        with self._changed:
            self.is_given_up = True
            for index in sorted(self._held):
                if (ended := self._held.pop(index)) is not None:
                    self._write(*ended)

    def _take(self, source: Iterator[Input]) -> tuple[int, Input] | None:
        """Return the next input and its number; None: there is none, or none is wanted."""
        with self._taking:
            with self._changed:
                while not self._stops and self._taken - self._written >= self.workers * AHEAD:
                    self._changed.wait(LOOK_S)
            while (item := next(source, None)) is not None:
                with self._changed:
                    if self._stops:
                        return None
                    index = self._taken
                    self._taken += 1
                    if item.name in self.done_names:
                        self.passed_over += 1
                        self._write_in_order(index, None)
                        continue
                    self._running += 1
                return index, item
        return None

    def _line(
        self, pipe: Pipe, index: int, item: Input, timeout_s: float | None, node: str | None
    ) -> tuple[Line, bool]:
        """Run one input; return its line, and whether it was answered."""
        given: Request = {}
        try:
            request = item.read()
            given = dict(request)
            pipe(request, timeout=timeout_s, entry=node)
        except BaseException as error:  # whatever a backend raises is told of
            secrets = pipe._description().secrets().and_of(given)
            return failure_line(index, item.name, error, secrets), False
        return self.outputs.line(index, item.name, item.place, given, request), True

    def _put(self, index: int, line: Line, is_answer: bool) -> None:
        with self._changed:
            self._running -= 1
            if self.is_given_up:
                return
            self._write_in_order(index, (line, is_answer))
            self._changed.notify_all()

    def _write_in_order(self, index: int, ended: tuple[Line, bool] | None) -> None:
        """Write a line, and those that have waited for it; the caller holds the lock."""
        self._held[index] = ended
        while self._written in self._held:
            written = self._held.pop(self._written)
            self._written += 1
            if written is not None:
                self._write(*written)

    def _write(self, line: Line, is_answer: bool) -> None:
        if is_answer:
            self.done += 1
            # On a terminal nothing of a request's own may be more than text.
            is_own = self.results is not sys.stdout
            with writing(Path(self.results.name if is_own else "the standard output")):
                self.results.write(json.dumps(line, ensure_ascii=not is_own, allow_nan=False) + "\n")
            if self.outputs.left_out_count and not self._has_told_of_values:
                self._has_told_of_values = True
                complain(f"{line['input']}: some values are only described in its result{self.outputs.remedy}")
            return
        self.failed += 1
        if self.failures is not None:
            with writing(Path(self.failures.name)):
                self.failures.write(json.dumps(line, ensure_ascii=False) + "\n")
        elif self.failed <= MOST_SHOWN_FAILURES:
            where = f"node {line['node']!r}: " if line["node"] else ""
            complain(escaped_line(f"{line['input']}: {where}{line['error'].rpartition('.')[2]}: {line['message']}"))

    @property
    def rate(self) -> float:
        """Requests a second that have ended."""
        return self.ended / max(time.monotonic() - self._began_s, 1e-9)

    def told(self) -> str:
        """Return what has come of it, as a sentence."""
        elapsed_s = time.monotonic() - self._began_s
        also = f", {self.passed_over} done before" if self.passed_over else ""
        how = "interrupted: " if self.is_interrupted else ""
        return f"{how}{self.done} done, {self.failed} failed{also}, {elapsed_s:.1f} s, {self.rate:.4g} a second"


@contextlib.contextmanager
def _progress(job: _Job, inputs: Inputs) -> Iterator[Callable[[], object]]:
    """Show a bar on the terminal, if there is one and rich is installed; yield what brings it up to date."""
    console = progress_console()
    if console is None:
        yield lambda: None
        return
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[failed]} failed, {task.fields[rate]:.4g}/s"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    # Its redirection of other output would take colours and links from what requests and files say.
    with progress.Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=inputs.count(), failed=0, rate=0.0)

        def look() -> None:
            completed = job.ended + job.passed_over
            bar.update(task, completed=completed, failed=job.failed, rate=job.rate)

        try:
            yield look
        finally:
            look()
