"""JPEG -> scores of a ResNet18 with random weights, as one writes it by hand, with the kernels that the pipe runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 224
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
WIDTHS = (64, 128, 256, 512)


class Classify:
    """The model, and what is before it. Any thread may call; so does ONNX Runtime allow it."""

    def __init__(self, model: str, threads: int = 0) -> None:
        import onnxruntime

        from fastpipe.kernels import cpu

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.normalize = cpu.normalize

    def tensor(self, jpeg: bytes) -> Any:
        """Return a float32 array of shape (1, 3, 224, 224)."""
        image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        return self.normalize([cv2.resize(image, (SIDE, SIDE))], mean=MEAN, std=STD, target="rgb")

    def scores(self, tensors: Any) -> Any:
        """Return the scores of a batch: float32 of shape (n, 1000)."""
        return self.session.run(None, {"x": tensors})[0]


def write_model(path: Path) -> None:
    """Write a ResNet18 whose first axis is open, and whose batch normalisations are folded into the convolutions."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def weight(*shape: int) -> str:
        scale = np.sqrt(2 / max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 0.01
        weights.append(
            numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), f"w{len(weights)}")
        )
        return str(weights[-1].name)

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"y{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def conv(x: str, inside: int, outside: int, size: int, stride: int) -> str:
        settings = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [size // 2] * 4}
        return node("Conv", x, weight(outside, inside, size, size), weight(outside), **settings)

    x = node("Relu", conv("x", 3, WIDTHS[0], 7, 2))
    x = node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inside = WIDTHS[0]
    for width in WIDTHS:
        for stride in (1 if width == WIDTHS[0] else 2, 1):
            around = x if inside == width else conv(x, inside, width, 1, stride)
            y = conv(node("Relu", conv(x, inside, width, 3, stride)), width, width, 3, 1)
            x, inside = node("Relu", node("Add", y, around)), width
    x = node("Flatten", node("GlobalAveragePool", x))
    nodes.append(helper.make_node("Gemm", [x, weight(inside, 1000), weight(1000)], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "resnet18",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1000])],
        weights,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
