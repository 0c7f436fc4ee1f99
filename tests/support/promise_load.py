"""What the tests of the promises share: their scale, a graph of five nodes with faults of every kind, its clients."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import ledger as ledgers
from helpers import SCALE

from fastpipe import (
    Backend,
    BackendError,
    ItemErrors,
    Pipe,
    PipeClosed,
    QueueFull,
    Request,
    RequestTimeout,
    Streaming,
    WorkerDied,
)

WAIT_S = 30.0
MASK = (1 << 128) - 1


def scaled(count: int) -> int:
    """Return how often something is done: the share that CI has time for, times FASTPIPE_SCALE."""
    return max(1, int(count * SCALE))


class Planned(Exception):
    """Raised for a request that is to fail."""


class Stumbled(Exception):
    """Raised by a hook, inside the engine."""


class NoRoom(MemoryError):
    """Raised for a request that fits nowhere, or not beside others."""


# One in a hundred each. What a backend does, with what becomes of the request: "done", or the error's type.
FAULTS: dict[str, Any] = {
    "raise": Planned,  # the whole batch; the others are run again
    "item error": Planned,
    "system exit": SystemExit,
    "no memory": NoRoom,
    "no memory in company": "done",
    "slow": "done",
}
OUTCOMES: dict[str, Any] = {**FAULTS, "hold": "done"}
PLACES = "abcde"
MOST_CHUNKS = 20
FIRST_INSTANCES = 4  # of the node at which requests enter
SURE = FIRST_INSTANCES + 3  # requests of be_sure_of_each_end


def mix(value: int, salt: int) -> int:
    """Return another number of 128 bits."""
    return (value * 0x9E3779B97F4A7C15F39CC0605CEDC835 + salt) & MASK


def answer_to(value: int) -> int:
    """Return what the graph of :func:`five_nodes` makes of a number."""
    a, b, c, d, e = (lambda value, salt=salt: mix(value, salt) for salt in range(1, 6))
    return e(d(b(a(value)) ^ c(a(value))))


class Hold:
    """Where requests stand until they are let go."""

    def __init__(self) -> None:
        self.inside, self.opened = threading.Semaphore(0), threading.Event()

    def stand(self) -> None:
        self.inside.release()
        assert self.opened.wait(WAIT_S)


class Mixes(Backend):
    """Mixes a request's number; fails, or is slow, as the request says.

    ``data`` is (the request's number in the ledger, its value, (place, fault) or None). ("hold" has a Hold behind it.)
    """

    max_batch = 32
    keeps_input = True

    def __init__(self, *, place: str, ledger: Any) -> None:
        self.place = place
        self.salt = PLACES.index(place) + 1
        self.ledger = ledger
        self.random = random.Random(self.salt)
        self.busy = threading.Lock()

    def forward(self, batch: list[Request]) -> None:
        if not self.busy.acquire(blocking=False):
            self.ledger.mistake(f"two batches at once in an instance of {self.place}")
        try:
            self._run(batch)
        finally:
            self.busy.release()

    def _run(self, batch: list[Request]) -> None:
        errors: dict[int, BaseException] = {}
        for index, request in enumerate(batch):
            number, value, plan = request["data"]
            if self.place == "a":
                self.ledger.note_run(number)
            if self.place == "d":
                value ^= request["other"][1]
            if plan is not None and plan[0] == self.place:
                if plan[1] == "hold":
                    plan[2].stand()
                self._fault(plan[1], number, index, len(batch), errors)
            request["result"] = (number, mix(value, self.salt), plan)
        if errors:
            raise ItemErrors(errors)

    def _fault(self, kind: str, number: int, index: int, count: int, errors: dict[int, BaseException]) -> None:
        if kind == "raise":
            raise Planned(number)
        if kind == "item error":
            errors[index] = Planned(number)
        elif kind == "system exit":
            raise SystemExit(number)
        elif kind == "no memory" or (kind == "no memory in company" and count > 1):
            raise NoRoom(number)
        elif kind == "slow":
            time.sleep(self.random.random() * 0.002)


class MixesAloud(Streaming):
    """Does what Mixes does; before that, hands on chunks that say whose they are, as many as its number says."""

    max_batch = 32

    def __init__(self, *, place: str, ledger: Any) -> None:
        self.mixes = Mixes(place=place, ledger=ledger)

    def run(self, request: Request) -> Iterator[tuple[int, str, int]]:
        number = request["data"][0]
        for index in range(number % MOST_CHUNKS):
            yield number, self.mixes.place, index
        try:
            self.mixes.forward([request])
        except ItemErrors as errors:
            raise errors.errors[0]  # noqa: B904


def five_nodes(ledger: Any, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a graph with a fan-out, a join, a thread-bound branch, queues with limits, one to four instances a node.

    ``more``: further keys, by node.
    """
    nodes: dict[str, dict[str, Any]] = {
        "a": {"next": "b,c", "instance_num": FIRST_INSTANCES, "max_queue": 32},
        "b": {"next": "d", "instance_num": 2, "max": 8},
        "c": {"next": "d", "max": 16, "max_queue": 250, "when_full": "shed_oldest", "batching_timeout": 1},
        "d": {"next": "e", "instance_num": 2, "map": "b[result:data],c[result:other]"},
        "e": {"instance_num": 4, "batching": "greedy"},
    }
    for place, keys in nodes.items():
        backend = type("BoundMixes", (Mixes,), {"thread_bound": True}) if place == "c" else Mixes
        keys.update({"backend": backend, "place": place, "ledger": ledger} | more.get(place, {}))
    return nodes


class Client:
    """Sends requests in all ways there are, with faults of every kind, and tells the ledger what came back."""

    aloud = 0  # how many of the nodes emit

    def __init__(self, pipe: Pipe, ledger: Any, seed: int, share: float = 0.01) -> None:
        self.pipe = pipe
        self.ledger = ledger
        self.random = random.Random(seed)
        self.share = share
        self.kinds = list(FAULTS)

    def run(self, count: int) -> None:
        """Send so many requests."""
        ways: list[Callable[[int], None]] = [self.call, self.submit, self.list, self.map, self.tasks, self.submit]
        while count > 0:
            size = min(count, self.random.randrange(1, 65))
            way = self.random.choice(ways)
            if way == self.call:
                size = min(size, 8)
            way(size)
            count -= size

    def run_streams(self, count: int) -> None:
        """Send so many, most of which are read as streams."""
        ways = [self.streams, self.task_streams, self.streams, self.task_streams, self.submit, self.call]
        while count > 0:
            size = min(count, self.random.randrange(1, 9))
            self.random.choice(ways)(size)
            count -= size

    def request(self) -> Request:
        number = self.ledger.accept()
        plan = None
        if self.random.random() < self.share * len(self.kinds):
            plan = (self.random.choice(PLACES), self.random.choice(self.kinds))
        return {"data": (number, self.random.getrandbits(128), plan)}

    def sometimes(self) -> bool:
        return self.random.random() < self.share

    def limits(self) -> dict[str, Any]:
        """Return a time limit that is often too short, or a priority, or, mostly, nothing."""
        if self.sometimes():
            return {"timeout": self.random.random() * 0.003 + 1e-6}
        return {"priority": self.random.randrange(-2, 3)} if self.sometimes() else {}

    def ended(self, sent: tuple[int, int, Any], request: Request, error: BaseException | None) -> None:
        """Tell the ledger how a request that was accepted has ended, and check that it is its own outcome."""
        number, value, plan = sent
        expected = "done" if plan is None else OUTCOMES[plan[1]]
        if error is None:
            if request["result"][0] != number or request["result"][1] != answer_to(value):
                self.ledger.mistake(f"request {number} was answered with {request['result']}")
            if expected != "done":
                self.ledger.mistake(f"request {number} was to fail with {plan}")
            self.ledger.end(number, ledgers.DONE)
            return
        if request != {"data": sent}:
            self.ledger.mistake(f"request {number} failed, and its dict is {request}")
        if isinstance(error, BackendError) and isinstance(error.__cause__, SystemExit):  # as an awaiting caller gets it
            error = error.__cause__
        if isinstance(error, RequestTimeout):
            self.ledger.end(number, ledgers.ERROR, "timeout")
        elif isinstance(error, QueueFull):
            self.ledger.end(number, ledgers.ERROR, "queue full")
        elif isinstance(error, PipeClosed):
            self.ledger.end(number, ledgers.ERROR, "closed")
        elif isinstance(error, WorkerDied) and isinstance(error.__cause__, Stumbled):
            self.ledger.end(number, ledgers.ERROR, "worker died")
        elif isinstance(error, Stumbled):
            self.ledger.end(number, ledgers.ERROR)
        else:
            if error.args != (number,) or expected == "done" or not isinstance(error, expected):
                self.ledger.mistake(f"request {number} with {plan} got {error!r}")
            self.ledger.end(number, ledgers.ERROR)

    def raised(self, sent: tuple[int, int, Any], request: Request, error: BaseException) -> None:
        """The same for a call that raised: before it was accepted, or after."""
        if isinstance(error, RequestTimeout) and "room in the queue" in str(error):
            self.ledger.end(sent[0], ledgers.REFUSED)
        elif isinstance(error, PipeClosed):
            self.ledger.end(sent[0], ledgers.UNCLEAR)
        else:
            self.ended(sent, request, error)

    def call(self, size: int) -> None:
        for _ in range(size):
            request = self.request()
            sent = request["data"]
            try:
                self.pipe(request, **self.limits())
            except BaseException as error:
                self.raised(sent, request, error)
            else:
                self.ended(sent, request, None)

    def list(self, size: int) -> None:
        requests = [self.request() for _ in range(size)]
        sent = [request["data"] for request in requests]
        errors: list[BaseException] = []
        try:
            self.pipe(requests)
        except BaseExceptionGroup as group:
            errors = list(group.exceptions)  # in order
        for index, request in enumerate(requests):
            self.ended(sent[index], request, None if "result" in request else errors.pop(0))
        if errors:
            self.ledger.mistake(f"of a list, more have failed than have no result: {errors}")

    def submit(self, size: int) -> None:
        futures: list[tuple[tuple[int, int, Any], Request, concurrent.futures.Future[Request]]] = []
        for _ in range(size):
            request = self.request()
            sent = request["data"]
            try:
                futures.append((sent, request, self.pipe.submit(request, **self.limits())))
            except (RequestTimeout, PipeClosed):
                self.ledger.end(sent[0], ledgers.REFUSED)
            if futures and self.sometimes():
                self.random.choice(futures)[2].cancel()
        for sent, request, future in futures:
            try:
                error = future.exception(2 * WAIT_S)
            except concurrent.futures.CancelledError:
                self.ledger.end(sent[0], ledgers.CANCELLED)
            except TimeoutError:
                self.ledger.mistake(f"request {sent[0]} has no outcome")
            else:
                self.ended(sent, request, error)

    def map(self, size: int) -> None:
        requests = [self.request() for _ in range(size)]
        sent = [request["data"] for request in requests]
        answers = self.pipe.map(requests, look_ahead=self.random.randrange(1, 65), return_exceptions=True)
        for index, answer in enumerate(answers):
            self.ended(sent[index], requests[index], answer if isinstance(answer, BaseException) else None)

    def check_chunks(self, sent: tuple[int, int, Any], chunks: list[Any], error: BaseException | None) -> None:
        """Tell the ledger of a chunk that is another request's, or comes twice, or too early, or never."""
        number = sent[0]
        for place in PLACES:
            own = [chunk for chunk in chunks if chunk[1] == place]
            whole = [(number, place, index) for index in range(number % MOST_CHUNKS)]
            is_prefix = own == whole[: len(own)]
            if not is_prefix or (error is None and own and own != whole):
                self.ledger.mistake(f"request {number} ended with {error!r}, and emitted {own}")
        if error is None and len(chunks) != self.aloud * (number % MOST_CHUNKS):
            self.ledger.mistake(f"request {number} is done, and emitted {len(chunks)} chunks")

    def streams(self, size: int) -> None:
        """Read some streams, one after the other; leave a few of them."""
        for _ in range(min(size, 8)):
            request = self.request()
            sent = request["data"]
            leaves = self.sometimes()
            chunks: list[Any] = []
            try:
                with self.pipe.stream(request, buffer=self.random.randrange(1, 9), **self.limits()) as stream:
                    for chunk in itertools.islice(stream, 1 if leaves else None):
                        chunks.append(chunk)
            except BaseException as error:
                self.check_chunks(sent, chunks, error)
                self.raised(sent, request, error)
            else:
                if leaves and chunks:
                    self.ledger.end(sent[0], ledgers.UNCLEAR)  # it may have ended at that moment
                    continue
                self.check_chunks(sent, chunks, None)
                self.ended(sent, request, None)

    def task_streams(self, size: int) -> None:
        asyncio.run(self.run_task_streams(size))

    async def run_task_streams(self, size: int) -> None:
        """Read streams side by side; cancel a few of those who do."""
        requests = [self.request() for _ in range(size)]
        sent = [request["data"] for request in requests]
        read: list[list[Any]] = [[] for _ in requests]
        tasks = [
            asyncio.create_task(self._read(request, chunks)) for request, chunks in zip(requests, read, strict=True)
        ]
        for task in tasks:
            if self.sometimes():
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait(tasks, timeout=2 * WAIT_S)
        for one, request, chunks, task in zip(sent, requests, read, tasks, strict=True):
            if not task.done():
                self.ledger.mistake(f"request {one[0]} has no outcome")
            elif task.cancelled():
                self.ledger.end(one[0], ledgers.UNCLEAR)
            else:
                error = task.result()
                self.check_chunks(one, chunks, error)
                if error is None:
                    self.ended(one, request, None)
                else:
                    self.raised(one, request, error)

    async def _read(self, request: Request, chunks: list[Any]) -> BaseException | None:
        try:
            async with contextlib.aclosing(
                self.pipe.astream(request, buffer=self.random.randrange(1, 9), **self.limits())
            ) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return error
        return None

    def tasks(self, size: int) -> None:
        asyncio.run(self.run_tasks(size))

    async def run_tasks(self, size: int) -> None:
        requests = [self.request() for _ in range(size)]
        sent = [request["data"] for request in requests]
        tasks = [asyncio.create_task(self._awaited(request)) for request in requests]
        for task in tasks:
            if self.sometimes():
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait(tasks, timeout=2 * WAIT_S)
        for one, request, task in zip(sent, requests, tasks, strict=True):
            if not task.done():
                self.ledger.mistake(f"request {one[0]} has no outcome")
            elif task.cancelled():
                self.ledger.end(one[0], ledgers.UNCLEAR)
            elif (error := task.result()) is None:
                self.ended(one, request, None)
            else:
                self.raised(one, request, error)

    async def _awaited(self, request: Request) -> BaseException | None:
        try:
            await self.pipe.acall(request, **self.limits())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a task that ends with SystemExit takes the loop along
            return error
        return None


def run_clients(clients: list[Client], count: int) -> None:
    """Let each of the clients send so many requests, all at the same time; what goes wrong in one is raised."""
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as executor:
        for done in [executor.submit(client.run, count) for client in clients]:
            done.result()


def be_sure_of_each_end(pipe: Pipe, ledger: Any) -> None:
    """Have SURE requests end in each way that chance might leave out: cancelled, late, failed, done.

    All instances of the first node are held, so that the one that is cancelled and the one that is late are queued.
    """
    client = Client(pipe, ledger, 0, share=0.0)
    hold = Hold()

    def start(plan: Any, timeout: float | None = None) -> tuple[Any, Request, concurrent.futures.Future[Request]]:
        number, value, _ = client.request()["data"]
        sent = (number, value, plan)
        request: Request = {"data": sent}
        return sent, request, pipe.submit(request, timeout=timeout)

    held = []
    for _ in range(FIRST_INSTANCES):
        held.append(start(("a", "hold", hold)))
        assert hold.inside.acquire(timeout=WAIT_S)
    (number, _, _), _, future = start(None)
    assert future.cancel()
    ledger.end(number, ledgers.CANCELLED)
    sent, request, future = start(None, timeout=0.001)
    error = future.exception(WAIT_S)
    assert isinstance(error, RequestTimeout)
    client.ended(sent, request, error)
    hold.opened.set()
    for sent, request, future in [*held, start(("e", "raise"))]:
        client.ended(sent, request, future.exception(WAIT_S))


def summary(counts: Counter[str], ledger: Any) -> str:
    """Return a line for docs/reliability.md."""
    outcomes = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{outcomes} ({', '.join(f'{count} {reason}' for reason, count in sorted(ledger.reasons.items()))})"
