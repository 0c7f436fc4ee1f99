"""TensorrtTensor: a model in an ONNX file, built for the GPU at hand and run by TensorRT or TensorRT-RTX.

    {"backend": "S[TensorrtTensor,SyncTensor]", "model": "resnet.onnx", "max": 8, "precision": "fp16"}

How a model becomes an engine: ``source`` reads it, ``onnx_precision`` puts types and normalisation into its
graph, ``tensorrt_api`` builds it, ``engine_cache`` keeps what was built. How a request travels: as in ``onnx``, with
torch tensors on the GPU in place of NumPy's arrays.
"""

from __future__ import annotations

import functools
import math
import platform
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from fastpipe.contract import Between, Existing, Request
from fastpipe.errors import BackendError, ConfigError, MissingExtra

from ..gpu.devices import DeviceId, claim_gpu, place_of, torch_gpu
from ..gpu.streams import InstanceStream, hand_over
from ..tensor.arrays import all_finite
from .encrypted import ModelKey, decrypt, encrypt
from .engine_cache import DEFAULT_LIMIT_BYTES, EngineCache, default_folder, key_of
from .engine_inputs import EngineInputs, torch_dtype
from .inputs import Array, to_array
from .length_axes import LengthAxes, read_pad
from .length_proof import prove_lengths
from .onnx_graph import RAW_SUFFIX
from .onnx_precision import Precision, with_precision
from .onnx_rows import Graph, read_graph
from .postprocessors import find_postprocessor, is_built_in
from .reader import Fit, UnfitError
from .row_proof import COARSE, Output, prove_rows
from .runs import Group, ModelBackend
from .shapes import InputSpec, Profile, make_profiles, told_batches
from .source import ModelSource, fingerprint, open_model
from .tensorrt_api import Context, Engine, Library, ProfileShapes, TensorInfo, find_library

__all__ = ["TensorrtTensor"]

# Of a process: (key, number of the GPU) -> the engine that its instances share. A lock for all: loading is quick, and
# builds come one after the other anyway.
_engines: weakref.WeakValueDictionary[tuple[str, int], Engine] = weakref.WeakValueDictionary()
_engines_lock = threading.Lock()
# Those of them whose outputs' rows are known to be the requests'.
_proved: weakref.WeakSet[Engine] = weakref.WeakSet()


class TensorrtTensor(ModelBackend):
    """Run an ONNX model on an NVIDIA GPU, in batches, by an engine that TensorRT builds from it.

    **In**: as for ``OnnxTensor``, and torch tensors on the GPU, where nothing leaves it; what is elsewhere is copied
    there.

    **Out**: ``result`` is the output's row as a torch tensor on the GPU, with a batch axis of 1, or a list of them
    where the model has several outputs. It is a view of memory made for this batch, never of the engine's: yours to
    change. Outside of a ``SyncTensor`` it is complete when ``forward`` returns; within one, on its stream.

    **Batches, rows**: as for ``OnnxTensor``. An engine takes what lies within its profiles: ``max`` must say the
    largest size of every axis that the model leaves open.

    **Building** takes seconds to minutes, once: the engine is kept in ``model::cache`` under a key of everything that
    it depends on (model, precision, shapes, GPU, versions), so that another GPU or TensorRT never gets the wrong one.
    Builds of the process come one after the other; another process that wants the same engine waits for it. An
    engine of an encrypted model is kept encrypted.

    **Threads**: each instance has a context for each profile and a stream; instances on a GPU share the weights. The
    GIL is given up a few times per batch.

    Args:
        model: an ``.onnx`` file, or the content of one; it may be encrypted, see ``fastpipe.backends.model.encrypted``.
        max: requests in a batch, or largest shapes: ``8``, ``"8x3x224x224"``, inputs separated by ``,``, profiles by
            ``;``. Without it, the model's batch size if that is fixed, otherwise 1.
        min: smallest batch the model is run with, padded with zeros, or smallest shapes, in the same form.
        rows: as in ``OnnxTensor``: ``batch`` vouches for what is proved otherwise.
        pad: requests of different lengths share a run, padded; as for ``OnnxTensor``.
        max_tokens: with ``pad``: requests of a run times what they are padded to, at most.
        precision: what the model computes in: ``fp32`` (with TensorFloat-32 where the GPU has it, TensorRT's default),
            ``fp16``, ``bf16`` (needs nvidia-modelopt), or ``int8`` for a file that is quantised already, with
            QuantizeLinear and DequantizeLinear. Inputs and outputs keep their types.
        precision_fp32: parts of names of the nodes that stay in float32 with ``fp16`` or ``bf16``.
        precision_fp16: parts of names of the nodes that are computed in float16 with ``fp32``.
        mean: put into the graph in front of every image input, as in ``OnnxTensor``.
        std: the same; divides. None zero.
        postprocessor: as in ``OnnxTensor``; ``cpu`` copies the results to the CPU. A callable gets tensors on the GPU.
        model_cache: where engines are kept: a folder, or one file that ends in ``.trt``, ``.engine`` or ``.plan``.
            Without it, ``fastpipe/engines`` in the user's cache folder. Nobody else should be able to write there.
        model_cache_bytes: how much a folder may hold; the engines not used for longest are deleted first.
        model_key: of an encrypted model: the environment variable that holds it, or a callable that returns it. A model
            that is not encrypted is then refused. Without it, ``FASTPIPE_MODEL_KEY`` is looked for if it is needed.
        device_id: which GPU, as torch counts.
        device: the same in words: ``"cuda:1"``, several of them, or ``"all"``: each instance goes to the one that has
            the fewest. With neither, where the instance's other steps are, otherwise the first.
        warm_up: run the largest and the smallest batch of each profile once, on zeros, while the instance is built.

    Raises:
        ConfigError: if the file is missing or no model, its key is missing or wrong, TensorRT cannot build it, the
            parameters do not fit it, or there is no such GPU.
        MissingExtra: if TensorRT and TensorRT-RTX, onnx, or what an encrypted model needs is missing.
    """

    def __init__(
        self,
        *,
        model: Annotated[Path, Existing()] | str | bytes,
        max: int | str | None = None,
        min: int | str | None = None,
        rows: Literal["batch"] | None = None,
        pad: str | list[int] | Mapping[str, Any] | None = None,
        max_tokens: Annotated[int, Between(1, 2**31 - 1)] | None = None,
        precision: Precision = "fp32",
        precision_fp32: list[str] | None = None,
        precision_fp16: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        postprocessor: str | Mapping[str, Any] | Callable[..., Any] = "split",
        model_cache: Path | None = None,
        model_cache_bytes: Annotated[int, Between(0, 2**60)] = DEFAULT_LIMIT_BYTES,
        model_key: ModelKey | None = None,
        device_id: DeviceId = None,
        device: list[str] | None = None,
        warm_up: bool = True,
    ) -> None:
        self._name = f"model of {len(model)} bytes" if isinstance(model, bytes) else f"model '{model}'"
        library = find_library()
        _need_onnx()
        try:
            source = open_model(model, model_key)
            self._claim = claim_gpu("TensorrtTensor", device, device_id)
            self.place, self.place_of = self._claim.place, place_of
            self._gpu = _open_gpu(self._claim.number)
            changed = with_precision(
                source.model,
                precision,
                float32=precision_fp32 or (),
                float16=precision_fp16 or (),
                mean=mean,
                std=std,
            )
            cache = EngineCache(model_cache or default_folder(), model_cache_bytes)
            wanted = _Wanted(library, source._replace(model=changed), self._gpu, max, min)
            with _use(self._gpu), _engines_lock:
                self._engine = _shared_engine(wanted, cache)
            graph = read_graph(changed)
            added_suffix = RAW_SUFFIX if mean is not None or std is not None else ""
            specs = _named(_specs(self._engine.inputs), graph, added_suffix)
            profiles = make_profiles(specs, max, min)
            self._inputs = EngineInputs(self._name, specs, profiles)
            self._take(self._inputs, profiles)
            self._output_names = [info.name for info in self._engine.outputs]
            output_shapes = [tuple(size if size >= 0 else "?" for size in info.shape) for info in self._engine.outputs]
            self._postprocessor = find_postprocessor(postprocessor, output_shapes)
            axes: LengthAxes | None = None
            if (padding := read_pad(pad, max_tokens)) is not None:
                shapes = list(zip(self._output_names, output_shapes, strict=True))
                axes = self._pad(padding, specs, shapes, profiles, functools.partial(EngineInputs, self._name))
            self.keeps_input = is_built_in(postprocessor)  # a function of the user's gets the requests themselves
            with _use(self._gpu):
                self._slots = {
                    profile: _Slot(self._engine, index, profile, specs, self._gpu.device)
                    for index, profile in enumerate(profiles)
                }
            if warm_up:
                self._warm_up(specs, profiles)
            if self._has_rows and rows is None and self._engine not in _proved:
                self._prove_rows(graph, specs, profiles)
                _proved.add(self._engine)
            if axes is not None:
                run = functools.partial(self._try, profiles)
                prove_lengths(run, axes, profiles, _tolerance(graph), is_vouched=rows is not None)
        except ConfigError as error:
            raise self._named(error) from error.__cause__

    def forward(self, batch: list[Request]) -> None:
        """Run the model on a batch; requests whose shapes differ are run apart.

        Raises:
            ItemErrors: for the requests that the model cannot take.
            BackendError: if TensorRT refuses, with its reasons and a note that names the model.
        """
        with self._gpu.stream.entered() as current:
            self._run_batch(self._inputs, batch, lambda group: self._run_requests(group, current.handle))
            for request in batch:
                hand_over(request.get("result"))

    def close(self) -> None:
        """Let go of the engine; results handed out stay valid."""
        self._claim.release()
        self._slots = {}
        del self._engine

    def _run_requests(self, group: Group, stream: int) -> None:
        """Run the model once, on requests of equal shapes."""
        fit = group[0][1].fit
        row_count = max(len(group), fit.profile.pad_to)
        by_input = zip(*[sample.arrays for _, sample in group], strict=True)
        outputs = self._run(fit.profile, list(by_input), fit.item_shapes, row_count, stream, fit=fit)
        if row_count > len(group):
            outputs = [output[: len(group)] for output in outputs]
        self._finish(outputs, [request for request, _ in group], row_count)

    def _run(
        self,
        profile: Profile,
        by_input: Sequence[Sequence[Any]],
        item_shapes: Sequence[tuple[int, ...]],
        row_count: int,
        stream: int,
        *,
        is_trial: bool = False,
        fit: Fit | None = None,
    ) -> list[torch.Tensor]:
        """Run the model and, but for a trial, check that every output has one row for each row of the inputs.

        Raises:
            UnfitError: for the rows with a number that became infinite, of requests that ``fit`` says it may of.
        """
        slot = self._slots[profile]
        shapes = [(row_count, *item) for item in item_shapes]
        try:
            output_shapes = slot.context.set_input_shapes(shapes, stream)
            problem = "" if is_trial else self._row_problem(self._output_names, output_shapes, row_count)
            if problem:
                raise BackendError(problem)
            inputs = [buffer[: math.prod(shape)].view(shape) for buffer, shape in zip(slot.inputs, shapes, strict=True)]
            for batch, rows in zip(inputs, by_input, strict=True):
                _fill(batch, rows)
            are_finite = None if fit is None else all_finite([inputs[index] for index in fit.narrowed])
            outputs = [
                torch.empty(shape, dtype=dtype, device=self._gpu.device)
                for shape, dtype in zip(output_shapes, slot.output_dtypes, strict=True)
            ]
            slot.context.run([*slot.addresses, *[output.data_ptr() for output in outputs]], stream)
            # Asked for behind the run, which it holds up by nothing.
            if fit is not None and are_finite is not None and not are_finite:
                self._inputs.refuse_overflow(fit, by_input)
        except UnfitError:
            raise
        except Exception as error:
            error.add_note(f"{self._name}, run with inputs of shape {', '.join(map(str, shapes))}")
            raise
        return outputs

    def _warm_up(self, specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> None:
        warmed: list[int] = []
        with self._gpu.stream.entered() as current:
            for profile in profiles:
                sizes = profile.batch_sizes()
                for size in dict.fromkeys((sizes[0], sizes[-1])):
                    self._run_on_zeros(specs, profile, size, current.handle)
                    warmed += [size] * (profile.largest_items() is not None)
        self.warmed_up = told_batches(warmed)

    def _run_on_zeros(self, specs: Sequence[InputSpec], profile: Profile, size: int, stream: int) -> None:
        """Run the largest items of a profile, so many; raise ConfigError if an output has not a row for each."""
        items = profile.largest_items()
        if items is None:
            return
        rows = [
            [torch.zeros((1, *item), dtype=torch_dtype(spec.dtype.name))] * size
            for item, spec in zip(items, specs, strict=True)
        ]
        outputs = self._run(profile, rows, items, size, stream, is_trial=True)
        if problem := self._row_problem(self._output_names, [output.shape for output in outputs], size):
            raise ConfigError(problem)

    def _try(self, profiles: Sequence[Profile], arrays: list[Array]) -> list[Array]:
        """Run the model on data that was made up."""
        items = tuple([array.shape[1:] for array in arrays])
        size = len(arrays[0])
        profile = next((each for each in profiles if each.takes(items) and size in each.batch_sizes()), None)
        if profile is None:
            raise ConfigError(f"no profile takes {size} of {items}")
        with self._gpu.stream.entered() as current:
            rows = [[torch.from_numpy(row) for row in np.split(array, size)] for array in arrays]
            outputs = self._run(profile, rows, items, size, current.handle, is_trial=True)
        return [to_array(output) for output in outputs]

    def _prove_rows(self, graph: Graph | None, specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        outputs = graph.outputs if graph is not None else [Output(name) for name in self._output_names]
        run = functools.partial(self._try, profiles)
        prove_rows(run, specs, profiles, outputs, tolerance=_tolerance(graph))


def _tolerance(graph: Graph | None) -> float:
    return max(COARSE, graph.tolerance if graph is not None else COARSE)


class _Gpu(NamedTuple):
    """A GPU, as torch sees it."""

    device: torch.device
    stream: InstanceStream
    description: dict[str, str]  # what an engine depends on


class _Wanted(NamedTuple):
    """An engine to be had."""

    library: Library
    source: ModelSource
    gpu: _Gpu
    max: int | str | None
    min: int | str | None

    def key(self) -> str:
        secret = self.source.secret
        return key_of(
            {
                "model": fingerprint(self.source.model),
                "max": str(self.max),
                "min": str(self.min),
                # Of 32 random bytes this tells nothing; after a change of the key, what was kept cannot be read.
                "secret": key_of({"secret": secret.hex()}) if secret is not None else "",
                **self.gpu.description,
                **_versions(self.library),
            }
        )

    def timings_key(self) -> str:
        return key_of({"timings": True, **self.gpu.description, **_versions(self.library)})

    def profiles(self, inputs: Sequence[TensorInfo]) -> list[ProfileShapes]:
        """Return the shapes of each profile, for a network with these inputs."""
        specs = _specs(inputs)
        return [_profile_shapes(specs, profile) for profile in make_profiles(specs, self.max, self.min)]


class _Slot:
    """What an instance has for one profile: a context, and memory for its inputs, whose address never changes."""

    def __init__(
        self, engine: Engine, index: int, profile: Profile, specs: Sequence[InputSpec], device: torch.device
    ) -> None:
        self.context: Context = engine.context(index)
        rows = profile.batch_sizes()[0]
        self.inputs = [
            torch.empty(rows * math.prod(item), dtype=torch_dtype(spec.dtype.name), device=device)
            for spec, item in zip(specs, profile.largest_items() or (), strict=True)
        ]
        self.addresses = [buffer.data_ptr() for buffer in self.inputs]
        self.output_dtypes = [torch_dtype(info.dtype) for info in engine.outputs]


def _open_gpu(device_id: int) -> _Gpu:
    device = torch_gpu("TensorrtTensor", device_id)
    properties = torch.cuda.get_device_properties(device_id)
    return _Gpu(
        device,
        InstanceStream(device_id),
        {
            "GPU": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "CUDA": str(torch.version.cuda).partition(".")[0],
            "system": f"{platform.system()} {platform.machine()}",
        },
    )


def _use(gpu: _Gpu) -> Any:
    """Return the context in which TensorRT builds and loads for that GPU."""
    return torch.cuda.device(gpu.device)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("TensorrtTensor", "tensorrt", error) from error


def _versions(library: Library) -> dict[str, str]:
    return {"library": library.title, "version": library.version}


def _shared_engine(wanted: _Wanted, cache: EngineCache) -> Engine:
    """Return the engine that other instances on that GPU run, or load it, or build it; with the lock held."""
    key, secret = wanted.key(), wanted.source.secret
    name = key, wanted.gpu.device.index or 0
    engine = _engines.get(name)
    if engine is not None:
        return engine

    timings_cache, timings_key = EngineCache(default_folder()) if cache.is_file else cache, wanted.timings_key()

    def build() -> bytes:
        plan, measured = wanted.library.build(
            wanted.source.model, wanted.profiles, timings_cache.peek(timings_key) or b""
        )
        if measured:
            timings_cache.put(timings_key, measured)
        return plan if secret is None else encrypt(plan, secret, "the engine")

    plan = cache.get(key, build)
    if secret is not None:
        plan = decrypt(plan, secret, "the engine that was kept")
    engine = _engines[name] = wanted.library.load(plan)
    return engine


def _specs(inputs: Sequence[TensorInfo]) -> list[InputSpec]:
    for info in inputs:
        if info.dtype == "bfloat16":
            raise ConfigError(f"input {info.name!r} is bfloat16, which no request can be checked for; make it float32")
    return [
        InputSpec(info.name, np.dtype(info.dtype), tuple(size if size >= 0 else "?" for size in info.shape))
        for info in inputs
    ]


def _named(specs: Sequence[InputSpec], graph: Graph | None, added_suffix: str) -> list[InputSpec]:
    """Return inputs with the names that the file has for their open axes, and without what normalisation put there."""
    named = []
    for spec in specs:
        axes = graph.inputs.get(spec.name, spec.shape) if graph is not None else spec.shape
        shape = tuple(name if size == "?" else size for size, name in zip(spec.shape, axes, strict=True))
        named.append(InputSpec(spec.name.removesuffix(added_suffix), spec.dtype, shape))
    return named


def _profile_shapes(specs: Sequence[InputSpec], profile: Profile) -> ProfileShapes:
    largest = profile.largest_items()
    if largest is None:
        open_inputs = [
            f"{spec.name!r} {('batch', *spec.shape[1:])}"
            for spec, limits in zip(specs, profile.limits, strict=True)
            if any(high is None for _, high in limits)
        ]
        raise ConfigError(
            f"max must say the largest size of every axis that the model leaves open, as in '8x3x224x224': "
            f"{', '.join(open_inputs)}"
        )
    sizes = profile.batch_sizes()
    most, least = sizes[0], sizes[-1]
    return {
        spec.name: ((least, *(low for low, _ in limits)), (most, *item), (most, *item))
        for spec, limits, item in zip(specs, profile.limits, largest, strict=True)
    }


def _fill(batch: torch.Tensor, rows: Sequence[torch.Tensor]) -> None:
    """Copy the rows into a batch, converted if need be; those behind the last become zeros."""
    row_shape = (1, *batch.shape[1:])
    on_device = [row.reshape(row_shape).to(batch.device, non_blocking=True) for row in rows]
    if len(rows) == 1:
        batch[:1].copy_(on_device[0])
    else:
        torch.cat(on_device, out=batch[: len(rows)])
    if len(rows) < len(batch):
        batch[len(rows) :].zero_()
