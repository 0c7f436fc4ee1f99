"""The examples run, print what their pages say, and have the pictures that they draw."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest
from example_pages import EXAMPLES, NEEDED, Session, compare, need, sessions_of
from helpers import once

GRAPHS = {
    "cascade/graph.svg": "cascade.__main__:build",
    "codes/graph.svg": "codes.toml",
    "embedding/graph.svg": "embedding.toml",
    "fastapi_service/graph.svg": "pipeline.toml",
    "file_types/graph.svg": "file_types.toml",
    "ocr/graph.svg": "ocr.toml",
    "resnet/cpu.svg": "cpu.toml",
    "resnet/gpu.svg": "gpu.toml",
    "speech/graph.svg": "speech.toml",
    "streaming/graph.svg": "tell:build",
    "three_nodes/graph.svg": "three_nodes.__main__:build",
    "thumbnails/graph.svg": "thumbnails.toml",
    "training/graph.svg": "pipeline.toml",
}
"""Drawings, and of what: of a file (``fastpipe graph FILE -o DRAWING``), or of a pipe (``pipe.graph().svg()``)."""


def only_session(name: str) -> Session:
    """Return the session of a page that has one, if what it needs is installed."""
    need(name)
    (session,) = sessions_of(name)
    return session


@once
@pytest.mark.parametrize("name", ["codes", "embedding", "fastapi_service", "file_types", "observing"])
def test_the_commands_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    """A reader who pastes them sees the same."""
    session = only_session(name)
    compare(session, session.run(tmp_path))


def test_three_nodes_answer_every_way_of_calling(tmp_path: Path) -> None:
    """A function call, a list, a future, tasks and map give the same answers."""
    session = only_session("three_nodes")
    compare(session, session.run(tmp_path))


def test_a_stream_is_read_while_it_is_made(tmp_path: Path) -> None:
    """By a loop, by tasks, by one who leaves, and by a call that gets the whole."""
    session, _ = sessions_of("streaming")
    compare(session, session.run(tmp_path))


@once
def test_a_stream_comes_over_http_and_ends_with_its_client(tmp_path: Path) -> None:
    """Word by word; who leaves after the second word has cancelled the request."""
    need("streaming")
    _, session = sessions_of("streaming")
    compare(session, session.run(tmp_path))


def test_the_service_answers_a_hundred_connections_in_batches(tmp_path: Path) -> None:
    """Requests of different connections meet in the same batches."""
    session = only_session("asyncio_service")
    printed = session.run(tmp_path)
    compare(session, printed)
    assert float(printed[0].split(", ")[-1].split()[0]) > 1


@once
@pytest.mark.parametrize("number", [0, 1])
def test_speech_is_heard_in_the_process_and_by_a_service(number: int, tmp_path: Path) -> None:
    """The same by both ways."""
    need("speech")
    if number:
        for package in ("fastapi", "uvicorn", "websockets"):
            pytest.importorskip(package)
    session = sessions_of("speech")[number]
    compare(session, session.run(tmp_path))


@pytest.fixture
def one_thread_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them wait for each other, spinning, where others use the CPUs: for minutes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("one_thread_of_torch")
def test_images_are_classified_and_what_is_none_is_named(tmp_path: Path) -> None:
    """By a network with random weights."""
    session = only_session("resnet")
    compare(session, session.run(tmp_path))


@once
def test_a_cascade_asks_the_better_model_for_what_the_cheap_one_is_not_sure_of(tmp_path: Path) -> None:
    """It is right nearly as often, and asked for few."""
    session = only_session("cascade")
    printed = session.run(tmp_path)
    compare(session, printed)
    cheap, better, both = (list(map(int, re.findall(r"\d+", line))) for line in printed[0].splitlines()[1:])
    assert cheap[0] + 5 < both[0]
    assert both[0] >= better[0] - 2
    assert 30 < both[1] < 200


@once
def test_thumbnails_are_those_of_the_page(tmp_path: Path) -> None:
    """Those made here look like those shown: decoders and versions of OpenCV differ by a little."""
    session = only_session("thumbnails")
    compare(session, session.run(tmp_path))
    import numpy as np
    from PIL import Image

    shown = sorted((EXAMPLES / "thumbnails" / "found").iterdir())
    assert [path.name for path in shown] == sorted(path.name for path in (tmp_path / "thumbnails").iterdir())
    for path in shown:
        one, other = (np.asarray(Image.open(each), np.int16) for each in (path, tmp_path / "thumbnails" / path.name))
        assert one.shape == other.shape == (96, 96, 3)
        assert np.abs(one - other).mean() < 1


def test_thumbnails_name_what_is_no_image_and_go_on(tmp_path: Path) -> None:
    """A file that cannot be decoded fails alone."""
    need("thumbnails")
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (300, 200), (255, 0, 0)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"this is no image")
    Image.new("RGB", (100, 400), (0, 0, 255)).save(folder / "c.jpg")
    (tmp_path / "page").mkdir()
    command = f"python examples/thumbnails {folder} --out {tmp_path / 'out'}"
    (printed,) = Session([command], [], None).run(tmp_path / "page")
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a.png", "b.jpg", "c.jpg"]
    assert lines[1] == "b.jpg: no image that can be decoded"
    made = Image.open(tmp_path / "out" / "a.png")
    assert made.size == (96, 96)
    assert made.getpixel((48, 48)) == (255, 0, 0)
    assert made.getpixel((48, 2)) == (255, 255, 255)


@pytest.mark.usefixtures("one_thread_of_torch")
def test_a_net_is_trained_with_the_nodes_that_serve_it(tmp_path: Path) -> None:
    """What the pipe answers is what the trained net says of the transform's tensors, for each of the test images."""
    session = only_session("training")
    printed = session.run(tmp_path, **{"--seconds 60": "--seconds 1 --workers 0"})
    compare(session, printed)
    right = int(printed[0].splitlines()[1].split(", ")[1].split()[0])
    assert right > 45  # of 8 classes, chance would have 15
    assert (tmp_path / "net.pt2").stat().st_size > 100_000


def test_the_web_service_makes_small_pictures_by_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is built with the application, and closed with it; a picture comes back small by either way."""
    need("fastapi_service")
    httpx = pytest.importorskip("httpx")
    image = pytest.importorskip("PIL.Image")
    import asyncio
    import io

    monkeypatch.syspath_prepend(str(EXAMPLES / "fastapi_service"))
    service = importlib.import_module("service")
    photo = io.BytesIO()
    image.new("RGB", (300, 200), (255, 0, 0)).save(photo, "jpeg")

    async def main() -> None:
        async with (
            service.main.router.lifespan_context(service.main),
            httpx.AsyncClient(transport=httpx.ASGITransport(app=service.main), base_url="http://x") as client,
        ):
            made = await client.post("/thumbnail", content=photo.getvalue(), headers={"content-type": "image/jpeg"})
            assert image.open(io.BytesIO(made.content)).size == (96, 96)
            raw = {"inference-header-content-length": "0"}
            answer = await client.post("/v2/models/thumbnails/infer", content=photo.getvalue(), headers=raw)
            length = int(answer.headers["inference-header-content-length"])
            assert image.open(io.BytesIO(answer.content[length + 4 :])).size == (96, 96)

    asyncio.run(main())


@pytest.mark.parametrize("drawing", sorted(GRAPHS))
def test_the_drawing_is_that_of_the_graph(drawing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With FASTPIPE_DRAW=1 it is drawn again, and then right."""
    from fastpipe.cli.main import main

    folder = EXAMPLES / drawing.partition("/")[0]
    what = GRAPHS[drawing]
    made = tmp_path / "graph.svg"
    monkeypatch.syspath_prepend(str(folder))  # where some have their modules, as `fastpipe serve` there would look
    need(folder.name)
    if ":" in what:
        module, _, function = what.partition(":")
        with getattr(importlib.import_module(module), function)() as pipe:
            made.write_text(pipe.graph().svg())
    else:
        assert main(["graph", str(folder / what), "-o", str(made)]) == 0
    if os.environ.get("FASTPIPE_DRAW"):
        (EXAMPLES / drawing).write_text(made.read_text())
    assert made.read_text() == (EXAMPLES / drawing).read_text()


def test_each_example_has_a_page_and_is_in_the_index() -> None:
    """Whoever looks through the examples finds them: what it shows, what it needs, how to run it, and a picture."""
    index = (EXAMPLES / "README.md").read_text()
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders >= {*NEEDED, "kuberay", "numba_cuda"}
    for name in folders:
        assert f"({name}/README.md)" in index, name
        page = (EXAMPLES / name / "README.md").read_text()
        assert len(page.splitlines()) <= 50, name
        assert re.search(r"^!\[.+\]\(.+\)", page, re.MULTILINE), f"{name} has no picture"
    assert set(re.findall(r"\(([\w.]+)/README\.md\)", index)) == folders
    missing = [path for path in re.findall(r'src="([^"]+)"', index) if not (EXAMPLES / path).is_file()]
    assert not missing


def test_each_session_of_a_page_is_run() -> None:
    """By a test above, but for those that need a GPU or have tests of their own."""
    with_sessions = {path.parent.name for path in EXAMPLES.glob("*/README.md") if sessions_of(path.parent.name)}
    assert with_sessions - {"numba_cuda", "ocr"} == set(NEEDED) - {"ocr"}


@pytest.mark.parametrize(
    ("differs", "printed"),
    [(None, "7 batches\n"), (r"\d+", "8 lots\n"), (r"\d+", "8 batches\nand more\n"), (r"\d{3}", "8 batches\n")],
)
def test_what_a_page_does_not_say_is_found(differs: str | None, printed: str) -> None:
    """Another number, word or line; and a rule for numbers that the page does not have."""
    session = Session(["run"], ["8 batches\n"], re.compile(differs) if differs else None)
    with pytest.raises(AssertionError):
        compare(session, [printed])
    compare(Session(["run"], ["8 batches\n"], re.compile(r"\d+")), ["9 batches\n"])
