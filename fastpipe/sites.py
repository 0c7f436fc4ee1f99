"""Where the instance belongs that is being built: what its parts, which know nothing of each other, agree on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Site", "building", "site"]


@dataclass(eq=False)
class Site:
    """The instance that is being built on this thread; its parts, which are built the last one first, share it.

    Whichever part chooses a place writes it here, and the others go there, too.
    """

    place: Hashable = None
    """Where the instance has to be: as one of its parts is, or the one that hung and that it replaces. None: open."""


_site: ContextVar[Site | None] = ContextVar("fastpipe site", default=None)


def site() -> Site:
    """Return the site of the instance that is being built; a new one for a backend that is built by hand."""
    return _site.get() or Site()


@contextmanager
def building(where: Site) -> Iterator[None]:
    """For the engine: have ``site()`` be ``where``, within a ``with`` statement."""
    token = _site.set(where)
    try:
        yield
    finally:
        _site.reset(token)
