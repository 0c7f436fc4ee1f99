"""What an exported program says of itself: its inputs, the sizes that it was exported for, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fastpipe.errors import ConfigError

from .shapes import InputSpec
from .torch_rows import FLAT_OUTPUTS, ProgramOutput, outputs_of

__all__ = ["Program", "SizeRules", "read_program"]

Range = tuple[int, int | None]
_ENDLESS = 2**62  # from here on torch means that there is no largest


class _Axis(NamedTuple):
    """The size of an axis that is open: ``factor * symbol + offset``."""

    symbol: str
    factor: int
    offset: int
    range: Range  # of the symbol

    def range_of_size(self) -> Range:
        low, high = (None if end is None else self.factor * end + self.offset for end in self.range)
        return low or 0, high


class SizeRules:
    """Which sizes the axes of a program's items may have, and which of them belong together.

    Torch checks some of this when the program runs, for a whole batch at once, and some of it never.

    Thread-safety: any thread may call it.
    """

    def __init__(self, axes: Sequence[Mapping[int, _Axis | None]], specs: Sequence[InputSpec]) -> None:
        self._axes = axes  # of each input, its open axes, by their index; None: of no simple kind
        self._specs = specs

    def with_specs(self, specs: Sequence[InputSpec]) -> SizeRules:
        """Return the rules for the same inputs, where it is known on which axis they have the batch."""
        return SizeRules(self._axes, specs)

    def batch_problem(self) -> str:
        """Return why requests cannot be joined along the batch axis; nothing if they can."""
        for spec, axes in zip(self._specs, self._axes, strict=True):
            if spec.axis is None or spec.axis not in axes:
                continue
            axis = axes[spec.axis]
            if axis is None or (axis.factor, axis.offset) != (1, 0):
                return (
                    f"input {spec.name!r} takes batches of {spec.shape[0]} only; export the program with a batch axis "
                    f"of its own, Dim('batch'), or run one request at a time, as it comes, with max=1"
                )
        return ""

    def misfit(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, str] | None:
        """Return which input has a size that cannot be, and what it should be in words; or None.

        Args:
            shapes: of each input's item, without the batch axis, with as many axes as the program has.
        """
        found: dict[str, tuple[int, str]] = {}  # symbol -> its value, and where that is from
        for index, (spec, axes, shape) in enumerate(zip(self._specs, self._axes, shapes, strict=True)):
            for number, axis in axes.items():
                if axis is None or number == spec.axis:
                    continue
                size = shape[number if spec.axis is None or number < spec.axis else number - 1]
                value, rest = divmod(size - axis.offset, axis.factor)
                low, high = axis.range
                if rest or value < low or (high is not None and value > high):
                    return index, f"{_in_words(axis)} in axis {number}, as it was exported for, not {size}"
                here = f"axis {number} of {spec.name!r}"
                value_there, there = found.setdefault(axis.symbol, (value, here))
                if value_there != value:
                    wanted = axis.factor * value_there + axis.offset
                    return index, f"{wanted} in axis {number}, which goes with {there}, not {size}"
        return None


class Program(NamedTuple):
    """An exported program, ready to be run."""

    module: torch.nn.Module
    names: list[str]
    specs: list[InputSpec]
    dtypes: list[torch.dtype]
    rules: SizeRules
    arrange: Callable[[Any], Callable[..., Any]] | None  # makes of the module what is called with tensors alone
    outputs: list[ProgramOutput]


def read_program(program: Any, device: torch.device) -> Program:
    """Return a program on a device, and what it says of its inputs.

    Args:
        program: a ``torch.export.ExportedProgram``.
        device: where it is to run.

    Raises:
        ConfigError: if it cannot be run in batches of tensors.
    """
    from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
    from torch.export.passes import move_to_device_pass

    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    leaves: list[Any] = []  # what it is called with: a constant, or _HERE for the next tensor
    names, specs, dtypes, items = [], [], [], []
    ranges = {str(symbol): _range(found) for symbol, found in program.range_constraints.items()}
    for given in program.graph_signature.input_specs:
        if given.kind != InputKind.USER_INPUT:
            continue
        if isinstance(given.arg, ConstantArgument):
            leaves.append(given.arg.value)
            continue
        value = values.get(given.arg.name)
        if not isinstance(given.arg, TensorArgument) or not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"its input {given.arg.name!r} is a number that changes; inputs have to be tensors: make it one, or "
                f"export the program with a fixed number"
            )
        leaves.append(_HERE)
        names.append(given.arg.name)
        dtypes.append(value.dtype)
        axes = {index: _axis(size, ranges) for index, size in enumerate(value.shape) if not isinstance(size, int)}
        specs.append(
            InputSpec(
                given.arg.name,
                np.dtype(np.float32),  # not asked for: the types are torch's
                tuple(size if isinstance(size, int) else str(size) for size in value.shape),
                tuple(_range_of_size(size, axes.get(index)) for index, size in enumerate(value.shape)),
            )
        )
        items.append(axes)
    in_spec, arrange = program.call_spec.in_spec, None
    _put_together(in_spec, "inputs")
    output_names = _output_names(_put_together(program.call_spec.out_spec, "outputs"))
    if in_spec != pytree.tree_structure(((0,) * len(names), {})):
        arrange = partial(_arranged, in_spec=in_spec, leaves=leaves)
    module = move_to_device_pass(program, device).module()
    outputs = outputs_of(program, output_names)
    return Program(module, names, specs, dtypes, SizeRules(items, specs), arrange, outputs)


_HERE = object()


def _arranged(module: Any, in_spec: Any, leaves: Sequence[Any]) -> Callable[..., Any]:
    """Return a program whose inputs are nested, given by keyword, or no tensors, as one of tensors alone."""

    def run(*tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        given = [next(rest) if leaf is _HERE else leaf for leaf in leaves]
        arguments, keywords = pytree.tree_unflatten(given, in_spec)
        return module(*arguments, **keywords)

    return run


def _put_together(spec: Any, what: str) -> Any:
    """Return a program's inputs or outputs as they are nested, with ``_HERE`` in the place of each.

    Raises:
        ConfigError: if torch cannot do that with them; a dict's key that is a tuple is a list after it was saved.
    """
    try:
        return pytree.tree_unflatten([_HERE] * spec.num_leaves, spec)
    except Exception as error:  # whatever torch makes of what it has read
        raise ConfigError(
            f"its {what} cannot be put together as they were exported: {error}; if a dict is among them, its keys have "
            f"to be texts or numbers"
        ) from error


def _output_names(outputs: Any) -> list[int | str]:
    named = outputs if isinstance(outputs, dict) else dict(enumerate(outputs if _is_listed(outputs) else [outputs]))
    for name, output in named.items():
        if output is not _HERE:
            raise ConfigError(f"output {name!r} is a {type(output).__name__} of outputs: {FLAT_OUTPUTS}")
    return list(named)


def _is_listed(outputs: Any) -> bool:
    return isinstance(outputs, list | tuple)


def _axis(size: Any, ranges: Mapping[str, Range]) -> _Axis | None:
    """Return the size of an open axis as it is computed; None if it is not of that simple kind."""
    expression = size.node.expr
    if len(expression.free_symbols) != 1:
        return None
    (symbol,) = expression.free_symbols
    factor, offset = expression.coeff(symbol), expression.subs(symbol, 0)
    if not factor.is_Integer or not offset.is_Integer or int(factor) < 1 or expression != factor * symbol + offset:
        return None
    return _Axis(str(symbol), int(factor), int(offset), ranges.get(str(symbol), (0, None)))


def _range(found: Any) -> Range:
    low, high = (int(end) if end.is_Integer else None for end in (found.lower, found.upper))
    return low or 0, None if high is None or high >= _ENDLESS else high


def _range_of_size(size: Any, axis: _Axis | None) -> Range:
    if isinstance(size, int):
        return size, size
    return (0, None) if axis is None else axis.range_of_size()


def _in_words(axis: _Axis) -> str:
    low, high = axis.range_of_size()
    steps = f" in steps of {axis.factor}" if axis.factor > 1 else ""
    return f"{low} or more{steps}" if high is None else f"{low} to {high}{steps}"
