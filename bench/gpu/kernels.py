"""How near do the CUDA kernels come to the speed of a copy, and to what their calls may cost the host?

    python bench/gpu/kernels.py [--quick] [--images FOLDER] [--inductor] [--json FILE]

Builds the kernels, checks them against the reference (nothing is timed that is wrong), times them, and prints a table.
The same numbers go to FILE, or to kernels.json in the folder that the variable OUT names.

Device time is that between two CUDA events around several calls that were queued behind a long wait, so that it is
the device's alone; the copies of the tables are in it. Batches take turns, over more memory than the cache has. Host
time is that of one call on an idle device. Each figure is a median, with the least and the greatest of the repetitions.
Shares are of the bandwidth of a large copy, bytes read and written, in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from callers import arguments_of, write

from fastpipe.kernels import cuda, reference

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LOOK: dict[str, Any] = {"mean": MEAN, "std": STD, "source": "bgr", "target": "rgb"}
SIZES = [(375, 500), (480, 640), (720, 1280), (1080, 1920)]  # height, width: of everyday photographs
SIDE = 224

# The goals, as shares of the copy's bandwidth or as times; docs/benchmarks-gpu.md has the results.
GOALS = {
    "normalize 256 x 224 x 224": 0.93,
    "normalize 64 x 517 x 606": 0.75,
    "normalize 16 x 1080p": 0.93,
    "resize opencv, mixed 32": 0.60,
    "resize pillow, mixed 32": 0.40,
}

# Long enough to queue what is measured behind it, with room: the slowest baseline queues for 6 ms.
WAIT_CYCLES = 30_000_000


class Bench:
    """What every case needs, and the rows of the table."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import cupy

        self.cupy = cupy
        self.arguments = arguments
        self.repetitions = 5 if arguments.quick else 15
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.workspace = cuda.Workspace(0, slots=64, max_batch=256)
        source = "long long start = clock64(); while (clock64() - start < cycles);"
        self.wait = cupy.RawKernel(f'extern "C" __global__ void wait(long long cycles) {{ {source} }}', "wait")
        self.rows: list[dict[str, Any]] = []
        self.copy_bytes_per_s = 0.0

    def device_us(self, calls: Sequence[Callable[[], Any]], count: int = 20) -> list[float]:
        """Return the device time of a call, once for each repetition; the calls take turns."""
        turn = itertools.cycle(calls)
        for call in calls:
            call()
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        times = []
        for _ in range(self.repetitions):
            self.stream.synchronize()
            self.wait((1,), (1,), (np.int64(WAIT_CYCLES),))
            start.record(self.stream)
            for _ in range(count):
                next(turn)()
            end.record(self.stream)
            end.synchronize()
            times.append(self.cupy.cuda.get_elapsed_time(start, end) * 1e3 / count)
        return times

    def host_us(self, call: Callable[[], Any], *, is_awaited: bool = False) -> list[float]:
        """Return the time until a call returns, or its work is done, with nothing under way on the device before."""
        event = self.cupy.cuda.Event(disable_timing=True)
        times = []
        for _ in range(20 * self.repetitions):
            self.stream.synchronize()
            start_ns = time.perf_counter_ns()
            call()
            if is_awaited:
                event.record(self.stream)
                while not event.done:
                    pass
            times.append((time.perf_counter_ns() - start_ns) / 1e3)
        return times[len(times) // 4 :]

    def add(self, what: str, way: str, times_us: list[float], bytes_moved: float = 0.0) -> float:
        """Add a row, and return its median."""
        median = statistics.median(times_us)
        row: dict[str, Any] = {
            "what": what,
            "way": way,
            "us": median,
            "least": min(times_us),
            "greatest": max(times_us),
        }
        if bytes_moved:
            row["gb_per_s"] = bytes_moved / median / 1e3
            row["share"] = bytes_moved / (median * 1e-6) / self.copy_bytes_per_s if self.copy_bytes_per_s else 1.0
        if way == "fastpipe" and what in GOALS:
            row["goal"] = GOALS[what]
        self.rows.append(row)
        share = f"{row['share']:6.1%}" if bytes_moved else ""
        speed = f"{row['gb_per_s']:7.0f}" if bytes_moved else ""
        goal = f"  (goal {row['goal']:.0%})" if "goal" in row else ""
        spread = f"{median:10.2f}  [{row['least']:.2f} .. {row['greatest']:.2f}]"
        print(f"{what:34} {way:30} {spread:34} {speed:>8} {share:>7}{goal}", flush=True)
        return median


def sources(folder: Path | None) -> list[Any]:
    """Return images of everyday sizes, or those of a folder."""
    if folder is not None:
        import cv2

        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        found = [cv2.imread(str(path)) for path in paths]
        if not found:
            raise FileNotFoundError(f"no .jpg, .jpeg or .png in {folder}")
        return found
    try:
        import skimage.data

        pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    except ImportError:  # any bytes cost the same
        pictures = [np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)]
    made = []
    for number, (height, width) in enumerate(SIZES):
        picture = pictures[number % len(pictures)]
        repeats = (-(-height // picture.shape[0]), -(-width // picture.shape[1]), 1)
        made.append(np.ascontiguousarray(np.tile(picture, repeats)[:height, :width]))
    return made


def check(bench: Bench, images: list[Any]) -> None:
    """Compare every kernel with the reference, bit for bit."""
    cupy, workspace = bench.cupy, bench.workspace
    generator = np.random.default_rng()
    noise = [generator.integers(0, 256, (*generator.integers(1, 700, 2), 3), np.uint8) for _ in range(12)]
    batch = [*images, *noise, generator.integers(0, 256, (1, 9000, 3), np.uint8)]
    given = [cupy.asarray(one) for one in batch]
    for dtype in ("float32", "float16"):
        for way in ("opencv", "pillow", "pillow13"):
            expected = reference.resize_normalize(batch, SIDE, SIDE, filter=way, **LOOK, dtype=dtype)
            result = workspace.resize_normalize(given, SIDE, SIDE, filter=way, **LOOK, dtype=dtype)
            np.testing.assert_array_equal(cupy.asnumpy(result), expected)
        expected = np.stack([reference.normalize(one, **LOOK, dtype=dtype) for one in [images[0]] * 3])
        result = workspace.normalize(cupy.stack([given[0]] * 3), **LOOK, dtype=dtype)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    matrices = reference.perspective([[[20, 30], [250, 10], [280, 170], [-10, 190]]], 48, 320)
    expected = reference.normalize([reference.warp(images[0], matrices[0], 48, 320)], **LOOK)
    result = workspace.warp_normalize(given[:1], matrices, 48, 320, **LOOK)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    print("the kernels give the bits of the reference", flush=True)


def copy_case(bench: Bench) -> None:
    """What is the bandwidth to compare with?"""
    cupy = bench.cupy
    size = 1 << 30
    left, right = cupy.ones(size, cupy.uint8), cupy.empty(size, cupy.uint8)
    times = bench.device_us(
        [lambda: cupy.cuda.runtime.memcpyAsync(right.data.ptr, left.data.ptr, size, 3, bench.stream.ptr)], 5
    )
    bench.copy_bytes_per_s = 2 * size / (statistics.median(times) * 1e-6)
    bench.add("copy of 1 GiB", "cudaMemcpyAsync", times, 2 * size)


def normalize_cases(bench: Bench) -> None:
    """Colors and mean and std, images of one size."""
    cupy = bench.cupy
    for what, count, height, width, sets in (
        ("normalize 32 x 224 x 224", 32, 224, 224, 16),
        ("normalize 256 x 224 x 224", 256, 224, 224, 4),
        ("normalize 16 x 1080p", 16, 1080, 1920, 3),
        ("normalize 64 x 517 x 606", 64, 606, 517, 4),
    ):
        batches = [cupy.random.randint(0, 256, (count, height, width, 3), dtype=cupy.uint8) for _ in range(sets)]
        bytes_moved = 9 * count * height * width
        for way, dtype, form in (
            ("fastpipe", "float16", lambda batch: batch),
            ("fastpipe, float32", "float32", lambda batch: batch),
            ("fastpipe, a list of images", "float16", list),
        ):
            out = cupy.empty((count, 3, height, width), dtype)
            calls = [bind(bench.workspace.normalize, form(batch), **LOOK, dtype=dtype, out=out) for batch in batches]
            moved = bytes_moved if dtype == "float16" else 15 * count * height * width
            bench.add(what, way, bench.device_us(calls), moved)
        with contextlib.suppress(ImportError):
            torch_normalize(bench, what, batches, bytes_moved)


def torch_normalize(bench: Bench, what: str, batches: list[Any], bytes_moved: int) -> None:
    """The same in torch, eager, and compiled if asked for."""
    import torch

    mean, std = (torch.tensor(numbers, device="cuda").view(3, 1, 1) for numbers in (MEAN, STD))

    def plain(batch: Any) -> Any:
        return ((batch.permute(0, 3, 1, 2).flip(1).float() - mean) / std).half()

    tensors = [torch.from_dlpack(batch) for batch in batches]
    with torch.cuda.stream(torch.cuda.ExternalStream(bench.stream.ptr)), torch.inference_mode():
        bench.add(what, "torch eager", bench.device_us([bind(plain, tensor) for tensor in tensors], 5), bytes_moved)
        if bench.arguments.inductor:
            compiled = torch.compile(plain)
            calls = [bind(compiled, tensor) for tensor in tensors]
            bench.add(what, "torch inductor", bench.device_us(calls, 10), bytes_moved)


def fused_bytes(shapes: Sequence[tuple[int, ...]], way: str) -> float:
    """Return the bytes a fused call has to move: each it needs once."""
    total = 0.0
    for height, width, _ in shapes:
        share = min(1.0, 2 * SIDE / height) if way == "opencv" else 1.0  # plain bilinear needs two rows for each
        total += 3 * height * width * share + 3 * SIDE * SIDE * 2
    return total


def resize_cases(bench: Bench, images: list[Any]) -> None:
    """Resize, colors, mean and std, images of different sizes."""
    cupy = bench.cupy
    cases = [("mixed 32", images)] + [(f"{one.shape[1]} x {one.shape[0]}, 32", [one]) for one in images]
    for name, kinds in cases:
        sets = max(3, int(3e8 / (sum(one.nbytes for one in kinds) * 32 / len(kinds))))
        batches = [[cupy.asarray(kinds[n % len(kinds)]) for n in range(32)] for _ in range(sets)]
        shapes = [one.shape for one in batches[0]]
        out = cupy.empty((32, 3, SIDE, SIDE), cupy.float16)
        for way in ("opencv", "pillow"):
            what = f"resize {way}, {name}"
            calls = [
                bind(bench.workspace.resize_normalize, batch, SIDE, SIDE, filter=way, **LOOK, out=out)
                for batch in batches
            ]
            bench.add(what, "fastpipe", bench.device_us(calls), fused_bytes(shapes, way))
            if name == "mixed 32":
                with contextlib.suppress(ImportError):
                    torch_resize(bench, what, batches, way)
        del batches


def torch_resize(bench: Bench, what: str, batches: list[list[Any]], way: str) -> None:
    """The same in torch (what torchvision does on a GPU), image by image."""
    import torch

    mean, std = (torch.tensor(numbers, device="cuda").view(3, 1, 1) for numbers in (MEAN, STD))

    def chain(batch: list[Any]) -> Any:
        made = []
        for image in batch:
            planes = image.permute(2, 0, 1)[None].flip(1).float()
            small = torch.nn.functional.interpolate(
                planes, (SIDE, SIDE), mode="bilinear", antialias=way == "pillow", align_corners=False
            )
            made.append(((small.round() - mean) / std).half())
        return torch.cat(made)

    tensors = [[torch.from_dlpack(image) for image in batch] for batch in batches[:3]]
    moved = fused_bytes([one.shape for one in batches[0]], way)
    with torch.cuda.stream(torch.cuda.ExternalStream(bench.stream.ptr)), torch.inference_mode():
        bench.add(what, "torch, image by image", bench.device_us([bind(chain, batch) for batch in tensors], 2), moved)
        bench.add(what, "torch, host time", bench.host_us(bind(chain, tensors[0]))[:60])


def host_cases(bench: Bench, images: list[Any]) -> None:
    """What does a call cost the host, and how long does one image take?"""
    cupy = bench.cupy
    empty = cupy.RawKernel('extern "C" __global__ void empty() {}', "empty")
    bench.add("host: an empty launch", "CuPy", bench.host_us(lambda: empty((1,), (1,), ())))
    small = cupy.asarray(images[0])
    for count in (1, 8, 32, 64):
        batch = [cupy.asarray(images[n % len(images)]) for n in range(count)]
        out = cupy.empty((count, 3, SIDE, SIDE), cupy.float16)
        for way in ("opencv", "pillow"):
            call = bind(bench.workspace.resize_normalize, batch, SIDE, SIDE, filter=way, **LOOK, out=out)
            bench.add(f"host: resize {way}, {count}", "fastpipe, CuPy arrays", bench.host_us(call))
        table = cuda.describe(batch)
        call = bind(bench.workspace.resize_normalize, table, SIDE, SIDE, filter="opencv", **LOOK, out=out)
        bench.add(f"host: resize opencv, {count}", "fastpipe, a table", bench.host_us(call))
    with contextlib.suppress(ImportError):
        import torch

        tensors = [torch.from_dlpack(one) for one in batch]
        made = torch.from_dlpack(out)
        with torch.cuda.stream(torch.cuda.ExternalStream(bench.stream.ptr)):
            call = bind(bench.workspace.resize_normalize, tensors, SIDE, SIDE, filter="opencv", **LOOK, out=made)
            bench.add("host: resize opencv, 64", "fastpipe, torch tensors", bench.host_us(call))
    out = cupy.empty((1, 3, SIDE, SIDE), cupy.float16)
    for way in ("opencv", "pillow"):
        for name, given in (("an array", small[None]), ("a list", [small])):
            call = bind(bench.workspace.resize_normalize, given, SIDE, SIDE, filter=way, **LOOK, out=out)
            bench.add(f"latency: resize {way}, 1", f"fastpipe, {name}", bench.host_us(call, is_awaited=True))


def other_cases(bench: Bench, images: list[Any]) -> None:
    """Boxes; pixels that come from the host; several threads."""
    cupy = bench.cupy
    picture = cupy.asarray(images[-1])
    generator = np.random.default_rng(1)
    corners = generator.uniform(0, 900, (128, 1, 2)) + np.array([[0, 0], [320, 8], [316, 60], [-4, 48]])
    matrices = reference.perspective(corners, 48, 320)
    out = cupy.empty((128, 3, 48, 320), cupy.float16)
    call = bind(bench.workspace.warp_normalize, [picture], matrices, 48, 320, indices=[0] * 128, **LOOK, out=out)
    bench.add("warp, 128 boxes of 48 x 320", "fastpipe", bench.device_us([call]), 9 * out.size / 3)

    # From pinned memory: one copy of all pixels, then one launch.
    batch = [images[n % len(images)] for n in range(32)]
    size = sum(one.nbytes for one in batch)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
    pinned[:] = np.concatenate([one.reshape(-1) for one in batch])
    memory = cupy.empty(size, cupy.uint8)
    views, at = [], 0
    for one in batch:
        views.append(memory[at : at + one.nbytes].reshape(one.shape))
        at += one.nbytes
    resized = cupy.empty((32, 3, SIDE, SIDE), cupy.float16)

    def upload() -> None:
        cupy.cuda.runtime.memcpyAsync(memory.data.ptr, pinned.ctypes.data, size, 1, bench.stream.ptr)

    def upload_and_resize() -> None:
        upload()
        bench.workspace.resize_normalize(views, SIDE, SIDE, filter="pillow", **LOOK, out=resized)

    alone = bench.add("from pinned memory, mixed 32", "the copy alone", bench.device_us([upload], 3))
    both = bench.add(
        "from pinned memory, mixed 32", "fastpipe, copy and pillow", bench.device_us([upload_and_resize], 3)
    )
    bench.rows.append(
        {"what": "from pinned memory, mixed 32", "way": "share of the copy's rate", "share": alone / both}
    )
    print(f"{'':34} share of the copy's rate: {alone / both:.1%}")
    for threads in (1, 8):
        rate = threads_rate(bench, [cupy.asarray(one) for one in batch], threads)
        bench.rows.append({"what": "resize pillow, mixed 32", "way": f"{threads} threads", "images_per_s": rate})
        print(
            f"{'resize pillow, mixed 32':34} {f'{threads} threads with streams of their own':40} {rate:,.0f} images/s"
        )


def threads_rate(bench: Bench, batch: list[Any], count: int) -> float:
    """Return images/s of threads that call as fast as they can, each on a stream of its own."""
    cupy = bench.cupy
    barrier = threading.Barrier(count + 1)
    calls = 300 if bench.arguments.quick else 1000

    def loop() -> None:
        with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
            workspace = cuda.Workspace(0)
            out = cupy.empty((len(batch), 3, SIDE, SIDE), cupy.float16)
            call = bind(workspace.resize_normalize, batch, SIDE, SIDE, filter="pillow", **LOOK, out=out, stream=stream)
            call()
            stream.synchronize()
            barrier.wait()
            for _ in range(calls // count):
                call()
            stream.synchronize()
            barrier.wait()

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start_s = time.perf_counter()
    barrier.wait()
    return calls // count * count * len(batch) / (time.perf_counter() - start_s)


def bind(function: Callable[..., Any], *positional: Any, **named: Any) -> Callable[[], Any]:
    """Return a call without arguments."""
    return lambda: function(*positional, **named)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build, check, time and print; return the numbers."""
    bench = Bench(arguments)
    start_s = time.perf_counter()
    bench.workspace.prepare()
    compiled_s = time.perf_counter() - start_s
    properties = bench.cupy.cuda.runtime.getDeviceProperties(0)
    machine = {
        "gpu": properties["name"].decode(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "cupy": bench.cupy.__version__,
        "compiled_s": compiled_s,
    }
    print(machine)
    images = sources(arguments.images)
    with bench.stream:
        check(bench, images)
        copy_case(bench)
        normalize_cases(bench)
        resize_cases(bench, images)
        host_cases(bench, images)
        other_cases(bench, images)
    return {"machine": machine, "rows": bench.rows}


def main() -> None:
    """Build, check, time, print."""
    inductor = {"action": "store_true", "help": "compile the torch baseline, too; takes a minute"}
    arguments = arguments_of(__doc__, inductor=inductor)
    try:
        numbers = measure(arguments)
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"bench/gpu/kernels.py needs a GPU and the extra cuda: {error}") from None
    write(numbers, arguments, "kernels")
    if missed := [row for row in numbers["rows"] if row.get("share", 1) < row.get("goal", 0)]:
        print("below the goal:", *(f"{row['what']} ({row['share']:.0%} of {row['goal']:.0%})" for row in missed))


if __name__ == "__main__":
    main()
