"""The array kernels: the compiled ones against the reference, the reference against OpenCV and arithmetic by hand."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe.errors import KernelError
from fastpipe.kernels import cpu, reference

COLORS = ["bgr", "rgb", "gray"]
MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
# Around 224 x 224, one pixel, one row, one column, odd, and more than the kernels compute without releasing the GIL.
SIZES = [(1, 1), (1, 7), (7, 1), (13, 17), (224, 224), (255, 257), (301, 223)]

both = pytest.mark.parametrize("kernels", [cpu, reference], ids=["cpu", "reference"])


def image(height: int, width: int, color: str = "bgr", seed: int = 0) -> Any:
    shape = (height, width) if color == "gray" else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbers(values: list[float], color: str) -> list[float]:
    return values[:1] if color == "gray" else values


# ---- values ----------------------------------------------------------------------------------------------------------


@both
def test_colors_are_converted_as_by_hand(kernels: ModuleType) -> None:
    """Blue, green, red and a mixture, in every direction."""
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    gray = np.array([[29, 150, 76, 22]], np.uint8)
    np.testing.assert_array_equal(kernels.convert_color(pixels, "bgr", "rgb"), pixels[..., ::-1])
    np.testing.assert_array_equal(kernels.convert_color(pixels, "bgr", "gray"), gray)
    np.testing.assert_array_equal(kernels.convert_color(pixels[..., ::-1], "rgb", "gray"), gray)
    np.testing.assert_array_equal(kernels.convert_color(gray, "gray", "rgb"), np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(kernels.convert_color(pixels, "bgr", "bgr"), pixels)


@both
def test_gray_is_that_of_opencv(kernels: ModuleType) -> None:
    """Bit for bit, over noise."""
    cv2 = pytest.importorskip("cv2")
    pixels = image(301, 223)
    expected = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(kernels.convert_color(pixels, "bgr", "gray"), expected)


@both
def test_mean_and_std_are_in_the_order_of_the_result(kernels: ModuleType) -> None:
    """A plain blue picture: blue is the last channel of RGB and uses the last mean and std."""
    blue = np.full((2, 3, 3), (200, 0, 0), np.uint8)
    result = kernels.normalize(blue, mean=[1, 2, 4], std=[1, 2, 8], source="bgr", target="rgb")
    assert result.shape == (3, 2, 3)
    np.testing.assert_array_equal(result[:, 0, 0], np.float32([-1, -1, 24.5]))


@both
def test_float16_is_rounded_once_from_float32(kernels: ModuleType) -> None:
    """Every byte, in each of the channels, is the float32 result cast; what is too large is infinity."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[np.newaxis, :, np.newaxis], 3, axis=2)
    single = kernels.normalize(pixels, mean=MEAN, std=STD)
    half = kernels.normalize(pixels, mean=MEAN, std=STD, dtype=np.float16)
    assert (single.dtype, half.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(half, single.astype(np.float16))
    assert kernels.normalize(pixels, std=1e-4, dtype="float16").max() == np.inf


@pytest.mark.parametrize("target", COLORS)
@pytest.mark.parametrize("source", COLORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_kernels_give_the_bits_of_the_reference(size: tuple[int, int], source: Any, target: Any) -> None:
    """Odd sizes, small and large, each pair of colors, both dtypes."""
    pixels = image(*size, color=source)
    np.testing.assert_array_equal(
        cpu.convert_color(pixels, source, target), reference.convert_color(pixels, source, target)
    )
    for dtype in (np.float32, np.float16):
        wanted: dict[str, Any] = {"source": source, "target": target, "dtype": dtype}
        wanted |= {"mean": numbers(MEAN, target), "std": numbers(STD, target)}
        np.testing.assert_array_equal(cpu.normalize(pixels, **wanted), reference.normalize(pixels, **wanted))


@both
def test_resize_takes_the_pixels_around_a_pixels_middle(kernels: ModuleType) -> None:
    """By hand: twice as many are 3 to 1 mixtures, half as many are means, the same number are the same."""
    pixels = np.array([[[0] * 3, [100] * 3], [[200] * 3, [40] * 3]], np.uint8)
    np.testing.assert_array_equal(kernels.resize(pixels, 2, 4)[0, :, 0], [0, 25, 75, 100])
    np.testing.assert_array_equal(kernels.resize(pixels, 4, 2)[:, 1, 2], [100, 85, 55, 40])
    np.testing.assert_array_equal(kernels.resize(pixels, 1, 1), [[[85] * 3]])
    np.testing.assert_array_equal(kernels.resize(pixels, 2, 2), pixels)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sizes=st.tuples(*[st.integers(1, 90)] * 4), is_view=st.booleans(), seed=st.integers(0, 9))
def test_resize_gives_the_bits_of_the_reference_and_opencvs_but_one(
    sizes: tuple[int, int, int, int], is_view: bool, seed: int
) -> None:
    """Any size to any size, of views too. OpenCV's last bit depends on the processor it was built for."""
    cv2 = pytest.importorskip("cv2")
    height, width, new_height, new_width = sizes
    pixels = image(height, width, seed=seed)
    seen = np.pad(pixels, ((1, 0), (0, 2), (0, 0)))[1:, :-2] if is_view else pixels
    expected = reference.resize(pixels, new_height, new_width)
    np.testing.assert_array_equal(cpu.resize(seen, new_height, new_width), expected)
    np.testing.assert_allclose(expected.astype(int), cv2.resize(pixels, (new_width, new_height)), rtol=0, atol=1)


@pytest.mark.parametrize("new_size", [(300, 301), (3, 2000)], ids=str)
def test_resize_to_many_pixels_too(new_size: tuple[int, int]) -> None:
    """Where the GIL is released; into the caller's buffer."""
    pixels, out = image(123, 77), np.empty((*new_size, 3), np.uint8)
    assert cpu.resize(pixels, *new_size, out=out) is out
    np.testing.assert_array_equal(out, reference.resize(pixels, *new_size))


@both
@pytest.mark.parametrize(
    ("height", "width", "out", "message"),
    [
        (0, 5, None, "height: expected a whole number of at least 1, got 0"),
        (5, 2.0, None, "width: expected a whole number of at least 1, got 2.0"),
        (5, 5, np.empty((5, 5), np.uint8), r"out: expected .* of shape \(5, 5, 3\), got uint8 of shape \(5, 5\)"),
    ],
)
def test_resize_refuses_wrong_arguments(kernels: ModuleType, height: Any, width: Any, out: Any, message: str) -> None:
    """Sizes and buffers; the image as for the other kernels, and an empty one."""
    with pytest.raises(KernelError, match=message):
        kernels.resize(PIXELS, height, width, out=out)
    for wrong in (PIXELS[:0], PIXELS[..., 0]):
        with pytest.raises(KernelError, match="image: expected"):
            kernels.resize(wrong, 3, 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_view_of_an_image_is_accepted(data: st.DataObject) -> None:
    """Crops, steps, reversed axes, swapped axes and broadcast rows give what a copy of them gives."""
    base = image(24, 20, seed=data.draw(st.integers(0, 3)))
    rows, columns = (
        slice(data.draw(st.integers(0, 5)), data.draw(st.integers(6, 20)), data.draw(st.integers(1, 3)))
        for _ in range(2)
    )
    view = base[rows, columns]
    if data.draw(st.booleans()):
        view = view[::-1]
    if data.draw(st.booleans()):
        view = view[:, ::-1]
    if data.draw(st.booleans()):
        view = view[..., ::-1]
    if data.draw(st.booleans()):
        view = view.transpose(1, 0, 2)
    if data.draw(st.booleans()):
        view = np.broadcast_to(view[:1], view.shape)
    wanted: dict[str, Any] = {"mean": MEAN, "std": STD, "target": data.draw(st.sampled_from(COLORS))}
    wanted |= {key: numbers(wanted[key], wanted["target"]) for key in ("mean", "std")}
    np.testing.assert_array_equal(cpu.normalize(view, **wanted), reference.normalize(view.copy(), **wanted))
    np.testing.assert_array_equal(cpu.convert_color(view, "bgr", "rgb"), view.copy()[..., ::-1])
    gray = view[..., 1]
    np.testing.assert_array_equal(cpu.normalize(gray, source="gray", target="gray")[0], gray.astype(np.float32))


@both
def test_the_input_is_not_changed(kernels: ModuleType) -> None:
    """A read-only image is as good as any."""
    pixels = image(9, 9)
    before = pixels.copy()
    pixels.flags.writeable = False
    kernels.normalize(pixels, mean=1.0)
    kernels.convert_color(pixels, "bgr", "gray")
    np.testing.assert_array_equal(pixels, before)


# ---- batches and buffers ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", [(5, 7), (150, 155)], ids=str)
def test_a_batch_is_its_images_one_by_one(kernels: ModuleType, count: int, size: tuple[int, int]) -> None:
    """As one array, as a list of arrays that lie anywhere, and as a list of views."""
    images = [image(*size, seed=seed) for seed in range(count)]
    expected = np.stack([reference.normalize(one, mean=MEAN, std=STD, target="rgb") for one in images])
    wide = [np.pad(one, ((2, 1), (3, 0), (0, 0)))[2:-1, 3:] for one in images]
    for batch in (np.stack(images), images, tuple(images), wide, [*wide[:1], *images[1:]]):
        result = kernels.normalize(batch, mean=MEAN, std=STD, target="rgb")
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, expected)


@both
def test_a_gray_batch_has_one_channel(kernels: ModuleType) -> None:
    """(n, h, w) becomes (n, 1, h, w), or (n, 3, h, w) if color is wanted."""
    images = np.stack([image(4, 6, "gray", seed) for seed in range(3)])
    np.testing.assert_array_equal(kernels.normalize(images, source="gray", target="gray")[:, 0], images)
    in_color = kernels.normalize(images, mean=[0, 1, 2], source="gray", target="rgb")
    np.testing.assert_array_equal(in_color, images[:, np.newaxis] - np.float32([0, 1, 2])[:, np.newaxis, np.newaxis])


@both
@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 0, 5, 3), (2, 4, 0, 3)], ids=str)
def test_a_batch_of_nothing_is_nothing(kernels: ModuleType, shape: tuple[int, ...]) -> None:
    """No image, no row, no column."""
    assert kernels.normalize(np.zeros(shape, np.uint8)).shape == (shape[0], 3, *shape[1:3])


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_callers_buffer_is_written_to_and_returned(kernels: ModuleType, dtype: Any) -> None:
    """A slice of a larger buffer, too; its dtype is the result's, and nothing beside it is touched."""
    buffer = np.full((4, 3, 6, 5), -1, dtype)
    out = buffer[1:3]
    images = [image(6, 5, seed=seed) for seed in range(2)]
    assert kernels.normalize(images, mean=MEAN, std=STD, out=out) is out
    np.testing.assert_array_equal(out, reference.normalize(images, mean=MEAN, std=STD, dtype=dtype))
    assert (buffer[[0, 3]] == -1).all()
    single = buffer[0]
    assert kernels.normalize(images[0], out=single) is single
    gray = np.empty((6, 5), np.uint8)
    assert kernels.convert_color(images[0], "bgr", "gray", out=gray) is gray


# ---- mistakes --------------------------------------------------------------------------------------------------------

PIXELS = image(4, 5)
READ_ONLY = np.empty((3, 4, 5), np.float32)
READ_ONLY.flags.writeable = False

MISTAKES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("no array", [[1, 2]], {}, r"images\[0\]: expected a uint8 array .* got a list"),
    ("dtype", PIXELS.astype(np.float32), {}, r"expected a uint8 array .*, got float32 of shape \(4, 5, 3\)"),
    (
        "four channels",
        np.zeros((4, 5, 4), np.uint8),
        {},
        r"\(height, width, 3\) for bgr, got uint8 of shape \(4, 5, 4\)",
    ),
    ("gray as bgr", PIXELS[..., 0], {}, r"\(height, width, 3\) for bgr, got uint8 of shape \(4, 5\)"),
    ("bgr as gray", np.zeros((1, 4, 5, 3), np.uint8), {"source": "gray"}, r"\(n, height, width\) for gray"),
    ("empty list", [], {}, "expected at least one in a list, got none"),
    ("two sizes", [PIXELS, PIXELS[1:]], {}, r"images\[1\]: expected \(4, 5, 3\), as images\[0\], got \(3, 5, 3\)"),
    ("color", PIXELS, {"target": "hsv"}, "target: expected 'bgr', 'rgb' or 'gray', got 'hsv'"),
    ("std zero", PIXELS, {"std": [1, 0, 1]}, r"std: expected no zero, got \(1, 0, 1\)"),
    ("std underflows", PIXELS, {"std": 1e-60}, "std: expected no zero"),
    ("two means", PIXELS, {"mean": [1, 2]}, r"mean: expected a number or 3 of them, got \(1, 2\)"),
    ("three for gray", PIXELS, {"mean": [1, 2, 3], "target": "gray"}, "mean: expected a number or 1 of them"),
    ("mean in words", PIXELS, {"mean": "one"}, "mean: expected a number or 3 of them"),
    ("mean nan", PIXELS, {"mean": float("nan")}, "mean: expected finite numbers, got nan"),
    ("result dtype", PIXELS, {"dtype": np.float64}, "dtype: expected float32 or float16, got float64"),
    ("no out", PIXELS, {"out": [0], "dtype": "float32"}, "out: expected a writable, .* got a list"),
    ("out dtype", PIXELS, {"out": np.empty((3, 4, 5)), "dtype": "float32"}, "expected .* float32 .*, got float64"),
    ("out shape", PIXELS, {"out": np.empty((3, 5, 4), np.float32)}, r"of shape \(3, 4, 5\), got .* \(3, 5, 4\)"),
    (
        "out strided",
        PIXELS,
        {"out": np.empty((3, 4, 10), np.float32)[..., ::2]},
        r"got one with strides \(160, 40, 8\)",
    ),
    ("out read-only", PIXELS, {"out": READ_ONLY}, "got a read-only one"),
]


@both
@pytest.mark.parametrize(("images", "options", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_wrong_argument_is_refused_with_expected_and_got(
    kernels: ModuleType, images: Any, options: dict[str, Any], message: str
) -> None:
    """KernelError, also a ValueError, before anything is computed."""
    with pytest.raises(KernelError, match=message) as caught:
        kernels.normalize(images, **options)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("fill", [-1, 256, 1.5, [1, 2], float("nan")], ids=repr)
def test_a_fill_that_is_no_byte_is_refused(fill: Any) -> None:
    """It would wrap around, or lose its fraction."""
    with pytest.raises(KernelError, match="fill: expected a whole number of 0 to 255, or 3 of them, got"):
        reference.warp(PIXELS, np.eye(3), 4, 4, fill=fill)
    with pytest.raises(KernelError, match="fill: expected a whole number of 0 to 255, or 3 of them, got"):
        reference.resize_normalize([PIXELS], 2, 2, filter="opencv", fill=fill)


@both
def test_an_output_that_shares_the_images_memory_is_refused(kernels: ModuleType) -> None:
    """In place, a pixel would be read after it was written."""
    pixels = image(4, 5)
    with pytest.raises(KernelError, match="out: expected memory of its own"):
        kernels.convert_color(pixels, "bgr", "rgb", out=pixels)
    floats = np.zeros((3, 4, 5), np.float32)
    shared = floats.view(np.uint8).reshape(-1)[: 4 * 5 * 3].reshape(4, 5, 3)
    with pytest.raises(KernelError, match="out: expected memory of its own, got some that an image shares"):
        kernels.normalize(shared, out=floats)


@both
def test_sides_may_be_small_integers_of_numpy(kernels: ModuleType) -> None:
    """Their product does not fit into their own type."""
    pixels = image(20, 30)
    wanted = kernels.resize(pixels, 200, 200)
    assert np.array_equal(kernels.resize(pixels, np.uint8(200), np.uint8(200)), wanted)
    with pytest.raises(KernelError, match="height: expected a whole number of at least 1, got True"):
        kernels.resize(pixels, True, 200)


# ---- threads, the GIL, imports ---------------------------------------------------------------------------------------


def test_kernels_are_reentrant() -> None:
    """Four threads, each with its own images and buffers, small and large, all get their own results."""
    wrong = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        small, large = image(31, 33, seed=seed), image(300, 301, seed=seed)
        expected = [reference.normalize(one, mean=seed, target="rgb") for one in (small, large)]
        start.wait()
        for _ in range(20):
            for one, result in zip((small, large), expected, strict=True):
                if not np.array_equal(cpu.normalize(one, mean=seed, target="rgb"), result):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def ran_beside(call: Callable[[], object], *, calls: int) -> bool:
    """Say whether another thread, which only waits for the GIL, got it while this one was in one of some calls."""
    may_run, has_run = threading.Lock(), []
    may_run.acquire()

    def wait_for_turn() -> None:
        with may_run:
            has_run.append(True)

    thread = threading.Thread(target=wait_for_turn)
    thread.start()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(WAIT_S)  # nobody has to give up the GIL; this thread does so only where a call does
    try:
        may_run.release()
        for _ in range(calls):
            call()
            if has_run:
                break
        return bool(has_run)
    finally:
        sys.setswitchinterval(interval_s)
        thread.join()


def test_the_gil_is_kept_for_few_pixels_and_released_for_many() -> None:
    """Each kernel, on both sides of the limit, which counts the pixels of the result."""
    few, many = image(200, 200), image(300, 300)
    for pixels in (few, many):
        kernels: list[Callable[[], object]] = [
            partial(cpu.convert_color, pixels, "bgr", "rgb"),
            partial(cpu.resize, few, *pixels.shape[:2]),
            partial(cpu.normalize, pixels),
        ]
        is_released = pixels is many
        for kernel in kernels:
            kernel()  # what is made once has been made
            assert ran_beside(kernel, calls=100_000 if is_released else 50) is is_released


def test_the_kernels_of_the_cpu_load_nothing_but_numpy(tmp_path: Path) -> None:
    """When they are imported, and when they compute."""
    script = """
import sys
import numpy
before = set(sys.modules)
from fastpipe.kernels import cpu
pixels = numpy.zeros((4, 4, 3), numpy.uint8)
cpu.convert_color(pixels, "bgr", "gray")
cpu.normalize(pixels, dtype="float16")
cpu.resize(pixels, 3, 3)
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(name for name in loaded - {"fastpipe", "numpy", *sys.stdlib_module_names} if "cython" not in name))
"""
    command = [sys.executable, "-P", "-c", script]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")
