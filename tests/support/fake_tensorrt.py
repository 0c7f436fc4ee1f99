"""TensorRT's Python API without TensorRT: every call that the backend uses, and not one more.

It is stricter than the libraries, which take a wrong order for undefined behaviour: what they document as wrong is an
AssertionError here. Engines compute, on the CPU, with the reference implementation of the package onnx, reading and
writing the addresses they were given; a stream is a number.

``make("10")``, ``make("11")`` and ``make("rtx")`` differ as the real ones do. ``NAMES`` is what the real ones must
have.
"""

from __future__ import annotations

import ctypes
import json
import threading
from contextlib import contextmanager
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106", "rtx": "1.7.1.116"}
MODULES = {"10": "tensorrt", "11": "tensorrt", "rtx": "tensorrt_rtx"}

NAMES = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "INetworkDefinition": ["num_inputs", "get_input"],
    "ITensor": ["name", "dtype", "shape", "is_shape_tensor"],
    "OnnxParser": ["parse", "parse_from_file", "num_errors", "get_error"],
    "ParserError": ["desc"],
    "IBuilderConfig": ["add_optimization_profile", "create_timing_cache", "set_timing_cache", "get_timing_cache"],
    "IOptimizationProfile": ["set_shape"],
    "ITimingCache": ["serialize"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_shape",
        "create_execution_context",
    ],
    "IExecutionContext": [
        "set_optimization_profile_async",
        "set_input_shape",
        "get_tensor_shape",
        "set_tensor_address",
        "execute_async_v3",
    ],
}

_DTYPES = {"FLOAT": 1, "HALF": 10, "BF16": 16, "INT8": 3, "INT32": 6, "INT64": 7, "BOOL": 9, "UINT8": 2, "FP8": 17}
_NUMPY = {1: np.float32, 10: np.float16, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 2: np.uint8}


def make(flavour: str) -> SimpleNamespace:
    """Return a fake module; ``world`` of it has what happened."""
    world = World(flavour)

    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        def __init__(self) -> None:
            self._is_made = True

    ILogger.Severity = Severity  # type: ignore[attr-defined]
    world.severity = Severity
    names = [name for name in _DTYPES if name != "FP8"] if flavour == "10" else list(_DTYPES)
    world.dtypes = {_DTYPES[name]: SimpleNamespace(name=name) for name in names}

    def logged(logger: Any) -> Any:
        assert isinstance(logger, ILogger), "a logger of TensorRT's kind is needed"
        assert logger._is_made, "ILogger.__init__ was not called"
        world.logger = logger
        return logger

    module = SimpleNamespace(
        __version__=VERSIONS[flavour],
        ILogger=ILogger,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0 if flavour == "rtx" else 1),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        Builder=lambda logger: Builder(world, logged(logger)),
        OnnxParser=lambda network, logger: OnnxParser(network, logged(logger)),
        Runtime=lambda logger: Runtime(world, logged(logger)),
        world=world,
    )
    return module


class World:
    """The process: what is shared by all objects of one fake module."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.is_rtx = flavour == "rtx"
        self.calls: list[str] = []
        self.streams: set[int] = set()  # those that are entered now
        self.building = threading.Lock()
        self.during_build: Any = lambda: None
        self.timings_given: list[bytes] = []
        self.has_gpu = True
        self.fails: set[str] = set()  # calls that refuse, with a message in the log
        self.dtypes: dict[int, Any] = {}
        self.severity: Any = None
        self.logger: Any = None

    def refuses(self, call: str) -> bool:
        """Note a call; say whether the library is to refuse it, and why in its log."""
        self.calls.append(call)
        if call in self.fails:
            self.complain(f"{call} was made to fail")
        return call in self.fails

    def complain(self, message: str) -> None:
        self.logger.log(self.severity.ERROR, message)


class Builder:
    def __init__(self, world: World, logger: Any) -> None:
        if not world.has_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._world = world

    def create_network(self, flags: int) -> INetworkDefinition:
        typed = 1 << (0 if self._world.is_rtx else 1)
        assert flags == (0 if self._world.flavour == "11" else typed), "networks are strongly typed"
        return INetworkDefinition(self._world)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._world)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        world = self._world
        assert world.building.acquire(blocking=False), "two builds at once"
        try:
            world.during_build()
            if world.refuses("build_serialized_network"):
                return None
            assert network.model is not None, "nothing was parsed"
            assert config.timings is not None or world.is_rtx, "without a timing cache, TensorRT has one of its own"
            for profile in config.profiles:
                network.check(profile)
            if not config.profiles and any(-1 in tensor.shape for tensor in network.inputs):
                world.complain("network has dynamic inputs, but no optimization profile has been defined")
                return None
            head = {"flavour": world.flavour, "profiles": [profile.shapes for profile in config.profiles]}
            return json.dumps(head).encode() + b"\n" + network.model.SerializeToString()
        finally:
            world.building.release()


class INetworkDefinition:
    def __init__(self, world: World) -> None:
        self.world = world
        self.model: Any = None
        self.inputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def check(self, profile: IOptimizationProfile) -> None:
        for tensor in self.inputs:
            assert -1 not in tensor.shape or tensor.name in profile.shapes, f"no shape for {tensor.name}"
            for shape in profile.shapes.get(tensor.name, ()):
                assert len(shape) == len(tensor.shape)
                assert all(declared in (-1, size) for declared, size in zip(tensor.shape, shape, strict=True))


class ITensor:
    def __init__(self, world: World, value: Any) -> None:
        self.name = value.name
        self.dtype = world.dtypes[value.type.tensor_type.elem_type]
        self.shape = _shape(value)
        self.is_shape_tensor = value.name.startswith("shape_of")


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self._errors[index])

    def parse(self, model: bytes) -> bool:
        import onnx

        assert isinstance(model, bytes)
        return self._take(lambda: onnx.load_from_string(model))

    def parse_from_file(self, model: str) -> bool:
        import onnx

        assert isinstance(model, str), "a str, not a Path"
        return self._take(lambda: onnx.load(model))

    def _take(self, load: Any) -> bool:
        network = self._network
        assert network.model is None, "a network is parsed once"
        network.world.calls.append("parse")
        try:
            network.model = load()
        except Exception as error:
            self._errors.append(f"ModelProto cannot be read: {error}")
            return False
        network.inputs = [ITensor(network.world, value) for value in _inputs(network.model)]
        return True


class IBuilderConfig:
    def __init__(self, world: World) -> None:
        self._world = world
        self.profiles: list[IOptimizationProfile] = []
        self.timings: ITimingCache | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if self._world.refuses("add_optimization_profile"):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized: bytes) -> ITimingCache:
        assert not self._world.is_rtx, "deprecated: TensorRT-RTX does not time while it builds"
        self._world.timings_given.append(serialized)
        return ITimingCache(serialized)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self.timings is not None
        return self.timings


class ITimingCache:
    def __init__(self, before: bytes) -> None:
        self._before = before

    def serialize(self) -> bytes:
        return self._before + b"t"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, least: tuple[int, ...], usual: tuple[int, ...], most: tuple[int, ...]) -> None:
        if not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
            raise RuntimeError("Shape provided for opt is inconsistent with other shapes.")
        self.shapes[name] = (least, usual, most)


class Runtime:
    def __init__(self, world: World, logger: Any) -> None:
        self._world = world

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        world = self._world
        if world.refuses("deserialize_cuda_engine"):
            return None
        head, newline, model = bytes(plan).partition(b"\n")
        if not newline or json.loads(head)["flavour"] != world.flavour:
            world.complain("the engine plan file is not compatible with this version")
            return None
        return ICudaEngine(world, json.loads(head)["profiles"], model)


class ICudaEngine:
    def __init__(self, world: World, profiles: list[Any], model: bytes) -> None:
        import onnx
        import onnxruntime

        self.world = world
        self.profiles = profiles
        self.model = onnx.load_from_string(model)
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in _inputs(self.model)}
        self.outputs = {value.name: value for value in self.model.graph.output}
        self._tensors = {**self.inputs, **self.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return self.world.dtypes[self._tensors[name].type.tensor_type.elem_type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(self._tensors[name])

    def create_execution_context(self) -> IExecutionContext | None:
        return None if self.world.refuses("create_execution_context") else IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._world = engine.world
        self._in_use = threading.Lock()
        self._profile: int | None = None
        self._stream: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    @contextmanager
    def _used(self) -> Any:
        assert self._in_use.acquire(blocking=False), "two threads in one context"
        try:
            yield
        finally:
            self._in_use.release()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        with self._used():
            assert stream_handle in self._world.streams, "a stream that is not entered"
            if self._world.refuses("set_optimization_profile_async"):
                return False
            assert profile_index in range(len(self._engine.profiles))
            self._profile, self._stream, self._shapes = profile_index, stream_handle, {}
            return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        with self._used():
            assert self._profile is not None, "the profile comes before shapes"
            least, _, most = self._engine.profiles[self._profile][name]
            is_within = all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))
            if self._world.refuses("set_input_shape") or not is_within:
                self._world.complain(f"{name}: {shape} is outside of the profile")
                return False
            self._shapes[name] = shape
            return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        with self._used():
            assert name in self._engine.outputs
            assert self._shapes.keys() == self._engine.inputs.keys(), "the shapes of all inputs come first"
            if any(node.op_type == "NonZero" for node in self._engine.model.graph.node):
                return _shape(self._engine.outputs[name])
            zeros = {key: np.zeros(shape, self._dtype(key)) for key, shape in self._shapes.items()}
            return tuple(self._evaluate(zeros)[list(self._engine.outputs).index(name)].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._used():
            assert isinstance(memory, int)
            assert memory, f"no memory for {name}"
            if self._world.refuses("set_tensor_address"):
                return False
            self._addresses[name] = memory
            return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._used():
            assert stream_handle in self._world.streams, "a stream that is not entered"
            assert self._shapes.keys() == self._engine.inputs.keys(), "the shapes of all inputs come first"
            assert self._addresses.keys() == {*self._engine.inputs, *self._engine.outputs}, "missing set_tensor_address"
            if self._world.refuses("execute_async_v3"):
                return False
            feed = {name: self._memory(name, shape).copy() for name, shape in self._shapes.items()}
            for name, array in zip(self._engine.outputs, self._evaluate(feed), strict=True):
                self._memory(name, array.shape)[...] = array
            return True

    def _evaluate(self, feed: dict[str, Any]) -> list[Any]:
        outputs: list[Any] = self._engine.session.run(list(self._engine.outputs), feed)
        return outputs

    def _dtype(self, name: str) -> Any:
        value = self._engine.inputs.get(name) or self._engine.outputs[name]
        return _NUMPY[value.type.tensor_type.elem_type]

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(self._dtype(name))
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(ctypes.c_ubyte * size_bytes))
        return np.frombuffer(pointer.contents, dtype).reshape(shape)


def _inputs(model: Any) -> list[Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(d.dim_value if d.dim_value > 0 else -1 for d in value.type.tensor_type.shape.dim)
