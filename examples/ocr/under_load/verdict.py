"""What was seen, in three lines made from the figures, whoever was first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ocr.under_load.board import held, milliseconds, of_windows, rate
from ocr.under_load.contestants import FASTAPI, FASTPIPE, Contestant
from ocr.under_load.costs import BatchCost
from ocr.under_load.ladder import BOUND_IN_QUERIES, STEP, Figures, Goal

__all__ = ["at_one_load", "batching", "bound", "highest_loads"]

# Below this ratio a difference of two 99th percentiles says nothing: a few requests make them.
DIFFERENT = 1.3


def bound(goal: Goal) -> str:
    """Say what a load has to keep to, to count as held, and where that comes from."""
    comes_to_s = BOUND_IN_QUERIES * goal.alone_s
    if comes_to_s <= goal.bound_s:
        why = f"{BOUND_IN_QUERIES} times what a query takes alone, rounded up"
    else:
        why = f"the longest that is waited here, as {BOUND_IN_QUERIES} queries alone take {milliseconds(comes_to_s)}"
    return f"A load is held if 99 % of the answers take at most {milliseconds(goal.bound_s)}: {why}."


def at_one_load(figures: Figures, ways: Sequence[Contestant]) -> str:
    """Say how long the answers took at the load that all were offered."""

    def p99_s(way: Contestant) -> float:
        return figures.p99_s(way.name, 0)

    def compared(own: Contestant, others: Sequence[Contestant]) -> str:
        own_s, rival_s = p99_s(own), min(map(p99_s, others))
        if math.isinf(own_s) and math.isinf(rival_s):
            return "nobody kept up"
        if max(own_s, rival_s) < DIFFERENT * min(own_s, rival_s):
            return f"fastpipe was level with {_best_of(others)}"
        return "fastpipe was ahead" if own_s < rival_s else "fastpipe was behind"

    told, said = _told(ways, lambda way: milliseconds(p99_s(way)), compared)
    load = rate(figures.goal.rate_per_s(0))
    return f"At {load} requests/s for all, {of_windows(figures)}, 99 % of the answers took at most: {told}. So {said}."


def highest_loads(figures: Figures, ways: Sequence[Contestant]) -> str:
    """Say what load each held, and how fastpipe's compares with the best of the others."""

    def compared(own: Contestant, others: Sequence[Contestant]) -> str:
        own_per_s = figures.held_per_s(own.name)
        rival_per_s = max(figures.held_per_s(way.name) for way in others)
        if not own_per_s and not rival_per_s:
            return "none was held"
        # Who climbed when the time was up might have come higher; who descended, only lower.
        climbing = [
            way.name for way in (own, *others) if way.name in figures.unfinished and figures.held_per_s(way.name)
        ]
        is_open = own.name in climbing
        if climbing and (climbing != [own.name] or own_per_s < rival_per_s):
            return "the time was up before it showed who holds more"
        if not own_per_s or not rival_per_s:
            return f"only {'fastpipe' if own_per_s else _one_of(others)} held any"
        if math.isclose(own_per_s, rival_per_s) and not is_open:
            return f"fastpipe held as much as {_best_of(others)}"
        ratio = f"{'at least ' if is_open else ''}{own_per_s / rival_per_s:.1f} x"
        return f"fastpipe held {ratio} as much as {_best_of(others)}"

    told, said = _told(ways, lambda way: held(figures, way.name), compared)
    bound, percent = milliseconds(figures.goal.bound_s), round(100 * (STEP - 1))
    return (
        f"Requests/s held with a p99 of at most {bound} {of_windows(figures)}, in steps of {percent} %: {told}."
        f" So {said}."
    )


def batching(figures: Figures, query: BatchCost, line: BatchCost) -> str:
    """Say whether batches formed and paid, in the search and in the reading of pages."""
    step = figures.held[FASTPIPE] or 0
    size = max(figures.batch_sizes[FASTPIPE, step].values())
    load = rate(figures.goal.rate_per_s(step))
    return f"{query}; at {load}/s fastpipe's batches had {size:.1f} on average. {line}."


def _best_of(others: Sequence[Contestant]) -> str:
    return f"the {others[0].what}" if len(others) == 1 else "the best of the others"


def _one_of(others: Sequence[Contestant]) -> str:
    return f"the {others[0].what}" if len(others) == 1 else "another"


def _told(
    ways: Sequence[Contestant],
    figure: Callable[[Contestant], str],
    compared: Callable[[Contestant, Sequence[Contestant]], str],
) -> tuple[str, str]:
    """Return the figures of all, and what a comparison says; functions and endpoints each among themselves."""
    told, said = [], []
    for inside in ("", FASTAPI):
        group = [way for way in ways if way.inside == inside]
        where = f"inside {inside} " if inside else ""
        told.append(where + ", ".join(f"{way.what} {figure(way)}" for way in group))
        own = next(way for way in group if way.what == FASTPIPE)
        said.append(compared(own, [way for way in group if way is not own]))
    alone, inside_too = said
    same = alone == inside_too
    return "; ".join(told), f"{alone}, inside {FASTAPI} too" if same else f"{alone}; inside {FASTAPI}, {inside_too}"
