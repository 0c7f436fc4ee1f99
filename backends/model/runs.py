"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from fastpipe.announcing import announced_array
from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, ItemErrors, KernelError

from .length_axes import LengthAxes, Pad
from .lengths import Lengths
from .postprocessors import Postprocessor, postprocess
from .reader import RequestReader, Sample, UnfitError
from .shapes import InputSpec, Profile

__all__ = ["Group", "ModelBackend", "run_in_groups"]

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


class ModelBackend(Backend):
    """Base of the backends that run a model; the constructor sets ``_name``, then calls ``_take`` with its inputs."""

    _name: str
    _postprocessor: Postprocessor
    _lengths: Lengths | None = None  # requests of different lengths share a run

    def _take(self, inputs: RequestReader, profiles: Sequence[Profile], specs: Sequence[InputSpec] = ()) -> None:
        self._reader = inputs
        if len(specs) == 1:
            self.announced_inputs = announced_array(specs[0].name, specs[0].dtype.name, specs[0].shape[1:], "data")
        self.max_batch = inputs.max_batch
        # Where no run ever has two rows, no output needs to have rows.
        self._has_rows = any(profile.batch_sizes()[0] > 1 for profile in profiles)

    def bucket(self, request: Request) -> Hashable:
        """Return the shapes, dtypes and devices of a request's data: what must be equal within a batch."""
        try:
            if self._lengths is not None:
                return self._lengths.reader.measure(request).key
            return self._reader.read(request).key
        except KernelError:
            return "misfit"  # run_in_groups() tells its caller why

    def _pad(
        self,
        pad: Pad,
        specs: Sequence[InputSpec],
        outputs: Sequence[tuple[str | int, Sequence[Any] | None]],
        profiles: Sequence[Profile],
        reader_of: Callable[[Sequence[InputSpec], Sequence[Profile]], RequestReader] | None,
    ) -> LengthAxes:
        """Take requests of different lengths, as ``pad`` says; called behind ``_take``.

        Args:
            pad: what is written.
            specs: the inputs, with the types that a request's data become.
            outputs: of each its name, and its shape if it is known; (): nothing is known of them.
            profiles: what the model takes.
            reader_of: makes a reader for inputs that are open where the model has one length; None: there is no such.
        """
        axes = LengthAxes.of(pad, specs, outputs)
        axes.check(profiles)
        reader = self._reader
        if axes.fixed is not None:
            if reader_of is None:
                raise ConfigError(f"pad: expected an input whose length is open, got one of {axes.fixed}")
            reader = reader_of(*axes.opened(specs, profiles))
        self._lengths = Lengths(reader, axes, self._name)
        self.length_of = functools.partial(_length_of, self._lengths)
        self.max_padded = axes.max_tokens
        self.max_padding = axes.max_padding if not axes.buckets else 1.0
        self.padding_counts = (self._lengths.count,)
        return axes

    def _run_batch(self, inputs: Any, batch: list[Request], run: Callable[[Group], None]) -> None:
        """Call ``run`` for each group of a batch, as ``run_in_groups`` does; requests of similar lengths are padded."""
        if self._lengths is None:
            run_in_groups(inputs, batch, run)
        else:
            self._lengths.run(inputs, batch, run, run_in_groups)

    def _finish(self, outputs: list[Any], requests: list[Request], row_count: int) -> None:
        """Make results of the outputs of a run, which have a row for each request; it had ``row_count`` rows."""
        if self._lengths is None:
            postprocess(self._postprocessor, outputs, requests)
        else:
            finish = functools.partial(postprocess, self._postprocessor)
            self._lengths.finish(outputs, requests, row_count, finish)

    def _named(self, error: ConfigError) -> ConfigError:
        """Return an error that names the model."""
        return ConfigError(*[f"{self._name}: {problem}" for problem in error.problems])

    def _row_problem(self, names: Sequence[object], shapes: Sequence[Sequence[int]], row_count: int) -> str:
        """Return which output has too few rows, or too many; nothing if none has, or none needs any."""
        for name, shape in zip(names, shapes, strict=True):
            if self._has_rows and tuple(shape[:1]) != (row_count,):
                return (
                    f"output {name!r}: expected {row_count} rows for a batch of {row_count}, got shape {tuple(shape)}; "
                    f"a model that cannot be batched needs max=1"
                )
        return ""


def _length_of(lengths: Lengths, request: Request) -> int:
    """Return how long a request is for the engine: what it is padded to, where that is known."""
    try:
        measured = lengths.reader.measure(request)
    except KernelError:
        return 1  # forward() tells its caller why
    return measured.target or measured.length


def run_in_groups(inputs: Any, batch: list[Request], run: Callable[[Group], None]) -> None:
    """Call ``run`` for each group of a batch.

    Args:
        inputs: a ``RequestReader``, or what else has its ``read``.
        batch: the requests.
        run: what runs some of them, of equal shapes.

    Raises:
        ItemErrors: for the requests that the model cannot take; the others have run.
        Exception: what ``run`` raises; but where it is UnfitError, the others of the group are run without those.
    """
    groups: dict[Hashable, Group] = {}
    errors: dict[int, BaseException] = {}
    for index, request in enumerate(batch):
        try:
            sample = inputs.read(request)
        except KernelError as error:
            # Its traceback would hold this frame, and with it the whole batch, for as long as somebody keeps it.
            errors[index] = error.with_traceback(None)
        else:
            groups.setdefault(sample.key, []).append((request, sample))
    unfit: list[tuple[Request, KernelError]] = []
    for group in groups.values():
        step = group[0][1].fit.profile.max_batch
        for start in range(0, len(group), step):
            unfit += _run_without_unfit(group[start : start + step], run)
    for request, own_error in unfit:
        errors[next(index for index, each in enumerate(batch) if each is request)] = own_error
    if errors:
        raise ItemErrors(errors)


def _run_without_unfit(group: Group, run: Callable[[Group], None]) -> list[tuple[Request, KernelError]]:
    """Call ``run`` until nobody is left whom it finds unfit; return those, with why."""
    unfit: list[tuple[Request, KernelError]] = []
    while group:
        try:
            run(group)
            break
        except UnfitError as found:
            unfit += [(group[number][0], error) for number, error in found.errors.items()]
            group = [each for number, each in enumerate(group) if number not in found.errors]
    return unfit
