"""README.md and docs/ are true: their Python runs, their TOML is read, their links lead somewhere.

Every block that opens with three backticks and ``python`` runs, in order, in one namespace per page, in a folder that
holds what a reader is assumed to have: a ``photo.jpg``, a classifier, ``resnet18.onnx``, a detector, ``yolo.onnx``, and
those of docs/models.md.
A block that opens with ``python no-run`` is only compiled: it needs a server, a GPU or another file.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastpipe
from fastpipe.config import registry
from fastpipe.config.values import constructor_parameters
from fastpipe.contract import Container
from fastpipe.errors import MissingExtra

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "docs/gpu", "bench", "examples", "proofs", "findings")
PAGES = sorted([*(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md")), *ROOT.glob("examples/*/*.md")])


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    marks: list[str]  # the words behind the backticks: the language, then remarks
    first_line: int
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    text = page.read_text()
    for found in re.finditer(r"^```(?P<marks>[^\n`]*)\n(?P<text>.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(found["marks"].split(), text[: found.start("text")].count("\n"), found["text"])


def pages_with(language: str) -> list[Path]:
    """Return the pages that have a block in a language."""
    return [page for page in PAGES if any(block.marks[:1] == [language] for block in blocks_of(page))]


def put_what_readers_have(folder: Path) -> None:
    """Write ``photo.jpg`` and the models (stand-ins with the same inputs and outputs) where libraries allow."""
    try:
        import numpy as np
        from onnx import TensorProto, helper, save
        from onnx_models import detector_model, places_model, speech_model
        from PIL import Image
    except ModuleNotFoundError:
        return  # the page then says what it misses
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    weights = np.random.default_rng(0).standard_normal((3, 1000), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["in"], ["means"]),
            helper.make_node("Flatten", ["means"], ["channels"]),
            helper.make_node("MatMul", ["channels", "weights"], ["out"]),
        ],
        "resnet18",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1000])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, folder / "resnet18.onnx")
    (folder / "yolo.onnx").write_bytes(detector_model(640))
    (folder / "speech.onnx").write_bytes(speech_model())
    (folder / "places.onnx").write_bytes(places_model())


def name_of(page: Path) -> str:
    """Return a page's name as a test's id."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who pastes the blocks of a page into one session sees no error."""
    put_what_readers_have(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    compiled_count = 0
    try:
        for block in blocks_of(page):
            if block.marks[:1] == ["python"]:
                source = "\n" * block.first_line + block.text  # so that a traceback names the line of the page
                code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                compiled_count += 1
                if "no-run" not in block.marks:
                    exec(code, namespace)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("fastpipe"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    finally:
        for value in namespace.values():
            if isinstance(value, fastpipe.Pipe):
                value.close()
    assert compiled_count == sum(line.startswith("```python") for line in page.read_text().splitlines())


@pytest.mark.parametrize("page", pages_with("toml"), ids=name_of)
def test_the_toml_of_a_page_is_toml(page: Path) -> None:
    """A configuration that is shown can be read."""
    for block in blocks_of(page):
        if block.marks[:1] == ["toml"]:
            assert tomllib.loads(block.text), "a configuration without a node"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_between_pages_lead_somewhere(page: Path) -> None:
    """A link to a file of the repository names one that is there."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if ":" not in target]
    dead = [target for target in targets if not os.path.exists(page.parent / target.partition("#")[0])]
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
