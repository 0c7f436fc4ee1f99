"""What answers at a URL, remembered: clients ask for a few of them, again and again."""

from __future__ import annotations

from urllib.parse import unquote

from fastpipe.errors import MissingExtra
from fastpipe.serve.http import Route, Service
from fastpipe.serve.statuses import InvalidRequest

try:
    import httptools
except ImportError as missing:
    raise MissingExtra("fastpipe serve", "serve", missing) from missing

__all__ = ["Routes"]

MOST_KEPT = 1024
LONGEST_KEPT = 256


class Routes:
    """The routes of a service, by method and URL as a client sends them. For one thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: dict[tuple[bytes, bytes], Route] = {}

    def find(self, method: bytes, url: bytes) -> Route:
        """Return what answers at a URL.

        Raises:
            UnknownModel, WrongMethod, InvalidRequest: nothing does.
        """
        found = self._kept.get((method, url))
        if found is None:
            try:
                path = unquote(httptools.parse_url(url).path.decode("ascii"), errors="strict")
            except (httptools.HttpParserError, UnicodeDecodeError, AttributeError):
                raise InvalidRequest("the address of the request cannot be read") from None
            found = self._service.route(method.decode("ascii", "replace"), path)
            if len(url) <= LONGEST_KEPT:
                if len(self._kept) >= MOST_KEPT:
                    self._kept.clear()
                self._kept[method, url] = found
        return found
