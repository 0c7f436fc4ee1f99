"""A call in HTTP's form, without a server: what is read once for all with the same JSON belongs to none of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")

from fastpipe.serve.exchange import HEAD_LENGTH, Limits
from fastpipe.serve.inference import Form, read_call, write_answer
from fastpipe.serve.repository import Model
from fastpipe.serve.signature import Signature
from fastpipe.serve.statuses import InvalidRequest
from fastpipe.serve.tensors import Tensor

MODEL = Model("m", "1", None, Signature())  # type: ignore[arg-type]  # nothing is run


def read(document: dict[str, Any], binary: bytes = b"") -> tuple[Any, Form]:
    head = json.dumps(document).encode()
    return read_call(MODEL, {HEAD_LENGTH: b"%d" % len(head)}, [head + binary], Limits())


def test_calls_with_the_same_json_have_tensors_of_their_own() -> None:
    """In binary and in JSON; what a backend does to one is not seen by the next."""
    sent = {"name": "data", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}
    in_json = {"name": "more", "datatype": "INT32", "shape": [1], "data": [7]}
    for binary in (b"ab", b"cd", b"ab"):
        call, form = read({"inputs": [sent, in_json], "parameters": {"binary_data_output": True}}, binary)
        first, second = (tensor.array for tensor in call.inputs)
        assert (first.tobytes(), second.tolist(), form.is_binary) == (binary, [7], True)
        first[:] = 0
        second[:] = 0


def test_json_that_was_read_before_still_has_to_fit_its_binary_data() -> None:
    """The sizes are compared for each call."""
    sent = {"name": "data", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}}
    assert read({"inputs": [sent]}, b"ab")[0].inputs[0].array.tobytes() == b"ab"
    with pytest.raises(InvalidRequest, match="binary_data_size ends at 2, and there are 1 bytes"):
        read({"inputs": [sent]}, b"a")
    with pytest.raises(InvalidRequest, match="1 bytes of binary data belong to no input"):
        read({"inputs": [sent]}, b"abc")


@pytest.mark.parametrize("id", ["", "7"])
@pytest.mark.parametrize("binary", [{}, {"b": False}])
def test_an_answer_says_of_each_output_what_is_behind_it(id: str, binary: dict[str, bool]) -> None:
    """Also the second time, with another size; an output that is not asked for as binary data is JSON."""
    for size in (2, 3, 2):
        outputs = [Tensor(name, "UINT8", np.arange(size, dtype=np.uint8)) for name in "ab"]
        response = write_answer(MODEL, Form(id, True, binary or None), outputs)
        length = int(dict(response.headers)[HEAD_LENGTH])
        document, behind = json.loads(response.body[:length]), response.body[length:]
        assert (document["model_name"], document["model_version"], document.get("id", "")) == ("m", "1", id)
        first, second = document["outputs"]
        assert (first["name"], second["name"], first["shape"]) == ("a", "b", [size])
        assert first["parameters"] == {"binary_data_size": size}
        if binary:
            assert second["data"] == list(range(size))
        else:
            assert second["parameters"] == {"binary_data_size": size}
        assert behind == bytes(range(size)) * (1 if binary else 2)
