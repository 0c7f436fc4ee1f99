"""LitServe, asked.  python of_litserve.py [FEATURE ...]"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace

from http_probes import SERVICES, Peer, crash, parts_of, register, running
from probes import CALLS, NO, PARTLY, YES, Cell, documented, main, probe

DOCS = "https://github.com/Lightning-AI/litserve"
SERVICE = (sys.executable, str(SERVICES / "litserve_service.py"), "PORT")
PEER = Peer(SERVICE, "/predict")

CHATS = "/v1/chat/completions"


def chat(number: int) -> bytes:
    """Return a request of a chat."""
    return json.dumps({"model": "model", "messages": [{"role": "user", "content": str(number)}]}).encode()


register(PEER, limit={"timeout_ms": 300}, room={"room": 4})


@probe("in_process")
def in_process() -> Cell:
    """A LitAPI is a class, and its predict a function of it: no library between them and their caller."""
    import litserve

    calls = [name for name in CALLS if name in vars(litserve.LitServer)]
    return Cell(PARTLY if calls else NO, ", ".join(calls) or "no: only HTTP")


@probe("metrics")
def metrics() -> Cell:
    """No page of its own; a Logger may bring one."""
    import litserve
    from litserve.loggers import Logger

    assert "loggers" in inspect.signature(litserve.LitServer).parameters
    with running(PEER, max_batch=1) as service:
        status, _ = service.get("/metrics")
    own = f"/metrics: {status}"
    return Cell(PARTLY, f"{own}; a Logger of yours may mount them") if hasattr(Logger, "mount") else Cell(NO, own)


@probe("streaming")
def streaming() -> Cell:
    """Three parts."""
    return parts_of(Peer((*SERVICE, "stream"), "/predict"))


@probe("misspelt")
def misspelt() -> Cell:
    """An option of the API with a wrong letter."""
    import litserve

    try:
        litserve.test_examples.SimpleLitAPI(max_bach_size=4)
    except TypeError:
        return Cell(YES, "TypeError")
    return Cell(NO, "is ignored")


@probe("protocol")
def protocol() -> Cell:
    """Whether the address of the protocol is there."""
    with running(PEER, max_batch=1) as service:
        status, _ = service.get("/v2/health/ready")
    return Cell(NO, f"/v2/health/ready: {status}")


@probe("crash")
def crashes() -> Cell:
    """It replaces its processes if it is told to."""
    with running(PEER, max_batch=1) as service:
        default = crash(service)
    with running(replace(PEER, command=(*SERVICE, "restart")), max_batch=1) as service:
        told = crash(service)
    mark = default.mark if default.mark == told.mark else PARTLY
    return Cell(mark, f"{default.text}; with restart_workers: {told.text}")


@probe("openai")
def openai() -> Cell:
    """Whether the address of chats is there when an API has that form."""
    with running(replace(PEER, command=(*SERVICE, "chat"), path=CHATS, write=chat, read=lambda body: [])) as service:
        said = json.loads(service.of(CHATS, chat, bytes.decode).ask(1).body)["choices"][0]["message"]["content"]
    assert said == "one"
    return Cell(YES, "an option of the API (spec)")


documented(PARTLY, "by code: an API may call others; no graph", DOCS, "graph", "loop", "map_reduce")
documented(NO, "none", DOCS, "priority", "state", "timeline")
documented(YES, "processes (workers_per_device)", DOCS, "cores")
documented(PARTLY, "on Lightning's cloud, its company's service", DOCS, "machines")
documented(NO, "by a new process", DOCS, "swap")
documented(PARTLY, "by your code", DOCS, "gpu_decode")

if __name__ == "__main__":
    main("litserve", "fastapi", "uvicorn")
