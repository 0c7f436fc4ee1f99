"""The demo as a service: a page in a browser, curl, Triton's clients and Python get what the pipe itself reads."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for needed in ("cv2", "onnxruntime", "pyclipper", "rapidocr_onnxruntime"):
    pytest.importorskip(needed)
for needed in ("google.protobuf", "grpc", "httptools", "orjson", "starlette", "uvicorn"):
    pytest.importorskip(needed, reason="the extra serve is not installed here")

from helpers import WAIT_S, until  # noqa: E402
from ocr import __main__, service  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

import fastpipe.serve.json_text  # noqa: E402

DEMO = Path(__main__.__file__).parent
CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 30_000
PAGE_SIDE = 440
HOSTILE = "<img/src=x/onerror=alert(1)>"
NO_PICTURE = "it is no JPEG, PNG, WebP or BMP picture, or only a part of one"


def drawn(*texts: str, angle: float = 0.0) -> bytes:
    """Return a page with a line for each text, as PNG. It is square: a strip would be enlarged for the detector."""
    image = Image.new("RGB", (PAGE_SIDE, PAGE_SIDE), "white")
    for number, text in enumerate(texts):
        ImageDraw.Draw(image).text((40, 30 + 70 * number), text, font=ImageFont.load_default(size=32), fill="black")
    buffer = io.BytesIO()
    image.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white").save(buffer, "PNG")
    return buffer.getvalue()


PAGE = drawn("Laid down carelessly", "and scanned askew", angle=4)
OTHER = drawn("Another page")


class Service:
    """The command as a process, and what its first line says."""

    def __init__(self, folder: Path, *arguments: str, command: Sequence[str] = ()) -> None:
        self.complaints = folder / "stderr"
        with self.complaints.open("wb") as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *(command or (str(DEMO), "--serve", "--http", "127.0.0.1:0")), *arguments],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line, self.complaints.read_text()
        self.url, *rest = re.findall(r"(?:http|grpc)://[\d.:]+", self.line)
        self.grpc = rest[0].removeprefix("grpc://") if rest else ""

    def end(self) -> None:
        """Stop it as an operator does."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            assert (self.process.wait(WAIT_S), self.complaints.read_text()) == (0, "")
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def post(self, path: str, content: bytes, kind: str = "image/png") -> Any:
        """Return what is answered to a file, as ``curl --data-binary`` sends it."""
        request = urllib.request.Request(f"{self.url}{path}", content, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("service"), "--grpc", "127.0.0.1:0")
    yield started
    started.end()


@pytest.fixture(scope="module")
def expected() -> dict[bytes, Any]:
    """What the pipe answers when it is called directly, in the form that JSON has."""
    with service.service_pipe() as pipe:
        answers: dict[bytes, Any] = {}
        for content in (PAGE, OTHER):
            request: dict[str, Any] = {"data": content}
            pipe(request)
            answers[content] = json.loads(fastpipe.serve.json_text.dumps(request["result"]))
    assert [line["text"] for line in answers[PAGE]] == ["Laid down carelessly", "and scanned askew"]
    assert [line["text"] for line in answers[OTHER]] == ["Another page"]
    return answers


def same(lines: Any, others: Any) -> None:
    """Hold two readings equal; who shared a batch may show in the last bits of a score."""
    assert [(line["text"], line["quad"]) for line in lines] == [(line["text"], line["quad"]) for line in others]
    assert [line["score"] for line in lines] == pytest.approx([line["score"] for line in others], abs=1e-3)


# ---- programs --------------------------------------------------------------------------------------------------


def test_a_file_is_answered_with_its_lines(served: Service, expected: dict[bytes, Any]) -> None:
    """As curl sends it: by the service's own route, and as the only input of the protocol."""
    same(served.post("/read", PAGE), expected[PAGE])
    answer = served.post("/v2/models/ocr/infer", PAGE)
    (output,) = answer["outputs"]
    same(json.loads(output.pop("data")[0]), expected[PAGE])
    assert (answer["model_name"], output) == ("ocr", {"name": "lines", "datatype": "BYTES", "shape": [1, 1]})


@pytest.mark.parametrize("path", ["/read", "/v2/models/ocr/infer"])
@pytest.mark.parametrize("content", [b"no picture", PAGE[:-40]], ids=["text", "cut off"])
def test_what_is_no_picture_is_the_clients_mistake(served: Service, path: str, content: bytes) -> None:
    """400, with a sentence that a person understands."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.post(path, content)
    with caught.value as error:
        assert (error.code, json.load(error)["error"].endswith(NO_PICTURE)) == (400, True)


def test_a_thread_of_pixels_is_the_clients_mistake_too(served: Service) -> None:
    """It is a picture, and none of a page."""
    buffer = io.BytesIO()
    Image.new("L", (4000, 1)).save(buffer, "PNG")
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.post("/read", buffer.getvalue())
    with caught.value as error:
        assert (error.code, "too long and thin" in error.read().decode()) == (400, True)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritons_clients_send_several_pages_in_a_call(
    served: Service, expected: dict[bytes, Any], protocol: str
) -> None:
    """Each page is a row; what is announced is what is sent."""
    client_of = pytest.importorskip(f"tritonclient.{protocol}")
    address = served.url.removeprefix("http://") if protocol == "http" else served.grpc
    with client_of.InferenceServerClient(address) as client:
        assert client.is_model_ready("ocr")
        page = client_of.InferInput("page", [2, 1], "BYTES")
        page.set_data_from_numpy(np.array([[PAGE], [OTHER]], object))
        answer = client.infer("ocr", [page]).as_numpy("lines")
        assert answer.shape == (2, 1)
        for row, content in zip(answer[:, 0], (PAGE, OTHER), strict=True):
            same(json.loads(row), expected[content])
        page = client_of.InferInput("page", [1, 1], "BYTES")
        page.set_data_from_numpy(np.array([[b"no picture"]], object))
        with pytest.raises(pytest.importorskip("tritonclient.utils").InferenceServerException, match=NO_PICTURE):
            client.infer("ocr", [page])


def test_links_of_the_page_lead_somewhere(served: Service) -> None:
    """To what the service serves beside it, the live page included; nothing comes from another host."""
    with urllib.request.urlopen(served.url, timeout=WAIT_S) as answer:
        html = answer.read().decode()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    links = re.findall(r'href="(v2[^"]*)"', html)
    assert links == ["v2/live", "v2/models/ocr", "v2/", "v2/openapi.json"]
    for link in links:
        with urllib.request.urlopen(f"{served.url}/{link}", timeout=WAIT_S) as answer:
            assert answer.status == 200
    assert set(re.findall(r"\w+://[^'/]+", html)) == {"http://www.w3.org"}  # a name of XML, which nobody fetches
    assert f"LARGEST_BYTES = {service.LARGEST_FILE_BYTES >> 20} * 2 ** 20" in html


SLOW_SERVICE = """
import sys
sys.path.insert(0, sys.argv[1])
from fastpipe import Pipe
from ocr import service
slow = {"backend": "Sleep", "Sleep::time": 1500, "max": 1}
service.service_pipe = lambda instance_num: Pipe({"slow": slow})
service.serve("127.0.0.1:0", "none")
"""


def test_a_second_ctrl_c_tells_clients_that_the_service_has_shut_down(tmp_path: Path) -> None:
    """503 by each route that reads; the operator sees a line at the first, and no traceback at the second."""
    pytest.importorskip("prometheus_client")
    started = Service(tmp_path, command=["-c", SLOW_SERVICE, str(DEMO.parent)])
    assert started.process.stdout is not None
    body = {"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}
    told: list[tuple[int, str]] = []

    def ask(path: str) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            started.post(path, json.dumps(body).encode(), "application/json")
        with caught.value as error:
            told.append((error.code, json.load(error)["error"]))

    asking = [threading.Thread(target=ask, args=(path,)) for path in 3 * ["/read", "/v2/models/ocr/infer"]]
    try:
        for each in asking:
            each.start()
        until(lambda: in_flight(started) == len(asking))
        started.process.send_signal(signal.SIGINT)
        assert started.process.stdout.readline() == "finishing 6 requests; Ctrl-C again ends at once\n"
        started.process.send_signal(signal.SIGINT)
        for each in asking:
            each.join(WAIT_S)
        assert (started.process.wait(WAIT_S), started.complaints.read_text()) == (0, "")
    finally:
        started.process.kill()
        started.process.wait()
        started.process.stdout.close()
    assert told == [(503, "the server has shut down")] * len(asking)


def in_flight(started: Service) -> int:
    """Return how many requests the service has taken and not answered."""
    with urllib.request.urlopen(f"{started.url}/v2/metrics", timeout=WAIT_S) as answer:
        found = re.search(r"fastpipe_in_flight\{[^}]*\} (\d+)", answer.read().decode())
    return int(found[1]) if found else 0


def test_an_address_in_use_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the models are loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert __main__.main(["--serve", "--http", f"127.0.0.1:{taken.getsockname()[1]}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ocr: cannot listen at 127.0.0.1:")
    assert said.count("\n") == 1


# ---- a person --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("the browser is Debian's chromium, which is not installed here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-quic", "--no-first-run"])
        yield started
        started.close()


@pytest.fixture(params=["desk", "phone in the dark"])
def tab(browser: Any, served: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; what its console complains about fails the test."""
    is_phone = request.param != "desk"
    size = {"width": 390, "height": 844} if is_phone else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, color_scheme="dark" if is_phone else "light")
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.goto(served.url)
    yield opened
    width = opened.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert width == size["width"]  # nothing sticks out to the side
    assert [text for text in complaints if "status of 400" not in text] == []


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def shows(tab: Any, text: str) -> None:
    """Wait until the page says how it went."""
    tab.locator("#status", has_text=text).wait_for()


def test_a_person_sees_boxes_and_text(tab: Any, expected: dict[bytes, Any]) -> None:
    """A file is chosen: the boxes lie where the lines are, the text is beside them, and either lights up the other."""
    tab.set_input_files("#file", file("scan.png", PAGE))
    shows(tab, "2 lines in ")
    assert re.fullmatch(r"2 lines in \d+\.\d\d s, upload included\.", tab.inner_text("#status"))
    lines = expected[PAGE]
    assert tab.locator(".words").all_text_contents() == [line["text"] for line in lines]
    assert tab.locator(".score").all_text_contents() == [f"{round(line['score'] * 100)} %" for line in lines]
    points = tab.locator("polygon").evaluate_all("all => all.map(each => [...each.points].map(p => [p.x, p.y]))")
    assert points == [line["quad"] for line in lines]
    # Where the first line is on the screen, against where the picture is on it.
    picture = tab.locator("#picture").bounding_box()
    box = tab.locator("polygon").first.bounding_box()
    scale = picture["width"] / PAGE_SIDE
    for side, length, corners in zip("xy", ("width", "height"), np.transpose(lines[0]["quad"]), strict=True):
        middle = box[side] + box[length] / 2 - picture[side]
        assert middle == pytest.approx((corners.min() + corners.max()) / 2 * scale, abs=2)
    tab.locator("li button").nth(1).focus()
    are_lit = tab.locator("polygon").evaluate_all("all => all.map(each => each.classList.contains('lit'))")
    assert are_lit == [False, True]
    tab.locator("polygon").first.click()
    assert tab.evaluate("document.activeElement.querySelector('.words').textContent") == lines[0]["text"]
    assert tab.locator("#picture").get_attribute("alt") == "The page scan.png"
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.click("#copy")
    tab.get_by_text("Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == "\n".join(line["text"] for line in lines)
    assert tab.evaluate(LEAST_CONTRAST) >= 4.5


def test_a_person_is_told_in_words_what_is_no_picture(tab: Any) -> None:
    """And what is too large; the next picture is read as if nothing had been. A page without text says so."""
    tab.set_input_files("#file", file("notes.txt", b"no picture"))
    shows(tab, f"notes.txt could not be read: {NO_PICTURE}.")
    assert tab.locator("#result").is_hidden()
    assert tab.evaluate(LEAST_CONTRAST) >= 4.5
    tab.evaluate("read(new Blob([new Uint8Array(33 * 2 ** 20)]), 'huge.bmp')")
    shows(tab, "huge.bmp could not be read: it has 33 MB, and at most 32 are taken.")
    tab.set_input_files("#file", file("blank.png", drawn()))
    shows(tab, "0 lines in ")
    assert tab.locator("#nothing").inner_text() == "No text was found on this picture."


def test_a_picture_is_dropped_and_a_sample_tried(tab: Any, expected: dict[bytes, Any]) -> None:
    """Whatever is under way is given up for what comes later."""
    tab.evaluate(DROP, [list(OTHER), "dropped.png"])
    shows(tab, "1 line in ")
    assert tab.inner_text(".words") == "Another page"
    tab.click("#sample")
    shows(tab, "Reading sample 1")
    tab.evaluate(DROP, [list(PAGE), "later.png"])
    shows(tab, "2 lines in ")
    assert tab.inner_text("#caption").startswith(f"later.png, {PAGE_SIDE} × {PAGE_SIDE} pixels")


def test_text_stays_text(tab: Any) -> None:
    """Whoever makes a picture, or names a file, does not write the page."""
    line = {"text": HOSTILE, "score": 0.6, "quad": [[1, 1], [9, 1], [9, 9], [1, 9]]}
    tab.route("**/read", lambda route: route.fulfill(json=[line]))
    tab.set_input_files("#file", file(f"{HOSTILE}.png", OTHER))
    shows(tab, "1 line in ")
    assert tab.inner_text(".words") == HOSTILE
    assert tab.locator(".score.doubtful").count() == 1
    assert tab.locator("img").count() == 1


DROP = """([bytes, name]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(bytes)], name));
  const event = new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(event);
}"""

# What WCAG asks of text: the contrast with what is behind it.
LEAST_CONTRAST = """() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0]).map(Number);
  const linear = c => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    const [r, g, b, share = 1] = parts(getComputedStyle(element).backgroundColor);
    if (share > 0.99 || !element.parentElement) return [r, g, b];
    return behind(element.parentElement).map((below, i) => share * [r, g, b][i] + (1 - share) * below);
  };
  const meant = "h1, h2, a, p, span, small, label, button, figcaption, summary";
  const texts = [...document.querySelectorAll(meant)].filter(each => each.checkVisibility() && each.textContent.trim());
  return Math.min(...texts.map(element => {
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""
