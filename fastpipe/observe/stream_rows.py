"""The rows of GPUs in a timeline: one for each stream of an instance, with what ran there and when."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

from fastpipe.backends.gpu import timing
from fastpipe.observe.perfetto import row

if TYPE_CHECKING:
    from fastpipe._core import Engine, EventLog

__all__ = ["StreamRows"]

MOST_STREAMS = 1024
"""An instance has one; of more, those that come first are shown."""
_DEVICES = 1 << 19  # rows of theirs are behind those of streams


class StreamRows:
    """Notes when the streams of a pipe's instances have worked. Knows the pipe weakly.

    Thread-safety: any thread.

    Args:
        pipe: whose streams.
        log: where it is noted.
        parent: the number of a row for all GPUs.
    """

    def __init__(self, pipe: Engine, log: EventLog, parent: int) -> None:
        self._pipe = weakref.ref(pipe)
        self._log = log
        self._parent = parent
        self._counter = itertools.count()
        self._numbers: dict[int, int] = {}
        self._devices: dict[int, int] = {}  # by the number of a row

    def start(self) -> None:
        """Look from now on."""
        timing.watch(self)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        timing.unwatch(self)

    def ran(self, stream: int, device_number: int, begun_ns: int, ended_ns: int) -> None:
        """A stream has worked, of this pipe or another one; see ``timing.Watcher``."""
        pipe = self._pipe()
        if pipe is None or not pipe._is_inside():
            return
        number = self._numbers.get(stream)
        if number is None:
            if len(self._numbers) >= MOST_STREAMS:
                return
            number = self._numbers.setdefault(stream, next(self._counter))
            self._devices[self._log.stream_track(number)] = device_number
        self._log.note_stream(pipe, number, begun_ns, ended_ns)

    def describe(self, track: int) -> bytes | None:
        """Return the packets that give a stream its row; None: the row is no stream's."""
        device_number = self._devices.get(track)
        if device_number is None:
            return None
        device = self._log.stream_track(_DEVICES + device_number)
        number = track - self._log.stream_track(0)
        return b"".join(
            (
                row(self._parent, "GPUs", rank=5),
                row(device, f"cuda:{device_number}", parent=self._parent, rank=device_number),
                row(track, f"stream {number}", parent=device, rank=number),
            )
        )
