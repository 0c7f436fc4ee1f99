"""Mosec: the model of the comparison.  python mosec_service.py [--stream] --port PORT and its other options."""

from __future__ import annotations

import sys
import time
from typing import Any

import mosec
import served_model
from mosec.errors import ValidationError


class Model(mosec.Worker):
    """Runs batches."""

    def deserialize(self, data: bytes) -> Any:
        number = super().deserialize(data)["number"]
        if number == served_model.REFUSED:
            raise ValidationError("refused")
        return number

    def forward(self, data: Any) -> Any:
        return served_model.run(data) if isinstance(data, list) else served_model.run([data])[0]


class Stream(mosec.SSEWorker):
    """Answers in three parts."""

    def forward(self, data: Any) -> Any:
        for part in range(3):
            time.sleep(0.2)
            self.send_stream_event(str(part))
        return "end"


if __name__ == "__main__":
    server = mosec.Server()
    if "--stream" in sys.argv:
        server.append_worker(Stream)
    else:
        waiting = {"max_wait_time": served_model.WAIT_MS} if served_model.MAX_BATCH > 1 else {}
        server.append_worker(Model, num=served_model.INSTANCES, max_batch_size=served_model.MAX_BATCH, **waiting)
    server.run()
