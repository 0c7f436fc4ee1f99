"""Malformed images: an image, no result, or DecodeError, for that request alone; never a crash, a hang, or much memory.

What may crash runs in a process of its own (image_fuzzer.py): if that dies, the test fails and names the file with what
was being decoded. Two variables in the environment make more of it:

- ``FASTPIPE_BIT_FLIPS=1000000``: so many images with flipped bits; by default a share that takes seconds.
- ``FASTPIPE_PILLOW_SOURCE=FILE``: Pillow's source distribution (or a folder with it unpacked), whose broken files are
  then decoded; ``pip download --no-binary :all: --no-deps pillow`` gets it.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the image backends need OpenCV")
Image = pytest.importorskip("PIL.Image", reason="the tests of images need Pillow")

import image_corpus as corpus  # noqa: E402
import image_fuzzer as fuzzer  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.image.codec import DecodeMat  # noqa: E402
from fastpipe.backends.image.header import read_header  # noqa: E402
from fastpipe.errors import DecodeError  # noqa: E402

BIT_FLIPS = int(os.environ.get("FASTPIPE_BIT_FLIPS", "5000"))
PILLOW_SOURCE = os.environ.get("FASTPIPE_PILLOW_SOURCE", "")

MAX_PIXELS = 16_000_000  # image_fuzzer.py's
BYTES_PER_PIXEL = 16  # what docs/backends.md promises, the result included
BESIDES_MB = 64


IMAGES: dict[str, bytes] = corpus.decoded_images()
BOMBS: dict[str, tuple[bytes, str]] = {name: (content, outcome) for name, content, outcome in corpus.bombs()}

simplejpeg_or_opencv = pytest.mark.parametrize("has_simplejpeg", [True, False], ids=["simplejpeg", "OpenCV alone"])


def decoded(content: bytes, *, has_simplejpeg: bool = True, **parameters: Any) -> Any:
    """Return DecodeMat's pixels, or None where it gives no result."""
    backend = DecodeMat(**parameters)
    if not has_simplejpeg:
        backend._decode_jpeg = None
    request: dict[str, Any] = {"data": content}
    backend.forward([request])
    return request.get("result")


def in_a_process(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run image_fuzzer.py and return its report; fail with the input saved, if it dies or finds something."""
    current, stderr_path = folder / "current", folder / "stderr.txt"
    with open(stderr_path, "w") as stderr:
        ran = subprocess.run(
            [sys.executable, str(fuzzer.__file__), current, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
            env={**os.environ, **environment},
        )
    if ran.returncode:
        with open(current, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            saved = folder / "input.bin"
            saved.write_bytes(file.read(length))
        how = f"signal {-ran.returncode}" if ran.returncode < 0 else f"status {ran.returncode}"
        pytest.fail(f"the decoder ended with {how} at {saved}: {stderr_path.read_text()[-2000:]}")
    current.unlink()
    report: dict[str, Any] = json.loads(ran.stdout)
    assert not report["problems"]
    assert report["slowest_s"] < 10
    if not report["rows"]:  # else each has its own peak
        assert report["grown_mb"] < BYTES_PER_PIXEL * MAX_PIXELS / 1e6 + BESIDES_MB
    return report


def kinds_of(report: dict[str, Any], what: str) -> set[str]:
    """Return the second halves of the keys of a counter: outcomes, or how comparisons ended."""
    return {key.split(": ", 1)[1] for key in report[what]}


# ---- whole images ----------------------------------------------------------------------------------------------------


def test_the_corpus_has_fifty_images() -> None:
    assert len(IMAGES) >= 50
    assert {name.split()[0] for name in IMAGES} == {"jpeg", "png", "webp", "bmp"}


# CMYK is rounded otherwise; five bits are made eight by Pillow, which stretches them, otherwise than by OpenCV.
NEARLY = {"jpeg cmyk": 1, "jpeg progressive cmyk": 1, "bmp 16": 7, "bmp 16 masks": 7}


@simplejpeg_or_opencv
@pytest.mark.parametrize("name", IMAGES)
def test_a_whole_image_is_what_pillow_makes_of_it(name: str, has_simplejpeg: bool) -> None:
    """Bit for bit, but where the two disagree about how a number of fewer bits becomes one of eight."""
    pixels = decoded(IMAGES[name], has_simplejpeg=has_simplejpeg)
    expected = fuzzer.by_pillow(IMAGES[name])
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= NEARLY.get(name, 0)


@pytest.mark.parametrize("name", dict(corpus.other_images()))
def test_other_formats_give_no_result(name: str) -> None:
    """Also those that OpenCV would read: its decoders for them are not open to whoever sends a request."""
    assert decoded(dict(corpus.other_images())[name]) is None


def exif_in(kind: str, exif: bytes) -> bytes:
    """Return an image of 26 x 19 with this EXIF data, whatever Pillow thinks of it."""
    image = Image.fromarray(corpus.picture())
    if kind == "jpeg":
        content = corpus.by_pillow(image, "jpeg")
        return content[:2] + corpus.segment(0xE1, b"Exif\0\0" + exif) + content[2:]
    if kind == "png":
        return corpus.png(corpus.picture(), 8, corpus.RGB, before=corpus.chunk(b"eXIf", exif))
    content = corpus.by_pillow(image, "webp", lossless=True, exif=corpus.exif_of(1))
    data = (
        content[12 : content.rindex(b"EXIF")] + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    )
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


def tiff(order: str, *entries: tuple[int, int, int, int], letter: str = "H") -> bytes:
    """Return EXIF data with these entries: tag, type, count, value; ``letter`` is struct's for the value."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    packed = b"".join(
        struct.pack(f"{order}HHI", *entry) + struct.pack(f"{order}{letter}", value).ljust(4, b"\0")
        for *entry, value in entries
    )
    return start + struct.pack(f"{order}IH", 8, len(entries)) + packed + bytes(4)


@simplejpeg_or_opencv
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_obeyed(orientation: int, order: str, kind: str, has_simplejpeg: bool) -> None:
    """As the EXIF specification says where row 0 and column 0 of the file are seen; in all three formats."""
    entries = [(0x010E, 3, 1, 7), (corpus.ORIENTATION_TAG, 3, 1, orientation)]
    content = exif_in(kind, tiff(order, *entries))
    stored = decoded(exif_in(kind, tiff(order)))
    # Where the stored row 0 and column 0 are seen: 1 top left, 2 top right, 3 bottom right, 4 bottom left, and 5 left
    # top, 6 right top, 7 right bottom, 8 left bottom, where rows have become columns.
    seen = stored if orientation < 5 else stored.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        seen = seen[:, ::-1]
    if orientation in (3, 4, 7, 8):
        seen = seen[::-1]
    result = decoded(content, has_simplejpeg=has_simplejpeg)
    np.testing.assert_array_equal(result, seen)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    np.testing.assert_array_equal(result, fuzzer.by_pillow(content))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(
    ("stored_as", "letter", "count"),
    [(4, "I", 1), (6, "b", 1), (8, "h", 1), (9, "i", 1), (13, "I", 1), (3, "H", 2), (8, "h", 2)],
    ids=["LONG", "SBYTE", "SSHORT", "SLONG", "IFD", "two SHORT", "two SSHORT"],
)
def test_an_orientation_is_obeyed_however_the_number_is_stored(
    stored_as: int, letter: str, count: int, order: str, kind: str
) -> None:
    """As Pillow does, and OpenCV wherever the number lies in the two bytes that it looks at."""
    content = exif_in(kind, tiff(order, (corpus.ORIENTATION_TAG, stored_as, count, 6), letter=letter))
    result = decoded(content)
    np.testing.assert_array_equal(result, fuzzer.by_pillow(content))
    upright = decoded(exif_in(kind, tiff(order)))
    np.testing.assert_array_equal(result, upright.transpose(1, 0, 2)[:, ::-1])
    obeys_webp = int(cv2.__version__.split(".")[0]) >= 5  # those before turn no WebP
    if (order == "<" or letter in "Hh") and (obeys_webp or kind != "webp"):
        by_opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(result, by_opencv)


DAMAGED_EXIF = {
    "empty": b"",
    "no order": b"XX*\0" + tiff("<", (corpus.ORIENTATION_TAG, 3, 1, 6))[4:],
    "0": tiff("<", (corpus.ORIENTATION_TAG, 3, 1, 0)),
    "9": tiff("<", (corpus.ORIENTATION_TAG, 3, 1, 9)),
    "text": tiff("<", (corpus.ORIENTATION_TAG, 2, 1, 6)),
    "three of them": tiff("<", (corpus.ORIENTATION_TAG, 3, 3, 6)),
    "two wide ones": tiff("<", (corpus.ORIENTATION_TAG, 4, 2, 6)),
    "none of them": tiff("<", (corpus.ORIENTATION_TAG, 4, 0, 6)),
    "bytes": tiff("<", (corpus.ORIENTATION_TAG, 1, 1, 6)),
    "a negative number": tiff("<", (corpus.ORIENTATION_TAG, 9, 1, -6), letter="i"),
    "a large number": tiff("<", (corpus.ORIENTATION_TAG, 4, 1, 0x10006), letter="I"),
    "cut in the entry": tiff("<", (corpus.ORIENTATION_TAG, 3, 1, 6))[:16],
    "directory outside": b"II*\0\xff\xff\xff\xff" + tiff("<", (corpus.ORIENTATION_TAG, 3, 1, 6))[8:],
    "65535 entries": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 1000),
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("name", DAMAGED_EXIF)
def test_damaged_exif_leaves_the_image_upright(name: str, kind: str) -> None:
    """An image is not lost over what is said about it."""
    np.testing.assert_array_equal(decoded(exif_in(kind, DAMAGED_EXIF[name])), decoded(exif_in(kind, tiff("<"))))


# ---- damaged images --------------------------------------------------------------------------------------------------


def test_no_truncation_of_any_image_is_a_crash_or_half_an_image(tmp_path: Path) -> None:
    """Every beginning of every image gives no result; or, of a BMP whose runs have ended already, all of it."""
    report = in_a_process(tmp_path, "truncations")
    assert report["inputs"] == sum(map(len, corpus.all_images().values()))
    with_result = {key for key in report["outcomes"] if not key.endswith("no result")}
    assert with_result <= {"bmp: image"}
    assert report["outcomes"].get("bmp: image", 0) < 20
    assert set(report["noisy"]) <= {"bmp"}
    assert kinds_of(report, "compared") <= {"OpenCV equal", "Pillow equal"}


def test_flipped_bits_are_never_a_crash(tmp_path: Path) -> None:
    """One of three outcomes; what OpenCV makes of it; and nothing that lay in memory before shows in the pixels."""
    reports = [in_a_process(tmp_path, "flips", str(BIT_FLIPS), "0", MALLOC_PERTURB_=fill) for fill in ("1", "85")]
    for report in reports:
        assert report["inputs"] == BIT_FLIPS
        assert kinds_of(report, "outcomes") <= {"image", "no result", "DecodeError"}
        assert report["compared"]["jpeg: OpenCV equal"] > BIT_FLIPS / 200
        # A damaged EXIF block is read by us or not at all, and a BMP has none.
        assert {key for key in report["compared"] if key.startswith("bmp: OpenCV")} == {"bmp: OpenCV equal"}
        assert "jpeg: OpenCV refuses" not in report["compared"]
    assert reports[0]["checksum"] == reports[1]["checksum"]


def test_a_crash_would_be_seen_and_its_input_saved(tmp_path: Path) -> None:
    """A negative control: the process that decodes ends with SIGABRT."""
    with pytest.raises(pytest.fail.Exception, match=r"the decoder ended with signal 6 at .*input\.bin"):
        in_a_process(tmp_path, "abort")
    assert (tmp_path / "input.bin").read_bytes() == next(iter(IMAGES.values()))


def pillow_files(folder: Path) -> Path:
    """Return a folder with the images of Pillow's own tests."""
    source = Path(PILLOW_SOURCE)
    if source.is_dir():
        return next(path for path in (source / "Tests" / "images", source) if path.is_dir())
    target = folder / "images"
    target.mkdir()
    with tarfile.open(source) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and parts[1:3] == ("Tests", "images") and len(parts) == 4:
                content = archive.extractfile(member)
                assert content is not None
                (target / parts[3]).write_bytes(content.read())
    return target


@pytest.mark.skipif(not PILLOW_SOURCE, reason="FASTPIPE_PILLOW_SOURCE names no source distribution of Pillow")
def test_pillows_own_broken_files_are_never_a_crash(tmp_path: Path) -> None:
    """Nor any of the others it is tested with; those that both read look the same."""
    report = in_a_process(tmp_path, "files", str(pillow_files(tmp_path)))
    assert report["inputs"] > 500
    assert kinds_of(report, "outcomes") <= {"image", "no result", "DecodeError"}
    agreeing = [row["name"] for row in report["rows"] if row.get("pillow") in ("equal", "nearly equal")]
    differing = [row["name"] for row in report["rows"] if row.get("pillow") in ("differs", "has another size")]
    assert len(agreeing) > 10 * len(differing)
    assert not [row["name"] for row in report["rows"] if row["peak_mb"] > BYTES_PER_PIXEL * 16 + BESIDES_MB]


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_no_small_file_takes_long_or_much(tmp_path: Path) -> None:
    """Texts, profiles, EXIF and pixels that inflate, scans without end, wrong sizes: each in a second, in 16 bytes per
    pixel of at most 16 million, and with the outcome that is written beside it.
    """
    report = in_a_process(tmp_path, "bombs")
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == set(BOMBS)
    expected = {name: rows[name]["outcome"] if outcome == "any" else outcome for name, (_, outcome) in BOMBS.items()}
    assert {name: row["outcome"] for name, row in rows.items()} == expected
    assert not {name: row["seconds"] for name, row in rows.items() if row["seconds"] > 2}
    for name, row in rows.items():
        height, width = row.get("shape", (0, 0, 3))[:2]
        assert row["peak_mb"] < BYTES_PER_PIXEL * height * width / 1e6 + BESIDES_MB, name


def test_the_bombs_are_small() -> None:
    """Their largest is one that has to be: a million chunks."""
    assert max(len(content) for content, _ in BOMBS.values()) < 20_000_000


def test_no_format_takes_more_memory_per_pixel_than_documented(tmp_path: Path) -> None:
    """The result, its turned copy, and all that a decoder keeps besides: coefficients, interlaced rows, alpha."""
    report = in_a_process(tmp_path, "large")
    assert {row["outcome"] for row in report["rows"]} == {"image"}
    for row in report["rows"]:
        height, width = row["shape"][:2]
        assert row["peak_mb"] < BYTES_PER_PIXEL * height * width / 1e6 + 8, row["name"]


def test_a_jpeg_may_have_a_hundred_scans() -> None:
    """And not one more: each goes over all pixels, however few bytes it has."""
    extra = 100 - corpus.by_pillow(Image.new("L", (64, 64), 77), "jpeg", progressive=True).count(b"\xff\xda")
    assert decoded(corpus.progressive_bomb(64, extra)).shape == (64, 64, 3)
    with pytest.raises(DecodeError, match="the JPEG has 101 scans, more than 100"):
        decoded(corpus.progressive_bomb(64, extra + 1))


@pytest.mark.parametrize("where", ["IHDR", "PLTE", "IDAT", "IEND"])
def test_a_png_with_a_wrong_checksum_gives_no_result(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In a part that makes its pixels; and libpng is not asked, which would complain on stderr."""
    content = bytearray(IMAGES["png palette 8"])
    content[content.index(where.encode()) - 1 + (8 if where != "IEND" else 5)] ^= 0x10
    assert decoded(bytes(content)) is None
    assert capfd.readouterr().err == ""


def test_damage_outside_of_the_pixels_of_a_png_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    """Texts, profiles and the like are not looked at."""
    junk = b"".join(corpus.chunk(kind, b"\xff junk") for kind in (b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"gAMA", b"eXIf"))
    pixels = corpus.picture()
    content = corpus.png(pixels, 8, corpus.RGB, before=junk, after=junk)[:-12] + b"\0\0\0\0tEXtabcd"  # a wrong checksum
    content += corpus.chunk(b"IEND") + b"appendix"
    np.testing.assert_array_equal(decoded(content), pixels[..., ::-1])
    assert capfd.readouterr().err == ""


def png_of(*chunks: bytes) -> bytes:
    return corpus.PNG_START + b"".join(chunks)


def test_a_png_out_of_order_gives_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    """Parts twice, too early, too late, apart or unknown: libpng is not asked."""
    header = corpus.png_header(2, 1, 8, corpus.PALETTE)[8:]
    palette, end = corpus.chunk(b"PLTE", bytes(6)), corpus.chunk(b"IEND")
    pixels, text = corpus.chunk(b"IDAT", zlib.compress(b"\0\0\1")), corpus.chunk(b"tEXt", b"a\0b")
    assert decoded(png_of(header, palette, pixels, end)).shape == (1, 2, 3)
    for chunks in [
        (header, pixels, end),
        (header, palette, palette, pixels, end),
        (header, header, palette, pixels, end),
        (header, palette, end),
        (header, palette, pixels, text, pixels, end),
        (header, palette, pixels, palette, end),
        (header, palette, corpus.chunk(b"CgBI"), pixels, end),
        (header, corpus.chunk(b"PLTE", bytes(7)), pixels, end),
        (header, palette, pixels, pixels * 100, end),
    ]:
        assert decoded(png_of(*chunks)) is None
    for bits, color, *methods in [(16, 3, 0, 0, 0), (3, 0, 0, 0, 0), (8, 1, 0, 0, 0), (8, 2, 1, 0, 0), (8, 2, 0, 0, 2)]:
        wrong = corpus.chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, color, *methods))
        assert decoded(png_of(wrong, palette, pixels, end)) is None
    assert capfd.readouterr().err == ""


def test_the_first_frame_of_an_animated_webp_is_the_result() -> None:
    """Whatever comes behind it; one that does not fill the picture gives no result."""
    first, second = Image.fromarray(corpus.picture()), Image.fromarray(corpus.picture(seed=1))
    content = corpus.by_pillow(first, "webp", lossless=True, save_all=True, append_images=[second])
    np.testing.assert_array_equal(decoded(content), corpus.picture()[..., ::-1])
    frame = content.index(b"ANMF") + 8
    assert decoded(content[:frame] + b"\x01" + content[frame + 1 :]) is None


def test_the_decoder_is_handed_the_still_image_of_an_animated_png_alone() -> None:
    """No chunk of the animation reaches it, whatever is in there."""
    content = IMAGES["png animated"]
    assert all(kind in content for kind in (b"acTL", b"fcTL", b"fdAT"))
    header = read_header(memoryview(content))
    assert header is not None
    assert header.pieces is not None
    handed_on = b"".join(header.pieces)
    assert b"IDAT" in handed_on
    assert not any(kind in handed_on for kind in (b"acTL", b"fcTL", b"fdAT"))


# ---- through a pipe --------------------------------------------------------------------------------------------------


def test_one_bad_image_in_a_batch_fails_alone() -> None:
    """Of eight that are decoded together, one fails, one has no result, and six are images."""
    good = IMAGES["jpeg 420"]
    contents = [good] * 8
    contents[2], contents[5] = BOMBS["jpeg scans"][0], good[:-20]
    sizes: list[int] = []
    is_held, go_on = threading.Event(), threading.Event()

    class HeldUp(DecodeMat):
        """Decodes its first batch only when it is told to; until then, the others collect."""

        def forward(self, batch: list[dict[str, Any]]) -> None:
            sizes.append(len(batch))
            if len(sizes) == 1:
                is_held.set()
                go_on.wait(20)
            super().forward(batch)

    with fastpipe.Pipe(backend=HeldUp, max=8, without_result="end") as pipe:
        first = pipe.submit({"data": good})
        assert is_held.wait(20)
        futures = [pipe.submit({"data": content}) for content in contents]
        go_on.set()
        expected = decoded(good)
        np.testing.assert_array_equal(first.result(20)["result"], expected)
        errors = [future.exception(20) for future in futures]
        assert sizes == [1, 8]
        assert [index for index, error in enumerate(errors) if error is not None] == [2]
        assert isinstance(errors[2], DecodeError)
        assert "result" not in futures[5].result()
        for index in (0, 1, 3, 4, 6, 7):
            np.testing.assert_array_equal(futures[index].result()["result"], expected)


def test_p14_a_pipe_outlives_every_kind_of_malformed_image() -> None:
    """From eight threads at once, in batches: each gets what it would get alone, and the next request works."""
    contents = {name: content for name, (content, _) in BOMBS.items() if len(content) < 1_000_000}
    contents |= {f"{name}, cut": content[:-9] for name, content in IMAGES.items()}

    def outcome_of(call: Any, content: bytes) -> str:
        request: dict[str, Any] = {"data": content}
        try:
            call(request)
        except Exception as error:
            return type(error).__name__
        return "image" if "result" in request else "no result"

    alone = DecodeMat(max_pixels=MAX_PIXELS)
    expected = {name: outcome_of(lambda request: alone.forward([request]), data) for name, data in contents.items()}
    different: list[str] = []
    with fastpipe.Pipe(backend="DecodeMat", max_pixels=MAX_PIXELS, max=8, instance_num=2, without_result="end") as pipe:

        def work(number: int) -> None:
            for name in list(contents)[number % 8 :: 4]:
                if outcome_of(pipe, contents[name]) != expected[name]:
                    different.append(name)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcome_of(pipe, IMAGES["png rgb 8"]) == "image"
    assert not different


def test_an_image_without_memory_for_it_is_a_memory_error() -> None:
    """Of the pixels, or of what the decoder keeps besides; not an image that cannot be decoded."""
    script = """
import io, resource, sys
import numpy as np
from PIL import Image
from fastpipe.backends.image.codec import DecodeMat

buffer = io.BytesIO()
Image.new("RGB", (3000, 3000)).save(buffer, sys.argv[1], progressive=True, subsampling=0)
backend = DecodeMat()
backend.forward([{"data": buffer.getvalue()}])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 10_000_000, -1))
try:
    backend.forward([{"data": buffer.getvalue()}])
except MemoryError:
    sys.exit(7)
"""
    for kind in ("jpeg", "png", "bmp"):
        ran = subprocess.run([sys.executable, "-P", "-c", script, kind], capture_output=True, check=False)
        assert ran.returncode == 7
