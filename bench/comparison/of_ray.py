"""Ray Serve, asked.  python of_ray.py [FEATURE ...]"""

from __future__ import annotations

import os
import sys

from http_probes import SERVICES, Peer, parts_of, register
from probes import NO, PARTLY, YES, Cell, documented, main, probe

DOCS = "https://docs.ray.io/en/latest/serve"
SERVICE = (sys.executable, str(SERVICES / "ray_service.py"), "PORT", "OTHER1")
PEER = Peer(SERVICE, "/", metrics=":OTHER1/metrics", environment=(("RAY_USAGE_STATS_ENABLED", "0"),))

register(PEER, limit={"timeout_ms": 300}, room={"room": 4})


@probe("streaming")
def streaming() -> Cell:
    """Three parts."""
    return parts_of(Peer(SERVICE, "/parts", environment=PEER.environment), PEER)


@probe("in_process")
def in_process() -> Cell:
    """A deployment without a cluster, which is meant for tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray import serve

    class Doubles:
        def __call__(self, number: int) -> int:
            return 2 * number

    handle = serve.run(serve.deployment(Doubles).bind(), _local_testing_mode=True)
    assert handle.remote(21).result() == 42
    return Cell(PARTLY, "by a handle to other processes; within the process for tests only")


@probe("misspelt")
def misspelt() -> Cell:
    """An option of a deployment, and one of a batch."""
    from ray import serve

    said = []
    for what, make in (
        ("deployment", lambda: serve.deployment(object, num_replica=2)),
        ("batch", lambda: serve.batch(max_bach_size=2)),
    ):
        try:
            make()
        except TypeError:
            said.append(f"{what}: TypeError")
        else:
            said.append(f"{what}: ignored")
    return Cell(YES if "ignored" not in str(said) else PARTLY, "; ".join(said))


documented(
    YES, "by code: deployments call each other, each with its own batches", f"{DOCS}/model_composition.html", "graph"
)
documented(PARTLY, "by code", f"{DOCS}/model_composition.html", "loop", "map_reduce")
documented(YES, "processes (replicas)", f"{DOCS}/index.html", "cores")
documented(YES, "replicas on all machines of a cluster, by load", f"{DOCS}/autoscaling-guide.html", "machines")
documented(YES, "ray.serve.llm, with vLLM", f"{DOCS}/llm/index.html", "openai")
documented(NO, "none", f"{DOCS}/index.html", "priority", "protocol")
documented(PARTLY, "requests of a model id go to the replica that has it", f"{DOCS}/model-multiplexing.html", "state")
documented(YES, "rolling updates", f"{DOCS}/index.html", "swap")
documented(PARTLY, "of tasks; no batches", f"{DOCS}/index.html", "timeline")
documented(PARTLY, "by your code", f"{DOCS}/index.html", "gpu_decode")

if __name__ == "__main__":
    main("ray")
