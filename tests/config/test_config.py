"""What a configuration means, and how its mistakes are told."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest

from fastpipe.cli.check import check
from fastpipe.config.described import NodeConfig, PipeConfig
from fastpipe.config.maps import MapEntry
from fastpipe.config.notation import Sequential, Step
from fastpipe.config.plan import StepPlan
from fastpipe.config.reading import load
from fastpipe.config.values import BadValue, coerce, constructor_parameters
from fastpipe.contract import Backend, Between, Child, Container, Request
from fastpipe.errors import ConfigError, MissingExtra
from fastpipe.filters import Status, run, run_if_no_result, swap

if TYPE_CHECKING:
    from decimal import Decimal  # a name that exists only for type checkers


class Plain(Backend):
    """Takes nothing."""

    def forward(self, batch: list[Request]) -> None:
        pass


class Resize(Plain):
    max_batch = 4

    def __init__(
        self,
        *,
        resize_h: Annotated[int, Between(1, 1024)],
        resize_w: Annotated[int, Between(1, 1024)] = 224,
        color: Literal["rgb", "bgr"] = "rgb",
    ) -> None:
        self.given = (resize_h, resize_w, color)


class Model(Plain):
    """Takes all that a model takes."""

    def __init__(
        self,
        *,
        model: Path | str | bytes = "",
        mean: list[float] | None = None,
        max: int | str | None = None,
        min: int | str | None = None,
        instance_num: int = 0,
        node_name: str = "",
        model_cache: Path | None = None,
        precision_fp32: str = "",
    ) -> None:
        self.given = locals()


class Jumping(Plain):
    def __init__(self, *, jump: str = "nowhere") -> None:
        self.jump = jump


class Both(Container):
    def __init__(self, children: list[Child], *, weight: float = 1.0) -> None:
        super().__init__(children)
        self.weight = weight

    def forward(self, batch: list[Request]) -> None:
        pass


def node(source: Any = None, /, **keywords: Any) -> NodeConfig:
    """The only node of a configuration."""
    (only,) = load(source, keywords).nodes
    return only


def parameters(source: Any = None, /, **keywords: Any) -> Mapping[str, Any]:
    return plan_of(node(source, **keywords)).parameters


def plan_of(config: NodeConfig) -> StepPlan:
    assert config.plan is not None
    return config.plan


def children(source: Any = None, /, **keywords: Any) -> list[dict[str, Any]]:
    """The parameters of the root's children."""
    return [dict(child.parameters) for child in plan_of(node(source, **keywords)).children]


def by_name(config: PipeConfig) -> dict[str, NodeConfig]:
    return {each.name: each for each in config.nodes}


def problems(source: Any = None, /, **keywords: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source, keywords)
    return list(caught.value.problems)


# ---- forms -----------------------------------------------------------------------------------------------------


def test_keywords_alone_are_one_node_called_main() -> None:
    """Pipe(backend=..., key=...) is one node."""
    config = node(backend=Resize, resize_h=5, instance_num=2)
    assert (config.name, config.instance_num) == ("main", 2)
    assert dict(plan_of(config).parameters) == {"resize_h": 5}


def test_a_flat_mapping_is_one_node() -> None:
    """The same keys in a mapping mean the same."""
    assert node({"backend": "Identity", "max": 3}).max == 3


def test_many_nodes_keep_their_order_and_may_come_from_both_sides() -> None:
    """Tables are nodes, in a mapping, as keywords, or in both; a keyword's key wins over the mapping's."""
    config = load(
        {"z": {"backend": "Identity", "next": "a"}, "a": {"backend": "Identity", "max": 2}},
        {"b": {"backend": "Identity"}, "a": {"max": 3}},
    )
    assert [each.name for each in config.nodes] == ["z", "a", "b"]
    assert by_name(config)["a"].max == 3


def test_defaults_reach_every_node_and_a_nodes_own_key_wins() -> None:
    """Scalars beside the tables and the table 'global' are defaults."""
    config = by_name(
        load(
            {"a": {"backend": Resize}, "b": {"backend": Resize, "resize_h": 9}, "global": {"resize_h": 7}},
            {"instance_num": "3"},
        )
    )
    assert {name: plan_of(each).parameters["resize_h"] for name, each in config.items()} == {"a": 7, "b": 9}
    assert [each.instance_num for each in config.values()] == [3, 3]


def test_defaults_that_contradict_each_other_are_a_mistake_but_a_keyword_wins() -> None:
    """Within one source there is no winner; between sources there is."""
    nodes = {"a": {"backend": "Identity"}}
    assert "with different values" in problems({**nodes, "max": 1, "global": {"max": 2}})[0]
    assert node({**nodes, "global": {"max": 2}}, max=5).max == 5


def test_a_key_of_the_pipe_counts_wherever_defaults_may_stand() -> None:
    """Beside the nodes or in the table 'global', of the file or the keywords; a keyword wins."""
    nodes = {"a": {"backend": "Identity"}}
    places: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({**nodes, "max_in_flight": 3}, {}),
        ({**nodes, "global": {"max_in_flight": 3}}, {}),
        (nodes, {"max_in_flight": 3}),
        (nodes, {"global": {"max_in_flight": 3}}),
        ({**nodes, "max_in_flight": 5}, {"global": {"max_in_flight": 3}}),
    ]
    assert [load(source, keywords).max_in_flight for source, keywords in places] == [3] * len(places)


def test_a_default_need_not_suit_every_node() -> None:
    """Defaults are for whoever takes them, and a default 'max' means at most what the backend takes."""
    config = by_name(
        load({"a": {"backend": Resize, "resize_h": 1}, "b": {"backend": "Identity"}}, {"resize_w": 2, "max": 8})
    )
    assert plan_of(config["a"]).parameters["resize_w"] == 2
    assert (config["a"].max, config["b"].max) == (4, 8)


def test_a_default_backend_makes_nodes_of_empty_tables() -> None:
    """'backend' beside tables that are no values of its parameters is a default like any other."""
    config = load({"backend": "Identity", "a": {}, "b": {"backend": "Pow"}}, {})
    assert [plan_of(each).name for each in config.nodes] == ["Identity", "Pow"]


def test_a_table_that_the_only_backend_takes_is_its_parameter() -> None:
    """One node may have parameters that are mappings."""

    class Options(Plain):
        def __init__(self, *, options: dict[str, int]) -> None:
            pass

    assert parameters(backend=Options, options={"a": 1}) == {"options": {"a": 1}}


def test_a_file_with_paths_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are relative to the file, then to the working directory; a new file belongs beside the TOML."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "configs" / "near.onnx").touch()
    (tmp_path / "elsewhere" / "far.onnx").touch()
    file = tmp_path / "configs" / "pipeline.toml"
    file.write_text(
        """
        instance_num = 2
        [near]
        backend = "tests:Model"
        model = "near.onnx"
        "model::cache" = "new.cache"
        next = "far"
        [far]
        backend = "tests:Model"
        model = "far.onnx"
        "precision::fp32" = "a,b"
        """,
        encoding="utf-8",
    )
    monkeypatch.setattr("fastpipe.config.registry.import_object", lambda path: Model)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = by_name(load(str(file), {}))
    near, far = plan_of(config["near"]).parameters, plan_of(config["far"]).parameters
    assert near["model"] == tmp_path / "configs" / "near.onnx"
    assert near["model_cache"] == tmp_path / "configs" / "new.cache"
    assert far["model"] == Path("far.onnx")
    assert far["precision_fp32"] == "a,b"
    assert (config["near"].next, config["far"].instance_num) == (("far",), 2)


def test_a_file_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    """A missing file, a wrong file, and an expression where a file belongs."""
    broken = tmp_path / "broken.toml"
    broken.write_text("[a\n", encoding="utf-8")
    assert "at line 1" in problems(broken)[0]
    assert "there is no file" in problems(tmp_path / "missing.toml")[0]
    assert "for one node write Pipe(backend=...)" in problems("S[DecodeMat]")[0]
    assert "a mapping or the path of a TOML file" in problems(3)[0]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 900 + "]" * 900, "a" + ".a" * 2000 + " = 1", "[a]\n" + "b." * 70 + "c = 1"]
)
def test_a_file_that_is_nested_too_deeply_is_told_in_words(text: str, tmp_path: Path) -> None:
    """By the command that checks it, too."""
    file = tmp_path / "deep.toml"
    file.write_text(text, encoding="utf-8")
    assert problems(file)[0].endswith("tables and lists are nested more than 64 levels deep")
    (finding,) = check(file).findings
    assert finding.text == "not TOML: tables and lists are nested more than 64 levels deep"


def test_the_callers_mapping_is_never_changed_nor_shared() -> None:
    """Not at any depth, neither by loading nor by what a backend does with its parameters."""

    class Greedy(Plain):
        def __init__(self, *, items: list[int], options: Any) -> None:
            items.append(9)
            options["new"] = 1
            self.items = items

    written = {"a": {"backend": Greedy, "items": [1], "options": {"deep": [1]}, "map": {"b": {"result": "data"}}}}
    before = copy.deepcopy(written)
    plan = plan_of(load(written, {"max": 1}).nodes[0])
    first, second = plan.build(), plan.build()
    assert written == before
    assert isinstance(first, Greedy)
    assert isinstance(second, Greedy)
    assert first.items == second.items == [1, 9]


@pytest.mark.parametrize("name", ["default", "", ".x", "x.", "a b", "a,b", "a[b]", "a:b"])
def test_names_that_are_no_names_for_nodes(name: str) -> None:
    """'default' and names that 'next' and 'map' could not tell apart are refused."""
    assert [p for p in problems({name: {"backend": "Identity"}}) if p.startswith(f"node {name!r}: no name for a node")]


@pytest.mark.parametrize("written", [{}, {"max": 3}, {"backned": "Identity"}, {"global": {"max": 3}}])
def test_nothing_to_build(written: Mapping[str, Any]) -> None:
    """Without a backend or a table there is no node."""
    (problem,) = problems(written)
    assert "there is no node" in problem
    assert ("did you mean 'backend'" in problem) == ("backned" in written)


# ---- backends and their parameters -----------------------------------------------------------------------------


def test_each_step_takes_the_keys_its_constructor_has() -> None:
    """The children of a Sequential share the node's parameters."""
    assert children(backend=Sequential(Resize, Model, "Identity"), resize_h=3, mean="1, 2.5,3") == [
        {"resize_h": 3},
        {"mean": [1.0, 2.5, 3.0], "instance_num": 1, "node_name": "main"},
        {},
    ]


def test_a_containers_own_keywords_and_its_children() -> None:
    """The first argument of a container is its children; its other keywords are parameters."""
    built = plan_of(node(backend=Step(Both, "Identity", Plain), weight="2")).build()
    assert isinstance(built, Both)
    assert built.weight == 2.0
    assert [child.name for child in built.children] == ["Identity", "Plain"]


def test_the_steps_own_parameters_win() -> None:
    """Own, then scoped, then the node's, then the defaults', scoped first."""
    table = {"backend": Sequential(Step(Jumping, jump="own"), Step(Both, Jumping), Jumping)}
    assert children(table, jump="node") == [{"jump": "own"}, {}, {"jump": "node"}]
    for keys, defaults, expected in (
        ({"jump": "b", "Jumping::jump": "a"}, {"Jumping::jump": "c", "jump": "d"}, "a"),
        ({"jump": "b"}, {"Jumping::jump": "c", "jump": "d"}, "b"),
        ({}, {"Jumping::jump": "c", "jump": "d"}, "c"),
        ({}, {"jump": "d"}, "d"),
    ):
        config = load({"a": {"backend": Jumping, **keys}}, defaults)
        assert plan_of(config.nodes[0]).parameters == {"jump": expected}


def test_a_scoped_key_is_for_that_step_only() -> None:
    """'A::key' gives key to A; the name is matched in any case."""
    assert children({"backend": "S[Sleep,Identity,Sleep(7)]", "sleep::time": "5"}) == [{"time": 5.0}, {}, {"time": 7.0}]


def test_arguments_without_names_bind_in_the_constructors_order() -> None:
    """'A(5, x=1)' gives 5 to the constructor's first parameter."""
    assert parameters(backend="Copy(data, kept)") == {"source": "data", "target": "kept"}
    assert parameters(backend="Copy(data, target=kept)") == {"source": "data", "target": "kept"}


def test_mistakes_in_a_steps_own_parameters() -> None:
    """Too many, unknown, twice, and of the wrong type."""
    assert problems(backend="Sleep(5, 6)") == [
        "node 'main': backend: Sleep takes 1 parameters, got Sleep(5, 6)",
    ]
    assert "Sleep takes no 'tim'; did you mean 'time'?" in problems(backend="Sleep(tim=5)")[0]
    assert "'time' is given twice" in problems(backend="Sleep(5, time=6)")[0]
    assert problems(backend="Sleep(soon)") == ["node 'main': backend: Sleep(time): must be a number, got 'soon'"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("||n1||n2", ["n1", "n2"]),
        ("a|b|n1|c|n2", ["n1", "n2"]),
        ("n1 | n2", ["n1", "n2"]),
        ("||n1||", ["n1", None]),
        ("both", ["both", "both"]),
    ],
)
def test_a_bar_divides_a_parameter_among_children(written: str, expected: list[str | None]) -> None:
    """One value per child, or one per child that takes it; an empty one means the default."""
    given = children(backend=Sequential("Identity", "Pow", Jumping, "Pow", Jumping), jump=written)
    assert [given[2].get("jump"), given[4].get("jump")] == expected


def test_a_bar_is_text_where_only_one_child_takes_the_parameter() -> None:
    """Nothing is divided that nobody shares."""
    assert children(backend=Sequential("Identity", Jumping), jump="a|b")[1] == {"jump": "a|b"}


def test_a_bar_with_the_wrong_number_of_values() -> None:
    """The error has both numbers."""
    (problem,) = problems(backend=Sequential(Resize, "Identity", Resize), resize_h="1|2|3|4")
    assert problem == (
        "node 'main': resize_h: 4 values between '|' for 3 children of Sequential, 2 of which take it: '1|2|3|4'"
    )


def test_a_bar_reaches_a_child_inside_a_child() -> None:
    """The share of a child is that of everything in it."""
    plan = plan_of(node(backend=Sequential(Step(Both, Jumping), Jumping), jump="a|b"))
    assert plan.children[0].children[0].parameters == {"jump": "a"}
    assert plan.children[1].parameters == {"jump": "b"}


@pytest.mark.parametrize("key", ["S::backend", "S::dependency"])
def test_a_key_that_names_several_children(key: str) -> None:
    """With commas, as they would stand in brackets; version 1 of torchpipe says `dependency`."""
    plan = plan_of(node({"backend": "S", key: "Pow, (or)S[Identity,Pow] ,Identity"}))
    assert [(child.name, child.filter is not None) for child in plan.children] == [
        ("Pow", False),
        ("S", True),
        ("Identity", False),
    ]
    (said,) = problems({"backend": "S", key: "Pow,"})
    assert "expected the name of a backend, found the end in 'Pow,'" in said


def test_a_step_that_surrounds_others_may_be_written_around_them() -> None:
    """`SyncTensor[A]` is torchpipe's way of writing `S[A,SyncTensor]`; a filter in front is the whole's."""
    plan = plan_of(node(backend="StreamGuard(device_id=1)[Pow,Identity]"))
    assert [child.name for child in plan.children] == ["Pow", "Identity", "StreamGuard"]
    assert plan.children[2].parameters == {"device_id": 1}
    inner = plan_of(node(backend="S[Pow,(or)SyncTensor[Pow]]")).children[1]
    assert [child.name for child in inner.children] == ["Pow", "SyncTensor"]
    assert inner.filter is not None
    assert inner.children[1].filter is None


def test_a_filter_without_a_name_is_none() -> None:
    """As `next` and `map`."""
    config = by_name(load({"a": {"backend": "Pow", "filter": ""}}, {}))["a"]
    assert (config.filter, config.filter_name) == (None, None)


def test_torchpipes_way_of_nesting() -> None:
    """'A::backend': 'B' puts B into A, step by step."""
    plan = plan_of(node({"backend": "S", "S::backend": "Sequential", "Sequential::backend": "Pow"}))
    assert (plan.name, plan.children[0].name, plan.children[0].children[0].name) == ("S", "Sequential", "Pow")
    assert "has children already" in problems({"backend": "S[Pow]", "S::backend": "Pow"})[0]
    assert "nobody takes 'X::backend'" in problems({"backend": "S[Pow]", "X::backend": "Pow"})[0]
    config = by_name(load({"a": {"backend": "S[Pow]"}, "b": {"backend": "S"}}, {"S::backend": "Identity"}))
    assert [plan_of(each).children[0].name for each in config.values()] == ["Pow", "Identity"]


def test_a_misspelt_key_with_a_table_is_held_against_those_that_there_are() -> None:
    """Its table looks like a node beside the defaults, or like a node with a dot in its name."""
    keys = {"backend": "Add", "key": "a"}
    assert problems({**keys, "valuee": {"b": 1}})[-1] == (
        "node 'valuee': nobody takes 'b'; 'valuee' is a table of no key, and so counts as a node; did you mean 'value'?"
    )
    assert "node 'node': nobody takes 'valuee'; did you mean 'value'?" in problems(
        {"node": {**keys, "valuee": {"b": 1}}}
    )
    dotted = problems({"node": {**keys, "other": {"b": 1}}})[-1]
    assert (
        dotted
        == "node 'node': nobody takes 'other'; a node named node.other is written [\"node.other\"] in a TOML file"
    )


def test_a_key_nobody_takes_names_the_nearest_known_one() -> None:
    """Constructor keywords, scheduler keys and scoped keys are all known."""
    assert problems(backend=Resize, resize_h=1, resize_ww=2) == [
        "node 'main': nobody takes 'resize_ww'; did you mean 'resize_w'?"
    ]
    assert "did you mean 'instance_num'?" in problems(backend="Identity", instances_num=2)[0]
    assert "did you mean 'Sleep::time'?" in problems({"backend": "Sleep", "Sleep::tine": 2})[0]
    assert problems({"a": {"backend": Resize, "resize_h": 1}}, resizew=2) == [
        "defaults: no node takes 'resizew'; did you mean 'resize_w'?"
    ]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (
            "timeout",
            "; did you mean 'request_timeout' (seconds that a request may take; it stands beside the nodes) or",
        ),
        ("timeout", " or 'batching_timeout' (milliseconds that a request waits for others)?"),
        ("batch_size", "; did you mean 'max'?"),
        ("max_batch", "; did you mean 'max'?"),
        ("max_batch_size", "; did you mean 'max'?"),
        ("workers", "; did you mean 'instance_num'?"),
        ("num_instances", "; did you mean 'instance_num'?"),
        ("max_queue_delay_microseconds", "; did you mean 'batching_timeout', in milliseconds?"),
        ("request_timeout", "; it is a key of the whole pipe, and stands beside the nodes: in a file, above the first"),
        ("request_timeou", "; did you mean 'request_timeout'?"),
    ],
)
def test_a_key_in_another_library_s_words_or_at_a_wrong_place_is_told_which_was_meant(word: str, meant: str) -> None:
    """The words are too far from ours to count as misspelt ones; beside the nodes they are told the same."""
    assert meant in problems({"a": {"backend": Resize, "resize_h": 1, word: 1}})[0]
    if word in ("timeout", "workers"):
        assert meant in problems({"a": {"backend": Resize, "resize_h": 1}}, **{word: 1})[0]


def test_a_parameter_of_the_backend_is_nearer_than_another_library_s_word() -> None:
    """Who writes `workers` at a node that takes `worker` has misspelt it."""

    def fetch(data: Any, *, worker: int = 1) -> Any:
        return data

    assert problems(backend=fetch, workers=2) == ["node 'main': nobody takes 'workers'; did you mean 'worker'?"]


def test_an_attribute_that_is_one_of_the_contract_but_for_a_letter_is_remarked_on() -> None:
    """Nothing would read it. Not where the class says the right one, too, nor of what may well be its own."""

    class Misspelt(Backend):
        maxbatch = 4
        keep_input = True

        def forward(self, batch: list[Request]) -> None: ...

    class Own(Misspelt):
        max_batch = 4
        keeps_input = True
        max_batches = weights = buckets = MIN_BATCH = 3

        def closed(self) -> None: ...

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load({"a": {"backend": Own}, "b": {"backend": "S[Identity,Identity]"}}, {})
        assert not caught
        load({"a": {"backend": Misspelt}}, {})
    assert [str(each.message) for each in caught] == [
        "node 'a': backend: fastpipe does not know Misspelt.keep_input; did you mean 'keeps_input'?",
        "node 'a': backend: fastpipe does not know Misspelt.maxbatch; did you mean 'max_batch'?",
    ]


def test_a_parameter_that_is_needed_and_missing() -> None:
    """The constructor's required keywords are named with who needs them."""
    assert problems(backend=Resize) == ["node 'main': resize_h: Resize needs it"]


def test_one_parameter_in_two_spellings_is_a_mistake() -> None:
    """'model::cache' and 'model_cache' are the same parameter, and the case of a step's name says nothing."""
    assert "are the same parameter" in problems({"backend": Model, "model::cache": "a", "model_cache": "b"})[0]
    twice = {"backend": "Add", "value": 1, "Add::key": "x", "add::key": "y"}
    assert problems(twice) == ["node 'main': 'Add::key' and 'add::key' are the same parameter"]


def test_max_min_instance_num_and_the_nodes_name_reach_who_asks() -> None:
    """A constructor with these keywords gets what was written; 'max' may be a shape there."""
    config = node(backend=Model, max="4x3x224x224", min="1x3x224x224", instance_num="2")
    assert (config.max, config.instance_num) == (4, 2)
    assert dict(plan_of(config).parameters) == {
        "max": "4x3x224x224",
        "min": "1x3x224x224",
        "instance_num": 2,
        "node_name": "main",
    }


def test_all_mistakes_are_told_at_once() -> None:
    """Every node is looked at, also after a mistake in another."""
    found = problems(
        {
            "a": {"backend": "S[Identiti,Poww]", "instance_num": 0},
            "b": {"backend": Resize, "resize_h": 0, "next": "a,,b", "filter": "swop"},
            "c": {"max": "x"},
        },
    )
    assert found == [
        "node 'a': instance_num: must be between 1 and 4096, got 0",
        "node 'a': backend: no backend is named 'Identiti'; did you mean 'Identity'?",
        "node 'a': backend: no backend is named 'Poww'; did you mean 'Pow'?",
        "node 'b': resize_h: must be between 1 and 1024, got 0",
        "node 'b': next: must be a name, names with commas, or a list of names, got 'a,,b'",
        "node 'b': no filter is named 'swop'; did you mean 'swap'?",
        "node 'c': max: must be a number between 1 and 1048576, or a shape such as '4x3x224x224', got 'x'",
        "node 'c': it has no backend",
    ]


def test_a_mistake_in_the_notation_has_node_and_column() -> None:
    """The error of the expression is kept, with the node in front."""
    assert problems(backend="S[A,,B]")[0].startswith("node 'main': backend: column 5: ")


def test_a_missing_extra_is_raised_as_such_where_nothing_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together with other mistakes it is one of the sentences."""

    def resolve(thing: Any) -> Any:
        if thing == "Needy":
            raise MissingExtra("Needy", "torch", ModuleNotFoundError("No module named 'torch'", name="torch"))
        return thing if isinstance(thing, type) else Plain

    monkeypatch.setattr("fastpipe.config.registry.resolve", resolve)
    with pytest.raises(MissingExtra):
        load(None, {"backend": Step(Both, "Needy", "Needy")})
    assert len(problems(backend="Needy", instance_num=0)) == 2


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("Identity[Pow]", "Identity takes no children"),
        ("S", "needs children, as in 'S[A,B]'"),
        ("(or)Identity", "in front of a whole node a filter is the key 'filter'"),
        (Step(Plain(), key=1), "is an object: its parameters were given when it was made"),
        (Step(Both([]), "Identity"), "is an object that has its children already"),
        ("S[Identity,(swop)Pow]", "no filter is named 'swop'; did you mean 'swap'"),
        (dict, "subclass fastpipe.Backend"),
        (3, "subclass fastpipe.Backend"),
        ("", "it has no backend"),
    ],
)
def test_trees_that_make_no_sense(backend: Any, words: str) -> None:
    """What is wrong with a tree is told before anything is built."""
    assert words in problems({"a": {"backend": backend}})[0]


def test_a_backend_object_runs_in_one_instance_of_one_node() -> None:
    """One object runs one batch at a time, so it cannot be two instances, or in two nodes."""
    thing = Plain()
    assert plan_of(node(backend=thing)).build() is thing
    assert "give its class instead" in problems(backend=Sequential(thing), instance_num=2)[0]
    assert "node 'a' already uses this Plain" in problems({"a": {"backend": thing}, "b": {"backend": thing}})[0]
    assert load({"a": {"backend": thing}}, {"instance_num": 4}).nodes[0].instance_num == 1


def test_kwargs_stand_for_the_parameters_of_the_base() -> None:
    """A subclass that passes **kwargs on takes what its base takes."""

    class Square(Resize):
        def __init__(self, *, side: int, **kwargs: Any) -> None:
            super().__init__(resize_h=side, **kwargs)

    takes = constructor_parameters(Square)
    assert list(takes) == ["side", "resize_h", "resize_w", "color"]
    assert parameters(backend=Square, side=1, resize_h=2, color="BGR") == {"side": 1, "resize_h": 2, "color": "bgr"}


def test_an_annotation_only_type_checkers_know_leaves_the_value_alone() -> None:
    """A name that cannot be found at run time does not hide the other annotations."""

    class Half(Plain):
        def __init__(self, *, amount: Decimal, count: int) -> None:
            pass

    assert parameters(backend=Half, amount="1.5", count="2") == {"amount": "1.5", "count": 2}


def test_a_function_is_a_backend_with_parameters() -> None:
    """Keyword-only parameters of a plain function are checked like a constructor's."""

    def scaled(data: float, *, factor: Annotated[float, Between(0, 10)] = 1.0) -> float:
        return data * factor

    request: Request = {"data": 3}
    plan_of(node(backend=scaled, factor="2")).build().forward([request])
    assert request["result"] == 6.0
    assert problems(backend=scaled, factor=11) == ["node 'main': factor: must be between 0 and 10, got 11"]


def test_a_constructor_that_raises_closes_what_was_built_before() -> None:
    """The exception goes on as it is."""
    closed: list[str] = []

    class Closing(Plain):
        def close(self) -> None:
            closed.append("closed")
            raise OSError("while closing")

    class Raises(Plain):
        def __init__(self) -> None:
            raise LookupError("no such model")

    plan = plan_of(node(backend=Sequential(Raises, Closing)))
    with pytest.raises(LookupError, match="no such model") as caught:
        plan.build()
    assert closed == ["closed"]
    assert "closing 'Closing' afterwards raised OSError" in caught.value.__notes__[0]


def test_a_plan_is_thread_bound_if_any_step_is() -> None:
    """Known before anything is built, since the thread must be there to build on."""

    class Bound(Plain):
        thread_bound = True

    assert plan_of(node(backend=Sequential("Identity", Step(Both, Bound)))).thread_bound
    assert not plan_of(node(backend=Sequential("Identity"))).thread_bound


# ---- the scheduler's keys --------------------------------------------------------------------------------------


def test_what_a_node_is_without_any_key() -> None:
    """The defaults of the scheduler."""
    assert node(backend=Plain) == NodeConfig("main", plan_of(node(backend=Plain)))
    config = node(backend=Plain)
    assert (config.instance_num, config.max, config.batching) == (1, None, "adaptive")
    assert config.settings["batching_timeout"] == 2.0


def test_numbers_may_be_text() -> None:
    """Files that came from torchpipe write numbers as text."""
    config = node(backend="Identity", instance_num="2", max="8", batching_timeout="5", batching="Timeout")
    assert (config.instance_num, config.max, config.batching) == (2, 8, "timeout")
    assert config.settings["batching_timeout"] == 5.0


@pytest.mark.parametrize(
    ("written", "size"),
    [(4, 4), ("4", 4), ("4x3x224x224", 4), ("4x3X8,4x2", 4), ("1x3;8x3;4x3", 8), ("|4|2x3", 2)],
)
def test_max_as_a_number_or_a_shape(written: Any, size: int) -> None:
    """The leading number counts; the widest profile, the narrowest child."""
    assert node(backend=Model, max=written).max == size


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"instance_num": 0}, "instance_num: must be between 1 and 4096, got 0"),
        ({"instance_num": "two"}, "instance_num: must be a whole number between 1 and 4096, got 'two'"),
        ({"instance_num": True}, "instance_num: must be a whole number between 1 and 4096, got True"),
        ({"batching_timeout": -5}, "batching_timeout: must be between 0 and 3600000 ms, got -5"),
        ({"batching_timeout": "x"}, "batching_timeout: must be a number between 0 and 3600000 ms, got 'x'"),
        ({"max": 0}, "max: must be a number between 1 and 1048576, or a shape such as '4x3x224x224', got 0"),
        ({"max": "1&x"}, "max: must be a number between 1 and 1048576, or a shape such as '4x3x224x224', got 'x'"),
        ({"max": 2, "min": 3}, "min: must be at most max, which is 2, got 3"),
        ({"max": 4, "min": 2}, "min: Identity takes any number of requests from 1, got 2"),
        ({"bucket": 3}, "bucket: must be a key of the request or a function of it, got 3"),
        ({"filter": 3}, "filter: must be a name or a callable, got 3"),
        ({"next": [1]}, "next: must be a name, names with commas, or a list of names, got [1]"),
    ],
)
def test_mistakes_in_the_schedulers_keys(keys: dict[str, Any], problem: str) -> None:
    """Each says what is allowed, and what it got."""
    assert problem in [each.removeprefix("node 'main': ") for each in problems(backend="Identity", **keys)]


def test_max_is_held_against_what_the_class_takes() -> None:
    """A class that takes four cannot be asked for five."""
    assert problems(backend=Resize, resize_h=1, max=5) == ["node 'main': max: Resize takes at most 4 at once, got 5"]
    assert node(backend=Resize, resize_h=1, max=3).max == 3


def test_an_unknown_batching_rule_names_those_that_exist() -> None:
    """An object that can decide is taken as it is; anything else is not."""
    known = "one of 'adaptive', 'timeout', 'greedy', 'preferred', or an object with decide(load)"
    assert known in problems(backend=Plain, batching="fast")[0]
    assert known in problems(backend=Plain, batching=object())[0]

    class Rule:
        def decide(self, load: dict[str, Any]) -> int:
            return int(load["queued"])

    rule = Rule()
    assert node(backend=Plain, batching=rule).batching is rule


def test_preferred_batch_sizes_go_with_their_rule() -> None:
    """The rule needs sizes, within max; other rules do not look at them."""
    config = node(backend=Plain, max=8, batching="preferred", preferred_batch_sizes="2,8")
    assert config.settings["preferred_batch_sizes"] == (2, 8)
    assert "needs preferred_batch_sizes" in problems(backend=Plain, max=8, batching="preferred")[0]
    assert "only the rule" in problems(backend=Plain, max=8, preferred_batch_sizes=[4])[0]
    too_big = problems(backend=Plain, max=8, batching="preferred", preferred_batch_sizes=[9])
    assert too_big == ["node 'main': preferred_batch_sizes: sizes from 1 to max, which is 8, got [9]"]


def test_a_logical_node_may_be_a_table_inside_its_node(tmp_path: Path) -> None:
    """As in torchpipe's files, where ``[rec.2]`` has no quotes."""
    path = tmp_path / "pipe.toml"
    path.write_text("[rec]\nbackend = 'Identity'\nnext = 'rec.2'\n[rec.2]\nnext = 'end'\n[end]\nbackend = 'Identity'\n")
    nodes = load(path, {}).nodes
    assert [(node.name, node.shares, node.next) for node in nodes] == [
        ("rec", None, ("rec.2",)),
        ("rec.2", "rec", ("end",)),
        ("end", None, ()),
    ]


def test_torchpipes_names_of_keys_are_understood() -> None:
    """In every value; other words stay as they are."""
    nodes = {
        "a": {"backend": "Identity", "next": "b"},
        "b": {"backend": "MapReduce", "jump": "c", "split": "TASK_DATA_KEY", "map": "a[TASK_RESULT_KEY:TASK_DATA_KEY]"},
        "c": {"backend": "ReadFile"},
    }
    _, b, _ = load(nodes, {}).nodes
    assert b.map == (MapEntry(("a",), (("result", "data"),)),)
    assert b.plan is not None
    assert b.plan.parameters["split"] == ["data"]
    assert nodes["b"]["split"] == "TASK_DATA_KEY"


def test_next_is_text_or_a_list() -> None:
    """Both forms mean the same."""
    for written in ("b, c", ["b", "c"], ("b", "c")):
        assert node(backend=Plain, next=written).next == ("b", "c")
    assert node(backend=Plain, next="").next == ()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("B[result:x],C[result:data]", (MapEntry(("B",), (("result", "x"),)), MapEntry(("C",), (("result", "data"),)))),
        ("[result:data, color : color]", (MapEntry((), (("result", "data"), ("color", "color"))),)),
        (" B ", (MapEntry(("B",), (("result", "data"),)),)),
        ("rec.2 [a:b] , C", (MapEntry(("rec.2",), (("a", "b"),)), MapEntry(("C",), (("result", "data"),)))),
        ({"B": {"result": "x", "k": "data"}}, (MapEntry(("B",), (("result", "x"), ("k", "data"))),)),
        ({"": {"result": "data"}}, (MapEntry((), (("result", "data"),)),)),
        (["B[a:b]", "C"], (MapEntry(("B",), (("a", "b"),)), MapEntry(("C",), (("result", "data"),)))),
        ("", None),
    ],
)
def test_the_grammar_of_map(written: Any, expected: Any) -> None:
    """Text, a list of texts and a mapping; a name alone means [result:data]."""
    assert node(backend=Plain, map=written).map == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("B[result]", "expected 'key there:key here', got 'result'"),
        ("B[a:b:c]", "got 'a:b:c'"),
        ("B[]", "got ''"),
        ("B[a:b", "column 1: "),
        ("B[a:b]C", "column 1: "),
        ("B,,C", "column 3: "),
        ("B[a:x],C[b:x]", "'x' is written twice"),
        ({"B": "x"}, "expected {node: {key there: key here}}"),
        ({}, "expected {node: {key there: key here}}, got {}"),
        (5, "must be text such as"),
    ],
)
def test_mistakes_in_map(written: Any, words: str) -> None:
    """Each is told with the text it is in."""
    (problem,) = problems(backend=Plain, map=written)
    assert problem.startswith("node 'main': map: ")
    assert words in problem


def test_filters_by_name_by_import_and_as_objects() -> None:
    """The function is resolved; the name is kept for pictures."""

    def only_large(request: Request) -> Status:
        return Status.Run

    for written, function, name in (
        ("or", run_if_no_result, "or"),
        ("fastpipe.filters:run", run, "fastpipe.filters:run"),
        (only_large, only_large, "only_large"),
    ):
        config = node(backend=Plain, filter=written)
        assert (config.filter, config.filter_name) == (function, name)
    assert node(backend=Plain).filter is None
    first, second = plan_of(node(backend="S[Pow,(swap)Pow]")).children
    assert (first.filter, second.filter) == (None, swap)


# ---- logical nodes ---------------------------------------------------------------------------------------------


def test_a_logical_node_shares_instances_and_has_its_own_place() -> None:
    """'rec.2' uses the instances of 'rec', with its own next, map and filter; order is kept."""
    config = load(
        {
            "rec.2": {"filter": "or", "next": "end", "map": "rec"},
            "rec": {"backend": "Identity", "next": "rec.2"},
            "end": {"backend": "Pow"},
        },
        {},
    )
    logical = config.nodes[0]
    assert (logical.name, logical.plan, logical.shares) == ("rec.2", None, "rec")
    assert (logical.next, logical.filter, logical.map) == (
        ("end",),
        run_if_no_result,
        (MapEntry(("rec",), (("result", "data"),)),),
    )


def test_what_a_logical_node_cannot_have_of_its_own_is_ignored_with_a_warning() -> None:
    """A key nobody knows is still a mistake, and so is a backend: it would not run."""
    with pytest.warns(UserWarning, match=r"shares the instances of 'rec'; its own 'max' is ignored"):
        load({"rec": {"backend": "Identity"}, "rec.2": {"max": 2}}, {})
    assert problems({"rec": {"backend": "Identity"}, "rec.2": {"backend": "Pow"}}) == [
        "node 'rec.2': backend: it shares the instances of 'rec' and runs no backend of its own: take the key out, or "
        "give the node a name without a dot"
    ]
    assert problems({"rec": {"backend": "Sleep"}, "rec.2": {"tim": 2}}) == [
        "node 'rec.2': nobody takes 'tim'; did you mean 'time'?"
    ]


def test_a_logical_node_of_a_node_that_is_not_there() -> None:
    """The nearest real node is named."""
    assert problems({"rec": {"backend": "Identity"}, "rek.2": {}}) == [
        "node 'rek.2': there is no node 'rek' whose instances it could share; did you mean 'rec'?"
    ]


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("2", int, 2),
        (np.int64(2), int, 2),
        ("-5", int, -5),
        ("2.5", float, 2.5),
        (2, float, 2.0),
        ("true", bool, True),
        ("0", bool, False),
        (1, bool, True),
        ("FALSE", bool, False),
        ("123.675, 116.28", list[float], [123.675, 116.28]),
        ([1, "2"], list[float], [1.0, 2.0]),
        ((1, 2), list[int], [1, 2]),
        ("5", list[int], [5]),
        (5, list[int], [5]),
        ("", list[str], []),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("1,2", tuple[int, int], (1, 2)),
        ("a", list, ["a"]),
        ("RGB", Literal["rgb", "bgr"], "rgb"),
        ("8", Literal[8, 16], 8),
        (None, int | None, None),
        ("none", int | None, None),
        ("none", str | None, "none"),
        ("4", int | None, 4),
        ("4", int | str, "4"),
        (4, int | str, 4),
        ("0.5", int | float, 0.5),
        ("x.onnx", Path | str | bytes, Path("x.onnx")),
        (b"abc", Path | bytes, b"abc"),
        (Path("x"), Path, Path("x")),
        ("a,b", list[Path], [Path("a"), Path("b")]),
        ("5", Annotated[int, Between(1, 9)], 5),
        ("5,6", Annotated[list[int], Between(1, 9)], [5, 6]),
        ("5,6", list[Annotated[int, Between(1, 9)]], [5, 6]),
        (len, Callable[[Any], Any], len),
        ("anything", Any, "anything"),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
    ],
)
def test_values_become_the_annotated_type(value: Any, annotation: Any, expected: Any) -> None:
    """Text is converted where something else is annotated; everything else keeps its type."""
    result = coerce(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("x", int, "must be a whole number, got 'x'"),
        (2.5, int, "must be a whole number, got 2.5"),
        (True, int, "must be a whole number, got True"),
        ("nan", float, "must be a number, got 'nan'"),
        (None, float, "must be a number, got None"),
        ("yes", bool, "must be true or false, got 'yes'"),
        (2, bool, "must be true or false, got 2"),
        (16, str, "must be text, got 16"),
        ("1,x", list[int], "must be a list, each a whole number, got '1,x'"),
        ({"a": 1}, list[int], "must be a list, got {'a': 1}"),
        ("1,2,3", tuple[int, int], "must be a list of 2, got '1,2,3'"),
        ("red", Literal["rgb", "bgr"], "must be 'rgb' or 'bgr', got 'red'"),
        ("x", int | None, "must be a whole number or none, got 'x'"),
        (10, Annotated[int, Between(1, 9)], "must be between 1 and 9, got 10"),
        ("0.5", Annotated[float, Between(0, 0.25)], "must be between 0 and 0.25, got '0.5'"),
        (5, Path, "must be a path, got 5"),
        (5, Callable[[Any], Any], "must be a callable, got 5"),
        (5, dict[str, int], "must be a mapping, got 5"),
    ],
)
def test_values_that_do_not_fit_say_what_would(value: Any, annotation: Any, message: str) -> None:
    """Expected and got, in words."""
    with pytest.raises(BadValue) as caught:
        coerce(value, annotation)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        *((256, 256), ("256", 256), ("256B", 256), ("256MB", 256_000_000), ("1.5 gb", 1_500_000_000), (" 2KiB ", 2048)),
        *(("1GiB", 1 << 30), ("3TB", 3 * 10**12), ("1tib", 1 << 40), (None, None)),
    ],
)
def test_the_size_of_a_cache_may_have_a_unit(written: Any, size_bytes: int | None) -> None:
    """Of a thousand or of 1024."""
    (node,) = load({"backend": Plain, "cache": written}, {}).nodes
    assert node.settings["cache"] == size_bytes


@pytest.mark.parametrize("written", ["lots", "", "-1MB", "1 M B", "1e6", 0, -1, True, 1.5, "5EB", [1], "1iB", "0.1B"])
def test_what_is_no_size_of_a_cache_is_refused(written: Any) -> None:
    """The error says what is one."""
    with pytest.raises(ConfigError, match=r"node 'main': cache: .*(\"256MB\"|from 1 byte)"):
        load({"backend": Plain, "cache": written}, {})


@pytest.mark.parametrize("key", [{"cache_ttl": 5}, {"cache_key": "data"}])
def test_keys_of_a_cache_need_one(key: dict[str, Any]) -> None:
    """Else they would be without effect."""
    with pytest.raises(ConfigError, match=f"node 'main': {next(iter(key))}: there is no cache"):
        load({"backend": Plain, **key}, {})


@pytest.mark.parametrize("wrong", [{"cache_ttl": 0}, {"cache_ttl": "soon"}, {"cache_key": 5}, {"cache_key": [""]}])
def test_keys_of_a_cache_are_checked(wrong: dict[str, Any]) -> None:
    """As all others."""
    with pytest.raises(ConfigError, match=f"node 'main': {next(iter(wrong))}: must be"):
        load({"backend": Plain, "cache": "1MB", **wrong}, {})


def test_keys_that_are_no_text_are_refused() -> None:
    """In a node's table, in the defaults, and in the only node: each is named, with all else that is wrong."""
    with pytest.raises(ConfigError) as raised:
        load({"a": {"backend": "Identity", 1: 2, None: 3, "max": 0}, "global": {4: 5}}, {})
    assert sorted(raised.value.problems) == [
        "defaults: keys are text, got 4",
        "node 'a': keys are text, got 1",
        "node 'a': keys are text, got None",
        raised.value.problems[-1],
    ]
    assert raised.value.problems[-1].startswith("node 'a': max: must be")
