"""Models out of packages, through a pipe: those that are installed here and take little time, and what a failure is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cv2")
pytest.importorskip("skimage")

import real_models
from helpers import once
from onnx import helper
from onnx_models import make_model
from packaged_models import MODELS, STREAMS, PackagedModel, file_of

from fastpipe import Pipe

QUICK = ("magika", "PP-OCR cls", "MiniLM-L6", "silero_16k_op15", "silero_16k_sequence")


@once
@pytest.mark.parametrize("name", QUICK)
def test_a_model_gives_in_every_way_what_onnx_runtime_gives_alone(name: str) -> None:
    """By one caller, by sixteen, in batches, in four streams; ``make real-models`` tries all of them, and longer."""
    (model,) = [model for model in (*MODELS, *STREAMS) if model.name == name]
    if model.path is None:
        pytest.skip(f"{model.package} is not installed here")
    lines = list(real_models.tried(name, count=6, steps=5))
    assert [line.problem for line in lines] == [""] * len(lines)
    assert len(lines) == (5 + bool(model.refused) if model in STREAMS else 3 + bool(model.pad))
    assert max(line.largest_batch for line in lines) > 1 or model.refused


def own_model(path: Path, *, operator: str, **keys: object) -> PackagedModel:
    """A model that gives its numbers, for "mean" with those of its neighbours added."""
    nodes = [
        helper.make_node("ReduceMean", ["in"], ["mean"], axes=[0]),
        helper.make_node("Add", ["in", "mean" if operator == "mean" else "zero"], ["out"]),
    ]
    path.write_bytes(make_model(nodes, {"in": ["n", 4]}, {"out": ["n", 4]}, {"zero": np.zeros(1, np.float32)}))
    return PackagedModel("own", "", str(path), lambda number: {"in": np.full((1, 4), number, np.float32)}, **keys)  # type: ignore[arg-type]


def test_rows_that_are_mixed_are_a_failure(tmp_path: Path) -> None:
    """Though ONNX Runtime mixes them as well: it is compared with what it gives to one request."""
    model = own_model(tmp_path / "mean.onnx", operator="mean", options={"rows": "batch"})
    *alone, batched = real_models.ways_of(model)
    assert [line.problem for line in alone] == ["", ""]
    assert "FAILS" in batched.problem
    assert batched.own > 0.1


def test_data_that_tell_nothing_are_a_failure(tmp_path: Path) -> None:
    """Where all answers are equal, one request could get another's."""
    model = own_model(tmp_path / "same.onnx", operator="zero")
    model = replace(model, sample=lambda number: {"in": np.ones((1, 4), np.float32)})
    assert all("tells nothing" in line.problem for line in real_models.ways_of(model))


def test_a_refusal_is_a_failure_where_none_is_expected_and_the_other_way_round(tmp_path: Path) -> None:
    """What the table says that is refused has to be, and with those words."""
    mixing = own_model(tmp_path / "mean.onnx", operator="mean", refused="row in a batch of 4")
    assert [line.problem for line in real_models.ways_of(mixing)] == ["", "", ""]
    other_words = own_model(tmp_path / "mean.onnx", operator="mean", refused="its colour")
    assert "other words" in list(real_models.ways_of(other_words))[-1].problem
    right = own_model(tmp_path / "same.onnx", operator="zero", refused="row in a batch of 4")
    assert "not refused" in list(real_models.ways_of(right))[-1].problem


def test_make_installs_the_packages_that_are_tried(repository_root: Path) -> None:
    """With the same versions, and so do the pages of the recipes say."""
    makefile = (repository_root / "Makefile").read_text()
    installed = set(re.findall(r"[\w-]+==[\w.]+", makefile))
    assert {model.package for model in (*MODELS, *STREAMS)} <= installed
    for page in (repository_root / "examples").glob("*/README.md"):
        assert set(re.findall(r"[\w-]+==[\w.]+", page.read_text())) <= installed


@once
def test_the_head_of_yolov8_finds_what_nudenet_finds() -> None:
    """By a loop of its own and OpenCV's NMS; in pictures whose sides are whole numbers where they are made smaller."""
    path = file_of("nudenet==3.4.2", "nudenet/320n.onnx")
    if path is None:
        pytest.skip("nudenet is not installed here")
    from nudenet import NudeDetector
    from skimage import data

    keys = {"max_h": 320, "max_w": 320, "pad_value": 0, "NormalizeMat::std": 255, "color": "bgr"}
    head = {"name": "YoloV8", "iou_threshold": 0.45, "class_agnostic": True}
    detector = NudeDetector()
    photo = np.ascontiguousarray(data.astronaut()[..., ::-1])
    found = 0
    with Pipe(backend="S[ResizePadMat,NormalizeMat,OnnxTensor]", model=path, postprocessor=head, **keys) as pipe:
        for picture in (photo, photo[:400, :300].copy(), photo[32:, 92:].copy(), photo[:, ::-1].copy()):
            answer = pipe({"data": picture})
            expected = detector.detect(picture)
            np.testing.assert_allclose(answer["scores"], [each["score"] for each in expected], atol=1e-5)
            boxes = answer["result"]
            sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).reshape(-1, 4)
            np.testing.assert_allclose(sizes - 0.5, [each["box"] for each in expected], atol=0.51)
            found += len(expected)
    assert found >= 4
