"""The table ``serve`` of a configuration: what a server announces of the pipe.

The table's keys are ``max_batch_size``, and tables of tensors by name: ``inputs``, ``outputs``. An element is such as

    scores = { datatype = "FP32", shape = [1000], key = "result", labels = ["tench", "goldfish"] }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastpipe.announcing import DATATYPES, Announced, Interface
from fastpipe.config.values import BadValue
from fastpipe.errors import AT_KEY, ConfigError, Mistake, nearest

__all__ = ["SERVE_FORM", "read_serve"]

MOST_ROWS = 1 << 20

_TENSOR_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "datatype": {"enum": list(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
        "key": {"type": "string", "minLength": 1},
        "text": {"type": "boolean"},
        "labels": {"type": "array", "items": {"type": "string"}},
        "item": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}]},
        "optional": {"type": "boolean"},
    },
    "required": ["datatype", "shape"],
    "additionalProperties": False,
}
_TENSORS_FORM: dict[str, Any] = {"type": "object", "additionalProperties": _TENSOR_FORM, "minProperties": 1}

_TABLE_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "max_batch_size": {"type": "integer", "minimum": 0, "maximum": MOST_ROWS},
        "inputs": _TENSORS_FORM,
        "outputs": _TENSORS_FORM,
    },
    "additionalProperties": False,
}
SERVE_FORM: dict[str, Any] = {"anyOf": [_TABLE_FORM, {"type": "object", "required": ["backend"]}]}
"""The JSON schema of the table, or of a node that is called so."""


def read_serve(value: Any) -> Interface:
    """Return what the table says.

    Raises:
        BadValue: it is no table.
        ConfigError: with all mistakes in it; ``part`` of each has the keys that lead there.
    """
    if isinstance(value, Interface):
        return value
    if not isinstance(value, Mapping):
        raise BadValue("a table of max_batch_size, inputs and outputs", value)
    reader = _Reader()
    interface = reader.interface(value)
    if reader.mistakes:
        raise ConfigError(*reader.mistakes)
    return interface


class _Reader:
    """Reads the table as far as that is possible, and notes what is wrong with it."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def interface(self, table: Mapping[str, Any]) -> Interface:
        self._look_for_odd_keys((), table, _TABLE_FORM["properties"])
        most = table.get("max_batch_size")
        if most is not None and (type(most) is not int or not 0 <= most <= MOST_ROWS):
            self._note(("max_batch_size",), BadValue(f"a whole number from 0 to {MOST_ROWS}", most))
        inputs = self._tensors("inputs", table["inputs"], "data") if "inputs" in table else None
        outputs = self._tensors("outputs", table["outputs"], "result") if "outputs" in table else None
        owners: dict[str, dict[str | int | None, str]] = {}
        for each in inputs or ():
            of_key = owners.setdefault(each.key, {})
            other = of_key.setdefault(each.item, each.name)
            if other == each.name and len({item is None for item in of_key}) > 1:
                other = next(iter(of_key.values()))
            if other != each.name:
                text = f"{each.key!r} is the key of {other!r} already: one would overwrite the other"
                self._note(("inputs", each.name, "key"), text)
            if isinstance(each.item, int):
                self._note(("inputs", each.name, "item"), BadValue("the name of an input", each.item))
        return Interface(inputs, outputs, most)

    def _note(self, path: tuple[str | int, ...], problem: BadValue | str) -> None:
        self.mistakes.append(Mistake(str(problem), part=path))

    def _look_for_odd_keys(self, path: tuple[str, ...], table: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for key in table:
            if not isinstance(key, str):
                self._note(path, f"keys are text, got {key!r}")
            elif key not in known:
                self._note((*path, key, AT_KEY), f"{key!r} is none of {', '.join(known)}{nearest(key, known)}")

    def _tensors(self, kind: str, value: Any, only_key: str) -> tuple[Announced, ...]:
        """Return inputs or outputs; the key of an only one is ``data``, or ``result``, and else its name."""
        if not isinstance(value, Mapping) or not value:
            self._note((kind,), BadValue("a table of tensors by their names", value))
            return ()
        odd = [name for name in value if not isinstance(name, str) or not name]
        for name in odd:
            if name == "":
                self._note((kind, name, AT_KEY), "the name of a tensor must not be empty")
            else:
                self._note((kind,), f"names of tensors are text, got {name!r}")
        keys = {name: only_key if len(value) == 1 else name for name in value if name not in odd}
        return tuple(self._tensor((kind, name), value[name], key) for name, key in keys.items())

    def _tensor(self, path: tuple[str, str], value: Any, key: str) -> Announced:
        known = _TENSOR_FORM["properties"]
        if not isinstance(value, Mapping):
            self._note(path, BadValue(f"a table of {', '.join(known)}", value))
            return Announced(path[1], "BYTES", (), key)
        self._look_for_odd_keys(path, value, known)
        for name in _TENSOR_FORM["required"]:
            if name not in value:
                self._note(path, f"it has no {name}")
        datatype, shape, key = value.get("datatype", "BYTES"), value.get("shape", ()), value.get("key", key)
        if datatype not in DATATYPES:
            self._note((*path, "datatype"), BadValue(f"one of {', '.join(DATATYPES)}", datatype))
        if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= -1 for size in shape):
            self._note((*path, "shape"), BadValue("a list: the size of each axis of one request, -1 for any", shape))
            shape = ()
        if not isinstance(key, str) or not key:
            self._note((*path, "key"), BadValue("a key of requests", key))
            key = path[1]
        text, labels = value.get("text", False), value.get("labels", ())
        if type(text) is not bool or (text and datatype != "BYTES"):
            self._note((*path, "text"), BadValue("true or false, and true only of BYTES", text))
        if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
            self._note((*path, "labels"), BadValue("a list of names", labels))
            labels = ()
        item, optional = value.get("item"), value.get("optional", False)
        is_number = type(item) is int and item >= 0
        if item is not None and not is_number and (not isinstance(item, str) or not item):
            self._note((*path, "item"), BadValue("a name in what the key has, or its number in a list", item))
            item = None
        if type(optional) is not bool or (optional and path[0] != "inputs"):
            self._note((*path, "optional"), BadValue("true or false, and true only of inputs", optional))
        return Announced(
            path[1], datatype, tuple(shape), key, text, tuple(labels), item=item, is_optional=optional is True
        )
