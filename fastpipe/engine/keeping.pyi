"""What a type checker sees of what nodes keep, of the chapters ``answers`` and ``states`` of ``fastpipe._core``."""

from collections.abc import Callable
from typing import Any, Self, final

_Request = dict[str, Any]

@final
class ResultCache:
    budget_bytes: int
    generation: int
    size_bytes: int
    hits: int
    misses: int
    coalesced: int
    bypassed: int
    not_kept: int
    evicted: int
    expired: int
    def __new__(
        cls,
        budget_bytes: int,
        ttl_s: float | None = ...,
        choice: tuple[str, ...] | Callable[[_Request], Any] | None = ...,
        keeps_data: bool = ...,
    ) -> Self: ...
    @property
    def flight_count(self) -> int: ...
    def clear(self) -> int: ...
    def key_of(self, request: _Request) -> bytes | None: ...

@final
class States:
    def __new__(cls, key_name: str, max_states: int, ttl_s: float) -> Self: ...
    def __len__(self) -> int: ...
