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
SERVED = {"ctrl_c", "sigterm", "protocol"}
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
        assert all(cell["source"] for cell in cells.values())
    assert all(peer.packages for peer in run.PEERS[1:])


def test_versions_of_the_results_are_those_that_the_runner_installs(run: Any, results: Any) -> None:
    """A pin that was raised without a run would claim what nobody saw."""
    for peer in run.PEERS[1:]:
        name, version = peer.packages[0].split("==")
        assert results["peers"][peer.key]["versions"][name.partition("[")[0]] == version


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
