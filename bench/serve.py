"""How does ``fastpipe serve`` compare with bare handlers and other servers, and with its goals?

    python bench/serve.py [--quick] [--case NAME] [--python litserve=/path/to/its/python] [--rounds N] [--seconds S]

One run, in which contestants take turns: while one is measured, the others are stopped (SIGSTOP). Clients are on the
same CPUs. Besides requests/s and p99 it prints the CPU time of a server per request, its processes together, which
other work on the machine changes less. Needs the extras ``serve`` and ``cpu``, Debian's ``wrk``, fastapi, tritonclient
and onnx; what is missing is named and skipped. LitServe, mosec and pytriton may have Pythons of their own: those of
LitServe and mosec have fastpipe's libraries, too. Writes ``build/bench/serve.jsonl``; ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Numbers, Spread, Window, WrongAnswer, closed_loop
from serve_load import Post, Server, connections, free_port, triton_clients, wrk

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
KB = 1024
LARGE_BYTES = 10_000_000
OURS = "fastpipe serve"

JPEG_PIPE = """
[serve]
max_batch_size = 0
[decode]
backend = "S[DecodeMat,ResizeMat,NormalizeMat]"
instance_num = 2
resize_h = 224
resize_w = 224
color = "rgb"
"NormalizeMat::mean" = [123.675, 116.28, 103.53]
"NormalizeMat::std" = [58.395, 57.12, 57.375]
next = "model"
[model]
backend = "OnnxTensor"
model = "{model}"
max = 4
instance_num = {instances}
"""
ECHO_PIPE = 'backend = "Identity"\n'

FIGURES = {"requests_per_s": ("requests/s", 1.0), "p99_us": ("p99 ms", 1e-3), "cpu_us": ("CPU us each", 1.0)}


@dataclass(frozen=True)
class Goal:
    """What the first contestant is to reach: so many times a figure of another one, at least, or at most."""

    other: str
    clients: int
    factor: float
    figure: str = "requests_per_s"

    @property
    def is_least(self) -> bool:
        """Whether more is better."""
        return self.figure == "requests_per_s"


@dataclass(frozen=True)
class Contestant:
    """Who answers: how it is started, and how it is asked."""

    command: Sequence[str]
    load: Callable[[Server, int, Window], Numbers]
    check: Callable[[int], None]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table: the first contestant is ours."""

    name: str
    clients: tuple[int, ...]
    contestants: Mapping[str, Contestant]
    goals: tuple[Goal, ...]
    length: float = 1.0
    """Windows are so many times as long: a request takes longer, and 64 wait for each other."""


Windows = dict[str, dict[int, list[Numbers]]]
"""By contestant, by clients."""


class Workshop:
    """Files of a run, and the interpreters of the contestants."""

    def __init__(self, pythons: Mapping[str, str]) -> None:
        self.pythons = pythons
        BUILD.mkdir(parents=True, exist_ok=True)
        self.echo = self._written("serve-echo.toml", ECHO_PIPE)

    def python(self, name: str) -> str:
        """Return the interpreter that has a contestant's library."""
        return self.pythons.get(name, sys.executable)

    def server(self, name: str, *arguments: str, of: str = "") -> list[str]:
        """Return how one of ``servers/`` is started."""
        return [self.python(of), str(HERE / "servers" / f"{name}.py"), *arguments]

    def fastpipe(self, model: str, file: Path, *, grpc: bool = False) -> list[str]:
        """Return how ``fastpipe serve`` is started."""
        ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:PORT"] if grpc else ["--http", "127.0.0.1:PORT"]
        return [sys.executable, "-P", "-m", "fastpipe", "serve", f"{model}={file}", *ports] + (
            [] if grpc else ["--grpc", "none"]
        )

    def model(self) -> Path:
        """Return the file of a ResNet18, written if it is not there."""
        path = BUILD / "resnet18.onnx"
        if not path.is_file():
            subprocess.run([sys.executable, str(HERE / "servers" / "by_hand.py"), str(path)], check=True)
        return path

    def jpeg_pipe(self) -> Path:
        """Return the file of the pipe that classifies, with an instance of the model for each CPU."""
        instances = len(os.sched_getaffinity(0))
        return self._written("serve-jpeg.toml", JPEG_PIPE.format(model=self.model(), instances=instances))

    def _written(self, name: str, text: str) -> Path:
        path = BUILD / name
        path.write_text(text)
        return path

    def missing(self, module: str, of: str = "") -> str:
        """Return a sentence if a contestant's interpreter has no such module, else an empty string."""
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        ran = subprocess.run([self.python(of), "-c", code], cwd=BUILD, check=False)
        return f"{module} is not installed" if ran.returncode else ""


# ---- requests --------------------------------------------------------------------------------------------------


def tensor_post(model: str, size_bytes: int) -> Post:
    """Return a UINT8 tensor by the binary extension, in and out."""
    parameters: dict[str, Any] = {"binary_data_size": size_bytes}
    tensor = {"name": "data", "shape": [size_bytes], "datatype": "UINT8", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    data = bytes(range(256)) * (size_bytes // 256) + bytes(size_bytes % 256)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Post(f"/v2/models/{model}/infer", headers, head + data, data)


def jpeg_posts(jpeg: bytes) -> tuple[Post, Post, Post]:
    """Return an upload as fastpipe, FastAPI and LitServe take it; fastpipe's scores come as binary data."""
    import base64

    kind = {"Content-Type": "image/jpeg"}
    in_json = json.dumps({"data": base64.b64encode(jpeg).decode()}).encode()
    return (
        Post("/v2/models/model/infer", {**kind, "Inference-Header-Content-Length": "0"}, jpeg),
        Post("/infer", kind, jpeg),
        Post("/predict", {"Content-Type": "application/json"}, in_json),
    )


def by_wrk(command: Sequence[str], post: Post) -> Contestant:
    """Return a contestant that is loaded by wrk."""
    return Contestant(command, lambda server, clients, window: wrk(server, post, clients, window), post.check)


def by_connections(command: Sequence[str], post: Post) -> Contestant:
    """Return a contestant that is loaded by connections of our own."""
    return Contestant(command, lambda server, clients, window: connections(server, post, clients, window), post.check)


# ---- cases -----------------------------------------------------------------------------------------------------


def http_echo(shop: Workshop) -> Case:
    """1 KB in and out."""
    post = tensor_post("echo", KB)
    bare = Post("/", post.headers, post.body, post.answer_has)
    text = "x" * KB
    in_json = Post("/predict", {"Content-Type": "application/json"}, json.dumps({"data": text}).encode(), text.encode())
    mosec = ["--address", "127.0.0.1", "--log-level", "error", "--port"]
    return Case(
        "echo of 1 KB, HTTP",
        (32,),
        {
            OURS: by_wrk(shop.fastpipe("echo", shop.echo), post),
            "bare ASGI": by_wrk(shop.server("bare_asgi"), bare),
            "litserve": by_wrk(shop.server("litserve_peer", "echo", of="litserve"), in_json),
            "mosec": by_wrk(
                shop.server("mosec_peer", *mosec, of="mosec"), Post("/inference", {}, bytes(KB), bytes(KB))
            ),
        },
        (Goal("bare ASGI", 32, 0.8), Goal("litserve", 32, 3.0), Goal("mosec", 32, 1.5)),
    )


def grpc_echo(shop: Workshop) -> Case:
    """The same by tritonclient."""
    window = Window(0.0, 0.1)

    def load(server: Server, clients: int, window: Window) -> Numbers:
        return triton_clients(server, KB, clients, window)

    def contestant(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Contestant:
        return Contestant(command, load, lambda port: check_grpc(port, window), environment or {})

    # Its backend loads the libpython that the dynamic loader finds first.
    library = {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    ports = [str(free_port()), str(free_port())]
    return Case(
        "echo of 1 KB, gRPC",
        (32,),
        {
            OURS: contestant(shop.fastpipe("echo", shop.echo, grpc=True)),
            "bare grpc.aio": contestant(shop.server("bare_grpc", "aio")),
            "bare grpc, threads": contestant(shop.server("bare_grpc", "sync")),
            "pytriton": contestant(shop.server("pytriton_peer", *ports, of="pytriton"), library),
        },
        (Goal("bare grpc.aio", 32, 0.8), Goal("bare grpc, threads", 32, 0.8), Goal("pytriton", 32, 2.0)),
    )


def check_grpc(port: int, window: Window) -> None:
    """Ask once, on a connection of its own."""
    import numpy as np
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        tensor = triton.InferInput("data", [KB], "UINT8")
        tensor.set_data_from_numpy(np.arange(KB).astype(np.uint8))
        if client.infer("echo", [tensor]).as_numpy("result").tolist() != [each % 256 for each in range(KB)]:
            raise WrongAnswer("the echo is another")


def jpeg_upload(shop: Workshop) -> Case:
    """A JPEG in, scores of a ResNet18 out; the same kernels in all."""
    from images import jpeg

    ours, fastapi, litserve = jpeg_posts(jpeg("640x640", None))
    model = str(shop.model())
    contestants = {
        OURS: by_connections(shop.fastpipe("model", shop.jpeg_pipe()), ours),
        "FastAPI, def": by_connections(shop.server("fastapi_jpeg", model), fastapi),
    }
    for workers, batch in ((1, 4), (2, 1)):  # tuned: the best of them is what counts
        command = shop.server("litserve_peer", "jpeg", model, str(workers), str(batch), of="litserve")
        contestants[f"litserve, {workers} x {batch}"] = by_connections(command, litserve)
    goals = [Goal("FastAPI, def", clients, factor) for clients, factor in ((8, 1.1), (32, 1.3), (64, 1.3))]
    goals += [Goal("FastAPI, def", clients, 0.5, "p99_us") for clients in (8, 32, 64)]
    goals += [Goal("litserve", 64, 1.5), Goal("litserve", 64, 0.5, "p99_us")]
    return Case("JPEG to ResNet18", (8, 32, 64), contestants, tuple(goals), length=2.0)


CASES: dict[str, Callable[[Workshop], Case]] = {"http": http_echo, "grpc": grpc_echo, "jpeg": jpeg_upload}
NEEDS = {
    "litserve": "litserve",
    "mosec": "mosec",
    "pytriton": "pytriton",
    "FastAPI, def": "fastapi",
    "bare grpc.aio": "tritonclient",
    "bare grpc, threads": "tritonclient",
}


# ---- measuring -------------------------------------------------------------------------------------------------


def measured(case: Case, shop: Workshop, window: Window, round_count: int) -> Windows:
    """Start all contestants, give each a window in each round, and return what they showed."""
    windows: Windows = {}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name, contestant in case.contestants.items():
            peer = name.split(",")[0]
            module = NEEDS.get(name) or NEEDS.get(peer)
            if module and (missing := shop.missing(module, peer)):
                print(f"  {name}: skipped, {missing}")
                continue
            server = Server(contestant.command, contestant.environment)
            stack.callback(server.close)
            try:
                server.wait_until(lambda server=server, check=contestant.check: check(server.port))
            except (RuntimeError, WrongAnswer) as error:
                print(f"  {name}: failed: {error}")
                continue
            server.pause()
            servers[name] = server
            windows[name] = {clients: [] for clients in case.clients}
        names = list(servers)
        for number in range(round_count):
            for clients in case.clients:
                first = number % len(names)
                for name in names[first:] + names[:first]:
                    servers[name].go_on()
                    windows[name][clients].append(case.contestants[name].load(servers[name], clients, window))
                    servers[name].pause()
    return windows


def tuned(windows: Windows, name: str, clients: int) -> str:
    """Return the contestant of that name, or of several settings of it the one with most requests/s."""
    settings = [each for each in windows if each == name or each.startswith(f"{name}, ")]
    return max(settings, key=lambda each: Spread.of(figures_of(windows, each, clients)).median, default="")


def figures_of(windows: Windows, name: str, clients: int, figure: str = "requests_per_s") -> list[float]:
    """Return one figure of all windows."""
    return [numbers[figure] for numbers in windows[name][clients]]


def tell(case: Case, windows: Windows) -> list[str]:
    """Print a case; return the rows of the table of goals."""
    print(f"\n{case.name}: median (least to greatest)")
    for clients in case.clients:
        for name in windows:
            cells = []
            for figure, (unit, scale) in FIGURES.items():
                spread = Spread.of([each * scale for each in figures_of(windows, name, clients, figure)])
                cells.append(f"{spread.median:9.1f} ({spread.least:.1f} to {spread.greatest:.1f}) {unit}")
            print(f"  {clients:3} clients  {name:20}" + "  ".join(cells))
    rows = []
    for goal in case.goals:
        other = tuned(windows, goal.other, goal.clients)
        if not other or OURS not in windows:
            rows.append(f"| {case.name}, {goal.clients} clients | {goal.other} | not measured | |")
            continue
        ours, theirs = (figures_of(windows, name, goal.clients, goal.figure) for name in (OURS, other))
        rows.append(row(f"{case.name}, {goal.clients} clients", goal, other, Spread.of_ratio(ours, theirs)))
    return rows


def row(what: str, goal: Goal, other: str, ratio: Spread) -> str:
    """Return a line of the table of goals."""
    is_reached = ratio.median >= goal.factor if goal.is_least else ratio.median <= goal.factor
    sign = ">=" if goal.is_least else "<="
    figure = FIGURES[goal.figure][0]
    shown = f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.greatest:.2f})"
    return f"| {what} | {figure} {sign} {goal.factor} x {other} | {shown} | {'yes' if is_reached else '**no**'} |"


# ---- what has no contestants -----------------------------------------------------------------------------------


def copies(shop: Workshop) -> str:
    """Send 10 MB, take them back, and see how much memory the server needed at most."""
    post = tensor_post("model", LARGE_BYTES)
    server = Server(shop.server("fastpipe_told", str(shop.echo)))
    try:
        server.wait_until(lambda: post.check(server.port))
        server.tell("trace")
        post.check(server.port)
        peak = server.tell("peak") / LARGE_BYTES
    finally:
        server.close()
    verdict = "yes" if peak < 2 else "**no**"
    return f"| 10 MB in and out, HTTP | at most one copy on each way | {peak:.2f} x 10 MB at most | {verdict} |"


def swaps(shop: Workshop, window: Window, round_count: int) -> list[str]:
    """Swap the model under 64 clients."""
    from images import jpeg

    post = jpeg_posts(jpeg("640x640", None))[0]
    server = Server(shop.server("fastpipe_told", str(shop.jpeg_pipe())))
    before, during = [], []
    try:
        server.wait_until(lambda: post.check(server.port))
        for _ in range(round_count):
            before.append(connections(server, post, 64, window)["p99_us"])
            during.append(connections(server, post, 64, window, lambda: server.tell("swap model"))["p99_us"])
    finally:
        server.close()
    ratio = Spread.of_ratio(during, before)
    goal = Goal("before", 64, 1.5, "p99_us")
    return [row("a swap, 64 clients, no failures", goal, "before", ratio)]


def cache_hits(window: Window, round_count: int) -> list[str]:
    """Compare a hit of the cache with the echo that it saves."""
    from instructions import NotCounted, per_request, what_is_missing

    import fastpipe

    latencies: dict[str, list[float]] = {"echo": [], "hit": []}
    with fastpipe.Pipe(backend="Identity") as echo, fastpipe.Pipe(backend="Identity", cache="1MB") as hit:
        for _ in range(round_count):
            for name, pipe in (("echo", echo), ("hit", hit)):

                def client(number: int, pipe: fastpipe.Pipe = pipe) -> Callable[[], object]:
                    return lambda: pipe({"data": bytes(KB)})

                latencies[name].append(closed_loop(client, 1, window)["p50_us"])
    beyond = Spread.of([hit - echo for hit, echo in zip(latencies["hit"], latencies["echo"], strict=True)])
    shown = f"{beyond.median:.1f} us ({beyond.least:.1f} to {beyond.greatest:.1f})"
    rows = [f"| a cache hit, 1 KB | <= 3 us beyond the echo | {shown} | {'yes' if beyond.median <= 3 else '**no**'} |"]
    if missing := what_is_missing():
        print(missing)
        return rows
    try:
        counts = per_request(["plain", "cache hit, 1 KB"])
    except NotCounted as error:
        print(f"instructions: {error}")
        return rows
    plain, hit_count = counts.values()
    return [*rows, f"| the same | | {hit_count:.0f} instructions, {plain:.0f} of the echo | |"]


# ---- the command -----------------------------------------------------------------------------------------------

OTHERS = ("copies", "swap", "cache")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--case", action="append", choices=[*CASES, *OTHERS], help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="windows of each contestant (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window (default: %(default)s)")
    parser.add_argument(
        "--python", metavar="NAME=PATH", action="append", default=[], help="of litserve, mosec, or pytriton"
    )
    options = parser.parse_args(arguments)
    if any("=" not in each for each in options.python):
        parser.error("--python is NAME=PATH")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print it, and return the exit status."""
    options = options_of(arguments)
    window = Window(0.3, 1.0) if options.quick else Window(1.0, options.seconds)
    round_count = 1 if options.quick else options.rounds
    wanted = options.case or [*CASES, *OTHERS]
    shop = Workshop(dict(each.split("=", 1) for each in options.python))
    about = f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    print(f"{about}; {round_count} windows of {window.measured_s} s each")
    rows: list[str] = []
    with (BUILD / "serve.jsonl").open("w") as file:
        for name in [name for name in wanted if name in CASES]:
            if name == "http" and shutil.which("wrk") is None:
                print("wrk is not installed (Debian: the package wrk): no echo over HTTP")
                continue
            case = CASES[name](shop)
            print(f"\n{case.name} ...", flush=True)
            longer = Window(case.length * window.warm_up_s, case.length * window.measured_s)
            windows = measured(case, shop, longer, round_count)
            rows += tell(case, windows)
            file.write(json.dumps({"case": case.name, "windows": windows}) + "\n")
    if "copies" in wanted:
        rows.append(copies(shop))
    if "swap" in wanted:
        rows += swaps(shop, Window(2 * window.measured_s, 2 * window.measured_s), round_count)
    if "cache" in wanted:
        rows += cache_hits(window, round_count)
    print("\n| what | goal | reached | |\n| --- | --- | --- | --- |")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
