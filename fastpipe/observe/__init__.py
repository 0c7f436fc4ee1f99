"""Seeing inside: what pipes do, for people and for the tools of others; on public names only.

``import fastpipe`` imports none of it.
"""

from fastpipe.observe.live_page import LivePage, live

__all__ = ["LivePage", "live"]
