"""Range and '&': batches composed of those that the children take."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Adds, ask_on_threads

from fastpipe import Backend, ConfigError, Container, ItemErrors, Pipe, Request, Sequential, Step
from fastpipe.backends.flow.composites import Composite, Range, compose
from fastpipe.config.reading import load
from fastpipe.contract import Child
from fastpipe.errors import BackendError


class Sized(Adds):
    """Adds one; takes ``least`` to ``most`` requests, and counts how often it gets each."""

    def __init__(self, *, least: int = 1, most: int | None = None, **keys: Any) -> None:
        super().__init__(max_batch=most, **keys)
        self.min_batch = least

    def forward(self, batch: list[Request]) -> None:
        assert len(batch) >= self.min_batch
        assert self.max_batch is None or len(batch) <= self.max_batch
        for request in batch:
            request["touched"] = request.get("touched", 0) + 1
        super().forward(batch)

    @property
    def counts(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class Engine(Backend):
    """A model of a fixed size, in every instance of which its batches are noted by name."""

    ran: dict[str, list[int]] = {}  # noqa: RUF012  # what all instances share is the point

    def __init__(self, *, model: str, instance_num: int = 1) -> None:
        self.model = model
        self.instance_num = instance_num
        size = int(model.removeprefix("b"))
        self.min_batch = self.max_batch = size

    def forward(self, batch: list[Request]) -> None:
        self.ran.setdefault(self.model, []).append(len(batch))
        for request in batch:
            request["result"] = self.model


class Loads(Backend):
    """Has a file."""

    def __init__(self, *, model: Path) -> None:
        self.model = model

    def forward(self, batch: list[Request]) -> None: ...


@pytest.fixture(autouse=True)
def no_runs() -> None:
    Engine.ran.clear()


def children(*backends: Backend) -> list[Child]:
    return [Child(f"child{i}", backend) for i, backend in enumerate(backends)]


def batch_of(count: int) -> list[Request]:
    return [{"data": item} for item in range(count)]


def results(batch: list[Request]) -> list[Any]:
    return [request.get("result") for request in batch]


def problems(*args: Any, **keywords: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(args[0] if args else None, keywords)
    return caught.value.problems


# ---- the policy ------------------------------------------------------------------------------------------------------


def parts(sizes: list[tuple[int, int]], count: int) -> list[tuple[int, int]] | None:
    """Return all parts of a batch, as (child, how many)."""
    first, divided = compose(sizes, count), []
    while count:
        part = first[count]
        if part is None:
            return None
        divided.append(part)
        count -= part[1]
    return divided


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([(1, 1), (4, 4), (8, 8)], 7, [(1, 4), (0, 1), (0, 1), (0, 1)]),
        ([(1, 1), (4, 4), (8, 8)], 12, [(2, 8), (1, 4)]),
        ([(1, 4)], 10, [(0, 4), (0, 4), (0, 2)]),
        ([(2, 9)], 10, [(0, 8), (0, 2)]),  # not 9: 1 is not taken
        ([(2, 9)], 19, [(0, 9), (0, 8), (0, 2)]),
        ([(8, 8)], 9, None),
        ([(1, 8), (1, 4), (1, 1)], 3, [(1, 3)]),  # of those that take 3, the one that takes the fewest
        ([(3, 3), (5, 5)], 11, [(1, 5), (0, 3), (0, 3)]),
        ([(3, 3), (5, 5)], 7, None),
    ],
)
def test_the_largest_part_comes_first_as_long_as_the_rest_can_be_composed(
    sizes: list[tuple[int, int]], count: int, expected: list[tuple[int, int]] | None
) -> None:
    """And the smallest child that takes it."""
    assert parts(sizes, count) == expected


def test_what_can_be_composed_is_what_sums_say() -> None:
    """Against all sums of up to 24 of two children's sizes, written out."""
    for low, extra, other in itertools.product(range(1, 6), range(3), range(1, 9)):
        sizes = [(low, low + extra), (other, other)]
        legal = {*range(low, low + extra + 1), other}
        sums = {0}
        for size in range(1, 25):
            if any(size - part in sums for part in legal):
                sums.add(size)
        first = compose(sizes, 24)
        assert {size for size in range(1, 25) if first[size] is not None} == sums - {0}
        for size in sums - {0}:
            divided = parts(sizes, size)
            assert divided is not None
            assert sum(count for _, count in divided) == size
            assert all(sizes[place][0] <= count <= sizes[place][1] for place, count in divided)
            assert divided[0][1] == max(part for part in legal if size - part in sums)


# ---- Range -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_run_in_parts_that_the_child_takes() -> None:
    """In order; every request keeps its own result."""
    child = Sized(most=4)
    batch = batch_of(10)
    composed = Range(children(child), range=(1, 10))
    composed.forward(batch)
    assert (composed.min_batch, composed.max_batch) == (1, 10)
    assert child.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert results(batch) == list(range(1, 11))


def test_several_children_share_a_batch() -> None:
    """Each gets what it takes."""
    one, four = Sized(most=1), Sized(least=4, most=4)
    composed = Range(children(one, four), range=(1, 10))
    for count in range(1, 11):
        batch = batch_of(count)
        composed.forward(batch)
        assert results(batch) == list(range(1, count + 1))
    assert set(one.counts) == {1}
    assert set(four.counts) == {4}


def test_a_child_that_does_not_say_takes_what_comes() -> None:
    """Unless the node's min and max say how many it takes."""
    child = Sized()
    Range(children(child), range=(1, 10)).forward(batch_of(10))
    Range(children(child), range=(1, 10), max="3").forward(batch_of(10))
    Range(children(child), range=(1, 10), max="3x224x224").forward(batch_of(10))
    assert child.counts == [10, 3, 3, 3, 1, 10]


def test_two_to_nine_reach_eight_to_nineteen_and_eight_does_not_reach_nine() -> None:
    """A size that no sum reaches is an error that says who takes what."""
    composed = Range(children(Sized(least=2, most=9)), range=(8, 19))
    for count in range(8, 20):
        batch = batch_of(count)
        composed.forward(batch)
        assert results(batch) == list(range(1, count + 1))
    with pytest.raises(ConfigError) as caught:
        Range(children(Sized(least=8, most=8)), range=(8, 9))
    assert str(caught.value) == "Range: no batch of 9 can be composed; child0 takes 8"
    with pytest.raises(ConfigError) as caught:
        Range(children(Sized(least=8, most=9), Sized(least=20)), range=(1, 19))
    assert str(caught.value) == (
        "Range: no batch of 1, 2, 3, 4, 5 or 9 more sizes can be composed; child0 takes 8 to 9, child1 takes 20"
    )


def test_a_range_in_a_range_may_begin_above_one() -> None:
    """The outer one composes what the inner one takes."""
    inner, one = Sized(least=4, most=4), Sized(most=1)
    composed = Range(children(Range(children(inner), range=(4, 4)), one), range=(1, 9))
    composed.forward(batch_of(9))
    assert (inner.counts, one.counts) == ([4, 4], [1])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Range(children(Sized()), range=(10, 1)), "range must be the smallest size and the largest, got 10,1"),
        (
            lambda: Range(children(Sized(least=4, most=8)), range=(1, 8), max=2),
            "Range: child0 takes batches of 4 to 8, and its min and max allow 1 to 2",
        ),
        (
            lambda: Range(children(Weighs()), range=(1, 8)),
            "Range composes numbers of requests; child0 weighs them",
        ),
        (
            lambda: Range([Child("a", Sized(), filter=lambda request: None)], range=(1, 8)),
            "Range asks no filters: take the one in front of a away",
        ),
    ],
)
def test_ranges_that_make_no_sense(build: Any, words: str) -> None:
    """Each says what was expected."""
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).removeprefix("Range: ") == words.removeprefix("Range: ")


class Weighs(Sized):
    def weigh(self, request: Request) -> float:  # type: ignore[override]
        return 1.0


def test_a_batch_that_cannot_be_composed_is_told_in_words() -> None:
    """Only who calls a Range by hand can give it one."""
    composed = Range(children(Sized(least=8, most=9)), range=(8, 9))
    with pytest.raises(BackendError, match="Range takes batches of 8 to 9, got 3"):
        composed.forward(batch_of(3))


def test_more_than_the_range_is_taken_in_turns() -> None:
    """Requests that weigh less than one may come in larger numbers."""
    child = Sized(most=3)
    batch = batch_of(8)
    Range(children(child), range=(1, 4)).forward(batch)
    assert child.counts == [3, 3, 2]
    assert results(batch) == list(range(1, 9))


def test_range_in_a_node() -> None:
    """The node takes what the range says; max and min are about the child."""
    seen: list[Sized] = []

    class Kept(Sized):
        def __init__(self) -> None:
            super().__init__()
            seen.append(self)

    keys = {"range": "1,10", "max": 4, "batching": "timeout", "batching_timeout": 10_000}
    with Pipe(backend=Step("Range", Kept), **keys) as pipe:
        pipe([{"data": item} for item in range(10)])
        assert seen[0].counts == [4, 4, 2]
        assert pipe.stats()["nodes"]["main"]["batches"] == 1
    with Pipe(backend="S[Identity,Range[Pow],Identity]", range="1,3", max=2) as pipe:
        assert pipe({"data": 3})["result"] == 9


# ---- failures --------------------------------------------------------------------------------------------------------


def test_one_bad_request_fails_alone_and_only_its_part_runs_again() -> None:
    """The other parts have run once."""
    child = Sized(most=3, bad=(4,))
    batch = batch_of(8)
    with pytest.raises(ItemErrors) as caught:
        Range(children(child), range=(1, 8)).forward(batch)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {4: "bad 4"}
    assert caught.value.errors[4].__notes__ == ["in step 'child0'"]
    assert child.batches == [[0, 1, 2], [3, 4, 5], [3], [4], [5], [6, 7]]
    assert results(batch) == [1, 2, 3, 4, None, 6, 7, 8]
    assert [request["touched"] for request in batch] == [1] * 8


def test_where_a_child_takes_no_single_request_another_one_runs_them_alone() -> None:
    """The child that takes one; a request that fails there, too, has failed."""
    one, four = Sized(most=1, bad=(2,)), Sized(least=4, most=4, bad=(1, 2))
    batch = batch_of(5)
    with pytest.raises(ItemErrors) as caught:
        Range(children(one, four), range=(1, 5)).forward(batch)
    assert list(caught.value.errors) == [2]
    assert four.batches == [[0, 1, 2, 3]]
    assert one.batches == [[0], [1], [2], [3], [4]]
    assert results(batch) == [1, 2, None, 4, 5]


def test_where_nobody_takes_a_single_request_the_part_fails() -> None:
    """As a whole; the other parts do not."""
    batch = batch_of(8)
    with pytest.raises(ItemErrors) as caught:
        Range(children(Sized(least=4, most=4, bad=(5,))), range=(8, 8)).forward(batch)
    assert list(caught.value.errors) == [4, 5, 6, 7]
    assert results(batch) == [1, 2, 3, 4, None, None, None, None]


def test_a_single_request_raises_the_exception_itself() -> None:
    """Nothing is wrapped."""
    with pytest.raises(ValueError, match="bad 0"):
        Range(children(Sized(bad=(0,))), range=(1, 2)).forward(batch_of(1))


def test_buckets_are_those_on_which_all_children_agree() -> None:
    """And a child that must stay on its thread binds the whole."""

    class Bucketed(Sized):
        def bucket(self, request: Request) -> Any:  # type: ignore[override]
            return request["data"] % 2

    class Other(Sized):
        def bucket(self, request: Request) -> Any:  # type: ignore[override]
            return request["data"] % 3

    composed = Range(children(Bucketed(), Other(), Sized(thread_bound=True)), range=(1, 2))
    assert composed.bucket is not None
    assert composed.bucket({"data": 1}) == composed.bucket({"data": 7}) != composed.bucket({"data": 3})
    assert composed.thread_bound
    free = Range(children(Sized()), range=(1, 2))
    assert (free.bucket, free.thread_bound) == (None, False)
    composed.close()
    assert all(child.backend.is_closed for child in composed.children)  # type: ignore[attr-defined]


# ---- min_batch -------------------------------------------------------------------------------------------------------


class InTwos(Sized):
    """Takes two or four."""

    closed = 0

    def __init__(self) -> None:
        super().__init__(least=2, most=4)

    def close(self) -> None:
        type(self).closed += 1


class Both(Container):
    def forward(self, batch: list[Request]) -> None:
        for child in self.children:
            child.backend.forward(batch)


@pytest.mark.parametrize(
    "backend",
    [
        InTwos,
        Sequential("Pow", InTwos),
        Step("HasKey", InTwos, key="k"),
        Step("CatSplit", InTwos),
        Step(Both, InTwos),
        Step("Range", Step("S", InTwos), range="1,4"),
    ],
    ids=str,
)
def test_a_backend_that_takes_no_single_request_needs_somebody_who_composes(backend: Any) -> None:
    """Whatever it is in, but Range and '&'; what was built is closed."""
    InTwos.closed = 0
    with pytest.raises(ConfigError, match="InTwos takes 2 requests or more, and a batch may have one") as caught:
        Pipe(twos={"backend": backend})
    assert any("node 'twos'" in note for note in caught.value.__notes__)
    assert InTwos.closed == 1


def test_a_range_that_begins_above_one_is_no_node() -> None:
    """A node's batches begin with one request."""
    with pytest.raises(ConfigError, match="Range takes 8 requests or more"):
        Pipe(backend="Range[Pow]", range="8,19")


# ---- & ---------------------------------------------------------------------------------------------------------------


def test_an_instance_is_made_of_several_engines() -> None:
    """Batches of 1 to 8 are divided, largest first; each engine gets the sizes it takes."""
    plan = load(None, {"backend": Engine, "model": "b1&b4&b8", "min": "1&4&8", "max": "1&4&8"}).nodes[0].plan
    assert plan is not None
    composite = plan.build()
    assert (composite.min_batch, composite.max_batch) == (1, 8)
    seven = batch_of(7)
    composite.forward(seven)
    assert results(seven) == ["b4"] * 4 + ["b1"] * 3
    composite.forward(batch_of(8))
    assert Engine.ran == {"b4": [4], "b1": [1, 1, 1], "b8": [8]}


@pytest.mark.parametrize("instance_num", ["2", 2, "2&2&2", " 2 & 2 & 2 "])
def test_the_number_of_instances_is_that_of_whole_composites(instance_num: Any) -> None:
    """Two instances of three engines each, whether it is said once or three times; the engines are told, too."""
    (config,) = load({"rec": {"backend": Engine, "model": "b1&b4&b8", "instance_num": instance_num}}, {}).nodes
    assert config.instance_num == 2
    assert config.plan is not None
    assert [child.parameters["model"] for child in config.plan.children] == ["b1", "b4", "b8"]
    assert [child.parameters["instance_num"] for child in config.plan.children] == [2, 2, 2]
    assert [child.name for child in config.plan.children] == [f"Engine {i} of 3" for i in (1, 2, 3)]
    assert config.plan.name == "Engine"


def test_a_pipe_with_engines_of_fixed_sizes() -> None:
    """A full batch is one engine call; a single request another."""
    keys = {"model": "b1&b4&b8", "batching": "timeout", "batching_timeout": 10_000}
    with Pipe(backend=Engine, **keys) as pipe:
        requests: list[Request] = [{"data": 0} for _ in range(8)]
        pipe(requests)
        assert Engine.ran == {"b8": [8]}
        assert results(requests) == ["b8"] * 8
        assert pipe({"data": 0})["result"] == "b1"


def test_a_member_takes_no_more_than_its_min_and_max_allow() -> None:
    """Backends that take any number get the sizes that were written; without any, one."""
    plan = load(None, {"backend": "Identity", "min": "1&4", "max": "2&4"}).nodes[0].plan
    assert plan is not None
    composite = plan.build()
    assert isinstance(composite, Composite)
    assert composite.max_batch == 4
    assert [composite._first[size] for size in range(1, 5)] == [(0, 1), (0, 2), (0, 2), (1, 4)]
    assert Composite(children(Sized(), Sized()), limits=[(None, None), (None, None)]).max_batch == 1


def test_a_default_may_have_members_too() -> None:
    """What stands beside the tables is divided in the same way, and a node's own list wins."""
    nodes = load({"a": {"backend": Engine}, "b": {"backend": Engine, "model": "b1&b2&b3"}}, {"model": "b1&b4"}).nodes
    assert [[child.parameters["model"] for child in node.plan.children] for node in nodes if node.plan] == [
        ["b1", "b4"],
        ["b1", "b2", "b3"],
    ]


def test_a_bar_inside_a_sequential_still_divides() -> None:
    """'|' separates the children of each member; a share without '&' is everybody's."""
    (config,) = load(
        {"a": {"backend": "S[Jump,Jump]", "jump": "x|y", "max": "1&4"}, "x": {"backend": "Pow"}}, {}
    ).nodes[:1]
    assert config.plan is not None
    assert [[step.parameters["jump"] for step in member.children] for member in config.plan.children] == [
        ["x", "y"]
    ] * 2
    plan = load(None, {"backend": Sequential(Loads, Loads), "model": "all|b1&b4", "max": "1&4"}).nodes[0].plan
    assert plan is not None
    assert [[str(step.parameters["model"]) for step in member.children] for member in plan.children] == [
        ["all", "b1"],
        ["all", "b4"],
    ]


def test_an_ampersand_in_other_keys_is_text() -> None:
    """Only model, min, max and instance_num have members; a Path is never divided."""
    (config,) = load(None, {"backend": "Add", "key": "a&b", "value": "c&d"}).nodes
    assert config.plan is not None
    assert dict(config.plan.parameters) == {"key": "a&b", "value": "c&d"}
    (config,) = load(None, {"backend": Loads, "model": Path("R&D/b1")}).nodes
    assert config.plan is not None
    assert config.plan.parameters["model"] == Path("R&D/b1")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"model": "b1&b4&b8", "max": "1&4"},
            "the lists with '&' need one value for each backend: model has 3 values, max has 2 values",
        ),
        (
            {"model": "b1&b4", "min": "1&4", "max": "1&2"},
            "min: must be at most max, which is 2, got 4 (2 of 2 between '&')",
        ),
        (
            {"model": "b1&b4", "min": "1&4", "max": 2},
            "min: must be at most max, which is 2, got 4 (2 of 2 between '&')",
        ),
        (
            {"model": "b1&b4&b8", "instance_num": "2&1&2"},
            "instance_num: each instance has one of each backend, so all are equal, got '2&1&2'",
        ),
        ({"model": "b1&&b4"}, "model: must be one value for each backend between '&', got 'b1&&b4'"),
        ({"model": "b1&b4", "max": "1&x"}, "max: must be a number between 1 and 1048576, or a shape"),
        ({"model": "b1&b4", "modelx": "x"}, "nobody takes 'modelx'; did you mean 'model'?"),
    ],
)
def test_mistakes_in_lists_of_members(keys: dict[str, Any], expected: str) -> None:
    """Each is told once, with the node and the key."""
    (told,) = problems({"rec": {"backend": Engine, **keys}})
    assert told.startswith(f"node 'rec': {expected}")


def test_an_object_cannot_be_several_members() -> None:
    """Its class can."""
    told = problems(backend=Sized(), max="1&4")
    assert "node 'main': backend: '&' needs 2 of Sized, and this is one; give its class instead" in told


def test_members_that_do_not_take_one_request_are_no_node() -> None:
    """The error of building names the node and the sizes."""
    with pytest.raises(ConfigError) as caught:
        Pipe(rec={"backend": Engine, "model": "b4&b8"})
    assert str(caught.value) == (
        "node 'rec': '&': no batch of 1, 2, 3, 5, 6 or 1 more sizes can be composed; Engine 1 of 2 takes 4, "
        "Engine 2 of 2 takes 8"
    )
    assert "node 'rec'" in caught.value.__notes__[0]


def test_many_callers_get_their_own_results() -> None:
    """Two instances of three members under eight threads: every request has its own answer."""
    with Pipe(backend=Sized, min="1&3&5", max="2&4&5", instance_num=2) as pipe:

        def ask(item: int) -> Request | None:
            request = pipe({"data": item})
            return None if request["result"] == item + 1 else request

        assert ask_on_threads(ask) == []


# ---- with ONNX models ------------------------------------------------------------------------------------------------


def write_doubling_model(path: Path, batch_size: int) -> None:
    """y = x + x + batch size of the engine, so that a result shows who computed it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    size = onnx.numpy_helper.from_array(np.array([batch_size * 100], np.float32), "size")
    nodes = [helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Add", ["sum", "size"], ["y"])]
    values = [helper.make_tensor_value_info(name, kind, [batch_size, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for size in (1, 4, 8):
        write_doubling_model(tmp_path / f"b{size}.onnx", size)
    return tmp_path


def onnx_data(count: int) -> list[Request]:
    return [{"data": np.full((1, 2), item, np.float32)} for item in range(count)]


def test_onnx_models_of_fixed_batch_sizes_serve_every_number(models: Path) -> None:
    """A file with relative paths: seven requests are a batch of four and three of one."""
    file = models / "pipe.toml"
    file.write_text(
        '[rec]\nbackend = "OnnxTensor"\nmodel = "b1.onnx&b4.onnx&b8.onnx"\nmin = "1&4&8"\nmax = "1&4&8"\n'
        'instance_num = "2&2&2"\nthreads = 2\nbatching = "timeout"\nbatching_timeout = 100\n'
    )
    with Pipe(file) as pipe:
        for count, engines in ((8, [8] * 8), (1, [1])):
            requests = onnx_data(count)
            pipe(requests)
            for item, (request, engine) in enumerate(zip(requests, engines, strict=True)):
                np.testing.assert_array_equal(request["result"], [[2 * item + 100 * engine] * 2])
        assert pipe.stats()["nodes"]["rec"]["batches"] == 2
    plan = load(file, {}).nodes[0].plan
    assert plan is not None
    composite = plan.build()
    requests = onnx_data(7)
    composite.forward(requests)
    assert [int(request["result"][0, 0]) // 100 for request in requests] == [4, 4, 4, 4, 1, 1, 1]
    assert [int(request["result"][0, 0]) % 100 for request in requests] == [0, 2, 4, 6, 8, 10, 12]
    composite.close()


def test_onnx_models_without_min_are_padded(models: Path) -> None:
    """Then the smallest engine that takes all of them runs once."""
    model = "&".join(str(models / f"b{size}.onnx") for size in (1, 4, 8))
    plan = load(None, {"backend": "OnnxTensor", "model": model, "threads": 1}).nodes[0].plan
    assert plan is not None
    composite = plan.build()
    for count, engine in ((1, 1), (3, 4), (4, 4), (5, 8), (8, 8)):
        requests = onnx_data(count)
        composite.forward(requests)
        assert [int(request["result"][0, 0]) // 100 for request in requests] == [engine] * count
    composite.close()


def test_an_input_that_does_not_fit_fails_alone(models: Path) -> None:
    """In the engine in which it happened to be."""
    model = "&".join(str(models / f"b{size}.onnx") for size in (1, 4))
    plan = load(None, {"backend": "OnnxTensor", "model": model, "min": "1&4", "threads": 1}).nodes[0].plan
    assert plan is not None
    composite = plan.build()
    requests = onnx_data(5)
    requests[2]["data"] = np.zeros(3, np.float32)
    with pytest.raises(ItemErrors) as caught:
        composite.forward(requests)
    assert list(caught.value.errors) == [2]
    assert [index for index, request in enumerate(requests) if "result" in request] == [0, 1, 3, 4]
    composite.close()


def test_a_model_behind_a_range(models: Path) -> None:
    """One model of batch size 4, padded, takes one to ten."""
    keys = {"backend": "Range[OnnxTensor]", "range": "1,10", "model": str(models / "b4.onnx"), "threads": 1}
    plan = load(None, keys).nodes[0].plan
    assert plan is not None
    composed = plan.build()
    requests = onnx_data(10)
    composed.forward(requests)
    assert composed.max_batch == 10
    assert [float(request["result"][0, 0]) for request in requests] == [2 * item + 400 for item in range(10)]
    composed.close()
