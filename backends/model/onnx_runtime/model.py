"""OnnxModel: a model in an ONNX file, whatever runs it.

How a request travels: ``reader`` checks its data against the model and gathers requests of equal shape into one
array per input, the session runs, ``answers`` turns the rows of the outputs into results. ``shapes`` reads ``max`` and
``min``; ``graph`` changes the graph for ``mean``, ``std``, ``fuse`` and ``precision``.
"""

from __future__ import annotations

import functools
import json
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastpipe.contract import Between, Existing, Request
from fastpipe.cpus import usable_cpu_count
from fastpipe.errors import BackendError, ConfigError

from ..answers import Answers, compared, tell_of_empty_tables
from ..axes import input_axes, read_wishes, settled, with_axes
from ..encrypted import ModelKey
from ..fast_path import fast_path_of
from ..heads.postprocessors import find_postprocessor, is_built_in
from ..inputs import Array, ModelInputs, as_it_comes, gather, to_torch, zeros
from ..length_proof import prove_lengths, prove_lengths_once
from ..output_axes import looked_up, unsaid_outputs
from ..pad_keys import read_pad
from ..padded_axes import PaddedAxes
from ..reader import UnfitError
from ..row_proof import COARSE, FINE, prove_once, prove_rows, rows_in
from ..runs import Group, ModelBackend, shapes_in_words
from ..shapes import InputSpec, Profile, make_profiles, told_batches
from ..source import name_of, open_model
from ..state import ModelState, StateWish, handed_on, read_state, with_states
from ..state_proof import check_state, prove_state
from .files import identity_of
from .graph import HALF_INPUTS, RAW_SUFFIX, prepare
from .half_inputs import HalfInputs
from .kinds import axes_of, comparable, described, dtypes_of, input_spec, plain
from .rows import Graph, known_outputs, read_once
from .values import check_postprocessor, tensors_of, values_of

__all__ = ["OnnxModel", "Session"]


class Session(Protocol):
    """A model that is loaded, in whatever runs it."""

    inputs: list[Any]  # each with name, type and shape, as ONNX Runtime has them
    outputs: list[Any]
    metadata: dict[str, str]
    device: str | None  # a GPU whose torch tensors it takes as they lie, in torch's words

    def run(self, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return these outputs of the model for a value of each input, in its order."""

    def runner(self, names: Sequence[str]) -> Callable[[list[Any]], list[Any]]:
        """Return what does the same for these outputs."""


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
            may be empty only where it says so, as in ``"1x0x4"``: with some operators ONNX Runtime dies of that.
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
            a detector's or another head (``YoloV8`` and so on: see ``heads``), by its name, by a
            mapping with ``name`` and options, or as an object; or a callable ``f(outputs, batch)``: it gets the outputs
            of a run, one row for each request, and the requests, and returns a result for each, or None if it has
            filled the requests itself.
        pad: requests of different lengths share a run, padded: ``longest`` (to the longest of the run), a list of
            lengths (to the next of them), or a mapping with that as ``to``, and ``axis``, ``value``, ``mask``,
            ``length``, ``outputs``, ``max_padding``, or a list of such for several lengths, as height and width: see
            docs/lengths.md. Outputs are cut to the request's own length.
        max_tokens: with ``pad``: requests of a run times what each is padded to, at most.
        state: for models that carry something from run to run: ``{"h": "hn"}`` says that the output ``hn`` is the input
            ``h`` of the next request of the same sequence; see the node's ``state_of``. A sequence begins with zeros;
            with ``{"h": {"output": "hn", "initial": ...}}``, with a number, or an array of one request's. The data
            has the other inputs, the result the other outputs.
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
        pad: str | list[int] | list[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        max_tokens: Annotated[int, Between(1, 2**31 - 1)] | None = None,
        many_rows: bool = False,
        batch_axis: Mapping[str, Any] | None = None,
        shared: list[str] | Mapping[str, Any] | None = None,
        split_by: Mapping[str, Any] | None = None,
        outputs: list[str] | None = None,
        result_as: Literal["list", "dict"] = "list",
        state: Mapping[str, Any] | None = None,
        threads: Annotated[int, Between(1, 4096)] | None = None,
        warm_up: bool = True,
        model_key: ModelKey | None = None,
    ) -> None:
        self._name = name_of(model)
        scratch = ExitStack()
        try:
            opened = open_model(model, model_key)
            self._is_encrypted = opened.secret is not None
            key = identity_of(opened.model), precision, repr((mean, std)), fuse
            is_normalized = mean is not None or std is not None
            changes: dict[str, Any] = {"half": precision == "fp16", "mean": mean, "std": std, "fuses": fuse}
            source = self._changed(opened.model, changes, scratch)
            self._session: Any = self._open_session(source, (threads or usable_cpu_count()) // instance_num)
            states = self._read_state(state, many_rows=many_rows, is_padded=pad is not None)
            chosen = self._choose_outputs(outputs, states, postprocessor)
            suffix = RAW_SUFFIX if is_normalized else ""
            self._values = values_of(self._name, suffix, self._session.inputs, chosen, max)
            if self._values is not None:
                others: dict[str, Any] = {"min": min, "batch_axis": batch_axis, "shared": shared, "split_by": split_by}
                others |= {"pad": pad, "max_tokens": max_tokens, "many_rows": many_rows}
                others |= {"state": state, "precision": precision == "fp16" and precision}
                self._take_values(postprocessor, [key for key, value in others.items() if value], result_as == "dict")
                return
            specs = [input_spec(each, suffix) for each in self._session.inputs]
            declared = [(value.name, axes_of(value)) for value in chosen]
            answered = declared[: len(declared) - len(states)]
            names = [spec.name for spec in specs], [name for name, _ in declared]
            wishes = read_wishes(batch_axis, shared, split_by, *names)
            axes, batch = input_axes(specs, wishes)
            wishes = with_states(wishes, states, dict(zip(self._feed_names, axes, strict=True)))
            specs = with_axes(specs, axes, wishes)
            profiles = make_profiles(specs, max, min)
            # In half precision all values are looked at on the CPU, and states are kept there.
            device = None if precision == "fp16" or states else self._session.device
            self._take_inputs(specs, profiles, states, device, is_half=precision == "fp16", many_rows=many_rows)
            by_name = dict(zip(self._feed_names, axes, strict=True))
            graph = read_once(key, source, by_name) if self._has_rows else None
            carried = graph.carried if graph is not None else {}
            self._axes = settled(declared, wishes, axes, batch, carried)
            unsaid = unsaid_outputs(declared, wishes, self._axes, batch, carried) if self._has_rows else []
            self._axes = looked_up(self._call, specs, profiles, self._axes, self._output_names, unsaid)
            check_state(states, specs, described(self._session.outputs, declared, self._axes))
            found = find_postprocessor(postprocessor, self._axes.row_shapes(answered), self._asked_names)
            self._answers = Answers(found, self._axes, as_dict=result_as == "dict", has_many_rows=many_rows)
            self.keeps_input = is_built_in(postprocessor)  # a function of the user's gets the requests themselves
            reader_of = functools.partial(ModelInputs, self._name, device=device)
            lengths = self._pad(read_pad(pad, max_tokens), specs, declared, profiles, reader_of)
            is_fine = precision == "fp32" and self._is_fine
            proof = key, max, min, self._runtime, tuple(self._output_names), str((self._axes, shared))

            def prove() -> None:
                prove_once(proof, lambda: self._prove_rows(graph, specs, profiles, is_fine=is_fine))

            self._build_up(prove if rows is None else None, lambda: self._warm_up(specs, profiles) if warm_up else None)
            prove_state(self._compute, states, self._state.initial_arrays, specs, profiles)
            tried = proof, repr(pad), max_tokens
            self._prove_lengths(tried, lengths, profiles, FINE if is_fine else COARSE, is_vouched=rows is not None)
            self._announce([] if self._has_maps else answered, dtypes_of(chosen), postprocessor)
            self._find_fast_path()
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
        try:
            if self._fast_path is not None and self._fast_path.run(batch, self._note, self._check_rows):
                return
        except UnfitError:  # a postprocessor has refused some, and no state was changed: the others run without them
            pass
        self._run_batch(self._values or self._inputs_to_run, batch, self._run_requests)

    @abstractmethod
    def _open_session(self, source: Path | bytes, thread_count: int) -> Session:
        """Return the model, loaded, to be run with so many threads."""

    def _changed(self, source: Path | bytes, changes: Mapping[str, Any], scratch: ExitStack) -> Path | bytes:
        """Return a model whose graph is changed, if anything is to be; ``scratch`` keeps its files for a while."""
        if all(value is None or value is False for value in changes.values()):
            return source
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="fastpipe-")))
        return prepare(source, **changes, custom_ops=self._custom_ops, folder=folder)

    def close(self) -> None:
        """Let go of the model; results handed out stay valid."""
        self._session = self._fast_path = None

    def _read_state(self, state: Mapping[str, Any] | None, *, many_rows: bool, is_padded: bool) -> list[StateWish]:
        """Take the names of the inputs; return which of them are a state."""
        self._feed_names = [value.name for value in self._session.inputs]
        outputs = [value.name for value in self._session.outputs]
        states = read_state(state, self._feed_names, outputs, many_rows=many_rows, is_padded=is_padded)
        self.stateful = bool(states)
        return states

    def _choose_outputs(
        self, wanted: Sequence[str] | None, states: Sequence[StateWish], postprocessor: Any
    ) -> list[Any]:
        """Return the outputs that are handed on, and those that are a state, behind them.

        Raises:
            ConfigError: if there is no such output, or the postprocessor cannot work on it.
        """
        known = {value.name: value for value in self._session.outputs}
        self._output_names = handed_on(wanted, list(known), [wish.output for wish in states])
        chosen = [known[name] for name in self._output_names]
        to_answer = chosen[: len(chosen) - len(states)]
        check_postprocessor(postprocessor, to_answer)
        self._has_maps = any(value.type.startswith("seq(map(") for value in to_answer) and is_built_in(postprocessor)
        return chosen

    def _take_inputs(
        self,
        specs: Sequence[InputSpec],
        profiles: Sequence[Profile],
        states: Sequence[StateWish],
        device: str | None,
        *,
        is_half: bool,
        many_rows: bool,
    ) -> None:
        """Take what reads requests, and completes their data by a state."""
        self._dtypes = [spec.dtype for spec in specs]
        self._inputs = ModelInputs(self._name, specs, profiles, device)
        self._state = ModelState(self._name, states, specs, shares_runs=not self._inputs.runs_alone)
        # Written by prepare(); of a file as it is, they are anybody's.
        halves = json.loads(self._session.metadata[HALF_INPUTS]) if is_half else []
        # Checked when a batch is run, not whenever a request is looked at.
        self._inputs_to_run = HalfInputs(self._name, specs, profiles, halves) if halves else self._inputs
        for inputs in (self._inputs, self._inputs_to_run) if self._state else ():
            inputs.complete(self._state.data_of)
        asked = [spec for spec in specs if spec.name not in self._state.inputs]
        self._take(self._inputs, profiles, asked, many_rows=many_rows, inputs_to_run=self._inputs_to_run)

    def _find_fast_path(self) -> None:
        if self._lengths is None and not self._has_maps:
            call = self._session.runner(self._output_names)
            parts = self._state, self._axes, self._output_names, self._answers, self._has_rows, call
            self._fast_path = fast_path_of(self._inputs_to_run, *parts)

    def _take_values(self, postprocessor: Any, unfit_keys: Sequence[str], as_dict: bool) -> None:
        """Take requests as they come, one at a time, as values of which no batch can be made."""
        if unfit_keys:
            raise ConfigError(
                f"it takes or gives sequences, maps or what may be missing, and so runs one request at a time as it "
                f"comes: leave out {', '.join(unfit_keys)}"
            )
        found = find_postprocessor("split" if is_built_in(postprocessor) else postprocessor, [])
        self._answers = Answers(found, self._axes, as_dict=as_dict, has_many_rows=False)
        self.keeps_input = is_built_in(postprocessor)
        self._reader: Any = self._values
        self.max_batch = 1

    def _run_requests(self, group: Group) -> None:
        """Run the model once, on requests of equal shapes."""
        self._fill(group)
        if self._has_maps:
            for request, _ in group:
                request["result"] = plain(request["result"])

    def _fill(self, group: Group) -> None:
        fit = group[0][1].fit
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
            outputs = self._call(inputs)
            answers = self._answers_in(outputs, group)
            self._answers.fill_alone(self._output_names[: len(answers)], answers, group[0][0])
            if self._state:
                self._state.keep_whole(outputs[len(answers) :], group[0][0])
            return
        is_whole = len(group) == 1 and fit.whole is not None and not fit.narrowed
        if is_whole and self._answers.are_whole and self._lengths is None:
            self._run_whole(group)
            return
        total = sum([sample.fit.rows for _, sample in group])
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
        answers = self._answers_in(outputs, group)
        self._finish(answers, group, row_count)
        # Behind what may refuse a request: then the others run again, with the states that they had.
        self._state.keep(self._axes, outputs[len(answers) :], [request for request, _ in group])

    def _run_whole(self, group: Group) -> None:
        """Run the model on one request, whose outputs are its answer; moving axes there and back would take as long."""
        ((request, sample),) = group
        alone = zip(sample.arrays, sample.fit.whole or (), self._dtypes, strict=True)
        outputs = self._call([as_it_comes(array, shape, dtype) for array, shape, dtype in alone])
        if self._has_rows:
            self._check_rows(self._axes.to_rows(self._output_names, outputs), 1)
        answers = self._answers_in(outputs, group)
        self._answers.fill_alone(self._output_names[: len(answers)], answers, request)
        if self._state:
            self._state.keep_whole(outputs[len(answers) :], request)

    def _answers_in(self, outputs: list[Any], group: Group) -> list[Any]:
        """Return the outputs that are no state, as the kind of arrays that the requests have brought."""
        answers = outputs[: len(outputs) - len(self._state.outputs)]
        return to_torch(answers) if group[0][1].is_torch else answers

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on what it takes.

        Raises:
            Exception: what ONNX Runtime raises, with a note that names the model and the shapes.
        """
        try:
            return list(self._session.run(self._output_names, arrays))
        except Exception as error:
            self._note(error, arrays)
            raise

    def _note(self, error: Exception, arrays: Sequence[Array]) -> None:
        error.add_note(f"{self._name}, run with inputs of shape {shapes_in_words(arrays)}")

    def _compute(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on arrays with the requests in front, and return such."""
        if self._axes.is_plain:
            return self._call(arrays)
        return self._axes.to_rows(self._output_names, self._call(self._axes.to_model(arrays)))

    def _run(self, arrays: Sequence[Array], row_count: int) -> list[Array]:
        """Run the model and check that every output has one row for each row of the inputs."""
        outputs = self._compute(arrays)
        self._check_rows(outputs, row_count)
        return outputs

    def _check_rows(self, outputs: Sequence[Array], row_count: int) -> None:
        problem = self._row_problem(self._output_names, [output.shape for output in outputs], row_count)
        if problem:
            raise BackendError(f"{self._name}, {problem}")

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
                        f"the warm-up with zeros of shape {shapes_in_words(arrays)} failed: {str(error).strip()}; "
                        f"warm_up=false leaves it out, if zeros are no valid data"
                    ) from error
                problem = self._row_problem(self._output_names, [output.shape for output in outputs], size)
                if problem:
                    raise ConfigError(problem)
                sizes.append(size)
        self.warmed_up = told_batches(sizes)

    def _prove_lengths(
        self, key: Hashable, axes: PaddedAxes | None, profiles: Sequence[Profile], tolerance: float, *, is_vouched: bool
    ) -> None:
        """Raise ConfigError if requests are padded, and there is no proof that it changes nothing."""
        if axes is not None:
            prove = functools.partial(prove_lengths, self._compute, axes, profiles, tolerance, is_vouched=is_vouched)
            prove_lengths_once((key, is_vouched), axes, prove)

    def _prove_rows(
        self, graph: Graph | None, specs: Sequence[InputSpec], profiles: Sequence[Profile], *, is_fine: bool
    ) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        seen: set[str] = set()

        def run(arrays: list[Array]) -> list[Array]:
            row_count = rows_in(specs, arrays)
            outputs = [comparable(output) for output in self._compute(arrays)]
            return compared(self._axes, self._output_names, outputs, row_count, seen)

        tolerance = max(FINE if is_fine else COARSE, graph.tolerance if graph is not None else FINE)
        prove_rows(run, specs, profiles, known_outputs(graph, self._axes, self._output_names), tolerance=tolerance)
        tell_of_empty_tables(self._name, self._axes, self._output_names, seen)
