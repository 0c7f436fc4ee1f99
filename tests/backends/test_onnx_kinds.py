"""OnnxTensor with values that are no plain numbers: text, narrow floats, maps, sequences, and what may be missing."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import FLOAT  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends import kinds  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime.values import values_of  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors, KernelError, MissingExtra  # noqa: E402

HAS_NARROW = hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type")
narrow = pytest.mark.skipif(not HAS_NARROW, reason="this ONNX Runtime takes no dtypes that NumPy lacks")


def make(nodes, inputs, outputs, constants=(), opset=19):
    """Return the bytes of a model; inputs and outputs are name -> (element type, shape), or name -> type."""

    def values(table):
        return [
            helper.make_tensor_value_info(name, *kind)
            if isinstance(kind, tuple)
            else helper.make_value_info(name, kind)
            for name, kind in table.items()
        ]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), constants)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()


def identity(kind, shape=("n", 2)):
    """Return what it gets."""
    return make([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)})


def classifier():
    """Text of shape (n, 1) -> its number, and what ZipMap makes of its probabilities: {"cat": p, "dog": 1 - p}."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["p"],
            domain="ai.onnx.ml",
            keys_strings=["meow", "woof"],
            values_floats=[0.75, 0.25],
            default_float=0.5,
        ),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["p", "q"], ["scores"], axis=1),
        helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "class"], ["label"]),
    ]
    a_map = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
    constants = [
        helper.make_tensor("one", FLOAT, [1], [1.0]),
        helper.make_tensor("names", TensorProto.STRING, [2], [b"cat", b"dog"]),
    ]
    outputs = {"label": (TensorProto.STRING, ["n"]), "maps": helper.make_sequence_type_proto(a_map)}
    return make(nodes, {"x": (TensorProto.STRING, ["n", 1])}, outputs, constants)


def text(*words):
    return np.array(words, object)


def run(backend, *data):
    """Run the data as one batch and return the results."""
    batch: list[dict[str, Any]] = [{"data": item} for item in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


# ---- text ------------------------------------------------------------------------------------------------------------

FORMS = {
    "str objects": text("gr\u00fcn", "b\0c"),
    "bytes objects": text("gr\u00fcn".encode(), b"b\0c"),
    "mixed": text("gr\u00fcn", b"b\0c"),
    "fixed str": np.array(["gr\u00fcn", "b\0c"]),
    "with a batch axis": text("gr\u00fcn", "b\0c")[None],
    "reversed": text("b\0c", "gr\u00fcn")[::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_text_of_any_form_goes_in_and_comes_out_as_str(form):
    """Alone and in a batch; the caller's array is as it was."""
    given = FORMS[form]
    before = given.tolist()
    backend = OnnxTensor(model=identity(TensorProto.STRING), max=3)
    for result in run(backend, given) + run(backend, text("x", ""), given, text("", "y"))[1:2]:
        assert result.tolist() == [["gr\u00fcn", "b\0c"]]
        assert result.dtype == object
        assert {type(word) for word in result.ravel()} <= {str, np.str_}
    assert given.tolist() == before


def test_fixed_bytes_and_strings_of_numpy_2_are_text():
    """Of a NumPy array of bytes, ONNX Runtime would read beyond the elements."""
    backend = OnnxTensor(model=identity(TensorProto.STRING), max=2)
    assert run(backend, np.array([b"abcdefgh", b"x"]))[0].tolist() == [["abcdefgh", "x"]]
    if hasattr(np.dtypes, "StringDType"):
        long = "a text of more than sixteen bytes"
        assert run(backend, np.array([long, "x"], np.dtypes.StringDType()))[0].tolist() == [[long, "x"]]


@pytest.mark.parametrize("given", ["word", b"word", np.str_("word")])
@pytest.mark.parametrize(("shape", "axes"), [(("n",), ()), (("n", 1), (1,)), (("n", "words", 1), (1, 1))])
def test_a_text_alone_is_an_item_of_one_element(given, shape, axes):
    """Of a model with an axis for the requests and no other, or others of size 1."""
    backend = OnnxTensor(model=identity(TensorProto.STRING, shape), max=2)
    for result, word in zip(run(backend, given, "other"), ("word", "other"), strict=True):
        assert (result.shape, result.item()) == ((1, *axes), word)


def test_a_text_alone_is_no_item_of_two():
    """The other would be missing."""
    with pytest.raises(ItemErrors, match=r"expected text of shape \(2,\).*got text of shape \(\)"):
        run(OnnxTensor(model=identity(TensorProto.STRING), max=2), "word")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (text("a", None), "expected text of shape .*got a NoneType in element 1, which is neither str nor bytes"),
        (text("a", 1), "got a int in element 1"),
        (text(b"a", b"\xff"), "bytes that are no UTF-8 .* in element 1"),
        (text("a", "\ud800"), "text that is no Unicode .* in element 1"),
        (text("a"), r"expected text of shape \(2,\).*got text of shape \(1,\)"),
        (np.zeros(2, np.float32), "expected text of shape .*got float32 of shape"),
        ([["a", "b"]], "got a list, which is no array"),
    ],
)
def test_what_is_no_text_fails_alone(given, problem):
    """ONNX Runtime would have written down None and 1 as text."""
    backend = OnnxTensor(model=identity(TensorProto.STRING), max=3)
    batch: list[dict[str, Any]] = [{"data": text("a", "b")}, {"data": given}]
    with pytest.raises(ItemErrors, match=problem) as caught:
        backend.forward(batch)
    assert caught.value.errors.keys() == {1}
    assert isinstance(caught.value.errors[1], KernelError)
    assert batch[0]["result"].tolist() == [["a", "b"]]


def test_a_number_of_objects_is_refused_by_a_model_of_numbers():
    """As ever: text is no number."""
    with pytest.raises(ItemErrors, match=r"expected float32 of shape .*got text of shape"):
        run(OnnxTensor(model=identity(FLOAT)), text("1", "2"))


def test_text_without_elements_is_an_item_where_min_says_so():
    """As of numbers; alone, in a batch and padded."""
    backend = OnnxTensor(model=identity(TensorProto.STRING, ("n", "words")), max=3, min="2x0")
    empty = np.empty((0,), object)
    assert [result.shape for result in run(backend, empty, empty, text("a")) + run(backend, empty)] == [
        (1, 0),
        (1, 0),
        (1, 1),
        (1, 0),
    ]


def test_text_is_padded_with_empty_text():
    """A batch of a fixed size, of which two are missing."""
    seen = []
    backend = OnnxTensor(
        model=identity(TensorProto.STRING, (4, 1)),
        postprocessor=lambda outputs, batch: seen.append(outputs[0].tolist()) or list(outputs[0]),
    )
    assert run(backend, text("a"), text("b"))[1].tolist() == ["b"]
    assert seen == [[["a"], ["b"]]]


def test_a_model_of_text_that_mixes_its_rows_is_refused():
    """Rows are tried with words and with numbers written out."""
    node = helper.make_node("Gather", ["x", "first"], ["y"], axis=0)  # all get the first request's text
    indices = helper.make_tensor("zeros", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zeros"], ["count"]),
        helper.make_node("Expand", ["zeros", "count"], ["first"]),
        node,
    ]
    kind = (TensorProto.STRING, ["n", 1])
    model = make(nodes, {"x": kind}, {"y": kind}, [indices])
    with pytest.raises(ConfigError, match=r"output 'y': there is no proof .*not what they are alone"):
        OnnxTensor(model=model, max=3)
    assert run(OnnxTensor(model=model), text("a"))[0].tolist() == [["a"]]


def test_a_model_that_reads_numbers_in_text_can_be_tried():
    """Words make it fail; numbers are proof enough."""
    node = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    model = make([node], {"x": (TensorProto.STRING, ["n", 1])}, {"y": (FLOAT, ["n", 1])})
    with pytest.raises(ConfigError, match=r"(?s)the warm-up with zeros of shape .*failed.*warm_up=false"):
        OnnxTensor(model=model, max=2)
    backend = OnnxTensor(model=model, max=2, warm_up=False)
    assert [result.item() for result in run(backend, text("1.5"), text("2"))] == [1.5, 2]
    with pytest.raises(Exception, match="Cast"):
        run(backend, text("word"))


def test_servers_are_told_of_text():
    """As BYTES whose elements are str."""
    backend = OnnxTensor(model=identity(TensorProto.STRING), max=2)
    for announced, key in ((backend.announced_inputs, "data"), (backend.announced_outputs, "result")):
        ((told,)) = announced
        assert (told.datatype, told.shape, told.text, told.key) == ("BYTES", (2,), True, key)


def test_a_server_takes_text_and_gives_it():
    """Over HTTP: several rows in one call, each of which is a request."""
    for library in ("starlette", "uvicorn", "httptools", "orjson", "grpc", "httpx"):
        pytest.importorskip(library)
    import httpx
    from served import serving

    with (
        fastpipe.Pipe(backend="OnnxTensor", model=classifier(), outputs=["label"], max=4) as pipe,
        serving({"animals": pipe}) as served,
    ):
        rows = {"name": "x", "datatype": "BYTES", "shape": [3, 1], "data": ["meow", "woof", "?"]}
        answer = httpx.post(f"{served.url}/v2/models/animals/infer", json={"inputs": [rows]})
    (label,) = answer.json()["outputs"]
    assert (label["datatype"], label["data"]) == ("BYTES", ["cat", "dog", "cat"])


# ---- maps ------------------------------------------------------------------------------------------------------------


def test_each_request_gets_the_map_of_its_row():
    """In batches, proved as other rows are; the label beside it is text."""
    backend = OnnxTensor(model=classifier(), max=3)
    results = run(backend, text("woof"), text("meow"), text("?"))
    assert [result[0].tolist() for result in results] == [["dog"], ["cat"], ["cat"]]
    assert [result[1] for result in results] == [
        {"cat": 0.25, "dog": 0.75},
        {"cat": 0.75, "dog": 0.25},
        {"cat": 0.5, "dog": 0.5},
    ]
    assert run(backend, text("woof"))[0][1] == {"cat": 0.25, "dog": 0.75}


def test_maps_are_handed_on_as_dicts_in_all_forms():
    """Alone as the only output, by name, and for a postprocessor of the user's as a row for each request."""
    only = OnnxTensor(model=classifier(), max=2, outputs=["maps"])
    assert run(only, text("meow"), text("woof")) == [{"cat": 0.75, "dog": 0.25}, {"cat": 0.25, "dog": 0.75}]
    named = OnnxTensor(model=classifier(), max=2, result_as="dict")
    assert run(named, text("meow"))[0]["maps"] == {"cat": 0.75, "dog": 0.25}
    own = OnnxTensor(model=classifier(), max=2, postprocessor=lambda outputs, batch: [row["dog"] for row in outputs[1]])
    assert run(own, text("meow"), text("woof")) == [0.25, 0.75]


def test_a_request_of_several_rows_gets_a_list_of_maps():
    """As it comes, with max = 1."""
    backend = OnnxTensor(model=classifier(), outputs=["maps"])
    assert run(backend, text("meow", "woof")[:, None]) == [[{"cat": 0.75, "dog": 0.25}, {"cat": 0.25, "dog": 0.75}]]


def test_postprocessors_of_numbers_are_refused_for_text_and_maps():
    """The way out is in the message."""
    with pytest.raises(ConfigError, match=r"TopK.* needs numbers, but output 'label' is a tensor\(string\).*split, or"):
        OnnxTensor(model=classifier(), postprocessor="TopK")


def test_a_map_goes_in_by_its_keys():
    """A model of one input: the request's data is the map, or has it by the input's name."""
    a_map = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", string_vocabulary=["a", "b", "x"])
    backend = OnnxTensor(model=make([node], {"x": a_map}, {"y": (FLOAT, [1, 3])}))
    for data in ({"a": 1, "x": np.float64(2.5)}, {"x": {"a": 1, "x": 2.5}}):
        assert run(backend, data)[0].tolist() == [[1, 0, 2.5]]
    assert run(backend, {"x": 7})[0].tolist() == [[0, 0, 7]]
    for data, problem in (
        ({1: 1.0}, "input 'x': expected text as keys, got a int"),
        ({"a": "one"}, "expected float32, got"),
        ({"a": [1.0, 2.0]}, r"expected one float32 for each key, got an array of shape \(2,\)"),
        ({"a": 1e39}, "expected values of -3.40282e"),
        (5, "expected a mapping from text to float32, got a int"),
    ):
        with pytest.raises(ItemErrors, match=problem):
            run(backend, data)


# ---- sequences, and what may be missing ------------------------------------------------------------------------------

SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))


def test_sequences_go_in_and_out_as_lists():
    """Each array is converted as ONNX Runtime needs it: it would take other byte orders as they lie."""
    insert = helper.make_node("SequenceInsert", ["s", "x"], ["t"])
    backend = OnnxTensor(model=make([insert], {"s": SEQUENCE, "x": (FLOAT, ["n"])}, {"t": SEQUENCE}))
    items = [np.ones(2, ">f4"), np.array([1, 2, 3]), np.arange(6, dtype=np.float32)[::2]]
    (result,) = run(backend, [items, np.zeros(1, np.float32)])
    assert [each.tolist() for each in result] == [[1, 1], [1, 2, 3], [0, 2, 4], [0]]
    assert {each.dtype for each in result} == {np.dtype(np.float32)}
    assert [each.tolist() for each in run(backend, {"s": [], "x": np.zeros(1)})[0]] == [[0]]
    assert items[0].dtype == np.dtype(">f4")


def test_a_sequence_alone_is_the_requests_data():
    """A list is then no list of inputs."""
    length = helper.make_node("SequenceLength", ["s"], ["y"])
    backend = OnnxTensor(model=make([length], {"s": SEQUENCE}, {"y": (TensorProto.INT64, [])}))
    assert [result.tolist() for result in run(backend, [np.ones(1)] * 3)] == [3]
    for data, problem in (
        (np.ones(2), r"input 's': expected a list, each of it a tensor\(float\), got a ndarray"),
        ([np.ones(1), "a"], "expected float32, got a str, which is no array"),
        ([np.ones(1, complex)], r"expected float32, got complex128 of shape \(1,\)"),
        ([np.full(1, 1e39)], "expected values of"),
        ({"t": []}, "expected a list"),
    ):
        with pytest.raises(ItemErrors, match=problem):
            run(backend, data)


def test_requests_of_sequences_are_never_joined():
    """In a pipe, under many callers; each gets its own."""
    split = helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0)
    model = make([split], {"x": (FLOAT, ["n", 2])}, {"s": SEQUENCE})
    with fastpipe.Pipe(backend="OnnxTensor", model=model) as pipe:
        futures = [pipe.submit({"data": np.full((n, 2), n, np.float32)}) for n in (1, 3, 2)]
        assert [[row.tolist() for row in each.result()["result"]] for each in futures] == [
            [[n, n]] * n for n in (1, 3, 2)
        ]


def test_what_may_be_missing_is_none_or_left_out():
    """In and out; there, the batch axis may be left out, too, as everywhere."""
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [None]))
    nodes = [helper.make_node("OptionalHasElement", ["x"], ["has"]), helper.make_node("Identity", ["x"], ["y"])]
    model = make(nodes, {"x": optional}, {"has": (TensorProto.BOOL, []), "y": optional})
    backend = OnnxTensor(model=model, max=1)
    for missing in (None, {}, {"x": None}):
        has, value = run(backend, missing)[0]
        assert (has.item(), value) == (False, None)
    has, value = run(backend, np.arange(2))[0]
    assert (has.item(), value.tolist()) == (True, [0, 1])
    named = OnnxTensor(model=model, result_as="dict", outputs=["y"])
    assert run(named, None)[0] == {"y": None}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max": 2}, r"output 's' is a seq\(tensor\(float\)\), which has no row for each request: expected max=1"),
        ({"min": 1}, "runs one request at a time as it comes: leave out min"),
        ({"many_rows": True, "shared": ["x"]}, "leave out shared, many_rows"),
        ({"postprocessor": "TopK"}, r"TopK.* needs numbers, but output 's' is a seq\(tensor\(float\)\): take split"),
        ({"precision": "fp16"}, "leave out precision"),
    ],
)
def test_what_needs_rows_is_refused_where_there_are_none(options, problem):
    """When the pipe is built."""
    split = helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0)
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=make([split], {"x": (FLOAT, ["n", 2])}, {"s": SEQUENCE}), **options)


def test_an_output_that_is_left_out_keeps_nobody_from_batching():
    """The model has a sequence, too, which nobody wants."""
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    model = make(nodes, {"x": (FLOAT, ["n", 2])}, {"s": SEQUENCE, "y": (FLOAT, ["n", 2])})
    backend = OnnxTensor(model=model, max=2, outputs=["y"])
    assert [result.tolist() for result in run(backend, np.ones(2), np.zeros(2))] == [[[2, 2]], [[0, 0]]]


# ---- narrow floats ---------------------------------------------------------------------------------------------------

NARROW = {
    "bfloat16": TensorProto.BFLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
    "float8_e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
}


@narrow
@pytest.mark.parametrize("name", NARROW)
def test_narrow_floats_go_in_and_out_as_dtypes_of_ml_dtypes(name):
    """Alone and in batches, from their own dtype and from others, of any layout; results are the caller's own."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name))
    backend = OnnxTensor(model=identity(NARROW[name]), max=3)
    items = [np.array([1, -2], dtype), np.array([0.5, 3], np.float64), np.array([1, 4], dtype)[::-1]]
    alone = [run(backend, item)[0] for item in items]
    for results in (alone, run(backend, *items)):
        assert [result.astype(float).tolist() for result in results] == [[[1, -2]], [[0.5, 3]], [[4, 1]]]
        assert {result.dtype for result in results} == {dtype}
    alone[0][:] = 7
    assert run(backend, items[0])[0].astype(float).tolist() == [[1, -2]]


@narrow
def test_narrow_floats_without_elements_are_an_item_where_min_says_so():
    """There is nothing to be copied."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    backend = OnnxTensor(model=identity(TensorProto.BFLOAT16, ("n", "w")), max=2, min="1x0")
    results = run(backend, np.zeros((0,), ml_dtypes.bfloat16), np.zeros((1, 0)))
    assert [(result.shape, result.dtype.name) for result in results] == [((1, 0), "bfloat16")] * 2


@narrow
@pytest.mark.parametrize(("name", "number"), [("bfloat16", 3.4e38), ("float8_e4m3fn", 500), ("float8_e5m2", 1e5)])
def test_a_number_that_a_narrow_float_cannot_hold_fails_its_request(name, number):
    """It would be infinite, or none; its neighbours are answered."""
    pytest.importorskip("ml_dtypes")
    backend = OnnxTensor(model=identity(NARROW[name]), max=2)
    batch: list[dict[str, Any]] = [{"data": np.ones(2)}, {"data": np.array([1, number])}]
    with pytest.raises(ItemErrors, match=f"is what {name} can hold, got {number:g}".replace("+", r"\+")):
        backend.forward(batch)
    assert batch[0]["result"].astype(float).tolist() == [[1, 1]]


@narrow
def test_narrow_tensors_of_torch_are_read_and_given_back():
    """bfloat16 as it lies, since NumPy has it by ml_dtypes."""
    pytest.importorskip("ml_dtypes")
    torch = pytest.importorskip("torch")
    backend = OnnxTensor(model=identity(TensorProto.BFLOAT16), max=2)
    for result in run(backend, *[torch.tensor([1.5, 2], dtype=torch.bfloat16)] * 2):
        assert (result.dtype, result.tolist()) == (torch.bfloat16, [[1.5, 2]])


@narrow
def test_rows_of_narrow_floats_are_proved():
    """A model that takes the mean of its batch is found out."""
    pytest.importorskip("ml_dtypes")
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("ReduceMean", ["wide", "first"], ["mean"]),
        helper.make_node("Add", ["wide", "mean"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
    ]
    kind = (TensorProto.BFLOAT16, ["n", 2])
    model = make(nodes, {"x": kind}, {"y": kind}, [helper.make_tensor("first", TensorProto.INT64, [1], [0])])
    with pytest.raises(ConfigError, match="there is no proof"):
        OnnxTensor(model=model, max=3)


def test_without_what_narrow_floats_need_the_error_says_it(monkeypatch):
    """The package ml_dtypes, or a newer ONNX Runtime."""
    model = identity(TensorProto.BFLOAT16)
    if not HAS_NARROW:
        with pytest.raises(ConfigError, match=r"'x' is a tensor\(bfloat16\), which needs ONNX Runtime 1\.20 or newer"):
            OnnxTensor(model=model)
        return
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtra, match=r"tensor\(bfloat16\) needs ml_dtypes.*fastpipe-engine\[dtypes\]"):
        OnnxTensor(model=model)


def test_narrow_floats_within_a_sequence_are_refused():
    """ONNX Runtime cannot hand them over; of its operators, few can make them."""
    pytest.importorskip("ml_dtypes")
    value = SimpleNamespace(name="x", type="seq(tensor(bfloat16))", shape=[])
    with pytest.raises(
        ConfigError, match=r"input 'x' has a tensor\(bfloat16\) within another value, which is not taken"
    ):
        values_of("model", "", [value], [], None)


@narrow
def test_narrow_floats_beside_text_are_refused():
    """ONNX Runtime takes the two together in no way."""
    pytest.importorskip("ml_dtypes")
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["t"], ["u"])]
    numbers, words = (TensorProto.BFLOAT16, ["n"]), (TensorProto.STRING, ["n"])
    with pytest.raises(ConfigError, match=r"'x' is a tensor\(bfloat16\) and 't' a tensor\(string\)"):
        OnnxTensor(model=make(nodes, {"x": numbers, "t": words}, {"y": numbers, "u": words}))


@pytest.mark.parametrize(
    ("given", "wanted", "may"),
    [("float32", "bfloat16", True), ("bfloat16", "float32", True), ("bfloat16", "int64", False), ("bool", "O", False)],
)
def test_which_dtypes_become_which(given, wanted, may):
    """Floats are rounded; nothing becomes a whole number or text."""
    pytest.importorskip("ml_dtypes")
    first, second = [kinds.narrow_dtype(name, "x") if "bf" in name else np.dtype(name) for name in (given, wanted)]
    assert kinds.may_become(first, second) is may


# ---- ONNX's own cases ------------------------------------------------------------------------------------------------

MODULES = ["cast", "castlike", "optionalgetelement", "optionalhaselement", "sequenceinsert", "sequence_map"]
MODULES += [
    "sequenceinsert",
    "split_to_sequence",
    "string_concat",
    "string_split",
    "stringnormalizer",
    "tfidfvectorizer",
]
MODULES += ["identity", "equal", "regex_full_match", "labelencoder", "rangeop", "reversesequence", "ai_onnx_ml"]
KINDS = {TensorProto.STRING, *NARROW.values()}


def node_cases():
    """Return ONNX's cases of these modules whose values are no plain numbers; importing a module makes its own."""
    node: Any = importlib.import_module("onnx.backend.test.case.node")
    found = getattr(node, "_NodeTestCases", None)
    if found is None:
        pytest.skip("this onnx keeps its cases elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about infinities that the cases are made of
        for module in dict.fromkeys(MODULES):
            try:
                importlib.import_module(f"onnx.backend.test.case.node.{module}")
            except ImportError:  # of another version
                continue
    return [case for case in found if not_numbers(case)]


def not_numbers(case):
    values = [*case.model.graph.input, *case.model.graph.output]
    return any(not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type in KINDS for value in values)


def as_python(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return [as_python(each) for each in value] if isinstance(value, list) else value


def same(found, wanted):
    """Say whether a result is what the case expects."""
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if wanted is None:
        return found is None
    wanted = np.asarray(wanted)
    if found.dtype == object or wanted.dtype.kind in "OUS":
        words = [word.decode() if isinstance(word, bytes) else str(word) for word in wanted.ravel().tolist()]
        return found.shape == wanted.shape and found.ravel().tolist() == words
    numbers = [each.astype(np.float64) if kinds.is_float(each.dtype) else each for each in (found, wanted)]
    close = np.allclose(*numbers, rtol=1e-3, atol=1e-6, equal_nan=True)
    return (found.shape, found.dtype) == (wanted.shape, wanted.dtype) and close


@narrow
@pytest.mark.filterwarnings("ignore")  # of what NumPy has to say about infinities
def test_onnxs_own_cases_of_such_values_are_what_they_are_to_be():
    """With nothing but max = 1. Those that ONNX Runtime does not load, or cannot hand over, are counted."""
    pytest.importorskip("ml_dtypes")
    counts: Counter[str] = Counter()
    different: list[str] = []
    for case in node_cases():
        content = case.model.SerializeToString()
        try:
            backend = OnnxTensor(model=content, max=1, warm_up=False, threads=1)
        except ConfigError as error:
            known = ("cannot load it", "which is not taken")  # float8e8m0, which has no form in Python
            counts["refused" if any(each in str(error) for each in known) else "wrongly refused"] += 1
            continue
        names = [value.name for value in case.model.graph.input]
        for inputs, expected in case.data_sets:
            given = dict(zip(names, map(as_python, inputs), strict=False))
            request: dict[str, Any] = {"data": {name: each for name, each in given.items() if each is not None}}
            try:
                backend.forward([request])
            except Exception as error:  # all are counted first
                different.append(f"{case.name}: {error!r}"[:300])
                continue
            results = [request["result"]] if len(expected) == 1 else request["result"]
            wanted = [as_python(each) for each in expected]
            if not all(map(same, results, wanted)):
                different.append(f"{case.name}: {results} for {wanted}"[:300])
            counts["the same"] += 1
    assert different == []
    assert counts["wrongly refused"] == 0
    assert counts["the same"] > 80, counts
    print(dict(counts))  # noqa: T201 - pytest -s shows it
