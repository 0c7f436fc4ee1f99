"""What torch is handed of arrays that it did not make: what it can have as it is, a copy of the rest, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastpipe.errors import ItemErrors, KernelError

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
_torch_arrays: Any = pytest.importorskip("fastpipe.backends.tensor.arrays")
TorchTensor: Any = pytest.importorskip("fastpipe.backends.model.torch").TorchTensor

NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


class Given:
    """An array of another library, known by its DLPack alone."""

    def __init__(self, array: Any, kind: int = 1, interface: dict[str, Any] | None = None) -> None:
        self.array, self.kind = array, kind
        if interface is not None:
            self.__cuda_array_interface__ = interface

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: Any) -> Any:
    memory = bytearray(array.nbytes + 1)
    shifted = np.frombuffer(memory, array.dtype, array.size, offset=1).reshape(array.shape)
    shifted[:] = array
    return shifted


def field(array: Any) -> Any:
    """One number of records whose size is no multiple of the number's."""
    records = np.zeros(array.shape, np.dtype([("number", array.dtype), ("letter", "S1")]))
    records["number"] = array
    return records["number"]


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": np.copy,
    "Fortran's": np.asfortranarray,
    "every second": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "turned round": lambda array: array[..., ::-1].copy()[..., ::-1],
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
    "the other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "read-only": read_only,
    "unaligned": unaligned,
    "a field of records": field,
    "no elements": lambda array: array[:, :0, ::-1],
    "a scalar": lambda array: array[0, 0, 3],
    "a subclass": lambda array: array.copy().view(np.recarray),
}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every array that torch gets."""
    arrays: list[Any] = []
    from_numpy = torch.from_numpy

    def keep(array: Any) -> Any:
        arrays.append(array)
        return from_numpy(array)

    def refuse(value: Any, **keywords: Any) -> Any:
        raise AssertionError("memory of the host goes through NumPy")

    monkeypatch.setattr(torch, "from_numpy", keep)
    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", refuse)
    return arrays


@pytest.mark.parametrize("is_given", [False, True], ids=["numpy", "dlpack"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_gets_only_arrays_that_it_can_have(layout: str, is_given: bool, handed: list[Any]) -> None:
    """Native, aligned, writable, every step forward and of whole elements; the numbers are the array's."""
    array = LAYOUTS[layout](NUMBERS)
    if is_given:
        try:
            array.__dlpack__()
        except (AttributeError, BufferError, TypeError):
            pytest.skip("NumPy does not export it")
    tensor = _torch_arrays.as_tensor(Given(array) if is_given else array)
    (seen,) = handed
    assert seen.dtype.isnative
    assert seen.flags.aligned
    assert seen.flags.writeable
    assert all(stride >= 0 and stride % seen.itemsize == 0 for stride in seen.strides)
    assert type(seen) is np.ndarray
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(array))
    is_shared = layout in ("contiguous", "Fortran's", "every second", "a subclass")
    assert np.shares_memory(seen, np.asarray(array)) is is_shared


@pytest.mark.parametrize("layout", ["contiguous", "turned round", "the other byte order", "unaligned"])
def test_a_copy_that_was_asked_for_shares_nothing(layout: str, handed: list[Any]) -> None:
    array = LAYOUTS[layout](NUMBERS)
    tensor = _torch_arrays.from_numpy(array, copy=True)
    assert tensor.is_contiguous()
    assert not np.shares_memory(handed[0], array)
    tensor += 1
    np.testing.assert_array_equal(np.asarray(array), NUMBERS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "a str, which is no array"),
        (np.array(["text"]), "an array of <U4, a type that torch does not have"),
        (np.array([None]), "an array of object, a type that torch does not have"),
        (np.zeros(2, np.longdouble), r"an array of float(96|128), a type that torch does not have"),
        (np.zeros(2, "M8[s]"), r"an array of datetime64\[s\], a type that torch does not have"),
        (np.zeros(2, [("number", "f4")]), "a type that torch does not have"),
        (Given(NUMBERS, kind=14), r"a Given on a device that torch is not asked to read \(DLPack's number 14\)"),
        (Given(None), "a Given that torch cannot read: 'NoneType' object has no attribute '__dlpack__'"),
        (
            Given(None, kind=2, interface={"typestr": "<f4", "strides": (12, -4), "shape": (2, 3)}),
            r"an array with the strides \(12, -4\), which torch cannot have: make it contiguous first",
        ),
        (
            Given(None, kind=2, interface={"typestr": "<f4", "strides": (12, 5), "shape": (2, 3)}),
            r"an array with the strides \(12, 5\), which torch cannot have",
        ),
        (Given(None, kind=2, interface={"typestr": ">f4", "shape": (2,)}), "an array of >f4, a type that torch"),
    ],
)
def test_what_torch_cannot_have_is_refused_before_it_sees_it(value: Any, message: str, handed: list[Any]) -> None:
    """In words, as the error of the one request that brought it."""
    with pytest.raises(_torch_arrays.Unreadable, match=message):
        _torch_arrays.as_tensor(value)
    assert not handed
    backend = TorchTensor(model=torch.nn.Identity(), device=["cpu"])
    batch = [{"data": torch.zeros(1, 2)}, {"data": value}]
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], KernelError)
    assert batch[0]["result"].tolist() == [[0, 0]]


def test_what_does_not_say_where_it_is_is_refused() -> None:
    """It might be anywhere."""

    class Nowhere:
        def __dlpack__(self) -> Any:
            raise AssertionError("not to be asked")

    with pytest.raises(_torch_arrays.Unreadable, match="a Nowhere that does not say on which device it is"):
        _torch_arrays.as_tensor(Nowhere())


def test_an_array_on_a_gpu_that_lies_as_torch_can_have_it_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is; so is one that says nothing of its strides, which is contiguous."""
    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", lambda value: value)
    for interface in (None, {"typestr": "<f4", "shape": (2,)}, {"typestr": "<f4", "strides": (12, 4), "shape": (2, 3)}):
        value = Given(None, kind=2, interface=interface)
        assert _torch_arrays.as_tensor(value) is value


@pytest.mark.parametrize(("given", "computed"), [("uint16", "int32"), ("uint32", "int64"), ("uint8", "float32")])
def test_wider_unsigned_numbers_become_what_torch_computes_in(given: str, computed: str) -> None:
    """With the same values, also the largest."""
    backend = TorchTensor(model=torch.nn.Identity(), device=["cpu"], max=2, rows="batch")
    largest = np.iinfo(given).max
    batch = [{"data": np.array([[number]], given)} for number in (1, largest)]
    backend.forward(batch)
    assert [request["result"].dtype for request in batch] == [getattr(torch, computed)] * 2
    assert [request["result"].item() for request in batch] == [1, largest]


def test_uint64_is_refused_unless_the_model_asks_for_it() -> None:
    """No other type of torch's holds its numbers."""
    data = np.array([[2**64 - 1]], np.uint64)
    with pytest.raises(ItemErrors) as caught:
        TorchTensor(model=torch.nn.Identity(), device=["cpu"]).forward([{"data": data}])
    assert "in which torch hardly computes: make it int64, or name it in dtypes" in str(caught.value.errors[0])
    backend = TorchTensor(model=torch.nn.Identity(), device=["cpu"], max="1x1", dtypes=["uint64"])
    backend.forward([request := {"data": data}])
    assert request["result"].dtype == torch.uint64


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ("uint16", "int32", True),
        ("uint16", "int64", True),
        ("uint32", "int64", True),
        ("uint16", "int16", False),
        ("uint64", "int64", False),
        ("int8", "uint16", False),
        ("bool", "int64", True),
        ("uint16", "float32", True),
    ],
)
def test_whole_numbers_become_others_only_where_all_of_them_fit(given: str, wanted: str, fits: bool) -> None:
    backend = TorchTensor(model=torch.nn.Identity(), device=["cpu"], max="1x1", dtypes=[wanted])
    request: dict[str, Any] = {"data": np.ones((1, 1), given)}
    if fits:
        backend.forward([request])
        assert request["result"].dtype == getattr(torch, wanted)
    else:
        with pytest.raises(ItemErrors, match=f"expected torch.{wanted} .* got torch.{given}"):
            backend.forward([request])
