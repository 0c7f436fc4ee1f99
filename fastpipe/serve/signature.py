"""What a served pipe announces, and how tensors become its requests and its answers tensors.

    tensors of a call ── to_requests ──► requests (dicts), one for each row ── the pipe ──► to_outputs ──► tensors

With ``max_batch_size`` > 0 the first axis of every tensor are rows: n rows are n requests, whose answers are stacked
again. With 0 a call is one request, and its tensors are handed on as they are. Either way a BYTES tensor whose requests
have one element each is handed on as that element: ``bytes`` (a JPEG), or ``str`` where the input says ``text``.

An answer that is an array or a number becomes a tensor of numbers; text and bytes become elements of BYTES; a list or a
dict becomes one element of BYTES, in JSON. Where the signature says a datatype, the answer is converted to that one, if
nothing of it is lost by that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import in_brief, keys_in_brief, nearest
from fastpipe.serve import json_text
from fastpipe.serve.statuses import AnswerNotServed, InvalidRequest
from fastpipe.serve.tensors import Array, Tensor, array_of, as_bytes, datatype_of, dtype_of

__all__ = ["Signature", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output, as it is announced."""

    name: str
    datatype: str | None
    """None: any; it is announced as BYTES, and taken, or given, as it comes."""
    shape: tuple[int, ...]
    """Of one request, without the axis of rows. -1: any size."""
    key: str
    """Of the request's dict."""
    is_text: bool = False
    """Elements of BYTES are ``str`` in the request, UTF-8 on the wire."""
    labels: tuple[str, ...] = ()
    """Names of the classes, for ``classification``."""
    item: str | int | None = None
    """Which of what is under the key, where that is a dict or a list."""
    sample_axis: int | None = 0
    """Where an answer with one axis more than ``shape`` has its only sample; None: it is as it is."""
    is_optional: bool = False
    """Whether a call may lack it."""

    @property
    def is_one_element(self) -> bool:
        """Whether a request has one element of BYTES, which is then handed on without an array around it."""
        return all(size == 1 for size in self.shape)

    def announced(self, *, has_rows: bool) -> dict[str, Any]:
        """Return it as the protocol's metadata has it."""
        rows = [-1] if has_rows else []
        return {"name": self.name, "datatype": self.datatype or "BYTES", "shape": rows + list(self.shape)}

    def put(self, request: Request, value: Any) -> None:
        """Give a request this input."""
        if self.item is None:
            request[self.key] = value
        else:
            request.setdefault(self.key, {})[self.item] = value

    def answer_in(self, answer: Request) -> Any:
        """Return this output of an answered request.

        Raises:
            AnswerNotServed: there is no such.
        """
        if self.key not in answer:
            raise AnswerNotServed(
                f"output {self.name!r}: the answer has no key {self.key!r}; it has {keys_in_brief(answer)}"
            )
        value = answer[self.key]
        if self.item is None:
            return value
        try:
            return value[self.item]
        except (LookupError, TypeError) as error:
            raise AnswerNotServed(
                f"output {self.name!r}: expected an answer with {self.item!r} under {self.key!r}, got {in_brief(value)}"
            ) from error


ANY_INPUT = TensorSpec("data", None, (-1,), "data")
ANY_OUTPUT = TensorSpec("result", None, (-1,), "result")


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model. Immutable; thread-safe."""

    inputs: tuple[TensorSpec, ...] = (ANY_INPUT,)
    outputs: tuple[TensorSpec, ...] = (ANY_OUTPUT,)
    max_batch_size: int = 0
    """How many rows a call may have; 0: calls have no rows, and each is one request."""

    def metadata(self) -> dict[str, Any]:
        """Return ``inputs`` and ``outputs`` as the protocol's model metadata has them."""
        has_rows = self.max_batch_size > 0
        return {
            "inputs": [spec.announced(has_rows=has_rows) for spec in self.inputs],
            "outputs": [spec.announced(has_rows=has_rows) for spec in self.outputs],
        }

    def output(self, name: str) -> TensorSpec:
        """Return the output of that name.

        Raises:
            InvalidRequest: there is none.
        """
        for spec in self.outputs:
            if spec.name == name:
                return spec
        raise InvalidRequest(_unknown("output", name, self.outputs))

    # ---- requests ----------------------------------------------------------------------------------------------

    def to_requests(self, tensors: Sequence[Tensor]) -> list[Request]:
        """Return the requests of a call, in the order of its rows.

        Arrays in them are views of the tensors' arrays.

        Raises:
            InvalidRequest: an input is missing, not known, or there twice; or its datatype, shape or rows do not fit.
        """
        if len(tensors) == 1 and len(self.inputs) == 1 and tensors[0].name == self.inputs[0].name:
            pairs = [(self.inputs[0], tensors[0])]
        else:
            pairs = self._paired(tensors)
        if self.max_batch_size == 0:
            values = [(spec, _whole(spec, tensor)) for spec, tensor in pairs]
            return [_request_of(values)]
        count = self._row_count(pairs)
        columns = [(spec, _rows(spec, tensor)) for spec, tensor in pairs]
        if len(columns) == 1 and columns[0][0].item is None:
            ((spec, column),) = columns
            return [{spec.key: column[row]} for row in range(count)]
        return [_request_of([(spec, column[row]) for spec, column in columns]) for row in range(count)]

    def _paired(self, tensors: Sequence[Tensor]) -> list[tuple[TensorSpec, Tensor]]:
        by_name = {tensor.name: tensor for tensor in tensors}
        if len(by_name) != len(tensors):
            raise InvalidRequest("an input is there twice")
        known = {spec.name for spec in self.inputs}
        for name in by_name:
            if name not in known:
                raise InvalidRequest(_unknown("input", name, self.inputs))
        missing = [spec.name for spec in self.inputs if spec.name not in by_name and not spec.is_optional]
        if missing:
            raise InvalidRequest(f"inputs are missing: {', '.join(missing)}")
        return [(spec, by_name[spec.name]) for spec in self.inputs if spec.name in by_name]

    def _row_count(self, pairs: Sequence[tuple[TensorSpec, Tensor]]) -> int:
        counts = {tensor.array.shape[0] if tensor.array.ndim else 0 for _, tensor in pairs}
        if len(counts) != 1:
            raise InvalidRequest(f"all inputs must have as many rows (the first axis), got {sorted(counts)}")
        count = counts.pop()
        if not 1 <= count <= self.max_batch_size:
            raise InvalidRequest(f"rows (the first axis) must be 1 to {self.max_batch_size}, got {count}")
        return count

    # ---- answers -----------------------------------------------------------------------------------------------

    def to_outputs(self, answers: Sequence[Request], wanted: Sequence[str] | None = None) -> list[Tensor]:
        """Return the tensors of answered requests.

        Args:
            answers: those that ``to_requests`` made, answered; at least one.
            wanted: names of outputs; None: all.

        Raises:
            InvalidRequest: no output has that name.
            AnswerNotServed: an answer lacks the key, cannot be written, or does not go with those of other rows.
        """
        specs = self.outputs if wanted is None else [self.output(name) for name in wanted]
        return [self._output(spec, answers) for spec in specs]

    def parts_to_outputs(self, part: Any) -> list[Tensor]:
        """Return the tensors of one part of a stream: a dict has outputs by their keys, all else is the first output.

        Raises:
            AnswerNotServed: it cannot be written.
        """
        first = self.outputs[0]
        keys = [spec for spec in self.outputs if isinstance(part, dict) and spec.key in part]
        if keys:
            return [self._output(spec, [part]) for spec in keys]
        return [self._output(first, [{first.key: part}])]

    def _output(self, spec: TensorSpec, answers: Sequence[Request]) -> Tensor:
        arrays = []
        for answer in answers:
            arrays.append(_answered(spec, spec.answer_in(answer)))
        if self.max_batch_size == 0:
            array = arrays[0]
        elif len(arrays) == 1:
            array = arrays[0][np.newaxis]
        else:
            array = _stacked(spec, arrays)
        datatype = datatype_of(array.dtype)
        if datatype is None:  # cannot be: array_of has looked
            raise AnswerNotServed(f"output {spec.name!r}: an array of {array.dtype}")
        return Tensor(spec.name, datatype, array)


def _request_of(values: Sequence[tuple[TensorSpec, Any]]) -> Request:
    request: Request = {}
    for spec, value in values:
        spec.put(request, value)
    return request


def _unknown(kind: str, name: str, specs: Sequence[TensorSpec]) -> str:
    known = [spec.name for spec in specs]
    hint = nearest(name, known) or f"; the model's are {', '.join(known)}"
    return f"no {kind} is named {in_brief(name)}{hint}"


# ---- one input -------------------------------------------------------------------------------------------------


def _whole(spec: TensorSpec, tensor: Tensor) -> Any:
    """Return what a request gets of a tensor without rows."""
    _check(spec, tensor, tensor.array.shape)
    array = tensor.array
    if tensor.datatype == "BYTES":
        if array.size == 1 and (spec.datatype is None or spec.is_one_element):
            return _element(spec, array.reshape(-1)[0])
        return _texts(spec, array)
    return array


def _rows(spec: TensorSpec, tensor: Tensor) -> Array | list[Any]:
    """Return what each request gets of a tensor with rows."""
    array = tensor.array
    if tensor.datatype != "BYTES":
        _check(spec, tensor, array.shape[1:])
        return array
    if array.ndim == 1 and spec.shape == (1,):  # one element for each row, without an axis for that
        array = array.reshape(-1, 1)
    _check(spec, tensor, array.shape[1:])
    if math.prod(array.shape[1:]) == 1 and (spec.datatype is None or spec.is_one_element):
        return [_element(spec, element) for element in array.reshape(-1)]
    return _texts(spec, array)


def _check(spec: TensorSpec, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if spec.datatype is None:
        return
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"input {spec.name!r}: datatype must be {spec.datatype}, got {tensor.datatype}")
    if len(shape) != len(spec.shape) or any(
        wanted not in (-1, size) for wanted, size in zip(spec.shape, shape, strict=True)
    ):
        rows = [-1] if len(shape) < tensor.array.ndim else []
        raise InvalidRequest(
            f"input {spec.name!r}: shape must be {rows + list(spec.shape)}, got {list(tensor.array.shape)}"
        )


def _element(spec: TensorSpec, element: bytes) -> Any:
    if not spec.is_text:
        return element
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"input {spec.name!r}: an element is no text in UTF-8") from None


def _texts(spec: TensorSpec, array: Array) -> Array:
    if not spec.is_text:
        return array
    decoded: Array = np.empty(array.shape, object)
    for index in np.ndindex(array.shape):
        decoded[index] = _element(spec, bytes(array[index]))
    return decoded


# ---- one output ------------------------------------------------------------------------------------------------


def _answered(spec: TensorSpec, value: Any) -> Array:
    """Return one request's answer as an array, of the shape that it has without the axis of rows."""
    array = array_of(spec.name, value)
    if array is None and spec.datatype not in (None, "BYTES"):
        array = _listed(spec, value)
    if array is None and isinstance(value, list | tuple) and value and all(isinstance(each, bytes) for each in value):
        array = np.array([*value, None], object)[:-1]  # for which JSON has no form; with None, NumPy leaves them alone
    if array is None:
        return _one_element(spec, as_bytes(spec.name, value) if _is_text(value) else _json(spec, value))
    axis = spec.sample_axis
    is_sample = array.ndim == len(spec.shape) + 1 and axis is not None and spec.datatype is not None
    if is_sample and axis is not None and array.shape[axis] == 1:
        array = array.reshape(array.shape[:axis] + array.shape[axis + 1 :])  # as models of the box answer it
    if array.dtype.kind in "OSU":
        return _of_texts(spec, array)
    if spec.datatype == "BYTES":
        if array.dtype == np.uint8 and array.ndim == 1:  # an encoded image, as OpenCV hands it out
            return _one_element(spec, array.tobytes())
        raise AnswerNotServed(
            f"output {spec.name!r} is declared as BYTES, and the answer is an array of {array.dtype}: declare its "
            "datatype, or answer bytes or text"
        )
    dtype = array.dtype if spec.datatype is None else dtype_of(spec.datatype)
    if dtype != array.dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise AnswerNotServed(f"output {spec.name!r} is declared as {spec.datatype}, and the answer is {array.dtype}")
    if dtype is array.dtype and dtype.isnative and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(array.shape)


def _is_text(value: object) -> bool:
    return isinstance(value, str | bytes | bytearray | memoryview)


def _listed(spec: TensorSpec, value: Any) -> Array:
    """Return a list as the numbers that the signature says it is."""
    try:
        return np.asarray(value, dtype_of(str(spec.datatype)))
    except (TypeError, ValueError, OverflowError) as error:
        raise AnswerNotServed(
            f"output {spec.name!r} is declared as {spec.datatype}, and the answer is {in_brief(value)}: {error}"
        ) from error


def _one_element(spec: TensorSpec, element: bytes) -> Array:
    array: Array = np.empty(1, object)
    array[0] = element
    return array.reshape(()) if not spec.shape else array.reshape((1,) * len(spec.shape))


def _of_texts(spec: TensorSpec, array: Array) -> Array:
    """Return an array of texts, of whatever kind, as one of ``bytes``."""
    made: Array = np.empty(array.size, object)
    for index, element in enumerate(array.reshape(-1).tolist()):
        made[index] = as_bytes(spec.name, element)
    return made.reshape(array.shape)


def _json(spec: TensorSpec, value: Any) -> bytes:
    try:
        return json_text.dumps(value)
    except TypeError as error:
        raise AnswerNotServed(
            f"output {spec.name!r}: the answer, {in_brief(value)}, cannot be written as JSON: {error}; the pipe has to "
            "answer an array, a number, text, bytes, or what JSON has"
        ) from error


def _stacked(spec: TensorSpec, arrays: Sequence[Array]) -> Array:
    """Return the answers of several rows as one array."""
    forms = {(array.shape, array.dtype) for array in arrays}
    if len(forms) != 1:
        shown = " and ".join(f"{dtype} of shape {list(shape)}" for shape, dtype in list(_in_order(arrays))[:2])
        raise AnswerNotServed(
            f"output {spec.name!r}: the rows of a call have answers that are no rows of one tensor: {shown}; send the "
            "rows one by one, or have the pipe answer arrays of one shape, or lists, which go as JSON"
        )
    return np.stack(arrays)


def _in_order(arrays: Sequence[Array]) -> Iterator[tuple[tuple[int, ...], np.dtype[Any]]]:
    yield from dict.fromkeys((array.shape, array.dtype) for array in arrays)
