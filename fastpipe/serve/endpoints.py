"""A pipe behind a route of one's own, in FastAPI or Starlette: ``endpoint(pipe)``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.pipe import Pipe
from fastpipe.serve import json_text
from fastpipe.serve.answering import trace
from fastpipe.serve.asgi import Watch
from fastpipe.serve.events import EVENT_STREAM, events_response
from fastpipe.serve.exchange import Chunks, Failures
from fastpipe.serve.statuses import AnswerNotServed, ClientGone, InvalidRequest, NotServed, RequestTooLarge
from fastpipe.serve.tensors import array_of

try:
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
except ImportError as missing:
    raise MissingExtra("fastpipe.serve.endpoint", "serve", missing) from missing

__all__ = ["endpoint"]

BODY_BYTES = 256 << 20


def endpoint(
    pipe: Pipe | Callable[[], Pipe],
    *,
    key: str = "data",
    timeout: float | None = None,
    stream: bool = False,
    max_body_bytes: int = BODY_BYTES,
    hide_errors: bool = False,
) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers a web request with a pipe: bytes, text, a form's file or JSON in; the pipe's result out.

        app.add_route("/ocr", fastpipe.serve.endpoint(pipe), methods=["POST"])

        @app.post("/ocr")
        async def ocr(request: Request) -> Response:
            return await answer(request)          # answer = fastpipe.serve.endpoint(pipe)

    In: a body of ``application/json`` is what it says; ``text/...`` is a ``str``; of ``multipart/form-data`` it is the
    first file, or else the first field; anything else is ``bytes``. Out: bytes as they are, text as text, everything
    else as JSON, with arrays as nested lists. An error of the pipe is ``{"error": "..."}`` with its status, as the
    table in docs/serving.md has it. A client that leaves cancels its request. A header ``traceparent`` is followed.

    Args:
        pipe: a pipe, or a function that returns it, called for each request: for a pipe that is built at startup.
        key: of the request's dict.
        timeout: seconds, as of a call of the pipe.
        stream: answer part by part, as server-sent events, each a JSON value.
        max_body_bytes: larger ones are refused with 413.
        hide_errors: do not tell clients why a backend has failed.
    """
    failures = Failures(hide=hide_errors)

    async def answer(request: Request) -> Response:
        try:
            found = pipe if isinstance(pipe, Pipe) else pipe()
            given = {key: await _given(request, max_body_bytes)}
            traced = {name.lower(): value for name, value in request.headers.items()}
            if stream:
                return await _streamed(found, given, timeout, traced, hide=hide_errors)
            with Watch(request.receive) as watch, trace(traced):
                await found.acall(given, timeout=timeout)
            if watch.is_gone:
                raise ClientGone("the client has left")
            return _written(given.get("result"))
        except Exception as error:
            failed = failures.response(error)
            headers = {name.decode(): value.decode() for name, value in failed.headers}
            return Response(failed.body, failed.status, headers)

    return answer


async def _given(request: Request, max_body_bytes: int) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_body_bytes:
        raise RequestTooLarge(f"the body has {int(declared)} bytes; at most {max_body_bytes} are taken")
    if kind == "multipart/form-data":
        return await _from_form(request, max_body_bytes)
    chunks = Chunks()
    async for chunk in request.stream():
        if chunks.add(chunk) > max_body_bytes:
            raise RequestTooLarge(f"the body has more than {max_body_bytes} bytes")
    taken = chunks.taken()
    body = taken[0] if len(taken) == 1 and isinstance(taken[0], bytes) else b"".join(taken)
    if kind == "application/json":
        return json_text.loads(body)
    if kind.startswith("text/"):
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("the body is no text in UTF-8") from None
    return body


async def _from_form(request: Request, max_body_bytes: int) -> Any:
    """Return the first file of a form, or else the first field; Starlette parses it, python-multipart helps."""
    try:
        import python_multipart  # noqa: F401  # without it, Starlette fails an assertion
    except ImportError:
        raise NotServed(
            "forms are read only where python-multipart is installed: pip install python-multipart"
        ) from None
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    if not request.headers.get("content-length"):
        raise RequestTooLarge(f"a form says its length, and has at most {max_body_bytes} bytes")
    try:
        async with request.form() as form:
            values = [value for _, value in form.multi_items()]
            for value in values:
                if isinstance(value, UploadFile):
                    return await value.read()
    except HTTPException as error:  # so Starlette says what is wrong with a form
        raise InvalidRequest(f"the form cannot be read: {error.detail}") from None
    if not values:
        raise InvalidRequest("the form has neither a file nor a field")
    return values[0]


def _written(result: Any) -> Response:
    if isinstance(result, bytes | bytearray | memoryview):
        return Response(bytes(result), media_type="application/octet-stream")
    if isinstance(result, str):
        return Response(result, media_type="text/plain")
    return Response(_as_json(result), media_type="application/json")


def _as_json(result: Any) -> bytes:
    array = array_of("result", result)
    try:
        return json_text.dumps(result if array is None else array)
    except TypeError as error:
        raise AnswerNotServed(f"the result cannot be written as JSON: {error}") from error


async def _streamed(
    pipe: Any, given: dict[str, Any], timeout: float | None, traced: Mapping[str, str], *, hide: bool
) -> Response:
    async def documents() -> AsyncGenerator[Any, None]:
        async with aclosing(pipe.astream(given, timeout=timeout)) as parts:
            async for part in parts:
                yield part

    with trace(traced):
        response = await events_response(documents(), hide=hide)
    headers = {name.decode(): value.decode() for name, value in EVENT_STREAM}
    return StreamingResponse(response.parts or _nothing(), headers=headers)


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""
