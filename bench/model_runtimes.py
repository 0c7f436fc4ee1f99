"""Is OpenVINO faster on this CPU than ONNX Runtime, in float32 and in bfloat16, and how far off are its answers?

python bench/model_runtimes.py                       models that installed packages bring
python bench/model_runtimes.py MODEL.onnx@1x3x224x224   yours; several inputs: shapes with commas, in the model's order
python bench/model_runtimes.py --batch 8 --threads 2 --rounds 20

Every window is one of both runtimes, in turns, in the same process, through ``OnnxTensor`` and ``OpenvinoTensor``; a
ratio is the median of those within a round. The error is the largest difference from ONNX Runtime's float32, of the
largest number of each output. Needs the extras ``cpu`` and ``openvino``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import openvino
from common import Spread

from fastpipe.backends.model.onnx import OnnxModel, OnnxTensor
from fastpipe.backends.model.openvino import OpenvinoTensor

# Of a package that may be installed: where in it the model is, and the shape of a request.
PACKAGED = {
    "rapidocr detector": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", "3x480x480"),
    "rapidocr recogniser": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", "3x48x320"),
    "rapidocr orientation": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "3x48x192"),
    "nudenet": ("nudenet", "320n.onnx", "3x320x320"),
    "magika": ("magika", "models/standard_v3_3/model.onnx", "2048"),
}


class Case(NamedTuple):
    """A model and a request."""

    name: str
    path: Path
    shapes: list[tuple[int, ...]]  # of each input of a request, without the batch axis


class Contestant(NamedTuple):
    """A runtime in a precision."""

    name: str
    backend: OnnxModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each model; return 0, or 1 if there is no model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL@SHAPE", help="with the batch axis in front of the shape")
    parser.add_argument("--batch", type=int, default=1, help="requests in a run (1)")
    parser.add_argument("--threads", type=int, default=None, help="of a run; all CPUs")
    parser.add_argument("--rounds", type=int, default=15, help="windows of each contestant (15)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a window (0.5)")
    options = parser.parse_args(arguments)
    cases = [_given(text) for text in options.models] if options.models else list(_packaged())
    if not cases:
        print("no model: install rapidocr-onnxruntime, nudenet or magika, or name a model and its shape")
        return 1
    print(f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__.split('-')[0]}, {_processor()}")
    for case in cases:
        _print_case(case, options.batch, options.threads, options.rounds, options.seconds)
    return 0


def _packaged() -> Iterator[Case]:
    for name, (package, inner, shape) in PACKAGED.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            if (Path(folder) / inner).is_file():
                yield Case(name, Path(folder) / inner, [_numbers(shape)])


def _given(text: str) -> Case:
    path, _, shapes = text.rpartition("@")
    return Case(Path(path).name, Path(path), [_numbers(shape)[1:] for shape in shapes.split(",")])


def _numbers(shape: str) -> tuple[int, ...]:
    return tuple(int(number) for number in shape.split("x"))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
    return f"{name}, {len(os.sched_getaffinity(0))} CPUs"


def _contestants(case: Case, batch: int, threads: int | None) -> list[Contestant]:
    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    items = ",".join("x".join(map(str, (batch, *shape))) for shape in case.shapes)
    # Speed is in question here: whose rows are whose is the tests' affair.
    options: dict[str, Any] = {"model": case.path, "max": items, "rows": "batch", "threads": threads}
    found = [
        Contestant("ONNX Runtime fp32", OnnxTensor(**options)),
        Contestant("OpenVINO fp32", OpenvinoTensor(**options)),
    ]
    if has_bfloat16:
        found.append(Contestant("OpenVINO bf16", OpenvinoTensor(**options, precision="bf16")))
    else:
        print("this processor has no arithmetic of bfloat16: it is left out")
    return found


def _requests(case: Case, backend: OnnxModel, batch: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    inputs = backend._session.inputs
    requests = []
    for _ in range(batch):
        data = [
            random.standard_normal(shape).astype(np.float32)
            if "float" in value.type or "double" in value.type
            else random.integers(0, 256, shape).astype(value.type.removeprefix("tensor(").removesuffix(")"))
            for value, shape in zip(inputs, case.shapes, strict=True)
        ]
        requests.append({"data": data})
    return requests


def _print_case(case: Case, batch: int, threads: int | None, rounds: int, seconds: float) -> None:
    contestants = _contestants(case, batch, threads)
    requests = _requests(case, contestants[0].backend, batch)
    answers = [_answers(each.backend, requests) for each in contestants]
    times: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds):
        order = [*range(len(contestants))]
        for index in order[number % len(order) :] + order[: number % len(order)]:
            times[index].append(_window(contestants[index].backend, requests, seconds))
    print(f"\n{case.name} ({case.path.name}), {batch} x {' and '.join(map(str, case.shapes))}, {rounds} rounds")
    print("| | ms a run: median (least, greatest) | times as fast as ONNX Runtime (least, greatest) | largest error |")
    print("| --- | --- | --- | --- |")
    for contestant, own, found in zip(contestants, times, answers, strict=True):
        spread, ratio = Spread.of([each * 1e3 for each in own]), _ratio(times[0], own)
        error = "" if found is answers[0] else f"{_error(found, answers[0]):.1e}"
        print(
            f"| {contestant.name} | {spread.median:.3f} ({spread.least:.3f}, {spread.greatest:.3f}) "
            f"| {ratio.median:.2f} ({ratio.least:.2f}, {ratio.greatest:.2f}) | {error} |"
        )


def _ratio(first: Sequence[float], own: Sequence[float]) -> Spread:
    """Return how many times as fast, of windows that stood side by side."""
    return Spread.of([one / other for one, other in zip(first, own, strict=True)])


def _window(backend: OnnxModel, requests: list[dict[str, Any]], seconds: float) -> float:
    """Return the median time of a run, in seconds, over one window; the first run is not counted."""
    taken: list[float] = []
    ends_at = time.perf_counter() + seconds
    _run(backend, requests)
    while not taken or time.perf_counter() < ends_at:
        begun = time.perf_counter()
        _run(backend, requests)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def _run(backend: OnnxModel, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    batch = [dict(request) for request in requests]
    backend.forward(batch)
    return batch


def _answers(backend: OnnxModel, requests: list[dict[str, Any]]) -> list[list[Any]]:
    results = [request["result"] for request in _run(backend, requests)]
    return [result if isinstance(result, list) else [result] for result in results]


def _error(found: list[list[Any]], wanted: list[list[Any]]) -> float:
    """Return the largest difference, of the largest number of each output."""
    errors = [0.0]
    for outputs, others in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True):
        own, expected = [np.asarray(each, np.float64) for each in (outputs, others)]
        if expected.size:
            errors.append(float(np.abs(own - expected).max() / max(float(np.abs(expected).max()), 1e-30)))
    return max(errors)


if __name__ == "__main__":
    sys.exit(main())
