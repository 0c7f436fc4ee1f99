"""TorchTensor: a model of torch, run in batches; on a GPU, a CUDA graph for each batch size.

    {"backend": "TorchTensor", "model": "resnet.pt2", "max": "64x3x224x224", "device": "cuda"}

How a request travels: ``torch_inputs`` checks its data against the model, the requests of a batch are joined (on a
GPU: into the buffer that the graph reads), the model runs, ``postprocessors`` turns the rows of a copy of its outputs
into results. ``torch_files`` loads the model; ``torch_graphs`` captures and replays.
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
from ..ranges import check_levels
from ..tensor.arrays import all_finite
from .inputs import Array, to_array
from .length_axes import LengthAxes, Pad, read_pad
from .length_proof import prove_lengths
from .postprocessors import find_postprocessor, is_built_in
from .reader import UnfitError
from .row_proof import COARSE, FINE, Output, prove_rows
from .runs import ModelBackend
from .shapes import told_batches
from .torch_files import Loaded, describe, load
from .torch_graphs import Graphs, Staging, flatten
from .torch_inputs import TorchInputs, is_image
from .torch_programs import FLAT_OUTPUTS

__all__ = ["TorchTensor"]

_log = logging.getLogger(__name__)

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    the batch's outputs alive. See ``postprocessor`` for other results. A model run with one request at a time (``max``
    1) may have outputs without a batch axis; they are handed out whole.

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
        pad: str | list[int] | Mapping[str, Any] | None = None,
        max_tokens: Annotated[int, Between(1, 2**31 - 1)] | None = None,
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
            channels = _channels(mean, std)
            self._take_device(device)
            loaded = load(model, weights, self._device, trusted=trusted)
            floats = _set_precision(loaded, precision)
            known = _input_dtypes(loaded, dtypes)
            self._inputs = TorchInputs(self._name, loaded, max, min, floats, known, channels)
            _check_images(self._inputs, mean, std, channels)
            plain = _on_device(loaded, self._device, channels_last=channels_last)
            if channels:
                columns = (_column(mean, self._device), _column(std, self._device))
                plain = _normalized(plain, channels, columns, known, floats)
            self._module: Any = plain if compile is None else torch.compile(plain)
            self._postprocessor = find_postprocessor(postprocessor, [()])
            if not is_built_in(postprocessor):  # a function of the user's gets the requests themselves
                self.keeps_input, self.takes_forms = False, ()
            self._take(self._inputs, self._inputs.profiles)
            axes = self._take_lengths(read_pad(pad, max_tokens))
            self._staging = Staging()
            self._graphs: Graphs | None = None
            with self._entered():
                if warm_up:
                    self._warm_up(buckets)
                # GPUs compute in TensorFloat-32.
                is_fine = self.place is None and floats in (torch.float32, torch.float64)
                tolerance, is_vouched = FINE if is_fine else COARSE, rows is not None
                run = functools.partial(self._compute, plain)
                if not is_vouched:
                    self._prove_rows(run, loaded.outputs, tolerance)
                if axes is not None:
                    prove_lengths(run, axes, self._inputs.profiles, tolerance, is_vouched=is_vouched)
        except BaseException as error:
            self.close()
            if isinstance(error, ConfigError):
                raise self._named(error) from error.__cause__
            raise

    def bucket(self, request: Request) -> Hashable:
        """Return the shapes, dtypes and devices of a request's data: what must be equal within a batch."""
        if type(row := request.get("data")) is Row:
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
        whole = whole_of(batch)
        if whole is None:
            return False
        fit = self._inputs.read(batch[0]).fit
        if whole.ndim != len(fit.item_shapes[0]) + 1 or (fit.narrowed and len(batch) > fit.profile.max_batch):
            return False
        try:
            for start in range(0, len(batch), fit.profile.max_batch):
                part = batch[start : start + fit.profile.max_batch]
                self._run(part, [[whole[start : start + len(part)]]], fit)
        except UnfitError:  # of the only part: nobody has a result yet
            return False
        return True

    def _run_requests(self, group: list[tuple[Request, Any]]) -> None:
        """Run the model once, on requests of equal shapes."""
        by_input = list(zip(*[sample.arrays for _, sample in group], strict=True))
        self._run([request for request, _ in group], by_input, group[0][1].fit)

    def _run(self, requests: list[Request], by_input: Sequence[Sequence[torch.Tensor]], fit: Any) -> None:
        """Run the model once; of each input there is a tensor for each request, or one with a row for each."""
        count = len(requests)
        rows = max(count, fit.profile.pad_to)
        graph = self._graphs.find(fit.item_shapes, fit.dtypes, rows) if self._graphs is not None else None
        try:
            if graph is not None:
                graph.fill(by_input, count, self._staging)
                inputs = graph.inputs
            else:
                inputs = self._joined(by_input, fit, rows)
            are_finite = all_finite([inputs[index] for index in fit.narrowed])  # now: the model may work in place
            # On a GPU the answer is waited for with those of the model: it can do no harm to others' rows meanwhile.
            if are_finite is not None and not are_finite.is_cuda and not are_finite:
                self._inputs.refuse_overflow(fit, by_input)
            outputs = graph.replay() if graph is not None else self._run_eagerly(inputs, fit, rows)
            # Out of inference mode, and out of what the next batch writes over: the results are the caller's. The rows
            # behind the last request's were filled in; what has no rows, as it is run alone, stays whole.
            outputs = [(output[:count] if self._has_rows else output).clone() for output in outputs]
            if are_finite is not None and are_finite.is_cuda and not are_finite:
                self._inputs.refuse_overflow(fit, by_input)
        except UnfitError:
            raise
        except Exception as error:
            error.add_note(f"{self._name}, run with {count} requests of shape {_listed(fit.item_shapes)}")
            raise
        if self._stream is not None:
            hand_over(outputs)
        self._finish(outputs, requests, rows)

    def _joined(self, by_input: Sequence[Sequence[torch.Tensor]], fit: Any, rows: int) -> list[torch.Tensor]:
        """Return new tensors of so many rows, in the types that the model gets."""
        inputs = []
        for index, (tensors, shape, dtype) in enumerate(zip(by_input, fit.item_shapes, fit.dtypes, strict=True)):
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

    def _checked(self, given: Any, rows: int) -> list[torch.Tensor]:
        """Return what the model gave as a list of tensors, each with so many rows."""
        outputs = flatten(given)
        names = list(given) if isinstance(given, dict) else list(range(len(outputs)))
        for name, output in zip(names, outputs, strict=True):
            if not isinstance(output, torch.Tensor):
                raise BackendError(
                    f"{self._name}, output {name!r}: expected a tensor, got a {type(output).__name__}: {FLAT_OUTPUTS}"
                )
        if problem := self._row_problem(names, [output.shape for output in outputs], rows):
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
            sizes = _sizes(profile.max_batch, profile.pad_to, buckets)
            zeros = [
                torch.zeros((sizes[0], *item), dtype=dtype, device=self._device)
                for item, dtype in zip(items, dtypes, strict=True)
            ]
            self._run_on_zeros(zeros, sizes)
            warmed += sizes
            if self._stream is not None:
                if self._graphs is None:
                    self._graphs = Graphs()
                reason = self._graphs.capture(self._module, zeros, sizes)
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
                    self._checked(self._module(*[each[:size].clone() for each in zeros]), size)
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

    def _take_lengths(self, pad: Pad | None) -> LengthAxes | None:
        """Take requests of different lengths, if ``pad`` says so."""
        if pad is None:
            return None
        specs = self._inputs.trial_specs()
        if specs is None:
            raise ConfigError("pad: expected shapes in max, such as '8x512', which say where the length is, got none")
        self.takes_forms = ()
        return self._pad(pad, specs, (), self._inputs.profiles, None)

    def _compute(self, module: Any, arrays: list[Array]) -> list[Array]:
        """Run the model on data that was made up."""
        dtypes = self._inputs.targets([array.shape[1:] for array in arrays])
        # Copies, since a model may work in place.
        inputs = [torch.tensor(array).to(self._device, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
        with torch.inference_mode():
            given = flatten(module(*inputs))
        # Copies again, of what may be a buffer of its own; what is no tensor has no rows.
        return [np.array(to_array(each) if isinstance(each, torch.Tensor) else None) for each in given]

    def _prove_rows(
        self, run: Callable[[list[Array]], list[Array]], outputs: Sequence[Output] | None, tolerance: float
    ) -> None:
        """Raise ConfigError if there is no proof that the rows of every output are the requests'."""
        prove_rows(
            run,
            self._inputs.trial_specs(),
            self._inputs.profiles,
            outputs,
            tolerance=tolerance,
            is_padded=self._graphs is not None,
        )


def _on_device(loaded: Loaded, device: torch.device, *, channels_last: bool) -> Any:
    """Return what is called with the inputs as tensors, on its device."""
    module: Any = loaded.module.to(device)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module if loaded.arrange is None else loaded.arrange(module)


def _normalized(
    module: Any,
    channels: int,
    mean_and_std: tuple[torch.Tensor | None, torch.Tensor | None],
    dtypes: Sequence[torch.dtype] | None,
    floats: torch.dtype,
) -> Callable[..., Any]:
    """Return a model with mean and std, tensors of shape (1, channels, 1, 1) or None, in front of its image inputs."""
    mean, std = mean_and_std

    def run(*inputs: torch.Tensor) -> Any:
        given = []
        for index, tensor in enumerate(inputs):
            if is_image(tensor.shape, tensor.dtype, channels):
                if mean is not None:
                    tensor = tensor - mean
                if std is not None:
                    tensor = tensor / std
                tensor = tensor.to(floats if dtypes is None else dtypes[index])
            given.append(tensor)
        return module(*given)

    return run


def _channels(mean: list[float] | None, std: list[float] | None) -> int:
    """Return how many channels images have that are normalised; 0: there is no normalisation."""
    counts = {len(values) for values in (mean, std) if values is not None}
    if len(counts - {1}) > 1 or 0 in counts:
        raise ConfigError(f"mean and std need one number, or one for each channel, got {mean} and {std}")
    check_levels(mean, std)
    return max(counts, default=0)


def _column(values: list[float] | None, device: torch.device) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)


def _check_images(inputs: TorchInputs, mean: Any, std: Any, channels: int) -> None:
    for profile in inputs.profiles if channels else ():
        known = inputs.largest(profile)
        if known is not None and not any(
            is_image((1, *item), dtype, channels) for item, dtype in zip(*known, strict=True)
        ):
            raise ConfigError(
                f"mean and std with {channels} channels fit no input: expected floats of shape (batch, {channels}, "
                f"height, width), the model has {_listed(known[0])} in a batch"
            )


def _set_precision(loaded: Loaded, precision: str | None) -> torch.dtype:
    """Give the model its type, and return it."""
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    own = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    wanted = own if precision is None else _PRECISIONS[precision]
    if wanted == own:
        return own
    if loaded.is_exported:
        raise ConfigError(f"precision: an exported program computes as it was exported, in {own}; got {precision}")
    loaded.module.to(wanted)
    return wanted


def _input_dtypes(loaded: Loaded, names: list[str] | None) -> list[torch.dtype] | None:
    if names is None:
        return loaded.dtypes
    found = [getattr(torch, name, None) for name in names]
    for name, dtype in zip(names, found, strict=True):
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"dtypes: torch has no type {name!r}")
    dtypes = [dtype for dtype in found if isinstance(dtype, torch.dtype)]
    if loaded.dtypes is not None and dtypes != loaded.dtypes:
        raise ConfigError(f"dtypes: an exported program takes what it was exported with, {_listed(loaded.dtypes)}")
    return dtypes


def _sizes(largest: int, pad_to: int, buckets: Sequence[int] | None) -> list[int]:
    """Return the batch sizes that the model is run with, the largest first.

    Raises:
        ConfigError: if ``buckets`` has one above the largest batch.
    """
    top = max(largest, pad_to)
    if buckets is not None and max(buckets, default=0) > top:
        raise ConfigError(f"buckets: the largest batch is {top}, got {list(buckets)}")
    chosen = [1 << power for power in range(top.bit_length())] if buckets is None else buckets
    return sorted({max(size, pad_to) for size in [*chosen, top]}, reverse=True)


# ---- what is said ----------------------------------------------------------------------------------------------

_said: set[str] = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        _log.warning(sentence)


def _listed(parts: Sequence[Any]) -> str:
    return ", ".join(map(str, parts))
