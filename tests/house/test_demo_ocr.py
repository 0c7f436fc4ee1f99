"""The demo reads what rapidocr_onnxruntime reads, whoever shares a batch, and says in words what is in its way."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("pyclipper")
pytest.importorskip("rich")
pytest.importorskip("rapidocr_onnxruntime")

from helpers import SCALE, once  # noqa: E402
from ocr import __main__, command, models, pages, pipeline, report, steps  # noqa: E402
from ocr.paper import Paper  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402  # after the skips

from fastpipe import Pipe, Request  # noqa: E402

DEMO = Path(__main__.__file__).parent
LARGEST_SCORE_DIFFERENCE = 0.02


def banner() -> pages.PageFile:
    """A page much wider than high, which gets a border before it is searched."""
    image = Image.new("RGB", (1000, 90), "white")
    ImageDraw.Draw(image).text((20, 20), "One line on a strip", font=ImageFont.load_default(size=44), fill="black")
    return _page_file("banner", image)


def upright() -> pages.PageFile:
    """A page with a line that runs upwards, and one beside it."""
    image = Image.new("RGB", (500, 420), "white")
    ImageDraw.Draw(image).text((20, 20), "Read me upwards", font=ImageFont.load_default(size=40), fill="black")
    image = image.rotate(90, expand=True)
    ImageDraw.Draw(image).text((160, 100), "and me as usual", font=ImageFont.load_default(size=30), fill="black")
    return _page_file("upright", image)


def askew() -> pages.PageFile:
    """A page that was not laid straight on the scanner."""
    image = Image.new("RGB", (520, 420), "white")
    for number, text in enumerate(["Laid down carelessly", "and scanned askew"]):
        position = (60, 120 + 80 * number)
        ImageDraw.Draw(image).text(position, text, font=ImageFont.load_default(size=34), fill=(60, 0, 0))
    return _page_file("askew", image.rotate(6, Image.Resampling.BICUBIC, fillcolor="white"))


def stamped() -> pages.PageFile:
    """A page with a stamp that stands on its head, as delivery notes have."""
    paper = Paper(420, 300, 40, "sans", 24)
    paper.write("Two parcels, one pallet")
    paper.stamp("RECEIVED 12 NOV", (40, 150, 380, 224), angle=180)
    return _page_file("stamped", paper.image)


def photographs() -> list[pages.PageFile]:
    """A page of a book as a camera saw it, if scikit-image is installed."""
    package = importlib.util.find_spec("skimage")
    folders = (package.submodule_search_locations or []) if package else []
    files = [path for folder in folders if (path := Path(folder, "data", "page.png")).is_file()]
    return [_page_file("page", Image.open(path).convert("L")) for path in files]


def blank() -> pages.PageFile:
    """A page without text."""
    return _page_file("blank", Image.new("L", (200, 200), 255))


def _page_file(name: str, image: Image.Image) -> pages.PageFile:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return pages.PageFile(name, buffer.getvalue())


@pytest.fixture(scope="module")
def all_pages() -> list[pages.PageFile]:
    # Those that cost most come first.
    receipt = pages.drawn_page(list(pages.KINDS).index("receipt"))
    return [*(photographs() if SCALE >= 1 else []), receipt, banner(), stamped(), upright(), askew(), blank()]


@pytest.fixture(scope="module")
def reference(all_pages: list[pages.PageFile]) -> dict[str, list[steps.Line]]:
    """What rapidocr_onnxruntime reads on the pages, by their names."""
    read = command.reference_reader()
    return {page.name: read(page.content) for page in all_pages}


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipe]:
    with Pipe(pipeline.configuration()) as built:
        yield built


# ---- the same answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callers", [1, 16])
def test_the_pipe_reads_what_the_reference_reads(
    pipe: Pipe, all_pages: list[pages.PageFile], reference: dict[str, list[steps.Line]], callers: int
) -> None:
    """Texts and boxes are equal, scores nearly, with one caller and with 16 that share batches."""
    asked = all_pages if callers == 1 else all_pages + 3 * all_pages[-3:]
    answers, _, _ = command.read_all(asked, command.pipe_reader(pipe), callers)
    for page, lines in zip(asked, answers, strict=True):
        expected = reference[page.name]
        assert [line.text for line in lines] == [line.text for line in expected], page.name
        for line, expected_line in zip(lines, expected, strict=True):
            assert line.score == pytest.approx(expected_line.score, abs=LARGEST_SCORE_DIFFERENCE), page.name
            np.testing.assert_allclose(line.quad, expected_line.quad, atol=1e-3, err_msg=page.name)


def test_a_stamp_on_its_head_is_read(reference: dict[str, list[steps.Line]]) -> None:
    """It is turned before it is read."""
    assert [line.text.replace(" ", "") for line in reference["stamped"]] == ["Twoparcels,onepallet", "RECEIVED12NOV"]


def test_the_reference_finds_text_on_every_page_but_the_blank_one(reference: dict[str, list[steps.Line]]) -> None:
    """The comparison above compares something."""
    assert [name for name, lines in reference.items() if not lines] == ["blank"]


def test_an_answer_does_not_depend_on_who_shares_the_batch() -> None:
    """A line alone, and the same line among others of its width, have the same text and score."""
    node = {**pipeline.configuration()["recognise"], "max": 4}
    words = ["A", "scheduler", "that never", "stops"]
    lines = []
    for word in words:
        image = Image.new("RGB", (250, 48), "white")
        ImageDraw.Draw(image).text((10, 4), word, font=ImageFont.load_default(size=30), fill="black")
        lines.append(np.asarray(image))
    with Pipe({"recognise": node}) as recogniser:
        alone: list[Request] = [{"data": line, "width": 320} for line in lines]
        for request in alone:
            recogniser(request)
        together: list[Request] = [{"data": line, "width": 320} for line in lines]
        recogniser(together)
        assert recogniser.stats()["nodes"]["recognise"]["batches"] < 2 * len(lines)
    assert [request["result"].strip() for request in alone] == words
    assert [request["result"] for request in together] == [request["result"] for request in alone]
    assert [request["score"] for request in together] == pytest.approx([request["score"] for request in alone])


# ---- the steps between the models ------------------------------------------------------------------------------


def page_of(width: int, height: int) -> steps.Page:
    return steps.prepare_page(np.zeros((height, width, 3), np.uint8))


def quad_at(x: float, y: float, width: float = 100, height: float = 20) -> steps.Floats:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


@pytest.mark.parametrize(
    ("size", "page_size"),
    [
        ((900, 760), (900, 760)),
        ((4000, 1000), (1984, 512)),  # too long; sides become multiples of 32
        ((60, 20), (96, 32)),  # too low
        ((60, 30), (60, 60)),  # so low that it gets a border
        ((1000, 100), (1000, 250)),  # a strip
        ((100, 1000), (100, 1000)),  # only strips that lie get a border
    ],
)
def test_a_page_is_neither_too_long_nor_too_low(size: tuple[int, int], page_size: tuple[int, int]) -> None:
    """Sizes, as (width, height), of images and of the pages made of them."""
    page = page_of(*size)
    assert page.image.shape[1::-1] == page_size


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (20, 2000)])
def test_a_thread_of_pixels_is_refused(size: tuple[int, int]) -> None:
    """An image that would grow beyond all memory on its way is no page."""
    with pytest.raises(steps.UnreadablePage, match="too long and thin"):
        steps.detection_input(page_of(*size))


def test_the_detectors_input_is_normalised_and_large_enough() -> None:
    """Its shorter side has at least 736 pixels, both are multiples of 32, values go from -1 to 1."""
    image = np.zeros((200, 301, 3), np.uint8)
    image[:, 150:] = 255
    array = steps.detection_input(steps.prepare_page(image))
    assert array.shape == (3, 736, 1120)
    assert array.dtype == np.float32
    assert (array.min(), array.max()) == pytest.approx((-1, 1))


def test_boxes_are_taken_back_to_the_source_image() -> None:
    """Scale and border are undone, and what would be outside is moved to the edge."""
    page = page_of(4000, 200)  # 2000 x 100 as a page would be too low: 1984 x 96, with a border of 200
    moved = page.to_source(quad_at(-10, page.border_top + 48, width=3000))
    np.testing.assert_allclose(moved[:, 0], [0, 4000, 4000, 0], atol=1e-3)
    np.testing.assert_allclose(moved[:2, 1], [100, 100], atol=1e-3)


@pytest.mark.parametrize("angle", [0.0, 8.0, -20.0])
def test_a_block_in_the_detectors_map_becomes_a_box_grown_on_all_sides(angle: float) -> None:
    """The detector marks text shrunk; the box has the same centre and slope, and is larger."""
    text_map = np.zeros((1, 1, 320, 480), np.float32)
    block = cv2.boxPoints(((240.0, 160.0), (200.0, 20.0), angle))
    cv2.fillPoly(text_map[0, 0], [np.round(block).astype(np.int32)], 0.9)
    page = page_of(480, 320)
    (quad,) = steps.boxes_of_map(text_map, page)
    np.testing.assert_allclose(quad.mean(axis=0), [240, 160], atol=2)
    width, height = np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[3] - quad[0])
    growth = 2 * steps.GROWTH * (200 * 20) / (2 * (200 + 20))
    assert (width, height) == pytest.approx((200 + growth, 20 + growth), abs=8)  # the mask is dilated by a pixel
    slope = np.degrees(np.arctan2(*(quad[1] - quad[0])[::-1]))
    assert slope == pytest.approx(angle, abs=1)


def test_faint_and_tiny_spots_are_no_boxes() -> None:
    """Below the threshold, of a low mean, or of a few pixels: no text."""
    text_map = np.zeros((1, 1, 320, 480), np.float32)
    text_map[0, 0, 20:40, 20:200] = 0.25
    text_map[0, 0, 100:120, 20:200] = 0.4
    text_map[0, 0, 200:202, 20:22] = 1.0
    assert steps.boxes_of_map(text_map, page_of(480, 320)) == []


def test_lines_are_read_from_top_to_bottom_and_on_one_height_from_left_to_right() -> None:
    """Boxes whose tops differ by a few pixels are on one line of the page."""
    text_map = np.zeros((1, 1, 320, 640), np.float32)
    corners = [(400, 48), (40, 52), (220, 50), (40, 120), (300, 20)]
    for x, y in corners:
        text_map[0, 0, y : y + 12, x : x + 100] = 1.0
    quads = steps.boxes_of_map(text_map, page_of(640, 320))
    found = [min(corners, key=lambda corner: np.abs(quad[0] - corner).sum()) for quad in quads]
    assert found == [(300, 20), (40, 52), (220, 50), (400, 48), (40, 120)]


def test_a_page_decides_how_wide_its_lines_are_recognised() -> None:
    """Sorted by how long they are, its lines form groups of six, each as wide as its longest, and 320 at least."""
    lengths = [300, 60, 500, 90, 100, 110, 120, 130]  # at a height of 20
    quads = [quad_at(0, 40 * index, width=length) for index, length in enumerate(lengths)]
    assert steps.recognition_widths(quads) == [1200, 320, 1200, 320, 320, 320, 320, 320]
    assert steps.recognition_widths(quads[:4]) == [1200] * 4
    assert steps.recognition_widths([]) == []


def test_a_line_that_stands_counts_as_long_as_it_is() -> None:
    """It will be turned before it is recognised."""
    assert steps.recognition_widths([quad_at(0, 0, width=20, height=200)]) == [480]


def test_unwarping_lays_a_slanted_line_flat() -> None:
    """The corners of the quad become the corners of the crop."""
    image = np.zeros((300, 300, 3), np.uint8)
    quad = np.array(cv2.boxPoints(((150.0, 150.0), (160.0, 40.0), 30.0)), np.float32)
    quad = quad[[1, 2, 3, 0]]
    cv2.fillPoly(image, [quad.astype(np.int32)], (10, 200, 30))
    crop = steps.unwarp(image, quad)
    assert crop.shape == (40, 160, 3) or crop.shape == (39, 159, 3)
    assert (crop[3:-3, 3:-3] == (10, 200, 30)).all()


def test_unwarping_turns_a_line_that_stands() -> None:
    """What was at the top comes first; whether that is right, the direction model says."""
    image = np.zeros((200, 100, 3), np.uint8)
    image[:50] = 255
    crop = steps.unwarp(image, quad_at(30, 0, width=20, height=200))
    assert crop.shape == (20, 200, 3)
    assert crop[:, :40].min() == 255
    assert crop[:, 60:].max() == 0


def test_only_a_sure_direction_model_turns_a_line() -> None:
    """The second probability is that of a line on its head."""
    assert steps.is_upside_down(np.array([[0.05, 0.95]], np.float32))
    assert not steps.is_upside_down(np.array([[0.2, 0.8]], np.float32))
    assert not steps.is_upside_down(np.array([[0.95, 0.05]], np.float32))


def test_a_line_is_padded_on_its_right() -> None:
    """48 pixels high, its ratio kept where there is room, zeros behind it."""
    line = np.full((24, 50, 3), 255, np.uint8)
    array = steps.recognition_input(line, 320)
    assert array.shape == (3, 48, 320)
    assert (array[:, :, :100] == 1).all()
    assert (array[:, :, 100:] == 0).all()
    assert (steps.direction_input(np.full((24, 500, 3), 255, np.uint8)) == 1).all()


@pytest.mark.parametrize(
    ("best", "text"),
    [([0, 1, 1, 0, 1, 2], "aab"), ([1, 1, 2, 2, 0], "ab"), ([0, 0, 0], ""), ([3, 0, 3, 3], "  ")],
)
def test_repeated_characters_are_one_unless_there_is_a_gap(best: list[int], text: str) -> None:
    """The score is the mean over the first step of each character."""
    probabilities = np.full((1, len(best), 4), 0.1, np.float32)
    for step, character in enumerate(best):
        probabilities[0, step, character] = 0.6
    probabilities[0, len(best) - 1, best[-1]] = 0.7
    read, score = steps.text_of(probabilities, ("", "a", "b", " "))
    assert read == text
    last_is_new = best[-1] != 0 and best[-1] != best[-2]
    expected = (0.6 * (len(text) - last_is_new) + 0.7 * last_is_new) / max(1, len(text))
    assert score == pytest.approx(expected, abs=1e-6)


def test_the_recogniser_brings_its_characters_along() -> None:
    """The first index means none, the last is the space, and no character comes twice."""
    characters = models.alphabet(models.model_path(models.RECOGNISER))
    assert (characters[0], characters[-1]) == ("", " ")
    assert len(characters) == 6625
    assert {"a", "Z", "7"} <= set(characters)


def test_wide_lines_count_for_more_in_a_batch() -> None:
    """As many lines as fit in the room of ``max`` narrow ones weigh ``max`` together; a very wide one goes alone."""
    recognition_input = pipeline.RecognitionInput(max=4)
    weights = [recognition_input.weigh({"width": width}) for width in (320, 420, 640, 641, 1281)]
    assert weights == pytest.approx([1, 4 / 3, 2, 4, 4])


# ---- pages -----------------------------------------------------------------------------------------------------


def test_sample_pages_are_different_and_always_the_same() -> None:
    """A number stands for a kind and for what is written on it; after all kinds, they come again with other words."""
    names = [page.name for page in pages.sample_pages(7)]
    assert names == ["letter", "invoice", "receipt", "notice", "timetable", "delivery-note", "letter-2"]
    assert pages.drawn_page(0) == pages.drawn_page(0)
    assert pages.drawn_page(0).content != pages.drawn_page(6).content


@once
def test_the_bills_add_up(pipe: Pipe) -> None:
    """A person who adds up what is on an invoice or a receipt gets what it says: it is read as it was drawn."""
    texts = {}
    for kind in ("invoice", "receipt"):
        request: Request = {"data": pages.drawn_page(list(pages.KINDS).index(kind)).content}
        pipe(request)
        texts[kind] = [line.text for line in request["result"]]
    amounts = {
        kind: [float(text) for text in lines if re.fullmatch(r"\d+\.\d\d", text)] for kind, lines in texts.items()
    }
    *prices, total, cash, change = amounts["receipt"]
    assert sum(prices) == pytest.approx(total)
    assert cash - total == pytest.approx(change)
    *rows, subtotal, tax, due = amounts["invoice"]
    assert sum(rows[1::2]) == pytest.approx(subtotal)  # in turns the price of one, and of all
    assert (tax, due) == (pytest.approx(subtotal / 5, abs=0.01), pytest.approx(subtotal + tax))


def test_a_transparent_page_lies_on_white(tmp_path: Path) -> None:
    """Black text on nothing would otherwise be black on black."""
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (page,) = pages.pages_of_files([tmp_path / "clear.png"])
    with Image.open(io.BytesIO(page.content)) as image:
        assert image.mode == "RGB"
        assert image.getpixel((5, 5)) == (255, 255, 255)


def test_files_of_one_name_get_different_pictures(tmp_path: Path) -> None:
    """Otherwise the second would overwrite the first."""
    paths = [tmp_path / folder / "scan.png" for folder in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir()
        Image.new("RGB", (20, 10)).save(path)
    assert [page.name for page in pages.pages_of_files(paths)] == ["scan", "scan-2", "scan-3"]


def test_a_picture_is_the_page_with_boxes(tmp_path: Path) -> None:
    """Small pages are enlarged; without lines it is the page alone."""
    page = _page_file("small", Image.new("RGB", (400, 200), "white"))
    line = steps.Line("text", 0.9, quad_at(100, 50, width=200, height=60))
    marked = cv2.imread(str(report.save_picture(page, [line], tmp_path / "new" / "folder")))
    plain = cv2.imread(str(report.save_picture(page, [], tmp_path)))
    assert marked.shape == plain.shape == (400, 800, 3)
    assert (plain == 255).all()
    assert tuple(marked[100, 400]) == report.BOX_COLOR
    assert (marked[300:] == 255).all()


# ---- the command -----------------------------------------------------------------------------------------------


def test_the_command_shows_text_pictures_and_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's own files are read, by the pipe and by the loop; there is no search in them."""
    file = tmp_path / "my page.png"
    file.write_bytes(askew().content)
    assert __main__.main([str(file), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "search" not in shown.out
    assert "All ways read the same 2 lines on 1 page." in shown.out
    # The first page, by which the models get warm, does not count.
    assert re.search(r"│ detect +│ +1 │", shown.out)
    for word in ("carelessly", "pages/s", "p50", "p99", "mean batch", "recognise", "plain loop", "fastpipe"):
        assert word in shown.out
    assert (tmp_path / "out" / "my page.boxes.png").is_file()
    assert shown.err == ""


def test_a_file_that_is_no_image_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is loaded for it."""
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("notes.txt", "nowhere.png"):
        assert __main__.main([str(tmp_path / name)]) == 1
        said = capsys.readouterr().err
        assert name in said
        assert said.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after a minute."""
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "blank.png").write_bytes(blank().content)
    monkeypatch.setattr(command, "_read", lambda *_: pytest.fail("pages were read"))
    assert __main__.main([str(tmp_path / "blank.png"), "--out", str(tmp_path / "taken")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "taken") in said
    assert said.count("\n") == 1


def test_missing_models_are_said_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install."""
    monkeypatch.setattr(models, "PACKAGE", "a_package_nobody_has")
    assert __main__.main([]) == 1
    said = capsys.readouterr().err
    assert "pip install --no-deps rapidocr-onnxruntime" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--serve", "scan.png"], "--serve takes no files"),
        (["--instances", "x"], "argument --instances: must be a whole number of at least 1, got 'x'"),
        (["--instances", "0"], "argument --instances: must be a whole number of at least 1, got '0'"),
    ],
)
def test_arguments_that_are_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before anything is loaded, with the status of a command that was wrong."""
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


def test_a_missing_library_is_said_in_one_line(tmp_path: Path) -> None:
    """With the extra that brings it."""
    script = "import sys; sys.modules['pyclipper'] = None; from ocr.__main__ import main; sys.exit(main([]))"
    environment = {**os.environ, "PYTHONPATH": str(DEMO.parent)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr == "ocr: the demo needs pyclipper: pip install 'fastpipe-engine[demo]'\n"


def test_ctrl_c_ends_the_demo_in_one_line(tmp_path: Path) -> None:
    """While pages are on their way: no traceback, no hanging thread, and the status of an interrupted program."""
    (tmp_path / "blank.png").write_bytes(blank().content)
    command_line = [sys.executable, str(DEMO), *["blank.png"] * 40]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "100"}  # progress is shown as on a terminal
    with subprocess.Popen(
        command_line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as demo:
        assert demo.stdout is not None
        shown = b""
        while b"1/40" not in shown:
            chunk = os.read(demo.stdout.fileno(), 65536)
            assert chunk, "the demo ended early"
            shown += chunk
        demo.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, said = demo.communicate(timeout=60)
    assert (demo.returncode, said) == (130, b"interrupted\n")
    assert time.monotonic() - start < 20  # some pages are being read, on whatever machine
