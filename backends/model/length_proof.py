"""Whether padding changes what a model answers: tried before requests of different lengths share a run.

Pseudo-random requests of three lengths are run alone, as they are, and together, padded to the longest; what is cut for
each must be what it gave alone. A model whose answers depend on the padding (a mean over all tokens, a softmax without
a mask, a normalisation over time) is refused, since its callers would get what depends on their neighbours.

The same runs, and one of a longer request, show which axes of the outputs depend on the length, and how, see
``length_sizes``. What the model's names, or ``pad.outputs``, say otherwise is an error.

What is left: a trial shows what its numbers show. Whole numbers are 0 and 1, lengths are short (up to 64, if the model
takes them): that a model takes no lengths beyond 512, say, nobody sees but the request that has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fastpipe.errors import ConfigError

from .inputs import Array
from .length_axes import LengthAxes
from .length_sizes import LENGTHS_TO_FIT, Cut, fitting
from .shapes import Profile

__all__ = ["prove_lengths", "prove_lengths_once"]

# A padded length, and the two that are padded to it. The first that the model takes are tried; those behind are for
# models that need more, or less. Small ones show more: what leaks at an edge is a larger part of them.
_LENGTHS = ((16, 5, 11), (64, 23, 40), (8, 3, 5), (400, 150, 290), (4, 1, 3), (3, 1, 2))
_GUESSES = (64, 8, 224, 3, 1)  # for other axes that are open
_LARGEST_GUESS = 1 << 22  # numbers in an item
_SEEDS = 3
# Of the numbers of an output so many may be off: where one is compared inside a model, a rounding can tip it over.
_SHARE_OFF = 0.005

_LEAVE_OUT = "leave that output out of the file; or without pad, requests of equal length share a run"

Run = Callable[[list[Array]], list[Array]]


class _Trial(NamedTuple):
    lengths: tuple[int, ...]  # the last one is what the others are padded to
    items: list[tuple[int, ...]]  # of each input, with 0 for the length


_settled: dict[Hashable, list[tuple[Cut, ...] | None]] = {}


def prove_lengths_once(key: Hashable, axes: LengthAxes, prove: Callable[[], None]) -> None:
    """Call ``prove``, or complete ``axes.of_outputs`` as it did for the same key: instances of one model need one."""
    if key not in _settled:
        prove()
        if len(_settled) >= 1024:
            _settled.clear()
        _settled[key] = axes.of_outputs
    axes.of_outputs = list(_settled[key])


def prove_lengths(
    run: Run, axes: LengthAxes, profiles: Sequence[Profile], tolerance: float, *, is_vouched: bool = False
) -> None:
    """Return if each request gets, padded, what it would get as it is; ``axes.of_outputs`` is then complete.

    Args:
        run: the model, on one array for each input with the batch in front; it may fail.
        axes: what is padded.
        profiles: what the model takes.
        tolerance: how far a number may be off, of the largest of its output.
        is_vouched: somebody else says so: nothing is tried but which axes of the outputs have the length.

    Raises:
        ConfigError: if the padding changes an answer, or it cannot be tried; the message has the input, the axis, the
            output, and what was seen.
    """
    if axes.fixed is not None:  # it runs with one length, to which a request alone is padded, too
        _need_known(axes, f"the model has the one length {axes.fixed}")
        return
    profile = max(profiles, key=lambda profile: (profile.batch_sizes()[0] > 1, -_volume(profile)))
    if not axes.buckets and profile.max_batch == 1:
        return  # nothing is ever padded
    failure: Exception | None = None
    for trial in _trials(axes, profile):
        prover = _Prover(run, axes, profile, trial, tolerance)
        try:
            alone = prover.alone(0)
        except Exception as error:  # of any library, about lengths that the model cannot take
            failure = failure or error
            continue
        prover.settle_outputs(alone)
        for seed in range(0 if is_vouched else _SEEDS):
            prover.compare(alone if seed == 0 else prover.alone(seed), seed)
        return
    reason = str(failure).strip() if failure is not None else "it takes no two lengths"
    if is_vouched:
        _need_known(axes, f"the model cannot be tried: {reason}")
        return
    raise ConfigError(
        f"{_where(axes)}: whether padding changes an answer cannot be tried on pseudo-random data: {reason}; "
        f"if you know that it does not, rows='batch' says so"
    ) from failure


class _Prover:
    """Runs of one model with requests of certain lengths."""

    def __init__(self, run: Run, axes: LengthAxes, profile: Profile, trial: _Trial, tolerance: float) -> None:
        self._run = run
        self._axes = axes
        self._trial = trial
        self._tolerance = tolerance
        sizes = profile.batch_sizes()
        self._least, self._most = sizes[-1], sizes[0]
        _, high = _range(axes, profile)
        self._longest = min([size for size in (high, *axes.buckets[-1:]) if size is not None], default=1 << 20)
        self._sizes: list[list[tuple[int, ...]]] = []  # of outputs, by length: once, where they are no length

    def alone(self, seed: int) -> list[list[Array]]:
        """Return the outputs of a request of each length, run as it is."""
        return [self._alone(seed, length) for length in self._trial.lengths]

    def _alone(self, seed: int, length: int) -> list[Array]:
        outputs = self._run(self._filled_up(self._request(seed, length)))
        return [output[:1] if self._most > 1 else output for output in outputs]

    def settle_outputs(self, alone: Sequence[Sequence[Array]]) -> None:
        """Find which axes of the outputs depend on the length; raise ConfigError if what is known of them is wrong."""
        lengths = self._trial.lengths
        if not self._axes.output_names:  # of a model that tells nothing before it has run
            self._axes.output_names = list(range(len(alone[0])))
            self._axes.of_outputs = self._axes.said_of(self._axes.output_names)
        longer = self._longer()
        for index, outputs in enumerate(zip(*alone, strict=True)):
            shapes = [output.shape for output in outputs]
            more = [*shapes, *[of_outputs[index] for of_outputs in longer]]
            if len({len(shape) for shape in more}) > 1:
                raise self._refusal(index, f"as many axes for every length, got {_listed(shapes)}", _LEAVE_OUT)
            cuts = []
            for axis, sizes in enumerate(zip(*more, strict=True)):
                if sizes[: len(lengths)] == lengths:
                    cuts.append(Cut(axis))
                elif len(set(sizes)) > 1:
                    cuts.append(self._cut_of(index, axis, shapes))
            known, seen = self._axes.of_outputs[index], [cut.axis for cut in cuts]
            if known is not None and {cut.axis for cut in known} != set(seen):
                raise ConfigError(
                    f"pad.outputs: output {self._axes.output_names[index]!r}: expected the length in the axes "
                    f"{[cut.axis for cut in known]}, got {_listed(shapes)} for lengths of {_listed(lengths)}: "
                    f"that is {seen}"
                )
            self._axes.of_outputs[index] = tuple(cuts)

    def _longer(self) -> list[list[tuple[int, ...]]]:
        """Return the shapes of the outputs for one longer request: a large stride may not show in short ones."""
        length = min(max(self._trial.lengths) + LENGTHS_TO_FIT, self._longest)
        try:
            return [[output.shape for output in self._alone(0, length)]]
        except Exception:  # of any library: it takes no such length
            return []

    def _cut_of(self, index: int, axis: int, shapes: Sequence[tuple[int, ...]]) -> Cut:
        """Return how an axis of an output follows the length; raise ConfigError if it does so in no known way."""
        start = min(self._trial.lengths)
        lengths = [length for length in range(start, start + LENGTHS_TO_FIT) if length <= self._longest]
        if not self._sizes:
            try:
                self._sizes = [[output.shape for output in self._alone(0, length)] for length in lengths]
            except Exception as error:  # of any library
                reason = f"it to take every length from {lengths[0]} to {lengths[-1]}, got {str(error).strip()}"
                raise self._refusal(index, reason, _LEAVE_OUT) from error
        cut = fitting(axis, lengths, [of_outputs[index][axis] for of_outputs in self._sizes])
        if cut is None:
            raise self._refusal(
                index,
                f"an axis as long as the request, or by a stride of up to 16, or some times as long, got "
                f"{_listed(shapes)} for lengths of {_listed(self._trial.lengths)}",
                _LEAVE_OUT,
            )
        return cut

    def compare(self, alone: Sequence[Sequence[Array]], seed: int) -> None:
        """Run the same requests padded, together if several may run, and compare what each gets."""
        lengths = self._trial.lengths
        requests = [self._padded(self._request(seed, length), length) for length in lengths]
        for start in range(0, len(lengths), self._most):
            numbers = range(start, min(start + self._most, len(lengths)))
            batch = [np.concatenate(arrays) for arrays in zip(*[requests[number] for number in numbers], strict=True)]
            try:
                outputs = self._run(self._filled_up(batch))
            except Exception as error:  # though the model took each as it is
                raise self._refusal(None, f"what it gives alone, got an error: {str(error).strip()}") from error
            for row, number in enumerate(numbers):
                own = [output[row : row + 1] if self._most > 1 else output for output in outputs]
                self._compare_one(self._axes.cut(own, lengths[number], lengths[-1]), alone[number], lengths[number])

    def _compare_one(self, given: Sequence[Array], wanted: Sequence[Array], length: int) -> None:
        for index, (found, expected) in enumerate(zip(given, wanted, strict=True)):
            if found.shape != expected.shape:
                raise self._refusal(index, f"the shape {expected.shape} for a length of {length}, got {found.shape}")
            off, largest = _off(found, expected, self._tolerance)
            if off > _SHARE_OFF * expected.size:
                raise self._refusal(
                    index,
                    f"what a request of length {length} gives alone, got {off} of {expected.size} numbers that differ, "
                    f"by up to {largest:.2g} of the largest: the padding changes the answer",
                )

    def _refusal(self, index: int | None, expected_and_got: str, advice: str = "") -> ConfigError:
        axes, lengths = self._axes, self._trial.lengths
        output = "" if index is None else f" in output {axes.output_names[index]!r}"
        mask = "" if axes.mask is None else f" (with the mask {axes.names[axes.mask]!r})"
        ways = "name the input that says what is padding (pad.mask, pad.length), or export the model with one"
        if axes.mask is not None or axes.length is not None:
            ways = "export a model that leaves out what its mask or length says is padding"
        start = f"{_where(axes)}: padded to {lengths[-1]}{mask}, expected{output} {expected_and_got}. "
        if advice:
            return ConfigError(f"{start}Way out: {advice}")
        return ConfigError(
            f"{start}Ways out: {ways}; try another pad.value; or without pad, requests of equal length share a run. "
            f"If you know that the padding changes nothing, rows='batch' says so"
        )

    def _request(self, seed: int, length: int) -> list[Array]:
        """Return the inputs of a request of some length, with a batch axis of 1."""
        axes = self._axes
        random = np.random.default_rng((seed, length))
        arrays = []
        for index, (spec, item) in enumerate(zip(axes.specs, self._trial.items, strict=True)):
            if index in (axes.mask, axes.length):
                arrays.append(axes.made(index, length)[None])
            else:
                axis = axes.of_inputs[index]
                shape = (1, *[length if position == axis else size for position, size in enumerate(item)])
                is_float = spec.dtype.kind == "f"
                # Around 1, so that a padding of zeros is none of them and moves every mean.
                numbers = random.standard_normal(shape) + 1 if is_float else random.integers(0, 2, shape)
                arrays.append(np.asarray(numbers).astype(spec.dtype))
        return arrays

    def _padded(self, arrays: Sequence[Array], length: int) -> list[Array]:
        target = self._trial.lengths[-1]
        items = [
            tuple([length if axis == self._axes.of_inputs[index] else size for axis, size in enumerate(item)])
            for index, item in enumerate(self._trial.items)
        ]
        return [np.asarray(self._axes.padded(index, array, items[index], target)) for index, array in enumerate(arrays)]

    def _filled_up(self, batch: Sequence[Array]) -> list[Array]:
        """Return a batch with rows behind it, the first one again, up to the smallest that is run."""
        missing = self._least - len(batch[0])
        return [np.concatenate([array, *[array[:1]] * missing]) if missing > 0 else array for array in batch]


def _off(found: Array, expected: Array, tolerance: float) -> tuple[int, float]:
    """Return how many numbers are off, and by which part of the largest at most."""
    if not expected.size:
        return 0, 0.0
    if expected.dtype.kind not in "fc":
        is_off = found != expected
        return int(np.count_nonzero(is_off)), float(is_off.any())
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    scale = np.where(np.isfinite(expected), np.abs(expected), 0).max()
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.abs(found - expected)) / max(float(scale), 1e-30)
    apart = np.where(np.isnan(apart), np.inf, apart)
    return int(np.count_nonzero(apart > tolerance)), float(apart.max())


def _need_known(axes: LengthAxes, why: str) -> None:
    """Raise ConfigError unless it is known of all outputs which axes have the length."""
    for name, known in zip(axes.output_names, axes.of_outputs, strict=True):
        if known is None:
            raise ConfigError(
                f"pad.outputs: output {name!r}: expected the axis that has the length, or [] for none, got nothing, "
                f"and it cannot be seen: {why}"
            )


def _trials(axes: LengthAxes, profile: Profile) -> Iterator[_Trial]:
    """Yield lengths to try, with the shapes of the inputs, which have 0 where the length is."""
    low, high = _range(axes, profile)
    if axes.buckets:
        for bucket in (bucket for bucket in axes.buckets if bucket >= max(low + 2, 3)):
            lengths: tuple[int, ...] = (max(low, bucket // 3), max(low, bucket // 3 + 1, 2 * bucket // 3), bucket)
            yield from (_Trial(lengths, items) for items in _items(axes, profile))
        return
    guesses = [*_LENGTHS, (low + 11, low, low + 6)]
    if high is not None and high - low >= 2:
        guesses.append((high, low, (low + high) // 2))
    for target, *shorter in guesses:
        lengths = (*shorter, target)
        if len(set(lengths)) == 3 and all(low <= length <= (high or length) for length in lengths):
            yield from (_Trial(lengths, items) for items in _items(axes, profile))


def _range(axes: LengthAxes, profile: Profile) -> tuple[int, int | None]:
    """Return the shortest and the longest length that the model says it takes; None: it says none."""
    lows, highs = [1], []
    for index, axis in enumerate(axes.of_inputs):
        if axis is None:
            continue
        spec, (low, high) = axes.specs[index], profile.limits[index][axis]
        least, most = spec.ranges[axis + 1] if spec.ranges else (low, high)
        lows += [low, least]
        highs += [size for size in (high, most) if size is not None]
    if axes.max_tokens is not None:
        highs.append(axes.max_tokens)
    return max(lows), min(highs, default=None)


def _items(axes: LengthAxes, profile: Profile) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of each input's item, 0 where the length is: the largest, or guesses where there is none."""
    is_open = any(
        high is None and axis != axes.of_inputs[index]
        for index, limits in enumerate(profile.limits)
        for axis, (_, high) in enumerate(limits)
    )
    for guess in _GUESSES if is_open else _GUESSES[:1]:
        items = [
            tuple(
                [
                    0 if axis == axes.of_inputs[index] else max(guess, low) if high is None else high
                    for axis, (low, high) in enumerate(limits)
                ]
            )
            for index, limits in enumerate(profile.limits)
        ]
        if all(math.prod(size for size in item if size) <= _LARGEST_GUESS for item in items):
            yield items


def _volume(profile: Profile) -> float:
    items = profile.largest_items()
    return math.inf if items is None else sum(math.prod(item) for item in items)


def _where(axes: LengthAxes) -> str:
    found = [
        f"input {name!r}, axis {axis + 1}"
        for index, (name, axis) in enumerate(zip(axes.names, axes.of_inputs, strict=True))
        if axis is not None and index != axes.mask
    ]
    return "; ".join(found)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
