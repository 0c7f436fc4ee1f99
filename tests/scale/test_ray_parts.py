"""What stands around Ray Serve: which replica gets how much, how many there should be, and what its errors mean."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastpipe

pytest.importorskip("ray.serve", reason="ray[serve] is not installed here")

from ray import exceptions
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError

from fastpipe.scale.ray import QueuePolicy, RemotePipe, Replica, application, deployment
from fastpipe.scale.ray.autoscaling import load_of

pytestmark = pytest.mark.filterwarnings("default")


class Eight(fastpipe.PerRequest):
    """Takes eight, if nobody says less."""

    max_batch = 8

    def run(self, request: fastpipe.Request) -> None:
        request["result"] = request["data"]


def config_of(app: Any) -> Any:
    """Return what Serve will be told of the one deployment of an application."""
    return app._bound_deployment._deployment_config


@pytest.mark.parametrize(
    ("source", "ongoing"),
    [
        ({"backend": "Identity"}, 2),
        ({"backend": "Identity", "max": 16, "instance_num": 2}, 64),
        ({"backend": Eight}, 16),
        ({"backend": Eight, "max": 4}, 8),
        ({"backend": fastpipe.Sequential("Identity", Eight)}, 16),
        ({"a": {"backend": "Identity", "max": 4, "next": "b"}, "b": {"backend": Eight}}, 24),
        ({"a": {"backend": "Identity", "max": 4, "next": "a.2"}, "a.2": {}}, 8),
        ({"max_in_flight": 10, "a": {"backend": "Identity", "max": 32}}, 10),
    ],
    ids=["one", "two instances", "the backend's own", "the smaller", "inside", "two nodes", "shared", "max_in_flight"],
)
def test_a_replica_is_sent_twice_what_its_pipe_holds(source: dict[str, Any], ongoing: int) -> None:
    """So that full batches can be formed; never more than the pipe lets in."""
    assert config_of(deployment(source)).max_ongoing_requests == ongoing
    with fastpipe.Pipe(source) as pipe:
        assert ongoing == min(2 * pipe.capacity, source.get("max_in_flight", 1000))


def test_a_description_is_checked_where_it_is_deployed(tmp_path: Path) -> None:
    """A mistake is an error here, not of twenty restarts of a replica somewhere."""
    with pytest.raises(fastpipe.ConfigError, match="Identiti"):
        deployment({"backend": "Identiti"})
    with pytest.raises((fastpipe.ConfigError, OSError), match=r"no\.toml"):
        deployment(tmp_path / "no.toml")
    assert config_of(deployment(tmp_path / "no.toml", max_ongoing_requests=3)).max_ongoing_requests == 3


def test_options_are_serves_own() -> None:
    """What the pipe does not decide goes to ``serve.deployment`` as it is."""
    app = deployment(
        {"backend": "Identity"},
        name="words",
        num_gpus=0.5,
        num_replicas=3,
        ray_actor_options={"resources": {"tpu": 1}},
        health_check_period_s=2.0,
    )
    config = config_of(app)
    assert (config.num_replicas, config.health_check_period_s) == (3, 2.0)
    options = app._bound_deployment.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"], options["resources"]) == (0.5, 1, {"tpu": 1})
    assert app._bound_deployment.name == "words"
    with pytest.raises(TypeError, match="helth"):
        deployment({"backend": "Identity"}, helth_check_period_s=2.0)
    with pytest.raises(ValueError, match="num_replicas"):
        deployment({"backend": "Identity"}, num_replicas=2, autoscaling_config={"max_replicas": 3})


def test_pipes_are_scaled_by_their_queues_unless_somebody_says_otherwise() -> None:
    """A policy, or a number of ongoing requests, is Serve's business."""

    def policy_of(**scaling: Any) -> tuple[str, Any]:
        policy = config_of(deployment({"backend": "Identity"}, autoscaling_config=scaling)).autoscaling_config.policy
        return policy.policy_function, policy.policy_kwargs

    assert policy_of(max_replicas=3) == ("fastpipe.scale.ray.autoscaling:QueuePolicy", {})
    assert policy_of(max_replicas=3, target_load=0.5)[1] == {"target_load": 0.5}
    serves_own, _ = policy_of(max_replicas=3, target_ongoing_requests=4)
    assert serves_own == AutoscalingConfig().policy.policy_function
    with pytest.raises(ValueError, match="target_load must be a number above 0, got 0"):
        policy_of(target_load=0)
    with pytest.raises(ValueError, match="target_load is QueuePolicy's"):
        policy_of(target_load=1, target_ongoing_requests=4)
    given = AutoscalingConfig(max_replicas=2)
    assert config_of(deployment({"backend": "Identity"}, autoscaling_config=given)).autoscaling_config == given


@pytest.mark.parametrize(
    ("loads", "queued", "running", "target_load", "wanted"),
    [
        ({"a": 1.0}, 0, 1, 1.0, 1.0),  # just full
        ({"a": 4.0}, 0, 1, 1.0, 4.0),  # three more batches wait
        ({"a": 4.0}, 0, 1, 2.0, 2.0),  # and that is what is wanted
        ({"a": 0.5, "b": 0.25}, 0, 2, 1.0, 0.75),  # one would do
        ({"a": 1.0}, 16, 1, 1.0, 3.0),  # Serve has 16 more, two batches of 8
        ({"a": 3.0}, 0, 2, 1.0, 6.0),  # the second has not told yet
        ({}, 5, 1, 1.0, 1),  # nobody has told anything: as it is
    ],
)
def test_so_many_replicas_that_each_has_the_load_that_is_wanted(
    loads: dict[str, float], queued: float, running: int, target_load: float, wanted: float
) -> None:
    """A table: what the replicas tell -> how many there should be."""
    context = SimpleNamespace(
        aggregated_metrics={"fastpipe_load": loads, "fastpipe_room": dict.fromkeys(loads, 8.0)},
        total_queued_requests=queued,
        current_num_replicas=running,
        target_num_replicas=running,
    )
    assert QueuePolicy(target_load)(context) == (wanted, {})


def test_the_load_is_that_of_the_node_with_the_most_to_do() -> None:
    """In batches of its own size: 12 at a node that takes 4 are more than 16 at one that takes 32."""

    def node(queued: int, running: int, count: int, size: int) -> dict[str, Any]:
        return {"queued": queued, "running": running, "instances": {"count": count}, "max": size}

    nodes = {"decode": node(16, 0, 1, 32), "model": node(8, 4, 2, 2), "rest": node(0, 0, 1, 1)}
    assert load_of({"nodes": nodes}) == {"fastpipe_load": 3.0, "fastpipe_room": 4.0}
    assert load_of({"nodes": {}}) == {"fastpipe_load": 0.0, "fastpipe_room": 1.0}


def test_an_application_is_made_of_what_a_file_says(tmp_path: Path) -> None:
    """``serve deploy`` hands the arguments over; a class is named by its module."""
    path = tmp_path / "pipeline.toml"
    path.write_text('[main]\nbackend = "Identity"\nmax = 4\n')
    app = application({"pipeline": str(path), "num_gpus": 1, "replica": "fastpipe.scale.ray.replica:Replica"})
    assert config_of(app).max_ongoing_requests == 8
    assert app._bound_deployment.func_or_class is Replica
    assert app._bound_deployment.init_args == ([str(path), str(path)],)
    with pytest.raises(fastpipe.ConfigError, match="'pipeline' is missing"):
        application({"num_gpus": 1})
    with pytest.raises(fastpipe.ConfigError, match=r"there is no 'Replicas' in 'fastpipe\.scale"):
        application({"pipeline": str(path), "replica": "fastpipe.scale.ray.replica:Replicas"})


def test_a_replica_takes_the_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory first, which ``runtime_env`` fills, then the place where it was deployed."""
    (tmp_path / "there.toml").write_text('backend = "Identity"\n')
    monkeypatch.chdir(tmp_path)
    for paths in (["there.toml", "/no/there.toml"], ["no.toml", str(tmp_path / "there.toml")]):
        replica = Replica(paths, metrics_period_s=0)
        assert asyncio.run(replica.answer({"data": 3})) == {"result": 3}
        replica.pipe.close()
    with pytest.raises(fastpipe.ConfigError, match=r"no file no\.toml or /no/no\.toml on the machine of this replica"):
        Replica(["no.toml", "/no/no.toml"], metrics_period_s=0)


def test_a_replica_belongs_to_the_trace_of_its_caller() -> None:
    """The headers that a RemotePipe sends are the trace of what the backends do."""
    trace = pytest.importorskip("opentelemetry.trace")
    seen: list[int] = []

    @fastpipe.backend
    def look(data: Any) -> Any:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return data

    replica = Replica({"backend": look}, metrics_period_s=0)
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    asyncio.run(replica.answer({"data": 3}, trace=header))
    replica.pipe.close()
    assert [f"{number:x}" for number in seen] == ["af7651916cd43dd8448eb211c80319c"]


class Response:
    """Serve's response, whose outcome is told beforehand: a value, an exception, or None for one that never comes."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.is_cancelled = False

    def result(self, timeout_s: float | None) -> Any:
        if self.outcome is None:
            assert timeout_s is not None
            raise exceptions.GetTimeoutError("some object(s) not ready")
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def _awaited(self) -> Any:
        if self.outcome is None:
            await asyncio.sleep(1000)
        return self.result(None)

    def __await__(self) -> Any:
        return self._awaited().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Serve's handle, which gives one response after the other."""

    app_name = "app"
    deployment_name = "words"

    def __init__(self, *outcomes: Any) -> None:
        self.responses = [Response(outcome) for outcome in outcomes]
        self.sent: list[tuple[Any, dict[str, Any]]] = []

    def remote(self, request: Any, **keywords: Any) -> Response:
        self.sent.append((request, keywords))
        return self.responses[len(self.sent) - 1]


def call(handle: Handle, way: str, **keywords: Any) -> tuple[dict[str, Any], Any]:
    """Call by one of both ways; return the caller's dict, and the error."""
    pipe = RemotePipe(handle, **keywords)  # type: ignore[arg-type]
    request = {"data": 3}
    try:
        assert (pipe(request) if way == "call" else asyncio.run(pipe.acall(request))) is request
    except Exception as error:
        return request, error
    return request, None


def task_error(cause: Exception) -> Exception:
    error: Exception = exceptions.RayTaskError("answer", "a line of the replica", cause).as_instanceof_cause()
    return error


LOST = exceptions.ActorDiedError()
OUTCOMES: list[tuple[str, Callable[[], Any], type[Exception]]] = [
    ("own", lambda: task_error(LookupError("no page")), LookupError),
    ("a pipe's", lambda: task_error(fastpipe.NoResult("none")), fastpipe.NoResult),
    ("lost", lambda: LOST, fastpipe.ReplicaLost),
    ("unavailable", lambda: exceptions.ActorUnavailableError("gone", None), fastpipe.ReplicaLost),
    ("its node", lambda: exceptions.NodeDiedError("gone"), fastpipe.ReplicaLost),
    ("refused", lambda: BackPressureError(num_queued_requests=3, max_queued_requests=3), fastpipe.QueueFull),
]


@pytest.mark.parametrize("way", ["call", "acall"])
@pytest.mark.parametrize(("outcome", "kind"), [case[1:] for case in OUTCOMES], ids=[case[0] for case in OUTCOMES])
def test_errors_of_ray_are_those_of_a_pipe(way: str, outcome: Callable[[], Any], kind: type[Exception]) -> None:
    """Each with its own type and nothing mixed in, Ray's as its cause; the dict stays as it was."""
    error = outcome()
    request, raised = call(Handle(error), way)
    assert type(raised) is kind
    if isinstance(error, exceptions.RayTaskError):
        assert type(raised.__cause__).__name__ == "RemoteTraceback"
        assert "a line of the replica" in str(raised.__cause__)
        assert raised.__context__ is None  # it would hold the error: a cycle
    else:
        assert raised.__cause__ is error
    assert request == {"data": 3}
    assert type(pickle.loads(pickle.dumps(raised))) is kind


@pytest.mark.parametrize("way", ["call", "acall"])
def test_a_lost_request_is_tried_again_as_often_as_the_caller_says(way: str) -> None:
    """What the pipe has refused is not; nor is anything once the time is over."""
    handle = Handle(LOST, LOST, {"result": 9})
    assert call(handle, way, retries=2) == ({"data": 3, "result": 9}, None)
    assert [request for request, _ in handle.sent] == [{"data": 3}] * 3
    handle = Handle(LOST, LOST, {"result": 9})
    assert type(call(handle, way, retries=1)[1]) is fastpipe.ReplicaLost
    assert len(handle.sent) == 2
    handle = Handle(task_error(fastpipe.QueueFull("full")), {"result": 9})
    assert type(call(handle, way, retries=5)[1]) is fastpipe.QueueFull
    assert len(handle.sent) == 1
    handle = Handle(LOST, {"result": 9})
    assert call(handle, way, retries=5, timeout=0.0)[1] is not None
    assert len(handle.sent) == 1


@pytest.mark.parametrize("way", ["call", "acall"])
def test_a_request_whose_time_is_over_is_cancelled(way: str) -> None:
    """A replica that does not answer keeps no caller, and the replica is told when the time is over."""
    handle = Handle(None)
    _, error = call(handle, way, timeout=0.01)
    assert type(error) is fastpipe.RequestTimeout
    assert [response.is_cancelled for response in handle.responses] == [True]
    ((_, keywords),) = handle.sent
    assert keywords.keys() - {"trace"} == {"deadline"}


def test_a_remote_pipe_sends_the_trace_of_its_caller() -> None:
    """If OpenTelemetry is in use at all."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(0xAF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, trace.TraceFlags(1))
    handle = Handle({"result": 9})
    with trace.use_span(trace.NonRecordingSpan(context)):
        call(handle, "call")
    ((_, keywords),) = handle.sent
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert keywords == {"trace": {"traceparent": header}}


def test_a_replica_warns_if_its_pipe_holds_more_than_was_read(caplog: pytest.LogCaptureFixture) -> None:
    """Serve would send it too few for a full batch, and nobody would see why."""
    for capacity, warnings in ((8, 0), (7, 1)):
        Replica({"backend": "Identity", "max": 8}, metrics_period_s=0, capacity=capacity).pipe.close()
        assert len(caplog.records) == warnings
    assert "pass max_ongoing_requests=16" in caplog.text


def test_a_remote_pipe_says_what_is_wrong_with_it() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="retries must be at least 0, got -1"):
        RemotePipe(Handle(), retries=-1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"retries must be a whole number, got 1\.5"):
        RemotePipe(Handle(), retries=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a request is a dict, got list"):
        RemotePipe(Handle())([{"data": 3}])  # type: ignore[arg-type]
    assert repr(RemotePipe(Handle())) == "<fastpipe RemotePipe of app#words>"  # type: ignore[arg-type]
