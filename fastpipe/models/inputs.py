"""Real data as a model gets it: samples through the pipe's own nodes in front of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastpipe.config.plan import StepPlan
from fastpipe.config.reading import load
from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, PipeError
from fastpipe.instances.one import build_backend
from fastpipe.models.sessions import Array
from fastpipe.train import Transform
from fastpipe.train.line import model_behind

__all__ = ["Model", "Sample", "Samples", "model_of"]

Source = Iterable[tuple[str, Callable[[], Request]]]


@dataclass(frozen=True)
class Sample:
    """One input, prepared."""

    name: str
    given: Request
    """As it was read."""
    prepared: Request
    """As it comes to the model, under ``data``."""


@dataclass
class Samples:
    """Prepares samples one after the other; those that fail are passed over and kept in ``failed``.

    Args:
        transform: the nodes in front of the model; None: there are none, and samples come to it as they are.
        source: names, and what reads a request.
    """

    transform: Transform | None
    source: Source
    failed: list[str] = field(default_factory=list)
    """Of each sample that has failed its name and why."""

    def __iter__(self) -> Iterator[Sample]:
        for name, read in self.source:
            try:
                given = read()
            except (OSError, ValueError) as error:
                self.failed.append(f"{name}: {error}")
                continue
            request = dict(given)
            if self.transform is None:
                yield Sample(name, given, request)
                continue
            failure = self.transform.attempt(request)
            if failure is not None:
                self.failed.append(f"{name}: {type(failure).__name__}: {failure}")
                continue
            request["data"] = request.pop("result")
            yield Sample(name, given, request)


@dataclass
class Model:
    """A step of a pipe that runs a model, and the nodes in front of it."""

    node: str
    plan: StepPlan
    transform: Transform | None

    @property
    def path(self) -> Path:
        """The file of the model.

        Raises:
            PipeError: it is no ONNX file.
        """
        path = self.plan.parameters.get("model")
        if not isinstance(path, Path) or path.suffix != ".onnx":
            raise PipeError(f"node {self.node!r}: {self.plan.name} runs no .onnx file: {path!s:.100}")
        if not path.is_file():
            raise PipeError(f"node {self.node!r}: there is no file {str(path)!r}")
        return path

    @property
    def called(self) -> str:
        """What to call it: its file, and its precision, where that is not the default."""
        model = self.plan.parameters.get("model")
        name = model.name if isinstance(model, Path) else f"{model!s:.60}"
        precision = self.plan.parameters.get("precision")
        return name if precision in (None, "fp32") else f"{name} in {precision}"

    def with_parameters(self, **changes: Any) -> Model:
        """Return the same with parameters of the model's step changed."""
        return replace(self, plan=replace(self.plan, parameters={**self.plan.parameters, **changes}))

    def build(self) -> Backend:
        """Return the step alone, whose results are the rows of its outputs, on the CPU."""
        parameters = {**self.plan.parameters, "postprocessor": "cpu"}
        return build_backend(replace(self.plan, parameters=parameters), self.node, 0)

    def normalized(self, data: Array) -> Array:
        """Return an image (channels, height, width) as the file's own graph gets it: the step may normalise itself."""
        import numpy as np

        mean, std = (self.plan.parameters.get(key) for key in ("mean", "std"))
        if mean is None and std is None:
            return data
        shape = (-1, 1, 1)
        shift = np.asarray(0.0 if mean is None else mean, np.float32).reshape(shape)
        scale = np.asarray(1.0 if std is None else std, np.float32).reshape(shape)
        return (data.astype(np.float32) - shift) / scale


def model_of(source: str | Path | Mapping[str, Any], node: str | None = None) -> Model:
    """Return the first step of a description, or of one of its nodes, that runs a model, with the nodes in front of it.

    Raises:
        ConfigError: none does; or as of ``Transform``.
    """
    name, plan, is_first = model_behind(load(source, {}), node)
    if is_first:
        return Model(name, plan, None)
    try:
        return Model(name, plan, Transform(source, before=f"{name}::{plan.name}"))
    except ConfigError as error:
        error.add_note("fastpipe: of the nodes in front of the model, through which the data goes")
        raise
