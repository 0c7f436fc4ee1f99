"""DecodeTensor: against a strict fake of nvJPEG's C interface, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import calls_of
from nvjpeg_fake import STREAM, Fake, jpeg, pixels_of

import fastpipe
from fastpipe.backends.gpu.handed_on import Pixels
from fastpipe.backends.tensor import nvjpeg
from fastpipe.backends.tensor.nvjpeg import BatchDecoder, Library
from fastpipe.errors import ConfigError, DecodeError, ItemErrors, MissingExtra


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
