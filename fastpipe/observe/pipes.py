"""The pipes whose metrics are shown, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastpipe.measures import Stats
    from fastpipe.pipe import Pipe

__all__ = ["Pipes"]


class Pipes:
    """Pipes by name, of this process: those of the parent of a fork are left out.

    Thread-safety: any thread; who looks while others change it sees one state or the other.
    """

    def __init__(self, pipes: Mapping[str, Pipe] | None = None) -> None:
        self._pipes: dict[str, tuple[Pipe, int]] = {}
        for name, pipe in (pipes or {}).items():
            self.add(name, pipe)

    def add(self, name: str, pipe: Pipe) -> None:
        """Show one more pipe; a closed one of that name makes room for it.

        Raises:
            TypeError: ``name`` is no text, or ``pipe`` is no pipe.
            ValueError: another pipe, not closed, has that name.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a pipe must be a text; got {name!r}")
        if not hasattr(pipe, "stats") or not hasattr(pipe, "health"):
            raise TypeError(f"{name!r} must be a pipe; got {type(pipe).__name__} (of a batched function: its .pipe)")
        other, process = self._pipes.get(name, (pipe, os.getpid()))
        if other is not pipe and process == os.getpid() and not other.closing:
            raise ValueError(f"another pipe is called {name!r} already: remove({name!r}) first, or choose another name")
        self._pipes = {**self._pipes, name: (pipe, os.getpid())}

    def remove(self, name: str) -> None:
        """Show a pipe no more; nothing if there is none of that name."""
        self._pipes = {other: pipe for other, pipe in self._pipes.items() if other != name}

    def __iter__(self) -> Iterator[tuple[str, Pipe]]:
        return iter([(name, pipe) for name, (pipe, process) in self._pipes.items() if process == os.getpid()])

    def looks(self) -> Iterator[tuple[str, Stats, bool]]:
        """Yield (name, stats, is healthy) of each, closed ones too."""
        for name, pipe in self:
            yield name, pipe.stats(), pipe.health()["healthy"]
