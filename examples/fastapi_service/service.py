"""A web service around a pipe:  cd examples/fastapi_service && uvicorn service:main

Needs fastapi and the extras ``cpu`` and ``serve``. Below ``/v2`` is the Open Inference Protocol, for Triton's clients;
``POST /thumbnail`` takes a file and answers with one:

    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' -o thumbnail.jpg http://127.0.0.1:8000/thumbnail

The same without an application of one's own:  fastpipe serve thumbnails=pipeline.toml
"""

from pathlib import Path

import fastapi

import fastpipe.serve

served = fastpipe.serve.app({"thumbnails": Path(__file__).with_name("pipeline.toml")})
main = fastapi.FastAPI(lifespan=served.lifespan)  # builds the pipe in each process, and closes it
main.mount("/v2", served)
thumbnail_of = fastpipe.serve.endpoint(lambda: served.service.repository.model("thumbnails").pipe)


@main.post("/thumbnail")
async def thumbnail(request: fastapi.Request) -> fastapi.Response:
    """Answer a picture with a small one."""
    answer = await thumbnail_of(request)
    if answer.status_code == 200:
        answer.headers["content-type"] = "image/jpeg"
    return answer
