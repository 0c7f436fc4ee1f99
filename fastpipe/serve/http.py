"""The protocol over HTTP, without a server: a method, a path and a body in, an answer out.

    Service(repository).route("POST", "/v2/models/ocr/infer")  -> what answers there, or an error
    await service.answer(route, headers, chunks)               -> the answer; errors are answers, too

``asgi`` puts it behind any ASGI server, ``connection`` behind fastpipe's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import NamedTuple

from fastpipe.errors import in_brief
from fastpipe.serve import json_text
from fastpipe.serve.answering import answer
from fastpipe.serve.events import events_response
from fastpipe.serve.exchange import (
    Budget,
    Buffer,
    Failures,
    Headers,
    Limits,
    Response,
    compressed,
    decompressed,
    json_response,
    split_body,
)
from fastpipe.serve.generate import generated, generated_parts, inferred_parts, read_generate
from fastpipe.serve.inference import read_call, write_answer
from fastpipe.serve.openapi import openapi
from fastpipe.serve.repository import Repository
from fastpipe.serve.scraping import Scraping
from fastpipe.serve.statuses import (
    InvalidRequest,
    NotReady,
    NotServed,
    Unauthorized,
    UnknownModel,
    WrongMethod,
)

__all__ = ["Route", "Service", "Settings"]

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
]
"""What ``/v2`` says that the server has, by Triton's names."""
MOST_ROUTES = 1024


@dataclass(frozen=True)
class Settings:
    """How a server behaves, but for its models.

    Args:
        limits: of requests.
        token: who asks has to have it, but for health: ``Authorization: Bearer TOKEN``. None: everybody may.
        hide_errors: tell clients nothing of exceptions of backends; the log has them.
        shows_process: ``/metrics`` also has what is in Prometheus's default registry, see ``Scraping``.
        metrics_directory: in which several processes of the service find each other, see ``PrometheusCollector``.
    """

    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    hide_errors: bool = False
    metrics_directory: str | None = None
    shows_process: bool = False


class Request(NamedTuple):
    """What has come."""

    headers: Headers
    chunks: list[Buffer]


Handler = Callable[["Service", "Route", Request], Awaitable[Response]]


class Route(NamedTuple):
    """What answers at a path, and for which model."""

    handler: Handler
    name: str = ""
    version: str = ""
    is_open: bool = False
    """Nobody needs a token: health, which is asked by who has none."""


class Service:
    """Answers requests for the models of a repository. For one event loop's thread."""

    def __init__(self, repository: Repository, settings: Settings | None = None) -> None:
        self.repository = repository
        self.settings = settings or Settings()
        self.limits = self.settings.limits
        self.budget = Budget(self.limits.buffered_bytes)
        """Of the bodies of all requests that are there; whoever reads them counts."""
        self.live_url = ""
        """Of the live page, if there is one."""
        directory, shows_process = self.settings.metrics_directory, self.settings.shows_process
        self.scraping = Scraping(repository, directory, shows_process=shows_process)
        self._token = None if self.settings.token is None else b"Bearer " + self.settings.token.encode()
        self._routes: dict[tuple[str, str], Route] = {}
        self.failures = Failures(hide=self.settings.hide_errors)
        self.failed = self.failures.response
        """Returns the answer for an error."""

    def route(self, method: str, path: str) -> Route:
        """Return what answers; ``path`` with or without ``/v2`` in front, as an app may be mounted there.

        Raises:
            UnknownModel: nothing does. (Whether there is such a model is seen later.)
            WrongMethod: something does, for another method.
        """
        found = self._routes.get((method, path))
        if found is None:
            found = _route(method, path)
            if len(self._routes) >= MOST_ROUTES:  # names of models, or whatever strangers make up
                self._routes.clear()
            self._routes[method, path] = found
        return found

    def check_token(self, route: Route, headers: Headers) -> None:
        """Raise Unauthorized if the server asks for a token, and the request has not that one."""
        if self._token is not None and not route.is_open:
            self.check_authorization(headers.get(b"authorization", b""))

    def check_authorization(self, given: bytes) -> None:
        """Raise Unauthorized if the server asks for a token, and what a client gave, ``Bearer TOKEN``, is not that."""
        if self._token is not None and not compare_digest(given, self._token):
            raise Unauthorized("Authorization: Bearer TOKEN is missing, or wrong")

    async def answer(self, route: Route, headers: Headers, chunks: list[Buffer]) -> Response:
        """Return the answer to a request, whose body is in ``chunks``; an error is one, too."""
        try:
            if b"content-encoding" in headers and chunks and headers[b"content-encoding"].lower() != b"identity":
                return await self._answer_encoded(route, headers, b"".join(chunks))
            response = await route.handler(self, route, Request(headers, chunks))
            accepted = headers.get(b"accept-encoding")
            return response if accepted is None else await compressed(response, accepted)
        except Exception as error:
            return self.failed(error)

    async def _answer_encoded(self, route: Route, headers: Headers, body: bytes) -> Response:
        pieces = await decompressed(body, headers, self.limits, self.budget)
        held = sum(map(len, pieces))
        try:
            own = {name: value for name, value in headers.items() if name != b"content-encoding"}
            return await self.answer(route, own, list(pieces))
        finally:
            self.budget.give(held)

    # ---- models ------------------------------------------------------------------------------------------------

    async def infer(self, route: Route, request: Request) -> Response:
        model = self.repository.model(route.name, route.version)
        call, form = read_call(model, request.headers, request.chunks, self.limits)
        return write_answer(model, form, await answer(call))

    async def infer_stream(self, route: Route, request: Request) -> Response:
        model = self.repository.model(route.name, route.version)
        call, form = read_call(model, request.headers, request.chunks, self.limits)
        return await events_response(inferred_parts(call, form), hide=self.settings.hide_errors)

    async def generate(self, route: Route, request: Request) -> Response:
        model = self.repository.model(route.name, route.version)
        call, id = read_generate(model, request.headers, self._json(request))
        return json_response(generated(model, id, await answer(call)))

    async def generate_stream(self, route: Route, request: Request) -> Response:
        model = self.repository.model(route.name, route.version)
        call, id = read_generate(model, request.headers, self._json(request))
        return await events_response(generated_parts(call, id), hide=self.settings.hide_errors)

    def _json(self, request: Request) -> Buffer:
        return split_body(request.chunks, None, self.limits).head

    async def metadata(self, route: Route, request: Request) -> Response:
        model = self.repository.model(route.name, route.version)
        return json_response(model.metadata(self.repository.versions(route.name)))

    async def model_ready(self, route: Route, request: Request) -> Response:
        if not self.repository.is_model_ready(route.name, route.version):
            raise NotReady(f"model {route.name!r} is not ready")
        return json_response({"name": route.name, "ready": True})

    async def config(self, route: Route, request: Request) -> Response:
        return json_response(self.repository.model(route.name, route.version).config())

    async def statistics(self, route: Route, request: Request) -> Response:
        return json_response(self.repository.statistics(route.name, route.version))

    # ---- the server --------------------------------------------------------------------------------------------

    async def server_metadata(self, route: Route, request: Request) -> Response:
        from importlib.metadata import version

        return json_response({"name": "fastpipe", "version": version("fastpipe-engine"), "extensions": EXTENSIONS})

    async def live(self, route: Route, request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, route: Route, request: Request) -> Response:
        if not self.repository.is_ready():
            raise NotReady("the server is shutting down" if self.repository.is_draining else "not all models are ready")
        return json_response({"ready": True})

    async def index(self, route: Route, request: Request) -> Response:
        text = self._json(request)
        wanted = json_text.loads(text) if bytes(text).strip() else {}
        if type(wanted) is not dict or type(wanted.get("ready", False)) is not bool:
            raise InvalidRequest('the request must be a JSON object; "ready" in it is true or false')
        return json_response(self.repository.index(only_ready=wanted.get("ready", False)))

    async def load(self, route: Route, request: Request) -> Response:
        text = self._json(request)
        wanted = json_text.loads(text) if bytes(text).strip() else {}
        if type(wanted) is not dict or wanted.get("parameters"):
            raise NotServed("a model is loaded as its file says: config and files in the request are not taken")
        await self.repository.load(route.name)
        return json_response({})

    async def unload(self, route: Route, request: Request) -> Response:
        await self.repository.unload(route.name)
        return json_response({})

    async def metrics(self, route: Route, request: Request) -> Response:
        return Response(
            200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], await self.scraping.page()
        )

    async def page(self, route: Route, request: Request) -> Response:
        if not self.live_url:
            raise UnknownModel("there is no live page: the server is started without --live")
        return Response(307, [(b"content-type", b"text/plain"), (b"location", self.live_url.encode())])

    async def openapi(self, route: Route, request: Request) -> Response:
        return json_response(openapi(self.repository, has_token=self._token is not None))

    async def not_served(self, route: Route, request: Request) -> Response:
        raise NotServed(route.name)


# ---- routes ----------------------------------------------------------------------------------------------------

_GET = {"GET", "HEAD"}
_POST = {"POST"}

_SHARED_MEMORY = "shared memory is not served: send tensors as binary data"
_SETTINGS = "clients do not change settings of tracing and logging"

_OF_SERVER: dict[str, tuple[set[str], Handler, bool]] = {
    "": (_GET, Service.server_metadata, False),
    "health/live": (_GET, Service.live, True),
    "health/ready": (_GET, Service.ready, True),
    "models/stats": (_GET, Service.statistics, False),
    "repository/index": (_POST, Service.index, False),
    "metrics": (_GET, Service.metrics, False),
    "live": (_GET, Service.page, False),
    "openapi.json": (_GET, Service.openapi, False),
}
_OF_MODEL: dict[str, tuple[set[str], Handler, bool]] = {
    "": (_GET, Service.metadata, False),
    "ready": (_GET, Service.model_ready, True),
    "config": (_GET, Service.config, False),
    "stats": (_GET, Service.statistics, False),
    "infer": (_POST, Service.infer, False),
    "infer_stream": (_POST, Service.infer_stream, False),
    "generate": (_POST, Service.generate, False),
    "generate_stream": (_POST, Service.generate_stream, False),
}
_OF_REPOSITORY: dict[str, tuple[set[str], Handler, bool]] = {
    "load": (_POST, Service.load, False),
    "unload": (_POST, Service.unload, False),
}


def _route(method: str, path: str) -> Route:
    inner = path.strip("/")
    inner = inner[3:] if inner.startswith("v2/") else "" if inner == "v2" else inner
    parts = inner.split("/")
    if inner in _OF_SERVER:
        return _checked(method, path, _OF_SERVER[inner], "", "")
    if parts[0] in ("systemsharedmemory", "cudasharedmemory"):
        return Route(Service.not_served, _SHARED_MEMORY)
    if inner in ("logging", "trace/setting") or (parts[0] == "models" and parts[-2:] == ["trace", "setting"]):
        return Route(Service.not_served, _SETTINGS)
    version = ""
    if len(parts) == 4 and parts[:2] == ["repository", "models"] and parts[3] in _OF_REPOSITORY:
        return _checked(method, path, _OF_REPOSITORY[parts[3]], parts[2], version)
    if parts[0] == "models" and len(parts) >= 2:
        name, *rest = parts[1:]
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        verb = rest[0] if rest else ""
        if len(rest) <= 1 and verb in _OF_MODEL and name and (verb or not rest):
            return _checked(method, path, _OF_MODEL[verb], name, version)
    raise UnknownModel(f"nothing is at {in_brief(path)}; /openapi.json says what there is")


def _checked(method: str, path: str, entry: tuple[set[str], Handler, bool], name: str, version: str) -> Route:
    methods, handler, is_open = entry
    if method not in methods:
        raise WrongMethod(f"{in_brief(path)} takes {' or '.join(sorted(methods))}, not {in_brief(method)}")
    return Route(handler, name, version, is_open)
