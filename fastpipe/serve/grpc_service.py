"""The calls of ``inference.GRPCInferenceService``, but for streams: each reads a message, asks the core, writes one.

Handlers take and return serialized messages, so that gRPC neither parses a tensor nor answers a malformed message in
words of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastpipe.errors import MissingExtra
from fastpipe.serve.answering import answer
from fastpipe.serve.grpc_calls import answer_pieces, asked_of, parameters_of, parsed
from fastpipe.serve.grpc_desk import Desk
from fastpipe.serve.grpc_messages import inference
from fastpipe.serve.grpc_streams import Streams
from fastpipe.serve.http import EXTENSIONS
from fastpipe.serve.statuses import InvalidRequest, NotServed, ServeError

try:
    import grpc
    from google.protobuf.json_format import ParseDict
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["SERVICE", "Calls"]

SERVICE = "inference.GRPCInferenceService"

REFUSED = {
    "shared memory is not used by this server: send tensors in their requests": (
        *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
        *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    ),
    "traces are set up where the server is started, not by its clients": ("TraceSetting",),
    "the log is set up where the server is started, not by its clients": ("LogSettings",),
}
"""Why a call of the protocol's extensions is refused."""

OF_HTTP = ("binary_tensor_data", "generate")
"""Extensions that gRPC has no use for."""


OPEN = ("ServerLive", "ServerReady", "ModelReady")
"""Questions for which nobody needs a token."""


class Calls:
    """The handlers of one server."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._repository = desk.repository

    def handlers(self) -> Any:
        """Return them for ``grpc.aio.Server.add_generic_rpc_handlers``."""
        unary = grpc.unary_unary_rpc_method_handler
        methods = {
            "ModelInfer": unary(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(Streams(self._desk).serve),
        }
        for name, answered in self._questions().items():
            methods[name] = unary(self._question(name, answered))
        for words, names in REFUSED.items():
            for name in names:
                methods[name] = unary(self._refusal(f"{name}: {words}"))
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # ---- inference ---------------------------------------------------------------------------------------------

    async def _infer(self, body: bytes, context: Any) -> bytes:
        desk, size_bytes = self._desk, len(body)
        try:
            metadata = context.invocation_metadata()
            desk.check(metadata)
            desk.budget.take(size_bytes)
            try:
                asked = asked_of(body, self._repository.model, desk.limits, context.time_remaining(), metadata)
                return b"".join(answer_pieces(asked, await answer(asked.call)))
            finally:
                desk.budget.give(size_bytes)
        except Exception as error:
            await desk.refuse(context, error)

    # ---- questions ---------------------------------------------------------------------------------------------

    def _questions(self) -> Mapping[str, Callable[[Any], Awaitable[Mapping[str, Any]]]]:
        """Return what answers each other call, as a JSON document of its answer: those of HTTP are the same."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    def _question(
        self, name: str, answered: Callable[[Any], Awaitable[Mapping[str, Any]]]
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(body: bytes, context: Any) -> bytes:
            try:
                if name not in OPEN:
                    self._desk.check(context.invocation_metadata())
                document = await answered(parsed(f"{name}Request", body))
                message = ParseDict(document, inference()[f"{name}Response"](), ignore_unknown_fields=True)
                return bytes(message.SerializeToString())
            except Exception as error:
                await self._desk.refuse(context, error)

        return handle

    def _refusal(self, words: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(_: bytes, context: Any) -> bytes:
            try:
                self._desk.check(context.invocation_metadata())
                raise NotServed(words)
            except ServeError as error:
                await self._desk.refuse(context, error)

        return handle

    async def _server_live(self, _: Any) -> Mapping[str, Any]:
        return {"live": True}

    async def _server_ready(self, _: Any) -> Mapping[str, Any]:
        return {"ready": self._repository.is_ready()}

    async def _server_metadata(self, _: Any) -> Mapping[str, Any]:
        from importlib.metadata import version

        return {
            "name": "fastpipe",
            "version": version("fastpipe-engine"),
            "extensions": [each for each in EXTENSIONS if each not in OF_HTTP],
        }

    async def _model_ready(self, request: Any) -> Mapping[str, Any]:
        return {"ready": self._repository.is_model_ready(request.name, request.version)}

    async def _model_metadata(self, request: Any) -> Mapping[str, Any]:
        model = self._repository.model(request.name, request.version)
        return model.metadata(self._repository.versions(request.name))

    async def _model_config(self, request: Any) -> Mapping[str, Any]:
        return {"config": self._repository.model(request.name, request.version).config()}

    async def _model_statistics(self, request: Any) -> Mapping[str, Any]:
        return self._repository.statistics(request.name, request.version)

    async def _repository_index(self, request: Any) -> Mapping[str, Any]:
        _check_repository(request.repository_name)
        return {"models": self._repository.index(only_ready=request.ready)}

    async def _load(self, request: Any) -> Mapping[str, Any]:
        _check_repository(request.repository_name)
        _check_parameters("load", parameters_of(request.parameters), ())
        await self._repository.load(request.model_name)
        return {}

    async def _unload(self, request: Any) -> Mapping[str, Any]:
        _check_repository(request.repository_name)
        # A pipe has no dependents: with or without them is the same.
        _check_parameters("unload", parameters_of(request.parameters), ("unload_dependents",))
        await self._repository.unload(request.model_name)
        return {}


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest(f"there is one repository, which has no name; got repository_name {name[:60]!r}")


def _check_parameters(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse what would be ignored: a configuration or files that a client sends along are not loaded."""
    unknown = [key for key in given if key not in known]
    if unknown:
        raise InvalidRequest(f"{what}: parameter {unknown[0][:60]!r} is not taken: a model is loaded from its own file")
