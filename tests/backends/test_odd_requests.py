"""What requests may bring to the backends of the box: no number or mask is lost, and no error repeats a megabyte."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastpipe import Pipe, UnknownNode
from fastpipe.config.registry import _BUILT_IN
from fastpipe.errors import MOST_SHOWN, ConfigError, ItemErrors, KernelError, MissingExtra

pytest.importorskip("cv2", reason="the extra cpu is not installed: pip install 'fastpipe-engine[cpu]'")
onnx: Any = pytest.importorskip("onnx")
torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastpipe-engine[torch]'")
OnnxTensor: Any = pytest.importorskip("fastpipe.backends.model.onnx").OnnxTensor
TorchTensor: Any = pytest.importorskip("fastpipe.backends.model.torch").TorchTensor
Row: Any = importlib.import_module("fastpipe.backends.gpu.handed_on").Row
torch_graphs: Any = importlib.import_module("fastpipe.backends.model.torch_graphs")
tensor_ops: Any = importlib.import_module("fastpipe.backends.tensor.geometry")
tensor_color: Any = importlib.import_module("fastpipe.backends.tensor.color")
tensor_moves: Any = importlib.import_module("fastpipe.backends.tensor.moves")
tensor: Any = importlib.import_module("fastpipe.backends.tensor.convert")
catsplit: Any = importlib.import_module("fastpipe.backends.flow.catsplit")

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:Sparse .* support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


def onnx_identity(kind: int = 1, shape: Any = ("n", 3)) -> bytes:
    """A model that gives back its input ``x``; 1 is float32, 10 float16."""
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, kind, list(shape)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return content


class Same(torch.nn.Module):
    """Gives back what it gets, and counts how often."""

    runs = 0

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype), requires_grad=False)

    def forward(self, x: Any) -> Any:
        type(self).runs += 1
        return x * 1


def errors_of(backend: Any, batch: list[dict[str, Any]]) -> dict[int, BaseException]:
    with pytest.raises(ItemErrors) as caught:
        backend.forward(batch)
    return dict(caught.value.errors)


# ---- numbers that would become infinite ------------------------------------------------------------------------------

FLOAT32 = "expected values of -3.40282e+38 to 3.40282e+38, which is what float32 can hold, got "
FLOAT16 = "expected values of -65504 to 65504, which is what float16 can hold, got "


@pytest.mark.parametrize(
    ("make", "dtype", "value", "message"),
    [
        (lambda: OnnxTensor(model=onnx_identity(), max=4), np.float64, 1e39, FLOAT32 + "1e+39"),
        (lambda: OnnxTensor(model=onnx_identity(), max=4), np.float64, -1e300, FLOAT32 + "-1e+300"),
        (lambda: OnnxTensor(model=onnx_identity(10), max=4), np.float32, 70000, FLOAT16 + "70000"),
        (lambda: OnnxTensor(model=onnx_identity(10), max=4), np.int64, -70000, FLOAT16 + "-70000"),
        (lambda: TorchTensor(model=Same(), max="4x3", device=["cpu"]), np.float64, 1e39, FLOAT32 + "1e+39"),
        (
            lambda: TorchTensor(model=Same(), max="4x3", precision="fp16", device=["cpu"]),
            np.float32,
            -1e6,
            FLOAT16 + "-1e+06",
        ),
        (
            lambda: TorchTensor(model=Same(), max="4x3", precision="bf16", device=["cpu"]),
            np.float64,
            1e200,
            "which is what bfloat16 can hold, got 1e+200",
        ),
        (
            lambda: TorchTensor(model=Same(), max="4x3", dtypes=["float16"], device=["cpu"]),
            np.int32,
            1 << 20,
            FLOAT16 + "1.04858e+06",
        ),
    ],
)
def test_a_number_that_the_models_type_cannot_hold_fails_its_request_alone(
    make: Any, dtype: Any, value: float, message: str
) -> None:
    """It was infinite in silence; the neighbours are answered, in one run, and nothing is warned of."""
    backend = make()
    batch = [{"data": np.full((1, 3), number, dtype)} for number in (1, value, 2)]
    assert len({backend.bucket(request) for request in batch}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = errors_of(backend, batch).items()
    assert found[0] == 1
    assert isinstance(found[1], KernelError)
    assert "input 'x': " in str(found[1])
    assert message in str(found[1])
    assert "result" not in batch[1]
    assert [float(request["result"][0, 0]) for request in (batch[0], batch[2])] == [1, 2]
    with pytest.raises(ItemErrors, match="which is what"):
        backend.forward(batch[1:2])


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_what_is_infinite_or_no_number_when_it_comes_stays_so(kind: str, form: Any) -> None:
    """Only what a conversion makes infinite is refused, also beside one that was."""
    backend = (
        OnnxTensor(model=onnx_identity(), max=4)
        if kind == "onnx"
        else TorchTensor(model=Same(), max="4x3", device=["cpu"])
    )
    good = {"data": form(np.array([[np.inf, -np.inf, np.nan]]))}
    backend.forward([good])
    assert np.array_equal(np.asarray(good["result"]), [[np.inf, -np.inf, np.nan]], equal_nan=True)
    batch = [{"data": form(np.array([[np.inf, np.nan, 1e39]]))}, dict(good)]
    assert list(errors_of(backend, batch)) == [0]


def test_nobody_looks_where_no_number_can_become_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 into float32, and pixels, which are what nearly all requests are."""

    def fail(*_: Any) -> None:
        raise AssertionError("looked")

    for backend in (
        OnnxTensor(model=onnx_identity(), max=4),
        TorchTensor(model=Same(), max="4x3", device=["cpu"]),
    ):
        monkeypatch.setattr(backend._inputs, "refuse_overflow", fail)
        monkeypatch.setattr("fastpipe.backends.model.torch.all_finite", lambda tensors: fail() if tensors else None)
        for dtype in (np.float32, np.float16, np.uint8):
            request = {"data": np.ones((1, 3), dtype)}
            backend.forward([request])
            assert float(request["result"][0, 0]) == 1


def test_a_batch_that_is_one_tensor_already_falls_apart_where_a_number_is_too_large() -> None:
    """Rows of a whole that the step before made: the others are answered."""
    backend = TorchTensor(model=Same(), max="4x3", precision="fp16", device=["cpu"])
    whole = torch.tensor([[1.0] * 3, [7e4] * 3, [2.0] * 3])
    batch = [{"data": Row(whole, number)} for number in range(3)]
    assert list(errors_of(backend, batch)) == [1]
    assert [request.get("result", torch.zeros(1, 1))[0, 0].item() for request in batch] == [1, 0, 2]


def test_what_a_graph_reads_is_looked_at_before_it_is_replayed() -> None:
    """The model may work in place, in what was copied there; zeros that fill up a batch are no request's."""
    backend = TorchTensor(model=Same(), max="4x3", precision="fp16", device=["cpu"])
    read, written = torch.zeros(4, 3, dtype=torch.float16), torch.zeros(4, 3, dtype=torch.float16)

    def replay() -> None:
        written.copy_(read)
        read.zero_()

    graph = torch_graphs.Graph(SimpleNamespace(replay=replay), [read], [written], 4)
    backend._graphs = SimpleNamespace(find=lambda *_: graph, is_complete=True)  # a stand-in for one on a GPU
    batch = [{"data": torch.full((1, 3), number)} for number in (1.0, 7e4, 2.0)]
    assert list(errors_of(backend, batch)) == [1]
    assert [batch[index]["result"][0, 0].item() for index in (0, 2)] == [1, 2]


def test_of_several_inputs_the_one_with_the_number_is_named() -> None:
    """Each is held against its own type."""

    class Added(torch.nn.Module):
        def forward(self, left: Any, right: Any) -> Any:
            return left + right

    backend = TorchTensor(model=Added(), max="4x3,4x3", dtypes=["float32", "float16"], device=["cpu"])
    batch = [{"data": [np.full(3, left), np.full(3, right)]} for left, right in ((1, 7e4), (7e4, 1), (1e39, 1))]
    errors = errors_of(backend, batch)
    assert "input 'right': expected values of -65504" in str(errors[0])
    assert "input 'left': expected values of -3.40282e+38" in str(errors[2])
    assert list(errors) == [0, 2]
    assert batch[1]["result"][0, 0].item() == 70001


# ---- arrays that are none of the ordinary ----------------------------------------------------------------------------


ODD_TENSORS = {
    "sparse": (lambda each: each.to_sparse(), r"a sparse tensor \(sparse_coo\): \.to_dense\(\) makes an ordinary"),
    "quantized": (
        lambda each: torch.quantize_per_tensor(each, 0.1, 0, torch.quint8),
        r"a quantized tensor \(quint8\): \.dequantize\(\) makes an ordinary",
    ),
    "meta": (lambda each: each.to("meta"), "a tensor on the device 'meta', which has a shape and no numbers"),
    "nested": (
        lambda each: torch.nested.nested_tensor([each[0]]),
        r"a nested tensor: \.to_padded_tensor\(padding\) makes an ordinary",
    ),
}


@pytest.mark.parametrize("odd", ODD_TENSORS)
@pytest.mark.parametrize("kind", ["onnx", "torch", "without shapes"])
def test_a_tensor_of_another_kind_fails_its_request_alone_and_is_told_what_to_do(kind: str, odd: str) -> None:
    """Also after an ordinary one of equal shape and type, which is remembered as checked."""
    backend = {
        "onnx": lambda: OnnxTensor(model=onnx_identity(), max=4),
        "torch": lambda: TorchTensor(model=Same(), max="4x3", device=["cpu"]),
        "without shapes": lambda: TorchTensor(model=Same(), max=4, rows="batch", device=["cpu"]),
    }[kind]()
    make, message = ODD_TENSORS[odd]
    for _ in range(2):
        batch = [{"data": torch.ones(1, 3)}, {"data": make(torch.ones(1, 3))}]
        assert backend.bucket(batch[1]) == "misfit"
        errors = errors_of(backend, batch)
        assert list(errors) == [1]
        with pytest.raises(KernelError, match=message):
            raise errors[1]
        assert batch[0]["result"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("odd", ODD_TENSORS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: tensor_ops.ResizeTensor(resize_h=2, resize_w=2),
        lambda: tensor_ops.CropTensor(),
        lambda: tensor_color.CvtColorTensor(color="rgb"),
        lambda: tensor.Tensor2Mat(),
        lambda: tensor.Tensor2Vector(),
    ],
)
def test_steps_for_images_say_what_to_do_with_a_tensor_of_another_kind(make: Any, odd: str) -> None:
    """In words of fastpipe, not of the operator that was the first to fail."""
    change, message = ODD_TENSORS[odd]
    with pytest.raises(KernelError, match=message):
        make().forward([{"data": change(torch.ones(1, 3, 4, 4)), "box": [0, 0, 1, 1]}])


def masked(shape: tuple[int, ...], dtype: Any) -> Any:
    array = np.ma.masked_array(np.ones(shape, dtype), np.zeros(shape, bool))
    array[(0,) * len(shape)] = np.ma.masked
    return array


def mat_steps() -> Iterator[Any]:
    geometry, color, codec = (
        importlib.import_module(f"fastpipe.backends.image.{name}") for name in ("geometry", "color", "codec")
    )
    yield geometry.ResizeMat(resize_h=2, resize_w=2), masked((4, 4, 3), np.uint8)
    yield geometry.CropMat(), masked((4, 4, 3), np.uint8)
    yield color.CvtColorMat(color="rgb"), masked((4, 4, 3), np.uint8)
    yield color.NormalizeMat(mean=[0.0], std=[1.0]), masked((4, 4, 3), np.uint8)
    yield codec.DecodeMat(), masked((4,), np.uint8)
    yield tensor.Mat2Tensor(), masked((4, 4, 3), np.uint8)
    yield tensor_moves.CpuTensor(), masked((1, 3), np.float32)
    yield catsplit.Concatenate(), [masked((1, 3), np.float32)]
    yield OnnxTensor(model=onnx_identity(), max=4), masked((1, 3), np.float32)
    yield OnnxTensor(model=onnx_identity(), max=4), [masked((1, 3), np.float32)]
    yield TorchTensor(model=Same(), max="4x3", device=["cpu"]), masked((1, 3), np.float32)
    yield TorchTensor(model=Same(), max="4x3", device=["cpu"]), {"x": masked((1, 3), np.float32)}


def test_no_mask_is_lost_in_silence() -> None:
    """Whatever reads the numbers of an array refuses one whose mask it would lose, and says what makes one of it."""
    for backend, data in mat_steps():
        request = {"data": data, "box": [0, 0, 1, 1]}
        with pytest.raises((ItemErrors, KernelError, TypeError)) as caught:
            backend.forward([request])
        assert "a masked array, whose mask would be lost: .filled(value) makes an ordinary array" in str(caught.value)
        assert "result" not in request


def test_an_array_that_a_mask_was_filled_of_is_taken() -> None:
    """The way out that the error names."""
    request = {"data": masked((1, 3), np.float32).filled(5)}
    OnnxTensor(model=onnx_identity(), max=4).forward([request])
    assert request["result"].tolist() == [[5, 1, 1]]


# ---- errors do not repeat what a request has brought -----------------------------------------------------------------

MARK = "secret-mark"  # far behind the start of each value: what repeats it repeats all
HUGE: dict[str, Any] = {
    "text": "A" * 1_000_000 + MARK,
    "bytes": b"A" * 1_000_000 + MARK.encode(),
    "list": [*range(150_000), MARK],
    "texts": ["A" * 100] * 10_000 + [MARK],
    "dict": {**{f"key {number}": number for number in range(100_000)}, MARK: MARK},
    "int": 10**1_000_000,
    "array": np.array([list(range(1000))] * 100),
    "objects": np.array(["A" * 1_000_000 + MARK, 1], dtype=object),
}
KEYS = (
    *("data", "color", "box", "quad", "affine_matrix", "resize_h", "resize_w", "top", "bottom", "left", "right"),
    *("sizes", "orientation", "page", "result"),
)
ORDINARY: tuple[Any, ...] = (
    np.ones((8, 8, 3), np.uint8),
    torch.ones(1, 3, 8, 8),
    np.ones((1, 3), np.float32),
    [np.ones((1, 3), np.float32)],
)
PARAMETERS: dict[str, dict[str, Any]] = {
    "Add": {"key": "k", "value": 1},
    "Sleep": {"time": 0},
    "Copy": {"source": "data", "target": "other"},
    "Move": {"source": "data", "target": "other"},
    "Remove": {"key": "k"},
    "CatSplit": {"backend": "CatSplit[Pow]"},
    "Range": {"backend": "Range[Pow,Pow]", "range": "1,1"},
    "HasKey": {"backend": "HasKey[Pow]", "key": "data"},
    "NotHasKey": {"backend": "NotHasKey[Pow]", "key": "k"},
    "Random": {"backend": "Random[Pow,Identity]", "p": 1},
    "Sequential": {"backend": "Sequential[Pow,Pow]"},
    "CvtColorMat": {"color": "rgb"},
    "CvtColorTensor": {"color": "rgb"},
    "NormalizeMat": {"mean": [0.0], "std": [1.0]},
    "AlignMat": {"resize_h": 8, "max_w": 32},
    "DecodeMat": {"more_formats": ["gif"]},
    "ResizeShorterMat": {"shorter_side": 8},
    "CenterCropMat": {"crop_h": 8, "crop_w": 8},
    "WarpAffineTensor": {"target_h": 4, "target_w": 4},
    **{name: {"model": onnx_identity()} for name in ("OnnxTensor", "OpenvinoTensor")},
    "TorchTensor": {"model": Same(), "device": "cpu"},
    **{name: {"save_dir": ...} for name in ("SaveMat", "SaveTensor")},
    **{name: {"max_h": 8, "max_w": 8} for name in ("ResizePadMat", "LetterBoxMat", "ResizePadTensor")},
    **{
        name: {"resize_h": 8, "resize_w": 8}
        for name in ("ResizeMat", "PillowResizeMat", "CropResizeMat", "ResizeTensor", "PillowResizeTensor")
    },
}
# What needs another graph beside it.
GRAPHS = {
    "Jump": {"main": {"backend": "Jump", "jump": "inner"}, "inner": {"backend": "Pow"}},
    "MapReduce": {"main": {"backend": "MapReduce", "jump": "inner"}, "inner": {"backend": "Pow"}},
    "Proxy": {"main": {"backend": "Proxy", "proxy": "inner"}, "inner": {"backend": "Pow"}},
}
TAKE_ANYTHING = {"Identity", "Logger", "ThrowIfNoResult", "Sleep", "Add", "Copy", "Move", "Remove", "SyncTensor"}
NEED_A_GPU = {"DecodeTensor", "Mat2GpuTensor", "GpuTensor", "ResizeNormalizeTensor", "TensorrtTensor", "Torch"}
MAY_BE_MISSING = {"OpenvinoTensor"}
CLASSES = sorted({name for name, _, class_name in _BUILT_IN.values() if name == class_name})


def pipe_of(name: str, folder: Any) -> Pipe:
    if name in GRAPHS:
        return Pipe(GRAPHS[name])
    parameters = {"backend": name, **PARAMETERS.get(name, {})}
    if "save_dir" in parameters:
        parameters["save_dir"] = str(folder)
    return Pipe(**parameters)


def chain(error: BaseException | None) -> Iterator[str]:
    """What a log would have of an exception: its text, its notes, and those of what led to it."""
    while error is not None:
        yield str(error)
        yield from getattr(error, "__notes__", ())
        if isinstance(error, ItemErrors):
            for own in error.errors.values():
                yield from chain(own)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("name", CLASSES)
def test_no_error_repeats_a_megabyte_of_a_request(name: str, tmp_path: Any) -> None:
    """Whatever key the value is under: below 2,000 characters, and nothing from the value's end."""
    try:
        pipe = pipe_of(name, tmp_path)
    except (ConfigError, MissingExtra, ImportError):
        assert name in NEED_A_GPU | MAY_BE_MISSING
        pytest.skip("there is no GPU, or no such library")
    failures = 0
    with pipe:
        for key in KEYS:
            for kind, value in HUGE.items():
                for data in ORDINARY if key != "data" else ORDINARY[:1]:
                    request = {"data": data, "box": [0, 0, 4, 4], "affine_matrix": np.eye(2, 3), key: value}
                    if name == "SplitRows":
                        request.setdefault("sizes", [1])
                    try:
                        pipe(request)
                    except Exception as error:
                        failures += 1
                        text = "\n".join(chain(error))
                        assert len(text) < 2000, (key, kind, text[:300])
                        assert MARK not in text, (key, kind)
    assert failures or name in TAKE_ANYTHING


SEVERAL_ROOTS: dict[str, Any] = {"a": {"backend": "Identity"}, "b": {"backend": "Identity"}}
READS_WIDTH: dict[str, Any] = {
    "a": {"backend": "Identity", "next": "b"},
    "b": {"backend": "Identity", "map": "a[result:data,width:x]"},
}
LONG = "a" * 1_000_000 + MARK
MANY_KEYS: dict[str, Any] = {"data": 1, LONG: 1, **{f"{number}{MARK}": 1 for number in range(100_000)}}


@pytest.mark.parametrize(
    ("nodes", "request_"),
    [
        pytest.param(SEVERAL_ROOTS, {"data": 1, "node_name": LONG}, id="a root"),
        pytest.param(SEVERAL_ROOTS, {"data": 1, "node_name": [LONG] * 100}, id="a list for a root"),
        pytest.param(
            {"obey_request_keys": ["restart"], "a": {"backend": "Identity"}}, {"data": 1, "restart": LONG}, id="a loop"
        ),
        pytest.param({"a": {"backend": "Pow", "max": 2, "bucket": "width"}}, MANY_KEYS, id="a bucket"),
        pytest.param(READS_WIDTH, MANY_KEYS, id="a map"),
        pytest.param({"a": {"backend": "Move", "source": "width", "target": "x"}}, MANY_KEYS, id="a key"),
    ],
)
def test_no_error_of_the_engine_repeats_a_megabyte_of_names_or_keys(
    nodes: dict[str, Any], request_: dict[str, Any]
) -> None:
    """Nor is the nearest known name looked for, which would keep the GIL for a second."""
    with Pipe(nodes) as pipe, pytest.raises((UnknownNode, KeyError)) as raised:
        pipe.submit(dict(request_)).result(60)
    text = "\n".join(chain(raised.value))
    assert len(text) < 2000
    assert text.count(MARK) <= MOST_SHOWN


def test_a_short_name_is_told_whole_and_the_nearest_one_with_it() -> None:
    """What is no name is told by its type."""
    with Pipe(SEVERAL_ROOTS) as pipe:
        with pytest.raises(UnknownNode, match=r"request\['node_name'\] is 'B', and no node.*did you mean 'b'\?"):
            pipe({"data": 1, "node_name": "B"})
        with pytest.raises(UnknownNode, match=r"request\['node_name'\] is of type list, and no node has that name"):
            pipe({"data": 1, "node_name": ["b"]})
