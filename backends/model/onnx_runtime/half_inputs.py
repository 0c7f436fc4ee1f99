"""Requests of models some of whose inputs become float16 within: what that cannot hold is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import KernelError

from ..inputs import Array, ModelInputs
from ..reader import Sample
from ..shapes import InputSpec, Profile
from .graph import LARGEST_HALF

__all__ = ["HalfInputs"]


class HalfInputs(ModelInputs):
    """Reads requests for a model some of whose inputs become float16 within it.

    Args:
        model, specs, profiles: as of ``ModelInputs``.
        halves: names of those inputs.
    """

    def __init__(
        self, model: str, specs: Sequence[InputSpec], profiles: Sequence[Profile], halves: Sequence[str]
    ) -> None:
        super().__init__(model, specs, profiles)
        self._halves = [(index, spec) for index, spec in enumerate(specs) if spec.name in halves]

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked, its values too."""
        sample = super().read(request)
        for index, spec in self._halves:
            largest = _largest(sample.arrays[index])
            if largest > LARGEST_HALF:
                raise KernelError(
                    f"{self._model}, input {spec.name!r}: expected values of -65504 to 65504, which is what float16 "
                    f"can hold, got {largest:g} (or its negative); precision='fp32' takes larger ones"
                )
        return sample


def _largest(array: Array) -> float:
    """Return the largest magnitude of an array's numbers, without those that are infinite or none."""
    if array.size == 0 or array.dtype.kind == "b":
        return 0.0
    largest = max(float(array.max()), -float(array.min()))
    if math.isfinite(largest):
        return largest
    numbers = array[np.isfinite(array)]
    return max(float(numbers.max()), -float(numbers.min())) if numbers.size else 0.0
