"""All that is padded in a model: by one length, or by several, as those of encoder and decoder, or height and width.

An input, and an output, may have several of them, each on an axis of its own: a picture has two. What is padded of a
request is counted in elements: of each set of lengths that an input has, their product; of inputs with the same
lengths, as ids and their mask, once. So a text counts its tokens, a picture its pixels, and an encoder with a decoder
the tokens of both.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastpipe.errors import ConfigError

from .length_axes import FoundAxes, LengthAxes
from .length_sizes import Cut
from .pad_keys import Names, Pad
from .shapes import InputSpec, Profile

__all__ = ["PaddedAxes", "Sizes"]

Sizes = tuple[int, ...]
"""A number for each length of a model."""


class PaddedAxes:
    """What is padded in a model's inputs, and cut in its outputs.

    Args:
        lengths: where each of them is.
        max_tokens: requests of a run times what is padded of each; None: any number.
        max_padding: the greatest share of a run that may be padding.
        said_masks: the inputs that were named as masks.
    """

    def __init__(
        self, lengths: Sequence[LengthAxes], max_tokens: int | None, max_padding: float, said_masks: Sequence[int]
    ) -> None:
        self.lengths = list(lengths)
        self.max_tokens, self.max_padding = max_tokens, max_padding
        self.said_masks = list(said_masks)
        first = self.lengths[0]
        self.names, self.specs = first.names, first.specs
        # Of each input, the numbers of its lengths.
        self._of_input = [
            frozenset(number for number, each in enumerate(self.lengths) if each.of_inputs[index] is not None)
            for index in range(len(self.names))
        ]
        self._counted = sorted({found for found in self._of_input if found}, key=sorted)
        self.masks = {each.mask for each in self.lengths if each.mask is not None}
        self.made_inputs = sorted(self.masks | {each.length for each in self.lengths if each.length is not None})

    @classmethod
    def of(
        cls,
        pads: Sequence[Pad],
        specs: Sequence[InputSpec],
        outputs: Sequence[tuple[str | int, Sequence[Any] | None]],
        batch_axes: Names,
    ) -> PaddedAxes:
        """Return what is padded in a model; the arguments are those of ``LengthAxes.of``.

        Raises:
            ConfigError: if the model does not fit, or leaves open what has to be said.
        """
        found = [FoundAxes.of(pad, specs) for pad in pads]
        for number, (pad, own) in enumerate(zip(pads, found, strict=True)):
            own.find_roles(pad, specs, [other for place, other in enumerate(found) if place != number])
        for index, spec in enumerate(specs):
            axes = [own.axes[index] for own in found if own.axes[index] is not None]
            if len(set(axes)) < len(axes):
                raise ConfigError(
                    f"pad: input {spec.name!r}: expected an axis of its own for each length, got axis "
                    f"{spec.model_axis(axes[0] or 0)} for several"
                )
        masks = {own.mask for own in found if own.mask is not None}
        lengths = [
            LengthAxes.of(pad, specs, outputs, batch_axes, own, masks) for pad, own in zip(pads, found, strict=True)
        ]
        names = [spec.name for spec in specs]
        said = [names.index(pad.mask) for pad in pads if pad.mask is not None]
        return cls(lengths, pads[0].max_tokens, min(pad.max_padding for pad in pads), said)

    # ---- of the model --------------------------------------------------------------------------------------------

    @property
    def fixed(self) -> int | None:
        """A length of which the model takes no other; None: it takes several of all."""
        return next((each.fixed for each in self.lengths if each.fixed is not None), None)

    @cached_property
    def has_buckets(self) -> bool:
        """Whether requests are padded to lengths that are known before there is a run."""
        return all(each.buckets for each in self.lengths)

    @cached_property
    def item_axes(self) -> list[tuple[int, ...]]:
        """The padded axes of each input, without the batch."""
        return [
            tuple([axis for each in self.lengths if (axis := each.of_inputs[index]) is not None])
            for index in range(len(self.names))
        ]

    @property
    def output_names(self) -> list[str | int]:
        """The names of the outputs; none if they are not known before a run."""
        return self.lengths[0].output_names

    def take_outputs(self, names: Sequence[str | int]) -> None:
        """Take the names of outputs that were not known before."""
        for each in self.lengths:
            each.output_names = list(names)
            each.of_outputs = each.said_of(names)

    @property
    def of_outputs(self) -> list[list[tuple[Cut, ...] | None]]:
        """By length, what is known of the axes of the outputs."""
        return [each.of_outputs for each in self.lengths]

    @of_outputs.setter
    def of_outputs(self, found: Sequence[Sequence[tuple[Cut, ...] | None]]) -> None:
        for each, cuts in zip(self.lengths, found, strict=True):
            each.of_outputs = list(cuts)

    @property
    def cuts_outputs(self) -> bool:
        """Whether any output has a length."""
        return any(any(each.of_outputs) for each in self.lengths)

    def opened(
        self, specs: Sequence[InputSpec], profiles: Sequence[Profile]
    ) -> tuple[Sequence[InputSpec], Sequence[Profile]]:
        """Return what requests may be where the model has one length, and they may be shorter."""
        for each in self.lengths:
            specs, profiles = each.opened(specs, profiles)
        return specs, profiles

    def check(self, profiles: Sequence[Profile]) -> None:
        """Raise ConfigError if the model takes nothing as long as what is padded to."""
        for each in self.lengths:
            each.check(profiles)

    def places(self) -> str:
        """Return the inputs and axes that are padded, but those of masks, in words."""
        return "; ".join(
            [
                each.input_place(index)
                for each in self.lengths
                for index, axis in enumerate(each.of_inputs)
                if axis is not None and index not in self.masks
            ]
        )

    # ---- of requests and runs ------------------------------------------------------------------------------------

    def targets(self, lengths: Sizes) -> Sizes | None:
        """Return what lengths are padded to, of each 0 for the longest of its run; None: there is no bucket as long."""
        found = [each.target(length) for each, length in zip(self.lengths, lengths, strict=True)]
        known = tuple([target for target in found if target is not None])
        return known if len(known) == len(found) else None

    def element_count(self, lengths: Sizes) -> int:
        """Return how many elements a request of these lengths has."""
        if len(lengths) == 1:
            return lengths[0]
        total = 0
        for numbers in self._counted:
            product = 1
            for number in numbers:
                product *= lengths[number]
            total += product
        return total

    def is_within(self, count: int, own: int, longest: Sizes) -> bool:
        """Say whether so many requests, of ``own`` elements together, may be padded to ``longest`` in one run."""
        padded = count * self.element_count(longest)
        if padded > (self.max_tokens or sys.maxsize):
            return False
        return self.has_buckets or padded - own <= self.max_padding * padded

    def made(self, index: int, lengths: Sizes) -> Any:
        """Return an input that is made for a request of these lengths: a mask, or a length."""
        spec = self.specs[index]
        shape = [1] * (len(spec.shape) - 1)
        for each, length in zip(self.lengths, lengths, strict=True):
            if index == each.length:
                return np.full(spec.shape[1:], length, spec.dtype)
            if (axis := each.of_inputs[index]) is not None:
                shape[axis] = length
        return np.ones(shape, spec.dtype)

    def padded(self, index: int, array: Any, targets: Sizes, batch_axis: int | None) -> Any:
        """Return an input of a request as long as ``targets``; it may be the same. See ``LengthAxes.padded``."""
        for each, target in zip(self.lengths, targets, strict=True):
            array = each.padded(index, array, target, batch_axis)
        return array

    def cut(self, outputs: Sequence[Any], lengths: Sizes, targets: Sizes) -> list[Any]:
        """Return the outputs of requests of these lengths, as they would be without the padding."""
        cut = list(outputs)
        for each, length, target in zip(self.lengths, lengths, targets, strict=True):
            cut = each.cut(cut, length, target)
        return cut
