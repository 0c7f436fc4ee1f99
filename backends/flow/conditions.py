"""Backends that choose: HasKey, NotHasKey and Random run each request in one of their children.

    "HasKey(box)[CropMat,Identity]"        "S[HasKey(box)[CropMat],ResizeMat]"        "Random(0.1, seed=7)[New,Old]"

A batch is divided among the children, and each child gets its share as one batch. Where no child is chosen the
request passes through: its data becomes the result, unless it has one.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Annotated

from fastpipe.contract import Between, Child, Container, Request
from fastpipe.errors import ConfigError

from ..basic import pass_on
from .child import ChildRunner, Failures, common_size, raise_failures, refuse_filters, sizes_in_words

__all__ = ["Choice", "HasKey", "NotHasKey", "Random"]


class Choice(Container):
    """Base for backends that run each request in one child, or in none; :meth:`choose` is yours to write.

    **Sizes** are those of a Sequential of the same children. **Failures**: those of one child do not touch the
    others' requests; a child that raises for its share runs it again one by one, if it says ``retry_alone``.

    Built, run and closed on one thread of its own if any child must be.
    """

    retry_alone = False  # it has already been done, child by child
    chooses_once = False
    """True: :meth:`choose` says the same for a request whenever it is asked. Batches are then formed by what the
    chosen child's ``bucket`` and ``weigh`` say; otherwise each child's share is divided by them afterwards."""

    def __init__(self, children: list[Child]) -> None:
        super().__init__(children)
        refuse_filters(type(self).__name__, children)
        self.thread_bound = any(child.backend.thread_bound for child in children)
        self.max_batch = common_size([child.backend.max_batch for child in children])
        self.keeps_input = type(self).forward is Choice.forward and all(child.backend.keeps_input for child in children)
        self._without: dict[int, str] = {}  # by id of a request without a result: which step gave none
        self._runners = [ChildRunner(child, gets_whole_batches=self.chooses_once) for child in children]
        if self.chooses_once and any(child.backend.bucket is not None for child in children):
            self.bucket = self._bucket
        if self.chooses_once and any(child.backend.weigh is not None for child in children):
            self.weigh = self._weigh

    def choose(self, request: Request) -> int | None:
        """Return the index of the child that is to run the request; None: it passes through."""
        raise NotImplementedError(f"{type(self).__name__} has no choose(request)")  # abstract

    def forward(self, batch: list[Request]) -> None:
        failed: Failures = {}
        shares: list[list[Request]] = [[] for _ in self._runners]
        for request in batch:
            chosen = self.choose(request)
            if chosen is None:
                pass_on(request)
            else:
                shares[chosen].append(request)
        self._without = {}
        for runner, share in zip(self._runners, shares, strict=True):
            if share:
                runner.run(share, failed)
                runner.note_results(share, self._without)
        raise_failures(batch, failed)

    def why_no_result(self, request: Request) -> str | None:
        return self._without.get(id(request))

    def _bucket(self, request: Request) -> Hashable:
        chosen = self.choose(request)
        if chosen is None:
            return None
        bucket = self.children[chosen].backend.bucket
        return chosen, None if bucket is None else bucket(request)

    def _weigh(self, request: Request) -> float:
        chosen = self.choose(request)
        weigh = None if chosen is None else self.children[chosen].backend.weigh
        return 1.0 if weigh is None else weigh(request)


class HasKey(Choice):
    """Runs the first child if the request has a key, otherwise the second; without one, it passes through.

    Args:
        key: which.
    """

    chooses_once = True

    def __init__(self, children: list[Child], *, key: str) -> None:
        super().__init__(children)
        if not 1 <= len(children) <= 2:
            raise ConfigError(f"{type(self).__name__} takes one child or two, got {len(children)}")
        self.key = key

    def choose(self, request: Request) -> int | None:
        return self._first_if(self.key in request)

    def _first_if(self, condition: bool) -> int | None:
        if condition:
            return 0
        return 1 if len(self.children) > 1 else None


class NotHasKey(HasKey):
    """Runs the first child if the request lacks a key, otherwise the second; without one, it passes through.

    Args:
        key: which.
    """

    def choose(self, request: Request) -> int | None:
        return self._first_if(self.key not in request)


class Random(Choice):
    """Runs the first of its two children with probability ``p``, otherwise the second.

    Args:
        p: from 0 (always the second) to 1 (always the first).
        seed: makes the sequence of choices repeatable, in each instance by itself: every instance has the same one.
            Without it, instances choose independently.

    Raises:
        ConfigError: if the children do not take the same batch sizes: which of them gets how many is not known when
            a batch is formed.
    """

    def __init__(self, children: list[Child], *, p: Annotated[float, Between(0, 1)], seed: int | None = None) -> None:
        super().__init__(children)
        if len(children) != 2:
            raise ConfigError(f"Random chooses between two children, got {len(children)}")
        sizes = [(child.backend.min_batch, child.backend.max_batch) for child in children]
        if len(set(sizes)) > 1:
            listed = ", ".join(
                f"{child.name} takes {sizes_in_words(*each)}" for child, each in zip(children, sizes, strict=True)
            )
            raise ConfigError(f"Random needs children that take the same batch sizes; {listed}")
        self.p = p
        self._generator = random.Random(seed)

    def choose(self, request: Request) -> int:
        return 0 if self._generator.random() < self.p else 1
