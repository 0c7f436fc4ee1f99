"""Images as torch tensors: each step against plain NumPy, OpenCV or Pillow, on every device that is here."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe.config.registry import find
from fastpipe.errors import ConfigError, ItemErrors, KernelError
from fastpipe.kernels import reference

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
ops: Any = pytest.importorskip("fastpipe.backends.tensor.geometry")
color: Any = pytest.importorskip("fastpipe.backends.tensor.color")
moves: Any = pytest.importorskip("fastpipe.backends.tensor.moves")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def image(*shape: int, seed: int = 0) -> Any:
    """Return noise, uint8, of shape (1, channels, height, width)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, *shape), np.uint8))


def run(backend: Any, data: Any, **keys: Any) -> Any:
    request = {"data": data, **keys}
    backend.forward([request])
    return request["result"]


def bilinear(pixels: Any, new_height: int, new_width: int) -> Any:
    """Return (channels, height, width) at another size, in the plainest way."""
    planes = np.asarray(pixels, np.float64)
    for axis, side in ((1, new_height), (2, new_width)):
        old = planes.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * (old / side) - 0.5, 0, old - 1)
        first = np.floor(position).astype(int)
        share = (position - first).reshape((-1, 1) if axis == 1 else (-1,))
        planes = planes.take(first, axis) * (1 - share) + planes.take(np.minimum(first + 1, old - 1), axis) * share
    return planes


def test_colors_are_swapped_if_they_have_to_be(device: str) -> None:
    """And the request says what they are now."""
    pixels = image(3, 4, 5).to(device)
    request = {"data": pixels}
    color.CvtColorTensor(color="rgb").forward([request])
    assert torch.equal(request["result"], pixels[:, [2, 1, 0]])
    assert request["color"] == "rgb"
    assert run(color.CvtColorTensor(color="bgr"), pixels) is pixels
    assert run(color.CvtColorTensor(color="rgb"), pixels, color="rgb") is pixels


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (12, 20), (24, 40), (7, 13)], ids=str)
def test_a_resize_is_bilinear_and_in_floats(device: str, size: tuple[int, int]) -> None:
    pixels = image(3, 12, 20)
    backend = ops.ResizeTensor(resize_h=size[0], resize_w=size[1])
    result = run(backend, pixels.to(device))
    assert result.dtype == torch.float32
    assert result.device.type == device
    np.testing.assert_allclose(result[0].cpu().numpy(), bilinear(pixels[0], *size), atol=1e-3)
    assert run(backend, pixels.to(device, torch.float16)).dtype == torch.float16
    assert run(backend, pixels.to(device, torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pillow_resize_is_pillows_bit_for_bit(device: str, channels: int) -> None:
    """Smoothing what becomes smaller; of any strides."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra cpu)")
    if device == "cuda":
        pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda)")
    for number, (height, width) in enumerate([(40, 60), (9, 7), (33, 100), (1, 5)]):
        pixels = image(channels, height, width, seed=number)
        given = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
        expected = pillow.fromarray(given[..., 0] if channels == 1 else given).resize((13, 11), pillow.BILINEAR)
        planes = np.asarray(expected).reshape(11, 13, channels).transpose(2, 0, 1)
        backend = ops.PillowResizeTensor(resize_h=11, resize_w=13)
        for data in (pixels, pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
            result = run(backend, data.to(device))
            assert result.dtype == torch.uint8
            np.testing.assert_array_equal(result[0].cpu().numpy(), planes)


@pytest.mark.parametrize("filter", ["pillow12", "pillow13"])
def test_a_pillow_resize_is_that_of_a_version(device: str, filter: Any) -> None:
    """Of a portrait, in which the two differ, whichever is installed."""
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra cpu)")
    if device == "cuda":
        pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda)")
    pixels = image(3, 90, 31)
    result = run(ops.PillowResizeTensor(resize_h=40, resize_w=23, filter=filter), pixels.to(device))
    given = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
    expected = reference.resize_pillow(given, 40, 23, as_pillow_13=filter == "pillow13")
    np.testing.assert_array_equal(result[0].permute(1, 2, 0).cpu().numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10), (16, 16), (3, 100), (100, 3)])
def test_a_resize_with_padding_keeps_the_ratio(device: str, height: int, width: int) -> None:
    """With the sizes of the CPU's images; what is outside is the padding, and the way back is there."""
    pixels = image(3, height, width)
    request: dict[str, Any] = {"data": pixels.to(device)}
    ops.ResizePadTensor(max_h=16, max_w=24, pad_value=[1, 2, 300]).forward([request])
    result = request["result"][0].cpu().numpy()
    assert result.shape == (3, 16, 24)
    new_height, new_width = min((16, max(1, round(width * 16 / height))), (max(1, round(height * 24 / width)), 24))
    np.testing.assert_allclose(
        result[:, :new_height, :new_width], bilinear(pixels[0], new_height, new_width), atol=1e-3
    )
    for plane, value in zip(result, (1, 2, 300), strict=True):
        assert (plane[new_height:] == value).all()
        assert (plane[:, new_width:] == value).all()
    assert request["inverse_trans"](new_width, new_height) == (pytest.approx(width), pytest.approx(height))
    again = run(ops.ResizePadTensor(resize_h=16, resize_w=24), pixels.to(device))
    assert (again[0, :, new_height:] == 0).all()


def test_the_sizes_are_those_of_the_cpus_images() -> None:
    """For every small image."""
    geometry: Any = pytest.importorskip(
        "fastpipe.backends.image.geometry", reason="OpenCV is not installed (extra cpu)"
    )
    mat, tensor = (kind(max_h=9, max_w=7) for kind in (geometry.ResizePadMat, ops.ResizePadTensor))
    for height in range(1, 12):
        for width in range(1, 12):
            requests = [
                {"data": np.full((height, width), 255, np.uint8)},
                {"data": torch.full((1, 1, height, width), 255)},
            ]
            mat.forward(requests[:1])
            tensor.forward(requests[1:])
            np.testing.assert_allclose(requests[1]["result"][0, 0].numpy(), requests[0]["result"], atol=1e-3)
            assert requests[0]["inverse_trans"](3, 4) == requests[1]["inverse_trans"](3, 4)


def test_a_crop_is_a_copy_of_what_is_inside(device: str) -> None:
    pixels = image(3, 10, 12).to(device)
    result = run(ops.CropTensor(), pixels, box=[2.4, 3, 7, 9.6])
    assert torch.equal(result, pixels[:, :, 3:10, 2:7])
    result.zero_()
    assert pixels.any()


def test_a_border_has_its_color_and_the_image_its_pixels(device: str) -> None:
    """The request's own sides have precedence; the dtype stays."""
    pixels = image(3, 4, 5).to(device)
    backend = ops.CopyMakeBorderTensor(top=1, left=2, right=3, pad_value=[7, 8, 9])
    result = run(backend, pixels, top=2)
    assert result.dtype == torch.uint8
    assert result.shape == (1, 3, 6, 10)
    assert torch.equal(result[:, :, 2:, 2:7], pixels)
    assert [set(result[0, channel, :2].flatten().tolist()) for channel in range(3)] == [{7}, {8}, {9}]
    assert set(result[0, 1, :, 7:].flatten().tolist()) == {8}
    floats = run(ops.CopyMakeBorderTensor(bottom=1, pad_value=[0.5]), pixels.float())
    assert set(floats[0, :, 4].flatten().tolist()) == {0.5}


def test_a_warp_is_opencvs(device: str) -> None:
    """Up to the few bits that OpenCV's weights have."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")
    smooth = np.add.outer(np.arange(40) * 2, np.arange(50) * 3).astype(np.float32)
    pixels = torch.from_numpy(np.stack([smooth, smooth.max() - smooth])[np.newaxis])
    for matrix in ([[1, 0, 3], [0, 1, -2]], [[0.7, -0.4, 12], [0.5, 0.9, -3]], [[2, 0, 0.5], [0, 1.5, 0.25]]):
        result = run(ops.WarpAffineTensor(target_h=30, target_w=45), pixels.to(device), affine_matrix=matrix)
        for plane, warped in zip(pixels[0].numpy(), result[0].cpu().numpy(), strict=True):
            expected = cv2.warpAffine(plane, np.array(matrix, np.float64), (45, 30), flags=cv2.INTER_LINEAR)
            assert np.abs(expected - warped).mean() < 0.5
            assert np.median(np.abs(expected - warped)) < 0.1


def test_a_warp_of_whole_pixels_is_exact(device: str) -> None:
    """And what is outside is padding."""
    pixels = image(2, 6, 7)
    matrix = torch.tensor([[1.0, 0, 2], [0, 1, 1]])
    result = run(ops.WarpAffineTensor(target_h=8, target_w=9, pad_value=50), pixels.to(device), affine_matrix=matrix)
    expected = torch.full((1, 2, 8, 9), 50.0)
    expected[:, :, 1:7, 2:9] = pixels
    torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=0)


def test_a_tensor_goes_to_a_file_and_comes_back(device: str, tmp_path: Path) -> None:
    """A view is saved without what it is a view of; each file has a name of its own."""
    whole = torch.rand(100, 1000, device=device, requires_grad=True)
    save = moves.SaveTensor(save_dir=tmp_path / "made")
    for data in (whole[:1, :2], whole[1:2]):
        assert run(save, data) is data
    paths = sorted((tmp_path / "made").iterdir(), key=lambda path: path.stat().st_size)
    assert paths[0].stat().st_size < 5000
    loaded = run(moves.LoadTensor(), str(paths[0]))
    assert torch.equal(loaded, whole[:1, :2].detach().cpu())
    assert not loaded.requires_grad
    fixed = moves.LoadTensor(path=paths[1])
    first = run(fixed, "anything")
    first.zero_()
    assert torch.equal(run(fixed, None), whole[1:2].detach().cpu())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    """Before it has run."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"a": torch.zeros(1)}, tmp_path / "dict.pt")
    with pytest.raises(KernelError, match=r"bomb\.pt' holds no tensor"):
        run(moves.LoadTensor(), tmp_path / "bomb.pt")
    with pytest.raises(ConfigError, match=r"dict\.pt' holds a dict, no tensor"):
        moves.LoadTensor(path=tmp_path / "dict.pt")
    with pytest.raises(ConfigError, match="nowhere"):
        moves.LoadTensor(path=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        run(moves.LoadTensor(), tmp_path / "nowhere")
    with pytest.raises(KernelError, match="expected the path of a file, got a int"):
        run(moves.LoadTensor(), 5)
    assert not (tmp_path / "ran").exists()


def test_to_the_cpu_and_to_a_gpu() -> None:
    """What is there already is the same object; arrays become tensors."""
    tensor = torch.rand(2, 3)
    assert run(moves.CpuTensor(), tensor) is tensor
    array = np.arange(3)
    made = run(moves.CpuTensor(), array)
    made.zero_()
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(KernelError, match="CpuTensor: expected a dtype that torch has, got <U1"):
        run(moves.CpuTensor(), np.array(["a"]))
    with pytest.raises(KernelError, match="CpuTensor: expected a torch tensor, got a bytes"):
        run(moves.CpuTensor(), b"")
    with pytest.raises(ConfigError, match="GpuTensor: there is no GPU 1023; torch sees"):
        moves.GpuTensor(device_id=1023)
    if torch.cuda.is_available():
        gone = run(moves.GpuTensor(), tensor)
        assert gone.is_cuda
        assert run(moves.GpuTensor(), gone) is gone
        assert torch.equal(run(moves.CpuTensor(), gone), tensor)


@pytest.mark.parametrize(
    ("dtype", "value", "limits"),
    [
        ("uint8", -1, "0 and 255"),
        ("uint8", 256, "0 and 255"),
        ("int8", 128, "-128 and 127"),
        ("int16", -32_769, "-32768 and 32767"),
        ("bool", 2, "0 and 1"),
        ("float16", 65_505, "-65504.0 and 65504.0"),
        ("bfloat16", 3.5e38, "-3.3895.* and 3.3895"),
    ],
)
def test_a_padding_outside_of_the_dtype_is_an_error_with_its_name(dtype: str, value: float, limits: str) -> None:
    """It neither wraps around nor becomes infinite; the other numbers of the list do not matter."""
    data = torch.zeros((1, 2, 3, 3), dtype=getattr(torch, dtype))
    message = (
        f"CopyMakeBorderTensor: pad_value must be between {limits}.* for torch.{dtype}, got {re.escape(str(value))}"
    )
    for pad_value in ([value], [0, value]):
        with pytest.raises(KernelError, match=message):
            run(ops.CopyMakeBorderTensor(left=1, pad_value=pad_value), data)
    if data.is_floating_point():
        with pytest.raises(KernelError, match="ResizePadTensor: pad_value must be between"):
            run(ops.ResizePadTensor(max_h=4, max_w=4, pad_value=[value]), data)
        with pytest.raises(KernelError, match="WarpAffineTensor: pad_value must be between"):
            run(
                ops.WarpAffineTensor(target_h=2, target_w=2, pad_value=value),
                data,
                affine_matrix=[[1, 0, 0], [0, 1, 0]],
            )


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 255.4), ("int8", -128), ("bool", 1), ("float16", -65_504)])
def test_a_padding_at_the_end_of_the_dtype_is_taken(dtype: str, value: float) -> None:
    """Rounded, where there are no fractions."""
    data = torch.zeros((1, 1, 1, 1), dtype=getattr(torch, dtype))
    result = run(ops.CopyMakeBorderTensor(left=1, pad_value=[value]), data)
    assert result.dtype == data.dtype
    assert result[0, 0, 0, 0].item() == round(value)


RESIZE = {"resize_h": 2, "resize_w": 2}


@pytest.mark.parametrize(
    ("name", "parameters", "data", "keys", "message"),
    [
        (
            "CvtColorTensor",
            {"color": "rgb"},
            (1, 4, 4),
            {},
            r"\(1, 3, height, width\), got torch.uint8 of .*1, 1, 4, 4",
        ),
        ("CvtColorTensor", {"color": "rgb"}, (3, 4, 4), {"color": "hsv"}, "color is 'rgb' or 'bgr', got 'hsv'"),
        ("ResizeTensor", RESIZE, np.zeros((1, 3, 2, 2)), {}, "ResizeTensor: expected a tensor of .* got a ndarray"),
        ("ResizeTensor", RESIZE, torch.zeros(2, 3, 4, 4), {}, r"got torch.float32 of shape \(2, 3, 4, 4\)"),
        ("ResizeTensor", RESIZE, torch.zeros(1, 3, 0, 4), {}, r"\(1, 3, 0, 4\)"),
        ("PillowResizeTensor", RESIZE, (2, 4, 4), {}, r"uint8 of shape \(1, 1 or 3, height, width\)"),
        ("PillowResizeTensor", RESIZE, torch.zeros(1, 3, 4, 4), {}, "got torch.float32"),
        ("ResizePadTensor", {**RESIZE, "pad_value": [1, 2]}, (3, 4, 4), {}, "expected 2 channels, as pad_value has"),
        ("CropTensor", {}, (3, 4, 4), {"box": [0, 0, 5, 4]}, "inside 4 x 4 pixels, got"),
        ("CropTensor", {}, (3, 4, 4), {"box": "text"}, "expected a box of four numbers, got 'text'"),
        ("CropTensor", {}, (3, 4, 4), {"box": "0123"}, "expected a box of four numbers, got '0123'"),
        ("CropTensor", {}, (3, 4, 4), {}, "box"),
        ("CopyMakeBorderTensor", {}, (3, 4, 4), {"left": -1}, "left must be a whole number from 0 to 1048576, got -1"),
        ("CopyMakeBorderTensor", {"pad_value": [1, 2]}, (3, 4, 4), {}, "expected 2 channels, as pad_value has, got 3"),
        (
            "CopyMakeBorderTensor",
            {},
            (3, 4, 4),
            {"top": 1_048_576, "left": 1_048_576},
            "at most max_pixels = 178956970, got 1048580 x 1048580 pixels of 3 channels",
        ),
        ("CopyMakeBorderTensor", {"max_pixels": 39}, (3, 4, 4), {"top": 6}, "max_pixels = 39, got 10 x 4 pixels"),
        ("ResizeTensor", {"resize_h": 5, "resize_w": 8, "max_pixels": 40}, (5, 1, 1), {}, "max_pixels = 40, got 5 x 8"),
        (
            "ResizePadTensor",
            {"resize_h": 5, "resize_w": 8, "max_pixels": 40},
            (5, 1, 1),
            {},
            "max_pixels = 40, got 5 x 8 pixels of 5 channels",
        ),
        (
            "WarpAffineTensor",
            {"target_h": 5, "target_w": 8, "max_pixels": 40},
            (5, 1, 1),
            {},
            "max_pixels = 40, got 5 x 8 pixels of 5 channels",
        ),
        ("WarpAffineTensor", {"target_h": 2, "target_w": 2}, (3, 4, 4), {"affine_matrix": [1, 2]}, "a matrix of 2 x 3"),
        (
            "WarpAffineTensor",
            {"target_h": 2, "target_w": 2},
            (3, 4, 4),
            {"affine_matrix": [[1, 1, 0], [2, 2, 0]]},
            "that has an inverse",
        ),
        ("SaveTensor", {"save_dir": Path()}, "text", {}, "SaveTensor: expected a torch tensor, got a str"),
    ],
)
def test_what_is_wrong_is_told_and_fails_alone(
    name: str, parameters: Any, data: Any, keys: Any, message: str, tmp_path: Path
) -> None:
    """With expected and got; the neighbours in a batch have their results."""
    if name == "PillowResizeTensor":
        pytest.importorskip("PIL", reason="Pillow is not installed (extra cpu)")
    if "save_dir" in parameters:
        parameters = {"save_dir": tmp_path}
    backend = find(name)(**parameters)
    bad = {"data": image(*data) if isinstance(data, tuple) else data, **keys}
    with pytest.raises((KernelError, ValueError, KeyError), match=message):
        backend.forward([dict(bad)])
    if "channels, as pad_value" in message:
        return
    good = {"data": image(3, 4, 4), "box": [0, 0, 1, 1], "affine_matrix": [[1, 0, 0], [0, 1, 0]]}
    batch = [dict(good), dict(bad), dict(good)]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert ["result" in request for request in batch] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ResizePadTensor", {"max_h": 3}, r"max_w \(or resize_w\) is missing"),
        ("ResizePadTensor", {"max_h": 3, "max_w": 3, "pad_value": []}, "pad_value must have a number"),
        ("CopyMakeBorderTensor", {"pad_value": []}, "pad_value must have a number"),
        ("CopyMakeBorderTensor", {"pad_value": [float("inf")]}, "CopyMakeBorderTensor: pad_value must be finite"),
        ("CopyMakeBorderTensor", {"top": 20_000, "left": 20_000}, "a result of 20001 x 20001 pixels has more than"),
        ("ResizePadTensor", {"max_h": 3, "max_w": 3, "pad_value": [float("nan")]}, "pad_value must be finite"),
        ("ResizePadTensor", {"max_h": 20_000, "max_w": 20_000}, "a result of 20000 x 20000 pixels has more than"),
        ("ResizeTensor", {"resize_h": 20_000, "resize_w": 20_000}, "max_pixels = 178956970; a larger max_pixels"),
        ("ResizeTensor", {"resize_h": 2, "resize_w": 2, "max_pixels": 3}, "more than max_pixels = 3"),
        ("PillowResizeTensor", {"resize_h": 20_000, "resize_w": 20_000}, "PillowResizeTensor: a result of 20000 x"),
        ("WarpAffineTensor", {"target_h": 20_000, "target_w": 20_000}, "WarpAffineTensor: a result of 20000 x"),
        ("WarpAffineTensor", {"target_h": 2, "target_w": 2, "pad_value": float("inf")}, "pad_value must be finite"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(name: str, parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(name)(**parameters)


def test_a_chain_of_them_in_a_pipe(device: str) -> None:
    """By their names in torchpipe's case; with a SyncTensor one synchronisation at the end."""
    pixels = image(3, 30, 40)
    backend = "S[cvtColorTensor,ResizeTensor,CpuTensor,SyncTensor]"
    with fastpipe.Pipe(backend=backend, color="rgb", resize_h=8, resize_w=9, max=4) as pipe:
        answers = list(pipe.map({"data": pixels.to(device)} for _ in range(8)))
    for answer in answers:
        np.testing.assert_allclose(answer["result"][0].numpy(), bilinear(pixels[0].flip(0), 8, 9), atol=1e-3)
        assert answer["color"] == "rgb"
