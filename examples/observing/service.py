"""A web service whose pipe can be looked into:  cd examples/observing && uvicorn service:app

Needs fastapi, uvicorn and the extras ``cpu``, ``metrics`` and ``otel``. ``POST /thumbnail`` makes a JPEG of 96 x 96 of
the picture in its body. ``GET /metrics`` is for Prometheus; the address of the live page is in the log; ``PUT
/timeline?seconds=5`` writes ``service.pftrace`` for Perfetto. Spans go to the provider that the process has set up, and
belong to the trace in the request's ``traceparent``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import cv2
import fastapi
import prometheus_client

import fastpipe
import fastpipe.observe
from fastpipe.observe.metrics import PrometheusCollector, generate_latest
from fastpipe.observe.traces import continued, trace_pipe

log = logging.getLogger("uvicorn.error")


class Encode(fastpipe.PerRequest):
    """Makes a JPEG of an image: uint8, height x width x 3, RGB."""

    def run(self, request: fastpipe.Request) -> None:
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(request["data"], cv2.COLOR_RGB2BGR))
        request["result"] = jpeg.tobytes()


NODES = {
    "decode": {"backend": "S[DecodeMat,(run)ThrowIfNoResult]", "instance_num": 2, "next": "shrink"},
    "shrink": {"backend": "S[LetterBoxMat,CvtColorMat]", "max_h": 96, "max_w": 96, "color": "rgb", "next": "encode"},
    "encode": {"backend": Encode},
}


@asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Build the pipe and what looks into it, in each worker process."""
    with (
        fastpipe.Pipe(NODES) as pipe,
        fastpipe.observe.live(pipe, name="thumbnails") as page,
        trace_pipe(pipe, sample=0.01, name="thumbnail"),
    ):
        app.state.pipe = pipe
        app.state.registry = prometheus_client.CollectorRegistry()
        app.state.registry.register(PrometheusCollector({"thumbnails": pipe}))
        log.info("the live page is at %s", page.url)
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/thumbnail")
async def thumbnail(http: fastapi.Request) -> fastapi.Response:
    """Answer a small JPEG of the picture that was sent."""
    request = {"data": await http.body()}
    try:
        with continued(http.headers):
            await app.state.pipe.acall(request, timeout=10)
    except fastpipe.RequestTimeout as error:
        raise fastapi.HTTPException(504, str(error)) from None
    except fastpipe.BackendError as error:
        raise fastapi.HTTPException(400, str(error)) from None
    return fastapi.Response(request["result"], media_type="image/jpeg")


@app.get("/metrics")
def metrics() -> fastapi.Response:
    """Answer what Prometheus scrapes; a plain ``def``, so that the event loop does not wait for it."""
    return fastapi.Response(generate_latest(app.state.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)


@app.put("/timeline")
async def timeline(seconds: float = 5.0) -> dict[str, str]:
    """Write a timeline of the next seconds. An address for operators: keep it from strangers."""
    with app.state.pipe.timeline("service.pftrace") as running:
        await asyncio.sleep(seconds)
    return {"file": str(running.path)}
