"""A JSON schema (draft 2020-12) of configurations, for editors: made from what the code itself goes by.

The scheduler's keys have the types and limits of :mod:`fastpipe.config.keys`, and the parameters of the box's backends
those of their constructors. A node's parameters are held against a backend only where all names in its
``backend`` ship with fastpipe: what a backend of the user's takes, a schema cannot know. Where the schema and
``fastpipe check`` differ, the schema is the one that lets pass.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastpipe.config import registry
from fastpipe.config.key import Key
from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS
from fastpipe.config.values import LISTS, Parameter, constructor_parameters
from fastpipe.contract import Backend, Between, Container
from fastpipe.errors import MissingExtra

__all__ = ["schema"]

Schema = dict[str, Any]

_SPACES = r"\s*"
_OPEN: Schema = {"additionalProperties": True}  # which is what a schema means anyway; some editors want it said
_NO_GRAFT: Schema = {"not": {"pattern": "::(backend|dependency)$"}}


def schema() -> Schema:
    """Return the schema. Backends whose libraries are not installed are left out: their parameters may be anything."""
    backends = _backends()
    of_nodes = {name: _described(key) for name, key in NODE_KEYS.items()}
    of_all = {name: _described(key) for name, key in PIPE_KEYS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fastpipe configuration",
        "description": "Nodes of a pipe, by name; what stands beside them, and in 'global', are defaults for all.",
        "type": "object",
        "properties": {**of_nodes, **of_all, "global": {"type": "object", "properties": of_nodes | of_all, **_OPEN}},
        "additionalProperties": {"$ref": "#/$defs/node"},
        "allOf": [{"$ref": "#/$defs/parameters"}, _known_keys(backends)],
        "$defs": {
            # What is no table is a default, of which nothing is known; all that is said here is about tables.
            "node": {
                "properties": of_nodes,
                "patternProperties": {r"^\d+$": {"$ref": "#/$defs/node"}},  # logical nodes: [rec.2]
                "allOf": [{"$ref": "#/$defs/parameters"}],
                **_OPEN,
            },
            "ours": {
                "description": "A node whose backends all ship with fastpipe.",
                "type": "object",
                "properties": {"backend": {"pattern": _only(sorted(backends))}},
                "required": ["backend"],
                "propertyNames": _NO_GRAFT,
                **_OPEN,
            },
            "parameters": _parameters_by_backend(backends),
        },
    }


def _known_keys(backends: Mapping[str, type[Backend]]) -> Schema:
    """Refuse keys that no backend of a node takes, unless a default puts backends into the trees of all nodes."""
    taken = {parameter for backend in backends.values() for parameter in _takes(backend)}
    known: Schema = {"anyOf": [{"enum": [*NODE_KEYS, *sorted(taken - {*NODE_KEYS})]}, {"pattern": r"::|^\d+$"}]}
    return {
        "if": {"propertyNames": _NO_GRAFT, "properties": {"global": {"propertyNames": _NO_GRAFT}}},
        "then": {
            "properties": {"global": {}},
            "additionalProperties": {"if": {"$ref": "#/$defs/ours"}, "then": {"propertyNames": known, **_OPEN}},
        },
    }


def _parameters_by_backend(backends: Mapping[str, type[Backend]]) -> Schema:
    parameters = {name: _parameters(backends[name]) for name in sorted(backends)}
    named = [_if_named(name, own) for name, own in parameters.items() if own]
    return {"if": {"$ref": "#/$defs/ours"}, "then": {"allOf": named}}


def _described(key: Key) -> Schema:
    return {"description": key.meaning, **(_type(key.annotation) if key.form is None else key.form)}


def _if_named(name: str, properties: Schema) -> Schema:
    return {
        "if": {"properties": {"backend": {"pattern": rf"(^|[^\w.:-]){_any_case(name)}($|[^\w.:-])"}}, **_OPEN},
        "then": {"properties": properties, **_OPEN},
    }


# ---- backends --------------------------------------------------------------------------------------------------


def _backends() -> dict[str, type[Backend]]:
    found = {}
    for name in registry.built_in_names():
        try:
            backend = registry.find(name)
        except MissingExtra:
            continue
        if isinstance(backend, type):
            found[name] = backend
    return found


def _takes(backend: type[Backend]) -> Mapping[str, Parameter]:
    return constructor_parameters(backend, skip_first=issubclass(backend, Container))


def _parameters(backend: type[Backend]) -> Schema:
    """Return the schema of each parameter whose type says anything."""
    kinds = {name: _type(each.annotation) for name, each in _takes(backend).items() if name not in NODE_KEYS}
    return {name: kind for name, kind in kinds.items() if kind}


def _only(names: list[str]) -> str:
    """Return the pattern of a tree of backends that has no other names, and whose steps have no arguments."""
    name = rf"{_SPACES}(\({_SPACES}[\w.-]+{_SPACES}\))?{_SPACES}({'|'.join(map(_any_case, names))}){_SPACES}"
    return rf"^{name}([\[,]{name}|\]{_SPACES})*$"


def _any_case(name: str) -> str:
    return "".join(f"[{c.upper()}{c.lower()}]" if c.isalpha() else c for c in name)


# ---- types -----------------------------------------------------------------------------------------------------

# Text stands for numbers and lists, and "a|b" is one value for each child of a Sequential.
_INTEGER_TEXT: Schema = {"type": "string", "pattern": r"^\s*[+-]?\d[\d_]*\s*$|[|&]"}
_NUMBER_TEXT: Schema = {
    "type": "string",
    "pattern": r"^\s*[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?\s*$|^\s*[+-]?[iI][nN][fF]|[|&]",
}
_BOOLEAN_TEXT: Schema = {"type": "string", "pattern": r"^\s*([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|0|1)\s*$|[|&]"}


def _type(annotation: Any) -> Schema:
    """Return the schema of what ``_values.coerce`` accepts for an annotation; empty where that may be anything."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _limited(annotation)
    if origin in (Union, types.UnionType):
        members = [_type(member) for member in get_args(annotation)]
        return {"anyOf": members} if all(members) else {}
    if origin is Literal:
        return _choice(get_args(annotation))
    if annotation in LISTS or origin in LISTS:
        return _list(annotation)
    simple: Mapping[Any, Schema] = {
        int: {"anyOf": [{"type": "integer"}, _INTEGER_TEXT]},
        float: {"anyOf": [{"type": "number"}, _NUMBER_TEXT]},
        bool: {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, _BOOLEAN_TEXT]},
        str: {"type": "string"},
        type(None): {"type": "string", "pattern": "^[Nn][Oo][Nn][Ee]$"},
        None: {"type": "string", "pattern": "^[Nn][Oo][Nn][Ee]$"},
        dict: {"type": "object"},
        Mapping: {"type": "object"},
    }
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Path):
        return {"type": "string", "minLength": 1}
    if kind is Callable:
        return {}
    return simple.get(kind, {})


def _limited(annotation: Any) -> Schema:
    inner, *extras = get_args(annotation)
    made = _type(inner)
    limits = [extra for extra in extras if isinstance(extra, Between)]
    for each in made.get("anyOf", ()):
        if limits and each.get("type") in ("integer", "number"):
            each["minimum"] = max(limit.low for limit in limits)
            each["maximum"] = min(limit.high for limit in limits)
    return made


def _choice(choices: tuple[Any, ...]) -> Schema:
    texts = [str(choice) for choice in choices]
    pattern = "|".join("".join(rf"\{c}" if c in ".*+?()[]{}^$|\\" else _any_case(c) for c in text) for text in texts)
    return {"anyOf": [{"enum": list(choices)}, {"type": "string", "pattern": rf"^\s*({pattern})\s*$|[|&]"}]}


def _list(annotation: Any) -> Schema:
    """Text with commas is a list, too, and so is one number."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    array: Schema = {"type": "array"}
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        array.update(prefixItems=[_type(each) for each in arguments], minItems=len(arguments), maxItems=len(arguments))
    elif arguments:
        array["items"] = _type(arguments[0])
    return {"anyOf": [array, {"type": "string"}, {"type": "number"}]}
