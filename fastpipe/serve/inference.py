"""A call of the protocol in HTTP's form: JSON, with binary tensors behind it where they are asked for.

``read_call`` makes a ``Call`` of what has come, and ``write_answer`` an answer of its outputs. Triton's extensions that
clients use are in: binary data, raw requests (``Inference-Header-Content-Length: 0``, or a body that is an image or
text: the body is the one input), ``classification``, ``binary_data_output``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastpipe.errors import in_brief
from fastpipe.serve import json_text
from fastpipe.serve.answering import NOTHING, TRACE_HEADERS, Call, WantedOutput
from fastpipe.serve.exchange import (
    HEAD_LENGTH,
    JSON,
    OCTETS,
    Buffer,
    Headers,
    Limits,
    Response,
    head_length,
    split_body,
)
from fastpipe.serve.repository import Model
from fastpipe.serve.signature import Signature, TensorSpec
from fastpipe.serve.statuses import InvalidRequest, NotServed
from fastpipe.serve.tensors import Tensor, checked_shape, dtype_of, from_json, from_raw, to_json_values, to_raw

__all__ = ["Form", "answer_document", "id_of", "is_raw", "read_call", "trace_of", "write_answer", "write_json_answer"]

MOST_TENSORS = 1024
JOINED_BYTES = 1 << 16
"""Smaller answers are put together; larger ones are not copied."""
LONGEST_ID = 4096
MOST_CLASSES = 1 << 20
LARGEST_KEPT_BYTES = 1024
MOST_KEPT = 256
"""JSON in front of binary tensors, of requests and of answers: of a client's, one after the other, it is the same."""
_TRACES = tuple(name.encode() for name in TRACE_HEADERS)


@dataclass(slots=True)
class Form:
    """How a call wants its answer; not changed once it is read."""

    id: str = ""
    is_binary: bool = False
    """Of outputs that say nothing themselves."""
    binary: Mapping[str, bool] | None = None
    """By output."""


_Described = tuple[str, str, tuple[int, ...], int]
"""Name, datatype and shape of an output, and how many bytes it has as binary data."""


class _Input(NamedTuple):
    """An entry of ``inputs``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int | None
    """Of its binary data; None: the entry has ``data``."""
    data: Any = None


class _Document(NamedTuple):
    """What the JSON of a request says; shared by requests that have the same."""

    inputs: tuple[_Input, ...]
    wanted: list[WantedOutput] | None
    parameters: Mapping[str, Any]
    form: Form


def trace_of(headers: Headers) -> Mapping[str, str]:
    """Return the headers that say to which trace a request belongs."""
    if b"traceparent" not in headers:
        return NOTHING
    return {name.decode(): headers[name].decode("latin-1") for name in _TRACES if name in headers}


def is_raw(headers: Headers, first: bytes) -> bool:
    """Whether a body is the one input itself: no JSON, and none in front of it.

    Args:
        headers: of the request.
        first: with which its body begins.

    Real clients send JSON as ``application/octet-stream``, or without a type; a document begins with ``{``.
    """
    length = headers.get(HEAD_LENGTH)
    if length is not None:
        return length.strip(b"0") == b"" != length
    kind = headers.get(b"content-type", b"").lower()
    if kind.startswith((b"image/", b"audio/", b"video/", b"text/plain")):
        return True
    return kind.startswith(b"application/octet-stream") and not first.lstrip(b" \t\r\n").startswith(b"{")


def read_call(model: Model, headers: Headers, chunks: list[Buffer], limits: Limits) -> tuple[Call, Form]:
    """Return what a request asks for.

    Raises:
        InvalidRequest: it is malformed; the message says where.
        RequestTooLarge: it has more JSON than the server takes.
        NotServed: it wants what this server does not have, such as shared memory.
    """
    if is_raw(headers, bytes(chunks[0][:64]) if chunks else b""):
        tensor = _raw_input(model.signature, chunks, headers)
        return Call(model, [tensor], headers=trace_of(headers)), Form(is_binary=HEAD_LENGTH in headers)
    body = split_body(chunks, head_length(headers), limits)
    if HEAD_LENGTH in headers and len(body.head) <= LARGEST_KEPT_BYTES:
        document = _kept_document_of(bytes(body.head))
    else:
        document = _document_of(body.head)
    tensors = _tensors(document.inputs, body.tail)
    return Call(model, tensors, document.wanted, document.parameters, trace_of(headers)), document.form


def _raw_input(signature: Signature, chunks: list[Buffer], headers: Headers) -> Tensor:
    """Return a body that is the one input: an element of BYTES, or numbers, whose number says the open size."""
    if len(signature.inputs) != 1:
        raise InvalidRequest(f"the body cannot be the input: there are {len(signature.inputs)} inputs, not 1")
    spec = signature.inputs[0]
    rows = (1,) if signature.max_batch_size else ()
    if spec.datatype in (None, "BYTES"):
        element: Any = np.empty(1, object)
        element[0] = chunks[0] if len(chunks) == 1 and isinstance(chunks[0], bytes) else b"".join(chunks)
        shape = (1,) * len(spec.shape)
        return Tensor(spec.name, "BYTES", element.reshape(rows + shape))
    raw = split_body(chunks, 0, Limits(json_bytes=0)).tail
    return from_raw(spec.name, spec.datatype, rows + _shape_of(spec, raw.nbytes), raw)


def _shape_of(spec: TensorSpec, size_bytes: int) -> tuple[int, ...]:
    """Return the shape of raw numbers; the only size that is open is as large as they say."""
    known = math.prod(size for size in spec.shape if size != -1) * dtype_of(str(spec.datatype)).itemsize
    if spec.shape.count(-1) > 1 or known == 0:
        raise InvalidRequest(f"input {spec.name!r}: its shape, {list(spec.shape)}, cannot be told from bytes alone")
    return tuple(size_bytes // known if size == -1 else size for size in spec.shape)


# ---- the document ----------------------------------------------------------------------------------------------


def _document_of(text: Buffer) -> _Document:
    """Read the JSON of a request, and check all of it but the elements of tensors."""
    document = json_text.loads(text)
    if type(document) is not dict:
        raise InvalidRequest("the request must be a JSON object with inputs")
    parameters = _table(document, "parameters")
    inputs = _inputs(document)
    form = Form(id_of(document), _flag(parameters, "binary_data_output", False))
    wanted = _wanted(document, form) if "outputs" in document else None
    return _Document(inputs, wanted, parameters, form)


_kept_document_of = lru_cache(MOST_KEPT)(_document_of)


def _inputs(document: dict[str, Any]) -> tuple[_Input, ...]:
    entries = document.get("inputs")
    if type(entries) is not list or not 1 <= len(entries) <= MOST_TENSORS:
        raise InvalidRequest(f"inputs must be a list of 1 to {MOST_TENSORS} tensors")
    inputs = []
    for entry in entries:
        if type(entry) is not dict:
            raise InvalidRequest(f"an input must be an object, got {in_brief(entry)}")
        name, datatype = _text(entry, "name"), _text(entry, "datatype")
        shape = checked_shape(name, entry.get("shape"))
        has_data = "data" in entry
        size = None if has_data else _binary_size(name, entry)
        inputs.append(_Input(name, datatype, shape, size, entry["data"] if has_data else None))
    return tuple(inputs)


def _tensors(inputs: Sequence[_Input], tail: memoryview) -> list[Tensor]:
    """Return the tensors of a request, whose binary data is ``tail``, one behind the other."""
    position, tensors = 0, []
    for name, datatype, shape, size, data in inputs:
        if size is None:
            tensors.append(from_json(name, datatype, shape, data))
            continue
        end = position + size
        if end > tail.nbytes:
            raise InvalidRequest(
                f"input {in_brief(name)}: binary_data_size ends at {end}, and there are {tail.nbytes} bytes"
            )
        tensors.append(from_raw(name, datatype, shape, tail[position:end]))
        position = end
    if position != tail.nbytes:
        raise InvalidRequest(f"{tail.nbytes - position} bytes of binary data belong to no input")
    return tensors


def _binary_size(name: str, entry: dict[str, Any]) -> int:
    parameters = _table(entry, "parameters")
    _refuse_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"input {in_brief(name)} has neither data nor binary_data_size, a number of bytes")
    return size


def _wanted(document: dict[str, Any], form: Form) -> list[WantedOutput] | None:
    entries = document["outputs"]
    if type(entries) is not list or len(entries) > MOST_TENSORS:
        raise InvalidRequest(f"outputs must be a list of at most {MOST_TENSORS} outputs")
    wanted, binary = [], {}
    for entry in entries:
        if type(entry) is not dict:
            raise InvalidRequest(f"an output must be an object, got {in_brief(entry)}")
        name, parameters = _text(entry, "name"), _table(entry, "parameters")
        _refuse_shared_memory(parameters)
        count = parameters.get("classification", 0)
        if type(count) is not int or not 0 <= count <= MOST_CLASSES:
            raise InvalidRequest(f"classification must be how many classes, from 0 to {MOST_CLASSES}")
        if name in binary:
            raise InvalidRequest(f"output {in_brief(name)} is asked for twice")
        binary[name] = _flag(parameters, "binary_data", form.is_binary)
        wanted.append(WantedOutput(name, count))
    form.binary = binary
    return wanted or None  # an empty list is all of them, as clients mean it


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise NotServed("shared memory is not served: send tensors as binary data")


def _table(entry: dict[str, Any], name: str) -> Mapping[str, Any]:
    value = entry.get(name)
    if value is None:
        return NOTHING
    if type(value) is not dict:
        raise InvalidRequest(f"{name} must be an object, got {in_brief(value)}")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name, "")
    if type(value) is not str or len(value) > LONGEST_ID:
        raise InvalidRequest(f"{name} must be a text of at most {LONGEST_ID} characters, got {in_brief(value)}")
    return value


def id_of(document: dict[str, Any]) -> str:
    """Return the id of a request, which its answer has, too.

    Raises:
        InvalidRequest: it is no text, or none that can be written.
    """
    id = _text(document, "id")
    if not id.isascii():
        try:
            id.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
            raise InvalidRequest("id is no Unicode") from None
    return id


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidRequest(f"parameter {name} must be true or false, got {in_brief(value)}")
    return value


# ---- the answer ------------------------------------------------------------------------------------------------


def write_answer(model: Model, form: Form, outputs: list[Tensor]) -> Response:
    """Return an answer: JSON, and behind it the outputs that are asked for as binary data.

    Raises:
        InvalidRequest: an output cannot be written as JSON.
    """
    binary = form.binary
    raws: list[bytes | memoryview] = []
    described: list[_Described] = []
    for output in outputs:
        if form.is_binary if binary is None else binary.get(output.name, form.is_binary):
            raw = to_raw(output)
            raws.append(raw)
            described.append((output.name, output.datatype, output.array.shape, len(raw)))
    if len(raws) == len(outputs) and not form.id:
        head = _kept_head(model.name, model.version, tuple(described))
    else:
        head = _mixed_head(model, form, outputs, described)
    if not raws:
        return Response(200, [JSON], head)
    headers = [OCTETS, (HEAD_LENGTH, b"%d" % len(head))]
    if sum(map(len, raws)) < JOINED_BYTES:
        return Response(200, headers, b"".join((head, *raws)))
    return Response(200, headers, head, [memoryview(raw) for raw in raws])


@lru_cache(MOST_KEPT)
def _kept_head(name: str, version: str, outputs: tuple[_Described, ...]) -> bytes:
    """Return the JSON of an answer all of whose outputs are binary."""
    entries = [_binary_entry(*output) for output in outputs]
    return json_text.dumps({"model_name": name, "model_version": version, "outputs": entries})


def _mixed_head(model: Model, form: Form, outputs: list[Tensor], binary: list[_Described]) -> bytes:
    """Return the JSON of an answer, in which are the outputs that are not binary."""
    entries = {output[0]: _binary_entry(*output) for output in binary}
    document = answer_document(model, form.id)
    document["outputs"] = [entries.get(output.name) or _json_entry(output) for output in outputs]
    return json_text.dumps(document)


def write_json_answer(model: Model, id: str, outputs: list[Tensor]) -> dict[str, Any]:
    """Return an answer as a document, all of whose outputs are in JSON.

    Raises:
        InvalidRequest: an output cannot be written so.
    """
    document = answer_document(model, id)
    document["outputs"] = [_json_entry(output) for output in outputs]
    return document


def answer_document(model: Model, id: str) -> dict[str, Any]:
    """Return what every answer has in front of its outputs."""
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if id:
        document["id"] = id
    return document


def _binary_entry(name: str, datatype: str, shape: tuple[int, ...], size_bytes: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size_bytes}}


def _json_entry(output: Tensor) -> dict[str, Any]:
    data: Any = to_json_values(output)
    if type(data) is list and output.datatype != "BYTES":  # not all of them are finite
        data = json_text.numbers(data)
    return {"name": output.name, "datatype": output.datatype, "shape": output.array.shape, "data": data}
