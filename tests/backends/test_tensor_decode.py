"""DecodeTensor and the layer to nvJPEG: against a strict fake of its C interface, and the library where it is."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import WAIT_S, calls_of

import fastpipe
from fastpipe.backends.gpu.handed_on import Pixels
from fastpipe.backends.tensor import nvjpeg
from fastpipe.backends.tensor.nvjpeg import SUCCESS, BatchDecoder, Library
from fastpipe.errors import ConfigError, DecodeError, ItemErrors, MissingExtra
from fastpipe.kernels._images import Chooser

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def jpeg(width: int, height: int, *words: bytes, channels: int = 3, orientation: int = 1) -> bytes:
    """Return what has the frame of a JPEG, complete as far as its header goes; no decoder but the fake takes it."""
    exif = b""
    if orientation != 1:
        entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
        tiff = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 2) + tiff
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 8 + 3 * channels, 8, height, width, channels)
    frame += b"".join(bytes([number, 0x11, 0]) for number in range(1, channels + 1))
    scan = b"\xff\xda" + struct.pack(">HB", 6 + 2 * channels, channels) + bytes(2 * channels + 3)
    return b"\xff\xd8" + exif + frame + scan + b"pixels " + b" ".join(words) + b"\xff\xd9"


def pixels_of(encoded: bytes, width: int, height: int, color: str = "rgb") -> Any:
    """Return what the fake makes of it."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    order = channels if color == "rgb" else 2 - channels
    return (sum(encoded) + columns + 5 * rows + 60 * order).astype(np.uint8)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake, as a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("nvidia") / "libnvjpeg.so.13"
    command = [compiler, "-shared", "-fPIC", "-O1", str(SUPPORT / "fake_nvjpeg.c"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Fake:
    """The fake's own numbers."""

    USUAL: ClassVar = {
        **dict.fromkeys(("no_engines", "refuse", "break", "made", "batches", "largest", "with_gil", "without_gil"), 0),
        **dict.fromkeys(("most_inside", "synchronized", "priority", "lingers", "holds", "pipelined_ms"), 0),
        "flags": -1,
    }

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"fake_{name}").value

    def set(self, **values: int) -> None:
        for name, value in values.items():
            ctypes.c_int.in_dll(self.library, f"fake_{name}").value = value

    @property
    def streams(self) -> tuple[int | None, int | None]:
        """The caller's streams before and behind the batch."""
        names = ("fake_waited", "fake_waits")
        before, behind = (ctypes.c_void_p.in_dll(self.library, name).value for name in names)
        return before, behind

    def load(self) -> Library:
        return Library(self.path, self.path)


@pytest.fixture
def fake(compiled: Path) -> Iterator[Fake]:
    made = Fake(compiled)
    made.set(**made.USUAL)
    yield made
    made.set(**made.USUAL)
    assert made.live == 0, "a handle was not given back"


STREAM = 77


def new_decoder(library: Library, **more: Any) -> BatchDecoder:
    return BatchDecoder(library, **{"device": 0, "max_batch": 4, "color": "rgb", **more})


def read(decoder: BatchDecoder, images: list[bytes]) -> list[int]:
    """Have the decoder take a batch; return which it does not."""
    errors: dict[int, BaseException] = {}
    left = decoder.images.sort([{"data": encoded} for encoded in images], 1 << 30, lambda data: None, errors)
    assert not errors
    return left


def decoded(decoder: BatchDecoder, images: list[bytes]) -> tuple[list[Any], int]:
    """Decode a batch into memory whose rows are longer than they need be; what lies between them is nobody's."""
    assert read(decoder, images) == []
    blocks = [np.full((rows, columns, 3), 7, np.uint8) for rows, columns in decoder.images.blocks()]
    decoder.images.place([block.ctypes.data for block in blocks])
    status = decoder.decode(decoder.images, STREAM)
    arrays = []
    for number, (index, block, top, height, width, _) in enumerate(decoder.images.targets()):
        assert index == number
        arrays.append(blocks[block][top : top + height, :width])
        assert (blocks[block][top : top + height, width:] == 7).all()
    return arrays, status


# ---- the layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_batch_of_different_sizes_lands_where_it_was_placed(fake: Fake, color: str) -> None:
    """Those whose widths differ much into blocks of their own."""
    decoder = new_decoder(fake.load(), color=color)
    for images in ([jpeg(5, 3), jpeg(2, 9), jpeg(4, 4, b"other")], [jpeg(3, 3)], [jpeg(9, 1), jpeg(1, 9)]):
        arrays, status = decoded(decoder, images)
        assert status == SUCCESS
        for encoded, array in zip(images, arrays, strict=True):
            np.testing.assert_array_equal(array, pixels_of(encoded, array.shape[1], array.shape[0], color))
    decoder.close()
    decoder.close()


def test_the_gil_is_given_up_once_for_a_batch_of_any_size(fake: Fake) -> None:
    """Otherwise a batch of 64 waits 64 times for a busy thread."""
    decoder = new_decoder(fake.load(), max_batch=32)
    for count in (1, 32):
        decoded(decoder, [jpeg(4, 4)] * count)  # from now on prepared for so many
        fake.set(with_gil=0, without_gil=0)
        decoded(decoder, [jpeg(4, 4)] * count)
        assert (fake.without_gil, fake.with_gil) == (1 + 2 * count, 0)  # the fake reads each header once more
    decoder.close()


def test_the_callers_stream_is_waited_for_and_waits(fake: Fake) -> None:
    """The library's own has the highest priority there is: its kernels are few, and a model's are many."""
    decoder = new_decoder(fake.load())
    decoded(decoder, [jpeg(4, 4)])
    assert fake.streams == (STREAM, STREAM)
    assert fake.priority == -5
    decoder.close()


def test_no_batch_begins_while_the_library_is_at_work_on_another(fake: Fake) -> None:
    """The fake, which checks that, ends the process otherwise."""
    fake.set(lingers=1)
    decoder = new_decoder(fake.load())
    for _ in range(3):
        decoded(decoder, [jpeg(4, 4)])
    assert fake.synchronized == 2
    decoder.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_instances_on_one_gpu_share_two_decoders(fake: Fake) -> None:
    """The second is made when the first is taken; whoever is the last gives them back."""
    library = fake.load()
    of_one = 2 * 2 + 3  # two ways with handle and state, a stream and two events
    decoders = [new_decoder(library, color=color) for color in ("rgb", "bgr", "rgb")]
    other = new_decoder(library, device=1)
    assert fake.live == 2 * of_one
    images = [jpeg(30, 20)] * 4
    with ThreadPoolExecutor(3) as executor:
        fake.set(holds=1)
        first, second = (executor.submit(decoded, decoder, images) for decoder in decoders[:2])
        wait_until(lambda: fake.inside == 2)
        assert fake.live == 3 * of_one
        fake.set(holds=0)
        np.testing.assert_array_equal(first.result()[0][3], pixels_of(images[0], 30, 20, "rgb"))
        np.testing.assert_array_equal(second.result()[0][3], pixels_of(images[0], 30, 20, "bgr"))
        for _ in range(20):
            for future in [executor.submit(decoded, decoder, images) for decoder in decoders]:
                assert future.result()[1] == SUCCESS
    assert fake.most_inside == 2
    assert fake.live == 3 * of_one
    for decoder in (decoders[0], other, decoders[1]):
        decoder.close()
    assert fake.live == 2 * of_one
    decoders[2].close()


def test_the_quicker_way_is_found_and_taken_by_one_at_a_time_if_it_is_the_plain_one(fake: Fake) -> None:
    """For batches of about one size; what only warms up says nothing."""
    fake.set(pipelined_ms=20)
    library = fake.load()
    decoders = [new_decoder(library) for _ in range(3)]
    images = [jpeg(30, 20)] * 4

    def ways(count: int, images: list[bytes]) -> list[int]:
        found = []
        for _ in range(count):
            assert decoded(decoders[0], images)[1] == SUCCESS
            found.append(fake.flags & 1)
        return found

    decoders[0].is_warming_up = True
    assert ways(6, images) == [0] * 6
    decoders[0].is_warming_up = False
    assert ways(6, images) == [0] * 4 + [1] * 2
    assert ways(2, images[:1]) == [0] * 2
    fake.set(most_inside=0)
    with ThreadPoolExecutor(3) as executor:
        for _ in range(2):
            for future in [executor.submit(decoded, decoder, images) for decoder in decoders]:
                assert future.result()[1] == SUCCESS
    assert fake.most_inside == 1
    for decoder in decoders:
        decoder.close()


def test_a_damaged_batch_takes_no_trial_away(fake: Fake) -> None:
    """The way that was to be tried is tried with the next one."""
    fake.set(pipelined_ms=20)
    decoder = new_decoder(fake.load())
    images = [jpeg(4, 4)] * 2
    for _ in range(4):
        decoded(decoder, images)
    decoded(decoder, [jpeg(4, 4), jpeg(4, 4, b"CORRUPT")])
    assert fake.flags & 1
    decoded(decoder, images)
    decoded(decoder, images)
    assert fake.flags & 1
    decoder.close()


def test_the_chooser_by_its_numbers() -> None:
    """Costs of the two ways as they come, and what is chosen."""
    chooser = Chooser()

    def run(costs: tuple[float, float], batches: int) -> list[int]:
        chosen = []
        for _ in range(batches):
            chosen.append(chooser.choose())
            chooser.tell(chosen[-1], costs[chosen[-1]])
        return chosen

    assert run((1.0, 1.15), 21) == [0] * 4 + [1] + [0] * 16
    assert run((20.0, 1.15), 4) == [1, 0, 1, 1]  # lost against what the first cost before; then it is seen
    chooser = Chooser()
    assert run((1.0, 1.15), 10) == [0] * 4 + [1] + [0] * 5
    assert run((20.0, 1.15), 10) == [0] + [1] * 5 + [0] + [1] * 3  # tried at once; then the other, in vain
    assert run((1.0, 1.15), 14)[-1] == 0  # 16 batches after that


def test_one_batch_at_a_time_is_a_trial() -> None:
    """While it runs, others go the usual way; one that says nothing is no trial."""
    chooser = Chooser()
    for _ in range(4):
        chooser.tell(chooser.choose(), 1.0)
    assert [chooser.choose() for _ in range(3)] == [1, 0, 0]
    chooser.drop(0)
    assert chooser.choose() == 0
    chooser.drop(1)
    assert chooser.choose() == 1


def test_a_gpu_without_engines_decodes_by_its_cores(fake: Fake) -> None:
    """There is one way then."""
    fake.set(no_engines=1)
    decoder = new_decoder(fake.load())
    assert fake.live == 2 + 3
    _, status = decoded(decoder, [jpeg(4, 4)] * 2)
    assert status == SUCCESS
    decoder.close()


def test_options_reach_the_library(fake: Fake) -> None:
    """Smooth chroma."""
    for fancy_upsampling, flags in ((True, 32), (False, 0)):
        decoder = new_decoder(fake.load(), fancy_upsampling=fancy_upsampling)
        decoded(decoder, [jpeg(4, 4)])
        assert fake.flags == flags
        decoder.close()


def test_a_header_that_is_read_otherwise_is_refused_before_anything_is_decoded(fake: Fake) -> None:
    """Another size, a size of chroma that is not taken, damage: those go, and the others are decoded."""
    decoder = new_decoder(fake.load(), max_batch=5)
    images = [jpeg(4, 4, b"WIDER"), jpeg(4, 4), jpeg(4, 4, b"HALVED"), jpeg(5, 4), jpeg(4, 4, b"UNREADABLE")]
    assert read(decoder, [b"short", jpeg(4, 4)[:-2]]) == [0, 1]
    _, status = decoded(decoder, images)
    assert (status, fake.batches) == (nvjpeg.REFUSED, 0)
    assert decoder.images.drop_refused() == [0, 2, 4]
    assert [target[0] for target in decoder.images.targets()] == [1, 3]
    block = np.zeros((8, 16, 3), np.uint8)
    assert decoder.images.blocks() == [(8, 16)]
    decoder.images.place([block.ctypes.data])
    assert decoder.decode(decoder.images, STREAM) == SUCCESS
    np.testing.assert_array_equal(block[4:, :4], pixels_of(images[1], 4, 4))
    np.testing.assert_array_equal(block[:4, :5], pixels_of(images[3], 5, 4))
    decoder.close()


def test_a_batch_with_a_damaged_image_has_a_status(fake: Fake) -> None:
    """And a word for it; nothing is read any more by then."""
    decoder = new_decoder(fake.load())
    _, status = decoded(decoder, [jpeg(4, 4), jpeg(4, 4, b"CORRUPT"), jpeg(4, 4)])
    assert nvjpeg.status_name(status) == "the image is damaged"
    assert nvjpeg.status_name(0x1000) == "status 4096"
    assert fake.synchronized == 1
    assert decoded(decoder, [jpeg(4, 4)])[1] == SUCCESS
    decoder.close()


def test_an_error_of_the_library_has_its_name_and_leaves_nothing_behind(fake: Fake) -> None:
    """The fixture counts the handles."""
    fake.set(refuse=1)
    with pytest.raises(RuntimeError, match=r"^nvJPEG: nvjpegCreateEx: allocator failure$"):
        new_decoder(fake.load())
    fake.set(refuse=0)
    decoder = new_decoder(fake.load())
    fake.set(**{"break": 1})
    with pytest.raises(RuntimeError, match=r"^nvJPEG: nvjpegDecodeBatched: execution failed$"):
        decoded(decoder, [jpeg(4, 4)])
    decoder.close()
    with pytest.raises(RuntimeError, match=r"^nvJPEG: nvjpegAny: status 99$"):
        nvjpeg.check("nvjpegAny", 99)
    with pytest.raises(RuntimeError, match=r"^nvJPEG: cuAny: error 1$"):
        nvjpeg.check("cuAny", 1)


@pytest.mark.parametrize(("missing", "name"), [(nvjpeg.DRIVER, "CUDA's driver"), (nvjpeg.LIBRARY, "nvJPEG (libnvjpeg")])
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, name: str) -> None:
    """In one line."""

    def refuse(path: str) -> Library:
        raise OSError(f"{missing}: cannot open shared object file")

    monkeypatch.setattr(nvjpeg, "Library", refuse)
    with pytest.raises(MissingExtra, match=rf"^DecodeTensor needs {re.escape(name)}.*\[cuda\]'$"):
        nvjpeg.load()


def test_the_structure_is_that_of_its_header(tmp_path: Path, repository_root: Path) -> None:
    """Size and offsets, as a compiler sees them; and the numbers that are given to it."""
    compiler = shutil.which("c++")
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder, "cu13", "include") for folder in (found.submodule_search_locations or ())] if found else []
    include = next((folder for folder in folders if (folder / "nvjpeg.h").is_file()), None)
    if compiler is None or include is None:
        pytest.skip("needs a C compiler and the library's header")
    values = {
        "NVJPEG_BACKEND_HARDWARE": nvjpeg._ENGINES,
        "NVJPEG_BACKEND_GPU_HYBRID": nvjpeg._KERNELS,
        "NVJPEG_FLAGS_HW_DECODE_NO_PIPELINE": nvjpeg._NO_PIPELINE,
        "NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION": nvjpeg._INTERPOLATE,
        "NVJPEG_OUTPUT_RGBI": nvjpeg._INTERLEAVED["rgb"],
        "NVJPEG_OUTPUT_BGRI": nvjpeg._INTERLEAVED["bgr"],
        "NVJPEG_CSS_444": 0,
        "NVJPEG_CSS_440": 3,
        "NVJPEG_CSS_GRAY": 6,
        "NVJPEG_STATUS_INCOMPLETE_BITSTREAM": nvjpeg._INCOMPLETE,
        "NVJPEG_STATUS_JPEG_NOT_SUPPORTED": nvjpeg._NOT_SUPPORTED,
    }
    (tmp_path / "cuda_runtime_api.h").write_text("typedef struct CUstream_st* cudaStream_t;\n")
    (tmp_path / "library_types.h").write_text("typedef int libraryPropertyType;\n")
    lines = "".join(f'printf("%d\\n", (int)({name}));' for name in values)
    lines += "".join(
        f'static_assert({of_image.format("Destination")} == {of_image.format("nvjpegImage_t")}, "");'
        for of_image in ("sizeof(nvjpeg::{})", "offsetof(nvjpeg::{}, channel)", "offsetof(nvjpeg::{}, pitch)")
    ).replace("nvjpeg::nvjpegImage_t", "nvjpegImage_t")
    includes = "#include <stddef.h>\n#include <stdio.h>\n#include <nvjpeg.h>\n#include <nvjpeg.hpp>\n"
    (tmp_path / "layout.cpp").write_text(f"{includes}int main() {{ {lines} }}\n")
    kernels = repository_root / "kernels"
    command = [compiler, "-std=c++17", "-I", str(tmp_path), "-I", str(include), "-I", str(kernels)]
    command += ["layout.cpp", "-o", "layout"]
    subprocess.run(command, check=True, cwd=tmp_path)
    printed = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in printed.split()] == list(values.values())


# ---- the backend -----------------------------------------------------------------------------------------------------


@pytest.fixture
def backend(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that builds a DecodeTensor whose GPU is the fake, with memory of the host."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cv2")
    from fastpipe.backends.gpu import devices
    from fastpipe.backends.tensor import decode

    class Stream:
        def __init__(self, device_number: int) -> None:
            assert device_number == 0

        @contextmanager
        def entered(self) -> Iterator[Any]:
            yield SimpleNamespace(handle=STREAM, is_outermost=True)

    monkeypatch.setattr(devices, "torch_gpu", lambda backend, number: torch.device("cpu"))
    monkeypatch.setattr(decode, "InstanceStream", Stream)
    monkeypatch.setattr(nvjpeg, "load", fake.load)
    made: list[Any] = []

    def build(**parameters: Any) -> Any:
        made.append(decode.DecodeTensor(**{"threads": 2, "max": 8, **parameters}))
        fake.set(batches=0, largest=0)  # as if it had not warmed up
        return made[-1]

    yield build
    for each in made:
        each.close()


def image_of(request: dict[str, Any]) -> Any:
    """Return a result's pixels as (height, width, 3)."""
    result = request["result"]
    assert result.ndim == 4
    assert tuple(result.shape[:2]) == (1, 3)
    return result[0].permute(1, 2, 0).numpy()


def run(backend: Any, images: list[Any]) -> tuple[list[dict[str, Any]], dict[int, BaseException]]:
    """Run a batch; return its requests, and what failed."""
    requests = [{"data": image} for image in images]
    try:
        backend.forward(requests)
    except ItemErrors as error:
        return requests, error.errors
    return requests, {}


def picture(height: int, width: int) -> Any:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_batch_is_decoded_at_once(fake: Fake, backend: Callable[..., Any], color: str) -> None:
    """Into views of rows that a kernel reads without a copy; widths that differ much do not share memory."""
    sizes = [(40, 20), (300, 10), (33, 7), (160, 3)]
    images = [jpeg(*size) for size in sizes]
    requests, errors = run(backend(color=color), images)
    assert not errors
    for encoded, request, size in zip(images, requests, sizes, strict=True):
        np.testing.assert_array_equal(image_of(request), pixels_of(encoded, *size, color))
        assert request["color"] == color
        assert request["result"].stride()[1] == 1
    assert (fake.batches, *fake.streams) == (1, STREAM, STREAM)
    memory = [request["result"].untyped_storage().data_ptr() for request in requests]
    assert memory[0] == memory[2]
    assert memory[1] == memory[3] != memory[0]


def test_the_backend_gives_the_gil_up_once_in_the_library(fake: Fake, backend: Callable[..., Any]) -> None:
    """However many images there are."""
    made = backend(max=16)
    for count in (1, 16):
        run(made, [jpeg(30, 20)] * count)  # from now on prepared for so many
        fake.set(without_gil=0)
        run(made, [jpeg(30, 20)] * count)
        assert fake.without_gil == 1 + 2 * count  # the fake reads each header once more


def test_the_first_batch_of_the_library_is_a_full_one(fake: Fake, backend: Callable[..., Any]) -> None:
    """For which it gets its memory."""
    from fastpipe.backends.tensor import decode

    made = decode.DecodeTensor(max=5, threads=1)
    assert (fake.batches, fake.largest) == (2, 5)
    made.close()


def test_results_share_no_memory_with_those_of_another_batch(backend: Callable[..., Any]) -> None:
    """A result stays what it is while the next batch is decoded."""
    made = backend()
    first, _ = run(made, [jpeg(30, 20)])
    kept = image_of(first[0]).copy()
    run(made, [jpeg(30, 20, b"another")])
    np.testing.assert_array_equal(image_of(first[0]), kept)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(backend: Callable[..., Any], orientation: int) -> None:
    """As OpenCV turns it."""
    cv2 = pytest.importorskip("cv2")
    from fastpipe.backends.image.codec import _TURNS

    encoded = jpeg(6, 4, orientation=orientation)
    requests, _ = run(backend(), [encoded, jpeg(6, 4)])
    expected = pixels_of(encoded, 6, 4)
    expected = np.asarray(_TURNS[orientation](expected) if orientation != 1 else expected)
    np.testing.assert_array_equal(image_of(requests[0]), expected)
    assert cv2 is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_where_only_the_next_step_sees_it_no_tensor_is_made(
    backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """The kernel is told where the pixels lie, turned as they are to be seen, and what came in is kept."""
    from fastpipe.backends.image.codec import _TURNS

    blocks: dict[int, Any] = {}

    def allocate(size: int) -> Any:
        block = np.zeros(size, np.uint8)
        blocks[block.ctypes.data] = block
        return SimpleNamespace(ptr=block.ctypes.data)

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(alloc=allocate)))
    made = backend()
    made.hand_on(Pixels, fastpipe.Backend())
    images = [jpeg(6, 4, orientation=orientation), jpeg(5, 7), jpeg(200, 3)]
    requests, errors = run(made, images)
    assert not errors
    assert len(blocks) == 2  # widths that differ much share none
    for encoded, (width, height), request in zip(images, [(6, 4), (5, 7), (200, 3)], requests, strict=True):
        pixels = request["result"]
        address, row_stride, rows, columns, column_stride, channel_stride, *rest = pixels.row
        assert rest == [0] * 4
        start, block = next((start, block) for start, block in blocks.items() if 0 <= address - start < block.size)
        places = np.add.outer(np.arange(rows) * row_stride, np.arange(columns) * column_stride)
        seen = block[np.add.outer(address - start + places, np.arange(3) * channel_stride)]
        expected = pixels_of(encoded, width, height)
        if encoded is images[0] and orientation != 1:
            expected = np.asarray(_TURNS[orientation](expected))
        np.testing.assert_array_equal(seen, expected)
        assert request["data"] is encoded
        assert (pixels.color, request["color"]) == ("rgb", "rgb")


def test_python_does_nothing_for_each_image(
    fake: Fake, backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs no more for 32 images than for two: what it does for one, all other threads of the process wait for."""
    memory = np.zeros(1 << 20, np.uint8)
    allocate = SimpleNamespace(cuda=SimpleNamespace(alloc=lambda size: SimpleNamespace(ptr=memory.ctypes.data)))
    monkeypatch.setitem(sys.modules, "cupy", allocate)
    made = backend(max=32)
    made.hand_on(Pixels, fastpipe.Backend())
    made._decoder.is_warming_up = True  # the chooser, once for a batch, does more for some than for others
    counts = []
    for count in (2, 32):
        run(made, [jpeg(30, 20)] * count)
        requests = [{"data": jpeg(30, 20)} for _ in range(count)]
        counts.append(calls_of(lambda batch=requests: made.forward(batch)))  # type: ignore[misc]
        assert all(type(request["result"]) is Pixels for request in requests)
    assert counts[0] == counts[1]


def test_what_the_cpu_decodes_is_handed_on_in_the_same_way(
    backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that ``data`` does not depend on the format of a file."""
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    made = backend()
    made.hand_on(Pixels, fastpipe.Backend())
    pixels = picture(12, 9)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    (request,), errors = run(made, [png])
    assert not errors
    handed_on = request["result"]
    assert handed_on.row[1:] == (27, 12, 9, 3, 1, 0, 0, 0, 0)
    assert handed_on.row[0] == handed_on.memory.data_ptr()
    np.testing.assert_array_equal(handed_on.memory.numpy(), pixels[..., ::-1])
    assert request["data"] is png


def test_pixels_are_offered_and_the_step_that_prepares_images_takes_them() -> None:
    """What extends one of the two has to say so itself."""
    pytest.importorskip("torch")
    from fastpipe.backends.tensor.decode import DecodeTensor
    from fastpipe.backends.tensor.preprocess import ResizeNormalizeTensor

    assert DecodeTensor.offers_forms == ResizeNormalizeTensor.takes_forms == (Pixels,)


def test_what_the_gpu_does_not_take_is_decoded_on_the_cpu(fake: Fake, backend: Callable[..., Any]) -> None:
    """PNG, and CMYK as far as OpenCV takes it, beside JPEGs of the GPU's."""
    cv2 = pytest.importorskip("cv2")
    pixels = picture(12, 9)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    sixteen = cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()
    requests, errors = run(backend(color="rgb"), [png, jpeg(20, 10), bytearray(png), sixteen])
    assert not errors
    for number in (0, 2, 3):
        np.testing.assert_array_equal(image_of(requests[number]), pixels[..., ::-1])
        assert requests[number]["color"] == "rgb"
    np.testing.assert_array_equal(image_of(requests[1]), pixels_of(jpeg(20, 10), 20, 10))
    assert fake.largest == 1
    (request,), _ = run(backend(color="bgr"), [png])
    np.testing.assert_array_equal(image_of(request), pixels)


def test_more_formats_and_cut_jpegs_are_decoded_on_the_cpu(backend: Callable[..., Any]) -> None:
    """With DecodeMat's parameters and the request's page; what those say is handed on, and nothing else."""
    cv2 = pytest.importorskip("cv2")
    image = pytest.importorskip("PIL.Image")
    pages = [image.fromarray(np.full((4, 6, 3), level, np.uint8)) for level in (10, 20, 30)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    content = buffer.getvalue()
    made = backend(more_formats=["tiff"], page=1, truncated="keep")
    cut = bytes(cv2.imencode(".jpg", np.full((40, 50, 3), 90, np.uint8))[1])[:-2]
    batch = [{"data": content}, {"data": content, "page": 2}, {"data": content, "page": 3}, {"data": cut}]
    with pytest.raises(ItemErrors) as caught:
        made.forward(batch)
    assert {index: str(error) for index, error in caught.value.errors.items()} == {
        2: "DecodeMat: the TIFF has 3 pages, so there is no page 3"
    }
    assert [int(batch[index]["result"].max()) for index in (0, 1)] == [20, 30]
    assert batch[3]["result"].shape == (1, 3, 40, 50)
    assert [request.get("truncated") for request in batch] == [None, None, None, True]
    plain: list[dict[str, Any]] = [{"data": content}, {"data": cut}]
    backend().forward(plain)
    assert not [request for request in plain if "result" in request]


@pytest.mark.parametrize("word", [b"HALVED", b"WIDER", b"UNREADABLE"])
def test_a_header_that_the_library_reads_otherwise_is_left_to_the_cpu(
    fake: Fake, backend: Callable[..., Any], word: bytes
) -> None:
    """Another size would be written behind the memory; not all sizes of chroma are taken."""
    requests, errors = run(backend(), [jpeg(20, 10, word)])
    assert fake.batches == 0
    assert not errors
    assert "result" not in requests[0]  # as OpenCV can make nothing of it, either


def test_a_damaged_image_leaves_the_others_what_they_are(fake: Fake, backend: Callable[..., Any]) -> None:
    """Also where the library fails with the whole batch for it: each is decoded again, alone."""
    images = [jpeg(20, 10), jpeg(20, 10, b"CORRUPT"), jpeg(8, 8)]
    requests, errors = run(backend(), images)
    assert not errors
    assert "result" not in requests[1]  # OpenCV cannot either
    np.testing.assert_array_equal(image_of(requests[0]), pixels_of(images[0], 20, 10))
    np.testing.assert_array_equal(image_of(requests[2]), pixels_of(images[2], 8, 8))
    assert fake.batches == 1 + 3


def test_no_image_leaves_no_result(fake: Fake, backend: Callable[..., Any]) -> None:
    """Nor does the beginning of one; an older result goes."""
    made = backend()
    requests = [{"data": data, "result": "old"} for data in (b"", b"text", jpeg(20, 10)[:-2])]
    made.forward(requests)
    assert [request.get("result") for request in requests] == [None] * 3
    assert fake.batches == 0


def test_too_many_pixels_and_data_of_another_type_fail_alone(fake: Fake, backend: Callable[..., Any]) -> None:
    """The others of the batch have their results."""
    made = backend(max_pixels=1000)
    requests, errors = run(made, [jpeg(20, 10), jpeg(40, 30), 5, {}])
    assert {index: type(error) for index, error in errors.items()} == {1: DecodeError, 2: TypeError, 3: TypeError}
    assert "40 x 30 pixels, more than max_pixels = 1000" in str(errors[1])
    assert "result" in requests[0]
    with pytest.raises(TypeError, match="expected bytes"):
        made.forward([{"data": 5}])
    with pytest.raises(KeyError):
        made.forward([{}])


def test_gpu_alone_says_what_it_does_not_take(backend: Callable[..., Any]) -> None:
    """Nothing is decoded on the CPU then."""
    cv2 = pytest.importorskip("cv2")
    made = backend(hybrid="gpu", max_pixels=1000)
    png = cv2.imencode(".png", picture(4, 4))[1].tobytes()
    requests, errors = run(made, [png, jpeg(20, 10), jpeg(20, 10, b"CORRUPT"), jpeg(40, 30)])
    taken = "hybrid = 'gpu' takes complete baseline JPEGs of 8 bits, gray or YCbCr, with at most max_pixels = 1000"
    assert str(errors[0]) == str(errors[3]) == f"DecodeTensor: {taken}"
    assert str(errors[2]) == "DecodeTensor: the GPU cannot decode the image: the image is damaged"
    assert all(isinstance(error, DecodeError) for error in errors.values())
    assert "result" in requests[1]


def test_cpu_alone_needs_no_library(fake: Fake, backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even looked for."""
    cv2 = pytest.importorskip("cv2")

    def refuse() -> Library:
        raise AssertionError

    monkeypatch.setattr(nvjpeg, "load", refuse)
    pixels = picture(16, 16)
    encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
    requests, _ = run(backend(hybrid="cpu", color="bgr"), [encoded] * 3)
    expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert all((image_of(request) == expected).all() for request in requests)


def test_data_that_could_change_is_copied(backend: Callable[..., Any]) -> None:
    """Its header, once read, must stay what it is."""
    encoded = jpeg(20, 10)
    for data in (bytearray(encoded), memoryview(encoded), np.frombuffer(encoded, np.uint8)):
        requests, errors = run(backend(), [data])
        assert not errors
        np.testing.assert_array_equal(image_of(requests[0]), pixels_of(encoded, 20, 10))


def test_a_gpu_that_decodes_nothing_is_an_error_of_the_configuration(
    fake: Fake, backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all would be done on the CPU, without a word."""
    monkeypatch.setattr(BatchDecoder, "decode", lambda self, count, stream: 4)
    with pytest.raises(
        ConfigError, match="cannot decode a plain JPEG on this GPU: its way of encoding is not supported"
    ):
        backend()


def test_a_failing_gpu_fails_the_batch(fake: Fake, backend: Callable[..., Any]) -> None:
    """Nothing is tried on the CPU: that would hide it."""
    made = backend()
    fake.set(**{"break": 1})
    with pytest.raises(RuntimeError, match="execution failed"):
        made.forward([{"data": jpeg(20, 10)}])


def test_without_a_gpu_the_configuration_is_refused() -> None:
    """With the number that torch sees."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cv2")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = count + 5
    with pytest.raises(ConfigError, match=f"DecodeTensor: there is no GPU {number}; torch sees {count}"):
        fastpipe.Pipe(backend="DecodeTensor", device_id=number)


def test_without_torch_the_extra_is_named() -> None:
    """In one line."""
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("torch is installed")
    with pytest.raises(MissingExtra, match=r"^DecodeTensor needs torch: pip install 'fastpipe-engine\[torch\]'$"):
        fastpipe.Pipe(backend="DecodeTensor")


def test_a_pipe_decodes_on_the_gpu() -> None:
    """JPEGs of the three kinds, one damaged, and a PNG, compared with OpenCV."""
    torch = pytest.importorskip("torch")
    cv2 = pytest.importorskip("cv2")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pixels = cv2.resize(picture(9, 9), (320, 240), interpolation=cv2.INTER_CUBIC)
    plain = cv2.imencode(".jpg", pixels)[1].tobytes()
    images = [
        plain,
        cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        cv2.imencode(".jpg", pixels[..., 0])[1].tobytes(),
        cv2.imencode(".png", pixels)[1].tobytes(),
    ]
    with fastpipe.Pipe(backend="DecodeTensor", color="bgr", max=8, without_result="end") as pipe:
        requests = [{"data": image} for image in [*images, plain[:3000]]]
        pipe(requests)
        alone = pipe({"data": plain})
    assert "result" not in requests[-1]
    for encoded, request in zip(images, requests, strict=False):
        expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        got = request["result"][0].permute(1, 2, 0).cpu().numpy()
        assert np.abs(got.astype(int) - expected).max() <= 3
    assert torch.equal(alone["result"], requests[0]["result"])
