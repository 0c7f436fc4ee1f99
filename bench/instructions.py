"""How many instructions does an echo cost, with limits, with a cache, and submit()? Valgrind counts: no clock.

python bench/instructions.py                    a table
python bench/instructions.py --beside FOLDER    and the same for another build of the package, in FOLDER
python bench/instructions.py --profiles FOLDER  keep what callgrind_annotate reads, to see where they go
python bench/instructions.py --json             one JSON object

Another build is made by ``python setup.py build --build-base FOLDER/base --build-lib FOLDER``; with
``CPPFLAGS=-DFASTPIPE_NO_HOOKS`` in front of it, it has no hooks for tests. What is counted is all that the process does
for one request, Python's part included, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

REQUESTS = 1000

# What the pipe is told, how it is called (see CALLS), and how many bytes are the request's data; 0: it is a number.
CASES: dict[str, tuple[dict[str, float], str, int]] = {
    "plain": ({}, "call", 0),
    "max_queue": ({"max_queue": 100}, "call", 0),
    "request_timeout": ({"request_timeout": 10}, "call", 0),
    "priority": ({}, "call_with_priority", 0),
    "all three": ({"max_queue": 100, "request_timeout": 10}, "call_with_priority", 0),
    "cache hit": ({"cache": 1_000_000}, "call", 0),
    "cache hit, 1 KB": ({"cache": 1_000_000}, "call", 1024),
    "submit": ({}, "submit", 0),
}

# Valgrind writes down what it has counted whenever getppid is called: before the requests of a case, and after.
CALLS = """
import gc, json, os, sys, threading
import fastpipe

class Echo(fastpipe.Backend):
    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"]

class Gate(Echo):
    def forward(self, batch):
        inside.set()
        opened.wait()
        super().forward(batch)

def call(pipe, data, count):
    for _ in range(count):
        pipe({"data": data})

def call_with_priority(pipe, data, count):
    for _ in range(count):
        pipe({"data": data}, priority=1)

def submit(pipe, data, count):  # it is queued: nothing runs but the caller
    for _ in range(count):
        futures.append(pipe.submit({"data": data}))

cases, count = json.loads(sys.argv[1])
gc.disable()
for keys, way, size_bytes in cases:
    inside, opened, futures = threading.Event(), threading.Event(), []
    calls = {"call": call, "call_with_priority": call_with_priority, "submit": submit}[way]
    data = bytes(size_bytes) if size_bytes else 1
    with fastpipe.Pipe(backend=Gate if way == "submit" else Echo, **keys) as pipe:
        calls(pipe, data, 100)
        if way == "submit":
            inside.wait()
        os.getppid()
        calls(pipe, data, count)
        os.getppid()
        opened.set()
"""


class NotCounted(Exception):
    """Valgrind, or what it ran, has failed; the message says why."""


def what_is_missing() -> str:
    """Return one sentence saying why nothing can be counted here, or an empty string."""
    if shutil.which("valgrind"):
        return ""
    return "Valgrind is not installed (Debian, Ubuntu, Fedora: the package valgrind)"


def per_request(names: Sequence[str], path: Path | None = None, profiles: Path | None = None) -> dict[str, float]:
    """Return the instructions of one request in each of the cases.

    Args:
        names: the cases.
        path: a folder to import fastpipe from; None: as installed.
        profiles: a folder for a profile of each case; None: they are not kept.

    Raises:
        NotCounted: if Valgrind, or what it ran, has failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastpipe-instructions-") as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/part", "--dump-before=getppid"]
        cases = json.dumps([[CASES[name] for name in names], REQUESTS])
        ran = subprocess.run(
            [*command, sys.executable, "-P", "-c", CALLS, cases],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": "0", **({"PYTHONPATH": str(path)} if path else {})},
            capture_output=True,
            text=True,
            check=False,
        )
        parts = [Path(folder, f"part.{2 * index + 2}") for index in range(len(names))]
        if ran.returncode or not all(part.is_file() for part in parts):
            raise NotCounted(ran.stderr.strip()[-2000:])
        totals = [re.search(r"^totals: (\d+)", part.read_text(), re.MULTILINE) for part in parts]
        if profiles is not None:
            profiles.mkdir(parents=True, exist_ok=True)
            for name, part in zip(names, parts, strict=True):
                shutil.copy(part, profiles / name.replace(" ", "-"))
    return {name: int(total[1]) / REQUESTS for name, total in zip(names, totals, strict=True) if total}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="count with the fastpipe/ in this folder, too")
    parser.add_argument("--profiles", type=Path, metavar="FOLDER", help="keep a profile of each case")
    parser.add_argument("--case", action="append", choices=CASES, help="only these, and the plain echo")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if problem := what_is_missing():
        print(problem, file=sys.stderr)
        return 1
    paths = {"here": None} | ({"beside": options.beside.resolve()} if options.beside else {})
    names = [name for name in CASES if name == "plain" or options.case is None or name in options.case]
    counts = {
        where: per_request(names, path, options.profiles and options.profiles / where) for where, path in paths.items()
    }
    if options.json:
        print(json.dumps(counts))
        return 0
    for where, by_name in counts.items():
        for name, count in by_name.items():
            ratio = f"{count / by_name['plain']:.3f} x plain"
            beside = f", {by_name[name] / counts['here'][name]:.3f} x here" if where == "beside" else ""
            print(f"{where:8}{name:18}{count:>9.0f} instructions a request, {ratio}{beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
