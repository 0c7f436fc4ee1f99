"""Exported programs: the sizes they were exported for, how they are called, and what may be in their files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastpipe.errors import ConfigError, ItemErrors, KernelError

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
TorchTensor: Any = pytest.importorskip("fastpipe.backends.model.torch").TorchTensor
_torch_archives: Any = pytest.importorskip("fastpipe.backends.model.torch_archives")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:torch"),
]

Dim: Any = torch.export.Dim


class Doubled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


class Branch(torch.nn.Module):
    """One row is another matter than several."""

    def forward(self, x: Any) -> Any:
        return x * 100 if x.shape[0] == 1 else x * 2


class ByKeyword(torch.nn.Module):
    def forward(self, x: Any, *, scale: Any, offset: Any) -> Any:
        return x * scale + offset


class Nested(torch.nn.Module):
    def forward(self, parts: Any, pair: Any, power: int, mask: Any = None) -> Any:
        return (parts["a"] - parts["b"] + pair[0] * pair[1]) ** power


class Added(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return (x + y[:, : x.shape[1]]).sum(1, keepdim=True)


def saved(path: Path, model: Any, *examples: Any, dims: Any = None, **keywords: Any) -> Path:
    program = torch.export.export(model.eval(), examples, keywords or None, dynamic_shapes=dims)
    torch.export.save(program, path)
    return path


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": each} for each in data]
    backend.forward(batch)
    return [request["result"].tolist() for request in batch]


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_max_is_a_batch_that_the_program_was_exported_for(tmp_path: Path) -> None:
    """A larger one is refused while the pipe is built: it would fail, and be run in halves in silence."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3), dims=({0: Dim("batch", min=1, max=4)},))
    with pytest.raises(ConfigError, match="max is a batch of 8, but the model was exported for at most 4: lower it"):
        TorchTensor(model=path, max=8, device=["cpu"])
    backend = TorchTensor(model=path, max=4, device=["cpu"])
    assert run(backend, *[torch.full((1, 3), float(number)) for number in range(4)]) == [
        [[n * 2] * 3] for n in range(4)
    ]


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC, Dim("batch", min=2, max=4)], ids=["auto", "dynamic", "2 to 4"])
@pytest.mark.parametrize("limit", [None, 1, 3])
def test_a_program_for_two_rows_or_more_is_never_run_with_one(tmp_path: Path, dim: Any, limit: int | None) -> None:
    """It is filled up with a row of zeros, which nobody sees."""
    path = saved(tmp_path / "m.pt2", Branch(), torch.zeros(3, 2), dims=({0: dim},))
    sizes: list[int] = []
    backend = TorchTensor(model=path, max=limit, device=["cpu"])
    module = backend._module._module
    backend._module._module = lambda x: sizes.append(len(x)) or module(x)
    assert backend.max_batch == (limit or 1)
    for count in range(1, backend.max_batch + 1):
        assert run(backend, *[torch.ones(1, 2)] * count) == [[[2, 2]]] * count
    assert sizes == [max(count, 2) for count in range(1, backend.max_batch + 1)]


def test_a_size_that_the_program_was_not_exported_for_is_that_requests_error(tmp_path: Path) -> None:
    """With what was expected and what came; the others of its batch are answered."""
    dims = ({0: Dim("batch", min=1, max=8), 1: Dim("words", min=2, max=100)},)
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 8), dims=dims)
    backend = TorchTensor(model=path, max=4, device=["cpu"])
    batch = [{"data": torch.ones(1, size)} for size in (100, 200, 1, 2)]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert [str(caught.value.errors[index]).partition(", input ")[2] for index in sorted(caught.value.errors)] == [
        "'x': expected 2 to 100 in axis 1, as it was exported for, not 200",
        "'x': expected 2 to 100 in axis 1, as it was exported for, not 1",
    ]
    assert all(isinstance(error, KernelError) for error in caught.value.errors.values())
    assert [request["result"].shape for request in batch if "result" in request] == [(1, 100), (1, 2)]
    with pytest.raises(ConfigError, match="max is 200 in axis 1 of input 'x', the model was exported for 2 to 100"):
        TorchTensor(model=path, max="4x200", device=["cpu"])
    assert TorchTensor(model=path, max="4x50", device=["cpu"]).max_batch == 4


def test_sizes_that_belong_together_are_checked_together(tmp_path: Path) -> None:
    """Of two inputs, also where one is longer than the other by a fixed number."""
    words = Dim("words", min=2, max=50)
    batch = Dim("batch", min=1, max=8)
    path = saved(
        tmp_path / "m.pt2",
        Added(),
        torch.zeros(2, 4),
        torch.zeros(2, 5),
        dims=({0: batch, 1: words}, {0: batch, 1: words + 1}),
    )
    backend = TorchTensor(model=path, max=2, device=["cpu"])
    assert run(backend, [torch.ones(1, 3), torch.ones(1, 4)]) == [[[6]]]
    with pytest.raises(ItemErrors, match="input 'y': expected 4 in axis 1, which goes with axis 1 of 'x', not 3"):
        run(backend, [torch.ones(1, 3), torch.ones(1, 3)])
    with pytest.raises(ConfigError, match="max: input 'y' must have 4 in axis 1, which goes with axis 1 of 'x', not 9"):
        TorchTensor(model=path, max="2x3,2x9", device=["cpu"])


def test_a_size_in_steps_is_checked(tmp_path: Path) -> None:
    """As of a model that halves its input."""

    class Halved(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(x.shape[0], 2, x.shape[1] // 2).sum(1)

    dims = ({0: Dim("batch", min=1, max=8), 1: 2 * Dim("half", min=2, max=50)},)
    path = saved(tmp_path / "m.pt2", Halved(), torch.zeros(2, 8), dims=dims)
    backend = TorchTensor(model=path, max=2, device=["cpu"])
    assert run(backend, torch.ones(1, 6)) == [[[2, 2, 2]]]
    with pytest.raises(ItemErrors, match=r"input 'x': expected 4 to 100 in steps of 2 in axis 1, .* not 7"):
        run(backend, torch.ones(1, 7))


def test_a_batch_in_steps_is_refused(tmp_path: Path) -> None:
    """No number of requests that come one by one is sure to be even."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(4, 3), dims=({0: 2 * Dim("half", min=1, max=8)},))
    with pytest.raises(
        ConfigError, match=r"input 'x' takes batches of 2\*\w+ only; export the program with a batch axis"
    ):
        TorchTensor(model=path, max=2, device=["cpu"])


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_by_keyword_are_given_by_keyword(tmp_path: Path) -> None:
    """In whatever order they were exported; a request gives them by name, or in the program's order."""
    rows = {0: Dim("batch", min=1, max=8)}
    path = saved(
        tmp_path / "m.pt2",
        ByKeyword(),
        torch.zeros(2, 1),
        dims={"x": rows, "offset": rows, "scale": rows},
        offset=torch.zeros(2, 1),
        scale=torch.zeros(2, 1),
    )
    backend = TorchTensor(model=path, max=4, device=["cpu"])
    one, ten, five = torch.ones(1, 1), torch.full((1, 1), 10.0), torch.full((1, 1), 5.0)
    assert run(backend, {"x": five, "scale": ten, "offset": one}, {"x": one, "offset": five, "scale": ten}) == [
        [[51]],
        [[15]],
    ]
    assert run(backend, [five, one, ten]) == [[[51]]]


def test_nested_inputs_and_constants_are_put_where_they_belong(tmp_path: Path) -> None:
    tensors = [torch.full((1, 1), float(number)) for number in (7, 4, 2, 3)]
    path = saved(tmp_path / "m.pt2", Nested(), {"a": tensors[0], "b": tensors[1]}, (tensors[2], tensors[3]), 2, None)
    backend = TorchTensor(model=path, device=["cpu"])
    assert run(backend, tensors) == [[[81]]]
    assert run(backend, dict(zip(("parts_a", "parts_b", "pair_0", "pair_1"), tensors, strict=True))) == [[[81]]]


class Gives(torch.nn.Module):
    """Its outputs are arranged as ``arrange`` has them."""

    def __init__(self, arrange: Callable[[Any], Any]) -> None:
        super().__init__()
        self.arrange = arrange

    def forward(self, x: Any) -> Any:
        return self.arrange(x)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: {"b": x * 2, "a": x * 3},
        lambda x: {7: x * 2, "a": x * 3},
        lambda x: {None: x * 2, False: x * 3},
        lambda x: (x * 2, x * 3),
        lambda x: [x * 2, x * 3],
    ],
)
def test_flat_outputs_are_lists_in_the_programs_order(arrange: Any, tmp_path: Path) -> None:
    """Of a dict, its values, whatever simple keys it has."""
    path = saved(tmp_path / "m.pt2", Gives(arrange), torch.ones(2, 3), dims=({0: Dim("batch")},))
    request: dict[str, Any] = {"data": torch.ones(1, 3)}
    TorchTensor(model=path, max=4, device=["cpu"]).forward([request])
    assert [each[0, 0].item() for each in request["result"]] == [2, 3]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda x: (x, (x * 2, x * 3)), "output 1 is a tuple of outputs: a model may give a tensor, a list or tuple"),
        (lambda x: {"boxes": [x], "scores": x}, "output 'boxes' is a list of outputs: .* or a dict of tensors"),
        (lambda x: [{"a": x}], "output 0 is a dict of outputs: .* needs a module around it which gives them flat"),
        (lambda x: {(1, "a"): x, "b": x}, "outputs cannot be put together .* keys have to be texts or numbers"),
    ],
)
@pytest.mark.parametrize("warm_up", [True, False])
def test_nested_outputs_are_refused_by_name_while_the_pipe_is_built(
    arrange: Any, message: str, warm_up: bool, tmp_path: Path
) -> None:
    """Which one, what may be instead, and what to do; not only when the first request comes."""
    path = saved(tmp_path / "m.pt2", Gives(arrange), torch.ones(2, 3), dims=({0: Dim("batch")},))
    with pytest.raises(ConfigError, match=message):
        TorchTensor(model=path, max=4, rows="batch", warm_up=warm_up, device=["cpu"])


def test_a_number_that_changes_is_no_input(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: Any, count: int) -> Any:
            return x * count

    path = saved(tmp_path / "m.pt2", Scaled(), torch.zeros(2, 1), 5, dims=({0: Dim.AUTO}, Dim.DYNAMIC))
    with pytest.raises(ConfigError, match="its input 'count' is a number that changes; inputs have to be tensors"):
        TorchTensor(model=path, device=["cpu"])


def test_a_compiled_package_is_told_what_it_is(tmp_path: Path) -> None:
    """Trusting it would not help."""
    path = tmp_path / "compiled.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("compiled/archive_format", "pt2")
        archive.writestr("compiled/data/aotinductor/model/code.so", b"")
    for trusted in (False, True):
        with pytest.raises(
            ConfigError, match=r"a package of AOTInductor: .* torch.export.save, and compile='inductor'"
        ):
            TorchTensor(model=path, device=["cpu"], trusted=trusted)


# ---- what is in a file -----------------------------------------------------------------------------------------------


class Everything(torch.nn.Module):
    """Layers, words for operators, sizes that are computed, a branch, and a context."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
            torch.nn.BatchNorm2d(4),
            torch.nn.GELU(approximate="tanh"),
        )
        self.encoder = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        half = self.layers(torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"))
        with torch.no_grad():
            words = torch.einsum("bchw->bhc", half)
        words = self.encoder(words)
        shifted = torch.cond(x.sum() > 0, lambda given: given + 1, lambda given: given - 1, (x,))
        padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % 8))
        return {
            "words": words,
            "shifted": shifted,
            "rows": padded.flatten(2),
            "rounded": torch.div(x, 3, rounding_mode="floor"),
        }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_program_without_code_is_the_same_after_it_was_looked_at(tmp_path: Path) -> None:
    """With all that a real one has: no file that torch writes of torch's own operators needs to be trusted."""
    example = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    dims = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    path = saved(tmp_path / "m.pt2", Everything(), example, dims=dims)
    content = path.read_bytes()
    before = torch.export.load(io.BytesIO(content))
    after = torch.export.load(io.BytesIO(_torch_archives.harmless_copy(content)))
    assert before.range_constraints == after.range_constraints
    expected, got = before.module()(example), after.module()(example)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name])


Change = Callable[[dict[str, Any]], None]


def changed(path: Path, change: Change, record: str = "models/model.json") -> Path:
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(record):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            new.writestr(name, content)
    return target


def _node(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]["nodes"][0]
    return found


def _set_target(target: str) -> Change:
    return lambda program: _node(program).update(target=target)


def _set_expression(text: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


def _add_guard(text: str) -> Change:
    return lambda program: program["guards_code"].append(text)


def _rename(name: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        _node(program)["name"] = name

    return change


def _set_string(text: str) -> Change:
    return lambda program: _node(program)["inputs"].append({"name": "mode", "arg": {"as_string": text}, "kind": 2})


def _set_container(kind: str, context: str = "null") -> Change:
    def change(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        version, spec = json.loads(signature["in_spec"])
        spec["children_spec"][0].update(type=kind, context=context)
        signature["in_spec"] = json.dumps([version, spec])

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set_target("torch.save"), "calls 'torch.save', which is none of torch's operators on tensors"),
        (_set_target("torch.serialization.os.getpid"), "calls 'torch.serialization.os.getpid', which is none"),
        (_set_target("torch.ops.mine.twice.default"), "calls 'torch.ops.mine.twice.default', which is none"),
        (_set_target("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file.default', which is none"),
        (_set_target("torch.ops.aten.__class__.mro"), "calls 'torch.ops.aten.__class__.mro', which is none"),
        (_set_target("torch.ops.aten.mul.__class__"), "calls 'torch.ops.aten.mul.__class__', which is none"),
        (_set_target("torch.ops.load_library"), "calls 'torch.ops.load_library', which is none"),
        (_set_target("_operator.attrgetter"), "calls '_operator.attrgetter', which is none"),
        (_set_target("#extension:twice"), "calls '#extension:twice', which is none"),
        (_set_expression("print()"), r"has an expression that is more than arithmetic, 'print\(\)'"),
        (_set_expression("s1.__class__"), "has an expression that is more than arithmetic, 's1.__class__'"),
        (_set_expression("torch.save(s1)"), "has an expression that is more than arithmetic"),
        (_set_expression("Add('print()')"), "has an expression that is more than arithmetic"),
        (_set_expression("[s1 for s1 in L]"), "has an expression that is more than arithmetic"),
        (_set_expression("(lambda: 1)()"), "has an expression that is more than arithmetic"),
        (_set_expression("Add(" * 90 + "s1" + ")" * 90 + "]"), "has an expression that is more than arithmetic"),
        (_add_guard("print() is None"), "has an expression that is more than arithmetic, 'print"),
        (_add_guard("L['x'].size()[0].__class__"), "has an expression that is more than arithmetic, 'L"),
        (_rename("mul)\n    print("), r"has a name that might be code, 'mul\)\\n    print\('"),
        (_set_string("') or print('"), "has a text that might be code"),
        (_set_container("collections.defaultdict"), "takes or gives a collections.defaultdict, which is no plain"),
        (_set_container("mymodule.Point"), "takes or gives a mymodule.Point, which is no plain container"),
        (_set_container("builtins.dict", '["a()"]'), r"has a name that might be code, 'a\(\)'"),
    ],
)
def test_what_torch_would_evaluate_in_a_program_is_refused(change: Change, reason: str, tmp_path: Path) -> None:
    """Whatever does more than compute with tensors, before torch sees the file."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3), dims=({0: Dim("batch")},))
    with pytest.raises(ConfigError, match=f"it {reason}.*, and loading that runs whatever code is in it: trusted=true"):
        TorchTensor(model=changed(path, change), device=["cpu"])


def test_what_says_where_nodes_come_from_is_left_out(tmp_path: Path) -> None:
    """Torch looks names up in there; nobody needs it to run the program."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3), dims=({0: Dim("batch")},))
    odd = changed(path, lambda program: _node(program)["metadata"].update(source_fn_stack="x,torch.hub.load"))
    content = _torch_archives.harmless_copy(odd.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        assert _node(json.loads(archive.read(name)))["metadata"] == {}
    assert run(TorchTensor(model=odd, device=["cpu"]), torch.ones(1, 3)) == [[[2, 2, 2]]]


def test_a_compressed_part_is_refused(tmp_path: Path) -> None:
    """It may be any number of times as large as the file; torch compresses nothing."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3))
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/data/weights/weight_9", bytes(100))
    with pytest.raises(ConfigError, match="it has a part 'data/weights/weight_9' that is compressed"):
        TorchTensor(model=path, device=["cpu"])


def test_a_damaged_archive_is_refused_in_words(tmp_path: Path) -> None:
    """Wherever the damage is."""
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3))
    content = path.read_bytes()
    directory = content.rindex(b"PK\1\2")
    for place in range(directory, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :])
        _torch_archives.kind_of(path.read_bytes())
    path.write_bytes(content[:-30])
    with pytest.raises(ConfigError, match="it is a pickle"):
        TorchTensor(model=path, device=["cpu"])


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"graph_module": 3}', b"\xff"])
def test_a_program_that_cannot_be_read_is_no_program(content: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt2", Doubled(), torch.zeros(2, 3))
    target = tmp_path / "changed.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("models/model.json") else old.read(name))
    with pytest.raises(ConfigError, match="torch cannot load it"):
        TorchTensor(model=target, device=["cpu"])
