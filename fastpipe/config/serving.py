"""The table ``serve`` of a configuration: what a server announces of the pipe.

The table's keys are ``max_batch_size``, and tables of tensors by name: ``inputs``, ``outputs``. An element is such as

    scores = { datatype = "FP32", shape = [1000], key = "result", labels = ["tench", "goldfish"] }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastpipe.announcing import DATATYPES, Announced, Interface
from fastpipe.config.values import BadValue
from fastpipe.errors import nearest

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
        BadValue: it is no table, or has what nobody knows, or a value is wrong; the message says where.
    """
    if isinstance(value, Interface):
        return value
    table = _table("a table of max_batch_size, inputs and outputs", value, _TABLE_FORM["properties"])
    most = table.get("max_batch_size")
    if most is not None and (type(most) is not int or not 0 <= most <= MOST_ROWS):
        raise BadValue(f"a table whose max_batch_size is from 0 to {MOST_ROWS}", most)
    inputs = _announced("inputs", table["inputs"], "data") if "inputs" in table else None
    outputs = _announced("outputs", table["outputs"], "result") if "outputs" in table else None
    return Interface(inputs, outputs, most)


def _table(expected: str, value: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadValue(expected, value)
    odd = [key for key in value if key not in known]
    if odd:
        raise BadValue(expected, odd[0], nearest(odd[0], known))
    return value


def _announced(kind: str, value: Any, only_key: str) -> tuple[Announced, ...]:
    """Return inputs or outputs; the key of an only one is ``data``, or ``result``, and else its name."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) and name for name in value):
        raise BadValue(f"a table in which {kind} is a table of tensors by their names", value)
    keys = [only_key] if len(value) == 1 else list(value)
    pairs = zip(value.items(), keys, strict=True)
    return tuple(_tensor(f"{kind}.{name}", name, each, key) for (name, each), key in pairs)


def _tensor(where: str, name: str, value: Any, key: str) -> Announced:
    known = _TENSOR_FORM["properties"]
    table = _table(f"a table in which {where} has {', '.join(known)}", value, known)
    datatype, shape, key = table.get("datatype"), table.get("shape"), table.get("key", key)
    if datatype not in DATATYPES:
        raise BadValue(f"a table in which {where}.datatype is one of {', '.join(DATATYPES)}", datatype)
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= -1 for size in shape):
        raise BadValue(f"a table in which {where}.shape has a size for each axis of one request, -1 for any", shape)
    if not isinstance(key, str) or not key:
        raise BadValue(f"a table in which {where}.key is a key of requests", key)
    text, labels = table.get("text", False), table.get("labels", ())
    if type(text) is not bool or (text and datatype != "BYTES"):
        raise BadValue(f"a table in which {where}.text is true or false, and true only of BYTES", text)
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise BadValue(f"a table in which {where}.labels is a list of names", labels)
    return Announced(name, datatype, tuple(shape), key, text, tuple(labels))
