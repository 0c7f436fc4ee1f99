"""The live page of a pipe: ``live(pipe)`` serves it from inside the service, for one ``stats()`` a second."""

from __future__ import annotations

import atexit
import ipaddress
import os
import secrets
import socket
from types import TracebackType
from typing import Self

from fastpipe.errors import PipeError
from fastpipe.observe import noticeboard
from fastpipe.observe.page_server import PageServer
from fastpipe.observe.sampling import Sampler
from fastpipe.pipe import Pipe
from fastpipe.show.parts import visible

__all__ = ["LivePage", "live"]

LEAST_TOKEN_LENGTH = 16
JOIN_S = 2.0


def live(
    pipe: Pipe, *, port: int = 0, host: str = "127.0.0.1", token: str | None = None, name: str = "pipe"
) -> LivePage:
    """Serve a page that shows what a pipe does, now and in the last minute, until it is closed or the process ends.

        with fastpipe.observe.live(pipe) as page:
            logging.info("what the pipe does: %s", page.url)
            serve(pipe)

    Nothing is measured while nobody looks; while somebody does, one ``stats()`` a second, on a thread of its own. The
    page does not keep the pipe alive, nor the process. ``fastpipe live`` on the same machine, as the same user, finds
    the page by itself.

    Args:
        pipe: which; when it is closed the page says so.
        port: 0: any that is free; ``page.url`` has it.
        host: where to listen. Anything but the loopback needs a token.
        token: whoever looks has to know it: the page asks for it. At least 16 characters, of ASCII.
        name: the page's title.

    Raises:
        ValueError: a host that others can reach without a token, or a token that is too short.
        PipeError: the port is in use, or the host is none of this machine's.

    Thread-safety: any thread.
    """
    if not isinstance(pipe, Pipe):
        raise TypeError(f"live() shows a fastpipe.Pipe, got {type(pipe).__name__}")
    family, address, is_private = _address_of(host, port)
    if token is not None and (len(token) < LEAST_TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        raise ValueError(
            f"token must have at least {LEAST_TOKEN_LENGTH} characters, of ASCII, without control characters; "
            f"such as {secrets.token_urlsafe(16)!r}"
        )
    if token is None and not is_private:
        raise ValueError(
            f"host {host!r} can be reached from other machines, and who does would see the pipe: pass token=, such as "
            f"{secrets.token_urlsafe(16)!r}, or stay at 127.0.0.1 and look through 'ssh -L'"
        )
    return LivePage(pipe, name, family, address, token)


class LivePage:
    """A page that is being served; ``live`` makes it.

    Thread-safety: any thread. In the child of a fork it is closed: the page goes on showing the parent's pipe.
    """

    def __init__(
        self, pipe: Pipe, name: str, family: socket.AddressFamily, address: tuple[str, int], token: str | None
    ) -> None:
        picture = pipe.graph()
        names = picture.names
        counted = pipe.stats()["nodes"]
        drawn = picture.with_numbers({each: ("–", "–", "–") for each in names if each in counted})
        self._sampler = Sampler(pipe, names)
        about = {
            "name": visible(name),
            "names": [visible(each) for each in names],
            "counted": [each in counted for each in names],  # a sub-graph has no instances, and nothing to count
            "svg": drawn.svg(least_columns=30, is_brief=True, has_legend=False),
            "legend": drawn.legend(),  # outside of the drawing, which may be wider than a phone
            "pid": os.getpid(),
        }
        try:
            self._server = PageServer(family, address, self._sampler, about, token)
        except OSError as error:
            raise PipeError(_why_not(error, *address)) from error
        host, self.port = self._server.server_name, self._server.server_port
        """Where it listens."""
        self.url = f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"
        """The page's address. It does not have the token; whoever follows it is asked for that."""
        self._server.start()
        self._notice = noticeboard.put_up({"url": self.url, "name": name, "token": token}, self.port)
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<fastpipe live page at {self.url}>"

    def close(self) -> None:
        """Stop serving; idempotent. In the child of a fork it does nothing."""
        if self._server.pid != os.getpid():
            return
        atexit.unregister(self.close)
        noticeboard.take_down(self._notice)
        self._sampler.close()
        self._server.stop(JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _address_of(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int], bool]:
    """Return where to listen, and whether only this machine can reach that."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65_535:
        raise ValueError(f"port must be a whole number from 0 to 65535, got {port!r}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PipeError(f"host {host!r} is no address of this machine: {error}") from error
    family, _, _, _, address = found[0]
    is_private = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    return family, (str(address[0]), int(address[1])), is_private


def _why_not(error: OSError, host: str, port: int) -> str:
    import errno

    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: port=0 takes one that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is for privileged processes: take one from 1024 on, or 0 for one that is free"
    return f"cannot listen at {host}, port {port}: {error.strerror or error}"
