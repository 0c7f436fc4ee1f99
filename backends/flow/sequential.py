"""Backends made of others: Sequential, also called S.

    "S[DecodeMat,ResizeMat,(or)Mat2Tensor]"        Sequential(DecodeMat, ResizeMat, Step(Mat2Tensor, filter="or"))

One batch goes through the steps, on one thread. What each step's outcome means for *one* request never depends on
the others in the batch: a failure is kept with its request, and the rest goes on.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import Any

from fastpipe.contract import Child, Container, Request
from fastpipe.errors import BackendError, ConfigError
from fastpipe.filters import Status, move_result, swap
from fastpipe.summaries import summarize

from .child import ChildRunner, Failures, common_size, fail, raise_failures

__all__ = ["Sequential"]


class Sequential(Container):
    """Runs its children one after the other over the same batch.

    **Between steps** the previous result becomes the data, before every child but the first; a request without a
    result leaves the Sequential, and fails with NoResult if nothing behind that gives it one. A filter written in front
    of a child, ``"(or)B"``, decides instead: Run; Skip (on to the next step as it is); Break, SerialSkip or
    SubGraphSkip (the request leaves, as it is, without an error); Error.

    **Sizes.** ``max_batch`` is the smallest of the children's that are not 1; children that take one are run item by
    item, and a child that does not say takes whatever comes. A batch is at most that of the node's ``max``.

    **Failures.** If a child raises for several requests, each is put back to what it was before that child and is run
    in it again, alone (unless the child says ``retry_alone = False``). Those that fail again have failed; the others
    go on through all steps.

    **Buckets, weights, lengths.** The node's batches are formed by the first child's ``bucket``, ``weigh`` and
    ``length_of``: what later children will see is not known before the first has run. A later child that has a
    ``bucket`` or a ``weigh`` gets the batch in parts, each of one bucket and of no more than its ``max_batch`` in
    weight.

    **Forms.** Two neighbours without a filter between them may agree on a form of data that nobody else sees
    (``Backend.takes_forms``): behind the second, ``data`` is what it was before the first.

    **Around it.** Where a child has a ``surround`` (``SyncTensor`` has), every batch is run within it; the first
    child's is the outermost.

    Built, run and closed on one thread of its own if any child must be.
    """

    retry_alone = False  # it has already been done, child by child

    def __init__(self, children: list[Child]) -> None:
        super().__init__(children)
        if not children:
            raise ConfigError("Sequential needs at least one child")
        self._steps = [
            _Step(child, is_first=index == 0, is_last=index == len(children) - 1)
            for index, child in enumerate(children)
        ]
        self.keeps_input = type(self).forward is Sequential.forward and all(
            child.backend.keeps_input for child in children
        )
        # By id of a request of the batch that has left without a result: which step gave none; "": a filter let it go.
        self._without: dict[int, str] = {}
        self.thread_bound = any(child.backend.thread_bound for child in children)
        self.max_batch = common_size([child.backend.max_batch for child in children])
        first, last = children[0].backend, children[-1].backend
        self.announced_inputs, self.announced_outputs = first.announced_inputs, last.announced_outputs
        if first.bucket is not None:
            self.bucket = first.bucket
        if first.weigh is not None:
            self.weigh = first.weigh
        if first.length_of is not None:
            self.length_of = first.length_of
            self.max_padded, self.max_padding = first.max_padded, first.max_padding
        for before, after in itertools.pairwise(self._steps):
            after.agree_with(before)
        self._surrounds = [child.backend.surround for child in children if child.backend.surround is not None]
        if self._surrounds:
            self.forward = self._forward_surrounded  # type: ignore[method-assign]  # costs nothing where there is none

    def forward(self, batch: list[Request]) -> None:
        if self._without:
            self._without = {}
        if len(batch) == 1:
            self._forward_one(batch[0])
            return
        failed: Failures = {}
        active = list(batch)  # without those that failed or left
        for step in self._steps:
            handed = [] if step.form is None else step.handed(active)
            active, runnable = step.sort(active, failed, self._without)
            if runnable:
                try:
                    step.run(runnable, failed)
                finally:
                    _put_back(handed)
                step.note_results(runnable, self._without)
            if failed:
                active = [request for request in active if id(request) not in failed]
            if not active:
                break
        raise_failures(batch, failed)

    def why_no_result(self, request: Request) -> str | None:
        return self._without.get(id(request))

    def _forward_surrounded(self, batch: list[Request]) -> None:
        with ExitStack() as around:
            for surround in self._surrounds:
                around.enter_context(surround())
            type(self).forward(self, batch)

    def _forward_one(self, request: Request) -> None:
        """Run a batch of one: nothing to retry and nobody to spare, so exceptions simply go up."""
        last = None  # the step that ran last, unless one behind it was skipped
        for step in self._steps:
            handed = [] if step.form is None else step.handed([request])
            if step.swaps:
                if not move_result(request):
                    break
            elif step.filter is not None:
                status = step.decide(request)
                if status is Status.Skip:
                    if step.is_last:
                        last = None
                    continue
                if status is not Status.Run:
                    last = None
                    break
            try:
                step.run_alone(request)
            finally:
                if handed:
                    _put_back(handed)
            last = step
        if "result" not in request:
            self._without[id(request)] = "" if last is None else last.why_no_result(request)


_NO_DATA = object()
_Handed = list[tuple[Request, Any]]
"""Requests whose data is in a form that only two steps see, each with what it has to be for all others."""


def _put_back(handed: _Handed) -> None:
    for request, data in handed:
        if data is _NO_DATA:
            request.pop("data", None)
        else:
            request["data"] = data


class _Step(ChildRunner):
    """One child, and the filter in front of it."""

    def __init__(self, child: Child, *, is_first: bool, is_last: bool) -> None:
        super().__init__(child, gets_whole_batches=is_first)  # the engine has formed the batch for the first child
        self.filter = child.filter
        self.swaps = self.filter is swap or (self.filter is None and not is_first)
        self.is_last = is_last
        self.form: type | None = None  # in which the step before hands on its results
        self._backend = child.backend

    def agree_with(self, before: _Step) -> None:
        """Agree on a form of data with the step before, if there is one that it offers and this one takes."""
        giver, taken = before._backend, self._backend.takes_forms
        if self.filter is None and giver.hand_on is not None:
            self.form = next((form for form in giver.offers_forms if form in taken), None)
            if self.form is not None:
                giver.hand_on(self.form, self._backend)

    def handed(self, requests: list[Request]) -> _Handed:
        """Return the requests whose result the step before gives in the agreed form, each with its data until now."""
        return [
            (request, request.get("data", _NO_DATA)) for request in requests if type(request.get("result")) is self.form
        ]

    def sort(
        self, requests: list[Request], failed: Failures, without: dict[int, str]
    ) -> tuple[list[Request], list[Request]]:
        """Return the requests that go on, and those of them that are run here; ``without``: why others leave so."""
        going_on: list[Request] = []
        if self.swaps:
            for request in requests:
                if move_result(request):
                    going_on.append(request)
                else:
                    without.setdefault(id(request), "")
            return going_on, going_on
        if self.filter is None:
            return requests, requests
        runnable = []
        for request in requests:
            try:
                status = self.decide(request)
            except Exception as error:  # a filter's failure is that of its request
                fail(request, error, failed)
                continue
            if status is Status.Run:
                runnable.append(request)
            if status is Status.Run or status is Status.Skip:
                going_on.append(request)
            if status is not Status.Run and (self.is_last or status is not Status.Skip):
                without[id(request)] = ""
        return going_on, runnable

    def decide(self, request: Request) -> Status:
        """Ask the filter; Error, and an answer that is no Status, are raised."""
        status = Status.Run if self.filter is None else self.filter(request)
        if not isinstance(status, Status):
            got = summarize(status)
            raise BackendError(f"the filter in front of step {self.name!r} returned {got}, which is no Status")
        if status is Status.Error:
            raise BackendError(f"the filter in front of step {self.name!r} failed the request")
        return status
