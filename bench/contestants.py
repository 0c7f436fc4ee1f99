"""Who is compared: the same work behind fastpipe, omniback, an executor, a queue with a worker, and a lock.

Each contestant answers ``answer(data)`` from any number of threads with the same data, having run the work for it; the
work is a function of the size of a batch (it sleeps, counts, or does nothing). Libraries are imported when a contestant
is built, so that one which is not installed is skipped by name.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from common import BatchCounter, Numbers, Window, WrongAnswer, closed_loop

__all__ = [
    "Contestant",
    "Executor",
    "Fastpipe",
    "FastpipeGraph",
    "InARow",
    "Lock",
    "Node",
    "Omniback",
    "OmnibackGraph",
    "QueueAndWorkers",
    "SleepAlone",
    "Trial",
]

Work = Callable[[int], None]
"""What a batch of so many requests costs; called before they are answered."""


@dataclass(frozen=True)
class Node:
    """What every contestant is asked to build."""

    instance_num: int = 1
    max_batch: int = 1
    timeout_ms: float = 0.0
    work: Work | None = None  # None: nothing at all
    thread_bound: bool = False


class Trial:
    """Something that is measured."""

    def verify(self) -> None:
        """Raise WrongAnswer unless it does what it should."""

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure it once."""
        raise NotImplementedError

    def answers(self) -> str | None:
        """Return a digest of what was computed, equal for all contestants of a case; None: ``verify`` knows."""
        return None


class Contestant(Trial):
    """A trial that is a function of data, called by clients in a closed loop."""

    batches: BatchCounter | None = None

    def answer(self, data: int) -> int:
        """Hand the data to the work and return the answer, which is the data."""
        raise NotImplementedError

    def verify(self) -> None:
        """Let some threads ask for different data each, and see that nobody gets another's answer."""
        wrong: list[object] = []

        def ask(first: int) -> None:
            try:
                wrong.extend(data for data in range(first, first + 4) if self.answer(data) != data)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask, args=(100 * number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise WrongAnswer(f"wrong or missing: {wrong}")

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure the closed loop."""
        return closed_loop(self._client, clients, window, self.batches)

    def _client(self, number: int) -> Callable[[], None]:
        answer = self.answer

        def call() -> None:
            if answer(number) != number:
                raise WrongAnswer(f"client {number} got another's answer")

        return call


def echo_class(base: type, node: Node) -> type:
    """Return a backend class with the body that fastpipe and omniback share, so that they run the same Python."""
    work = node.work

    if work is None:

        def forward(self: object, batch: Any) -> None:
            for request in batch:
                request["result"] = request["data"]
    else:

        def forward(self: object, batch: Any) -> None:
            work(len(batch))
            for request in batch:
                request["result"] = request["data"]

    return type("Echo", (base,), {"forward": forward})


class _OfPipe(Contestant):
    """A contestant with a pipe: of fastpipe or omniback, which are called in the same way."""

    pipe: Any

    def answer(self, data: int) -> int:
        request: dict[str, Any] = {"data": data}
        self.pipe(request)
        result: int = request["result"]
        return result


class Fastpipe(_OfPipe):
    """One node of a fastpipe.Pipe."""

    def __init__(self, node: Node, batches: BatchCounter | None = None) -> None:
        import fastpipe

        backend = echo_class(fastpipe.Backend, node)
        backend.max_batch = node.max_batch  # type: ignore[attr-defined]
        backend.thread_bound = node.thread_bound  # type: ignore[attr-defined]
        self.pipe = fastpipe.Pipe(
            backend=backend, instance_num=node.instance_num, max=node.max_batch, batching_timeout=node.timeout_ms
        )
        self.batches = batches


# Three nodes in a row, and four in a diamond: what omniback and fastpipe both read.
CHAIN: dict[str, dict[str, Any]] = {"a": {"next": "b"}, "b": {"next": "c"}, "c": {}}
DIAMOND: dict[str, dict[str, Any]] = {
    "a": {"next": "b,c"},
    "b": {"next": "d"},
    "c": {"next": "d"},
    "d": {"map": "b[result:data],c[result:other]"},
}


class FastpipeGraph(Fastpipe):
    """A chain or a diamond of echoes."""

    def __init__(self, graph: dict[str, dict[str, Any]]) -> None:
        import fastpipe

        backend = echo_class(fastpipe.Backend, Node())
        self.pipe = fastpipe.Pipe({name: {"backend": backend, **keys} for name, keys in graph.items()})


class Omniback(_OfPipe):
    """One node of an omniback pipe, with the same Python backend."""

    def __init__(self, node: Node, batches: BatchCounter | None = None) -> None:
        self.pipe = self._build({"main": {}}, node)
        self.batches = batches

    @staticmethod
    def _build(graph: dict[str, dict[str, Any]], node: Node) -> Any:
        import omniback

        backend = echo_class(object, node)
        backend.max = lambda self: node.max_batch  # type: ignore[attr-defined]
        omniback.register("Echo", backend)
        timeout_ms = int(node.timeout_ms)  # it takes whole milliseconds
        common = {"backend": "Echo", "instance_num": node.instance_num, "batching_timeout": timeout_ms}
        return omniback.pipe({name: {**common, **keys} for name, keys in graph.items()})


class OmnibackGraph(Omniback):
    """A chain or a diamond of echoes."""

    def __init__(self, graph: dict[str, dict[str, Any]]) -> None:
        self.pipe = self._build(graph, Node())


class Executor(Contestant):
    """A ThreadPoolExecutor with a thread for each instance; it knows no batches."""

    def __init__(self, node: Node, batches: BatchCounter | None = None) -> None:
        self._executor = ThreadPoolExecutor(node.instance_num)
        self._work = node.work
        self.batches = batches

    def answer(self, data: int) -> int:
        return self.start(data)()

    def start(self, data: int) -> Callable[[], int]:
        """Begin, and return what waits for the answer."""
        return self._executor.submit(self._run, data).result

    def _run(self, data: int) -> int:
        if self._work is not None:
            self._work(1)
        return data


class _Item:
    """What travels through a queue: the data, then the answer, and what its caller waits on."""

    __slots__ = ("answer", "data", "is_done")

    def __init__(self, data: int) -> None:
        self.data = data
        self.answer: int | None = None
        self.is_done = threading.Event()


class QueueAndWorkers(Contestant):
    """A SimpleQueue and a worker for each instance, as one would write it by hand.

    A worker takes what is there, up to a full batch. With ``waits`` it first waits for a full batch, no longer than
    the node's timeout after the first one came: the textbook's batching.
    """

    def __init__(self, node: Node, batches: BatchCounter | None = None, *, waits: bool = False) -> None:
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._node = node
        self.batches = batches
        take = self._take_after_waiting if waits else self._take_what_is_there
        for _ in range(node.instance_num):
            threading.Thread(target=self._serve, args=(take,), daemon=True).start()

    def answer(self, data: int) -> int:
        return self.start(data)()

    def start(self, data: int) -> Callable[[], int]:
        """Begin, and return what waits for the answer."""
        item = _Item(data)
        self._queue.put(item)
        return functools.partial(self._wait, item)

    @staticmethod
    def _wait(item: _Item) -> int:
        item.is_done.wait()
        if item.answer is None:
            raise WrongAnswer("no answer")
        return item.answer

    def _serve(self, take: Callable[[], list[_Item]]) -> None:
        work = self._node.work
        while True:
            batch = take()
            if work is not None:
                work(len(batch))
            for item in batch:
                item.answer = item.data
                item.is_done.set()

    def _take_what_is_there(self) -> list[_Item]:
        batch = [self._queue.get()]
        try:
            while len(batch) < self._node.max_batch:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _take_after_waiting(self) -> list[_Item]:
        batch = [self._queue.get()]
        deadline_s = time.monotonic() + self._node.timeout_ms / 1e3
        try:
            while len(batch) < self._node.max_batch:
                batch.append(self._queue.get(timeout=max(0.0, deadline_s - time.monotonic())))
        except queue.Empty:
            pass
        return batch


class Lock(Contestant):
    """The work on the caller's thread, under a lock (a semaphore where there are several instances); no batches."""

    def __init__(self, node: Node, batches: BatchCounter | None = None) -> None:
        self._lock = threading.Lock() if node.instance_num == 1 else threading.Semaphore(node.instance_num)
        self._work = node.work
        self.batches = batches

    def answer(self, data: int) -> int:
        with self._lock:
            return self._run(data)

    def start(self, data: int) -> Callable[[], int]:
        """Do it, and return what returns the answer."""
        answer = self.answer(data)
        return lambda: answer

    def _run(self, data: int) -> int:
        if self._work is not None:
            self._work(1)
        return data


class InARow(Contestant):
    """A chain of three, or a diamond, of contestants that know no graphs: the caller carries the data around."""

    def __init__(self, kind: type[Executor] | type[QueueAndWorkers] | type[Lock], *, is_diamond: bool = False) -> None:
        self._nodes = [kind(Node()) for _ in range(4 if is_diamond else 3)]
        self._is_diamond = is_diamond

    def answer(self, data: int) -> int:
        first, *middle, last = self._nodes
        data = first.answer(data)
        if self._is_diamond:
            waiting = [node.start(data) for node in middle]
            data, other = (wait() for wait in waiting)
            if other != data:
                raise WrongAnswer("the branches of the diamond differ")
        else:
            data = middle[0].answer(data)
        return last.answer(data)


class SleepAlone(Trial):
    """What the machine's timers leave of the ideal: threads that do the work on full batches, and nothing else."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(self, clients: int, window: Window) -> Numbers:
        """Measure as many threads as there are instances that the clients can keep busy."""
        threads = min(self._node.instance_num, clients)
        size = min(self._node.max_batch, max(1, clients // threads))
        work = self._node.work

        def client(number: int) -> Callable[[], None]:
            return functools.partial(work, size) if work is not None else lambda: None

        numbers = closed_loop(client, threads, window)
        return {**numbers, "requests_per_s": numbers["requests_per_s"] * size, "mean_batch": float(size)}


def counted(node: Node) -> tuple[Node, BatchCounter]:
    """Return the node with work that also counts its batches, and the counter."""
    batches = BatchCounter()
    work = node.work

    def count_and_work(size: int) -> None:
        batches.add(size)
        if work is not None:
            work(size)

    return replace(node, work=count_and_work), batches
