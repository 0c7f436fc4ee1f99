"""A timeline of what a pipe does, in a file for Perfetto (https://ui.perfetto.dev), which draws it.

Rows, from the top: the requests in flight, the queues' lengths, the threads (workers, then callers), the instances of
each node, by place where they are at several, the streams of GPUs (see stream_rows.py). A batch is a slice in the row
of its thread and in that of its instance; arrows lead from a request to where it was queued, to its batch, and on to
the next node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fastpipe._core import EventLog
from fastpipe.errors import PipeClosed, PipeError
from fastpipe.instances.threads import Worker
from fastpipe.observe.perfetto import instant, row
from fastpipe.observe.stream_rows import StreamRows

if TYPE_CHECKING:
    from fastpipe._core import Engine

__all__ = ["Timeline"]

# Events that the writing thread has not got to yet, 56 bytes each: it looks every 10 ms.
MOST_WAITING = 1 << 16

_QUEUES, _WORKERS, _CALLERS, _INSTANCES, _NOTES, _GPUS, _FIRST_PLACE = 2, 3, 4, 5, 6, 7, 16


class Timeline:
    """A timeline that is written until ``stop()``, the end of its ``with`` block, or until it is dropped.

    The pipe never waits for it and never fails with it: a thread of its own writes, without the GIL, and what is too
    much for it is dropped and counted. It takes about 4 MB, however long it goes on.

    Thread-safety: any thread.

    Raises:
        OSError: the file cannot be made or written to.
        PipeError: the pipe has a timeline already.
        PipeClosed: it is closed.
    """

    def __init__(self, pipe: Engine, path: str | Path) -> None:
        if pipe.closing:
            raise PipeClosed("the pipe is closed: there is nothing to draw a timeline of")
        self.path = Path(path)
        self._process = os.getpid()
        self._is_told = False  # what became of it has been raised, or logged
        self._log = EventLog(pipe, MOST_WAITING)
        # First: a signal may end this behind any line.
        streams = StreamRows(pipe, self._log, _GPUS)
        self._ending = weakref.ref(pipe), self._log, streams
        weakref.finalize(self, _end, *self._ending)
        try:
            try:
                pipe._set_events(self._log)
            except RuntimeError:
                raise PipeError("the pipe has a timeline already: stop() that first") from None
            self._worker = _started(pipe, self._log, streams, self.path)
            streams.start()
        except BaseException:
            _end(*self._ending)
            raise

    @property
    def dropped(self) -> int:
        """How many events found no room: the thread that writes had no time, or the file took no more."""
        return self._log.dropped

    def stop(self) -> None:
        """Write what is left, and close the file. Idempotent. In a child of a fork: nothing; its parent writes.

        Raises:
            OSError: the file could not be written to; what was noted before is in it. Said once.
        """
        _end(*self._ending)  # not the finalizer, which is used up by a call that a signal ends
        if os.getpid() != self._process:
            return
        self._worker.join(None)  # also of who comes second: the file is complete when this returns
        if self._is_told:
            return
        self._is_told = True
        if self._log.error_number:
            raise OSError(self._log.error_number, os.strerror(self._log.error_number), str(self.path))
        if self.dropped:
            text = "timeline %s: %d events are missing: more came than could be written"
            try:
                logging.getLogger("fastpipe").warning(text, self.path, self.dropped)
            except Exception as error:  # a handler's: the timeline is complete all the same
                told = type(error), error, error.__traceback__, threading.current_thread()
                threading.excepthook(threading.ExceptHookArgs(told))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except OSError:
            if error is None:  # else that is what the caller must see
                raise


def _end(pipe: weakref.ref[Engine], log: EventLog, streams: StreamRows) -> None:
    """Note no more, and let the thread leave."""
    streams.stop()
    engine = pipe()
    if engine is not None:
        engine._forget_events(log)
    log.stop()


def _started(pipe: Engine, log: EventLog, streams: StreamRows, path: Path) -> Worker:
    """Make the file, and start the thread that writes it."""
    file = path.open("wb", buffering=0)
    worker = None
    try:
        homes: list[tuple[str, int]] = []
        _write_all(file, _head(pipe, log, homes))
        # The thread knows neither the timeline nor the pipe, so that both can be dropped; it then ends.
        worker = Worker("fastpipe timeline", _write_events, log, file, homes, streams)
        worker.start()
    except BaseException as error:
        if worker is None or not worker.thread.is_handed_over:  # else the file is the thread's, which is told to end
            file.close()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    return worker


def _write_events(log: EventLog, file: FileIO, homes: list[tuple[str, int]], streams: StreamRows) -> None:
    """Write until the log is stopped; the body of the thread."""

    def describe_instance(position: int, number: int) -> bytes:
        name, parent = homes[position]
        track = log.instance_track(position, number)
        return row(track, f"{name} #{number}", parent=parent, rank=position)

    with file:
        log.serve(file.fileno(), lambda track: streams.describe(track) or _describe(track), describe_instance)
        if log.dropped and not log.error_number:
            note = f"{log.dropped} events are missing: more came than could be written"
            with contextlib.suppress(OSError):
                _write_all(file, instant(time.monotonic_ns(), _NOTES, note))


def _head(pipe: Engine, log: EventLog, homes: list[tuple[str, int]]) -> bytes:
    """Return the packets of all rows that there are from the start.

    ``homes`` gets, by station, what the rows of its instances are called, and where they are.
    """
    rows = [
        row(log.requests_track, "Requests", rank=0),
        row(_QUEUES, "Queues", rank=1),
        row(_WORKERS, "Workers", rank=2),
        row(_CALLERS, "Callers", rank=3),
        row(_INSTANCES, "Instances", rank=4),
        row(_NOTES, "Timeline", rank=6),
    ]
    places: dict[str, int] = {}
    for position, station in enumerate(pipe.stations):
        title, parent = station.name, _INSTANCES
        if station.place is not None:
            place = str(station.place)
            title = f"{title} at {place}"
            parent = places.setdefault(place, _FIRST_PLACE + len(places))
            if parent == _FIRST_PLACE + len(places) - 1:
                rows.append(row(parent, place, parent=_INSTANCES))
        queue_track = log.queue_track(position)
        rows.append(row(queue_track, f"queued at {title}", parent=_QUEUES, rank=position, is_counter=True))
        homes.append((station.name, parent))
        for number in station.numbers_in_service():
            track = log.instance_track(position, number)
            rows.append(row(track, f"{station.name} #{number}", parent=parent, rank=position))
    return b"".join(rows)


def _describe(ident: int) -> bytes:
    """Return the packet of the row of a thread."""
    name = next((thread.name for thread in threading.enumerate() if thread.ident == ident), f"thread {ident:#x}")
    return row(ident, name, parent=_WORKERS if name.startswith("fastpipe ") else _CALLERS)


def _write_all(file: FileIO, content: bytes) -> None:
    while content:
        content = content[os.write(file.fileno(), content) :]
