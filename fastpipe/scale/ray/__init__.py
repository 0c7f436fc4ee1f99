"""Pipes as replicas of Ray Serve, which distributes, scales and restarts them (extra ``ray``).

    from ray import serve
    from fastpipe.scale.ray import RemotePipe, deployment

    handle = serve.run(deployment("pipeline.toml", num_gpus=1, num_replicas=2))
    pipe = RemotePipe(handle, retries=1, timeout=2.0)
    pipe({"data": jpeg_bytes})

Each replica is a process with a pipe of its own, and takes single requests: those of all callers meet in its batches.
How to: docs/scaling.md. Nothing is imported until it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastpipe.errors import MissingExtra

if TYPE_CHECKING:
    from fastpipe.scale.ray.autoscaling import QueuePolicy
    from fastpipe.scale.ray.deploying import application, deployment
    from fastpipe.scale.ray.remote import RemotePipe
    from fastpipe.scale.ray.replica import Replica

__all__ = ["QueuePolicy", "RemotePipe", "Replica", "application", "deployment"]

_HOMES = {
    "QueuePolicy": "autoscaling",
    "RemotePipe": "remote",
    "Replica": "replica",
    "application": "deploying",
    "deployment": "deploying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "fastpipe":
            raise
        raise MissingExtra(f"{__name__}.{name}", "ray", error) from error
