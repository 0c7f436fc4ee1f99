"""pytriton, with Triton inside: the echo, over gRPC.  python pytriton_peer.py HTTP-PORT METRICS-PORT PORT"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def echo(requests: list[Any]) -> list[dict[str, Any]]:
    """Answer with what came."""
    return [{"result": request["data"]} for request in requests]


def main() -> None:
    """Serve until SIGTERM."""
    http_port, metrics_port, port = map(int, sys.argv[1:])
    logging.disable(logging.WARNING)
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    ports = {"http_port": http_port, "metrics_port": metrics_port, "grpc_port": port}
    with Triton(config=TritonConfig(log_verbose=0, http_address="127.0.0.1", **ports)) as triton:
        triton.bind(
            model_name="echo",
            infer_func=echo,
            inputs=[Tensor(name="data", dtype=np.uint8, shape=(-1,))],
            outputs=[Tensor(name="result", dtype=np.uint8, shape=(-1,))],
            config=ModelConfig(batching=False),
        )
        triton.run()
        is_over.wait()


if __name__ == "__main__":
    main()
