"""How many requests per second, and how late, for the same model behind fastpipe and its peers?

    python bench/comparison/measure.py --venvs FOLDER [--quick] [--rounds N] [--seconds S] [--only NAME]

Two parts. Servers over HTTP: a model that takes batches of up to 8, and 2 ms and 0.25 ms for each request (it sleeps,
as if it were on another device), one instance, a wait of 2 ms at most; 32 connections that each send the next request
when they have the last answer; windows that take turns; servers are stopped (SIGSTOP) while others are measured.
Processes of BentoML and Ray start sessions of their own: they are idle meanwhile, but not stopped, and their CPU time
is not counted in full. In the process: ``peers.py``, cases ``hand-over`` and ``batches under load``, with omniback
beside fastpipe.

Environments are those that ``run.py`` has made with the same ``--venvs``; a peer without one is skipped and named.
Writes ``build/bench/comparison.jsonl``. Fifteen minutes; ``--quick`` two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # bench/

from common import Spread, Window, WrongAnswer  # noqa: E402  # of bench/
from features import PEERS  # noqa: E402
from serve import BUILD, Case, Contestant, Windows, Workshop, figures_of, measured, tell  # noqa: E402
from serve_load import Post, connections, free_port  # noqa: E402

CLIENTS = 32
OURS = "fastpipe serve"
SETTINGS = {"COMPARISON_MAX_BATCH": "8", "COMPARISON_WAIT_MS": "2", "COMPARISON_BATCH_US": "2000"}
SETTINGS |= {"COMPARISON_ITEM_US": "250", "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE / "services")))}
NUMBER = 5
BY_PROTOCOL = {"inputs": [{"name": "data", "shape": [1, 1], "datatype": "INT64", "data": [NUMBER]}]}
BY_TRITON = {"inputs": [{**BY_PROTOCOL["inputs"][0], "name": "number"}]}
IN_PROCESS = ("hand-over", "batches under load")


def contestants(pythons: dict[str, str]) -> dict[str, Contestant]:
    """Return those whose environments are there, ours first."""

    def service(peer: str, *arguments: str) -> list[str]:
        return [pythons[peer], str(HERE / "services" / f"{peer.removeprefix('py')}_service.py"), *arguments]

    ours = [sys.executable, "-P", "-m", "fastpipe", "serve", "--pipe", "model=fastpipe_service:PIPE", "--grpc", "none"]
    ports = str(free_port()), str(free_port())
    known: dict[str, tuple[str, Callable[[], list[str]], str, Any]] = {
        OURS: ("fastpipe", lambda: [*ours, "--http", "127.0.0.1:PORT"], "/v2/models/model/infer", BY_PROTOCOL),
        "LitServe": ("litserve", lambda: service("litserve", "PORT"), "/predict", {"number": NUMBER}),
        "Mosec": (
            "mosec",
            lambda: service("mosec", "--address", "127.0.0.1", "--log-level", "error", "--port", "PORT"),
            "/inference",
            {"number": NUMBER},
        ),
        "BentoML": ("bentoml", lambda: bentoml(pythons["bentoml"]), "/batched", {"numbers": [NUMBER]}),
        "Ray Serve": ("ray", lambda: service("ray", "PORT", str(free_port())), "/", {"number": NUMBER}),
        "Triton": ("pytriton", lambda: service("pytriton", "PORT", *ports), "/v2/models/model/infer", BY_TRITON),
    }
    return {
        name: contestant(command(), path, json.dumps(body).encode())
        for name, (peer, command, path, body) in known.items()
        if peer in pythons
    }


def bentoml(python: str) -> list[str]:
    """Return its command."""
    command = str(Path(python).parent / "bentoml")
    service = ["bentoml_service:Model", "--host", "127.0.0.1", "--working-dir", str(HERE / "services")]
    return [command, "serve", *service, "--port", "PORT"]


def contestant(command: list[str], path: str, body: bytes) -> Contestant:
    """Return who is started and asked so."""
    post = Post(path, {"Content-Type": "application/json"}, body, str(NUMBER).encode())

    def check(port: int) -> None:
        try:
            post.check(port)
        except WrongAnswer as error:  # some listen before they have deployed what answers
            raise ConnectionError(str(error)) from error

    environment = {**SETTINGS, "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
    return Contestant(
        command, lambda server, clients, window: connections(server, post, clients, window), check, environment
    )


def ratios(windows: Windows) -> list[str]:
    """Return lines: how many times the requests/s of each other one, and of its p99."""
    lines = []
    for name in windows:
        if name == OURS or OURS not in windows:
            continue
        cells = []
        for figure, unit in (("requests_per_s", "requests/s"), ("p99_us", "p99")):
            spread = Spread.of_ratio(*(figures_of(windows, each, CLIENTS, figure) for each in (OURS, name)))
            cells.append(f"{spread.median:.2f} ({spread.least:.2f} to {spread.greatest:.2f}) of its {unit}")
        lines.append(f"  {OURS} / {name}: {', '.join(cells)}")
    return lines


def in_process(venvs: Path, quick: bool) -> int:
    """Run ``peers.py`` with omniback, from its own environment if this one has none."""
    environment = dict(os.environ)
    if importlib.util.find_spec("omniback") is None:
        found = sorted((venvs / "omniback").glob("lib/python*/site-packages"))
        environment["PYTHONPATH"] = os.pathsep.join(map(str, found))
    cases = [part for name in IN_PROCESS for part in ("--case", name)]
    command = [sys.executable, str(HERE.parent / "peers.py"), *cases, "--output", str(BUILD / "comparison-in-process")]
    return subprocess.run(command + ["--quick"] * quick, env=environment, check=False).returncode


def main() -> int:
    """Measure both parts; 0 if all ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="environments that run.py has made")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--only", action="append", help="this server, beside fastpipe")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    window = Window(0.3, 0.7) if options.quick else Window(1.0, options.seconds)
    pythons = {"fastpipe": sys.executable}
    for peer in PEERS:
        python = (options.venvs / peer.key / "bin" / "python").absolute()
        if python.exists():
            pythons[peer.key] = str(python)
        elif peer.packages is not None:
            print(f"{peer.title}: skipped, {python} is not there")
    chosen = contestants(pythons)
    if options.only:
        chosen = {name: each for name, each in chosen.items() if name in {OURS, *options.only}}
    case = Case("batches of up to 8, HTTP", (CLIENTS,), chosen, ())
    with tempfile.TemporaryDirectory(prefix="fastpipe-comparison-") as folder:
        os.environ["TMPDIR"] = folder  # of the servers
        windows = measured(case, Workshop({}), window, rounds)
        del os.environ["TMPDIR"]
    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {rounds} windows"
    )
    tell(case, windows)
    print("\n".join(ratios(windows)))
    (BUILD / "comparison.jsonl").write_text("".join(json.dumps({name: each}) + "\n" for name, each in windows.items()))
    failed = in_process(options.venvs.absolute(), options.quick) if not options.only else 0
    return failed or int(set(windows) != set(chosen))


if __name__ == "__main__":
    sys.exit(main())
