"""The CUDA kernels against the reference: on each GPU library that is here, and compiled for the CPU by an emulator."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated_gpu
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpipe.errors import KernelError, MissingExtra
from fastpipe.kernels import _cuda_device, _device_arrays, cuda, reference

MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
LOOK: dict[str, Any] = {"mean": MEAN, "std": STD, "target": "rgb"}
MIXED = [(375, 500), (480, 640), (77, 33), (606, 517), (1, 1), (13, 900), (720, 1280)]


class Place:
    """Where the kernels run: a workspace, and the way there and back for arrays."""

    def __init__(self, workspace: Any, put: Callable[[Any], Any], get: Callable[[Any], Any], *, is_gpu: bool) -> None:
        self.workspace, self.put, self.get, self.is_gpu = workspace, put, get, is_gpu

    def put_all(self, images: Any) -> list[Any]:
        return [self.put(image) for image in images]


def on_cupy() -> Place:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed here (extra cuda)")
    try:
        workspace = cuda.Workspace(0)
    except RuntimeError as error:
        pytest.skip(str(error))
    return Place(workspace, cupy.asarray, cupy.asnumpy, is_gpu=True)


def on_torch() -> Place:
    place = on_cupy()
    torch = pytest.importorskip("torch", reason="torch is not installed here (extra torch)")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")

    def get(tensor: Any) -> Any:
        return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).cpu().numpy()

    place.put, place.get = lambda array: torch.from_numpy(array.copy()).cuda(), get
    return place


def emulated(folder: Path) -> Place:
    if not emulated_gpu.is_there():
        pytest.skip("there is no g++ to compile the emulator with")
    device: Any = emulated_gpu.EmulatedDevice(folder)
    return Place(cuda.Workspace(device, slots=2, max_batch=2), lambda array: array, lambda array: array, is_gpu=False)


@pytest.fixture(scope="module", params=["emulated", "cupy", "torch"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each place there is; a machine without a GPU has the emulator."""
    if request.param != "emulated":
        yield on_cupy() if request.param == "cupy" else on_torch()
        return
    known = dict(_device_arrays._known)
    _device_arrays._known[np.ndarray] = emulated_gpu.NumpyArrays()
    try:
        yield emulated(tmp_path_factory.mktemp("kernels"))
    finally:
        _device_arrays._known.clear()
        _device_arrays._known.update(known)


def image(height: int, width: int, color: str = "bgr", seed: int = 0) -> Any:
    shape = (height, width) if color == "gray" else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bfloat16_bits(values: Any) -> Any:
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


# ---- normalize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("source", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("size", [(1, 1), (13, 17), (64, 64), (224, 224), (255, 257)], ids=str)
def test_normalize_gives_the_bits_of_the_reference(place: Place, size: Any, source: Any, target: Any) -> None:
    """A batch as one array and as a list; each pair of colors, both dtypes that NumPy has."""
    images = np.stack([image(*size, color=source, seed=seed) for seed in range(3)])
    levels = {"mean": MEAN, "std": STD} if target != "gray" else {"mean": 7.5, "std": 3.0}
    for dtype in ("float32", "float16"):
        wanted: dict[str, Any] = {**levels, "source": source, "target": target, "dtype": dtype}
        expected = reference.normalize(images, **wanted)
        for given_images in (place.put(images), place.put_all(images)):
            result = place.workspace.normalize(given_images, **wanted)
            np.testing.assert_array_equal(place.get(result), expected)


@pytest.mark.parametrize("std", [STD, [0.229, 0.224, 0.225], [1, 2, 3], [-3, 1e-4, 1e4], [1e-38, 1e38, 1]], ids=str)
@pytest.mark.parametrize("mean", [0.0, 127.5, [1e-30, 1e30, -5]], ids=str)
def test_every_byte_is_divided_to_the_last_bit(place: Place, mean: Any, std: Any) -> None:
    """By the reciprocal where that is exact, else by a division; infinity where the quotient is too large."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[np.newaxis, :, np.newaxis], 3, axis=2)[np.newaxis]
    for dtype in ("float32", "float16"):
        with np.errstate(over="ignore"):
            expected = reference.normalize(pixels, mean=mean, std=std, dtype=dtype)
        result = place.get(place.workspace.normalize(place.put(pixels), mean=mean, std=std, dtype=dtype))
        np.testing.assert_array_equal(result, expected)


def test_usual_means_take_the_quick_way() -> None:
    """ImageNet's numbers on both scales; what would be wrong by it does not."""
    for mean, std in ((MEAN, STD), ([127.5] * 3, [127.5] * 3), ([0.0] * 3, [255.0] * 3), ([0.0] * 3, [1.0] * 3)):
        means, stds = np.float32(mean), np.float32(std)
        assert cuda._divides_by_reciprocal(means, stds, np.float32(1) / stds)
    tiny = np.float32([1e-38] * 3)
    assert not cuda._divides_by_reciprocal(np.float32([0.0] * 3), tiny, np.float32(1) / tiny)


def test_bfloat16_is_rounded_once_from_float32(place: Place) -> None:
    """To the nearest, halves to even."""
    images = image(33, 40)[np.newaxis]
    expected = bfloat16_bits(reference.normalize(images, **LOOK))
    try:
        result = place.get(place.workspace.normalize(place.put(images), **LOOK, dtype="bfloat16"))
    except KernelError as error:
        assert "CuPy has no bfloat16" in str(error)  # noqa: PT017 -- said by one of the places only
        return
    np.testing.assert_array_equal(result.view(np.uint16), expected)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_view_is_accepted(place: Place, data: st.DataObject) -> None:
    """Crops, steps, swapped axes, broadcast rows; and, where the library has them, reversed axes."""
    base = place.put(image(24, 20, seed=data.draw(st.integers(0, 3))))
    rows, columns = (
        slice(data.draw(st.integers(0, 5)), data.draw(st.integers(6, 20)), data.draw(st.integers(1, 3)))
        for _ in range(2)
    )
    view = base[rows, columns]
    if "torch" not in type(base).__module__ and data.draw(st.booleans()):
        view = view[::-1, ::-1, ::-1]
    if data.draw(st.booleans()):
        view = view.swapaxes(0, 1)
    seen = np.ascontiguousarray(place.get(view))
    for images in ([view], view[None]):
        result = place.get(place.workspace.normalize(images, **LOOK))
        np.testing.assert_array_equal(result, reference.normalize([seen], **LOOK))
    for way in ("opencv", "pillow"):
        result = place.get(place.workspace.resize_normalize([view], 7, 9, filter=way, **LOOK))
        np.testing.assert_array_equal(result, reference.resize_normalize([seen], 7, 9, filter=way, **LOOK))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [(1, 4099), (67, 193), (101, 64), (5, 3)], ids=str)
def test_planes_begin_anywhere(place: Place, size: Any, dtype: str) -> None:
    """Sizes that are not multiples of a store, more pixels than a block has, and an ``out`` in the midst of memory."""
    images = np.stack([image(*size, seed=seed) for seed in range(3)])
    expected = reference.normalize(images, **LOOK, dtype=dtype)
    numbers = images.size + 64
    memory = np.full(numbers, -1, dtype)
    for start in (0, 8, 24):
        whole = place.put(memory.copy())
        out = whole[start : start + images.size].reshape(expected.shape)
        place.workspace.normalize(place.put(images), **LOOK, out=out)
        written = place.get(whole)
        np.testing.assert_array_equal(written[start : start + images.size].reshape(expected.shape), expected)
        assert (np.delete(written, slice(start, start + images.size)) == -1).all()


# ---- resize ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["opencv", "pillow"])
@pytest.mark.parametrize("size", [(224, 224), (32, 300), (3, 5), (1, 1), (100, 701)], ids=str)
def test_a_batch_of_mixed_sizes_gives_the_bytes_of_the_reference(place: Place, way: Any, size: Any) -> None:
    """In one launch; each image by itself gives the same bits."""
    images = [image(*one, seed=seed) for seed, one in enumerate(MIXED)]
    for dtype in ("float32", "float16"):
        expected = reference.resize_normalize(images, *size, filter=way, **LOOK, dtype=dtype)
        given_images = place.put_all(images)
        result = place.get(place.workspace.resize_normalize(given_images, *size, filter=way, **LOOK, dtype=dtype))
        np.testing.assert_array_equal(result, expected)
    if not place.is_gpu:
        assert place.workspace._device.launches[-1][1][2] == len(images)
    single = place.get(place.workspace.resize_normalize(given_images[1][None], *size, filter=way, **LOOK, dtype=dtype))
    np.testing.assert_array_equal(single, expected[1:2])


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.tuples(*[st.integers(1, 90)] * 4),
    way=st.sampled_from(["opencv", "pillow", "pillow13"]),
    kind=st.integers(0, 2),
)
def test_any_size_to_any_size(place: Place, sizes: Any, way: Any, kind: int) -> None:
    """Noise, a checker and a gradient; scales from 1/90 to 90."""
    height, width, new_height, new_width = sizes
    y, x = np.indices((height, width))
    plain = np.stack([(y + x) % 2 * 255, y * 255 // max(height - 1, 1), x * 255 // max(width - 1, 1)], axis=2)
    pixels = image(height, width) if kind == 0 else plain.astype(np.uint8)[..., :: 1 if kind == 1 else -1].copy()
    expected = reference.resize_normalize([pixels], new_height, new_width, filter=way)
    result = place.workspace.resize_normalize([place.put(pixels)], new_height, new_width, filter=way)
    np.testing.assert_array_equal(place.get(result), expected)


@pytest.mark.parametrize("way", ["opencv", "pillow"])
@pytest.mark.parametrize(
    "sizes",
    [
        ((10_000, 9), (8, 8)),
        ((7, 10_000), (8, 8)),
        ((1, 65_535), (1, 1)),
        ((2160, 3840), (224, 224)),
        ((448, 448), (224, 224)),
    ],
    ids=str,
)
def test_large_scales_and_long_sides(place: Place, way: Any, sizes: Any) -> None:
    """Beyond what fits into shared memory, and an exact half, which OpenCV computes in its own way."""
    pixels = image(*sizes[0])
    expected = reference.resize_normalize([pixels], *sizes[1], filter=way)
    result = place.workspace.resize_normalize([place.put(pixels)], *sizes[1], filter=way)
    np.testing.assert_array_equal(place.get(result), expected)


@pytest.mark.parametrize("way", ["opencv", "pillow"])
@pytest.mark.parametrize("target", ["rgb", "gray"])
def test_places_are_filled_around(place: Place, way: Any, target: Any) -> None:
    """A letter-box at odd offsets, several in one batch; what is around is the fill, normalised."""
    images = [image(40, 50), image(90, 31), image(5, 5)]
    places = np.array([[3, 0, 20, 35], [0, 7, 33, 11], [1, 1, 30, 30]])
    levels: dict[str, Any] = {"mean": 10.0, "std": 4.0, "target": target}
    levels["fill"] = 114 if target == "gray" else [1, 114, 255]
    expected = reference.resize_normalize(images, 33, 35, filter=way, places=places, **levels)
    result = place.workspace.resize_normalize(place.put_all(images), 33, 35, filter=way, places=places, **levels)
    np.testing.assert_array_equal(place.get(result), expected)


def test_images_of_one_array_have_places_too(place: Place) -> None:
    """They are a table then."""
    images = np.stack([image(9, 8, seed=seed) for seed in range(3)])
    places = [[0, 0, 5, 6], [2, 1, 7, 6], [1, 1, 1, 1]]
    expected = reference.resize_normalize(images, 9, 7, filter="pillow", places=places, **LOOK)
    result = place.workspace.resize_normalize(place.put(images), 9, 7, filter="pillow", places=places, **LOOK)
    np.testing.assert_array_equal(place.get(result), expected)


@pytest.mark.parametrize("way", ["opencv", "pillow"])
def test_gray_images_are_resized_too(place: Place, way: Any) -> None:
    """To gray, and to three channels."""
    images = [image(40, 50, "gray"), image(19, 31, "gray")]
    for target in ("gray", "bgr"):
        wanted: dict[str, Any] = {"filter": way, "source": "gray", "target": target}
        expected = reference.resize_normalize(images, 21, 22, **wanted)
        result = place.workspace.resize_normalize(place.put_all(images), 21, 22, **wanted)
        np.testing.assert_array_equal(place.get(result), expected)


def test_the_reference_is_pillow_and_opencv() -> None:
    """Pillow bit for bit, that of before 13 by a call for each axis; cv2 but for one."""
    PIL = pytest.importorskip("PIL", reason="Pillow is not installed here (extra cpu)")
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed here (extra cpu)")
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
    generator = np.random.default_rng(5)
    for number in range(200):
        height, width, new_height, new_width = map(int, generator.integers(1, 120, 4))
        pixels = image(height, width, seed=number)
        across = pillow.fromarray(pixels).resize((new_width, height), pillow.Resampling.BILINEAR)
        expected = np.asarray(across.resize((new_width, new_height), pillow.Resampling.BILINEAR))
        np.testing.assert_array_equal(reference.resize_pillow(pixels, new_height, new_width), expected)
        if int(PIL.__version__.split(".")[0]) >= 13:
            expected = np.asarray(pillow.fromarray(pixels).resize((new_width, new_height), pillow.Resampling.BILINEAR))
            result = reference.resize_pillow(pixels, new_height, new_width, as_pillow_13=True)
            np.testing.assert_array_equal(result, expected)
        resized = reference.resize(pixels, new_height, new_width).astype(int)
        np.testing.assert_allclose(resized, cv2.resize(pixels, (new_width, new_height)), rtol=0, atol=1)


# ---- warp ------------------------------------------------------------------------------------------------------------

CORNERS = np.array(
    [
        [[20, 30], [250, 10], [280, 170], [-10, 190]],
        [[0, 0], [300, 0], [300, 200], [0, 200]],
        [[100, 190], [100, 20], [120, 10], [130, 199]],
        [[-500, -400], [900, -300], [800, 700], [-600, 600]],
    ],
    float,
)


@pytest.mark.parametrize("as_opencv_4", [False, True])
@pytest.mark.parametrize("border", ["fill", "repeat"])
def test_boxes_of_several_images_are_cut_out(place: Place, border: Any, as_opencv_4: bool) -> None:
    """Turned, mirrored, beyond the edges: the bytes of the reference, in one launch."""
    images = [image(200, 300, seed=seed) for seed in range(2)]
    indices = [0, 1, 1, 0]
    matrices = reference.perspective(CORNERS, 48, 100)
    expected = np.stack(
        [
            reference.warp(images[index], matrix, 48, 100, border=border, fill=[9, 8, 7], as_opencv_4=as_opencv_4)
            for index, matrix in zip(indices, matrices, strict=True)
        ]
    )
    result = place.workspace.warp_normalize(
        place.put_all(images),
        matrices,
        48,
        100,
        indices=indices,
        border=border,
        as_opencv_4=as_opencv_4,
        fill=[7, 8, 9],
        **LOOK,
    )
    np.testing.assert_array_equal(place.get(result), reference.normalize(expected, **LOOK))


def test_a_matrix_that_leads_nowhere_gives_the_fill(place: Place) -> None:
    """Zeros, infinities and what is no number."""
    matrices = np.zeros((3, 3, 3))
    matrices[1] = np.nan
    matrices[2, 2, 2] = 1e-300
    matrices[2, 0, 2] = 1e300
    result = place.workspace.warp_normalize(place.put_all([image(9, 9)] * 3), matrices, 4, 4, fill=200)
    np.testing.assert_array_equal(place.get(result), np.full((3, 3, 4, 4), 200, np.float32))


def test_the_reference_warp_is_opencvs_but_for_its_rounding() -> None:
    """Over a smooth image, by at most 2."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
    smooth = cv2.GaussianBlur(image(200, 300), (9, 9), 3)
    matrix = reference.perspective(CORNERS[:1], 48, 320)[0]
    ours = reference.warp(smooth, matrix, 48, 320, border="repeat").astype(int)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    theirs = cv2.warpPerspective(smooth, matrix, (320, 48), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2)


# ---- batches, buffers, mistakes --------------------------------------------------------------------------------------


def test_more_images_than_expected_are_taken(place: Place) -> None:
    """Memory for tables grows; the results are right in every position."""
    images = [image(9 + number % 5, 8, seed=number) for number in range(150)]
    expected = reference.resize_normalize(images, 8, 8, filter="pillow")
    for _ in range(3):
        result = place.workspace.resize_normalize(place.put_all(images), 8, 8, filter="pillow")
        np.testing.assert_array_equal(place.get(result), expected)


@pytest.mark.parametrize(("count", "launches"), [(64, 1), (65, 2), (256, 4), (257, 1)])
def test_tables_of_images_are_arguments_of_up_to_four_launches(place: Place, count: int, launches: int) -> None:
    """Images of different sizes; of more than four launches' the table is copied."""
    images = [image(5 + number % 3, 6, seed=number) for number in range(count)]
    expected = reference.resize_normalize(images, 4, 5, filter="opencv")
    before = 0 if place.is_gpu else len(place.workspace._device.launches)
    result = place.workspace.resize_normalize(place.put_all(images), 4, 5, filter="opencv")
    np.testing.assert_array_equal(place.get(result), expected)
    assert place.is_gpu or len(place.workspace._device.launches) - before == launches


@pytest.mark.parametrize(("count", "launches"), [(300, 1), (cuda.ALIKE_ROWS + 1, 2), (4 * cuda.ALIKE_ROWS + 1, 1)])
def test_images_that_are_alike_are_told_by_their_addresses(place: Place, count: int, launches: int) -> None:
    """All of one size, each somewhere else; one that is a view with other strides is not alike."""
    images = [image(3, 4, seed=number) for number in range(count)]
    given_images = place.put_all(images)
    before = 0 if place.is_gpu else len(place.workspace._device.launches)
    result = place.workspace.normalize(given_images, **LOOK)
    np.testing.assert_array_equal(place.get(result), reference.normalize(images, **LOOK))
    assert place.is_gpu or len(place.workspace._device.launches) - before == launches
    given_images[-1] = place.put(image(6, 4, seed=count - 1))[::2]
    images[-1] = image(6, 4, seed=count - 1)[::2]
    result = place.workspace.normalize(given_images[-70:], **LOOK)
    np.testing.assert_array_equal(place.get(result), reference.normalize(images[-70:], **LOOK))


@pytest.mark.parametrize("way", ["opencv", "pillow"])
def test_blocks_of_several_bands_make_every_row(place: Place, way: Any) -> None:
    """So many images that blocks make more than one band; of those that shrink more, fewer; with and without places."""
    sizes = [(900, 700), (300, 200), (61, 40), (20, 30), (200, 1400)] * 4
    images = [image(*size, seed=seed) for seed, size in enumerate(sizes)]
    expected = reference.resize_normalize(images, 75, 66, filter=way, **LOOK)
    given_images = place.put_all(images)
    result = place.workspace.resize_normalize(given_images, 75, 66, filter=way, **LOOK)
    np.testing.assert_array_equal(place.get(result), expected)
    places = np.array([[number % 7, number % 5, 66 - number % 9, 50 + number % 3] for number in range(len(images))])
    expected = reference.resize_normalize(images, 75, 66, filter=way, places=places, fill=7, **LOOK)
    result = place.workspace.resize_normalize(given_images, 75, 66, filter=way, places=places, fill=7, **LOOK)
    np.testing.assert_array_equal(place.get(result), expected)


def test_more_than_one_launch_has(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid has an end; arrays, lists and boxes go on in the next."""
    monkeypatch.setattr(cuda, "LARGEST_LAUNCH", 2)
    images = np.stack([image(6, 10, seed=number) for number in range(5)])
    for given_images in (place.put(images), place.put_all(images)):
        result = place.workspace.normalize(given_images, **LOOK)
        np.testing.assert_array_equal(place.get(result), reference.normalize(images, **LOOK))
    matrices = np.tile(np.eye(3), (5, 1, 1))
    result = place.workspace.warp_normalize(place.put(images), matrices, 6, 10)
    np.testing.assert_array_equal(place.get(result), reference.normalize(images))


def test_the_callers_buffer_is_written_to_and_nothing_beside_it(place: Place) -> None:
    """A slice of a larger one."""
    images = [image(30, 20, seed=seed) for seed in range(2)]
    buffer = place.put(np.full((4, 3, 16, 8), -1, np.float32))
    out = buffer[1:3]
    assert place.workspace.resize_normalize(place.put_all(images), 16, 8, filter="opencv", out=out) is out
    written = place.get(buffer)
    np.testing.assert_array_equal(written[1:3], reference.resize_normalize(images, 16, 8, filter="opencv"))
    assert (written[[0, 3]] == -1).all()


def test_a_table_stands_for_its_images(place: Place) -> None:
    """As it is, chosen from, and cropped by hand."""
    images = [image(30, 20), image(25, 40)]
    kept = place.put_all(images)
    table = cuda.describe(kept, device=place.workspace._device)
    table = table[[1, 0, 1]]
    table["address"][2] += np.uint64(3 * table["row_stride"][2] + 5 * 3)
    table["height"][2], table["width"][2] = 20, 30
    chosen = [images[1], images[0], images[1][3:23, 5:35]]
    out = place.put(np.zeros((3, 3, 12, 14), np.float32))
    place.workspace.resize_normalize(table, 12, 14, filter="pillow", out=out)
    np.testing.assert_array_equal(place.get(out), reference.resize_normalize(chosen, 12, 14, filter="pillow"))


def test_threads_share_a_workspace(place: Place) -> None:
    """One call at a time; every caller gets its own results."""
    images = [image(20 + number, 30, seed=number) for number in range(4)]
    expected = [reference.resize_normalize([one], 9, 9, filter="pillow") for one in images]
    results: dict[int, list[Any]] = {}

    def call(number: int) -> None:
        given_images = place.put_all(images[number : number + 1])
        results[number] = [
            place.get(place.workspace.resize_normalize(given_images, 9, 9, filter="pillow")) for _ in range(20)
        ]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        for result in results[number]:
            np.testing.assert_array_equal(result, expected[number])


MISTAKES: list[tuple[str, Callable[[Place], Any], str]] = [
    ("no list", lambda p: p.workspace.normalize(5), "images: expected a list, or an array"),
    ("empty list", lambda p: p.workspace.normalize([]), "images: expected at least one in a list, got none"),
    ("no array", lambda p: p.workspace.normalize([[1]]), r"images\[0\]: expected an array on GPU 0, got a list"),
    ("two sizes", lambda p: p.workspace.normalize(p.put_all([image(2, 3), image(3, 3)])), "images of one size"),
    ("floats", lambda p: p.workspace.normalize([p.put(np.zeros((2, 3, 3), np.float32))]), "expected .*uint8"),
    ("gray", lambda p: p.workspace.normalize([p.put(image(2, 3, "gray"))]), "images: expected"),
    ("empty", lambda p: p.workspace.normalize([p.put(image(2, 3)[:0])]), "images: expected"),
    ("color", lambda p: p.workspace.normalize([p.put(image(2, 3))], target="hsv"), "target: expected 'bgr'"),
    ("std", lambda p: p.workspace.normalize([p.put(image(2, 3))], std=0), "std: expected no zero"),
    ("dtype", lambda p: p.workspace.normalize([p.put(image(2, 3))], dtype="float64"), "dtype: expected float32"),
    (
        "filter",
        lambda p: p.workspace.resize_normalize([p.put(image(2, 3))], 2, 2, filter="area"),
        "filter: expected 'opencv', 'pillow' or 'pillow13', got 'area'",
    ),
    (
        "height",
        lambda p: p.workspace.resize_normalize([p.put(image(2, 3))], 0, 2, filter="opencv"),
        "height: expected a whole number of at least 1, got 0",
    ),
    (
        "too high",
        lambda p: p.workspace.resize_normalize([p.put(image(2, 3))], 262_141, 2, filter="opencv"),
        "height: expected at most 262140, got 262141",
    ),
    (
        "place",
        lambda p: p.workspace.resize_normalize(
            [p.put(image(2, 3))], 4, 4, filter="opencv", places=np.array([[1, 0, 4, 4]])
        ),
        r"places: expected .* inside of \(4, 4\), got \[1, 0, 4, 4\]",
    ),
    (
        "fill",
        lambda p: p.workspace.resize_normalize([p.put(image(2, 3))], 4, 4, filter="opencv", fill=256),
        "fill: expected a whole number of 0 to 255",
    ),
    (
        "index",
        lambda p: p.workspace.warp_normalize([p.put(image(2, 3))], np.eye(3)[None], 4, 4, indices=[1]),
        r"indices: expected numbers of 1 images, got \[1\]",
    ),
    (
        "matrices",
        lambda p: p.workspace.warp_normalize([p.put(image(2, 3))], np.eye(3), 4, 4),
        r"matrices: expected shape \(1, 3, 3\), got \(3, 3\)",
    ),
    (
        "out",
        lambda p: p.workspace.normalize([p.put(image(2, 3))], out=p.put(np.zeros((1, 3, 3, 2), np.float32))),
        "out: expected",
    ),
]


@pytest.mark.parametrize(("call", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_wrong_argument_is_refused_with_expected_and_got(place: Place, call: Any, message: str) -> None:
    """KernelError, before anything is queued."""
    with pytest.raises(KernelError, match=message):
        call(place)


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a workspace says what to install; importing the module needs nothing."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    _cuda_device.device.cache_clear()
    with pytest.raises(MissingExtra, match=r"fastpipe.kernels.cuda needs cupy: pip install 'fastpipe-engine\[cuda\]'"):
        cuda.Workspace(0)


# ---- what only a GPU can show ----------------------------------------------------------------------------------------


@pytest.fixture
def gpu(place: Place) -> Place:
    """A place that is a GPU."""
    if not place.is_gpu:
        pytest.skip("the emulator has no streams and no other libraries")
    return place


def test_results_have_the_type_of_the_images_and_dlpack(gpu: Place) -> None:
    """CuPy's, torch's, and from one to the other without a copy."""
    images = gpu.put_all([image(9, 9)])
    result = gpu.workspace.normalize(images)
    assert type(result) is type(images[0])
    import cupy

    np.testing.assert_array_equal(cupy.asnumpy(cupy.from_dlpack(result)), gpu.get(result))


def test_what_has_dlpack_or_the_cuda_array_interface_is_taken(gpu: Place) -> None:
    """An object that shows nothing else, and Numba's arrays if it is installed."""

    class Shown:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    pixels = image(9, 9)
    expected = reference.normalize([pixels], **LOOK)
    shown: list[Any] = [Shown(gpu.put(pixels))]
    try:
        from numba import cuda as numba_cuda

        shown.append(numba_cuda.to_device(pixels))
    except Exception:  # a Numba that does not suit this CUDA raises anything
        pass
    for one in shown:
        import cupy

        np.testing.assert_array_equal(cupy.asnumpy(gpu.workspace.normalize([one], **LOOK)), expected)


def test_the_callers_stream_is_used_and_not_awaited(gpu: Place) -> None:
    """Behind work of the stream that is not done yet; from eight threads, each with a stream of its own."""
    import cupy

    # Waits until the host has written to pinned memory, or for two seconds.
    source = """extern "C" __global__ void wait(const volatile int* is_open) {
        for (long long start = clock64(); !*is_open && clock64() - start < 4000000000LL;);
    }"""
    wait = cupy.RawKernel(source, "wait")
    failures: list[Any] = []
    ready = threading.Barrier(8)

    def call(number: int) -> None:
        with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
            pixels = image(50 + number, 60, seed=number)
            expected = reference.resize_normalize([pixels], 20, 20, filter="pillow", **LOOK)
            late = cupy.zeros_like(cupy.asarray(pixels))
            soon = cupy.asarray(pixels)
            out = cupy.empty((1, 3, 20, 20), np.float32)
            workspace = cuda.Workspace(0)
            workspace.resize_normalize([soon], 20, 20, filter="pillow", **LOOK)
            cupy.copyto(late, late.copy())
            pinned = cupy.cuda.alloc_pinned_memory(4)
            is_open = np.frombuffer(pinned, np.int32, 1)
            is_open[0] = 1
            wait((1,), (1,), (np.uint64(pinned.ptr),))
            stream.synchronize()
            ready.wait()  # allocating memory, as the others may be, waits for the whole device
            is_open[0] = 0
            wait((1,), (1,), (np.uint64(pinned.ptr),))
            cupy.copyto(late, soon)
            workspace.resize_normalize([late], 20, 20, filter="pillow", **LOOK, out=out, stream=stream)
            if stream.done:
                failures.append("awaited")
            is_open[0] = 1
            stream.synchronize()
            if not np.array_equal(cupy.asnumpy(out), expected):
                failures.append(number)
            ready.wait()  # so does giving it back

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_nothing_is_allocated_in_the_steady_state(gpu: Place) -> None:
    """Neither by CuPy's pool nor by torch's, once the caller gives ``out``."""
    import cupy

    images = gpu.put_all([image(40, 50), image(90, 31)])
    out = gpu.put(np.zeros((2, 3, 24, 24), np.float32))
    gpu.workspace.resize_normalize(images, 24, 24, filter="pillow", out=out)
    free_before = cupy.cuda.runtime.memGetInfo()[0]
    made: list[int] = []

    class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "count"

        def malloc_preprocess(self, **details: Any) -> None:
            made.append(details["size"])

    with Hook():
        for _ in range(50):
            gpu.workspace.resize_normalize(images, 24, 24, filter="pillow", out=out)
    cupy.cuda.runtime.deviceSynchronize()
    assert (made, cupy.cuda.runtime.memGetInfo()[0]) == ([], free_before)


def test_the_example_with_numba_runs(gpu: Place, repository_root: Path) -> None:
    """An operation of the user's own, in Numba, on the same stream."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not installed here")
    example = repository_root / "examples" / "numba_cuda"
    command = [sys.executable, "-P", "-W", "ignore", str(example)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "fastpipe._core" in ran.stderr:
        pytest.skip("the engine is not built here")
    assert (ran.returncode, ran.stdout.count("right: True")) == (0, 3), ran.stderr
