"""ONNX's own test cases, a node each: with max = 1, any model that ONNX Runtime runs gives what it gives there.

By default those of some modules; ``FASTPIPE_NODE_CASES=all`` runs all of them, half a minute: CONTRIBUTING.md.
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

# Scalars, inputs of different sizes, states, outputs without rows or without elements, loops, empty axes.
MODULES = ["add", "constant", "gru", "loop", "lstm", "matmul", "nonzero", "onehot", "rangeop", "reducesum", "slice"]
MODULES += ["split", "topk", "trilu", "unsqueeze", "where"]


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
