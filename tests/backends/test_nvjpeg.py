"""The layer to nvJPEG: against a strict fake of its C interface, and the library's header where it is."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S
from nvjpeg_fake import STREAM, Fake, jpeg, pixels_of

from fastpipe.backends.tensor import nvjpeg
from fastpipe.backends.tensor.nvjpeg import SUCCESS, BatchDecoder, Library
from fastpipe.errors import MissingExtra
from fastpipe.kernels._images import Chooser


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


def test_instances_on_one_gpu_share_a_decoder(fake: Fake) -> None:
    """They take turns, and whoever is the last gives it back."""
    library = fake.load()
    of_one = 2 * 2 + 3  # two ways with handle and state, a stream and two events
    decoders = [new_decoder(library, color=color) for color in ("rgb", "bgr", "rgb")]
    other = new_decoder(library, device=1)
    assert fake.live == 2 * of_one
    images = [jpeg(30, 20)] * 4
    with ThreadPoolExecutor(3) as executor:
        fake.set(holds=1)
        held = [executor.submit(decoded, decoder, images) for decoder in decoders]
        wait_until(lambda: fake.inside == 1)
        time.sleep(0.05)  # the others come as far as they can
        assert fake.inside == 1
        fake.set(holds=0)
        for future, color in zip(held, ("rgb", "bgr", "rgb"), strict=True):
            np.testing.assert_array_equal(future.result()[0][3], pixels_of(images[0], 30, 20, color))
        for _ in range(20):
            for future in [executor.submit(decoded, decoder, images) for decoder in decoders]:
                assert future.result()[1] == SUCCESS
    assert fake.most_inside == 1
    assert fake.live == 2 * of_one
    for decoder in (decoders[0], other, decoders[1]):
        decoder.close()
    assert fake.live == of_one
    decoders[2].close()


def test_the_quicker_way_is_found_for_batches_of_about_one_size(fake: Fake) -> None:
    """What only warms up says nothing, and so does a damaged batch: the way is tried with the next one."""
    fake.set(pipelined_ms=20)
    decoder = new_decoder(fake.load())
    images = [jpeg(30, 20)] * 4

    def ways(count: int, images: list[bytes]) -> list[int]:
        found = []
        for _ in range(count):
            decoded(decoder, images)
            found.append(fake.flags & 1)
        return found

    decoder.is_warming_up = True
    assert ways(6, images) == [0] * 6
    decoder.is_warming_up = False
    assert ways(4, images) == [0] * 4
    assert ways(1, [*images[:3], jpeg(4, 4, b"CORRUPT")]) == [1]
    assert ways(3, images) == [1] * 3
    assert ways(2, images[:1]) == [0] * 2
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
