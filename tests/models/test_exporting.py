"""torch -> ONNX: what is written has been tried in several batches; what does not hold is not written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe.cli.main import main
from fastpipe.errors import ConfigError, PipeError

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed here (extra models)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed here (extra models)")
onnxruntime: Any = pytest.importorskip("onnxruntime")
exporting: Any = pytest.importorskip("fastpipe.models.exporting")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MODULE = '''
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4 * 36, 5),
        )

    def forward(self, images):
        return self.layers(images)


class Mixes(Net):
    """Takes the mean of the whole batch from each row."""

    def forward(self, images):
        return self.layers(images - images.mean())


class OneRow(Net):
    """Its batch is a constant of its graph."""

    def forward(self, images):
        return self.layers(images).reshape(2, 5)


class TwoInputs(torch.nn.Module):
    def forward(self, tokens, weights):
        return tokens.float() * weights
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported, and its name."""
    name = f"models_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return name


def test_a_module_is_exported_with_an_open_batch_axis(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It gives in any batch what torch gives, and the command says what was seen."""
    assert main(["export", f"{models}:Net", "-o", "net.onnx", "--shape", "3x8x8"]) == 0
    said = capsys.readouterr().out
    assert "net.onnx: images (batch, 3, 8, 8) -> " in said
    assert "as torch in batches of 1: " in said
    session = onnxruntime.InferenceSession("net.onnx")
    net = __import__(models).Net().eval()
    data = np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)
    (got,) = session.run(None, {"images": data})
    with torch.no_grad():
        assert np.allclose(got, net(torch.from_numpy(data)).numpy(), atol=1e-5)


def test_an_exported_program_knows_its_shapes(models: str, tmp_path: Path) -> None:
    """And need not be told them."""
    net = __import__(models).Net().eval()
    program = torch.export.export(
        net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=False
    )
    torch.export.save(program, tmp_path / "net.pt2")
    done = exporting.export(tmp_path / "net.pt2", tmp_path / "net.onnx")
    assert done.inputs == "images (batch, 3, 8, 8)"
    assert set(done.differences) == {1, 2, 3}
    assert max(done.differences.values()) < 1e-5
    assert done.size_bytes == (tmp_path / "net.onnx").stat().st_size


def test_several_inputs_and_their_types(models: str, tmp_path: Path) -> None:
    """Each has a shape; whole numbers are tried as such."""
    arguments = ["--shape", "6:int64", "--shape", "6"]
    assert main(["export", f"{models}:TwoInputs", "-o", "two.onnx", *arguments]) == 0
    session = onnxruntime.InferenceSession("two.onnx")
    assert [(value.name, value.type) for value in session.get_inputs()] == [
        ("tokens", "tensor(int64)"),
        ("weights", "tensor(float)"),
    ]


def test_a_model_that_mixes_rows_is_not_written(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A caller would get an answer that depends on who shares its batch."""
    assert main(["export", f"{models}:Mixes", "-o", "mixes.onnx", "--shape", "3x8x8"]) == 1
    assert "a row in a batch of" in capsys.readouterr().err
    assert not Path("mixes.onnx").exists()


def test_a_model_whose_batch_is_fixed_is_not_written(models: str, tmp_path: Path) -> None:
    """With what to look for in the module."""
    with pytest.raises(PipeError, match=r"the batch axis of input .images. is fixed .* reshape"):
        exporting.export(f"{models}:OneRow", tmp_path / "one.onnx", shapes=[(3, 8, 8)])
    assert not (tmp_path / "one.onnx").exists()


def test_what_is_missing_is_said(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes that nobody knows, a type that torch has not, a model that is not there, a shape that is none."""
    with pytest.raises(ConfigError, match="--shape 3x224x224"):
        exporting.export(f"{models}:Net", tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="torch has no type 'float33'"):
        exporting.export(f"{models}:Net", tmp_path / "net.onnx", shapes=[(3, 8, 8)], dtypes=["float33"])
    assert main(["export", "nowhere:Net", "-o", "net.onnx", "--shape", "3x8x8"]) == 1
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["export", f"{models}:Net", "-o", "net.onnx", "--shape", "3,8,8"])
    assert left.value.code == 2
    assert "sizes with an x between them" in capsys.readouterr().err
    assert main(["export", f"{models}:Net", "-o", "nowhere/net.onnx", "--shape", "3x8x8"]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_the_smallest_model_that_is_right_is_kept(models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several simplifiers' results; one that fails, or gives other numbers, is left out and named."""
    import onnx

    def shorter(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        model.doc_string = model.graph.doc_string = ""
        for node in model.graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        return bytes(model.SerializeToString())

    def wrong(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor) * 2
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return bytes(model.SerializeToString())

    def fails(content: bytes) -> bytes:
        raise ValueError("not this one")

    ways = [("wrong", wrong), ("fails", fails), ("shorter", shorter)]
    monkeypatch.setattr(exporting, "_simplifiers", lambda: ways)
    done = exporting.export(f"{models}:Net", tmp_path / "net.onnx", shapes=[(3, 8, 8)], simplifies=True)
    assert done.kept == "shorter"
    assert done.tried[0].startswith("wrong: left out, PipeError: in a batch of 1 a number is ")
    assert done.tried[1] == "fails: left out, ValueError: not this one"
    assert done.tried[2] == f"shorter: {done.node_count} operators"


def test_simplifiers_that_are_installed_are_used(models: str, tmp_path: Path) -> None:
    """Their models pass the same checks."""
    names = [name for name in ("onnxsim", "onnxslim") if importlib.util.find_spec(name)]
    if not names:
        with pytest.raises(PipeError, match="pip install onnxslim"):
            exporting.export(f"{models}:Net", tmp_path / "net.onnx", shapes=[(3, 8, 8)], simplifies=True)
        return
    done = exporting.export(f"{models}:Net", tmp_path / "net.onnx", shapes=[(3, 8, 8)], simplifies=True)
    assert [line.partition(":")[0] for line in done.tried if line.endswith(" operators")] == names
