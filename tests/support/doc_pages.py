"""The pages of the documentation as their tests read them: blocks, files, and what a reader is assumed to have."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastpipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    marks: list[str]  # the words behind the backticks: the language, then remarks
    first_line: int
    text: str

    @property
    def language(self) -> str:
        return self.marks[0] if self.marks else ""

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, as in ``python title="service.py"``; None: it is no file."""
        found = re.fullmatch(r'title="([^"]+)"', self.marks[-1]) if self.marks else None
        return found[1] if found else None


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    text = page.read_text()
    for found in re.finditer(r"^```(?P<marks>[^\n`]*)\n(?P<text>.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(found["marks"].split(), text[: found.start("text")].count("\n"), found["text"])


def write_files_of(page: Path, folder: Path) -> list[str]:
    """Write the blocks of a page that are files into a folder, as a reader does; return the names of the modules."""
    files = {block.file: block.text for block in blocks_of(page) if block.file is not None}
    for name, text in files.items():
        (folder / name).write_text(text)
    return [name.removesuffix(".py") for name in files if name.endswith(".py")]


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, object]]:
    """Run the Python of a page, as a reader who pastes its blocks into one session, in a folder of their own.

    Returns:
        how many blocks were compiled, and the session's names. The pipes among them are open: ``close_pipes``.
    """
    put_what_readers_have(folder)
    modules = write_files_of(page, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    names: dict[str, object] = {"__name__": "page"}
    compiled_count = 0
    try:
        for block in blocks_of(page):
            if block.language == "python":
                source = "\n" * block.first_line + block.text  # so that a traceback names the line of the page
                code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                compiled_count += 1
                if "no-run" not in block.marks and block.file is None:
                    exec(code, names)
    except BaseException:
        close_pipes(names)
        raise
    finally:
        for module in modules:
            sys.modules.pop(module, None)
    return compiled_count, names


def close_pipes(names: dict[str, object]) -> None:
    """Close the pipes among the names of a session."""
    for value in names.values():
        if isinstance(value, fastpipe.Pipe):
            value.close()


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader's command in a folder whose modules it imports."""
    return {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}


def put_what_readers_have(folder: Path) -> None:
    """Write ``photo.jpg``, ``photos/`` and the models (stand-ins with the same shapes) where libraries allow."""
    try:
        import numpy as np
        from onnx import TensorProto, helper, save
        from onnx_models import detector_model, places_model, speech_model
        from PIL import Image
    except ModuleNotFoundError:
        return  # the page then says what it misses
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    photos = folder / "photos"
    photos.mkdir()
    Image.fromarray(pixels).save(photos / "wide.jpg")
    Image.fromarray(pixels[:, :240]).save(photos / "tall.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
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
