"""CUDA graphs of a model, one for each batch size, and the way of a batch's tensors into what they read."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from typing import Any

import torch

from fastpipe.errors import ConfigError

__all__ = ["Graph", "Graphs", "Staging", "batch_sizes"]

# Others may go on working on the GPU while a graph is captured, but not capture, too.
_capturing = threading.Lock()


class Staging:
    """Joins tensors to one, in page-locked memory if it is to be copied to a GPU; that memory is used again.

    Thread-safety: one thread at a time.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, torch.Tensor] = {}  # input -> bytes
        self._copied: dict[int, Any] = {}  # input -> when the copy from its buffer is done

    def join(
        self, index: int, tensors: Sequence[torch.Tensor], shape: tuple[int, ...], device: torch.device
    ) -> torch.Tensor:
        """Return tensors of equal shape, dtype and device as one of shape ``(rows, *shape)``.

        It may be one of them, and one alone may have many rows; where it has to go to a GPU, it is there, queued on the
        current stream.
        """
        rows = _with_batch_axis(tensors, len(shape) + 1)
        first = rows[0]
        if first.is_cuda or device.type != "cuda":
            return torch.cat(rows).to(device) if len(rows) > 1 else first.to(device)
        staged = self._buffer(index, (sum(map(len, rows)), *shape), first.dtype)
        torch.cat(rows, out=staged)
        joined = staged.to(device, non_blocking=True)
        event: Any = torch.cuda.Event  # its annotations are not complete
        self._copied[index] = copied = event(blocking=True)
        copied.record()
        return joined

    def _buffer(self, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(index)
        if index in self._copied:
            self._copied.pop(index).synchronize()
        if buffer is None or len(buffer) < size:
            self._buffers[index] = buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return buffer[:size].view(dtype).view(shape)


class Graph:
    """One batch size, captured.

    Args:
        graph: torch's.
        inputs: what it reads, ``row_count`` rows each.
        outputs: what it writes.
        row_count: the size of its batch.
    """

    def __init__(self, graph: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor], row_count: int) -> None:
        self._graph, self.inputs, self._outputs, self.row_count = graph, inputs, outputs, row_count

    def fill(
        self,
        by_input: Sequence[Sequence[torch.Tensor]],
        count: int,
        staging: Staging,
        shared: Collection[int] = (),
    ) -> None:
        """Queue the copy of a batch of ``count`` rows into the inputs; those behind it become zeros.

        Of inputs in ``shared``, which have no rows, the first tensor is the whole.
        """
        for index, (buffer, tensors) in enumerate(zip(self.inputs, by_input, strict=True)):
            first = tensors[0]
            if index in shared:
                buffer.copy_(first.reshape(buffer.shape), non_blocking=True)
                continue
            target = buffer[:count] if count < len(buffer) else buffer
            if first.device == buffer.device and first.dtype == buffer.dtype and len(tensors) > 1:
                torch.cat(_with_batch_axis(tensors, buffer.ndim), out=target)
            else:
                shape = tuple(buffer.shape[1:])
                target.copy_(staging.join(index, tensors, shape, buffer.device), non_blocking=True)
            if count < len(buffer):
                buffer[count:].zero_()

    def replay(self) -> list[torch.Tensor]:
        """Queue the model; the outputs are written over by the next replay of any graph of the instance."""
        self._graph.replay()
        return self._outputs


class Graphs:
    """The graphs of one instance; they share memory, and so must run one after the other, on one stream.

    Thread-safety: one thread at a time.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # (shapes of the items, types) -> by size, ascending
        self._graphs: dict[tuple[Any, Any], list[tuple[int, Graph]]] = {}
        self.is_complete = True  # whether all that was to be captured is

    def find(self, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[torch.dtype, ...], count: int) -> Graph | None:
        """Return the smallest graph for at least ``count`` items of these shapes and types, if there is one."""
        for size, graph in self._graphs.get((shapes, dtypes), ()):
            if size >= count:
                return graph
        return None

    def capture(
        self, module: Any, inputs: list[torch.Tensor], sizes: Sequence[int], shared: Collection[int] = ()
    ) -> str:
        """Capture the model, warm, on the current stream, once for each size.

        Args:
            module: the model.
            inputs: with as many rows as the largest size; they become the graphs' own.
            sizes: the largest first.
            shared: those of the inputs that have no rows.

        Returns:
            Why it cannot be captured; nothing if it has been.
        """
        made: list[tuple[int, Graph]] = []
        for size in sizes:
            graph = torch.cuda.CUDAGraph()
            views = [each if index in shared else each[:size] for index, each in enumerate(inputs)]
            try:
                with (
                    _capturing,
                    torch.inference_mode(),
                    torch.cuda.graph(
                        graph,
                        pool=self._pool,
                        stream=torch.cuda.current_stream(),
                        capture_error_mode="thread_local",
                    ),
                ):
                    outputs = module(*views)
            except Exception as error:  # torch's, or the model's, about what a capture must not do
                self.is_complete = False
                cause = error.__context__ or error
                return str(cause).strip().partition("\n")[0]
            made.insert(0, (size, Graph(graph, views, outputs, size)))
        shapes = tuple(tuple(each.shape[index not in shared :]) for index, each in enumerate(inputs))
        self._graphs[shapes, tuple(each.dtype for each in inputs)] = made
        return ""


def _with_batch_axis(tensors: Sequence[torch.Tensor], rank: int) -> list[torch.Tensor]:
    return [tensor if tensor.ndim == rank else tensor[None] for tensor in tensors]


def batch_sizes(largest: int, pad_to: int, buckets: Sequence[int] | None) -> list[int]:
    """Return the batch sizes that the model is run with, the largest first.

    Raises:
        ConfigError: if ``buckets`` has one above the largest batch.
    """
    top = max(largest, pad_to)
    if buckets is not None and max(buckets, default=0) > top:
        raise ConfigError(f"buckets: the largest batch is {top}, got {list(buckets)}")
    chosen = [1 << power for power in range(top.bit_length())] if buckets is None else buckets
    return sorted({max(size, pad_to) for size in [*chosen, top]}, reverse=True)
