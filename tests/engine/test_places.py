"""Instances at several places: GPUs, or what stands in for them here."""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
from ledger import DONE, UNCLEAR, Ledger

import fastpipe
from fastpipe import Backend, BackendHung, CallLoop, ConfigError, DeviceLost, Pipe, PipeClosed, QueueFull, Request
from fastpipe.backends.gpu import devices
from fastpipe.backends.gpu.devices import Follower, claim_gpu, place_of
from fastpipe.contract import Child, Container, Site, site
from fastpipe.sites import building

WAIT_S = 20.0


class World:
    """What the instances of a test share: where each is, what ran where, and who may go on."""

    def __init__(self, *places: Any) -> None:
        self.places = places or ("a", "b")
        self.built: list[Placed] = []
        self.closed: list[Placed] = []
        self.ran: list[tuple[Any, Any]] = []  # place, data
        self.opened = {place: threading.Event() for place in self.places}
        self.inside = {place: threading.Semaphore(0) for place in self.places}
        for opened in self.opened.values():
            opened.set()

    def shut(self, *places: Any) -> None:
        """Have batches stay in their instances from now on."""
        for place in places or self.opened:
            self.inside[place] = threading.Semaphore(0)
            self.opened[place].clear()

    def open(self, *places: Any) -> None:
        for place in places or self.opened:
            self.opened[place].set()

    def await_inside(self, *places: Any) -> None:
        """Wait until one more batch has come into an instance at each of the places."""
        for place in places:
            assert self.inside[place].acquire(timeout=WAIT_S)

    def at(self, place: Any) -> list[Any]:
        """Return the data that ran at a place, in order."""
        return [data for where, data in self.ran if where == place]


class Placed(Backend):
    """Returns its data, where the instance is; instances go to the places of the world in turn."""

    def __init__(self, *, world: World) -> None:
        self.world = world
        self.place = site().place or world.places[len(world.built) % len(world.places)]
        self.thread = threading.current_thread()
        world.built.append(self)

    def place_of(self, request: Request) -> Any:
        """Return where the data is; host data is nowhere."""
        if request.get("at") == "broken":
            raise ValueError("nobody knows where it is")
        return request.get("at")

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.world.ran.append((self.place, request["data"]))
        self.world.inside[self.place].release()
        assert self.world.opened[self.place].wait(WAIT_S)
        for request in batch:
            if request["data"] == "lost":
                raise DeviceLost("gone")
            request["result"], request["at"] = request["data"], self.place

    def close(self) -> None:
        self.world.closed.append(self)


class Bound(Placed):
    """The same, each instance on a thread of its own."""

    thread_bound = True

    def forward(self, batch: list[Request]) -> None:
        assert threading.current_thread() is self.thread
        super().forward(batch)


@pytest.fixture
def world() -> Iterator[World]:
    """Two places."""
    made = World()
    yield made
    made.open()


def stats_of(pipe: Pipe, node: str = "main") -> dict[str, Any]:
    stats: dict[str, Any] = pipe.stats()["nodes"][node]
    return stats


def outstanding(pipe: Pipe, node: str = "main") -> dict[Any, int]:
    """Return how many requests are queued or run at each place."""
    return {place: each["queued"] + each["running"] for place, each in stats_of(pipe, node)["places"].items()}


def settles(condition: Callable[[], bool]) -> bool:
    """Whether that becomes true: a worker may be about to count what it has just taken."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.001)
    return True


def until(condition: Callable[[], bool]) -> None:
    assert settles(condition)


def occupied(pipe: Pipe, world: World, *places: Any) -> list[Future[Request]]:
    """Have one request stay in an instance at each of the places."""
    world.shut(*places)
    futures = [pipe.submit({"data": f"first at {place}", "at": place}) for place in places]
    world.await_inside(*places)
    return futures


# ---- which place -----------------------------------------------------------------------------------------------------


def test_a_request_runs_where_its_data_is_though_others_are_idle(world: World) -> None:
    """It queues there."""
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        futures = occupied(pipe, world, "a")
        futures += [pipe.submit({"data": number, "at": "a"}) for number in range(5)]
        pipe.submit({"data": "other", "at": "b"}).result(WAIT_S)
        assert settles(lambda: outstanding(pipe) == {"a": 6, "b": 0})
        world.open()
        for future in futures:
            future.result(WAIT_S)
    assert world.at("a") == ["first at a", *range(5)]
    assert world.at("b") == ["other"]


@pytest.mark.parametrize("way", ["call", "list", "map", "submit", "acall", "eager"])
def test_every_way_of_calling_goes_where_the_data_is(world: World, way: str) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2, max=4) as pipe:
        requests = [{"data": number, "at": "ab"[number // 3 % 2]} for number in range(12)]
        if way in ("call", "eager"):
            for request in requests:
                pipe(request, eager=way == "eager")
        elif way == "list":
            pipe(requests)
        elif way == "map":
            list(pipe.map(requests))
        elif way == "submit":
            for future in [pipe.submit(request) for request in requests]:
                future.result(WAIT_S)
        else:

            async def gathered() -> None:
                await asyncio.gather(*[pipe.acall(request) for request in requests])

            asyncio.run(gathered())
    assert sorted(world.at("a")) == [0, 1, 2, 6, 7, 8]
    assert sorted(world.at("b")) == [3, 4, 5, 9, 10, 11]


def test_data_from_a_place_without_an_instance_moves_to_where_least_is_to_do(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        held = occupied(pipe, world, "a")
        assert [pipe({"data": number, "at": "elsewhere"})["at"] for number in range(3)] == ["b"] * 3
        world.open()
        held[0].result(WAIT_S)


def test_an_idle_pipe_takes_its_places_in_turn(world: World) -> None:
    """By every caller's own thread."""
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        assert [pipe({"data": number})["at"] for number in range(4)] == ["a", "b", "a", "b"]
        assert stats_of(pipe)["run_by_caller"] == 4


def test_host_data_goes_where_the_fewest_requests_are(world: World) -> None:
    """Queued and running ones count, those of a list as well that have just been queued."""
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        futures = occupied(pipe, world, "a", "b")
        futures += [pipe.submit({"data": number, "at": "a"}) for number in range(4)]
        assert settles(lambda: outstanding(pipe) == {"a": 5, "b": 1})
        for number in range(3):
            futures.append(pipe.submit({"data": number}))
            assert settles(lambda wanted=2 + number: outstanding(pipe) == {"a": 5, "b": wanted})
        with_list = threading.Thread(target=pipe, args=([{"data": number} for number in range(7)],))
        with_list.start()
        assert settles(lambda: outstanding(pipe) == {"a": 8, "b": 8})
        world.open()
        with_list.join(WAIT_S)
        for future in futures:
            future.result(WAIT_S)


def test_what_counts_is_requests_per_instance(world: World) -> None:
    """With two instances at one place and one at the other, it gets two thirds."""
    world.places = ("a", "b", "a")
    with Pipe(backend=Placed, world=world, instance_num=3) as pipe:
        world.shut()
        futures = [pipe.submit({"data": number}) for number in range(9)]
        assert settles(lambda: outstanding(pipe) == {"a": 6, "b": 3})
        world.open()
        for future in futures:
            future.result(WAIT_S)


def test_what_says_where_data_is_fails_only_its_own_request(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2, max=4) as pipe:
        requests = [{"data": 1}, {"data": 2, "at": "broken"}, {"data": 3}]
        with pytest.raises(ExceptionGroup) as caught:
            pipe(requests)
        (error,) = caught.value.exceptions
        assert isinstance(error, ValueError)
        assert "fastpipe: node 'main', backend Placed" in error.__notes__
        assert [request.get("result") for request in requests] == [1, None, 3]
        with pytest.raises(ValueError, match="nobody knows"):
            pipe({"data": 2, "at": "broken"}, eager=True)
        assert pipe.stats()["requests"]["failed"] == 2


def test_without_place_of_all_data_goes_where_least_is_to_do(world: World) -> None:
    class Silent(Placed):
        place_of = None  # type: ignore[assignment]

    with Pipe(backend=Silent, world=world, instance_num=2) as pipe:
        assert [pipe({"data": number, "at": "b"})["at"] for number in range(4)] == ["a", "b", "a", "b"]


def test_one_place_is_as_none(world: World) -> None:
    """Nobody is asked where data is, and no counter or sentence says anything of places."""
    world.places = ("a",)
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        assert pipe({"data": 1, "at": "broken"})["result"] == 1
        assert "places" not in stats_of(pipe)
        with pytest.raises(DeviceLost, match="node 'main' has lost its device"):
            pipe({"data": "lost"})
        assert pipe.health()["problems"] == ["node 'main' has lost its device: DeviceLost: gone"]


# ---- in a graph ------------------------------------------------------------------------------------------------------


def test_a_request_stays_at_its_place_from_node_to_node(world: World) -> None:
    """Also in a branch and behind a join."""
    node = {"backend": Placed, "world": world, "instance_num": 2, "max": 4}
    with Pipe(
        first={**node, "next": "left,right"},
        left={**node, "next": "last"},
        right={**node, "next": "last"},
        last={**node, "map": "left[result:data,at:at],right[result:other]"},
    ) as pipe:
        for future in [pipe.submit({"data": number}) for number in range(20)]:
            future.result(WAIT_S)
        runs = Counter(world.ran)
        for number in range(20):
            assert runs["a", number] + runs["b", number] == 4
            assert 0 in (runs["a", number], runs["b", number])
        for name in ("first", "left", "right", "last"):
            assert stats_of(pipe, name)["requests"] == 20


def test_logical_nodes_share_the_places(world: World) -> None:
    """And their queues: they have one choice, and go where the data is, too."""
    with Pipe(
        {
            "rec": {"backend": Placed, "world": world, "instance_num": 2, "next": "rec.2"},
            "rec.2": {"next": "rec.3"},
            "rec.3": {},
        }
    ) as pipe:
        assert pipe({"data": 1, "at": "b"})["at"] == "b"
        assert pipe({"data": 2})["result"] == 2
        assert world.at("b").count(1) == 3
        assert 3 in (world.at("a").count(2), world.at("b").count(2))
        places = stats_of(pipe, "rec")["places"]
        assert sum(each["requests"] for each in places.values()) == stats_of(pipe, "rec")["requests"] == 6


def test_parts_of_a_request_go_where_their_data_is(world: World) -> None:
    with Pipe(
        whole={"backend": "MapReduce", "jump": "part", "split": "data,at", "merge": "result,at"},
        part={"backend": Placed, "world": world, "instance_num": 2, "max": 4},
    ) as pipe:
        answer = pipe({"data": [0, 1, 2, 3, 4], "at": ["a", "b", "b", "a", None], "node_name": "whole"})
        assert answer["result"] == [0, 1, 2, 3, 4]
        assert answer["at"][:4] == ["a", "b", "b", "a"]


def test_a_step_that_sends_parts_reaches_every_place(world: World) -> None:
    """A MapReduce inside of each placed instance is connected."""
    with Pipe(
        whole={
            "backend": fastpipe.Sequential(Placed, fastpipe.Step("MapReduce", jump="part", split="data")),
            "world": world,
            "instance_num": 2,
        },
        part={"backend": "Pow"},
    ) as pipe:
        for _ in range(2):
            assert pipe({"data": [1, 2], "node_name": "whole"})["result"] == [1, 4]
        assert len(world.ran) == 2


def test_a_request_that_enters_again_stays_where_it_has_been(world: World) -> None:
    class Twice(Placed):
        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            for request in batch:
                request["rounds"] = request.get("rounds", 0) + 1
                if request["rounds"] < 4:
                    request["restart"] = "main"

    with Pipe(backend=Twice, world=world, instance_num=2) as pipe:
        assert pipe({"data": 1, "at": "b"})["rounds"] == 4
        pipe({"data": 2})
        assert world.at("b").count(1) == 4
        assert len(set(world.ran)) == 2


def test_of_what_is_upstream_only_what_can_come_is_company(world: World) -> None:
    """Requests at another place stay there; those of a node that is nowhere may come to any."""
    node = {"backend": Placed, "world": world, "instance_num": 2}
    with Pipe(
        host={"backend": "Identity", "next": "first"}, first={**node, "next": "last"}, last={**node, "max": 4}
    ) as pipe:
        company = {
            twin.station.title: {each.title for each in twin.station.upstream}
            for node in pipe.nodes
            for twin in node.twins or ()
        }
    assert company == {
        "node 'first' at a": {"node 'host'"},
        "node 'first' at b": {"node 'host'"},
        "node 'last' at a": {"node 'host'", "node 'first' at a"},
        "node 'last' at b": {"node 'host'", "node 'first' at b"},
    }


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_rejects_by_the_sum_of_all_places(world: World) -> None:
    """Wherever the one more would go."""
    with Pipe(backend=Placed, world=world, instance_num=2, max_queue=3, when_full="reject") as pipe:
        futures = occupied(pipe, world, "a", "b")
        futures += [pipe.submit({"data": number, "at": place}) for number, place in enumerate("aab")]
        for place in ("a", "b", None):
            with pytest.raises(QueueFull, match=r"queue of node 'main' is full: 3 requests wait, .* max_queue is 3"):
                pipe.submit({"data": "too much", "at": place})
        world.open("b")
        until(lambda: outstanding(pipe)["b"] == 0)
        futures.append(pipe.submit({"data": "room", "at": "a"}))
        assert settles(lambda: outstanding(pipe)["a"] == 4)
        world.open()
        for future in futures:
            future.result(WAIT_S)
        assert pipe.stats()["requests"]["refused"] == 3


@pytest.mark.parametrize("way", ["call", "acall"])
def test_a_caller_waits_for_room_at_any_place(world: World, way: str) -> None:
    """Room at one place lets one in that goes to the other."""
    with Pipe(backend=Placed, world=world, instance_num=2, max_queue=2) as pipe:
        futures = occupied(pipe, world, "a", "b")
        futures += [pipe.submit({"data": 0, "at": "a"}), pipe.submit({"data": 1, "at": "b"})]
        request = {"data": "waits", "at": "a"}

        async def call() -> None:
            await pipe.acall(request)

        caller = threading.Thread(target=(lambda: pipe(request)) if way == "call" else (lambda: asyncio.run(call())))
        before = pipe.stats()["requests"]["accepted"]
        caller.start()
        world.open("b")
        until(lambda: pipe.stats()["requests"]["accepted"] == before + 1)
        assert settles(lambda: outstanding(pipe) == {"a": 3, "b": 0})
        world.open()
        caller.join(WAIT_S)
        assert request["result"] == "waits"
        for future in futures:
            future.result(WAIT_S)


@pytest.mark.parametrize("way", ["call", "submit", "list"])
def test_places_held_in_the_queue_are_given_back(world: World, way: str) -> None:
    """However a request ends, and wherever it went: otherwise the queue would be full before its time."""
    with Pipe(backend=Placed, world=world, instance_num=2, max_queue=2, when_full="reject") as pipe:
        for number in range(10):
            request = {"data": number, "at": (None, "a", "b", "elsewhere", "broken")[number % 5]}
            if request["at"] == "broken":
                with pytest.raises((ValueError, ExceptionGroup)):
                    pipe([request]) if way == "list" else pipe(request)
            elif way == "call":
                pipe(request)
            elif way == "list":
                pipe([request])
            else:
                pipe.submit(request).result(WAIT_S)
        futures = occupied(pipe, world, "a", "b")
        futures += [pipe.submit({"data": 0}), pipe.submit({"data": 1})]
        with pytest.raises(QueueFull, match="2 requests wait"):
            pipe.submit({"data": 2})
        futures[2].cancel()
        futures[2] = pipe.submit({"data": 3})
        world.open()
        for future in futures:
            future.result(WAIT_S)


def test_the_oldest_of_all_places_is_shed(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2, max_queue=3, when_full="shed_oldest") as pipe:
        held = occupied(pipe, world, "a", "b")
        queued = [pipe.submit({"data": number, "at": place}) for number, place in enumerate("abaaa")]
        for future in queued[:2]:
            with pytest.raises(QueueFull, match="3 requests wait"):
                future.result(WAIT_S)
        assert settles(lambda: outstanding(pipe) == {"a": 4, "b": 1})
        urgent = pipe.submit({"data": "urgent", "at": "b"}, priority=-10)
        with pytest.raises(QueueFull):
            queued[2].result(WAIT_S)
        world.open()
        for future in [*held, *queued[3:], urgent]:
            future.result(WAIT_S)
        assert pipe.stats()["failures"] == {"queue full": 3}


def test_bytes_are_counted_at_all_places_together(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2, max_queue_bytes=20, when_full="reject") as pipe:
        held = occupied(pipe, world, "a", "b")
        queued = [pipe.submit({"data": b"12345678", "at": "a"}), pipe.submit({"data": b"12345678", "at": "b"})]
        with pytest.raises(QueueFull, match="16 bytes wait, the request has 5, and its max_queue_bytes is 20"):
            pipe.submit({"data": b"abcde"})
        queued.append(pipe.submit({"data": b"abcd"}))
        world.open()
        for future in [*held, *queued]:
            future.result(WAIT_S)


def test_further_on_a_full_queue_fails_what_comes_by_the_sum(world: World) -> None:
    with Pipe(
        first={"backend": "Identity", "next": "gpu", "max": 4},
        gpu={"backend": Placed, "world": world, "instance_num": 2, "max_queue": 2, "when_full": "reject"},
    ) as pipe:
        world.shut()
        held = [pipe.submit({"data": place, "at": place, "node_name": "first"}) for place in "ab"]
        world.await_inside("a", "b")
        queued = [pipe.submit({"data": number, "at": "b", "node_name": "first"}) for number in range(2)]
        until(lambda: stats_of(pipe, "gpu")["queued"] == 2)
        with pytest.raises(QueueFull):
            pipe({"data": 3, "at": "a", "node_name": "first"})
        world.open()
        for future in [*held, *queued]:
            future.result(WAIT_S)


# ---- trouble ---------------------------------------------------------------------------------------------------------


def test_a_lost_device_fails_what_is_there_and_nothing_else(world: World) -> None:
    """Host data goes to the places that are left; health and errors say which one it is."""
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        for data in ("lost", 1):
            with pytest.raises(DeviceLost, match="node 'main' at b has lost its device: DeviceLost: gone"):
                pipe({"data": data, "at": "b"})
        assert [pipe({"data": number})["at"] for number in range(3)] == ["a"] * 3
        assert pipe({"data": 4, "at": "a"})["result"] == 4
        health = pipe.health()
        assert health == {"healthy": False, "problems": ["node 'main' at b has lost its device: DeviceLost: gone"]}
        with pytest.raises(DeviceLost, match="at a has"):
            pipe({"data": "lost", "at": "a"})
        with pytest.raises(DeviceLost):
            pipe({"data": 5})
        assert pipe.stats()["failures"] == {"device lost": 4}


def test_a_batch_that_hangs_at_one_place_leaves_the_other_alone(world: World) -> None:
    """Its requests fail, its instance is replaced at the same place, and keeps its number."""
    with Pipe(backend=Placed, world=world, instance_num=4, hang_timeout=0.3) as pipe:
        world.shut("b")
        with pytest.raises(BackendHung, match=r"did not return") as caught:
            pipe({"data": "hangs", "at": "b"})
        note = next(note for note in caught.value.__notes__ if "instance" in note)
        number = next(index for index, each in enumerate(world.built) if each.place == "b")
        assert f"instance {number}, batch of 1" in note
        assert f"fastpipe main#{number}" in caught.value.stacks
        assert [pipe({"data": each, "at": "a"})["at"] for each in range(3)] == ["a"] * 3
        until(lambda: len(world.built) == 5)
        assert world.built[4].place == "b"
        world.open()
        until(lambda: pipe.health()["healthy"])
        assert [pipe({"data": each, "at": "b"})["at"] for each in range(3)] == ["b"] * 3
        assert stats_of(pipe)["hung"] == stats_of(pipe)["places"]["b"]["hung"] == 1


def test_a_place_whose_instances_all_hang_fails_alone(world: World) -> None:
    """Without a replacement, as the backend cannot be built any more: what is there fails, the rest goes on."""

    class Once(Placed):
        def __init__(self, *, world: World) -> None:
            if len(world.built) == 2:
                raise RuntimeError("no more")
            super().__init__(world=world)

    with Pipe(backend=Once, world=world, instance_num=2, hang_timeout=0.2) as pipe:
        world.shut("b")
        with pytest.raises(BackendHung):
            pipe({"data": "hangs", "at": "b"})
        until(lambda: "could not be built again" in str(pipe.health()["problems"]))
        assert "node 'main' at b lacks 1 instance" in pipe.health()["problems"][0]
        with pytest.raises(BackendHung, match="node 'main' at b has no instance left"):
            pipe({"data": 1, "at": "b"})
        assert [pipe({"data": number})["at"] for number in range(3)] == ["a"] * 3
        world.open()
        until(lambda: len(world.closed) == 1)


def test_a_replacement_that_goes_elsewhere_is_refused(world: World) -> None:
    class Wanders(Placed):
        def __init__(self, *, world: World) -> None:
            super().__init__(world=world)
            if len(world.built) > 2:
                self.place = "a"

    with Pipe(backend=Wanders, world=world, instance_num=2, hang_timeout=0.2) as pipe:
        world.shut("b")
        with pytest.raises(BackendHung):
            pipe({"data": "hangs", "at": "b"})
        said = "it was to be at b, as the one that hung, and is at a"
        until(lambda: said in str(pipe.health()["problems"]))
        world.open()
        until(lambda: len(world.closed) >= 2)  # what was refused, and what comes back


@pytest.mark.parametrize("places", ["ab", "a"])
def test_an_instance_that_hung_is_asked_nothing_any_more(places: str) -> None:
    """Neither where data is nor for its bucket: it is closed once it comes back, before another is built or after."""
    world = World(*places)
    may_be_built = threading.Event()

    class Knows(Placed):
        max_batch = 4

        def __init__(self, *, world: World) -> None:
            assert len(world.built) < len(places) or may_be_built.wait(WAIT_S)
            super().__init__(world=world)
            self.known = {"a": "a", "b": "b"}

        def place_of(self, request: Request) -> Any:
            return self.known[request["at"]]

        def bucket(self, request: Request) -> Any:  # type: ignore[override]
            return self.known[request["at"]]

        def close(self) -> None:
            self.known.clear()
            super().close()

    node = {"backend": Knows, "world": world, "instance_num": len(places), "hang_timeout": 0.2, "next": "main.2"}
    with Pipe({"main": node, "main.2": {}}) as pipe:
        world.shut("a")
        with pytest.raises(BackendHung):
            pipe({"data": "hangs", "at": "a"})
        world.open()
        until(lambda: len(world.closed) == 1)
        if "b" in places:
            assert pipe({"data": 1, "at": "b"})["at"] == "b"
        may_be_built.set()
        until(lambda: pipe.health()["healthy"])
        assert [pipe({"data": 2, "at": place})["at"] for place in places] == list(places)
        hung = weakref.ref(world.built.pop(0))
        world.closed.clear()
        gc.collect()
        until(lambda: hung() is None)


def built_slowly_again() -> tuple[type[Placed], threading.Event]:
    """Return a backend of which more than two instances are built only after the event."""
    may_be_built = threading.Event()

    class Slow(Placed):
        def __init__(self, *, world: World) -> None:
            assert len(world.built) < 2 or may_be_built.wait(WAIT_S)
            super().__init__(world=world)

    return Slow, may_be_built


def test_host_data_passes_over_a_place_whose_instances_are_being_built_again(world: World) -> None:
    """It would wait there; data that is there does."""
    slow, may_be_built = built_slowly_again()
    with Pipe(backend=slow, world=world, instance_num=2, hang_timeout=0.2) as pipe:
        world.shut("b")
        with pytest.raises(BackendHung):
            pipe({"data": "hangs", "at": "b"})
        world.open()
        assert [pipe({"data": number}, timeout=WAIT_S)["at"] for number in range(4)] == ["a"] * 4
        waits = pipe.submit({"data": 4, "at": "b"})
        assert settles(lambda: outstanding(pipe) == {"a": 0, "b": 1})
        may_be_built.set()
        assert waits.result(WAIT_S)["at"] == "b"
        assert {pipe({"data": number})["at"] for number in range(4)} == {"a", "b"}


def test_host_data_waits_if_all_instances_are_being_built_again(world: World) -> None:
    slow, may_be_built = built_slowly_again()
    with Pipe(backend=slow, world=world, instance_num=2, hang_timeout=0.2) as pipe:
        for future in occupied(pipe, world, "a", "b"):
            with pytest.raises(BackendHung):
                future.result(WAIT_S)
        world.open()
        futures = [pipe.submit({"data": number}) for number in range(4)]
        assert settles(lambda: outstanding(pipe) == {"a": 2, "b": 2})
        may_be_built.set()
        assert [future.result(WAIT_S)["result"] for future in futures] == [0, 1, 2, 3]


def test_closing_in_the_middle_ends_what_waits_at_every_place(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2) as pipe:
        futures = occupied(pipe, world, "a", "b")
        futures += [pipe.submit({"data": number}) for number in range(6)]
        closer = threading.Thread(target=pipe.close, args=(0.0,))
        closer.start()
        for future in futures:
            with pytest.raises(PipeClosed):
                future.result(WAIT_S)
        world.open()
        closer.join(WAIT_S)
        pipe.close()
        assert sorted(map(id, world.closed)) == sorted(map(id, world.built))
        assert len(world.ran) == 2


def test_a_pipe_that_is_dropped_is_freed_at_once(world: World) -> None:
    """Nodes, twins and stations hold each other in no circle."""
    gc.disable()
    try:
        pipe = Pipe(backend=Placed, world=world, instance_num=2)
        pipe({"data": 1})
        node = weakref.ref(pipe)
        world.built.clear()
        kept = [weakref.ref(each.backend) for twin in pipe.nodes[0].twins or () for each in twin.instances]
        del pipe
        assert node() is None
        world.closed.clear()
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


def test_a_backend_that_waits_for_its_own_place_is_told_so(world: World) -> None:
    """The other place is free, but its data is here."""

    class Calls(Placed):
        pipe: Pipe

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if request["data"] > 0:
                    self.pipe({"data": request["data"] - 1, "at": request["at"]})
            super().forward(batch)

    with Pipe(backend=Calls, world=world, instance_num=2) as pipe:
        Calls.pipe = pipe
        with pytest.raises(CallLoop, match="queued at node 'main' at b; but all instances of 'main' at b wait"):
            pipe({"data": 1, "at": "b"})
        assert pipe({"data": 0, "at": "b"})["at"] == "b"
        del Calls.pipe


def test_a_backend_that_waits_for_room_which_only_its_own_place_can_make_is_told_so(world: World) -> None:
    """The other place is free, but has nothing in the queue that is full."""
    ready = threading.Event()

    class Calls(Placed):
        pipe: Pipe

        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            if batch[0]["data"] == "calls":
                assert ready.wait(WAIT_S)
                self.pipe({"data": "inner", "at": "a"})

    with Pipe(backend=Calls, world=world, instance_num=2, max_queue=1) as pipe:
        Calls.pipe = pipe
        first = pipe.submit({"data": "calls", "at": "b"})
        world.await_inside("b")
        second = pipe.submit({"data": "queued", "at": "b"})
        ready.set()
        with pytest.raises(CallLoop, match=r"room for a call of its own pipe at node 'main'; but all .* 'main' at b"):
            first.result(WAIT_S)
        assert second.result(WAIT_S)["at"] == "b"
        assert world.at("a") == []
        del Calls.pipe


@pytest.mark.parametrize("way", ["eager", "debugger"])
def test_who_waits_for_a_stuck_place_without_queueing_makes_no_room(world: World, way: str) -> None:
    """Its place in the queue that is full is held for it, until it has the instance which waits for that place."""
    ready = threading.Event()

    class Calls(Placed):
        pipe: Pipe

        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            if batch[0]["data"] == "calls":
                assert ready.wait(WAIT_S)
                self.pipe({"data": "inner", "at": "a"})

    def other() -> None:
        if way == "eager":
            pipe({"data": "other", "at": "b"}, eager=True)
        else:
            with pipe.debug({"data": "other", "at": "b"}) as debugger:
                debugger.step()

    with Pipe(backend=Calls, world=world, instance_num=2, max_queue=1) as pipe:
        Calls.pipe = pipe
        first = pipe.submit({"data": "calls", "at": "b"})
        world.await_inside("b")
        caller = threading.Thread(target=other)
        caller.start()
        until(lambda: pipe.stats()["requests"]["accepted"] == 2)
        ready.set()
        with pytest.raises(CallLoop, match=r"room for a call of its own pipe at node 'main'; but all .* 'main' at b"):
            first.result(WAIT_S)
        caller.join(WAIT_S)
        assert world.ran == [("b", "calls"), ("b", "other")]
        del Calls.pipe


# ---- counters, steps, threads ----------------------------------------------------------------------------------------


def test_stats_are_those_of_all_places_together(world: World) -> None:
    with Pipe(backend=Placed, world=world, instance_num=2, max=4) as pipe:
        pipe([{"data": number, "at": "aab"[number % 3]} for number in range(12)])
        stats = stats_of(pipe)
        places = stats.pop("places")
        assert {place: each["requests"] for place, each in places.items()} == {"a": 8, "b": 4}
        for key, total in stats.items():
            if key == "mean_batch":
                assert total == 12 / stats["batches"]
            elif key in ("why_batches_left", "failures", "instances"):
                assert Counter(total) == sum((Counter(each[key]) for each in places.values()), Counter())
            elif key in ("queue_s", "run_s", "batch_sizes", "weights"):
                assert Counter(total["buckets"]) == sum(
                    (Counter(each[key]["buckets"]) for each in places.values()), Counter()
                )
                assert total["sum"] == pytest.approx(sum(each[key]["sum"] for each in places.values()))
                assert total["max"] == max(each[key]["max"] for each in places.values())
            elif key == "max":
                assert total == places["a"]["max"] == 4
            else:
                assert total == pytest.approx(sum(each[key] for each in places.values())), key
        assert pipe.stats()["nodes"].keys() == {"main"}


def test_the_debugger_says_where_and_goes_there(world: World) -> None:
    """Host data goes where it was said to go: looking takes nobody's turn."""
    with Pipe(backend=Placed, world=world, instance_num=2, max=4) as pipe:
        for request, place in (({"data": 1, "at": "b"}, "b"), ({"data": 2}, "a"), ({"data": 3}, "b")):
            with pipe.debug(request) as debugger:
                step = debugger.step()
                assert step is not None
                assert step.batch["place"] == place == step.after["at"]
                assert f"1 of 1 instances idle at {place}" in str(step)
        assert "main" in str(pipe.graph())


def test_thread_bound_instances_are_built_and_run_on_their_threads(world: World) -> None:
    """Which have the number of their instance, wherever it is."""
    world.places = ("a", "b", "b")
    with Pipe(backend=Bound, world=world, instance_num=3) as pipe:
        assert [each.thread.name for each in world.built] == [f"fastpipe main#{number}" for number in range(3)]
        world.shut()
        futures = [pipe.submit({"data": number, "at": "b"}) for number in range(4)]
        world.await_inside("b", "b")
        world.open()
        for future in futures:
            future.result(WAIT_S)
        pipe({"data": 4, "at": "a"})
        pipe({"data": 5, "at": "b"}, eager=True)
    assert world.at("a") == [4]
    assert len(world.closed) == 3


def test_each_request_runs_once_at_its_place_under_load() -> None:
    """Eight threads, in every way of calling, with data here, there and nowhere."""
    world = World("a", "b", "c")
    ledger = Ledger(8 * 200)

    class Noted(Placed):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                if ledger.note_run(request["data"]) > 1:
                    ledger.mistake(f"request {request['data']} ran twice")
                if request.get("at", self.place) not in (self.place, "elsewhere"):
                    ledger.mistake(f"request {request['data']} of {request['at']} ran at {self.place}")
                request["result"], request["at"] = request["data"], self.place

    node = {"backend": Noted, "world": world, "instance_num": 5, "max": 4, "max_queue": 50}

    def client(seed: int) -> None:
        numbers = [ledger.accept() for _ in range(200)]
        requests = [{"data": number} for number in numbers]
        for request in requests:
            where = ("a", "b", "c", "elsewhere", None)[(request["data"] * 7 + seed) % 5]
            if where is not None:
                request["at"] = where  # type: ignore[assignment]
        if seed % 4 == 0:
            for request in requests:
                pipe(request)
        elif seed % 4 == 1:
            pipe(requests)
        elif seed % 4 == 2:
            list(pipe.map(requests))
        else:
            for future in [pipe.submit(request) for request in requests]:
                future.result(WAIT_S)
        for request in requests:
            ledger.end(request["data"], DONE if request["result"] == request["data"] else UNCLEAR)

    with Pipe(node) as pipe:
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(WAIT_S)
        assert ledger.check(pipe.stats())["done"] == 8 * 200
        assert stats_of(pipe)["requests"] == 8 * 200


# ---- what is built ---------------------------------------------------------------------------------------------------


def test_a_container_is_where_its_children_are(world: World) -> None:
    """A child that is everywhere goes with the others; the first that is somewhere tells where data is."""
    for backend in (
        fastpipe.Sequential("Identity", Placed),
        fastpipe.Sequential(fastpipe.Sequential("Identity", Placed), "SyncTensor"),
        fastpipe.Step("CatSplit", len, Placed, lambda whole: [whole]),
        fastpipe.Step("Range", Placed, "Identity", range="1,4"),
    ):
        world.built.clear()
        with Pipe(backend=backend, world=world, instance_num=2) as pipe:
            assert stats_of(pipe)["places"].keys() == {"a", "b"}


def test_children_at_different_places_are_refused() -> None:
    """With the names and places of all that are somewhere."""

    class Here(Backend):
        place = "a"

        def forward(self, batch: list[Request]) -> None:
            raise AssertionError("nothing runs")

    class There(Here):
        place = "b"

    with pytest.raises(ConfigError, match="must be at one place: Here is at a, There is at b; make nodes of them"):
        Pipe(backend=fastpipe.Sequential(Here, "Identity", There))
    assert Container([Child("Here", Here()), Child("Here", Here())]).place == "a"


def test_a_place_that_cannot_be_a_key_is_refused(world: World) -> None:
    world.places = (["a"],)
    with pytest.raises(ConfigError, match="node 'main': the place of an instance must be hashable: unhashable type"):
        Pipe(backend=Placed, world=world)


def test_every_instance_has_a_site_of_its_own() -> None:
    """All of its parts share it; what is built by hand has one for itself."""
    sites: list[Site] = []

    class Part(Backend):
        def __init__(self) -> None:
            sites.append(site())

        def forward(self, batch: list[Request]) -> None:
            raise AssertionError("nothing runs")

    with Pipe(backend=fastpipe.Sequential(Part, Part), instance_num=2):
        pass
    assert sites[0] is sites[1] is not sites[2]
    assert sites[2] is sites[3]
    assert site() is not site()


# ---- which GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with three GPUs on which nothing runs, or as many as are asked for."""

    def count(number: int) -> None:
        monkeypatch.setattr(devices, "gpus_of_torch", lambda: number)

    monkeypatch.setattr(devices, "_instances", {})
    count(3)
    return count


def test_instances_spread_over_the_gpus_that_are_named(gpus: Callable[[int], None]) -> None:
    """Each goes where the fewest are; closing one makes room, and so does dropping it."""
    claims = [claim_gpu("A", ["all"]) for _ in range(4)]
    assert [claim.number for claim in claims] == [0, 1, 2, 0]
    claims += [claim_gpu("A", ["cuda:1", "gpu:2"]), claim_gpu("A", ["cuda:1", "GPU:2"])]
    assert [claim.place for claim in claims[4:]] == ["cuda:1", "cuda:2"]
    claims[1].release()
    claims[1].release()
    claims.append(claim_gpu("A", ["ALL"]))
    assert claims[6].number == 1
    assert claim_gpu("A", None).number == 0
    cpu = claim_gpu("A", ["cpu"], or_cpu=True)
    assert (cpu.device, cpu.place) == ("cpu", None)
    claims.clear()
    del cpu
    assert set(devices._instances.values()) == {0}
    gpus(0)
    assert claim_gpu("A", ["all"]).number == 0  # whoever opens it says that there is none


def test_the_parts_of_an_instance_are_on_one_gpu_and_count_once(gpus: Callable[[int], None]) -> None:
    """The first chooses; those that may be there follow, and so does what says nothing."""
    claims = []
    for _ in range(2):
        with building(Site()):
            stream = Follower("C", ["all"])
            parts = [claim_gpu("A", ["cuda:1", "cuda:2"]), claim_gpu("B", None), claim_gpu("B", ["all"])]
        assert {part.number for part in parts} == {stream.number()}
        claims += parts
    assert [claims[0].number, claims[3].number] == [1, 2]
    assert devices._instances == {"cuda:1": 1, "cuda:2": 1}
    with building(Site("cuda:2")):
        assert claim_gpu("A", ["all"]).number == 2
        assert claim_gpu("A", ["cuda:0"]).number == 0
        assert Follower("C", None).number() == 2
        assert Follower("C", None, 1).number() == 1
        assert Follower("C", ["cpu"]).number() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["cuda:0"], 0), "A: device and device_id say the same: give one of them"),
        ((["tpu"],), "A: device: expected 'cuda', 'cuda:1', several of them, or 'all', got 'tpu'"),
        ((["cpu"],), "A: device: expected 'cuda', 'cuda:1', .* got 'cpu'"),
        ((["cuda:x"],), "got 'cuda:x'"),
        ((["cuda:0", "cuda:3"],), "A: there is no GPU 3; torch sees 3"),
    ],
)
def test_what_is_no_gpu_is_told(gpus: Callable[[int], None], arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        claim_gpu("A", *arguments)


class OnDevice:
    """An array that tells its device by DLPack."""

    def __init__(self, kind: int, number: int) -> None:
        self.device = kind, number

    def __repr__(self) -> str:  # the test's name: the same in every process
        return f"OnDevice{self.device}"

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class Liar:
    """Fails whoever asks."""

    def __repr__(self) -> str:
        return "Liar()"

    def __dlpack_device__(self) -> tuple[int, int]:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"bytes", None),
        (None, None),
        (OnDevice(1, 0), None),
        (OnDevice(2, 1), "cuda:1"),
        (OnDevice(13, 2), "cuda:2"),
        ([b"bytes", (OnDevice(2, 1),)], "cuda:1"),
        ({"a": 1, "b": OnDevice(2, 1)}, "cuda:1"),
        (Liar(), None),
        ([], None),
    ],
    ids=str,
)
def test_where_data_is_can_be_seen(data: Any, place: str | None) -> None:
    """Of anything; nothing is raised."""
    assert place_of({"data": data}) == place
    assert place_of({}) is None


def test_where_a_tensor_is_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        is_cuda = True

        def get_device(self) -> int:
            return 3

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor))  # type: ignore[arg-type]
    assert place_of({"data": [Tensor()]}) == "cuda:3"


def test_a_chain_on_a_stream_is_on_the_gpu_of_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs that are none: tensors stay where they are, and are worked on by a stream of that GPU."""
    driver = fake_cuda.Driver(gpus=2)
    torch = fake_cuda.fake_torch(driver)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)  # a real one, which has no such GPU
    monkeypatch.setattr(devices, "_instances", {})
    seen: list[tuple[int, int]] = []

    class Tensor(fake_cuda.FakeTensor):
        def to(self, device: Any, non_blocking: bool) -> Any:
            return self if device == ("cuda", self.gpu) else Tensor(device[1])

    class Looks(Backend):
        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                gpu = torch.library.device()
                seen.append((gpu, torch.library.current(gpu).gpu))
                request["result"] = request["data"]

    torch.Tensor, torch.device = Tensor, lambda *parts: parts
    backend = fastpipe.Step("Torch", Looks, "SyncTensor")
    with Pipe(backend=backend, device="all", instance_num=2) as pipe:
        tensors = [Tensor(number) for number in (1, 1, 0, 1)]
        answers = [pipe({"data": [tensor]}) for tensor in tensors]
        assert [answer["result"][0] is tensor for answer, tensor in zip(answers, tensors, strict=True)] == [True] * 4
        assert seen == [(1, 1), (1, 1), (0, 0), (1, 1)]
        assert {place: each["requests"] for place, each in stats_of(pipe)["places"].items()} == {
            "cuda:0": 1,
            "cuda:1": 3,
        }
    assert devices._instances == {"cuda:0": 0, "cuda:1": 0}


# ---- on two GPUs -----------------------------------------------------------------------------------------------------


def gpu_count() -> int:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return 0
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


@pytest.mark.skipif(gpu_count() < 2, reason="needs torch and two GPUs")
class TestTwoGpus:
    """With real ones: what is above holds for the backends in the box."""

    @pytest.fixture
    def torch(self) -> Any:
        return importlib.import_module("torch")

    def test_a_model_runs_where_the_tensor_is(self, torch: Any) -> None:
        """And its result stays there; host data is spread."""
        model = torch.nn.Linear(8, 4)
        with Pipe(backend="TorchTensor", model=model, max="8x8", device="cuda:0,cuda:1", instance_num=4) as pipe:
            places = stats_of(pipe)["places"]
            assert places.keys() == {"cuda:0", "cuda:1"}
            data = [torch.rand(1, 8, device=f"cuda:{number % 2}") for number in range(64)]
            requests = [{"data": each} for each in data]
            pipe(requests)
            for request, each in zip(requests, data, strict=True):
                assert request["result"].device == each.device
                torch.testing.assert_close(request["result"].cpu(), model.cpu()(each.cpu()), rtol=1e-3, atol=1e-3)
            host = [{"data": torch.rand(1, 8)} for _ in range(64)]
            pipe(host)
            shares = Counter(request["result"].device.index for request in host)
            assert shares == {0: 32, 1: 32}

    def test_a_chain_of_nodes_stays_on_one_gpu(self, torch: Any) -> None:
        """From host data on, through two nodes."""
        node = {"model": torch.nn.Linear(8, 8), "max": "8x8", "device": "all", "instance_num": 2}
        with Pipe(
            first={"backend": "S[GpuTensor,TorchTensor,SyncTensor]", "next": "last", **node},
            last={"backend": "S[TorchTensor,SyncTensor]", **node},
        ) as pipe:
            answers = list(pipe.map({"data": torch.rand(1, 8), "node_name": "first"} for _ in range(200)))
            shares = Counter(answer["result"].device.index for answer in answers)
            stats = pipe.stats()["nodes"]
        assert shares.keys() == {0, 1}
        for number, count in shares.items():
            for name in ("first", "last"):
                assert stats[name]["places"][f"cuda:{number}"]["requests"] == count

    def test_the_steps_of_an_instance_are_on_one_gpu(self, torch: Any) -> None:
        """Decoder, resizing, model and stream."""
        pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda)")
        cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")
        numpy = importlib.import_module("numpy")
        encoded = cv2.imencode(".jpg", numpy.full((64, 64, 3), 100, numpy.uint8))[1].tobytes()
        try:
            pipe = Pipe(
                backend="S[DecodeTensor,ResizeNormalizeTensor,TorchTensor,SyncTensor]",
                device="all",
                instance_num=2,
                max=8,
                hybrid="auto",
                resize_h=32,
                resize_w=32,
                model=torch.nn.Flatten(),
                rows="batch",
            )
        except fastpipe.MissingExtra as missing:
            pytest.skip(str(missing))
        with pipe:
            answers = [pipe({"data": encoded}) for _ in range(4)]
            assert sorted({answer["result"].device.index for answer in answers}) == [0, 1]
            for answer in answers:
                torch.testing.assert_close(answer["result"].cpu(), torch.full((1, 3072), 100.0), rtol=0, atol=2)
