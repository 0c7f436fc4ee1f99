"""ResizeNormalizeTensor: against the reference, on the emulator of the kernels, and on a GPU where there is one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from helpers import calls_of

import fastpipe
from fastpipe.contract import Child
from fastpipe.errors import ConfigError, ItemErrors, KernelError
from fastpipe.kernels import _cuda_images, _device_arrays, cuda, reference

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GPU that is none, and compiles each kernel once."""

    class Device(emulated_gpu.EmulatedDevice):
        number = -1  # as torch calls the host

    return Device(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def build(device: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that builds the backend on a GPU that is none, with torch's tensors of the host."""
    torch = pytest.importorskip("torch")
    if not emulated_gpu.is_there():
        pytest.skip("needs a C++ compiler")
    from fastpipe.backends.gpu import devices
    from fastpipe.backends.tensor import preprocess

    class Stream:
        def __init__(self, device_number: int) -> None:
            assert device_number == 0

        @contextmanager
        def entered(self) -> Iterator[Any]:
            yield SimpleNamespace(handle=0, is_outermost=True)

    monkeypatch.setitem(_device_arrays._known, np.ndarray, emulated_gpu.NumpyArrays())
    monkeypatch.setattr(_cuda_images, "_default_arrays", functools.cache(_cuda_images._default_arrays.__wrapped__))
    workspace = functools.partial(cuda.Workspace, device)
    monkeypatch.setattr(cuda.Workspace, "prepare", lambda self, dtypes: None)
    monkeypatch.setattr(cuda, "Workspace", lambda number, max_batch: workspace(max_batch=max_batch))
    monkeypatch.setattr(devices, "torch_gpu", lambda backend, number: torch.device("cpu"))
    monkeypatch.setattr(preprocess, "InstanceStream", Stream)

    def make(**parameters: Any) -> Any:
        made = preprocess.ResizeNormalizeTensor(**{"resize_h": 14, "resize_w": 10, **parameters})
        made.launches = device.launches
        device.launches.clear()
        return made

    return make


def picture(height: int, width: int, channels: int = 3) -> Any:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def tensor_of(pixels: Any) -> Any:
    """Return (1, channels, height, width), as DecodeTensor lays it out: rows of pixels, with a gap between them."""
    import torch

    height, width, channels = pixels.shape
    memory = torch.empty((1, channels, height, width + 6), dtype=torch.uint8, memory_format=torch.channels_last)
    memory.fill_(99)
    memory[..., :width] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return memory[..., :width]


@pytest.mark.parametrize("filter", ["opencv", "pillow", "pillow12", "pillow13"])
def test_images_of_different_sizes_are_one_launch(build: Callable[..., Any], filter: Any) -> None:
    """With the floats of the reference."""
    backend = build(filter=filter, color="rgb", mean=MEAN, std=STD)
    pixels = [picture(20, 30), picture(14, 10), picture(5, 60), picture(90, 12)]
    requests = [{"data": tensor_of(image), "color": "bgr"} for image in pixels]
    backend.forward(requests)
    expected = reference.resize_normalize(
        pixels,
        14,
        10,
        filter=filter.removesuffix("12"),
        mean=MEAN,
        std=STD,
        source="bgr",
        target="rgb",
        dtype="float32",
    )
    assert len(backend.launches) == 1
    for request, row in zip(requests, expected, strict=True):
        assert request["result"].shape == (1, 3, 14, 10)
        np.testing.assert_array_equal(request["result"][0].numpy(), row)
        assert request["color"] == "rgb"


def test_a_preset_is_the_mean_and_std_of_its_name(build: Callable[..., Any]) -> None:
    """In RGB where no color is given, exchanged for BGR; beside mean or std it is refused."""
    pixels = picture(20, 30)
    for color, given in ((None, slice(None)), ("bgr", slice(None, None, -1))):
        by_name, by_number = ({"data": tensor_of(pixels), "color": "bgr"} for _ in range(2))
        build(preset="imagenet", color=color).forward([by_name])
        build(color=color or "rgb", mean=MEAN[given], std=STD[given]).forward([by_number])
        np.testing.assert_allclose(by_name["result"].numpy(), by_number["result"].numpy(), rtol=0, atol=1e-6)
        assert by_name["color"] == (color or "rgb")
    with pytest.raises(ConfigError, match="ResizeNormalizeTensor: preset = 'clip' has a mean and std of its own"):
        build(preset="clip", mean=[0.0])


@pytest.mark.parametrize("array", ["torch", "cupy"])
def test_pixels_of_the_step_before_give_what_a_tensor_gives(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, array: Any
) -> None:
    """Whichever library the results are of."""
    from fastpipe.backends.gpu.handed_on import Pixels

    monkeypatch.setitem(sys.modules, "cupy", emulated_gpu.EmulatedDevice.cupy)
    backend = build(color="rgb", mean=MEAN, std=STD, array=array)
    images = [picture(20, 30), picture(5, 60)]
    requests: list[dict[str, Any]] = [{"data": tensor_of(picture(9, 8)), "color": "bgr"}]
    for image in images:
        row = (image.ctypes.data, image.strides[0], *image.shape[:2], 3, 1, 0, 0, 0, 0)
        requests.append({"data": Pixels(row, "bgr", image), "color": "bgr"})
    backend.forward(requests)
    expected = reference.resize_normalize(
        [picture(9, 8), *images], 14, 10, filter="opencv", mean=MEAN, std=STD, source="bgr", target="rgb"
    )
    assert len(backend.launches) == 1
    for request, row in zip(requests, expected, strict=True):
        assert request["result"].shape == (1, 3, 14, 10)
        np.testing.assert_array_equal(np.asarray(request["result"])[0], row)
    assert type(requests[0]["result"]).__module__.partition(".")[0] == {"torch": "torch", "cupy": "numpy"}[array]


def test_a_step_that_takes_rows_gets_the_batch_as_one_tensor(build: Callable[..., Any]) -> None:
    """A model of torch's does; CuPy's arrays are not handed on so."""
    from fastpipe.backends.gpu.handed_on import Row
    from fastpipe.backends.model.torch import TorchTensor

    backend, other = build(), build()
    assert backend.offers_forms == TorchTensor.takes_forms == (Row,)
    assert build(array="cupy").offers_forms == ()
    backend.hand_on(Row, fastpipe.Backend())
    tensors = [tensor_of(picture(20, 30)), tensor_of(picture(5, 60))]
    requests: list[dict[str, Any]] = [{"data": tensor} for tensor in tensors]
    expected: list[dict[str, Any]] = [{"data": tensor} for tensor in tensors]
    backend.forward(requests)
    other.forward(expected)
    rows = [request["result"] for request in requests]
    assert [type(row) for row in rows] == [Row, Row]
    assert rows[0].whole is rows[1].whole
    assert [row.number for row in rows] == [0, 1]
    for row, request in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row.tensor.numpy(), request["result"].numpy())


def test_python_does_nothing_for_each_image_that_is_handed_on(build: Callable[..., Any]) -> None:
    """From pixels to rows it runs no more for 32 images than for two."""
    from fastpipe.backends.gpu.handed_on import Pixels, Row

    backend = build(color="rgb", max=32)
    backend.hand_on(Row, fastpipe.Backend())
    image = picture(20, 30)
    row = (image.ctypes.data, image.strides[0], *image.shape[:2], 3, 1, 0, 0, 0, 0)
    counts = []
    for count in (2, 32):
        for _ in range(2):  # what is made once is made by the first
            requests: list[dict[str, Any]] = [{"data": Pixels(row, "bgr", image)} for _ in range(count)]
            called = calls_of(lambda batch=requests: backend.forward(batch))  # type: ignore[misc]
        counts.append(called)
        assert [request["result"].number for request in requests] == list(range(count))
        assert all(request["color"] == "rgb" for request in requests)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("count", [1, 3])
def test_pixels_and_rows_go_through_a_sequential_that_nobody_sees_inside_of(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """From the pixels of one step to the rows of the next to a model; ``data`` is then what came in."""
    import torch

    from fastpipe.backends.flow.sequential import Sequential
    from fastpipe.backends.gpu.handed_on import Pixels, Row
    from fastpipe.backends.model.torch import TorchTensor

    class Decode(fastpipe.Backend):
        """Has decoded already, as ``DecodeTensor`` hands it on."""

        offers_forms = (Pixels,)

        def hand_on(self, form: type, taker: fastpipe.Backend) -> None:
            assert form is Pixels

        def forward(self, batch: list[fastpipe.Request]) -> None:
            for request in batch:
                image = images[request["data"]]
                row = (image.ctypes.data, image.strides[0], *image.shape[:2], 3, 1, 0, 0, 0, 0)
                request.update(result=Pixels(row, "bgr", image), color="bgr")

    images = [picture(20, 30 + number) for number in range(count)]
    prepare, model = build(), TorchTensor(model=torch.nn.Flatten(), max="4x3x14x10", device=["cpu"])
    met: list[type] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch: (met.extend(type(r["data"]) for r in batch), forward(batch)))
    chain = Sequential([Child("Decode", Decode()), Child("Prepare", prepare), Child("Model", model)])
    batch: list[dict[str, Any]] = [{"data": number} for number in range(count)]
    chain.forward(batch)
    expected = reference.resize_normalize(images, 14, 10, filter="opencv", source="bgr", target="bgr")
    assert met == [Row] * count
    assert len(prepare.launches) == 1
    for number, (request, row) in enumerate(zip(batch, expected, strict=True)):
        assert request["data"] == number
        np.testing.assert_array_equal(request["result"][0].numpy(), row.reshape(-1))


def test_cupy_has_no_bfloat16(build: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="bfloat16; take array = 'torch'"):
        build(array="cupy", dtype="bfloat16")


def test_each_request_has_its_own_color(build: Callable[..., Any]) -> None:
    """Three channels are BGR where nothing is said; one channel is gray; planes and rows are read as they lie."""
    import torch

    backend = build(color="rgb")
    pixels = picture(9, 8)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    requests: list[dict[str, Any]] = [
        {"data": tensor_of(pixels)},
        {"data": tensor_of(pixels), "color": "rgb"},
        {"data": planes, "color": "rgb"},
    ]
    backend.forward(requests)
    first, second, third = (request["result"][0].numpy() for request in requests)
    np.testing.assert_array_equal(second, third)
    np.testing.assert_array_equal(first, second[::-1])
    gray = picture(9, 8, 1)
    request: dict[str, Any] = {"data": tensor_of(gray), "color": "rgb"}
    build().forward([request])
    expected = reference.resize_normalize([gray[..., 0]], 14, 10, filter="opencv", source="gray", target="gray")
    np.testing.assert_array_equal(request["result"].numpy(), expected)
    assert request["color"] == "gray"


def test_what_does_not_fit_fails_alone(build: Callable[..., Any]) -> None:
    """With expected and got."""
    import torch

    backend = build()
    wrong = [
        np.zeros((4, 4, 3), np.uint8),
        torch.zeros((1, 3, 4, 4)),
        torch.zeros((2, 3, 4, 4), dtype=torch.uint8),
        torch.zeros((1, 2, 4, 4), dtype=torch.uint8),
        torch.zeros((1, 3, 0, 4), dtype=torch.uint8),
        torch.zeros((3,), dtype=torch.uint8),
    ]
    requests: list[dict[str, Any]] = [{"data": data} for data in wrong]
    requests += [{"data": tensor_of(picture(4, 4)), "color": "yuv"}, {"data": tensor_of(picture(4, 4))}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(requests)
    errors = caught.value.errors
    assert sorted(errors) == list(range(7))
    assert all(isinstance(error, KernelError) for error in errors.values())
    assert str(errors[0]) == "ResizeNormalizeTensor: expected a torch tensor, got a ndarray"
    assert "or without the 1, not empty, on cpu, got torch.float32 of shape (1, 3, 4, 4) on cpu" in str(errors[1])
    assert str(errors[6]) == "ResizeNormalizeTensor: expected a request whose color is 'rgb' or 'bgr', got 'yuv'"
    assert requests[7]["result"].shape == (1, 3, 14, 10)
    with pytest.raises(KernelError, match="expected a torch tensor"):
        backend.forward([{"data": None}])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mean": [1.0, 2.0]}, "mean: "),
        ({"std": [0.0]}, "std: "),
        ({"color": "gray", "mean": [1.0, 2.0, 3.0]}, "mean: "),
        (
            {"resize_h": 20_000, "resize_w": 20_000},
            "a result of 20000 x 20000 pixels has more than max_pixels",
        ),
    ],
)
def test_levels_and_sizes_that_cannot_be_are_refused(build: Callable[..., Any], parameters: Any, message: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError, match=f"^ResizeNormalizeTensor: {message}"):
        build(**parameters)


def test_without_a_gpu_the_configuration_is_refused() -> None:
    """With the number that torch sees."""
    torch = pytest.importorskip("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ConfigError, match=f"ResizeNormalizeTensor: there is no GPU {count + 5}; torch sees {count}"):
        fastpipe.Pipe(backend="ResizeNormalizeTensor", resize_h=8, resize_w=8, device_id=count + 5)


def test_a_pipe_resizes_on_the_gpu() -> None:
    """To the floats of the reference."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pixels = [picture(120, 90), picture(64, 200)]
    look: dict[str, Any] = {"mean": MEAN, "std": STD}
    with fastpipe.Pipe(
        backend="S[ResizeNormalizeTensor,SyncTensor]", resize_h=32, resize_w=48, color="rgb", dtype="float16", **look
    ) as pipe:
        requests = [{"data": tensor_of(image).cuda()} for image in pixels]
        pipe(requests)
    expected = reference.resize_normalize(
        pixels, 32, 48, filter="opencv", source="bgr", target="rgb", dtype="float16", **look
    )
    for request, row in zip(requests, expected, strict=True):
        np.testing.assert_array_equal(request["result"][0].cpu().numpy(), row)
