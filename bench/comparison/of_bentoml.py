"""BentoML, asked.  python of_bentoml.py [FEATURE ...]"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from http_probes import SERVICES, Peer, parts_of, register, running, two_instances
from probes import NO, PARTLY, YES, Cell, documented, main, probe

DOCS = "https://docs.bentoml.com"
COMMAND = (
    str(Path(sys.executable).parent / "bentoml"),
    "serve",
    "bentoml_service:Model",
    "--host",
    "127.0.0.1",
    "--working-dir",
    str(SERVICES),
    "--port",
    "PORT",
)
BATCHED = Peer(
    COMMAND,
    "/batched",
    write=lambda number: json.dumps({"numbers": [number]}).encode(),
    read=lambda body: json.loads(body)[0],
    environment=(("BENTOML_DO_NOT_TRACK", "True"),),
)
SINGLE = replace(BATCHED, path="/single", write=lambda number: json.dumps({"number": number}).encode(), read=json.loads)

register(BATCHED, limit={"timeout_ms": 300}, room={"room": 4}, single=SINGLE)


@probe("instances")
def instances() -> Cell:
    """They are threads or processes: the service's configuration has a key for each."""
    with running(SINGLE, max_batch=1, instances=2) as service:
        threads = two_instances(service)
    with running(SINGLE, max_batch=1, workers=2) as service:
        workers = two_instances(service)
    mark = YES if threads.mark == workers.mark == YES else PARTLY
    return Cell(mark, f"threads=2: {threads.text}; workers=2: {workers.text}")


@probe("in_process")
def in_process() -> Cell:
    """The service's class, called: no batches, no limits."""
    sys.path.insert(0, str(SERVICES))
    from bentoml_service import Model

    assert Model().single(5)[0] == 5
    return Cell(PARTLY, "the service's class can be called: without batches")


@probe("misspelt")
def misspelt() -> Cell:
    """A keyword of the endpoint, and one of the service."""
    import bentoml

    said = []
    for what, make in (
        ("endpoint", lambda: bentoml.api(batchable=True, max_bach_size=4)(lambda self, numbers: numbers)),
        ("traffic", lambda: bentoml.service(traffic={"time_out": 1})(type("Any", (), {}))),
    ):
        try:
            make()
        except Exception as error:
            said.append(f"{what}: {type(error).__name__}")
        else:
            said.append(f"{what}: ignored")
    return Cell(YES if "ignored" not in str(said) else PARTLY, "; ".join(said))


@probe("streaming")
def streaming() -> Cell:
    """Three parts."""
    return parts_of(replace(SINGLE, path="/stream", write=lambda number: b"{}"), SINGLE)


@probe("protocol")
def protocol() -> Cell:
    """Whether the address of the protocol is there."""
    with running(SINGLE) as service:
        status, _ = service.get("/v2/health/ready")
    return Cell(NO, f"/v2/health/ready: {status}")


documented(PARTLY, "by code: services call each other (depends), each with its own batches", DOCS, "graph")
documented(PARTLY, "by code", DOCS, "loop", "map_reduce")
documented(YES, "processes (workers)", f"{DOCS}/en/latest/build-with-bentoml/parallelize-requests.html", "cores")
documented(
    PARTLY,
    "on BentoCloud, its company's service",
    f"{DOCS}/en/latest/scale-with-bentocloud/scaling/autoscaling.html",
    "machines",
)
documented(PARTLY, "by code: a mounted server of vLLM", f"{DOCS}/en/latest/examples/vllm.html", "openai")
documented(NO, "none", DOCS, "priority", "state", "swap")
documented(PARTLY, "OpenTelemetry; no batches", DOCS, "timeline")
documented(PARTLY, "by your code", DOCS, "gpu_decode")

if __name__ == "__main__":
    main("bentoml")
