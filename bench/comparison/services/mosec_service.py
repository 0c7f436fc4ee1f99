"""Mosec: the model of the comparison.  python mosec_service.py [--stream] [--check] --port PORT, and its options."""

from __future__ import annotations

import sys
import time
from typing import Any

import mosec
import served_model
from mosec.errors import ValidationError


class Check(mosec.Worker):
    """A stage in front, which takes one request at a time: what it refuses shares no batch."""

    def forward(self, data: Any) -> Any:
        if data["number"] == served_model.REFUSED:
            raise ValidationError("refused")
        return data


class Model(mosec.Worker):
    """Runs batches."""

    def forward(self, data: Any) -> Any:
        if isinstance(data, list):
            return served_model.run([each["number"] for each in data])
        return served_model.run([data["number"]])[0]


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
        if "--check" in sys.argv:
            server.append_worker(Check)
        waiting = {"max_wait_time": served_model.WAIT_MS} if served_model.MAX_BATCH > 1 else {}
        server.append_worker(Model, num=served_model.INSTANCES, max_batch_size=served_model.MAX_BATCH, **waiting)
    server.run()
