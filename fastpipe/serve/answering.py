"""One call of the protocol, whatever it came by: from tensors through the pipe to tensors.

    call = Call(model, tensors, parameters={"timeout": 50_000}, headers={"traceparent": ...})
    outputs = await answer(call)

A call of n rows is n requests of the pipe, which may meet in one batch with those of others. It ends once: with all
answers, or with the first failure, which cancels the requests that are left; and cancelling the task cancels all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import in_brief
from fastpipe.serve.statuses import InvalidRequest
from fastpipe.serve.tensors import Array, Tensor

if TYPE_CHECKING:
    from fastpipe.serve.repository import Model

__all__ = ["Call", "WantedOutput", "answer", "stream", "trace"]

MICROSECONDS = 1_000_000
LONGEST_TIMEOUT_S = 1_000_000_000.0
LONGEST_TIMEOUT_US = 1_000_000_000 * MICROSECONDS
FARTHEST_PRIORITY = 1000
"""What a pipe takes, on either side of 0; the protocol's priorities have no end, and those beyond are this one."""
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
"""What belongs to a trace; the fronts put these, if they are there, into ``Call.headers``."""

NOTHING: Mapping[str, Any] = {}
_END = object()
_NO_TRACE = nullcontext()


@dataclass(slots=True, frozen=True)
class WantedOutput:
    """An output that a call asks for."""

    name: str
    classification: int = 0
    """So many of the best classes instead of the numbers; 0: the numbers."""


@dataclass(slots=True)
class Call:
    """What a client asks of a model.

    ``parameters`` are those of the protocol: ``timeout`` in microseconds (0: none), ``priority`` (lower goes first, 0
    is the default), and of a model with ``state_of`` ``sequence_id`` (0 or "": none), ``sequence_start`` and
    ``sequence_end``; others are not looked at. ``headers`` are those of
    ``TRACE_HEADERS``, in lower case.
    """

    model: Model
    inputs: Sequence[Tensor]
    wanted: Sequence[WantedOutput] | None = None
    """None: all outputs."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


async def answer(call: Call) -> list[Tensor]:
    """Return the outputs of a call, in the order in which they were asked for.

    Raises:
        InvalidRequest: the call does not fit the model's signature, or a parameter is wrong. Nothing was run.
        NotReady: the model is not there any more.
        AnswerNotServed: the pipe's answer cannot be written.
        Exception: whatever the pipe raises; of a call of several rows with a note that names the row.
    """
    statistics = call.model.statistics
    began_ns = time.perf_counter_ns()
    try:
        requests = call.model.signature.to_requests(call.inputs)
        names, terms = _names(call), _terms(call.parameters)
        _put_into_sequence(call, requests)
        with trace(call.headers):
            if len(requests) == 1:
                await call.model.pipe.acall(requests[0], **terms)
            else:
                await _all_rows(call.model, requests, terms)
        outputs = _as_wanted(call, call.model.signature.to_outputs(requests, names))
    except asyncio.CancelledError:
        statistics.cancelled += 1
        raise
    except BaseException:
        statistics.failed_after(time.perf_counter_ns() - began_ns)
        raise
    statistics.answered(len(requests), time.perf_counter_ns() - began_ns)
    return outputs


async def stream(call: Call) -> AsyncGenerator[list[Tensor], None]:
    """Yield the outputs of a call part by part, as the pipe's streaming backend hands them on.

    Closing the generator, or cancelling the task, cancels the request. A part that is a dict has outputs by their keys;
    anything else is the first output. A pipe whose backends do not stream yields its whole answer as one part.

    Raises:
        InvalidRequest: as ``answer``; or the call has several rows, whose parts nobody could tell apart.
        Exception: whatever the pipe raises, behind all parts that came before.
    """
    statistics = call.model.statistics
    began_ns = time.perf_counter_ns()
    try:
        requests = call.model.signature.to_requests(call.inputs)
        if len(requests) != 1:
            raise InvalidRequest(f"a stream is one request, and the call has {len(requests)} rows")
        wanted = _names(call)
        _put_into_sequence(call, requests)
        pipe: Any = call.model.pipe
        async with aclosing(pipe.astream(requests[0], **_terms(call.parameters))) as parts:
            with trace(call.headers):  # not around a yield: whoever closes this generator may be another task
                part = await anext(parts, _END)
            is_empty = part is _END
            while part is not _END:
                yield _as_wanted(call, call.model.signature.parts_to_outputs(part))
                part = await anext(parts, _END)
        if is_empty and call.model.signature.outputs[0].key in requests[0]:
            yield _as_wanted(call, call.model.signature.to_outputs(requests, wanted))
    except (asyncio.CancelledError, GeneratorExit):
        statistics.cancelled += 1
        raise
    except BaseException:
        statistics.failed_after(time.perf_counter_ns() - began_ns)
        raise
    statistics.answered(1, time.perf_counter_ns() - began_ns)


async def _all_rows(model: Model, requests: Sequence[Request], terms: Mapping[str, Any]) -> None:
    """Run the requests of a call at once; the first that fails ends the call, and cancels the others."""
    tasks = [asyncio.ensure_future(model.pipe.acall(request, **terms)) for request in requests]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:  # each ends before its call does
            await asyncio.gather(*left, return_exceptions=True)
    failed = [(row, error) for row, task in enumerate(tasks) if task in done and (error := task.exception())]
    if failed:
        row, error = failed[0]
        error.add_note(f"fastpipe: row {row} of {len(requests)}")
        raise error


def _names(call: Call) -> list[str] | None:
    """Return the names of the outputs that a call asks for, once they are known to be there."""
    if call.wanted is None:
        return None
    for wanted in call.wanted:
        call.model.signature.output(wanted.name)
    return [wanted.name for wanted in call.wanted]


# ---- parameters ------------------------------------------------------------------------------------------------


def _terms(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the protocol's parameters are to ``pipe.acall``."""
    if not parameters:
        return NOTHING
    terms: dict[str, Any] = {}
    timeout_us = _number(parameters, "timeout")
    if timeout_us < 0:
        raise InvalidRequest(f"timeout is in microseconds, from 0 (none) on, got {in_brief(timeout_us)}")
    if timeout_us:  # compared before it is divided: a whole number of JSON may be larger than any float
        terms["timeout"] = timeout_us / MICROSECONDS if timeout_us < LONGEST_TIMEOUT_US else LONGEST_TIMEOUT_S
    priority = _number(parameters, "priority")
    if priority:
        terms["priority"] = max(-FARTHEST_PRIORITY, min(priority, FARTHEST_PRIORITY))
    return terms


def _put_into_sequence(call: Call, requests: Sequence[Request]) -> None:
    """Say in the requests of a call to which sequence they belong, as its parameters say it; rows in their order."""
    key = call.parameters.get("sequence_id")
    if not key:  # 0 and "" are the protocol's words for none
        return
    state_keys = getattr(call.model.pipe, "state_keys", ())
    if not state_keys:
        raise InvalidRequest("sequences (sequence_id) are not served: no node of this model has state_of")
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise InvalidRequest(f"parameter sequence_id must be a whole number or a text, got {in_brief(key)}")
    bounds = {name: call.parameters[name] for name in ("sequence_start", "sequence_end") if name in call.parameters}
    for name, value in bounds.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"parameter {name} must be true or false, got {in_brief(value)}")
    for request in requests:
        request.update(dict.fromkeys(state_keys, key))
    if "sequence_start" in bounds:
        requests[0]["sequence_start"] = bounds["sequence_start"]
    if "sequence_end" in bounds:
        requests[-1]["sequence_end"] = bounds["sequence_end"]


def _number(parameters: Mapping[str, Any], name: str) -> float:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidRequest(f"parameter {name} must be a number, got {in_brief(value)}")
    return value


def trace(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Return the context in which the pipe's calls belong to the trace of the client, if it has sent one."""
    continued = _continued() if headers else None
    return _NO_TRACE if continued is None else continued(headers)


@cache
def _continued() -> Callable[[Mapping[str, str]], AbstractContextManager[None]] | None:
    try:
        from fastpipe.observe.traces import continued
    except ImportError:  # nobody traces a pipe without OpenTelemetry
        return None
    return continued


# ---- classification --------------------------------------------------------------------------------------------


def _as_wanted(call: Call, outputs: list[Tensor]) -> list[Tensor]:
    """Return those outputs that were asked for, as they were; a part of a stream need not have all of them."""
    if call.wanted is None:
        return outputs
    classes = {each.name: each.classification for each in call.wanted}
    return [
        _best(call, output, classes[output.name]) if classes[output.name] else output
        for output in outputs
        if output.name in classes
    ]


def _best(call: Call, output: Tensor, count: int) -> Tensor:
    """Return the best classes of each row as BYTES: ``score:index``, and ``:label`` where the signature has labels."""
    array = output.array
    if array.dtype.kind not in "biuf":
        raise InvalidRequest(f"output {output.name!r} has no scores to classify: it is {output.datatype}")
    has_rows = call.model.signature.max_batch_size > 0
    scores = array.reshape(array.shape[0], -1) if has_rows else array.reshape(1, -1)
    labels = call.model.signature.output(output.name).labels
    count = min(count, scores.shape[1])
    best: Array = np.empty((scores.shape[0], count), object)
    for row, own in enumerate(scores):
        for rank, index in enumerate(np.argsort(-own.astype(np.float64), kind="stable")[:count].tolist()):
            score = f"{own[index]:f}" if array.dtype.kind == "f" else str(int(own[index]))
            label = f":{labels[index]}" if index < len(labels) else ""
            best[row, rank] = f"{score}:{index}{label}".encode()
    return Tensor(output.name, "BYTES", best if has_rows else best[0])
