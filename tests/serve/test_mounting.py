"""A pipe in somebody's own web application: mounted, or behind a route; and what an ASGI server sees of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")
pytest.importorskip("starlette", reason="the extra serve is not installed here")

from helpers import Gate, run_loop, until, until_set

import fastpipe.serve
from fastpipe import PerRequest, Pipe, Request
from fastpipe.serve.exchange import Limits
from fastpipe.serve.http import Settings

httpx = pytest.importorskip("httpx")

GOOD = {"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}


def client_of(app: Any) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x")


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
@pytest.mark.parametrize(("where", "prefix"), [("/v2", "/v2"), ("/models/ocr", "/models/ocr/v2"), ("", "/v2")])
def test_mounted(framework: str, where: str, prefix: str) -> None:
    """The protocol is below the mount, with and without ``/v2`` in it; the application's own routes stay."""
    if framework == "fastapi":
        own = pytest.importorskip("fastapi").FastAPI()
        own.get("/hello")(lambda: {"hello": "you"})
    else:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        own = Starlette(routes=[Route("/hello", lambda request: JSONResponse({"hello": "you"}))])

    async def main() -> None:
        own.mount(where, fastpipe.serve.app(pipe, name="m"))
        async with client_of(own) as client:
            assert (await client.get("/hello")).json() == {"hello": "you"}
            assert (await client.get(f"{prefix}/health/ready")).status_code == 200
            assert (await client.get(prefix)).status_code in (200, 307)
            answer = await client.post(f"{prefix}/models/m/infer", json=GOOD)
            assert answer.json()["outputs"][0]["data"] == [7]
            assert (await client.get(f"{prefix}/models/none")).json()["error"] == "no model is named 'none'"

    with Pipe(backend="Identity") as pipe:
        run_loop(main)
        assert not pipe.closing


def test_a_mounted_path_is_built_at_the_first_request(tmp_path: Path) -> None:
    """Or by the application's own lifespan, which closes it, too."""
    from starlette.applications import Starlette

    (tmp_path / "m.toml").write_text('[node]\nbackend = "Identity"\n')

    async def main() -> None:
        lazy = fastpipe.serve.app(tmp_path / "m.toml")
        own = Starlette()
        own.mount("/v2", lazy)
        async with client_of(own) as client:
            answers = await asyncio.gather(*(client.post("/v2/models/m/infer", json=GOOD) for _ in range(4)))
            assert {answer.status_code for answer in answers} == {200}
        assert len(lazy.service.repository.models()) == 1
        await lazy.aclose()
        served = fastpipe.serve.app(str(tmp_path / "m.toml"))
        own = Starlette(lifespan=served.lifespan)
        own.mount("/v2", served)
        async with own.router.lifespan_context(own):
            (model,) = served.service.repository.models()
            assert not model.pipe.closing
        assert model.pipe.closing

    run_loop(main)


async def spoken(
    app: Any, scope: dict[str, Any], *said: dict[str, Any], gone: asyncio.Event | None = None
) -> list[Any]:
    """Run an ASGI application; return what it sends. It hears what is said, and then that the client has left."""
    to_say, sent = list(said), []

    async def receive() -> Any:
        if to_say:
            return to_say.pop(0)
        await (asyncio.Event() if gone is None else gone).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def scope_of(method: str, path: str, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": pairs, "http_version": "1.1"}


def body(*pieces: bytes) -> list[dict[str, Any]]:
    last = len(pieces) - 1
    return [{"type": "http.request", "body": p, "more_body": i < last} for i, p in enumerate(pieces)]


def test_the_lifespan_of_an_asgi_server(tmp_path: Path) -> None:
    """Startup builds, shutdown closes; what cannot be built fails the startup, in words."""
    (tmp_path / "m.toml").write_text('[node]\nbackend = "Identity"\n')
    (tmp_path / "bad.toml").write_text('[node]\nbackend = "Nothing"\n')

    async def main() -> None:
        app = fastpipe.serve.app(tmp_path / "m.toml")
        sent = await spoken(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        (failed,) = await spoken(
            fastpipe.serve.app(tmp_path / "bad.toml"), {"type": "lifespan"}, {"type": "lifespan.startup"}
        )
        assert failed["type"] == "lifespan.startup.failed"
        assert "no backend is named 'Nothing'" in failed["message"]

    run_loop(main)


def test_bodies_by_any_server() -> None:
    """In pieces; too large, by what is said and by what comes; too slow; not as long as was said; cut off."""
    settings = Settings(limits=Limits(body_bytes=1000, buffered_bytes=1500, body_s=0.05, least_bytes_per_s=1 << 30))
    text = json.dumps(GOOD).encode()

    async def main() -> None:
        app = fastpipe.serve.app(pipe, name="m", settings=settings)

        async def status(scope: dict[str, Any], *said: dict[str, Any]) -> int:
            sent = await spoken(app, scope, *said)
            assert json.loads(sent[1]["body"]).keys() >= {"error"} or sent[0]["status"] == 200
            return int(sent[0]["status"])

        scope = scope_of("POST", "/v2/models/m/infer")
        assert await status(scope, *body(text[:10], b"", text[10:])) == 200
        assert await status(scope_of("POST", "/v2/models/m/infer", content_length="2000")) == 413
        assert await status(scope, *body(*[bytes(400)] * 3)) == 413
        assert await status(scope, {"type": "http.request", "body": b"{", "more_body": True}) == 408
        assert await status(scope_of("POST", "/v2/models/m/infer", content_length="5"), *body(text)) == 400
        gone = asyncio.Event()
        gone.set()
        said = {"type": "http.request", "body": b"{", "more_body": True}
        assert await spoken(app, scope, said, gone=gone) == []
        assert app.service.budget.used_bytes == 0

    with Pipe(backend="Identity") as pipe:
        run_loop(main)


def test_a_client_that_leaves_any_server() -> None:
    """Its request is cancelled, and nothing is sent; a task that others cancel stays cancelled."""
    gate = Gate()

    async def main() -> None:
        app = fastpipe.serve.app(pipe, name="m")
        gone = asyncio.Event()
        said = body(json.dumps(GOOD).encode())
        scope = scope_of("POST", "/v2/models/m/infer")
        asked = asyncio.ensure_future(spoken(app, scope, *said, gone=gone))
        await until_set(gate.inside)
        gone.set()
        assert await asked == []
        assert pipe.stats()["requests"]["cancelled"] == 1
        task = asyncio.ensure_future(spoken(app, scope, *said))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        until(lambda: pipe.in_flight == 0)


def test_web_sockets_are_closed() -> None:
    """Nothing is served by them."""

    async def main() -> None:
        sent = await spoken(fastpipe.serve.app(pipe), {"type": "websocket"}, {"type": "websocket.connect"})
        assert [message["type"] for message in sent] == ["websocket.close"]

    with Pipe(backend="Identity") as pipe:
        run_loop(main)


# ---- endpoint ----------------------------------------------------------------------------------------------------


class Kinds(PerRequest):
    """The result is of the kind that the data asks for; else the type of the data, and the data."""

    def run(self, request: Request) -> None:
        answers = {"bytes": b"\xff", "text": "é", "array": np.ones((1, 2), np.float32), "odd": object()}
        value = request["data"]
        if value == "fail":
            raise ValueError("a secret")
        request["result"] = (
            answers[value] if isinstance(value, str) and value in answers else [type(value).__name__, repr(value)]
        )


def with_client(main: Callable[[Any], Coroutine[Any, Any, None]], **options: Any) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def run() -> None:
        with Pipe(backend=Kinds) as pipe:
            own = Starlette(routes=[Route("/", fastpipe.serve.endpoint(pipe, **options), methods=["POST"])])
            async with client_of(own) as client:
                await main(client)

    run_loop(run)


def test_what_an_endpoint_takes_and_gives() -> None:
    """Bytes, text, JSON and forms in; bytes, text and JSON out."""

    async def main(client: Any) -> None:
        jpeg = await client.post("/", content=b"\xff\xd8", headers={"content-type": "image/jpeg"})
        assert jpeg.json() == ["bytes", r"b'\xff\xd8'"]
        assert (await client.post("/", content=b"x")).json() == ["bytes", "b'x'"]
        assert (await client.post("/", content="é", headers={"content-type": "text/plain"})).json() == ["str", "'é'"]
        assert (await client.post("/", json={"a": [1]})).json() == ["dict", "{'a': [1]}"]
        answer = await client.post("/", json="bytes")
        assert (answer.content, answer.headers["content-type"]) == (b"\xff", "application/octet-stream")
        answer = await client.post("/", json="text")
        assert (answer.text, answer.headers["content-type"]) == ("é", "text/plain; charset=utf-8")
        assert (await client.post("/", json="array")).json() == [[1, 1]]

    with_client(main)


def test_a_form_at_an_endpoint() -> None:
    """Its first file counts, or else its first field."""
    pytest.importorskip("python_multipart")

    async def main(client: Any) -> None:
        answer = await client.post("/", data={"a": "b"}, files={"image": ("x.jpg", b"\xff\xd8", "image/jpeg")})
        assert answer.json() == ["bytes", r"b'\xff\xd8'"]
        broken = await client.post("/", content=b"no form", headers={"content-type": "multipart/form-data"})
        assert broken.status_code == 400

    with_client(main)


def test_a_form_where_nothing_reads_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client, and so whoever tries it first, is told what is missing."""
    monkeypatch.setitem(sys.modules, "python_multipart", None)

    async def main(client: Any) -> None:
        answer = await client.post("/", files={"image": ("x.jpg", b"\xff\xd8", "image/jpeg")})
        assert answer.status_code == 501
        assert answer.json()["error"].endswith("pip install python-multipart")

    with_client(main)


def test_errors_of_an_endpoint() -> None:
    """They are those of the protocol, with its statuses."""

    async def main(client: Any) -> None:
        for answer, status, says in (
            (await client.post("/", json="fail"), 500, "the server's log has the reason"),
            (await client.post("/", json="odd"), 500, "cannot be written as JSON"),
            (
                await client.post("/", content=b"{", headers={"content-type": "application/json"}),
                400,
                "the JSON cannot",
            ),
            (await client.post("/", content=b"\xff", headers={"content-type": "text/plain"}), 400, "no text in UTF-8"),
            (await client.post("/", content=bytes(1001)), 413, "at most 1000"),
        ):
            assert answer.status_code == status
            assert says in answer.json()["error"]

    with_client(main, hide_errors=True, max_body_bytes=1000)


def test_a_client_that_leaves_an_endpoint() -> None:
    """Its request is cancelled."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    gate = Gate()

    async def main() -> None:
        own = Starlette(routes=[Route("/", fastpipe.serve.endpoint(lambda: pipe), methods=["POST"])])
        gone = asyncio.Event()
        scope = scope_of("POST", "/") | {"query_string": b"", "root_path": ""}
        asked = asyncio.ensure_future(spoken(own, scope, *body(b"x"), gone=gone))
        await until_set(gate.inside)
        gone.set()
        sent = await asked
        assert sent[0]["status"] == 499
        gate.opened.set()

    with Pipe(backend=gate) as pipe:
        run_loop(main)
        until(lambda: pipe.in_flight == 0)
        assert pipe.stats()["requests"]["cancelled"] == 1


# ---- streams -----------------------------------------------------------------------------------------------------


class Streaming:
    """Stands for a pipe that streams."""

    def __init__(self, *parts: Any, error: Exception | None = None) -> None:
        self.parts = parts
        self.error = error
        self.is_closed = False
        self.wait: asyncio.Event | None = None

    async def astream(self, request: Request, **terms: Any) -> AsyncGenerator[Any, None]:
        try:
            for part in self.parts:
                yield part
            if self.wait is not None:
                await self.wait.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


def events_of(sent: list[Any]) -> list[Any]:
    text = b"".join(message.get("body", b"") for message in sent).decode()
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def served_stream(pipe: Streaming) -> Any:
    """Return an application whose model's pipe is that."""
    app = fastpipe.serve.app(lambda: Pipe(backend="Identity"), name="m")

    async def run(*arguments: Any, **more: Any) -> list[Any]:
        await app.open()
        own = app.service.repository.model("m")
        real, own.pipe = own.pipe, pipe  # type: ignore[assignment]
        try:
            return await spoken(app, *arguments, **more)
        finally:
            own.pipe = real
            await app.aclose()

    return run


def test_events() -> None:
    """A part is an event, in the form of ``generate`` or of ``infer``."""

    async def main() -> None:
        generate = await served_stream(Streaming("a", "b"))(
            scope_of("POST", "/v2/models/m/generate_stream"), *body(b'{"data": "x"}')
        )
        assert dict(generate[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert [event["result"] for event in events_of(generate)] == ["a", "b"]
        infer = await served_stream(Streaming("a", "b"))(
            scope_of("POST", "/v2/models/m/infer_stream"), *body(json.dumps({**GOOD, "id": "7"}).encode())
        )
        assert [event["outputs"][0]["data"] for event in events_of(infer)] == [["a"], ["b"]]
        assert {event["id"] for event in events_of(infer)} == {"7"}

    run_loop(main)


def test_a_stream_that_fails() -> None:
    """Before its first part it has its status; later, the failure is the last event."""

    async def main() -> None:
        scope = scope_of("POST", "/v2/models/m/generate_stream")
        at_once = await served_stream(Streaming(error=fastpipe.QueueFull("full")))(scope, *body(b'{"data": "x"}'))
        assert at_once[0]["status"] == 429
        later = await served_stream(Streaming("a", error=ValueError("bad")))(scope, *body(b'{"data": "x"}'))
        assert later[0]["status"] == 200
        assert events_of(later)[1] == {"error": "ValueError: bad"}

    run_loop(main)


def test_who_leaves_a_stream_closes_it() -> None:
    """At once, also while nothing comes."""

    async def main() -> None:
        pipe = Streaming("a")
        pipe.wait = asyncio.Event()
        gone = asyncio.Event()
        asking = asyncio.ensure_future(
            served_stream(pipe)(scope_of("POST", "/v2/models/m/generate_stream"), *body(b'{"data": "x"}'), gone=gone)
        )
        await asyncio.sleep(0.05)
        assert not pipe.is_closed
        gone.set()
        await asking
        assert pipe.is_closed

    run_loop(main)


def test_a_stream_in_which_nothing_comes_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments keep what stands between from taking it for dead."""
    monkeypatch.setattr("fastpipe.serve.events.BEAT_S", 0.01)

    async def main() -> None:
        pipe = Streaming("a")
        pipe.wait = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, pipe.wait.set)
        sent = await served_stream(pipe)(scope_of("POST", "/v2/models/m/generate_stream"), *body(b'{"data": "x"}'))
        assert [message["body"] for message in sent[1:]].count(b": \n\n") >= 2

    run_loop(main)
