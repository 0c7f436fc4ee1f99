"""What a backend's constructor takes, and how a written value becomes the type its annotation names.

Values keep their types; text is accepted where a number, a truth value, a list or a path is expected, because
configuration files are full of it. Whatever an annotation says that is not understood here is left to the constructor.

``msgspec.convert(strict=False)`` was tried instead: it reads no lists from text with commas, no paths, no choices in
another case, takes "4.0" as a whole number, and says one limit at a time.
"""

from __future__ import annotations

import inspect
import math
import numbers
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastpipe.contract import Between, Existing

__all__ = ["LISTS", "BadValue", "Parameter", "coerce", "constructor_parameters", "names_existing", "own_copy"]

_TRUTH = {"true": True, "1": True, "false": False, "0": False}
LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    Collection: list,
    AbstractSet: frozenset,
}


class BadValue(ValueError):
    """A value does not fit its annotation; the message is ``"must be ..., got ..."``, without the parameter's name."""

    def __init__(self, expected: str, got: Any, hint: str = "") -> None:
        self.expected = expected
        self.got = got
        super().__init__(f"must be {expected}, got {got!r}{hint}")


@dataclass(frozen=True)
class Parameter:
    """One keyword of a constructor."""

    name: str
    annotation: Any
    required: bool
    default: Any = None
    """Of one that is not required."""


def constructor_parameters(backend_class: type, *, skip_first: bool = False) -> dict[str, Parameter]:
    """Return the keywords that a class's constructor takes, by name.

    ``**kwargs`` stands for what the next constructor in the class's bases takes, as in ``super().__init__(**kwargs)``.

    Args:
        backend_class: the class; nothing of it is called.
        skip_first: leave out the first parameter after ``self`` where it is positional (a container's children).
    """
    found: dict[str, Parameter] = {}
    for base in backend_class.__mro__:
        constructor = base.__dict__.get("__init__")
        if constructor is None or base is object:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        if skip_first and parameters and parameters[0].kind is parameters[0].POSITIONAL_OR_KEYWORD:
            del parameters[0]
        namespace = getattr(inspect.unwrap(constructor), "__globals__", {})
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                annotation = _annotation(parameter, namespace)
                required = parameter.default is parameter.empty
                default = None if required else parameter.default
                found.setdefault(parameter.name, Parameter(parameter.name, annotation, required, default))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _annotation(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    if parameter.annotation is parameter.empty:
        return Any
    # get_type_hints wants something that has __annotations__; one at a time, since a name that exists only for
    # type checkers must not hide the others.
    holder = types.SimpleNamespace(__annotations__={"value": parameter.annotation})
    try:
        return get_type_hints(holder, namespace, include_extras=True)["value"]
    except (NameError, AttributeError, SyntaxError, TypeError):
        return Any


def own_copy(value: Any) -> Any:
    """Return ``value`` with its dicts and lists copied at every depth; what is in them is shared."""
    if type(value) is dict:
        return {key: own_copy(inner) for key, inner in value.items()}
    if type(value) is list:
        return [own_copy(inner) for inner in value]
    return value


def names_existing(annotation: Any) -> bool:
    """Whether an annotation, or a member of a union, says of a path that it has to be there: ``Existing``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(names_existing(member) for member in get_args(annotation))
    return get_origin(annotation) is Annotated and any(isinstance(each, Existing) for each in get_args(annotation))


def coerce(value: Any, annotation: Any, base_directory: Path | None = None) -> Any:
    """Return ``value`` as the type that ``annotation`` names.

    Args:
        value: as it was written.
        annotation: of the parameter, resolved.
        base_directory: where relative paths are looked for before the working directory; None: they stay as they are.

    Raises:
        BadValue: if it does not fit.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return _coerce_annotated(value, annotation, base_directory)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(annotation), base_directory)
    if origin is Literal:
        return _coerce_literal(value, get_args(annotation))
    if annotation in LISTS or origin in LISTS:
        return _coerce_list(value, annotation, base_directory)
    if annotation is None or annotation is type(None):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        raise BadValue("none", value)
    if annotation is bool:
        return _coerce_bool(value)
    if annotation is int or annotation is float:
        return _coerce_number(value, annotation)
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return _coerce_path(value, annotation, base_directory)
    if annotation is Callable or origin is Callable:
        if not callable(value):
            raise BadValue("a callable", value)
        return value
    return _check_instance(value, origin or annotation)


def _coerce_annotated(value: Any, annotation: Any, base_directory: Path | None) -> Any:
    kind, *extras = get_args(annotation)
    limits = [extra for extra in extras if isinstance(extra, Between)]
    expected = " and ".join(f"between {_number(limit.low)} and {_number(limit.high)}" for limit in limits)
    coerced = coerce(value, kind, base_directory)
    for item in coerced if isinstance(coerced, list | tuple | set | frozenset) else (coerced,):
        if isinstance(item, int | float) and not all(limit.low <= item <= limit.high for limit in limits):
            raise BadValue(expected, value)
    return coerced


def _coerce_union(value: Any, members: tuple[Any, ...], base_directory: Path | None) -> Any:
    # A value whose type is named keeps it ("4" stays text in "int | str"), except that text means a path where the
    # union names both; otherwise the first member it can be converted to.
    has_path = any(_names_path(member) for member in members)
    exact = [member for member in members if _is_exactly(value, member)]
    if has_path and isinstance(value, str):
        exact = [member for member in members if _names_path(member)]
    expected = []
    for member in [*exact, *(m for m in members if m not in exact)]:
        try:
            return coerce(value, member, base_directory)
        except BadValue as problem:
            if problem.expected not in expected:
                expected.append(problem.expected)
    raise BadValue(" or ".join(expected), value)


def _plain(annotation: Any) -> Any:
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _names_path(member: Any) -> bool:
    member = _plain(member)
    return isinstance(member, type) and issubclass(member, Path)


def _is_exactly(value: Any, member: Any) -> bool:
    member = _plain(member)
    if member is None or member is type(None):
        return value is None
    if get_origin(member) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(member))
    return type(value) is (get_origin(member) or member)


def _coerce_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    for choice in choices:
        if isinstance(value, str) and str(choice).lower() == value.strip().lower():
            return choice
    shown = [repr(choice) for choice in choices]
    raise BadValue(shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}", value)


def _coerce_list(value: Any, annotation: Any, base_directory: Path | None) -> Any:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    fixed = origin is tuple and bool(arguments) and arguments[-1] is not Ellipsis
    items: list[Any]
    if isinstance(value, str):
        items = [item.strip() for item in value.split(",")] if value.strip() else []
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(value)
    elif isinstance(value, Mapping) or not isinstance(value, numbers.Number):
        raise BadValue("a list", value)
    else:
        items = [value]  # one number where a list of one is meant, as in a file that writes text
    if fixed and len(items) != len(arguments):
        raise BadValue(f"a list of {len(arguments)}", value)
    kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(items)
    try:
        return LISTS[origin]([coerce(item, kind, base_directory) for item, kind in zip(items, kinds, strict=True)])
    except BadValue as problem:
        raise BadValue(f"a list, each {problem.expected}", value) from problem


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int) and str(value).strip().lower() in _TRUTH:
        return _TRUTH[str(value).strip().lower()]
    raise BadValue("true or false", value)


def _coerce_number(value: Any, kind: type[int] | type[float]) -> int | float:
    expected = "a whole number" if kind is int else "a number"
    accepted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, str | accepted):
        raise BadValue(expected, value)
    try:
        number = kind(value)  # type: ignore[arg-type]  # numbers.Real has __float__, Integral has __int__
    except (ValueError, OverflowError):
        raise BadValue(expected, value) from None
    if isinstance(number, float) and math.isnan(number):
        raise BadValue(expected, value)
    return number


def _coerce_path(value: Any, kind: type[Path], base_directory: Path | None) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise BadValue("a path", value)
    path = kind(value)
    if base_directory is None or path.is_absolute():
        return path
    beside = base_directory / path
    # What exists nowhere yet (a cache, a folder to write to) belongs beside the file that names it.
    return path if not beside.exists() and path.exists() else beside


def _check_instance(value: Any, kind: Any) -> Any:
    if kind is Any or not isinstance(kind, type):
        return value
    try:
        fits = isinstance(value, kind)
    except TypeError:  # a Protocol that cannot be checked at run time
        return value
    if not fits:
        in_words: dict[Any, str] = {str: "text", bytes: "bytes", dict: "a mapping", Mapping: "a mapping"}
        raise BadValue(in_words.get(kind, f"a {kind.__name__}"), value)
    return value


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)
