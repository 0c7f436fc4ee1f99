"""Ray Serve: the model of the comparison.  python ray_service.py PORT METRICS-PORT"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray
import served_model
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

IS_BATCHED = served_model.MAX_BATCH > 1


class Model:
    """Runs batches, or one request at a time."""

    @serve.batch(max_batch_size=served_model.MAX_BATCH, batch_wait_timeout_s=served_model.WAIT_MS / 1e3)
    async def batched(self, numbers: list[int]) -> list[Any]:
        good = [number for number in numbers if number != served_model.REFUSED]
        answers = iter(await asyncio.to_thread(served_model.run, good))
        return [ValueError("refused") if number == served_model.REFUSED else next(answers) for number in numbers]

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/parts":
            return StreamingResponse(parts(), media_type="text/plain")
        number = (await request.json())["number"]
        if IS_BATCHED:
            answer = await self.batched(number)
        else:
            (answer,) = await asyncio.to_thread(served_model.run, [number])
        if isinstance(answer, ValueError):  # in a batch, an exception is a value like others
            return JSONResponse({"error": str(answer)}, 400)
        return JSONResponse(answer)


def parts() -> Iterator[str]:
    """Three parts."""
    for part in range(3):
        time.sleep(0.2)
        yield str(part)


def main() -> None:
    """Serve until a signal."""
    http_port, metrics_port = map(int, sys.argv[1:])
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(
        num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, _metrics_export_port=metrics_port,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(sys.path)}},
    )  # fmt: skip
    timeout = {"request_timeout_s": served_model.TIMEOUT_MS / 1e3} if served_model.TIMEOUT_MS else {}
    serve.start(http_options={"host": "127.0.0.1", "port": http_port, **timeout})
    room = {"max_queued_requests": served_model.ROOM - 1} if served_model.ROOM else {}
    options = {
        "num_replicas": served_model.INSTANCES,
        "max_ongoing_requests": 64 if IS_BATCHED else 1,
        "ray_actor_options": {"num_cpus": 0.1},
        **room,
    }
    serve.run(serve.deployment(Model, **options).bind(), blocking=True)


if __name__ == "__main__":
    main()
