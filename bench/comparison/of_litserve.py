"""LitServe, asked.  python of_litserve.py [FEATURE ...]"""

from __future__ import annotations

import inspect
import sys

from http_probes import SERVICES, Peer, parts_of, register, running
from probes import CALLS, NO, PARTLY, YES, Cell, documented, main, probe

DOCS = "https://github.com/Lightning-AI/litserve"
SERVICE = (sys.executable, str(SERVICES / "litserve_service.py"), "PORT")
PEER = Peer(SERVICE, "/predict")

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
    return Cell(NO, f"/v2/health/ready: {status}; has OpenAI's protocol")


documented(PARTLY, "by code: an API may call others; no graph", DOCS, "graph", "loop", "map_reduce")
documented(NO, "none", DOCS, "priority", "state", "timeline")
documented(NO, "by a new process", DOCS, "swap")
documented(PARTLY, "by your code", DOCS, "gpu_decode")

if __name__ == "__main__":
    main("litserve", "fastapi", "uvicorn")
