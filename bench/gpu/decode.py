"""How many JPEGs a second become 224 x 224 tensors, from single requests of many callers, and what stands in the way?

    python bench/gpu/decode.py [--quick] [--images FOLDER] [--json FILE]

The pipe is one node, ``S[DecodeTensor,ResizeNormalizeTensor,SyncTensor]``. It is called by threads with single
requests, by tasks of one event loop, by one ``map``, and by threads with lists; then by one client, for the latency.
Beside a thread that runs pure Python, every way is measured again, and so is a pipe that is made for that: larger
batches, more instances, CuPy's arrays as results (see ``ResizeNormalizeTensor``), more tasks and longer lists. The peer
is nvImageCodec's own Python binding, decoding (and no more) the same images in batches, in the same process. First,
pixels are compared with OpenCV's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from callers import CLIENTS, WAYS, arguments_of, counted, of_lists, of_tasks, of_threads, write
from common import BusyThread, Numbers, Window

import fastpipe

SIZES = [(640, 640), (517, 606), (1280, 720)]  # width, height
SIDE, BATCH = 224, 64
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

# What is measured.
NODE: dict[str, Any] = {
    "backend": "S[DecodeTensor,ResizeNormalizeTensor,SyncTensor]",
    "max": BATCH,
    "color": "rgb",
    "resize_h": SIDE,
    "resize_w": SIDE,
    "mean": MEAN,
    "std": STD,
    "dtype": "float16",
}

# Images a second from threads with single requests; the 99th percentile is to be within 20 ms.
GOALS = {"640x640": 10_000, "517x606": 13_000, "1280x720": 6_000}

# The pipe for beside a busy thread: the GIL costs 5 ms whenever it is taken back, so each time has to be for many.
BUSY_BATCH, BUSY_INSTANCES = 256, 4


def images(folder: Path | None) -> dict[str, bytes]:
    """Return JPEGs of three everyday sizes, or those of a folder, by name."""
    if folder is not None:
        found = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jp*g"))}
        if not found:
            raise FileNotFoundError(f"no .jpg or .jpeg in {folder}")
        return found
    import skimage.data

    made = {}
    for width, height in SIZES:
        picture = skimage.data.astronaut()[..., ::-1]
        larger = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
        made[f"{width}x{height}"] = cv2.imencode(".jpg", larger, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return made


def new_pipe(arguments: argparse.Namespace, **more: Any) -> fastpipe.Pipe:
    """Return the pipe that is measured."""
    return fastpipe.Pipe(**{**NODE, "instance_num": arguments.instances, **more})


def check(encoded: dict[str, bytes]) -> dict[str, int]:
    """Compare pixels with OpenCV's, and return the largest difference of each image."""
    differences = {}
    gray = cv2.cvtColor(cv2.imdecode(np.frombuffer(next(iter(encoded.values())), np.uint8), 1), cv2.COLOR_BGR2GRAY)
    more = {
        "gray": cv2.imencode(".jpg", gray)[1].tobytes(),
        "progressive": cv2.imencode(".jpg", gray[..., None].repeat(3, 2), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[
            1
        ].tobytes(),
        "png": cv2.imencode(".png", gray)[1].tobytes(),
    }
    cut = next(iter(encoded.values()))[:5000]
    with fastpipe.Pipe(backend="S[DecodeTensor,SyncTensor]", color="bgr", max=BATCH, without_result="end") as pipe:
        items = list({**encoded, **more}.items())
        requests = [{"data": data} for _, data in items] + [{"data": cut}, {"data": cut + b"\xff\xd9"}]
        pipe(requests)
        assert "result" not in requests[-2]
        for (name, data), request in zip(items, requests, strict=False):
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            pixels = request["result"][0].permute(1, 2, 0).cpu().numpy()
            assert pixels.shape == expected.shape, (name, pixels.shape, expected.shape)
            differences[name] = int(np.abs(pixels.astype(int) - expected).max())
        alone = {"data": items[0][1]}
        pipe(alone)
        differences["alone, or with others"] = int((alone["result"] != requests[0]["result"]).sum())
    return differences


def of_binding(encoded: bytes, window: Window) -> Numbers:
    """NvImageCodec's Python binding in batches, decoding only."""
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(max_num_cpu_threads=max(1, (os.cpu_count() or 2) // 2))
    batch = [encoded] * BATCH
    numbers = counted(lambda: decoder.decode(batch), window, BATCH)
    torch.cuda.synchronize()
    return numbers


# ---- the table -------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything, print a table, and return it."""
    window = Window(0.3, 0.5) if arguments.quick else Window(0.5, 1.0)
    encoded = images(arguments.images)
    rows: list[dict[str, Any]] = []

    def add(what: str, way: str, numbers: Numbers, free: float = 0.0) -> float:
        rows.append({"what": what, "way": way, "goal": GOALS.get(what), **numbers})
        rate = numbers["requests_per_s"]
        times = "".join(
            f" {name[:3]} {numbers[name] / 1e3:7.2f} ms" for name in ("p50_us", "p99_us") if name in numbers
        )
        if free:
            rows[-1]["share"] = rate / free
            times += f"  {rate / free:.2f} of the rate without"
        print(f"{what:12} {way:48} {rate:9.0f} /s{times}", flush=True)
        return rate

    differences = check(encoded)
    print("largest difference from OpenCV:", differences, flush=True)
    for what, data in encoded.items():
        source = itertools.repeat(data).__next__
        with contextlib.suppress(ImportError):
            free = add(what, "binding, decode only", of_binding(data, window))
            with BusyThread():
                add(what, "binding, decode only, beside a busy thread", of_binding(data, window), free)
        with new_pipe(arguments) as pipe:
            rates = {way: add(what, way, run(pipe, source, CLIENTS, window)) for way, run in WAYS.items()}
            with BusyThread():
                for way, run in WAYS.items():
                    add(what, f"{way}, beside a busy thread", run(pipe, source, CLIENTS, window), rates[way])
        with new_pipe(arguments, array="cupy") as pipe:  # whose arrays do not give up the GIL when they are dropped
            for clients in (CLIENTS, 2 * CLIENTS):
                add(what, f"{clients} threads, CuPy's arrays", of_threads(pipe, source, clients, window))
        more = {"max": BUSY_BATCH, "instance_num": BUSY_INSTANCES, "array": "cupy"}
        with new_pipe(arguments, **more) as pipe:
            for way, run, count in (
                (f"{2 * BUSY_BATCH} tasks", of_tasks, 2 * BUSY_BATCH),
                (f"4 threads, lists of {BUSY_BATCH}", of_lists, BUSY_BATCH),
            ):
                name = f"{way}, batches of {BUSY_BATCH}"
                free = add(what, name, run(pipe, source, count, window))
                with BusyThread():
                    add(what, f"{name}, busy", run(pipe, source, count, window), free)
        for array, name in (("torch", "one client"), ("cupy", "one client, CuPy's arrays")):
            with new_pipe(arguments, instance_num=1, array=array) as pipe:
                add(what, name, of_threads(pipe, source, 1, window))
    return {"gpu": torch.cuda.get_device_name(0), "cpus": os.cpu_count(), "differences": differences, "rows": rows}


if __name__ == "__main__":
    given = arguments_of(__doc__, instances={"type": int, "default": 2, "help": "of the node (default: %(default)s)"})
    write(measure(given), given, "decode")
