"""What is done in C for each image of a batch: JPEGs' headers, and the batches of nvJPEG and of what steps hand on."""

from __future__ import annotations

import ctypes
import itertools
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jpeg_header
import numpy as np
import pytest
import sanitize
from helpers import once

from fastpipe.kernels import _images, cuda


def segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2 if length is None else length & 0xFFFF) + data


def exif(order: str, entries: list[tuple[int, int, int, bytes]], directory: int = 8) -> bytes:
    """Return EXIF data with a directory of entries: tag, type, count, value."""
    written = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        written += struct.pack(f"{order}HHI", tag, kind, count) + value
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return b"Exif\0\0" + start + struct.pack(f"{order}I", directory) + bytes(max(0, directory - 8)) + written


def frame(marker: int = 0xC0, width: int = 40, height: int = 30, channels: int = 3, bits: int = 8) -> bytes:
    components = b"".join(bytes([number + 1, 0x11, 0]) for number in range(channels))
    return segment(marker, struct.pack(">BHHB", bits, height, width, channels) + components)


def scan(channels: int = 3) -> bytes:
    return segment(0xDA, bytes([channels]) + bytes(2 * channels + 3))


def jpeg(*parts: bytes, width: int = 40, height: int = 30) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + frame(width=width, height=height) + scan() + b"coded pixels\xff\xd9"


def whole_jpegs() -> dict[str, bytes]:
    """Return headers of every kind, which no decoder needs to take."""
    orientation = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
    made = {
        "plain": jpeg(),
        "JFIF": jpeg(segment(0xE0, b"JFIF\0" + bytes(9))),
        "Adobe, RGB": jpeg(segment(0xEE, b"Adobe" + bytes(7))),
        "Adobe, YCbCr": jpeg(segment(0xEE, b"Adobe" + bytes(6) + b"\1")),
        "Adobe, short": jpeg(segment(0xEE, b"Adobe")),
        "trailing bytes": jpeg() + bytes(300),
        "several scans": jpeg() + scan() * 3 + b"\xff\xd9",
        "passed over": jpeg(b"ab\xff\xff", segment(0xE2, b"text"), b"\xff\xd0", segment(0xFE, b"", 0)),
    }
    for order, kind in itertools.product("<>", range(14)):
        value = struct.pack(f"{order}HH", 5, 0) if kind != 6 else b"\5\0\0\0"
        if kind in (4, 9, 13):
            value = struct.pack(f"{order}I", 5)
        made[f"EXIF {order}{kind}"] = jpeg(segment(0xE1, exif(order, [(1, 2, 3, b"abcd"), (0x0112, kind, 1, value)])))
    for count in (0, 2, 3):
        made[f"EXIF, {count} numbers"] = jpeg(segment(0xE1, exif("<", [(0x0112, 3, count, b"\5\0\5\0")])))
    for name, data in {
        "far": exif("<", [orientation], directory=900),
        "first": exif("<", [orientation, (0x0112, 3, 1, b"\2\0\0\0")]),
        "nine": exif("<", [(0x0112, 3, 1, b"\x09\0\0\0")]),
        "empty": b"Exif\0\0",
    }.items():
        made[f"EXIF, {name}"] = jpeg(segment(0xE1, data), segment(0xE1, exif("<", [(0x0112, 3, 1, b"\3\0\0\0")])))
    for marker in range(0xC0, 0xD0):
        for channels, bits in ((1, 8), (3, 8), (3, 12), (4, 8)):
            parts = frame(marker, channels=channels, bits=bits) + scan(min(channels, 3))
            made[f"frame {marker:x}, {channels} of {bits}"] = b"\xff\xd8" + parts + b"\xff\xd9"
    rgb = segment(0xC0, struct.pack(">BHHB", 8, 3, 4, 3) + b"R\x11\0G\x11\0B\x11\0")
    made["called RGB"] = b"\xff\xd8" + rgb + scan() + b"\xff\xd9"
    made["two frames"] = b"\xff\xd8" + frame() + jpeg()[2:]
    return made


def damaged(wholes: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield files with bits flipped, bytes set to markers, and parts of one in another."""
    rng = random.Random(seed)
    for _ in range(count):
        content = bytearray(rng.choice(wholes))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(2, len(content))
            match rng.randrange(4):
                case 0:
                    content[at] ^= 1 << rng.randrange(8)
                case 1:
                    content[at : at + 2] = bytes([0xFF, rng.choice([0xC0, 0xC2, 0xD9, 0xDA, 0xE1, 0xEE, 0xFF, 0])])
                case 2:
                    other = rng.choice(wholes)
                    start = rng.randrange(len(other))
                    content[at:at] = other[start : start + rng.randrange(40)]
                case _:
                    del content[at : at + rng.randrange(1, 9)]
            if len(content) < 4:
                break
        yield bytes(content)


def read_by_both(content: bytes) -> Any:
    """Return what a header says, read in C out of memory that ends where the file does, and compare."""
    expected = jpeg_header.read_jpeg(content)
    found = _images.read_jpeg((ctypes.c_ubyte * len(content)).from_buffer_copy(content))
    assert found == expected, content[:4000].hex()
    return found


# ---- headers ---------------------------------------------------------------------------------------------------------


def test_headers_are_read_as_the_reader_in_python_reads_them() -> None:
    """Whole, every beginning, and behind a damage; most beginnings are none."""
    wholes = whole_jpegs()
    for content in wholes.values():
        for length in range(len(content) + 1):
            read_by_both(content[:length])
    kinds = {read_by_both(content) for content in damaged(list(wholes.values()), 5000, seed=1)}
    assert None in kinds
    assert {kind.orientation for kind in map(jpeg_header.read_jpeg, wholes.values()) if kind} >= {1, 5, 6}
    for column in range(2, 5):
        assert {kind[column] for kind in kinds if kind} == {False, True}


def test_headers_of_files_by_libraries_are_read_as_in_python() -> None:
    """Those of the corpus, cut and flipped."""
    for library in ("cv2", "PIL"):
        pytest.importorskip(library)
    import image_corpus

    images = [content for name, content in image_corpus.all_images().items() if name.startswith("jpeg")]
    assert len(images) > 20
    for content in images:
        for length in [*range(min(len(content), 700)), *range(700, len(content), 97), len(content)]:
            read_by_both(content[:length])
    for content in damaged(images, 2000, seed=2):
        read_by_both(content)


@once
def test_nothing_is_read_outside_of_a_file(tmp_path: Path, repository_root: Path) -> None:
    """By AddressSanitizer, which reports a planted mistake."""
    address = sanitize.SANITIZERS["address"]
    if shutil.which(sanitize.compiler()[0]) is None or not sanitize.library_path(address.libraries[0]):
        pytest.skip("needs g++ and AddressSanitizer")
    files = []
    for number, content in enumerate(whole_jpegs().values()):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(content)
    command = [*sanitize.compiler(), "-std=c++17", "-O1", "-g", f"-fsanitize={address.flags}"]
    command += ["-fno-sanitize-recover=all", "-I", str(repository_root / "kernels")]
    source = repository_root / "tests" / "support" / "jpeg_fuzzer.cpp"
    for planted in ([], ["-DPLANTED"]):
        program = tmp_path / "fuzzer"
        subprocess.run([*command, *planted, str(source), "-o", str(program)], check=True)
        ran = subprocess.run([program, "200000", "1", *files], capture_output=True, text=True, check=False)
        if planted:
            assert "heap-buffer-overflow" in ran.stderr
        else:
            assert (ran.returncode, ran.stderr) == (0, "")
            assert int(ran.stdout.split()[0]) > 50_000


def test_a_search_goes_over_all_of_a_file() -> None:
    """Ends and scans at every place around the steps in which it is done."""
    start = jpeg()[:-2]
    progressive = b"\xff\xd8" + frame(0xC2) + scan(1)
    for length in (0, 1, (1 << 16) - 1, 1 << 16, (1 << 20) + 5):
        for shift in range(-40, 3):
            filler = bytes(max(0, length + shift - len(start)))
            assert read_by_both(start + filler + b"\xff\xd9" + bytes(9))[2]
        assert read_by_both(start + filler)[2] is False
        found = read_by_both(progressive + scan(1) + filler + scan(1) + b"\xff\xd9")
        assert found[-1] == 3


def test_a_long_search_lets_others_run() -> None:
    """The thread that waits for the GIL gets it, though it would never ask for it."""
    content = jpeg()[:-2] + bytes(1 << 26)
    begin, ran = threading.Event(), threading.Event()

    def other() -> None:
        begin.wait()
        ran.set()

    usual_s = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        begin.set()
        for _ in range(50):
            assert _images.read_jpeg(content) is not None
            if ran.is_set():
                break
    finally:
        sys.setswitchinterval(usual_s)
    assert ran.is_set()
    thread.join()


@pytest.mark.parametrize("data", [b"", b"II*\0", exif(">", [(0x0112, 3, 1, b"\0\7\0\0")]), b"MM\0*\xff\xff\xff\xff"])
def test_an_orientation_is_read_with_and_without_its_prefix(data: bytes) -> None:
    """As in Python, and from no more than 64 KiB."""
    for content in (data, data[6:], data + bytes(70_000), data[:-3]):
        exact = (ctypes.c_ubyte * len(content)).from_buffer_copy(content)
        assert _images.read_orientation(exact) == jpeg_header.read_orientation(content)
    far = b"II*\0" + struct.pack("<I", 65_530) + bytes(65_522) + struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0)
    assert _images.read_orientation(far) == jpeg_header.read_orientation(far) == 1


@pytest.mark.parametrize("data", ["text", 5, None, np.zeros((4, 4), np.uint8)[:, ::2]], ids=["text", "5", "-", "apart"])
def test_what_is_no_buffer_in_one_piece_is_an_error(data: Any) -> None:
    """Of Python's own kinds."""
    for read in (_images.read_jpeg, _images.read_orientation):
        with pytest.raises((TypeError, BufferError, ValueError)):
            read(data)


# ---- what steps hand on ----------------------------------------------------------------------------------------------

ROW = (2**63 + 5, -600, 7, 200, 3, 1, 0, 0, 0, 0)


def test_the_rows_of_pixels_become_a_table() -> None:
    """If they are all of one color, and nothing else is among them."""
    memory = object()
    pixels = [_images.Pixels((ROW[0] + number, *ROW[1:]), "rgb", memory) for number in range(3)]
    assert (pixels[1].row, pixels[1].color, pixels[1].memory) == ((ROW[0] + 1, *ROW[1:]), "rgb", memory)
    found = _images.rows_of_pixels([{"data": each} for each in pixels])
    assert found is not None
    rows, color = found
    assert color == "rgb"
    assert np.frombuffer(rows, cuda.IMAGE).tolist() == [(ROW[0] + number, *ROW[1:]) for number in range(3)]
    for other in ({"data": _images.Pixels(ROW, "bgr", None)}, {"data": b"bytes"}, {}):
        assert _images.rows_of_pixels([{"data": pixels[0]}, other]) is None
    assert _images.rows_of_pixels([]) is None
    for row in (ROW[:9], (*ROW, 0), (-1, *ROW[1:]), (*ROW[:2], 2**31, *ROW[3:])):
        with pytest.raises((ValueError, OverflowError)):
            _images.Pixels(row, "rgb", None)


def test_the_rows_of_a_tensor_are_handed_to_requests_and_found_again() -> None:
    """All of them, in order; anything else is no whole."""
    whole = np.arange(12.0).reshape(3, 4)
    whole_with_device: Any = type("Tensor", (np.ndarray,), {"device": "cuda:0"})
    tensor = whole.view(whole_with_device)
    requests: list[dict[str, Any]] = [{"data": number} for number in range(3)]
    _images.hand_rows(requests, tensor, "bgr")
    rows = [request["result"] for request in requests]
    assert [row.number for row in rows] == [0, 1, 2]
    assert {request["color"] for request in requests} == {"bgr"}
    assert all(row.whole is tensor and row.kind == ((4,), whole.dtype, "cuda:0") for row in rows)
    assert rows[0].kind is rows[2].kind
    np.testing.assert_array_equal(rows[1].tensor, whole[1:2])
    as_data = [{"data": row} for row in rows]
    assert _images.whole_of(as_data) is tensor
    for others in (as_data[:2], as_data[::-1], [*as_data[:2], {"data": 5}], [*as_data[:2], {}], []):
        assert _images.whole_of(others) is None
    assert _images.Row(tensor, 2).kind == rows[0].kind
    foreign = _images.Row(tensor.copy(), 2)
    assert _images.whole_of([*as_data[:2], {"data": foreign}]) is None


# ---- a batch of JPEGs ------------------------------------------------------------------------------------------------


def sorted_by(
    images: _images.Jpegs, contents: list[Any], max_pixels: int = 1 << 30
) -> tuple[list[int], dict[int, Any]]:
    errors: dict[int, BaseException] = {}
    requests = [{"data": content} for content in contents]
    return images.sort(requests, max_pixels, lambda data: bytes(data) if data is not None else None, errors), errors


def test_what_a_gpu_takes_is_sorted_from_the_rest() -> None:
    """By the header alone; what has no bytes is left, and what cannot be had is an error of its own."""
    wholes = whole_jpegs()
    images = _images.Jpegs(8)
    contents = [wholes["plain"], b"", wholes["frame c2, 3 of 8"], bytearray(wholes["EXIF <3"]), wholes["plain"][:-2]]
    contents += [None, wholes["called RGB"], jpeg(width=0), jpeg(width=41), jpeg() + bytes(9), 5.5]
    left, errors = sorted_by(images, contents, max_pixels=40 * 30)
    assert left == [1, 2, 4, 5, 6, 7, 8]
    assert [(number, type(error)) for number, error in errors.items()] == [(10, TypeError)]
    assert images.count == 3
    assert [target[0] for target in images.targets()] == [0, 3, 9]
    assert [target[5] for target in images.targets()] == [1, 5, 1]
    with_error: dict[int, BaseException] = {}
    assert images.sort([{}, {"data": jpeg()}], 1 << 30, bytes, with_error) == []
    assert isinstance(with_error[0], KeyError)
    assert images.count == 1


def test_no_more_are_taken_than_there_is_room_for() -> None:
    """The others are left."""
    images = _images.Jpegs(2)
    assert sorted_by(images, [jpeg()] * 5) == ([2, 3, 4], {})
    assert images.count == 2
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        _images.Jpegs(0)


def blocks_in_words(widths: list[int], heights: list[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return what ``blocks`` is to say, and each image's block and first row."""
    blocks: list[list[int]] = []
    for number in sorted(range(len(widths)), key=lambda number: -widths[number]):
        if not blocks or widths[number] * 2 < widths[blocks[-1][0]]:
            blocks.append([])
        blocks[-1].append(number)
    places = {}
    for block, numbers in enumerate(blocks):
        top = 0
        for number in numbers:
            places[number] = (block, top)
            top += heights[number]
    sizes = [(sum(heights[each] for each in numbers), -(-widths[numbers[0]] // 16) * 16) for numbers in blocks]
    return sizes, [places[number] for number in range(len(widths))]


def test_images_of_about_one_width_share_a_block_of_memory() -> None:
    """One below the other, the widest first; no two overlap, and a block is as wide as its first."""
    rng = random.Random(3)
    for count in [1, 2, 7, 64] * 10:
        widths = [rng.choice([rng.randrange(1, 60), rng.randrange(1, 4000)]) for _ in range(count)]
        heights = [rng.randrange(1, 3000) for _ in range(count)]
        images = _images.Jpegs(64)
        contents = [jpeg(width=width, height=height) for width, height in zip(widths, heights, strict=True)]
        assert sorted_by(images, contents) == ([], {})
        sizes, places = blocks_in_words(widths, heights)
        assert images.blocks() == sizes
        expected = [(number, *places[number], heights[number], widths[number], 1) for number in range(count)]
        assert images.targets() == expected


def test_pixels_say_where_an_image_was_placed() -> None:
    """And keep its block."""
    images = _images.Jpegs(4)
    contents = [jpeg(width=10, height=5), jpeg(width=90, height=2), jpeg(width=80, height=3)]
    requests: list[dict[str, Any]] = [{"data": b"no"}, *({"data": content} for content in contents)]
    assert images.sort(requests, 1 << 30, bytes, {}) == [0]
    assert images.blocks() == [(5, 96), (5, 16)]
    images.place([1000, 2**40])
    images.hand_on(requests, ["first", "second"], "bgr")
    assert "result" not in requests[0]
    found = [(request["result"].row[:6], request["result"].memory, request["color"]) for request in requests[1:]]
    assert found == [
        ((2**40, 48, 5, 10, 3, 1), "second", "bgr"),
        ((1000, 288, 2, 90, 3, 1), "first", "bgr"),
        ((1000 + 2 * 288, 288, 3, 80, 3, 1), "first", "bgr"),
    ]
    with pytest.raises(ValueError, match="expected 2 blocks of memory, as blocks\\(\\) says, got 0"):
        images.hand_on(requests, [], "bgr")
    with pytest.raises(ValueError, match="expected the requests of sort\\(\\), got 3"):
        images.hand_on(requests[:3], ["first", "second"], "bgr")
    for addresses in ([1000], [1000, 2, 3]):
        with pytest.raises(ValueError, match="expected 2 blocks"):
            images.place(addresses)
    with pytest.raises(ValueError, match="the images have not been placed"):
        images.hand_on(requests, ["first", "second"], "bgr")


def test_what_has_changed_has_to_be_placed_anew() -> None:
    """Nothing is written to where others were."""
    images = _images.Jpegs(2)
    functions = [0] * len(_images.Decoder.NAMES)
    decoder = _images.Decoder(functions, [(1, 1)], 1, 1, 1)
    changes: list[Any] = [
        lambda: images.sort([{"data": jpeg()}], 1 << 30, bytes, {}),
        images.blocks,
        images.drop_refused,
        lambda: images.alone(0),
    ]
    for change in changes:
        sorted_by(images, [jpeg()])
        images.blocks()
        images.place([1000])
        changed = change()
        batch = changed if isinstance(changed, _images.Jpegs) else images
        with pytest.raises(ValueError, match="the images have not been placed"):
            decoder.decode(batch, 5, 1, True)
    for ways in ([], [(1, 1)] * 3):
        with pytest.raises(ValueError, match="ways: expected one or two"):
            _images.Decoder(functions, ways, 1, 1, 1)
    sorted_by(images, [])
    assert images.blocks() == []
    with pytest.raises(ValueError, match="expected 0 blocks"):
        images.place([])


def test_one_of_a_batch_alone_is_a_batch() -> None:
    """Of that one; the batch stays what it is."""
    images = _images.Jpegs(3)
    sorted_by(images, [b"no", jpeg(width=8, height=6), jpeg(width=9, height=7)])
    alone = images.alone(1)
    assert alone.blocks() == [(7, 16)]
    assert alone.targets() == [(2, 0, 0, 7, 9, 1)]
    assert (images.count, alone.count) == (2, 1)
    for number in (-1, 2):
        with pytest.raises(IndexError, match=f"there are 2 images, and no {number}"):
            images.alone(number)
