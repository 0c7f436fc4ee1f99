"""The run as a chart: how long answers took at each load, and the highest load that each way held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocr.under_load.board import held, of_windows
from ocr.under_load.contestants import Contestant
from ocr.under_load.ladder import Figures

__all__ = ["save_chart"]

INK, GREY = "#24292f", "#8c959f"


def save_chart(figures: Figures, ways: Sequence[Contestant], path: Path) -> bool:
    """Draw the chart and write it as PNG, or as SVG if the name ends so; say whether matplotlib is there to do it.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 3.9), layout="constrained", facecolor="white")
    latencies, loads = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_latencies(latencies, figures, ways)
    _draw_loads(loads, figures, ways)
    for axes in (latencies, loads):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True


def _draw_latencies(axes: Any, figures: Figures, ways: Sequence[Contestant]) -> None:
    bound_ms = figures.goal.bound_s * 1e3
    ceiling_ms = 2 * bound_ms  # beyond it a window is given up
    for way in ways:
        steps = figures.steps_of(way.name)
        rates = [figures.goal.rate_per_s(step) for step in steps]
        p99_ms = [1e3 * figures.p99_s(way.name, step) for step in steps]
        heights = [min(ms, ceiling_ms) if math.isfinite(ms) else ceiling_ms for ms in p99_ms]
        axes.plot(rates, heights, color=way.colour, linewidth=1.8, marker="o", markersize=4, label=way.name)
        gone = [(x, y) for x, y, ms in zip(rates, heights, p99_ms, strict=True) if ms > ceiling_ms]
        axes.plot(*zip(*gone, strict=True), "x", color=way.colour, markersize=9) if gone else None
    axes.axhline(bound_ms, color=GREY, linestyle=":", linewidth=1)
    axes.annotate(f"{bound_ms:.0f} ms", (1, bound_ms), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                  textcoords="offset points", ha="right", fontsize=8, color=GREY)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_ylim(top=1.15 * ceiling_ms)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "25" else "")
    axes.set_xlabel("requests offered per second (x: given up)", color=INK)
    axes.set_title(f"99th percentile, ms, {of_windows(figures)}", loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_loads(axes: Any, figures: Figures, ways: Sequence[Contestant]) -> None:
    names = [way.name for way in ways][::-1]
    loads = [figures.held_per_s(name) for name in names]
    axes.barh(names, loads, color=[way.colour for way in ways][::-1], height=0.62)
    for place, per_s in enumerate(loads):
        axes.annotate(held(figures, names[place]), (per_s, place), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=9, color=INK)  # fmt: skip
    axes.set_xlim(0, 1.3 * max([*loads, 1.0]))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    bound_ms = figures.goal.bound_s * 1e3
    axes.set_title(
        f"Requests/s held within {bound_ms:.0f} ms",
        loc="left", fontsize=11, color=INK,
    )  # fmt: skip
