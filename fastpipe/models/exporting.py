"""torch -> ONNX: exported with an open batch axis, tried in batches of 1, 2 and 3, and only then written."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpipe.errors import ConfigError, PipeError
from fastpipe.models.sessions import Array, axes_in_words, gap_between, open_session, run_session, tools_missing

__all__ = ["Exported", "export"]

BATCHES = (1, 2, 3)
EXAMPLE_ROWS = 2
"""Torch takes the size 1 for a constant."""
OPSET = 18
TOLERANCE = 1e-3
"""How far a number may be from torch's, of the largest in its output."""
BATCH_AXIS = "batch"


@dataclass(frozen=True)
class Exported:
    """What was written, and what was seen."""

    path: Path
    inputs: str
    """Names and axes in words."""
    outputs: str
    node_count: int
    size_bytes: int
    differences: dict[int, float]
    """Batch -> the largest difference from torch, of the largest number in its output."""
    kept: str
    """"as exported", or the simplifier whose model is kept."""
    tried: list[str]
    """What each simplifier came to, in words."""


@dataclass(frozen=True)
class _Checked:
    """A model that gives what torch gives."""

    name: str
    content: bytes
    node_count: int
    differences: dict[int, float]


def export(
    model: str | Path,
    path: Path,
    *,
    shapes: Sequence[tuple[int, ...]] = (),
    dtypes: Sequence[str] = (),
    weights: Path | None = None,
    simplifies: bool = False,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    trusted: bool = False,
) -> Exported:
    """Write a torch model as an ONNX file whose batch axis is open, and proved to be one.

    It is run on pseudo-random data in batches of 1, 2 and 3, by torch and by ONNX Runtime, and the rows have to be the
    requests', as ``OnnxTensor`` proves it. What fails is not written.

    Args:
        model: ``"package.module:Name"`` of a module, or of a class or function that makes one without arguments; or the
            path of a ``.pt2`` file.
        path: where the ONNX file goes.
        shapes: of an item of each input, without the batch axis. Of a ``.pt2`` they are known, where no axis but the
            batch is open.
        dtypes: of each input; default float32.
        weights: a file with a state dict for the module.
        simplifies: try onnxsim and onnxslim, those that are installed, and keep what has the fewest operators.
        opset: of the file.
        tolerance: how far a number may be from torch's, of the largest in its output.
        trusted: load files that could run code.

    Raises:
        ConfigError: there is no such model, its shapes are not known, or its rows are not proved.
        PipeError: it cannot be exported, its batch axis is not open, or it gives other numbers than torch.
        MissingExtra: torch, onnx, onnxruntime or onnxscript is not installed.
    """
    torch = _import_tools()
    from fastpipe.backends.model.torch_files import load

    loaded = load(model, weights, torch.device("cpu"), trusted=trusted)
    if loaded.arrange is not None:
        raise ConfigError(f"{model}: its inputs are nested or no tensors: put a module around it that takes tensors")
    items = list(shapes) or _known_items(str(model), loaded.specs)
    kinds = _dtypes(torch, items, dtypes, loaded.dtypes)
    if loaded.names is not None and loaded.required > len(items):
        raise ConfigError(
            f"{model} needs {loaded.required} inputs, and there are shapes for {len(items)}: --shape each"
        )
    data = {size: _numbers(items, kinds, size) for size in BATCHES}
    names = (loaded.names or [])[: len(items)] or [f"input_{index}" for index in range(len(items))]
    proto = _exported(torch, loaded.module, data[EXAMPLE_ROWS], names, opset)
    expected = {size: _outputs_of(torch, loaded.module, arrays) for size, arrays in data.items()}

    def check(name: str, content: bytes) -> _Checked:
        differences = _differences(content, data, expected, tolerance)
        _prove_rows(content, items)
        return _Checked(name, content, len(_nodes(content)), differences)

    best, tried = check("as exported", proto), []
    for name, simplify in _simplifiers() if simplifies else ():
        try:
            candidate = check(name, simplify(proto))
        except Exception as error:  # of any library: the model as exported is kept
            tried.append(f"{name}: left out, {type(error).__name__}: {str(error).strip():.200}")
            continue
        tried.append(f"{name}: {candidate.node_count} operators")
        best = min(best, candidate, key=lambda each: (each.node_count, len(each.content)))
    path.write_bytes(best.content)
    session = open_session(best.content)
    inputs, outputs = axes_in_words(session.get_inputs()), axes_in_words(session.get_outputs())
    size_bytes = len(best.content)
    return Exported(path, inputs, outputs, best.node_count, size_bytes, best.differences, best.name, tried)


def _import_tools() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise tools_missing(error) from error
    return torch


def _known_items(model: str, specs: Any) -> list[tuple[int, ...]]:
    """Return the shapes that an exported program says."""
    if not specs:
        raise ConfigError(f"{model} does not say which shapes it takes: --shape 3x224x224, one for each input")
    for spec in specs:
        if any(not isinstance(size, int) for size in spec.shape[1:]):
            shape = "x".join(map(str, spec.shape[1:]))
            raise ConfigError(f"{model}: input {spec.name!r} has open axes ({shape}): --shape says which to try")
    return [tuple(spec.shape[1:]) for spec in specs]


def _dtypes(torch: Any, items: Sequence[Any], given: Sequence[str], known: Any) -> list[Any]:
    if given and len(given) != len(items):
        raise ConfigError(f"{len(given)} types for {len(items)} inputs: give one for each, or none")
    if not given:
        return list(known or [torch.float32] * len(items))[: len(items)]
    found = [getattr(torch, name, None) for name in given]
    for name, dtype in zip(given, found, strict=True):
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"torch has no type {name!r}; float32, float16, int64, int32, uint8 and bool are some")
    return found


def _numbers(items: Sequence[tuple[int, ...]], dtypes: Sequence[Any], size: int) -> list[Any]:
    """Return pseudo-random tensors: normal floats, and whole numbers that are 0 or 1."""
    import torch

    generator = torch.Generator().manual_seed(size)
    return [
        torch.randn(size, *item, generator=generator).to(dtype)
        if dtype.is_floating_point
        else torch.randint(0, 2, (size, *item), generator=generator).to(dtype)
        for item, dtype in zip(items, dtypes, strict=True)
    ]


def _exported(torch: Any, module: Any, example: list[Any], names: list[str], opset: int) -> bytes:
    """Return the content of the ONNX file."""
    axes = tuple({0: torch.export.Dim(BATCH_AXIS)} for _ in example)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(example),
                dynamic_shapes=axes,
                input_names=names,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch raises whatever its parts do
        raise PipeError(f"torch cannot export it with an open batch axis: {_reason(error)}") from error
    proto = program.model_proto
    _name_batch_axis(proto)
    content: bytes = proto.SerializeToString()
    return content


def _reason(error: BaseException) -> str:
    """Return the innermost cause, which says what is wrong, in few lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:6]):.800}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter writes on the way to itself; what fails is raised."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _name_batch_axis(proto: Any) -> None:
    """Call the batch axis so, whatever symbol torch had for it, and refuse a model in which it is not open."""
    symbols = set()
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        if not axes or not axes[0].dim_param:
            raise PipeError(
                f"the batch axis of input {value.name!r} is fixed in what torch has exported: something in the module "
                f"makes a constant of it, as reshape({EXAMPLE_ROWS}, 10) does; write reshape(-1, 10), or flatten(1)"
            )
        symbols.add(axes[0].dim_param)
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in symbols:
                axis.dim_param = BATCH_AXIS


def _outputs_of(torch: Any, module: Any, arrays: list[Any]) -> list[Array]:
    with torch.no_grad():
        outputs = module(*arrays)
    values = list(outputs.values()) if isinstance(outputs, dict) else outputs
    listed = list(values) if isinstance(values, list | tuple) else [values]
    return [output.numpy() for output in listed]


def _differences(
    content: bytes, data: dict[int, list[Any]], expected: dict[int, list[Array]], tolerance: float
) -> dict[int, float]:
    """Return how far each batch is from torch's.

    Raises:
        PipeError: an output has another shape, or is too far.
    """
    session, found = open_session(content), {}
    for size, tensors in data.items():
        try:
            outputs = run_session(session, [tensor.numpy() for tensor in tensors])
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise PipeError(f"ONNX Runtime cannot run a batch of {size}: {str(error).strip()}") from error
        found[size] = 0.0
        for output, wanted, value in zip(outputs, expected[size], session.get_outputs(), strict=True):
            if output.shape != wanted.shape:
                text = f"{output.shape} from ONNX Runtime, {wanted.shape} from torch"
                raise PipeError(f"output {value.name!r} of a batch of {size} has another shape: {text}")
            found[size] = max(found[size], gap_between(output, wanted)[1])
        if not found[size] <= tolerance:
            raise PipeError(
                f"in a batch of {size} a number is {found[size]:.2g} of the largest away from torch's, and "
                f"{tolerance:g} is allowed: --tolerance allows more"
            )
    return found


def _prove_rows(content: bytes, items: Sequence[tuple[int, ...]]) -> None:
    """Raise ConfigError if there is no proof that the rows are the requests'."""
    from fastpipe.backends.model.onnx import OnnxTensor

    largest = ",".join("x".join(map(str, (BATCHES[-1], *item))) for item in items)
    OnnxTensor(model=content, max=largest).close()


def _nodes(content: bytes) -> list[Any]:
    import onnx

    return list(onnx.load_from_string(content).graph.node)


def _simplifiers() -> list[tuple[str, Callable[[bytes], bytes]]]:
    """Return the simplifiers that are installed.

    Raises:
        PipeError: none is.
    """
    found: list[tuple[str, Callable[[bytes], bytes]]] = []
    for name, simplify in (("onnxsim", _with_onnxsim), ("onnxslim", _with_onnxslim)):
        with contextlib.suppress(ImportError):
            __import__(name)
            found.append((name, simplify))
    if not found:
        raise PipeError("neither onnxsim nor onnxslim is installed: pip install onnxslim, or leave out --simplify")
    return found


def _with_onnxsim(content: bytes) -> bytes:
    import onnx
    import onnxsim

    with _quiet():
        simplified, is_right = onnxsim.simplify(onnx.load_from_string(content))
    if not is_right:
        raise PipeError("its own check failed")
    result: bytes = simplified.SerializeToString()
    return result


def _with_onnxslim(content: bytes) -> bytes:
    import onnx
    import onnxslim

    with _quiet():
        result: bytes = onnxslim.slim(onnx.load_from_string(content)).SerializeToString()
    return result
