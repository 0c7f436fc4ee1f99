"""The box's backends that say ``keeps_input``: what they were handed is what it was, to the byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe import Backend, BackendError, ItemErrors, Request
from fastpipe.config import registry
from fastpipe.errors import MissingExtra

cv2 = pytest.importorskip("cv2")
torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
# Their input is on a GPU, or goes there; the tests of GPUs hold them against what is computed elsewhere.
ON_A_GPU = {"Mat2GpuTensor", "GpuTensor", "DecodeTensor", "ResizeNormalizeTensor"}
BOX = {"box": [2, 3, 20, 30], "quad": np.array([(1, 1), (30, 2), (28, 20), (2, 18)], np.float32)}


def pixels() -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)


def image() -> Request:
    return {"data": pixels(), "color": "bgr", "resize_h": 9, "resize_w": 11, **BOX}


def tensor() -> Request:
    return {
        "data": torch.from_numpy(pixels().transpose(2, 0, 1)[np.newaxis].copy()),
        "box": [2, 3, 20, 30],
        "affine_matrix": np.array([[1, 0.1, 2], [0, 0.9, 1]], np.float32),
    }


def float_tensor() -> Request:
    request = tensor()
    return {**request, "data": request["data"].float()}


def encoded() -> Request:
    return {"data": cv2.imencode(".png", pixels())[1]}


def number() -> Request:
    return {"data": np.arange(6.0), "more": [bytearray(b"x")]}


Case = tuple[dict[str, Any], Callable[[], Request]]
SIZE = {"resize_h": 20, "resize_w": 24}
FIT = {"max_h": 40, "max_w": 40}
CASES: dict[str, list[Case]] = {
    "Identity": [({}, number)],
    "Pow": [({}, number)],
    "Sleep": [({"time": 0.0}, number)],
    "Add": [({"key": "new", "value": 1}, number)],
    "Copy": [({"source": "data", "target": "new"}, number)],
    "Move": [({"source": "more", "target": "new"}, number)],
    "Remove": [({"key": ["more"]}, number)],
    "ThrowIfNoResult": [({}, number)],
    "RuntimeError": [({}, number)],
    "Logger": [({}, number), ({"keys": ["data"]}, number)],
    "ReadFile": [({}, lambda: {"data": Path(__file__)})],
    "Concatenate": [
        ({}, lambda: {"data": [np.ones((2, 3)), np.zeros((1, 3))]}),
        ({}, lambda: {"data": [torch.ones(2, 3)]}),
    ],
    "SplitRows": [({}, lambda: {"data": np.ones((3, 2)), "sizes": [1, 2]})],
    "DecodeMat": [({}, encoded), ({}, lambda: {"data": bytearray(cv2.imencode(".jpg", pixels())[1].tobytes())})],
    "SaveMat": [({"save_dir": "images"}, image)],
    "CvtColorMat": [({"color": "rgb"}, image), ({"color": "bgr"}, image)],
    "NormalizeMat": [({"color": color, "mean": [1.0], "std": [2.0]}, image) for color in ("rgb", "bgr")],
    "ResizeMat": [(SIZE, image), ({"resize_h": 32, "resize_w": 48}, image)],
    "PillowResizeMat": [(SIZE, image), ({"resize_h": 32, "resize_w": 48}, image)],
    "ResizePadMat": [(FIT, image), ({"max_h": 32, "max_w": 48}, image)],
    "LetterBoxMat": [(FIT, image)],
    "DynamicResizeMat": [({}, image)],
    "ResizeShorterMat": [({"shorter_side": 20}, image), ({"shorter_side": 32, "filter": "opencv"}, image)],
    "CenterCropMat": [({"crop_h": 20, "crop_w": 60}, image), ({"crop_h": 32, "crop_w": 48}, image)],
    "AlignMat": [({"resize_h": 32, "max_w": 320}, image)],
    "CropMat": [({}, image)],
    "CropResizeMat": [(SIZE, image)],
    "PerspectiveTransformMat": [({}, image), ({"rotate_tall": True}, image)],
    "SyncTensor": [({}, tensor)],
    "Mat2Tensor": [({}, image), ({}, lambda: {"data": np.ones((3, 4), np.float32)})],
    "Mat2CpuTensor": [({}, image)],
    "Tensor2Mat": [({}, tensor), ({}, float_tensor)],
    "Tensor2Vector": [({}, tensor)],
    "CvtColorTensor": [({"color": "rgb"}, tensor), ({"color": "bgr"}, float_tensor)],
    "ResizeTensor": [(SIZE, tensor), ({"resize_h": 32, "resize_w": 48}, float_tensor)],
    "PillowResizeTensor": [(SIZE, tensor), ({"resize_h": 32, "resize_w": 48}, tensor)],
    "ResizePadTensor": [(FIT, tensor), ({"max_h": 32, "max_w": 48}, float_tensor)],
    "CropTensor": [({}, tensor)],
    "CopyMakeBorderTensor": [({"top": 1, "left": 2}, tensor), ({}, float_tensor)],
    "WarpAffineTensor": [({"target_h": 9, "target_w": 8}, tensor), ({"target_h": 32, "target_w": 48}, float_tensor)],
    "CpuTensor": [({}, float_tensor)],
    "SaveTensor": [({"save_dir": "tensors"}, float_tensor)],
    "LoadTensor": [({}, lambda: {"data": "saved.pt"})],
}


def bytes_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return [bytes_of(each) for each in value] if isinstance(value, list) else value


def names() -> list[str]:
    """Those of the box that say so in their class, each by its first name."""
    found: dict[type[Any], str] = {}
    for name, _, _ in registry._BUILT_IN.values():
        try:
            backend = registry.find(name)
        except MissingExtra:
            continue
        if isinstance(backend, type) and issubclass(backend, Backend) and backend.keeps_input:
            found.setdefault(backend, name)
    return list(found.values())


def test_every_backend_of_the_box_that_says_so_is_looked_at() -> None:
    """None of them is without a case here, but for those that need a GPU."""
    said = set(names())
    assert said - ON_A_GPU <= CASES.keys()
    assert CASES.keys() - said <= {"PillowResizeMat", "PillowResizeTensor"}  # where Pillow is not installed


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("name", "number"), [(name, number) for name in CASES for number in range(len(CASES[name]))])
def test_the_values_stay_what_they_were(
    name: str, number: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in a batch with one that fails; the arrays could be written to."""
    monkeypatch.chdir(tmp_path)
    torch.save(torch.ones(1, 3, 2, 2), tmp_path / "saved.pt")
    parameters, make = CASES[name][number]
    try:
        backend: Any = registry.find(name)(**parameters)  # type: ignore[operator]
    except MissingExtra as error:
        pytest.skip(str(error))
    batch = [make() for _ in range(count)]
    if count > 1:
        batch.append({"data": None, "more": None})
    values = [(value, bytes_of(value)) for request in batch for value in request.values()]
    may_fail = count > 1 or name in ("RuntimeError", "ThrowIfNoResult")
    kinds = (BackendError, ItemErrors, RuntimeError, TypeError, AttributeError, KeyError)
    with contextlib.closing(backend), contextlib.suppress(*(kinds if may_fail else ())):
        backend.forward(batch)
    for value, before in values:
        assert bytes_of(value) == before
