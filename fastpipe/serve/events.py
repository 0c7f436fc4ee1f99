"""Server-sent events: a stream's parts as ``data: {...}`` lines, as browsers and clients of language models read them.

The first part is awaited before anything is sent, so that a request which fails at once has its status. A failure later
is an event of its own, ``data: {"error": "..."}``, and the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastpipe.serve import json_text
from fastpipe.serve.exchange import Response
from fastpipe.serve.statuses import message_of

__all__ = ["EVENT_STREAM", "events_response"]

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise keep events until it has many
]
BEAT_S = 15.0
"""So often a comment is sent while there is no part: what stands between would otherwise take the stream for dead."""
_END = object()


async def events_response(documents: AsyncGenerator[dict[str, Any], None], *, hide: bool = False) -> Response:
    """Return the answer that streams documents; it closes the generator, whoever leaves first.

    Raises:
        Exception: what the generator raises instead of a first document.
    """
    try:
        first = await anext(documents, _END)
    except BaseException:
        await documents.aclose()
        raise
    return Response(200, list(EVENT_STREAM), parts=_events(first, documents, hide))


async def _events(
    first: Any, documents: AsyncGenerator[dict[str, Any], None], hide: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(documents):
        document = first
        try:
            async with aclosing(_with_beats(documents)) as following:
                while document is not _END:
                    yield b": \n\n" if document is None else b"data: %b\n\n" % json_text.dumps(document)
                    document = await anext(following, _END)
        except Exception as error:
            yield b"data: %b\n\n" % json_text.dumps({"error": message_of(error, hide=hide)})


async def _with_beats(documents: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield what comes, and None whenever nothing has come for a while."""
    while True:
        waiting = asyncio.ensure_future(_next(documents))
        try:
            while not (await asyncio.wait([waiting], timeout=BEAT_S))[0]:
                yield None
            document = waiting.result()
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait([waiting])
        if document is _END:
            return
        yield document


async def _next(documents: AsyncIterator[Any]) -> Any:
    return await anext(documents, _END)
