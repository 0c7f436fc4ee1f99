"""What comes out of a model: the outputs of a batch become the results of its requests.

A postprocessor is called with the model's outputs, each with one row for each request, and the requests:

    def top_three(outputs, batch):
        return [scores.argsort()[-3:] for scores in outputs[0]]

It returns a list with one result for each request (a tuple or an array will do), or None if it has filled the requests
itself. Those with options are in the other files here; this one finds them by their names.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpipe.contract import Request
from fastpipe.errors import BackendError, ConfigError, nearest
from fastpipe.summaries import summarize

from .detectors import Detr, Nms, RtDetr, YoloV5, YoloV8, YoloV10
from .head import Head, build_head, check_inputs, check_outputs
from .instance_masks import YoloV5Seg, YoloV8Seg
from .key_points import YoloV8Pose
from .rotated_boxes import NmsRotated, YoloV8Obb
from .without_boxes import CosineSimilarity, CtcGreedy, L2Normalize, MeanPooling, TopK

__all__ = [
    "Postprocessor",
    "Preparation",
    "find_postprocessor",
    "has_a_row_each",
    "is_built_in",
    "on_cpu",
    "parts_of",
    "postprocess",
    "preparation_of",
    "softmax_cpu",
]

Postprocessor = Callable[[list[Any], list[Request]], Sequence[Any] | None]


def find_postprocessor(
    given: str | Mapping[str, Any] | Postprocessor,
    output_shapes: Sequence[Sequence[Any]],
    input_names: Sequence[str] | None = None,
) -> Postprocessor:
    """Return the postprocessor of that name (in any case), or the callable itself.

    Args:
        given: a name, such as ``split`` or ``YoloV8``; a mapping with ``name`` and the options of one that has some; or
            a callable.
        output_shapes: of the model's outputs, as declared; ``()`` where nothing is.
        input_names: of the inputs that requests bring; None: they are not known.

    Raises:
        ConfigError: if there is no such name or option, or it needs a model of another kind.
    """
    if isinstance(given, Head):
        check_outputs(given, output_shapes)
        check_inputs(given, input_names)
    if not isinstance(given, str | Mapping):
        return given
    options = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"postprocessor must have a name, as in {{name = 'YoloV8'}}, got {summarize(given)}")
    kind = _KINDS.get(name.lower())
    if kind is not None:
        head = build_head(kind, options, output_shapes)
        check_inputs(head, input_names)
        return head
    found = _BY_NAME.get(name.lower())
    if found is None:
        raise ConfigError(f"no postprocessor is named {name!r}{nearest(name, _NAMES)}")
    if options:
        raise ConfigError(f"postprocessor {name!r} has no options, got {', '.join(map(str, options))}")
    return _checked(name, found, output_shapes)


def has_a_row_each(postprocessor: Postprocessor) -> bool:
    """Say whether a postprocessor is one of ours that needs outputs with a row for each request."""
    return isinstance(postprocessor, Head) or any(known is postprocessor for known in (softmax_max, softmax_arg_max))


def is_built_in(given: Any) -> bool:
    """Say whether a postprocessor is one of ours, which changes nothing that a request has brought."""
    return isinstance(given, str | Mapping | Head)


def _checked(given: str, found: Postprocessor, output_shapes: Sequence[Sequence[Any]]) -> Postprocessor:
    if found in (softmax_max, softmax_arg_max):
        shape = tuple(output_shapes[0])
        if len(output_shapes) != 1 or (shape and (len(shape) < 2 or any(size != 1 for size in shape[2:]))):
            shapes = ", ".join(str(tuple(shape)) for shape in output_shapes)
            raise ConfigError(
                f"postprocessor={given!r} needs a model with one output, (batch, classes); this one has {shapes}"
            )
    return found


def postprocess(postprocessor: Postprocessor, outputs: list[Any], batch: list[Request]) -> None:
    """Fill ``request["result"]`` of a batch.

    Raises:
        BackendError: if the postprocessor returned anything but one result for each request, in an order.
    """
    results = postprocessor(outputs, batch)
    if results is None:
        return
    # By its type, too: of a dict, a set or a text, the length alone could be right, and callers would get its keys, or
    # each other's results.
    if type(results) is not list and not _is_list_like(results):
        kind = type(results).__name__
        advice = f"; list(...) makes one of a {kind}" if isinstance(results, Iterator | ValuesView) else ""
        raise BackendError(
            f"the postprocessor returned a {kind} for {len(batch)} requests: "
            f"expected a list with a result for each of them, in their order, or None{advice}"
        )
    if len(results) != len(batch):
        raise BackendError(
            f"the postprocessor returned {len(results)} results for {len(batch)} requests: expected one for each"
        )
    for request, result in zip(batch, results, strict=True):
        request["result"] = result


def _is_list_like(results: Any) -> bool:
    """Say whether it has an order and a length: a list, a tuple, or an array of at least one axis."""
    if isinstance(results, str | bytes | bytearray | memoryview):
        return False
    if hasattr(results, "__dlpack__"):  # arrays of every library, and no tables, whose elements are their columns
        return len(getattr(results, "shape", ())) > 0
    return isinstance(results, Sequence)


def split(outputs: list[Any], batch: list[Request]) -> list[Any]:
    """Give each request its row of every output, with a batch axis of 1: an array, or a list where there are several.

    The rows of a batch are views of one array, but torch's on the CPU are copies: who pickles or saves a tensor writes
    down all of its memory, which would be others' rows. On a GPU a copy for each row would cost more than many models
    do. A request alone gets the outputs whole, also those without rows.
    """
    if len(batch) == 1:
        return [outputs[0] if len(outputs) == 1 else list(outputs)]
    rows = [parts_of(output, None, len(batch)) for output in outputs]
    return rows[0] if len(outputs) == 1 else [list(each) for each in zip(*rows, strict=True)]


def cpu(outputs: list[Any], batch: list[Request]) -> list[Any]:
    """Do as ``split``, with the results on the CPU."""
    return split([on_cpu(output) for output in outputs], batch)


def softmax_cpu(outputs: list[Any], batch: list[Request]) -> list[Any]:
    """Do as ``cpu``, with a softmax over the classes of outputs of shape (batch, classes); others are left alone."""
    return split([_softmax_or_as_it_is(output) for output in outputs], batch)


def softmax_max(outputs: list[Any], batch: list[Request]) -> list[Any]:
    """Give each request ``[class, probability]``, two floats, for its most likely class."""
    classes, probabilities = _most_likely(outputs)
    return [[float(number), probability] for number, probability in zip(classes, probabilities, strict=True)]


def softmax_arg_max(outputs: list[Any], batch: list[Request]) -> list[Any]:
    """Give each request the number of its most likely class, also as ``class``, and its probability as ``score``."""
    classes, probabilities = _most_likely(outputs)
    for request, number, probability in zip(batch, classes, probabilities, strict=True):
        request["class"] = number
        request["score"] = probability
    return classes


_BY_NAME: dict[str, Postprocessor] = {
    "split": split,
    "cpu": cpu,
    "softmaxcpu": softmax_cpu,
    "softmaxmax": softmax_max,
    "softmaxargmax": softmax_arg_max,
}
_HEADS: dict[str, type[Head]] = {
    "YoloV5": YoloV5,
    "YoloV6": YoloV5,
    "YoloV7": YoloV5,
    "YoloV8": YoloV8,
    "YoloV9": YoloV8,
    "YoloV10": YoloV10,
    "YoloV11": YoloV8,
    "YoloV8Obb": YoloV8Obb,
    "YoloV11Obb": YoloV8Obb,
    "YoloV5Seg": YoloV5Seg,
    "YoloV7Seg": YoloV5Seg,
    "YoloV8Seg": YoloV8Seg,
    "YoloV9Seg": YoloV8Seg,
    "YoloV11Seg": YoloV8Seg,
    "YoloV8Pose": YoloV8Pose,
    "YoloV11Pose": YoloV8Pose,
    "RtDetr": RtDetr,
    "Detr": Detr,
    "Nms": Nms,
    "NmsRotated": NmsRotated,
    "TopK": TopK,
    "CtcGreedy": CtcGreedy,
    "MeanPooling": MeanPooling,
    "L2Normalize": L2Normalize,
    "CosineSimilarity": CosineSimilarity,
}
_KINDS = {name.lower(): kind for name, kind in _HEADS.items()}
_NAMES = ("split", "cpu", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax", *_HEADS)


def parts_of(output: Any, counts: Sequence[int] | None, number: int) -> list[Any]:
    """Return what each of some requests has of an output with their rows in front.

    Views, but copies of torch's tensors on the CPU: see ``split``.

    Args:
        output: of NumPy or torch.
        counts: how many rows each has; None: one.
        number: of the requests.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(output, torch.Tensor):
        if counts is None:
            return [output[row : row + 1] for row in range(number)]
        ends = itertools.accumulate(counts, initial=0)
        return [output[first:last] for first, last in itertools.pairwise(ends)]
    # In one call: a slice of torch's takes microseconds.
    views = output[:number].split(1) if counts is None else output.split(list(counts))
    return list(views) if output.is_cuda else [view.clone() for view in views]


class Preparation:
    """What a postprocessor that gives each request its rows does to an output before.

    Args:
        change: the output, with the requests in front -> the same number of rows.
        is_on_cpu: its results are on the CPU.
    """

    def __init__(self, change: Callable[[Any], Any] | None, *, is_on_cpu: bool) -> None:
        self._change, self.is_on_cpu = change, is_on_cpu

    def __call__(self, output: Any) -> Any:
        """Return the output as it is handed out."""
        return output if self._change is None else self._change(output)


def preparation_of(postprocessor: Postprocessor) -> Preparation | None:
    """Return what a postprocessor does that gives each request its rows; None: it does something else."""
    # A callable of the user's need not be hashable.
    return next((found for known, found in _PREPARATIONS.items() if known is postprocessor), None)


def on_cpu(output: Any) -> Any:
    """Return an output on the CPU."""
    return output if isinstance(output, np.ndarray) else output.cpu()


def _softmax_or_as_it_is(output: Any) -> Any:
    return _softmax(output) if output.ndim == 2 else on_cpu(output)


_PREPARATIONS: dict[Any, Preparation] = {
    split: Preparation(None, is_on_cpu=False),
    cpu: Preparation(on_cpu, is_on_cpu=True),
    softmax_cpu: Preparation(_softmax_or_as_it_is, is_on_cpu=True),
}


def _softmax(scores: Any) -> Any:
    """Return the softmax over axis 1 as float32, on the CPU, as the kind of array that ``scores`` is."""
    if not isinstance(scores, np.ndarray):
        return scores.float().softmax(1).cpu()
    # In float32 also for float16 scores, whose exponentials would not add up to 1.
    exponentials = np.exp(scores.astype(np.float32) - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _most_likely(outputs: list[Any]) -> tuple[list[int], list[float]]:
    scores = outputs[0]
    if len(outputs) != 1 or scores.ndim < 2 or any(size != 1 for size in scores.shape[2:]):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise BackendError(f"a class can be chosen only from one output of shape (batch, classes), got {shapes}")
    probabilities: npt.NDArray[np.float32] = np.asarray(_softmax(scores.reshape(scores.shape[:2])))
    classes = probabilities.argmax(axis=1)
    return classes.tolist(), probabilities[np.arange(len(classes)), classes].tolist()
