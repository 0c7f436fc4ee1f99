"""Whether the rows of a model's outputs are those of its requests: proved before several requests share a run.

That an output has as many rows as the batch proves nothing: a detector may have found as many boxes in all of its
images together, and then one caller gets another's. There are two proofs:

- The model's own: the batch axis was followed through its graph, from the inputs to the output (``Output.is_carried``).
- Trials: rows of pseudo-random numbers are run alone and together, in other places and in batches of other sizes, and
  each must give together what it gives alone.

Trials are made where they can be, also of what a graph has proved, since a model may keep its rows and yet mix them
(one that subtracts the mean of the batch does), and always where fewer requests are filled up with zeros: that is right
only if no row depends on another. They cost eleven runs of one to three rows, eight where the graph is proof, and
eighteen where all inputs are whole numbers; where the batch is fixed, runs of its size.

What is left: a trial shows what its numbers show. An output that loses rows only for data unlike any of them passes,
unless its graph names the operator that does it (``Output.counted_by``). Every run's number of rows is checked, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fastpipe.errors import ConfigError

from ..kinds import TEXT, blank, is_float, random_text
from .inputs import Array, example_of
from .shapes import InputSpec, Profile
from .trial_shapes import items_to_try

__all__ = [
    "COARSE",
    "FINE",
    "Output",
    "prove_once",
    "prove_rows",
    "pseudo_random",
    "rows_in",
]

FINE = 5e-3
"""How far a value together may be from the same value alone, of the largest in its column: float32 on a CPU."""

COARSE = 5e-2
"""The same for half precision and TensorFloat-32."""

# A row that is compared has so many neighbours at most; more would cost more and show nothing else.
_ROWS_COMPARED = 3
# Of an output's floats, so many may be off: where a number is compared inside a model, a rounding can tip it over.
_FLOATS_OFF = 0.01
# Whole numbers are exact, but for ties: a forest of 100 trees in ONNX Runtime labels them by the size of the batch.
_INTEGERS_OFF = 0.1
# Rounding tips over now this number and now that. One that is off in so many of all rows is what is mixed, be it one of
# a thousand. Of larger items some would be off so often by chance.
_ROWS_OFF = 0.75
_LARGEST_COUNTED = 1 << 16  # numbers in an item

_SHAPES_ADVICE = "; shapes in max, as in '8x3x224x224', say how large an item is, so that the model can be tried"

_PAIRS_ADVICE = (
    "; min=2 runs it in batches: only a batch of one differs, rows of larger ones are the same in any company, and so "
    "a request that is alone runs beside a row of zeros"
)

Run = Callable[[list[Array]], list[Array]]
"""Runs a model on inputs, one array each with the batch axis in front, wherever the model has it, and returns its
outputs, of whatever shapes, in the same form. What the batch shares has no such axis; of an output that is one for the
whole batch, each request has what all have."""


class Output(NamedTuple):
    """What is known of an output before anything is run."""

    name: str | int  # its number, where it has no name
    is_carried: bool = False  # its first axis is the inputs' first axis, followed through the graph
    counted_by: str = ""  # what makes as many rows as the data have it, where something does
    scaled_by: str = ""  # what rounds its numbers by a scale that it finds in the whole batch, where something does


def prove_rows(
    run: Run,
    specs: Sequence[InputSpec] | None,
    profiles: Sequence[Profile],
    outputs: Sequence[Output] | None,
    *,
    tolerance: float = FINE,
    is_padded: bool = False,
) -> None:
    """Return if row i of every output is that of request i, whoever shares its run.

    Args:
        run: the model.
        specs: its inputs; None: they are not known.
        profiles: what it takes of them; where no run has two rows, there is nothing to prove.
        outputs: in the model's order; None: nothing is known of them.
        tolerance: ``FINE`` or ``COARSE``.
        is_padded: batches are filled up also where the profiles do not say so.

    Raises:
        ConfigError: if it is not so, or there is no proof; the message has the output, and what was tried.
    """
    several = [profile for profile in profiles if profile.batch_sizes()[0] > 1]
    if not several:
        return
    is_fixed = any(isinstance(spec.shape[0], int) for spec in specs or () if not spec.is_shared)
    refusal = partial(_refusal, profiles=several, is_fixed=is_fixed)
    for output in outputs or ():
        if output.counted_by and not output.is_carried:
            reason = f"{output.counted_by} makes as many rows as the data have it"
            raise refusal(f"output {output.name!r}: ", reason)
        if output.scaled_by:
            reason = f"{output.scaled_by} rounds by a scale that it finds in the rows of all requests together"
            raise refusal(f"output {output.name!r}: ", reason)
    if specs is None:
        reason = "the shapes of its inputs are not known, so that nothing can be tried"
        raise refusal("", reason, advice=_SHAPES_ADVICE)
    # The one that is filled up proves more; small items are quicker.
    profile = min(several, key=lambda profile: (profile.pad_to == 1, _volume(profile)))
    is_padded = is_padded or profile.pad_to > 1
    is_needed = is_padded or outputs is None or not all(output.is_carried for output in outputs)
    failure: Exception | None = None
    for items in items_to_try(profile, specs):
        trials = _Trials(run, specs, profile, items, tolerance, _TRIALS if is_needed else _TRIALS_BESIDE_A_PROOF)
        try:
            if trials.succeed():
                return
        except _ContradictionError as found:
            name = f"output {outputs[found.index].name!r}: " if outputs else f"output {found.index}: "
            advice = _PAIRS_ADVICE if _agrees_in_company(run, specs, profile, items, tolerance) else ""
            raise refusal(name if found.index >= 0 else "", found.reason, advice=advice) from found.__cause__
        failure = failure or trials.failure
    if is_needed:
        advice = _SHAPES_ADVICE if _volume(profile) == math.inf else ""
        if isinstance(failure, ConfigError):  # of what the node says of the outputs: it says itself what to do
            raise failure
        problem = str(failure).strip() if failure else "its items are too large"
        raise refusal("", f"it cannot be tried on pseudo-random data: {problem}", advice=advice) from failure


def _agrees_in_company(
    run: Run, specs: Sequence[InputSpec], profile: Profile, items: list[tuple[int, ...]], tolerance: float
) -> bool:
    """Say whether a model whose rows are not what they are alone treats them alike in all batches of two and more."""
    if profile.pad_to > 1 or profile.max_batch < 2:
        return False
    try:
        return _Trials(run, specs, replace(profile, pad_to=2), items, tolerance, _TRIALS).succeed()
    except _ContradictionError:
        return False


def rows_in(specs: Sequence[InputSpec], arrays: Sequence[Array]) -> int:
    """Return how many rows a batch has, given its inputs with the requests in front."""
    return next(len(array) for spec, array in zip(specs, arrays, strict=True) if not spec.is_shared)


_proved: set[Hashable] = set()


def prove_once(key: Hashable, prove: Callable[[], None]) -> None:
    """Call ``prove``, but not again for a key for which it has returned: instances of one model need one proof."""
    if key in _proved:
        return
    prove()
    if len(_proved) >= 1024:
        _proved.clear()
    _proved.add(key)


class _Kind(NamedTuple):
    """A kind of pseudo-random data."""

    size: int  # of the batch
    floats: int  # 0: from 0 to 1; 1: normal, around another mean in each row; 2: pixels, with zeros in the second row
    is_one: bool  # whole numbers are 1, which is a length or a mask; otherwise 0 and 1
    has_large: bool = False  # floats: there is at least a row that is not compared; those are from -255 to 255
    shared: int = 0  # an only whole number that all rows share


# The first is of as many rows as the model takes, within reason: some that mix rows do so in larger batches only.
# Neighbours that are a hundred times as large are seen also where little of them is; and who asks once, for all rows,
# whether there are pixels, or numbers below 0, is found out.
_KINDS = (
    _Kind(16, 1, False, has_large=True),
    _Kind(3, 0, False, has_large=True, shared=1),
    _Kind(2, 2, True),
    _Kind(2, 1, True, shared=1),
    _Kind(3, 0, True),
)
# Where rows have few whole numbers, one trial shows so little that chance may hide a difference.
_KINDS_OF_FEW = tuple([_Kind(3, 0, False, shared=shared) for shared in (0, 1, 0, 1, 0)])
_FEW = 64  # numbers in all items
# So many of them are enough where trials are all there is; of a model that cannot take so many, and of one whose graph
# is proof, two.
_TRIALS = 3
_TRIALS_BESIDE_A_PROOF = 2
# Around what the normal numbers of the first rows are: a mean over the batch is none of them, and as the rows are moved
# within it, they are in no order that a model which sorts its rows would keep.
_MEANS = (0.0, -1.0, 1.0)


class _ContradictionError(Exception):
    """A trial has shown that rows are not the requests'."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index = index  # of the output; -1: of none
        self.reason = reason


class _Trials:
    """Runs of one model with items of certain shapes."""

    def __init__(
        self,
        run: Run,
        specs: Sequence[InputSpec],
        profile: Profile,
        items: list[tuple[int, ...]],
        tolerance: float,
        count: int,
    ) -> None:
        self._run = run
        self._specs = specs
        self._items = items
        self._tolerance = tolerance
        # Of whole numbers all kinds are tried: their rows are alike, and small, so that one trial shows little.
        self._is_whole = not any(_is_varied(spec) for spec in specs)
        self._kinds: tuple[_Kind, ...] = _KINDS
        if self._is_whole and sum(map(math.prod, items)) <= _FEW:
            self._kinds += _KINDS_OF_FEW
        self._count = len(self._kinds) if self._is_whole else count  # of trials that are enough
        sizes = profile.batch_sizes()
        self._least, self._most = sizes[-1], sizes[0]
        # Output, and whether items are of few numbers -> whole numbers that were off, and all.
        self._off: dict[tuple[int, bool], tuple[int, int]] = {}
        # Output, and shape of its item -> in how many rows each number was off, and of how many rows.
        self._rows_off: dict[tuple[int, tuple[int, ...]], tuple[Array, int]] = {}
        # The same, with what rows share -> for each trial of rows of ones, which numbers were off in half of the rows.
        self._off_in_ones: dict[tuple[int, tuple[int, ...], int], list[Array]] = {}
        self.failure: Exception | None = None

    def succeed(self) -> bool:
        """Say whether the model takes such data, and treats each row as if it were alone.

        Raises:
            _ContradictionError: if it does not.
        """
        tried = 0
        for seed, kind in enumerate(self._kinds):
            if tried == self._count:
                break
            size = max(self._least, min(kind.size, self._most))
            random = np.random.default_rng(seed)
            batch = _made(self._specs, self._items, size, kind, random)
            count = min(size - kind.has_large, _ROWS_COMPARED)
            try:
                alone = [self._alone(batch, row) for row in range(count)]
                again = self._alone(batch, 0) if not tried else alone[0]
            except _ContradictionError:
                raise
            except Exception as error:  # of any library, about data that the model cannot take
                self.failure = error
                continue
            tried += 1
            if tried == 1:
                self._compare([again], [alone[0]], "the same data, run twice, give different results")
            # Elsewhere than where it was: the last place, then the first ones.
            indices = [size - 1, *range(count - 1)]
            together = self._beside_large(batch, size, indices, random) if kind.has_large else None
            if together is None:
                together = self._together(self._changed(batch, partial(_moved, indices=indices)), size)
            self._compare(
                [[output[index : index + 1] for output in together] for index in indices],
                alone,
                f"a row in a batch of {size} is not what it is alone",
                kind,
            )
        self._look_back()
        return tried >= min(self._count, 2)

    def _look_back(self) -> None:
        """Raise _ContradictionError for what only all trials together show."""
        for (index, _), (off, total) in self._off.items():
            if off > _INTEGERS_OFF * total:
                raise _ContradictionError(index, f"{off} of {total} numbers in batches are not what they are alone")
        for (index, _), (counts, total) in self._rows_off.items():
            off = int(counts.max(initial=0))
            if total > 2 and off >= _ROWS_OFF * total:
                reason = f"a number of its {counts.size} is not what it is alone in {off} of {total} rows in batches"
                raise _ContradictionError(index, reason)
        for (index, _, _), trials in self._off_in_ones.items():
            # Rows that are the same, and what is off depends on their place.
            if len(trials) > 1 and np.logical_and.reduce(trials).any():
                raise _ContradictionError(index, "of equal rows, one in a batch is not what it is alone")

    def _alone(self, batch: list[Array], row: int) -> list[Array]:
        """Return what one row gives, in the smallest batch there is, with zeros behind it."""

        def with_zeros(array: Array) -> Array:
            padded = blank((self._least, *array.shape[1:]), array.dtype)
            padded[0] = array[row]
            return padded

        outputs = self._run(self._changed(batch, with_zeros))
        return [output[:1] for output in self._with_rows(outputs, self._least)]

    def _changed(self, batch: list[Array], change: Callable[[Array], Array]) -> list[Array]:
        """Return the inputs with something done to the rows of those that have some."""
        return [array if spec.is_shared else change(array) for array, spec in zip(batch, self._specs, strict=True)]

    def _beside_large(
        self, batch: list[Array], size: int, places: Sequence[int], random: np.random.Generator
    ) -> list[Array] | None:
        """Return what the first rows give in a batch whose others are large; None: the model cannot take those."""

        def with_large(array: Array) -> Array:
            moved = _moved(array, places)
            if array.dtype.kind == "f":
                others = [row for row in range(len(array)) if row not in places]
                moved[others] = random.integers(-255, 256, (len(others), *array.shape[1:]))
            return moved

        try:
            outputs = self._run(self._changed(batch, with_large))
        except Exception:  # of any library; of other numbers it may fail as well
            return None
        return self._with_rows(outputs, size)

    def _together(self, inputs: list[Array], size: int) -> list[Array]:
        try:
            outputs = self._run(inputs)
        except Exception as error:  # though the model took each row alone
            raise _ContradictionError(-1, f"a batch of {size} fails: {str(error).strip()}") from error
        return self._with_rows(outputs, size)

    def _with_rows(self, outputs: list[Array], size: int) -> list[Array]:
        for index, output in enumerate(outputs):
            if output.shape[:1] != (size,):
                raise _ContradictionError(index, f"a batch of {size} gives an output of shape {output.shape}")
        return outputs

    def _compare(
        self,
        rows: list[list[Array]],
        expected: list[list[Array]],
        problem: str,
        kind: _Kind | None = None,
    ) -> None:
        """Hold rows against what is expected; ``kind``: of the data, where they are from a batch."""
        for index, arrays in enumerate(zip(*expected, strict=True)):
            found = [row[index] for row in rows]
            if any(given.shape != wanted.shape for given, wanted in zip(found, arrays, strict=True)):
                shapes = f"{found[0].shape[1:]} and {arrays[0].shape[1:]}"
                raise _ContradictionError(index, f"{problem}: its shape is {shapes}")
            given, wanted = np.concatenate(found), np.concatenate(arrays)
            floats = wanted.dtype.kind in "fc"
            is_off = _is_off(given, wanted, self._tolerance) if floats else given != wanted
            off = int(np.count_nonzero(is_off))
            if not floats and kind is not None:
                before, total = self._off.get((index, kind in _KINDS_OF_FEW), (0, 0))
                self._off[index, kind in _KINDS_OF_FEW] = before + off, total + wanted.size
            elif off > (_FLOATS_OFF if floats else _INTEGERS_OFF) * wanted.size:
                raise _ContradictionError(index, f"{problem}: {off} of {wanted.size} numbers differ")
            if kind is not None and math.prod(wanted.shape[1:]) <= _LARGEST_COUNTED:
                key = index, wanted.shape[1:]
                counts, total = self._rows_off.get(key, (0, 0))
                self._rows_off[key] = counts + is_off.sum(axis=0), total + len(wanted)
                if self._is_whole and kind.is_one:
                    self._off_in_ones.setdefault((*key, kind.shared), []).append(2 * is_off.sum(axis=0) >= len(wanted))


def pseudo_random(specs: Sequence[InputSpec], items: Sequence[tuple[int, ...]], row_count: int) -> list[Array]:
    """Return inputs of pseudo-random numbers, floats from 0 to 1, with the requests in front."""
    return _made(specs, items, row_count, _KINDS[1], np.random.default_rng(0))


def _made(
    specs: Sequence[InputSpec],
    items: Sequence[tuple[int, ...]],
    row_count: int,
    kind: _Kind,
    random: np.random.Generator,
) -> list[Array]:
    """Return inputs with so many rows, where they have rows."""
    return [
        _shared_numbers(spec, item, kind, random)
        if spec.is_shared
        else _numbers(spec, (row_count, *item), kind, random)
        for spec, item in zip(specs, items, strict=True)
    ]


def _moved(array: Array, indices: Sequence[int]) -> Array:
    """Return a batch whose first rows are at ``indices``, among the others."""
    moved = np.empty_like(array)
    rest = [index for index in range(len(array)) if index not in indices]
    moved[list(indices)] = array[: len(indices)]
    moved[rest] = array[len(indices) :]
    return moved


def _numbers(spec: InputSpec, shape: tuple[int, ...], kind: _Kind, random: np.random.Generator) -> Array:
    """Return pseudo-random data, rows first. Bytes are pixels; whole numbers are small, as every table has them."""
    if spec.dtype == TEXT:
        return random_text(shape, random, are_numbers=kind.is_one)
    floats = is_float(spec.dtype)
    if floats and kind.floats == 0:
        numbers: Array = random.random(shape)
    elif floats and kind.floats == 1:
        numbers = random.standard_normal(shape)
        for row, mean in zip(numbers, _MEANS, strict=False):
            row += mean
    elif floats or spec.dtype == np.uint8:
        numbers = np.asarray(random.integers(0, 256, shape))
        numbers[1:2] = 0
    else:
        numbers = np.ones(shape) if kind.is_one else np.asarray(random.integers(0, 2, shape))
    return numbers.astype(spec.dtype)


def _is_varied(spec: InputSpec) -> bool:
    """Say whether the numbers of a row differ much: floats, and bytes, which are pixels."""
    return not spec.is_shared and (spec.dtype.kind == "f" or spec.dtype == np.uint8)


def _shared_numbers(spec: InputSpec, item: tuple[int, ...], kind: _Kind, random: np.random.Generator) -> Array:
    """Return data that all rows have together: the example, or pseudo-random floats from 0 to 1 or whole numbers."""
    if (example := example_of(spec, item)) is not None:
        return example
    if spec.dtype == TEXT:
        return random_text(item, random, are_numbers=kind.is_one)
    if is_float(spec.dtype):
        return np.asarray(random.random(item), spec.dtype)
    if math.prod(item) == 1:  # one number, such as an axis: now 0, now 1, whatever the rows have
        return np.full(item, kind.shared, spec.dtype)
    whole = np.ones(item) if kind.is_one else random.integers(0, 2, item)
    return np.asarray(whole, spec.dtype)


def _is_off(given: Array, wanted: Array, tolerance: float) -> Array:
    """Say what is farther off than ``tolerance`` of the largest number in its column, or a tenth of that of all."""
    if not wanted.size:
        return np.zeros(wanted.shape, np.bool_)
    if wanted.dtype.kind == "f":
        given, wanted = given.astype(np.float64), wanted.astype(np.float64)
    sizes = np.where(np.isfinite(wanted), np.abs(wanted), 0)
    columns = sizes.reshape(-1, sizes.shape[-1] if sizes.ndim > 1 else 1).max(axis=0)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        close = np.abs(given - wanted) <= tolerance * np.maximum(columns, sizes.max() / 10)
    same = (given == wanted) | (np.isnan(given) & np.isnan(wanted))
    is_off: Array = ~(same | close)
    return is_off


def _volume(profile: Profile) -> float:
    items = profile.largest_items()
    return math.inf if items is None else sum(math.prod(item) for item in items)


def _refusal(what: str, reason: str, *, profiles: Sequence[Profile], is_fixed: bool, advice: str = "") -> ConfigError:
    size = max(profile.batch_sizes()[0] for profile in profiles)
    ways = "max=1 runs one request at a time"
    if any(profile.pad_to > 1 for profile in profiles):
        ways = f"{'' if is_fixed else 'without min, '}max=1 runs one request at a time, as it comes"
    return ConfigError(
        f"{what}there is no proof that in a batch of {size} row i is that of request i, whoever shares the batch: "
        f"{reason}. {ways}{advice}; batch_axis and split_by say where requests are if that is not the first axis of "
        f"each input and output; if you know that each row belongs to its request alone, rows='batch' says so"
    )
