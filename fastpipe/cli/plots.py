"""Plots of ``fastpipe bench`` and ``fastpipe tune``, by matplotlib (extra ``plot``), as PNG or by another suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpipe.cli.paths import check_output, writing
from fastpipe.errors import MissingExtra, PipeError

try:
    # Not pyplot: it would choose a window system, and keep figures alive.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
except ImportError as error:
    raise MissingExtra("--plot", "plot", error) from error

if TYPE_CHECKING:
    from fastpipe.cli.bench import Results
    from fastpipe.cli.tuning import Outcome

__all__ = ["bench", "tune"]

# Colours that are told apart with any kind of sight, by Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FIRST, SECOND = COLOURS[:2]
PERCENTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999)
_SHOWN = {0.0: "0", 0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9"}


def bench(results: Sequence[Results], path: Path) -> None:
    """Draw throughput by load, and the latencies of each load by percentile."""
    files = list(dict.fromkeys(each.file for each in results))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _throughput(left, results, files)
    _latencies(right, results, files)
    figure.suptitle(" and ".join(_plain(file.name) for file in files))
    _save(figure, path)


def _throughput(axes: Any, results: Sequence[Results], files: Sequence[Path]) -> None:
    loads = list(dict.fromkeys(each.load for each in results))
    width = 0.8 / len(files)
    for which, file in enumerate(files):
        mine = [each.throughput for each in results if each.file == file]
        places = [index + (which - (len(files) - 1) / 2) * width for index in range(len(loads))]
        medians = [spread.median for spread in mine]
        errors = [
            [spread.median - spread.least for spread in mine],
            [spread.greatest - spread.median for spread in mine],
        ]
        axes.bar(places, medians, width * 0.9, color=COLOURS[which], yerr=errors, capsize=3, label=_plain(file.name))
        for place, spread in zip(places, mine, strict=True):
            axes.annotate(
                f"{spread.median:,.0f}",
                (place, spread.greatest),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.set_xticks(range(len(loads)), [str(load) for load in loads])
    axes.set_ylabel("requests answered per second")
    axes.margins(y=0.12)
    if len(files) > 1:
        axes.legend(frameon=False)
    _tidy(axes)


def _latencies(axes: Any, results: Sequence[Results], files: Sequence[Path]) -> None:
    loads = list(dict.fromkeys(each.load for each in results))
    for each in results:
        shares = [share for share in PERCENTILES if min(len(s.latencies_s) for s in each.samples) * (1 - share) >= 1]
        name = f"{each.load}, {_plain(each.file.name)}" if len(files) > 1 else str(each.load)
        axes.plot(
            [1 / (1 - share) for share in shares],
            [each.latency_s(share).median * 1e3 for share in shares],
            color=COLOURS[loads.index(each.load) % len(COLOURS)],
            linestyle="-" if each.file == files[0] else "--",
            marker="o",
            markersize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1 / (1 - share) for share in _SHOWN], list(_SHOWN.values()))
    axes.minorticks_off()
    least, greatest = axes.get_ylim()
    # Less than a decade or so has too few of these to be read.
    subs = (1, 2, 5) if greatest > 20 * least else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.set_xlabel("percent of the requests that took no longer")
    axes.set_ylabel("latency in ms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain(text: str) -> str:
    """Return text in which nothing is a formula."""
    return text.replace("$", r"\$")


def check_path(path: Path) -> None:
    """Find out before anything is measured that no plot can be kept at ``path``.

    Raises:
        PipeError: it cannot be written, or its suffix is none that matplotlib knows.
    """
    check_output("--plot", path)
    known = Figure().canvas.get_supported_filetypes()
    suffix = path.suffix.removeprefix(".").lower()
    if suffix and suffix not in known:
        raise PipeError(f"--plot {path}: no picture ends with {path.suffix!r}; these do: {', '.join(sorted(known))}")


def _save(figure: Figure, path: Path) -> None:
    try:
        with writing(path):
            figure.savefig(path, dpi=150)
    except ValueError as error:  # a suffix that matplotlib does not know
        raise PipeError(f"--plot {path}: {error}") from error


def tune(trials: Sequence[Outcome], was: Outcome, chosen: Outcome, p99_s: float | None, path: Path) -> None:
    """Draw what was tried, by throughput and p99; the front is what nothing else beats in both."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes: Any = figure.subplots()
    tried = [each for each in trials if each.error is None]
    axes.scatter(
        [each.requests_per_s for each in tried],
        [each.p99_s * 1e3 for each in tried],
        s=18,
        color="#9a9a9a",
        label=f"tried ({len(tried)})",
    )
    front = front_of(tried)
    axes.step(
        [each.requests_per_s for each in front],
        [each.p99_s * 1e3 for each in front],
        where="post",
        color=FIRST,
        marker="o",
        markersize=4,
        label="front",
    )
    for each, name, colour in ((was, "as it was", SECOND), (chosen, "chosen", COLOURS[2])):
        axes.scatter([each.requests_per_s], [each.p99_s * 1e3], s=90, color=colour, marker="D", zorder=3, label=name)
    if p99_s is not None:
        axes.axhline(p99_s * 1e3, color="black", linestyle=":", label=f"limit of p99, {p99_s * 1e3:g} ms")
    axes.set_yscale("log")
    axes.minorticks_off()
    least, greatest = axes.get_ylim()
    # Less than a decade or so has too few of these to be read.
    subs = (1, 2, 5) if greatest > 20 * least else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel("requests answered per second")
    axes.set_ylabel("p99 in ms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _tidy(axes)
    _save(figure, path)


def front_of(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return those of which none other has more throughput and a lower p99, by throughput."""
    front: list[Outcome] = []
    for each in sorted(outcomes, key=lambda outcome: (-outcome.requests_per_s, outcome.p99_s)):
        if not front or each.p99_s < front[-1].p99_s:
            front.append(each)
    return front[::-1]
