"""What postprocessors with options share: an object that checks its options, the model's outputs, and their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import numpy as np
import numpy.typing as npt

from fastpipe.config.values import BadValue, coerce
from fastpipe.contract import Between, Request
from fastpipe.errors import BackendError, ConfigError, KernelError, nearest
from fastpipe.summaries import summarize

from ..reader import UnfitError

__all__ = ["Floats", "Head", "OneOutputHead", "build_head", "check_inputs", "check_outputs", "may_be"]

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Head(ABC):
    """Base: called with a model's outputs and the requests of a run, as every postprocessor; fills the requests.

    A subclass is a frozen dataclass whose fields are its options, converted and checked by their annotations, as a
    backend's parameters are. It computes on the CPU, in NumPy, whatever arrays the model gives, and what it sets in a
    request shares no memory with them.

    Raises:
        ConfigError: if an option has no value that fits.

    Thread-safety: it has no state of its own; any thread may call it.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        problems = []
        for option in fields(self):
            try:
                object.__setattr__(self, option.name, coerce(getattr(self, option.name), hints[option.name]))
            except BadValue as problem:
                problems.append(f"postprocessor {type(self).__name__}: {option.name} {problem}")
        if problems:
            raise ConfigError(*problems)

    @abstractmethod
    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        """Return why outputs of these shapes are not what it reads; nothing if they are, or may be.

        Args:
            shapes: of the outputs; a size that is not known before a run is no ``int``.
        """

    @abstractmethod
    def fill(self, request: Request, rows: list[Floats]) -> None:
        """Set the request's ``result``, given its row of each output: float32, without the batch axis.

        Raises:
            KernelError: if the request has not what is needed: it fails alone.
        """

    def problem_of_inputs(self, names: Sequence[str]) -> str:
        """Return what it reads of a request that is none of the inputs of these names; nothing if all of it is."""
        return ""

    def used(self, outputs: Sequence[Any]) -> Sequence[Any]:
        """Return those of the outputs that are read."""
        return outputs

    def __call__(self, outputs: list[Any], batch: list[Request]) -> None:
        """Fill the requests of a run.

        Raises:
            BackendError: if the outputs are not what it reads.
            UnfitError: for the requests that have not what it needs.
        """
        shapes = [tuple(output.shape) for output in outputs]
        problem = self.problem(shapes)
        if problem:
            raise BackendError(f"postprocessor {type(self).__name__}: {problem}")
        used = self.used(outputs)
        for output in used:
            if len(output) != len(batch):
                raise BackendError(
                    f"postprocessor {type(self).__name__}: expected outputs with a row for each of {len(batch)} "
                    f"requests, got shape {tuple(output.shape)}"
                )
        arrays = [_on_cpu(output) for output in used]
        errors: dict[int, KernelError] = {}
        for row, request in enumerate(batch):
            try:
                with np.errstate(all="ignore"):  # a network's numbers may be infinite; what is none is left out
                    self.fill(request, [array[row] for array in arrays])
            except KernelError as error:
                # Its traceback would hold this frame, and with it the whole batch, for as long as somebody keeps it.
                errors[row] = error.with_traceback(None)
        if errors:
            raise UnfitError(errors)


@dataclass(frozen=True, kw_only=True, eq=False)
class OneOutputHead(Head):
    """Base: reads one output of the model, and leaves others alone.

    Args:
        output: which; 0 is the first.
    """

    output: Annotated[int, Between(0, 65535)] = 0

    def problem(self, shapes: Sequence[Sequence[Any]]) -> str:
        if self.output >= len(shapes):
            return f"expected an output of number {self.output} (0 is the first), the model has {len(shapes)}"
        return self.problem_of(shapes[self.output])

    @abstractmethod
    def problem_of(self, shape: Sequence[Any]) -> str:
        """Return why an output of this shape is not what it reads; nothing if it is, or may be."""

    def used(self, outputs: Sequence[Any]) -> Sequence[Any]:
        return [outputs[self.output]]


def may_be(size: Any, expected: Any) -> bool:
    """Say whether a size of a shape is, or may be, the expected one; what is no ``int`` is not known."""
    return not (isinstance(size, int) and isinstance(expected, int)) or size == expected


def build_head(kind: type[Head], options: Mapping[str, Any], shapes: Sequence[Sequence[Any]]) -> Head:
    """Return a postprocessor with these options, for a model with outputs of these shapes (``()``: not known).

    Raises:
        ConfigError: if it has no such option, or a value does not fit, or the model's outputs do not.
    """
    known = [option.name for option in fields(kind)]
    listed = ", ".join(known)
    problems = [
        f"postprocessor {kind.__name__} has no option {summarize(name)}, only {listed}{nearest(name, known)}"
        for name in options
        if name not in known
    ]
    if problems:
        raise ConfigError(*problems)
    head = kind(**options)
    check_outputs(head, shapes)
    return head


def check_outputs(head: Head, shapes: Sequence[Sequence[Any]]) -> None:
    """Refuse a model whose outputs, as far as their shapes are declared, are not what the postprocessor reads.

    Raises:
        ConfigError: with the shapes expected and got.
    """
    problem = head.problem(shapes) if all(len(shape) for shape in shapes) else ""
    if problem:
        raise ConfigError(f"postprocessor {type(head).__name__}: {problem}")


def check_inputs(postprocessor: Any, names: Sequence[str] | None) -> None:
    """Refuse a postprocessor that reads an input of the request which the model does not have.

    Args:
        postprocessor: any.
        names: of the inputs that requests bring, in the model's order; None: they are not known.

    Raises:
        ConfigError: with the names that there are.
    """
    problem = postprocessor.problem_of_inputs(names) if isinstance(postprocessor, Head) and names is not None else ""
    if problem:
        raise ConfigError(f"postprocessor {type(postprocessor).__name__}: {problem}")


def _on_cpu(output: Any) -> Floats:
    """Return an output as float32 in NumPy; perhaps the same memory."""
    if not isinstance(output, np.ndarray):
        output = output.detach().cpu().float().numpy()  # NumPy knows no bfloat16
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is no box and no score
        return np.asarray(output, np.float32)
