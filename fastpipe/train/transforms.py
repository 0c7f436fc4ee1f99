"""The nodes in front of a model as a transform: bytes in, a tensor out, in whichever process calls."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastpipe.config.described import PipeConfig
from fastpipe.config.plan import StepPlan
from fastpipe.config.reading import examine, load
from fastpipe.contract import Request
from fastpipe.errors import ConfigError, MissingExtra
from fastpipe.filters import run, swap
from fastpipe.train.chain import Augment, Chain
from fastpipe.train.line import Link, line_of, split

__all__ = ["Transform", "as_tensor", "transform"]


def transform(
    source: str | Path | Mapping[str, Any],
    /,
    *,
    before: str | None = None,
    augment: Callable[[Any], Any] | None = None,
    augment_before: str | None = None,
    **keywords: Any,
) -> Transform:
    """Return the nodes of a pipe that come before its model, as a transform; see :class:`Transform`."""
    return Transform(source, before=before, augment=augment, augment_before=augment_before, **keywords)


class Transform:
    """Nodes of a pipe as a function of one sample: what ``pipe`` would hand to the model, as a torch tensor.

    The description is read and checked at once; the backends are built when the first sample comes, in the process in
    which it comes, each once. So it can be pickled, and works in a DataLoader's workers however these are started. In
    such a worker OpenCV is told to use one thread, as torch is.

    Args:
        source: the path of the TOML file that is served, or a mapping, as of ``fastpipe.Pipe``.
        before: the name of the node, or of the step, or ``"node::step"``, in front of which the transform ends.
            Default: the first that runs a model; without one, all nodes belong to it.
        augment: called with the data in front of ``augment_before`` (an image there: NumPy, uint8, height, width,
            channels), returns what goes on. Leave it out to evaluate. With workers that are spawned it has to be
            picklable, as functions of modules are.
        augment_before: the name of a node or step, such as "NormalizeMat".
        keywords: as of ``fastpipe.Pipe``: they win over ``source``.

    Raises:
        ConfigError: the description has mistakes; or the nodes in front of the model are no line, or one of them cannot
            run without an engine; or the model's node normalises by itself.
        MissingExtra: a node needs a library that is not installed.

    Thread-safety: any thread may call; one at a time is served.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        /,
        *,
        before: str | None = None,
        augment: Augment | None = None,
        augment_before: str | None = None,
        **keywords: Any,
    ) -> None:
        if (augment is None) != (augment_before is None):
            raise ConfigError("augment is a function, and augment_before says where it is called: give both, or none")
        self._before, self._augment, self._augment_before = before, augment, augment_before
        self._take(load(source, keywords))

    def _take(self, config: PipeConfig) -> None:
        self._written = config.written
        self._links = line_of(config, self._before)
        self._augments: dict[int, Augment] = {}
        if self._augment is not None and self._augment_before is not None:
            self._links, index = _divided(self._links, self._augment_before)
            self._augments[index] = self._augment
        self._lock = threading.Lock()
        self._chain: Chain | None = None
        self._process = os.getpid()  # whose the chain is; the child of a fork builds its own
        self._inherited: Chain | None = None

    @property
    def steps(self) -> list[str]:
        """The nodes and their backends, in order: ``["decode: S[DecodeMat,ResizeMat]", "normalize: NormalizeMat"]``."""
        return [f"{link.node}: {_notation(link.plan)}" for link in self._links]

    def __call__(self, data: Any) -> Any:
        """Return a sample as the model gets it.

        Args:
            data: what a request has under ``data``: the bytes of an image. A ``Path`` is read. A dict is a whole
                request, for nodes that want more keys than ``data``; it is copied.

        Returns:
            An array as a torch tensor, which may share its memory; anything else as the last node gives it.

        Raises:
            NoResult: it has none, as what cannot be decoded has none.
            OSError: a file cannot be read.
            Exception: what a backend has raised, with a note that names the node.
        """
        request = self.request(data)
        failure = self.attempt(request)
        if failure is not None:
            raise failure
        return as_tensor(request["result"])

    def request(self, data: Any) -> Request:
        """Return data as a request, a new dict; a ``Path`` is read."""
        if isinstance(data, dict):
            return dict(data)
        return {"data": data.read_bytes() if isinstance(data, Path) else data}

    def attempt(self, request: Request) -> Exception | None:
        """Run a request, which is changed: its ``result`` is what the last node gives. Return what has failed it.

        Raises:
            Exception: what building the nodes raises, and what ``augment`` does.
        """
        if self._process != os.getpid():
            self._start_here()
        with self._lock:
            if self._chain is None:
                _use_one_thread_in_workers()
                self._chain = Chain(self._links, self._augments)
            return self._chain.attempt(request)

    def _start_here(self) -> None:
        """Leave alone what the parent of a fork has built, whose threads are not here: to free it might await them."""
        self._inherited, self._chain = self._chain, None
        self._lock, self._process = threading.Lock(), os.getpid()

    def close(self) -> None:
        """Let go of what the nodes hold. The next sample builds them again."""
        if self._process == os.getpid():
            with self._lock:
                chain, self._chain = self._chain, None
                if chain is not None:
                    chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        written = self._written
        return {
            "tables": dict(written.tables),
            "keywords": dict(written.keywords),
            "base_directory": written.base_directory,
            "before": self._before,
            "augment": self._augment,
            "augment_before": self._augment_before,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._before, self._augment = state["before"], state["augment"]
        self._augment_before = state["augment_before"]
        config, problems, _ = examine(state["tables"], state["keywords"], state["base_directory"])
        problems.raise_if_any()
        self._take(config)

    def __repr__(self) -> str:
        return f"<fastpipe.train.Transform {' -> '.join(self.steps)}>"


def _divided(links: list[Link], name: str) -> tuple[list[Link], int]:
    """Divide a line in front of a node or step, and return the index of the link that begins there.

    Raises:
        ConfigError: none has that name, or a filter in front of it decides whether it runs at all.
    """
    for index, link in enumerate(links):
        if link.node == name:
            return links, index
        head, tail = split(link.plan, lambda step: step.name.lower() == name.lower(), link.node)
        if tail is None:
            continue
        if head is None:
            return links, index
        if tail.filter not in (None, run, swap):
            raise ConfigError(
                f"augment_before: the filter in front of {name!r} decides whether it runs: choose another"
            )
        rest = Link(link.node, replace(tail, filter=None), tail.filter)
        return [*links[:index], Link(link.node, head, link.filter), rest, *links[index + 1 :]], index + 1
    known = ", ".join(f"{link.node} ({', '.join(step.name for step in link.plan.steps())})" for link in links)
    raise ConfigError(f"augment_before: no node or step of the transform is named {name!r}; there are {known}")


def _notation(plan: StepPlan) -> str:
    inside = ",".join(map(_notation, plan.children))
    return f"{plan.name}[{inside}]" if inside else plan.name


def _use_one_thread_in_workers() -> None:
    """Have OpenCV use this thread only, where the process is one of several workers of a DataLoader."""
    data: Any = sys.modules.get("torch.utils.data")
    opencv: Any = sys.modules.get("cv2")
    if data is not None and opencv is not None and data.get_worker_info() is not None:
        opencv.setNumThreads(1)


def as_tensor(value: Any) -> Any:
    """Return an array as a tensor, on its own memory where torch can use that."""
    import numpy as np

    if not isinstance(value, np.ndarray):
        return value
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("fastpipe.train", "torch", error) from error
    is_plain = value.flags.writeable and all(stride >= 0 for stride in value.strides)
    return torch.from_numpy(value if is_plain else value.copy())
