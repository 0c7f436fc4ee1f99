"""Requests of different lengths in one run of a model: padded to one length, and their outputs cut back to their own.

    {"backend": "OnnxTensor", "model": "embed.onnx", "max": 32, "pad": "longest", "max_tokens": 4096}
    {..., "pad": {"to": [32, 128, 512], "axis": "seq", "value": {"input_ids": 1}}}
    {..., "pad": [{"to": "longest", "axis": "height"}, {"to": "longest", "axis": "width"}]}

How a request travels: ``LengthReader`` makes the mask and the length that the model wants and the request has not
brought, and tells the engine how long the request is and what it may share a batch with. When a batch is run,
``Lengths.run`` divides it into runs that keep the bounds, pads, and has the backend run them as if requests of equal
shape had come; ``Lengths.finish`` cuts the outputs for each request before the postprocessor sees them.

That padding changes no answer is proved by trials: ``length_proof``. Which axes are padded, and which of the outputs
have a length: ``padded_axes``, and of each length ``length_axes``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import KernelError
from fastpipe.padding import PaddingCount

from .padded_axes import PaddedAxes, Sizes
from .reader import RequestReader, Sample, UnfitError

__all__ = ["LengthReader", "Lengths", "Measured"]

# So many masks and lengths are kept, each for all requests of that length; then one starts anew.
_KEPT = 1024


class Measured(NamedTuple):
    """A request that was read."""

    sample: Sample
    lengths: Sizes
    targets: Sizes  # what it is padded to; 0: the longest of its run
    element_count: int  # of the request
    key: Hashable  # equal for all that may share a batch


class _PaddedSample(Sample):
    """A request's data, padded; requests of different runs never share a key."""

    run: int = 0

    @property
    def key(self) -> Hashable:
        return self.run


class LengthReader:
    """Reads requests whose lengths differ.

    Args:
        reader: reads the same as they are, of whatever length the model takes.
        axes: what is padded, and how.
        model: what messages call the model.

    Thread-safety: any thread may call it.
    """

    def __init__(self, reader: RequestReader, axes: PaddedAxes, model: str) -> None:
        self._reader = reader
        self._axes = axes
        self._model = model
        self.max_batch = reader.max_batch
        self._made = axes.made_inputs
        self._kept: dict[tuple[int, Sizes], Any] = {}

    def measure(self, request: Request) -> Measured:
        """Return the data of a request, with what is made for it, checked; and how long it is.

        Raises:
            KernelError: if the model cannot take it; the message has the model, the input, the axis, expected and got.
        """
        data = request.get("data")
        if self._made and "data" in request:
            request = {"data": self._completed(data)}
        sample = self._reader.read(request)
        lengths = self._lengths(sample.fit.item_shapes)
        targets = self._axes.targets(lengths)
        count = self._axes.element_count(lengths)
        if targets is None:
            raise self._too_long(sample.fit.item_shapes, lengths)
        padded = tuple([target or length for target, length in zip(targets, lengths, strict=True)])
        if self._axes.max_tokens is not None and self._axes.element_count(padded) > self._axes.max_tokens:
            raise self._too_many(lengths, padded)
        key = self._reader.key_apart_from(sample, self._axes.item_axes)
        return Measured(sample, lengths, targets, count, (key, targets))

    def _lengths(self, items: Sequence[tuple[int, ...]]) -> Sizes:
        """Return the lengths of a request, each of which all inputs that are padded by it have to have."""
        found = []
        for each in self._axes.lengths:
            first, *others = [
                (index, items[index][axis]) for index, axis in enumerate(each.of_inputs) if axis is not None
            ]
            for index, size in others:
                if size != first[1]:
                    name = self._axes.names[first[0]]
                    raise KernelError(
                        f"{self._model}, {each.input_place(index)}: expected {first[1]}, the length of "
                        f"input {name!r}, got {size}: the inputs that are padded need one length"
                    )
            if first[1] < 1:
                raise KernelError(
                    f"{self._model}, {each.input_place(first[0])}: expected a length of at least 1, got {first[1]}"
                )
            found.append(first[1])
        return tuple(found)

    def _too_long(self, items: Sequence[tuple[int, ...]], lengths: Sizes) -> KernelError:
        """Return the error of a request for which there is no bucket."""
        each, length = next(
            (each, length)
            for each, length in zip(self._axes.lengths, lengths, strict=True)
            if each.target(length) is None
        )
        most = each.buckets[-1]
        return KernelError(
            f"{self._model}, {each.input_place(each.first)}: expected a length of at most {most}, got {length}: "
            f"pad to a longer one than {most}, or shorten it before"
        )

    def _too_many(self, lengths: Sizes, padded: Sizes) -> KernelError:
        """Return the error of a request with more elements than a run may have."""
        most = self._axes.max_tokens
        first = self._axes.lengths[0]
        place = f"{self._model}, {first.input_place(first.first)}: expected"
        if len(lengths) == 1:
            return KernelError(
                f"{place} a length of at most {most}, got {lengths[0]}: raise max_tokens, or shorten it before"
            )
        return KernelError(
            f"{place} at most {most} elements in all, got lengths of {', '.join(map(str, lengths))}, with padding "
            f"{self._axes.element_count(padded)}: raise max_tokens, or send less"
        )

    def _completed(self, data: Any) -> Any:
        """Return a request's data with the mask and the length that it has not brought."""
        names = self._axes.names
        missing = self._made
        if isinstance(data, Mapping):
            missing = [index for index in self._made if names[index] not in data]
            if not missing or not all(name in data or index in missing for index, name in enumerate(names)):
                return data  # the reader says what is wrong, if anything is
            given = [data.get(name) for name in names]
            if len(data) + len(missing) != len(names):
                return data
        else:
            values = list(data) if isinstance(data, list | tuple) else [data]
            if len(values) != len(names) - len(missing):
                return data
            source = iter(values)
            given = [None if index in missing else next(source) for index in range(len(names))]
        lengths = tuple([self._length_of_given(each.of_inputs, given) for each in self._axes.lengths])
        for index in missing:
            given[index] = self._made_for(index, lengths)
        return given

    def _length_of_given(self, axes: Sequence[int | None], given: Sequence[Any]) -> int:
        for index, axis in enumerate(axes):
            if axis is not None and given[index] is not None:
                shape = _shape_of(given[index])
                spec = self._axes.specs[index]
                if len(shape) == len(spec.shape) and spec.axis is not None:
                    shape = shape[: spec.axis] + shape[spec.axis + 1 :]
                if axis < len(shape):
                    return shape[axis]
        return 1  # no array, or one of the wrong rank: the reader says so

    def _made_for(self, index: int, lengths: Sizes) -> Any:
        """Return the mask, or the length, of a request: those of equal lengths share it, so nobody may change it."""
        made = self._kept.get((index, lengths))
        if made is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[index, lengths] = made = self._axes.made(index, lengths)
            made.flags.writeable = False
        return made


class _PaddedReader:
    """Hands out what was padded before: what ``run_in_groups`` asks for the requests of a batch."""

    takes_many_rows = False

    def __init__(self) -> None:
        self.samples: dict[int, Sample | KernelError] = {}  # by id of the request

    def read(self, request: Request) -> Sample:
        found = self.samples[id(request)]
        if isinstance(found, KernelError):
            raise found
        return found


Runner = Callable[[Any, list[Request], Any], None]
"""``run_in_groups``."""


class Lengths:
    """What a backend does with requests of different lengths.

    Args:
        reader: reads requests as they are.
        axes: what is padded, and how.
        model: what messages call the model.

    Thread-safety: ``reader`` may be used by any thread, everything else by one at a time.
    """

    def __init__(self, reader: RequestReader, axes: PaddedAxes, model: str) -> None:
        self.reader = LengthReader(reader, axes, model)
        self.count = PaddingCount()
        self.axes = axes
        self._lengths: dict[int, tuple[Sizes, Sizes]] = {}  # by id of a request that runs: its own, and the padded one

    def run(self, inputs: RequestReader, batch: list[Request], run_group: Any, runner: Runner) -> None:
        """Run a batch: ``runner`` is given all of it, and ``run_group`` what shares a run, padded.

        Args:
            inputs: reads requests once they are padded.
            batch: the requests.
            run_group: runs those of one run.
            runner: ``run_in_groups``.

        Raises:
            What ``runner`` raises.
        """
        padded = _PaddedReader()
        by_key: dict[Hashable, list[tuple[Request, Measured]]] = {}
        for request in batch:
            try:
                measured = self.reader.measure(request)
            except KernelError as error:
                padded.samples[id(request)] = error
                continue
            by_key.setdefault(measured.key, []).append((request, measured))
        try:
            for number, run in enumerate(run for group in by_key.values() for run in self._runs(group)):
                self._pad(inputs, run, number, padded)
            runner(padded, batch, run_group)
        finally:
            self._lengths.clear()

    def finish(
        self,
        outputs: list[Any],
        requests: list[Request],
        row_count: int,
        postprocess: Callable[[list[Any], list[Request]], None],
    ) -> None:
        """Hand the outputs of a run to the postprocessor, each request's cut to its own length.

        Requests of one length are handed over together, and all of them where no output has the length.

        Args:
            outputs: with a row for each request, in their order.
            requests: of the run.
            row_count: of the run, with those that were filled in.
            postprocess: fills in the results of requests, from outputs with a row for each.
        """
        lengths = [self._lengths[id(request)][0] for request in requests]
        # All have been padded to the same; whose length that was may have been found unfit.
        target = self._lengths[id(requests[0])][1]
        own = sum([self.axes.element_count(each) for each in lengths])
        self.count.add(own, row_count * self.axes.element_count(target))
        if not self.axes.cuts_outputs or all(each == target for each in lengths):
            postprocess(outputs, requests)
        elif len(set(lengths)) == 1:
            postprocess(self.axes.cut(outputs, lengths[0], target), requests)
        else:
            errors: dict[int, KernelError] = {}
            for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
                alone = [output[row : row + 1] for output in outputs]
                try:
                    postprocess(_alone(self.axes.cut(alone, length, target)), [request])
                except UnfitError as error:  # of this one request
                    errors[row] = error.errors[0]
            if errors:
                raise UnfitError(errors)

    def _runs(self, group: list[tuple[Request, Measured]]) -> Iterable[list[tuple[Request, Measured]]]:
        """Divide requests that may share a run by length, so that each run keeps the bounds.

        A batch that the engine has formed by length is one run; what others have formed is divided.
        """
        group = sorted(group, key=lambda each: -each[1].element_count)
        most = self.reader.max_batch
        run: list[tuple[Request, Measured]] = []
        own = 0
        longest: Sizes = ()
        for each in group:
            measured = each[1]
            count, padded = measured.element_count, _longest(longest, measured)
            if run and (len(run) == most or not self.axes.is_within(len(run) + 1, own + count, padded)):
                yield run
                run, own, padded = [], 0, _longest((), measured)
            run.append(each)
            own, longest = own + count, padded
        if run:
            yield run

    def _pad(
        self, inputs: RequestReader, run: list[tuple[Request, Measured]], number: int, padded: _PaddedReader
    ) -> None:
        """Pad the requests of a run to the same lengths."""
        targets: Sizes = ()
        for _, measured in run:
            targets = _longest(targets, measured)
        for request, measured in run:
            self._lengths[id(request)] = measured.lengths, targets
            arrays = [
                self.axes.padded(index, array, targets, spec.axis if array.ndim == len(spec.shape) else None)
                for index, (spec, array) in enumerate(zip(self.axes.specs, measured.sample.arrays, strict=True))
            ]
            try:
                found = inputs.read({"data": arrays})
            except KernelError as error:  # the model takes no length like that
                padded.samples[id(request)] = error
                continue
            sample = _PaddedSample(found.arrays, found.fit, measured.sample.is_torch)
            sample.run = number
            padded.samples[id(request)] = sample


def _longest(longest: Sizes, measured: Measured) -> Sizes:
    """Return what a run is padded to that has one more request; ``()``: it had none."""
    own = [target or length for target, length in zip(measured.targets, measured.lengths, strict=True)]
    return tuple(map(max, own, longest)) if longest else tuple(own)


def _shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array; (): it is none that has one."""
    try:
        if not hasattr(value, "shape") and hasattr(value, "__dlpack__"):
            value = np.from_dlpack(value)
        return tuple([int(size) for size in value.shape])
    except Exception:  # of any library, about arrays unlike others: the reader says what they are
        return ()


def _alone(outputs: list[Any]) -> list[Any]:
    """Return one request's outputs; torch's on the CPU as copies: who saves a view saves what it is a view of."""
    torch = sys.modules.get("torch")
    return [
        output.clone() if torch is not None and isinstance(output, torch.Tensor) and not output.is_cuda else output
        for output in outputs
    ]
