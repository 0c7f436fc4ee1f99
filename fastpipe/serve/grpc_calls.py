"""From a serialized ``ModelInferRequest`` to a call, and from its outputs to a serialized answer.

A tensor of a request is a view of the bytes that gRPC has handed out, if it came raw; of an answer it is copied once,
behind the other fields of its message.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpipe.errors import in_brief
from fastpipe.serve.answering import NOTHING, TRACE_HEADERS, Call, WantedOutput
from fastpipe.serve.exchange import Limits
from fastpipe.serve.grpc_messages import DecodeError, inference
from fastpipe.serve.grpc_wire import RAW_OUTPUT, REQUEST_ID, cut, field_head
from fastpipe.serve.statuses import InvalidRequest, NotServed, RequestTooLarge
from fastpipe.serve.tensors import MOST_AXES, Tensor, checked_shape, dtype_of, from_json, from_raw, to_raw

if TYPE_CHECKING:
    from fastpipe.serve.repository import Model

__all__ = ["FINAL", "Asked", "Find", "Pieces", "answer_pieces", "asked_of", "id_of", "parameters_of", "parsed"]

Find = Callable[[str, str], "Model"]
"""Returns the model of a name and a version, where an empty version leaves the choice to the server."""

Pieces = list[bytes | memoryview]
"""A message, in pieces that are yet to be joined."""

FINAL = "triton_final_response"
"""The parameter of an answer in a stream that says whether it is its request's last."""

LARGEST_KEPT_BYTES = 1024
MOST_KEPT = 256
"""Heads of requests, and of answers: of a client's, one after the other, they are the same."""

MICROSECONDS = 1_000_000
SHARED_MEMORY = "shared_memory_region"

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of ``InferTensorContents`` that has the elements of a datatype; FP16 and BF16 have none, and go raw."""


class Asked(NamedTuple):
    """A call, and what its answer repeats."""

    call: Call
    id: bytes


class _Head(NamedTuple):
    """A request without its id and its raw contents; shared by requests that are the same but for those."""

    model_name: str
    model_version: str
    parameters: Mapping[str, Any]
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype and shape of each."""
    wanted: tuple[WantedOutput, ...] | None
    contents: tuple[Any, ...] | None
    """The typed contents of each input; None: none has any."""


def parsed(name: str, body: bytes) -> Any:
    """Return the message of that name.

    Raises:
        InvalidRequest: the bytes are none.
    """
    try:
        return inference()[name].FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the request is no {name}: {error}") from None


def asked_of(
    body: bytes, find: Find, limits: Limits, remaining_s: float | None, metadata: Sequence[tuple[str, str | bytes]] = ()
) -> Asked:
    """Read a request.

    Args:
        body: a serialized ``ModelInferRequest``; the tensors are views of it.
        find: has the models.
        limits: what is not raw may have as many bytes as JSON: it becomes as many times as large in memory.
        remaining_s: until the client's deadline; it ends the call if the parameter ``timeout`` does not do so earlier.
        metadata: of gRPC.

    Raises:
        InvalidRequest: it is none, or its tensors or parameters are malformed.
        RequestTooLarge: it has too much that is not raw.
        NotServed: it refers to shared memory.
        UnknownModel, NotReady: from ``find``.
    """
    head_bytes, id, raw = cut(body)
    if len(head_bytes) > limits.json_bytes:
        raise RequestTooLarge(
            f"the request has {len(head_bytes)} bytes beside raw_input_contents; at most {limits.json_bytes} are "
            "taken: send tensors as raw_input_contents"
        )
    head = _kept_head_of(head_bytes) if len(head_bytes) <= LARGEST_KEPT_BYTES else _head_of(head_bytes)
    model = find(head.model_name, head.model_version)
    parameters = head.parameters
    if remaining_s is not None:
        parameters = _shortened(parameters, remaining_s)
    tensors = _raw(head, raw) if raw else _typed(head)
    headers = NOTHING
    for key, _ in metadata:
        if key in TRACE_HEADERS:
            headers = {name: str(value) for name, value in metadata if name in TRACE_HEADERS}
            break
    return Asked(Call(model, tensors, head.wanted, parameters, headers), id)


def _head_of(body: bytes) -> _Head:
    """Read a request that has no id and no raw contents, and check all of it but typed contents."""
    request = parsed("ModelInferRequest", body)
    inputs = []
    for each in request.inputs:
        if each.parameters and SHARED_MEMORY in each.parameters:
            raise _no_shared_memory("input", each.name)
        inputs.append((each.name, each.datatype, checked_shape(each.name, each.shape[: MOST_AXES + 1])))
    wanted = tuple(map(_wanted, request.outputs)) if request.outputs else None
    parameters = parameters_of(request.parameters) if request.parameters else NOTHING
    has_contents = any(each.HasField("contents") for each in request.inputs)
    contents = tuple(each.contents for each in request.inputs) if has_contents else None
    return _Head(request.model_name, request.model_version, parameters, tuple(inputs), wanted, contents)


_kept_head_of = lru_cache(MOST_KEPT)(_head_of)


def _shortened(parameters: Mapping[str, Any], remaining_s: float) -> Mapping[str, Any]:
    """Have the call end with the client's deadline; what is no time is told of where parameters are checked."""
    timeout_us = parameters.get("timeout", 0)
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
        return parameters
    left_us = max(int(remaining_s * MICROSECONDS), 1)
    return {**parameters, "timeout": min(timeout_us, left_us) if timeout_us else left_us}


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as values of Python; one that holds none of the kinds of value is left out."""
    found: dict[str, Any] = {}
    for key, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[key] = getattr(parameter, kind)
    return found


# ---- inputs ----------------------------------------------------------------------------------------------------


def _raw(head: _Head, raw: Sequence[memoryview]) -> list[Tensor]:
    if len(raw) != len(head.inputs):
        raise InvalidRequest(
            f"raw_input_contents must have an element for each of the {len(head.inputs)} inputs, or none; it has "
            f"{len(raw)}"
        )
    if head.contents is not None:
        raise InvalidRequest("inputs have both contents and raw_input_contents")
    return [
        from_raw(name, datatype, shape, content)
        for (name, datatype, shape), content in zip(head.inputs, raw, strict=True)
    ]


def _typed(head: _Head) -> list[Tensor]:
    contents = head.contents or [inference()["InferTensorContents"]()] * len(head.inputs)
    return [_of_contents(*described, each) for described, each in zip(head.inputs, contents, strict=True)]


def _of_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Tensor:
    """Return a tensor of the elements in the fields of their type."""
    dtype_of(datatype)  # there may be no such type
    expected = _CONTENTS.get(datatype)
    for filled, _ in contents.ListFields():
        if filled.name != expected:
            raise InvalidRequest(
                f"input {in_brief(name)}: elements of {datatype} go into {expected or 'raw_input_contents'}, not into "
                f"{filled.name}"
            )
    if expected is None:  # an empty tensor has no bytes either
        return from_raw(name, datatype, shape, memoryview(b""))
    filled = getattr(contents, expected)
    count = math.prod(shape)
    if len(filled) != count:
        raise InvalidRequest(
            f"tensor {in_brief(name)}: shape {list(shape)} has {count} elements, {expected} has {len(filled)}"
        )
    elements = list(filled)
    if datatype == "BYTES":
        raw = b"".join(piece for element in elements for piece in (struct.pack("<I", len(element)), element))
        return from_raw(name, datatype, shape, memoryview(raw))
    return from_json(name, datatype, shape, elements)


def _wanted(each: Any) -> WantedOutput:
    parameters = parameters_of(each.parameters) if each.parameters else {}
    if SHARED_MEMORY in parameters:
        raise _no_shared_memory("output", each.name)
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InvalidRequest(
            f"output {in_brief(each.name)}: classification must be a whole number from 0 on, got {in_brief(count)}"
        )
    return WantedOutput(each.name, count)


def _no_shared_memory(kind: str, name: str) -> NotServed:
    return NotServed(f"{kind} {in_brief(name)} is in shared memory, which this server does not use: send its contents")


# ---- answers ---------------------------------------------------------------------------------------------------


def answer_pieces(asked: Asked, outputs: Sequence[Tensor], *, is_final: bool | None = None) -> Pieces:
    """Return a serialized ``ModelInferResponse`` in pieces: its fields, then each tensor, as a view.

    Raw contents are always filled: tritonclient reads nothing else.

    Args:
        asked: what is answered.
        outputs: its answer, or a part of it.
        is_final: in a stream: whether there is no other answer to the same request.
    """
    model = asked.call.model
    described = tuple([(tensor.name, tensor.datatype, tensor.array.shape) for tensor in outputs])
    pieces: Pieces = [_answer_head(model.name, model.version, described, is_final)]
    if asked.id:
        pieces += (field_head(REQUEST_ID, len(asked.id)), asked.id)
    for tensor in outputs:
        raw = to_raw(tensor)
        pieces += (field_head(RAW_OUTPUT, len(raw)), raw)
    return pieces


@lru_cache(MOST_KEPT)
def _answer_head(
    name: str, version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...], is_final: bool | None
) -> bytes:
    """Return an answer without its id and its raw contents, as protobuf writes it."""
    response = inference()["ModelInferResponse"](model_name=name, model_version=version)
    if is_final is not None:
        response.parameters[FINAL].bool_param = is_final
    for output, datatype, shape in outputs:
        response.outputs.add(name=output, datatype=datatype, shape=shape)
    return bytes(response.SerializeToString())


def id_of(body: bytes) -> bytes:
    """Return the id of a request that could not be answered; empty if it has none that can be read."""
    try:
        return cut(body).id
    except InvalidRequest:
        return b""
