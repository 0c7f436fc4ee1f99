"""ONNX's own test cases, a node each: with max = 1, any model that ONNX Runtime runs gives what it gives there.

And with their first axis open, and max = 3, each is refused, or three requests together get what each gets alone.
By default those of some modules; ``FASTPIPE_NODE_CASES=all`` runs all of them, a minute and a half: CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.errors import ConfigError  # noqa: E402

# Scalars, inputs of different sizes, states, outputs without rows or without elements, loops, empty axes.
MODULES = ["add", "constant", "gru", "loop", "lstm", "matmul", "nonzero", "onehot", "rangeop", "reducesum", "slice"]
MODULES += ["cumprod", "cumsum", "div", "softmax", "split", "topk", "transpose", "trilu", "unsqueeze", "where"]


def node_cases() -> list[Any]:
    """Return the cases; importing one of the modules makes its own."""
    node: Any = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about infinities that the cases are made of
        if os.environ.get("FASTPIPE_NODE_CASES") == "all":
            return list(node.collect_testcases())
        try:
            made = node._NodeTestCases
        except AttributeError:
            pytest.skip("this onnx keeps its cases elsewhere")
        for module in MODULES:
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
        return list(made)


def kind_of(value: Any) -> str:
    """Return "number" for an input or output that is a tensor of numbers."""
    kind = str(value.type.WhichOneof("value"))
    if kind != "tensor_type":
        return kind.removesuffix("_type")
    return "string" if value.type.tensor_type.elem_type == onnx.TensorProto.STRING else "number"


def plain_outputs(case: Any) -> list[list[Any]] | None:
    """Return what ONNX Runtime gives for each data set of a case; None: it does not pass the case itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    found = []
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options, ["CPUExecutionProvider"])
        for inputs, expected in case.data_sets:
            names = [value.name for value in session.get_inputs()]
            outputs = session.run(None, dict(zip(names, map(np.asarray, inputs), strict=False)))
            for output, wanted in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(output, wanted, rtol=case.rtol, atol=case.atol)
            found.append(outputs)
    except Exception:  # of a type or an operator that it does not have, or has otherwise
        return None
    return found


@pytest.mark.filterwarnings("ignore")  # of what NumPy has to say about infinities
def test_every_case_of_numbers_gives_what_onnx_runtime_gives() -> None:
    """To the bit, with nothing but max = 1: no batch axis is added, none is taken away."""
    counts: Counter[str] = Counter()
    different: list[str] = []
    for case in node_cases():
        kinds = {kind_of(value) for value in (*case.model.graph.input, *case.model.graph.output)}
        if kinds != {"number"}:
            counts[f"of {'/'.join(sorted(kinds - {'number'}))}"] += 1
            continue
        expected = plain_outputs(case)
        if expected is None:
            counts["not passed by ONNX Runtime"] += 1
            continue
        try:
            backend = OnnxTensor(model=case.model.SerializeToString(), max=1, threads=1)
            for (inputs, _), outputs in zip(case.data_sets, expected, strict=True):
                request = {"data": [np.asarray(each) for each in inputs]}
                backend.forward([request])
                result: Any = request["result"]
                results = [result] if len(outputs) == 1 else result
                for found, wanted in zip(results, outputs, strict=True):
                    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
                    np.testing.assert_array_equal(found, wanted)
        except Exception as error:  # all are counted first
            different.append(f"{case.name}: {error!r}"[:300])
        else:
            counts["the same"] += 1
    assert different == []
    assert counts["the same"] > (1400 if os.environ.get("FASTPIPE_NODE_CASES") == "all" else 100), counts
    print(dict(counts))  # noqa: T201 - pytest -s shows it


def with_open_batch(model: Any) -> bytes | None:
    """Return a model whose inputs have an open axis in front where that is as long as the first one's; None: none is.

    What the file declares of its outputs is forgotten.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    shapes = [value.type.tensor_type.shape.dim for value in opened.graph.input]
    if not shapes or not shapes[0] or not shapes[0][0].dim_value:
        return None
    size = shapes[0][0].dim_value
    for shape in shapes:
        if len(shape) and shape[0].dim_value == size:
            shape[0].dim_param = "N"
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    content: bytes = opened.SerializeToString()
    return content


@pytest.mark.filterwarnings("ignore")  # of what NumPy has to say about infinities
def test_what_is_batched_gives_each_request_what_it_gets_alone() -> None:
    """Rows of the case's own data, of which the trials know nothing."""
    counts: Counter[str] = Counter()
    different: list[str] = []
    for case in node_cases():
        kinds = {kind_of(value) for value in (*case.model.graph.input, *case.model.graph.output)}
        model = with_open_batch(case.model) if kinds == {"number"} and plain_outputs(case) is not None else None
        if model is None:
            continue
        try:
            backend = OnnxTensor(model=model, max=3, threads=1)
        except ConfigError:
            counts["refused"] += 1
            continue
        given = [np.asarray(each) for each in case.data_sets[0][0]]
        axes = backend._axes.inputs
        rows = [
            [
                each if axis is None else np.take(each, [row % each.shape[axis]], axis)
                for each, axis in zip(given, axes, strict=True)
            ]
            for row in range(3)
        ]
        try:
            expected = [backend._call(each) for each in rows]
        except Exception:  # some take no single row
            counts["not alone"] += 1
            continue
        batch: list[Any] = [{"data": each} for each in rows]
        backend.forward(batch)
        for request, outputs in zip(batch, expected, strict=True):
            results = [request["result"]] if len(outputs) == 1 else request["result"]
            for found, wanted in zip(results, outputs, strict=True):
                if found.shape != wanted.shape or not np.allclose(found, wanted, 1e-3, 1e-5, equal_nan=True):
                    different.append(f"{case.name}: {found.shape}, {wanted.shape}")
        counts["the same"] += 1
    assert different == []
    assert counts["the same"] > (900 if os.environ.get("FASTPIPE_NODE_CASES") == "all" else 40), counts
    print(dict(counts))  # noqa: T201 - pytest -s shows it
