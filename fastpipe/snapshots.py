"""What a batch's requests were before it ran, so that they can be run again and meet the same.

    before = take(batch)                # before the first run; raises CannotCopy if a value cannot be copied truly
    before[0].put_back(batch[0])        # before that request's second run

A backend may change what it was handed, ``request["data"] /= 2``, and then raise. Copies of the values are made before
it runs, and a request whose values have changed meanwhile gets the copies; one whose values have not gets them back as
they are, the same objects. Where that cannot be promised there is no second run: what a value's type is not known here,
it may hold anything.

Nothing is imported for it: a value of NumPy's, torch's or Pillow's types comes from whoever has imported them.
"""

from __future__ import annotations

import array
import enum
import io
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from operator import is_, itemgetter
from typing import Any

from fastpipe.contract import Request

__all__ = ["CannotCopy", "Snapshot", "are_fixed", "copy_values", "take"]

_NOTHING = type(None), type(...), type(NotImplemented)
# What can be called is code: what a function closes over, or a method is bound to, is not taken for a request's data.
_CODE = types.FunctionType, types.BuiltinFunctionType, types.MethodType
_FIXED: frozenset[type] = frozenset({*_NOTHING, *_CODE, bool, int, float, complex, str, bytes, range})
# Of modules that hardly anybody needs here: known by their names, so that they need not be imported.
_FIXED_ELSEWHERE = frozenset(
    {
        ("datetime", "date"), ("datetime", "datetime"), ("datetime", "time"), ("datetime", "timedelta"),
        ("datetime", "timezone"), ("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID"),
        ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib", "WindowsPath"),
        ("pathlib", "PureWindowsPath"), ("pathlib._local", "PosixPath"), ("pathlib._local", "PurePosixPath"),
    }
)  # fmt: skip


# Made once: CPython 3.12 does not survive that there is no memory for a new function.
_BOUNDS = itemgetter(0, 1)


class CannotCopy(Exception):
    """A value of a request cannot be copied truly, so that nobody knows what a second run would see.

    Its text says which key of which request, what is there, and what to do.
    """


class Snapshot:
    """The values of one request, as they were. Used once, by one thread."""

    def __init__(self, request: Request) -> None:
        """Copy what may change.

        Raises:
            CannotCopy: if there is a value that cannot be copied.
        """
        self._shallow = request.copy()
        copier = _Copier()
        self._copies = {key: copier.copied(key, value) for key, value in request.items()}
        copier.check_memory()
        # What two keys have in common must stay in common: all of them are put back in one way.
        self._is_entangled = copier.is_entangled

    def put_back(self, request: Request) -> list[tuple[Any, Any, Any]]:
        """Make ``request`` what it was: with its own values where they are as they were, else with their copies.

        Returns:
            of what are copies now: key, own value, copy.
        """
        changed = [key for key, copied in self._copies.items() if not _is_same(self._shallow[key], copied)]
        if changed and self._is_entangled:
            changed = list(self._copies)
        request.clear()
        request.update(self._shallow)
        for key in changed:
            request[key] = self._copies[key]
        return [(key, self._shallow[key], self._copies[key]) for key in changed]


def take(requests: Sequence[Request]) -> list[Snapshot]:
    """Return what each of them is now.

    Each request has copies of its own, of what it shares with others, too: run alone, it must not see what another's
    run did to that.

    Raises:
        CannotCopy: if one of them has a value that cannot be copied.
    """
    return [Snapshot(request) for request in requests]


def are_fixed(values: Iterable[Any]) -> bool:
    """Whether nothing in there can change; quick, for the many numbers of a long list."""
    return set(map(type, values)) <= _FIXED


def copy_values(values: Request) -> Request:
    """Return a dict with copies of all that may change; what is the same object twice is one copy.

    Raises:
        CannotCopy: if there is a value that cannot be copied.
    """
    copier = _Copier()
    return {key: copier.copied(key, value) for key, value in values.items()}


class _Copier:
    """Copies the values of one request."""

    def __init__(self) -> None:
        self.is_entangled = False  # one object can be reached from two keys
        self._key: Any = None
        # By id of what was copied: that, which has to stay alive for its id to be its own, the copy, and the key.
        self._known: dict[int, tuple[Any, Any, Any]] = {}
        self._memory: list[tuple[int, int, Any]] = []  # from address to address, and the key
        # Lists and dicts whose copies are empty yet. They are filled one after the other: a text of JSON may nest them
        # deeper than Python's calls may go, and a request that cannot be copied costs its neighbours their second run.
        self._unfilled: list[tuple[Any, Any]] = []

    def copied(self, key: Any, value: Any) -> Any:
        self._key = key
        try:
            copy = self._copy(value)
            while self._unfilled:
                self._fill(*self._unfilled.pop())
            return copy
        except CannotCopy:
            raise
        except Exception as error:  # no memory for a copy, too deep, a closed file: whatever it is, there is no copy
            raise self._refusal(value, f"copying it raised {type(error).__name__}: {error}") from error

    def check_memory(self) -> None:
        """Refuse two arrays that share memory: their copies would not."""
        last_end, last_key = 0, None
        for start, end, key in sorted(self._memory, key=_BOUNDS):
            if start < last_end:
                self._key = key
                raise self._refusal(None, f"an array there may share memory with another one, under {last_key!r}")
            last_end, last_key = end, key

    def _refusal(self, value: Any, why: str = "") -> CannotCopy:
        what = why or f"it is, or holds, a {type(value).__module__}.{type(value).__qualname__}, which may change unseen"
        return CannotCopy(
            f"what is under {self._key!r} cannot be copied: {what}. If the backend does not change what it is handed, "
            "let it say keeps_input = True; if it knows which requests failed, let it raise ItemErrors"
        )

    def _copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _FIXED:
            return value
        known = self._known.get(id(value))
        if known is not None:
            self.is_entangled = self.is_entangled or known[2] != self._key
            return known[1]
        copy = _COPIERS.get(kind)
        if copy is not None:
            return copy(self, value)
        if _is_fixed_elsewhere(kind):
            return value
        if kind is memoryview and type(value.obj) is bytes:
            return value[:]  # another view: the first run may release its own
        if isinstance(value, tuple) and issubclass(kind, tuple) and not hasattr(value, "__dict__"):
            return self._copy_tuple(value)  # a named one
        if getattr(kind, "__dataclass_params__", None) is not None and self._is_fixed_record(value):
            return value
        return self._copy_of_library(value, kind)

    def _note(self, value: Any, copy: Any) -> Any:
        self._known[id(value)] = value, copy, self._key
        return copy

    def _note_memory(self, start: int, size_bytes: int) -> None:
        if size_bytes > 0:
            self._memory.append((start, start + size_bytes, self._key))

    # ---- Python's own ------------------------------------------------------------------------------------------

    def _copy_list(self, value: list[Any]) -> list[Any]:
        copy: list[Any] = self._note(value, [])
        if are_fixed(value):
            copy.extend(value)
        else:
            self._unfilled.append((value, copy))
        return copy

    def _copy_tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if are_fixed(value):
            return value
        items = [self._copy(item) for item in value]
        known = self._known.get(id(value))  # a cycle leads through a tuple, and has made the copy by now
        if known is not None:
            return known[1]  # type: ignore[no-any-return]
        if all(map(is_, items, value)):
            return value
        return self._note(value, tuple.__new__(type(value), items))  # type: ignore[no-any-return]

    def _copy_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copy: dict[Any, Any] = self._note(value, {})
        self._unfilled.append((value, copy))
        return copy

    def _fill(self, value: Any, copy: Any) -> None:
        if isinstance(copy, list):
            copy.extend([self._copy(item) for item in value])
            return
        for key, item in value.items():
            self._check_fixed(key)
            copy[key] = self._copy(item)

    def _copy_set(self, value: set[Any]) -> set[Any]:
        for item in value:
            self._check_fixed(item)
        return self._note(value, set(value))  # type: ignore[no-any-return]

    def _copy_frozenset(self, value: frozenset[Any]) -> frozenset[Any]:
        for item in value:
            self._check_fixed(item)
        return value

    def _copy_bytearray(self, value: bytearray) -> bytearray:
        return self._note(value, bytearray(value))  # type: ignore[no-any-return]

    def _copy_array(self, value: array.array[Any]) -> array.array[Any]:
        self._note_memory(value.buffer_info()[0], len(value) * value.itemsize)
        return self._note(value, value[:])  # type: ignore[no-any-return]

    def _copy_bytes_io(self, value: io.BytesIO) -> io.BytesIO:
        copy: io.BytesIO = self._note(value, io.BytesIO(value.getvalue()))
        copy.seek(value.tell())
        copy.__dict__.update({name: self._copy(each) for name, each in value.__dict__.items()})
        return copy

    def _check_fixed(self, value: Any) -> None:
        """Refuse what is hashable, and yet has something in it that may change."""
        if self._copy(value) is not value:
            raise self._refusal(value)

    def _is_fixed_record(self, value: Any) -> bool:
        """Whether it is a frozen dataclass whose fields cannot change, and which has nothing else."""
        fields = type(value).__dataclass_fields__
        if not type(value).__dataclass_params__.frozen or getattr(value, "__dict__", {}).keys() - fields.keys():
            return False
        return all(self._copy(getattr(value, name)) is getattr(value, name) for name in fields)

    # ---- of libraries ------------------------------------------------------------------------------------------

    def _copy_of_library(self, value: Any, kind: type) -> Any:
        if isinstance(value, enum.Enum):
            return value
        numpy, torch, images = sys.modules.get("numpy"), sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if numpy is not None:
            if kind in (numpy.ndarray, numpy.memmap):
                return self._copy_numpy(value)
            is_number = isinstance(value, numpy.generic) and kind.__module__ == "numpy"
            # A row of a table (void) is a view of it.
            if isinstance(value, numpy.dtype) or (is_number and kind not in (numpy.void, numpy.object_)):
                return value
        if torch is not None and isinstance(value, torch.Tensor):
            return self._copy_torch(value, torch)
        if torch is not None and kind in (torch.dtype, torch.device, torch.Size):
            return value
        if images is not None and kind is images.Image:
            return self._note(value, value.copy())
        raise self._refusal(value)

    def _copy_numpy(self, value: Any) -> Any:
        if value.dtype.hasobject and (value.dtype != object or not are_fixed(value.flat)):
            raise self._refusal(value, f"it is, or holds, an array of {value.dtype} whose items may change unseen")
        if value.nbytes > 0:
            low, size_bytes = value.__array_interface__["data"][0], value.itemsize
            for length, step in zip(value.shape, value.strides, strict=True):
                low += min((length - 1) * step, 0)
                size_bytes += (length - 1) * abs(step)
            if size_bytes < value.nbytes:
                raise self._refusal(value, f"an array of shape {value.shape} there has items that share memory")
            self._note_memory(low, size_bytes)
        # A read-only one, too: whoever has its address may write into it, as torch does.
        copy = sys.modules["numpy"].array(value, order="K", copy=True, subok=False)
        copy.flags.writeable = value.flags.writeable
        return self._note(value, copy)

    def _copy_torch(self, value: Any, torch: Any) -> Any:
        kind = type(value)
        if kind is not torch.Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
            what = f"a {kind.__module__}.{kind.__qualname__} on {value.device}"
            raise self._refusal(value, f"it is, or holds, {what}; of tensors, only torch.Tensor on the CPU is copied")
        if value.grad_fn is not None or value.grad is not None or value.is_quantized:
            raise self._refusal(value, "it is, or holds, a tensor with more to it than its numbers (gradients, scales)")
        if value.numel() > 0:
            span = 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
            if span < value.numel():
                raise self._refusal(value, f"a tensor of shape {tuple(value.shape)} there has items that share memory")
            self._note_memory(value.data_ptr(), span * value.element_size())
        copy = value.detach().clone(memory_format=torch.preserve_format)
        return self._note(value, copy.requires_grad_(value.requires_grad))


_COPIERS: dict[type, Callable[[_Copier, Any], Any]] = {
    list: _Copier._copy_list,
    tuple: _Copier._copy_tuple,
    dict: _Copier._copy_dict,
    set: _Copier._copy_set,
    frozenset: _Copier._copy_frozenset,
    bytearray: _Copier._copy_bytearray,
    array.array: _Copier._copy_array,
    io.BytesIO: _Copier._copy_bytes_io,
}


def _is_fixed_elsewhere(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) in _FIXED_ELSEWHERE and sys.modules.get(kind.__module__) is not None


# ---- what has changed ------------------------------------------------------------------------------------------


def _is_same(value: Any, copied: Any) -> bool:
    """Whether ``value`` is still what it was when ``copied`` was made of it; False where that cannot be told."""
    try:
        return _compare(value, copied, {})
    except Exception:  # closed, or no memory to look: then the copy is what is known
        return False


def _compare(value: Any, copied: Any, looked_at: dict[int, Any]) -> bool:
    """``looked_at``: by id of a copy, of what it was found to be a copy."""
    if value is copied:
        return True
    kind = type(copied)
    if type(value) is not kind or kind in _FIXED:  # what cannot change was not copied: this is another one
        return False
    if kind is memoryview:
        return bool(value.obj is copied.obj)  # raises if it was released
    if id(copied) in looked_at:  # a cycle, or met before: what was one object must still be one
        return looked_at[id(copied)] is value
    looked_at[id(copied)] = value
    if kind is dict:
        return (
            len(value) == len(copied)
            and all(map(is_, value, copied))
            and all(_compare(value[key], copied[key], looked_at) for key in copied)
        )
    if isinstance(copied, list | tuple):
        return len(value) == len(copied) and (
            all(map(is_, value, copied))
            or all(_compare(mine, its, looked_at) for mine, its in zip(value, copied, strict=True))
        )
    if kind is io.BytesIO:
        has_same_content = value.tell() == copied.tell() and value.getvalue() == copied.getvalue()
        return has_same_content and _compare(vars(value), vars(copied), looked_at)
    if kind is array.array:
        return bool(value.tobytes() == copied.tobytes())
    if kind is set:  # equal ones may be of other types: 1 is True
        return {(type(each), each) for each in value} == {(type(each), each) for each in copied}
    if kind is bytearray:
        return bool(value == copied)
    return _compare_of_library(value, copied)


def _compare_of_library(value: Any, copied: Any) -> bool:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(copied, numpy.ndarray):
        if value.shape != copied.shape or value.dtype != copied.dtype:
            return False
        if value.dtype.hasobject:
            return all(map(is_, value.flat, copied.flat))
        if value.flags.writeable != copied.flags.writeable:
            return False
        return _has_same_bytes(numpy, value, copied)
    if torch is not None and isinstance(copied, torch.Tensor):
        if value.shape != copied.shape or value.dtype != copied.dtype or value.requires_grad != copied.requires_grad:
            return False
        if value.grad is not None or value.numel() == 0:
            return value.grad is None
        flat, wanted = (each.detach().resolve_conj().resolve_neg().contiguous() for each in (value, copied))
        return bool(torch.equal(flat.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)))
    return bool(value == copied)  # an image of Pillow's


def _has_same_bytes(numpy: Any, value: Any, copied: Any) -> bool:
    """By their bytes: NaN is NaN, and -0.0 is not 0.0."""
    if value.nbytes == 0:
        return True
    mine, its = (numpy.ascontiguousarray(each).reshape(-1).view(numpy.uint8) for each in (value, copied))
    return bool(numpy.array_equal(mine, its))
