"""Mosec, asked.  python of_mosec.py [FEATURE ...]"""

from __future__ import annotations

import sys

from http_probes import SERVICES, Peer, beside, parts_of, register, running
from probes import CALLS, NO, PARTLY, YES, Cell, documented, main, probe
from serve_load import DidNotStart
from served_model import REFUSED

DOCS = "https://github.com/mosecorg/mosec"
SERVICE = (sys.executable, str(SERVICES / "mosec_service.py"), "--address", "127.0.0.1", "--port", "PORT")
PEER = Peer(SERVICE, "/inference")

register(PEER, limit={"MOSEC_TIMEOUT": 300}, room={"MOSEC_CAPACITY": 4})


@probe("isolation")
def isolation() -> Cell:
    """Refused by a stage of its own: in the stage of the batch, its neighbours would be refused, too."""
    with running(Peer((*SERVICE, "--check"), "/inference"), max_batch=4) as service:
        cell = beside(service, REFUSED)
    return Cell(cell.mark, f"{cell.text}, by a stage in front of the batch")


@probe("in_process")
def in_process() -> Cell:
    """What its server and its workers can be called with."""
    import mosec

    calls = [name for name in CALLS if name in vars(mosec.Server)]
    return Cell(PARTLY if calls else NO, ", ".join(calls) or "no: only HTTP")


@probe("misspelt")
def misspelt() -> Cell:
    """A keyword of the worker, and an option of a server that starts."""
    import mosec

    try:
        mosec.Server().append_worker(mosec.Worker, max_bach_size=4)
    except TypeError:
        said = "TypeError"
    else:
        return Cell(NO, "is ignored")
    try:
        with running(Peer((*SERVICE, "--capacty", "4"), "/inference"), max_batch=1):
            return Cell(PARTLY, f"{said}; on the command line ignored")
    except DidNotStart:
        return Cell(YES, f"{said}; on the command line refused")


@probe("streaming")
def streaming() -> Cell:
    """Three parts."""
    return parts_of(Peer((*SERVICE, "--stream"), "/inference"))


@probe("protocol")
def protocol() -> Cell:
    """Whether the address of the protocol is there."""
    with running(PEER, max_batch=1) as service:
        status, _ = service.get("/v2/health/ready")
    return Cell(NO, f"/v2/health/ready: {status}")


documented(PARTLY, "a chain of stages, each with its own batches; routes", DOCS, "graph")
documented(NO, "none", DOCS, "loop", "map_reduce", "priority", "state", "swap")
documented(NO, "none", DOCS, "timeline", "openai")
documented(YES, "a process for each worker of a stage (num)", DOCS, "cores")
documented(NO, "none: by Kubernetes or the like", DOCS, "machines")
documented(PARTLY, "by your code", DOCS, "gpu_decode")

if __name__ == "__main__":
    main("mosec")
