"""OnnxTensor: a model in an ONNX file, run by ONNX Runtime.

    {"backend": "OnnxTensor", "model": "resnet.onnx", "max": 8, "instance_num": 2}

How a request travels: ``reader`` checks its data against the model and gathers requests of equal shape into one
array per input, ONNX Runtime runs, ``postprocessors`` turns the rows of the outputs into results. ``shapes``
reads ``max`` and ``min``; ``onnx_graph`` changes the graph for ``mean``, ``std``, ``fuse`` and ``precision``.
"""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastpipe.announcing import announced_array
from fastpipe.contract import Between, Existing, Request
from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import BackendError, ConfigError

from .answers import Answers, Run, chosen_outputs, compared
from .axes import Declared, input_axes, read_wishes, settled, with_axes
from .encrypted import ModelKey
from .half_inputs import HalfInputs
from .inputs import Array, ModelInputs, as_it_comes, gather, to_torch, zeros
from .onnx_files import identity_of
from .onnx_graph import HALF_INPUTS, RAW_SUFFIX, prepare
from .onnx_kinds import axes_of, comparable, dtype_of, input_spec, plain
from .onnx_options import RuntimeSettings
from .onnx_rows import Graph, known_outputs, read_once
from .onnx_session import RuntimeSession
from .onnx_values import check_postprocessor, tensors_of, values_of
from .postprocessors import find_postprocessor, is_built_in
from .row_proof import COARSE, FINE, prove_once, prove_rows, rows_in
from .runs import Group, ModelBackend, run_in_groups
from .shapes import InputSpec, Profile, make_profiles, told_batches
from .source import open_model

__all__ = ["OnnxModel", "OnnxTensor", "Session"]


class Session(Protocol):
    """A model that is loaded, in whatever runs it."""

    inputs: list[Any]  # each with name, type and shape, as ONNX Runtime has them
    outputs: list[Any]
    metadata: dict[str, str]
    device: str | None  # a GPU whose torch tensors it takes as they lie, in torch's words

    def run(self, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return these outputs of the model for a value of each input, in its order."""


class OnnxModel(ModelBackend):
    """Run an ONNX model in batches: what all backends have in common whose models are ONNX files.

    A subclass says by ``_open_session`` what runs them, and sets ``_is_fine`` and ``_runtime`` there.

    **In**: ``data`` is an array, or for several inputs a list of arrays in the model's order or a mapping from input
    name to array. Each is one sample, with a batch axis of 1 in front (``1CHW``) or without (``CHW``): NumPy, torch,
    or anything else on the CPU with ``__dlpack__``. Integers and wider floats are converted where the model wants
    floats (rounded, if need be), and integers to wider integers; any other type is an error.

    **Out**: ``result`` is the output's row with a batch axis of 1, or a list of them where the model has several
    outputs; torch tensors if the request brought torch tensors. It is a view of an array made for this batch: yours to
    change, and it keeps the batch's outputs alive; copy it to keep one of many for long. See ``postprocessor`` for
    other results.

    **One request at a time** (``max`` 1, the default where no batch is fixed): the model runs as it is. A request may
    bring any shapes that the model takes, several rows too; nothing but a missing batch axis is added, and the outputs
    are handed out whole.

    **Axes**: the requests may be on another axis than the first (``[layers, batch, n]``), and an input may have none,
    as a scalar: then all requests of a batch share it, and those with other values run apart. The names of axes in the
    file, and shape inference, say where; ``batch_axis`` and ``shared`` have the last word. A request brings the shapes
    of the model, with 1 on the batch axis or without it, and gets such; in ``max`` and ``min`` the batch comes first
    everywhere, also of what has none.

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
        many_rows: a request may bring any number of rows up to ``max``, also none. It counts as so many towards
            ``max``, and its answer has as many. Other postprocessors than ``split``, ``cpu`` and ``SoftmaxCpu`` get a
            request for each row, and what they set becomes a list.
        batch_axis: by the name of an input or output, on which axis the requests are: ``{state = 1, sr = "none"}``.
            "none": the batch shares the input; the output is one for all, and each request gets a copy.
        shared: inputs that the batch shares: their names, or name -> example, a value with which the model is tried.
            They are compared by value, up to 64 KiB; with more a request runs alone.
        split_by: by the name of an output that has rows of all requests together, the column that has the request's
            number: ``{boxes = 0}``. Each request gets its rows, with the number 0 there. A function as postprocessor
            gets a list with an array for each request.
        outputs: names of the outputs that are handed on, in this order. Others are not computed, and need no proof.
        result_as: ``dict``: ``result`` has the outputs by their names, also an only one.
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
        threads: computing threads of all instances together. Without it, the CPUs this process may use.
        warm_up: run every batch size once, on zeros, while the instance is built. Where an item's size is open, this
            needs ``max`` to have shapes, and is done with those.
        model_key: of an encrypted model: the environment variable that holds it, or a callable that returns it. A model
            that is not encrypted is then refused. Without it, ``FASTPIPE_MODEL_KEY`` is looked for if it is needed.

    Raises:
        ConfigError: if the file is missing or no model, its key is missing or wrong, or the parameters do not fit it.
        MissingExtra: if ``mean``, ``std``, ``fuse`` or ``precision`` ask for a changed graph and the package onnx is
            missing, or the model is encrypted and cryptography is.
    """

    _is_fine = True
    """Whether it computes in float32 as a CPU does, so that rows are held against each other finely."""
    _runtime = ""
    """What else an answer depends on than model and shapes."""
    _custom_ops: Sequence[Path] = ()
    """Libraries with operators of the model."""

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
        many_rows: bool = False,
        batch_axis: Mapping[str, Any] | None = None,
        shared: list[str] | Mapping[str, Any] | None = None,
        split_by: Mapping[str, Any] | None = None,
        outputs: list[str] | None = None,
        result_as: Literal["list", "dict"] = "list",
        threads: Annotated[int, Between(1, 4096)] | None = None,
        warm_up: bool = True,
        model_key: ModelKey | None = None,
    ) -> None:
        self._name = f"model of {len(model)} bytes" if isinstance(model, bytes) else f"model '{model}'"
        scratch = ExitStack()
        try:
            opened = open_model(model, model_key)
            source, self._is_encrypted = opened.model, opened.secret is not None
            key = identity_of(source), precision, repr((mean, std)), fuse
            is_normalized = mean is not None or std is not None
            if is_normalized or fuse or precision == "fp16":
                folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="fastpipe-")))
                changes: dict[str, Any] = {"half": precision == "fp16", "mean": mean, "std": std, "fuses": fuse}
                source = prepare(source, **changes, custom_ops=self._custom_ops, folder=folder)
            self._session: Any = self._open_session(source, (threads or usable_cpu_count()) // instance_num)
            chosen = self._choose_outputs(outputs)
            suffix = RAW_SUFFIX if is_normalized else ""
            names = [name.removesuffix(suffix) for name in self._feed_names]
            self._values = values_of(self._name, names, self._session.inputs, chosen, max)
            self._has_maps = any(value.type.startswith("seq(map(") for value in chosen) and is_built_in(postprocessor)
            if self._values is not None:
                others = {"min": min, "batch_axis": batch_axis, "shared": shared, "split_by": split_by}
                others |= {"many_rows": many_rows, "precision": precision == "fp16" and precision}
                self._take_values(postprocessor, [key for key, value in others.items() if value], result_as == "dict")
                return
            check_postprocessor(postprocessor, chosen)
            specs = [input_spec(each, suffix) for each in self._session.inputs]
            declared = [(value.name, axes_of(value)) for value in chosen]
            wishes = read_wishes(
                batch_axis, shared, split_by, [spec.name for spec in specs], [name for name, _ in declared]
            )
            axes, batch = input_axes(specs, wishes)
            specs = with_axes(specs, axes, wishes)
            self._dtypes = [spec.dtype for spec in specs]
            profiles = make_profiles(specs, max, min)
            # In half precision, all values are looked at on the CPU.
            device = None if precision == "fp16" else self._session.device
            self._inputs = ModelInputs(self._name, specs, profiles, device)
            halves = []
            if precision == "fp16":  # written by prepare(); of a file as it is, they are anybody's
                halves = json.loads(self._session.metadata[HALF_INPUTS])
            # Checked when a batch is run, not whenever a request is looked at.
            self._inputs_to_run = HalfInputs(self._name, specs, profiles, halves) if halves else self._inputs
            self._take(self._inputs, profiles, specs, many_rows=many_rows)
            graph = None
            if self._has_rows:
                graph = read_once(key, source, dict(zip(self._feed_names, axes, strict=True)))
            self._axes = settled(declared, wishes, axes, batch, graph.carried if graph else None)
            found = find_postprocessor(postprocessor, self._axes.row_shapes(declared))
            self._answers = Answers(found, self._axes, as_dict=result_as == "dict", has_many_rows=many_rows)
            self.keeps_input = is_built_in(postprocessor)  # a function of the user's gets the requests themselves
            self._announce(declared, postprocessor)

            def prove() -> None:
                is_fine = precision == "fp32" and self._is_fine
                proof = key, max, min, self._runtime, tuple(self._output_names), str((self._axes, shared))
                prove_once(proof, lambda: self._prove_rows(graph, specs, profiles, is_fine=is_fine))

            self._build_up(prove if rows is None else None, lambda: self._warm_up(specs, profiles) if warm_up else None)
        except ConfigError as error:
            raise self._named(error) from error.__cause__
        finally:
            scratch.close()

    def forward(self, batch: list[Request]) -> None:
        """Run the model on a batch; requests whose shapes differ are run apart.

        Raises:
            ItemErrors: for the requests that the model cannot take.
            Exception: what ONNX Runtime raises, with a note that names the model and the shapes.
        """
        run_in_groups(self._values or self._inputs_to_run, batch, self._run_requests)

    @abstractmethod
    def _open_session(self, source: Path | bytes, thread_count: int) -> Session:
        """Return the model, loaded, to be run with so many threads."""

    def close(self) -> None:
        """Let go of the model; results handed out stay valid."""
        self._session = None

    def _choose_outputs(self, wanted: Sequence[str] | None) -> list[Any]:
        """Take the names of inputs and outputs; return the outputs that are handed on."""
        known = {value.name: value for value in self._session.outputs}
        self._feed_names = [value.name for value in self._session.inputs]
        self._output_names = chosen_outputs(wanted, list(known))
        return [known[name] for name in self._output_names]

    def _take_values(self, postprocessor: Any, unfit_keys: Sequence[str], as_dict: bool) -> None:
        """Take requests as they come, one at a time, as values of which no batch can be made."""
        if unfit_keys:
            raise ConfigError(
                f"it takes or gives sequences, maps or what may be missing, and so runs one request at a time as it "
                f"comes: leave out {', '.join(unfit_keys)}"
            )
        if is_built_in(postprocessor) and postprocessor not in ("split", "cpu"):
            raise ConfigError(f"postprocessor={postprocessor!r} needs arrays: take split, or a function of your own")
        found = find_postprocessor("split" if is_built_in(postprocessor) else postprocessor, [])
        self._answers = Answers(found, self._axes, as_dict=as_dict, has_many_rows=False)
        self.keeps_input = is_built_in(postprocessor)
        self._reader: Any = self._values
        self.max_batch = 1

    def _announce(self, declared: Sequence[Declared], postprocessor: Any) -> None:
        """Tell servers of an only output."""
        if len(declared) == 1 and self._has_rows and self._answers.are_plain and postprocessor in ("split", "cpu"):
            ((name, shape),) = declared
            kind = next(value.type for value in self._session.outputs if value.name == name)
            if not kind.startswith("seq("):
                self.announced_outputs = announced_array(name, dtype_of("output", name, kind).name, shape[1:], "result")

    def _run_requests(self, group: Group) -> None:
        """Run the model once, on requests of equal shapes."""
        self._fill(group)
        if self._has_maps:
            for request, _ in group:
                request["result"] = plain(request["result"])

    def _fill(self, group: Group) -> None:
        fit = group[0][1].fit
        requests = [request for request, _ in group]
        if self._values is not None:
            ((request, sample),) = group
            outputs = self._call(sample.arrays)
            self._answers.fill_alone(
                self._output_names, [tensors_of(each) for each in outputs] if sample.is_torch else outputs, request
            )
            return
        by_input = list(zip(*[sample.arrays for _, sample in group], strict=True))
        if fit.as_it_comes is not None:
            alone = zip(group[0][1].arrays, fit.as_it_comes, self._dtypes, strict=True)
            inputs = [as_it_comes(array, shape, dtype) for array, shape, dtype in alone]
            if fit.narrowed:
                self._inputs.refuse_overflow(fit, by_input, inputs)
            outputs = self._outputs_of(self._call(inputs), group)
            self._answers.fill_alone(self._output_names, outputs, requests[0])
            return
        counts = [sample.fit.rows for _, sample in group]
        total = sum(counts)
        row_count = max(total, fit.profile.pad_to, 1)
        inputs = [
            gather(arrays, item_shape, row_count, dtype, axis)
            for arrays, item_shape, dtype, axis in zip(
                by_input, fit.item_shapes, self._dtypes, self._axes.inputs, strict=True
            )
        ]
        if fit.narrowed:
            self._inputs.refuse_overflow(fit, by_input, inputs)
        outputs = self._run(inputs, row_count)
        if row_count > total:
            outputs = self._axes.without_padding(self._output_names, outputs, total)
        outputs = self._outputs_of(outputs, group)

        def row(number: int, index: int) -> Request:
            return self._inputs.one_row(*group[number], index)

        self._answers.fill(Run(self._output_names, outputs, requests, counts, row_count, row))

    def _outputs_of(self, outputs: list[Any], group: Group) -> list[Any]:
        """Return outputs as the kind of arrays that the requests have brought."""
        return to_torch(outputs) if group[0][1].is_torch else outputs

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on what it takes.

        Raises:
            Exception: what ONNX Runtime raises, with a note that names the model and the shapes.
        """
        try:
            outputs: list[Array] = self._session.run(self._output_names, arrays)
        except Exception as error:
            error.add_note(f"{self._name}, run with inputs of shape {_shapes(arrays)}")
            raise
        return outputs

    def _compute(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on arrays with the requests in front, and return such."""
        if self._axes.is_plain:
            return self._call(arrays)
        return self._axes.to_rows(self._output_names, self._call(self._axes.to_model(arrays)))

    def _run(self, arrays: Sequence[Array], row_count: int) -> list[Array]:
        """Run the model and check that every output has one row for each row of the inputs."""
        outputs = self._compute(arrays)
        problem = self._row_problem(self._output_names, [output.shape for output in outputs], row_count)
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
                arrays = zeros(specs, items, size)
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

    def _prove_rows(
        self, graph: Graph | None, specs: Sequence[InputSpec], profiles: Sequence[Profile], *, is_fine: bool
    ) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""

        def run(arrays: list[Array]) -> list[Array]:
            row_count = rows_in(specs, arrays)
            outputs = [comparable(output) for output in self._compute(arrays)]
            return compared(self._axes, self._output_names, outputs, row_count)

        tolerance = max(FINE if is_fine else COARSE, graph.tolerance if graph is not None else FINE)
        prove_rows(run, specs, profiles, known_outputs(graph, self._axes, self._output_names), tolerance=tolerance)


class OnnxTensor(OnnxModel):
    """Run an ONNX model in ONNX Runtime, on the CPU or by another of its execution providers, in batches.

    What goes in and out, and the parameters not named here, are those of ``OnnxModel``: ``model``, ``max``, ``min``,
    ``rows``, ``instance_num``, ``precision``, ``mean``, ``std``, ``fuse``, ``postprocessor``, ``threads``,
    ``warm_up`` and ``model_key``.

    **Other values**: text is an array of ``str``; what NumPy has no dtype for is one of ml_dtypes; a row of ``ZipMap``
    is a dict. Models with sequences, maps or what may be missing run one request at a time, as it comes.

    **GPUs**: if the first provider computes on one, torch tensors of the input's dtype on it are taken as they lie, and
    the results are tensors there.

    Args:
        providers: names of execution providers, in order of preference; ONNX Runtime gives each operator to the first
            that has it, and what none has to the CPU. One that this ONNX Runtime lacks, or that cannot be started, is
            an error.
        provider_options: of each provider, by its name, as ONNX Runtime documents them:
            ``{"CUDAExecutionProvider": {"device_id": 1}}``.
        fallback: leave out providers that cannot be had, and say so in the log; if none is left, take the CPU.
        session_options: of ONNX Runtime's ``SessionOptions``, by their names, the levels and modes as ``"all"``,
            ``"parallel"`` and so on; names with a dot are configuration entries: ``session.disable_prepacking``.
            Unless they say otherwise, idle threads do not spin, and ONNX Runtime logs nothing that it also raises.
        run_options: of each run, in the same form; ``{"memory.enable_memory_arena_shrinkage": "cpu:0"}`` gives memory
            back after each.
        custom_ops: libraries with operators of one's own, loaded before the model.
        trusted: load them; their code is run.

    Raises:
        ConfigError: also if an option does not exist, or a library is not there or not ``trusted``.
    """

    def __init__(
        self,
        *,
        providers: list[str] | None = None,
        provider_options: Mapping[str, Any] | None = None,
        fallback: bool = False,
        session_options: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        custom_ops: list[Path] | None = None,
        trusted: bool = False,
        **of_the_model: Any,
    ) -> None:
        self._settings = RuntimeSettings(
            providers=providers or ["CPUExecutionProvider"],
            provider_options=provider_options or {},
            falls_back=fallback,
            session=session_options or {},
            run=run_options or {},
            custom_ops=[Path(path) for path in custom_ops or ()],
            trusted=trusted,
        )
        self._custom_ops = self._settings.custom_ops
        super().__init__(**of_the_model)

    def _open_session(self, source: Path | bytes, thread_count: int) -> Session:
        session = RuntimeSession(source, thread_count, self._settings)
        self._is_fine, self._runtime = self._settings.is_plain, self._settings.identity
        return session


def _shapes(values: Sequence[Any]) -> str:
    return ", ".join(str(getattr(value, "shape", type(value).__name__)) for value in values)
