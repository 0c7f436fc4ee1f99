"""``fastpipe serve``: pipes behind the Open Inference Protocol, over HTTP and gRPC, until a signal ends it."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastpipe.cli.loading import pipe_named, pipe_of_file
from fastpipe.cli.terminal import complain, escaped_line, say
from fastpipe.errors import ConfigError

if TYPE_CHECKING:
    from fastpipe.serve.addresses import UnixPath
    from fastpipe.serve.encryption import Encryption
    from fastpipe.serve.repository import Repository
    from fastpipe.serve.server import Plan, Server

__all__ = ["add_arguments", "run"]

FINE = 0
TOKEN_VARIABLE = "FASTPIPE_SERVE_TOKEN"
NONE = "none"
LIVE_ANYWHERE = 0
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe serve`` takes."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="a TOML file, NAME=FILE, or a folder of NAME.toml, NAME/pipeline.toml or NAME/VERSION/pipeline.toml",
    )
    parser.add_argument("--pipe", metavar="NAME=MODULE:ATTRIBUTE", action="append", default=[], help="a pipe from code")
    parser.add_argument(
        "--http", metavar="ADDRESS", default="127.0.0.1:8000", help="host:port or unix:PATH (default: %(default)s)"
    )
    parser.add_argument(
        "--grpc",
        metavar="ADDRESS",
        default="127.0.0.1:8001",
        help="the same for gRPC, or 'none' (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=1, help="processes, each with its own pipes (default: %(default)s)"
    )
    parser.add_argument("--control", action="store_true", help="clients may load and unload models")
    parser.add_argument(
        "--live",
        metavar="PORT",
        nargs="?",
        type=port,
        const=LIVE_ANYWHERE,
        help="have the live page, too, at this port",
    )
    parser.add_argument(
        "--token", help=f"whoever asks has to have it; better in the variable {TOKEN_VARIABLE}, which `ps` hides"
    )
    parser.add_argument(
        "--tls-certificate", metavar="FILE", type=file, help="serve HTTP and gRPC with TLS; PEM, with its chain"
    )
    parser.add_argument(
        "--tls-key", metavar="FILE", type=file, help="the certificate's private key, if it is in a file of its own"
    )
    parser.add_argument("--hide-errors", action="store_true", help="clients are not told why a backend has failed")
    limits, ends = parser.add_argument_group("limits"), parser.add_argument_group("at SIGTERM")
    for name, most, what in (
        ("body", "256MiB", "of a request"),
        ("json", "32MiB", "of the JSON in it"),
        ("buffered", "1GiB", "of all bodies at once"),
    ):
        limits.add_argument(
            f"--max-{name}", metavar="SIZE", type=size_bytes, default=most, help=f"{what} (default: %(default)s)"
        )
    limits.add_argument("--max-connections", metavar="N", type=int, default=4096, help="of HTTP (default: %(default)s)")
    for group, option, seconds, what in (
        (limits, "--keep-alive", 75.0, "for connections on which nothing comes"),
        (ends, "--delay", 0.0, "go on, but say 'not ready'"),
        (ends, "--grace", 30.0, "for requests that have begun"),
    ):
        group.add_argument(
            option, metavar="SECONDS", type=float, default=seconds, help=f"{what} (default: %(default)g)"
        )
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)  # of the parent, for its workers
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ready", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--metrics-directory", help=argparse.SUPPRESS)
    parser.set_defaults(fail=parser.error)


def port(text: str) -> int:
    """Return the number of a port; a model behind ``--live`` is taken for one."""
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"a port is a number up to 65535, got {text!r}; models go before --live")
    return int(text)


def file(text: str) -> Path:
    """Return the path of a file; an empty one, such as that of a variable that is not set, would be the folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file is needed, got ''")
    return Path(text)


def size_bytes(text: str) -> int:
    """Return how many bytes ``"256MB"`` or ``"1GiB"`` are."""
    found = re.fullmatch(r"(\d+)\s*([KMG]?I?B?)", text.upper())
    unit = "" if found is None else found[2] if found[2] in _UNITS else f"{found[2]}B"
    if found is None or unit not in _UNITS or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"a size is such as 256MB or 1GiB, got {text!r}")
    return int(found[1]) * _UNITS[unit]


def run(arguments: argparse.Namespace) -> int:
    """Serve; 0 if a signal ended it, 1 if it could not start."""
    if not arguments.models and not arguments.pipe:
        arguments.fail("a model is needed: a TOML file, a folder of them, or --pipe NAME=MODULE:ATTRIBUTE")
    if arguments.workers < 1:
        arguments.fail(f"--workers: at least 1, got {arguments.workers}")
    if arguments.workers > 1 and arguments.grpc.startswith("unix:"):
        arguments.fail("--grpc: of several processes, only one can have a path: give it host:port")
    if arguments.workers > 1 and arguments.grpc.endswith(":0"):
        arguments.fail("--grpc: several processes need a port that is said, not any that is free")
    if arguments.http == arguments.grpc and not arguments.http.endswith(":0"):
        arguments.fail(f"--grpc: HTTP is at {arguments.http} already: give it another port, or 'none'")
    if arguments.workers > 1 and arguments.live is not None:
        arguments.fail("--live needs one process: each of several would have a page of its own")
    if arguments.tls_key is not None and arguments.tls_certificate is None:
        arguments.fail("--tls-key: the certificate is needed, too: --tls-certificate FILE")
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
    from fastpipe.serve.addresses import bind, reserve

    repository = _repository(arguments)  # mistakes in names show before a port is taken
    encryption = _encryption(arguments)
    if encryption is not None:
        encryption.check()
    if arguments.socket is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C as well, and tells its workers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
        listeners = [socket.socket(fileno=arguments.socket)]
    else:
        listeners = bind(arguments.http, arguments.workers)
    grpc_path = None
    try:
        if arguments.grpc != NONE and arguments.socket is None:
            grpc_path = reserve(arguments.grpc)
        if len(listeners) > 1:
            _check_grpc_is_free(arguments.grpc)
            return _run_workers(arguments, listeners, repository.names())
        if _run_here(arguments, repository, listeners[0], grpc_path):
            logging.shutdown()
            sys.stdout.flush()
            os._exit(FINE)  # at its end, Python would wait for backends that do not return
    finally:
        for held in (grpc_path, *listeners):
            if held is not None:
                held.close()
    return FINE


def _check_grpc_is_free(address: str) -> None:
    """Raise PipeError if another server has the address: workers, who share it, would share it with that one, too."""
    from fastpipe.serve.addresses import UNIX, bind

    if address != NONE and not address.startswith(UNIX):
        for listener in bind(address):
            listener.close()


def _repository(arguments: argparse.Namespace) -> Repository:
    from fastpipe.serve.repository import Repository, Source

    folders = [given for given in arguments.models if Path(given).is_dir()]
    if folders:
        if len(arguments.models) > 1 or arguments.pipe:
            raise ConfigError("a folder of models stands alone: put the others into it")
        return Repository.of_folder(folders[0], control=arguments.control, build=pipe_of_file)
    models: dict[str, Source] = {}
    for given in arguments.models:
        name, equals, path = given.partition("=")
        path = path if equals else given
        if not Path(path).is_file():
            raise ConfigError(f"there is no file {path!r}")
        _add(models, name if equals else Path(path).stem, partial(pipe_of_file, Path(path)))
    for given in arguments.pipe:
        name, equals, where = given.partition("=")
        if not equals:
            raise ConfigError(f"--pipe is written NAME=MODULE:ATTRIBUTE, got {given!r}")
        _add(models, name, partial(pipe_named, where))
    return Repository(models, control=arguments.control)


def _add(models: dict, name: str, source: object) -> None:  # type: ignore[type-arg]
    if name in models:
        raise ConfigError(f"two models are called {name!r}: write NAME=FILE")
    models[name] = source


def _encryption(arguments: argparse.Namespace) -> Encryption | None:
    from fastpipe.serve.encryption import Encryption

    certificate = arguments.tls_certificate
    return None if certificate is None else Encryption(certificate, arguments.tls_key)


def _plan(arguments: argparse.Namespace, grpc_path: UnixPath | None) -> Plan:
    from fastpipe.serve.exchange import Limits
    from fastpipe.serve.http import Settings
    from fastpipe.serve.incoming import Bounds
    from fastpipe.serve.server import Plan

    settings = Settings(
        limits=Limits(arguments.max_body, min(arguments.max_json, arguments.max_body), arguments.max_buffered),
        token=arguments.token or os.environ.get(TOKEN_VARIABLE) or None,
        hide_errors=arguments.hide_errors,
        shows_process=True,
        metrics_directory=arguments.metrics_directory,
    )
    return Plan(
        settings=settings,
        bounds=Bounds(connections=arguments.max_connections, idle_s=arguments.keep_alive),
        grpc=None if arguments.grpc == NONE else arguments.grpc,
        grpc_path=grpc_path,
        shares_ports=arguments.workers > 1,
        delay_s=arguments.delay,
        grace_s=arguments.grace,
        live_port=arguments.live,
        encryption=_encryption(arguments),
        parent=arguments.parent,
    )


def _run_here(
    arguments: argparse.Namespace, repository: Repository, listener: socket.socket, grpc_path: UnixPath | None
) -> bool:
    """Serve in this process; return whether it is to end without waiting for anything."""
    from fastpipe.serve.server import serve
    from fastpipe.serve.workers import say_ready

    def on_ready(server: Server) -> None:
        if arguments.ready is not None:
            say_ready(arguments.ready)
            return
        _say_where(arguments, listener, server.grpc_address, repository.names())
        if server.app.service.live_url:
            say((f"live page: {server.app.service.live_url}", ""))

    # While models are built there is nothing to wait for; and as a container's first process, one without a handler
    # would not hear the signal at all.
    def end(number: int, frame: object) -> None:
        if grpc_path is not None:
            grpc_path.close()
        listener.close()
        os._exit(128 + number)

    ending = [signal.SIGTERM] if arguments.socket is not None else [signal.SIGTERM, signal.SIGINT]
    former = {number: signal.signal(number, end) for number in ending}
    try:
        return serve(repository, [listener], _plan(arguments, grpc_path), on_ready)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say_where(arguments: argparse.Namespace, listener: socket.socket, grpc_address: str, names: Sequence[str]) -> None:
    host, port = listener.getsockname()[:2] if listener.family != socket.AF_UNIX else ("", 0)
    scheme = "http" if arguments.tls_certificate is None else "https"
    url = arguments.http if not port else f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    also = f" and grpc://{grpc_address}" if grpc_address else ""
    say((escaped_line(f"{url}{also} serves {', '.join(names)}"), ""))


def _run_workers(arguments: argparse.Namespace, listeners: Sequence[socket.socket], names: Sequence[str]) -> int:
    from fastpipe.serve.workers import Workers

    own: list[str] = []
    folder = None
    try:
        import prometheus_client  # noqa: F401  # a directory is of use only to it
    except ImportError:
        complain("fastpipe serve: without prometheus-client, /metrics is not served")
    else:
        folder = tempfile.mkdtemp(prefix="fastpipe-serve-")
        own += ["--metrics-directory", folder]
    grpc_address = "" if arguments.grpc == NONE else arguments.grpc
    command = [sys.executable, "-m", "fastpipe", "serve", *arguments.given, *own]
    sockets = [listener.fileno() for listener in listeners]
    workers = Workers(command, sockets, lambda: _say_where(arguments, listeners[0], grpc_address, names))
    try:
        return workers.run()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
