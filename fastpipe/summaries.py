"""Values in a few words: what a person wants to know of an array, of bytes or of a list, without seeing it whole.

No ``__repr__``, ``__len__`` or property of a user's class is called: it may be slow, endless or broken, and whoever
looks at a request must not be. Every function here returns quickly, whatever it is given, and none raises.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fastpipe.redaction import IN_ITS_PLACE, Secrets, attributes_of, is_secret_pair, looks_secret, names_of_items

__all__ = ["Summary", "in_units", "summarize", "summarize_under", "type_name"]

LONGEST_TEXT = 120
LONGEST_STRING = 60
MOST_ITEMS = 4
DEEPEST = 3
MOST_BITS = 256  # an int above has more digits than anybody reads
# Up to here an array is read as a whole, for its range and to see whether it was changed: some ms.
LARGEST_READ_BYTES = 16 << 20
FEW_ELEMENTS = 8

_SHORT_REPR = (
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, range, slice, type(...), uuid.UUID,
)  # fmt: skip
_COLLECTIONS: tuple[Any, ...] = (list, tuple, dict, set, frozenset)  # their own methods, not those of subclasses
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


@dataclass(frozen=True)
class Summary:
    """What a value is, in one line; ``str(summary)`` is that line."""

    type: str
    """The type's name; for all but builtins with its module."""
    text: str
    """All of it in at most 120 characters, the type's name (without the module) included where it is not obvious."""
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    """Of an array that is not in the host's memory."""
    size_bytes: int | None = None
    """Of arrays and bytes."""
    length: int | None = None
    """Of text, bytes and collections."""
    fingerprint: object = field(default=None, repr=False)
    """Equal for the same content, as far as that is known without reading too much; to notice changes in place."""

    def __str__(self) -> str:
        return self.text


def summarize(value: Any) -> Summary:
    """Return what ``value`` is. Arrays of up to 16 MiB are read once, larger ones and those on a device not at all."""
    try:
        return _summary(value)
    except Exception as error:  # a subclass of a builtin that misbehaves, an array whose memory is gone
        return Summary(type_name(value), f"{_short_name(type(value))}, which raises {type_name(error)} when looked at")


def summarize_under(key: Any, value: Any) -> Summary:
    """Return what the value under a key of a request is; all but its text, if the key looks like that of a secret."""
    summary = summarize(value)
    return replace(summary, text=IN_ITS_PLACE) if looks_secret(key) else summary


def type_name(value: Any) -> str:
    """Return the name of the value's type: ``int``, ``numpy.ndarray``, ``module.Outer.Inner``."""
    kind = type(value)
    try:
        module = kind.__module__
        return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    except Exception:  # a metaclass may do anything
        return "?"


def in_units(size_bytes: float) -> str:
    """Return a number of bytes as people say it: ``512 B``, ``921.6 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"


def _summary(value: Any) -> Summary:
    kind = type(value)
    array = _array_summary(value)
    if array is not None:
        return array
    if isinstance(value, str):
        length = str.__len__(value)
        text = _short(value) if length <= LONGEST_STRING else f"str of {length}: {_short(value)}"
        return Summary(type_name(value), text, length=length)
    if isinstance(value, bytes | bytearray | memoryview):
        size = value.nbytes if isinstance(value, memoryview) else kind.__len__(value)
        text = f"{_short_name(kind)}, {in_units(size)}: {_short(value)}"
        fingerprint = None if isinstance(value, bytes) else zlib.crc32(value[:LARGEST_READ_BYTES])
        return Summary(type_name(value), text, size_bytes=size, length=size, fingerprint=fingerprint)
    for base in _COLLECTIONS:
        if isinstance(value, base):
            length = base.__len__(value)
            is_short = kind in (list, tuple, dict, set) and length <= MOST_ITEMS
            is_named = base is tuple and bool(names_of_items(value))
            text = _cut(_short(value) if is_short or is_named else f"{_short_name(kind)} of {length}: {_short(value)}")
            return Summary(type_name(value), text, length=length, fingerprint=(length, text))
    text = _cut(_short(value))
    return Summary(type_name(value), text, fingerprint=text)


def _short_name(kind: type) -> str:
    return kind.__qualname__.rpartition(".")[2]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."


# ---- one value among others ------------------------------------------------------------------------------------


def _short(value: Any, depth: int = 0) -> str:
    kind = type(value)
    if value is None or kind is bool or kind is complex:
        return repr(value)
    if kind is float:
        return _float(value) if depth else repr(value)
    if kind is int:
        return repr(value) if value.bit_length() <= MOST_BITS else f"int of {value.bit_length()} bits"
    if isinstance(value, enum.Enum):
        return f"{_short_name(kind)}.{object.__getattribute__(value, '_name_')}"
    if isinstance(value, str):
        return _quoted(str.__getitem__(value, slice(LONGEST_STRING + 1)), str.__len__(value))
    if isinstance(value, bytes | bytearray):
        return _quoted(bytes(kind.__getitem__(value, slice(LONGEST_STRING // 4))), kind.__len__(value))
    if kind is memoryview:
        return (
            _quoted(bytes(value.cast("B")[: LONGEST_STRING // 4]), value.nbytes) if value.c_contiguous else "memoryview"
        )
    if isinstance(value, list | tuple | set | frozenset | dict):
        return _short_collection(value, depth)
    array = _array_summary(value, is_inner=True)
    if array is not None:
        return array.text
    if kind in _SHORT_REPR:
        return _cut(repr(value))
    if isinstance(value, type):
        return f"class {_short_name(value)}"
    if kind in _FUNCTIONS:
        return f"function {value.__qualname__}"
    if isinstance(value, BaseException):
        return _short_error(value, depth)
    return _short_object(value, depth)


def _float(number: float) -> str:
    return f"{number:.5g}"


def _quoted(start: str | bytes, length: int) -> str:
    if len(start) > LONGEST_STRING:
        start = start[:LONGEST_STRING]
    return repr(start) + ("..." if length > len(start) else "")


def _short_collection(value: Any, depth: int) -> str:
    base = next(base for base in _COLLECTIONS if isinstance(value, base))
    opening, closing = {list: ("[", "]"), tuple: ("(", ")")}.get(base, ("{", "}"))
    length = base.__len__(value)
    names = names_of_items(value) if base is tuple else ()
    if names:
        opening = f"{_short_name(type(value))}("
    if depth >= DEEPEST and length:
        return f"{opening}...{closing}"
    if base is dict:
        shown = [(key, dict.__getitem__(value, key)) for key in _first(dict.__iter__(value))]
        inner = ", ".join(f"{_short(key, depth + 1)}: {_short_under(key, item, depth)}" for key, item in shown)
    elif names:
        items = zip(names, _first(base.__iter__(value)), strict=False)
        texts = [f"{name}={_short_under(name, item, depth)}" for name, item in items]
        if is_secret_pair(value):
            texts[1] = f"{names[1]}={IN_ITS_PLACE}"
        inner = ", ".join(texts)
    elif is_secret_pair(value):
        key, _ = base.__iter__(value)
        inner = f"{_short(key, depth + 1)}, {IN_ITS_PLACE}"
    else:
        texts = [_short(item, depth + 1) for item in _first(base.__iter__(value))]
        if length > 2 and len(set(texts)) == 1:  # arrays of one shape
            return f"{opening}{texts[0]}, ... {length - 1} more{' like it' if length <= MOST_ITEMS else ''}{closing}"
        inner = ", ".join(texts)
    if length > MOST_ITEMS:
        inner += f", ... {length - MOST_ITEMS} more"
    return f"{opening}{inner}{',' if opening == '(' and length == 1 else ''}{closing}"


def _short_under(key: Any, value: Any, depth: int) -> str:
    """A value inside of another, unless its key says that it is nobody's business: summaries go to files and logs."""
    return IN_ITS_PLACE if looks_secret(key) else _short(value, depth + 1)


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(MOST_ITEMS), strict=False)]


def _short_error(error: BaseException, depth: int) -> str:
    """An error by its class and its first arguments, without what its attributes say is a secret."""
    arguments = vars(BaseException)["args"].__get__(error)
    if depth >= DEEPEST and arguments:
        return f"{_short_name(type(error))}(...)"
    attributes = attributes_of(error)
    hidden = {name: inner for name, inner in attributes.items() if looks_secret(name)}
    secrets = Secrets(hidden)

    def shown(argument: Any) -> str:
        if any(
            argument is inner or (type(argument) is type(inner) is str and argument == inner)
            for inner in hidden.values()
        ):
            return IN_ITS_PLACE
        return _short(secrets.left_out_of(argument) if type(argument) is str else argument, depth + 1)

    texts = [shown(argument) for argument in _first(arguments)]
    if is_secret_pair(arguments):
        texts[1] = IN_ITS_PLACE
    return f"{_short_name(type(error))}({', '.join(texts)})"


def _short_object(value: Any, depth: int) -> str:
    """An object by its class and its first attributes."""
    kind = type(value)
    attributes = attributes_of(value)
    names = [name for name in attributes if isinstance(name, str) and not name.startswith("_")]
    if not names or depth >= DEEPEST:
        return f"{_short_name(kind)} object"
    inner = ", ".join(f"{name}={_short_under(name, attributes[name], depth)}" for name in names[:MOST_ITEMS])
    return f"{_short_name(kind)}({inner}{', ...' if len(names) > MOST_ITEMS else ''})"


# ---- arrays ----------------------------------------------------------------------------------------------------


def _array_summary(value: Any, *, is_inner: bool = False) -> Summary | None:
    """Arrays of the libraries that are loaded: whoever has such a value has loaded its library.

    Of one inside of another value, only what it is is told, not what it holds.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _numpy_summary(numpy, value, is_inner)
    if numpy is not None and isinstance(value, numpy.generic):
        shown = "..." if value.dtype.kind in "VO" else _cut(str(value))
        return Summary(type_name(value), _cut(f"{_short_name(type(value))} {shown}"), shape=(), dtype=str(value.dtype))
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return _tensor_summary(numpy, value, is_inner)
    cupy: Any = sys.modules.get("cupy")
    kind: Any = getattr(cupy, "ndarray", None)
    if kind is not None and isinstance(value, kind):
        device = f"cuda:{value.device.id}"
        return _summary_of(value, tuple(value.shape), str(value.dtype), int(value.nbytes), device, is_inner=is_inner)
    return None


def _numpy_summary(numpy: Any, value: Any, is_inner: bool) -> Summary:
    plain = numpy.ndarray.view(value, numpy.ndarray)  # a subclass may have its own idea of min() and indexing
    details, fingerprint = ("", None) if is_inner else _content(numpy, plain)
    fingerprint = (plain.shape, fingerprint)
    return _summary_of(value, plain.shape, str(plain.dtype), plain.nbytes, None, details, fingerprint, is_inner)


def _content(numpy: Any, plain: Any) -> tuple[str, object]:
    """What is in an array, to be put behind what it is, and a fingerprint of it."""
    if plain.dtype.kind in "biuf" and plain.nbytes <= LARGEST_READ_BYTES and plain.size:
        details = f": {_elements(plain.tolist())}" if plain.size <= FEW_ELEMENTS else f", {_range(numpy, plain)}"
        return details, zlib.crc32(numpy.ascontiguousarray(plain))
    if plain.dtype.kind == "O" and plain.size:
        return f" of {_short(plain.flat[0], DEEPEST)}, ...", None
    return "", None


def _elements(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_elements, value))}]"
    return _float(value) if isinstance(value, float) else repr(value)


def _range(numpy: Any, plain: Any) -> str:
    low, high = plain.min(), plain.max()
    if low == low:
        return f"{_number(low)} to {_number(high)}"
    numbers = plain[~numpy.isnan(plain)]
    inside = f"{_number(numbers.min())} to {_number(numbers.max())}, " if numbers.size else ""
    return f"{inside}{plain.size - numbers.size} of {plain.size} are nan"


def _number(number: Any) -> str:
    return _float(number.item()) if isinstance(number.item(), float) else str(number.item())


def _tensor_summary(numpy: Any, value: Any, is_inner: bool) -> Summary:
    device = str(value.device)
    dtype = str(value.dtype).removeprefix("torch.")
    shape = tuple(value.shape)
    size_bytes = value.element_size() * value.nelement()
    details: str = ""
    fingerprint: object = getattr(value, "_version", None)  # raised by every change in place
    if (
        device == "cpu" and numpy is not None and not is_inner
    ):  # on a device, a look would wait for what is queued there
        with contextlib.suppress(Exception):  # sparse, or of a dtype that NumPy has not
            details, fingerprint = _content(numpy, value.detach().numpy())
    where = None if device == "cpu" else device
    return _summary_of(value, shape, dtype, size_bytes, where, details, (shape, fingerprint), is_inner)


def _summary_of(
    value: Any,
    shape: tuple[int, ...],
    dtype: str,
    size_bytes: int,
    device: str | None,
    details: str = "",
    fingerprint: object = None,
    is_inner: bool = False,
) -> Summary:
    text = f"{_short_name(type(value))} {dtype} {shape}{f' on {device}' if device else ''}"
    text = text if is_inner else _cut(f"{text}, {in_units(size_bytes)}{details}")
    return Summary(type_name(value), text, shape, dtype, device, size_bytes, shape[0] if shape else None, fingerprint)
