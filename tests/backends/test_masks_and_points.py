"""Masks and key points of YOLO models: against OpenCV's interpolation and the published arithmetic, written out."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastpipe.backends.model.heads.instance_masks import PIXELS_AT_A_TIME, YoloV5Seg, YoloV8Seg
from fastpipe.backends.model.heads.key_points import YoloV8Pose
from fastpipe.backends.model.heads.postprocessors import find_postprocessor
from fastpipe.backends.model.reader import UnfitError
from fastpipe.errors import ConfigError

DATA = np.zeros((3, 64, 96), np.float32)
FACTORS = 5


class Letterbox:
    """What LetterBoxMat leaves for a picture of 300 x 150 (height 150) in an input of 64 x 96: 8 rows above it."""

    source_size = (150, 300)

    def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x * (300 / 96), (y - 8) * (150 / 48)


def as_centres(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)


def fill(head: Any, outputs: list[np.ndarray], **keys: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"data": DATA, **keys}
    assert head([output.astype(np.float32) for output in outputs], [request]) is None
    return request


def failure(head: Any, outputs: list[np.ndarray], **keys: Any) -> str:
    """Return the words with which a request fails alone, without a result."""
    request: dict[str, Any] = {"data": DATA, **keys}
    with pytest.raises(UnfitError) as caught:
        head([output.astype(np.float32) for output in outputs], [request])
    assert not {"result", "masks", "key_points"} & set(request)
    return str(caught.value.errors[0])


# ---- masks -----------------------------------------------------------------------------------------------------------


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def segmenting(corners: np.ndarray, scores: np.ndarray, factors: np.ndarray, name: str = "YoloV8Seg") -> np.ndarray:
    """What a model of that kind says of boxes."""
    if name.endswith("V8Seg"):
        return np.concatenate([as_centres(corners), scores, factors], axis=1).T[np.newaxis]
    return np.concatenate([as_centres(corners), 0 * scores[:, :1] + 1, scores, factors], axis=1)[np.newaxis]


def whole_masks(factors: np.ndarray, prototypes: np.ndarray, picture: str, threshold: float) -> Any:
    """The masks of whole pictures: the logits of Ultralytics' ``process_mask_native``, resized by OpenCV, and cut."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")
    logits = np.einsum("bf,fhw->bhw", factors, prototypes)
    # The input is 64 x 96. Letterbox makes 3.125 pixels of the picture of one of it: resize, then cut the border off.
    height, width = {"input": (64, 96), "letterbox": (200, 300), "stretched": (100, 70)}[picture]
    large = np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in logits])
    if picture == "letterbox":
        large = large[:, 25:175]
    return 1 / (1 + np.exp(-large)) > threshold


@pytest.mark.parametrize("name", ["YoloV8Seg", "YoloV5Seg"])
@pytest.mark.parametrize("picture", ["input", "letterbox", "stretched"])
def test_masks_are_those_of_the_whole_picture_inside_of_their_box(name: str, picture: str) -> None:
    """At the input's size, through a letterbox, and stretched; boxes that end beyond the edges, too."""
    keys: dict[str, Any] = {"letterbox": {"inverse_trans": Letterbox()}, "stretched": {"source_size": (100, 70)}}
    keys = keys.get(picture, {})
    corners = np.array([[3.2, 12.7, 40.9, 50.4], [50, 20, 96, 56], [0, 8, 30, 30], [20, 30, 24, 33], [-9, 9, 20, 70]])
    if picture == "input":
        corners = corners.clip(0, (96, 64, 96, 64))
    scores = np.array([[0.9, 0], [0, 0.8], [0.7, 0.1], [0.6, 0.1], [0.5, 0.1]])
    factors, prototypes = numbers(1, 5, FACTORS), numbers(2, FACTORS, 16, 24)
    head = find_postprocessor(
        {"name": name, "iou_threshold": 1, "mask_threshold": 0.4},
        [("n", "?", "?"), ("n", FACTORS, 16, 24)],
    )
    request = fill(head, [segmenting(corners, scores, factors, name), prototypes[np.newaxis]], **keys)
    assert len(request["masks"]) == len(request["result"]) == 5
    expected = whole_masks(factors, prototypes, picture, 0.4)
    for mask, box, whole in zip(request["masks"], request["result"], expected, strict=True):
        left, top, right, bottom = (round(float(side)) for side in box)
        assert mask.dtype == bool
        assert mask.any()
        assert mask.shape == (bottom - top, right - left)
        differing = mask != whole[top:bottom, left:right]
        assert differing.sum() <= max(1, mask.size // 2000)  # where a logit is the threshold but for rounding


def test_a_mask_fits_onto_what_crop_mat_cuts_out() -> None:
    """Of any box, rounded as there; in pixels of the picture."""
    geometry = pytest.importorskip("fastpipe.backends.image.geometry", reason="OpenCV is not installed (extra cpu)")
    pixels = np.zeros((150, 300, 3), np.uint8)
    rng = np.random.default_rng(4)
    starts = rng.uniform((0, 8), (70, 40), (12, 2))
    corners = np.concatenate([starts, starts + rng.uniform(1, 20, (12, 2))], axis=1)
    outputs = [segmenting(corners, np.full((12, 1), 0.9), numbers(5, 12, FACTORS)), numbers(6, 1, FACTORS, 16, 24)]
    request = fill(YoloV8Seg(iou_threshold=1), outputs, inverse_trans=Letterbox())
    for box, mask in zip(request["result"], request["masks"], strict=True):
        crop = {"data": pixels, "box": box}
        geometry.CropMat().run(crop)
        assert crop["result"].shape[:2] == mask.shape


def test_outputs_may_come_in_any_order_and_belong_to_their_request() -> None:
    """Two requests of one batch, prototypes first: the second has those of the second."""
    corners = np.array([[4.0, 4, 40, 40]])
    boxes = np.concatenate([segmenting(corners, np.array([[0.9]]), np.eye(1, FACTORS))] * 2).astype(np.float32)
    prototypes = np.full((2, FACTORS, 16, 24), -5, np.float32)
    prototypes[1, 0] = 5
    batch: list[dict[str, Any]] = [{"data": DATA}, {"data": DATA}]
    assert YoloV8Seg()([prototypes, boxes], batch) is None
    assert [request["masks"][0].mean() for request in batch] == [0, 1]


def test_no_detection_has_no_masks() -> None:
    request = fill(YoloV8Seg(), [np.zeros((1, 4 + 2 + FACTORS, 50)), np.zeros((1, FACTORS, 16, 24))])
    assert (request["masks"], request["result"].shape) == ([], (0, 4))


def test_masks_take_no_more_memory_than_their_boxes() -> None:
    """A byte for each pixel under a box, and a few megabytes on the way, whatever the picture's size; or a refusal."""
    side = 3000
    corners = np.array([[0.0, 0, 96, 64], [10, 10, 20, 20]])
    outputs = [segmenting(corners, np.full((2, 1), 0.9), numbers(7, 2, FACTORS)), numbers(8, 1, FACTORS, 16, 24)]
    keys = {"source_size": (side, side)}
    tracemalloc.start()
    request = fill(YoloV8Seg(), outputs, **keys)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pixels = sum(mask.size for mask in request["masks"])
    assert pixels > side * side
    assert peak < pixels + 8 * 4 * PIXELS_AT_A_TIME + 1_000_000
    words = failure(YoloV8Seg(max_pixels=side * side), outputs, **keys)
    assert f"expected masks of at most max_pixels = {side * side} together, got 2 of {pixels} pixels" in words


def test_boxes_of_any_size_are_refused_before_anything_is_allocated() -> None:
    """A network's numbers may be anything that float32 has."""
    corners = np.array([[-1e30, 0, 1e30, 64]])
    outputs = [segmenting(corners, np.array([[0.9]]), numbers(7, 1, FACTORS)), numbers(8, 1, FACTORS, 16, 24)]
    assert "a larger max_pixels allows them" in failure(YoloV8Seg(), outputs)
    corners = np.array([[0, 0, 8e7, 2]])
    outputs[0] = segmenting(corners, np.array([[0.9]]), numbers(7, 1, FACTORS))
    assert "expected boxes of at most 1048576 pixels a side, for the masks, got one of 80000000" in failure(
        YoloV8Seg(), outputs
    )


def test_numbers_that_are_none_make_no_mask() -> None:
    """A box whose factors are none is left out; prototypes that are none fail their request."""
    corners = np.array([[4.0, 4, 40, 40], [50, 4, 80, 40]])
    factors = np.ones((2, FACTORS))
    factors[0, 2] = np.nan
    outputs = [segmenting(corners, np.array([[0.9], [0.8]]), factors), np.ones((1, FACTORS, 16, 24))]
    request = fill(YoloV8Seg(), outputs)
    assert (request["result"].tolist(), len(request["masks"])) == ([[50, 4, 80, 40]], 1)
    outputs[1][0, 1, 5, 15] = np.inf
    assert "expected finite prototypes, got others; has the model overflowed" in failure(YoloV8Seg(), outputs)


def test_an_inverse_that_turns_has_no_masks() -> None:
    """A mask has rows and columns of the picture; one that resizes and moves is followed, whoever wrote it."""
    outputs = [
        segmenting(np.array([[4.0, 4, 40, 40]]), np.array([[0.9]]), np.ones((1, FACTORS))),
        np.ones((1, FACTORS, 16, 24)),
    ]
    request = fill(YoloV8Seg(), outputs, inverse_trans=lambda x, y: (2 * x - 1, y + 3))
    assert request["masks"][0].shape == (36, 72)
    words = failure(YoloV8Seg(), outputs, inverse_trans=lambda x, y: (x + 0.1 * y, y - 0.1 * x))
    assert "expected an inverse_trans that resizes and moves, for the masks" in words


# ---- key points ------------------------------------------------------------------------------------------------------


def posing(corners: np.ndarray, scores: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The output of a YOLO for poses: (1, 4 + classes + numbers of points, boxes)."""
    parts = [as_centres(corners), scores, points.reshape(len(corners), -1)]
    return np.concatenate(parts, axis=1).T[np.newaxis]


@pytest.mark.parametrize("name", ["YoloV8Pose", "yolov11pose"])
def test_key_points_follow_their_box_into_the_picture(name: str) -> None:
    """Against plain loops: of the boxes that stay, each point through the letterbox, cut off at the picture's edges."""
    rng = np.random.default_rng(1)
    corners = np.array([[10.0, 10, 40, 40], [11, 10, 40, 41], [50, 20, 90, 50], [60, 12, 70, 18]])
    scores = np.array([[0.6], [0.9], [0.8], [0.1]])
    points = np.concatenate([rng.uniform(-5, 100, (4, 17, 2)), rng.uniform(0, 1, (4, 17, 1))], axis=2)
    head = find_postprocessor({"name": name}, [(1, 56, "boxes")])
    request = fill(head, [posing(corners, scores, points)], inverse_trans=Letterbox())
    assert request["scores"].tolist() == pytest.approx([0.9, 0.8])
    assert (request["key_points"].dtype, request["key_points"].shape) == (np.float32, (2, 17, 3))
    for found, box in zip(request["key_points"], (1, 2), strict=True):
        for (x, y, visible), (given_x, given_y, given_visible) in zip(found, points[box], strict=True):
            assert x == pytest.approx(min(max(given_x * 3.125, 0), 300), abs=1e-3)
            assert y == pytest.approx(min(max((given_y - 8) * 3.125, 0), 150), abs=1e-3)
            assert visible == pytest.approx(given_visible, abs=1e-6)


def test_points_without_visibility_and_of_several_classes() -> None:
    """How a point's numbers are read is said by the options; without visibility, it is 1."""
    corners = np.array([[10.0, 10, 40, 40], [50, 20, 90, 50]])
    points = np.array([[[12.0, 13], [20, 21]], [[55, 25], [60, 30]]])
    head = find_postprocessor({"name": "YoloV8Pose", "class_count": 3, "visibility": False}, [(1, 11, 2)])
    request = fill(head, [posing(corners, np.array([[0.1, 0.7, 0.2], [0.9, 0, 0]]), points)])
    assert request["classes"].tolist() == [0, 1]
    np.testing.assert_allclose(request["key_points"][..., :2], points[::-1], rtol=1e-6)
    assert (request["key_points"][..., 2] == 1).all()


def test_no_detection_has_no_points() -> None:
    request = fill(YoloV8Pose(), [np.zeros((1, 56, 20))])
    assert (request["key_points"].shape, request["result"].shape) == ((0, 17, 3), (0, 4))


def test_points_that_are_none_or_not_visible_from_0_to_1_are_refused() -> None:
    """A box with such a point is left out; logits fail the request, as of a model without its last sigmoid."""
    corners = np.array([[10.0, 10, 40, 40], [50, 20, 90, 50]])
    points = np.ones((2, 2, 3))
    points[0, 1, 0] = np.nan
    outputs = [posing(corners, np.array([[0.9], [0.8]]), points)]
    assert fill(YoloV8Pose(), outputs)["result"].tolist() == [[50, 20, 90, 50]]
    points[1, 0, 2] = -3
    words = failure(YoloV8Pose(), [posing(corners, np.array([[0.9], [0.8]]), points)])
    assert "YoloV8Pose: expected points that are visible from 0 to 1, got -3; is class_count wrong" in words


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shapes", "problem"),
    [
        (
            "YoloV8Seg",
            [(1, 116, 8400)],
            r"two outputs, \(batch, 4 \+ classes \+ factors, boxes\) and \(batch, factors,",
        ),
        ("YoloV8Seg", [(1, 36, 8400), (1, 32, 160, 160)], r"got \(1, 36, 8400\), \(1, 32, 160, 160\)"),
        ("YoloV8Seg", [(1, 38, 8400), (1, 32, 0, 160)], r"got \(1, 38, 8400\), \(1, 32, 0, 160\)"),
        ("YoloV5Seg", [(1, 25200, 37), (1, 32, 160, 160)], r"\(batch, boxes, 5 \+ classes \+ factors\)"),
        ({"name": "YoloV8Seg", "mask_threshold": 2}, [()], "mask_threshold must be between 0 and 1, got 2"),
        ("YoloV8Pose", [(1, 57, 8400)], r"4 \+ class_count \+ 3 \* points, boxes\) with class_count = 1, got"),
        ("YoloV8Pose", [(1, 5, 8400)], r"got \(1, 5, 8400\)"),
    ],
)
def test_what_cannot_work_is_refused_when_the_pipe_is_built(given: Any, shapes: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_postprocessor(given, shapes)


@pytest.mark.parametrize("shapes", [[(1, 116, 8400), (1, 32, 160, 160)], [("n", 32, 8, 8), ("n", "k", "boxes")]])
def test_what_may_work_is_not_refused(shapes: Any) -> None:
    assert isinstance(find_postprocessor("YoloV11Seg", shapes), YoloV8Seg)
    assert isinstance(find_postprocessor("YoloV7Seg", [(1, 25200, 117), (shapes[-1][0], 32, 8, 8)]), YoloV5Seg)
