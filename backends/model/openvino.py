"""OpenvinoTensor: a model in an ONNX file, run by OpenVINO on the CPU.

    {"backend": "OpenvinoTensor", "model": "resnet.onnx", "max": 8, "instance_num": 2}

What goes in and out is OnnxTensor's, by the same code; here is what is OpenVINO's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import openvino

from fastpipe.errors import ConfigError, nearest

from .onnx_runtime.model import OnnxModel, Session
from .onnx_runtime.rows import declared_axes

__all__ = ["OpenvinoTensor"]

Precision = Literal["fp32", "bf16", "fp16"]

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}

# OpenVINO's names of types -> ONNX Runtime's.
_KINDS = {
    "boolean": "tensor(bool)",
    "f16": "tensor(float16)",
    "f32": "tensor(float)",
    "f64": "tensor(double)",
    **{f"i{bits}": f"tensor(int{bits})" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"tensor(uint{bits})" for bits in (8, 16, 32, 64)},
}

_OWNED = {
    "INFERENCE_NUM_THREADS": "threads says how many threads all instances of the node share",
    "NUM_STREAMS": "instance_num says how many requests are computed at the same time",
    "INFERENCE_PRECISION_HINT": "precision says it",
    "EXECUTION_MODE_HINT": "precision says it",
    "CACHE_DIR": "cache_dir says it",
}
"""Of OpenVINO's properties, what is decided elsewhere -> how to say it."""


class OpenvinoTensor(OnnxModel):
    """Run an ONNX model in OpenVINO, on the CPU, in batches.

    What goes in and out, and the parameters not named here, are those of ``OnnxModel``, which ``OnnxTensor`` has, too:
    ``model``, ``max``, ``min``, ``rows``, ``instance_num``, ``mean``, ``std``, ``fuse``, ``postprocessor``,
    ``threads``, ``warm_up``, ``model_key`` and so on. Text, maps, sequences and narrow floats are OnnxTensor's alone.

    **Precision**: on processors that have arithmetic of bfloat16, OpenVINO by itself computes models of float32 in
    that, and in integers of 8 bits where weights are compressed. Here it computes in float32 unless it is asked.

    **Threads**: each instance has a model and a request of its own, with ``threads // instance_num`` threads, which
    are not bound to CPUs. The GIL is released while the model runs.

    Args:
        precision: ``bf16`` and ``fp16`` compute in half precision; inputs and outputs keep their types. A processor
            without such arithmetic is refused.
        cache_dir: a folder for compiled models, from which later starts read them, in place of compiling. Whoever may
            write there decides what is computed. An encrypted model is refused, as what is in the folder is not.
        properties: others of OpenVINO's, by its names for the CPU: ``{"ENABLE_CPU_PINNING": True}``.

    Raises:
        ConfigError: also if the processor has no such precision, or there is no such property.
    """

    def __init__(
        self,
        *,
        precision: Precision = "fp32",
        cache_dir: Path | None = None,
        properties: Mapping[str, Any] | None = None,
        **of_the_model: Any,
    ) -> None:
        self._core = openvino.Core()
        self._hint: Precision = precision
        self._cache_dir = cache_dir
        _check_precision(self._core, precision)
        self._properties = _checked_properties(self._core, properties or {})
        super().__init__(**of_the_model)

    def _open_session(self, source: Path | bytes, thread_count: int) -> Session:
        self._is_fine = self._hint == "fp32"
        self._runtime = repr(("openvino", self._hint, sorted(self._properties.items(), key=str)))
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": max(1, thread_count),
            # Pinned threads of several instances, or processes, would share the first CPUs and leave the others idle.
            "ENABLE_CPU_PINNING": False,
            # It would otherwise also quantise, where weights are compressed.
            "EXECUTION_MODE_HINT": "ACCURACY",
            "INFERENCE_PRECISION_HINT": _HINTS[self._hint],
            **self._properties,
        }
        if self._cache_dir is not None:
            if self._is_encrypted:
                raise ConfigError("it is encrypted, and cache_dir would write it down as it is: leave cache_dir out")
            settings["CACHE_DIR"] = str(self._cache_dir)
        return _Compiled(self._core, source, settings)


class _Value(NamedTuple):
    """An input or output, as ONNX Runtime's are."""

    name: str
    type: str
    shape: list[int | str | None]


class _Compiled:
    """A model that is compiled, with a request to run it.

    Raises:
        ConfigError: if OpenVINO cannot read or compile it, or a value is of a kind that is not taken.
    """

    def __init__(self, core: Any, source: Path | bytes, settings: Mapping[str, Any]) -> None:
        try:
            model = core.read_model(source)
            compiled = core.compile_model(model, "CPU", dict(settings))
        except Exception as error:  # RuntimeErrors, with the places in OpenVINO's own source in front
            raise ConfigError(f"OpenVINO cannot load it: {_in_brief(error)}") from error
        self._request = compiled.create_infer_request()
        axes = declared_axes(source)
        self.inputs = [_value("input", port, axes) for port in compiled.inputs]
        self.outputs = [_value("output", port, axes) for port in compiled.outputs]
        self.metadata: dict[str, str] = {}
        self.device: str | None = None

    def runner(self, names: Sequence[str]) -> Callable[[list[Any]], list[Any]]:
        """Return what does as ``run`` for these outputs."""
        return functools.partial(self.run, names)

    def run(self, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return these outputs of the model for a value of each input, in its order; they are copies."""
        found = self._request.infer(dict(enumerate(values)), share_inputs=False)  # they may be the callers' own
        by_name = dict(zip([value.name for value in self.outputs], found.values(), strict=True))
        return [by_name[name] for name in names]


def _value(what: str, port: Any, axes: Mapping[str, Sequence[int | str]]) -> _Value:
    # A value that is handed through has the names of several; one of them is the file's.
    name = next((each for each in sorted(port.get_names()) if each in axes), port.get_any_name())
    kind = port.get_element_type().to_string()
    if kind not in _KINDS:
        raise ConfigError(
            f"{what} {name!r} is of OpenVINO's type {kind}, which is not taken here; OnnxTensor may take it"
        )
    sizes = port.get_partial_shape()
    shape = [] if sizes.rank.is_dynamic else [None if size.is_dynamic else size.get_length() for size in sizes]
    declared = axes.get(name, ())
    # OpenVINO has no names for axes; the file has.
    named = [size if size is not None else other for size, other in zip(shape, declared, strict=False)]
    return _Value(name, _KINDS[kind], list(named) if len(declared) == len(shape) else list(shape))


def _check_precision(core: Any, precision: Precision) -> None:
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    needs = _CAPABILITIES.get(precision)
    if needs is not None and needs not in has:
        raise ConfigError(
            f"precision={precision!r} needs a processor with such arithmetic; this one has {', '.join(has)}"
        )


def _checked_properties(core: Any, properties: Mapping[str, Any]) -> dict[str, Any]:
    known = [name for name, access in core.get_property("CPU", "SUPPORTED_PROPERTIES").items() if access == "RW"]
    problems = []
    for name in properties:
        if name in _OWNED:
            problems.append(f"properties: {name!r} is not for you to set here: {_OWNED[name]}")
        elif name not in known:
            problems.append(f"properties: OpenVINO's CPU has no {name!r}{nearest(name, known)}")
    if problems:
        raise ConfigError(*problems)
    return dict(properties)


def _in_brief(error: BaseException) -> str:
    """Return OpenVINO's message without the places in its source, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not re.match(r"Exception from \S+:\d+:$", line)]
    return "; ".join(kept) or str(error).strip()
