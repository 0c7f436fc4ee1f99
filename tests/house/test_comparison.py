"""docs/comparison.md has the table that bench/comparison/run.py makes, and fastpipe's own cells are true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPARISON = ROOT / "bench" / "comparison"
SERVED = {"ctrl_c", "sigterm", "protocol", "crash"}
"""Rows of fastpipe that start ``fastpipe serve``, which has tests of its own; a run of the comparison asks them."""
CLOCKED = {"batching", "lone", "batch_raises", "instances", "graph", "map_reduce", "deadline", "streaming", "state"}
"""Rows whose mark depends on how busy the machine is: here they run, and get right answers."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the runner's module; scripts of bench/ find each other beside themselves."""
    import importlib

    monkeypatch.syspath_prepend(COMPARISON)
    known = set(sys.modules)
    yield importlib.import_module("run")
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(COMPARISON)):
            del sys.modules[name]


@pytest.fixture
def results() -> Any:
    """Return what the committed run has found."""
    return json.loads((COMPARISON / "results.json").read_text())


def test_the_page_has_the_tables_of_the_committed_results(run: Any, results: Any) -> None:
    """No cell is edited by hand: ``run.py --render`` would change nothing."""
    page = (ROOT / "docs" / "comparison.md").read_text()
    assert run.page_with(page, results) == page


def test_every_peer_was_asked_every_feature_and_no_probe_failed(run: Any, results: Any) -> None:
    """A probe that could not run says why in italics, with a page; it does not leave a hole."""
    keys = {feature.key for feature in run.FEATURES}
    for peer in run.PEERS:
        cells = results["peers"][peer.key]["cells"]
        assert set(cells) == keys, peer.key
        assert [key for key, cell in cells.items() if cell["mark"] == "failed"] == [], peer.key
        assert all(cell["source"] and cell["text"].strip() for cell in cells.values())
    assert all(peer.packages for peer in run.PEERS[1:])


def test_versions_of_the_results_are_those_that_the_runner_installs(run: Any, results: Any) -> None:
    """A pin that was raised without a run would claim what nobody saw."""
    for peer in run.PEERS[1:]:
        name, version = peer.packages[0].split("==")
        assert results["peers"][peer.key]["versions"][name.partition("[")[0]] == version


@pytest.mark.parametrize(
    ("found", "mark", "text"),
    [
        ((), "no", "none"),
        (("manylinux_2_35_x86_64",), "partly", "Linux x86-64"),
        (
            ("manylinux_2_35_x86_64", "manylinux_2_35_aarch64", "macosx_14_0_arm64", "win_amd64"),
            "yes",
            "Linux x86-64, Linux aarch64, macOS arm64, Windows x86-64",
        ),
    ],
)
def test_systems_with_a_wheel_are_named_or_none_is(
    run: Any, monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], mark: str, text: str
) -> None:
    """A package whose wheels are for a new glibc only has had an empty cell."""

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        has_one = bool(set(found) & set(command))
        return subprocess.CompletedProcess(command, not has_one, "", "ERROR: No matching distribution found for a==1")

    monkeypatch.setattr(run.subprocess, "run", pip)
    assert run.platforms_of("a==1") == {"mark": mark, "text": text, "source": "ran"}


def test_a_pip_that_cannot_ask_is_no_answer(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network nothing is known about wheels."""
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="no network"):
        run.platforms_of("a==1")


def test_a_server_that_does_not_start_shows_its_whole_log(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason may stand far before the end, as Triton's does; the message itself stays short."""
    import importlib

    monkeypatch.syspath_prepend(COMPARISON.parent)
    serve_load = importlib.import_module("serve_load")
    said = "import sys; sys.stderr.write('the reason' + 5000 * '.'); sys.exit(1)"
    server = serve_load.Server([sys.executable, "-c", said])

    def is_ready() -> None:
        server.process.wait(60)
        raise ConnectionError("nobody listens")

    try:
        with pytest.raises(serve_load.DidNotStart) as caught:
            server.wait_until(is_ready)
    finally:
        server.close()
    assert caught.value.log.startswith("the reason")
    assert len(caught.value.log) == 5010
    assert len(str(caught.value)) < 1000


def test_a_cell_from_a_page_is_in_italics_and_names_it(run: Any) -> None:
    """The same page has the same number, and a cell that was seen has none."""
    seen = {"mark": "no", "text": "a | b", "source": "ran"}
    read = {"mark": "yes", "text": "does it", "source": "https://example.org/page"}
    results = {"peers": {"mosec": {"cells": {"batching": seen, "lone": read, "loop": read}}}}
    (peer,) = (peer for peer in run.PEERS if peer.key == "mosec")
    features = {feature.key: feature for feature in run.FEATURES}
    notes: dict[str, int] = {}
    cells = [run.cell_of(results, peer, features[key], notes) for key in ("batching", "lone", "loop", "graph")]
    linked = "*✓ does it* [[1]](https://example.org/page)"
    assert cells == ["✗ a \\| b", linked, linked, "not asked"]


def test_fastpipe_does_what_its_column_says(run: Any, results: Any) -> None:
    """Its probes run again, and find what the committed results have."""
    pytest.importorskip("prometheus_client")
    keys = [feature.key for feature in run.FEATURES if feature.key not in SERVED | {"size", "platforms"}]
    ran = subprocess.run(
        [sys.executable, "-P", str(COMPARISON / "of_fastpipe.py"), *keys],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(COMPARISON), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    first, *lines = ran.stdout.splitlines() or [""]
    assert "versions" in first, ran.stderr
    found = {cell["feature"]: (cell["mark"], cell["text"]) for cell in map(json.loads, lines)}
    assert set(found) == set(keys)
    assert "failed" not in {mark for mark, _ in found.values()}, found
    told = results["peers"]["fastpipe"]["cells"]
    steady = set(keys) - CLOCKED
    assert {key: found[key][0] for key in steady} == {key: told[key]["mark"] for key in steady}, found
