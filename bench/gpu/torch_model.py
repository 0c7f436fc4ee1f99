"""How near does a pipe of single requests come to what the GPU can do with ResNet50?

    python bench/gpu/torch_model.py [--seconds 3] [--clients 64 128] [--json FILE]

The ceiling is one CUDA graph of the model at a batch size, replayed without a pause. The pipe gets requests of one
image each, float16, on the GPU already: from so many threads, each waiting for its answer before it asks again; from
as many tasks of one event loop; as lists of 16 from 8 threads; from one thread by ``map``. Nothing is timed whose
answers are not those of the model itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def rate_of(work: Callable[[], int], threads: int, seconds: float) -> float:
    """Return how many requests a second so many threads get answered, after half a second of warming up."""
    counts = [0] * threads
    started = threading.Barrier(threads + 1)
    is_over = threading.Event()

    def client(number: int) -> None:
        started.wait()
        while not is_over.is_set():
            counts[number] += work()

    clients = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
    for each in clients:
        each.start()
    started.wait()
    time.sleep(0.5)
    before, start_s = sum(counts), time.perf_counter()
    time.sleep(seconds)
    after, end_s = sum(counts), time.perf_counter()
    is_over.set()
    for each in clients:
        each.join()
    return (after - before) / (end_s - start_s)


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--instances", type=int, nargs="+", default=[2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu/torch_model.py needs a GPU that torch can use")
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", f"{os.cpu_count()} CPUs", flush=True)
    model = resnet50.make()
    plain: Any = resnet50.make().eval().cuda().half().to(memory_format=torch.channels_last)
    images = [torch.rand((1, 3, SIDE, SIDE), device="cuda", dtype=torch.float16) for _ in range(256)]
    rows: list[dict[str, Any]] = []

    def add(what: str, rate: float, limit: float) -> None:
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
            with torch.inference_mode():
                expected = plain(torch.cat(images[:8]))
            for answer, row in zip(pipe.map({"data": image} for image in images[:8]), expected, strict=True):
                torch.testing.assert_close(answer["result"][0], row, rtol=2e-2, atol=2e-2)
            turn = itertools.cycle(images)

            def single(pipe: Any = pipe, turn: Any = turn) -> int:
                pipe({"data": next(turn)})
                return 1

            def several(pipe: Any = pipe, turn: Any = turn) -> int:
                pipe([{"data": next(turn)} for _ in range(16)])
                return 16

            def mapped(pipe: Any = pipe, turn: Any = turn) -> int:
                return sum(1 for _ in pipe.map({"data": next(turn)} for _ in range(2048)))

            async def task(pipe: Any, turn: Any, is_over: threading.Event) -> int:
                count = 0
                while not is_over.is_set():
                    await pipe.acall({"data": next(turn)})
                    count += 1
                return count

            async def loop(pipe: Any = pipe, turn: Any = turn, clients: int = clients) -> int:
                is_over = threading.Event()
                threading.Timer(arguments.seconds, is_over.set).start()
                return sum(await asyncio.gather(*[task(pipe, turn, is_over) for _ in range(clients)]))

            what = f"{instances} instances, "
            add(what + f"{clients} threads, single requests", rate_of(single, clients, arguments.seconds), limit)
            start_s = time.perf_counter()
            count = asyncio.run(loop())
            add(what + f"{clients} tasks of asyncio", count / (time.perf_counter() - start_s), limit)
            add(what + "8 threads, lists of 16", rate_of(several, 8, arguments.seconds), limit)
            start_s = time.perf_counter()
            count = mapped()
            add(what + "map, one thread", count / (time.perf_counter() - start_s), limit)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
