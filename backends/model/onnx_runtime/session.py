"""Sessions of ONNX Runtime: how one is opened, and what goes in and out."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fastpipe.errors import ConfigError, nearest
from fastpipe.kernels._fast_path import OrtRun

from .kinds import ELEMENT_NUMBERS, dtype_of, is_narrow_kind, rows_of
from .options import RuntimeSettings, run_options, session_options

__all__ = ["RuntimeSession"]

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
# With this variable, ONNX Runtime takes a session's options from the file, in place of the caller's.
_FROM_MODEL = "ORT_LOAD_CONFIG_FROM_MODEL"
# An ONNX file whose only output, "y", is a constant of float32: what fails to run it is no fault of a model or of data.
_CONSTANT_MODEL = (
    b'\x08\x07:6\n$\x12\x01y"\x08Constant*\x15\n\x0bvalue_float\x15\x00\x00\x00\x00\xa0\x01\x01\x12\x01gb\x0b\n\x01y'
    b"\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\r"
)


GPUS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda", "NvTensorRTRTXExecutionProvider": "cuda"}
"""Of providers that compute on GPUs, what torch calls these."""

ON_GPU = {
    *("tensor(bool)", "tensor(double)", "tensor(float)", "tensor(float16)", "tensor(uint8)"),
    *(f"tensor(int{bits})" for bits in (8, 16, 32, 64)),
}
"""Kinds of values that both, torch and ONNX Runtime, can have there."""


class RuntimeSession:
    """A session that is quiet, does not spin, and does not fall back to another provider in silence.

    Args:
        source: an ONNX file, or the content of one.
        thread_count: of this session; at least one is taken.
        settings: providers and options.

    Raises:
        ConfigError: if the model cannot be loaded, or a provider not be started.
    """

    def __init__(self, source: Path | bytes, thread_count: int, settings: RuntimeSettings) -> None:
        wanted = _available(settings)
        options = session_options(settings, thread_count)
        for path in settings.custom_ops:
            try:
                options.register_custom_ops_library(str(path))
            except Exception as error:  # ONNX Runtime's errors have no base class of their own
                raise ConfigError(f"custom_ops: '{path}' cannot be loaded: {_first_line(error)}") from error
        self._session: Any = _opened(source, options, wanted, settings)
        self._run_options = run_options(settings)
        if self._run_options is not None:
            _try_run_options(self._run_options, wanted, settings)
        _check_fixed_axes(self._session.get_inputs(), settings.session.get("free_dimension_overrides", {}))
        self.inputs = list(self._session.get_inputs())
        self.outputs = list(self._session.get_outputs())
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if os.environ.get(_FROM_MODEL) == "1" and "ort_config" in self.metadata:
            raise ConfigError(
                f"its metadata has options for ONNX Runtime ('ort_config'), which take the place of all that is said "
                f"here, as the environment variable {_FROM_MODEL} is set: unset it, or take 'ort_config' out of the "
                f"file's metadata"
            )
        self._input_names = [value.name for value in self.inputs]
        self.device = _device_of(self._session.get_providers(), settings, [*self.inputs, *self.outputs])
        self._kinds = {value.name: value.type for value in self.outputs}
        self._has_narrow = _check_narrow([*self.inputs, *self.outputs])
        self._has_maps = any(kind.startswith("seq(map(") for kind in self._kinds.values())
        self._is_plain = not self._has_narrow and not self._has_maps and self._session.get_providers() == [_CPU]

    def run(self, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return these outputs of the model for a value of each input, in its order.

        Rows of maps are returned as ``Rows``, and what NumPy lacks in dtypes of ml_dtypes.
        """
        feeds = dict(zip(self._input_names, values, strict=True))
        if self.device is not None and not all(isinstance(value, np.ndarray) for value in values):
            return self._run_bound(names, feeds)
        if self._has_narrow:
            return self._run_narrow(names, feeds)
        outputs: list[Any] = self._session.run(names, feeds, self._run_options)
        if self._has_maps:
            return [
                rows_of(output) if self._kinds[name].startswith("seq(map(") else output
                for name, output in zip(names, outputs, strict=True)
            ]
        return outputs

    def runner(self, names: Sequence[str]) -> Callable[[list[Any]], list[Any]]:
        """Return what does the same for these outputs, by the shortest way."""
        if self._is_plain:
            return OrtRun(_run_of(self._session), names, self._input_names, self._run_options)
        return functools.partial(self.run, names)

    def _run_narrow(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """Run the model on OrtValues: of NumPy's arrays, ONNX Runtime takes and gives only dtypes that NumPy has."""
        given = {name: _value_of(array) for name, array in feeds.items()}
        outputs = self._session.run_with_ort_values(names, given, self._run_options)
        return [_array_of(output, self._kinds[name]) for name, output in zip(names, outputs, strict=True)]

    def _run_bound(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        """Run the model on torch tensors that lie on its device, and return such; nothing leaves it."""
        torch: Any = sys.modules["torch"]  # who has a tensor has imported it
        kind, _, number = str(self.device).partition(":")
        place = kind, int(number or 0)
        # A new one for each run: one that is kept has its outputs written over by the next.
        binding = self._session.io_binding()
        kept = []  # until the run is over: it has their addresses alone
        for name, given in feeds.items():
            if isinstance(given, np.ndarray):
                binding.bind_cpu_input(name, given)
            else:
                value = given.contiguous()  # with the batch on another axis, it is a view
                kept.append(value)
                dtype = getattr(np, str(value.dtype).removeprefix("torch.").replace("bool", "bool_"))
                binding.bind_input(name, *place, dtype, list(value.shape), value.data_ptr())
        for name in names:
            binding.bind_output(name, *place)
        if kind != "cpu":
            # ONNX Runtime computes on a stream of its own, and waits for it at the end.
            torch.cuda.current_stream(place[1]).synchronize()
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, self._run_options)
        binding.synchronize_outputs()
        return [torch.from_dlpack(value) for value in binding.get_outputs()]


def _run_of(session: Any) -> Callable[..., list[Any]]:
    """Return what runs a session on the CPU.

    ``InferenceSession.run`` looks again whether all inputs are there, whether one is an OrtValue, and whether WebGPU
    has captured a graph. None of it can be here, and behind a small model it takes 6 % of the model's time.
    """
    run: Callable[..., list[Any]] = getattr(getattr(session, "_sess", None), "run", session.run)
    return run


def _device_of(started: Sequence[str], settings: RuntimeSettings, values: Sequence[Any]) -> str | None:
    """Return the GPU on which a session computes, as torch calls it; None: it has none, or values cannot be there."""
    kind = GPUS.get(started[0])
    if kind is None or not hasattr(onnxruntime.OrtValue, "__dlpack__"):
        return None
    if any(value.type not in ON_GPU for value in values):
        return None
    return f"{kind}:{settings.provider_options.get(started[0], {}).get('device_id', 0)}" if kind != "cpu" else kind


def _check_narrow(values: Sequence[Any]) -> bool:
    """Say whether any value has a dtype that NumPy lacks.

    Raises:
        ConfigError: if ONNX Runtime cannot run such a model from Python.
    """
    narrow = next((value for value in values if is_narrow_kind(value.type)), None)
    if narrow is None:
        return False
    where = f"{narrow.name!r} is a {narrow.type}"
    if not hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
        raise ConfigError(f"{where}, which needs ONNX Runtime 1.20 or newer, got {onnxruntime.__version__}")
    for value in values:
        if value.type == "tensor(string)" or not value.type.startswith("tensor("):
            raise ConfigError(
                f"{where} and {value.name!r} a {value.type}, which ONNX Runtime does not take together from Python: "
                f"export it with float32 in the first, cast in the graph"
            )
    return True


def _value_of(array: Any) -> Any:
    number = ELEMENT_NUMBERS.get(array.dtype.name)
    if number is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, number)


def _array_of(value: Any, kind: str) -> Any:
    """Return an OrtValue on the CPU as an array of its own memory."""
    dtype = dtype_of("output", "", kind)
    if dtype.name not in ELEMENT_NUMBERS:
        return value.numpy()
    array = np.empty(value.shape(), dtype)
    if array.nbytes:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _available(settings: RuntimeSettings) -> list[tuple[str, dict[str, str]]]:
    """Return the providers that this ONNX Runtime has, with their options.

    Raises:
        ConfigError: if one is missing that must not be left out.
    """
    available = onnxruntime.get_available_providers()
    for name in settings.providers:
        if name not in available:
            lacks = f"this ONNX Runtime has no provider {name!r}"
            if not settings.falls_back:
                raise ConfigError(
                    f"providers: {lacks}{_meant(name, available)}; it has {', '.join(available)}; with "
                    f"fallback=true it is left out"
                )
            _log.warning("%s: it is left out", lacks)
    return [each for each in settings.with_options() if each[0] in available] or [(_CPU, {})]


def _meant(name: str, available: Sequence[str]) -> str:
    """Return what is meant by a provider that this ONNX Runtime lacks: one of other builds, or one that is misspelt."""
    known = onnxruntime.get_all_providers()
    if name in known:
        return ", which another build of it may have, such as the package onnxruntime-gpu"
    full = f"{name}ExecutionProvider".lower()  # "cpu" and "CUDA" are what people say
    short = [each for each in known if each.lower() == full]
    return f"; did you mean {short[0]!r}?" if short else nearest(name, [*available, *known])


def _check_fixed_axes(inputs: Sequence[Any], overrides: Mapping[str, int]) -> None:
    """Raise ConfigError for an axis that was to get a size and that no input has: ONNX Runtime says nothing of it."""
    sizes = {size for value in inputs for size in value.shape}
    for axis, size in overrides.items():
        if size not in sizes:
            still_open = list(dict.fromkeys(each for value in inputs for each in value.shape if isinstance(each, str)))
            raise ConfigError(
                f"session_options: free_dimension_overrides: expected the name of an open axis of an input, got "
                f"{axis!r}{nearest(axis, still_open)}; the model's are {still_open}"
            )


def _opened(
    source: Path | bytes, options: Any, providers: list[tuple[str, dict[str, str]]], settings: RuntimeSettings
) -> Any:
    try:
        # Its own fallback would print, and take other providers than those asked for.
        session = onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        if settings.falls_back and providers[0][0] != _CPU:
            _log.warning("the provider %r could not be started and is left out: %s", providers[0][0], error)
            return _opened(source, options, providers[1:] or [(_CPU, {})], settings)
        raise ConfigError(f"ONNX Runtime cannot load it: {str(error).strip()}") from error
    session.disable_fallback()
    refused = [name for name, _ in providers if name not in session.get_providers()]
    if refused and not settings.falls_back:
        raise ConfigError(
            f"the provider {refused[0]!r} could not be started; see the log of ONNX Runtime, which session_options = "
            f"{{log_severity_level = 3}} has written to stderr; with fallback=true it is left out"
        )
    for name in refused:
        _log.warning("the provider %r could not be started and is left out", name)
    return session


def _try_run_options(options: Any, providers: list[tuple[str, dict[str, str]]], settings: RuntimeSettings) -> None:
    """Raise ConfigError for options that no run takes: ONNX Runtime looks at their values only when a model runs."""
    of_session = session_options(settings, 1)
    of_session.enable_profiling = False  # it is no run of the model's
    try:
        session = onnxruntime.InferenceSession(_CONSTANT_MODEL, of_session, providers=providers, enable_fallback=0)
        session.disable_fallback()
        session.run(None, {})
    except Exception:  # ONNX Runtime's errors have no base class; a provider that takes no such model tells nothing
        return
    try:
        session.run(None, {}, options)
    except Exception as error:
        written = ", ".join(f"{name} = {value!r}" for name, value in settings.run.items())
        raise ConfigError(
            f"run_options: expected values with which ONNX Runtime runs a model, got {written}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
