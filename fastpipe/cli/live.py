"""``fastpipe live``: what a running pipe does, in the terminal, second by second, as its live page has it."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

from fastpipe.cli.terminal import column_count, escaped_line, put, say
from fastpipe.errors import PipeError
from fastpipe.observe.noticeboard import notices
from fastpipe.show.cards import seconds

__all__ = ["add_arguments", "run"]

FINE, MISTAKES = 0, 1
TOKEN_VARIABLE = "FASTPIPE_LIVE_TOKEN"
PATIENCE_S = 20.0
"""Longer than the page holds a question back."""
MOST_BYTES = 64 << 20
"""Of an answer: at that address may be anything."""

Line = tuple[str, str]
"""Text, and its style as rich calls it."""

HOW_TO_SERVE = (
    "A service has a page once it says: fastpipe.observe.live(pipe, port=8321). Give its port, or its URL, if it is "
    "another user's, or elsewhere"
)


def add_arguments(live: argparse.ArgumentParser) -> None:
    """Add what may stand behind ``fastpipe live``."""
    live.add_argument(
        "page", metavar="PAGE", nargs="?", help="the URL of the service's page, or its port; default: what runs here"
    )
    live.add_argument("--token", help=f"the page's token; better in the variable {TOKEN_VARIABLE}, which `ps` hides")
    live.add_argument("--once", action="store_true", help="show the numbers once, and end")
    live.add_argument("--json", action="store_true", help="a line of JSON for each second instead")
    live.add_argument("--list", action="store_true", help="list the pages of your services on this machine")


def run(options: argparse.Namespace) -> int:
    """Show a page's numbers until Ctrl-C, or until the pipe is closed."""
    found = list(notices())
    if options.list:
        for notice in found:
            say((str(notice.get("url")), "bold cyan"), (f"  {notice.get('name')}  process {notice.get('pid')}", ""))
        if not found:
            say(("no service of yours has a live page on this machine", "dim"))
        return FINE
    url, token = _page_meant(options.page, options.token or os.environ.get(TOKEN_VARIABLE), found)
    with closing(_Asker(url, token)) as asker:
        about = asker.ask("about")
        if options.json:
            for point in asker.points(is_once=options.once):
                put(json.dumps(point), None)
            return FINE
        others = len(found) - 1 if options.page is None else 0
        with _screen(is_once=options.once) as show:
            for point in asker.points(is_once=options.once):
                show([*_head(about, point, url, others), *_table(about, point)])
    if not options.once:
        say(("the pipe is closed", "yellow"))
    return FINE


def _page_meant(page: str | None, token: str | None, found: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return URL and token of what was asked for; the token of one's own service need not be said."""
    if page is None:
        if not found:
            raise PipeError(f"no service of yours on this machine has a live page. {HOW_TO_SERVE}")
        return found[0]["url"], token or found[0].get("token")
    url = f"http://127.0.0.1:{page}/" if page.isdecimal() else page
    if "://" not in url:
        url = f"http://{url}"
    parts, port = urlsplit(url), _port_of(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise PipeError(f"{page!r} is no port and no URL such as http://127.0.0.1:8321/")
    if token is None and parts.hostname in ("127.0.0.1", "localhost", "::1"):
        token = next((notice.get("token") for notice in found if _port_of(str(notice.get("url"))) == port), None)
    return url, token


def _port_of(url: str) -> int:
    """Return the port of a URL; 0: it has none that can be one."""
    try:
        parts = urlsplit(url)
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return 0


class _Asker:
    """Asks a page, over one connection; where that is lost, over another one."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=PATIENCE_S)
        self._path = parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._url = url

    def ask(self, what: str) -> Any:
        """Return an answer of the page.

        Raises:
            PipeError: nobody is there, or it is no live page, or the token is not right.
        """
        try:
            self._connection.request("GET", f"{self._path}/{what}", headers=self._headers)
            answer = self._connection.getresponse()
            body = answer.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise PipeError(
                f"nobody answers at {self._url}: {error or type(error).__name__}. {HOW_TO_SERVE}"
            ) from error
        if answer.status == 401:
            raise PipeError(f"the page at {self._url} asks for another token: set {TOKEN_VARIABLE}, or say --token")
        try:
            if answer.status == 200:
                return json.loads(body)
        except ValueError:
            pass
        raise PipeError(f"at {self._url} is no live page of fastpipe: it answers {answer.status} {answer.reason}")

    def points(self, *, is_once: bool) -> Iterator[dict[str, Any]]:
        """Yield a point each second, until the pipe is closed; the last one if only one is wanted."""
        number = 0
        while True:
            answer = self.ask(f"points?after={number}")
            points = answer["points"]
            if points:
                number = points[-1]["number"]
                yield points[-1]
            if answer["state"] != "open" or (points and is_once):
                return

    def close(self) -> None:
        self._connection.close()


# ---- what is shown -----------------------------------------------------------------------------------------------


_ENDS = ("accepted", "done", "failed", "cancelled", "refused")


def _head(about: Mapping[str, Any], point: Mapping[str, Any], url: str, others: int) -> Iterator[Line]:
    latency, totals = point["latency"], point["totals"]
    clock = time.strftime("%H:%M:%S", time.localtime(point["time"]))
    yield f"{about['name']}  process {about['pid']}  {url}  {clock}", "bold"
    if others:
        yield f"{others} more of your services have a page: fastpipe live --list", "dim"
    for problem in point["problems"]:
        yield problem, "bold red"
    p50, p99, most = (_time(latency[key]) for key in ("p50", "p99", "max"))
    bad = f"{_number(point['bad_rate'])}/s failed or refused"
    yield (
        f"{_number(point['rate'])}/s answered, {bad}, {point['in_flight']} in flight",
        "red" if point["bad_rate"] else "",
    )
    yield f"p50 {p50}, p99 {p99}, longest {most}", ""
    ended = ", ".join(f"{totals[key]:,} {key}" for key in _ENDS)
    yield f"since it was built: {ended}", "dim"
    yield "", ""


_HEADINGS = ("node", "requests", "errors", "busy", "queue", "oldest", "batch", "queue p99", "backend p99")
WARM = 0.85
LONG_S = 1.0


def _table(about: Mapping[str, Any], point: Mapping[str, Any]) -> Iterator[Line]:
    rows = [_row(name, node) for name, node in zip(about["names"], point["nodes"], strict=True) if node is not None]
    cells = [_HEADINGS, *(row for row, _ in rows)]
    widths = [max(map(column_count, column)) for column in zip(*cells, strict=True)]
    for row, style in [(_HEADINGS, "dim"), *rows]:
        padded = [" " * (width - column_count(cell)) for cell, width in zip(row, widths, strict=True)]
        first, *others = zip(row, padded, strict=True)
        yield "  ".join([first[0] + first[1], *(pad + cell for cell, pad in others)]), style
    for name, node in zip(about["names"], point["nodes"], strict=True):
        if node is not None and node["failures"]:
            counts = ", ".join(f"{reason} {count}" for reason, count in node["failures"].items())
            yield f"{escaped_line(name)}: {counts} in {point['window_s']:.0f} s", "red"


def _row(name: str, node: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    busy = 1.0 if node["busy"] is None else node["busy"]
    in_service, count = node["instances"]
    is_bad = node["bad_rate"] > 0 or in_service < count
    is_warm = (busy >= WARM and node["queued"]) or node["oldest_s"] >= LONG_S
    row = (
        escaped_line(name) + (f" ({in_service} of {count} in service)" if in_service < count else ""),
        f"{_number(node['rate'])}/s",
        f"{_number(node['bad_rate'])}/s" if node["bad_rate"] else "0",
        f"{busy:.0%}",
        str(node["queued"]),
        _time(node["oldest_s"]) if node["queued"] else "–",
        "–" if node["batch"] is None else f"{node['batch']:.3g} of {node['max']}",
        _time(node["queue_p99"]),
        _time(node["run_p99"]),
    )
    return row, "red" if is_bad else "yellow" if is_warm else ""


def _number(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:,.0f}"


def _time(value_s: float | None) -> str:
    return "–" if value_s is None else seconds(value_s)


@contextmanager
def _screen(*, is_once: bool) -> Iterator[Callable[[Sequence[Line]], None]]:
    """Yield what shows lines: in a terminal in place of those before, if rich is there; otherwise below them."""

    def write(lines: Sequence[Line]) -> None:
        for text, style in lines:
            say((escaped_line(text), style))
        if not is_once:
            say(("", ""))

    if is_once or not sys.stdout.isatty():
        yield write
        return
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        yield write
        return
    with Live(auto_refresh=False, screen=False) as live:

        def replace(lines: Sequence[Line]) -> None:
            drawn = Text.assemble(*((f"{escaped_line(text)}\n", style) for text, style in lines))
            drawn.no_wrap = True
            live.update(drawn, refresh=True)

        yield replace
