"""From the outputs of a run to the answers of its requests, where these are more than the rows of the outputs in order.

A model may have its requests on another axis than the first (``Axes.outputs``), give one output for all of them, or
rows of all of them together with the request's number in a column (``Axes.columns``); a request may have brought
several rows; and results may be wanted by name.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastpipe.contract import Request
from fastpipe.errors import BackendError, ConfigError, KernelError, nearest

from .axes import Axes, moved
from .heads.postprocessors import (
    Postprocessor,
    Preparation,
    has_a_row_each,
    on_cpu,
    parts_of,
    postprocess,
    preparation_of,
    softmax_cpu,
)
from .reader import RequestReader, Sample, UnfitError

__all__ = ["Answers", "Run", "chosen_outputs", "compared", "given_back", "run_of", "tell_of_empty_tables"]

_log = logging.getLogger(__name__)

# So many rows of an output are compared for each request where a model is tried.
_ROWS_COMPARED = 64


class Run(NamedTuple):
    """A run of a model."""

    names: Sequence[str]  # of the outputs
    outputs: list[Any]  # with the requests in front, as ``Axes.to_rows`` gives them
    requests: list[Request]
    counts: Sequence[int]  # of each request, how many rows it brought
    row_count: int  # of the inputs, with those that were filled up
    rows: Callable[[int, int], Request] | None = None  # request, row -> a request with that row alone


class Answers:
    """Fills the results of requests.

    Args:
        postprocessor: of the node.
        axes: of the model.
        as_dict: results are dicts, by the outputs' names.
        has_many_rows: requests may bring any number of rows.

    Raises:
        ConfigError: if the postprocessor cannot do with that.
    """

    def __init__(self, postprocessor: Postprocessor, axes: Axes, *, as_dict: bool, has_many_rows: bool) -> None:
        self._postprocessor, self._axes = postprocessor, axes
        self.as_dict, self._has_many_rows = as_dict, has_many_rows
        self._prepare: Preparation | None = preparation_of(postprocessor)
        self.are_plain = axes.is_plain and not as_dict and not has_many_rows
        self.are_whole = self._prepare is not None and not axes.columns and not has_many_rows
        """Whether the answer of a request that is a batch by itself is the model's outputs as they are."""
        self.are_rows = self.are_whole and not as_dict and postprocessor is not softmax_cpu
        """Whether, of arrays of NumPy, each request gets its rows of the outputs, and nothing else is done."""
        if axes.columns and has_a_row_each(postprocessor):
            raise ConfigError(
                f"output {next(iter(axes.columns))!r}, split_by: expected the postprocessor split, cpu, SoftmaxCpu, or "
                f"a function of yours, which gets a list with an array for each request; the others need a row for each"
            )
        if as_dict and self._prepare is None:
            raise ConfigError(
                "result_as = 'dict' goes with the postprocessors split, cpu and SoftmaxCpu; another one gives results "
                "of its own: leave result_as out"
            )

    def fill(self, run: Run) -> None:
        """Fill the requests of a run.

        Raises:
            BackendError: if the outputs, or what a postprocessor makes of them, are not what was said of them.
            UnfitError: for requests that a postprocessor has refused.
        """
        if self.are_plain:
            self.fill_rows(run.outputs, run.requests)
        elif self._prepare is not None:
            self._split(run, self._prepare)
        else:
            total = sum(run.counts)
            outputs = [
                output if name not in self._axes.columns else self._back(name, output, run, [1] * total)
                for name, output in zip(run.names, run.outputs, strict=True)
            ]
            if self._has_many_rows:
                self._fill_by_row(run, outputs)
            else:
                postprocess(self._postprocessor, outputs, run.requests)

    def fill_rows(self, outputs: list[Any], requests: list[Request]) -> None:
        """Fill requests from outputs that have a row for each, where nothing else is to be done: ``are_plain``."""
        postprocess(self._postprocessor, outputs, requests)

    def fill_alone(self, names: Sequence[str], outputs: list[Any], request: Request) -> None:
        """Fill a request that had a run for itself, from the model's outputs as they are."""
        if self._prepare is not None and self.as_dict:
            request["result"] = dict(zip(names, [self._prepare(output) for output in outputs], strict=True))
        else:
            postprocess(self._postprocessor, outputs, [request])

    def _split(self, run: Run, prepare: Preparation) -> None:
        counts = run.counts if self._has_many_rows else None
        is_alone = len(run.requests) == 1
        parts: list[list[Any]] = []
        for name, output in zip(run.names, run.outputs, strict=True):
            if name in self._axes.columns:
                parts.append(self._back(name, on_cpu(output) if prepare.is_on_cpu else output, run))
                continue
            axis = self._axes.outputs.get(name, 0)
            if axis is None:
                whole = on_cpu(output) if prepare.is_on_cpu else output
                parts.append([whole if is_alone else _copied(whole) for _ in run.requests])
                continue
            prepared = prepare(output)
            if is_alone:  # whole, also one without rows
                parts.append([moved(prepared, 0, axis) if axis and axis < prepared.ndim else prepared])
                continue
            parts.append([moved(part, 0, axis) for part in parts_of(prepared, counts, len(run.requests))])
        for request, results in zip(run.requests, zip(*parts, strict=True), strict=True):
            if self.as_dict:
                request["result"] = dict(zip(run.names, results, strict=True))
            else:
                request["result"] = results[0] if len(results) == 1 else list(results)

    def _back(self, name: str, output: Any, run: Run, counts: Sequence[int] | None = None) -> list[Any]:
        counts = run.counts if counts is None else counts
        problem, parts = given_back(output, self._axes.columns[name], counts, run.row_count)
        if problem:
            raise BackendError(f"output {name!r}, split_by: {problem}")
        return parts

    def _fill_by_row(self, run: Run, outputs: list[Any]) -> None:
        """Have the postprocessor work on a request for each row; what it sets becomes a list with an entry for each."""
        assert run.rows is not None  # noqa: S101 - of whoever takes many rows
        owners = [number for number, count in enumerate(run.counts) for _ in range(count)]
        rows = [run.rows(number, row) for number, count in enumerate(run.counts) for row in range(count)]
        before = [dict(row) for row in rows]
        try:
            if rows:
                postprocess(self._postprocessor, outputs, rows)
        except UnfitError as error:
            errors: dict[int, KernelError] = {}
            for row, problem in error.errors.items():
                errors.setdefault(owners[row], problem)
            raise UnfitError(errors) from None
        made: list[dict[str, list[Any]]] = [{"result": []} for _ in run.requests]
        for owner, filled, old in zip(owners, rows, before, strict=True):
            for key, value in filled.items():
                if key not in old or old[key] is not value:
                    made[owner].setdefault(key, []).append(value)
        for request, results in zip(run.requests, made, strict=True):
            request.update(results)


def run_of(
    reader: RequestReader, names: Sequence[str], outputs: list[Any], group: Sequence[tuple[Request, Sample]], rows: int
) -> Run:
    """Return a run of requests that share it, of so many rows with those that were filled up."""
    requests, counts = [request for request, _ in group], [sample.fit.rows for _, sample in group]
    return Run(names, outputs, requests, counts, rows, lambda number, row: reader.one_row(*group[number], row))


def chosen_outputs(wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names of the outputs that are handed on, in the order in which they are wanted.

    Raises:
        ConfigError: if the model has no such output, or one is wanted twice, or none is.
    """
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"outputs: the model has no output {name!r}{nearest(name, known)}; it has {list(known)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"outputs: expected names of outputs, each once, got {list(wanted)}")
    return list(wanted)


def given_back(output: Any, column: int, counts: Sequence[int], row_count: int) -> tuple[str, list[Any]]:
    """Return what is wrong with an output of rows of all requests, if something is, and else each request's own.

    Args:
        output: of NumPy or torch: (rows, columns).
        column: where the number is of the row of the inputs to which a row of the output belongs. A request's first is
            0 in what it gets, as when it is alone; rows behind those of the last request are left out.
        counts: of each request, how many rows of the inputs it has.
        row_count: so many rows the inputs had, with those that were filled up.
    """
    if output.ndim != 2 or column >= output.shape[1]:
        return f"expected an output of shape (rows, columns) with a column {column}, got {tuple(output.shape)}", []
    numbers = output[:, column]
    is_wrong = (numbers < 0) | (numbers >= row_count) | (numbers % 1 != 0)
    if bool(is_wrong.any()):
        wrong = numbers[is_wrong][0].item()
        return f"expected numbers of requests, from 0 to {row_count - 1}, in column {column}, got {wrong}", []
    parts = []
    for first, last in itertools.pairwise([0, *itertools.accumulate(counts)]):
        part = output[(numbers >= first) & (numbers < last)]  # a copy
        part[:, column] -= first
        parts.append(part)
    return "", parts


def _tabled(name: str, output: Any, column: int, row_count: int) -> Any:
    """Return an output of rows of all requests as one with a row for each request, for comparisons.

    Of each request as many as are compared, with a flag for each, as float64: (row_count, rows, columns + 1).

    Raises:
        ConfigError: if there is no such column, or it does not have the numbers of requests.
    """
    problem, parts = given_back(output, column, [1] * row_count, row_count)
    if problem:
        raise ConfigError(
            f"output {name!r}, split_by: {problem}; split_by = {{ {name} = ... }} says in which column, from 0, the "
            f"number of the request is; if there is none, max=1 runs one request at a time, as it comes"
        )
    table = np.zeros((row_count, _ROWS_COMPARED, output.shape[1] + 1))
    for row, part in zip(table, parts, strict=True):
        kept = part[:_ROWS_COMPARED]
        row[: len(kept), :-1], row[: len(kept), -1] = kept, 1
    return table


def tell_of_empty_tables(model: str, axes: Axes, names: Sequence[str], seen: Collection[str]) -> None:
    """Log that trials have compared empty tables only, which shows nothing of what rows of requests are."""
    for name in names:
        if name in axes.columns and name not in seen:
            _log.warning(
                "%s: output %r, split_by: the trials found no row of it in pseudo-random data, and so they do not show "
                "that a request's rows are what it gets alone; their numbers are checked in every run",
                model,
                name,
            )


def _copied(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def compared(
    axes: Axes, names: Sequence[str], outputs: Sequence[Any], row_count: int, seen: set[str] | None = None
) -> list[Any]:
    """Return outputs, arrays with the requests in front, as a proof compares them: each with a row for each request.

    ``seen`` is given the names of tables of all requests that had a row.
    """
    rows = []
    for name, output in zip(names, outputs, strict=True):
        if name in axes.columns:
            rows.append(_tabled(name, output, axes.columns[name], row_count))
            if seen is not None and len(output):
                seen.add(name)
        elif axes.has_rows(name):
            rows.append(output)
        else:
            rows.append(np.broadcast_to(output, (row_count, *output.shape)))
    return rows
