"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from fastpipe.announcing import announced_array
from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, ItemErrors, KernelError

from .reader import RequestReader, Sample, UnfitError
from .shapes import InputSpec, Profile

__all__ = ["Group", "ModelBackend", "run_in_groups"]

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


class ModelBackend(Backend):
    """Base of the backends that run a model; the constructor sets ``_name``, then calls ``_take`` with its inputs."""

    _name: str

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
            return self._reader.read(request).key
        except KernelError:
            return "misfit"  # run_in_groups() tells its caller why

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


def run_in_groups(inputs: RequestReader, batch: list[Request], run: Callable[[Group], None]) -> None:
    """Call ``run`` for each group of a batch.

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
