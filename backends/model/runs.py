"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from fastpipe.contract import Request
from fastpipe.errors import ItemErrors, KernelError

from .reader import RequestReader, Sample, UnfitError

__all__ = ["Group", "bucket_of", "run_in_groups"]

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


def bucket_of(inputs: RequestReader, request: Request) -> Hashable:
    """Return what must be equal within a batch; it does not raise."""
    try:
        return inputs.read(request).key
    except KernelError:
        return "misfit"  # run_in_groups() tells its caller why


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
