"""``ModelStreamInfer``: many requests on one connection, each with one answer, or with many.

Requests of a stream run at the same time. As in Triton, answers of models with one answer come in the order of their
requests; parts of a model that streams come as they are there, and may lie between them. Each carries its
request's id, a failure too: it ends its request, not the stream.

The requests in flight are bounded: beyond that nothing is read, and gRPC has the client wait. A client that reads
slowly holds up ``write``, and with it the backend's next part. Answers that wait count as requests do, and a client
that takes none of them for ``Limits.write_s`` loses its stream.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.answering import answer, stream
from fastpipe.serve.grpc_calls import FINAL, Asked, Pieces, answer_pieces, asked_of, id_of
from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_messages import inference
from fastpipe.serve.grpc_wire import ANSWER_IN_STREAM, REQUEST_ID, field_head
from fastpipe.serve.statuses import NotReady, SlowClient, Unauthorized

try:
    import grpc
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["Streams"]

ASKS_FOR_EMPTY_FINAL = "triton_enable_empty_final_response"
"""The parameter of a request whose client waits for the last answer of a model that streams."""


MOST_IN_FLIGHT = 64
"""Requests of one stream; more wait with the client."""


class Streams:
    """The handler of the streams of one server.

    When the server stops, nothing more is read of a stream, what is in flight is answered, and the stream ends.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def serve(self, _: Any, context: Any) -> None:
        """Answer one stream; cancelling the task cancels the requests in flight."""
        try:
            self._desk.check(context.invocation_metadata())
        except Unauthorized as error:
            await self._desk.refuse(context, error)
        is_read = await _Stream(self._desk, context).run()
        if context.cancelled():
            raise asyncio.CancelledError
        if not is_read:  # this waits until the client reads after all, or leaves
            seconds = self._desk.limits.write_s
            await self._desk.refuse(context, SlowClient(f"nothing of an answer was taken for {seconds:g} s"))
        if self._desk.stopping.is_set():
            await self._desk.refuse(context, NotReady("the server is shutting down"))


class _Unread(Exception):
    """The client takes no answers."""


class _Stream:
    def __init__(self, desk: Desk, context: Any) -> None:
        self._desk = desk
        self._context = context
        self._room = asyncio.Semaphore(MOST_IN_FLIGHT)
        # gRPC takes one message at a time.
        self._writing = asyncio.Lock()

    async def run(self) -> bool:
        """Answer until the client, or the server, has no more; False: the client takes no answers."""
        is_read = True
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(tasks))
                stopping = tasks.create_task(self._desk.stopping.wait())
                stopping.add_done_callback(lambda _: reading.cancel())
                reading.add_done_callback(lambda _: stopping.cancel())
        except* _Unread:
            is_read = False
        return is_read

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        """Start a request for each message, until the client says that it has no more."""
        earlier: asyncio.Future[None] | None = None
        while True:
            await self._room.acquire()
            body = await self._context.read()
            if body is grpc.aio.EOF:
                return
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tasks.create_task(self._answer(body, earlier, answered))
            earlier = answered

    async def _answer(self, body: bytes, earlier: asyncio.Future[None] | None, answered: asyncio.Future[None]) -> None:
        """Answer a request; ``earlier`` is done when that before it is answered, and ``answered`` when this one is."""
        budget, held_bytes = self._desk.budget, 0
        try:
            try:
                held_bytes = budget.exchange(held_bytes, len(body))
                pieces = await self._answer_of(body, answered)
                if pieces is not None:  # views of the request, or what has come of it
                    held_bytes = budget.exchange(held_bytes, sum(map(len, pieces)))
            except _Unread:
                raise
            except Exception as error:
                pieces = self._failure(body, error)
                held_bytes = budget.exchange(held_bytes, 0)
            del body  # an answer may wait for long, and a refused request is not counted
            if pieces is not None:
                if earlier is not None and not answered.done():
                    await earlier
                await self._write(pieces)
        finally:
            budget.give(held_bytes)
            if not answered.done():
                answered.set_result(None)
            self._room.release()

    async def _answer_of(self, body: bytes, answered: asyncio.Future[None]) -> Pieces | None:
        """Return a request's one answer; None: it had parts, which are written."""
        desk, metadata = self._desk, self._context.invocation_metadata()
        asked = asked_of(body, desk.repository.model, desk.limits, self._context.time_remaining(), metadata)
        if not asked.call.model.is_streaming:
            return _in_stream(answer_pieces(asked, await answer(asked.call), is_final=True))
        answered.set_result(None)  # what comes behind it need not wait for its end
        await self._write_parts(asked)
        return None

    async def _write_parts(self, asked: Asked) -> None:
        waits_for_end = asked.call.parameters.get(ASKS_FOR_EMPTY_FINAL) is True
        async with aclosing(stream(asked.call)) as parts:
            async for outputs in parts:
                await self._write(_in_stream(answer_pieces(asked, outputs, is_final=False)))
        if waits_for_end:
            await self._write(_in_stream(answer_pieces(asked, [], is_final=True)))

    async def _write(self, pieces: Pieces) -> None:
        async with self._writing:
            message = b"".join(pieces)  # one at a time: others wait in pieces, as views of their requests
            try:
                async with asyncio.timeout(self._desk.limits.write_s):
                    await self._context.write(message)
            except TimeoutError:
                raise _Unread from None
            except grpc.aio.InternalError as error:  # the client is gone: gRPC is about to cancel this anyhow
                raise asyncio.CancelledError from error

    def _failure(self, body: bytes, error: Exception) -> Pieces:
        """Return an answer that says what went wrong, with the request's id, if it has one that can be read."""
        response = inference()["ModelStreamInferResponse"](error_message=self._desk.words_of(error))
        response.infer_response.parameters[FINAL].bool_param = True
        id = id_of(body)
        return [response.SerializeToString(), *_in_stream([field_head(REQUEST_ID, len(id)), id])]


def _in_stream(answer: Pieces) -> Pieces:
    """Return a ``ModelStreamInferResponse`` around a ``ModelInferResponse``."""
    return [field_head(ANSWER_IN_STREAM, sum(map(len, answer))), *answer]
