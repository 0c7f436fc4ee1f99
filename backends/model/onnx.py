"""OnnxTensor: a model in an ONNX file, run by ONNX Runtime.

    {"backend": "OnnxTensor", "model": "resnet.onnx", "max": 8, "instance_num": 2}

How a request travels: ``reader`` checks its data against the model and gathers requests of equal shape into one
array per input, ONNX Runtime runs, ``postprocessors`` turns the rows of the outputs into results. ``shapes``
reads ``max`` and ``min``; ``onnx_graph`` changes the graph for ``mean``, ``std``, ``fuse`` and ``precision``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime

from fastpipe.announcing import announced_array
from fastpipe.contract import Between, Existing, Request
from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import BackendError, ConfigError, KernelError, nearest

from .encrypted import ModelKey
from .inputs import Array, ModelInputs, gather, to_torch
from .length_axes import Pad, read_pad
from .length_proof import prove_lengths, prove_lengths_once
from .onnx_files import weights_beside
from .onnx_graph import HALF_INPUTS, LARGEST_HALF, LOG_SEVERITY, RAW_SUFFIX, prepare
from .onnx_rows import read_graph
from .postprocessors import find_postprocessor, is_built_in
from .reader import Sample
from .row_proof import COARSE, FINE, Output, prove_once, prove_rows
from .runs import Group, ModelBackend
from .shapes import InputSpec, Profile, make_profiles, told_batches
from .source import open_model

__all__ = ["OnnxTensor"]

_DTYPES = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}


class OnnxTensor(ModelBackend):
    """Run an ONNX model on the CPU (or by another execution provider of ONNX Runtime) in batches.

    **In**: ``data`` is an array, or for several inputs a list of arrays in the model's order or a mapping from input
    name to array. Each is one sample, with a batch axis of 1 in front (``1CHW``) or without (``CHW``): NumPy, torch,
    or anything else on the CPU with ``__dlpack__``. Integers and wider floats are converted where the model wants
    floats (rounded, if need be), and integers to wider integers; any other type is an error.

    **Out**: ``result`` is the output's row with a batch axis of 1, or a list of them where the model has several
    outputs; torch tensors if the request brought torch tensors. It is a view of an array made for this batch: yours to
    change, and it keeps the batch's outputs alive; copy it to keep one of many for long. See ``postprocessor`` for
    other results. A model run with one request at a time (``max`` 1) may have outputs without a batch axis; they are
    handed out whole.

    **Batches**: requests of other shapes or dtypes never share a run, and a request that the model cannot take fails
    alone, with ``KernelError``. A model with a fixed batch size n takes 1 to n requests, and is fed zeros for those
    that are missing.

    **Rows**: requests share a run only if there is proof that each gets what it would get alone: shape inference (of
    the package onnx) follows the batch axis from the inputs to each output, and trial runs of one to three rows of
    pseudo-random data give together what they give alone. Where one of the two contradicts, or neither can be had, and
    where an output has as many rows as the data have it (``NonZero``), the model is refused, unless ``max`` is 1 or
    ``rows`` says that all is well. One that is refused but right: random by design.

    **Threads**: each instance has a session of its own (as fast as a shared one, and nothing is shared; its price is a
    copy of the weights), which computes with ``threads // instance_num`` threads, the calling one included. Idle
    threads do not spin. The GIL is released once a batch, while the model runs (and once more if a batch must be
    converted to another type).

    Args:
        model: an ``.onnx`` file, or the content of one; it may be encrypted, see ``fastpipe.backends.model.encrypted``.
        max: requests in a batch, or largest shapes: ``8``, ``"8x3x224x224"``, inputs separated by ``,``, profiles by
            ``;``. Without it, the model's batch size if that is fixed, otherwise 1.
        min: smallest batch the model is run with, padded with zeros, or smallest shapes, in the same form. An open axis
            may be empty only where it says so, as in ``"1x0x4"``.
        rows: ``batch`` says that each row of every output belongs to one request, in order, and depends on it alone.
            Without it, that is proved while the instance is built (see "Rows" above).
        instance_num: the node's number of instances, which share ``threads``.
        precision: ``fp16`` computes in half precision; inputs and outputs keep their types. A CPU without arithmetic of
            that kind is slower with it, constants beyond 65504 are clipped, and a model may lose accuracy: compare. A
            request with values beyond 65504 is refused. Operators that take float32 only, such as trees, keep it.
        mean: put into the graph in front of every image input (four axes, float, as many channels): subtracted from
            the values, on the scale of the data (0 to 255 for pixels). One number, or one for each channel. Data may
            then be uint8; the conversion to float comes first.
        std: the same; divides. None zero.
        fuse: put operators together that ONNX Runtime leaves apart: a hard swish in four operators, and scalars beside
            convolutions, as Paddle writes them. Values change by rounding. Other models stay as they are.
        postprocessor: ``split`` (the rows, as above), ``cpu`` (the same here), ``SoftmaxCpu`` (softmax over the classes
            of each output of shape (batch, classes)), ``SoftmaxMax`` (``[class, probability]``, two floats),
            ``SoftmaxArgMax`` (the class, also as ``request["class"]``, with the probability as ``request["score"]``),
            a detector's or another head (``YoloV8`` and so on: see ``detectors`` and ``heads``), by its name, by a
            mapping with ``name`` and options, or as an object; or a callable ``f(outputs, batch)``: it gets the outputs
            of a run, one row for each request, and the requests, and returns a result for each, or None if it has
            filled the requests itself.
        pad: requests of different lengths share a run, padded: ``longest`` (to the longest of the run), a list of
            lengths (to the next of them), or a mapping with that as ``to``, and ``axis``, ``value``, ``mask``,
            ``length``, ``outputs``, ``max_padding``: see docs/lengths.md. Outputs are cut to the request's own length.
        max_tokens: with ``pad``: requests of a run times what they are padded to, at most.
        threads: computing threads of all instances together. Without it, the CPUs this process may use.
        providers: names of execution providers, in order of preference.
        warm_up: run every batch size once, on zeros, while the instance is built. Where an item's size is open, this
            needs ``max`` to have shapes, and is done with those.
        model_key: of an encrypted model: the environment variable that holds it, or a callable that returns it. A model
            that is not encrypted is then refused. Without it, ``FASTPIPE_MODEL_KEY`` is looked for if it is needed.

    Raises:
        ConfigError: if the file is missing or no model, its key is missing or wrong, or the parameters do not fit it.
        MissingExtra: if ``mean``, ``std``, ``fuse`` or ``precision`` ask for a changed graph and the package onnx is
            missing, or the model is encrypted and cryptography is.
    """

    def __init__(
        self,
        *,
        model: Annotated[Path, Existing()] | str | bytes,
        max: int | str | None = None,
        min: int | str | None = None,
        instance_num: Annotated[int, Between(1, 4096)] = 1,
        precision: Literal["fp32", "fp16"] = "fp32",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        fuse: bool = False,
        postprocessor: str | Mapping[str, Any] | Callable[..., Any] = "split",
        rows: Literal["batch"] | None = None,
        pad: str | list[int] | Mapping[str, Any] | None = None,
        max_tokens: Annotated[int, Between(1, 2**31 - 1)] | None = None,
        threads: Annotated[int, Between(1, 4096)] | None = None,
        providers: list[str] | None = None,
        warm_up: bool = True,
        model_key: ModelKey | None = None,
    ) -> None:
        self._name = f"model of {len(model)} bytes" if isinstance(model, bytes) else f"model '{model}'"
        try:
            source = open_model(model, model_key).model
            is_normalized = mean is not None or std is not None
            if is_normalized or fuse or precision == "fp16":
                source = prepare(source, half=precision == "fp16", mean=mean, std=std, fuses=fuse)
            self._session = _open_session(source, (threads or usable_cpu_count()) // instance_num, providers)
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            specs = [_input_spec(value, RAW_SUFFIX if is_normalized else "") for value in inputs]
            for value in outputs:
                _dtype("output", value)
            self._dtypes = [spec.dtype for spec in specs]
            self._feed_names = [value.name for value in inputs]
            self._output_names = [value.name for value in outputs]
            self._postprocessor = find_postprocessor(postprocessor, [value.shape for value in outputs])
            self.keeps_input = is_built_in(postprocessor)  # a function of the user's gets the requests themselves
            profiles = make_profiles(specs, max, min)
            self._inputs = ModelInputs(self._name, specs, profiles)
            halves = []
            if precision == "fp16":  # written by prepare(); of a file as it is, they are anybody's
                halves = json.loads(self._session.get_modelmeta().custom_metadata_map[HALF_INPUTS])
            # Checked when a batch is run, not whenever a request is looked at.
            self._inputs_to_run = _HalfInputs(self._name, specs, profiles, halves) if halves else self._inputs
            self._take(self._inputs, profiles, specs)
            if len(outputs) == 1 and self._has_rows and postprocessor in ("split", "cpu"):
                output = outputs[0]
                dtype = _dtype("output", output).name
                self.announced_outputs = announced_array(output.name, dtype, output.shape[1:], "result")
            if warm_up:
                self._warm_up(specs, profiles)
            is_fine = precision == "fp32" and providers in (None, ["CPUExecutionProvider"])
            key = _identity(source), max, min, tuple(providers or ())
            if self._has_rows and rows is None:
                prove_once(key, lambda: self._prove_rows(source, specs, profiles, is_fine=is_fine))
            if (padding := read_pad(pad, max_tokens)) is not None:
                self._take_lengths(
                    padding, specs, profiles, key, FINE if is_fine else COARSE, is_vouched=rows is not None
                )
        except ConfigError as error:
            raise self._named(error) from error.__cause__

    def forward(self, batch: list[Request]) -> None:
        """Run the model on a batch; requests whose shapes differ are run apart.

        Raises:
            ItemErrors: for the requests that the model cannot take.
            Exception: what ONNX Runtime raises, with a note that names the model and the shapes.
        """
        self._run_batch(self._inputs_to_run, batch, self._run_requests)

    def close(self) -> None:
        """Let go of the model; results handed out stay valid."""
        self._session = None

    def _run_requests(self, group: Group) -> None:
        """Run the model once, on requests of equal shapes."""
        fit = group[0][1].fit
        row_count = max(len(group), fit.profile.pad_to)
        by_input = list(zip(*[sample.arrays for _, sample in group], strict=True))
        inputs = [
            gather(arrays, item_shape, row_count, dtype)
            for arrays, item_shape, dtype in zip(by_input, fit.item_shapes, self._dtypes, strict=True)
        ]
        if fit.narrowed:
            self._inputs.refuse_overflow(fit, by_input, inputs)
        outputs: list[Any] = self._run(inputs)
        if row_count > len(group):
            outputs = [output[: len(group)] for output in outputs]
        if group[0][1].is_torch:
            outputs = to_torch(outputs)
        self._finish(outputs, [request for request, _ in group], row_count)

    def _compute(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model."""
        outputs: list[Array] = self._session.run(self._output_names, dict(zip(self._feed_names, arrays, strict=True)))
        return outputs

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model and check that every output has one row for each row of the inputs."""
        try:
            outputs = self._compute(arrays)
        except Exception as error:
            error.add_note(f"{self._name}, run with inputs of shape {_shapes(arrays)}")
            raise
        problem = self._row_problem(self._output_names, [output.shape for output in outputs], len(arrays[0]))
        if problem:
            raise BackendError(f"{self._name}, {problem}")
        return outputs

    def _warm_up(self, specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> None:
        sizes: list[int] = []
        # The largest batch comes first, so that the arena grows once.
        for profile in profiles:
            items = profile.largest_items()
            if items is None:
                continue
            for size in profile.batch_sizes():
                arrays = [np.zeros((size, *item), spec.dtype) for item, spec in zip(items, specs, strict=True)]
                try:
                    outputs = self._compute(arrays)
                except Exception as error:  # ONNX Runtime's errors have no base class of their own
                    raise ConfigError(
                        f"the warm-up with zeros of shape {_shapes(arrays)} failed: {str(error).strip()}; "
                        f"warm_up=false leaves it out, if zeros are no valid data"
                    ) from error
                problem = self._row_problem(self._output_names, [output.shape for output in outputs], size)
                if problem:
                    raise ConfigError(problem)
                sizes.append(size)
        self.warmed_up = told_batches(sizes)

    def _take_lengths(
        self,
        pad: Pad,
        specs: Sequence[InputSpec],
        profiles: Sequence[Profile],
        key: Hashable,
        tolerance: float,
        *,
        is_vouched: bool,
    ) -> None:
        """Take requests of different lengths; raise ConfigError if there is no proof that padding changes nothing."""
        outputs = [(value.name, [size or "?" for size in value.shape]) for value in self._session.get_outputs()]
        axes = self._pad(pad, specs, outputs, profiles, functools.partial(ModelInputs, self._name))
        prove_lengths_once(
            (key, repr(pad), is_vouched),
            axes,
            lambda: prove_lengths(self._compute, axes, profiles, tolerance, is_vouched=is_vouched),
        )

    def _prove_rows(
        self,
        source: Path | bytes,
        specs: Sequence[InputSpec],
        profiles: Sequence[Profile],
        *,
        is_fine: bool,
    ) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        graph = read_graph(source)
        tolerance = max(FINE if is_fine else COARSE, graph.tolerance if graph is not None else FINE)
        outputs = graph.outputs if graph is not None else [Output(name) for name in self._output_names]
        prove_rows(self._compute, specs, profiles, outputs, tolerance=tolerance)


def _identity(source: Path | bytes) -> Hashable:
    """Return what is equal for the instances of a node, and for no other model."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    files = [source.absolute(), *weights_beside(source).values()]
    return tuple([(path, _state(path.stat())) for path in files])


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _HalfInputs(ModelInputs):
    """Reads requests for a model some of whose inputs become float16 within it.

    Args:
        model, specs, profiles: as of ``ModelInputs``.
        halves: names of those inputs.
    """

    def __init__(
        self, model: str, specs: Sequence[InputSpec], profiles: Sequence[Profile], halves: Sequence[str]
    ) -> None:
        super().__init__(model, specs, profiles)
        self._halves = [(index, spec) for index, spec in enumerate(specs) if spec.name in halves]

    def read(self, request: Request) -> Sample:
        """Return the data of a request, checked, its values too."""
        sample = super().read(request)
        for index, spec in self._halves:
            largest = _largest(sample.arrays[index])
            if largest > LARGEST_HALF:
                raise KernelError(
                    f"{self._model}, input {spec.name!r}: expected values of -65504 to 65504, which is what float16 "
                    f"can hold, got {largest:g} (or its negative); precision='fp32' takes larger ones"
                )
        return sample


def _largest(array: Array) -> float:
    """Return the largest magnitude of an array's numbers, without those that are infinite or none."""
    if array.size == 0 or array.dtype.kind == "b":
        return 0.0
    largest = max(float(array.max()), -float(array.min()))
    if math.isfinite(largest):
        return largest
    numbers = array[np.isfinite(array)]
    return max(float(numbers.max()), -float(numbers.min())) if numbers.size else 0.0


def _open_session(source: Path | bytes, thread_count: int, providers: list[str] | None) -> Any:
    """Return a session that is quiet, does not spin, and does not fall back to another provider in silence."""
    available = onnxruntime.get_available_providers()
    wanted = providers or ["CPUExecutionProvider"]
    for name in wanted:
        if name not in available:
            raise ConfigError(
                f"this ONNX Runtime has no provider {name!r}{nearest(name, available)}; it has {', '.join(available)}"
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_SEVERITY
    options.intra_op_num_threads = max(1, thread_count)
    options.inter_op_num_threads = 1
    # A thread that spins takes the CPU from the other instances, and burns the quota of a cgroup.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(source, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise ConfigError(f"ONNX Runtime cannot load it: {str(error).strip()}") from error
    session.disable_fallback()
    refused = [name for name in wanted if name not in session.get_providers()]
    if refused:
        raise ConfigError(f"the provider {refused[0]!r} could not be started; see the log of ONNX Runtime")
    return session


def _input_spec(value: Any, added_suffix: str) -> InputSpec:
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in value.shape)
    return InputSpec(value.name.removesuffix(added_suffix), _dtype("input", value), shape)


def _dtype(what: str, value: Any) -> np.dtype[Any]:
    if value.type not in _DTYPES:
        raise ConfigError(
            f"{what} {value.name!r} is a {value.type}, which has no form in NumPy that could be batched: "
            f"{_advice(what, value.type)}"
        )
    return _DTYPES[value.type]


def _advice(what: str, kind: str) -> str:
    """Return what to do about an input or output of a type that is not taken."""
    if kind == "tensor(string)":
        how = "turns text into numbers" if what == "input" else "turns numbers into text"
        return f"leave out of the file what takes or gives text, and write a step of the pipe that {how}"
    if kind.startswith(("seq(", "map(", "optional(")):
        return (
            "export it so that every output is a tensor; of a classifier of scikit-learn, without its ZipMap: "
            "convert_sklearn(..., options={'zipmap': False})"
        )
    return "export it with float32 there, cast within the graph"


def _shapes(arrays: Sequence[Array]) -> str:
    return ", ".join(str(array.shape) for array in arrays)
