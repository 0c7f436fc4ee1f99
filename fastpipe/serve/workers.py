"""Several processes behind one port: a parent that starts them, replaces those that die, and ends with them.

Each worker is a command of its own, ``fastpipe serve`` again, which inherits a listening socket; so it builds its own
pipe, and shares nothing with the others. Its socket stays open here: whoever connects while it is dead waits for the
next one. The parent runs no event loop and no pipe: it waits for signals.

    a worker dies              another one takes its place; one that keeps dying, later and later
    a worker cannot start      at first: all end, and so does the parent; later: as if it had died
    the parent is killed       all end, as by SIGTERM
    SIGTERM, SIGINT            is handed on; the parent ends when all have; a second one kills them
    SIGHUP                     one after the other is replaced, each when its successor is ready
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Workers", "say_ready"]

OWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = {*OWN_SIGNALS, signal.SIGCHLD}
LOOK_S = 0.5
SHORT_LIFE_S = 10.0
"""A worker that dies sooner has a fault of its own, which its successor will have, too."""
LONGEST_PAUSE_S = 30.0
READY = b"ready\n"


def say_ready(descriptor: int) -> None:
    """Tell the parent that this worker takes requests."""
    os.write(descriptor, READY)
    os.close(descriptor)


ENDED_WHILE_BUILDING = 128 + signal.SIGTERM
"""The status of a worker to which the signal has come before it served."""


@dataclass(eq=False)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    ready: int
    """Where it says so; -1: it has."""
    began_s: float = field(default_factory=time.monotonic)
    is_retired: bool = False

    @property
    def is_ready(self) -> bool:
        return self.ready < 0


class Workers:
    """The parent.

    Args:
        command: of a worker; ``--socket FD --ready FD --parent PID`` is added.
        sockets: one for each worker: its descriptor.
        on_ready: called once, when all are ready.
    """

    def __init__(self, command: Sequence[str], sockets: Sequence[int], on_ready: Callable[[], None]) -> None:
        self.command = list(command)
        self.sockets = list(sockets)
        self.on_ready = on_ready
        self.workers: list[_Worker] = []
        self.log = logging.getLogger("fastpipe.serve")
        self._was_ready = False
        self._is_ending = False
        self._status = 0
        self._due: dict[int, float] = {}  # by number of a worker that has died: when it is started again
        self._pauses: dict[int, float] = {}
        self._to_replace: list[int] = []  # numbers of workers that are to have successors

    def run(self) -> int:
        """Serve until a signal ends it; return the exit status. For the main thread."""
        former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # While this thread does not wait, the kernel gives a signal to another one, such as NumPy's, which blocks none:
        # without a handler it would end the process.
        heard: deque[int] = deque()
        handlers = {number: signal.signal(number, lambda got, _: heard.append(got)) for number in OWN_SIGNALS}
        try:
            for number in range(len(self.sockets)):
                self._start(number)
            while self.workers or (self._due and not self._is_ending):
                found = signal.sigtimedwait(SIGNALS, LOOK_S)
                if found is not None and found.si_signo != signal.SIGCHLD:
                    self._signalled(found.si_signo)
                while heard:
                    self._signalled(heard.popleft())
                self._look_for_ready()
                self._look_for_dead()
                self._start_what_is_due()
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return self._status

    def _start(self, number: int) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        inherited = [self.sockets[number], writing]
        own = ["--socket", str(inherited[0]), "--ready", str(writing), "--parent", str(os.getpid())]
        command = [*self.command, *own]
        try:
            process = subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL)
        finally:
            os.close(writing)
        self.workers.append(_Worker(number, process, reading))

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP:
            if not self._is_ending:
                self._to_replace = list(range(len(self.sockets)))
                self._replace_next()
            return
        is_second = self._is_ending
        self._is_ending = True
        self._to_replace.clear()  # a successor that was started now would not hear the signal
        for worker in self.workers:
            worker.process.send_signal(signal.SIGKILL if is_second else signal.SIGTERM)

    def _replace_next(self) -> None:
        """Start the successor of the next worker that is to be replaced, unless one is on its way."""
        if self._to_replace and not self._is_ending and all(worker.is_ready for worker in self.workers):
            number = self._to_replace.pop(0)
            self._due.pop(number, None)
            self._start(number)

    def _look_for_ready(self) -> None:
        waiting = {worker.ready: worker for worker in self.workers if not worker.is_ready}
        if not waiting:
            return
        for descriptor in select.select(list(waiting), [], [], 0)[0]:
            worker = waiting[descriptor]
            if os.read(descriptor, len(READY)) == READY:
                worker.ready = -1
                os.close(descriptor)
                self._is_up(worker)

    def _is_up(self, worker: _Worker) -> None:
        for old in self.workers:
            if old.number == worker.number and old is not worker and not old.is_retired:
                old.is_retired = True
                old.process.terminate()
        self._replace_next()
        if not self._was_ready and all(each.is_ready for each in self.workers):
            self._was_ready = True
            self.on_ready()

    def _look_for_dead(self) -> None:
        for worker in list(self.workers):
            status = worker.process.poll()
            if status is not None:
                self.workers.remove(worker)
                if not worker.is_ready:
                    os.close(worker.ready)
                self._died(worker, status)

    def _died(self, worker: _Worker, status: int) -> None:
        if self._is_ending or worker.is_retired:
            # One that was still building pipes ends by the signal itself.
            if (
                status
                and self._is_ending
                and (worker.is_ready or status not in (-signal.SIGTERM, ENDED_WHILE_BUILDING))
            ):
                self._status = 1
            return
        if not self._was_ready:
            self.log.error("worker %d could not start (status %d): the server ends", worker.number, status)
            self._status = 1
            self._signalled(signal.SIGTERM)
            return
        if worker.number in self._due or any(
            each.number == worker.number for each in self.workers if not each.is_ready
        ):
            self.log.error("worker %d died (status %d); its successor is on its way", worker.number, status)
            return
        pause_s = 0.0
        if time.monotonic() - worker.began_s < SHORT_LIFE_S:
            pause_s = self._pauses.get(worker.number, 0.5)
            self._pauses[worker.number] = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            self._pauses.pop(worker.number, None)
        self.log.error("worker %d died (status %d); it is replaced in %g s", worker.number, status, pause_s)
        self._due[worker.number] = time.monotonic() + pause_s

    def _start_what_is_due(self) -> None:
        if self._is_ending:
            self._due.clear()
        for number, due_s in list(self._due.items()):
            if time.monotonic() >= due_s:
                del self._due[number]
                self._start(number)
