"""The examples run, and show what they say."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str | Path) -> str:
    """Run an example as a user would, in an interpreter of its own, and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-P", str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


def test_three_nodes_answer_every_way_of_calling() -> None:
    """A function call, a list, a future, tasks and map give the same answers."""
    lines = dict(line.split(":", 1) for line in run("three_nodes.py").splitlines())
    three = "['about pipes', 'about pipes', 'about something else']"
    assert lines["function"].strip() == "about pipes"
    assert lines["future"].strip() == "about pipes"
    assert lines["list"].strip() == lines["asyncio"].strip() == lines["map"].strip() == three
    assert "node 'words'" in lines["failure"]


def test_a_stream_is_read_while_it_is_made() -> None:
    """By a loop, by tasks, by one who leaves, and by a call that gets the whole."""
    lines = dict(line.split(":", 1) for line in run("streaming.py").splitlines())
    assert lines["stream"].strip() == "['A', 'pipe', 'has', 'nodes', '.']"
    assert "'result': 'A pipe has nodes .'" in lines["then"]
    assert lines["tasks"].strip() == "[5, 10]"
    assert lines["enough"].strip() == "['la', 'la', 'la']"
    assert lines["call"].strip() == "A node has instances , each with a batch ."
    assert lines["requests"].strip() == "{'accepted': 5, 'done': 4, 'cancelled': 1}"


def test_the_service_answers_a_hundred_connections_in_batches() -> None:
    """Requests of different connections meet in the same batches."""
    first, second = run("asyncio_service.py").splitlines()
    assert first == "100 answers, all right: True"
    assert float(second.split(", ")[1].split()[0]) > 1


def test_thumbnails_name_what_is_no_image_and_go_on(tmp_path: Path) -> None:
    """A file that cannot be decoded fails alone."""
    pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here (extra cpu)")
    folder = tmp_path / "in"
    folder.mkdir()
    image.new("RGB", (300, 200), (255, 0, 0)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"this is no image")
    image.new("RGB", (100, 400), (0, 0, 255)).save(folder / "c.jpg")
    lines = run("thumbnails.py", folder, tmp_path / "out").splitlines()
    assert [line.split(":")[0] for line in lines] == ["a.png", "b.jpg", "c.jpg"]
    assert lines[0].endswith("done")
    assert lines[1] == "b.jpg: no image that can be decoded"
    assert lines[2].endswith("done")
    made = image.open(tmp_path / "out" / "a.png")
    assert made.size == (96, 96)
    assert made.getpixel((48, 48)) == (255, 0, 0)
    assert made.getpixel((48, 2)) == (255, 255, 255)


def test_the_web_service_answers_its_own_route_and_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is built with the application, and closed with it; a picture comes back small by either way."""
    for needed in ("cv2", "fastapi", "httpx", "orjson", "PIL"):
        pytest.importorskip(needed)
    import asyncio
    import io

    import httpx
    from PIL import Image

    monkeypatch.syspath_prepend(str(EXAMPLES / "fastapi_service"))
    service = importlib.import_module("service")
    photo = io.BytesIO()
    Image.new("RGB", (300, 200), (255, 0, 0)).save(photo, "jpeg")
    headers = {"content-type": "image/jpeg"}

    async def main() -> None:
        async with (
            service.main.router.lifespan_context(service.main),
            httpx.AsyncClient(transport=httpx.ASGITransport(app=service.main), base_url="http://x") as client,
        ):
            made = await client.post("/thumbnail", content=photo.getvalue(), headers=headers)
            assert made.headers["content-type"] == "image/jpeg"
            assert Image.open(io.BytesIO(made.content)).size == (96, 96)
            bad = await client.post("/thumbnail", content=b"no picture", headers=headers)
            assert (bad.status_code, list(bad.json())) == (400, ["error"])
            metadata = (await client.get("/v2/models/thumbnails")).json()
            assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
            raw = {"inference-header-content-length": "0"}
            answer = await client.post("/v2/models/thumbnails/infer", content=photo.getvalue(), headers=raw)
            length = int(answer.headers["inference-header-content-length"])
            assert Image.open(io.BytesIO(answer.content[length + 4 :])).size == (96, 96)

    asyncio.run(main())


def test_a_net_is_trained_with_the_nodes_that_serve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pipe answers is what the trained net says of the transform's tensors, for each of the test images."""
    for needed in ("cv2", "skimage", "torch"):
        pytest.importorskip(needed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torch's threads wait for each other where others use the CPUs
    lines = run("training/train.py", "--seconds", "1", "--workers", "0", "--out", tmp_path / "net.pt2").splitlines()
    assert lines[0].startswith("trained: ")
    assert lines[1].startswith("served: 120 of 120 classes as the trained net says, ")
    right = int(lines[1].split(", ")[1].split()[0])
    assert right > 45  # of 8 classes, chance would have 15
    assert (tmp_path / "net.pt2").stat().st_size > 100_000
