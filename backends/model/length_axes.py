"""Which axes of a model are padded, with what, and which of its outputs have the length: read of the model, or said.

The model's own names come first: an axis that is open, and called ``seq`` in every input that has it, is the length,
and an output's axis of that name is cut. What the names leave open is said by the table ``pad``; what an output does is
also seen in the trials, see ``length_proof``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from fastpipe.errors import ConfigError, nearest
from fastpipe.summaries import summarize

from ..kinds import TEXT
from .axes import in_place
from .length_sizes import Cut
from .shapes import InputSpec, Profile

__all__ = ["LENGTH_NAMES", "MASK_NAMES", "LengthAxes", "Pad", "read_pad"]

MASK_NAMES = ("attention_mask", "input_mask")
"""Inputs that are taken for the mask, if none is named: 1 for each element of the request, 0 for padding."""

LENGTH_NAMES = ("input_lengths", "lengths", "length")
"""The same for the length."""

MOST_PADDING = 0.15
"""Share of a batch that may be padding, if nothing is said: more costs more than most models gain by company."""

_LARGEST_LENGTH = (1 << 31) - 1

Names = Mapping[str, Any]


@dataclass(frozen=True)
class Pad:
    """What is written as ``pad`` and ``max_tokens``.

    Args:
        to: ``"longest"`` of the batch, or the lengths that there are.
        axis: which is padded, with the batch as number 0: a number, a name of the model's, or either by input.
        value: with what: one number, or by input. A mask is padded with 0.
        mask: the input that says what is no padding.
        length: the input that has the length.
        outputs: by output, the axis that depends on the length, or a list of them; [] for none.
        max_padding: the greatest share of a batch that may be padding, where it is padded to the longest.
        max_tokens: requests times the padded length, at most.
    """

    to: Literal["longest"] | Sequence[int]
    axis: int | str | Names | None = None
    value: float | Names = 0
    mask: str | None = None
    length: str | None = None
    outputs: Names = field(default_factory=dict)
    max_padding: float = MOST_PADDING
    max_tokens: int | None = None


def read_pad(pad: Any, max_tokens: int | None) -> Pad | None:
    """Return what is written; None: nothing is padded.

    Raises:
        ConfigError: if it is no such thing; the message has the key, expected and got.
    """
    if pad is None:
        if max_tokens is not None:
            raise ConfigError("max_tokens: it bounds what is padded, so it needs pad, such as pad='longest'")
        return None
    options = dict(pad) if isinstance(pad, Mapping) else {"to": pad}
    known = [option.name for option in fields(Pad) if option.name != "max_tokens"]
    if wrong := [
        f"pad: it has no {summarize(name)}, only {', '.join(known)}{nearest(name, known)}"
        for name in options
        if name not in known
    ]:
        raise ConfigError(*wrong)
    if "to" not in options:
        raise ConfigError("pad: expected to = 'longest' or a list of lengths in it")
    to = options.pop("to")
    is_longest = isinstance(to, str) and to.lower() == "longest"
    share = options.get("max_padding", MOST_PADDING)
    if not _is_number(share) or not 0 <= share <= 1:
        raise ConfigError(f"pad.max_padding: expected a number from 0 to 1, got {summarize(share)}")
    if not isinstance(options.get("outputs", {}), Mapping):
        raise ConfigError(
            f"pad.outputs: expected a table with the axes of each output that have the length, such as "
            f"{{ hidden = 1 }}, or {{ hidden = [] }} for one that has it nowhere, got {summarize(options['outputs'])}"
        )
    return Pad("longest" if is_longest else _buckets(to, max_tokens), max_tokens=max_tokens, **options)


def _buckets(to: Any, max_tokens: int | None) -> tuple[int, ...]:
    is_list = isinstance(to, list | tuple) and len(to) > 0
    if not is_list or not all(_is_whole(size) and 0 < size <= _LARGEST_LENGTH for size in to):
        raise ConfigError(f"pad: expected 'longest' or a list of lengths, such as [32, 64, 128], got {summarize(to)}")
    buckets = tuple(sorted(set(to)))
    if max_tokens is not None and buckets[-1] > max_tokens:
        raise ConfigError(
            f"pad: no request of length {buckets[-1]} could run with max_tokens={max_tokens}: raise that, or take the "
            f"longer lengths out"
        )
    return buckets


@dataclass
class LengthAxes:
    """What is padded in a model's inputs and cut in its outputs.

    Axes of inputs are counted without the batch, those of outputs with the batch in front, wherever the model has it;
    what is written, and what messages say, is as the model has them.
    """

    names: list[str]  # of the inputs
    specs: list[InputSpec]
    of_inputs: list[int | None]  # the axis of each that is padded
    values: list[float]
    mask: int | None  # which input it is
    length: int | None
    output_names: list[str | int]
    of_outputs: list[tuple[Cut, ...] | None]  # (): it has no axis that is cut. None: not known, so it is not cut
    buckets: tuple[int, ...]  # (): to the longest
    max_tokens: int | None
    max_padding: float
    said: Names = field(default_factory=dict)  # pad.outputs
    batch_axes: Names = field(default_factory=dict)  # of outputs that do not have the batch in front, by name

    @property
    def fixed(self) -> int | None:
        """The one length that the model takes; None: it takes several."""
        for spec, axis in zip(self.specs, self.of_inputs, strict=True):
            size = None if axis is None else spec.shape[axis + 1]
            if isinstance(size, int):
                return size
        return None

    def input_place(self, index: int) -> str:
        """Return the input and the axis that is padded, in words."""
        return f"input {self.names[index]!r}, axis {self.specs[index].model_axis(self.of_inputs[index] or 0)}"

    def output_axes(self, name: str | int, axes: Sequence[int]) -> list[int]:
        """Return axes of an output as the model has them."""
        batch = self.batch_axes.get(str(name), 0)
        return [axis if axis > batch else axis - 1 for axis in axes]

    def target(self, length: int) -> int | None:
        """Return what a length is padded to: 0, the longest of its run; None: there is no bucket as long."""
        if not self.buckets:
            return 0
        return next((bucket for bucket in self.buckets if bucket >= length), None)

    def is_within(self, count: int, own: int, longest: int, *, has_target: bool) -> bool:
        """Say whether so many requests, ``own`` long together, may be padded to ``longest`` in one run."""
        padded = count * longest
        if padded > (self.max_tokens or sys.maxsize):
            return False
        return has_target or padded - own <= self.max_padding * padded

    def said_of(self, names: Sequence[str | int]) -> list[tuple[Cut, ...] | None]:
        """Return what is said of the axes of outputs with these names, which were not known before."""
        return _output_axes(self.said, [(name, None) for name in names], None, self.batch_axes)

    def opened(
        self, specs: Sequence[InputSpec], profiles: Sequence[Profile]
    ) -> tuple[list[InputSpec], tuple[Profile, ...]]:
        """Return what requests may be where the model has one length, and they may be shorter."""
        open_specs, limits = [], []
        for index, (spec, axis) in enumerate(zip(specs, self.of_inputs, strict=True)):
            of_profiles = [list(profile.limits[index]) for profile in profiles]
            if axis is not None and isinstance(size := spec.shape[axis + 1], int):
                shape = [*spec.shape]
                shape[axis + 1] = "length"
                spec = replace(spec, shape=tuple(shape))
                for each in of_profiles:
                    each[axis] = (1, size)
            open_specs.append(spec)
            limits.append(of_profiles)
        return open_specs, tuple(
            [
                replace(profile, limits=tuple([tuple(each[number]) for each in limits]))
                for number, profile in enumerate(profiles)
            ]
        )

    def check(self, profiles: Sequence[Profile]) -> None:
        """Raise ConfigError if the model takes nothing as long as what is padded to."""
        if self.fixed is not None and self.buckets != (self.fixed,):
            index = next(index for index, axis in enumerate(self.of_inputs) if axis is not None)
            raise ConfigError(
                f"pad: {self.input_place(index)}: expected "
                f"[{self.fixed}], the length that the model has, got {list(self.buckets) or 'longest'}"
            )
        for index, axis in enumerate(self.of_inputs):
            if axis is None or not self.buckets:
                continue
            highs = [profile.limits[index][axis][1] for profile in profiles]
            most = max([high for high in highs if high is not None], default=None)
            if None not in highs and most is not None and self.buckets[-1] > most:
                raise ConfigError(
                    f"pad: {self.input_place(index)}: expected lengths of at most {most}, as max "
                    f"and the model have it, got {self.buckets[-1]}"
                )

    def made(self, index: int, length: int) -> Any:
        """Return an input that is made for a request of that length: the mask, or the length."""
        spec, axis = self.specs[index], self.of_inputs[index]
        if index == self.length:
            return np.full(spec.shape[1:], length, spec.dtype)
        return np.ones([length if number == axis else 1 for number in range(len(spec.shape) - 1)], spec.dtype)

    def padded(self, index: int, array: Any, target: int, batch_axis: int | None) -> Any:
        """Return an input of a request, of NumPy or torch, as long as ``target``; it may be the same.

        ``batch_axis`` is where the array has the batch; None: nowhere.
        """
        axis = self.of_inputs[index]
        if axis is None:
            return array
        axis += batch_axis is not None and axis >= batch_axis
        shape = list(array.shape)
        before, shape[axis] = shape[axis], target
        value = self.values[index]
        if isinstance(array, np.ndarray):
            dtype = self._holding(index, array.dtype, value)  # of all requests, whether they need padding or not
            if before == target:
                return array.astype(dtype, copy=False)
            padded = np.full(shape, value, dtype)
            padded[(slice(None),) * axis + (slice(before),)] = array
            return padded
        if not array.is_floating_point() and not _holds(np.dtype(str(array.dtype).removeprefix("torch.")), value):
            array = array.double() if self.specs[index].dtype.kind == "f" else array.long()
        if before == target:
            return array
        tensor = array.new_full(shape, value)
        tensor.narrow(axis, 0, before).copy_(array)
        return tensor

    def _holding(self, index: int, given: np.dtype[Any], value: float) -> np.dtype[Any]:
        """Return a type in which a request's numbers can stand beside the value."""
        if _holds(given, value):
            return given
        own = self.specs[index].dtype
        return np.dtype(np.float64) if own.kind == "f" else own

    def cut(self, outputs: Sequence[Any], length: int, target: int) -> list[Any]:
        """Return the outputs of requests of one length, as they would be without the padding."""
        cut = []
        for output, axes in zip(outputs, self.of_outputs, strict=True):
            for each in axes or ():
                if each.axis < output.ndim and output.shape[each.axis] == each.size(target):
                    output = output[(slice(None),) * each.axis + (slice(each.size(length)),)]
            cut.append(output)
        return cut

    @classmethod
    def of(
        cls,
        pad: Pad,
        specs: Sequence[InputSpec],
        outputs: Sequence[tuple[str | int, Sequence[Any] | None]],
        batch_axes: Names,
    ) -> LengthAxes:
        """Return what is padded in a model.

        Args:
            pad: what is written.
            specs: the model's inputs.
            outputs: of each its name, and its shape with names for open axes, the batch first; None: not known.
            batch_axes: of those that do not have the batch in front, the axis, by name.

        Raises:
            ConfigError: if the model does not fit, or leaves open what has to be said.
        """
        names = [spec.name for spec in specs]
        axes, symbol = _input_axes(pad, specs)
        mask = _role(pad.mask, "mask", MASK_NAMES, specs, axes)
        length = _role(pad.length, "length", LENGTH_NAMES, specs, axes)
        if all(axis is None for index, axis in enumerate(axes) if index != mask):
            raise ConfigError(f"pad: no input would be padded but the mask: name its axis in pad.axis; {_open(specs)}")
        of_outputs = _output_axes(pad.outputs, outputs, symbol, batch_axes)
        return cls(
            names=names,
            specs=list(specs),
            of_inputs=axes,
            values=_values(pad, specs, axes, mask),
            mask=mask,
            length=length,
            output_names=[name for name, _ in outputs],
            of_outputs=of_outputs,
            buckets=() if pad.to == "longest" else tuple(pad.to),
            max_tokens=pad.max_tokens,
            max_padding=pad.max_padding,
            said=pad.outputs,
            batch_axes=batch_axes,
        )


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Say whether a type has a number."""
    if dtype.kind not in "biu":
        return True
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value == int(value) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _open(specs: Sequence[InputSpec]) -> str:
    """Return the axes that are open, in words."""
    found = [
        f"axis {spec.model_axis(axis)} of {spec.name!r}" + (f" ({size})" if size != "?" else "")
        for spec in specs
        for axis, size in enumerate(spec.shape[1:])
        if isinstance(size, str)
    ]
    return f"open are {', '.join(found)}" if found else "no axis but the batch is open"


def _input_axes(pad: Pad, specs: Sequence[InputSpec]) -> tuple[list[int | None], str | None]:
    """Return the padded axis of each input, and the name that it has; None: it has none, or several."""
    names = [spec.name for spec in specs]
    if isinstance(pad.axis, Mapping):
        _check_names("pad.axis", pad.axis, names, "input")
        axes = [_axis_of(spec, pad.axis[spec.name]) if spec.name in pad.axis else None for spec in specs]
    elif pad.axis is not None:
        if isinstance(pad.axis, str) and not any(pad.axis in spec.shape[1:] for spec in specs):
            known = sorted({str(size) for spec in specs for size in spec.shape[1:] if isinstance(size, str)})
            raise ConfigError(f"pad.axis: no input has an axis {pad.axis!r}{nearest(pad.axis, known)}; {_open(specs)}")
        axes = [
            _axis_of(spec, pad.axis)
            if (pad.axis in spec.shape[1:] if isinstance(pad.axis, str) else len(spec.shape) > 1)
            else None
            for spec in specs
        ]
    else:
        axes = _axes_by_name(specs)
    symbols = {spec.shape[axis + 1] for spec, axis in zip(specs, axes, strict=True) if axis is not None}
    symbol = next(iter(symbols)) if len(symbols) == 1 else None
    return axes, symbol if isinstance(symbol, str) and symbol != "?" else None


def _axes_by_name(specs: Sequence[InputSpec]) -> list[int | None]:
    """Return the axis of each input that is open, where one name, or one axis in each input, leaves no doubt."""
    opened = [[axis for axis, size in enumerate(spec.shape[1:]) if isinstance(size, str)] for spec in specs]
    symbols = {spec.shape[axis + 1] for spec, found in zip(specs, opened, strict=True) for axis in found}
    if not symbols:
        raise ConfigError("pad: expected an input with an open axis, got none; pad.axis may name one that is fixed")
    if len(symbols) > 1 or any(len(found) > 1 for found in opened):
        raise ConfigError(f"pad: several axes may be the length: name it in pad.axis; {_open(specs)}")
    return [found[0] if found else None for found in opened]


def _axis_of(spec: InputSpec, axis: Any) -> int:
    """Return an axis of an input, without the batch, of its number or its name."""
    if isinstance(axis, str) and axis in spec.shape[1:]:
        return spec.shape.index(axis, 1) - 1
    batch = spec.axis or 0
    if _is_whole(axis) and 0 <= axis < len(spec.shape) and axis != batch:
        return int(axis) - int(axis > batch)
    raise ConfigError(
        f"pad.axis: input {spec.name!r}: expected an axis of {spec.full_shape}, but not the batch, which is {batch}, "
        f"by its number or name, got {summarize(axis)}"
    )


def _role(
    name: str | None, key: str, usual: Sequence[str], specs: Sequence[InputSpec], axes: list[int | None]
) -> int | None:
    """Return which input is the mask, or the length; its axis is settled with it. None: there is none."""
    is_mask = key == "mask"
    names = [spec.name for spec in specs]
    candidates = [name] if name is not None else [each for each in usual if each in names]
    for each in candidates:
        _check_names(f"pad.{key}", [each], names, "input")
        index = names.index(each)
        spec = specs[index]
        if is_mask and axes[index] is None:
            opened = [axis for axis, size in enumerate(spec.shape[1:]) if isinstance(size, str)]
            if name is None and len(opened) != 1:
                continue
            axes[index] = opened[0] if len(opened) == 1 else None
        expected = "(batch, length), or with axes of 1" if is_mask else "(batch,) or (batch, 1)"
        sizes = [size for axis, size in enumerate(spec.shape[1:]) if not is_mask or axis != axes[index]]
        if all(size == 1 for size in sizes) and (not is_mask or axes[index] is not None) and spec.dtype.kind in "biuf":
            return index
        if name is not None:
            raise ConfigError(f"pad.{key}: input {each!r}: expected the shape {expected}, got {spec.full_shape}")
    return None


def _values(pad: Pad, specs: Sequence[InputSpec], axes: Sequence[int | None], mask: int | None) -> list[float]:
    """Return with what each input is padded."""
    if isinstance(pad.value, Mapping):
        _check_names("pad.value", pad.value, [spec.name for spec in specs], "input")
    values: list[float] = []
    for index, spec in enumerate(specs):
        value: Any = pad.value.get(spec.name, 0) if isinstance(pad.value, Mapping) else pad.value
        if index == mask:
            value = value if isinstance(pad.value, Mapping) else 0
        if not _is_number(value) or not np.isfinite(value):
            raise ConfigError(f"pad.value: input {spec.name!r}: expected a number, got {summarize(value)}")
        if axes[index] is not None and spec.dtype == TEXT:
            raise ConfigError(f"pad: input {spec.name!r}: expected numbers to pad, got text; leave pad out")
        if axes[index] is not None and not _holds(spec.dtype, value):
            raise ConfigError(f"pad.value: input {spec.name!r}: expected a number that {spec.dtype} has, got {value}")
        values.append(value)
    return values


def _output_axes(
    given: Names, outputs: Sequence[tuple[str | int, Sequence[Any] | None]], symbol: str | None, batch_axes: Names
) -> list[tuple[Cut, ...] | None]:
    """Return the axes of each output that have the length; None: not known."""
    if outputs:  # else they are not known yet
        _check_names("pad.outputs", [str(name) for name in given], [str(name) for name, _ in outputs], "output")
    by_name = {str(name): axes for name, axes in given.items()}
    found: list[tuple[Cut, ...] | None] = []
    for name, shape in outputs:
        said = by_name.get(str(name))
        if said is not None:
            rank = sys.maxsize if shape is None else len(shape)
            batch = batch_axes.get(str(name), 0)
            named = () if shape is None else in_place(shape, batch)
            axes = [_numbered(axis, named) for axis in (said if isinstance(said, list | tuple) else [said])]
            if not all(_is_whole(axis) and 0 <= axis < rank and axis != batch for axis in axes):
                of = "" if shape is None else f" of {named}"
                raise ConfigError(
                    f"pad.outputs: output {name!r}: expected an axis{of}, but not the batch, which is {batch}, by its "
                    f"number or name, got {summarize(said)}"
                )
            found.append(tuple([Cut(axis if axis > batch else axis + 1) for axis in axes]))
        elif shape and symbol is not None and symbol in shape[1:]:
            found.append(tuple([Cut(axis) for axis, size in enumerate(shape) if axis > 0 and size == symbol]))
        else:
            found.append(None)
    return found


def _numbered(axis: Any, names: Sequence[Any]) -> Any:
    """Return the number of an axis that is given by its name, if only one has it; else what is given."""
    return names.index(axis) if isinstance(axis, str) and names.count(axis) == 1 else axis


def _check_names(key: str, given: Any, known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{key}: no {what} is named {name!r}{nearest(name, known)}; there are {', '.join(known)}")
