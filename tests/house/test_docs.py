"""README.md and docs/ are true: their Python runs, their TOML is read, their links lead somewhere.

Every block that opens with three backticks and ``python`` runs, in order, in one namespace per page, in a folder that
holds what a reader is assumed to have: a ``photo.jpg``, a classifier, ``resnet18.onnx``, a detector, ``yolo.onnx``, and
those of docs/models.md.
A block that opens with ``python no-run`` is only compiled: it needs a server, a GPU or another file. One with a
``title="NAME"`` is a file of that name in the folder.
"""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks_of, close_pipes, run_page

from fastpipe.config import registry
from fastpipe.config.values import constructor_parameters
from fastpipe.contract import Container
from fastpipe.errors import MissingExtra

FOLDERS = (".", "docs", "docs/gpu", "bench", "examples", "proofs", "findings")
PAGES = sorted([*(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md")), *ROOT.glob("examples/*/*.md")])


def pages_with(language: str) -> list[Path]:
    """Return the pages that have a block in a language."""
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


def name_of(page: Path) -> str:
    """Return a page's name as a test's id."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who pastes the blocks of a page into one session sees no error."""
    try:
        compiled_count, names = run_page(page, tmp_path, monkeypatch)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("fastpipe"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    close_pipes(names)
    assert compiled_count == sum(line.startswith("```python") for line in page.read_text().splitlines())


@pytest.mark.parametrize("page", pages_with("toml"), ids=name_of)
def test_the_toml_of_a_page_is_toml(page: Path) -> None:
    """A configuration that is shown can be read."""
    for block in blocks_of(page):
        if block.language == "toml":
            assert tomllib.loads(block.text), "a configuration without a node"


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@functools.cache
def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link of a page names a file that is there, and of a page a heading that it has."""
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or file.suffix != ".md" or anchor in anchors_of(file))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_between_pages_lead_somewhere(page: Path) -> None:
    """A link to a file of the repository names one that is there, and a heading of it."""
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)) if ":" not in target]
    dead = [target for target in targets if not leads_somewhere(page, target)]
    assert not dead, f"{name_of(page)} links to what is not there: {', '.join(dead)}"


def test_the_page_of_backends_has_every_name_and_parameter() -> None:
    """What the registry knows is in docs/backends.md, with the keywords of its constructor."""
    page = (ROOT / "docs" / "backends.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for name, _, _ in registry._BUILT_IN.values():
        row = next((row for row in rows if f"`{name}`" in row.split("|")[1]), None)
        assert row is not None, f"docs/backends.md has no row for {name}"
        try:
            backend = registry.find(name)
        except MissingExtra:
            continue
        taken = [
            key
            for key in constructor_parameters(backend, skip_first=issubclass(backend, Container))
            if f"`{key}`" not in row
        ]
        # "the same" refers to the row above it
        assert not taken or "| the same |" in row, f"docs/backends.md, {name}: {taken} are missing"
