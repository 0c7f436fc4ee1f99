"""What tells requests apart for a result cache: equal contents have equal keys, and others have others."""

from __future__ import annotations

import copy
import struct
import threading
from typing import Any

import pytest
from helpers import ask_on_threads
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastpipe import _core

CACHE = _core.ResultCache(1 << 20)

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), 0j, -0j, 1 << 63, -(1 << 63) - 1, 1 << 64])
    | st.text("ab\ud800\0", max_size=2)
    | st.binary(max_size=2)
    | st.integers()
    | st.floats()
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("ab", max_size=1) | st.integers(0, 1), inner, max_size=2)
        | st.binary(max_size=2).map(bytearray)
    ),
    max_leaves=6,
)
REQUESTS = st.dictionaries(st.sampled_from(["data", "b", "c"]), VALUES, max_size=3)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same bit by bit, in types, order and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return is_same(one.real, other.real) and is_same(one.imag, other.imag)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return is_same(list(one.items()), list(other.items()))
    return bool(one == other)


def key_of(data: Any) -> bytes | None:
    return CACHE.key_of({"data": data})


@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS, REQUESTS)
@example({"data": ("ab", "c")}, {"data": ("a", "bc")})
@example({"data": [[], [1]]}, {"data": [[1], []]})
@example({"data": b"a", "b": b""}, {"data": b"", "b": b"a"})
@example({"data": 1}, {"data": True})
def test_two_requests_have_one_key_exactly_if_they_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The order of a request's own keys makes no difference, that of a dict in it does."""
    names = sorted(one)
    are_same = names == sorted(other) and all(is_same(one[name], other[name]) for name in names)
    assert (CACHE.key_of(one) == CACHE.key_of(other)) is are_same
    backwards = {name: copy.deepcopy(one[name]) for name in reversed(one)}
    assert CACHE.key_of(backwards) == CACHE.key_of(one) is not None


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.binary(max_size=3), max_size=4),
    st.lists(st.binary(max_size=3), max_size=4),
    st.integers(0, 2),
    st.sampled_from([300, 1500]),
)
def test_large_values_keep_their_borders(one: list[bytes], other: list[bytes], kind: int, times: int) -> None:
    """Three ways: what is short is its own key, what is longer is hashed together, what is large on its own."""
    make = (bytes, bytearray, lambda each: each.decode("latin-1"))[kind]
    made, made_of_other = ([make(each * times) for each in several] for several in (one, other))
    assert (key_of(made) == key_of(made_of_other)) is (one == other)


def test_another_cache_has_other_digests() -> None:
    """Each has a secret of its own, so that nobody outside can look for two contents with one digest."""
    assert key_of("x" * 3000) != _core.ResultCache(1).key_of({"data": "x" * 3000}) is not None
    assert len(key_of("x" * 3000) or b"") == len(key_of(["x" * 100] * 30) or b"") == 33


def test_what_cannot_be_looked_into_has_no_key() -> None:
    """Objects of classes of one's own, whatever they inherit from; what is nested too deep; keys without an order."""

    class Text(str):
        __slots__ = ()

    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), Text("a"), {1, 2}, cycle, deep, [lambda: 0], memoryview(b"a"), {"a": object()}):
        assert key_of(value) is None, type(value)
    while deep:
        deep = deep.pop()
    assert CACHE.key_of({"data": 1, 2: 3}) is None


def test_only_the_chosen_keys_count() -> None:
    """Which of them are there, counts; with none of them, all requests are the same."""
    cache = _core.ResultCache(1 << 20, None, ("data", "size"))
    key = cache.key_of({"data": 1, "id": 7})
    assert key == cache.key_of({"id": object(), "data": 1}) is not None
    assert key != cache.key_of({"data": 1, "size": None})
    assert cache.key_of({"id": 1}) == cache.key_of({})


def test_arrays_have_one_key_exactly_if_dtype_shape_and_items_are_the_same() -> None:
    """How an array lies in memory makes no difference; byte order, -0.0 and the bits of a NaN do."""
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(24, dtype=numpy.int32).reshape(4, 6)
    same = [grid, grid.copy("F"), numpy.repeat(grid, 2, 1)[:, ::2], grid[::-1].copy()[::-1], numpy.array(grid)[...]]
    same.append(numpy.frombuffer(grid.tobytes(), numpy.int32).reshape(4, 6))  # read-only
    assert len({key_of(each) for each in same}) == 1
    quiet = numpy.array([numpy.nan], numpy.float32)
    other_bits = (quiet.view(numpy.uint32) + 1).view(numpy.float32)
    others = [
        *(grid, grid.reshape(6, 4), grid.ravel(), grid.astype(">i4"), grid.astype(numpy.uint32), grid + 1),
        *(grid.astype(numpy.int64), grid.tolist(), grid.tobytes(), grid[:0], grid[:, :0], grid[0], grid[0, 0]),
        *(quiet, other_bits, quiet[0], numpy.zeros(1), -numpy.zeros(1), numpy.zeros(()), numpy.float64(0), 0.0),
        *(numpy.array([b"a"]), numpy.array(["a"]), numpy.array(["a"], ">U1"), numpy.zeros(2, bool)),
        *(numpy.zeros(2, "M8[s]"), numpy.zeros(2, "M8[ms]"), numpy.zeros(2, "m8[s]"), numpy.zeros(1, "S0")),
        *(numpy.zeros(2, [("a", "i4")]), numpy.zeros(2, [("b", "i4")]), numpy.zeros(2, "V4"), numpy.zeros(2, "i4")),
        *(numpy.zeros((2, 2), numpy.float16), numpy.zeros(2, complex), numpy.zeros(2, numpy.longdouble)),
    ]
    assert key_of(quiet) == key_of(quiet.copy()) is not None
    keys = [key_of(each) for each in others]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_arrays_that_are_more_than_their_bytes_have_no_key() -> None:
    """Objects, texts of variable length, masks, and subclasses."""
    numpy = pytest.importorskip("numpy")
    values = [numpy.array([1, "a"], object), numpy.ma.masked_array([1], [True]), numpy.zeros(1, [("a", object)])]
    values.append(numpy.zeros(2).view(numpy.recarray))
    if hasattr(numpy.dtypes, "StringDType"):
        values.append(numpy.array(["a"], numpy.dtypes.StringDType()))
    assert [key_of(each) for each in values] == [None] * len(values)


def test_dtypes_of_other_libraries_are_told_apart() -> None:
    """Several of them have the text of another dtype."""
    numpy, ml_dtypes = pytest.importorskip("numpy"), pytest.importorskip("ml_dtypes")
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    keys = [key_of(numpy.zeros(4, getattr(ml_dtypes, name))) for name in names]
    keys += [key_of(numpy.zeros(4, text)) for text in ("V1", "V2")]
    assert len({*keys, None}) == 6


def test_tensors_have_one_key_exactly_if_dtype_shape_and_items_are_the_same() -> None:
    """As arrays; those with gradients of a computation, or of another layout, have none."""
    torch = pytest.importorskip("torch")
    grid = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    assert key_of(grid) == key_of(grid.t().contiguous().t()) == key_of(torch.cat([grid, grid], 1)[:, :6]) is not None
    others = [
        *(grid, grid.reshape(6, 4), grid.to(torch.float64), grid.to(torch.bfloat16), grid.to(torch.float16), grid + 1),
        *(grid[0, 0], grid[:0], torch.zeros(1), -torch.zeros(1), torch.zeros(1, dtype=torch.bool), grid.tolist()),
        *(torch.tensor([1 + 1j]), torch.tensor([1 + 1j]).conj(), torch.zeros(1, requires_grad=True), grid.numpy()),
    ]
    keys = [key_of(each) for each in others]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    product = torch.zeros(1, requires_grad=True) * 2
    for value in (product, torch.eye(2).to_sparse(), torch.zeros(1, device="meta"), torch.nn.Parameter(grid)):
        assert key_of(value) is None


def test_keys_are_made_on_many_threads_at_once() -> None:
    """Hashing what is large lets the GIL go."""
    texts = [str(number) * 3000 for number in range(8)]
    keys = [key_of(text) for text in texts]
    start = threading.Barrier(4)

    def ask(number: int) -> object:
        if number % 1000 == 0:
            start.wait(20)
        return number if key_of(texts[number % 8]) != keys[number % 8] else None

    assert not ask_on_threads(ask, threads=4, each=50)
