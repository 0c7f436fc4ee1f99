"""fastpipe beside other ways of doing the same, in one run: tables, a plot, and the goals with what was reached.

python bench/peers.py                       everything, in half an hour
python bench/peers.py --quick               everything, in a few minutes, and less to be trusted
python bench/peers.py --case echo --case jpeg
python bench/peers.py --render FILE --docs  again what an earlier run has written, into docs/

Contestants take turns, each in a process of its own; see README.md in this folder for what the numbers mean.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cases import OURS, Case, all_cases
from common import Window
from report import Outcome, Results, goal_table, load_of, markdown, plot, tables_of
from worker import Crashed, Skipped, Worker

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
LIBRARIES = ("fastpipe-engine", "numpy", "omniback", "opencv-python-headless", "simplejpeg", "onnxruntime")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 if fastpipe itself could not be measured somewhere, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", metavar="NAME", help="cases whose names begin so; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--quick", action="store_true", help="short windows, two of each, few pages")
    parser.add_argument("--seconds", type=float, help="how long a window is measured (1, quick: 0.3)")
    parser.add_argument("--repeats", type=int, help="windows of each contestant under each load (5, quick: 2)")
    parser.add_argument(
        "--baseline", type=Path, metavar="FOLDER", help="another build of fastpipe, to be measured in turns"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG files to take instead of the samples")
    parser.add_argument("--pages", type=int, help="how many pages of text are read (40, quick: 6)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="FOLDER")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing: show an earlier peers.jsonl")
    parser.add_argument("--docs", action="store_true", help="put tables and plot into docs/benchmarks.md, too")
    options = parser.parse_args(arguments)
    if options.docs and options.case:
        parser.error("docs/benchmarks.md shows all cases of one run: --docs goes without --case")
    page_count = options.pages or (6 if options.quick else 40)
    every_case = all_cases(options.images, page_count)
    if options.baseline is not None:
        if not (options.baseline / "fastpipe" / "_core.pyi").is_file():
            parser.error(f"--baseline: there is no built fastpipe in {options.baseline}: see bench/README.md")
        every_case = {name: case.beside_before() for name, case in every_case.items()}
    cases = _chosen(parser, every_case, options.case)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.render is not None:
        results = Results.read(options.render)
    else:
        seconds = options.seconds or (0.3 if options.quick else 1.0)
        repeats = options.repeats or (2 if options.quick else 5)
        window = Window(warm_up_s=min(0.3, seconds / 2), measured_s=seconds)
        results = Results(_about(window, repeats))
        options.output.mkdir(parents=True, exist_ok=True)
        settings = {
            "images": options.images and str(options.images.resolve()),
            "pages": page_count,
            "baseline": options.baseline and str(options.baseline.resolve()),
        }
        with (options.output / "peers.log").open("w") as log:
            for case in cases:
                results.outcomes[case.name] = _measured(case, window, repeats, settings, log)
                _say("")
                print(tables_of(case, results), flush=True)
                results.write(options.output / "peers.jsonl")  # a run that is interrupted has not been for nothing
    print("## Goals\n")
    print(goal_table(cases, results), flush=True)
    _write_pages(cases, results, options.output)
    if options.docs:
        put_into_page(ROOT / "docs" / "benchmarks.md", list(every_case.values()), results)
    problems = [case for case, outcomes in results.outcomes.items() if OURS in outcomes and outcomes[OURS].problem]
    if problems:
        print(f"fastpipe was not measured to the end in: {', '.join(problems)}", file=sys.stderr)
    return 1 if problems else 0


def _chosen(parser: argparse.ArgumentParser, cases: Mapping[str, Case], wanted: Sequence[str] | None) -> list[Case]:
    chosen = [case for name, case in cases.items() if wanted is None or name.startswith(tuple(wanted))]
    if not chosen:
        parser.error(f"there is no such case; there are: {', '.join(cases)}")
    return chosen


def _say(what: str) -> None:
    """Show what is going on, on a line that is overwritten; nothing if nobody looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
        sys.stderr.flush()


def _measured(
    case: Case, window: Window, repeats: int, settings: Mapping[str, Any], log: IO[str]
) -> dict[str, Outcome]:
    """Let the contestants of a case take turns."""
    outcomes = {contestant: Outcome() for contestant in case.contestants}
    workers: dict[str, Worker] = {}
    digests: dict[str, str | None] = {}

    def start(contestant: str) -> None:
        _say(f"{case.name}: starting {contestant}")
        workers[contestant] = Worker(case.name, contestant, settings, log)

    def measure(contestant: str, clients: int) -> None:
        if case.is_once_per_process:
            workers.pop(contestant).stop()
            start(contestant)
        numbers, digests[contestant] = workers[contestant].measure(clients, window)
        outcomes[contestant].windows.setdefault(clients, []).append(numbers)

    repeats = min(repeats, case.most_repeats or repeats)
    window = case.window(window)
    try:
        for contestant in case.contestants:
            with _noted(contestant, outcomes, workers):
                start(contestant)
        for clients in case.clients:
            for repeat in range(repeats):
                turns = list(workers)
                for contestant in turns[repeat % len(turns) :] + turns[: repeat % len(turns)] if turns else []:
                    _say(f"{case.name}: {load_of(case, clients)}, {repeat + 1} of {repeats}, {contestant}")
                    with _noted(contestant, outcomes, workers):
                        measure(contestant, clients)
    finally:
        for worker in workers.values():
            worker.stop()
    for contestant, digest in digests.items():
        if digest != digests.get(OURS, digest):
            outcomes[contestant] = Outcome(problem=f"its answers differ from {OURS}'s")
    return outcomes


@contextlib.contextmanager
def _noted(contestant: str, outcomes: dict[str, Outcome], workers: dict[str, Worker]) -> Any:
    """Note why a contestant cannot go on, and go on without it."""
    try:
        yield
    except Skipped as reason:
        outcomes[contestant].problem = f"skipped, {reason}"
    except Crashed as reason:
        # What it has shown so far stands beside fewer windows of the others, and would be compared with the wrong ones.
        outcomes[contestant] = Outcome(problem=f"failed: {reason}")
    else:
        return
    if contestant in workers:
        workers.pop(contestant).stop()


def _about(window: Window, repeats: int) -> dict[str, Any]:
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return {
        "machine": f"{len(os.sched_getaffinity(0))} CPUs ({platform.machine()}), {memory_gib:.0f} GiB",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}",
        "libraries": ", ".join(f"{library} {version}" for library, version in versions.items()),
        "others on it": f"a load average of {os.getloadavg()[0]:.1f} before the run began",
        "commit": _commit(),
        "each window": f"{window.measured_s:g} s after {window.warm_up_s:g} s of warm-up",
        "figures": f"median of {repeats} windows (least to greatest)",
    }


def _commit() -> str:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=, with changes"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _write_pages(cases: Sequence[Case], results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(f"# fastpipe beside its peers\n\n{markdown(cases, results)}")
    try:
        plot(cases, results, [folder / "peers.png"])
    except ImportError as missing:
        print(f"no plot: {missing.name} is not installed", file=sys.stderr)
    print(f"Tables, plot and all windows: {folder}{os.sep}peers.md, .png, .jsonl")


def put_into_page(page: Path, cases: Sequence[Case], results: Results) -> None:
    """Replace what stands between the two marks of a Markdown page, and the picture beside it.

    Raises:
        ValueError: if the page has not both marks, once.
    """
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(cases, results)}\n{END}{after}")
    plot(cases, results, [page.with_suffix(".png")])


if __name__ == "__main__":
    sys.exit(main())
