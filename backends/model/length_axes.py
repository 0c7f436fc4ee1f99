"""Which axes of a model are padded, with what, and which of its outputs have the length: read of the model, or said.

The model's own names come first: an axis that is open, and called ``seq`` in every input that has it, is the length,
and an output's axis of that name is cut. What the names leave open is said by the table ``pad``; what an output does is
also seen in the trials, see ``length_proof``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastpipe.errors import ConfigError, nearest
from fastpipe.summaries import summarize

from ..kinds import TEXT
from .axes import in_place
from .length_sizes import Cut
from .pad_keys import Names, Pad, is_number, is_whole
from .shapes import InputSpec, Profile

__all__ = ["LENGTH_NAMES", "MASK_NAMES", "FoundAxes", "LengthAxes"]

MASK_NAMES = ("attention_mask", "input_mask", "decoder_attention_mask", "pixel_mask")
"""Inputs that are taken for the mask, if none is named: 1 for each element of the request, 0 for padding."""

LENGTH_NAMES = ("input_lengths", "lengths", "length")
"""The same for the length."""


@dataclass
class LengthAxes:
    """What is padded in a model's inputs and cut in its outputs.

    Axes of inputs are counted without the batch, those of outputs with the batch in front, wherever the model has it;
    what is written, and what messages say, is as the model has them.
    """

    key: str  # what messages call it
    names: list[str]  # of the inputs
    specs: list[InputSpec]
    of_inputs: list[int | None]  # the axis of each that is padded
    values: list[float]
    mask: int | None  # which input it is
    length: int | None
    output_names: list[str | int]
    of_outputs: list[tuple[Cut, ...] | None]  # (): it has no axis that is cut. None: not known, so it is not cut
    buckets: tuple[int, ...]  # (): to the longest
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

    @property
    def first(self) -> int:
        """The first input that has the length."""
        return next(index for index, axis in enumerate(self.of_inputs) if axis is not None)

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

    def said_of(self, names: Sequence[str | int]) -> list[tuple[Cut, ...] | None]:
        """Return what is said of the axes of outputs with these names, which were not known before."""
        return _output_axes(self.key, self.said, [(name, None) for name in names], None, self.batch_axes)

    def opened(
        self, specs: Sequence[InputSpec], profiles: Sequence[Profile]
    ) -> tuple[list[InputSpec], tuple[Profile, ...]]:
        """Return what requests may be where the model has one length, and they may be shorter."""
        open_specs, limits = [], []
        for index, (spec, axis) in enumerate(zip(specs, self.of_inputs, strict=True)):
            of_profiles = [list(profile.limits[index]) for profile in profiles]
            if axis is not None and isinstance(size := spec.shape[axis + 1], int):
                shape = [*spec.shape]
                shape[axis + 1] = f"{self.key} length"  # inputs that are padded by another one may have another
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
            raise ConfigError(
                f"{self.key}: {self.input_place(self.first)}: expected "
                f"[{self.fixed}], the length that the model has, got {list(self.buckets) or 'longest'}"
            )
        for index, axis in enumerate(self.of_inputs):
            if axis is None or not self.buckets:
                continue
            highs = [profile.limits[index][axis][1] for profile in profiles]
            most = max([high for high in highs if high is not None], default=None)
            if None not in highs and most is not None and self.buckets[-1] > most:
                raise ConfigError(
                    f"{self.key}: {self.input_place(index)}: expected lengths of at most {most}, as max "
                    f"and the model have it, got {self.buckets[-1]}"
                )

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
        found: FoundAxes,
        masks: Collection[int],
    ) -> LengthAxes:
        """Return what is padded in a model by one length.

        Args:
            pad: what is written of it.
            specs: the model's inputs.
            outputs: of each its name, and its shape with names for open axes, the batch first; None: not known.
            batch_axes: of those that do not have the batch in front, the axis, by name.
            found: the axes of the inputs, with those of the mask.
            masks: inputs that are masks, of this length or of another.

        Raises:
            ConfigError: if the model does not fit, or leaves open what has to be said.
        """
        if all(axis is None for index, axis in enumerate(found.axes) if index not in masks):
            raise ConfigError(
                f"{pad.key}: no input would be padded but the mask: name its axis in {pad.key}.axis; {_open(specs)}"
            )
        for spec, axis in zip(specs, found.axes, strict=True):
            if spec.is_shared and (axis is not None or (found.symbol is not None and found.symbol in spec.shape[1:])):
                raise ConfigError(
                    f"{pad.key}: input {spec.name!r}: expected an axis for the requests, which differ in length, got "
                    f"one that a batch shares (shared, batch_axis), with the axes {spec.full_shape}; leave pad out, or "
                    f"give the model an input with a row for each request"
                )
        return cls(
            key=pad.key,
            names=[spec.name for spec in specs],
            specs=list(specs),
            of_inputs=found.axes,
            values=_values(pad, specs, found.axes, masks),
            mask=found.mask,
            length=found.length,
            output_names=[name for name, _ in outputs],
            of_outputs=_output_axes(pad.key, pad.outputs, outputs, found.symbol, batch_axes),
            buckets=() if pad.to == "longest" else tuple(pad.to),
            said=pad.outputs,
            batch_axes=batch_axes,
        )


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Say whether a type has a number."""
    if dtype.kind not in "biu":
        return True
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value == int(value) and low <= value <= high


def _open(specs: Sequence[InputSpec]) -> str:
    """Return the axes that are open, in words."""
    found = [
        f"axis {spec.model_axis(axis)} of {spec.name!r}" + (f" ({size})" if size != "?" else "")
        for spec in specs
        for axis, size in enumerate(spec.shape[1:])
        if isinstance(size, str)
    ]
    return f"open are {', '.join(found)}" if found else "no axis but the batch is open"


@dataclass
class FoundAxes:
    """Where one length is in the inputs of a model.

    Args:
        axes: of each input, without the batch; None: it does not have the length.
        symbol: the name that the model has for it; None: it has none, or several.
        mask: which input is its mask; None: there is none.
        length: which input has the length itself.
    """

    axes: list[int | None]
    symbol: str | None
    mask: int | None = None
    length: int | None = None

    @classmethod
    def of(cls, pad: Pad, specs: Sequence[InputSpec]) -> FoundAxes:
        """Return the padded axes of the inputs, without mask and length."""
        axes = _input_axes(pad, specs)
        symbols = {spec.shape[axis + 1] for spec, axis in zip(specs, axes, strict=True) if axis is not None}
        symbol = next(iter(symbols)) if len(symbols) == 1 else None
        return cls(axes, symbol if isinstance(symbol, str) and symbol != "?" else None)

    def find_roles(self, pad: Pad, specs: Sequence[InputSpec], others: Sequence[FoundAxes]) -> None:
        """Find the mask and the length; ``others``: where other lengths are, which a mask may have, too."""
        of_others = {(index, axis) for other in others for index, axis in enumerate(other.axes) if axis is not None}
        self.mask = _mask_of(pad, specs, self.axes, of_others, is_only=not others)
        usual = LENGTH_NAMES if not others else ()
        self.length = _length_of(pad, specs, usual)


def _input_axes(pad: Pad, specs: Sequence[InputSpec]) -> list[int | None]:
    """Return the padded axis of each input."""
    names = [spec.name for spec in specs]
    if isinstance(pad.axis, Mapping):
        _check_names(f"{pad.key}.axis", pad.axis, names, "input")
        return [_axis_of(pad, spec, pad.axis[spec.name]) if spec.name in pad.axis else None for spec in specs]
    if pad.axis is None:
        return _axes_by_name(pad, [spec if not spec.is_shared else replace(spec, shape=("?",)) for spec in specs])
    if isinstance(pad.axis, str) and not any(pad.axis in spec.shape[1:] for spec in specs):
        known = sorted({str(size) for spec in specs for size in spec.shape[1:] if isinstance(size, str)})
        raise ConfigError(
            f"{pad.key}.axis: no input has an axis {pad.axis!r}{nearest(pad.axis, known)}; {_open(specs)}"
        )
    return [
        _axis_of(pad, spec, pad.axis)
        if (pad.axis in spec.shape[1:] if isinstance(pad.axis, str) else len(spec.shape) > 1 and not spec.is_shared)
        else None
        for spec in specs
    ]


def _axes_by_name(pad: Pad, specs: Sequence[InputSpec]) -> list[int | None]:
    """Return the axis of each input that is open, where one name, or one axis in each input, leaves no doubt."""
    opened = [[axis for axis, size in enumerate(spec.shape[1:]) if isinstance(size, str)] for spec in specs]
    symbols = {spec.shape[axis + 1] for spec, found in zip(specs, opened, strict=True) for axis in found}
    if not symbols:
        raise ConfigError(
            f"{pad.key}: expected an input with an open axis, got none; {pad.key}.axis may name one that is fixed"
        )
    if len(symbols) > 1 or any(len(found) > 1 for found in opened):
        raise ConfigError(
            f"{pad.key}: several axes may be the length: name it in {pad.key}.axis, or, if there are several lengths, "
            f"write a table for each of them, [{{ axis = ... }}, {{ axis = ... }}]; {_open(specs)}"
        )
    return [found[0] if found else None for found in opened]


def _axis_of(pad: Pad, spec: InputSpec, axis: Any) -> int:
    """Return an axis of an input, without the batch, of its number or its name."""
    if isinstance(axis, str) and axis in spec.shape[1:]:
        return spec.shape.index(axis, 1) - 1
    batch = spec.axis or 0
    if is_whole(axis) and 0 <= axis < len(spec.shape) and axis != batch:
        return int(axis) - int(axis > batch)
    raise ConfigError(
        f"{pad.key}.axis: input {spec.name!r}: expected an axis of {spec.full_shape}, but not the batch, which is "
        f"{batch}, by its number or name, got {summarize(axis)}"
    )


def _mask_of(
    pad: Pad, specs: Sequence[InputSpec], axes: list[int | None], others: Collection[tuple[int, int]], *, is_only: bool
) -> int | None:
    """Return which input is the mask; its axis is settled with it. None: there is none.

    ``others`` are axes of inputs that other lengths have; ``is_only``: there is no other length.
    """
    names = [spec.name for spec in specs]
    for name in [pad.mask] if pad.mask is not None else [each for each in MASK_NAMES if each in names]:
        _check_names(f"{pad.key}.mask", [name], names, "input")
        index = names.index(name)
        spec = specs[index]
        opened = [axis for axis, size in enumerate(spec.shape[1:]) if isinstance(size, str)]
        if axes[index] is None and pad.mask is None and (not is_only or len(opened) != 1):
            continue
        if axes[index] is None:
            axes[index] = opened[0] if len(opened) == 1 else None
        sizes = [
            size for axis, size in enumerate(spec.shape[1:]) if axis != axes[index] and (index, axis) not in others
        ]
        if all(size == 1 for size in sizes) and axes[index] is not None and spec.dtype.kind in "biuf":
            return index
        if pad.mask is not None:
            raise ConfigError(
                f"{pad.key}.mask: input {name!r}: expected the shape (batch, length), or with axes of 1, or of other "
                f"lengths that pad names, got {spec.full_shape}"
            )
    return None


def _length_of(pad: Pad, specs: Sequence[InputSpec], usual: Sequence[str]) -> int | None:
    """Return which input has the length; None: there is none."""
    names = [spec.name for spec in specs]
    for name in [pad.length] if pad.length is not None else [each for each in usual if each in names]:
        _check_names(f"{pad.key}.length", [name], names, "input")
        spec = specs[names.index(name)]
        if all(size == 1 for size in spec.shape[1:]) and spec.dtype.kind in "biuf" and not spec.is_shared:
            return names.index(name)
        if pad.length is not None:
            raise ConfigError(
                f"{pad.key}.length: input {name!r}: expected the shape (batch,) or (batch, 1), got {spec.full_shape}"
            )
    return None


def _values(pad: Pad, specs: Sequence[InputSpec], axes: Sequence[int | None], masks: Collection[int]) -> list[float]:
    """Return with what each input is padded."""
    if isinstance(pad.value, Mapping):
        _check_names(f"{pad.key}.value", pad.value, [spec.name for spec in specs], "input")
    values: list[float] = []
    for index, spec in enumerate(specs):
        value: Any = pad.value.get(spec.name, 0) if isinstance(pad.value, Mapping) else pad.value
        if index in masks:
            value = value if isinstance(pad.value, Mapping) else 0
        if not is_number(value) or not np.isfinite(value):
            raise ConfigError(f"{pad.key}.value: input {spec.name!r}: expected a number, got {summarize(value)}")
        if axes[index] is not None and spec.dtype == TEXT:
            raise ConfigError(f"{pad.key}: input {spec.name!r}: expected numbers to pad, got text; leave pad out")
        if axes[index] is not None and not _holds(spec.dtype, value):
            raise ConfigError(
                f"{pad.key}.value: input {spec.name!r}: expected a number that {spec.dtype} has, got {value}"
            )
        values.append(value)
    return values


def _output_axes(
    key: str,
    given: Names,
    outputs: Sequence[tuple[str | int, Sequence[Any] | None]],
    symbol: str | None,
    batch_axes: Names,
) -> list[tuple[Cut, ...] | None]:
    """Return the axes of each output that have the length; None: not known."""
    if outputs:  # else they are not known yet
        _check_names(f"{key}.outputs", [str(name) for name in given], [str(name) for name, _ in outputs], "output")
    by_name = {str(name): axes for name, axes in given.items()}
    found: list[tuple[Cut, ...] | None] = []
    for name, shape in outputs:
        said = by_name.get(str(name))
        if said is not None:
            rank = sys.maxsize if shape is None else len(shape)
            batch = batch_axes.get(str(name), 0)
            named = () if shape is None else in_place(shape, batch)
            axes = [_numbered(axis, named) for axis in (said if isinstance(said, list | tuple) else [said])]
            if not all(is_whole(axis) and 0 <= axis < rank and axis != batch for axis in axes):
                of = "" if shape is None else f" of {named}"
                raise ConfigError(
                    f"{key}.outputs: output {name!r}: expected an axis{of}, but not the batch, which is {batch}, by "
                    f"its number or name, got {summarize(said)}"
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
