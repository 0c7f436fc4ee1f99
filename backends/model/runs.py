"""From a batch of requests to runs of a model: requests of equal shapes go together, the others apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from fastpipe.contract import Request
from fastpipe.errors import ItemErrors, KernelError

from .inputs import ModelInputs, Sample, UnfitError

__all__ = ["Group", "bucket_of", "run_in_groups"]

Group = list[tuple[Request, Sample]]
"""Requests that run together: of equal shapes and dtypes, and no more than their profile takes."""


def bucket_of(inputs: ModelInputs, request: Request) -> Hashable:
    """Return what must be equal within a batch; it does not raise."""
    try:
        return inputs.read(request).key
    except KernelError:
        return "misfit"  # run_in_groups() tells its caller why


def run_in_groups(inputs: ModelInputs, batch: list[Request], run: Callable[[Group], None]) -> None:
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
    for group in groups.values():
        step = group[0][1].fit.profile.max_batch
        for start in range(0, len(group), step):
            part = group[start : start + step]
            while part:
                try:
                    run(part)
                    break
                except UnfitError as unfit:
                    for place, own_error in unfit.errors.items():
                        index = next(index for index, request in enumerate(batch) if request is part[place][0])
                        errors[index] = own_error
                    part = [each for place, each in enumerate(part) if place not in unfit.errors]
    if errors:
        raise ItemErrors(errors)
