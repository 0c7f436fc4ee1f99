"""Quantisation and comparison on real data, through the nodes of a pipe."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe.cli.main import main
from fastpipe.errors import ConfigError, PipeError

cv2: Any = pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed here (extra cpu)")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed here (extra cpu)")
from onnx_models import make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.models.comparing import compare, other_model  # noqa: E402
from fastpipe.models.inputs import model_of  # noqa: E402
from fastpipe.models.quantizing import quantize  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TOML = """
[decode]
backend = "S[DecodeMat,(run)ThrowIfNoResult]"
message = "no image"
next = "prepare"

[prepare]
backend = "S[ResizeMat,NormalizeMat]"
resize_h = 8
resize_w = 8
preset = "yolo"
next = "model"

[model]
backend = "OnnxTensor"
model = "net.onnx"
max = 4
postprocessor = "SoftmaxArgMax"
"""


def net(scale: float = 1.0, shift: float = 0.0) -> bytes:
    """Return a classifier: a convolution of 1 x 1, whose means are the scores: red, green, blue; times ``scale``."""
    helper = onnx.helper
    weights = (np.eye(3, dtype=np.float32) * scale).reshape(3, 3, 1, 1)
    nodes = [
        helper.make_node("Conv", ["image", "weights", "bias"], ["colors"]),
        helper.make_node("Relu", ["colors"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["scores"]),
    ]
    constants = {"weights": weights, "bias": np.array([shift, 0, 0], np.float32)}
    return make_model(nodes, {"image": ["batch", 3, 8, 8]}, {"scores": ["batch", 3]}, constants)  # type: ignore[no-untyped-call, no-any-return]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipe, its model, and twelve pictures: four of each color, the last one nearly gray."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline.toml").write_text(TOML)
    (tmp_path / "net.onnx").write_bytes(net())
    for index, name in enumerate(("red", "green", "blue")):
        for number in range(4):
            pixels = np.full((20, 30, 3), 60 if number < 3 else 99, np.uint8)
            pixels[:, :, 2 - index] = 200 if number < 3 else 102
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return tmp_path


def files(folder: Path) -> Any:
    """Return the pictures as the commands read them."""
    paths = sorted((folder / "photos").rglob("*.*"))
    return [(path.name, lambda path=path: {"data": path.read_bytes()}) for path in paths]


def test_a_model_equals_itself(folder: Path) -> None:
    """And every sample has the same class."""
    first = model_of(folder / "pipeline.toml")
    found = compare(first, first, files(folder), names=("a", "b"))
    assert (found.count, found.agreement, found.largest, found.percentile(99)) == (12, 1.0, 0.0, 0.0)
    assert not found.failed


def test_differences_are_those_of_the_outputs(folder: Path) -> None:
    """0.02 more red, where the scores are 200 / 255 or 60 / 255: gray pictures get another class."""
    (folder / "other.onnx").write_bytes(net(shift=0.02))
    first = model_of(folder / "pipeline.toml")
    second = other_model(first, folder / "other.onnx", {})
    found = compare(first, second, files(folder), names=("a", "b"), worst=3)
    assert found.largest == pytest.approx(0.02, abs=1e-6)
    assert found.percentile(100) == pytest.approx(0.02 / (102 / 255), rel=1e-4)
    assert (found.agreed_count, found.count) == (10, 12)
    assert [(each.classes, each.agrees) for each in found.worst[:2]] == [((2, 0), False), ((1, 0), False)]
    assert found.worst[0].gap == pytest.approx(3 / 255, rel=1e-3)
    assert len(found.worst) == 3
    assert found.worst[2].agrees


def test_the_command_writes_a_page_with_the_worst_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names are escaped; each picture is the input, small; a damaged file is passed over and named."""
    (folder / "other.onnx").write_bytes(net(shift=0.02))
    (folder / "photos" / "red" / "3.png").rename(folder / "photos" / "<b>.png")
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    arguments = ["compare", "pipeline.toml", "other.onnx", "--data", "@photos", "-o", "page.html", "--worst", "4"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "same top class: 10 of 12 (83.33%)" in out
    assert "samples: 12, 1 failed" in out
    assert "passed over: photos/broken.png: BackendError: no image" in err
    page = (folder / "page.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (80, 120, 3)
    assert {tuple(color) for color in pixels.reshape(-1, 3).tolist()} == {(102, 99, 99)}
    assert page.count('<figure class="other">') == 2
    assert "photos/&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert main([*arguments[:5], "--least-agreement", "0.9"]) == 1
    assert main([*arguments[:5], "--least-agreement", "0.8"]) == 0


def test_precisions_of_one_model_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision differs in the fourth digit."""
    assert main(["compare", "pipeline.toml", "--precision", "fp16", "--data", "@photos"]) == 0
    assert "net.onnx and net.onnx in fp16" in capsys.readouterr().out
    first = model_of(folder / "pipeline.toml")
    found = compare(first, other_model(first, None, {"precision": "fp16"}), files(folder), names=("a", "b"))
    assert 0 < found.percentile(100) < 1e-3


def test_the_model_of_another_file_gets_the_same_data(folder: Path) -> None:
    """What stands in front of it there does not count."""
    (folder / "other.toml").write_text('[only]\nbackend = "OnnxTensor"\nmodel = "net.onnx"\n')
    first = model_of(folder / "pipeline.toml")
    found = compare(first, other_model(first, folder / "other.toml", {}), files(folder), names=("a", "b"))
    assert (found.count, found.largest) == (12, 0.0)


def test_a_second_model_gets_what_the_first_one_gives(folder: Path) -> None:
    """By the name of its node; in front of it the first one runs as it does in the pipe."""
    helper = onnx.helper
    twice = make_model(  # type: ignore[no-untyped-call]
        [helper.make_node("Add", ["scores", "scores"], ["twice"])],
        {"scores": ["batch", 3]},
        {"twice": ["batch", 3]},
    )
    (folder / "twice.onnx").write_bytes(twice)
    text = TOML.replace('postprocessor = "SoftmaxArgMax"', 'next = "last"')
    (folder / "two.toml").write_text(f'{text}\n[last]\nbackend = "OnnxTensor"\nmodel = "twice.onnx"\n')
    second = model_of(folder / "two.toml", "last")
    assert second.path.name == "twice.onnx"
    assert second.transform is not None
    assert [step.partition(":")[0] for step in second.transform.steps] == ["decode", "prepare", "model"]
    found = compare(second, other_model(second, folder / "twice.onnx", {}), files(folder), names=("a", "b"))
    assert (found.count, found.largest) == (12, 0.0)
    with pytest.raises(ConfigError, match="no node is named 'lst'; did you mean 'last'"):
        model_of(folder / "two.toml", "lst")


def test_what_cannot_be_compared_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No other model, no file, no model in the pipe, no data, other outputs."""
    first = model_of(folder / "pipeline.toml")
    with pytest.raises(PipeError, match="there is no file"):
        other_model(first, folder / "none.onnx", {})
    with pytest.raises(PipeError, match="OnnxTensor has no colour"):
        other_model(first, None, {"colour": 1})
    assert main(["compare", "pipeline.toml", "--precision", "fp17", "--data", "@photos"]) == 1
    assert "OnnxTensor: precision: must be 'fp32' or 'fp16'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="runs a model"):
        model_of({"backend": "DecodeMat"})
    with pytest.raises(PipeError, match="no sample could be compared, the data is empty"):
        compare(first, first, [], names=("a", "b"))
    with pytest.raises(SystemExit) as left:
        main(["compare", "pipeline.toml", "--data", "@photos"])
    assert left.value.code == 2
    assert "nothing to compare with" in capsys.readouterr().err


def test_a_model_is_quantized_with_the_ranges_of_the_pipes_own_data(folder: Path) -> None:
    """Its scores stay within a step of INT8, and the same pipe serves it."""
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    done = quantize(folder / "pipeline.toml", files(folder), folder / "int8.onnx")
    assert done.used_count == 12
    assert done.failed == ["broken.png: BackendError: no image"]
    assert done.quantized_count >= 1
    model = onnx.load(folder / "int8.onnx")
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in model.graph.initializer}
    # The range of the input is that of the prepared pictures: 0 to 200 / 255, in 255 steps.
    scales = [float(onnx.numpy_helper.to_array(t).max()) for t in model.graph.initializer if "image_scale" in t.name]
    assert scales == [pytest.approx(200 / 255 / 255, rel=0.01)]
    first = model_of(folder / "pipeline.toml")
    found = compare(first, other_model(first, folder / "int8.onnx", {}), files(folder), names=("a", "b"))
    assert 0 < found.largest < 0.01
    with fastpipe.Pipe(folder / "pipeline.toml", model={"model": folder / "int8.onnx"}) as pipe:
        assert int(pipe({"data": (folder / "photos" / "green" / "0.png").read_bytes()})["class"]) == 1


def test_a_model_that_normalises_is_calibrated_so(folder: Path) -> None:
    """The file's own graph sees numbers from which the mean has been taken."""
    config = {
        "prepare": {"backend": "S[DecodeMat,ResizeMat,NormalizeMat]", "resize_h": 8, "resize_w": 8, "next": "model"},
        "model": {"backend": "OnnxTensor", "model": folder / "net.onnx", "mean": [60.0] * 3, "std": [140.0] * 3},
    }
    config["prepare"] |= {"NormalizeMat::mean": [0.0] * 3, "NormalizeMat::std": [1.0] * 3}
    quantize(config, files(folder)[:1], folder / "int8.onnx")
    model = onnx.load(folder / "int8.onnx")
    scales = [float(onnx.numpy_helper.to_array(t).max()) for t in model.graph.initializer if "image_scale" in t.name]
    assert scales == [pytest.approx(1 / 255, rel=0.01)]  # from (60 - 60) / 140 to (200 - 60) / 140


def test_the_command_takes_samples_from_all_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first files may be all of one class."""
    from fastpipe.cli.data import Inputs
    from fastpipe.cli.quantize import _spread

    assert main(["quantize", "pipeline.toml", "--data", "@photos", "-o", "int8.onnx", "--most", "3"]) == 0
    out = capsys.readouterr().out
    assert "int8.onnx: net.onnx in INT8, " in out
    assert "ranges of 3 samples" in out
    names = [Path(item.name).parent.name for item in _spread(Inputs(["@photos"]), 3)]
    assert names == ["blue", "green", "red"]


def test_what_cannot_be_quantized_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No ONNX file, and data of which nothing could be prepared; nothing is written."""
    with pytest.raises(PipeError, match=r"node 'main': OnnxTensor runs no \.onnx file"):
        quantize({"backend": "OnnxTensor", "model": "net.bin"}, files(folder), folder / "int8.onnx")
    (folder / "bad").mkdir()
    (folder / "bad" / "a.png").write_bytes(b"no picture")
    assert main(["quantize", "pipeline.toml", "--data", "@bad", "-o", "int8.onnx"]) == 1
    assert "no sample could be used to calibrate: bad/a.png: BackendError: no image" in capsys.readouterr().err
    assert not (folder / "int8.onnx").exists()
