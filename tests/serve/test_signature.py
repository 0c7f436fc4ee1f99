"""What is announced; how rows become requests, and answers tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")

import fastpipe
from fastpipe import Backend, Pipe, Request
from fastpipe.announcing import Announced, Interface
from fastpipe.errors import ConfigError
from fastpipe.serve.announced import MOST_ROWS, signature_of
from fastpipe.serve.signature import Signature, TensorSpec
from fastpipe.serve.statuses import AnswerNotServed, InvalidRequest
from fastpipe.serve.tensors import Tensor


def objects(*elements: Any) -> Any:
    array = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        array[index] = element
    return array


ROWS = Signature(
    (TensorSpec("image", "BYTES", (1,), "data"), TensorSpec("size", "INT32", (2,), "size")),
    (TensorSpec("scores", "FP32", (2,), "result"), TensorSpec("label", "BYTES", (1,), "label")),
    4,
)


def test_rows_become_requests_and_come_back() -> None:
    """n rows are n requests, each with its element and its row; answers are stacked in order."""
    sizes = np.array([[1, 2], [3, 4]], np.int32)
    image = Tensor("image", "BYTES", objects(b"a", b"b")[:, None])
    requests = ROWS.to_requests([Tensor("size", "INT32", sizes), image])
    assert [request["data"] for request in requests] == [b"a", b"b"]
    assert [request["size"].tolist() for request in requests] == [[1, 2], [3, 4]]
    for number, request in enumerate(requests):
        request.update(result=np.full((1, 2), number, np.float32), label=f"é{number}")
    scores, label = ROWS.to_outputs(requests)
    assert (scores.name, scores.datatype, scores.array.tolist()) == ("scores", "FP32", [[0, 0], [1, 1]])
    assert (label.datatype, label.array.tolist()) == ("BYTES", [["é0".encode()], ["é1".encode()]])
    assert ROWS.metadata()["inputs"][1] == {"name": "size", "datatype": "INT32", "shape": [-1, 2]}


def test_elements_without_an_axis_of_their_own() -> None:
    """A list of files is one file for each row, with or without an axis of one behind."""
    own = Signature((TensorSpec("image", "BYTES", (1,), "data"),), max_batch_size=4)
    for array in (objects(b"a", b"b"), objects(b"a", b"b")[:, None]):
        assert own.to_requests([Tensor("image", "BYTES", array)]) == [{"data": b"a"}, {"data": b"b"}]


def test_without_a_signature_a_call_is_one_request() -> None:
    """Any datatype is taken as it comes; one element of BYTES is that element."""
    own = Signature()
    (request,) = own.to_requests([Tensor("data", "BYTES", objects(b"jpeg"))])
    assert request == {"data": b"jpeg"}
    array = np.ones((2, 3), np.int8)
    assert own.to_requests([Tensor("data", "INT8", array)])[0]["data"] is array
    (many,) = own.to_requests([Tensor("data", "BYTES", objects(b"a", b"b"))])
    assert many["data"].tolist() == [b"a", b"b"]


def test_text() -> None:
    """Where the input says so, requests have ``str``."""
    own = Signature((TensorSpec("text", "BYTES", (-1,), "data", is_text=True),))
    (request,) = own.to_requests([Tensor("text", "BYTES", objects("é".encode(), b"b"))])
    assert request["data"].tolist() == ["é", "b"]
    with pytest.raises(InvalidRequest, match="no text in UTF-8"):
        own.to_requests([Tensor("text", "BYTES", objects(b"\xff"))])


IMAGE = Tensor("image", "BYTES", objects(b"a")[:, None])
SIZE = Tensor("size", "INT32", np.ones((1, 2), np.int32))


def of_rows(count: int) -> list[Tensor]:
    images = np.full((count, 1), b"", object)
    return [Tensor("image", "BYTES", images), Tensor("size", "INT32", np.ones((count, 2), np.int32))]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([IMAGE], "inputs are missing: size"),
        ([IMAGE, SIZE, Tensor("sizes", "INT32", SIZE.array)], "no input is named 'sizes'; did you mean 'size'"),
        ([IMAGE, SIZE, Tensor("label", "INT32", SIZE.array)], "no input is named 'label'; the model's are image, size"),
        ([IMAGE, IMAGE, SIZE], "an input is there twice"),
        ([IMAGE, Tensor("size", "INT64", np.ones((1, 2), np.int64))], "datatype must be INT32, got INT64"),
        ([IMAGE, Tensor("size", "INT32", np.ones((1, 3), np.int32))], r"shape must be \[-1, 2\], got \[1, 3\]"),
        ([IMAGE, Tensor("size", "INT32", np.ones((2, 2), np.int32))], "as many rows"),
        ([IMAGE, Tensor("size", "INT32", np.ones((), np.int32))], "as many rows"),
        (of_rows(5), "must be 1 to 4, got 5"),
        (of_rows(0), "must be 1 to 4, got 0"),
    ],
)
def test_inputs_that_do_not_fit(tensors: list[Tensor], says: str) -> None:
    """Names, datatypes, shapes and numbers of rows are held against what is announced."""
    with pytest.raises(InvalidRequest, match=says):
        ROWS.to_requests(tensors)


@pytest.mark.parametrize(
    ("value", "datatype", "data"),
    [
        (b"\xff", "BYTES", [b"\xff"]),
        ("é", "BYTES", ["é".encode()]),
        ({"boxes": np.array([[1, 2]]), "n": 1}, "BYTES", [b'{"boxes":[[1,2]],"n":1}']),
        ([1, 2], "BYTES", [b"[1,2]"]),
        ([b"\xff\0", b""], "BYTES", [b"\xff\0", b""]),
        (None, "BYTES", [b"null"]),
        (3, "INT64", 3),
        (np.array([[1, 2]], ">f4"), "FP32", [[1, 2]]),
        (np.array(["a", "b"]), "BYTES", [b"a", b"b"]),
        (np.asfortranarray(np.arange(4).reshape(2, 2)), "INT64", [[0, 1], [2, 3]]),
    ],
)
def test_answers_as_they_come(value: Any, datatype: str, data: Any) -> None:
    """Arrays and numbers are numbers, text and bytes are BYTES, all else is JSON in one element."""
    (output,) = Signature().to_outputs([{"result": value}])
    assert output.datatype == datatype
    assert output.array.tolist() == data
    assert output.array.dtype.isnative
    assert output.array.flags.c_contiguous


def test_answers_as_they_are_declared() -> None:
    """Lists become numbers, encoded images bytes; what would lose something is refused."""
    floats = Signature(outputs=(TensorSpec("y", "FP32", (2,), "result"),))
    assert floats.to_outputs([{"result": [1, 2]}])[0].array.dtype == np.float32
    assert floats.to_outputs([{"result": np.ones((1, 2))}])[0].array.shape == (2,)
    encoded = Signature(outputs=(TensorSpec("y", "BYTES", (1,), "result"),))
    assert encoded.to_outputs([{"result": np.array([255, 216], np.uint8)}])[0].array.tolist() == [b"\xff\xd8"]
    whole = Signature(outputs=(TensorSpec("y", "INT32", (2,), "result"),))
    for own, value in ((whole, np.ones(2)), (encoded, np.ones(2)), (floats, "text"), (floats, [[1], [1, 2]])):
        with pytest.raises(AnswerNotServed, match="declared as"):
            own.to_outputs([{"result": value}])


def test_answers_that_are_no_tensor() -> None:
    """Rows of several shapes, a missing key, an object of yours: the error says what to do."""
    own = Signature(max_batch_size=4)
    with pytest.raises(
        AnswerNotServed, match=r"int64 of shape \[1\] and int64 of shape \[2\]; send the rows one by one"
    ):
        own.to_outputs([{"result": np.arange(1)}, {"result": np.arange(2)}])
    with pytest.raises(AnswerNotServed, match=r"has no key 'result'; it has \['data'\]"):
        own.to_outputs([{"data": 1}])
    with pytest.raises(AnswerNotServed, match=r"cannot be written as JSON: .*object"):
        own.to_outputs([{"result": object()}])
    with pytest.raises(InvalidRequest, match="no output is named 'results'; did you mean 'result'"):
        own.to_outputs([{"result": 1}], ["results"])


def test_parts_of_streams() -> None:
    """A dict has outputs by their keys; anything else is the first output."""
    own = Signature(outputs=(TensorSpec("text", None, (-1,), "result"), TensorSpec("n", None, (-1,), "n")))
    assert [output.name for output in own.parts_to_outputs({"n": 1, "result": "a"})] == ["text", "n"]
    assert own.parts_to_outputs("a")[0].array.tolist() == [b"a"]
    assert own.parts_to_outputs({"other": 1})[0].array.tolist() == [b'{"other":1}']


# ---- where it comes from -----------------------------------------------------------------------------------------


class Announcing(Backend):
    """Says what it takes and gives."""

    announced_inputs = (Announced("x", "FP32", (2,), "data"),)
    announced_outputs = (Announced("y", "FP32", (2,), "result"),)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


def test_backends_announce_what_they_take() -> None:
    """The root's inputs and the leaf's outputs, of steps too; calls then have rows."""
    steps = fastpipe.Sequential(Announcing, "Identity")
    with Pipe({"a": {"backend": steps, "next": "b"}, "b": {"backend": Announcing}}) as pipe:
        own = signature_of(pipe)
    assert own.metadata() == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert own.max_batch_size == MOST_ROWS


def test_the_configuration_wins() -> None:
    """What the table says is announced, and the backends are asked for the rest."""
    serve = {"max_batch_size": 0, "inputs": {"z": {"datatype": "BYTES", "shape": [1], "text": True}}}
    with Pipe({"a": {"backend": Announcing}, "serve": serve}) as pipe:
        own = signature_of(pipe)
    assert own.inputs == (TensorSpec("z", "BYTES", (1,), "data", is_text=True),)
    assert own.outputs[0].name == "y"
    assert own.max_batch_size == 0


def test_a_pipe_that_says_nothing() -> None:
    """It takes anything, and calls have no rows."""
    with Pipe(backend="Identity") as pipe:
        assert pipe.interface == Interface()
        assert signature_of(pipe) == Signature()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (3, "serve: must be a table of max_batch_size, inputs and outputs, got 3"),
        ({"max_batch_size": True}, r"serve\.max_batch_size: must be a whole number from 0 to 1048576, got True"),
        ({"input": {}}, r"serve: 'input' is none of max_batch_size, inputs, outputs; did you mean 'inputs'\?"),
        ({1: {}}, "serve: keys are text, got 1"),
        ({"inputs": {}}, r"serve\.inputs: must be a table of tensors by their names, got {}"),
        ({"inputs": {"": {}}}, r"serve\.inputs: the name of a tensor must not be empty"),
        ({"inputs": {1: {}}}, r"serve\.inputs: names of tensors are text, got 1"),
        ({"inputs": {"x": 3}}, r"serve\.inputs\.x: must be a table of datatype, shape, .*, got 3"),
        ({"inputs": {"x": {"shape": []}}}, r"serve\.inputs\.x: it has no datatype"),
        ({"inputs": {"x": {"datatype": "float", "shape": []}}}, r"serve\.inputs\.x\.datatype: must be one of BOOL"),
        ({"inputs": {"x": {"datatype": "FP32"}}}, r"serve\.inputs\.x: it has no shape"),
        ({"inputs": {"x": {"datatype": "FP32", "shape": [-2]}}}, r"serve\.inputs\.x\.shape: must be a list: the size"),
        ({"outputs": {"x": {"datatype": "FP32", "shape": [], "text": True}}}, r"serve\.outputs\.x\.text: must be true"),
        (
            {"outputs": {"x": {"datatype": "FP32", "shape": [], "keys": "a"}}},
            r"serve\.outputs\.x: 'keys' is none of datatype, .*; did you mean 'key'\?",
        ),
        ({"outputs": {"x": {"datatype": "FP32", "shape": [], "key": ""}}}, r"serve\.outputs\.x\.key: must be a key of"),
        ({"outputs": {"x": {"datatype": "FP32", "shape": [], "labels": [1]}}}, r"x\.labels: must be a list of names"),
        (
            {"inputs": {n: {"datatype": "FP32", "shape": [], "key": "k"} for n in "xy"}},
            r"serve\.inputs\.y\.key: 'k' is the key of 'x' already: one would overwrite the other",
        ),
    ],
)
def test_mistakes_in_the_table(table: Any, says: str) -> None:
    """They are found with all others of the configuration, before anything is built."""
    with pytest.raises(ConfigError, match=f"^configuration: {says if says[:5] == 'serve' else f'.*{says}'}") as raised:
        Pipe({"a": {"backend": "Identity"}, "serve": table})
    assert len(raised.value.problems) == 1


def test_all_mistakes_in_the_table_at_once() -> None:
    """With those of nodes; each knows which keys lead to it."""
    table = {"inputs": {"x": {"datatype": "FP", "shape": 3, "kei": 1}, "y": 3}, "outputs": {}, "max_batch_size": -1}
    with pytest.raises(ConfigError) as raised:
        Pipe({"a": {"backend": "Identity", "max": 0}, "serve": table})
    assert [each.part for each in raised.value.problems if each.key == "serve"] == [
        ("max_batch_size",),
        ("inputs", "x", "kei", 0),
        ("inputs", "x", "datatype"),
        ("inputs", "x", "shape"),
        ("inputs", "y"),
        ("outputs",),
    ]
    assert [each.node for each in raised.value.problems if each.key != "serve"] == ["a"]


def test_a_node_may_be_called_serve() -> None:
    """A table with a backend is a node."""
    with Pipe({"serve": {"backend": "Identity"}}) as pipe:
        assert pipe({"data": 1})["result"] == 1


def test_onnx_models_announce_their_tensors() -> None:
    """A model with one input and one output says what they are; a decoder takes files."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import onnx_models

    model = onnx_models.make_model(
        [onnx_models.helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 3, "w"]}, {"y": ["n", 3, "w"]}
    )
    with Pipe(backend="OnnxTensor", model=model, max=4, rows="batch") as pipe:
        own = signature_of(pipe)
    assert own.inputs == (TensorSpec("x", "FP32", (3, -1), "data"),)
    assert own.outputs == (TensorSpec("y", "FP32", (3, -1), "result"),)
    pytest.importorskip("cv2")
    with Pipe(backend="DecodeMat") as pipe:
        assert signature_of(pipe).inputs == (TensorSpec("data", "BYTES", (1,), "data"),)
