"""The page of the API: every public name by subject; Sphinx reads signatures and docstrings of what is installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent
from typing import get_origin

from reference.docstrings import of_data
from reference.stubs import signature_of

__all__ = ["SUBJECTS", "Subject", "page", "unlisted"]

_HEAD = """API
===

Every public name, by subject; :ref:`by the alphabet <genindex>` they are in the index. What begins with an underscore,
and modules that are not on this page, may change without a word in the changelog.
"""


@dataclass(frozen=True)
class Subject:
    """A section of the page."""

    title: str
    about: str
    module: str
    names: tuple[str, ...]


_SERVE = ("app", "endpoint", "App", "Repository", "Settings", "Limits", "Signature", "TensorSpec")

SUBJECTS = (
    Subject(
        "Pipes",
        "A pipe is built from a description and called from any thread. See :doc:`/docs/calling`.",
        "fastpipe",
        ("Pipe", "batched", "backend", "register", "Request", "Sequential", "Step"),
    ),
    Subject(
        "Batched functions",
        "What ``batched`` makes of a function, and of a method.",
        "fastpipe.batched_function",
        ("BatchedFunction", "BatchedMethod"),
    ),
    Subject(
        "Writing backends",
        "What a node runs. See :doc:`/docs/writing-a-backend`.",
        "fastpipe",
        ("Backend", "PerRequest", "Streaming", "Container", "Between", "Existing"),
    ),
    Subject(
        "More for backends",
        "For containers, sub-graphs and backends that pad.",
        "fastpipe.contract",
        ("Child", "SubGraph", "Site", "site", "run_each", "raise_failed", "PaddingCount"),
    ),
    Subject(
        "Inside of a backend",
        "Functions for the thread that runs ``forward``.",
        "fastpipe",
        ("cancelled", "context_of", "contexts_of_batch", "emit", "try_emit", "finish", "wait_for_room"),
    ),
    Subject(
        "Filters",
        "Decisions in front of a node or a step. See :doc:`/docs/configuration`.",
        "fastpipe",
        ("Status", "Filter", "filter"),
    ),
    Subject(
        "Errors",
        "All of fastpipe's own are a ``PipeError``; what a backend raises reaches its caller as it is.",
        "fastpipe",
        (
            "PipeError",
            "ConfigError",
            "GraphError",
            "MissingExtra",
            "UnknownNode",
            "QueueFull",
            "RequestTimeout",
            "PipeClosed",
            "NoResult",
            "RestartLimit",
            "BackendError",
            "BackendHung",
            "ItemErrors",
            "DecodeError",
            "KernelError",
            "SequenceError",
            "DeviceLost",
            "WorkerDied",
            "CallLoop",
            "ForkedPipe",
            "ReplicaLost",
        ),
    ),
    Subject(
        "Counters",
        "What ``Pipe.stats()`` returns. See :doc:`/docs/calling`.",
        "fastpipe",
        ("Stats", "NodeStats", "InstanceStats", "RequestStats", "CacheStats", "StateStats", "Distribution"),
    ),
    Subject(
        "Watching",
        "A live page in a process of yours. See :doc:`/docs/observing`.",
        "fastpipe.observe",
        ("live", "LivePage"),
    ),
    Subject(
        "Metrics",
        "For Prometheus and OpenTelemetry; need the extra ``metrics`` or ``otel``.",
        "fastpipe.observe.metrics",
        ("PrometheusCollector", "generate_latest", "PipeMetricsExporter", "instrument"),
    ),
    Subject(
        "Traces",
        "Need the extra ``otel``.",
        "fastpipe.observe.traces",
        ("trace_pipe", "Tracing", "continued", "headers"),
    ),
    Subject("Serving", "Needs the extra ``serve``. See :doc:`/docs/serving`.", "fastpipe.serve", _SERVE),
    Subject(
        "Replicas by Ray Serve",
        "Need the extra ``ray``. See :doc:`/docs/scaling`.",
        "fastpipe.scale.ray",
        ("application", "deployment", "RemotePipe", "Replica", "QueuePolicy"),
    ),
    Subject(
        "Training",
        "The nodes that serve as a transform for torch. See :doc:`/docs/training`.",
        "fastpipe.train",
        ("transform", "Transform", "Dataset", "collate", "IMAGE_SUFFIXES"),
    ),
    Subject("Exporting", "See :doc:`/docs/onnx-tools`.", "fastpipe.models.exporting", ("export", "Exported")),
    Subject(
        "Quantising",
        "See :doc:`/docs/onnx-tools`.",
        "fastpipe.models.quantizing",
        ("quantize", "Quantized", "METHODS"),
    ),
    Subject(
        "Comparing",
        "See :doc:`/docs/onnx-tools`.",
        "fastpipe.models.comparing",
        ("compare", "Comparison", "Difference", "other_model"),
    ),
    Subject(
        "Kernels",
        "Operations on arrays, usable without a pipe. ``fastpipe.kernels.reference`` has the same in plain NumPy.",
        "fastpipe.kernels.cpu",
        ("convert_color", "normalize", "resize", "Color"),
    ),
    Subject(
        "Kernels for GPUs",
        "The same and more on CuPy's arrays, each in batches; need the extra ``cuda``. See :doc:`/docs/gpu/kernels`.",
        "fastpipe.kernels.cuda",
        ("workspace", "Workspace", "describe", "IMAGE", "Color", "Filter"),
    ),
    Subject(
        "Encrypted models",
        "Need the extra ``encryption``. See :doc:`/docs/backends`.",
        "fastpipe.backends.model.encrypted",
        ("encrypt_model",),
    ),
)

_IN_PART = {"fastpipe.backends.model.encrypted"}
"""Modules of which the page has some names only."""


def unlisted() -> list[str]:
    """Return the public names that the page leaves out, of the modules that it has all of."""
    listed = [getattr(importlib.import_module(each.module), name) for each in SUBJECTS for name in each.names]
    modules = {subject.module for subject in SUBJECTS} - _IN_PART
    return sorted(
        f"{module}.{name}"
        for module in modules
        for name in importlib.import_module(module).__all__
        if not any(getattr(importlib.import_module(module), name) is each for each in listed)
    )


def page() -> str:
    """Return the page as reStructuredText, for the folder ``reference/`` of the site."""
    return "\n".join([_HEAD, *(line for subject in SUBJECTS for line in _section(subject))])


def _section(subject: Subject) -> Iterator[str]:
    yield f"{subject.title}\n{'-' * len(subject.title)}\n\n{subject.about}\n"
    module = importlib.import_module(subject.module)
    for name in subject.names:
        found = getattr(module, name)
        if isinstance(found, type) and not get_origin(found):
            kind = "autoexception" if issubclass(found, BaseException) else "autoclass"
            yield f".. {kind}:: {subject.module}.{name}"
            if any(is_worth_showing(base) for base in found.__bases__):
                yield "   :show-inheritance:"
            yield from _bases_of_pipe() if name == "Pipe" else [""]
        elif callable(found) and not get_origin(found):
            yield f".. autofunction:: {subject.module}.{name}\n"
        else:
            yield f".. py:data:: {subject.module}.{name}\n   :value: {_value(found)}\n"
            yield indent(f"{of_data(module, name)}\n", "   ")


def is_worth_showing(base: type) -> bool:
    """Whether a reader can look a base class up: here, or, of an error, in Python's documentation."""
    return (base.__module__ == "builtins" and base is not object) or any(
        base.__name__ in each.names for each in SUBJECTS
    )


def _bases_of_pipe() -> Iterator[str]:
    """Yield what has the page show that a pipe can what its bases can, which are no public names."""
    yield "   :inherited-members:\n"
    parameters, result = signature_of("Engine.__call__") or ("()", "")
    yield f"   .. automethod:: __call__{parameters} -> {result}\n"


def _value(found: object) -> str:
    return re.sub(r"\b(typing|collections\.abc)\.", "", repr(found))
