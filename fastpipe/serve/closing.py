"""The end of a connection: what is written goes out, and a client that says nothing more holds nobody up.

Without TLS ``transport.close()`` is enough. With TLS it waits for the client to close as well, for 30 s; but clients
that keep a connection for later do not read meanwhile, and one that means harm says nothing. Each would hold up the end
of the server, and have its place among the connections so much longer.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

__all__ = ["LINGERS_S", "close"]

LINGERS_S = 2.0
"""So long a client may go on, until it has read why the connection ends, or has closed its own side."""


def close(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_lost: Callable[[], bool]) -> None:
    """Close a connection once all is written; with TLS, whatever its client does after that. Idempotent.

    Args:
        transport: of the connection.
        loop: its event loop, on whose thread this is called.
        is_lost: whether the connection has ended.
    """
    if transport.is_closing():  # asyncio's transports of TLS are of no use after a second close, not even to abort
        return
    transport.close()
    if transport.get_extra_info("sslcontext") is not None:
        loop.call_later(LINGERS_S, _abort_once_written, transport, loop, is_lost)


def _abort_once_written(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_lost: Callable[[], bool]
) -> None:
    if is_lost():
        return
    if transport.get_write_buffer_size() or not _takes_more(transport):
        loop.call_later(LINGERS_S, _abort_once_written, transport, loop, is_lost)
    else:
        transport.abort()


def _takes_more(transport: asyncio.Transport) -> bool:
    """Whether the kernel takes more bytes: then the transport below TLS, whose buffer is in no count, has none left."""
    descriptor = transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
