"""A picture to boxes, each box to a crop, each crop to a class: detectors' heads behind models, and in one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (extra cpu)")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra cpu)")
cv2: Any = pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")

from onnx_models import color_model, detector_model, make_model  # noqa: E402

import fastpipe  # noqa: E402
from fastpipe.backends.image.geometry import LetterBoxMat, ResizePadMat  # noqa: E402
from fastpipe.backends.model.heads.detectors import YoloV8  # noqa: E402
from fastpipe.backends.model.onnx import OnnxTensor  # noqa: E402
from fastpipe.errors import ConfigError, ItemErrors, KernelError  # noqa: E402

RED, GREEN, BLUE = range(3)


def picture(*squares: tuple[int, int, int]) -> np.ndarray:
    """A black picture, BGR, 128 wide and 64 high, with squares of 32 pixels: (column, row, class)."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    for column, row, number in squares:
        pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32, 2 - number] = 255
    return pixels


def planes(*cells: tuple[int, int, int]) -> np.ndarray:
    """What the detector gets, with cells of full color: (column, row, class)."""
    image = np.zeros((3, 64, 64), np.float32)
    for column, row, number in cells:
        image[number, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
    return image


def detecting(postprocessor: Any, **options: Any) -> OnnxTensor:
    return OnnxTensor(model=detector_model(), postprocessor=postprocessor, max=4, **options)


# ---- behind a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("postprocessor", ["YoloV8", {"name": "yolov8", "score_threshold": 0.5}, YoloV8()], ids=str)
def test_each_request_of_a_batch_has_its_own_boxes(postprocessor: Any) -> None:
    """One, two and no box; by name, by a mapping, by an object."""
    backend = detecting(postprocessor)
    assert backend.keeps_input
    batch = [{"data": planes(*cells)} for cells in ([(1, 2, GREEN)], [(0, 0, RED), (3, 3, BLUE)], [])]
    backend.forward(batch)
    assert [request["result"].tolist() for request in batch] == [
        [[16, 32, 32, 48]],
        [[0, 0, 16, 16], [48, 48, 64, 64]],
        [],
    ]
    assert [request["classes"].tolist() for request in batch] == [[GREEN], [RED, BLUE], []]
    assert [request["scores"].tolist() for request in batch] == [[1], [1, 1], []]


def test_a_request_with_a_wrong_inverse_fails_alone() -> None:
    """The others of its batch have their boxes."""
    batch: list[dict[str, Any]] = [{"data": planes((row, row, RED))} for row in range(3)]
    batch[1]["inverse_trans"] = 5
    with pytest.raises(ItemErrors) as caught:
        detecting("YoloV8").forward(batch)
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: KernelError}
    assert [request["result"].tolist() for request in batch[::2]] == [[[0, 0, 16, 16]], [[32, 32, 48, 48]]]


def test_a_model_that_a_head_cannot_read_is_refused_with_its_name() -> None:
    """When the pipe is built, with the shapes."""
    with pytest.raises(ConfigError, match=r"model of \d+ bytes: postprocessor YoloV10: expected .*'n', 7, 16"):
        detecting("YoloV10")


def test_torch_models_have_the_same_heads() -> None:
    """On the CPU; the results are arrays."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed (extra torch)")
    torch_model: Any = pytest.importorskip("fastpipe.backends.model.torch")

    class Finds(torch.nn.Module):  # type: ignore[misc]
        def forward(self, image: Any) -> Any:
            scores = torch.nn.functional.avg_pool2d(image, 32).flatten(2)
            box = torch.tensor([16.0, 16, 32, 32])[None, :, None].expand(len(image), 4, 4)
            return torch.cat([box, scores], 1)

    backend = torch_model.TorchTensor(model=Finds(), max="2x3x64x64", device=["cpu"], postprocessor="YoloV8")
    batch = [{"data": planes((0, 0, RED), (1, 0, RED), (0, 1, RED), (1, 1, RED))}, {"data": planes()}]
    backend.forward(batch)
    assert (batch[0]["result"].tolist(), batch[0]["classes"].tolist()) == ([[0, 0, 32, 32]], [RED])
    assert batch[1]["result"].shape == (0, 4)


@pytest.mark.parametrize("backend_class", [LetterBoxMat, ResizePadMat])
def test_what_a_picture_was_padded_from_is_in_its_inverse(backend_class: Any) -> None:
    """So that boxes can be cut off at its edges."""
    request: dict[str, Any] = {"data": picture()}
    backend_class(max_h=64, max_w=64).forward([request])
    assert request["inverse_trans"].source_size == (64, 128)


def test_tensors_that_are_padded_say_their_source_size_too() -> None:
    """ResizePadTensor, as ResizePadMat."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed (extra torch)")
    geometry: Any = pytest.importorskip("fastpipe.backends.tensor.geometry")
    request: dict[str, Any] = {"data": torch.zeros(1, 3, 64, 128)}
    geometry.ResizePadTensor(max_h=64, max_w=64).forward([request])
    assert request["inverse_trans"].source_size == (64, 128)


def test_several_inputs_and_outputs_meet_in_a_head() -> None:
    """MeanPooling finds its mask among the inputs of a mapping, for each request of the batch."""
    from onnx import TensorProto, helper

    model = make_model(
        [
            helper.make_node("Unsqueeze", ["tokens", "axis"], ["wide"]),
            helper.make_node("Concat", ["wide", "wide"], ["embeddings"], axis=2),
            helper.make_node("Identity", ["attention_mask"], ["echo"]),
        ],
        {"tokens": ["n", "length"], "attention_mask": (TensorProto.INT64, ["n", "length"])},
        {"embeddings": ["n", "length", 2], "echo": (TensorProto.INT64, ["n", "length"])},
        {"axis": np.array([2])},
    )
    backend = OnnxTensor(model=model, max=2, postprocessor={"name": "MeanPooling"})
    masks = [[1, 1, 0], [0, 1, 1]]
    batch = [{"data": {"tokens": np.array([1, 2, 6], np.float32), "attention_mask": np.array(mask)}} for mask in masks]
    backend.forward(batch)
    assert [request["result"].tolist() for request in batch] == [[1.5, 1.5], [4, 4]]


# ---- in one graph ----------------------------------------------------------------------------------------------------


@pytest.fixture
def detecting_file(tmp_path: Path) -> Path:
    """A configuration with its two models beside it."""
    (tmp_path / "detector.onnx").write_bytes(detector_model())
    (tmp_path / "colors.onnx").write_bytes(color_model())
    path = tmp_path / "colors.toml"
    path.write_text(
        """
        [decode]
        backend = "DecodeMat"
        next = ["detect", "each_box"]

        [detect]
        backend = "S[LetterBoxMat,NormalizeMat,OnnxTensor]"
        max_h = 64
        max_w = 64
        color = "rgb"
        "NormalizeMat::std" = 255
        model = "detector.onnx"
        max = 4
        postprocessor = { name = "YoloV8", score_threshold = 0.5 }
        next = "each_box"

        [each_box]
        backend = "MapReduce"
        map = "decode[result:data],detect[result:box,scores:scores]"
        split = "box"
        share = "data"
        jump = "classify"

        [classify]
        backend = "S[CropResizeMat,NormalizeMat,OnnxTensor]"
        resize_h = 8
        resize_w = 8
        color = "rgb"
        "NormalizeMat::std" = 255
        model = "colors.onnx"
        max = 8
        postprocessor = "SoftmaxArgMax"
        """
    )
    return path


def test_detect_crop_and_classify_is_one_graph(detecting_file: Path) -> None:
    """The boxes are those of the picture as it was decoded, and each has its class, for many callers together."""
    pictures = [[(0, 0, RED), (2, 1, BLUE)], [(3, 1, GREEN)], [], [(1, 0, BLUE), (3, 0, RED), (0, 1, GREEN)]]
    with fastpipe.Pipe(detecting_file) as pipe:
        requests = [{"data": cv2.imencode(".png", picture(*squares))[1].tobytes()} for squares in pictures]
        pipe(requests)
    for request, squares in zip(requests, pictures, strict=True):
        boxes = [[32 * column, 32 * row, 32 * column + 32, 32 * row + 32] for column, row, _ in squares]
        found = dict(zip(map(tuple, request["box"].tolist()), request["result"], strict=True))
        assert found == {tuple(box): number for box, (_, _, number) in zip(boxes, squares, strict=True)}
        assert request["scores"].tolist() == [1] * len(squares)


LETTERBOX = {"max_h": 64, "max_w": 64, "color": "rgb", "NormalizeMat::std": 255, "max": 4}


def test_masks_lie_on_what_is_cut_out_of_the_picture() -> None:
    """Of a square that is half red, the half is found, in pixels of the picture; of a whole one all but the edges."""
    pixels = picture((0, 0, RED), (2, 1, BLUE))
    pixels[:16, :32] = 0
    backend = "S[DecodeMat,LetterBoxMat,NormalizeMat,OnnxTensor]"
    head = {"name": "YoloV8Seg", "score_threshold": 0.4}
    with fastpipe.Pipe(backend=backend, model=detector_model(kind="seg"), postprocessor=head, **LETTERBOX) as pipe:
        answer = pipe({"data": cv2.imencode(".png", pixels)[1].tobytes()})
    assert answer["result"].tolist() == [[64, 32, 96, 64], [0, 0, 32, 32]]
    for box, mask, level in zip(answer["result"].astype(int), answer["masks"], (0, 2), strict=True):
        left, top, right, bottom = box
        seen = pixels[top:bottom, left:right, level] > 0
        assert mask.shape == seen.shape == (32, 32)
        assert (mask != seen).mean() < 0.2  # a prototype's pixel is eight of the picture
        assert mask[seen].mean() > 0.9


def test_key_points_are_those_of_the_picture() -> None:
    """The centres of the boxes; of many callers, each has its own."""
    backend = "S[DecodeMat,LetterBoxMat,NormalizeMat,OnnxTensor]"
    head = {"name": "YoloV8Pose", "class_count": 3}
    places = [(0, 0, RED), (3, 1, GREEN), (2, 0, BLUE)]
    with fastpipe.Pipe(backend=backend, model=detector_model(kind="pose"), postprocessor=head, **LETTERBOX) as pipe:
        requests = [{"data": cv2.imencode(".png", picture(place))[1].tobytes()} for place in places]
        pipe(requests)
    for request, (column, row, number) in zip(requests, places, strict=True):
        assert request["key_points"].tolist() == [[[32 * column + 16, 32 * row + 16, 1]]]
        assert request["classes"].tolist() == [number]


def test_turned_boxes_are_cut_out_upright() -> None:
    """Each corner list is a part's quad; what was at the right of the picture is above in the crop."""
    pixels = picture((1, 0, RED))
    pixels[:32, 48:64] = (0, 0, 128)  # the right half is darker
    graph = {
        "decode": {"backend": "DecodeMat", "next": "detect,each_box"},
        "detect": {
            "backend": "S[LetterBoxMat,NormalizeMat,OnnxTensor]",
            "model": detector_model(kind="obb"),
            "postprocessor": "YoloV8Obb",
            "next": "each_box",
            **LETTERBOX,
        },
        "each_box": {
            "backend": "MapReduce",
            "map": "decode[result:data],detect[quads:quad,result:boxes]",
            "split": "quad",
            "share": "data",
            "jump": "crop",
        },
        "crop": {"backend": "PerspectiveTransformMat"},
    }
    with fastpipe.Pipe(graph) as pipe:
        answer = pipe({"data": cv2.imencode(".png", pixels)[1].tobytes()})
    np.testing.assert_allclose(answer["boxes"], [[48, 16, 32, 32, np.pi / 2]], atol=1e-4)
    (crop,) = answer["result"]
    assert crop.shape == (32, 32, 3)
    # Its upper edge runs down at the right side of the square: the step takes corners for pixels, so it is the first
    # column behind it.
    np.testing.assert_array_equal(crop[1:], np.rot90(pixels[:32, 32:64])[:-1])


def test_a_mistake_in_the_options_is_found_when_the_pipe_is_built(detecting_file: Path) -> None:
    """With model, option and the nearest name."""
    detecting_file.write_text(detecting_file.read_text().replace("score_threshold", "score_treshold"))
    with pytest.raises(ConfigError, match=r"detector\.onnx': .*'score_treshold'.*did you mean 'score_threshold'"):
        fastpipe.Pipe(detecting_file)
