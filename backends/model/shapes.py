"""Which shapes a model takes: what its file declares, narrowed by the node's ``max`` and ``min``.

    max = 8                            a batch of up to 8, items as the model declares them
    max = "8x3x48x320"                 the same, and no item larger than (3, 48, 320)
    max = "8x3x48x320,8x10"            two inputs, in the model's order
    max = "8x3x48x320;1x3x960x960"     two profiles: a request runs in one that it fits in, with that one's batch

``min`` is written the same way. Its batch number is the smallest batch the model is run with (fewer requests are
padded), its other numbers are the smallest item: 1 in an open axis of which nothing is said; ``min = "1x0x4"`` lets an
axis be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastpipe.config.shapes import Shape, profiles_of
from fastpipe.errors import ConfigError

__all__ = [
    "InputSpec",
    "Limits",
    "Profile",
    "SharedAxes",
    "advice_on_empty",
    "is_within",
    "make_profiles",
    "ranks_of",
    "told_batches",
]

Limits = tuple[tuple[int, int | None], ...]
"""Smallest and largest size of each axis of an item (without the batch axis); None: no largest."""


@dataclass(frozen=True)
class InputSpec:
    """One input as the model declares it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]  # with the batch axis in front; a dynamic axis has a name, not a number
    ranges: tuple[tuple[int, int | None], ...] = ()  # of each axis; (): the model says nothing. None: no largest
    axis: int | None = 0  # where the model has the batch; None: nowhere, and what is in front of ``shape`` is no axis
    example: Any = field(default=None, compare=False)  # of what the batch shares, a value that the model takes
    is_said: bool = False  # whether the node says where the requests are, or that they are nowhere

    @property
    def is_shared(self) -> bool:
        """Whether all requests of a batch have to bring the same."""
        return self.axis is None

    @property
    def full_shape(self) -> tuple[int | str, ...]:
        """The axes as the model has them."""
        return self.full(self.shape[1:], self.shape[0])

    def full(self, item: Sequence[Any], rows: Any) -> tuple[Any, ...]:
        """Return an item's shape with the batch axis where the model has it, of so many rows."""
        if self.axis is None:
            return tuple(item)
        return (*item[: self.axis], rows, *item[self.axis :])

    def model_axis(self, item_axis: int) -> int:
        """Return where the model has an axis of an item."""
        return item_axis + (self.axis is not None and item_axis >= self.axis)


@dataclass(frozen=True)
class Profile:
    """A set of shapes that may run together."""

    max_batch: int  # requests in one run of the model
    pad_to: int  # a run with fewer is filled up with zeros to this size; 1: never, more than max_batch: always
    limits: tuple[Limits, ...]  # one for each input

    def takes(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        """Say whether items of these shapes, one for each input, without the batch axis, lie within the limits."""
        return all(is_within(shape, limits) for shape, limits in zip(shapes, self.limits, strict=True))

    def batch_sizes(self) -> list[int]:
        """Return every batch size the model is ever run with in this profile, the largest first."""
        return sorted({max(size, self.pad_to) for size in range(1, self.max_batch + 1)}, reverse=True)

    def largest_items(self) -> list[tuple[int, ...]] | None:
        """Return the largest shape of each input, without the batch axis, or None if some axis has no largest size."""
        highs = [tuple(high for _, high in limits) for limits in self.limits]
        items = [tuple(high for high in item if high is not None) for item in highs]
        return items if all(len(item) == len(high) for item, high in zip(items, highs, strict=True)) else None


def told_batches(sizes: Sequence[int]) -> str | None:
    """Say with which batches a model was warmed up, as ``Backend.warmed_up`` does; None: with none."""
    if not sizes:
        return None
    ordered = sorted(set(sizes))
    is_gapless = len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1
    return f"batches of {f'{ordered[0]} to {ordered[-1]}' if is_gapless else ', '.join(map(str, ordered))}"


def is_within(shape: tuple[int, ...], limits: Limits) -> bool:
    """Say whether an item of this shape lies within limits, of which there are as many as axes.

    There are none where the model says no axes: that is a scalar, or whatever the model takes, for it to judge.
    """
    if not limits:
        return True
    for size, (low, high) in zip(shape, limits, strict=True):
        if size < low or (high is not None and size > high):
            return False
    return True


def advice_on_empty(specs: Sequence[InputSpec], index: int, shape: tuple[int, ...], profiles: Sequence[Profile]) -> str:
    """Return how ``min`` would let an item of this shape in, if nothing but empty axes keeps it out; else nothing."""
    declared = specs[index].shape[1:]
    if 0 not in shape or len(shape) != len(declared):
        return ""
    # Where the model says a size, min cannot say another.
    if any(isinstance(known, int) and size != known for size, known in zip(shape, declared, strict=True)):
        return ""
    least = [[low for low, _ in limits] for limits in profiles[0].limits]
    least[index] = [min(size, low) for size, low in zip(shape, least[index], strict=True)]
    text = ",".join("x".join(map(str, (profiles[0].pad_to, *item))) for item in least)
    return f"; min={text!r} would let axes be empty"


def make_profiles(specs: list[InputSpec], max: int | str | None, min: int | str | None) -> tuple[Profile, ...]:
    """Return the profiles that a model with these inputs has under a node's ``max`` and ``min``, in their order.

    Without ``max`` the batch is the model's own if that is fixed, otherwise ``min``'s, otherwise 1.

    Raises:
        ConfigError: if the notation is wrong, or the numbers contradict the model or each other.
    """
    if not specs and str(max) == "1":
        return (Profile(1, 1, ()),)
    if not specs:
        raise ConfigError(
            "it has no inputs, so that a request can give it nothing: what it makes is a constant; max=1 runs it as it "
            "is, for requests whose data is []"
        )
    fixed = _fixed_batch([spec for spec in specs if not spec.is_shared])
    most, least = _parse("max", max, len(specs)), _parse("min", min, len(specs))
    if len(most) > 1 and len(least) > 1 and len(most) != len(least):
        raise ConfigError(f"max={max!r} has {len(most)} profiles, min={min!r} has {len(least)}")
    count = len(most) if len(most) > 1 else len(least)
    most, least = [group * count if len(group) == 1 else group for group in (most, least)]
    profiles = []
    for largest, smallest in zip(most, least, strict=True):
        max_batch, pad_to = _batch_limits(fixed, largest.batch, smallest.batch, _batch_range(specs))
        limits = [
            _item_limits(spec, low, high) for spec, low, high in zip(specs, smallest.items, largest.items, strict=True)
        ]
        profiles.append(Profile(max_batch, pad_to, tuple(limits)))
    if any(profile.batch_sizes()[0] > 1 for profile in profiles):
        _refuse_no_batch(specs)
        _refuse_moved_batch(specs)
    return tuple(profiles)


class SharedAxes:
    """The axes that several inputs of a model have by name, and so must have in one size.

    Names count between inputs only: one input whose own axes of a name differ has shown that the name means nothing.
    """

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self._names = [spec.name for spec in specs]
        axes: dict[str, list[tuple[int, int]]] = {}  # name -> (input, axis)
        batches = {spec.shape[0] for spec in specs if not spec.is_shared}
        for index, spec in enumerate(specs):
            for axis, name in enumerate(spec.full_shape):
                # Of an input that the batch shares, the node says that this is no batch, whatever it is called.
                if isinstance(name, str) and name != "?" and not (spec.is_shared and name in batches):
                    axes.setdefault(name, []).append((index, axis))
        self._shared = {name: found for name, found in axes.items() if len({index for index, _ in found}) > 1}

    def conflict(self, shapes: Sequence[tuple[int, ...]]) -> str:
        """Return what is wrong with inputs of these shapes, as the model gets them for one request, or nothing."""
        for name, found in self._shared.items():
            sizes: dict[int, set[int]] = {}
            for index, axis in found:
                if axis < len(shapes[index]):  # else it is of a shape that the model has not declared
                    sizes.setdefault(index, set()).add(shapes[index][axis])
            if any(len(own) > 1 for own in sizes.values()):
                continue
            (first, expected), *others = [(index, own.pop()) for index, own in sizes.items()]
            for index, size in others:
                if size != expected:
                    return (
                        f"the inputs {self._names[first]!r} and {self._names[index]!r} share the axis {name!r}, "
                        f"but it is {expected} in {self._names[first]!r} and {size} in {self._names[index]!r}"
                    )
        return ""


@dataclass(frozen=True)
class _Written:
    """One profile of ``max`` or ``min``; None is what was not written."""

    batch: int | None
    items: tuple[tuple[int, ...] | None, ...]  # one for each input


def _parse(key: str, text: int | str | None, input_count: int) -> list[_Written]:
    if text is None:
        return [_Written(None, (None,) * input_count)]
    profiles = []
    for profile in profiles_of(text):
        shapes = [_numbers_of(key, text, shape) for shape in profile]
        if len(shapes) == 1 and len(shapes[0]) == 1:
            shapes *= input_count  # a number alone is the batch, whatever the inputs are
        if len(shapes) != input_count:
            inputs = f"{len(shapes)} input{'s' * (len(shapes) > 1)}"
            raise ConfigError(
                f"{key}={text!r} has shapes of {inputs}, but the model has {input_count}: expected one for each, with "
                f"commas between them and the batch as the first number of each, or the batch alone"
            )
        batches = {shape[0] for shape in shapes}
        if len(batches) > 1:
            raise ConfigError(f"{key}={text!r}: the first number is the batch and must be the same for every input")
        profiles.append(_Written(batches.pop(), tuple(shape[1:] or None for shape in shapes)))
    return profiles


def ranks_of(text: int | str | None) -> list[int] | None:
    """Return how many axes each input has by a node's ``max`` or ``min``; None: it only says how many requests."""
    if not isinstance(text, str) or "x" not in text:
        return None
    return [len(shape) for shape in profiles_of(text)[0]]


def _numbers_of(key: str, text: int | str, shape: Shape) -> tuple[int, ...]:
    if not all(number.isdecimal() for number in shape) or int(shape[0]) < 1:
        raise ConfigError(f"{key} must be a batch size like 4 or shapes like '4x3x224x224', got {text!r}")
    return tuple(int(number) for number in shape)


def _fixed_batch(specs: list[InputSpec]) -> InputSpec | None:
    """Return an input that fixes the batch; None: no input does."""
    fixed: dict[int, InputSpec] = {}
    for spec in specs:
        if isinstance(spec.shape[0], int):
            fixed.setdefault(spec.shape[0], spec)
    if len(fixed) > 1:
        sizes = ", ".join(f"{size} in {spec.name!r}" for size, spec in fixed.items())
        raise ConfigError(
            f"the inputs have different fixed batch sizes: {sizes}; shared = [...] names those that all requests "
            f"share, batch_axis says where the others have the requests, and max=1 runs one at a time, as it comes"
        )
    return next(iter(fixed.values()), None)


def _batch_range(specs: list[InputSpec]) -> tuple[int, int | None]:
    """Return the smallest and the largest batch of a model that says what it takes; None: there is no largest."""
    ranges = [spec.ranges[0] for spec in specs if spec.ranges and not spec.is_shared]
    low = max((low for low, _ in ranges), default=1)
    return low, min((high for _, high in ranges if high is not None), default=None)


def _refuse_no_batch(specs: list[InputSpec]) -> None:
    """Raise ConfigError if there is no axis along which requests could be joined."""
    if all(spec.is_shared for spec in specs):
        spec = specs[0]
        raise ConfigError(
            f"input {spec.name!r} has no batch axis, and no other input has one: expected an axis for the requests, "
            f"got the axes {spec.full_shape}; max=1 runs one request at a time, as it comes, and "
            f"batch_axis = {{ {spec.name} = 0 }} names the axis, if there is one"
        )


def _refuse_moved_batch(specs: list[InputSpec]) -> None:
    """Raise ConfigError if the axis along which requests would be joined is also another one: they would be mixed."""
    joined = {
        spec.shape[0]: spec
        for spec in specs
        if not spec.is_shared and isinstance(spec.shape[0], str) and spec.shape[0] != "?"
    }
    for spec in specs:
        if spec.is_shared and spec.is_said:
            continue  # the trials show whether it is true
        for axis, name in enumerate(spec.full_shape):
            if axis != spec.axis and isinstance(name, str) and name in joined:
                first = joined[name]
                raise ConfigError(
                    f"the axis {name!r} is axis {first.axis} of input {first.name!r} and axis {axis} of input "
                    f"{spec.name!r}: requests are joined along one of them, and it is not clear which; batch_axis = "
                    f"{{ {first.name} = {first.axis} }} says for each input on which axis the requests are, "
                    f"'none' that it has none, and max=1 runs one request at a time"
                )


def _batch_limits(
    spec: InputSpec | None, most: int | None, least: int | None, allowed: tuple[int, int | None]
) -> tuple[int, int]:
    """Return how many requests run together, and up to how many they are padded.

    Args:
        spec: an input that fixes the batch; None: no input does.
        most: what ``max`` says.
        least: what ``min`` says.
        allowed: the smallest and the largest batch that the model says it takes.
    """
    fixed = None if spec is None else int(spec.shape[0])
    max_batch = most or fixed or least or 1
    low, high = allowed
    if least is not None and least > max_batch:
        raise ConfigError(f"the batch of min is {least}, that of max only {max_batch}")
    if spec is not None and fixed is not None and max_batch > fixed:
        raise ConfigError(
            f"input {spec.name!r}, axis {spec.axis}: max is a batch of {max_batch}, but the model's is fixed at "
            f"{fixed}: lower max, or export the model with a dynamic batch axis; max=1 runs one at a time, as it comes"
        )
    if high is not None and max_batch > high:
        raise ConfigError(
            f"{'max' if most else 'min'} is a batch of {max_batch}, but the model was exported for at most {high}: "
            f"lower it, or export the model for larger ones"
        )
    return max_batch, fixed or max(least or 1, low)


def _item_limits(spec: InputSpec, least: tuple[int, ...] | None, most: tuple[int, ...] | None) -> Limits:
    """Return the limits of an input's items, of what the model declares and what ``min`` and ``max`` say."""
    declared = spec.shape[1:]
    for key, written in (("min", least), ("max", most)):
        if written is not None and len(written) != len(declared):
            raise ConfigError(
                f"{key} has {len(written) + 1} axes for input {spec.name!r}, the model has {len(declared) + 1}: "
                f"{('batch', *declared)}"
            )
    nothing = (None,) * len(declared)
    return tuple(
        [
            _fixed_axis(spec, axis, size, low, high) if isinstance(size, int) else _open_axis(spec, axis, low, high)
            for axis, (size, low, high) in enumerate(zip(declared, least or nothing, most or nothing, strict=True), 1)
        ]
    )


def _fixed_axis(spec: InputSpec, axis: int, size: int, low: int | None, high: int | None) -> tuple[int, int]:
    for key, number in (("min", low), ("max", high)):
        if number not in (None, size):
            raise ConfigError(f"{key} is {number} in axis {axis} of input {spec.name!r}, the model has {size}")
    return size, size


def _open_axis(spec: InputSpec, axis: int, low: int | None, high: int | None) -> tuple[int, int | None]:
    if low is not None and high is not None and low > high:
        raise ConfigError(f"min is {low} in axis {axis} of input {spec.name!r}, max only {high}")
    if high is not None and spec.ranges and not _is_in(high, spec.ranges[axis]):
        least, most = spec.ranges[axis]
        exported_for = f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(
            f"max is {high} in axis {axis} of input {spec.name!r}, the model was exported for {exported_for}"
        )
    return 1 if low is None else low, high


def _is_in(size: int, allowed: tuple[int, int | None]) -> bool:
    low, high = allowed
    return low <= size and (high is None or size <= high)
