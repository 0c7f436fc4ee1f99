"""Triton's generate extension: a JSON object of inputs by name, without datatypes and shapes.

    POST /v2/models/M/generate          {"text_input": "..."} -> {"model_name": ..., "text_output": "..."}
    POST /v2/models/M/generate_stream   the same, part by part, as server-sent events

Each input is one value, or a list of them; what is no input's name is a parameter of the call. An output of one element
is given as that element.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import islice
from typing import Any

from fastpipe.errors import in_brief, nearest
from fastpipe.serve import json_text
from fastpipe.serve.answering import Call, stream
from fastpipe.serve.exchange import Buffer, Headers
from fastpipe.serve.inference import Form, answer_document, id_of, trace_of, write_json_answer
from fastpipe.serve.repository import Model
from fastpipe.serve.signature import TensorSpec
from fastpipe.serve.statuses import InvalidRequest
from fastpipe.serve.tensors import Tensor, from_json, to_json_values

__all__ = ["generated", "generated_parts", "inferred_parts", "read_generate"]

MOST_SHOWN = 8
_DATATYPES = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


def read_generate(model: Model, headers: Headers, text: Buffer) -> tuple[Call, str]:
    """Return what a request asks for, and its id.

    Raises:
        InvalidRequest: an input is missing, or its values do not fit.
    """
    document = json_text.loads(text)
    if type(document) is not dict:
        raise InvalidRequest("the request must be a JSON object, with a value for each input")
    names = {spec.name for spec in model.signature.inputs}
    missing = [spec.name for spec in model.signature.inputs if spec.name not in document and not spec.is_optional]
    if missing:
        raise InvalidRequest(f"inputs are missing: {', '.join(missing)}{_in_its_place(document, missing[0])}")
    id, parameters = id_of(document), document.get("parameters", {})
    if type(parameters) is not dict:
        raise InvalidRequest("parameters must be an object")
    others = {name: value for name, value in document.items() if name not in names}
    has_rows = model.signature.max_batch_size > 0
    inputs = [
        _input(spec, document[spec.name], has_rows=has_rows) for spec in model.signature.inputs if spec.name in document
    ]
    return Call(model, inputs, parameters={**others, **parameters}, headers=trace_of(headers)), id


def _in_its_place(document: dict[str, Any], missing: str) -> str:
    """Return what a request has that is no input's name, and so would be a parameter."""
    given = [in_brief(name) for name in islice(document, MOST_SHOWN)]
    return f"; the request has {', '.join(given)}{nearest(missing, document)}" if given else ""


def _input(spec: TensorSpec, value: Any, *, has_rows: bool) -> Tensor:
    shape: list[int] = []
    first = value
    while type(first) is list and len(shape) < 32:
        shape.append(len(first))
        first = first[0] if first else None
    if not shape:
        value, shape = [value], [1] * len(spec.shape)
    datatype = spec.datatype or _DATATYPES.get(type(first))
    if datatype is None:
        raise InvalidRequest(f"input {spec.name!r}: a text, a number, true or false is expected, got {in_brief(first)}")
    return from_json(spec.name, datatype, (1, *shape) if has_rows else tuple(shape), [value] if has_rows else value)


def generated(model: Model, id: str, outputs: list[Tensor]) -> dict[str, Any]:
    """Return an answer, or a part of one, in the extension's form."""
    document = answer_document(model, id)
    for output in outputs:
        data = to_json_values(output)
        values = data if isinstance(data, list) else data.tolist()
        document[output.name] = values[0] if len(values) == 1 else values
    return document


async def generated_parts(call: Call, id: str) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the parts of a stream in the extension's form."""
    async with aclosing(stream(call)) as parts:
        async for outputs in parts:
            yield generated(call.model, id, outputs)


async def inferred_parts(call: Call, form: Form) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the parts of a stream, each in the form of an answer of ``infer``, without binary data."""
    async with aclosing(stream(call)) as parts:
        async for outputs in parts:
            yield write_json_answer(call.model, form.id, outputs)
