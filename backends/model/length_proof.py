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

from .axes import in_place
from .inputs import Array, example_of
from .length_sizes import LENGTHS_TO_FIT, Cut, fitting
from .padded_axes import PaddedAxes, Sizes
from .row_proof import rows_in
from .shapes import InputSpec, Profile

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
    lengths: list[Sizes]  # of each request; the last one is what the others are padded to
    items: list[tuple[int, ...]]  # of each input, with 0 for a length


_settled: dict[Hashable, list[list[tuple[Cut, ...] | None]]] = {}


def prove_lengths_once(key: Hashable, axes: PaddedAxes, prove: Callable[[], None]) -> None:
    """Call ``prove``, or complete ``axes.of_outputs`` as it did for the same key: instances of one model need one."""
    if key not in _settled:
        prove()
        if len(_settled) >= 1024:
            _settled.clear()
        _settled[key] = axes.of_outputs
    axes.of_outputs = _settled[key]


def prove_lengths(
    run: Run,
    axes: PaddedAxes,
    profiles: Sequence[Profile],
    tolerance: float,
    *,
    is_vouched: bool = False,
    names: Callable[[], Sequence[str | int]] | None = None,
) -> None:
    """Return if each request gets, padded, what it would get as it is; ``axes.of_outputs`` is then complete.

    Args:
        run: the model, on one array for each input with the batch in front; it may fail.
        axes: what is padded.
        profiles: what the model takes.
        tolerance: how far a number may be off, of the largest of its output.
        is_vouched: somebody else says so: nothing is tried but which axes of the outputs have the length.
        names: tells the names of the outputs once the model has run, where they are not known before.

    Raises:
        ConfigError: if the padding changes an answer, or it cannot be tried; the message has the input, the axis, the
            output, and what was seen.
    """
    if axes.fixed is not None:  # it runs with one length, to which a request alone is padded, too
        _need_known(axes, f"the model has the one length {axes.fixed}")
        return
    profile = max(profiles, key=lambda profile: (profile.batch_sizes()[0] > 1, -_volume(profile)))
    if not any(each.buckets for each in axes.lengths) and profile.max_batch == 1:
        return  # nothing is ever padded
    failure: Exception | None = None
    for trial in _trials(axes, profile):
        prover = _Prover(run, axes, profile, trial, tolerance)
        try:
            alone = prover.alone(0)
        except Exception as error:  # of any library, about lengths that the model cannot take
            failure = failure or error
            continue
        if not axes.output_names:
            axes.take_outputs(names() if names is not None else range(len(alone[0])))
        prover.settle_outputs(alone)
        for seed in range(0 if is_vouched else _SEEDS):
            prover.compare(alone if seed == 0 else prover.alone(seed), seed)
        if not is_vouched:
            prover.try_masks()
        return
    reason = str(failure).strip() if failure is not None else "it takes no two lengths"
    if is_vouched:
        _need_known(axes, f"the model cannot be tried: {reason}")
        return
    raise ConfigError(
        f"{axes.places()}: whether padding changes an answer cannot be tried on pseudo-random data: {reason}; "
        f"if you know that it does not, rows='batch' says so"
    ) from failure


class _Prover:
    """Runs of one model with requests of certain lengths."""

    def __init__(self, run: Run, axes: PaddedAxes, profile: Profile, trial: _Trial, tolerance: float) -> None:
        self._run = run
        self._axes = axes
        self._trial = trial
        self._tolerance = tolerance
        sizes = profile.batch_sizes()
        self._least, self._most = sizes[-1], sizes[0]
        self._longest = []  # of each length, the longest that the model takes
        for number, each in enumerate(axes.lengths):
            _, high = _range(axes, number, profile)
            self._longest.append(
                min([size for size in (high, *each.buckets[-1:]) if size is not None], default=1 << 20)
            )

    def alone(self, seed: int) -> list[list[Array]]:
        """Return the outputs of a request of each length, run as it is."""
        return [self._alone(seed, lengths) for lengths in self._trial.lengths]

    def _alone(self, seed: int, lengths: Sizes) -> list[Array]:
        outputs = self._run(self._filled_up(self._request(seed, lengths)))
        return [output[:1] if self._most > 1 else output for output in outputs]

    def settle_outputs(self, alone: Sequence[Sequence[Array]]) -> None:
        """Find which axes of the outputs depend on which length; raise ConfigError if what is known is wrong."""
        for number in range(len(self._axes.lengths)):
            self._settle(number, alone)
        for index, name in enumerate(self._axes.output_names):
            cut = [each.axis for cuts in self._axes.of_outputs for each in cuts[index] or ()]
            if len(set(cut)) < len(cut):
                told = self._axes.lengths[0].output_axes(name, [axis for axis in cut if cut.count(axis) > 1][:1])
                raise self._refusal(
                    index, f"every axis to follow one length, got axis {told[0]}, which follows several"
                )

    def _settle(self, number: int, alone: Sequence[Sequence[Array]]) -> None:
        """Find which axes of the outputs depend on one length, where the others are as long as they are padded."""
        own, longest = self._axes.lengths[number], self._trial.lengths[-1]
        tried = [_with(longest, number, lengths[number]) for lengths in self._trial.lengths]
        runs = [
            outputs if lengths == given else self._alone(0, given)
            for lengths, given, outputs in zip(self._trial.lengths, tried, alone, strict=True)
        ]
        lengths = tuple([each[number] for each in tried])
        longer = self._longer(number)
        sizes_of_all: list[list[tuple[int, ...]]] = []  # of outputs, by length: once, where they are no length
        for index, outputs in enumerate(zip(*runs, strict=True)):
            shapes = [output.shape for output in outputs]
            more = [*shapes, *[of_outputs[index] for of_outputs in longer]]
            if len({len(shape) for shape in more}) > 1:
                raise self._refusal(index, f"as many axes for every length, got {_listed(shapes)}", _LEAVE_OUT)
            cuts = []
            for axis, sizes in enumerate(zip(*more, strict=True)):
                if sizes[: len(lengths)] == lengths:
                    cuts.append(Cut(axis))
                elif len(set(sizes)) > 1:
                    sizes_of_all = sizes_of_all or self._sizes(number, index)
                    cuts.append(self._cut_of(number, index, axis, shapes, sizes_of_all))
            known, seen = own.of_outputs[index], [cut.axis for cut in cuts]
            if known is not None and {cut.axis for cut in known} != set(seen):
                name = own.output_names[index]
                batch = own.batch_axes.get(str(name), 0)
                told = own.output_axes(name, [cut.axis for cut in known])
                raise ConfigError(
                    f"{own.key}.outputs: output {name!r}: expected the length in the axes {told}, got "
                    f"{_listed([in_place(shape, batch) for shape in shapes])} for lengths of {_listed(lengths)}: "
                    f"that is {own.output_axes(name, seen)}"
                )
            own.of_outputs[index] = tuple(cuts)

    def _longer(self, number: int) -> list[list[tuple[int, ...]]]:
        """Return the shapes of the outputs for one longer request: a large stride may not show in short ones."""
        longest = self._trial.lengths[-1]
        length = min(longest[number] + LENGTHS_TO_FIT, self._longest[number])
        try:
            return [[output.shape for output in self._alone(0, _with(longest, number, length))]]
        except Exception:  # of any library: it takes no such length
            return []

    def _lengths_to_fit(self, number: int) -> list[int]:
        start = min(lengths[number] for lengths in self._trial.lengths)
        return [length for length in range(start, start + LENGTHS_TO_FIT) if length <= self._longest[number]]

    def _sizes(self, number: int, index: int) -> list[list[tuple[int, ...]]]:
        """Return the shapes of the outputs for many lengths in a row; ``index``: of the output that asks for them."""
        longest, lengths = self._trial.lengths[-1], self._lengths_to_fit(number)
        try:
            return [[output.shape for output in self._alone(0, _with(longest, number, length))] for length in lengths]
        except Exception as error:  # of any library
            reason = f"it to take every length from {lengths[0]} to {lengths[-1]}, got {str(error).strip()}"
            raise self._refusal(index, reason, _LEAVE_OUT) from error

    def _cut_of(
        self,
        number: int,
        index: int,
        axis: int,
        shapes: Sequence[tuple[int, ...]],
        sizes_of_all: Sequence[Sequence[tuple[int, ...]]],
    ) -> Cut:
        """Return how an axis of an output follows a length; raise ConfigError if it does so in no known way."""
        sizes = [of_outputs[index][axis] for of_outputs in sizes_of_all]
        cut = fitting(axis, self._lengths_to_fit(number), sizes)
        if cut is None:
            raise self._refusal(
                index,
                f"an axis as long as the request, or by a stride of up to 16, or some times as long, got "
                f"{_listed(shapes)} for lengths of {_listed([lengths[number] for lengths in self._trial.lengths])}",
                _LEAVE_OUT,
            )
        return cut

    def compare(self, alone: Sequence[Sequence[Array]], seed: int) -> None:
        """Run the same requests padded, together if several may run, and compare what each gets."""
        lengths = self._trial.lengths
        requests = [self._padded(self._request(seed, length)) for length in lengths]
        for start in range(0, len(lengths), self._most):
            numbers = range(start, min(start + self._most, len(lengths)))
            together = zip(self._axes.specs, *[requests[number] for number in numbers], strict=True)
            batch = [arrays[0] if spec.is_shared else np.concatenate(arrays) for spec, *arrays in together]
            try:
                outputs = self._run(self._filled_up(batch))
            except Exception as error:  # though the model took each as it is
                raise self._refusal(None, f"what it gives alone, got an error: {str(error).strip()}") from error
            for row, number in enumerate(numbers):
                own = [output[row : row + 1] if self._most > 1 else output for output in outputs]
                self._compare_one(self._axes.cut(own, lengths[number], lengths[-1]), alone[number], lengths[number])

    def try_masks(self) -> None:
        """Raise ConfigError for an input that was named as a mask, and is what another input masks.

        That is one which may be anything where there is padding, as long as another input is 0 there, and matters
        where the other is 1.
        """
        axes, lengths = self._axes, self._trial.lengths
        plain = self._padded(self._request(0, lengths[0]))
        others = [index for index, padded in enumerate(axes.item_axes) if padded and index not in axes.said_masks]
        for mask in axes.said_masks:
            if self._differ(plain, self._with_ones(plain, mask)):
                continue
            for other in others:
                changed = self._with_ones(plain, other)
                if self._differ(plain, changed) and self._differ(changed, self._with_ones(changed, mask)):
                    number = next(number for number, each in enumerate(axes.lengths) if each.mask == mask)
                    raise ConfigError(
                        f"{axes.lengths[number].key}.mask: input {axes.names[mask]!r}: expected the input that says "
                        f"what is padding, got one of which nothing is read there: {axes.names[other]!r} says it"
                    )

    def _with_ones(self, arrays: Sequence[Array], index: int) -> list[Array]:
        """Return padded inputs of a request, one of them padded with 1."""
        changed = list(arrays)
        changed[index] = changed[index].copy()
        is_padding = np.ones(changed[index].shape, np.bool_)
        item_axes = self._axes.item_axes[index]
        ends = [slice(None)] * (changed[index].ndim - 1)
        for each, length in zip(self._axes.lengths, self._trial.lengths[0], strict=True):
            if (axis := each.of_inputs[index]) in item_axes and axis is not None:
                ends[axis] = slice(length)
        is_padding[(slice(None), *ends)] = False
        changed[index][is_padding] = 1
        return changed

    def _differ(self, one: Sequence[Array], other: Sequence[Array]) -> bool:
        """Say whether two padded requests, of the first lengths, have different answers; not if one cannot be run."""
        found = []
        for arrays in (one, other):
            try:
                outputs = self._run(self._filled_up(arrays))
            except Exception:  # of any library, about numbers that the model cannot take
                return False
            own = [output[:1] if self._most > 1 else output for output in outputs]
            found.append(self._axes.cut(own, self._trial.lengths[0], self._trial.lengths[-1]))
        return any(
            _off(given, wanted, self._tolerance)[0] > _SHARE_OFF * wanted.size
            for given, wanted in zip(*found, strict=True)
        )

    def _compare_one(self, given: Sequence[Array], wanted: Sequence[Array], lengths: Sizes) -> None:
        for index, (found, expected) in enumerate(zip(given, wanted, strict=True)):
            if found.shape != expected.shape:
                raise self._refusal(
                    index, f"the shape {expected.shape} for a length of {_in_words(lengths)}, got {found.shape}"
                )
            off, largest = _off(found, expected, self._tolerance)
            if off > _SHARE_OFF * expected.size:
                raise self._refusal(
                    index,
                    f"what a request of length {_in_words(lengths)} gives alone, got {off} of {expected.size} numbers "
                    f"that differ, by up to {largest:.2g} of the largest: the padding changes the answer",
                )

    def _refusal(self, index: int | None, expected_and_got: str, advice: str = "") -> ConfigError:
        axes, lengths = self._axes, self._trial.lengths
        output = "" if index is None else f" in output {axes.output_names[index]!r}"
        masks = [axes.names[mask] for mask in sorted(axes.masks)]
        mask = f" (with the mask {', '.join(map(repr, masks))})" if masks else ""
        ways = "name the input that says what is padding (pad.mask, pad.length), or export the model with one"
        if axes.made_inputs:
            ways = "export a model that leaves out what its mask or length says is padding"
        start = f"{axes.places()}: padded to {_in_words(lengths[-1])}{mask}, expected{output} {expected_and_got}. "
        if advice:
            return ConfigError(f"{start}Way out: {advice}")
        return ConfigError(
            f"{start}Ways out: {ways}; try another pad.value; or without pad, requests of equal length share a run. "
            f"If you know that the padding changes nothing, rows='batch' says so"
        )

    def _request(self, seed: int, lengths: Sizes) -> list[Array]:
        """Return the inputs of a request of some lengths, with a batch axis of 1 where they have one."""
        axes = self._axes
        random = np.random.default_rng((seed, *lengths))
        of_all = np.random.default_rng(seed)  # of what requests share
        arrays = []
        for index, (spec, item) in enumerate(zip(axes.specs, self._trial.items, strict=True)):
            if index in axes.made_inputs:
                arrays.append(axes.made(index, lengths)[None])
            elif spec.is_shared:
                example = example_of(spec, item)
                arrays.append(_numbers(spec, item, of_all) if example is None else example)
            else:
                shape = list(item)
                for each, length in zip(axes.lengths, lengths, strict=True):
                    if (axis := each.of_inputs[index]) is not None:
                        shape[axis] = length
                arrays.append(_numbers(spec, (1, *shape), random))
        return arrays

    def _padded(self, arrays: Sequence[Array]) -> list[Array]:
        targets = self._trial.lengths[-1]
        return [np.asarray(self._axes.padded(index, array, targets, 0)) for index, array in enumerate(arrays)]

    def _filled_up(self, batch: Sequence[Array]) -> list[Array]:
        """Return a batch with rows behind it, the first one again, up to the smallest that is run."""
        missing = self._least - rows_in(self._axes.specs, batch)
        if missing <= 0:
            return list(batch)
        return [
            array if spec.is_shared else np.concatenate([array, *[array[:1]] * missing])
            for spec, array in zip(self._axes.specs, batch, strict=True)
        ]


def _numbers(spec: InputSpec, shape: Sequence[int], random: np.random.Generator) -> Array:
    """Return pseudo-random data of an input."""
    is_float = spec.dtype.kind == "f"
    # Around 1, so that a padding of zeros is none of them and moves every mean.
    numbers = random.standard_normal(shape) + 1 if is_float else random.integers(0, 2, shape)
    return np.asarray(numbers).astype(spec.dtype)


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


def _need_known(axes: PaddedAxes, why: str) -> None:
    """Raise ConfigError unless it is known of all outputs which axes have the length."""
    if not axes.output_names:
        raise ConfigError(f"pad: expected outputs whose shapes can be seen, got none: {why}")
    for each in axes.lengths:
        for name, known in zip(each.output_names, each.of_outputs, strict=True):
            if known is None:
                raise ConfigError(
                    f"{each.key}.outputs: output {name!r}: expected the axis that has the length, or [] for none, got "
                    f"nothing, and it cannot be seen: {why}"
                )


def _trials(axes: PaddedAxes, profile: Profile) -> Iterator[_Trial]:
    """Yield lengths to try, with the shapes of the inputs, which have 0 where a length is.

    Of several lengths, all are tried that are in the same place of their lists, and then each with the next of the
    others; the two that are padded are the other way round in every second.
    """
    of_each = [_lengths_to_try(axes, number, profile) for number in range(len(axes.lengths))]
    count = max(map(len, of_each)) if all(of_each) else 0
    for shift in range(2 if len(of_each) > 1 else 1):
        for place in range(count):
            chosen = [found[(place + shift * number) % len(found)] for number, found in enumerate(of_each)]
            turned = [(b, a, c) if number % 2 else (a, b, c) for number, (a, b, c) in enumerate(chosen)]
            lengths = list(zip(*turned, strict=True))
            if axes.max_tokens is None or axes.element_count(lengths[-1]) <= axes.max_tokens:
                yield from (_Trial(lengths, items) for items in _items(axes, profile))


def _lengths_to_try(axes: PaddedAxes, number: int, profile: Profile) -> list[tuple[int, int, int]]:
    """Return what may be tried of one length, in each case the length that the first two are padded to behind them."""
    low, high = _range(axes, number, profile)
    if buckets := axes.lengths[number].buckets:
        return [
            (max(low, bucket // 3), max(low, bucket // 3 + 1, 2 * bucket // 3), bucket)
            for bucket in buckets
            if bucket >= max(low + 2, 3)
        ]
    guesses = [*_LENGTHS, (low + 11, low, low + 6)]
    if high is not None and high - low >= 2:
        guesses.append((high, low, (low + high) // 2))
    found = [(first, second, target) for target, first, second in guesses]
    return [each for each in found if len(set(each)) == 3 and all(low <= size <= (high or size) for size in each)]


def _range(axes: PaddedAxes, number: int, profile: Profile) -> tuple[int, int | None]:
    """Return the least and the greatest of a length that the model says it takes; None: it says none."""
    lows, highs = [1], []
    for index, axis in enumerate(axes.lengths[number].of_inputs):
        if axis is None:
            continue
        spec, (low, high) = axes.specs[index], profile.limits[index][axis]
        least, most = spec.ranges[axis + 1] if spec.ranges else (low, high)
        lows += [low, least]
        highs += [size for size in (high, most) if size is not None]
    if axes.max_tokens is not None:
        highs.append(axes.max_tokens)
    return max(lows), min(highs, default=None)


def _items(axes: PaddedAxes, profile: Profile) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of each input's item, 0 where a length is: the largest, or guesses where there is none."""
    padded = axes.item_axes
    is_open = any(
        high is None and axis not in padded[index]
        for index, limits in enumerate(profile.limits)
        for axis, (_, high) in enumerate(limits)
    )
    for guess in _GUESSES if is_open else _GUESSES[:1]:
        items = [
            tuple(
                [
                    0 if axis in padded[index] else max(guess, low) if high is None else high
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


def _with(lengths: Sizes, number: int, length: int) -> Sizes:
    """Return lengths with another one of that number."""
    return (*lengths[:number], length, *lengths[number + 1 :])


def _in_words(lengths: Sizes) -> str:
    return " x ".join(map(str, lengths))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
