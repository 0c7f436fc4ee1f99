"""Does a timeline show what ran on a GPU and when, and what does that cost?

    python bench/gpu/timeline.py [FILE]

Two nodes, the second with two instances; each batch runs a kernel that spins for a while, and notes its time by CUDA
events of its own. First without a timeline, then with one: written to FILE (default: timeline.pftrace in the folder
that the variable OUT names, else here), for https://ui.perfetto.dev. It fails unless every batch has a slice on its
stream that is as long as the kernel, and lies within the batch's time on the host.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

import fastpipe
from fastpipe.backends.gpu import timing
from fastpipe.backends.gpu.streams import InstanceStream

REQUESTS, CLIENTS = 2000, 16
CYCLES = 400_000  # some 0.25 ms
TOLERANCE_MS = 0.05


class Spins(fastpipe.Backend):
    """Keeps its stream busy; notes when it was in ``forward``, and for how long the kernel ran."""

    max_batch = 8
    noted: ClassVar[list[tuple[int, int, float]]] = []

    def __init__(self) -> None:
        self.stream = InstanceStream(0)

    def forward(self, batch: list[fastpipe.Request]) -> None:
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun_ns = time.monotonic_ns()
        with self.stream.entered():
            first.record()
            torch.cuda._sleep(CYCLES)
            second.record()
        self.noted.append((begun_ns, time.monotonic_ns(), first.elapsed_time(second)))
        for request in batch:
            request["result"] = request["data"]


class Listens:
    """Hears what the timeline hears."""

    def __init__(self) -> None:
        self.slices: list[tuple[int, int, int]] = []

    def ran(self, stream: int, device_number: int, begun_ns: int, ended_ns: int) -> None:
        self.slices.append((stream, begun_ns, ended_ns))


def run(pipe: fastpipe.Pipe) -> float:
    """Send all requests; return how many a second were answered."""

    def call() -> None:
        for number in range(REQUESTS // CLIENTS):
            pipe({"data": number})

    callers = [threading.Thread(target=call) for _ in range(CLIENTS)]
    start_s = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return REQUESTS / (time.perf_counter() - start_s)


def check(slices: list[tuple[int, int, int]], noted: list[tuple[int, int, float]]) -> float:
    """Compare each slice with its batch; return the largest difference to the kernel's own time, in ms."""
    assert len(slices) == len(noted), (len(slices), len(noted))
    worst_ms = 0.0
    by_host = sorted(noted)
    for stream, begun_ns, ended_ns in slices:
        own = [each for each in by_host if each[0] <= begun_ns and ended_ns <= each[1]]
        assert own, f"a slice of stream {stream} is outside of every batch"
        worst_ms = max(worst_ms, min(abs((ended_ns - begun_ns) / 1e6 - each[2]) for each in own))
    return worst_ms


def main() -> int:
    """Measure, check, and return the exit status."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(os.environ.get("OUT", "."), "timeline.pftrace"))
    nodes: dict[str, Any] = {
        "first": {"backend": Spins, "next": "second"},
        "second": {"backend": Spins, "instance_num": 2},
    }
    with fastpipe.Pipe(nodes) as pipe:
        run(pipe)
        plain = run(pipe)
        Spins.noted.clear()
        listener = Listens()
        with pipe.timeline(path) as timeline:
            timing.watch(listener)
            shown = run(pipe)
            timing.unwatch(listener)
    worst_ms = check(listener.slices, Spins.noted)
    streams = {stream for stream, _, _ in listener.slices}
    print(f"{torch.cuda.get_device_name()}: {len(listener.slices)} batches on {len(streams)} streams")
    print(f"slices differ from the kernels' own times by at most {worst_ms * 1e3:.1f} us")
    print(f"requests/s: {plain:.0f} without a timeline, {shown:.0f} with one ({shown / plain:.3f} x)")
    print(f"{path}: {path.stat().st_size} bytes, {timeline.dropped} events dropped")
    return 0 if worst_ms <= TOLERANCE_MS and timeline.dropped == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
