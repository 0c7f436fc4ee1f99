"""fastpipe: the model of the comparison, as ``fastpipe serve --pipe model=fastpipe_service:PIPE`` imports it."""

from __future__ import annotations

from typing import Any

import numpy as np
import served_model

import fastpipe


class Model(fastpipe.Backend):
    """Runs batches."""

    max_batch = 64

    def forward(self, batch: Any) -> None:
        numbers = [int(np.asarray(request["data"]).reshape(-1)[0]) for request in batch]
        for request, answer in zip(batch, served_model.run(numbers), strict=True):
            request["result"] = np.array([answer])


PIPE: dict[str, Any] = {
    "model": {
        "backend": Model,
        "max": served_model.MAX_BATCH,
        "batching_timeout": served_model.WAIT_MS,
        "instance_num": served_model.INSTANCES,
    }
}
