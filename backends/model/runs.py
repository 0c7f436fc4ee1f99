"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fastpipe.contract import Backend, Request
from fastpipe.errors import ConfigError, ItemErrors, KernelError

from .announced import announced_inputs, announced_outputs, with_padding
from .answers import Answers, Run, run_of
from .axes import Axes, Declared, in_place
from .fast_path import FastPath
from .lengths import Lengths
from .pad_keys import Pad
from .padded_axes import PaddedAxes
from .reader import RequestReader, Sample, UnfitError
from .shapes import InputSpec, Profile
from .state import ModelState

__all__ = ["Group", "ModelBackend", "run_in_groups", "shapes_in_words"]

_LARGEST_LENGTH = (1 << 31) - 1  # that the engine takes

_log = logging.getLogger(__name__)

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


class ModelBackend(Backend):
    """Base of the backends that run a model; the constructor sets ``_name``, then calls ``_take`` with its inputs."""

    _name: str
    _answers: Answers
    _output_names: list[str]  # of those that are handed on, and perhaps of others behind them
    _axes = Axes((), {}, {})
    _lengths: Lengths | None = None  # requests of different lengths share a run
    _state: ModelState  # of which a model may have none
    _fast_path: FastPath | None = None  # what requests go through whose shapes were met before, in place of all else

    def _take(
        self,
        inputs: RequestReader,
        profiles: Sequence[Profile],
        specs: Sequence[InputSpec] = (),
        *,
        many_rows: bool = False,
        inputs_to_run: RequestReader | None = None,
    ) -> None:
        """Take what reads requests; ``inputs_to_run``: another reader for those that are about to run."""
        self._reader = inputs
        self._readers = [inputs] if inputs_to_run is None or inputs_to_run is inputs else [inputs, inputs_to_run]
        if many_rows and inputs.max_batch == 1:
            raise ConfigError(
                "many_rows: expected max above 1, which says how many rows run together, got 1; with max=1 a request "
                "may bring any number of rows as it is: leave many_rows out"
            )
        if many_rows:
            for reader in self._readers:
                reader.take_many_rows()
            self.weigh = self._weight_of
        self._asked = list(specs)
        self.announced_inputs = announced_inputs(specs)
        self.max_batch = inputs.max_batch
        # Where no run ever has two rows, no output needs to have rows.
        self._has_rows = any(profile.batch_sizes()[0] > 1 for profile in profiles)

    @property
    def _asked_names(self) -> list[str]:
        """The names of the inputs that requests bring."""
        return [spec.name for spec in self._asked]

    def _take_state(self, state: ModelState) -> None:
        """Take what keeps the model's state, and have it complete the data of requests; called behind ``_take``."""
        self._state, self.stateful = state, bool(state)
        for reader in self._readers if state else ():
            reader.complete(state.data_of)

    def bucket(self, request: Request) -> Hashable:
        """Return the shapes, dtypes and devices of a request's data: what must be equal within a batch."""
        if self._fast_path is not None and (key := self._fast_path.key(request)) is not None:
            return key
        try:
            if self._lengths is not None:
                return self._lengths.reader.measure(request).key
            return self._reader.read(request).key
        except KernelError:
            return "misfit"  # run_in_groups() tells its caller why

    def _pad(
        self,
        pads: Sequence[Pad] | None,
        specs: Sequence[InputSpec] | None,
        declared: Sequence[Declared],
        profiles: Sequence[Profile],
        reader_of: Callable[[Sequence[InputSpec], Sequence[Profile]], RequestReader] | None = None,
    ) -> PaddedAxes | None:
        """Take requests of different lengths, as ``pads`` say; called behind ``_take``, with ``_axes`` settled.

        Args:
            pads: what is written of each length; None: nothing, and nothing is padded.
            specs: the inputs, with the types that a request's data become; None: nothing is known of them.
            declared: the outputs that are handed on; (): nothing is known of them.
            profiles: what the model takes.
            reader_of: makes a reader for inputs that are open where the model has one length; None: there is no such.

        Raises:
            ConfigError: if requests cannot be padded, or not as it says.
        """
        if pads is None:
            return None
        if specs is None:
            raise ConfigError("pad: expected shapes in max, such as '8x512', which say where the length is, got none")
        _check_paddable([spec.name for spec in specs], self._axes, many_rows=self._reader.takes_many_rows)
        shapes = self._axes.row_shapes(declared)
        outputs = [(name, shape or None) for (name, _), shape in zip(declared, shapes, strict=True)]
        axes = PaddedAxes.of(pads, specs, outputs, self._axes.outputs)
        axes.check(profiles)
        reader = self._reader
        if axes.fixed is not None:
            if reader_of is None:
                raise ConfigError(f"pad: expected an input whose length is open, got one of {axes.fixed}")
            reader = reader_of(*axes.opened(specs, profiles))
        for each in (reader, *self._readers):
            each.runs_alone = False  # also with max=1 a request is one row, which is padded, and never as it comes
        self._lengths = Lengths(reader, axes, self._name)
        self.length_of = functools.partial(_length_of, self._lengths)
        self.max_padded = axes.max_tokens
        self.max_padding = axes.max_padding if not axes.has_buckets else 1.0
        self.padding_counts = (self._lengths.count,)
        self.announced_inputs = with_padding(self.announced_inputs, axes)
        return axes

    def _announce(self, declared: Sequence[Declared], dtypes: Mapping[str, str], postprocessor: Any) -> None:
        """Tell servers of the outputs, where these are handed out as they are; called at the end.

        Args:
            declared: the outputs that are handed out.
            dtypes: of each, by name, in NumPy's words.
            postprocessor: as the node has it.
        """
        if postprocessor not in ("split", "cpu") or not declared or not all(shape for _, shape in declared):
            return
        # Where requests share runs, it is proved that each has a row.
        names = {spec.shape[0] for spec in self._asked if not spec.is_shared} - {"?"} | {1}
        batches = None if self._has_rows else names
        padded = self._lengths.axes if self._lengths is not None else None
        as_dict = self._answers.as_dict
        self.announced_outputs = announced_outputs(
            declared, dtypes, self._axes, batches, as_dict=as_dict, padded=padded
        )

    def _run_batch(self, inputs: Any, batch: list[Request], run: Callable[[Group], None]) -> None:
        """Call ``run`` for each group of a batch, as ``run_in_groups`` does; requests of similar lengths are padded."""
        if self._lengths is None:
            run_in_groups(inputs, batch, run)
        else:
            self._lengths.run(inputs, batch, run, run_in_groups)

    def _finish(self, outputs: list[Any], group: Group, row_count: int) -> None:
        """Give a group its results.

        Args:
            outputs: of a run, as ``Axes.to_rows`` gives them, without the rows that were filled up.
            group: the requests that shared it.
            row_count: of the run, with what was filled up.
        """
        if self._lengths is None and self._answers.are_plain:
            self._answers.fill_rows(outputs, [request for request, _ in group])
        else:
            self._answer(run_of(self._reader, self._output_names[: len(outputs)], outputs, group, row_count))

    def _answer(self, run: Run) -> None:
        """Give the requests of a run their results; where they were padded, from outputs cut to their own lengths."""
        if self._lengths is None:
            self._answers.fill(run)
            return

        def fill(outputs: list[Any], requests: list[Request]) -> None:
            self._answers.fill(Run(run.names, outputs, requests, [1] * len(requests), len(requests)))

        self._lengths.finish(run.outputs, run.requests, run.row_count, fill)

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
                reason, _, _ = str(error).partition(". ")  # behind it is what to do about it otherwise
                for reader in self._readers:
                    reader.refuse_padding(f"{reason}; rows='batch' says that zeros may fill it up")
                self._has_rows = False
                self.announced_inputs = announced_inputs(self._asked, are_whole=True)
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
        if not self._has_rows:
            return ""
        for name, shape in zip(names, shapes, strict=True):
            if tuple(shape[:1]) == (row_count,) or not self._axes.has_rows(str(name)):
                continue
            axis = self._axes.outputs.get(str(name), 0)
            return (
                f"output {name!r}: expected {row_count} rows for a batch of {row_count}"
                f"{f' on axis {axis}' if axis else ''}, got shape {in_place(shape, axis)}; batch_axis says on which "
                f"axis they are, split_by in which column the request's number is, and a model that cannot be batched "
                f"needs max=1"
            )
        return ""


def _check_paddable(inputs: Sequence[str], axes: Axes, *, many_rows: bool) -> None:
    """Raise ConfigError for what cannot be padded: what has no row for each request, or several."""
    if many_rows:
        raise ConfigError("pad: expected requests of one row each, got many_rows; leave one of the two out")
    for name, axis in axes.outputs.items():
        if axis is None and name not in inputs:
            raise ConfigError(
                f"pad: output {name!r}: expected an axis for the requests, got one for all (batch_axis); leave it out "
                f"of outputs"
            )
    for name in axes.columns:
        raise ConfigError(
            f"pad: output {name!r}: expected a row for each request, which is cut to its length, got rows of all "
            f"together (split_by); leave it out of outputs, or leave pad out"
        )


def _length_of(lengths: Lengths, request: Request) -> int:
    """Return how long a request is for the engine: its elements as it is padded, where that is known."""
    try:
        measured = lengths.reader.measure(request)
    except KernelError:
        return 1  # forward() tells its caller why
    padded = [target or length for target, length in zip(measured.targets, measured.lengths, strict=True)]
    return min(lengths.axes.element_count(tuple(padded)), _LARGEST_LENGTH)


def shapes_in_words(values: Sequence[Any]) -> str:
    """Return the shapes of what a model was run with, or the kinds of what has none."""
    return ", ".join(str(getattr(value, "shape", type(value).__name__)) for value in values)


class Reader(Protocol):
    """Reads the data of requests."""

    @property
    def takes_many_rows(self) -> bool:
        """Whether a request may have any number of rows."""

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked."""


def run_in_groups(inputs: Reader, batch: list[Request], run: Callable[[Group], None]) -> None:
    """Call ``run`` for each group of a batch.

    Args:
        inputs: reads the requests.
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
        for part in _parts(group, by_rows=inputs.takes_many_rows):
            unfit += _run_without_unfit(part, run)
    for request, own_error in unfit:
        errors[next(index for index, each in enumerate(batch) if each is request)] = own_error
    if errors:
        raise ItemErrors(errors)


def _parts(group: Group, *, by_rows: bool) -> Iterator[Group]:
    """Yield parts of a group that have no more rows than their profile takes; not ``by_rows``: each request has one."""
    most = group[0][1].fit.profile.max_batch
    if not by_rows:
        for start in range(0, len(group), most):
            yield group[start : start + most]
        return
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
