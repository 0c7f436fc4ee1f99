"""How does JPEG -> detector -> crops -> classifier as one graph compare with the same by hand in a pool of threads?

    pip install --no-deps nudenet
    python bench/detect_classify.py [--quick] [--callers 1 16] [--model FILE.onnx] [--images FOLDER]

The detector is nudenet's (a YOLOv8 for 320 x 320), or another YOLOv8 with one output. The classifier is a small
convolutional network that this script makes. By hand, a pool of threads takes one picture after the other: decoding,
the detector, and all crops of the picture in one run of the classifier. Kernels and postprocessor are fastpipe's on
both sides, so what differs is who runs what when, and with whom it is batched. There are two by hand: models with one
thread each, as many at a time as there are CPUs; and as ONNX Runtime comes, with all CPUs for each run. The graph is
held against the better of the two.

Answers are compared before anything is timed. The contestants take turns, in one process; each window is one of all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import images
import numpy as np
from common import Numbers, Spread, Window, WrongAnswer, closed_loop

import fastpipe
from fastpipe.backends.model.heads.detectors import YoloV8
from fastpipe.kernels import cpu

DETECTOR_SIDE, CROP_SIDE = 320, 96
# On a CPU, a batch of this detector's is dearer than as many runs of one: 17.4 ms a picture in a batch of four,
# 18.4 in one of eight, 16.5 alone. So it runs alone; --detector-batch tries others.
DETECTOR_BATCH, CLASSIFIER_BATCH = 1, 16
CLASSES = 10
# So low that every picture has its boxes, whatever is in it: this is about time, not about what is found.
HEAD = YoloV8(score_threshold=0.001, max_detections=6, min_size=8)
GRAPH, ALONE, AS_IT_COMES = "one graph", "by hand, one thread a model", "by hand, ONNX Runtime's threads"
GOAL = 1.3
LARGEST_SCORE_DIFFERENCE, LARGEST_BOX_DIFFERENCE = 1e-3, 0.1

Answer = tuple[Any, Any, list[int]]
"""Boxes, their scores, and the class of each."""


def classifier() -> bytes:
    """Return a small convolutional network with random weights, (batch, 3, 96, 96) -> (batch, classes)."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "image", 3
    for number, wider in enumerate((16, 32, 64, 128)):
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (wider, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel_{number}"))
        strided = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [name, f"kernel_{number}"], [f"conv_{number}"], **strided))
        nodes.append(helper.make_node("Relu", [f"conv_{number}"], [f"relu_{number}"]))
        name, channels = f"relu_{number}", wider
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "last"], ["scores"]))
    weights.append(numpy_helper.from_array(rng.normal(0, 1, (channels, CLASSES)).astype(np.float32), "last"))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, CROP_SIDE, CROP_SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def nudenet_model() -> Path | None:
    """Return the file of the detector that the wheel nudenet brings; None: it is not installed."""
    from importlib.util import find_spec

    found = find_spec("nudenet")
    return None if found is None or found.origin is None else Path(found.origin).with_name("320n.onnx")


class ByHand:
    """The same in a pool of threads, as one writes it without a library for it.

    Args:
        detector: the ONNX file.
        threads: of each run of a model; 0: as many as ONNX Runtime takes.
        workers: how many pictures are worked on at a time.
    """

    def __init__(self, detector: Path, threads: int, workers: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self._detector = onnxruntime.InferenceSession(str(detector), options, providers)
        self._classifier = onnxruntime.InferenceSession(classifier(), options, providers)
        self._input = self._detector.get_inputs()[0].name
        self._pool = ThreadPoolExecutor(workers)

    def __call__(self, jpeg: bytes) -> Answer:
        """Answer for a picture, from the caller's thread."""
        return self._pool.submit(self._answer, jpeg).result()

    def _answer(self, jpeg: bytes) -> Answer:
        import simplejpeg

        pixels = simplejpeg.decode_jpeg(jpeg, "BGR")
        height, width = pixels.shape[:2]
        scale = DETECTOR_SIDE / max(height, width)
        new_height, new_width = round(height * scale), round(width * scale)
        top, left = (DETECTOR_SIDE - new_height) // 2, (DETECTOR_SIDE - new_width) // 2
        boxed = cv2.copyMakeBorder(
            cv2.resize(pixels, (new_width, new_height)),
            top,
            DETECTOR_SIDE - new_height - top,
            left,
            DETECTOR_SIDE - new_width - left,
            cv2.BORDER_CONSTANT,
        )
        planes = cpu.normalize(boxed, std=255.0, target="rgb")[np.newaxis]
        (found,) = self._detector.run(None, {self._input: planes})

        class Back:
            source_size = (height, width)

            def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
                return (x - left) * (width / new_width), (y - top) * (height / new_height)

        request: dict[str, Any] = {"data": planes, "inverse_trans": Back()}
        HEAD([found], [request])
        boxes = request["result"]
        if not len(boxes):
            return boxes, request["scores"], []
        crops = np.empty((len(boxes), 3, CROP_SIDE, CROP_SIDE), np.float32)
        for crop, box in zip(crops, boxes, strict=True):
            x0, y0, x1, y1 = (round(float(side)) for side in box)
            cpu.normalize(cv2.resize(pixels[y0:y1, x0:x1], (CROP_SIDE, CROP_SIDE)), std=255.0, target="rgb", out=crop)
        (scores,) = self._classifier.run(None, {"image": crops})
        return boxes, request["scores"], scores.argmax(1).tolist()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class Graph:
    """The same as one graph.

    Args:
        detector: the ONNX file.
        detector_batch: the most pictures of one of its runs.
    """

    def __init__(self, detector: Path, detector_batch: int = DETECTOR_BATCH) -> None:
        cpus = len(os.sched_getaffinity(0))
        self.pipe = fastpipe.Pipe(
            {
                "decode": {"backend": "DecodeMat", "instance_num": cpus, "next": "detect,each_box"},
                "detect": {
                    "backend": "S[LetterBoxMat,NormalizeMat,OnnxTensor]",
                    "max_h": DETECTOR_SIDE,
                    "max_w": DETECTOR_SIDE,
                    "color": "rgb",
                    "NormalizeMat::std": 255,
                    "model": str(detector),
                    "max": detector_batch,
                    "instance_num": cpus,
                    "postprocessor": HEAD,
                    "next": "each_box",
                },
                "each_box": {
                    "backend": "MapReduce",
                    "map": "decode[result:data],detect[result:box,scores:scores]",
                    "split": "box",
                    "share": "data",
                    "jump": "classify",
                },
                "classify": {
                    "backend": "S[CropResizeMat,NormalizeMat,OnnxTensor]",
                    "resize_h": CROP_SIDE,
                    "resize_w": CROP_SIDE,
                    "color": "rgb",
                    "NormalizeMat::std": 255,
                    "model": classifier(),
                    "max": CLASSIFIER_BATCH,
                    "instance_num": cpus,
                    "postprocessor": "SoftmaxArgMax",
                },
            }
        )

    def __call__(self, jpeg: bytes) -> Answer:
        """Answer for a picture, from the caller's thread."""
        request = self.pipe({"data": jpeg})
        return request["box"], request["scores"], list(request["result"])

    def close(self) -> None:
        """End the threads."""
        self.pipe.close()


@dataclass(frozen=True)
class Contestant:
    """Who answers, and what came of each window, in its order."""

    answer: Callable[[bytes], Answer]
    close: Callable[[], None]
    windows: list[Numbers]


def check(answer: Answer, expected: Answer, picture: str) -> None:
    """Hold an answer against another contestant's.

    Raises:
        WrongAnswer: if they differ by more than a model does from batch to batch.
    """
    (boxes, scores, classes), (other_boxes, other_scores, other_classes) = answer, expected
    if len(boxes) != len(other_boxes) or classes != other_classes:
        raise WrongAnswer(f"{picture}: {classes} for {len(boxes)} boxes, expected {other_classes}")
    if len(boxes) and np.abs(boxes - other_boxes).max() > LARGEST_BOX_DIFFERENCE:
        raise WrongAnswer(f"{picture}: boxes differ by {np.abs(boxes - other_boxes).max():g} pixels")
    if len(scores) and np.abs(scores - other_scores).max() > LARGEST_SCORE_DIFFERENCE:
        raise WrongAnswer(f"{picture}: scores differ by {np.abs(scores - other_scores).max():g}")


def measure(contestants: dict[str, Contestant], jpegs: list[bytes], callers: int, window: Window, rounds: int) -> None:
    """Give each contestant a window in each round; rounds begin with another one each time."""

    def client_of(answer: Callable[[bytes], Answer]) -> Callable[[int], Callable[[], object]]:
        def client(number: int) -> Callable[[], object]:
            at = number

            def call() -> None:
                nonlocal at
                at += 1
                answer(jpegs[at % len(jpegs)])

            return call

        return client

    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            chosen = contestants[name]
            chosen.windows.append(closed_loop(client_of(chosen.answer), callers, window))


def report(contestants: dict[str, Contestant], callers: int) -> dict[str, Any]:
    """Print a table; return what it says as one row of JSON."""
    rates = {name: [each["requests_per_s"] for each in chosen.windows] for name, chosen in contestants.items()}
    best = max((name for name in rates if name != GRAPH), key=lambda name: Spread.of(rates[name]).median)
    ratio = Spread.of_ratio(rates[GRAPH], rates[best])
    for name, chosen in contestants.items():
        rate = Spread.of(rates[name])
        latency_ms = Spread.of([each["p50_us"] / 1e3 for each in chosen.windows]).median
        cpu_ms = Spread.of([each["cpu_us"] / 1e3 for each in chosen.windows]).median
        print(
            f"{callers:3} callers  {name:34} {rate.median:7.1f} /s ({rate.least:.1f} to {rate.greatest:.1f})"
            f"  p50 {latency_ms:.1f} ms, processor {cpu_ms:.1f} ms a picture"
        )
    print(
        f"{callers:3} callers  {GRAPH} / {best}: {ratio.median:.2f} ({ratio.least:.2f} to {ratio.greatest:.2f})"
        f"{f', goal: at least {GOAL}' if callers >= 16 else ''}"
    )
    return {"callers": callers, "requests_per_s": rates, "best_by_hand": best, "ratio": ratio.median}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status; a wrong answer ends it at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds: to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a window is measured")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--detector-batch", type=int, default=DETECTOR_BATCH, help="the most pictures of a run")
    parser.add_argument("--model", type=Path, help="a YOLOv8 of one output; by default nudenet's")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG files to take instead of the samples")
    options = parser.parse_args(arguments)
    detector = options.model or nudenet_model()
    if detector is None:
        print("no detector: pip install --no-deps nudenet, or --model FILE.onnx")
        return 1
    window = Window(0.3, 0.5) if options.quick else Window(1.0, options.seconds)
    names = [name for name in images.names(options.images) if name != "4000x3000"]  # whose decoding would be all of it
    jpegs = [images.jpeg(name, options.images) for name in names]
    cpus = len(os.sched_getaffinity(0))
    graph = Graph(detector, options.detector_batch)
    hands = {ALONE: ByHand(detector, 1, cpus), AS_IT_COMES: ByHand(detector, 0, cpus)}
    try:
        expected = [hands[ALONE](jpeg) for jpeg in jpegs]
        box_count = sum(len(boxes) for boxes, _, _ in expected)
        print(f"{cpus} CPUs, {len(jpegs)} pictures with {box_count} boxes together, detector {detector.name}")
        if not box_count:
            print("no box in any picture: nothing to classify")
            return 1
        with ThreadPoolExecutor(16) as pool:  # in batches, too
            for answer in (graph, hands[AS_IT_COMES]):
                for number, found in enumerate(pool.map(answer, jpegs * 8)):
                    check(found, expected[number % len(jpegs)], names[number % len(jpegs)])
        for callers in options.callers:
            contestants = {GRAPH: Contestant(graph, graph.close, [])}
            contestants |= {name: Contestant(hand, hand.close, []) for name, hand in hands.items()}
            before = graph.pipe.stats()
            measure(contestants, jpegs, callers, window, 2 if options.quick else options.rounds)
            row = report(contestants, callers)
            for node in ("detect", "classify"):
                sizes = graph.pipe.stats(since=before)["nodes"][node]["batch_sizes"]
                print(f"{callers:3} callers  {node}: {sizes['count']} batches of {sizes['mean']:.1f} in the mean")
                row[f"{node}_mean_batch"] = sizes["mean"]
            print(json.dumps(row))
    finally:
        graph.close()
        for hand in hands.values():
            hand.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
