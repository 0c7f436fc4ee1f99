"""Pipes as replicas of the real Ray Serve, on a cluster of two nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe

pytest.importorskip("ray.serve", reason="ray[serve] is not installed here")

import ray
import ray_pipes
from ray import serve

from fastpipe.scale.ray import RemotePipe, deployment

# Ray's own code warns of itself, and leaves sockets to the collector.
pytestmark = pytest.mark.filterwarnings("default")

WAIT_S = 120.0
"""Before what Ray should do is called a failure: on a busy machine it takes a minute to start a process."""


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that Ray does in processes of its own."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.1)


@pytest.fixture
def deployed(ray_serve: Any) -> Iterator[Callable[..., Any]]:
    """Deploy pipes; they are gone after the test."""
    names: list[str] = []

    def run(source: Any, **keywords: Any) -> Any:
        names.append(f"app{time.monotonic_ns()}")
        app = deployment(
            source,
            num_cpus=0.1,
            replica=ray_pipes.Words,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=1,
            **keywords,
        )
        return serve.run(app, name=names[-1], route_prefix=f"/{names[-1]}")

    yield run
    for name in names:
        serve.delete(name, _blocking=False)


def test_an_answer_has_what_is_new_and_arrays_are_not_copied(deployed: Any) -> None:
    """Above Ray's 100 KB an array is memory that both processes see: read-only, and nobody's copy."""
    handle = deployed({"backend": ray_pipes.Looks})
    pixels = np.arange(1 << 18, dtype=np.float64)
    answer = handle.remote({"data": pixels, "page": 7}).result(timeout_s=WAIT_S)
    assert answer.keys() >= {"result", "is_writable", "owns_memory"}
    assert not answer.keys() & {"data", "page"}
    assert (answer["is_writable"], answer["owns_memory"]) == (False, False)
    result = answer["result"]
    assert (result.flags.writeable, result.flags.owndata) == (False, False)
    np.testing.assert_array_equal(result, pixels)
    request = {"data": 3.0 * np.ones(2), "page": 7}
    assert RemotePipe(handle, timeout=WAIT_S)(request) is request
    assert (request["page"], request["result"].tolist()) == (7, [3.0, 3.0])


def test_errors_keep_their_type(deployed: Any) -> None:
    """Serve's handle mixes Ray's type in, a RemotePipe does not; an error that Ray would lose says what it was."""
    handle = deployed({"read": {"backend": ray_pipes.Fails}})
    pipe = RemotePipe(handle, timeout=WAIT_S)
    with pytest.raises(fastpipe.QueueFull, match="the queue is full"):
        handle.remote({"data": "full"}).result(timeout_s=WAIT_S)
    with pytest.raises(fastpipe.QueueFull, match="the queue is full") as full:
        pipe({"data": "full"})
    assert (full.type, str(full.value)) == (fastpipe.QueueFull, "the queue is full")
    with pytest.raises(LookupError, match="no such page") as own:
        pipe({"data": "own"})
    assert (own.type, str(own.value)) == (LookupError, "no such page")
    assert "node 'read'" in "\n".join(own.value.__notes__)
    with pytest.raises(fastpipe.BackendError, match=r"ray_pipes\.NeedsTwo: a page: is torn \(it cannot be pickled"):
        pipe({"data": "needs two"})
    with pytest.raises(TypeError, match="a request is a dict"):
        handle.remote(3).result(timeout_s=WAIT_S)


def test_requests_of_all_callers_meet_in_batches_as_large_as_asked_for(deployed: Any) -> None:
    """With 32 in flight, a node of ``max = 16`` runs batches of 16; max_ongoing_requests follows from it."""
    handle = deployed({"backend": "Sleep", "Sleep::time": 50.0, "max": 16})
    pipe = RemotePipe(handle, timeout=WAIT_S)

    async def caller(number: int) -> list[int]:
        return [(await pipe.acall({"data": number + index}))["result"] for index in range(3)]

    async def callers() -> list[list[int]]:
        return await asyncio.gather(*(caller(100 * number) for number in range(32)))

    assert asyncio.run(callers()) == [[100 * number + index for index in range(3)] for number in range(32)]
    (stats,) = handle.broadcast("stats").results(timeout_s=WAIT_S)
    assert max(stats["nodes"]["main"]["batch_sizes"]["buckets"]) == 16
    assert stats["requests"]["done"] == 96


def test_cancelling_and_deadlines_reach_the_pipe(deployed: Any) -> None:
    """A caller that leaves, by Serve's ``cancel`` or a task's, and one whose time is over: their requests end there."""
    handle = deployed({"backend": ray_pipes.RunsUntilCancelled})
    pipe = RemotePipe(handle)

    def ended() -> dict[str, int]:
        (stats,) = handle.broadcast("stats").results(timeout_s=WAIT_S)
        return {**stats["requests"], "timeout": stats["failures"].get("timeout", 0)}

    response = handle.remote({"data": 1})
    wait_until(lambda: ended()["in_flight"] == 1, "the request is in the pipe")
    response.cancel()
    wait_until(lambda: ended()["cancelled"] == 1, "the request was cancelled in the replica")

    async def leaves() -> None:
        task = asyncio.create_task(pipe.acall({"data": 2}))
        while (await asyncio.to_thread(ended))["in_flight"] != 1:
            await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leaves())
    wait_until(lambda: ended()["cancelled"] == 2, "the task's request was cancelled in the replica")
    with pytest.raises(fastpipe.RequestTimeout):
        pipe({"data": 3}, timeout=0.5)
    with pytest.raises(fastpipe.RequestTimeout):
        handle.remote({"data": 4}, deadline=time.time() + 0.5).result(timeout_s=WAIT_S)
    with pytest.raises(fastpipe.RequestTimeout, match="before it came to a replica"):
        handle.remote({"data": 5}, deadline=time.time() - 1).result(timeout_s=WAIT_S)
    wait_until(lambda: ended()["in_flight"] == 0, "nothing is left in the pipe")
    assert ended()["done"] == 0


def running_of(handle: Any) -> int:
    """Return how many replicas are running."""
    overview = serve.status().applications[handle.app_name].deployments["fastpipe"]
    return int(overview.replica_states.get("RUNNING", 0))


def test_a_replica_is_killed_under_load(deployed: Any, tmp_path: Path) -> None:
    """What it held fails with ReplicaLost, or is tried again, as each caller wants it; each request has one outcome."""
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    source = {"run": {"backend": ray_pipes.Runs, "file": str(runs), "gate": str(gate), "instance_num": 8}}
    handle = deployed(source, num_replicas=2, max_ongoing_requests=8, health_check_period_s=1)
    wait_until(lambda: running_of(handle) == 2, "two replicas run")
    once, again = RemotePipe(handle, timeout=WAIT_S), RemotePipe(handle, retries=2, timeout=WAIT_S)
    names = [f"{kind}-{number}" for number in range(8) for kind in ("once", "again")]

    def ran() -> list[tuple[str, int]]:
        lines = runs.read_text().splitlines() if runs.exists() else []
        return [(name, int(pid)) for name, pid in map(str.split, lines)]

    async def load() -> tuple[list[Any], set[str]]:
        tasks = []
        for name in names:
            pipe = once if name.startswith("once") else again
            tasks.append(asyncio.create_task(pipe.acall({"data": name})))
        # Both replicas are full: eight requests run in each, and nothing waits.
        await asyncio.to_thread(wait_until, lambda: len(ran()) == 16, "all requests run")
        victim = ran()[0][1]
        held = {name for name, pid in ran() if pid == victim}
        os.kill(victim, signal.SIGKILL)
        gate.touch()
        return await asyncio.gather(*tasks, return_exceptions=True), held

    outcomes, held = asyncio.run(load())
    lost = {name for name in held if name.startswith("once")}
    assert len(held) == 8
    assert 1 <= len(lost) <= 7
    for name, outcome in zip(names, outcomes, strict=True):
        if name in lost:
            assert type(outcome) is fastpipe.ReplicaLost
        else:
            assert outcome == {"data": name, "result": name}
    counts = Counter(name for name, _ in ran())
    assert counts == {name: 2 if name in held - lost else 1 for name in names}
    wait_until(lambda: running_of(handle) == 2, "Serve has started another one")
    assert once({"data": "after"})["result"] == "after"


def test_an_unhealthy_pipe_is_replaced(deployed: Any) -> None:
    """A node has lost its device: health checks fail, and Serve makes a new replica."""
    handle = deployed({"backend": ray_pipes.Fails}, health_check_period_s=0.5)
    pipe = RemotePipe(handle, timeout=WAIT_S)
    before = handle.pid.remote().result(timeout_s=WAIT_S)
    with pytest.raises(fastpipe.DeviceLost, match="fallen off"):
        pipe({"data": "device"})

    def has_come_back() -> bool:
        try:
            return bool(pipe({"data": 3})["result"] == 3)
        except (fastpipe.DeviceLost, fastpipe.ReplicaLost):
            return False

    wait_until(has_come_back, "a new replica answers")
    assert handle.pid.remote().result(timeout_s=WAIT_S) != before


def test_replicas_come_and_go_with_the_queue_of_their_pipes(deployed: Any) -> None:
    """Eight requests at a node that takes two at once are a load of 4 for one replica: there will be two."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0, "downscale_delay_s": 0}
    scaling |= {"look_back_period_s": 1.0, "metrics_interval_s": 0.5}
    handle = deployed({"backend": "Sleep", "Sleep::time": 100.0, "max": 2}, autoscaling_config=scaling)
    pipe = RemotePipe(handle, timeout=WAIT_S)
    assert running_of(handle) == 1
    is_over = False

    async def caller() -> None:
        while not is_over:
            await pipe.acall({"data": 1})

    async def load() -> None:
        nonlocal is_over
        callers = [asyncio.create_task(caller()) for _ in range(8)]
        try:
            while await asyncio.to_thread(running_of, handle) < 2:
                await asyncio.sleep(0.1)
        finally:
            is_over = True
        await asyncio.gather(*callers)

    asyncio.run(asyncio.wait_for(load(), WAIT_S))
    wait_until(lambda: running_of(handle) == 1, "one is enough for nothing")


def metrics_of_ray() -> list[str]:
    """Return the lines about fastpipe that the agents of all nodes export."""
    lines: list[str] = []
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=WAIT_S) as answer:
            lines += [line for line in answer.read().decode().splitlines() if line.startswith("ray_fastpipe_")]
    return lines


def test_what_the_pipe_counts_is_among_rays_metrics(deployed: Any) -> None:
    """By application, deployment and replica, as all that Serve counts."""
    handle = deployed({"read": {"backend": "Identity"}}, metrics_period_s=0.2)
    pipe = RemotePipe(handle, timeout=WAIT_S)
    for _ in range(5):
        pipe({"data": 1})
    labels = f'application="{handle.app_name}",deployment="fastpipe"'

    def value_of(name: str, more: str = "") -> float | None:
        found = [line for line in metrics_of_ray() if line.startswith(f"{name}{{") and labels in line and more in line]
        return float(found[0].rpartition(" ")[2]) if found else None

    wait_until(lambda: value_of("ray_fastpipe_requests_total", 'outcome="done"') == 5.0, "the counter is there")
    assert value_of("ray_fastpipe_healthy") == 1.0
    assert value_of("ray_fastpipe_node_run_duration_seconds_bucket", 'le="+Inf"') == 5.0
    assert value_of("ray_fastpipe_node_run_duration_seconds_count", 'node="read"') == 5.0


def test_a_grpc_service_of_ones_own_is_answered_by_a_replica(deployed: Any, ray_serve: Any) -> None:
    """Serve's proxy hands the message to the method of that name."""
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue, StringValue

    handle = deployed({"backend": "Identity"})
    with grpc.insecure_channel(f"127.0.0.1:{ray_serve.grpc}") as channel:
        read = channel.unary_unary(
            "/words.Words/Read",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )
        answer = read(BytesValue(value=b"a page"), metadata=[("application", handle.app_name)], timeout=WAIT_S)
    assert answer.value == "a page"


def test_a_configuration_file_of_serves_deploys_a_pipe(ray_serve: Any, tmp_path: Path) -> None:
    """``serve deploy`` builds the application in a process of its own, from the import path and the arguments."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    path = tmp_path / "pipeline.toml"
    path.write_text('[main]\nbackend = "Identity"\nmax = 4\n')
    arguments = {"pipeline": str(path), "num_cpus": 0.1, "replica": "ray_pipes:Words"}
    config = {"name": "words", "route_prefix": "/words", "import_path": "fastpipe.scale.ray:application"}
    schema = ServeDeploySchema(applications=[{**config, "args": arguments}])
    _get_global_client().deploy_apps(schema, _blocking=True)
    try:
        pipe = RemotePipe(serve.get_app_handle("words"), timeout=WAIT_S)
        assert pipe({"data": 3}) == {"data": 3, "result": 3}
    finally:
        serve.delete("words")


def test_chunks_come_as_the_backend_makes_them(deployed: Any) -> None:
    """Of a stream, the answer is in the caller's dict at its end; leaving early cancels the request."""
    handle = deployed({"backend": ray_pipes.Spells})
    pipe = RemotePipe(handle, timeout=WAIT_S)

    async def spell(request: dict[str, Any], count: int) -> list[str]:
        chunks = []
        async with contextlib.aclosing(pipe.astream(request)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == count:
                    break
        return chunks

    request = {"data": "word"}
    assert asyncio.run(spell(request, 5)) == ["w", "o", "r", "d"]
    assert request == {"data": "word", "result": ["w", "o", "r", "d"]}
    assert list(handle.options(stream=True).stream.remote({"data": "ab"})) == ["a", "b"]
    with pytest.raises(LookupError, match="no letter '!'"):
        asyncio.run(spell({"data": "a!"}, 5))
    assert asyncio.run(spell({"data": "abc?"}, 2)) == ["a", "b"]

    def cancelled_count() -> int:
        (stats,) = handle.broadcast("stats").results(timeout_s=WAIT_S)
        return int(stats["requests"]["cancelled"])

    wait_until(lambda: cancelled_count() == 1, "the request of the reader who left is cancelled")


def test_http_is_the_open_inference_protocol(deployed: Any, ray_serve: Any) -> None:
    """Behind Serve's proxy and its route; the model has the deployment's name."""
    handle = deployed({"read": {"backend": "Identity"}})
    url = f"http://127.0.0.1:{ray_serve.http}/{handle.app_name}/v2"

    def answer_to(path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, data=data), timeout=WAIT_S) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    assert answer_to("/models/fastpipe")[1]["name"] == "fastpipe"
    tensor = {"name": "data", "datatype": "FP32", "shape": [3], "data": [1.0, 2.0, 3.0]}
    status, answer = answer_to("/models/fastpipe/infer", {"inputs": [tensor]})
    assert (status, answer["outputs"][0]["name"], answer["outputs"][0]["data"]) == (200, "result", [1.0, 2.0, 3.0])
    assert answer_to("/models/none/infer", {"inputs": [tensor]})[0] == 404


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Front:
    """A deployment in front of a pipe, which calls it as docs/scaling.md says."""

    def __init__(self, handle: Any) -> None:
        self.pipe = RemotePipe(handle, retries=1, timeout=WAIT_S)

    async def __call__(self, http_request: Any) -> Any:
        answer = await self.pipe.acall({"data": (await http_request.body()).decode()})
        return answer["result"]


def test_a_deployment_in_front_calls_the_pipe(ray_serve: Any) -> None:
    """By a RemotePipe inside a replica: two processes are between the client and the pipe."""
    pipe = deployment({"backend": "Identity"}, num_cpus=0.1)
    serve.run(Front.bind(pipe), name="front", route_prefix="/front")
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{ray_serve.http}/front", data=b"a page")
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            assert answer.read() == b"a page"
    finally:
        serve.delete("front")
