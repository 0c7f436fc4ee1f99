"""TensorRT 10 and 11, and TensorRT-RTX, behind the few calls that are the same in all of them.

    library = find_library()
    plan, _ = library.build(model, choose_profiles)
    context = library.load(plan).context(0)
    shapes = context.set_input_shapes([(8, 3, 224, 224)])
    context.run(addresses, stream)

Networks are strongly typed: an engine computes in the types that the ONNX file says, as TensorRT 11 and TensorRT-RTX
always do. What TensorRT has to say goes to ``logging``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastpipe.errors import BackendError, ConfigError, MissingExtra

__all__ = ["Context", "Engine", "Library", "ProfileShapes", "TensorInfo", "find_library"]

_log = logging.getLogger(__name__)
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
# One build at a time in a process: TensorRT's builder is not asked to work on several threads at once.
_build_lock = threading.Lock()

Shape = tuple[int, ...]
ProfileShapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input -> its least, its usual and its largest shape."""


class TensorInfo(NamedTuple):
    """An input or output of a network or an engine."""

    name: str
    dtype: str  # as NumPy or torch call it
    shape: Shape  # -1: open


def find_library() -> Library:
    """Return TensorRT, or else TensorRT-RTX.

    Raises:
        MissingExtra: if neither can be imported.
    """
    try:
        return Library(importlib.import_module("tensorrt"), "TensorRT")
    except ImportError as error:
        missing = error
    try:
        return Library(importlib.import_module("tensorrt_rtx"), "TensorRT-RTX")
    except ImportError:
        raise MissingExtra("TensorrtTensor", "tensorrt", missing) from missing


class Library:
    """One of the libraries.

    Thread-safety: any thread may call it; builds of the whole process come one after the other.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        title: how messages call it: TensorRT or TensorRT-RTX.
    """

    def __init__(self, module: Any, title: str) -> None:
        self._module = module
        self.title = title
        self.version: str = module.__version__
        self.is_rtx = title != "TensorRT"
        self._messages = _make_messages(module, title)

    def build(
        self,
        model: Path | bytes,
        choose_profiles: Callable[[list[TensorInfo]], Sequence[ProfileShapes]],
        timings: bytes = b"",
    ) -> tuple[bytes, bytes]:
        """Return an engine's plan for the current GPU, and what was measured on the way; takes seconds to minutes.

        Args:
            model: an ONNX file, which may have weights in files beside it, or the content of one.
            choose_profiles: gets the network's inputs and returns the shapes of each profile.
            timings: what an earlier build with this library on such a GPU measured.

        Raises:
            ConfigError: if the model cannot be parsed or built; the message has TensorRT's reasons.
        """
        with _build_lock:
            self._messages.forget()
            try:
                return self._build(model, choose_profiles, timings)
            except (RuntimeError, TypeError) as error:  # what the bindings make of a failure in C++
                raise self._refusal("cannot build an engine", error) from error

    def _build(
        self,
        model: Path | bytes,
        choose_profiles: Callable[[list[TensorInfo]], Sequence[ProfileShapes]],
        timings: bytes,
    ) -> tuple[bytes, bytes]:
        trt = self._module
        builder = trt.Builder(self._messages)
        network = builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self._messages)
        if not (parser.parse(model) if isinstance(model, bytes) else parser.parse_from_file(str(model))):
            reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            raise ConfigError(f"{self.title} {self.version} cannot parse it: {'; '.join(reasons) or 'no reason given'}")
        inputs = [self._info(tensor) for tensor in map(network.get_input, range(network.num_inputs))]
        config = builder.create_builder_config()
        for shapes in choose_profiles(inputs):
            profile = builder.create_optimization_profile()
            for name, (least, usual, largest) in shapes.items():
                profile.set_shape(name, least, usual, largest)
            if config.add_optimization_profile(profile) < 0:
                raise self._refusal(f"refuses a profile with the shapes {dict(shapes)}")
        if not self.is_rtx:  # which measures on the GPU that runs the engine, and not while it builds
            config.set_timing_cache(config.create_timing_cache(timings), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refusal("cannot build an engine")
        return bytes(plan), b"" if self.is_rtx else bytes(config.get_timing_cache().serialize())

    def load(self, plan: bytes) -> Engine:
        """Return an engine on the current GPU.

        Raises:
            ConfigError: if the plan is none of this library's, this GPU's and this version's.
        """
        self._messages.forget()
        try:
            runtime = self._module.Runtime(self._messages)
            engine = runtime.deserialize_cuda_engine(plan)
        except (RuntimeError, TypeError) as error:
            raise self._refusal("cannot load the engine", error) from error
        if engine is None:
            raise self._refusal("cannot load the engine")
        return Engine(self, engine, runtime)

    def failure(self, what: str) -> BackendError:
        """Return the error for a call that failed while a model ran, with TensorRT's reasons."""
        return BackendError(f"{self.title}: {what}{self._reasons()}")

    def describe(self, engine: Any, name: str) -> TensorInfo:
        """Return what an engine says of one of its tensors."""
        return TensorInfo(name, self._dtype(name, engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))

    def is_input(self, engine: Any, name: str) -> bool:
        """Say whether a tensor of an engine goes in."""
        return bool(engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT)

    def _network_flags(self) -> int:
        # In TensorRT 11 every network is, and saying so is deprecated.
        if not self.is_rtx and int(self.version.split(".")[0]) >= 11:
            return 0
        return 1 << int(self._module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _info(self, tensor: Any) -> TensorInfo:
        if tensor.is_shape_tensor:
            raise ConfigError(f"its input {tensor.name!r} is the shape of something, which has to lie on the CPU")
        return TensorInfo(tensor.name, self._dtype(tensor.name, tensor.dtype), tuple(tensor.shape))

    def _dtype(self, name: str, dtype: Any) -> str:
        found = _DTYPES.get(dtype.name)
        if found is None:
            raise ConfigError(f"{name!r} is of type {dtype.name}, which cannot go in or out")
        return found

    def _refusal(self, what: str, error: Exception | None = None) -> ConfigError:
        given = f" ({error})" if error is not None else ""
        return ConfigError(f"{self.title} {self.version} {what}{given}{self._reasons()}")

    def _reasons(self) -> str:
        errors = self._messages.errors()
        return f": {'; '.join(errors)}" if errors else "; it gave no reason"


class Engine:
    """A loaded model; contexts made of it share its weights.

    Thread-safety: any thread may call it.
    """

    def __init__(self, library: Library, engine: Any, runtime: Any) -> None:
        self._library = library
        self._engine = engine
        self._runtime = runtime  # must live as long as the engine does
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        tensors = [(library.describe(engine, name), library.is_input(engine, name)) for name in names]
        self.inputs = [tensor for tensor, is_input in tensors if is_input]
        self.outputs = [tensor for tensor, is_input in tensors if not is_input]

    def context(self, profile_index: int) -> Context:
        """Return what runs the engine in one profile, with memory of its own for what is computed on the way.

        Raises:
            BackendError: if there is too little memory.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise self._library.failure("there is no context to run the engine in, most likely for want of memory")
        return Context(self._library, self, context, profile_index)


class Context:
    """Runs an engine in one profile. TensorRT is told only what has changed since the last run.

    Thread-safety: one thread at a time, on one stream at a time.
    """

    def __init__(self, library: Library, engine: Engine, context: Any, profile_index: int) -> None:
        self._library = library
        self._context = context
        self._inputs = [tensor.name for tensor in engine.inputs]
        self._outputs = [tensor.name for tensor in engine.outputs]
        self._profile_index = profile_index
        self._has_profile = False
        self._input_shapes: list[Shape | None] = [None] * len(self._inputs)
        self._output_shapes: list[Shape] = []
        self._addresses: dict[str, int] = {}

    def set_input_shapes(self, shapes: Sequence[Shape], stream: int) -> list[Shape]:
        """Say what the next run gets; return what it will give.

        Args:
            shapes: of the inputs, in the engine's order, batch axis included.
            stream: the handle of the one that the run will be on.

        Raises:
            BackendError: if TensorRT refuses them, or the size of an output depends on the data.
        """
        if not self._has_profile:
            if not self._context.set_optimization_profile_async(self._profile_index, stream):
                raise self._library.failure(f"it refuses profile {self._profile_index}")
            self._has_profile = True
        if list(shapes) == self._input_shapes:
            return self._output_shapes
        self._output_shapes = []
        for index, (name, shape) in enumerate(zip(self._inputs, shapes, strict=True)):
            if self._input_shapes[index] != shape:
                self._input_shapes[index] = None
                if not self._context.set_input_shape(name, shape):
                    raise self._library.failure(f"it refuses shape {shape} for {name!r}")
                self._input_shapes[index] = shape
        self._output_shapes = [tuple(self._context.get_tensor_shape(name)) for name in self._outputs]
        for name, shape in zip(self._outputs, self._output_shapes, strict=True):
            if -1 in shape:
                self._input_shapes[0] = None
                raise BackendError(f"the size of output {name!r} depends on the data, which is not supported")
        return self._output_shapes

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """Queue a run on a stream, with the shapes set last, and return.

        Args:
            addresses: of the inputs and then the outputs, in the engine's order: memory of the GPU, aligned to 256
                bytes, which stays what it is until the run is done.
            stream: its handle.

        Raises:
            BackendError: if TensorRT refuses.
        """
        for name, address in zip((*self._inputs, *self._outputs), addresses, strict=True):
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._library.failure(f"it refuses the memory for {name!r}")
                self._addresses[name] = address
        if not self._context.execute_async_v3(stream):
            raise self._library.failure("the run could not be queued")


def _make_messages(trt: Any, title: str) -> Any:
    """Return a logger of TensorRT's kind that hands everything to ``logging`` and remembers the last errors."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Messages(trt.ILogger):  # type: ignore[misc]  # the module is known only when it runs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, message: str) -> None:
            """Called by any thread, also TensorRT's own; what it raised would end the process."""
            if sys.is_finalizing():
                return
            with contextlib.suppress(Exception):
                level = levels.get(severity, logging.INFO)
                if level == logging.ERROR:
                    self._errors.append(message.strip())
                if _log.isEnabledFor(level):
                    _log.log(level, "%s: %s", title, message.strip())

        def errors(self) -> list[str]:
            return list(self._errors)

        def forget(self) -> None:
            self._errors.clear()

    return Messages()
