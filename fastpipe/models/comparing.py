"""Two models, or one in two precisions, on the same real data: how far apart, and where most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastpipe.config.values import BadValue, coerce, constructor_parameters
from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, PipeError
from fastpipe.models.inputs import Model, Samples, Source, model_of
from fastpipe.models.sessions import Array, gap_between

__all__ = ["Comparison", "Difference", "compare", "other_model"]

WORST = 12


@dataclass(frozen=True)
class Difference:
    """What both models make of one sample."""

    name: str
    given: Request
    largest: float
    """The largest difference of two numbers."""
    relative: float
    """The same, of the largest number of the first model's output."""
    classes: tuple[int, int] | None
    """The top classes; None: the first output is no list of scores."""
    scores: tuple[float, float] = (0.0, 0.0)
    """What each model gives for its own top class."""
    gap: float = 0.0
    """Of the first model: from its top class to the next."""

    @property
    def agrees(self) -> bool:
        return self.classes is None or self.classes[0] == self.classes[1]

    @property
    def badness(self) -> tuple[bool, float]:
        return not self.agrees, self.relative


@dataclass
class Comparison:
    """What has come of all samples."""

    names: tuple[str, str]
    """What the two models are called."""
    count: int = 0
    agreed_count: int = 0
    has_classes: bool = False
    relatives: list[float] = field(default_factory=list)
    """Of each sample, the largest difference, of the first model's largest number."""
    largest: float = 0.0
    worst: list[Difference] = field(default_factory=list)
    """The worst first: those of another class, then by difference."""
    failed: list[str] = field(default_factory=list)
    """Samples that the nodes or a model refused, and why."""

    @property
    def agreement(self) -> float:
        """The share of the samples that have the same top class."""
        return self.agreed_count / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the relative difference that so many of the samples do not exceed."""
        return float(np.percentile(self.relatives, percent)) if self.relatives else 0.0


def other_model(first: Model, other: Path | None, changes: Mapping[str, Any]) -> Model:
    """Return what the first model is compared with.

    Args:
        first: whose nodes prepare the data for both.
        other: a TOML file, of which the model's step is taken, or a model file for the first one's step; None: the same
            file.
        changes: parameters of the step, such as ``precision``.

    Raises:
        PipeError: there is no such file or parameter, or its value is none; or nothing is to be compared.
    """
    if other is None and not changes:
        raise PipeError("there is nothing to compare with: name another model, or a precision")
    if other is not None and not other.is_file():
        raise PipeError(f"there is no file {str(other)!r}")
    if other is not None and other.suffix == ".toml":
        second = replace(model_of(other), transform=None)
    else:
        second = first if other is None else first.with_parameters(model=other.absolute())
    takes = constructor_parameters(second.plan.kind)
    values = {}
    for key, value in changes.items():
        if key not in takes:
            raise PipeError(f"{second.plan.name} has no {key}")
        try:
            values[key] = coerce(value, takes[key].annotation, None)
        except BadValue as problem:
            raise PipeError(f"{second.plan.name}: {key}: {problem}") from None
    return second.with_parameters(**values)


def compare(first: Model, second: Model, samples: Source, *, names: tuple[str, str], worst: int = WORST) -> Comparison:
    """Run both models on every sample, one at a time, and return where they differ.

    Args:
        first: its nodes prepare the data, for both models the same.
        second: the other one.
        samples: names, and what reads a request of each.
        names: what to call the models.
        worst: so many samples are kept, with what was given.

    Raises:
        PipeError: no sample could be compared, or the models have other outputs.
        ConfigError, ...: what building a model raises.
    """
    prepared = Samples(first.transform, samples)
    found = Comparison(names, failed=prepared.failed)
    kept: list[tuple[tuple[bool, float], int, Difference]] = []
    backends = first.build(), second.build()
    try:
        for sample in prepared:
            try:
                outputs = [_rows(backend, sample.prepared) for backend in backends]
            except Exception as error:  # whatever a model raises is its sample's
                found.failed.append(f"{sample.name}: {type(error).__name__}: {error}")
                continue
            difference = _difference(sample.name, sample.given, *outputs)
            _count(found, difference)
            heapq.heappush(kept, (difference.badness, -found.count, difference))
            if len(kept) > worst:
                heapq.heappop(kept)
    finally:
        for backend in backends:
            backend.close()
    if not found.count:
        first_failure = f": {found.failed[0]}" if found.failed else ", the data is empty"
        raise PipeError(f"no sample could be compared{first_failure}")
    found.worst = [difference for _, _, difference in sorted(kept, key=lambda each: each[:2], reverse=True)]
    return found


def _count(found: Comparison, difference: Difference) -> None:
    found.count += 1
    found.agreed_count += difference.agrees
    found.has_classes = found.has_classes or difference.classes is not None
    found.relatives.append(difference.relative)
    found.largest = max(found.largest, difference.largest)


def _rows(backend: Backend, prepared: Request) -> list[Array]:
    """Return the outputs of one sample, without the batch axis."""
    request = dict(prepared)
    backend.forward([request])
    result = request["result"]
    listed = result if isinstance(result, list | tuple) else [result]
    return [np.asarray(row)[0] if np.ndim(row) else np.asarray(row) for row in listed]


def _difference(name: str, given: Request, one: list[Array], other: list[Array]) -> Difference:
    shapes = [[row.shape for row in rows] for rows in (one, other)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"the models have other outputs: of {name} of shapes {shapes[0]} and {shapes[1]}")
    largest, relative = 0.0, 0.0
    for left, right in zip(one, other, strict=True):
        gap, part = gap_between(right, left)
        largest, relative = max(largest, gap), max(relative, part)
    if one[0].ndim != 1 or one[0].size < 2:
        return Difference(name, given, largest, relative, None)
    top = int(one[0].argmax()), int(other[0].argmax())
    second, first = np.partition(one[0], -2)[-2:]
    scores = float(one[0][top[0]]), float(other[0][top[1]])
    return Difference(name, given, largest, relative, top, scores, float(first - second))
