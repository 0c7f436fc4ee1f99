"""The same as a service for microphones:  uvicorn --app-dir examples speech.service:app

A client connects to ``/listen``, and sends what its microphone gives: messages of 1024 bytes, which are 512 samples of
16 bits, little-endian, at 16 kHz. The answer to each is ``{"speech": 0.97}``. Requests of all connections share
batches, and the pipe keeps a state for each of them, which goes with the connection.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator

import fastapi
import numpy as np

import fastpipe
from speech import pipeline


@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Build the pipe in each worker process, and close it at the end."""
    with fastpipe.Pipe(pipeline.configuration()) as pipe:
        app.state.pipe = pipe
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.websocket("/listen")
async def listen(socket: fastapi.WebSocket) -> None:
    """Listen to one microphone until it leaves. What is no sound ends the connection, and no other."""
    await socket.accept()
    stream = uuid.uuid4().hex  # made here, so that no client can go on with the stream of another
    try:
        async for sound in socket.iter_bytes():
            samples = np.frombuffer(sound, "<i2") / np.float32(32768)
            answer = await app.state.pipe.acall({"data": samples, "stream": stream}, timeout=5)
            await socket.send_json({"speech": round(answer["result"], 3)})
    except (KeyError, ValueError) as error:  # a text, or a wrong number of bytes
        await socket.close(1007, f"send 1024 bytes: {error}"[:120])
    finally:
        for node in ("frame", "speech"):
            app.state.pipe.drop_state(node, stream)
