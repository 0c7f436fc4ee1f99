"""How near does a pipe of single requests come to what the GPU can do with ResNet50?

    python bench/gpu/torch_model.py [--seconds 3] [--clients 64 128] [--json FILE]
    python bench/gpu/torch_model.py --device all

The ceiling is one CUDA graph of the model at a batch size, replayed without a pause. The pipe gets requests of one
image each, float16, on the GPU already: from so many threads, each waiting for its answer before it asks again; from
as many tasks of one event loop; as lists of 16 from 8 threads; from one thread by ``map``. Nothing is timed whose
answers are not those of the model itself.

With ``--device all``, one pipe on all GPUs is compared with one on the first: by ``map`` and with lists, from images
that are on the GPUs already, evenly, and from images of the host. Printed are the rate, that of each GPU, and the ratio
to one GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from callers import of_lists, of_map, of_tasks, of_threads
from common import Numbers, Window

import fastpipe

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "resnet"))
import resnet50

SIDE = 224


def ceiling(model: Any, batch: int, seconds: float) -> float:
    """Return images a second of a graph that is replayed again and again."""
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        data = torch.rand((batch, 3, SIDE, SIDE), device="cuda", dtype=torch.float16)
        for _ in range(3):
            model(data)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            model(data)
        rates = []
        for _ in range(3):
            stream.synchronize()
            start_s, count = time.perf_counter(), 0
            while time.perf_counter() - start_s < seconds / 3:
                for _ in range(10):
                    graph.replay()
                stream.synchronize()
                count += 10
            rates.append(count * batch / (time.perf_counter() - start_s))
    return max(rates)


def by_place(pipe: fastpipe.Pipe) -> dict[str, int]:
    """Return how many requests each GPU has had."""
    node = pipe.stats()["nodes"]["main"]
    return {place: each["requests"] for place, each in node.get("places", {"cuda:0": node}).items()}


def spread(arguments: argparse.Namespace, model: Any, plain: Any) -> list[dict[str, Any]]:
    """Compare one pipe on all GPUs with one on the first; return the rows."""
    gpus = torch.cuda.device_count()
    rows: list[dict[str, Any]] = []
    window = Window(0.5, arguments.seconds)
    print(f"{'':60}  img/s  {'each GPU':>{8 * gpus}}  of one GPU", flush=True)
    for clients, instances in itertools.product(arguments.clients, arguments.instances):
        one: dict[str, float] = {}
        for device, count in (("cuda:0", 1), ("all", gpus)):
            keys = {"precision": "fp16", "channels_last": True, "device": device, "instance_num": instances * count}
            with fastpipe.Pipe(backend="TorchTensor", model=model, max=f"{clients}x3x{SIDE}x{SIDE}", **keys) as pipe:
                for where in ("GPU", "host"):
                    places = [f"cuda:{number}" for number in range(count)] if where == "GPU" else ["cpu"]
                    images = [
                        torch.rand((1, 3, SIDE, SIDE), device=places[number % len(places)], dtype=torch.float16)
                        for number in range(256)
                    ]
                    check(pipe, plain, images[:8])
                    data = itertools.cycle(images).__next__
                    ways = [("map, one thread", of_map, 1), (f"{8 * count} threads, lists of 16", of_lists, 8 * count)]
                    if count > 1:
                        ways.insert(1, (f"map, {count} threads", of_map, count))
                    for what, run, threads in ways:
                        before = by_place(pipe)
                        rate = run(pipe, data, 16, window, threads)["requests_per_s"]
                        after = by_place(pipe)
                        had = {place: after[place] - before[place] for place in after}
                        each = {place: rate * number / sum(had.values()) for place, number in had.items()}
                        kind = f"{what.partition(',')[0] if 'map' in what else 'lists'}, from the {where}"
                        ratio = rate / one.setdefault(kind, rate)
                        title = f"{device}, batches of {clients}, {instances} instances each, {what}, {where}"
                        rows.append({"what": title, "images_per_s": rate, "each": each, "ratio_to_one_gpu": ratio})
                        shares = "".join(f"{share:8.0f}" for share in each.values())
                        print(f"{title:60} {rate:6.0f}  {shares:>{8 * gpus}}  {ratio:9.2f} x", flush=True)
    return rows


def check(pipe: fastpipe.Pipe, plain: Any, images: list[torch.Tensor]) -> None:
    """Fail if the pipe's answers are not those of the model."""
    with torch.inference_mode():
        expected = plain(torch.cat([image.to("cuda:0") for image in images]))
    for answer, row in zip(pipe.map({"data": image} for image in images), expected, strict=True):
        torch.testing.assert_close(answer["result"][0].to("cuda:0"), row, rtol=2e-2, atol=2e-2)


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--instances", type=int, nargs="+", default=[2], help="on each GPU")
    parser.add_argument("--device", choices=("cuda", "all"), default="cuda", help="all: compare with one GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu/torch_model.py needs a GPU that torch can use")
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", f"{os.cpu_count()} CPUs", flush=True)
    model = resnet50.make()
    plain: Any = resnet50.make().eval().cuda().half().to(memory_format=torch.channels_last)
    if arguments.device == "all":
        spread_rows = spread(arguments, model, plain)
        if arguments.json:
            arguments.json.write_text(json.dumps(spread_rows, indent=1))
        return
    images = [torch.rand((1, 3, SIDE, SIDE), device="cuda", dtype=torch.float16) for _ in range(256)]
    rows: list[dict[str, Any]] = []

    data, window = itertools.cycle(images).__next__, Window(0.5, arguments.seconds)

    def add(what: str, numbers: Numbers, limit: float) -> None:
        rate = numbers["requests_per_s"]
        rows.append({"what": what, "images_per_s": rate, "share": rate / limit})
        print(f"{what:52} {rate:8.0f} img/s  {rate / limit:6.1%} of the graph's", flush=True)

    for clients, instances in itertools.product(arguments.clients, arguments.instances):
        limit = ceiling(plain, clients, arguments.seconds)
        print(f"graph, batch {clients}: {limit:.0f} img/s", flush=True)
        rows.append({"what": f"graph, batch {clients}", "images_per_s": limit})
        node = {"precision": "fp16", "channels_last": True, "device": "cuda", "instance_num": instances}
        start_s = time.perf_counter()
        with fastpipe.Pipe(backend="TorchTensor", model=model, max=f"{clients}x3x{SIDE}x{SIDE}", **node) as pipe:
            print(f"built in {time.perf_counter() - start_s:.1f} s", flush=True)
            check(pipe, plain, images[:8])
            what = f"{instances} instances, "
            add(what + f"{clients} threads, single requests", of_threads(pipe, data, clients, window), limit)
            add(what + f"{clients} tasks of asyncio", of_tasks(pipe, data, clients, window), limit)
            add(what + "8 threads, lists of 16", of_lists(pipe, data, 16, window, threads=8), limit)
            add(what + "map, one thread", of_map(pipe, data, 1, window), limit)
        # A class is a number: no tensor that gives up the GIL when its caller drops it.
        node["postprocessor"] = "SoftmaxArgMax"
        with fastpipe.Pipe(backend="TorchTensor", model=model, max=f"{clients}x3x{SIDE}x{SIDE}", **node) as pipe:
            what = f"{instances} instances, classes, "
            add(what + f"{clients} threads, single requests", of_threads(pipe, data, clients, window), limit)
            add(what + f"{clients} tasks of asyncio", of_tasks(pipe, data, clients, window), limit)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
