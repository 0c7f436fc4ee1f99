"""Which models have a fast path: what a request goes through in C once its shapes were met before."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fastpipe.kernels._fast_path import FastPath

from .answers import Answers
from .axes import Axes
from .inputs import ModelInputs
from .reader import RequestReader
from .state import ModelState

__all__ = ["FastPath", "fast_path_of"]


def fast_path_of(
    reader: RequestReader,
    state: ModelState,
    axes: Axes,
    outputs: Sequence[str],
    answers: Answers,
    has_rows: bool,
    call: Callable[[list[Any]], list[Any]],
) -> FastPath | None:
    """Return the fast path of a model that takes and gives arrays of NumPy; None: it can have none.

    It has none on a GPU, with text, with requests of any number of rows, where outputs are cut up by a column, and
    where a postprocessor needs more than outputs with the requests in front.

    Args:
        reader: of the requests that are about to run.
        state: of the model, perhaps none.
        axes: where the requests are.
        outputs: names of the outputs of a run, those that are a state last.
        answers: what fills the requests.
        has_rows: some run has several requests.
        call: runs the model on a list of arrays, and returns a list of its outputs.
    """
    if type(reader) is not ModelInputs or not reader.takes_plain_arrays or reader.takes_many_rows or axes.columns:
        return None
    if not answers.are_rows and not answers.are_plain:
        return None
    return FastPath(
        fits=reader.fits,
        names=reader.names,
        initial=state.initial,
        input_axes=axes.inputs,
        output_axes=[axes.outputs.get(name, 0) for name in outputs],
        runs_alone=reader.runs_alone,
        has_rows=has_rows,
        call=call,
        to_rows=functools.partial(axes.to_rows, outputs),
        finish=None if answers.are_rows else answers.fill_rows,
    )
