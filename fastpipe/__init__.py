"""fastpipe: deep-learning pipelines for Python services, as one thread-safe function.

    pipe = fastpipe.Pipe("pipeline.toml")
    pipe({"data": jpeg_bytes})

Nodes are linked into a graph; each has many instances and batches dynamically. ``Backend`` is the class to extend.

The house has floors, and an import goes down only (``tests/house/test_imports.py`` has the list). From the top:

    cli                 the command ``fastpipe``
    serve               the Open Inference Protocol over HTTP and gRPC, and pipes in web applications
    batched_function    ``@batched``: a pipe around a plain function
    scale               replicas on other machines: Ray Serve
    observe             what a pipe does, for people and for monitoring: metrics, traces, timelines, the live page
    pipe, _maps, _streams      Pipe: what a service calls, watches and closes; map and amap; stream and astream
    debug               one request node by node; records of requests
    show                pictures of a graph, and the debugger's cards
    models, train       models exported, quantized and compared; nodes as a transform for torch's DataLoader
    instances           from plans to objects of backends and their threads; what replaces one that hangs
    process             signals, fork and exit, once in a process
    measures            what ``stats()`` returns, of what the engine has counted
    _core, engine       the engine: queues, batching, waking up, outcomes; _future is what ``submit`` returns
    backends, kernels   the built-in backends, and the array kernels below them
    config              from what a user wrote to checked nodes and a graph; starts nothing
    functions           a function as a backend
    streaming           backends that answer in parts
    contents            what values contain, for the result cache
    snapshots, cpus, forks, faults     batches as they came, CPUs, locks after a fork, kinds of trouble
    contract            how to write a backend
    filters, results, summaries, errors, redaction, announcing, padding      what everybody uses
"""

from importlib.util import find_spec as _find_spec

for _part in ("fastpipe._core", "fastpipe.backends"):
    if _find_spec(_part) is None:
        raise ImportError(
            f"fastpipe is imported from {__path__[0]!r}, which has no {_part}. If that is its source tree, which Python"
            " finds because it is the current directory, go elsewhere, or install it with 'pip install -e .'"
        )

from fastpipe._core import cancelled, context_of, contexts_of_batch, emit, finish, try_emit, wait_for_room
from fastpipe.batched_function import batched
from fastpipe.config.notation import Sequential, Step
from fastpipe.config.registry import register
from fastpipe.contract import Backend, Between, Container, Existing, PerRequest, Request
from fastpipe.errors import (
    BackendError,
    BackendHung,
    CallLoop,
    ConfigError,
    DecodeError,
    DeviceLost,
    ForkedPipe,
    GraphError,
    ItemErrors,
    KernelError,
    MissingExtra,
    NoResult,
    PipeClosed,
    PipeError,
    QueueFull,
    ReplicaLost,
    RequestTimeout,
    RestartLimit,
    SequenceError,
    UnknownNode,
    WorkerDied,
)
from fastpipe.filters import Filter, Status, filter
from fastpipe.functions import backend
from fastpipe.measures import CacheStats, Distribution, InstanceStats, NodeStats, RequestStats, StateStats, Stats
from fastpipe.pipe import Pipe
from fastpipe.streaming import Streaming

__all__ = [
    "Backend",
    "BackendError",
    "BackendHung",
    "Between",
    "CacheStats",
    "CallLoop",
    "ConfigError",
    "Container",
    "DecodeError",
    "DeviceLost",
    "Distribution",
    "Existing",
    "Filter",
    "ForkedPipe",
    "GraphError",
    "InstanceStats",
    "ItemErrors",
    "KernelError",
    "MissingExtra",
    "NoResult",
    "NodeStats",
    "PerRequest",
    "Pipe",
    "PipeClosed",
    "PipeError",
    "QueueFull",
    "ReplicaLost",
    "Request",
    "RequestStats",
    "RequestTimeout",
    "RestartLimit",
    "SequenceError",
    "Sequential",
    "StateStats",
    "Stats",
    "Status",
    "Step",
    "Streaming",
    "UnknownNode",
    "WorkerDied",
    "backend",
    "batched",
    "cancelled",
    "context_of",
    "contexts_of_batch",
    "emit",
    "filter",
    "finish",
    "register",
    "try_emit",
    "wait_for_room",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for: it takes longer than importing the rest
        from importlib.metadata import version

        return version("fastpipe-engine")
    raise AttributeError(f"module 'fastpipe' has no attribute {name!r}")
