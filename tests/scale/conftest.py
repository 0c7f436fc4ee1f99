"""One Ray cluster of two nodes for all tests of Ray Serve: its processes take long to start."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK = {
    # Serve and its agents tell, look and scale every few seconds; the tests do not wait for that.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_metrics_report_interval_ms": "1000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(SUPPORT),
    "PYTHONWARNINGS": "",
}


class Ports(NamedTuple):
    """Where Serve's proxy listens."""

    http: int
    grpc: int


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture(scope="session")
def ray_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """Serve on a cluster of two nodes, each a raylet with its workers on this machine."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed here")
    before = {name: os.environ.get(name) for name in QUICK}
    folder = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("ray"))  # Ray's workers import from where it was started: not the source tree
    os.environ.update(QUICK)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.config import gRPCOptions

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    ports = Ports(free_port(), free_port())
    cluster: Any = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        serve.start(
            http_options={"host": "127.0.0.1", "port": ports.http},
            proxy_location="HeadOnly",
            grpc_options=gRPCOptions(
                port=ports.grpc, grpc_servicer_functions=["ray_pipes.add_WordsServicer_to_server"]
            ),
        )
        os.chdir(folder)
        yield ports
    finally:
        os.chdir(folder)
        if ray.is_initialized():  # else shutting down would begin with a cluster of its own
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
