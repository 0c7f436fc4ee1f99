"""How many JPEGs a second become classes, from single requests of many callers?

    python bench/gpu/classify.py [--quick] [--images FOLDER] [--json FILE]

From JPEG to the class that a ResNet50 of float16 finds (random weights, which cost the same): the configuration of
``examples/resnet`` as one node, whose steps share a stream, and as two nodes, which batch apart. Callers as in
``decode.py``. First, classes are compared with those of the model run by hand, on what OpenCV decodes and resizes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import fastpipe

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "resnet"))
import resnet50
from callers import CLIENTS, WAYS, arguments_of, write
from common import Window
from decode import MEAN, NODE, SIDE, STD, images

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "resnet" / "gpu.toml"

# Images a second from 64 clients.
GOALS = {"640x640": 9_000, "517x606": 11_000, "1280x720": 5_500}


def one_node(instances: int) -> dict[str, Any]:
    """Return the configuration of the example."""
    config = tomllib.loads(EXAMPLE.read_text())
    config["model"]["instance_num"] = instances
    return config


def two_nodes(instances: int) -> dict[str, Any]:
    """Return the same in two nodes."""
    return {
        "decode": {**NODE, "instance_num": instances, "next": "model"},
        "model": {
            "backend": "TorchTensor",
            "model": "resnet50:make",
            "max": f"64x3x{SIDE}x{SIDE}",
            "instance_num": instances,
            "device": "cuda",
            "precision": "fp16",
            "channels_last": True,
            "postprocessor": "SoftmaxArgMax",
        },
    }


def check(pipe: fastpipe.Pipe, encoded: dict[str, bytes]) -> None:
    """Compare scores with those of the model run by hand: pixels may differ by 1 or 2 of 255."""
    model: Any = resnet50.make().eval().cuda().half()
    batch = []
    for data in encoded.values():
        pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        small = cv2.resize(pixels, (SIDE, SIDE)).astype(np.float32)
        batch.append(((small - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1))
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.stack(batch)).cuda().half()).float().softmax(1)
    requests = [{"data": data} for data in encoded.values()]
    pipe(requests)
    for request, scores in zip(requests, expected, strict=True):
        best = float(scores.max())
        assert abs(request["score"] - best) < 0.02 * best, (request["score"], best)
        assert float(scores[request["class"]]) > 0.98 * best


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run everything, print a table, and return its rows."""
    window = Window(0.3, 0.5) if arguments.quick else Window(0.5, 1.0)
    encoded = images(arguments.images)
    rows: list[dict[str, Any]] = []
    for name, config in (
        ("one node, 2 instances", one_node(2)),
        ("one node, 3 instances", one_node(3)),
        ("two nodes, 2 instances each", two_nodes(2)),
    ):
        with fastpipe.Pipe(config) as pipe:
            check(pipe, encoded)
            for what, data in encoded.items():
                source = itertools.repeat(data).__next__
                for way, run in WAYS.items():
                    numbers = run(pipe, source, CLIENTS, window)
                    rows.append({"what": what, "way": way, "pipe": name, "goal": GOALS.get(what), **numbers})
                    p99 = f"  p99 {numbers['p99_us'] / 1e3:6.2f} ms" if "p99_us" in numbers else ""
                    rate = f"{numbers['requests_per_s']:9.0f} /s"
                    print(f"{what:12} {name:30} {way:32} {rate}{p99}", flush=True)
    return rows


if __name__ == "__main__":
    given = arguments_of(__doc__)
    write(measure(given), given, "classify")
