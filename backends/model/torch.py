"""TorchTensor: a model of torch, run in batches; on a GPU, a CUDA graph for each batch size.

    {"backend": "TorchTensor", "model": "resnet.pt2", "max": "64x3x224x224", "device": "cuda"}

How a request travels: ``torch_inputs`` checks its data against the model, the requests of a batch are joined (on a
GPU: into the buffer that the graph reads), the model runs, ``heads.postprocessors`` turns the rows of a copy of its
outputs into results. ``torch_files`` loads the model; ``torch_graphs`` captures and replays.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from fastpipe.contract import Between, Existing, Request
from fastpipe.errors import BackendError, ConfigError
from fastpipe.kernels._images import whole_of

from ..gpu.devices import Claim, claim_gpu, place_of, torch_gpu
from ..gpu.handed_on import Row
from ..gpu.streams import InstanceStream, hand_over
from ..tensor.arrays import all_finite
from .answers import Answers, Run, compared, tell_of_empty_tables
from .axes import moved, settled
from .heads.postprocessors import find_postprocessor, is_built_in
from .inputs import Array, to_array
from .length_proof import prove_lengths
from .pad_keys import read_pad
from .reader import UnfitError
from .row_proof import COARSE, FINE, prove_rows, rows_in
from .runs import ModelBackend
from .shapes import told_batches
from .state import handed_on, read_state
from .state_proof import prove_state
from .torch_files import describe, load, on_device
from .torch_graphs import Graphs, Staging, batch_sizes
from .torch_images import channels_of, check_images, column_of, normalized
from .torch_inputs import TorchInputs, wishes_of
from .torch_rows import ModelByRows, ProgramOutput, described, known_outputs
from .torch_state import state_of
from .torch_types import input_dtypes, set_precision

__all__ = ["TorchTensor"]

_log = logging.getLogger(__name__)


class TorchTensor(ModelBackend):
    """Run a torch model in batches, on the CPU or on a GPU.

    **Model**: a ``torch.nn.Module``, a class or function that makes one (``"package.module:Name"`` in a file), or a
    file: an exported program (``.pt2``, of ``torch.export.save``). Files by which code can run, which are exported
    programs with more than arithmetic in them, pickled modules, and TorchScript, are refused unless ``trusted``.

    **In**: ``data`` is a tensor, or for several inputs a list of them in the model's order or a mapping from input
    name to tensor: torch, NumPy, or anything with ``__dlpack__``, on any device. Each is one sample with a batch axis
    of 1 in front (``1CHW``); where the model or ``max`` says which shapes there are, it may be missing. Other floats
    and uint8 become the type in which the model computes; other integers stay what they are, but for uint16 and uint32,
    which become int32 and int64. The model gets a copy, so that it may work in place. A finite number that would be
    infinite in the model's type fails its request alone, and so does a sparse, quantized, nested or meta tensor.

    **Out**: ``result`` is the output's row with a batch axis of 1, or a list of them where the model has several
    outputs, on the model's device, complete. It is a view of a copy made for this batch: yours to change, and it keeps
    the batch's outputs alive. See ``postprocessor`` for other results.

    **One request at a time, axes**: as for ``OnnxTensor``. An exported program says by its symbols on which axes the
    requests are; of a module, ``batch_axis`` and ``shared`` do, beside shapes in ``max``. An output's name is its key
    in the dict that the model gives, otherwise its number: ``"0"``.

    **Batches**: requests of other shapes, dtypes or devices never share a run, and one that the model cannot take
    fails alone, with ``KernelError``. A model with a fixed batch size n takes 1 to n requests, and is fed zeros for
    those that are missing; so is an exported program with a smallest batch.

    **Rows**: requests share a run only if there is proof that each gets what it would get alone: ``torch.export`` has
    followed the batch axis from the inputs to each output, and trial runs of one to three rows of pseudo-random data
    give together what they give alone. Where one of the two contradicts, or neither can be had (also since ``max`` does
    not say how large an item is), the model is refused, unless ``max`` is 1 or ``rows`` says that all is well.

    **CUDA graphs**: on a GPU, where the shapes are known (an exported program, or ``max`` with shapes), every batch
    size in ``buckets`` is captured before the instance is ready, for the largest item; a batch is filled up with zeros
    to the next of them. The graphs share their memory. Other shapes are run eagerly, and so is a model that cannot be
    captured; the log says so, once.

    **Threads**: each instance has a copy of the weights and, on a GPU, a stream of its own, which it enters on
    whatever thread runs it; within a ``SyncTensor`` it uses that one's. On a CPU it computes with torch's threads,
    of which all instances share one setting (``torch.set_num_threads``).

    Args:
        model: where it comes from.
        weights: a file with a state dict, read without running code, for a model that is no file.
        max: requests in a batch, or largest shapes: ``8``, ``"8x3x224x224"``, inputs separated by ``,``, profiles by
            ``;``. Without it, the model's batch size if that is fixed, otherwise 1.
        min: smallest batch the model is run with, padded with zeros, or smallest shapes, in the same form.
        rows: ``batch`` says that each row of every output belongs to one request, in order, and depends on it alone.
            Without it, that is proved while the instance is built.
        pad: as for ``OnnxTensor``. On a GPU, only what is as long as ``max`` has a CUDA graph.
        max_tokens: with ``pad``: requests of a run times what they are padded to, at most.
        many_rows: a request may bring any number of rows up to ``max``, as for ``OnnxTensor``.
        batch_axis: by name, on which axis the requests are, as for ``OnnxTensor``; "none": on none.
        shared: inputs that the batch shares, as for ``OnnxTensor``. On a GPU they are not compared: such a request runs
            alone.
        split_by: outputs with rows of all requests together -> the column with the request's number, as there.
        outputs: names of the outputs that are handed on, in this order.
        result_as: ``dict``: ``result`` has the outputs by their names, also an only one.
        state: as for ``OnnxTensor``: which output of a run is which input of the sequence's next; kept on the device.
        device: ``"cpu"``; ``"cuda"`` or ``"gpu"``, the first one, ``"cuda:1"``; several, ``"cuda:0,cuda:1"``, or
            ``"all"``: each instance goes to that one of them that has the fewest. Without it, the GPU of the
            instance's other steps, otherwise ``"cuda"`` if torch sees a GPU, otherwise ``"cpu"``.
        precision: the type in which it computes; without it, that of the model's weights. An exported program keeps
            the types that it was exported with.
        mean: subtracted from image inputs, (n, channels, h, w), in float32 and within the graph, on the scale of the
            data (0 to 255 for pixels). One number, or one for each channel.
        std: the same; divides. None zero.
        postprocessor: ``split`` (the rows, as above), ``cpu``, ``SoftmaxCpu``, ``SoftmaxMax``, ``SoftmaxArgMax``, a
            head (``YoloV8`` and so on), or a callable ``f(outputs, batch)``, as for ``OnnxTensor``.
        dtypes: of the inputs, ``"int64,float32"``, where a model does not say and they are not what it computes in.
        buckets: batch sizes to capture; without it, powers of two and the largest batch.
        channels_last: keep images and weights in torch's ``channels_last`` layout, faster for most convolutions.
        compile: ``inductor`` has ``torch.compile`` work on it first, with the first batches; needs a C++ compiler.
        warm_up: run (and capture) every batch size on zeros while the instance is built. Where an item's size is open,
            this needs ``max`` to have shapes.
        trusted: load files that can run code.

    Raises:
        ConfigError: if the file is missing, no model or not trusted, there is no such GPU, or the parameters do not
            fit the model.
    """

    takes_forms: tuple[type, ...] = (Row,)

    def __init__(
        self,
        *,
        model: Annotated[Path, Existing()] | str | torch.nn.Module | Callable[..., Any],
        weights: Annotated[Path, Existing()] | None = None,
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
        device: list[str] | None = None,
        precision: Literal["fp32", "fp16", "bf16"] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        postprocessor: str | Mapping[str, Any] | Callable[..., Any] = "split",
        dtypes: list[str] | None = None,
        buckets: Annotated[list[int], Between(1, 65536)] | None = None,
        channels_last: bool = False,
        compile: Literal["inductor"] | None = None,
        warm_up: bool = True,
        trusted: bool = False,
    ) -> None:
        self._name = describe(model)
        self._claim: Claim | None = None
        try:
            channels = channels_of(mean, std)
            self._take_device(device)
            loaded = load(model, weights, self._device, trusted=trusted)
            floats = set_precision(loaded, precision)
            known = input_dtypes(loaded, dtypes)
            wishes = wishes_of(loaded, batch_axis, shared, split_by)
            self._inputs = TorchInputs(self._name, loaded, max, min, floats, known, channels, wishes)
            check_images(self._inputs, mean, std, channels)
            plain = on_device(loaded, self._device, channels_last=channels_last)
            if channels:
                columns = (column_of(mean, self._device), column_of(std, self._device))
                plain = normalized(plain, channels, columns, known, floats)
            declared = None if loaded.outputs is None else [output.declared for output in loaded.outputs]
            there_are = None if declared is None else [name for name, _ in declared]
            states = read_state(state, loaded.names, there_are, many_rows=many_rows, is_padded=pad is not None)
            kept = [wish.output for wish in states]
            wanted = None if there_are is None and outputs is None else handed_on(outputs, there_are, kept)
            wishes = self._inputs.with_states(wishes, states)
            self._axes = settled(declared, wishes, self._inputs.axes, self._inputs.batch)
            self._take(self._inputs, self._inputs.profiles, self._inputs.asked(states), many_rows=many_rows)
            self._take_state(state_of(self._name, self._inputs, states, declared, self._axes, self._device))
            self._take_answers(postprocessor, result_as, loaded.names, many_rows=many_rows)
            lengths = self._pad(read_pad(pad, max_tokens), self._inputs.paddable_specs(), (), self._inputs.profiles)
            self.takes_forms = self.takes_forms if lengths is None and not states else ()
            module: Any = plain if compile is None else torch.compile(plain)
            self._module = ModelByRows(module, self._axes, wishes, wanted, self._name, kept)
            self._staging = Staging()
            self._graphs: Graphs | None = None
            # GPUs compute in TensorFloat-32.
            tolerance = FINE if self.place is None and floats in (torch.float32, torch.float64) else COARSE
            to_try = ModelByRows(plain, self._axes, wishes, wanted, self._name, kept)

            prove = functools.partial(self._prove_rows, to_try, loaded.outputs, tolerance)
            with self._entered():
                self._build_up(None if rows else prove, lambda: self._warm_up(buckets) if warm_up else None)
                run = functools.partial(self._try, to_try)
                specs = self._inputs.trial_specs() or ()
                prove_state(run, states, self._state.initial_arrays, specs, self._inputs.profiles)
                if lengths is not None:
                    names, is_vouched = functools.partial(getattr, to_try, "names"), rows is not None
                    prove_lengths(run, lengths, self._inputs.profiles, tolerance, is_vouched=is_vouched, names=names)
            self._announce(*described(loaded.outputs, wanted, kept), postprocessor)
        except BaseException as error:
            self.close()
            if isinstance(error, ConfigError):
                raise self._named(error) from error.__cause__
            raise

    def bucket(self, request: Request) -> Hashable:
        """Return the shapes, dtypes and devices of a request's data: what must be equal within a batch."""
        if type(row := request.get("data")) is Row and self.takes_forms:
            return row.kind
        return super().bucket(request)

    def forward(self, batch: list[Request]) -> None:
        """Run the model on a batch; requests whose shapes differ are run apart.

        Raises:
            ItemErrors: for the requests that the model cannot take.
            Exception: what torch raises, with a note that names the model and the shapes.
        """
        with self._entered():
            if not self._run_whole(batch):
                self._run_batch(self._inputs, batch, self._run_requests)

    def close(self) -> None:
        """Let go of the model; results handed out stay valid."""
        self._module = self._graphs = self._staging = None  # type: ignore[assignment]
        if self._claim is not None:
            self._claim.release()

    def _take_answers(
        self, postprocessor: Any, result_as: str, names: Sequence[str] | None, *, many_rows: bool
    ) -> None:
        """Take what becomes of the outputs; ``names`` are those of the inputs, if the model has some."""
        asked = None if names is None else [name for name in names if name not in self._state.inputs]
        found = find_postprocessor(postprocessor, [()], asked)
        self._answers = Answers(found, self._axes, as_dict=result_as == "dict", has_many_rows=many_rows)
        if not is_built_in(postprocessor):  # a function of the user's gets the requests themselves
            self.keeps_input = False
        if not is_built_in(postprocessor) or not self._answers.are_plain:
            self.takes_forms = ()

    def _take_device(self, device: list[str] | None) -> None:
        """Choose where the instance is: with nothing said, where its other steps are, otherwise the first GPU, if any.

        Raises:
            ConfigError: if there is no such GPU.
        """
        wanted = device or (None if torch.cuda.is_available() else ["cpu"])
        self._claim = claim_gpu("TorchTensor", wanted, or_cpu=True)
        self.place, self.place_of = self._claim.place, place_of
        on_cpu = self.place is None
        self._device = torch.device("cpu") if on_cpu else torch_gpu("TorchTensor", self._claim.number)
        self._stream = None if on_cpu else InstanceStream(self._claim.number)

    def _entered(self) -> AbstractContextManager[Any]:
        return self._stream.entered() if self._stream is not None else nullcontext()

    def _run_whole(self, batch: list[Request]) -> bool:
        """Run the model on a batch that is one tensor already; False: it is not, or not one that the model takes."""
        whole = None if self._state else whole_of(batch)
        if whole is None:
            return False
        fit = self._inputs.read(batch[0]).fit
        if whole.ndim != len(fit.item_shapes[0]) + 1 or (fit.narrowed and len(batch) > fit.profile.max_batch):
            return False
        try:
            for start in range(0, len(batch), fit.profile.max_batch):
                part = batch[start : start + fit.profile.max_batch]
                self._run(part, [[whole[start : start + len(part)]]], fit, [1] * len(part))
        except UnfitError:  # of the only part: nobody has a result yet
            return False
        return True

    def _run_requests(self, group: list[tuple[Request, Any]]) -> None:
        """Run the model once, on requests of equal shapes."""
        requests, fit = [request for request, _ in group], group[0][1].fit
        by_input = list(zip(*[sample.arrays for _, sample in group], strict=True))
        if fit.as_it_comes is not None:
            self._run_as_it_comes(requests[0], group[0][1].arrays, fit)
            return

        def row(number: int, index: int) -> Request:
            return self._inputs.one_row(*group[number], index)

        for index, axis in enumerate(self._axes.inputs):
            if axis:
                rank = len(fit.item_shapes[index]) + 1
                by_input[index] = tuple(
                    [moved(each, axis, 0) if each.ndim == rank else each for each in by_input[index]]
                )
        self._run(requests, by_input, fit, [sample.fit.rows for _, sample in group], row)

    def _run_as_it_comes(self, request: Request, tensors: Sequence[torch.Tensor], fit: Any) -> None:
        """Run the model on a request as it is, and give it the outputs as they are."""
        try:
            inputs = [
                tensor.to(self._device, dtype, copy=True).reshape(shape)
                for tensor, shape, dtype in zip(tensors, fit.as_it_comes, fit.dtypes, strict=True)
            ]
            if (are_finite := all_finite([inputs[index] for index in fit.narrowed])) is not None and not are_finite:
                self._inputs.refuse_overflow(fit, [[tensor] for tensor in tensors])
            with torch.inference_mode():
                outputs = self._module.as_it_is(*inputs)
            outputs = [output.clone() for output in outputs]
        except UnfitError:
            raise
        except Exception as error:
            shapes = _listed(fit.as_it_comes)
            advice = "" if self._inputs.axes else "; most models want a batch axis of 1 in front"
            error.add_note(f"{self._name}, run with a request of shape {shapes}, as it came{advice}")
            raise
        if self._stream is not None:
            hand_over(outputs)
        count = len(outputs) - len(self._state.outputs)
        self._answers.fill_alone(list(map(str, self._module.names))[:count], outputs[:count], request)
        if self._state:
            self._state.keep_whole(outputs[count:], request)

    def _run(
        self,
        requests: list[Request],
        by_input: Sequence[Sequence[torch.Tensor]],
        fit: Any,
        counts: Sequence[int],
        row: Callable[[int, int], Request] | None = None,
    ) -> None:
        """Run the model once; of each input there is a tensor for each request, or one with a row for each."""
        count = sum(counts)
        rows = max(count, fit.profile.pad_to, 1)
        graph = self._graphs.find(fit.item_shapes, fit.dtypes, rows) if self._graphs is not None else None
        try:
            if graph is not None:
                graph.fill(by_input, count, self._staging, self._inputs.shared)
                inputs = graph.inputs
            else:
                inputs = self._joined(by_input, fit, rows)
            are_finite = all_finite([inputs[index] for index in fit.narrowed])  # now: the model may work in place
            # On a GPU the answer is waited for with those of the model: it can do no harm to others' rows meanwhile.
            if are_finite is not None and not are_finite.is_cuda and not are_finite:
                self._refuse_overflow(fit, by_input, len(requests))
            outputs = graph.replay() if graph is not None else self._run_eagerly(inputs, fit, rows)
            names = list(map(str, self._module.names))
            # Out of inference mode, and out of what the next batch writes over: the results are the caller's. The rows
            # behind the last request's were filled in; what has no rows, as it is run alone, stays whole.
            if self._has_rows:
                outputs = self._axes.without_padding(names, outputs, count)
            outputs = [output.clone() for output in outputs]
            if are_finite is not None and are_finite.is_cuda and not are_finite:
                self._refuse_overflow(fit, by_input, len(requests))
        except UnfitError:
            raise
        except Exception as error:
            error.add_note(f"{self._name}, run with {len(requests)} requests of shape {_listed(fit.item_shapes)}")
            raise
        if self._stream is not None:
            hand_over(outputs)
        row_count = rows if graph is None else graph.row_count
        answered = len(outputs) - len(self._state.outputs)
        self._answer(Run(names[:answered], outputs[:answered], requests, counts, row_count, row))
        self._state.keep(self._axes, outputs[answered:], requests)  # behind what may refuse some: the others run again

    def _refuse_overflow(self, fit: Any, by_input: Sequence[Sequence[torch.Tensor]], count: int) -> None:
        """Raise UnfitError for the requests with a number that became infinite."""
        one_by_one = [list(each[0][:, None].unbind()) if len(each) < count else each for each in by_input]
        self._inputs.refuse_overflow(fit, one_by_one)

    def _joined(self, by_input: Sequence[Sequence[torch.Tensor]], fit: Any, rows: int) -> list[torch.Tensor]:
        """Return new tensors of so many rows, in the types that the model gets."""
        inputs = []
        for index, (tensors, shape, dtype) in enumerate(zip(by_input, fit.item_shapes, fit.dtypes, strict=True)):
            if index in self._inputs.shared:
                inputs.append(tensors[0].to(self._device, dtype, copy=True).reshape(shape))
                continue
            joined = self._staging.join(index, tensors, shape, self._device)
            if rows > len(joined):
                joined = torch.cat([joined, joined.new_zeros((rows - len(joined), *shape))])
            # A copy, unless it is one already: a model that works in place must meet no memory of the caller's.
            inputs.append(joined.to(dtype, copy=joined.data_ptr() == tensors[0].data_ptr()))
        return inputs

    def _run_eagerly(self, inputs: Sequence[torch.Tensor], fit: Any, rows: int) -> list[torch.Tensor]:
        """Run the model on tensors of its own, and check that every output has one row for each row of the inputs."""
        if self._graphs is not None and self._graphs.is_complete and self._lengths is None:
            _say_once(f"{self._name}: requests of shape {_listed(fit.item_shapes)} are run without a CUDA graph")
        with torch.inference_mode():
            return self._checked(self._module(*inputs), rows)

    def _checked(self, outputs: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        """Return what the model gave, if each has so many rows."""
        if problem := self._row_problem(self._module.names, [output.shape for output in outputs], rows):
            raise BackendError(f"{self._name}, {problem}")
        return outputs

    def _warm_up(self, buckets: Sequence[int] | None) -> None:
        """Run every batch size on zeros; on a GPU, capture it."""
        warmed: list[int] = []
        for profile in self._inputs.profiles:
            known = self._inputs.largest(profile)
            if known is None:
                if self._device.type == "cuda":
                    _say_once(f"{self._name}: without shapes in max, as in '8x3x224x224', there are no CUDA graphs")
                continue
            items, dtypes = known
            sizes = batch_sizes(profile.max_batch, profile.pad_to, buckets)
            zeros = [tensor.to(self._device) for tensor in self._inputs.zeros(items, dtypes, sizes[0])]
            self._run_on_zeros(zeros, sizes)
            warmed += sizes
            if self._stream is not None:
                if self._graphs is None:
                    self._graphs = Graphs()
                reason = self._graphs.capture(self._module, zeros, sizes, self._inputs.shared)
                if reason:
                    _say_once(f"{self._name}: it is run without CUDA graphs, as it cannot be captured: {reason}")
        self.warmed_up = told_batches(warmed)

    def _run_on_zeros(self, zeros: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
        """Run the model on batches of these sizes, the largest first, so that memory grows once.

        Raises:
            ConfigError: if the model fails, or an output has not a row for each.
        """
        try:
            with torch.inference_mode():
                # Twice: some of torch's work is the second run's.
                for size in [size for size in sizes for _ in range(2)]:
                    # Copies, as the model may work in place.
                    inputs = [
                        each.clone() if index in self._inputs.shared else each[:size].clone()
                        for index, each in enumerate(zeros)
                    ]
                    self._checked(self._module(*inputs), size)
            if self._stream is not None:
                torch.cuda.current_stream().synchronize()
        except BackendError as error:  # of the outputs
            raise ConfigError(str(error).removeprefix(f"{self._name}, ")) from error
        except Exception as error:  # whatever the model raises
            shapes, dtypes = _listed([tuple(each.shape) for each in zeros]), _listed([each.dtype for each in zeros])
            raise ConfigError(
                f"the warm-up with zeros of shape {shapes}, {dtypes}, failed: {str(error).strip()}; "
                f"dtypes says what a model takes, warm_up=false leaves it out"
            ) from error

    def _try(self, module: ModelByRows, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on data that was made up, with the requests in front."""
        items = [array.shape[index not in self._inputs.shared :] for index, array in enumerate(arrays)]
        dtypes = self._inputs.targets(items)
        # Copies, since a model may work in place.
        inputs = [torch.tensor(array).to(self._device, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
        with torch.inference_mode():
            # Copies again, of what may be a buffer of its own.
            return [np.array(to_array(each)) for each in module(*inputs)]

    def _prove_rows(self, module: ModelByRows, outputs: Sequence[ProgramOutput] | None, tolerance: float) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        specs, seen = self._inputs.trial_specs(), set[str]()

        def run(arrays: list[Array]) -> list[Array]:
            found = self._try(module, arrays)
            return compared(self._axes, list(map(str, module.names)), found, rows_in(specs or (), arrays), seen)

        prove_rows(
            run,
            specs,
            self._inputs.profiles,
            known_outputs(outputs, self._axes, specs, module.chosen),
            tolerance=tolerance,
            is_padded=self._graphs is not None,
        )
        tell_of_empty_tables(self._name, self._axes, list(map(str, module.names)), seen)


# ---- what is said ----------------------------------------------------------------------------------------------

_said: set[str] = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        _log.warning(sentence)


def _listed(parts: Sequence[Any]) -> str:
    return ", ".join(map(str, parts))
