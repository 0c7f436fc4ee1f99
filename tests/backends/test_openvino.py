"""OpenvinoTensor: OnnxTensor's models, with its answers, run by OpenVINO."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import color_model, detector_model, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.openvino import OpenvinoTensor  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors  # noqa: E402

CAPABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convolution_model():
    """A 3x3 convolution and a ReLU, of an image of any size."""
    weights = np.random.default_rng(7).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["y"]),
    ]
    return make_model(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 8, "h", "w"]}, {"weights": weights})


def run(backend, *data):
    """Run the data as one batch and return the results."""
    batch: list[dict[str, Any]] = [{"data": item} for item in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def test_a_state_goes_from_run_to_run():
    """Each sequence its own, on another axis than the first; it is OnnxTensor's code."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("ReduceSum", ["hn", "first"], ["y"], keepdims=0),
    ]
    outputs = {"y": ["batch", 3], "hn": [2, "batch", 3]}
    model = make_model(nodes, {"x": ["batch", 3], "h": [2, "batch", 3]}, outputs, {"first": np.array([0])})
    keys = {"model": model, "state": {"h": "hn"}, "state_of": "id", "max": 4}
    with fastpipe.Pipe(backend="OpenvinoTensor", **keys) as pipe:
        futures = [
            pipe.submit({"data": np.full(3, number, np.float32), "id": key}) for number in (1, 2, 3) for key in "ab"
        ]
        sums = [future.result(20)["result"][0, 0] for future in futures]
    assert sums == [2, 2, 6, 6, 12, 12]


def images(*sizes):
    """Return pixels, one image for each size."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (3, *size)).astype(np.float32) for size in sizes]


# ---- the same as OnnxTensor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mean": [127.5], "std": [58.0]}, {"fuse": True}, {"min": 2}])
def test_answers_are_those_of_onnx_runtime(options):
    """Alone and in batches, of several shapes, in float32."""
    data = images((6, 8), (9, 5), (6, 8), (6, 8))
    wanted = run(OnnxTensor(model=convolution_model(), max="4x3x9x9", **options), *data)
    backend = OpenvinoTensor(model=convolution_model(), max="4x3x9x9", **options)
    for results in (run(backend, *data), [run(backend, item)[0] for item in data]):
        for result, expected in zip(results, wanted, strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
            assert result.dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.BOOL, bool),
        (TensorProto.INT8, np.int8),
        (TensorProto.UINT8, np.uint8),
        (TensorProto.INT32, np.int32),
        (TensorProto.INT64, np.int64),
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.DOUBLE, np.float64),
    ],
)
def test_types_of_inputs_and_outputs_stay(kind, dtype):
    """OpenVINO computes some of them in others, within."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    model = make_model([node], {"x": (kind, ["n", 2])}, {"y": (kind, ["n", 4])})
    (result,) = run(OpenvinoTensor(model=model), np.array([0, 1], dtype))
    assert (result.dtype, result.tolist()) == (np.dtype(dtype), [[0, 1, 0, 1]])


def test_scalars_several_inputs_and_chosen_outputs_go_as_they_come():
    """With max = 1, as OnnxTensor has it."""
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"]), helper.make_node("Add", ["x", "scale"], ["z"])]
    model = make_model(nodes, {"x": ["n", 2], "scale": []}, {"y": ["n", 2], "z": ["n", 2]})
    data = {"x": np.ones((3, 2), np.float32), "scale": np.float32(5)}
    assert [each.tolist() for each in run(OpenvinoTensor(model=model), data)[0]] == [[[5, 5]] * 3, [[6, 6]] * 3]
    assert run(OpenvinoTensor(model=model, outputs=["z"]), data)[0].tolist() == [[6, 6]] * 3


def test_an_empty_axis_is_run_where_min_says_so():
    """Pictures without boxes."""
    model = make_model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": ["n", "w", 4]}, {"y": ["n", "w", 4]})
    backend = OpenvinoTensor(model=model, max=2, min="1x0x4")
    assert [result.shape for result in run(backend, *[np.zeros((0, 4), np.float32)] * 2)] == [(1, 0, 4)] * 2


def test_names_of_axes_are_read_from_the_file():
    """OpenVINO has none: where the batch is behind another axis, and where it is in front."""
    node = helper.make_node("Concat", ["state", "state"], ["y"], axis=2)
    model = make_model([node], {"state": [2, "batch", 3]}, {"y": [2, "batch", 6]})
    backend = OpenvinoTensor(model=model, max=3)
    results = run(backend, *[np.full((2, 1, 3), number, np.float32) for number in (1, 2)])
    assert [(result.shape, result.max()) for result in results] == [((2, 1, 6), 1), ((2, 1, 6), 2)]


def test_a_model_that_mixes_its_rows_is_refused():
    """By the same trials."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    model = make_model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(ConfigError, match="there is no proof"):
        OpenvinoTensor(model=model, max=3)


def test_results_and_data_are_the_callers_own():
    """A result stays when the next batch runs; what came in is as it was, also where it is read-only."""
    backend = OpenvinoTensor(model=convolution_model(), max=2)
    (image,) = images((4, 4))
    image.flags.writeable = False
    first = run(backend, image)[0]
    kept = first.copy()
    second = run(backend, image * 2)[0]
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    first[:] = 0
    backend.close()
    assert second.max() > 0


def test_a_graph_detects_and_classifies_under_many_callers():
    """Two models, a postprocessor, a file's keys: as the example with OnnxTensor, with the same answers."""
    answers = []
    image = images((64, 64))[0] / 255
    for backend in ("OnnxTensor", "OpenvinoTensor"):
        graph = {
            "detect": {
                "backend": backend,
                "model": detector_model(),
                "max": 4,
                "instance_num": 2,
                "threads": 2,
                "postprocessor": {"name": "YoloV8", "score_threshold": 0.4, "iou_threshold": 0.9},
            }
        }
        with fastpipe.Pipe(graph) as pipe:
            futures = [pipe.submit({"data": image}) for _ in range(8)]
            found = [(each.result()["result"], each.result()["scores"]) for each in futures]
        answers.append(found)
    for boxes_and_scores in zip(*answers, strict=True):
        for found, wanted in zip(*boxes_and_scores, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_request_that_does_not_fit_fails_alone():
    """With OnnxTensor's words."""
    batch: list[dict[str, Any]] = [{"data": each} for each in (*images((4, 4)), np.zeros((2, 4, 4), np.float32))]
    with pytest.raises(
        ItemErrors, match=r"input 'x': expected float32 of shape \(3, .*got float32 of shape \(2, 4, 4\)"
    ):
        OpenvinoTensor(model=convolution_model(), max=2).forward(batch)
    assert "result" in batch[0]


# ---- OpenVINO's own --------------------------------------------------------------------------------------------------


def compiled_with(monkeypatch):
    """Return a list that gets the settings of each model that is compiled from now on."""
    settings = []
    real = openvino.Core.compile_model

    def compile_model(self, model, device, config):
        settings.append(config)
        return real(self, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    return settings


def test_nothing_but_float32_is_computed_without_being_asked_for(monkeypatch):
    """Whatever the processor has; and nothing is quantised."""
    settings = compiled_with(monkeypatch)
    OpenvinoTensor(model=color_model())
    assert settings[0]["INFERENCE_PRECISION_HINT"] == "f32"
    assert settings[0]["EXECUTION_MODE_HINT"] == "ACCURACY"
    compiled = openvino.Core().compile_model(openvino.Core().read_model(color_model()), "CPU", settings[0])
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


@pytest.mark.parametrize(("precision", "capability"), [("bf16", "BF16"), ("fp16", "FP16")])
def test_half_precision_is_computed_where_the_processor_has_it(precision, capability):
    """Inputs and outputs keep their types; elsewhere it is refused, with what there is."""
    if capability not in CAPABILITIES:
        with pytest.raises(ConfigError, match=f"precision='{precision}' needs a processor .* this one has .*FP32"):
            OpenvinoTensor(model=convolution_model(), precision=precision)
        return
    (image,) = images((8, 8))
    (exact,) = run(OnnxTensor(model=convolution_model()), image)
    (half,) = run(OpenvinoTensor(model=convolution_model(), precision=precision, max=2), image)
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert half.dtype == np.float32
    assert 0 < error < 0.02


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    """Also where this one has it."""
    real = openvino.Core.get_property
    monkeypatch.setattr(
        openvino.Core,
        "get_property",
        lambda self, device, name: ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else real(self, device, name),
    )
    with pytest.raises(ConfigError, match="precision='bf16' needs a processor with such arithmetic; this one has FP32"):
        OpenvinoTensor(model=color_model(), precision="bf16")


def test_instances_share_the_threads(monkeypatch):
    """Without being bound to CPUs."""
    settings = compiled_with(monkeypatch)
    OpenvinoTensor(model=color_model(), threads=6, instance_num=2)
    OpenvinoTensor(model=color_model(), threads=1, instance_num=2)
    assert [each["INFERENCE_NUM_THREADS"] for each in settings] == [3, 1]
    assert {each["ENABLE_CPU_PINNING"] for each in settings} == {False}


def test_the_gil_is_released_while_the_model_runs():
    """Another thread counts on meanwhile."""
    weights = np.ones((1200, 1200), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    nodes += [helper.make_node("MatMul", [name, "w"], [to]) for name, to in ("ab", "bc", "cd", "dy")]
    model = make_model(nodes, {"x": ["n", 1200, 1200]}, {"y": ["n", 1200, 1200]}, {"w": weights})
    backend = OpenvinoTensor(model=model, threads=1, warm_up=False)
    counted, is_over = [0], threading.Event()

    def count():
        while not is_over.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        backend._compute([np.ones((1, 1200, 1200), np.float32)])
        during = counted[0] - before
    finally:
        is_over.set()
        thread.join()
    assert during > 10_000


def test_compiled_models_are_kept_in_a_folder(tmp_path):
    """The answers of one that is read from there are the same."""
    options = {"model": convolution_model(), "cache_dir": tmp_path / "cache"}
    (image,) = images((4, 4))
    first = run(OpenvinoTensor(**options), image)[0]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept
    np.testing.assert_array_equal(run(OpenvinoTensor(**options), image)[0], first)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == kept


def test_an_encrypted_model_is_not_written_down(tmp_path):
    """Not even compiled."""
    pytest.importorskip("cryptography")
    from fastpipe.backends.model.encrypted import encrypt_model

    key = bytes(32)
    (tmp_path / "m.onnx").write_bytes(color_model())
    encrypt_model(tmp_path / "m.onnx", tmp_path / "m.encrypted", key)
    options = {"model": tmp_path / "m.encrypted", "model_key": lambda: key}
    with pytest.raises(ConfigError, match="it is encrypted, and cache_dir would write it down"):
        OpenvinoTensor(**options, cache_dir=tmp_path / "cache")
    assert run(OpenvinoTensor(**options), np.ones((3, 8, 8), np.float32))[0].tolist() == [[1, 1, 1]]


def test_other_properties_reach_openvino(monkeypatch):
    """Those that fastpipe sets by itself, too, where nothing else decides them."""
    settings = compiled_with(monkeypatch)
    OpenvinoTensor(model=color_model(), properties={"ENABLE_CPU_PINNING": True, "PERF_COUNT": True})
    assert (settings[0]["ENABLE_CPU_PINNING"], settings[0]["PERF_COUNT"]) == (True, True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"properties": {"ENABLE_CPU_PINING": True}},
            "CPU has no 'ENABLE_CPU_PINING'; did you mean 'ENABLE_CPU_PINNING'",
        ),
        ({"properties": {"NUM_STREAMS": 2}}, "'NUM_STREAMS' is not for you to set here: instance_num says"),
        ({"properties": {"SUPPORTED_PROPERTIES": 1}}, "has no 'SUPPORTED_PROPERTIES'"),
        ({"properties": {"PERF_COUNT": "perhaps"}}, "OpenVINO cannot load it: .*PERF_COUNT"),
        ({"max": "2x3x9x9"}, "max is 9 in axis 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, problem):
    """When the pipe is built."""
    with pytest.raises(ConfigError, match=problem):
        OpenvinoTensor(model=color_model(), **options)


def test_what_openvino_does_not_take_is_refused_in_one_line():
    """Without the places in its source; kinds that OnnxTensor may take are named."""
    with pytest.raises(ConfigError, match=r"OpenVINO cannot load it: .*Twice") as caught:
        OpenvinoTensor(model=unknown_operator())
    assert "Exception from" not in str(caught.value)
    assert "\n" not in str(caught.value)
    node = helper.make_node("Identity", ["x"], ["y"])
    model = make_model([node], {"x": (TensorProto.STRING, ["n"])}, {"y": (TensorProto.STRING, ["n"])})
    with pytest.raises(ConfigError, match="'x' is of OpenVINO's type string, which is not taken here; OnnxTensor may"):
        OpenvinoTensor(model=model)


def unknown_operator():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    node = helper.make_node("Twice", ["x"], ["y"], domain="fastpipe.test")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("fastpipe.test", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
