"""Serving: a pipe behind the Open Inference Protocol v2, over HTTP and gRPC, and in one's own web service.

    fastpipe serve pipeline.toml                          the command
    app.mount("/v2", fastpipe.serve.app(pipe))            in FastAPI or Starlette
    @app.post("/ocr") ... fastpipe.serve.endpoint(pipe)   behind a route of one's own

The parts, from the wire to the pipe: ``tensors`` are the protocol's data types as arrays; ``signature`` says what is
announced, and makes requests of tensors and tensors of answers; ``answering`` runs one call; ``repository`` has the
models; ``statuses`` says what an error is on the wire. None of these knows whether a call came by HTTP or by gRPC.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpipe.serve.asgi import App, app
    from fastpipe.serve.endpoints import endpoint
    from fastpipe.serve.exchange import Limits
    from fastpipe.serve.http import Settings
    from fastpipe.serve.repository import Repository
    from fastpipe.serve.signature import Signature, TensorSpec

_HOMES = {
    "App": "asgi",
    "Limits": "exchange",
    "Repository": "repository",
    "Settings": "http",
    "Signature": "signature",
    "TensorSpec": "signature",
    "app": "asgi",
    "endpoint": "endpoints",
}
__all__ = ["App", "Limits", "Repository", "Settings", "Signature", "TensorSpec", "app", "endpoint"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # looked up when asked for: what is behind it needs the extra
        from importlib import import_module

        return getattr(import_module(f"fastpipe.serve.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fastpipe.serve' has no attribute {name!r}")
