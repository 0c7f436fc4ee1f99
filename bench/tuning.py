"""What do instances, batches and the rule change, for work of different kinds? The figures of docs/tuning.md.

    python bench/tuning.py [--quick]

Settings of a case take turns; figures are medians of the rounds, with the least and the greatest. Processor time hardly
depends on what else a machine does; requests a second do, where the work is on its CPUs. JSON lines follow the table.
Needs the extra ``cpu``. It does not show what a GPU does: there the work sleeps.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save

import fastpipe

DEVICE = {"backend": "Sleep", "time": 10}  # milliseconds, whatever the size of the batch


class Loop(fastpipe.PerRequest):
    """Computes in Python, with the GIL, for some 0.4 ms."""

    def run(self, request: fastpipe.Request) -> None:
        total = 0
        for number in range(20_000):
            total += number
        request["result"] = total


def save_model(path: Path, shape: list[int], layers: list[tuple[str, tuple[int, ...]]]) -> None:
    """Write a model of layers with random weights, and a ReLU behind each."""
    random, nodes, weights, flowing = np.random.default_rng(0), [], [], "in"
    for number, (operator, size) in enumerate(layers):
        values = random.standard_normal(size, np.float32) * 0.03
        weights.append(helper.make_tensor(f"w{number}", TensorProto.FLOAT, size, values.tobytes(), raw=True))
        options = {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}
        nodes.append(helper.make_node(operator, [flowing, f"w{number}"], [f"x{number}"], **options))
        flowing = f"out{number}"
        nodes.append(helper.make_node("Relu", [f"x{number}"], [flowing]))
    inputs = [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info(flowing, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "model", inputs, outputs, weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def cases_of(folder: Path) -> dict[str, tuple[int, Any, dict[str, dict[str, Any]]]]:
    """Return the cases: the number of callers, the data that they send, and the settings by their names."""
    save_model(folder / "conv.onnx", [3, 48, 48], [("Conv", (32, 3, 3, 3)), *[("Conv", (32, 32, 3, 3))] * 3])
    save_model(folder / "wide.onnx", [2048], [("MatMul", (2048, 2048))] * 3)
    conv = {"backend": "OnnxTensor", "model": str(folder / "conv.onnx"), "instance_num": 2, "rows": "batch"}
    wide = conv | {"model": str(folder / "wide.onnx")}
    picture, row = np.zeros((3, 48, 48), np.float32), np.ones(2048, np.float32)
    by_max = {f"max = {size}": {"max": size} for size in (1, 4, 16)}
    by_number = {f"instance_num = {number}": {"instance_num": number} for number in (1, 2, 4)}
    waiting = {"max": 16, "batching_timeout": 20, "backend": "Sleep", "time": 2}
    rules = {f'batching = "{rule}"': waiting | {"batching": rule} for rule in ("adaptive", "timeout", "greedy")}
    return {
        "a device, 10 ms a run, 16 callers": (16, 1, {name: DEVICE | keys for name, keys in by_max.items()}),
        "a device, 10 ms a run, 1 caller": (1, 1, {name: DEVICE | keys for name, keys in by_max.items()}),
        "devices, 10 ms a run, 16 callers": (16, 1, {name: DEVICE | keys for name, keys in by_number.items()}),
        "convolutions on CPUs, 16 callers": (16, picture, {name: conv | keys for name, keys in by_max.items()}),
        "50 MB of weights on CPUs, 16 callers": (16, row, {name: wide | keys for name, keys in by_max.items()}),
        "a loop in Python, 8 callers": (8, 1, {name: {"backend": Loop} | keys for name, keys in by_number.items()}),
        "a device, 2 ms a run, up to 20 ms of waiting, 4 callers": (4, 1, rules),
    }


def window(callers: int, data: Any, keys: dict[str, Any], seconds: float) -> dict[str, float]:
    """Measure one setting in a window, after a shorter one as a warm-up."""
    with fastpipe.Pipe(**keys) as pipe:
        for part in (seconds / 3, seconds):
            ends_s = time.monotonic() + part
            before, cpu_s, began_s = pipe.stats(), time.process_time(), time.monotonic()

            def call(ends_s: float = ends_s) -> None:
                while time.monotonic() < ends_s:
                    pipe({"data": data})

            threads = [threading.Thread(target=call) for _ in range(callers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            cpu_s, took_s = time.process_time() - cpu_s, time.monotonic() - began_s
        stats = pipe.stats(since=before)
    node, latency = stats["nodes"]["main"], stats["latency_s"]
    figures = {"requests_per_s": node["requests"] / took_s, "cpu_ms": cpu_s * 1000 / node["requests"]}
    return figures | {"batch": node["mean_batch"], "p50_ms": latency["p50"] * 1000, "p99_ms": latency["p99"] * 1000}


def shown(values: list[float]) -> str:
    """Return a median, with the least and the greatest behind it."""
    median, least, greatest = (f"{value:.3g}" for value in (statistics.median(values), min(values), max(values)))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def main() -> None:
    """Measure all cases, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    quick = parser.parse_args().quick
    rounds, seconds = (1, 0.2) if quick else (5, 0.7)
    with tempfile.TemporaryDirectory() as folder:
        for case, (callers, data, settings) in cases_of(Path(folder)).items():
            found: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
            for number in range(rounds):
                names = list(settings)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    found[name].append(window(callers, data, settings[name], seconds))
            print(f"\n{case}")
            for name, windows in found.items():
                columns = {key: [each[key] for each in windows] for key in windows[0]}
                print(f"  {name:24}", "  ".join(f"{key} {shown(values)}" for key, values in columns.items()))
                print(json.dumps({"case": case, "setting": name, "windows": windows}))


if __name__ == "__main__":
    main()
