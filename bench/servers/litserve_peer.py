"""LitServe, tuned: the echo, and the JPEG classifier.

    python litserve_peer.py echo PORT
    python litserve_peer.py jpeg MODEL WORKERS BATCH PORT

A request is JSON, which LitServe takes besides forms: of the echo ``{"data": text}``, of a JPEG in base64.
"""

import base64
import sys
from typing import Any

import litserve


class Echo(litserve.LitAPI):
    """Answers with the text that came."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["data"]

    def predict(self, data: Any) -> Any:
        return data

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"data": output}


class Jpeg(litserve.LitAPI):
    """Decodes and classifies in a worker; each has its share of the CPUs for the model."""

    def __init__(self, model: str, threads: int, batch: int) -> None:
        waiting = {"batch_timeout": 0.005} if batch > 1 else {}
        super().__init__(max_batch_size=batch, **waiting)
        self.model, self.threads, self.is_batched = model, threads, batch > 1

    def setup(self, device: str) -> None:
        from by_hand import Classify

        self.classify = Classify(self.model, self.threads)

    def decode_request(self, request: dict[str, Any]) -> Any:
        return self.classify.tensor(base64.b64decode(request["data"]))

    def batch(self, inputs: list[Any]) -> Any:
        import numpy as np

        return np.concatenate(inputs)

    def predict(self, tensors: Any) -> Any:
        return self.classify.scores(tensors)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"data": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    case, *settings, port = sys.argv[1:]
    workers = 1
    api: litserve.LitAPI = Echo()
    if case == "jpeg":
        import os

        workers, batch = int(settings[1]), int(settings[2])
        api = Jpeg(settings[0], max(1, len(os.sched_getaffinity(0)) // workers), batch)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
