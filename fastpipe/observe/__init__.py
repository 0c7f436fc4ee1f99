"""Seeing inside: what a pipe does, live and afterwards. Nothing here is imported before it is asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpipe.observe.live_page import LivePage, live

__all__ = ["LivePage", "live"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # looked up when asked for: a server of HTTP takes longer to import than all of fastpipe
        from fastpipe.observe import live_page

        return getattr(live_page, name)
    raise AttributeError(f"module 'fastpipe.observe' has no attribute {name!r}")
