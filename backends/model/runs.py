"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

from fastpipe.announcing import announced_array
from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, ItemErrors, KernelError

from .axes import Axes, in_place
from .reader import RequestReader, Sample, UnfitError
from .shapes import InputSpec, Profile

__all__ = ["Group", "ModelBackend", "run_in_groups"]

_log = logging.getLogger(__name__)

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


class ModelBackend(Backend):
    """Base of the backends that run a model; the constructor sets ``_name``, then calls ``_take`` with its inputs."""

    _name: str

    _axes = Axes((), {}, {})

    def _take(
        self,
        inputs: RequestReader,
        profiles: Sequence[Profile],
        specs: Sequence[InputSpec] = (),
        *,
        many_rows: bool = False,
    ) -> None:
        self._reader = inputs
        if many_rows and inputs.max_batch == 1:
            raise ConfigError(
                "many_rows: expected max above 1, which says how many rows run together, got 1; with max=1 a request "
                "may bring any number of rows as it is: leave many_rows out"
            )
        if many_rows:
            inputs.take_many_rows()
            self.weigh = self._weight_of
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

    def _weight_of(self, request: Request) -> float:
        """Return as how many requests one counts: its rows; one that has none is a row of zeros."""
        try:
            return max(1, self._reader.read(request).fit.rows)
        except KernelError:
            return 1  # run_in_groups() tells its caller why

    def _build_up(self, prove: Callable[[], None] | None, warm_up: Callable[[], None]) -> None:
        """Run the model for the first time, and prove its rows, where it has any; ``prove`` None: they are vouched for.

        Where requests run alone, a batch of a fixed size can be filled up only if there is proof; without it, they have
        to bring all of its rows.

        Raises:
            ConfigError: if requests are to share runs, and the model does not run, or there is no proof.
        """
        to_prove = prove if self._has_rows else None
        if to_prove is not None and self._reader.runs_alone:
            try:
                to_prove()
            except ConfigError as error:
                self._reader.refuse_padding(str(error))
                self._has_rows = False
            to_prove = None
        try:
            warm_up()
        except ConfigError as error:
            # Zeros may be no valid data of a model that is right; here nothing else depends on them.
            if not self._reader.runs_alone:
                raise
            _log.warning("%s: %s", self._name, error)
        if to_prove is not None:
            to_prove()

    def _named(self, error: ConfigError) -> ConfigError:
        """Return an error that names the model."""
        return ConfigError(*[f"{self._name}: {problem}" for problem in error.problems])

    def _row_problem(self, names: Sequence[object], shapes: Sequence[Sequence[Any]], row_count: int) -> str:
        """Return which output has too few rows, or too many; nothing if none has, or none needs any."""
        for name, shape in zip(names, shapes, strict=True):
            if not self._has_rows or not self._axes.has_rows(str(name)) or tuple(shape[:1]) == (row_count,):
                continue
            axis = self._axes.outputs.get(str(name), 0)
            return (
                f"output {name!r}: expected {row_count} rows for a batch of {row_count}"
                f"{f' on axis {axis}' if axis else ''}, got shape {in_place(shape, axis)}; batch_axis says on which "
                f"axis they are, split_by in which column the request's number is, and a model that cannot be batched "
                f"needs max=1"
            )
        return ""


class Reader(Protocol):
    """Reads the data of requests."""

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked."""


def run_in_groups(inputs: Reader, batch: list[Request], run: Callable[[Group], None]) -> None:
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
        for part in _parts(group):
            unfit += _run_without_unfit(part, run)
    for request, own_error in unfit:
        errors[next(index for index, each in enumerate(batch) if each is request)] = own_error
    if errors:
        raise ItemErrors(errors)


def _parts(group: Group) -> Iterator[Group]:
    """Yield parts of a group that have no more rows than their profile takes."""
    most = group[0][1].fit.profile.max_batch
    part: Group = []
    taken = 0
    for each in group:
        weight = max(1, each[1].fit.rows)
        if part and taken + weight > most:
            yield part
            part, taken = [], 0
        part.append(each)
        taken += weight
    yield part


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
