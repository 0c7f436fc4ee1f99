"""From a description of a pipe to an application of Ray Serve."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from fastpipe.config.reading import load
from fastpipe.config.sub_graphs import is_sub_graph
from fastpipe.config.wiring import add_mistakes_of_the_graph
from fastpipe.errors import ConfigError
from fastpipe.scale.ray.autoscaling import QueuePolicy
from fastpipe.scale.ray.replica import Replica

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

    from fastpipe.config.described import PipeConfig

__all__ = ["application", "deployment"]

TIMES_CAPACITY = 2
"""What a replica is sent: its pipe's capacity, and as much again for the next batches, as ``Pipe.map`` does."""


def deployment(
    source: str | Path | Mapping[str, Any],
    /,
    *,
    name: str = "fastpipe",
    num_replicas: int | None = None,
    autoscaling_config: Mapping[str, Any] | AutoscalingConfig | None = None,
    num_gpus: float = 0,
    num_cpus: float = 1,
    max_ongoing_requests: int | None = None,
    timeout: float | None = None,
    replica: type[Replica] = Replica,
    imports: Sequence[str] = (),
    metrics_period_s: float = 5.0,
    ray_actor_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> serve.Application:
    """Return an application for ``serve.run``: replicas of a pipe.

    Args:
        source: the path of a TOML file, or a mapping, as of ``Pipe``. A relative path is looked for in the working
            directory of each replica (``runtime_env={"working_dir": ...}``), then where it is on this machine.
        name: of the deployment.
        num_replicas: how many; not with ``autoscaling_config``.
        autoscaling_config: as of ``serve.deployment``. Without ``policy`` and ``target_ongoing_requests`` in it,
            ``QueuePolicy`` decides by the pipes' own queues, of which ``target_load`` may be given here, too.
        num_gpus: of each replica. Its pipe sees these only, as cuda:0 and so on.
        num_cpus: of each replica; Ray uses it to place replicas, and does not confine them to it.
        max_ongoing_requests: how many requests a replica is sent at once. None: twice what the pipe holds in full
            batches, as its description says; the description, and the libraries that it needs, must then be here.
        timeout: seconds for a request that says nothing itself.
        replica: a class of yours, derived from Replica.
        imports: modules that a replica imports before it builds the pipe, because they register backends.
        metrics_period_s: how often a replica tells Ray what its pipe has counted; 0: never.
        ray_actor_options: as of ``serve.deployment``: ``runtime_env``, ``resources`` and so on.
        options: all else that ``serve.deployment`` takes: ``health_check_period_s``, ``max_queued_requests``, ...

    Raises:
        ConfigError: the description has mistakes, or the file is not here.
        MissingExtra: Ray is not installed, or a library that a backend needs.
        TypeError, ValueError: what Serve refuses.
    """
    capacity = None
    if max_ongoing_requests is None:
        for module in imports:
            importlib.import_module(module)
        config = load(source, {}, add_mistakes_of_the_graph)
        capacity = _capacity_of(config)
        max_ongoing_requests = TIMES_CAPACITY * capacity
        if config.max_in_flight is not None:  # what the pipe would not let in waits better where others can have it
            max_ongoing_requests = min(max_ongoing_requests, config.max_in_flight)
    if autoscaling_config is None:
        options["num_replicas"] = 1 if num_replicas is None else num_replicas
    else:
        options["autoscaling_config"] = _with_policy(autoscaling_config)
        if num_replicas is not None:
            options["num_replicas"] = num_replicas  # Serve says what it thinks of both
    deployed = serve.deployment(
        replica,
        name=name,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus, **(ray_actor_options or {})},
        **options,
    )
    found = dict(source) if isinstance(source, Mapping) else [str(source), str(Path(source).absolute())]
    return deployed.bind(
        found, imports=tuple(imports), timeout=timeout, metrics_period_s=metrics_period_s, capacity=capacity
    )


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """Return ``deployment(arguments.pop("pipeline"), **arguments)``: for Serve's own configuration files.

        applications:
        - name: ocr
          import_path: fastpipe.scale.ray:application
          args: {pipeline: /app/pipeline.toml, num_gpus: 1}

    ``replica`` is written ``module:Class``.

    Raises:
        ConfigError: there is no ``pipeline``, or no class of that name.
    """
    keywords = dict(arguments)
    if "pipeline" not in keywords:
        raise ConfigError("args: 'pipeline' is missing, the path of the TOML file")
    written = keywords.get("replica")
    if isinstance(written, str):
        module, _, attribute = written.partition(":")
        keywords["replica"] = getattr(importlib.import_module(module), attribute, None)
        if keywords["replica"] is None:
            raise ConfigError(f"args: replica: there is no {attribute!r} in {module!r}; it is written module:Class")
    return deployment(keywords.pop("pipeline"), **keywords)


def _capacity_of(config: PipeConfig) -> int:
    """Return what ``Pipe.capacity`` will be, as far as a description says what its backends take."""
    capacity = 0
    for node in config.nodes:
        if node.plan is None or is_sub_graph(node.plan):
            continue  # its instances are another node's
        sizes = (getattr(step.backend, "max_batch", None) for step in node.plan.steps())
        own = max((size for size in sizes if isinstance(size, int)), default=1)
        capacity += node.instance_num * (node.max or own)
    return max(capacity, 1)


def _with_policy(config: Mapping[str, Any] | AutoscalingConfig) -> Any:
    if not isinstance(config, Mapping):
        return config
    written = dict(config)
    target_load = written.pop("target_load", None)
    if "policy" in written or "target_ongoing_requests" in written:
        if target_load is not None:
            raise ValueError("target_load is QueuePolicy's: leave out policy and target_ongoing_requests")
        return written
    kwargs = {} if target_load is None else {"target_load": target_load}
    QueuePolicy(**kwargs)  # a mistake is said here, not by the controller
    written["policy"] = {
        "policy_function": f"{QueuePolicy.__module__}:{QueuePolicy.__qualname__}",
        "policy_kwargs": kwargs,
    }
    return written
