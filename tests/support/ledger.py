"""The ledger: who was accepted, and how it ended; any other move is a mistake, and nobody may stay open.

    NEW ──accept──► ACCEPTED ──end──► DONE | ERROR | CANCELLED | REFUSED

One byte a request, so that ten million fit; a request is known by its number. Thread-safe.
"""

from __future__ import annotations

import array
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

NEW: Final = 0
ACCEPTED: Final = 1
DONE: Final = 2
ERROR: Final = 3
CANCELLED: Final = 4
REFUSED: Final = 5
UNCLEAR: Final = (
    6  # its client cannot tell: it left at the very end, or got an error that comes before and after acceptance
)

NAMES: Final = ("new", "accepted", "done", "error", "cancelled", "refused", "unclear")
MISTAKES_KEPT: Final = 20


class Ledger:
    """Notes every request's one way through a pipe, as its client sees it.

    Args:
        size: how many requests there may be; they have the numbers from 0.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._states = bytearray(size)
        self._counts = array.array("q", [size, *([0] * (len(NAMES) - 1))])
        self._next = 0
        self._runs = bytearray(size)
        self.mistakes: list[str] = []
        self.reasons: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._states)

    def accept(self) -> int:
        """Give a number to a request that is about to be handed to the pipe."""
        with self._lock:
            number = self._next
            self._next += 1
            self._move(number, NEW, ACCEPTED)
        return number

    def end(self, number: int, state: int, reason: str = "error") -> None:
        """Note an outcome: DONE, ERROR, CANCELLED, REFUSED or UNCLEAR. The second one of a request is a mistake.

        ``reason``: of an ERROR, as ``stats()["failures"]`` has it.
        """
        with self._lock:
            self._move(number, ACCEPTED, state)
            if state == ERROR:
                self.reasons[reason] += 1

    def _move(self, number: int, before: int, after: int) -> None:
        state = self._states[number]
        if state != before or after <= before:
            self._mistake(f"request {number} went from {NAMES[state]} to {NAMES[after]}")
        self._states[number] = after
        self._counts[state] -= 1
        self._counts[after] += 1

    def note_run(self, number: int) -> int:
        """Note that a backend has got the request; return how often it has by now (at most 255)."""
        with self._lock:
            runs = min(self._runs[number] + 1, 255)
            self._runs[number] = runs
        return runs

    def runs(self, number: int) -> int:
        """Return how often a backend has got the request."""
        return self._runs[number]

    def state(self, number: int) -> int:
        """Return where the request is now."""
        return self._states[number]

    def mistake(self, sentence: str) -> None:
        """Note what must not happen, from any thread: :meth:`check` fails with it."""
        with self._lock:
            self._mistake(sentence)

    def _mistake(self, sentence: str) -> None:
        if len(self.mistakes) < MISTAKES_KEPT:
            self.mistakes.append(sentence)

    def counts(self) -> Counter[str]:
        """Return how many requests are where."""
        with self._lock:
            return Counter(dict(zip(NAMES, self._counts, strict=True)))

    def check(self, *stats: Mapping[str, Any]) -> Counter[str]:
        """Fail if a request is open, moved wrongly, or if the pipe counts otherwise; return how many ended how.

        Args:
            stats: of the pipes that had all the requests, each from ``pipe.stats()``; nothing may be in flight.
        """
        counts = self.counts()
        assert not self.mistakes, self.mistakes
        assert counts["accepted"] == 0, f"{counts['accepted']} requests have no outcome: {self._open()}"
        if stats:
            self._compare(counts, stats)
        return counts

    def _open(self) -> list[int]:
        return [number for number, state in enumerate(self._states) if state == ACCEPTED][:MISTAKES_KEPT]

    def _compare(self, counts: Counter[str], stats: tuple[Mapping[str, Any], ...]) -> None:
        requests: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        for each in stats:
            requests.update(each["requests"])
            failures.update(each["failures"])
            assert sum(each["failures"].values()) == each["requests"]["failed"], each
            assert all(node["queued"] == 0 == node["running"] for node in each["nodes"].values()), each
            check_measures(each)
        sentence = f"the ledger has {dict(counts)}, the pipe {dict(requests)}"
        assert requests["in_flight"] == 0, sentence
        assert requests["accepted"] == requests["done"] + requests["failed"] + requests["cancelled"], sentence
        never = self._next - requests["accepted"] - requests["refused"]  # left while they waited to be let in
        assert 0 <= never <= counts["unclear"], sentence
        for ours, theirs in (("done", "done"), ("cancelled", "cancelled"), ("error", "failed"), ("refused", "refused")):
            assert counts[ours] <= requests[theirs] <= counts[ours] + counts["unclear"], sentence
        for reason in failures | self.reasons:
            assert self.reasons[reason] <= failures[reason] <= self.reasons[reason] + counts["unclear"], sentence


QUANTILES: Final = {"p50": 500, "p90": 900, "p99": 990, "p999": 999}
RELATIVE_ERROR: Final = 0.05


def check_distribution(distribution: Mapping[str, Any], values: Sequence[float]) -> None:
    """Fail if a distribution of ``stats()`` is not that of ``values``, which are all of them: quantiles within 5 %."""
    assert distribution["count"] == len(values) == sum(distribution["buckets"].values())
    if not values:
        assert distribution["max"] is distribution["mean"] is distribution["p50"] is None
        return
    ascending = sorted(values)
    assert abs(distribution["sum"] - sum(values)) <= 1e-9 * sum(values)
    assert abs(distribution["max"] - ascending[-1]) <= 1e-9 * ascending[-1]
    for name, per_mille in QUANTILES.items():
        exact = ascending[max(-(-len(values) * per_mille // 1000), 1) - 1]
        assert abs(distribution[name] - exact) <= RELATIVE_ERROR * exact + 16e-9, (name, distribution[name], exact)
    below = 0
    for edge, count in distribution["buckets"].items():
        below += count
        assert below == sum(value <= edge * (1 + 1e-12) for value in ascending), edge


def check_measures(stats: Mapping[str, Any], *, keeps_failures: bool = False) -> None:
    """Fail if what a pipe has measured does not fit what it has counted; nothing may be in flight.

    ``keeps_failures``: parts of a request may fail without it.
    """
    assert stats["latency_s"]["count"] <= stats["requests"]["done"] + stats["requests"]["failed"], stats
    for node in stats["nodes"].values():
        sizes = node["batch_sizes"]
        assert node["batches"] == sizes["count"] == node["run_s"]["count"] == node["weights"]["count"], node
        assert node["requests"] == sizes["sum"] >= node["queue_s"]["count"], node  # a second run has no second wait
        assert node["oldest_s"] == 0 == node["queued"], node
        assert node["expired"] == node["failures"].get("timeout", 0), node
        assert node["shed"] <= node["failures"].get("queue full", 0), node
    if len(stats["nodes"]) == 1 and not keeps_failures:  # no part of a graph in which a request could end elsewhere
        (node,) = stats["nodes"].values()
        for reason, count in node["failures"].items():
            assert count <= stats["failures"].get(reason, 0), (reason, stats)
