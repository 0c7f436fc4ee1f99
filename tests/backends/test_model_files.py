"""Files of models: which of those beside an ONNX file are read, and who ever sees the key of an encrypted one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe.cli.check import check
from fastpipe.config.notation import Step
from fastpipe.config.reading import load
from fastpipe.errors import ConfigError

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'fastpipe-engine[cpu]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'fastpipe-engine[cpu]'")

from fastpipe.backends.model.encrypted import KEY_VARIABLE, encrypt, find_key  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime.files import _locations_in, weights_beside  # noqa: E402
from fastpipe.backends.model.source import ModelSource, fingerprint, open_model  # noqa: E402

WEIGHTS = np.arange(16, dtype=np.float32).reshape(4, 4)


def tensor_at(location: str | bytes, size_bytes: int = 64, name: str = "w") -> Any:
    """A constant whose numbers are somewhere else."""
    tensor = onnx.numpy_helper.from_array(WEIGHTS, name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size_bytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_of(nodes: list[Any], initializers: list[Any], functions: list[Any] | None = None) -> Any:
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])]
    graph = onnx.helper.make_graph(nodes, "g", *ends, initializers)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("mine", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions or [])


def model_at(location: str, size_bytes: int = 64) -> bytes:
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    content: bytes = model_of([product], [tensor_at(location, size_bytes)]).SerializeToString()
    return content


def inside_a_constant(tensor: Any) -> Any:
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    return model_of([constant, onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], [])


def inside_a_branch(tensor: Any) -> Any:
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    branch = onnx.helper.make_graph([constant], "b", [], [onnx.helper.make_tensor_value_info("w", 1, [4, 4])])
    true = onnx.numpy_helper.from_array(np.array(True), "true")
    either = onnx.helper.make_node("If", ["true"], ["c"], then_branch=branch, else_branch=branch)
    return model_of([either, onnx.helper.make_node("MatMul", ["x", "c"], ["y"])], [true])


def inside_a_function(tensor: Any) -> Any:
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    nodes = [constant, onnx.helper.make_node("MatMul", ["a", "w"], ["b"])]
    function = onnx.helper.make_function("mine", "f", ["a"], ["b"], nodes, [onnx.helper.make_opsetid("", 17)])
    return model_of([onnx.helper.make_node("f", ["x"], ["y"], domain="mine")], [], [function])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's, with weights in it and outside of it."""
    made = tmp_path / "models"
    (made / "parts").mkdir(parents=True)
    for path in (made / "w.bin", made / "parts" / "w.bin", tmp_path / "w.bin"):
        path.write_bytes(WEIGHTS.tobytes())
    (made / "link").symlink_to("w.bin")
    (made / "link_out").symlink_to(tmp_path / "w.bin")
    (made / "folder_out").symlink_to(tmp_path)
    (made / "device").symlink_to("/dev/zero")
    os.mkfifo(made / "fifo")
    return made


@pytest.mark.parametrize("location", ["w.bin", "parts/w.bin", "./w.bin", "link"])
def test_weights_in_the_models_own_folder_are_read(location: str, folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model_at(location))
    assert weights_beside(path) == {location: folder / location}
    backend = OnnxTensor(model=path, max=2)
    backend.forward([request := {"data": np.ones((1, 4), np.float32)}])
    np.testing.assert_array_equal(request["result"], WEIGHTS.sum(0, keepdims=True))
    assert len(fingerprint(path)) == 64


BAD = [
    ("/etc/hostname", "expected a name within the model's folder, without '..'"),
    ("../w.bin", "expected a name within the model's folder, without '..'"),
    ("parts/../w.bin", "expected a name within the model's folder, without '..'"),
    ("..\\w.bin", "expected a name within the model's folder, without '..'"),
    ("", "expected a name within the model's folder, without '..'"),
    ("link_out", "which leads out of the model's folder: put the file itself beside the model"),
    ("folder_out/w.bin", "which leads out of the model's folder"),
    ("device", "which leads out of the model's folder"),
    ("fifo", "which is no plain file"),
    ("parts", "which is no plain file"),
    ("nothing", "which cannot be read"),
    ("*/_ORT_MEM_ADDR_/*", "which cannot be read"),
]


@pytest.mark.parametrize(("location", "problem"), BAD)
@pytest.mark.parametrize(
    "read", [lambda path: OnnxTensor(model=path, max=2), fingerprint], ids=["model", "fingerprint"]
)
def test_weights_that_are_said_to_be_elsewhere_are_not_opened(
    location: str, problem: str, read: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nobody: not for the model, and not for what is remembered of it."""
    path = folder / "m.onnx"
    path.write_bytes(model_at(location))
    opened: list[str] = []
    of_path = Path.open

    def seen(self: Path, *arguments: Any, **keywords: Any) -> Any:
        opened.append(self.name)
        return of_path(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", seen)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert f"its weights are said to be in {location!r}" in str(caught.value)
    assert problem in str(caught.value)
    assert set(opened) == {"m.onnx"}


@pytest.mark.parametrize("place", [inside_a_constant, inside_a_branch, inside_a_function])
def test_weights_are_found_wherever_a_model_can_have_them(place: Callable[[Any], Any], folder: Path) -> None:
    """In the constants of nodes, of branches, of functions."""
    path = folder / "m.onnx"
    path.write_bytes(place(tensor_at("../w.bin")).SerializeToString())
    with pytest.raises(ConfigError, match=r"its weights are said to be in '../w.bin'"):
        OnnxTensor(model=path, max=2)
    path.write_bytes(place(tensor_at("w.bin")).SerializeToString())
    assert list(weights_beside(path)) == ["w.bin"]


def test_a_place_that_is_written_twice_is_checked_twice(folder: Path) -> None:
    """Some readers take the first, and some the last."""
    for first, second in (("w.bin", "../w.bin"), ("../w.bin", "w.bin")):
        tensor = tensor_at(first)
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", second
        path = folder / "m.onnx"
        path.write_bytes(inside_a_constant(tensor).SerializeToString())
        with pytest.raises(ConfigError, match=r"its weights are said to be in '../w.bin'"):
            weights_beside(path)


def test_a_file_that_is_too_short_is_told(folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model_at("w.bin", 100))
    with pytest.raises(ConfigError, match=r"'w.bin', which has 64 bytes where the model needs 100"):
        OnnxTensor(model=path, max=2)


def test_a_model_given_as_bytes_has_no_files_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in the working directory, where a library would look for them."""
    monkeypatch.chdir(folder)
    content = model_at("w.bin")
    for model in (content, encrypted(content, folder / "m.encrypted")):
        with pytest.raises(
            ConfigError, match=r"its weights are in a file of their own, 'w.bin', which a model that is"
        ):
            OnnxTensor(model=model, max=2, model_key=None if model is content else lambda: bytes(32))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"\x3a\x05ab", "it ends too early"),
        (b"\x3b", "it is no protobuf message"),
        (b"\xff" * 11, "it is no protobuf message"),
        (b"\x09abc", "it ends too early"),
        (b"\x80", "it ends too early"),
    ],
)
def test_what_is_no_model_is_told(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"it is no ONNX model: {problem}"):
        OnnxTensor(model=path)


@pytest.mark.parametrize("number", ["-1", "1e3", "9" * 25, "x"])
def test_a_size_that_is_no_number_is_told(number: str, tmp_path: Path) -> None:
    tensor = tensor_at("w.bin")
    tensor.external_data[2].value = number
    path = tmp_path / "m.onnx"
    path.write_bytes(inside_a_constant(tensor).SerializeToString())
    with pytest.raises(ConfigError, match="it is no ONNX model: the length of its weights is no number"):
        weights_beside(path)


def test_a_model_that_is_nested_too_deeply_is_told() -> None:
    """Deeper than protobuf reads."""
    content = b""
    for _ in range(300):
        for tag in (0x32, 0x2A, 0x0A):  # a graph in an attribute in a node
            content = bytes([tag]) + length_of(content) + content
    with pytest.raises(ConfigError, match="it is nested too deeply"):
        weights_beside(b"\x3a" + length_of(content) + content)


def length_of(content: bytes) -> bytes:
    length, coded = len(content), bytearray()
    while length > 127:
        coded.append(length & 127 | 128)
        length >>= 7
    return bytes([*coded, length])


# ---- keys ------------------------------------------------------------------------------------------------------------

KEY = "00c0ffee" * 8


def encrypted(content: bytes, path: Path) -> Path:
    pytest.importorskip("cryptography")
    path.write_bytes(encrypt(content, bytes(32), "model"))
    return path


def plain() -> bytes:
    content: bytes = inside_a_constant(onnx.numpy_helper.from_array(WEIGHTS, "w")).SerializeToString()
    return content


@pytest.mark.parametrize("model_key", [KEY_VARIABLE, "MY_KEY", lambda: bytes(32)], ids=["default", "name", "callable"])
def test_a_plain_model_given_with_a_key_is_refused(
    model_key: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the file could otherwise put a model of their own in its place, without the key."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    path = tmp_path / "m.onnx"
    path.write_bytes(plain())
    for model in (path, plain()):
        with pytest.raises(ConfigError, match="model_key is given, but it is not encrypted") as caught:
            OnnxTensor(model=model, model_key=model_key)
        assert KEY not in str(caught.value)
        assert open_model(model, None).secret is None  # a key in the environment is for those that need it


@pytest.mark.parametrize("model_key", [KEY, "c0ffee_or_tea", bytes.fromhex(KEY), 12345678901234567890])
def test_a_key_in_the_place_of_its_variable_is_in_no_error(model_key: Any, tmp_path: Path) -> None:
    """Of the pipe, of the backend, of its file; nor in what is chained to them, and what they print of themselves."""
    path = encrypted(plain(), tmp_path / "m.encrypted")
    errors: list[BaseException] = []
    for build in (
        lambda: fastpipe.Pipe(backend="OnnxTensor", model=path, model_key=model_key),
        lambda: OnnxTensor(model=path, model_key=model_key),
        lambda: find_key(model_key),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        errors.append(caught.value)
    shown = [str(model_key), repr(model_key), *([model_key.hex()] if isinstance(model_key, bytes) else [])]
    while errors:
        error = errors.pop()
        text = "\n".join([str(error), repr(error), *getattr(error, "__notes__", ())])
        assert not any(each in text for each in shown)
        errors += [each for each in (error.__cause__, error.__context__) if each is not None]


def test_a_variable_that_is_not_set_says_what_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    path = encrypted(plain(), tmp_path / "m.encrypted")
    with pytest.raises(ConfigError, match=f"the environment variable {KEY_VARIABLE}, which is not set$"):
        OnnxTensor(model=path)
    with pytest.raises(ConfigError, match="the environment variable that model_key names, which is not set; a key"):
        OnnxTensor(model=path, model_key="SOMEWHERE_ELSE")


def test_a_key_is_in_no_description(tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of the configuration, of the pipe, of a step; nor in the log, a record, or what ``fastpipe check`` prints."""
    from fastpipe.cli.main import main

    (tmp_path / "m.onnx").write_bytes(plain())
    mapping = {"model": {"backend": f"OnnxTensor(model_key={KEY})", "model": "m.onnx", "max": 0}}
    step = Step("OnnxTensor", model_key=KEY)
    configuration = load({"backend": "OnnxTensor", "model": "m.onnx", "model_key": KEY}, {})
    texts = [str(step), repr(step), repr(configuration), repr(configuration.nodes[0].plan), str(configuration)]
    with pytest.raises(ConfigError) as caught:
        load(mapping, {})
    texts += [str(caught.value), repr(caught.value)]
    for written in (
        f'[model]\nbackend = "OnnxTensor"\nmodel = "m.onnx"\nmodel_key = ["{KEY}"]\n',
        f'[model]\nbackend = "OnnxTensor(model_key=[{KEY}])"\nmodel = "m.onnx"\n',
        f'[model]\nbackend = "OnnxTensor"\nmodel = "m.onnx"\nmodel_key = "{KEY}\n',
        f'[model]\nbackend = "S[OnnxTensor,OnnxTensor]"\nmodel = "m.onnx"\nmodel_key = "{KEY}|a|b"\n',
        f'model_key = "{KEY}"\n',
    ):
        path = tmp_path / "pipe.toml"
        path.write_text(written)
        texts += [finding.text for finding in check(path).findings]
        assert main(["check", str(path)]) != 0
        texts += capsys.readouterr()
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        texts.append(str(caught.value))
    assert [text for text in texts if KEY in text] == []
    assert KEY not in caplog.text


def test_a_source_shows_neither_key_nor_model() -> None:
    """Others' tools print the variables of a traceback."""
    source = ModelSource(b"weights", bytes.fromhex(KEY))
    assert repr(source) == str(source) == "ModelSource(7 bytes, encrypted)"
    assert repr(ModelSource(Path("m.onnx"), None)) == "ModelSource('m.onnx')"
    assert logging.makeLogRecord({"msg": "%s", "args": (source,)}).getMessage() == "ModelSource(7 bytes, encrypted)"


def test_a_model_is_read_again_only_where_its_file_has_changed(tmp_path: Path) -> None:
    """Each instance asks for the files beside it; the names are kept, whether those files are there is not."""
    model = tmp_path / "model.onnx"
    model.write_bytes(model_at("one.bin"))
    (tmp_path / "one.bin").write_bytes(bytes(64))
    (tmp_path / "two.bin").write_bytes(bytes(64))
    reads_before = _locations_in.cache_info().misses
    for _ in range(3):
        assert weights_beside(model) == {"one.bin": tmp_path / "one.bin"}
    assert _locations_in.cache_info().misses == reads_before + 1
    (tmp_path / "one.bin").unlink()
    with pytest.raises(ConfigError, match=r"'one\.bin', which cannot be read"):
        weights_beside(model)
    changed = tmp_path / "changed"
    changed.write_bytes(model_at("two.bin"))
    changed.replace(model)
    assert weights_beside(model) == {"two.bin": tmp_path / "two.bin"}
