"""What a backend counts of the padding that it makes; see ``fastpipe.Backend.padding_counts``."""

from __future__ import annotations

__all__ = ["PaddingCount"]


class PaddingCount:
    """What an instance has run since this was last read: ``forward`` adds to it, the engine reads it behind."""

    __slots__ = ("own", "padding")

    def __init__(self) -> None:
        self.own = 0  # elements of requests: tokens, say
        self.padding = 0  # elements beside them that were made up

    def add(self, own: int, padded: int) -> None:
        """Count a run of ``padded`` elements, of which ``own`` are of requests."""
        self.own += own
        self.padding += padded - own
