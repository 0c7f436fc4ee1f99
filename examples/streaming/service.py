"""The same over HTTP, as server-sent events:  uvicorn --app-dir examples/streaming service:app

``GET /stories/NAME`` tells a story word by word. A client that leaves ends it: its request is cancelled, and the
generator of its backend closed.
"""

import contextlib
import json
from collections.abc import AsyncIterator

import fastapi
from fastapi.responses import StreamingResponse
from tell import STORY, build


@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Build the pipe in each worker process, and close it at the end."""
    with build() as pipe:
        app.state.pipe = pipe
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/stories/{name}")
async def tell(name: str) -> StreamingResponse:
    """Answer word by word."""
    if name not in STORY:
        raise fastapi.HTTPException(404, f"there is no story of {name!r}, but of {', '.join(STORY)}")

    async def events() -> AsyncIterator[str]:
        async with contextlib.aclosing(app.state.pipe.astream({"data": name}, timeout=60)) as words:
            async for word in words:
                yield f"data: {json.dumps(word)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/requests")
async def requests() -> dict[str, int]:
    """Answer how many requests came, and how they ended."""
    return {name: count for name, count in app.state.pipe.stats()["requests"].items() if count}
