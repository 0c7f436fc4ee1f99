"""What a pipe does, live and afterwards, for people and for monitoring; on public names of ``Pipe`` only."""

from fastpipe.observe.live_page import LivePage, live

__all__ = ["LivePage", "live"]
