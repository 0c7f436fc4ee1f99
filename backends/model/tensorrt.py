"""TensorrtTensor: a model in an ONNX file, built for the GPU at hand and run by TensorRT or TensorRT-RTX.

    {"backend": "S[TensorrtTensor,SyncTensor]", "model": "resnet.onnx", "max": 8, "precision": "fp16"}

How a model becomes an engine: ``source`` reads it, ``onnx_runtime.precision`` puts types and normalisation into its
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

import torch

from fastpipe.contract import Between, Existing, Request
from fastpipe.errors import BackendError, ConfigError, MissingExtra

from ..gpu.devices import DeviceId, claim_gpu, place_of, torch_gpu
from ..gpu.streams import InstanceStream, hand_over
from ..tensor.arrays import all_finite
from .answers import Answers, compared, tell_of_empty_tables
from .axes import Declared, Said, settled
from .encrypted import ModelKey, decrypt, encrypt
from .engine_cache import DEFAULT_LIMIT_BYTES, EngineCache, default_folder, key_of
from .engine_inputs import EngineInputs, Slot, fill
from .engine_shapes import EngineAxes, open_shape, profile_shapes
from .heads.postprocessors import find_postprocessor, is_built_in
from .inputs import Array, to_array, zeros
from .length_proof import prove_lengths
from .onnx_runtime.graph import RAW_SUFFIX
from .onnx_runtime.precision import Precision, with_precision
from .onnx_runtime.rows import Graph, known_outputs, read_graph
from .pad_keys import read_pad
from .reader import Fit, UnfitError
from .row_proof import COARSE, prove_rows, rows_in
from .runs import Group, ModelBackend
from .shapes import InputSpec, Profile, make_profiles, told_batches
from .source import ModelSource, fingerprint, open_model
from .state import ModelState, StateWish, handed_on, read_state, with_states
from .state_proof import check_state, prove_state
from .tensorrt_api import Engine, Library, ProfileShapes, TensorInfo, find_library

__all__ = ["TensorrtTensor"]

# Of a process: (key, number of the GPU) -> the engine that its instances share. A lock for all: loading is quick, and
# builds come one after the other anyway.
_engines: weakref.WeakValueDictionary[tuple[str, int], Engine] = weakref.WeakValueDictionary()
_engines_lock = threading.Lock()
# Those of them whose outputs' rows are known to be the requests', with the axes and outputs for which they are.
_proved: weakref.WeakKeyDictionary[Engine, set[object]] = weakref.WeakKeyDictionary()


class TensorrtTensor(ModelBackend):
    """Run an ONNX model on an NVIDIA GPU, in batches, by an engine that TensorRT builds from it.

    **In**: as for ``OnnxTensor``, and torch tensors on the GPU, where nothing leaves it; what is elsewhere is copied
    there.

    **Out**: ``result`` is the output's row as a torch tensor on the GPU, with a batch axis of 1, or a list of them
    where the model has several outputs. It is a view of memory made for this batch, never of the engine's: yours to
    change. Outside of a ``SyncTensor`` it is complete when ``forward`` returns; within one, on its stream.

    **Batches, rows, axes**: as for ``OnnxTensor``. An engine takes what lies within its profiles: ``max`` must say the
    largest size of every axis that the model leaves open, and with ``max`` 1 a request brings one row, or all of a
    fixed batch.

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
        many_rows: as in ``OnnxTensor``: a request may bring any number of rows up to ``max``.
        batch_axis: as in ``OnnxTensor``: by name, on which axis the requests are.
        shared: as in ``OnnxTensor``: inputs that the batch shares. On a GPU they are not compared: such a request runs
            alone.
        split_by: as in ``OnnxTensor``: outputs with rows of all requests together -> the column with their number.
        outputs: names of the outputs that are handed on, in this order; the engine computes all.
        result_as: ``dict``: ``result`` has the outputs by their names, also an only one.
        state: as in ``OnnxTensor``: which output of a run is which input of the sequence's next; kept on the GPU.
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
        pad: str | list[int] | list[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        max_tokens: Annotated[int, Between(1, 2**31 - 1)] | None = None,
        many_rows: bool = False,
        batch_axis: Mapping[str, Any] | None = None,
        shared: list[str] | Mapping[str, Any] | None = None,
        split_by: Mapping[str, Any] | None = None,
        outputs: list[str] | None = None,
        result_as: Literal["list", "dict"] = "list",
        state: Mapping[str, Any] | None = None,
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
            added_suffix = RAW_SUFFIX if mean is not None or std is not None else ""
            own_axes = EngineAxes(changed, read_graph(changed), added_suffix, Said(batch_axis, shared, split_by))
            wanted = _Wanted(library, source._replace(model=changed), self._gpu, max, min, own_axes)
            with _use(self._gpu), _engines_lock:
                self._engine = _shared_engine(wanted, cache)
            known = [info.name for info in self._engine.outputs]
            specs, wishes, batch = own_axes.specs(self._engine.inputs, known)
            names = [spec.name for spec in specs]
            states = read_state(state, names, known, many_rows=many_rows, is_padded=pad is not None)
            wishes = with_states(wishes, states, {spec.name: spec.axis for spec in specs})
            profiles = make_profiles(specs, max, min)
            self._take_requests(specs, profiles, states, many_rows=many_rows)
            graph = own_axes.graph_of(specs)
            self._choose_outputs(outputs, states)
            declared = [(info.name, open_shape(info.shape)) for info in self._chosen]
            axes = [spec.axis for spec in specs]
            self._axes = settled(declared, wishes, axes, batch, graph.carried if graph is not None else None)
            answered = self._take_outputs(states, specs, declared)
            found = find_postprocessor(postprocessor, self._axes.row_shapes(answered), self._asked_names)
            self._answers = Answers(found, self._axes, as_dict=result_as == "dict", has_many_rows=many_rows)
            reader_of = functools.partial(EngineInputs, self._name)
            lengths = self._pad(read_pad(pad, max_tokens), specs, declared, profiles, reader_of)
            self.keeps_input = is_built_in(postprocessor)  # a function of the user's gets the requests themselves
            with _use(self._gpu):
                self._slots = {
                    profile: Slot(self._engine, index, profile, specs, self._gpu.device)
                    for index, profile in enumerate(profiles)
                }
            proof = str((self._axes, shared)), tuple(self._output_names)

            def prove() -> None:
                if proof not in _proved.setdefault(self._engine, set()):
                    self._prove_rows(graph, specs, profiles)
                    _proved[self._engine].add(proof)

            self._build_up(None if rows else prove, lambda: self._warm_up(specs, profiles) if warm_up else None)
            run = functools.partial(self._try, specs, profiles)
            prove_state(run, states, self._state.initial_arrays, specs, profiles)
            if lengths is not None:
                prove_lengths(run, lengths, profiles, _tolerance(graph), is_vouched=rows is not None)
            self._announce(answered, {info.name: info.dtype for info in self._chosen}, postprocessor)
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
                if self._state:
                    hand_over(request.get("state"))

    def close(self) -> None:
        """Let go of the engine; results handed out stay valid."""
        self._claim.release()
        self._slots = {}
        del self._engine

    def _run_requests(self, group: Group, stream: int) -> None:
        """Run the model once, on requests of equal shapes."""
        fit = group[0][1].fit
        by_input = list(zip(*[sample.arrays for _, sample in group], strict=True))
        if fit.as_it_comes is not None:
            outputs = self._run(fit.profile, by_input, fit.as_it_comes, stream, fit=fit)
            count = len(outputs) - len(self._state.outputs)
            self._answers.fill_alone(self._output_names[:count], outputs[:count], group[0][0])
            if self._state:
                self._state.keep_whole(outputs[count:], group[0][0])
            return
        total = sum([sample.fit.rows for _, sample in group])
        row_count = max(total, fit.profile.pad_to, 1)
        outputs = self._run_rows(fit.profile, by_input, fit.item_shapes, row_count, stream, fit=fit)
        if row_count > total:
            outputs = self._axes.without_padding(self._output_names, outputs, total)
        count = len(outputs) - len(self._state.outputs)
        self._finish(outputs[:count], group, row_count)
        self._state.keep(self._axes, outputs[count:], [request for request, _ in group])

    def _run_rows(
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
        """Run the model on rows, and return its outputs with the requests in front.

        But for a trial, every output is held against the number of rows; otherwise as ``_run``.
        """
        specs = self._slots[profile].specs
        shapes = [spec.full(item, row_count) for spec, item in zip(specs, item_shapes, strict=True)]
        outputs = self._run(profile, by_input, shapes, stream, row_count=None if is_trial else row_count, fit=fit)
        return self._axes.to_rows(self._output_names, outputs)

    def _run(
        self,
        profile: Profile,
        by_input: Sequence[Sequence[Any]],
        shapes: Sequence[tuple[int, ...]],
        stream: int,
        *,
        row_count: int | None = None,
        fit: Fit | None = None,
    ) -> list[torch.Tensor]:
        """Run the model on inputs of these shapes; ``row_count`` None: its outputs need have no rows.

        Raises:
            UnfitError: for the rows with a number that became infinite, of requests that ``fit`` says it may of.
        """
        slot = self._slots[profile]
        try:
            output_shapes = slot.context.set_input_shapes(shapes, stream)
            if row_count is not None:
                chosen = [(self._output_names[at], output_shapes[place]) for at, place in enumerate(self._places)]
                if problem := self._row_problem(self._output_names, self._axes.row_shapes(chosen), row_count):
                    raise BackendError(problem)
            inputs = [buffer[: math.prod(shape)].view(shape) for buffer, shape in zip(slot.inputs, shapes, strict=True)]
            for spec, batch, rows in zip(slot.specs, inputs, by_input, strict=True):
                fill(spec, batch, rows, is_whole=fit is not None and fit.as_it_comes is not None)
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
        return [outputs[place] for place in self._places]

    def _take_requests(
        self, specs: Sequence[InputSpec], profiles: Sequence[Profile], states: Sequence[StateWish], *, many_rows: bool
    ) -> None:
        """Take what reads requests, and completes their data by a state, which is kept on the GPU."""

        def placed(array: Array) -> torch.Tensor:
            return torch.from_numpy(array).to(self._gpu.device)

        self._inputs = EngineInputs(self._name, specs, profiles)
        kept = [wish.input for wish in states]
        asked = [spec for spec in specs if spec.name not in kept]
        self._take(self._inputs, profiles, asked, many_rows=many_rows)
        runs_alone = self._inputs.runs_alone
        self._take_state(ModelState(self._name, states, specs, shares_runs=not runs_alone, placed=placed))

    def _take_outputs(
        self, states: Sequence[StateWish], specs: Sequence[InputSpec], declared: Sequence[Declared]
    ) -> Sequence[Declared]:
        """Return the outputs that are no state; raise ConfigError for a state that is not what its input takes."""
        shapes = zip(declared, self._axes.row_shapes(declared), strict=True)
        check_state(states, specs, {name: (None, shape) for (name, _), shape in shapes})
        return declared[: len(declared) - len(states)]

    def _choose_outputs(self, wanted: Sequence[str] | None, states: Sequence[StateWish]) -> None:
        """Take the outputs that are handed on, and the states: names, what is known, and places in the engine."""
        known = {info.name: info for info in self._engine.outputs}
        self._output_names = handed_on(wanted, list(known), [wish.output for wish in states])
        self._chosen = [known[name] for name in self._output_names]
        self._places = [list(known).index(name) for name in self._output_names]

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
        rows = [[torch.from_numpy(array)] for array in self._axes.to_model(zeros(specs, items, size))]
        outputs = self._run_rows(profile, rows, items, size, stream, is_trial=True)
        if problem := self._row_problem(self._output_names, [output.shape for output in outputs], size):
            raise ConfigError(problem)

    def _try(self, specs: Sequence[InputSpec], profiles: Sequence[Profile], arrays: Sequence[Array]) -> list[Array]:
        """Run the model on data that was made up, with the requests in front."""
        items = tuple([array.shape[not spec.is_shared :] for spec, array in zip(specs, arrays, strict=True)])
        size = rows_in(specs, arrays)
        profile = next((each for each in profiles if each.takes(items) and size in each.batch_sizes()), None)
        if profile is None:
            raise ConfigError(f"no profile takes {size} of {items}")
        with self._gpu.stream.entered() as current:
            rows = [[torch.from_numpy(array)] for array in self._axes.to_model(arrays)]
            outputs = self._run_rows(profile, rows, items, size, current.handle, is_trial=True)
        return [to_array(output) for output in outputs]

    def _prove_rows(self, graph: Graph | None, specs: Sequence[InputSpec], profiles: Sequence[Profile]) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        seen: set[str] = set()

        def run(arrays: list[Array]) -> list[Array]:
            outputs = self._try(specs, profiles, arrays)
            return compared(self._axes, self._output_names, outputs, rows_in(specs, arrays), seen)

        known = known_outputs(graph, self._axes, self._output_names)
        prove_rows(run, specs, profiles, known, tolerance=_tolerance(graph))
        tell_of_empty_tables(self._name, self._axes, self._output_names, seen)


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
    axes: EngineAxes

    def key(self) -> str:
        secret = self.source.secret
        return key_of(
            {
                **self.axes.description(),
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
        specs, _, _ = self.axes.specs(inputs, None)
        names = [info.name for info in inputs]
        return [profile_shapes(names, specs, profile) for profile in make_profiles(specs, self.max, self.min)]


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
