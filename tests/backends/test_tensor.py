"""From images to torch tensors and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe.errors import ConfigError, ItemErrors, KernelError, MissingExtra

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
if torch is not None:
    from fastpipe.backends.tensor import convert as tensor


def image(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def run(backend: fastpipe.Backend, data: Any) -> Any:
    request = {"data": data}
    backend.forward([request])
    return request["result"]


@pytest.mark.skipif(torch is not None, reason="torch is installed")
def test_without_torch_the_extra_is_named() -> None:
    """When the pipe is built."""
    with pytest.raises((MissingExtra, ConfigError), match=r"fastpipe-engine\[torch\]"):
        fastpipe.Pipe(backend="Mat2Tensor")


@needs_torch
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (5, 7), (1, 1, 4)], ids=str)
def test_an_image_becomes_1chw_and_comes_back(shape: tuple[int, ...]) -> None:
    """Same numbers, axes moved; gray gets its channel."""
    pixels = image(*shape)
    result = run(tensor.Mat2Tensor(), pixels)
    assert result.shape == (1, *(shape[2:] or (1,)), *shape[:2])
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    np.testing.assert_array_equal(run(tensor.Tensor2Mat(), result), pixels.reshape(*shape[:2], -1))
    np.testing.assert_array_equal(run(tensor.Tensor2Mat(), result[0]), pixels.reshape(*shape[:2], -1))


@needs_torch
def test_nothing_is_shared_with_what_came_in() -> None:
    """Neither way, not even where the memory would fit as it is; views and read-only arrays are fine."""
    gray = image(4, 6)
    result = run(tensor.Mat2CpuTensor(), gray)
    result.zero_()
    np.testing.assert_array_equal(gray, image(4, 6))
    back = run(tensor.Tensor2Mat(), result)
    back[:] = 9
    assert (result == 0).all()
    assert back.flags.c_contiguous
    pixels = image(4, 6, 3)
    view = pixels[::-1, 1:, ::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(run(tensor.Mat2Tensor(), view)[0].permute(1, 2, 0).numpy(), view)


@needs_torch
def test_floats_keep_their_dtype_on_the_way_in_and_are_rounded_on_the_way_back() -> None:
    """Halves to even, cut off at 0 and 255, not-a-number to 0; wide integers are cut off too."""
    assert run(tensor.Mat2Tensor(), np.zeros((2, 2, 3), np.float32)).dtype == torch.float32
    values = torch.tensor([[[0.5, 1.5, -3.0, 254.6, 256.0, float("nan"), float("inf"), float("-inf")]]])
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        result = run(tensor.Tensor2Mat(), values.to(dtype).requires_grad_())
        assert result.ravel().tolist() == [0, 2, 0, 255, 255, 0, 255, 0]
    assert run(tensor.Tensor2Mat(), torch.tensor([[[-1, 7, 300]]])).ravel().tolist() == [0, 7, 255]


@needs_torch
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_whole_numbers_of_every_type_become_pixels(dtype: str) -> None:
    """Cut off at 0 and 255; also of types for which torch has no clamp."""
    limits = np.iinfo(dtype)
    values = np.array([limits.min, 0, 7, limits.max], dtype).reshape(1, 1, 4)
    result = run(tensor.Tensor2Mat(), torch.from_numpy(values))
    assert result.ravel().tolist() == [0, 0, 7, min(int(limits.max), 255)]


@needs_torch
def test_a_tensor_becomes_a_flat_list() -> None:
    """Of Python's own numbers."""
    assert run(tensor.Tensor2Vector(), torch.arange(6).reshape(1, 2, 3)) == [0, 1, 2, 3, 4, 5]
    assert run(tensor.Tensor2Vector(), torch.tensor([0.5, 2.0]).requires_grad_()) == [0.5, 2.0]
    assert run(tensor.Tensor2Vector(), torch.tensor(7)) == [7]


@needs_torch
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("Mat2Tensor", b"bytes", "Mat2Tensor: expected an array of shape .* got a bytes"),
        ("Mat2CpuTensor", np.zeros(3), r"Mat2CpuTensor: expected .* got shape \(3,\)"),
        ("Mat2Tensor", np.zeros((2, 2), "U1"), "expected a dtype that torch has, got <U1"),
        ("Tensor2Mat", np.zeros((1, 3, 2, 2)), "Tensor2Mat: expected a torch tensor, got a ndarray"),
        ("Tensor2Mat", (2, 3, 2, 2), r"without the 1, got \(2, 3, 2, 2\)"),
        ("Tensor2Mat", (2, 2), r"without the 1, got \(2, 2\)"),
        ("Tensor2Vector", [1.0], "Tensor2Vector: expected a torch tensor, got a list"),
    ],
)
def test_wrong_data_is_refused_and_fails_alone(name: str, data: Any, message: str) -> None:
    """KernelError with expected and got; the neighbours in the batch have their results."""
    backend = getattr(tensor, name)()
    data = torch.zeros(data) if isinstance(data, tuple) else data
    with pytest.raises(KernelError, match=message):
        run(backend, data)
    good = image(2, 2, 3) if name.startswith("Mat") else torch.zeros(1, 3, 2, 2)
    batch = [{"data": good}, {"data": data}, {"data": good}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert ["result" in request for request in batch] == [True, False, True]


@needs_torch
def test_a_gpu_that_is_not_there_is_found_when_the_pipe_is_built() -> None:
    """Whichever way it is asked for."""
    for node in ({"backend": "Mat2Tensor", "device": "gpu"}, {"backend": "Mat2GpuTensor"}):
        with pytest.raises(ConfigError, match="there is no GPU 1023; torch sees"):
            fastpipe.Pipe({**node, "device_id": 1023})


@needs_torch
@pytest.mark.skipif(torch is None or not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_tensor_comes_back_as_it_went() -> None:
    """The result is on the device, and complete."""
    pixels = image(31, 17, 3)
    result = run(tensor.Mat2GpuTensor(), pixels)
    assert result.is_cuda
    np.testing.assert_array_equal(run(tensor.Tensor2Mat(), result), pixels)
