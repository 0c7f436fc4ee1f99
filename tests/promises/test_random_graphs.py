"""Random graphs: whatever their shape, filters, maps, loops and caches, the engine answers as a plain interpreter does.

A few hundred graphs by default, fewer where ``FASTPIPE_SCALE`` is below 1. For 20,000, at 1 and at 8 callers (some
minutes):

    FASTPIPE_GRAPHS=20000 pytest tests/promises/test_random_graphs.py

A failure prints the graph's number. ``FASTPIPE_GRAPHS=1 FASTPIPE_FIRST_GRAPH=4711`` runs that graph alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import pprint
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import plain_interpreter as interpreter
import pytest
from helpers import SCALE
from ledger import check_measures

import fastpipe
from fastpipe import Backend, ItemErrors, Pipe, Request, Sequential, Status, Step
from fastpipe.contract import site

GRAPHS = int(os.environ.get("FASTPIPE_GRAPHS", int(400 * min(SCALE, 1))))
FIRST_GRAPH = int(os.environ.get("FASTPIPE_FIRST_GRAPH", "0"))
BLOCK = 200  # graphs per test
MOST_NODES = 12
CALLERS = 8
WAIT_S = 20.0

Nodes = Mapping[Any, Mapping[str, Any]]


# ---- what the nodes do -----------------------------------------------------------------------------------------------


def number(data: Any) -> int:
    """Return a number for whatever the data became: a list of numbers, or of lists, in the worst case."""
    if isinstance(data, list):
        return sum(map(number, data))
    return data if isinstance(data, int) else 0


def affine(request: Request, keys: Any, name: str) -> None:
    bonus = request["context"]["bonus"] if "context" in request else 0
    request["result"] = (number(request["data"]) * keys.get("times", 1) + keys.get("plus", 0) + bonus) % 10007
    request["trail"] = (*request.get("trail", ()), name)


def mutates(request: Request, keys: Any, name: str) -> None:
    """Writes, changes and removes keys: a dict that is shared with another branch would show it."""
    affine(request, keys, name)
    request[f"own {name}"] = sorted(key for key in request if key.startswith("own"))
    request["data"] = -1
    request.pop("tag", None)


def silent(request: Request, keys: Any, name: str) -> None:
    request["seen by"] = name


def raises(request: Request, keys: Any, name: str) -> None:
    """Changes its dict, then fails some: in a batch, the others are put back to what they were, and run again."""
    affine(request, keys, name)
    if request["result"] % 4 == 0:
        raise ValueError(f"{name} was told to")


def restarts(request: Request, keys: Any, name: str) -> None:
    affine(request, keys, name)
    if request["result"] % 3:
        request["restart"] = keys["target"]


KINDS: dict[str, Callable[[Request, Any, str], None]] = {
    "affine": affine,
    "mutates": mutates,
    "silent": silent,
    "raises": raises,
    "tells": raises,  # which items failed
    "restarts": restarts,
}


class Works(Backend):
    """Does to each request of a batch what the interpreter does to one, at one of its places in turn, or everywhere."""

    built = itertools.count()

    def __init__(
        self, *, kind: str, node_name: str = "", times: int = 1, plus: int = 0, target: str = "", place_count: int = 0
    ) -> None:
        self.kind, self.name = kind, node_name
        self.keys = {"times": times, "plus": plus, "target": target}
        if times == 3:  # some batches are formed by length
            self.length_of = lambda request: 1 + len(str(request.get("data"))) % 40
            self.max_padded, self.max_padding = 100, 0.2
        where = site()  # the same for all steps of an instance
        if place_count and where.place is None:
            where.place = next(self.built) % place_count
        self.place = where.place

    def place_of(self, request: Request) -> int:
        """Return one of the two places, or one where nobody is."""
        return len(request.get("trail", ())) % 3

    def forward(self, batch: list[Request]) -> None:
        failed: dict[int, BaseException] = {}
        for index, request in enumerate(batch):
            try:
                KINDS[self.kind](request, self.keys, self.name)
            except ValueError as error:
                if self.kind != "tells":
                    raise
                failed[index] = error
        if failed:
            raise ItemErrors(failed)


class WorksOnItsThread(Works):
    thread_bound = True


class WorksAloud(Works):
    """Emits its name and the data for each request, before it does the same."""

    streams = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            fastpipe.emit(request, (self.name, request["data"]))
        super().forward(batch)


class WorksAloudOnItsThread(WorksAloud):
    thread_bound = True


# ---- filters that look at the data -----------------------------------------------------------------------------------


def if_odd(status: Any) -> Callable[[Request], Any]:
    def asks(request: Request) -> Any:
        request["asked"] = number(request.get("asked")) + 1  # a filter is asked once
        return status if number(request.get("result", request["data"])) % 2 else Status.Run

    return asks


def fails(request: Request) -> Status:
    if number(request["data"]) % 3 == 0:
        raise ValueError("the filter was told to")
    return Status.Run


def lists(request: Request) -> Status:
    """Makes the list that a MapReduce takes, of 0 to 3 elements, and another one of the same length."""
    start = number(request.pop("result", request["data"]))
    request["data"] = [start + index for index in range(start % 4)]
    request["width"] = [10 * index for index in range(start % 4)]
    return Status.Run


def dicts(request: Request) -> Status:
    lists(request)
    request["data"] = [{"data": each, "tag": "part"} for each in request["data"]]
    return Status.Run


def dicts_that_steer(request: Request) -> Status:
    """As a caller might send them: with an answer, and keys that would send them round, or out of any batch."""
    dicts(request)
    request["data"] = [{**each, "result": "forged", "restart": "n0", "request_size": 1e9} for each in request["data"]]
    return Status.Run


def again_at(name: str) -> Callable[[Request], Status]:
    """Another round, by the reserved key, in place of the rest of the graph."""

    def again(request: Request) -> Status:
        if number(request["data"]) % 2:
            request["restart"] = name
            return Status.Break
        return Status.Run

    return again


USERS: dict[str, Callable[[Request], Any]] = {
    **{f"odd {status.name}": if_odd(status) for status in Status},
    "odd no status": if_odd("Run"),
    "odd bool": if_odd(True),
    "fails": fails,
    "lists": lists,
    "dicts": dicts,
    "dicts that steer": dicts_that_steer,
    **{f"again at n{index}": again_at(f"n{index}") for index in range(MOST_NODES)},
}
FILTERS = (
    *("Run", "run", "Continue", "swap", "Skip", "skip", "or", "or", "else", "Break", "break", "Error", "error"),
    *("SerialSkip", "serial_skip", "SubGraphSkip", "subgraph_skip", "SerialSkip", "SubGraphSkip") * 2,
    *("odd Run", "odd Break", "odd Error", "odd no status", "odd bool", "fails"),
    *("odd Skip", "odd SerialSkip", "odd SubGraphSkip") * 4,
)
FIRST_STEP_FILTERS = ("Run", "Skip", "or", "odd Skip", "odd Break", "odd SerialSkip")


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Generator:
    """Makes a graph as a literal of plain values, so that a failing one can be printed and pasted."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(number)
        self.nodes: dict[str, dict[str, Any]] = {}
        # The key `restart` travels into a Jump, and would be obeyed inside: those two are not tried together.
        self.has_restart_keys = self.chance(0.1)
        self.obeyed = [key for key in ("node_name", "restart") if self.chance(0.3)]
        self.place_count = self.rng.choice((0, 2))

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def graph(self) -> dict[str, dict[str, Any]]:
        rng = self.rng
        left = rng.randint(1, MOST_NODES)
        components: list[list[str]] = []  # one graph, and some that are jumped to from the ones before
        while left > 0:
            size = min(left, rng.randint(1, 4) if components else rng.randint(1, MOST_NODES))
            first = sum(map(len, components))
            components.append([f"n{index}" for index in range(first, first + size)])
            left -= size
        roots: list[str] = []
        for names in reversed(components):
            roots += self.component(names, roots)
        file_order = sorted(self.nodes, key=lambda name: int(name[1:].partition(".")[0]))
        if self.chance(0.3):
            rng.shuffle(file_order)
        return {name: self.nodes[name] for name in file_order}

    def component(self, names: list[str], inner_roots: list[str]) -> list[str]:
        """Add nodes that are linked, or not, among each other only; return their roots."""
        rng = self.rng
        places = list(names)
        for name in names:
            if self.chance(0.05):
                places.insert(rng.randint(places.index(name), len(places)), f"{name}.2")
        following: dict[str, list[str]] = {name: [] for name in places}
        before: dict[str, list[str]] = {}
        ancestors: dict[str, list[str]] = {}
        for index, name in enumerate(places):
            count = min(index, rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3)) if index > 1 else rng.choice((0, 1, 1, 1)))
            before[name] = sorted(rng.sample(places[max(0, index - 4) : index], min(count, 4)), key=places.index)
            for parent in before[name]:
                following[parent].append(name)
            ancestors[name] = [n for n in places if n in before[name] or any(n in ancestors[p] for p in before[name])]
        restart = rng.choice(places) if not self.has_restart_keys and self.chance(0.15) else None
        for name in places:
            node: dict[str, Any] = {} if "." in name else self.work(inner_roots, places)
            if following[name]:
                node["next"] = rng.sample(following[name], len(following[name]))
            elif restart is not None and self.chance(0.8):
                node["restart"] = restart
            if len(before[name]) > 1 or (before[name] and self.chance(0.25)):
                node["map"] = self.map(ancestors[name])
            if "filter" not in node and self.chance(0.35):
                node["filter"] = rng.choice(FILTERS)
            node["restart_limit"] = rng.randint(1, 4)
            self.nodes[name] = node
        return [name for name in places if not before[name]]

    def work(self, inner_roots: list[str], places: list[str]) -> dict[str, Any]:
        """Return the keys of a node that say what it does, and by how many."""
        rng = self.rng
        if self.chance(0.15):
            steps = [self.step(inner_roots, places) for _ in range(rng.randint(1, 3))]
            for index, step in enumerate(steps):
                if "filter" not in step and self.chance(0.3):
                    step["filter"] = rng.choice(FIRST_STEP_FILTERS if index == 0 else FILTERS)
            node: dict[str, Any] = {"steps": steps}
        else:
            node = self.step(inner_roots, places)
        node |= {"instance_num": rng.randint(1, 4), "max": rng.randint(1, 4)}
        if self.chance(0.2):
            node["batching"] = rng.choice(("greedy", "timeout"))
        if self.chance(0.05):
            node["bucket"] = "tag"
        if node.get("kind") not in ("Jump", "MapReduce") and self.chance(0.3):
            node["cache"] = rng.choice(("1MB", 2000))
        if self.has_restart_keys and self.chance(0.1):
            node["filter"] = f"again at {rng.choice(places).partition('.')[0]}"
        return node

    def step(self, inner_roots: list[str], places: list[str]) -> dict[str, Any]:
        rng = self.rng
        if inner_roots and self.chance(0.35):
            jump = rng.choice(inner_roots)
            if not self.has_restart_keys and self.chance(0.4):
                return {"kind": "Jump", "jump": jump}
            step: dict[str, Any] = {"kind": "MapReduce", "jump": jump, "filter": "lists"}
            if self.chance(0.1):
                step |= {"filter": "dicts" if "restart" in self.obeyed else "dicts that steer", "split": []}
            elif self.chance(0.3):
                step["split"] = rng.choice((["data", "width"], ["width", "data"]))
            if self.chance(0.3):
                step["merge"] = rng.choice((["result", "data"], ["data", "trail"], ["result", "asked"]))
            if self.chance(0.4):
                step["on_error"] = rng.choice(("fail", "skip", "none"))
            if self.chance(0.1):
                step["filter"] = "swap"  # of what is no list
            return step
        kind = rng.choice(("affine",) * 12 + ("mutates",) * 8 + ("raises", "tells", "silent"))
        if self.has_restart_keys and self.chance(0.15):
            kind = "restarts"
        step = {"kind": kind, "times": rng.randint(1, 3), "plus": rng.randint(-3, 3), "place_count": self.place_count}
        if kind == "restarts":
            step["target"] = rng.choice(places)
        if self.chance(0.03):
            step["own_thread"] = True
        return step

    def map(self, ancestors: list[str]) -> dict[str, dict[str, str]]:
        rng = self.rng
        sources = rng.sample(ancestors, min(len(ancestors), rng.randint(1, 3)))
        made = {sources[0]: {rng.choice(("result", "data", "data")): "data"}}
        made |= {source: {rng.choice(("result", "data", "data")): f"of {source}"} for source in sources[1:]}
        if len(ancestors) > 1 and self.chance(0.4):
            either = "|".join(rng.sample(ancestors, rng.choice((2, 2, 3)) if len(ancestors) > 2 else 2))
            if self.chance(0.5):  # else beside what one of them gives in any case
                made[either] = made.pop(sources[0])
                return made
            made[either] = {rng.choice(("result", "data", "data")): "of either"}
        if self.chance(0.2):
            made[sources[0]]["trail"] = "trail"
        if self.chance(0.05):
            made[sources[0]].setdefault("result", "result")
        if len(sources) == 1 and self.chance(0.05):
            made[sources[0]]["context"] = "renamed"
        return made


def with_functions(nodes: Nodes) -> dict[str, dict[str, Any]]:
    """Return the same nodes with functions in place of the names of filters above."""
    made = {name: {**node, "filter": USERS.get(node["filter"], node["filter"])} if "filter" in node else dict(node)
            for name, node in nodes.items()}  # fmt: skip
    for node in made.values():
        if "steps" in node:
            node["steps"] = list(with_functions(dict(enumerate(node["steps"]))).values())
    return made


PASSED_ON = (
    *("next", "map", "filter", "restart", "restart_limit"),
    *("instance_num", "max", "batching", "bucket", "cache"),
)


def configuration(nodes: Nodes, *, is_aloud: bool = False) -> dict[str, Any]:
    """Return what a Pipe takes; ``is_aloud``: whatever works emits, but for what fails a batch to have it run again.

    What emits has no cache.
    """
    made: dict[str, Any] = {}
    for name, node in nodes.items():
        keys = {key: node[key] for key in PASSED_ON if key in node and not (is_aloud and key == "cache")}
        if "steps" in node:
            steps = (_step(step, is_aloud=is_aloud, filter=step.get("filter")) for step in node["steps"])
            keys["backend"] = Sequential(*steps)
            keys["max"] = 1 if is_aloud else keys["max"]
        elif "kind" in node:
            keys["backend"] = _step(node, is_aloud=is_aloud)
        made[name] = keys
    return made


def _step(step: Any, *, is_aloud: bool, **filter: Any) -> Step:
    if step["kind"] in ("Jump", "MapReduce"):
        own = {key: step[key] for key in ("jump", "split", "merge", "on_error") if key in step}
        return Step(step["kind"], **filter, **own)
    own = {key: step[key] for key in ("kind", "times", "plus", "target", "place_count") if key in step}
    kinds = (WorksAloud, WorksAloudOnItsThread) if is_aloud and step["kind"] != "raises" else (Works, WorksOnItsThread)
    return Step(kinds["own_thread" in step], **filter, **own)


# ---- calls -----------------------------------------------------------------------------------------------------------


class Case:
    """A request, and what may become of it."""

    def __init__(
        self, nodes: Nodes, rng: random.Random, obeyed: list[str], *, may_restart: bool, lets_go: bool
    ) -> None:
        self.nodes = nodes
        self.request: Request = {"data": rng.randint(0, 30)}
        if rng.random() < 0.8:
            self.request["tag"] = rng.randint(0, 2)
        if rng.random() < 0.5:
            self.request["node_name"] = rng.choice(list(nodes)) if rng.random() < 0.97 else "nowhere"
        self.entry = rng.choice(list(nodes)) if rng.random() < 0.6 else None
        if rng.random() < 0.3:
            self.request["result"] = self.request["answered_by"] = "of an earlier call"
        if rng.random() < 0.3 and (may_restart or "restart" not in obeyed):
            self.request["restart"] = rng.choice(list(nodes))
        if rng.random() < 0.1:
            self.request["request_size"] = 1e9
        if rng.random() < 0.5:
            self.request["context"] = {"bonus": 1000}
        self.ends, self.ran = interpreter.outcomes(nodes, KINDS, self.request, self.entry, obeyed, lets_go=lets_go)
        self.forgets = ("result", "answered_by") if interpreter.names_leaf(nodes) else ("result",)
        self.is_admitted = not any(
            isinstance(end, interpreter.Failed) and end.kind == "UnknownNode" for end in self.ends
        )

    def check_chunks(self, chunks: list[Any]) -> None:
        """Raise AssertionError unless each node that emits has done so as often as it has run."""
        if self.ran is None:
            return
        emitted = Counter(name for name, _ in chunks)
        for name, node in self.nodes.items():
            if node.get("kind") not in (None, "raises", "Jump", "MapReduce"):
                ran = sum(count for visited, count in self.ran.items() if visited.partition(".")[0] == name)
                assert emitted[name] == ran, f"{name} emitted {emitted[name]} chunks, and ran {ran} times"

    def check(self, request: Request, error: BaseException | None) -> None:
        """Raise AssertionError unless ``request``, as it was left, and ``error`` are one of the ends."""
        if error is None:
            assert request in self.ends, f"became {request}"
            if isinstance(request.get("context"), dict):
                assert request["context"] is self.request["context"], "has a copy of its context"
            return
        text = "\n".join((str(error), *getattr(error, "__notes__", ())))
        kind = type(error).__name__
        fits = any(
            isinstance(end, interpreter.Failed) and end.kind == kind and all(w in text for w in end.words)
            for end in self.ends
        )
        assert fits, f"raised {kind}: {text}"
        forgotten = self.forgets if self.is_admitted else ()
        left = {key: value for key, value in self.request.items() if key not in forgotten}
        assert request == left, f"became {request}"


def one(pipe: Pipe, cases: list[Case], call: Callable[..., Any]) -> None:
    for case in cases:
        request = dict(case.request)
        try:
            call(request, entry=case.entry)
        except Exception as error:
            case.check(request, error)
        else:
            case.check(request, None)


def call_alone(pipe: Pipe, cases: list[Case]) -> None:
    one(pipe, cases, pipe)


def call_eagerly(pipe: Pipe, cases: list[Case]) -> None:
    one(pipe, cases, lambda request, entry: pipe(request, eager=True, entry=entry))


def submit(pipe: Pipe, cases: list[Case]) -> None:
    one(pipe, cases, lambda request, entry: pipe.submit(request, entry=entry).result(WAIT_S))


def by_entry(cases: list[Case]) -> Iterator[tuple[str | None, list[Case]]]:
    """Those that a list may have: the call says where all of them enter."""
    for entry in {case.entry: None for case in cases}:
        if admitted := [case for case in cases if case.entry == entry and case.is_admitted]:
            yield entry, admitted


def call_list(pipe: Pipe, cases: list[Case], **how: Any) -> None:
    for entry, those in by_entry(cases):
        call_one_list(pipe, those, entry=entry, **how)


def call_one_list(pipe: Pipe, cases: list[Case], **how: Any) -> None:
    requests = [dict(case.request) for case in cases]
    errors: dict[int, BaseException] = {}
    try:
        pipe(requests, **how)
    except ExceptionGroup as group:
        for error in group.exceptions:
            (index,) = (i for i in range(len(cases)) if f"request {i} of a list of" in " ".join(error.__notes__))
            errors[index] = error
    for index, case in enumerate(cases):
        case.check(requests[index], errors.get(index))


def call_list_eagerly(pipe: Pipe, cases: list[Case]) -> None:
    call_list(pipe, cases, eager=True)


def map_over(pipe: Pipe, cases: list[Case]) -> None:
    for entry, those in by_entry(cases):
        requests = [dict(case.request) for case in those]
        ended = pipe.map(iter(requests), return_exceptions=True, entry=entry)
        for case, request, done in zip(those, requests, ended, strict=True):
            case.check(request, done if isinstance(done, BaseException) else None)


def read_streams(pipe: Pipe, cases: list[Case]) -> None:
    """Read each as a thread; what was emitted is what has run."""
    for case in cases:
        request, chunks = dict(case.request), list[Any]()
        try:
            chunks += pipe.stream(request, entry=case.entry, buffer=1 + len(cases) % 3)
        except Exception as error:
            case.check(request, error)
        else:
            case.check(request, None)
            case.check_chunks(chunks)


def read_streams_side_by_side(pipe: Pipe, cases: list[Case]) -> None:
    """The same as coroutines, all at once."""

    async def read(case: Case) -> None:
        request, chunks = dict(case.request), list[Any]()
        error: BaseException | None = None
        try:
            async for chunk in pipe.astream(request, entry=case.entry, buffer=1):
                chunks.append(chunk)
        except Exception as raised:
            error = raised
        case.check(request, error)
        if error is None:
            case.check_chunks(chunks)

    async def read_all() -> None:
        await asyncio.gather(*(read(case) for case in cases))

    asyncio.run(asyncio.wait_for(read_all(), WAIT_S))


WAYS = (call_alone, submit, call_list, map_over, call_eagerly, call_list_eagerly)


WAYS_ALOUD = (read_streams, read_streams_side_by_side, call_alone, read_streams, read_streams_side_by_side, submit)


def times_answered(counts: Any) -> int:
    """Return how often a node has run, or had an answer already, or waited for that of another."""
    cache = counts.get("cache", {"hits": 0, "coalesced": 0})
    return int(counts["requests"] + cache["hits"] + cache["coalesced"])


def caches_parts(nodes: Nodes) -> bool:
    """Whether some node with a cache has a step whose work is another graph."""
    return any("cache" in node and any("jump" in step for step in node.get("steps", ())) for node in nodes.values())


def check_counts(pipe: Pipe, cases: list[Case]) -> None:
    """What had to run has run, or was cached, and nothing else, and nothing twice."""
    for case in cases:
        if case.ran is None:
            continue
        before = {name: times_answered(counts) for name, counts in pipe.stats()["nodes"].items()}
        call_alone(pipe, [case])
        for name, counts in pipe.stats()["nodes"].items():
            expected = sum(count for visited, count in case.ran.items() if visited.partition(".")[0] == name)
            ran = times_answered(counts) - before[name]
            assert ran == expected, f"ran in node {name!r} {ran} times, expected {expected}"


# ---- the tests -------------------------------------------------------------------------------------------------------


class Graph:
    """One random graph, its pipe's configuration, and requests with what may become of them."""

    def __init__(self, number: int, case_count: int) -> None:
        self.number = number
        generator = Generator(number)
        self.literal = generator.graph()
        self.obeyed = generator.obeyed
        self.nodes = with_functions(self.literal)
        self.rng = random.Random(number)
        self.lets_go = number % 2 == 1  # as in torchpipe, a request may end without a result
        self.cases: list[Case] = []
        for _ in range(2 * case_count):
            with contextlib.suppress(interpreter.TooManyOutcomes):
                may_restart = generator.has_restart_keys
                case = Case(self.nodes, self.rng, self.obeyed, may_restart=may_restart, lets_go=self.lets_go)
                self.cases.append(case)
        del self.cases[case_count:]

    @contextlib.contextmanager
    def pipe(self, *, is_aloud: bool = False) -> Iterator[Pipe]:
        """Build it; explain what goes wrong with it."""
        try:
            keys = {"batching_timeout": 0.2, "obey_request_keys": self.obeyed}
            keys |= {"without_result": "end"} if self.lets_go else {}
            with Pipe(configuration(self.nodes, is_aloud=is_aloud), **keys) as pipe:
                yield pipe
            keeps_failures = "on_error" in str(self.literal)
            check_measures(
                pipe.stats(), keeps_failures=keeps_failures
            )  # only now: a branch of a request that has failed may run on for a while
            counts = pipe.stats()["requests"]
            assert counts["in_flight"] == 0
            assert counts["accepted"] == counts["done"] + counts["failed"] + counts["cancelled"]
        except Exception as error:
            nodes = pprint.pformat(self.literal, width=140, sort_dicts=False)
            cases = "\n".join(
                f"{case.request} at {case.entry}\n    -> {' or '.join(map(str, case.ends))}" for case in self.cases
            )
            what = f"graph {self.number}, which obeys {self.obeyed}: {type(error).__name__}: {error}"
            pytest.fail(f"{what}\n{nodes}\nrequests and ends:\n{cases}")


BLOCKS = pytest.mark.parametrize("first", range(FIRST_GRAPH, FIRST_GRAPH + GRAPHS, BLOCK))


def graphs(first: int, case_count: int) -> Iterator[Graph]:
    for number in range(first, min(first + BLOCK, FIRST_GRAPH + GRAPHS)):
        yield Graph(number, case_count)


@BLOCKS
def test_any_graph_answers_like_the_interpreter(first: int) -> None:
    """One caller, all ways of calling; and each node runs as often as it should."""
    for graph in graphs(first, 4):
        with graph.pipe() as pipe:
            for way in WAYS:
                way(pipe, graph.cases)
            # What is retried runs twice, and an answer that is kept is one for the parts of its request, too.
            if not any(word in str(graph.literal) for word in ("raises", "tells")) and not caches_parts(graph.literal):
                check_counts(pipe, graph.cases)


@pytest.fixture(scope="module")
def callers() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(CALLERS) as executor:
        yield executor


@BLOCKS
def test_any_graph_answers_the_same_to_many_callers(first: int, callers: concurrent.futures.ThreadPoolExecutor) -> None:
    """Eight callers: requests meet in batches and instances, and do not get into each other's way.

    Meanwhile all nodes of every third graph are swapped, and get one more instance.
    """
    for graph in graphs(first, 6):
        with graph.pipe() as pipe:
            seeds = [graph.rng.random() for _ in range(CALLERS)]

            def client(seed: float, graph: Graph = graph, pipe: Pipe = pipe) -> None:
                rng = random.Random(seed)
                for _ in range(2):
                    rng.choice(WAYS)(pipe, rng.sample(graph.cases, min(3, len(graph.cases))))

            calling = [callers.submit(client, seed) for seed in seeds]
            for name, node in pipe.stats()["nodes"].items() if graph.number % 3 == 0 else ():
                pipe.swap(name)
                pipe.resize(name, instance_num=node["instances"]["count"] + 1)
            for each in calling:
                each.result()


@BLOCKS
def test_any_graph_hands_on_what_its_nodes_emit(first: int, callers: concurrent.futures.ThreadPoolExecutor) -> None:
    """Read as streams, the answers are the same, and the chunks are those of what has run; also by eight readers."""
    for graph in itertools.islice(graphs(first, 4), 0, None, 3):
        if any("steps" in node and "bucket" in node for node in graph.literal.values()):
            continue  # a step that emits takes one request at a time, and a node with max = 1 asks for no bucket
        with graph.pipe(is_aloud=True) as pipe:
            for way in WAYS_ALOUD[:4]:
                way(pipe, graph.cases)
            ways = random.Random(graph.number).choices(WAYS_ALOUD, k=CALLERS)
            list(callers.map(lambda way, pipe=pipe, cases=graph.cases: way(pipe, cases), ways))
