"""Records that somebody else wrote: what reading and replaying them does, what it may cost, what the terminal shows.

No record here does harm: what stands for code that must not be run leaves a file, and nothing asks for more memory than
a test may have if it is not refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe import ConfigError, PipeError
from fastpipe.cli.main import main
from fastpipe.config import registry
from fastpipe.config.values import constructor_parameters
from fastpipe.contract import Container
from fastpipe.debug import record_files
from fastpipe.errors import MissingExtra

Request = dict[str, Any]

WAIT_S = 30.0


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Run the command in this process; return its status, and its table as lines."""
    status = main(["replay", *words])
    return status, capsys.readouterr().out.splitlines()


def kept(values: Request) -> Request:
    """What comes back of ``values``."""
    encoded, members = record_files.encode({"request": values})
    return record_files.Record(Path("x"), json.loads(json.dumps(encoded)), members).request()


# ---- what is run --------------------------------------------------------------------------------------

EVIL = """
from pathlib import Path
import fastpipe

Path("was_run").write_text("by whoever wrote the record")

def run(data):
    return data

def always(request):
    return fastpipe.Status.Run
"""


def stranger_s_record(folder: Path, configuration: Any, request: Request | None = None, **manifest: Any) -> Path:
    """Write a record as anybody could, and return its path."""
    encoded, members = record_files.encode({"request": request or {"data": 3}})
    path = folder / "from_outside.fastpipe.zip"
    path.unlink(missing_ok=True)
    record_files.write(path, {"configuration": configuration, "error": None, **encoded, **manifest}, members)
    return path


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module whose import leaves a file: it stands for any code that can be imported."""
    (tmp_path / "evil_module.py").write_text(EVIL)
    (tmp_path / "evil.toml").write_text('[a]\nbackend = "evil_module:run"\n')
    (tmp_path / "own.toml").write_text('[a]\nbackend = "Identity"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path


CODE: dict[str, Any] = {
    "a backend": {"mapping": {"a": {"backend": "evil_module:run"}}},
    "one node": {"keywords": {"backend": "evil_module:run"}},
    "inside of another": {"mapping": {"a": {"backend": "S[Identity,evil_module:run]"}}},
    "under a scoped key": {"mapping": {"a": {"backend": "S[B]", "B::backend": "evil_module:run"}}},
    "a default": {"mapping": {"global": {"backend": "evil_module:run"}, "a": {}}},
    "a node's filter": {"mapping": {"a": {"backend": "Pow", "filter": "evil_module:always"}}},
    "a step's filter": {"mapping": {"a": {"backend": "S[Pow,(evil_module:always)Pow]"}}},
    "a logical node's filter": {
        "mapping": {"a": {"backend": "Pow", "next": "a.2"}, "a.2": {"filter": "evil_module:always"}}
    },
    "a model": {"mapping": {"a": {"backend": "TorchTensor", "model": "evil_module:run"}}},
    "a file that it names": {"file": "evil.toml"},
    "beside a file": {"file": "own.toml", "keywords": {"b": {"backend": "evil_module:run"}}},
}


@pytest.mark.parametrize("name", CODE)
def test_a_record_s_code_is_run_only_if_it_is_trusted(
    name: str, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading and replaying imports nothing that a record names; the row says what to do. --trust runs it."""
    path = stranger_s_record(evil, CODE[name])
    status, lines = replayed(capsys, str(path))
    assert status == 1
    assert lines[0].startswith("not run")
    assert "--config FILE takes a configuration of yours instead, --trust runs whatever the record names" in lines[0]
    assert "evil_module" not in sys.modules
    assert not (evil / "was_run").exists()
    if name != "a model":
        replayed(capsys, str(path), "--trust")
        assert (evil / "was_run").exists()


def test_with_a_configuration_of_the_user_s_nothing_of_the_record_s_is_used(
    evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its keywords would be nodes beside those of the file, or other models for them."""
    path = stranger_s_record(evil, CODE["beside a file"], answer={"dict": [["data", 3], ["result", 3]]})
    assert replayed(capsys, str(path), "--config", "own.toml") == (
        0,
        ["same       from_outside  answered", "1 of 1 reproduced"],
    )
    assert not (evil / "was_run").exists()


def test_modules_beside_a_configuration_of_the_user_s_are_found(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is the user's, as with every other command; that of what the record names is not looked at."""
    (evil / "mine").mkdir()
    (evil / "mine" / "beside_mine.py").write_text("def run(data):\n    return data\n")
    (evil / "mine" / "own.toml").write_text('[a]\nbackend = "beside_mine:run"\n')
    configuration = {"file": str(evil / "mine" / "own.toml")}
    path = stranger_s_record(evil, configuration, answer={"dict": [["data", 3], ["result", 3]]})
    assert replayed(capsys, str(path))[0] == 1
    assert str(evil / "mine") not in sys.path
    assert replayed(capsys, str(path), "--config", "mine/own.toml")[1][-1] == "1 of 1 reproduced"


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({"backend": "SaveMat", "save_dir": "made"}, "'SaveMat' opens files, or runs code, that its parameters"),
        ({"backend": "SaveTensor", "save_dir": "made"}, "'SaveTensor' opens files"),
        ({"backend": "S[readfile]"}, "'readfile' opens files"),
        ({"backend": "LoadTensor"}, "'LoadTensor' opens files"),
        ({"backend": "OnnxTensor", "model": "own.toml"}, "'OnnxTensor' opens files"),
        ({"backend": "of_another_package"}, "'of_another_package' is not in the box"),
    ],
)
def test_a_record_opens_no_file_and_loads_no_plugin(
    node: Any, why: str, evil: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to read nor to write, wherever its parameters say; entry points of other packages are not looked at."""
    monkeypatch.setattr("fastpipe.config.registry._other_packages", lambda: {"of_another_package": 1 / 0})
    _, lines = replayed(capsys, str(stranger_s_record(evil, {"mapping": {"a": node}})))
    assert why in lines[0]
    assert "and the configuration may be anybody's: --config FILE" in lines[0]
    assert not (evil / "made").exists()


def test_every_backend_of_the_box_is_known_to_compute_only_or_to_need_trust() -> None:
    """A new one is put into one of the two, here and in the registry: can its parameters name a file, or code?"""
    computes = {
        *(
            "Add",
            "AlignMat",
            "CatSplit",
            "Concatenate",
            "CenterCropMat",
            "Copy",
            "CopyMakeBorderTensor",
            "CpuTensor",
            "CropMat",
        ),
        *("CropResizeMat", "CropTensor", "CvtColorMat", "CvtColorTensor", "DecodeMat", "DecodeTensor", "Del"),
        *("DynamicResizeMat", "GpuTensor", "HasKey", "Identity", "Jump", "LetterBoxMat", "Logger", "MapReduce"),
        *("Mat2CpuTensor", "Mat2GpuTensor", "Mat2Tensor", "Move", "NormalizeMat", "NotHasKey", "PillowResizeMat"),
        *("PerspectiveTransformMat", "PillowResizeTensor", "Pow", "Proxy", "PyIdentity", "Random", "Range", "Remove"),
        *(
            "ResizeCenterPadMat",
            "ResizeMat",
            "ResizeNormalizeTensor",
            "ResizePadMat",
            "ResizePadTensor",
            "ResizeShorterMat",
            "RuntimeError",
        ),
        *(
            "ResizeTensor",
            "S",
            "S_v0",
            "Sequential",
            "SequentialV0",
            "Sleep",
            "SplitRows",
            "StreamGuard",
            "SyncTensor",
            "Tensor2Mat",
            "cp",
        ),
        *(
            "Tensor2Vector",
            "TensorSync",
            "ThrowIfNoResult",
            "TopLeftResizeMat",
            "Torch",
            "WarpAffineTensor",
            "mv",
            "rm",
        ),
    }
    needs_trust = {"LoadTensor", "OnnxTensor", "OpenvinoTensor", "ReadFile", "SaveMat", "SaveTensor", "TensorrtTensor"}
    needs_trust |= {"TorchTensor"}
    in_the_box = {name for name, _, _ in registry._BUILT_IN.values()}
    assert in_the_box == computes | needs_trust
    assert {name.lower() for name in needs_trust} == registry._NEEDS_TRUST
    for name in computes:
        try:
            backend = registry.find(name)
        except MissingExtra:
            continue
        parameters = constructor_parameters(backend, skip_first=issubclass(backend, Container))
        kinds = {kind for each in parameters.values() for kind in (each.annotation, *get_args(each.annotation))}
        assert not {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Path)}, name


def test_distrust_ends_with_its_block_and_is_of_its_thread() -> None:
    """Pipes that other threads build meanwhile are the user's own."""
    found: list[Any] = []
    is_distrusting = threading.Event()

    def build() -> None:
        assert is_distrusting.wait(WAIT_S)
        found.append(registry.import_object("os:getcwd"))

    thread = threading.Thread(target=build)
    thread.start()
    with registry.distrusting("trust it"):
        with pytest.raises(ConfigError, match="'os:getcwd' is code, and the configuration may be anybody's: trust it"):
            registry.import_object("os:getcwd")
        with pytest.raises(ConfigError, match="'os:getcwd' is code"):
            registry.find("os:getcwd")
        assert registry.find("pow").__name__ == "Pow"
        is_distrusting.set()
        thread.join(WAIT_S)
    assert found == [os.getcwd]
    assert registry.import_object("os:getcwd") is os.getcwd


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ([], "the record's configuration is damaged"),
        ({"mapping": "evil.toml"}, "the record's configuration is damaged: mapping is 'evil.toml'"),
        ({"keywords": [1]}, "the record's configuration is damaged: keywords is [1]"),
        ({"file": 7}, "the record's configuration is damaged: file is 7"),
        ({"file": "/dev/zero"}, "the configuration /dev/zero is not there"),
        ({}, "there is no node"),
    ],
)
def test_a_configuration_that_is_none_is_said(
    configuration: Any, said: str, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text where a mapping is meant would be the path of a file."""
    configuration = configuration or {"mapping": {}} if configuration == {} else configuration or [1]
    _, lines = replayed(capsys, str(stranger_s_record(evil, configuration)))
    assert lines[0].startswith("not run")
    assert said in lines[0]


def test_a_module_beside_a_record_is_not_imported(tmp_path: Path) -> None:
    """A folder of records from somebody else may hold a ``rich.py`` or a ``cv2.py``: the command looks elsewhere."""
    stranger_s_record(tmp_path, {"mapping": {"a": {"backend": "DecodeMat"}}}, {"data": b"no image"})
    for name in ("cv2", "numpy", "rich", "simplejpeg", "evil_module"):
        (tmp_path / f"{name}.py").write_text(EVIL)
    script = "import sys; sys.path.remove(''); from fastpipe.cli.main import main; main(['replay', '.'])"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 reproduced" in ran.stdout
    assert not (tmp_path / "was_run").exists()


# ---- what reading a file may cost --------------------------------------------------------------------------------


def zipped(path: Path, manifest: Any, members: dict[str, bytes] | None = None, **options: Any) -> Path:
    """Write a zip that may be a record, or pretends to be."""
    text = manifest if isinstance(manifest, str | bytes) else json.dumps({"format": 1, **manifest})
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("manifest.json", text)
        for name, content in (members or {}).items():
            archive.writestr(name, content)
    return path


def npy_header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_a_compressed_record_is_refused_unread(tmp_path: Path) -> None:
    """A kilobyte may inflate to a thousand; fastpipe writes none."""
    path = zipped(tmp_path / "x.zip", {"request": {"dict": []}}, {"0.bin": bytes(99)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PipeError, match="is no record of fastpipe: a member is compressed or encrypted"):
        record_files.read(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A thousand entries that point at the same megabyte would be a gigabyte."""
    path = zipped(tmp_path / "x.zip", {"request": {"dict": []}}, {"0.bin": bytes(9999), "1.bin": bytes(9999)})
    content = path.read_bytes()
    first, second = (content.index(b"PK\x01\x02" + content[at + 4 : at + 46])
                     for at in [found.start() for found in re.finditer(b"PK\x01\x02", content)][1:])  # fmt: skip
    entry = content[first:second]
    end = content.index(b"PK\x05\x06")
    many = content[:end] + 20 * entry + content[end:]
    counts = (3 + 20).to_bytes(2, "little")
    at = end + 20 * len(entry)
    size = int.from_bytes(content[end + 12 : end + 16], "little") + 20 * len(entry)
    path.write_bytes(many[: at + 8] + 2 * counts + size.to_bytes(4, "little") + many[at + 16 :])
    with pytest.raises(PipeError, match="is no record of fastpipe: its members are longer than the file"):
        record_files.read(path)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_a_manifest_that_is_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    """Whether Python's own reader gives up or not."""
    text = '{"format": 1, "request": {"dict": []}, "x": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(PipeError, match=r"is no record of fastpipe: its manifest\.json is nested too deeply"):
        record_files.read(zipped(tmp_path / "x.zip", text))


def test_a_manifest_of_too_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of too many bytes before it is parsed; neither is written."""
    monkeypatch.setattr(record_files, "MOST_NODES", 1000)
    path = zipped(tmp_path / "x.zip", {"request": {"dict": []}, "x": [0] * 1001})
    with pytest.raises(PipeError, match=r"is no record of fastpipe: its manifest\.json has more than 1000 values"):
        record_files.read(path)
    monkeypatch.setattr(record_files, "MOST_MANIFEST_BYTES", 1000)
    with pytest.raises(PipeError, match=r"is no record of fastpipe: its manifest\.json has more than 1000 bytes"):
        record_files.read(path)
    with pytest.raises(PipeError, match="bytes of JSON, more than 1000"):
        record_files.write(tmp_path / "y.zip", {"x": "y" * 1000}, {})
    assert list(tmp_path.iterdir()) == [path]


def test_the_largest_request_that_is_written_is_read_again(tmp_path: Path) -> None:
    """As many values, as deep as the writer keeps, of the kinds that take most JSON."""
    value: Any = {"key": 1 + 2j}
    for _ in range(record_files.DEEPEST - 3):
        value = [{"key": value}] if len(str(value)) < 10 else {"key": value}
    many = {(n, n): 1j for n in range(record_files.MOST_VALUES // 9)}
    encoded, members = record_files.encode({"request": {"deep": value, "many": many}, "answer": {"many": many}})
    record_files.write(tmp_path / "x.zip", encoded, members)
    record = record_files.read(tmp_path / "x.zip")
    assert record.lost == []
    assert record.request() == {"deep": value, "many": many}


@pytest.mark.parametrize(
    ("node", "content"),
    [
        ({"ndarray": "0"}, npy_header("(1000000000000,)") + b"x"),
        ({"ndarray": "0"}, npy_header("(1000000000000,)", "|V0")),
        ({"ndarray": "0"}, npy_header("(-1, 5)") + b"x"),
        ({"scalar": "0"}, npy_header("()", "|O") + b"cos\nsystem\n."),
        ({"tensor": {"member": "0", "dtype": "uint8", "shape": [1 << 40], "device": "cpu"}}, b""),
        ({"tensor": {"member": "0", "dtype": "uint8", "shape": [2, -1], "device": "cpu"}}, b"xx"),
        ({"tensor": {"member": "0", "dtype": "load", "shape": [2], "device": "cpu"}}, b"xx"),
        ({"tensor": {"member": "0", "dtype": "uint8", "shape": 2, "device": "cpu"}}, b"xx"),
    ],
)
def test_a_size_that_its_bytes_do_not_fill_is_refused_before_there_is_memory_for_it(node: Any, content: bytes) -> None:
    """A terabyte in twenty bytes; objects, and names of torch that are no dtype."""
    if "tensor" in node:
        pytest.importorskip("torch")
    record = record_files.Record(Path("x"), {"request": {"dict": [["data", node]]}}, {"0": content})
    with pytest.raises(PipeError, match="x is damaged: "):
        record.request()


def test_a_member_becomes_one_value_under_however_many_keys() -> None:
    """As it was when it was recorded; and not as many arrays as there are shapes for its bytes."""
    array = np.zeros(10)
    back = kept({"one": array, "two": [array, array]})
    assert back["one"] is back["two"][0] is back["two"][1]
    members = {"0": npy_header("(2, 3)") + bytes(6)}
    manifest = {"request": {"dict": [["a", {"ndarray": "0"}], ["b", {"bytes": "0"}]]}}
    with pytest.raises(PipeError, match="x is damaged: ValueError: member '0' is"):
        record_files.Record(Path("x"), manifest, members).request()


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A named pipe among records would hold the command up for ever."""
    os.mkfifo(tmp_path / "x.fastpipe.zip")
    with pytest.raises(PipeError, match=r"x\.fastpipe\.zip is no record of fastpipe: it is no file"):
        record_files.read(tmp_path / "x.fastpipe.zip")


WHOLE = {
    "data": np.arange(6.0),
    "text": ["a", (1, 2.5, None)],
    "bytes": b"xy",
    "set": {1},
    "path": Path("a/b"),
    "c": 1j,
}
ENCODED, MEMBERS = record_files.encode({"request": WHOLE, "answer": {**WHOLE, "result": 3}})
NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("list", "tuple", "set", "dict", "ndarray", "scalar", "tensor", "bytes", "bytearray", "pickle"),
                    *("fields", "int", "float", "path", "complex", "member", "shape", "dtype", "device", "type", "why"),
                    "lost",
                ]
            ),
            inner | st.sampled_from(["0.npy", "1.bin", "uint8", [6], "cpu"]),
            max_size=2,
        )
    ),
    max_leaves=12,
)


def read_whole(path: Path) -> None:
    """Do with a record what a replay does before it runs it."""
    record = record_files.read(path)
    assert isinstance(record.lost, list)
    assert isinstance(record.request(), dict)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(nodes=st.lists(st.tuples(NODES, NODES), max_size=3), more=NODES)
def test_any_values_in_a_manifest_are_read_or_refused(
    nodes: list[Any], more: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands where values are expected: a request, or PipeError."""
    path = tmp_path_factory.getbasetemp() / "values.fastpipe.zip"
    manifest = {"format": 1, **ENCODED, "request": {"dict": [*ENCODED["request"]["dict"], *nodes]}, "error": more}
    zipped(path, json.dumps(manifest), MEMBERS)
    with contextlib.suppress(PipeError):
        read_whole(path)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_record_with_any_bytes_changed_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bits that flip, ends that are missing, in the zip, the manifest and the arrays' headers."""
    path = zipped(tmp_path_factory.getbasetemp() / "bytes.fastpipe.zip", {**ENCODED, "error": None}, MEMBERS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with contextlib.suppress(PipeError, OSError):
        read_whole(path)


# ---- what a terminal shows -----------------------------------------------------------------------------------------

CONTROL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e\u2028"


def raw_controls_in(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_no_raw_control_character_of_a_record_reaches_the_terminal(
    is_terminal: bool, debug: bool, evil: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From keys, values, names of nodes and files, errors, and what is logged on the way; nor a line that is none."""
    if is_terminal:
        console = pytest.importorskip("rich.console")
        # A terminal without colours: all that is left of what begins with an escape would be the record's.
        real = console.Console
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(console, "Console", lambda **_: real(file=sys.stdout, no_color=True, color_system=None))
    forged = f"{CONTROL}\nsame       forged"
    error = {"type": f"x.{CONTROL}", "message": forged, "node": forged, "notes": [], "traceback": forged}
    configuration = {"mapping": {f"n{CONTROL[:3]}": {"backend": "Logger", "level": "error", "message": CONTROL}}}
    path = stranger_s_record(evil, configuration, {"data": CONTROL, CONTROL: CONTROL}, error=error)
    path = path.rename(evil / f"{forged.replace('/', '_')}.fastpipe.zip")
    broken = stranger_s_record(evil, {"mapping": {CONTROL: {"backend": f"no{CONTROL}"}}})
    monkeypatch.setattr("sys.stdin", io.StringIO("step\nprint data\nprint \x1b[1m\n\x1b[2m\nbreak \x1b[3m\nrun\n"))
    arguments = [str(path), str(broken), str(evil / f"absent{CONTROL}")]
    main(["replay", *arguments])
    main(["replay", *arguments[:2], *(["--debug"] if debug else [])])
    said = capfd.readouterr()
    assert raw_controls_in(said.out) == []
    assert raw_controls_in(said.err) == []
    assert "\\x1b]0;title" in said.out
    assert "there is no" in said.err
    assert not [line for line in said.out.splitlines() if line.startswith("same")]
