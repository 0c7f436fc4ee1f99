"""The search of ``fastpipe tune``: which settings there are, which are tried, and which of them pay.

What is tried comes from two sources in turn. The one knows what a pipe is: from the best settings so far it takes a
step at the node that is busiest there, or at all that are as busy. The other is optuna's sampler, which knows nothing,
and so also looks where steps do not lead. Nothing here runs a pipe: whoever searches brings the function that does.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastpipe.errors import MissingExtra

__all__ = ["Choice", "Outcome", "Search", "Setting", "optuna_module", "size_of"]

Choice = tuple[int, ...]
"""For each setting, the index of its value."""

# A node this much less busy than the busiest one becomes the busiest only if the others get twenty times as fast.
LEAST_BUSY = 0.05
# Nodes that are nearly as busy as the busiest: a step at one of them alone shows nothing.
AS_BUSY = 0.8
# Less than this is noise, and no reason for more instances or larger batches.
GAIN = 0.02
# Steps in turn with one of the sampler's.
STEPS_PER_SAMPLE = 2
MOST_REPEATS = 50


@dataclass(frozen=True)
class Setting:
    """One key of one node, and the values that it may have."""

    node: str
    key: str
    values: tuple[Any, ...]
    """Ascending: the first costs least."""
    start: int
    """The index of what the file says."""

    @property
    def name(self) -> str:
        return f"{self.node}.{self.key}"


@dataclass(frozen=True)
class Outcome:
    """What a choice has come to."""

    choice: Choice
    requests_per_s: float = 0.0
    p99_s: float = float("inf")
    busy: Mapping[str, float] = field(default_factory=dict)
    """By node, as a share of what its instances had."""
    error: str | None = None
    """Why it could not be measured: a pipe that cannot be built so."""

    def score(self, p99_s: float | None) -> float:
        """Return what is to be as large as possible: the throughput; below zero where the limit of p99 is broken."""
        if self.error is not None:
            return -1e9
        if p99_s is not None and self.p99_s > p99_s:
            return -self.p99_s / p99_s
        return self.requests_per_s


def optuna_module() -> Any:
    """Return optuna, quiet.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("fastpipe tune", "tune", error) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def size_of(settings: Sequence[Setting]) -> int:
    """Return how many choices there are."""
    size = 1
    for setting in settings:
        size *= len(setting.values)
    return size


class Search:
    """Looks for the choice with the most requests a second under a limit of p99.

    Args:
        settings: what may be chosen.
        run: measures a choice.
        p99_s: the limit, in seconds; None: there is none.
        seed: of the sampler.

    Thread-safety: one thread.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        run: Callable[[Choice], Outcome],
        p99_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = list(settings)
        self.outcomes: dict[Choice, Outcome] = {}
        """What was tried, in that order."""
        self.when_tried: Callable[[], object] = lambda: None
        """Called after each measurement, to show how far it is."""
        self._run = run
        self._p99_s = p99_s
        self._optuna = optuna = optuna_module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=4)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)

    @property
    def start(self) -> Choice:
        """What the file says."""
        return tuple(setting.start for setting in self.settings)

    @property
    def best(self) -> Outcome:
        """The best of what was tried."""
        return max(self.outcomes.values(), key=lambda outcome: outcome.score(self._p99_s))

    def search(self, trials: int) -> Outcome:
        """Try so many choices, or fewer if there are no more, and return the best."""
        for choice in [self.start, *self._corners()]:
            if len(self.outcomes) < trials:
                self._try(choice)
        turn = 0
        while len(self.outcomes) < min(trials, size_of(self.settings)):
            turn += 1
            step = next(self._steps(self.best), None) if turn % (STEPS_PER_SAMPLE + 1) else None
            if step is not None:
                self._try(step)
            elif not self._sample():
                break
        return self.best

    def without_what_does_not_pay(self) -> Outcome:
        """Put settings back, one after another, as long as that costs next to nothing; return what is left.

        What is plainer is measured afresh. The best of many is also the one that had luck, so something is put back
        only where that is rather clear; what has stayed without paying shows when both are measured in turns.
        """
        best = self.best
        for index in range(len(self.settings)):
            if best.choice[index] == self.start[index]:
                continue
            plainer = self._run((*best.choice[:index], self.start[index], *best.choice[index + 1 :]))
            if plainer.score(self._p99_s) >= (1 - GAIN) * best.score(self._p99_s) > 0:
                best = replace(best, choice=plainer.choice)
        return best

    def plainest(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Return, of those that are as good as the best of them but for noise, the one with the fewest changes."""
        best = max(outcome.score(self._p99_s) for outcome in outcomes)
        as_good = [each for each in outcomes if each.score(self._p99_s) >= best - GAIN * abs(best)]
        return min(as_good, key=lambda each: sum(map(operator.ne, each.choice, self.start)))

    def same(self, choice: Choice) -> Choice:
        """Return a choice without what means nothing: a node without batches has no requests that wait for others."""
        largest = {setting.node: choice[i] for i, setting in enumerate(self.settings) if setting.key == "max"}
        return tuple(
            setting.start if setting.key == "batching_timeout" and largest.get(setting.node) == 0 else index
            for setting, index in zip(self.settings, choice, strict=True)
        )

    def _try(self, choice: Choice) -> Outcome:
        """Measure a choice, if it was not, and tell the sampler."""
        choice = self.same(choice)
        if choice not in self.outcomes:
            outcome = self.outcomes[choice] = self._run(choice)
            self.when_tried()
            named = {setting.name: index for setting, index in zip(self.settings, choice, strict=True)}
            made = self._optuna.trial.create_trial(
                params=named, distributions=self._distributions(), value=outcome.score(self._p99_s)
            )
            self._study.add_trial(made)
        return self.outcomes[choice]

    def _sample(self) -> bool:
        """Try what the sampler suggests; False: it only suggests what was tried."""
        for _ in range(MOST_REPEATS):
            trial = self._study.ask(self._distributions())
            choice = self.same(tuple(trial.params[setting.name] for setting in self.settings))
            known = self.outcomes.get(choice)
            if known is None:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # _try adds it, with what comes of it
                self._try(choice)
                return True
            self._study.tell(trial, known.score(self._p99_s))
        return False

    def _distributions(self) -> dict[str, Any]:
        return {
            setting.name: self._optuna.distributions.IntDistribution(0, len(setting.values) - 1)
            for setting in self.settings
        }

    def _corners(self) -> Iterator[Choice]:
        """Yield the file with the largest batches, with most instances, and with both; batches may wait or may not."""
        for lowest in ((), ("batching_timeout",)):
            for largest in (("max", "instance_num"), ("max",), ("instance_num",)):
                yield tuple(
                    len(setting.values) - 1 if setting.key in largest else 0 if setting.key in lowest else setting.start
                    for setting in self.settings
                )

    def _steps(self, origin: Outcome) -> Iterator[Choice]:
        """Yield what was not tried and is one step away, the most promising first."""
        busiest = max(origin.busy.values(), default=0.0)
        busy = {node for node, share in origin.busy.items() if share >= AS_BUSY * busiest}
        groups: list[list[int]] = []
        for key in ("max", "instance_num", "threads", "batching_timeout"):
            at_busy = [i for i, setting in enumerate(self.settings) if setting.key == key and setting.node in busy]
            groups += [at_busy, *([index] for index in at_busy)]
        groups += [[index] for index in range(len(self.settings))]
        for direction in (1, -1):
            for group in groups:
                choice = list(origin.choice)
                for index in group:
                    choice[index] = min(max(choice[index] + direction, 0), len(self.settings[index].values) - 1)
                if self.same(tuple(choice)) not in self.outcomes:
                    yield tuple(choice)
