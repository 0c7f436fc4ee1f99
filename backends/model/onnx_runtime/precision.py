"""The types that a strongly typed engine computes in are those of its ONNX file: here they are put there.

float16 is put in by the same converter as for OnnxTensor. bfloat16 needs NVIDIA's ModelOpt; for int8 a file has to
come quantised, with pairs of QuantizeLinear and DequantizeLinear in its graph, as ModelOpt's quantization writes it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fastpipe.errors import ConfigError, nearest

from .graph import prepare

__all__ = ["Precision", "with_precision"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "best"]

_QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


def with_precision(
    model: Path | bytes,
    precision: Precision,
    *,
    float32: Sequence[str] = (),
    float16: Sequence[str] = (),
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Path | bytes:
    """Return a model that computes in ``precision``; inputs and outputs keep their types.

    Args:
        model: an ONNX file, or the content of one.
        precision: of the whole model. ``int8`` changes nothing: it says that the file is quantised.
        float32: parts of names; with ``fp16`` or ``bf16``, nodes that have one in their name stay in float32.
        float16: parts of names; with ``fp32``, nodes that have one in their name are computed in float16.
        mean: as in ``graph.prepare``.
        std: the same.

    Raises:
        ConfigError: if that cannot be; also if a part is in no node's name.
        MissingExtra: if the package onnx is not installed.
    """
    if precision == "best":
        raise ConfigError("precision='best' went with TensorRT 11: choose fp32, fp16 or bf16, and compare the results")
    if float32 and precision not in ("fp16", "bf16"):
        raise ConfigError(f"precision::fp32 names exceptions from fp16 or bf16, but precision is {precision!r}")
    if float16 and precision != "fp32":
        raise ConfigError(f"precision::fp16 names exceptions from fp32, but precision is {precision!r}")
    if precision == "int8" and not any(node.op_type in _QUANTIZERS for node in _nodes(model)):
        raise ConfigError(
            "precision='int8' needs a model that is quantised already, with QuantizeLinear and DequantizeLinear in its "
            "graph: modelopt.onnx.quantization.quantize of the package nvidia-modelopt[onnx] writes one"
        )
    if precision == "bf16":
        model = _bfloat16(model, _matching("fp32", [node.name for node in _nodes(model)], float32))
    half = precision == "fp16" or bool(float16)
    if not half and mean is None and std is None:
        return model
    return prepare(model, half=half, mean=mean, std=std, choose_float32=_chooser(float32, float16))


def _chooser(float32: Sequence[str], float16: Sequence[str]) -> Callable[[list[str]], list[str]]:
    """Return what tells, of the names of all nodes, those that stay in float32."""

    def choose(names: list[str]) -> list[str]:
        if not float16:
            return _matching("fp32", names, float32)
        cast = set(_matching("fp16", names, float16))
        return [name for name in names if name not in cast]

    return choose


def _matching(kind: str, names: list[str], parts: Sequence[str]) -> list[str]:
    for part in parts:
        if not any(part in name for name in names):
            raise ConfigError(f"precision::{kind}: no node has {part!r} in its name{nearest(part, names)}")
    return [name for name in names if any(part in name for part in parts)]


def _nodes(model: Path | bytes) -> Any:
    import onnx

    loaded = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    return loaded.graph.node


def _bfloat16(model: Path | bytes, keep: list[str]) -> bytes:
    """Return the model in bfloat16, by ModelOpt's autocast, which needs a file."""
    try:
        from modelopt.onnx import autocast
    except ImportError as error:
        raise ConfigError(
            "precision='bf16' needs ModelOpt, which is not installed: pip install 'nvidia-modelopt[onnx]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="fastpipe-") as folder:
        if isinstance(model, bytes):
            model_path = Path(folder) / "model.onnx"
            model_path.write_bytes(model)
        else:
            model_path = model
        cast: Any = autocast.convert_to_mixed_precision(
            str(model_path),
            low_precision_type="bf16",
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in keep],  # they are patterns
            keep_io_types=True,
        )
    return bytes(cast.SerializeToString())
