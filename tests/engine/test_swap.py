"""Other instances for a node while it serves: ``Pipe.swap`` and ``Pipe.resize``."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT_S, Adds, Gate, until

import fastpipe
from fastpipe import (
    Backend,
    BackendHung,
    ConfigError,
    DeviceLost,
    ForkedPipe,
    Pipe,
    PipeClosed,
    PipeError,
    Request,
    Step,
    UnknownNode,
    _core,
)
from fastpipe.contract import site


class World:
    """What the instances of a test share."""

    def __init__(self) -> None:
        self.built: list[Versioned] = []
        self.closed: list[Versioned] = []
        self.fails_from: int | None = None  # the instance that cannot be built, by its number among all
        self.batches: list[tuple[int, list[Any]]] = []  # version, data
        self.waits: dict[int, threading.Event] = {}  # by version: batches stay inside until it is set
        self.inside = threading.Semaphore(0)

    def versions(self) -> Counter[int]:
        return Counter(each.version for each in self.built if each not in self.closed)


class Versioned(Backend):
    """The result says by which version, and in which batch, it was made."""

    def __init__(self, *, world: World, version: int = 1, largest: int = 8, time_s: float = 0.0) -> None:
        if world.fails_from is not None and len(world.built) >= world.fails_from:
            raise OSError("no memory on the device")
        self.world = world
        self.version = version
        self.max_batch = largest
        self.time_s = time_s
        self.is_inside = threading.Lock()
        world.built.append(self)

    def forward(self, batch: list[Request]) -> None:
        assert self.is_inside.acquire(blocking=False), "two batches in one instance"
        assert self not in self.world.closed
        assert len(batch) <= self.max_batch
        self.world.batches.append((self.version, [request["data"] for request in batch]))
        if self.version in self.world.waits:
            self.world.inside.release()
            assert self.world.waits[self.version].wait(WAIT_S)
        time.sleep(self.time_s)
        for request in batch:
            request["result"] = (self.version, request["data"])
        self.is_inside.release()

    def close(self) -> None:
        self.world.closed.append(self)


def workers(node: str = "main") -> list[str]:
    """Return the names of the threads that serve a node."""
    return [each.name for each in threading.enumerate() if each.name.startswith(f"fastpipe {node}#")]


class OnThread(Versioned):
    """The same, bound to a thread."""

    thread_bound = True

    def __init__(self, *, world: World, version: int = 1, largest: int = 8, time_s: float = 0.0) -> None:
        super().__init__(world=world, version=version, largest=largest, time_s=time_s)
        self.thread = threading.current_thread()

    def forward(self, batch: list[Request]) -> None:
        assert threading.current_thread() is self.thread
        super().forward(batch)

    def close(self) -> None:
        assert threading.current_thread() is self.thread
        super().close()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def hook() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Hook an action to a point of the engine until the end of the test."""
    points: list[str] = []

    def set_hook(point: str, action: Callable[[], object]) -> None:
        points.append(point)
        _core._hook(point, action)

    yield set_hook
    for point in points:
        _core._hook(point, None)


def queued(pipe: Pipe, count: int, node: str = "main") -> None:
    until(lambda: pipe.stats()["nodes"][node]["queued"] == count)


# ---- under load ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [(Versioned,), (OnThread,), (Versioned, OnThread)], ids=["shared", "bound", "both"])
def test_no_request_of_64_callers_fails_and_each_batch_is_of_one_version(
    world: World, kinds: tuple[type[Versioned], ...]
) -> None:
    """Swaps, and among them resizes, one after the other; what was swapped answers from then on."""
    wrong: list[object] = []
    ended = threading.Event()
    newest = [1]

    def call(pipe: Pipe, client: int) -> int:
        count = 0
        while not ended.is_set():
            count += 1
            least = newest[0]
            try:
                version, data = pipe({"data": (client, count)})["result"]
                if data != (client, count) or not least <= version <= newest[0] + 1:
                    wrong.append((version, data, least))
            except BaseException as error:
                wrong.append(error)
        return count

    nodes = {
        "a": {"backend": kinds[0], "world": world, "instance_num": 2, "time_s": 0.001, "next": "b"},
        "b": {"backend": "Identity"},
    }
    with Pipe(nodes) as pipe, ThreadPoolExecutor(64) as executor:
        calls = [executor.submit(call, pipe, client) for client in range(64)]
        for version in range(2, 14):
            before = pipe.done
            pipe.swap("a", version=version, backend=kinds[version % len(kinds)], largest=4 + version % 8)
            newest[0] = version
            pipe.resize("a", instance_num=1 + version % 4, max=3 + version % 5)
            until(lambda before=before: pipe.done > before + 64)  # type: ignore[misc]
            assert world.versions() == {version: 1 + version % 4}
        ended.set()
        assert sum(each.result(WAIT_S) for each in calls) == pipe.done
        stats = pipe.stats()
    assert wrong == []
    assert stats["requests"]["failed"] == 0
    assert stats["nodes"]["a"]["instances"] == {"count": 2, "in_service": 2, "hung": 0, "replaced": 0, "switches": 24}
    assert stats["nodes"]["a"]["max"] == 6
    assert stats["nodes"]["a"]["batch_sizes"]["count"] == stats["nodes"]["a"]["batches"]
    assert stats["nodes"]["a"]["batch_sizes"]["sum"] == stats["nodes"]["a"]["requests"]
    assert sorted(world.closed, key=id) == sorted(world.built, key=id)


def test_requests_of_every_kind_go_on(world: World) -> None:
    """Futures, tasks, lists and eager calls, in pipes whose instances any thread runs."""

    async def ask(pipe: Pipe, count: int) -> list[Any]:
        return [(await pipe.acall({"data": index}))["result"] for index in range(count)]

    ended = threading.Event()
    answers: list[Any] = []

    def call(way: Callable[[], Any]) -> None:
        while not ended.is_set():
            answers.append(way())

    with Pipe(backend=Versioned, world=world, time_s=0.0005) as pipe, ThreadPoolExecutor(4) as executor:
        calling = [
            executor.submit(call, lambda: asyncio.run(ask(pipe, 5))[-1]),
            executor.submit(call, lambda: pipe([{"data": 4} for _ in range(20)])[-1]["result"]),
            executor.submit(call, lambda: pipe({"data": 4}, eager=True)["result"]),
            executor.submit(call, lambda: [pipe.submit({"data": 4}) for _ in range(20)][-1].result(WAIT_S)["result"]),
        ]
        for version in range(2, 12):
            pipe.swap("main", version=version, backend=OnThread if version % 2 else Versioned)
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 4)  # type: ignore[misc]
        ended.set()
        for each in calling:
            each.result(WAIT_S)
        assert pipe.stats()["requests"]["failed"] == 0
    assert all(data == 4 and 1 <= version <= 11 for version, data in answers)


# ---- the moment of the switch --------------------------------------------------------------------------------------


def test_old_batches_end_in_the_old_instance_while_the_new_one_serves(world: World) -> None:
    """The swap returns once the old one is closed, and nobody waits for that but its caller."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world) as pipe, ThreadPoolExecutor(2) as executor:
        old = pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        swapping = executor.submit(pipe.swap, "main", version=2)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        assert pipe({"data": 2})["result"] == (2, 2)
        assert not swapping.done()
        assert pipe.health() == {"healthy": True, "problems": []}
        world.waits[1].set()
        assert old.result(WAIT_S)["result"] == (1, 1)
        swapping.result(WAIT_S)
        assert [each.version for each in world.closed] == [1]


class Weighing(Versioned):
    """Weighs, and puts into buckets, by its version."""

    def weigh(self, request: Request) -> float:
        return float(request["data"] if self.version == 1 else request["data"] * 2)

    def bucket(self, request: Request) -> Any:
        return None if self.version == 1 else request["data"] % 2


def test_what_waits_is_weighed_and_given_its_bucket_by_who_will_run_it(world: World) -> None:
    """What is too heavy for the new backend fails as if it came then; all else keeps its order."""
    world.waits[1] = threading.Event()
    # Until batching_timeout is over, a bucket that is full goes before the oldest request's.
    keys = {"batching": "greedy", "batching_timeout": 60_000}
    with Pipe(backend=Weighing, world=world, **keys) as pipe, ThreadPoolExecutor(1) as executor:
        first = pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        waiting = [pipe.submit({"data": data}) for data in (1, 2, 8, 1, 3, 1, 2)]
        queued(pipe, 7)
        swapping = executor.submit(pipe.swap, "main", version=2)
        with pytest.raises(ValueError, match=r"the request weighs 16; node 'main' takes more than 0 and up to 8"):
            waiting[2].result(WAIT_S)
        assert [future.result(WAIT_S)["result"] for future in waiting if future is not waiting[2]] == [
            (2, data) for data in (1, 2, 1, 3, 1, 2)
        ]
        world.waits[1].set()
        swapping.result(WAIT_S)
        assert first.result(WAIT_S)["result"] == (1, 1)
        assert world.batches[:2] == [(1, [1]), (2, [1, 1])]
        assert sorted(world.batches[2:]) == [(2, [2, 2]), (2, [3, 1])]  # a full one may overtake what is not overdue
        assert pipe.stats()["nodes"]["main"]["queued"] == 0


def test_a_request_whose_weight_is_being_asked_is_asked_again(world: World) -> None:
    """1. A caller asks the old backend. 2. The node is swapped. 3. What the old one says is not what counts."""
    asked = threading.Event()
    goes_on = threading.Event()

    class Asked(Versioned):
        def weigh(self, request: Request) -> float:
            if self.version == 1:
                asked.set()
                assert goes_on.wait(WAIT_S)
                return 1.0
            return 100.0

    with Pipe(backend=Asked, world=world) as pipe, ThreadPoolExecutor(2) as executor:
        for way in (pipe.submit, lambda request: executor.submit(pipe, request)):
            asked.clear()
            goes_on.clear()
            calling: Future[Any] = executor.submit(way, {"data": 1})
            assert asked.wait(WAIT_S)
            pipe.swap("main", version=2)
            goes_on.set()
            future = calling.result(WAIT_S)
            with pytest.raises(ValueError, match="weighs 100"):
                future.result(WAIT_S)
            pipe.swap("main", version=1)


def test_nobody_is_overtaken_while_what_waits_is_asked_again(world: World) -> None:
    """A request that comes in the middle of the switch runs behind those that waited."""
    world.waits[1] = threading.Event()
    late: list[Future[Request]] = []
    asked: list[int] = []

    class Asked(Versioned):
        def weigh(self, request: Request) -> float:
            asked.append(self.version)
            if asked.count(2) == 1:
                late.append(pipe.submit({"data": "late"}))
            return 1.0

    with Pipe(backend=Asked, world=world, largest=1, max=2) as pipe, ThreadPoolExecutor(1) as executor:
        pipe.submit({"data": "first"})
        assert world.inside.acquire(timeout=WAIT_S)
        waiting = [pipe.submit({"data": index}) for index in range(3)]
        swapping = executor.submit(pipe.swap, "main", version=2, largest=2)
        assert [future.result(WAIT_S)["data"] for future in waiting] == [0, 1, 2]
        until(lambda: bool(late))
        assert late[0].result(WAIT_S)["data"] == "late"
        world.waits[1].set()
        swapping.result(WAIT_S)
    assert [data for version, batch in world.batches if version == 2 for data in batch] == [0, 1, 2, "late"]


def test_what_is_cancelled_while_it_is_asked_again_is_not_queued(
    world: World, hook: Callable[[str, Callable[[], object]], None]
) -> None:
    """It leaves the books of the queue, which has a limit, and the others stay in them."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world, max_queue=3) as pipe, ThreadPoolExecutor(1) as executor:
        pipe.submit({"data": 0})
        assert world.inside.acquire(timeout=WAIT_S)
        waiting = [pipe.submit({"data": index}) for index in range(1, 4)]
        hook("switch", waiting[1].cancel)
        swapping = executor.submit(pipe.swap, "main", version=2, largest=1)
        assert [waiting[index].result(WAIT_S)["result"] for index in (0, 2)] == [(2, 1), (2, 3)]
        world.waits[1].set()
        swapping.result(WAIT_S)
        node = pipe.stats()["nodes"]["main"]
        assert (node["queued"], node["cancelled"], pipe.stats()["requests"]["in_flight"]) == (0, 1, 0)
        for future in [pipe.submit({"data": index}) for index in range(20)]:  # no place of the three is lost
            future.result(WAIT_S)


def test_an_eager_call_that_waits_for_an_instance_goes_to_the_new_ones_thread(world: World) -> None:
    """1. It waits for an instance that any thread runs. 2. The new one is bound to a thread."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world) as pipe, ThreadPoolExecutor(2) as executor:
        pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        eager = executor.submit(pipe, {"data": 2}, eager=True)
        swapping = executor.submit(pipe.swap, "main", version=2, backend=OnThread)
        assert eager.result(WAIT_S)["result"] == (2, 2)
        world.waits[1].set()
        swapping.result(WAIT_S)


def test_a_batch_keeps_what_its_own_instance_promises(world: World) -> None:
    """The old one changes its input, and is run again; the new one says that it does not."""
    inside, goes_on = threading.Event(), threading.Event()

    class Changes(Backend):
        max_batch = 2

        def forward(self, batch: list[Request]) -> None:
            if len(batch) == 2:
                inside.set()
                assert goes_on.wait(WAIT_S)
                for request in batch:
                    request["data"].append("changed")
                raise ValueError("run them alone")
            batch[0]["result"] = list(batch[0]["data"])

    class Keeps(Changes):
        keeps_input = True
        retry_alone = False

    with Pipe(backend=Changes) as pipe, ThreadPoolExecutor(2) as executor:
        calling = executor.submit(pipe, [{"data": [1]}, {"data": [2]}])
        assert inside.wait(WAIT_S)
        swapping = executor.submit(pipe.swap, "main", backend=Keeps)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        goes_on.set()
        assert [request["result"] for request in calling.result(WAIT_S)] == [[1], [2]]
        swapping.result(WAIT_S)


def test_other_rules_hold_from_the_switch_on(world: World) -> None:
    """Also for a worker that collects a batch by the old one."""
    with (
        Pipe(backend=Versioned, world=world, batching="timeout", batching_timeout=3_000_000, instance_num=1) as pipe,
        ThreadPoolExecutor(1) as executor,
    ):
        futures = [pipe.submit({"data": index}) for index in range(2)]
        executor.submit(pipe.swap, "main", batching="greedy", version=2).result(WAIT_S)
        assert {future.result(WAIT_S)["result"][0] for future in futures} <= {1, 2}
        pipe.swap("main", {"batching": "preferred", "preferred_batch_sizes": [3]}, batching_timeout=3_000_000)
        futures = [pipe.submit({"data": index}) for index in range(3)]
        assert [future.result(WAIT_S)["data"] for future in futures] == [0, 1, 2]


# ---- what fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Versioned, OnThread])
def test_a_build_that_fails_leaves_all_as_it_was(world: World, kind: type[Versioned]) -> None:
    """The error names node and instance; what was built beside it is closed, its threads have ended."""
    with Pipe({"a": {"backend": kind, "world": world, "instance_num": 2}}) as pipe:
        threads = sorted(workers("a"))
        for _ in range(2):
            world.fails_from = len(world.built) + 1
            with pytest.raises(OSError, match="no memory on the device") as caught:
                pipe.swap("a", version=2)
            assert caught.value.__notes__ == [f"fastpipe: while building node 'a', backend {kind.__name__}, instance 3"]
            until(lambda: world.versions() == {1: 2})
            assert pipe({"data": 1})["result"] == (1, 1)
        until(lambda: sorted(workers("a")) == threads)
        assert pipe.stats()["nodes"]["a"]["instances"]["switches"] == 0
        world.fails_from = None
        pipe.swap("a", version=3)  # of the keys that were not to be, none has stayed
        assert pipe({"data": 1})["result"] == (3, 1)
        assert world.versions() == {3: 2}


def test_an_interrupt_while_building_leaves_all_as_it_was(world: World) -> None:
    with Pipe(backend=Versioned, world=world) as pipe:

        class Interrupted(Versioned):
            def __init__(self, *, world: World) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipe.swap("main", backend=Interrupted)
        assert pipe({"data": 1})["result"] == (1, 1)
        assert world.versions() == {1: 1}
        pipe.swap("main", version=2)
        assert pipe({"data": 1})["result"] == (2, 1)


GRAPH: dict[str, Any] = {
    "a": {"backend": "Identity", "next": "b"},
    "b": {"backend": "Identity", "next": "c"},
    "c": {"backend": "Jump", "jump": "d"},
    "d": {"backend": "Identity"},
    "b.2": {},
    "e": {"backend": "S[Identity,Proxy]", "proxy": "b.2"},
}


@pytest.mark.parametrize(
    ("node", "keys", "message"),
    [
        ("a", {"versions": 1}, r"node 'a': nobody takes 'versions'"),
        ("a", {"instance_nun": 1}, r"node 'a': nobody takes 'instance_nun'; did you mean 'instance_num'\?"),
        ("a", {"instance_num": 0}, r"node 'a': instance_num: must be between 1 and 4096, got 0"),
        ("a", {"next": "c"}, r"node 'a': 'next' stays as it is while the pipe serves: build another pipe"),
        ("a", {"max_queue": 3}, r"'max_queue' stays as it is"),
        ("a", {"hang_timeout": 3}, r"'hang_timeout' stays as it is"),
        ("a", {"request_timeout": 3}, r"nobody takes 'request_timeout'"),
        ("a", {"backend": "Identityy"}, r"did you mean 'Identity'"),
        ("a", {"backend": "S[Identity,Jump]", "jump": "d"}, r"where its Jumps, MapReduces and Proxies lead stays"),
        ("a", {"backend": "Jump", "jump": "d"}, r"where its Jumps, MapReduces and Proxies lead stays"),
        ("b.2", {}, r"node 'b\.2': it shares the instances of 'b': change those"),
        ("c", {}, r"node 'c': it is a Jump, which has no instances of its own"),
        ("e", {"proxy": "b"}, r"where its Jumps, MapReduces and Proxies lead stays"),
        ("a", {1: 2}, r"node 'a': keys are text, got 1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(node: str, keys: dict[str, Any], message: str) -> None:
    with Pipe(GRAPH) as pipe:
        with pytest.raises(ConfigError, match=message):
            pipe.swap(node, keys)
        assert pipe({"data": 1}, entry="a")["result"] == 1
        assert pipe({"data": 1}, entry="e")["result"] == 1


def test_an_unknown_node_is_named_with_its_nearest() -> None:
    with Pipe({"detect": {"backend": "Identity"}}) as pipe:
        with pytest.raises(
            UnknownNode, match=r"no node is named 'detects'; they are \['detect'\]; did you mean 'detect'\?"
        ):
            pipe.swap("detects")
        with pytest.raises(TypeError, match=r"resize\(\) needs instance_num, max, or both"):
            pipe.resize("detect")


@pytest.mark.parametrize(
    ("timeout", "kind", "message"),
    [
        (-1, ValueError, "timeout must be at least 0 seconds, or None for no limit; got -1"),
        (float("-inf"), ValueError, "timeout must be at least 0 seconds, or None for no limit; got -inf"),
        (float("nan"), ValueError, "timeout must be a number of seconds, or None for no limit; got nan"),
        (True, TypeError, "timeout must be a number of seconds, or None for no limit; got True"),
        ("1", TypeError, "timeout must be a number of seconds, or None for no limit; got '1'"),
    ],
)
def test_a_timeout_that_makes_no_sense_is_refused_before_anything_changes(
    timeout: Any, kind: type[Exception], message: str
) -> None:
    """By swap and resize, which do wait for no time at all, or for as long as nobody lives."""
    with Pipe(a={"backend": "Identity", "instance_num": 2}) as pipe:
        for change in (lambda: pipe.swap("a", timeout=timeout), lambda: pipe.resize("a", max=2, timeout=timeout)):
            with pytest.raises(kind) as raised:
                change()
            assert str(raised.value) == message
        assert pipe.stats()["nodes"]["a"]["instances"]["switches"] == 0
        pipe.swap("a", timeout=1e300)
        pipe.resize("a", instance_num=1, timeout=float("inf"))
        assert pipe.stats()["nodes"]["a"]["instances"]["switches"] == 2


@pytest.mark.parametrize("node", [None, 3, ["a"], {}])
def test_what_is_no_name_is_an_unknown_node(node: Any) -> None:
    with Pipe(a={"backend": "Identity"}) as pipe:
        with pytest.raises(UnknownNode) as raised:
            pipe.swap(node)
        assert str(raised.value) == f"no node is named {node!r}; they are ['a']"


@pytest.mark.parametrize("keys", [[], [("max", 2)], 5, "max"])
def test_keys_that_are_no_mapping_are_refused(keys: Any) -> None:
    with Pipe(a={"backend": "Identity"}) as pipe, pytest.raises(TypeError) as raised:
        pipe.swap("a", keys)
    assert str(raised.value) == f"keys must be a mapping of keys of the node to values, got {keys!r}"


def test_an_object_is_not_in_an_old_and_a_new_instance(world: World) -> None:
    """Another object is; and its node may be resized where that needs no new instance."""
    with Pipe(backend=Adds(amount=1)) as pipe:
        with pytest.raises(ConfigError, match="Adds is an object, which cannot be in the old and the new instance"):
            pipe.swap("main")
        with pytest.raises(ConfigError, match="instance_num: must be 1 where the backend is an object"):
            pipe.resize("main", instance_num=2)
        pipe.resize("main", max=3)
        assert pipe.stats()["nodes"]["main"]["max"] == 3
        pipe.swap("main", backend=Adds(amount=2))
        assert pipe({"data": 1})["result"] == 3


def test_nobody_inside_of_the_pipe_waits_for_it() -> None:
    """A backend would wait for itself, a callback for the worker that runs it."""
    said: list[BaseException] = []

    class Swaps(Backend):
        def forward(self, batch: list[Request]) -> None:
            pipe.swap("main")

    def swap(future: Future[Request]) -> None:
        try:
            pipe.swap("main")
        except PipeError as error:
            said.append(error)

    with Pipe(backend=Swaps) as pipe:
        with pytest.raises(PipeError, match="this is called from inside one of the pipe's own backends"):
            pipe({"data": 1})
        future = pipe.submit({"data": 1})
        future.add_done_callback(swap)
        until(future.done)
    assert all(isinstance(error, PipeError) for error in said)


def test_a_pipe_that_closes_while_an_instance_is_built_gets_none(world: World) -> None:
    """The one that was built in vain is closed, and the swap says why it is not made."""
    building, goes_on = threading.Event(), threading.Event()

    class Slow(Versioned):
        def __init__(self, *, world: World) -> None:
            super().__init__(world=world, version=2)
            building.set()
            assert goes_on.wait(WAIT_S)

    pipe = Pipe(backend=Versioned, world=world)
    with ThreadPoolExecutor(1) as executor:
        swapping = executor.submit(pipe.swap, "main", backend=Slow)
        assert building.wait(WAIT_S)
        pipe.close()
        goes_on.set()
        with pytest.raises(PipeClosed):
            swapping.result(WAIT_S)
    assert len(world.closed) == len(set(map(id, world.closed))) == 2
    with pytest.raises(PipeClosed):
        pipe.swap("main")


def test_a_pipe_closes_while_old_instances_are_drained(world: World) -> None:
    world.waits[1] = threading.Event()
    pipe = Pipe(backend=Versioned, world=world)
    with ThreadPoolExecutor(2) as executor:
        old = pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        swapping = executor.submit(pipe.swap, "main", version=2)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        closing = executor.submit(pipe.close)
        until(lambda: pipe.closing)
        world.waits[1].set()
        swapping.result(WAIT_S)
        closing.result(WAIT_S)
    assert old.result(WAIT_S)["result"] == (1, 1)
    assert len(world.closed) == len(set(map(id, world.closed))) == 2


def test_old_instances_that_do_not_end_in_time_are_closed_when_they_do(world: World) -> None:
    """The swap is made all the same, and a second one need not wait for them."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world) as pipe:
        old = pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        with pytest.raises(
            TimeoutError, match=r"node 'main' serves with other instances, but batches of old ones still"
        ):
            pipe.swap("main", version=2, timeout=0.01)
        assert pipe({"data": 2})["result"] == (2, 2)
        pipe.swap("main", {"version": 3}, timeout=WAIT_S)
        assert [each.version for each in world.closed] == [2]
        world.waits[1].set()
        assert old.result(WAIT_S)["result"] == (1, 1)
        until(lambda: [each.version for each in world.closed] == [2, 1])
        assert pipe({"data": 2})["result"] == (3, 2)


def test_what_closing_an_old_instance_raises_is_said_once_all_is_done(world: World) -> None:
    class Stubborn(Versioned):
        def close(self) -> None:
            super().close()
            if self.version == 1:
                raise OSError("the device is gone")

    with Pipe(backend=Stubborn, world=world) as pipe:
        with pytest.raises(OSError, match="the device is gone") as caught:
            pipe.swap("main", version=2)
        assert caught.value.__notes__ == [
            "fastpipe: node 'main' serves with other instances; this is what closing an old one raised"
        ]
        assert pipe({"data": 1})["result"] == (2, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_of_a_fork_swaps_nothing(world: World) -> None:
    with Pipe(backend=Versioned, world=world) as pipe:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of eventlet's, if other tests have imported it
            child = os.fork()
        if child == 0:
            try:
                pipe.swap("main")
            except ForkedPipe:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# ---- hung and lost instances ---------------------------------------------------------------------------------------


def test_an_old_instance_that_hangs_is_given_up_and_not_built_again(world: World) -> None:
    """The swap waits for it no longer than a batch may run."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world, hang_timeout=0.3) as pipe:
        hung = pipe.submit({"data": 1})
        assert world.inside.acquire(timeout=WAIT_S)
        pipe.swap("main", version=2)
        with pytest.raises(BackendHung):
            hung.result(WAIT_S)
        assert pipe.health() == {"healthy": True, "problems": []}
        assert pipe({"data": 1})["result"] == (2, 1)
        assert [each.version for each in world.built] == [1, 2]
        assert pipe.stats()["nodes"]["main"]["instances"] == {
            "count": 1,
            "in_service": 1,
            "hung": 0,
            "replaced": 0,
            "switches": 1,
        }
        world.waits[1].set()
        until(lambda: [each.version for each in world.closed] == [1])  # by whoever hung in it


def test_a_replacement_that_comes_after_a_swap_is_closed(world: World) -> None:
    """1. An instance hangs, and is built again. 2. The node is swapped. 3. The replacement is ready."""
    building, goes_on = threading.Event(), threading.Event()

    class Slow(Versioned):
        def __init__(self, *, world: World, version: int = 1) -> None:
            super().__init__(world=world, version=version)
            if len(world.built) == 2:
                building.set()
                assert goes_on.wait(WAIT_S)

    world.waits[1] = threading.Event()
    with Pipe(backend=Slow, world=world, hang_timeout=0.3) as pipe:
        with pytest.raises(BackendHung):
            pipe({"data": 1})
        assert building.wait(WAIT_S)
        assert not pipe.health()["healthy"]
        pipe.swap("main", version=2)
        assert pipe.health()["healthy"]
        assert pipe({"data": 1})["result"] == (2, 1)
        goes_on.set()
        until(lambda: world.built[1] in world.closed)
        assert pipe({"data": 1})["result"] == (2, 1)
        assert pipe.stats()["nodes"]["main"]["instances"]["replaced"] == 0
        world.waits[1].set()


class Loses(Versioned):
    """Loses its device if it is told to; version 2 has another one."""

    def forward(self, batch: list[Request]) -> None:
        super().forward(batch)
        if self.version == 1 and any(request["data"] == "lose" for request in batch):
            raise DeviceLost("it has fallen off the bus")


def test_a_swap_brings_a_node_back_that_has_lost_its_device(world: World) -> None:
    with Pipe(backend=Loses, world=world) as pipe:
        for data in ("lose", 1):
            with pytest.raises(DeviceLost):
                pipe({"data": data})
        assert not pipe.health()["healthy"]
        pipe.swap("main", version=2)
        assert pipe.health() == {"healthy": True, "problems": []}
        assert pipe({"data": 1})["result"] == (2, 1)


def test_a_device_that_an_old_instance_loses_is_not_the_new_ones(world: World) -> None:
    """Its batch fails, and no other."""
    world.waits[1] = threading.Event()
    with Pipe(backend=Loses, world=world) as pipe, ThreadPoolExecutor(1) as executor:
        losing = pipe.submit({"data": "lose"})
        assert world.inside.acquire(timeout=WAIT_S)
        swapping = executor.submit(pipe.swap, "main", version=2)
        until(lambda: pipe.stats()["nodes"]["main"]["instances"]["switches"] == 1)
        world.waits[1].set()
        with pytest.raises(DeviceLost):
            losing.result(WAIT_S)
        swapping.result(WAIT_S)
        assert pipe.health()["healthy"]
        assert pipe({"data": 1})["result"] == (2, 1)


# ---- kinds of nodes ------------------------------------------------------------------------------------------------


def test_logical_nodes_and_proxies_run_in_the_new_instances(world: World) -> None:
    nodes = {
        "a": {"backend": Versioned, "world": world, "next": "b"},
        "b": {"backend": "S[Identity,Proxy]", "proxy": "a.2"},
        "a.2": {},
        "c": {"backend": "Proxy", "proxy": "a"},
    }
    with Pipe(nodes) as pipe:
        assert pipe({"data": 1}, entry="a")["result"] == (1, (1, 1))
        pipe.swap("a", version=2)
        pipe.swap("b")
        assert pipe({"data": 1}, entry="a")["result"] == (2, (2, 1))
        assert pipe({"data": 1}, entry="c")["result"] == (2, 1)


def test_a_step_of_a_sequential_is_swapped_by_its_scoped_key(world: World) -> None:
    steps = fastpipe.Sequential(Step(Adds), Step(Versioned))
    with Pipe({"backend": steps, "Adds::amount": 1, "world": world}) as pipe:
        assert pipe({"data": 1})["result"] == (1, 2)
        pipe.swap("main", {"Adds::amount": 10, "version": 2})
        assert pipe({"data": 1})["result"] == (2, 11)
        pipe.swap("main", {"version": 3}, **{"Adds::amount": 20})
        assert pipe({"data": 1})["result"] == (3, 21)
        assert world.versions() == {3: 1}


def test_a_node_of_several_backends_is_swapped_as_one(world: World) -> None:
    class Fixed(Backend):
        def __init__(self, *, world: World, max: int, min: int, version: int = 1) -> None:
            self.max_batch, self.min_batch, self.version = max, min, version

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["result"] = (self.version, len(batch))

    with Pipe(backend=Fixed, world=world, max="1&4", min="1&4", batching="greedy") as pipe:
        assert [request["result"] for request in pipe([{"data": 1}] * 1)] == [(1, 1)]
        pipe.swap("main", version=2, max="1&8", min="1&8")
        assert pipe.stats()["nodes"]["main"]["max"] == 8
        assert {request["result"] for request in pipe([{"data": index} for index in range(8)])} <= {(2, 8), (2, 1)}


class Placed(Versioned):
    """At the place of its site, or at the next in turn."""

    places = ("x", "y")

    def __init__(self, *, world: World, version: int = 1, places: tuple[str, ...] = ("x", "y")) -> None:
        super().__init__(world=world, version=version)
        wanted = site().place
        self.place = wanted if wanted in places else places[len(world.built) % len(places)]

    def place_of(self, request: Request) -> Any:
        """Where its data is."""
        return request.get("at")

    def forward(self, batch: list[Request]) -> None:
        super().forward(batch)
        for request in batch:
            request["result"] = (self.version, self.place)


def test_instances_at_several_places_are_swapped_at_each(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        pipe.swap("main", version=2)
        assert {pipe({"data": 1, "at": place})["result"] for place in "xy"} == {(2, "x"), (2, "y")}
        pipe.resize("main", instance_num=5)
        assert sorted(pipe.stats()["nodes"]["main"]["places"][place]["instances"]["count"] for place in "xy") == [2, 3]
        assert pipe.stats()["nodes"]["main"]["instances"]["switches"] == 2
        pipe.resize("main", instance_num=2)
        assert {pipe({"data": 1, "at": place})["result"] for place in "xy"} == {(2, "x"), (2, "y")}
        with pytest.raises(
            ConfigError, match="instance_num: must be at least 2, as its instances are at so many places"
        ):
            pipe.resize("main", instance_num=1)
        with pytest.raises(ConfigError, match="its instances stay where they are while it serves"):
            pipe.swap("main", places=("x", "z"), instance_num=4)
        assert world.versions() == {2: 2}


def test_a_node_at_one_place_may_move_to_another(world: World) -> None:
    """All of its instances together; more of them are where it is."""
    with Pipe(backend=Placed, world=world, places=("x",)) as pipe:
        pipe.swap("main", places=("z",), instance_num=2)
        assert pipe.stations[0].place == "z"
        assert pipe({"data": 1})["result"] == (1, "z")
        pipe.swap("main", places=("y", "z"))
        pipe.resize("main", instance_num=3)
        assert {each.place for each in world.built if each not in world.closed} == {"z"}


# ---- resize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Versioned, OnThread])
def test_resize_builds_what_is_missing_and_closes_what_is_too_much(world: World, kind: type[Versioned]) -> None:
    with Pipe(backend=kind, world=world, max=8) as pipe:
        for count in (3, 8, 2, 1, 4):
            kept = [each for each in world.built if each not in world.closed]
            pipe.resize("main", instance_num=count)
            serving = [each for each in world.built if each not in world.closed]
            assert len(serving) == count
            assert len(set(map(id, kept)) & set(map(id, serving))) == min(
                len(kept), count
            )  # who stays is not built again
            assert sorted(pipe.stations[0].numbers_in_service()) == list(range(count))
            assert pipe({"data": 1})["result"] == (1, 1)
            until(lambda count=count: len(workers()) == count)  # type: ignore[misc]
        assert pipe.capacity == 32


def test_instances_work_at_the_same_time_after_a_resize(world: World) -> None:
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world, largest=1) as pipe:
        pipe.resize("main", instance_num=3)
        futures = [pipe.submit({"data": index}) for index in range(4)]
        for _ in range(3):
            assert world.inside.acquire(timeout=WAIT_S)
        queued(pipe, 1)
        world.waits[1].set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [(1, index) for index in range(4)]


def test_a_shrinking_node_closes_first_what_hangs_anyhow(world: World) -> None:
    world.waits[1] = threading.Event()
    with Pipe(backend=Versioned, world=world, instance_num=2, hang_timeout=0.3, largest=1) as pipe:
        world.fails_from = 2
        with pytest.raises(BackendHung):
            pipe({"data": 1})
        world.waits[1].set()
        until(lambda: "could not be built again" in str(pipe.health()["problems"]))
        pipe.resize("main", instance_num=1)
        assert pipe.health() == {"healthy": True, "problems": []}
        assert pipe.stats()["nodes"]["main"]["instances"]["in_service"] == 1
        assert pipe({"data": 1})["result"] == (1, 1)


def test_another_max_needs_new_instances_only_where_they_take_it(world: World) -> None:
    """From then on batches are as large, or as small; requests that wait are too."""

    class Takes(Backend):
        built = 0

        def __init__(self, *, max: int = 1) -> None:
            Takes.built += 1
            self.most = max

        def forward(self, batch: list[Request]) -> None:
            assert len(batch) <= self.most
            for request in batch:
                request["result"] = len(batch)

    gate = Gate()
    gate.max_batch = None  # type: ignore[assignment]
    with Pipe({"a": {"backend": gate}, "b": {"backend": Takes}}) as pipe:
        pipe.submit({"data": 0}, entry="a")
        assert gate.inside.wait(WAIT_S)
        futures = [pipe.submit({"data": index}, entry="a") for index in range(1, 7)]
        queued(pipe, 6, "a")
        pipe.resize("a", max=4)
        gate.opened.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == list(range(1, 7))
        assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
        pipe.resize("b", max=6)
        assert Takes.built == 2
        assert pipe.stats()["nodes"]["b"]["max"] == 6
        assert max(request["result"] for request in pipe([{"data": 1} for _ in range(6)], entry="b")) > 1
        pipe.resize("b", max=1)
        assert {request["result"] for request in pipe([{"data": 1} for _ in range(6)], entry="b")} == {1}


def test_numbers_of_batch_sizes_go_on_when_batches_get_larger() -> None:
    with Pipe(backend=Adds, max=1) as pipe:
        for _ in range(5):
            pipe({"data": 1})
        pipe.resize("main", max=100)
        pipe([{"data": index} for index in range(100)])
        sizes = pipe.stats()["nodes"]["main"]["batch_sizes"]
        assert (sizes["sum"], sizes["buckets"][1.0]) == (105, 5)
        assert pipe.stats()["nodes"]["main"]["weights"] == sizes


# ---- beside it -----------------------------------------------------------------------------------------------------


def test_two_threads_swap_one_after_the_other(world: World) -> None:
    with Pipe(backend=Versioned, world=world) as pipe, ThreadPoolExecutor(8) as executor:
        for swapping in [executor.submit(pipe.swap, "main", version=version) for version in range(2, 10)]:
            swapping.result(WAIT_S)
        assert len(world.closed) == 8
        (left,) = world.versions()
        assert pipe({"data": 1})["result"] == (left, 1)


@pytest.mark.parametrize("kind", [Versioned, OnThread])
def test_old_instances_are_freed(world: World, kind: type[Versioned]) -> None:
    """Nothing of the pipe refers to them once swap() returns."""
    with Pipe(backend=kind, world=world, instance_num=2, bucket="data") as pipe:
        pipe({"data": 1})
        pipe([{"data": index} for index in range(9)])
        old = [weakref.ref(each) for each in world.built]
        world.built.clear()
        pipe.swap("main", version=2)
        world.closed.clear()
        gc.collect()
        assert [each() for each in old] == [None, None]


def test_a_pipe_is_freed_that_was_swapped(world: World) -> None:
    pipe = Pipe(backend=Versioned, world=world)
    pipe.swap("main", version=2)
    gone = weakref.ref(pipe)
    del pipe
    until(lambda: gc.collect() >= 0 and gone() is None)
    until(lambda: len(world.closed) == 2)


def test_the_picture_and_a_record_say_what_is_there_now(world: World, tmp_path: Path) -> None:
    """So does whatever began before."""
    from fastpipe.debug import record_files

    with Pipe({"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity"}}) as pipe:
        with pipe.record(tmp_path, sample=1.0) as recording, pipe.debug({"data": 3}) as debugger:
            pipe({"data": 1})
            until(lambda: recording.written == 1)
            debugger.step()
            pipe.swap("b", backend="Pow", instance_num=2)
            assert debugger.run() is None or debugger.finished
            assert debugger.request is not None
            until(lambda: recording.written == 2)
            pipe({"data": 3})
            until(lambda: recording.written == 3)
        assert "Pow" in pipe.graph().mermaid()
        records = [record_files.read(path) for path in tmp_path.iterdir()]
    changed = {"b": {"backend": "Pow", "instance_num": 2}}
    assert sorted(len(record.manifest["configuration"]["keywords"]) for record in records) == [0, 1, 1]
    assert [each for record in records if (each := record.manifest["configuration"]["keywords"])] == [changed, changed]


def test_a_file_that_has_changed_is_not_read_again(world: World, tmp_path: Path) -> None:
    """What was not to be changed is as it was."""
    path = tmp_path / "pipe.toml"
    path.write_text('backend = "helpers:Adds"\namount = 5\n')
    with Pipe(path) as pipe:
        path.write_text('backend = "helpers:Adds"\namount = 50\ninstance_num = 3\n')
        pipe.swap("main", max=2)
        assert pipe({"data": 1})["result"] == 6
        assert pipe.stats()["nodes"]["main"]["instances"]["count"] == 1
        pipe.swap("main", amount="7")
        assert pipe({"data": 1})["result"] == 8


def test_the_log_says_what_was_done_and_what_was_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastpipe")

    class Warm(Versioned):
        warmed_up = "batches of 8"

    with Pipe(backend=Warm, world=world) as pipe:
        pipe.swap("main", version=2, instance_num=2)
        world.fails_from = 0
        with pytest.raises(OSError, match="no memory"):
            pipe.swap("main", version=3)
    done = next(record for record in caplog.records if getattr(record, "kind", "") == "switched")
    assert done.getMessage().startswith("node 'main': it serves with other instances, after ")
    assert done.getMessage().endswith(": 2 built, 1 closed; warmed up: batches of 8")
    failed = next(record for record in caplog.records if getattr(record, "kind", "") == "not_switched")
    assert failed.getMessage() == "node 'main': it goes on as it was: OSError: no memory on the device"


def test_a_coroutine_swaps_on_a_thread(world: World) -> None:
    """The loop goes on meanwhile."""

    async def main(pipe: Pipe) -> None:
        swapping = asyncio.create_task(asyncio.to_thread(pipe.swap, "main", version=2))
        while not swapping.done():
            assert (await pipe.acall({"data": 1}))["result"] in {(1, 1), (2, 1)}
        await swapping
        assert (await pipe.acall({"data": 1}))["result"] == (2, 1)

    with Pipe(backend=Versioned, world=world) as pipe:
        asyncio.run(asyncio.wait_for(main(pipe), WAIT_S))
