"""What does the GPU path reach, of what it should? One command for all of it.

    python bench/gpu/run.py [--quick] [--images FOLDER] [--output FOLDER] [--baseline FOLDER]

Runs ``kernels.py``, ``decode.py``, ``torch_model.py`` and ``classify.py``, each in a process of its own, and where
there are several GPUs ``torch_model.py --device all``: they check their answers first, and say what they measure. With
``--baseline``, another build of fastpipe, ``beside.py`` measures that one and this in turns. Then it prints one table,
the goals and what was reached (see ``docs/benchmarks-gpu.md``). Everything else that was measured goes to FOLDER as
JSON; without it, to the folder that the variable OUT names, else to ``build/bench/gpu``. It takes about six minutes,
with ``--quick`` three; with ``--baseline`` six more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import Spread

HERE = Path(__file__).resolve().parent

SCRIPTS = ("kernels", "decode", "torch_model", "classify", "several_gpus", "beside")

P99_GOAL_MS = 20.0
HOST_GOAL_US = 20.0  # of a fused call, beyond the launch itself
# The median of one client: torchpipe's, measured on an H100 with other images of these sizes.
ONE_CLIENT_GOAL_MS = {"640x640": 0.50, "517x606": 0.35, "1280x720": 0.88}
BUSY_SHARE_GOAL = 0.5
MODEL_SHARE_GOAL = 0.90
EACH_GPU_GOAL = 0.95


class Line(NamedTuple):
    """A line of the table."""

    what: str
    goal: str
    measured: str
    is_reached: bool


def kernel_lines(numbers: dict[str, Any]) -> Iterator[Line]:
    """Shares of the copy's bandwidth; what a call costs the host."""
    rows = numbers["rows"]
    for row in rows:
        if "goal" in row:
            spread = f"{row['us']:.1f} µs [{row['least']:.1f} .. {row['greatest']:.1f}]"
            yield Line(
                row["what"],
                f"{row['goal']:.0%} of a copy",
                f"{row['share']:.0%} ({spread})",
                row["share"] >= row["goal"],
            )
    by_name = {(row["what"], row["way"]): row for row in rows}
    launch = by_name["host: an empty launch", "CuPy"]["us"]
    for way in ("fastpipe, CuPy arrays", "fastpipe, a table"):
        beyond = by_name["host: resize opencv, 64", way]["us"] - launch
        name = f"host time of one call, 64 images, {way.removeprefix('fastpipe, ')}"
        yield Line(
            name, f"{HOST_GOAL_US:.0f} µs beyond a launch ({launch:.0f})", f"{beyond:.0f} µs", beyond <= HOST_GOAL_US
        )


def decode_lines(numbers: dict[str, Any]) -> Iterator[Line]:
    """From JPEG to tensor."""
    for what in dict.fromkeys(row["what"] for row in numbers["rows"]):
        rows = [row for row in numbers["rows"] if row["what"] == what and "binding" not in row["way"]]
        goal = rows[0]["goal"]
        name = f"JPEG {what} -> tensor"
        for row in rows:
            if "busy" in row["way"] or "batches of" in row["way"] or "one client" in row["way"]:
                continue
            rate, measured = row["requests_per_s"], f"{row['requests_per_s']:.0f}/s"
            is_in_time = True
            if "p99_us" in row and "lists" not in row["way"]:
                is_in_time = row["p99_us"] <= P99_GOAL_MS * 1e3
                measured += f", p99 {row['p99_us'] / 1e3:.1f} ms"
            wanted = f"{goal}/s" + (f", p99 {P99_GOAL_MS:.0f} ms" if "p99" in measured else "")
            yield Line(f"{name}, {row['way']}", wanted if goal else "-", measured, rate >= (goal or 0) and is_in_time)
        limit = ONE_CLIENT_GOAL_MS.get(what)
        for row in rows:
            if "one client" in row["way"]:
                p50_ms = row["p50_us"] / 1e3
                wanted = f"p50 {limit} ms" if limit else "-"
                yield Line(f"{name}, {row['way']}", wanted, f"{p50_ms:.2f} ms", p50_ms <= (limit or p50_ms))
        busy = max((row for row in rows if "share" in row), key=lambda row: row["share"])
        yield Line(
            f"{name}, {busy['way']}",
            f"{BUSY_SHARE_GOAL:.0%} of the rate without",
            f"{busy['share']:.0%}, {busy['requests_per_s']:.0f}/s",
            busy["share"] >= BUSY_SHARE_GOAL,
        )


def model_lines(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """ResNet50 alone."""
    for row in rows:
        if "share" in row:
            measured = f"{row['share']:.0%}, {row['images_per_s']:.0f}/s"
            yield Line(
                f"ResNet50, {row['what']}",
                f"{MODEL_SHARE_GOAL:.0%} of its graph",
                measured,
                row["share"] >= MODEL_SHARE_GOAL,
            )


def classify_lines(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """From JPEG to class: of each way to call, the best of the pipes."""
    for what, way in dict.fromkeys((row["what"], row["way"]) for row in rows):
        best = max(
            (row for row in rows if (row["what"], row["way"]) == (what, way)), key=lambda row: row["requests_per_s"]
        )
        goal, rate = best["goal"], best["requests_per_s"]
        name = f"JPEG {what} -> class, {way} ({best['pipe']})"
        yield Line(name, f"{goal}/s" if goal else "-", f"{rate:.0f}/s", rate >= (goal or 0))


def gpu_lines(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """ResNet50 alone, on all GPUs."""
    for row in rows:
        if row["what"].startswith("all"):
            ratio = row["ratio_to_one_gpu"] / len(row["each"])
            yield Line(
                f"ResNet50, {row['what']}",
                f"{EACH_GPU_GOAL} x one GPU, for each",
                f"{ratio:.2f} x, {row['images_per_s']:.0f}/s",
                ratio >= EACH_GPU_GOAL,
            )


def beside_lines(numbers: dict[str, Any]) -> Iterator[Line]:
    """From JPEG to tensor and to class, beside another build: the ratios within the rounds."""
    for row in numbers["rows"]:
        if "before" in row["windows"]:
            now, before = (
                [numbers["requests_per_s"] for numbers in row["windows"][name]] for name in ("now", "before")
            )
            ratio = Spread.of_ratio(now, before)
            spread = f"{ratio.median:.2f} [{ratio.least:.2f} .. {ratio.greatest:.2f}]"
            rates = f"{statistics.median(before):.0f} -> {statistics.median(now):.0f}/s"
            name = f"JPEG {row['image']} {row['pipe']}, {row['way']}"
            yield Line(name, "1.0 x the baseline", f"{spread}, {rates}", ratio.median >= 1.0)
    for pipe, memory_mb in numbers["memory_mb"].items():
        yield Line(f"memory, {pipe}", "-", f"{memory_mb:.0f} MB", True)


LINES = {
    "kernels": kernel_lines,
    "decode": decode_lines,
    "torch_model": model_lines,
    "classify": classify_lines,
    "several_gpus": gpu_lines,
    "beside": beside_lines,
}


def gpu_count() -> int:
    """Return how many GPUs torch sees."""
    import torch

    return torch.cuda.device_count()


def main() -> int:
    """Run everything; return 1 if something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short windows: shows that it runs")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="take these JPEGs, not scikit-image's")
    parser.add_argument("--only", action="append", choices=SCRIPTS, help="may be repeated")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write all numbers")
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="another build, to be measured in turns")
    arguments = parser.parse_args()
    folder = arguments.output or Path(os.environ.get("OUT") or HERE.parents[1] / "build" / "bench" / "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    lines: list[Line] = []
    for name in arguments.only or SCRIPTS:
        if name == "several_gpus" and gpu_count() < 2:
            continue
        if name == "beside" and arguments.baseline is None:
            continue
        print(f"\n== {name}", flush=True)
        is_model = name in ("torch_model", "several_gpus")
        command = [sys.executable, str(HERE / ("torch_model.py" if is_model else f"{name}.py"))]
        command += ["--json", str(folder / f"{name}.json")]
        if is_model:
            command += ["--seconds", "0.5" if arguments.quick else "1.5"]
            command += ["--device", "all", "--clients", "64"] if name == "several_gpus" else []
        else:
            command += ["--quick"] * arguments.quick
            command += ["--images", str(arguments.images)] if arguments.images else []
            command += ["--baseline", str(arguments.baseline), "--memory"] if name == "beside" else []
        if subprocess.run(command).returncode:
            failed.append(name)
            continue
        lines += LINES[name](json.loads((folder / f"{name}.json").read_text()))
    table = ["| what | goal | measured | reached |", "| --- | --- | --- | --- |"]
    table += [f"| {what} | {goal} | {measured} | {'yes' if ok else '**no**'} |" for what, goal, measured, ok in lines]
    (folder / "goals.md").write_text("\n".join(table) + "\n")
    print("", *table, sep="\n")
    if failed:
        print("not measured:", ", ".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
