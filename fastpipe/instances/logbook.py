"""What a pipe says in the log, the logger ``fastpipe``, on a thread that lives while there is something to say.

No handler is added to the logger, not even a ``NullHandler``: where a program has set up no logging, Python prints
warnings to stderr and drops what is below, and an instance that hangs is worth a line there.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastpipe.errors import PipeError
from fastpipe.instances.one import warm_ups_in
from fastpipe.instances.threads import Worker

if TYPE_CHECKING:
    from fastpipe._core import Instance, Station

__all__ = ["Counted", "Line", "Logbook"]

# What is said once is held back for so long, and counted, before it is said again.
QUIET_S = 1.0
# close() waits no longer than that for handlers of the log that are at work.
LAST_WORDS_S = 1.0
# More lines do not wait for a handler that does not return.
MOST_WAITING = 1000

LOGGER = "fastpipe"


@dataclass
class Line:
    """One line of the log."""

    kind: str
    text: str
    node: str | None = None
    instance: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    is_warning: bool = True


class Counted(Protocol):
    """What happens too often for a line each: it is counted by whom it happens to, and looked at now and then."""

    def news(self) -> Line | None:
        """Return what has happened since the last time; from now on, what happens gives notice again."""


class Logbook:
    """Has what befalls a pipe written to the log by a thread of its own, which lives while there is something to say.

    Handlers and filters of a log are a user's code: they may block, raise, or call the pipe. So no caller, worker or
    watchdog runs them, nor whoever builds or closes the pipe, or holds a lock. The same warning comes once in QUIET_S,
    with how often it happened.

    Thread-safety: any thread, signal handlers too; it knows no pipe.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()  # to build, and then to serve
        self._is_closed = False
        # SimpleQueue: a signal handler that is refused by the pipe may come in between, and must not meet a lock.
        self._news: queue.SimpleQueue[Line | Counted | None] = queue.SimpleQueue()
        self._at_work: dict[str, Worker] = {}  # the thread, if there is one
        self._refusals: dict[Station, _Refusals] = {}

    def say(self, line: Line) -> None:
        """Have a line written, unless the same was a moment ago: then have it counted.

        Raises:
            MemoryError, KeyboardInterrupt: it may not be written.
        """
        if self._news.qsize() < MOST_WAITING:
            self._news.put(line)
        self._wake()

    def notice(self, counted: Counted) -> bool:
        """Have somebody look at what is counted; False if nobody will, as there can be no more threads. As ``say``."""
        self._news.put(counted)
        return self._wake()

    def note_refusals(self, gate: Station) -> None:
        """A queue, or the whole pipe, has no room: have it said how often."""
        if not self.notice(self._refusals.setdefault(gate, _Refusals(gate))):
            gate.is_noticed = False

    def pipe_built(self, instances: Mapping[Station, Sequence[Instance]]) -> None:
        """Say that the pipe is built; ``instances``: of each node, or of each place of one."""
        now_s = time.monotonic()
        took_s, self._began_s = now_s - self._began_s, now_s
        warm = {
            station.name: warm_ups
            for station, built in instances.items()
            if (warm_ups := warm_ups_in(built[0].backend))
        }
        nodes = dict.fromkeys(station.name for station in instances)
        count = sum(len(built) for built in instances.values())
        told = "; ".join(f"{name} with {', '.join(warm_ups)}" for name, warm_ups in warm.items())
        text = (
            f"a pipe of {', '.join(nodes)} is built, in {took_s:.3f} s, with {count} instance{'s'[: count != 1]}; "
            f"warmed up: {told or 'nothing'}"
        )
        fields = {"nodes": list(nodes), "seconds": took_s, "warmed_up": warm}
        self.say_of_life(Line("built", text, fields=fields, is_warning=False))

    def pipe_closed(self, requests: Mapping[str, int]) -> None:
        """Say, the first time, that the pipe is closed, and wait until everything is written, but not for long."""
        if self._is_closed:
            return
        self._is_closed = True
        lasted_s = time.monotonic() - self._began_s
        counted = ", ".join(f"{count} {what}" for what, count in requests.items())
        text = f"the pipe is closed, after {lasted_s:.3f} s; requests: {counted}"
        fields = {"seconds": lasted_s, "requests": dict(requests)}
        self._news.put(None)
        self.say_of_life(Line("closed", text, fields=fields, is_warning=False))
        worker = self._at_work.get(LOGGER)
        if worker is not None and worker.thread is not threading.current_thread():
            worker.join(LAST_WORDS_S)

    def say_of_life(self, line: Line) -> None:
        """Have a line written that few programs want to see: for others it needs no thread."""
        import logging  # whoever has built a pipe has it; for an import of fastpipe alone it would take too long

        if logging.getLogger(LOGGER).isEnabledFor(logging.INFO):
            self.say(line)

    def _wake(self) -> bool:
        """Start the thread, if there is none; False: there can be none now."""
        if self._at_work:
            return True
        worker = Worker("fastpipe log", self._work)
        if self._at_work.setdefault(LOGGER, worker) is not worker:
            return True  # another thread was faster
        try:
            worker.start()
        except BaseException as error:
            if worker.is_over:
                self._at_work.pop(LOGGER, None)
            if not isinstance(error, PipeError | RuntimeError):
                raise
            return False
        return True

    def _work(self) -> None:
        """Write what there is, and what was held back, until there is nothing. The body of the thread."""
        writer = _Writer()
        while True:
            try:
                while writer.take(self._news):
                    pass
                self._at_work.pop(LOGGER, None)
                if not self._news.empty():  # it came after the last look, and was left to this thread
                    self._wake()
                return
            except BaseException as error:  # a lack of memory, or what another thread has sent: the log goes on
                _tell_of(error)


class _Writer:
    """What the thread knows: what was written a moment ago, and until when the same is held back."""

    def __init__(self) -> None:
        self._quiet: dict[Any, _Quiet] = {}
        self._is_last = False

    def take(self, news: queue.SimpleQueue[Line | Counted | None]) -> bool:
        """Write the next line, if it is not to be held back; False: there is none, and none was held back."""
        until_s = min((quiet.until_s for quiet in self._quiet.values()), default=None)
        try:
            if until_s is None or self._is_last:
                item = news.get_nowait()
            else:
                item = news.get(timeout=max(until_s - time.monotonic(), 0.0))
        except queue.Empty:
            return self._write_what_is_due()
        if item is None:
            self._is_last = True
            return True
        if isinstance(item, Line) and not item.is_warning:
            _write(item)
            return True
        key = (item.kind, item.node, item.instance) if isinstance(item, Line) else item
        quiet = self._quiet.get(key)
        if quiet is None:
            self._quiet[key] = quiet = _Quiet(time.monotonic() + QUIET_S)
            _write(item if isinstance(item, Line) else item.news())
        elif isinstance(item, Line):
            quiet.line = item
            quiet.count += 1
        return True

    def _write_what_is_due(self) -> bool:
        """Write what was held back for long enough; False: nothing is held back any more."""
        now_s = time.monotonic()
        for key, quiet in list(self._quiet.items()):
            if quiet.until_s > now_s and not self._is_last:
                continue
            line = quiet.line if isinstance(key, tuple) else key.news()
            if line is None or self._is_last:
                del self._quiet[key]
            else:
                self._quiet[key] = _Quiet(time.monotonic() + QUIET_S)
            if line is not None and quiet.count > 1:
                line.text += f" (and {quiet.count - 1} more like this within {QUIET_S:g} s)"
                line.fields["held_back"] = quiet.count - 1
            _write(line)
        return bool(self._quiet)


@dataclass
class _Quiet:
    """What was held back since a line was written."""

    until_s: float
    line: Line | None = None
    count: int = 0


class _Refusals:
    """What a gate has refused and shed, for the log."""

    def __init__(self, gate: Station) -> None:
        self._gate = gate
        self._told = 0, 0
        self._looked_s = -math.inf

    def news(self) -> Line | None:
        self._gate.is_noticed = False  # before the look: what comes after it gives notice
        since_s, self._looked_s = self._looked_s, time.monotonic()
        counts = self._gate.no_room, self._gate.pushed_out
        refused, shed = (now - before for now, before in zip(counts, self._told, strict=True))
        self._told = counts
        if refused == 0 and shed == 0:
            return None
        where = "the pipe" if self._gate.name is None else f"the queue of {self._gate.title}"
        said = [
            f"{_requests(count)} {'was' if count == 1 else 'were'} {what}"
            for count, what in ((refused, "refused"), (shed, "shed, as waiting longest,"))
            if count
        ]
        lasted_s = self._looked_s - since_s
        within = f" within {lasted_s:.1f} s" if lasted_s < 2 * QUIET_S else ""
        text = f"{where} is full: {' and '.join(said).removesuffix(',')}{within}"
        return Line("refused", text, self._gate.name, fields={"refused": refused, "shed": shed})


def _write(line: Line | None) -> None:
    """Write a line to the log, if there is one; what a handler raises is told to ``threading.excepthook``.

    Fields beside the message: ``kind``, ``node``, ``instance``, and those of the line.
    """
    import logging

    if line is None:
        return
    try:
        logger = logging.getLogger(LOGGER)
        level = logging.WARNING if line.is_warning else logging.INFO
        extra = {"kind": line.kind, "node": line.node, "instance": line.instance, **line.fields}
        try:
            logger.log(level, "%s", line.text, extra=extra)
        except KeyError:  # a record factory of the program's has a field of one of these names: that one stays
            logger.log(level, "%s", line.text)
    except Exception as error:
        _tell_of(error)


def _tell_of(error: BaseException) -> None:
    """Tell ``threading.excepthook``, and be content if that raises, too."""
    try:
        hook = threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
        threading.excepthook(hook)
    except BaseException:
        return


def _requests(count: int) -> str:
    return f"{count} request{'s'[: count != 1]}"
