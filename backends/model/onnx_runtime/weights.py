"""Weights of a graph in memory: taken out while it is looked at, written beside it where one file cannot hold them.

A protobuf message of 2 GB or more can be in memory, but not be written: whatever hands a model on as bytes, as shape
inference does, fails there. So the numbers go another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastpipe.errors import ConfigError

if TYPE_CHECKING:
    import onnx

__all__ = ["graphs_in", "serialized", "with_types"]

LARGEST_MESSAGE = (1 << 31) - 1
"""Bytes of a protobuf message that can be written."""

# What is smaller may be a shape, which shape inference reads.
_LEAST_WEIGHTS = 1 << 16


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from graphs_in(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs_in(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, of any size, with what shape inference finds out; the model that is given loses its weights."""
    import onnx

    taken: dict[int, bytes] = {}
    for number, tensor in enumerate(_tensors(model)):
        if len(tensor.raw_data) >= _LEAST_WEIGHTS:
            taken[number] = tensor.raw_data
            tensor.raw_data = b""
            tensor.data_location = onnx.TensorProto.EXTERNAL  # so that nobody misses its numbers
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model)
    for number, tensor in enumerate(_tensors(inferred)):
        if number in taken:
            tensor.ClearField("data_location")
            tensor.raw_data = taken.pop(number)
    return inferred


def serialized(model: onnx.ModelProto, folder: Path | None) -> Path | bytes:
    """Return the model as the bytes of an ONNX file, or, too large for that, as a file with its weights beside it.

    Args:
        model: its weights may be taken out.
        folder: where files may be made; None: nowhere.

    Raises:
        ConfigError: if it is too large, and there is no folder.
    """
    import onnx

    size_bytes = sum(len(tensor.raw_data) for tensor in _tensors(model))
    if size_bytes < LARGEST_MESSAGE:
        try:
            content: bytes = model.SerializeToString()
        except Exception:  # protobuf's own, which differ by version: the rest of it makes it too large
            content = b""
        if content:
            return content
    if folder is None:
        raise ConfigError("with these changes it is larger than 2 GB, which is the most that one file can hold")
    path = folder / "changed.onnx"
    onnx.save(model, path, save_as_external_data=True, location="changed.data", size_threshold=1024)
    return path
