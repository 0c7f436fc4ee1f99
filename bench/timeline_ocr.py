"""Where does the time of a page go in the OCR demo? A timeline of it, read again and drawn.

    python bench/timeline_ocr.py [--pages N] [--out FOLDER]

Reads sample pages with ``examples/ocr`` while ``pipe.timeline`` writes ``ocr.pftrace``, checks that the slices of the
file are the batches and the seconds of ``stats()``, prints both, and draws the rows to ``ocr.png``. The file itself is
for https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

import fastpipe

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from ocr import command, pages, pipeline

GROUPS = ("Requests", "Workers", "Callers", "Instances")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c")

Slice = tuple[str, int, int]
Rows = dict[tuple[str, str], list[Slice]]


def rows_of(path: Path) -> Rows:
    """Return the slices of a timeline, each as (name, begin, end), by the group and the name of their row."""
    trace = Trace.FromString(path.read_bytes())
    names: dict[int, str] = {}
    parents: dict[int, int] = {}
    rows: Rows = defaultdict(list)
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            row = packet.track_descriptor
            names[row.uuid], parents[row.uuid] = row.name, row.parent_uuid
    begun: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for packet in sorted((each for each in trace.packet if each.HasField("track_event")), key=lambda e: e.timestamp):
        event = packet.track_event
        track = event.track_uuid
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            begun[track].append((event.name, packet.timestamp))
        elif event.type == TrackEvent.TYPE_SLICE_END:
            name, start = begun[track].pop()
            rows[names.get(parents[track], ""), f"{names[track]} {track}"].append((name, start, packet.timestamp))
    return rows


def draw(rows: Rows, nodes: Sequence[str], path: Path) -> None:
    """Draw the rows, group by group, a colour for each node."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    def place(row: tuple[str, str]) -> tuple[int, int, int]:
        name, begin, _ = min(rows[row], key=lambda each: each[1])
        return GROUPS.index(row[0]), nodes.index(name) if name in nodes else 0, begin

    ordered = sorted(rows, key=place)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(nodes)}
    zero = min(begin for row in ordered for _, begin, _ in rows[row])
    figure = Figure(figsize=(11, 0.3 * len(ordered) + 1.2), layout="constrained")
    axes: Any = figure.subplots()
    for number, row in enumerate(ordered):
        spans = [((begin - zero) / 1e6, (end - begin) / 1e6) for _, begin, end in rows[row]]
        shades = [colours.get(name, "#c9d1d9") for name, _, _ in rows[row]]
        axes.broken_barh(spans, (number - 0.4, 0.8), facecolors=shades, edgecolor="white", linewidth=0.4)
    axes.set_yticks(range(len(ordered)), [f"{group}: {name.rpartition(' ')[0]}" for group, name in ordered], fontsize=7)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.margins(x=0)
    axes.set_xlabel("ms")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    patches = [Patch(color=colours[name], label=name) for name in nodes]
    axes.legend(handles=patches, frameon=False, ncols=len(nodes), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=110)


def main() -> int:
    """Read pages, check, print, draw; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=6, help="how many (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for both files (default: this one)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    instances = min(command.MOST_INSTANCES, len(os.sched_getaffinity(0)))
    path = options.out / "ocr.pftrace"
    with fastpipe.Pipe(pipeline.configuration(instances)) as pipe:
        read = command.pipe_reader(pipe)
        read(pages.sample_pages(1)[0].content)  # the first run of a model is slower
        before = pipe.stats()
        with pipe.timeline(path) as timeline:
            command.read_all(pages.sample_pages(options.pages), read, 2 * instances)
        nodes = pipe.stats(since=before)["nodes"]
    rows = rows_of(path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {timeline.dropped} events dropped")
    print(f"{'node':12}{'batches':>9}{'requests':>10}{'mean batch':>12}{'busy':>10}   in the file")
    is_right = timeline.dropped == 0
    for name, node in nodes.items():
        found = [end - begin for row in rows if row[0] == "Instances" for own, begin, end in rows[row] if own == name]
        print(
            f"{name:12}{node['batches']:>9}{node['requests']:>10}{node['mean_batch']:>12.2f}{node['busy_s']:>8.3f} s"
            f"   {len(found)} slices, {sum(found) / 1e9:.3f} s"
        )
        is_right = is_right and len(found) == node["batches"] and abs(sum(found) / 1e9 - node["busy_s"]) < 1e-6
    draw(rows, list(nodes), options.out / "ocr.png")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
