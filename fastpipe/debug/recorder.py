"""Keeps requests with their inputs on disk, while the pipe serves: those that fail, and a share of all.

    engine ── begin(request) ──► a copy of the inputs, held by the token until the request ends
           ── end(token, ...) ──► a queue of at most so many; what is too much is dropped
                                       │
                                       ▼  a thread of its own
                                  one file per request: encoded, written under another name, renamed; the oldest go

``record_files.py`` has the format of the files, ``fastpipe replay`` runs them again.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import random
import re
import sys
import traceback
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastpipe.contract import Request
from fastpipe.debug import record_files
from fastpipe.debug.description import Description
from fastpipe.errors import PipeClosed, PipeError
from fastpipe.faults import node_of, text_of
from fastpipe.instances.logbook import Line, Logbook
from fastpipe.instances.owned import time_to_close
from fastpipe.instances.threads import Worker
from fastpipe.redaction import LEFT_OUT, Secrets, looks_secret
from fastpipe.summaries import summarize, type_name

if TYPE_CHECKING:
    from fastpipe._core import Engine
    from fastpipe.config.described import PipeConfig

__all__ = ["Recording"]

# Requests that have ended and are not written yet. Each holds its inputs.
MOST_QUEUED = 64
# Of a request, so many values inside of lists and dicts are looked at for arrays to copy.
MOST_COPIED_VALUES = 10_000
DEEPEST = 16
OWNERS_FOLDER = 0o700

_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class Recording:
    """A recording that goes on until ``stop()``, the end of its ``with`` block, or the pipe's end.

    Thread-safety: any thread.
    """

    def __init__(
        self,
        engine: Engine,
        description: Description,
        logbook: Logbook,
        path: str | Path,
        *,
        sample: float,
        failures: bool,
        limit: int,
        copy_below_bytes: int,
        pickle: bool,
    ) -> None:
        if not 0 <= sample <= 1:
            raise ValueError(f"sample must be between 0 and 1, got {sample!r}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit!r}")
        if not failures and not sample:
            raise ValueError("nothing would be recorded: failures is False and sample is 0")
        self.path = Path(path)
        self._sample = sample
        self._failures = failures
        self._copy_below_bytes = copy_below_bytes
        self._is_stopped = False
        self._drops = _Drops(self.path, logbook)
        other = engine.recorder
        if other is not None and not other.is_stopped:
            raise PipeError(f"the pipe records to {str(other.path)!r} already: stop() that first")
        if engine.closing:
            raise PipeClosed("the pipe is closed: there is nothing to record")
        # The thread knows neither this nor the pipe, so that both can be dropped; it then ends.
        self._writer = _Writer(self.path, limit, pickle, description.manifest(), description.secrets(), self._drops)
        self._writer.prepare()
        self._thread = Worker("fastpipe recorder", self._writer.work)
        self._thread.start()
        self._end_of_thread = weakref.finalize(self, self._writer.queue.put, None)
        self._end_of_thread.atexit = False  # what is in flight then is still recorded, until its pipe is closed
        engine.recorder = self

    def note_change(self, made_of: PipeConfig) -> None:
        """The pipe is made of something else now: what is written from now on says so."""
        description = Description.of(made_of)
        self._writer.manifest = description.manifest()
        self._writer.secrets = description.secrets(self._writer.secrets)

    # ---- what the engine calls ---------------------------------------------------------------------------------

    def begin(self, request: Request, entry: str | None) -> _Token | None:
        """Take a copy of a request that has been admitted; None: it is not recorded, whatever becomes of it.

        ``entry``: the node where it enters; None: at the only root.
        """
        if self._is_stopped:
            return None
        is_sample = self._sample > 0 and random.random() < self._sample
        if not is_sample and not self._failures:
            return None
        try:
            inputs = _Copier(self._copy_below_bytes).copy(request)
        except Exception as error:  # a dict that another thread changes meanwhile, a lack of memory: it need not stop
            self._drops.note(f"the request could not be copied ({type(error).__name__})")
            return None
        return _Token(self, is_sample, datetime.datetime.now(datetime.UTC), entry, inputs)

    def end(self, token: _Token, request: Request, error: BaseException | None) -> None:
        """File a request that has ended, if it is to be kept."""
        recording = token.recording  # the one with which it began
        if recording._is_stopped or not (token.is_sample or (error is not None and recording._failures)):
            return
        try:
            answer = None if error is not None else _Copier(recording._copy_below_bytes).copy(request)
        except Exception as copying:  # as in begin()
            recording._drops.note(f"the answer could not be copied ({type(copying).__name__})")
            return
        # SimpleQueue: a signal handler that calls the pipe may come in between, and must not meet a lock.
        if recording._writer.queue.qsize() >= MOST_QUEUED:
            recording._drops.note("more came than could be written")
            return
        recording._writer.queue.put(_Ended(token.time, token.entry, token.inputs, answer, error))

    # ---- what the user sees ------------------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """How many files were written; fewer may be left, see ``limit``."""
        return self._writer.written

    @property
    def dropped(self) -> int:
        """How many requests were to be kept and were not: more came than could be written, or writing failed."""
        return self._drops.count

    @property
    def last_error(self) -> str | None:
        """Why a file could not be written, the last time; None: it never failed."""
        return self._writer.last_error

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def stop(self, timeout: float | None = None) -> None:
        """Record no further request, and wait until all that have ended are written. Requests in flight are not kept.

        Args:
            timeout: wait no longer than so many seconds; what is left is still written. None: however long.

        Raises:
            TypeError, ValueError: ``timeout`` is no number; nothing is stopped.

        Idempotent. The pipe goes on.
        """
        limit_s = time_to_close(timeout)
        # The pipe keeps this as its recorder, as requests in flight have tokens of it; begin() says no from now on.
        self._is_stopped = True
        self._end_of_thread()
        self._thread.join(limit_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else "recording"
        return f"<fastpipe {state} to {str(self.path)!r}: {self.written} written, {self.dropped} dropped>"


class _Drops:
    """How many requests were to be kept and were not; the log is told (``logbook.Counted``). It knows no pipe.

    Thread-safety: any thread; of two at the same moment, one may not be counted.
    """

    def __init__(self, path: Path, logbook: Logbook) -> None:
        self.count = 0
        self._path = path
        self._logbook = logbook
        self._why = ""
        self._told = 0
        self._is_noticed = False

    def note(self, why: str) -> None:
        """Count one, and have the log say so; raises nothing but what hits the thread."""
        self.count += 1
        self._why = why
        if not self._is_noticed:
            self._is_noticed = True
            with contextlib.suppress(Exception):  # no memory: the count is right all the same
                self._is_noticed = self._logbook.notice(self)

    def news(self) -> Line | None:
        self._is_noticed = False  # before the look: what comes after it gives notice
        dropped, self._told = self.count - self._told, self.count
        if dropped == 0:
            return None
        text = f"the recording to {str(self._path)!r} has dropped {dropped} request{'s'[: dropped != 1]}: {self._why}"
        return Line("record_dropped", text, fields={"dropped": dropped})


@dataclass(slots=True)
class _Token:
    """What the engine keeps with a request in flight."""

    recording: Recording
    is_sample: bool
    time: datetime.datetime
    entry: str | None
    inputs: Request


@dataclass(slots=True)
class _Ended:
    """A request that waits to be written."""

    time: datetime.datetime
    entry: str | None
    inputs: Request
    answer: Request | None
    error: BaseException | None


class _Copier:
    """Copies what backends may change: dicts, lists, bytearrays, and arrays that are not too large."""

    def __init__(self, copy_below_bytes: int) -> None:
        self.copy_below_bytes = copy_below_bytes
        self.seen = 0
        self.numpy = sys.modules.get("numpy")
        self.torch = sys.modules.get("torch")

    def copy(self, request: Request) -> Request:
        return {key: self._copy(value, 0) for key, value in dict.items(request)}

    def _copy(self, value: Any, depth: int) -> Any:
        self.seen += 1
        kind = type(value)
        if kind in (bytes, str, int, float, bool) or self.seen > MOST_COPIED_VALUES or depth > DEEPEST:
            return value
        if kind in (list, tuple):
            return kind(self._copy(item, depth + 1) for item in value)
        if kind is dict:
            return {key: self._copy(item, depth + 1) for key, item in value.items()}
        if kind is bytearray:
            return bytearray(value) if len(value) < self.copy_below_bytes else value
        if self.numpy is not None and kind is self.numpy.ndarray:
            return value.copy() if value.nbytes < self.copy_below_bytes else value
        if self.torch is not None and kind is getattr(self.torch, "Tensor", None) and value.device.type == "cpu":
            size_bytes = value.element_size() * value.nelement()
            return value.detach().clone() if size_bytes < self.copy_below_bytes else value
        return value


class _Writer:
    """What the thread works on. It knows neither the recording nor the pipe, so that those can be dropped."""

    def __init__(
        self, folder: Path, limit: int, pickle: bool, manifest: dict[str, Any], secrets: Secrets, drops: _Drops
    ) -> None:
        self.folder = folder
        self.limit = limit
        self.pickle = pickle
        self.manifest = manifest
        self.secrets = secrets  # of the configuration
        self.queue: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self.written = 0
        self.failed = 0
        self._drops = drops
        self.last_error: str | None = None

    def prepare(self) -> None:
        """Make the directory, its owner's alone, and see whether it can be written to; one that is there stays so."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir(OWNERS_FOLDER)
        except FileExistsError:
            if not self.folder.is_dir():
                raise
        else:
            self.folder.chmod(OWNERS_FOLDER)  # whatever the umask has taken away
        trial = self.folder / f".{os.getpid()}-{id(self)}.part"
        trial.touch(record_files.OWNER_ONLY, exist_ok=False)
        trial.unlink()

    def work(self) -> None:
        """Write until None comes, whatever is met on the way. The body of the thread."""
        goes_on = True
        while goes_on:
            try:
                goes_on = self._write_next()
            except BaseException:  # while another one was noted, which has been counted, or out of another thread
                continue

    def _write_next(self) -> bool:
        """Write a request as soon as there is one; False: there is none to come."""
        ended = self.queue.get()
        if ended is None:
            return False
        try:
            self._write(ended)
            self.written += 1
        except BaseException as error:  # a full disk, a value that raises SystemExit: the pipe must not notice
            self.failed += 1
            self.last_error = type_name(error)
            self.last_error = f"{type_name(error)}: {text_of(error)}"
            self._drops.note(f"a file could not be written: {self.last_error}")
        return True

    def _write(self, ended: _Ended) -> None:
        values: dict[str, Any] = {"request": ended.inputs}
        if ended.answer is not None:
            values["answer"] = ended.answer
        encoded, members = record_files.encode(values, pickle=self.pickle)
        node = "" if ended.error is None else node_of(ended.error)
        manifest = {
            **self.manifest,
            "time": ended.time.isoformat(),
            "outcome": "answered" if ended.error is None else "failed",
            "entry": ended.entry,
            "error": None
            if ended.error is None
            else _told_error(ended.error, node, self.secrets.and_of(ended.inputs, ended.error)),
            "summary": {
                str(key): LEFT_OUT if looks_secret(key) else summarize(value).text
                for key, value in ended.inputs.items()
            },
            **encoded,
        }
        stamp = ended.time.strftime("%Y%m%d-%H%M%S-%f")
        what = "answered" if ended.error is None else f"failed-{_NOT_IN_FILE_NAMES.sub('_', node or 'pipe')}"
        name = f"{stamp}-{os.getpid()}-{self.written + self.failed:06}-{what}{record_files.SUFFIX}"
        record_files.write(self.folder / name, manifest, members)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        suffix = record_files.SUFFIX
        names = sorted(name for name in os.listdir(self.folder) if name.endswith(suffix) and name[0] != ".")
        for name in names[: -self.limit]:
            (self.folder / name).unlink(missing_ok=True)  # another process may be as tidy


def _told_error(error: BaseException, node: str, secrets: Secrets) -> dict[str, Any]:
    """What is to be known of an error; where it repeats a value that the record leaves out, the value is left out."""
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    return {
        "type": type_name(error),
        "message": secrets.left_out_of(text_of(error)),
        "node": node or None,
        "notes": [secrets.left_out_of(note) for note in notes],
        "traceback": secrets.left_out_of("".join(traceback.format_exception(error))),
    }
