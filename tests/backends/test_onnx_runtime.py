"""What OnnxTensor lets its users say of ONNX Runtime: providers, options, custom operators, models of any size."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402
from onnx_models import FLOAT, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.backends.model.onnx_runtime import options as onnx_options  # noqa: E402
from fastpipe.backends.model.onnx_runtime import session as onnx_session  # noqa: E402
from fastpipe.backends.model.onnx_runtime import weights as onnx_weights  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors  # noqa: E402

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def doubling_model():
    """y = x + x."""
    return make_model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})


def answer_of(backend, number=1.0):
    """Return the first number of the answer to a row of one number."""
    batch: list[dict[str, Any]] = [{"data": np.full(4, number, np.float32)}]
    backend.forward(batch)
    return batch[0]["result"][0, 0]


class Sessions:
    """Stands in for a build of ONNX Runtime with a CUDA provider: keeps what sessions are opened with."""

    def __init__(self, monkeypatch, *, starts=True, raises=""):
        self.opened: list[tuple[Any, list[Any]]] = []
        real = onnxruntime.InferenceSession

        class Session(real):  # type: ignore[misc,valid-type]
            def __init__(own, source, options, providers, **more):
                self.opened.append((options, providers))
                own.said = [name for name, _ in providers]
                if raises and CUDA in own.said:
                    raise RuntimeError(raises)
                super().__init__(source, options, providers=[CPU], **more)

            def get_providers(own):
                return [name for name in own.said if starts or name != CUDA]

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


# ---- providers -------------------------------------------------------------------------------------------------------


def test_providers_go_to_the_runtime_in_their_order_each_with_its_options(monkeypatch):
    """As text, as ONNX Runtime takes them."""
    sessions = Sessions(monkeypatch)
    options = {CUDA: {"device_id": 1, "use_tf32": False, "cudnn_conv_algo_search": "HEURISTIC"}}
    assert answer_of(OnnxTensor(model=doubling_model(), providers=[CUDA, CPU], provider_options=options)) == 2
    told = {"device_id": "1", "use_tf32": "False", "cudnn_conv_algo_search": "HEURISTIC"}
    assert [providers for _, providers in sessions.opened] == [[(CUDA, told), (CPU, {})]]


def test_a_file_says_providers_and_options(monkeypatch, tmp_path):
    """The tables of a TOML file, and names with dots in them."""
    sessions = Sessions(monkeypatch)
    (tmp_path / "m.onnx").write_bytes(doubling_model())
    (tmp_path / "pipe.toml").write_text(
        "[double]\n"
        'backend = "OnnxTensor"\n'
        'model = "m.onnx"\n'
        f'providers = ["{CUDA}", "{CPU}"]\n'
        f"provider_options = {{ {CUDA} = {{ device_id = 1 }} }}\n"
        'session_options = { graph_optimization_level = "basic", "session.disable_prepacking" = "1" }\n'
    )
    with fastpipe.Pipe(str(tmp_path / "pipe.toml")) as pipe:
        assert pipe({"data": np.ones(4, np.float32)})["result"].tolist() == [[2, 2, 2, 2]]
    ((options, providers),) = sessions.opened
    assert providers == [(CUDA, {"device_id": "1"}), (CPU, {})]
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


@pytest.mark.parametrize("case", ["missing", "does not start", "raises"])
def test_a_provider_that_cannot_be_had_is_an_error_unless_fallback_is_asked_for(case, monkeypatch, caplog):
    """Then it is left out, and the log says which; the others stay in their order."""
    sessions = Sessions(monkeypatch, starts=case != "does not start", raises="no driver" if case == "raises" else "")
    if case == "missing":
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    expected = {"missing": f"no provider '{CUDA}'", "does not start": "could not be started", "raises": "no driver"}
    with pytest.raises(ConfigError, match=expected[case]):
        OnnxTensor(model=doubling_model(), providers=[CUDA, CPU])
    with caplog.at_level(logging.WARNING):
        backend = OnnxTensor(model=doubling_model(), providers=[CUDA, CPU], fallback=True)
    assert answer_of(backend) == 2
    assert sessions.opened[-1][1][-1] == (CPU, {})
    (record,) = caplog.records
    assert CUDA in record.getMessage()
    assert "left out" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"providers": ["CUDAExecutionProvidr"]}, f"no provider 'CUDAExecutionProvidr'; did you mean '{CUDA}'"),
        ({"providers": [CPU, CPU]}, f"providers has '{CPU}' twice"),
        ({"provider_options": {CUDA: {"device_id": 1}}}, f"has '{CUDA}', which is none of the providers"),
        ({"provider_options": {"CPUExecutionProvder": {}}}, f"none of the providers; did you mean '{CPU}'"),
        ({"provider_options": {CPU: {"device_id": 1}}}, "has no options, got 'device_id'"),
        ({"providers": [CUDA], "provider_options": {CUDA: 1}}, f"must have a table for '{CUDA}', got 1"),
        ({"providers": [CUDA], "provider_options": {CUDA: {"device_id": [1]}}}, r"must be text, a number.*got \[1\]"),
    ],
)
def test_providers_that_cannot_be_meant_are_refused(options, problem, monkeypatch):
    """With the nearest name, where there is one."""
    Sessions(monkeypatch)
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=doubling_model(), **options)


# ---- options of sessions and runs ------------------------------------------------------------------------------------


def test_options_reach_the_session(monkeypatch):
    """Levels and modes by their names; what fastpipe sets by itself stays where nothing else is said."""
    sessions = Sessions(monkeypatch)
    options = {
        "graph_optimization_level": "extended",
        "execution_mode": "parallel",
        "inter_op_num_threads": 2,
        "enable_mem_pattern": False,
        "enable_cpu_mem_arena": False,
        "session.intra_op.allow_spinning": True,
        "free_dimension_overrides": {"n": 3},
    }
    OnnxTensor(model=doubling_model(), session_options=options, threads=4, warm_up=False)
    OnnxTensor(model=doubling_model(), threads=4)
    said, plain = [session[0] for session in sessions.opened]
    assert said.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert said.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert (said.inter_op_num_threads, said.intra_op_num_threads) == (2, 2)
    assert (plain.inter_op_num_threads, plain.intra_op_num_threads) == (1, 4)
    assert (said.enable_mem_pattern, said.enable_cpu_mem_arena) == (False, False)
    assert said.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert plain.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (plain.log_severity_level, plain.enable_mem_pattern) == (4, True)


@pytest.mark.parametrize("prefix", [{}, {"profile_file_prefix": "mine"}])
def test_each_instance_writes_a_profile_of_its_own(prefix, monkeypatch, tmp_path):
    """Once it is closed; ONNX Runtime would name both by the second in which they began."""
    monkeypatch.chdir(tmp_path)
    with fastpipe.Pipe(
        backend="OnnxTensor",
        model=doubling_model(),
        instance_num=2,
        session_options={"enable_profiling": True, **prefix},
    ) as pipe:
        assert pipe({"data": np.ones(4, np.float32)})["result"].tolist() == [[2] * 4]
    del pipe
    gc.collect()
    begin = prefix.get("profile_file_prefix", "onnxruntime_profile")
    assert [path.name.startswith(f"{begin}-{os.getpid()}-") for path in tmp_path.iterdir()] == [True, True]


def test_an_axis_can_be_fixed():
    """It is then the model's own: a batch of exactly two, padded."""
    sizes = []
    backend = OnnxTensor(
        model=doubling_model(),
        session_options={"free_dimension_overrides": {"n": 2}},
        postprocessor=lambda outputs, batch: [sizes.append(len(outputs[0])) or row for row in outputs[0]],
    )
    assert backend.max_batch == 2
    backend.forward([{"data": np.ones(4, np.float32)}])
    assert sizes == [1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"graph_optimisation_level": "all"}, "no 'graph_optimisation_level'; did you mean 'graph_optimization_level'"),
        ({"graph_optimization_level": "al"}, "one of disable, basic, extended.* got 'al'; did you mean 'all'"),
        ({"session.disable_prepakking": "1"}, "no 'session.disable_prepakking'; did you mean 'session.disable_prepack"),
        ({"session.disable_prepacking": 1.5}, "must be text, a whole number or a truth value, got 1.5"),
        ({"enable_mem_pattern": "yes"}, "'enable_mem_pattern' must be true or false, got 'yes'"),
        ({"intra_op_num_threads": 2}, "'intra_op_num_threads' is not for you to set here: threads says"),
        ({"inter_op_num_threads": 2}, "needs execution_mode = 'parallel'"),
        ({"execution_mode": "parallel"}, "needs inter_op_num_threads"),
        ({"optimized_model_filepath": "o.onnx"}, "write that file once, with ONNX Runtime"),
        ({"free_dimension_overrides": {"n": 0}}, "must be a table from names of axes to sizes"),
        ({"log_severity_level": 7}, "whole number from 0"),
        ({"session." + "x" * 2000: "1"}, "knows no 'session.xxx"),
    ],
)
def test_options_of_sessions_that_do_not_exist_are_refused(options, problem):
    """ONNX Runtime would take any name with a dot, and do nothing with it."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=doubling_model(), session_options=options)


def test_all_that_is_wrong_is_said_at_once():
    """Of providers, sessions, runs and libraries."""
    with pytest.raises(ConfigError) as caught:
        OnnxTensor(
            model=doubling_model(),
            provider_options={CUDA: {}},
            session_options={"nothing": 1, "logid": 3},
            run_options={"nothing": 1},
            custom_ops=["missing.so"],
        )
    assert len(caught.value.problems) == 6


def test_an_entry_that_only_the_installed_library_knows_is_taken(monkeypatch):
    """Versions add entries; they are looked for in the library itself."""
    monkeypatch.setattr(onnx_options, "_DOCUMENTED", ())
    name = "optimization.enable_gelu_approximation"
    assert answer_of(OnnxTensor(model=doubling_model(), session_options={name: "0"})) == 2
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        OnnxTensor(model=doubling_model(), session_options={name + "s": "0"})


def test_options_of_runs_reach_every_run():
    """An arena that there is can be shrunk after each; one that there is not fails the warm-up, with its name."""
    name = "memory.enable_memory_arena_shrinkage"
    assert answer_of(OnnxTensor(model=doubling_model(), run_options={name: "cpu:0"})) == 2
    with pytest.raises(ConfigError, match="cpu:7"):
        OnnxTensor(model=doubling_model(), max=2, run_options={name: "cpu:7"})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"memory.enable_memory_arena_shrinkag": "cpu:0"}, "did you mean 'memory.enable_memory_arena_shrinkage'"),
        ({"terminate": True}, "'terminate' is not for you to set here"),
        ({"only_execute_path_to_fetches": 1}, "run_options: 'only_execute_path_to_fetches' must be true or false"),
        ({"memory.enable_memory_arena_shrinkage": ["cpu:0"]}, "must be text"),
    ],
)
def test_options_of_runs_that_do_not_exist_are_refused(options, problem):
    """By the names that there are."""
    with pytest.raises(ConfigError, match=problem):
        OnnxTensor(model=doubling_model(), run_options=options)


def test_options_in_the_metadata_of_a_file_never_take_the_place_of_the_callers(monkeypatch):
    """They count only with an environment variable, and then the model is refused; without it nothing is read."""
    model = onnx.load_from_string(doubling_model())
    helper.set_model_props(model, {"ort_config": '{"session_options": {"intra_op_num_threads": 1}}'})
    content = model.SerializeToString()
    assert answer_of(OnnxTensor(model=content)) == 2
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    with pytest.raises(ConfigError, match=r"'ort_config'.*unset it"):
        OnnxTensor(model=content)
    assert answer_of(OnnxTensor(model=doubling_model())) == 2


# ---- operators of one's own ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library with the operator ``fastpipe.test::Twice``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("operators") / "twice.so"
    source = str(SUPPORT / "custom_operator.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", str(path)], check=True)
    return path


def twice_model():
    """y = Twice(x + x), by an operator that ONNX Runtime does not have."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["two"]),
        helper.make_node("Twice", ["two"], ["y"], domain="fastpipe.test"),
    ]
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("fastpipe.test", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_operators_of_a_library_are_run(library, precision):
    """In batches, several sessions of one library, and where the graph is changed."""
    options = {"model": twice_model(), "custom_ops": [library], "trusted": True, "max": 3, "precision": precision}
    for backend in (OnnxTensor(**options), OnnxTensor(**options)):
        batch = [{"data": np.full(4, number, np.float32)} for number in (1, 2, 3)]
        backend.forward(batch)
        assert [request["result"][0, 0] for request in batch] == [4, 8, 12]


def test_a_library_is_loaded_only_if_it_is_trusted(library, tmp_path):
    """Its code is run as soon as it is loaded. Without it, the model cannot be."""
    with pytest.raises(ConfigError, match=r"custom_ops: loading .*twice\.so.* runs whatever code.*trusted=true"):
        OnnxTensor(model=twice_model(), custom_ops=[library])
    with pytest.raises(ConfigError, match="ONNX Runtime cannot load it"):
        OnnxTensor(model=twice_model())
    (tmp_path / "none.so").write_bytes(b"no library")
    with pytest.raises(ConfigError, match=r"custom_ops: '.*none\.so' cannot be loaded"):
        OnnxTensor(model=twice_model(), custom_ops=[tmp_path / "none.so"], trusted=True)
    with pytest.raises(ConfigError, match=r"custom_ops: there is nothing at .*not a file"):
        OnnxTensor(model=twice_model(), custom_ops=[tmp_path / "missing.so"], trusted=True)


def test_the_path_of_a_library_is_relative_to_the_file(library, tmp_path):
    """As all paths of a configuration."""
    shutil.copy(library, tmp_path / "twice.so")
    (tmp_path / "m.onnx").write_bytes(twice_model())
    (tmp_path / "pipe.toml").write_text(
        '[twice]\nbackend = "OnnxTensor"\nmodel = "m.onnx"\ncustom_ops = ["twice.so"]\ntrusted = true\n'
    )
    with fastpipe.Pipe(str(tmp_path / "pipe.toml")) as pipe:
        assert pipe({"data": np.ones(4, np.float32)})["result"].tolist() == [[4, 4, 4, 4]]


# ---- models that one file cannot hold --------------------------------------------------------------------------------


def wide_model():
    """An image, flattened, times weights of 134 kB."""
    random = np.random.default_rng(5)
    weights = random.normal(size=(48, 700)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["y"]),
    ]
    return make_model(nodes, {"x": ["n", 3, 4, 4]}, {"y": ["n", 700]}, {"weights": weights})


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize(
    "options", [{"mean": [1.0]}, {"precision": "fp16"}, {"precision": "fp16", "std": [2.0]}, {"fuse": True}]
)
def test_a_model_too_large_for_one_file_is_changed_all_the_same(options, beside, monkeypatch, tmp_path):
    """The limit is protobuf's 2 GB; here it is a few kilobytes. Answers are the same, and no file stays."""
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(wide_model())
    onnx.save(model, path, save_as_external_data=beside, location="model.data", size_threshold=0)
    image = np.random.default_rng(6).normal(size=(3, 4, 4)).astype(np.float32)
    expected, got = {"data": image}, {"data": image}
    OnnxTensor(model=path, max=2, **options).forward([expected])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(onnx_weights, "LARGEST_MESSAGE", 10_000)
    large = OnnxTensor(model=path, max=2, **options)
    large.forward([got])
    np.testing.assert_array_equal(got["result"], expected["result"])
    assert os.listdir(tmp_path / "temporary") == []


def test_a_large_model_is_not_handed_to_shape_inference(monkeypatch):
    """Its weights are taken out meanwhile, and are back afterwards."""
    seen = []
    real = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes", lambda model: seen.append(len(model.SerializeToString())) or real(model)
    )
    before = onnx.load_from_string(wide_model())
    after = onnx_weights.with_types(onnx.load_from_string(wide_model()))
    assert seen[0] < 1000
    assert after.graph.initializer[0].SerializeToString() == before.graph.initializer[0].SerializeToString()
    assert {value.name for value in after.graph.value_info} == {"flat", "wide"}


# ---- tensors on a GPU ------------------------------------------------------------------------------------------------


@pytest.fixture
def torch(monkeypatch):
    """Return torch, whose CPU stands in for a GPU: its tensors are bound by their addresses, as a GPU's would be."""
    found = pytest.importorskip("torch")
    if not hasattr(onnxruntime.OrtValue, "__dlpack__"):
        pytest.skip("this ONNX Runtime does not hand over tensors")
    monkeypatch.setattr(onnx_session, "GPUS", {CPU: "cpu"})
    return found


@pytest.fixture
def bound(monkeypatch):
    """Return a list that gets the shapes of the inputs of each run on tensors."""
    shapes = []
    real = onnx_session.RuntimeSession._run_bound

    def run(self, names, feeds):
        shapes.append([tuple(value.shape) for value in feeds.values()])
        return real(self, names, feeds)

    monkeypatch.setattr(onnx_session.RuntimeSession, "_run_bound", run)
    return shapes


def run_on(backend, *data):
    """Run the data as one batch and return the results."""
    batch: list[dict[str, Any]] = [{"data": item} for item in data]
    backend.forward(batch)
    return [request["result"] for request in batch]


def test_tensors_on_the_models_device_are_not_brought_to_numpy(torch, bound):
    """In batches, with and without a batch axis, padded; results are tensors of their own."""
    backend = OnnxTensor(model=doubling_model(), max=4, min=3)
    data = [torch.full((4,), 1.0), torch.full((1, 4), 2.0)]
    results = run_on(backend, *data)
    assert bound == [[(3, 4)]]
    assert [result.tolist() for result in results] == [[[2] * 4], [[4] * 4]]
    kept = results[0].clone()
    more = run_on(backend, torch.full((4,), 9.0))
    assert (results[0] == kept).all()
    assert more[0].data_ptr() != results[0].data_ptr()
    assert [item.tolist() for item in data] == [[1] * 4, [[2] * 4]]


def test_a_chain_of_models_stays_on_the_device(torch, bound):
    """The second takes what the first gives, without a step in between."""
    with fastpipe.Pipe(backend="S[OnnxTensor,OnnxTensor]", model=doubling_model(), max=2) as pipe:
        assert pipe({"data": torch.full((4,), 3.0)})["result"].tolist() == [[12] * 4]
    assert bound == [[(1, 4)], [(1, 4)]]


def test_an_output_that_is_its_input_is_a_copy(torch, bound):
    """What the caller brought is not handed to somebody else."""
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    given = torch.ones((1, 4))
    (result,) = run_on(OnnxTensor(model=model), given)
    result[:] = 5
    assert given.tolist() == [[1] * 4]
    assert len(bound) == 1


def test_arrays_and_tensors_share_no_run(torch, bound):
    """Each comes back as what it came."""
    backend = OnnxTensor(model=doubling_model(), max=4)
    results = run_on(backend, np.ones(4, np.float32), torch.ones(4), np.zeros(4, np.float32))
    assert [type(result).__module__ for result in results] == ["numpy", "torch", "numpy"]
    assert bound == [[(1, 4)]]
    assert len({backend.bucket({"data": each}) for each in (np.ones(4, np.float32), torch.ones(4))}) == 2


@pytest.mark.parametrize("axis", [1, 2])
def test_tensors_with_the_batch_elsewhere_are_joined_there(torch, bound, axis):
    """And given back so, of any strides."""
    shape = [2, 3, 3]
    shape[axis] = "batch"
    model = make_model([helper.make_node("Neg", ["x"], ["y"])], {"x": shape}, {"y": shape})
    items = [torch.arange(6.0).reshape(3, 2).T.unsqueeze(axis), torch.ones(2, 3).unsqueeze(axis)]
    results = run_on(OnnxTensor(model=model, max=2), *items)
    assert [result.tolist() for result in results] == [(-item).tolist() for item in items]
    assert len(bound) == 1


def test_nothing_is_converted_on_the_device(torch):
    """A step before has to; its request fails alone."""
    backend = OnnxTensor(model=doubling_model(), max=2)
    batch: list[dict[str, Any]] = [{"data": torch.ones(4)}, {"data": torch.ones(4, dtype=torch.float64)}]
    with pytest.raises(ItemErrors, match=r"got torch\.float64 on cpu, where nothing is converted") as caught:
        backend.forward(batch)
    assert caught.value.errors.keys() == {1}
    assert batch[0]["result"].tolist() == [[2] * 4]


def test_the_device_is_the_first_providers(monkeypatch):
    """With its number; none where a value is text, or the provider computes on the CPU."""
    Sessions(monkeypatch)
    options = {"model": doubling_model(), "provider_options": {CUDA: {"device_id": 1}}}
    has_dlpack = hasattr(onnxruntime.OrtValue, "__dlpack__")
    assert OnnxTensor(**options, providers=[CUDA, CPU])._session.device == ("cuda:1" if has_dlpack else None)
    assert OnnxTensor(model=doubling_model())._session.device is None
