"""From a serialized ``ModelInferRequest`` to a call, and from its outputs to a serialized answer.

A tensor of a request is a view of the bytes that gRPC has handed out, if it came raw; of an answer it is copied once,
behind the other fields of its message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpipe.errors import in_brief
from fastpipe.serve.answering import TRACE_HEADERS, Call, WantedOutput
from fastpipe.serve.grpc_messages import DecodeError, inference
from fastpipe.serve.grpc_wire import RAW_OUTPUT, field, without_raw
from fastpipe.serve.statuses import InvalidRequest, NotServed
from fastpipe.serve.tensors import Tensor, checked_shape, dtype_of, from_json, from_raw, to_raw

if TYPE_CHECKING:
    from fastpipe.serve.repository import Model

__all__ = ["Asked", "Find", "Pieces", "answer_pieces", "asked_of", "parameters_of", "parsed"]

Find = Callable[[str, str], "Model"]
"""Returns the model of a name and a version, where an empty version leaves the choice to the server."""

Pieces = list[bytes | memoryview]
"""A message, in pieces that are yet to be joined."""

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
    id: str
    version: str
    """Empty if the client has named none."""


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
    body: bytes, find: Find, remaining_s: float | None, metadata: Sequence[tuple[str, str | bytes]] = ()
) -> Asked:
    """Read a request.

    Args:
        body: a serialized ``ModelInferRequest``; the tensors are views of it.
        find: has the models.
        remaining_s: until the client's deadline; it ends the call if the parameter ``timeout`` does not do so earlier.
        metadata: of gRPC.

    Raises:
        InvalidRequest: it is none, or its tensors or parameters are malformed.
        NotServed: it refers to shared memory.
        UnknownModel, NotReady: from ``find``.
    """
    cut = without_raw(body)
    request = parsed("ModelInferRequest", body if cut is None else cut[0])
    raw = [memoryview(each) for each in request.raw_input_contents] if cut is None else cut[1]
    model = find(request.model_name, request.model_version)
    parameters = parameters_of(request.parameters) if request.parameters else {}
    if remaining_s is not None:
        _shorten(parameters, remaining_s)
    call = Call(
        model,
        _inputs(request.inputs, raw),
        [_wanted(each) for each in request.outputs] if request.outputs else None,
        parameters,
        {key: str(value) for key, value in metadata if key in TRACE_HEADERS},
    )
    return Asked(call, request.id, request.model_version)


def _shorten(parameters: dict[str, Any], remaining_s: float) -> None:
    """Have the call end with the client's deadline; what is no time is told of where parameters are checked."""
    timeout_us = parameters.get("timeout", 0)
    if isinstance(timeout_us, int) and not isinstance(timeout_us, bool) and timeout_us >= 0:
        left_us = max(int(remaining_s * MICROSECONDS), 1)
        parameters["timeout"] = min(timeout_us, left_us) if timeout_us else left_us


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as values of Python; one that holds none of the kinds of value is left out."""
    found: dict[str, Any] = {}
    for key, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[key] = getattr(parameter, kind)
    return found


# ---- inputs ----------------------------------------------------------------------------------------------------


def _inputs(given: Sequence[Any], raw: Sequence[memoryview]) -> list[Tensor]:
    for each in given:
        if each.parameters and SHARED_MEMORY in each.parameters:
            raise _no_shared_memory("input", each.name)
    if raw:
        if len(raw) != len(given):
            raise InvalidRequest(
                f"raw_input_contents must have an element for each of the {len(given)} inputs, or none; it has "
                f"{len(raw)}"
            )
        tensors = []
        for each, content in zip(given, raw, strict=True):
            if each.HasField("contents"):
                raise InvalidRequest(f"input {in_brief(each.name)} has both contents and raw_input_contents")
            tensors.append(from_raw(each.name, each.datatype, _shape(each), content))
        return tensors
    return [_typed(each, _shape(each)) for each in given]


def _shape(each: Any) -> tuple[int, ...]:
    return checked_shape(each.name, list(each.shape))


def _typed(each: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of the elements in the fields of their type."""
    name, datatype = each.name, each.datatype
    dtype_of(datatype)  # there may be no such type
    expected = _CONTENTS.get(datatype)
    for filled, _ in each.contents.ListFields():
        if filled.name != expected:
            raise InvalidRequest(
                f"input {in_brief(name)}: elements of {datatype} go into {expected or 'raw_input_contents'}, not into "
                f"{filled.name}"
            )
    if expected is None:  # an empty tensor has no bytes either
        return from_raw(name, datatype, shape, memoryview(b""))
    elements = list(getattr(each.contents, expected))
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


def answer_pieces(
    asked: Asked, outputs: Sequence[Tensor], parameters: Mapping[str, bool] | None = None
) -> Pieces:
    """Return a serialized ``ModelInferResponse`` in pieces: its fields, then each tensor, as a view.

    Raw contents are always filled: tritonclient reads nothing else.
    """
    model = asked.call.model
    response = inference()["ModelInferResponse"](model_name=model.name, model_version=model.version, id=asked.id)
    for key, value in (parameters or {}).items():
        response.parameters[key].bool_param = value
    for tensor in outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
    pieces: Pieces = [response.SerializeToString()]
    for tensor in outputs:
        pieces += field(RAW_OUTPUT, [to_raw(tensor)])
    return pieces
