"""The pipes whose metrics are shown, by name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fastpipe.measures import stats_of

if TYPE_CHECKING:
    from fastpipe.measures import Stats
    from fastpipe.pipe import Pipe

__all__ = ["Pipes", "Turns"]


# Requests wait for whoever reads numbers no longer than this, but for the one look at a pipe. (250 us were worse where
# processors are scarce: each time that the GIL changes hands there, its next holder first waits for one.)
HELD_S = 1e-3
# Then they go on for so long. No wait at all would not do: who waits for the GIL needs some 50 us to wake up.
GIVEN_S = 50e-6


class Turns:
    """Has a thread that reads numbers give up the GIL now and then, which it would keep for 5 ms. Of one thread."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    def give_way(self) -> None:
        """Let others have the GIL, if they have not had it for a while."""
        if time.perf_counter() - self._since_s > HELD_S:
            time.sleep(GIVEN_S)
            self._since_s = time.perf_counter()


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
        """Yield (name, stats, is healthy) of each, closed ones too; requests go on in between."""
        turns = Turns()
        for name, pipe in self:
            counted = pipe._measures()  # at one moment; the rest has time
            turns.give_way()
            yield name, stats_of(pipe._id, counted, turns.give_way), pipe.health()["healthy"]
