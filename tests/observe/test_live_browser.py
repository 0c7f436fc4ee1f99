"""The live page as a browser shows it: the numbers, odd names, tokens, ends and beginnings of its service."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpipe
from fastpipe.observe import live, sampling

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("the browser is Debian's chromium, which is not installed here", allow_module_level=True)

TOKEN = "a-token-of-32-characters-in-ascii"
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 20_000
HOSTILE = "<img/src=x/onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sampling, "EVERY_S", 0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page of a browser that has seen nothing; what its console complains about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield opened
    context.close()
    # Questions that nobody answered, or with 401, are errors to the browser, and meant here.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def shows(tab: Any, text: str) -> None:
    """Wait until a text is on the page."""
    tab.get_by_text(text).first.wait_for()


def row_of(tab: Any, node: str) -> dict[str, str]:
    """Return what stands in a node's row, by column."""
    row = tab.locator("#nodes tr").filter(has=tab.get_by_text(node, exact=True)).first
    return dict(
        row.locator("td").evaluate_all(
            "cells => cells.map(cell => [cell.className.split(' ')[0], cell.querySelector('span').textContent])"
        )
    )


def in_seconds(text: str) -> float:
    """Return a duration that the page has written."""
    number, unit = text.split()
    return float(number) * {"µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


def test_the_numbers_on_the_page_are_those_of_stats(tab: Any) -> None:
    """Counts exactly, times to the three digits that are shown; the finding names who is at fault."""

    def slow(data: int) -> int:
        if data % 4 == 3:
            raise ValueError(data)
        time.sleep(0.01)
        return data

    nodes = {"first": {"backend": "Identity", "max": 8, "next": "slow"}, "slow": {"backend": fastpipe.backend(slow)}}
    with fastpipe.Pipe(nodes) as pipe, live(pipe, name="two nodes") as page:
        tab.goto(page.url)
        shows(tab, "No request in the last")
        assert tab.title() == "two nodes · fastpipe"
        futures = [pipe.submit({"data": index}) for index in range(40)]
        assert sum(future.exception() is not None for future in futures) == 10
        shows(tab, "Since the pipe was built: 40 requests accepted, 30 done, 10 failed, 0 cancelled, 0 refused.")
        stats = pipe.stats()
        row, node = row_of(tab, "slow"), stats["nodes"]["slow"]
        assert row["batch"] == "1 of 1"
        assert in_seconds(row["wait"]) == pytest.approx(node["queue_s"]["p99"], rel=6e-3)
        assert in_seconds(row["run"]) == pytest.approx(node["run_s"]["p99"], rel=6e-3)
        told = tab.locator("[data-tile=latency] .value").text_content().removesuffix("p99")
        assert in_seconds(told) == pytest.approx(stats["latency_s"]["p99"], rel=6e-3)
        finding = tab.inner_text("#finding")
        assert finding == "25 % of the requests that ended failed or were refused, most of them at slow."
        assert "error 10" in tab.inner_text("[data-tile=bad]")
        box = tab.locator("#graph g[data-node='1'] text").all_text_contents()
        assert (box[0], box[2]) == ("slow", "queue 0 · batch 1 of 1")
        assert tab.locator("#graph g.bad").count() == 1


def test_names_stay_text(tab: Any) -> None:
    """In the title, the heading, the graph and the table."""
    nodes = {HOSTILE: {"backend": "Identity"}, "</script><b>": {"backend": "Identity"}}
    with fastpipe.Pipe(nodes) as pipe, live(pipe, name=f"</title>{HOSTILE}") as page:
        tab.goto(page.url)
        shows(tab, "No request in the last")
        assert tab.title() == f"</title>{HOSTILE} · fastpipe"
        assert tab.locator("h1").text_content() == f"</title>{HOSTILE}"
        assert row_of(tab, HOSTILE)["name"] == HOSTILE
        texts = tab.locator("#graph text").all_text_contents()
        assert "</script><b>" in texts
        assert "".join(texts[: texts.index("0/s")]) == HOSTILE
        assert tab.locator("img").count() == 0


def test_a_token_is_asked_for_until_it_is_right(tab: Any) -> None:
    """It stays in the tab: a reload does not ask again. A link may have it, behind #, which no server is sent."""
    with fastpipe.Pipe({"a": {"backend": "Identity"}}) as pipe, live(pipe, token=TOKEN) as page:
        tab.goto(page.url)
        tab.fill("#token", "not it")
        tab.click("button")
        shows(tab, "This is not its token.")
        assert tab.locator("#main").is_hidden()
        tab.fill("#token", TOKEN)
        tab.click("button")
        shows(tab, "No request in the last")
        tab.reload()
        shows(tab, "No request in the last")
        tab.evaluate("sessionStorage.clear()")
        tab.goto("about:blank")
        tab.goto(f"{page.url}#token={TOKEN}")
        shows(tab, "No request in the last")
        assert TOKEN not in tab.url  # the address bar does not keep it


def test_the_page_says_that_nobody_answers_and_finds_the_next_service(tab: Any) -> None:
    """Another pipe at the same address is another graph, with a history of its own."""
    with fastpipe.Pipe({"old": {"backend": "Identity"}}) as pipe, live(pipe) as page:
        tab.goto(page.url)
        shows(tab, "No request in the last")
        page.close()
        shows(tab, "trying again")
    with fastpipe.Pipe({"new": {"backend": "Identity"}}) as pipe, live(pipe, port=page.port):
        tab.locator("#nodes td.name", has_text="new").wait_for()
        shows(tab, "No request in the last")
        assert tab.locator("#nodes tr").count() == 1
        pipe.close()
        shows(tab, "The pipe is closed: these are its last numbers.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_on_a_phone_and_can_be_read(browser: Any, scheme: str) -> None:
    """Nothing sticks out to the side but inside the graph, and no text is pale."""
    names = [f"node_with_quite_a_long_name_{index}" for index in range(3)]
    own = fastpipe.backend(lambda data: data)
    with fastpipe.Pipe({name: {"backend": own} for name in names}) as pipe, live(pipe) as page:
        stop = threading.Event()

        def load() -> None:
            while not stop.wait(0.001):
                pipe({"data": 1}, entry=names[0])

        client = threading.Thread(target=load)
        client.start()
        context = browser.new_context(color_scheme=scheme, viewport=PHONE)
        try:
            tab = context.new_page()
            tab.set_default_timeout(PATIENCE_MS)
            tab.goto(page.url)
            shows(tab, "Nothing waits for long.")
            assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
            assert tab.evaluate("document.getElementById('graph').scrollWidth") > 390  # which can be moved
            words = tab.locator("#legend span").evaluate_all(
                "all => all.map(each => [each.textContent, each.querySelector('svg').children.length > 0,"
                " each.getBoundingClientRect().left > 0 && each.getBoundingClientRect().right < innerWidth])"
            )
            assert words == [[each, True, True] for each in ("code of your own", "requests enter", "requests end")]
            rate = row_of(tab, names[0])["rate"]
            assert float(rate.removesuffix("/s")) > 1
            assert tab.evaluate(LEAST_CONTRAST) >= 4.5
        finally:
            stop.set()
            client.join()
            context.close()


# What WCAG asks of text: the contrast with what is behind it.
LEAST_CONTRAST = """() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0]).map(Number);
  const linear = c => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parts(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const meant = "h1, h2, td span, td small, .tile div, .finding p, .key, .totals, .about, .legend span";
  const texts = [...document.querySelectorAll(meant)];
  return Math.min(...texts.filter(element => element.textContent.trim()).map(element => {
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""
