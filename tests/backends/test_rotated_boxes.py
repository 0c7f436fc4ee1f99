"""Postprocessors of turned boxes: against OpenCV's intersection and suppression, and against plain geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastpipe.backends.model.heads.detectors import Nms
from fastpipe.backends.model.heads.postprocessors import find_postprocessor
from fastpipe.backends.model.heads.rotated_boxes import NmsRotated, YoloV8Obb, corners_of, rotated_overlaps
from fastpipe.backends.model.heads.suppression import suppress
from fastpipe.backends.model.reader import UnfitError
from fastpipe.errors import ConfigError

DATA = np.zeros((3, 64, 96), np.float32)


def opencv() -> Any:
    return pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")


def some_boxes(seed: int, count: int, *, sizes: tuple[float, float] = (3, 40)) -> np.ndarray:
    """Boxes that overlap a lot: x and y of the centre, width, height, angle."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(0, 60, (count, 2)), rng.uniform(*sizes, (count, 2)), rng.uniform(-4, 4, count)])


def as_opencv(box: np.ndarray) -> Any:
    return (float(box[0]), float(box[1])), (float(box[2]), float(box[3])), float(np.degrees(box[4]))


def fill(head: Any, outputs: list[np.ndarray], **keys: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"data": DATA, **keys}
    assert head(outputs, [request]) is None
    return request


def obb(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The output of a YOLO for oriented boxes: (1, 4 + classes + 1, boxes)."""
    return np.concatenate([boxes[:, :4], scores, boxes[:, 4:]], axis=1).T[np.newaxis].astype(np.float32)


# ---- overlap and suppression -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_overlap_of_turned_boxes_is_that_of_opencvs_intersection(seed: int) -> None:
    """Of any two, also of equal, upright, lying and touching ones; OpenCV computes in float32."""
    cv2 = opencv()
    boxes = some_boxes(seed, 60)
    boxes[:10, 4], boxes[10:20, 4] = 0, np.pi / 2
    boxes[20:30] = boxes[:10]
    boxes[30:40] = boxes[:10] + boxes[:10, 2:3] * np.array([1, 0, 0, 0, 0])  # beside it: one edge in common
    for box in boxes:
        expected = []
        for other in boxes:
            _, points = cv2.rotatedRectangleIntersection(as_opencv(box), as_opencv(other))
            common = 0.0 if points is None else cv2.contourArea(cv2.convexHull(points))
            expected.append(common / (box[2] * box[3] + other[2] * other[3] - common))
        np.testing.assert_allclose(rotated_overlaps(box, boxes), expected, atol=1e-3)


def test_the_overlap_of_turned_boxes_in_numbers() -> None:
    """Itself, turned by a half and a quarter, a square turned by 45 degrees, far away, and what is empty."""
    box = np.array([10.0, 10, 4, 2, 0.3])
    turns = np.array([0.3, 0.3 + np.pi, 0.3 + np.pi / 2])
    others = np.column_stack([np.tile(box[:4], (3, 1)), turns])
    np.testing.assert_allclose(rotated_overlaps(box, others), [1, 1, 4 / 12], atol=1e-12)
    square = np.array([0.0, 0, 2, 2, 0])
    octagon = 8 * (np.sqrt(2) - 1)
    turned = np.array([[0, 0, 2, 2, np.pi / 4], [50, 0, 2, 2, 1], [0, 0, 0, 2, 0], [0, 0, -2, -2, 0]])
    np.testing.assert_allclose(rotated_overlaps(square, turned), [octagon / (8 - octagon), 0, 0, 0], atol=1e-12)
    assert rotated_overlaps(turned[2], turned[2:3]).tolist() == [0]
    assert rotated_overlaps(square, turned[:0]).tolist() == []


@pytest.mark.parametrize("iou_threshold", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_of_turned_boxes_is_opencvs(seed: int, iou_threshold: float) -> None:
    """Of boxes so alike in size that none is inside another, which OpenCV takes for an overlap of 1."""
    cv2 = opencv()
    boxes, scores = some_boxes(seed, 120, sizes=(18, 20)), np.random.default_rng(seed).uniform(0.1, 1, 120)
    found = suppress(boxes, scores, None, iou_threshold=iou_threshold, most=120, overlaps=rotated_overlaps)
    expected = cv2.dnn.NMSBoxesRotated([as_opencv(box) for box in boxes], scores.tolist(), 0.0, iou_threshold)
    assert found.tolist() == np.ravel(expected).tolist()


def test_a_small_box_inside_a_large_one_is_no_copy_of_it() -> None:
    """A ship in its harbour stays: their overlap is small."""
    boxes = np.array([[30.0, 30, 40, 40, 0.5], [30, 30, 8, 4, 1.0]])
    request = fill(YoloV8Obb(), [obb(boxes, np.array([[0.9], [0.8]]))])
    np.testing.assert_allclose(request["result"], boxes, rtol=1e-6)


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["YoloV8Obb", "yolov11obb"])
def test_oriented_boxes_are_suppressed_for_each_class_alone(name: str) -> None:
    """Against a plain loop over the classes; result, scores, classes and corners belong together."""
    cv2 = opencv()
    boxes = some_boxes(3, 60, sizes=(18, 20))
    scores = np.random.default_rng(3).uniform(0, 1, (60, 3))
    head = find_postprocessor({"name": name, "score_threshold": 0.4, "iou_threshold": 0.2}, [(1, 8, 60)])
    request = fill(head, [obb(boxes, scores)])
    expected = []
    for number in range(3):
        mine = [box for box in range(60) if scores[box].argmax() == number and scores[box].max() > 0.4]
        own = scores[mine, number].tolist()
        kept = cv2.dnn.NMSBoxesRotated([as_opencv(boxes[box]) for box in mine], own, 0.0, 0.2)
        expected += [(scores[mine[place], number], mine[place], number) for place in np.ravel(kept)]
    expected.sort(reverse=True)
    order = [box for _, box, _ in expected]
    assert request["classes"].tolist() == [number for _, _, number in expected]
    np.testing.assert_allclose(request["scores"], [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(request["result"][:, :4], boxes[order, :4], atol=1e-4)
    turns = (request["result"][:, 4] - boxes[order, 4]) / (2 * np.pi)
    np.testing.assert_allclose(turns, turns.round(), atol=1e-5)
    np.testing.assert_allclose(request["quads"], corners_of(boxes[order]), atol=1e-4)
    assert (request["result"].dtype, request["quads"].dtype) == (np.float32, np.float32)


def test_corners_go_clockwise_from_the_left_top_and_lie_where_opencv_has_them() -> None:
    """A quarter of a turn takes the left top corner to the right."""
    cv2 = opencv()
    assert corners_of(np.array([[10.0, 20, 6, 4, 0]]))[0].tolist() == [[7, 18], [13, 18], [13, 22], [7, 22]]
    turned = corners_of(np.array([[10.0, 20, 6, 4, np.pi / 2]]))[0]
    np.testing.assert_allclose(turned, [[12, 17], [12, 23], [8, 23], [8, 17]], atol=1e-12)
    for box in some_boxes(5, 20):
        theirs = cv2.boxPoints(as_opencv(box))
        ours = corners_of(box[np.newaxis])[0]
        np.testing.assert_allclose(sorted(map(tuple, ours)), sorted(map(tuple, theirs.astype(float))), atol=1e-3)


def test_turned_boxes_lead_back_through_the_letterbox() -> None:
    """Centre, sizes and corners grow with the picture; the angle stays."""

    class Letterbox:
        source_size = (100, 200)

        def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
            return 2 * x, 2 * (y - 7)

    boxes = np.array([[48.0, 32, 20, 10, 0.5], [48, 3, 30, 6, 0.0], [95, 50, 20, 20, 0.0]])
    request = fill(YoloV8Obb(), [obb(boxes, np.array([[0.9], [0.8], [0.7]]))], inverse_trans=Letterbox())
    # The second is in the padding alone; of the third a part is seen, and its corners are where they are.
    np.testing.assert_allclose(request["result"], [[96, 50, 40, 20, 0.5], [190, 86, 40, 40, 0]], rtol=1e-5)
    np.testing.assert_allclose(request["quads"], corners_of(request["result"]), atol=1e-4)


def test_of_a_stretched_picture_the_corners_are_exact() -> None:
    """A turned box becomes a parallelogram; result has its centre, two edges and the direction of the upper."""
    boxes = np.array([[48.0, 32, 20, 10, np.pi / 4]])
    request = fill(YoloV8Obb(), [obb(boxes, np.array([[0.9]]))], source_size=(64, 192))
    expected = corners_of(boxes)[0] * (2, 1)
    np.testing.assert_allclose(request["quads"][0], expected, atol=1e-4)
    upper, left = expected[1] - expected[0], expected[3] - expected[0]
    sizes = [96, 32, np.hypot(*upper), np.hypot(*left), np.arctan2(upper[1], upper[0])]
    np.testing.assert_allclose(request["result"][0], sizes, rtol=1e-5)


def test_boxes_turned_around_are_left_out_by_their_own_sides() -> None:
    """min_size is about width and height as they are, not about what the box covers; no number is no box."""
    boxes = np.array([[30.0, 30, 40, 0.9, 0.7], [30, 30, np.nan, 20, 0], [30, 30, -20, -20, 0], [50, 40, 9, 9, 0]])
    request = fill(YoloV8Obb(), [obb(boxes, np.array([[0.9], [0.8], [0.7], [0.6]]))])
    np.testing.assert_allclose(request["result"], boxes[3:], rtol=1e-6)
    empty = fill(YoloV8Obb(), [obb(boxes[:0], np.zeros((0, 1)))])
    assert (empty["result"].shape, empty["quads"].shape, empty["scores"].shape) == ((0, 5), (0, 4, 2), (0,))


@pytest.mark.parametrize("angle", ["radians", "degrees"])
def test_nms_rotated_takes_boxes_and_scores_of_two_outputs(angle: Any) -> None:
    """With classes or without; angles in either unit; soft suppression, too."""
    boxes = np.array([[20.0, 20, 20, 6, 0.5], [20, 20, 20, 6, 0.55], [60, 40, 10, 10, 0.2]])
    given = boxes.copy()
    if angle == "degrees":
        given[:, 4] = np.degrees(given[:, 4])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.7]], np.float32)
    for own in (scores, scores.max(axis=1)):
        head = NmsRotated(angle=angle)
        request = fill(head, [given[np.newaxis].astype(np.float32), own[np.newaxis]])
        np.testing.assert_allclose(request["result"], boxes[[0, 2]], rtol=1e-5)
        assert request["classes"].tolist() == ([0, 1] if own.ndim == 2 else [0, 0])
    overlap = rotated_overlaps(boxes[0], boxes[1:2])[0]
    soft = fill(NmsRotated(angle=angle, soft="linear"), [given[np.newaxis].astype(np.float32), scores[np.newaxis]])
    np.testing.assert_allclose(soft["scores"], [0.9, 0.7], rtol=1e-6)  # 0.8 became less than the threshold
    assert 0.8 * (1 - overlap) < 0.25


@pytest.mark.parametrize(
    ("given", "shapes", "problem"),
    [
        (
            "YoloV8Obb",
            [(1, 5, 99)],
            r"YoloV8Obb: expected one output of shape \(batch, 4 \+ classes \+ 1, boxes\), got",
        ),
        ("NmsRotated", [(1, 9, 4), (1, 9, 3)], r"two outputs, \(batch, boxes, 5\) and .*got \(1, 9, 4\), \(1, 9, 3\)"),
        ("NmsRotated", [(1, 9, 5), (1, 9, 0)], "at least 1 class"),
        ({"name": "NmsRotated", "angle": "turns"}, [()], "angle must be 'radians' or 'degrees', got 'turns'"),
    ],
)
def test_what_cannot_work_is_refused_when_the_pipe_is_built(given: Any, shapes: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_postprocessor(given, shapes)


def test_scores_that_are_no_probabilities_fail() -> None:
    with pytest.raises(UnfitError) as caught:
        fill(YoloV8Obb(), [obb(some_boxes(0, 5), np.full((5, 2), 7.0))])
    assert "YoloV8Obb: expected scores from 0 to 1, got 7" in str(caught.value.errors[0])


@pytest.mark.parametrize("soft", [None, "linear"])
def test_only_the_best_candidates_are_looked_at(soft: Any) -> None:
    """Turned or upright, what is left is what those candidates give alone, in the same places."""
    boxes = some_boxes(4, 200, sizes=(3, 9))
    scores = np.random.default_rng(4).uniform(0.3, 1, 200).astype(np.float32)
    best = np.sort(np.argsort(-scores)[:50])
    upright = np.concatenate([boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2], axis=1)
    for kind, given in ((NmsRotated, boxes), (Nms, upright)):
        outputs = [given.astype(np.float32)[None], scores[None]]
        few = fill(kind(max_candidates=50, soft=soft), outputs)
        alone = fill(kind(soft=soft), [array[:, best] for array in outputs])
        for key in ("result", "scores", "classes"):
            np.testing.assert_array_equal(few[key], alone[key])
        assert len(few["result"]) < len(fill(kind(soft=soft), outputs)["result"])
    assert (NmsRotated().max_candidates, Nms().max_candidates) == (5_000, 30_000)


def test_the_limit_of_candidates_bounds_how_many_overlaps_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a picture has: 20,000 boxes that hide nothing of each other are compared with 5,000 at most."""
    counts = []

    def counted(self: Any, box: Any, others: Any) -> Any:
        counts.append(len(others))
        return np.zeros(len(others))

    monkeypatch.setattr(NmsRotated, "overlaps", counted)
    boxes = some_boxes(5, 20_000).astype(np.float32)
    fill(NmsRotated(max_detections=3), [boxes[None], np.full((1, 20_000), 0.5, np.float32)])
    assert counts == [4_999, 4_998, 4_997]
