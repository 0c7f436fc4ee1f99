"""Large bodies, received where they are used: the kernel writes into the memory that a tensor is then a view of.

A body by way of the parser is copied twice: out of what was received, and into one piece. So from some size on, the
connection hands its transport to a ``BodyReader`` until the body is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

__all__ = ["LEAST_BYTES", "BodyReader", "aligned_memory"]

LEAST_BYTES = 1 << 18
ALIGNMENT = 64


def aligned_memory(head_bytes: int, size_bytes: int) -> memoryview:
    """Return memory for a body of which the part behind ``head_bytes`` is aligned; nothing of it is touched.

    Raises:
        MemoryError: there is not so much.
    """
    memory = np.empty(size_bytes + ALIGNMENT, np.uint8)
    skipped = -(memory.ctypes.data + head_bytes) % ALIGNMENT
    return memory[skipped : skipped + size_bytes].data


class BodyReader(asyncio.BufferedProtocol):
    """Receives so many bytes, and no more; what follows them is left to the next protocol.

    Args:
        memory: of the whole body.
        position: how much of it is there already; less than all.
        on_received: called with how many bytes have come; returns whether to go on.
        on_complete: called when all are there.
        connection: the protocol that is told of everything else.
    """

    def __init__(
        self,
        memory: memoryview,
        position: int,
        on_received: Callable[[int], bool],
        on_complete: Callable[[memoryview], None],
        connection: asyncio.Protocol,
    ) -> None:
        self._memory = memory
        self._position = position
        self._on_received = on_received
        self._on_complete = on_complete
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._memory[self._position :]

    def buffer_updated(self, nbytes: int) -> None:
        self._position += nbytes
        if self._on_received(nbytes) and self._position == len(self._memory):
            self._on_complete(self._memory)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
