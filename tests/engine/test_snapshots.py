"""What requests were before their batch ran: copies that are true, and refusals where there can be none."""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import io
import math
import pathlib
import threading
import uuid
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe.snapshots import CannotCopy, Snapshot, take

Request = dict[str, Any]


class Color(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0


class Own:
    """Somebody's object."""


# ---- values that may change ------------------------------------------------------------------------------------------

TEXTS = st.text("abß", max_size=3)  # of a few letters: a table of all of them takes a while to build
FIXED = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), TEXTS, st.binary(max_size=5),
    st.sampled_from([range(3), Color.RED, np.float32(1.5), np.dtype("f4"), Fraction(1, 3), uuid.UUID(int=7), Point(1)]),
)  # fmt: skip
ARRAYS = st.builds(
    lambda dtype, shape, order, step: (
        np.arange(2 * math.prod(shape) * step).astype(dtype)[:: 2 * step].reshape(shape, order=order)
    ),
    st.sampled_from(["u1", ">i4", "f2", "f8", "c16", "M8[s]", "U3", "bool"]),
    st.sampled_from([(0,), (1,), (3,), (2, 3), (2, 0, 3), (2, 1, 3)]),
    st.sampled_from("CF"),
    st.sampled_from([1, 2]),
)
BUFFERS = st.one_of(
    st.binary(max_size=9).map(bytearray),
    st.binary(max_size=9).map(io.BytesIO),
    st.lists(st.integers(0, 255), max_size=5).map(lambda items: array.array("B", items)),
)
VALUES = st.recursive(
    st.one_of(FIXED, ARRAYS, BUFFERS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
        st.dictionaries(TEXTS | st.integers(), inner, max_size=3),
        st.sets(st.integers() | TEXTS, max_size=3),
        st.frozensets(st.integers(), max_size=3),
    ),
    max_leaves=12,
)
REQUESTS = st.dictionaries(st.sampled_from(["data", "box", "more", "context"]), VALUES, max_size=4)


def shape_of(value: Any) -> Any:
    """Return all there is to see of a value, as plain and comparable things."""
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.flags.writeable, value.tobytes())
    if isinstance(value, io.BytesIO):
        return ("file", value.getvalue(), value.tell())
    if isinstance(value, bytearray | array.array):
        return (type(value), bytes(value))
    if isinstance(value, list | tuple):
        return (type(value), [shape_of(each) for each in value])
    if isinstance(value, dict):
        return ("dict", [(key, shape_of(each)) for key, each in value.items()])
    if isinstance(value, set | frozenset):
        return (type(value), sorted(map(repr, value)))
    return (type(value), repr(value))


def spoil(value: Any, random: Any) -> None:
    """Change in place what can be changed, here or further inside."""
    if isinstance(value, np.ndarray) and value.size and value.flags.writeable:
        value.view(f"V{value.itemsize}")[...] = np.frombuffer(random.randbytes(value.itemsize), f"V{value.itemsize}")
    elif isinstance(value, io.BytesIO):
        value.read(3)
        value.write(b"spoilt")
    elif isinstance(value, bytearray | array.array):
        value.extend(b"spoilt")
    elif isinstance(value, list | tuple):
        for each in value:
            spoil(each, random)
        if isinstance(value, list) and random.random() < 0.5:
            value.append("spoilt")
    elif isinstance(value, dict):
        for each in value.values():
            spoil(each, random)
        value["spoilt"] = value.pop(next(iter(value), ""), None)
    elif isinstance(value, set):
        value.add("spoilt")


@given(request=REQUESTS, random=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_whatever_a_run_does_to_a_request_the_next_one_sees_what_it_was(request: Request, random: Any) -> None:
    """Values of all kinds that can be copied, changed in all ways that they allow, and the dict as well."""
    before = shape_of(request)
    snapshot = Snapshot(request)
    assert shape_of(request) == before  # looking changes nothing
    spoil(request, random)
    snapshot.put_back(request)
    assert shape_of(request) == before


@given(request=REQUESTS)
@settings(max_examples=100, deadline=None)
def test_what_has_not_changed_comes_back_as_it_is(request: Request) -> None:
    """The same objects: a dict that several requests share stays theirs."""
    values = dict(request)
    snapshot = Snapshot(request)
    request.clear()
    request["result"] = 1
    snapshot.put_back(request)
    assert list(request) == list(values)
    assert all(request[key] is values[key] for key in values)


# ---- one case each ---------------------------------------------------------------------------------------------------


def put_back(request: Request, change: Callable[[Request], Any]) -> Request:
    snapshot = Snapshot(request)
    change(request)
    snapshot.put_back(request)
    return request


def test_a_read_only_array_is_copied_too() -> None:
    """Whoever has its address may write into it; what comes back is read-only again."""
    owner = np.arange(3)
    data = owner[:]
    data.flags.writeable = False
    request = put_back({"data": data}, lambda _: owner.__setitem__(0, 9))
    assert request["data"].tolist() == [0, 1, 2]
    assert not request["data"].flags.writeable


def test_the_layout_of_an_array_is_kept() -> None:
    """Fortran's order stays Fortran's."""
    request = put_back({"data": np.ones((3, 4), order="F")}, lambda request: request["data"].fill(2))
    assert request["data"].flags.f_contiguous
    assert (request["data"] == 1).all()


def test_cycles_are_copied_as_cycles() -> None:
    """A list in itself, also by way of a tuple and a dict."""
    data: list[Any] = [1]
    data.append((data, {"again": data}))
    copied = put_back({"data": data}, lambda _: data.insert(0, 0))["data"]
    assert copied is not data
    assert copied[0] == 1
    assert copied[1][0] is copied
    assert copied[1][1]["again"] is copied


def test_what_two_keys_share_stays_shared() -> None:
    """Also if only one of the two shows the change: they are put back in one way."""
    shared = np.zeros(2)
    request = put_back({"a": [shared], "b": shared, "c": [1]}, lambda request: request["a"].append(1))
    assert request["a"][0] is request["b"]
    assert request["b"].tolist() == [0, 0]


def test_each_request_has_a_copy_of_its_own_of_what_several_share() -> None:
    """What the second run of one does to it, the second run of another does not see."""
    shared = np.ones(2)
    requests: list[Request] = [{"data": shared}, {"data": shared}]
    first, second = take(requests)
    shared /= 2
    first.put_back(requests[0])
    requests[0]["data"] /= 2
    second.put_back(requests[1])
    assert [request["data"].tolist() for request in requests] == [[0.5, 0.5], [1, 1]]


def test_nan_that_stays_is_no_change() -> None:
    """Arrays are compared by their bytes."""
    data = np.array([np.nan, 0.0])
    assert put_back({"data": data}, lambda _: None)["data"] is data
    assert put_back({"data": data}, lambda _: data.__setitem__(1, -0.0))["data"] is not data


def test_a_file_in_memory_keeps_its_name_and_its_place() -> None:
    """What was read is to be read again."""
    data = io.BytesIO(b"abcdef")
    data.name = "x.jpg"  # type: ignore[misc]
    data.seek(2)
    request = put_back({"data": data}, lambda request: request["data"].read())
    assert request["data"].read() == b"cdef"
    assert request["data"].name == "x.jpg"


FIXED_ONES = [
    datetime.datetime(2020, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5"), Fraction(1, 2), uuid.UUID(int=1),
    pathlib.PurePosixPath("a"), pathlib.Path("b"), Color.RED, Point(1, (2, "c")), Pair(1, b"x"), ..., NotImplemented,
    memoryview(b"abc"), np.str_("a"), np.datetime64(1, "s"), np.dtype([("a", "f4")]), frozenset([(1, 2)]), range(9),
]  # fmt: skip


@pytest.mark.parametrize("value", FIXED_ONES, ids=lambda value: type(value).__name__)
def test_what_cannot_change_is_not_copied(value: Any) -> None:
    """Not even if it was lost."""
    assert put_back({"data": value}, lambda request: request.clear())["data"] is value


def refused() -> dict[str, Any]:
    whole = np.arange(10)
    file = io.BytesIO()
    file.close()
    return {
        "an object": Own(),
        "an object within": {"deep": [(1, Own())]},
        "a lock": threading.Lock(),
        "a class": Own,
        "a subclass of dict": type("Mine", (dict,), {})(),
        "a subclass of float": type("Mine", (float,), {})(1),
        "a record with a list": Point([1]),
        "a view of what may change": memoryview(bytearray(3)),
        "a closed file": file,
        "a generator": (each for each in ()),
        "an array of objects": np.array([Own()], object),
        "an array that repeats itself": np.broadcast_to(np.arange(3), (5, 3)),
        "a row of a table": np.zeros(2, [("a", "f4")])[0],
        "arrays that share memory": [whole[:6], whole[4:]],
        "a masked array": np.ma.masked_array([1, 2], [True, False]),
        "a key that may change": {Point(Own()): 1},
    }


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_copied_is_refused_in_words(name: str) -> None:
    """With the key, the type if it is one, and both ways out."""
    with pytest.raises(CannotCopy, match=r"what is under 'odd' cannot be copied: .*keeps_input = True.*ItemErrors"):
        take([{"data": 1}, {"data": 2, "odd": refused()[name]}])


def test_lists_and_dicts_are_copied_however_deep_they_are_nested() -> None:
    """A text of JSON may nest them deeper than Python's calls go, and what is deepest inside is a copy, too."""
    innermost = [1]
    data: Any = innermost
    for _ in range(50_000):
        data = [{"a": data}]
    request: Request = {"data": data}
    (before,) = take([request])
    innermost.append(2)
    before.put_back(request)
    found = request["data"]
    while isinstance(found[0], dict):
        found = found[0]["a"]
    assert found == [1]


def test_tuples_nested_without_end_are_refused() -> None:
    """No RecursionError gets out."""
    data: tuple[Any, ...] = ([],)
    for _ in range(100_000):
        data = (data,)
    with pytest.raises(CannotCopy, match="RecursionError"):
        take([{"data": data}])
    while data:  # taken apart by hand: freeing it at once would be as deep
        data = data[0]


def test_no_memory_for_a_copy_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run takes place; a second one does not."""

    class Full(bytearray):
        pass

    def fails(*arguments: Any) -> Any:
        raise MemoryError("none left")

    monkeypatch.setitem(__import__("fastpipe.snapshots").snapshots._COPIERS, Full, fails)
    with pytest.raises(CannotCopy, match="copying it raised MemoryError: none left"):
        take([{"data": Full()}])


def test_an_image_of_pillow_is_copied() -> None:
    """One that is in memory; one that is still to be read from its file is refused."""
    images = pytest.importorskip("PIL.Image")
    image = images.new("RGB", (2, 2))
    request = put_back({"data": image}, lambda request: request["data"].putpixel((0, 0), (9, 9, 9)))
    assert request["data"].getpixel((0, 0)) == (0, 0, 0)
    file = io.BytesIO()
    image.save(file, "png")
    with pytest.raises(CannotCopy, match="PngImageFile"):
        take([{"data": images.open(file)}])


def test_tensors_on_the_cpu_are_copied() -> None:
    """With their layout, and whether they want gradients; what hangs on a graph is refused, and so are parameters."""
    torch = pytest.importorskip("torch")
    data = torch.zeros(2, 3).t()
    request = put_back({"data": data}, lambda request: request["data"].add_(1))
    assert request["data"].stride() == data.stride()
    assert not request["data"].any()
    same = put_back({"data": data}, lambda request: request.clear())
    assert same["data"] is data
    wanted = torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        assert put_back({"data": wanted}, lambda request: request["data"].add_(1))["data"].requires_grad
    for odd in (wanted * 2, torch.nn.Parameter(data), torch.zeros(1).expand(4), torch.zeros(2).to_sparse(),
                torch.zeros(2, device="meta")):  # fmt: skip
        with pytest.raises(CannotCopy, match=r"tensor|Parameter"):
            take([{"data": odd}])


def test_a_tensor_and_the_array_it_was_made_of_are_refused() -> None:
    """They share memory, and their copies would not."""
    torch = pytest.importorskip("torch")
    array_ = np.zeros(3)
    with pytest.raises(CannotCopy, match="may share memory"):
        take([{"data": array_, "tensor": torch.from_numpy(array_)}])


@pytest.mark.parametrize("value", [len, lambda: None, [].append], ids=["built in", "function", "method"])
def test_what_can_be_called_stays_what_it_is(value: Any) -> None:
    """Code is not copied, and its being there does not stand in the way of a second run."""
    request = {"data": bytearray(b"ab"), "call": value}
    (before,) = take([request])
    request["data"][:] = b"cd"
    before.put_back(request)
    assert request == {"data": bytearray(b"ab"), "call": value}
    assert request["call"] is value


def test_a_place_that_held_an_object_met_before_holds_another_one_now() -> None:
    """Each place counts, not each object: ``[x, x]`` whose second place was written to has changed."""
    shared = [1]
    request = {"data": [shared, shared]}
    (before,) = take([request])
    request["data"][1] = [999]
    before.put_back(request)
    assert request["data"] == [[1], [1]]
    assert request["data"][0] is request["data"][1]


@pytest.mark.parametrize(
    ("value", "changed"),
    [([1, 2], [1.0, 2]), ([1, 2], [True, 2]), ([0.0], [-0.0]), ({1}, {True}), ({"k": 1}, {"k": 1.0})],
    ids=repr,
)
def test_an_equal_value_of_another_kind_is_a_changed_one(value: Any, changed: Any) -> None:
    """What a second run sees is what the first one saw, also where == would not tell."""
    request = {"data": value}
    said = repr(value)
    (before,) = take([request])
    if isinstance(value, set):
        value.clear()
        value.update(changed)
    elif isinstance(value, dict):
        value.update(changed)
    else:
        value[:] = changed
    before.put_back(request)
    assert repr(request["data"]) == said


def test_a_view_that_the_first_run_releases_is_there_again() -> None:
    """A view of bytes cannot be changed, but ended."""
    request = {"data": memoryview(b"abc")}
    (before,) = take([request])
    request["data"].release()
    before.put_back(request)
    assert bytes(request["data"]) == b"abc"
