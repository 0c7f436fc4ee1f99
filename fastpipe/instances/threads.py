"""The threads that work for a pipe: how one serves its node, and what becomes of one that hangs.

Each serves a station, which knows no pipe, so that threads which sleep keep no pipe alive.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastpipe._core import Latch, Station, ThreadLife, ThreadStart
from fastpipe.contract import Backend, close_all
from fastpipe.errors import PipeError

__all__ = [
    "Desk",
    "Slot",
    "Worker",
    "check_threads",
    "run_on_thread",
    "serve_and_close",
    "serve_once_told",
    "serve_shared",
    "serve_thread_bound",
]

# A worker that has died is set to work again at once, or, if it dies again and again, after a pause up to this long.
LONGEST_PAUSE_S = 0.1
# Who waits for another thread looks so often whether that is still there.
LOOK_S = 0.05


def check_threads() -> None:
    """Raise PipeError if ``threading`` makes greenlets: a worker that waited would stop all of them, for ever."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        patched, instead = "gevent", "gevent.monkey.patch_all(thread=False)"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        patched, instead = "eventlet", "eventlet.monkey_patch(thread=False)"
    else:
        return
    raise PipeError(
        f"{patched} has patched 'threading', so that threads are greenlets; a pipe needs real ones. Patch with "
        f"{instead}, or not at all in processes that build pipes"
    )


class _Thread(threading.Thread):
    """A thread that begins even if its first lines meet a lack of memory: else whoever starts it waits for ever."""

    def __init__(self, name: str, life: ThreadLife) -> None:
        # Daemons: the process may end while a backend hangs. Orderly ends are seen to by the pipe's atexit hook.
        super().__init__(name=name, daemon=True)
        self._life = life
        self.is_handed_over = False
        self._started = Latch()  # for which start() waits
        self.run = life.run  # type: ignore[method-assign]  # to be called it needs no memory, as a function would

    @property
    def _bootstrap(self) -> ThreadStart:  # what start() hands to the new thread
        start = ThreadStart(self, self._life)
        self.is_handed_over = True
        return start


@dataclass(frozen=True, eq=False)
class Slot:
    """An instance as its station knows it: its token, and how many others had that before."""

    station: Station
    index: int
    life: int

    @classmethod
    def now(cls, station: Station, index: int) -> Slot:
        """Return the one that has a token now."""
        return cls(station, index, station.life_of(index))

    def is_retired(self, station: Station) -> bool:
        """Whether it has served that station, and does no longer."""
        return self.station is station and station.is_retired(self.index, self.life)

    def retire(self, timeout_s: float) -> bool | None:
        """See ``Station.retire``."""
        return self.station.retire(self.index, self.life, timeout_s)


class Worker:
    """A thread of a pipe, for whoever waits for its end."""

    served: Slot | None = None
    """The instance that is bound to it, and with which it leaves."""

    def __init__(self, name: str, body: Callable[..., Any], *arguments: Any) -> None:
        self._is_over = Latch()
        self.thread = _Thread(name, ThreadLife(self._is_over, body, arguments))
        self._is_given_up = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            PipeError: it would be a greenlet.
            RuntimeError: there can be no more threads.
            MemoryError, KeyboardInterrupt: the thread may have begun all the same; unless ``is_over``, it has or will.
        """
        check_threads()
        try:
            self.thread.start()
        except BaseException:
            if not self.thread.is_handed_over:  # else what was handed over says so, once there is no thread
                self._is_over.set()
                # Where what is raised is no Exception, ``threading`` goes on counting it as one that is about to begin.
                getattr(threading, "_limbo", {}).pop(self.thread, None)
            raise

    def join(self, timeout: float | None) -> None:
        """Wait until the thread has ended, or was given up."""
        if self._is_over.wait(timeout) and not self._is_given_up and self.thread.is_alive():
            self.thread.join(timeout)

    @property
    def is_over(self) -> bool:
        """True once its thread has ended, was given up, or could not be started."""
        return self._is_over.is_set()

    @property
    def has_begun(self) -> bool:
        """True once its thread runs, or is about to; False as well of one that could not be started."""
        return self.thread.is_handed_over and not self.is_over

    @property
    def is_left_behind(self) -> bool:
        """True while its thread runs, and another waits for its end in vain."""
        return not self._is_over.is_set() and self.thread is not threading.current_thread()

    def give_up(self) -> None:
        """Say that the thread hangs: nobody is to wait for it."""
        self._is_given_up = True
        self._is_over.set()


async def run_on_thread(name: str, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function on a thread of its own, and wait for it in the event loop; raise what it raises.

    Cancelling the task ends the waiting, not the function.

    Raises:
        PipeError, RuntimeError: see ``Worker.start``.
    """
    import asyncio  # a caller that has a running loop has imported it

    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if ended.done():  # cancelled
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        failure = None
        try:
            function(*arguments)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure)

    Worker(name, run).start()
    await ended


class Desk:
    """Where one thread tells another something, once."""

    def __init__(self) -> None:
        self._is_told = Latch()
        self._what: Any = None

    def tell(self, what: Any) -> None:
        """Say it, if nothing was said before; again, while there is no memory for that."""
        while not self._is_told.is_set():
            try:
                self._what = what
                self._is_told.set()
            except MemoryError:
                continue

    def wait(self) -> Any:
        """Wait until it is said, and return it."""
        while not self._is_told.is_set():
            try:
                self._is_told.wait()
            except MemoryError:
                continue
        return self._what

    def wait_for(self, teller: Worker) -> Any:
        """The same, unless the thread that is to say it has ended without.

        Raises:
            MemoryError: it has, as there was no memory even for that.
        """
        while not self._is_told.wait(LOOK_S) and not teller.is_over:
            pass
        if not self._is_told.is_set():
            raise MemoryError("a thread of the pipe has ended, for want of memory")
        return self._what


class WorkersKeeper(Protocol):
    """Whom a worker tells what becomes of it."""

    def came_back(self, station: Station) -> None:
        """A thread that had been given up has left its backend."""

    def worker_died(self, station: Station, index: int, error: BaseException) -> None:
        """A worker has met an error of its own, and is set to work again."""


def serve(station: Station, index: int, worker: int, keeper: WorkersKeeper) -> Any:
    """Serve a station until it needs this thread no longer; return the backend in which it was given up, or None.

    ``index``: the token of the instance with which it came. ``worker``: see ``Station.serve``.
    What ends the engine's loop otherwise, a lack of memory for instance, has failed the requests that it held; it is
    told to ``threading.excepthook`` and to the keeper, and the thread goes back to work.
    """
    pause_s = 0.0
    while True:
        try:
            began_s = time.monotonic()
            try:
                return station.serve(worker)
            except BaseException as error:
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
                )
                keeper.worker_died(station, index, error)
            lasted_s = time.monotonic() - began_s
            pause_s = 0.0 if lasted_s > 10 * LONGEST_PAUSE_S else min(max(2 * pause_s, 0.001), LONGEST_PAUSE_S)
            time.sleep(pause_s)
        except BaseException:  # one more, raised by another thread while the first was told: nothing is lost with it
            continue


def serve_once_told(desk: Desk, station: Station, index: int, worker: int, keeper: WorkersKeeper) -> None:
    """The life of a worker that is there before it is needed: once it is told that it is, it is the next one's."""
    while True:
        try:
            is_needed = desk.wait()
            break
        except MemoryError:  # for the call itself
            continue
    if is_needed:
        serve_shared(station, index, worker, keeper)


def serve_shared(station: Station, index: int, worker: int, keeper: WorkersKeeper) -> None:
    """The life of a worker whose backend any thread may run."""
    hung_in = serve(station, index, worker, keeper)
    if hung_in is not None:
        try:
            close_all([hung_in])  # it has come back after all, and nobody uses it any more
        finally:
            keeper.came_back(station)


def serve_thread_bound(build: Callable[[], Backend], built: Desk, desk: Desk, keeper: WorkersKeeper) -> None:
    """The life of a thread-bound instance: built, run and closed on one thread.

    ``built`` is told of the backend, or of what its constructor raised; ``desk`` tells its station and token, or None.
    """
    try:
        backend = build()
    except BaseException as error:
        built.tell(error)
        return
    built.tell(backend)
    found = desk.wait()
    if found is None:
        backend.close()
    else:
        station, index = found
        serve_and_close(station, index, backend, keeper)


def serve_and_close(station: Station, index: int, backend: Backend, keeper: WorkersKeeper) -> None:
    """Serve with a backend that was built on this thread, and close it here."""
    hung_in = None
    try:
        hung_in = serve(station, index, index, keeper)
    finally:
        try:
            backend.close()
        finally:
            if hung_in is not None:
                keeper.came_back(station)
