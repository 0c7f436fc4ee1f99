"""Postprocessors of detectors: against OpenCV's suppression, and against the formulas written down once more here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastpipe.backends.gpu.handed_on import Row
from fastpipe.backends.model.heads.detectors import Detr, Nms, RtDetr, YoloV5, YoloV8, YoloV10
from fastpipe.backends.model.heads.postprocessors import find_postprocessor
from fastpipe.backends.model.heads.suppression import overlaps, soften, suppress
from fastpipe.backends.model.reader import UnfitError
from fastpipe.errors import BackendError, ConfigError

EMPTY_DATA = np.zeros((3, 64, 96), np.float32)


class Letterbox:
    """What LetterBoxMat leaves for a picture of 200 x 100 (height 100) in an input of 64 x 96, written down here."""

    source_size = (100, 200)

    def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x * (200 / 96), (y - 8) * (100 / 48)


def some_boxes(seed: int, count: int, *, most: float = 60.0) -> np.ndarray:
    """Boxes that overlap a lot: left, top, right, bottom."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, most, (count, 2))
    return np.concatenate([starts, starts + rng.uniform(5, 30, (count, 2))], axis=1)


def as_centres(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)


def fill(head: Any, outputs: list[np.ndarray], requests: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the requests, filled; without any, one for each row."""
    batch = requests if requests is not None else [{"data": EMPTY_DATA} for _ in outputs[0]]
    assert head(outputs, batch) is None
    return batch


# ---- suppression against OpenCV --------------------------------------------------------------------------------------


def opencv() -> Any:
    return pytest.importorskip("cv2", reason="OpenCV is not installed (extra cpu)")


def as_opencv(boxes: np.ndarray) -> list[list[float]]:
    """Left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7])
def test_hard_suppression_is_opencvs(seed: int, iou_threshold: float) -> None:
    """The same boxes in the same order, over all classes and for each class."""
    cv2 = opencv()
    boxes, rng = some_boxes(seed, 150), np.random.default_rng(seed)
    scores, classes = rng.uniform(0.1, 1, 150), rng.integers(0, 3, 150)
    found = suppress(boxes, scores, None, iou_threshold=iou_threshold, most=150)
    assert found.tolist() == list(cv2.dnn.NMSBoxes(as_opencv(boxes), scores.tolist(), 0.0, iou_threshold))
    found = suppress(boxes, scores, classes, iou_threshold=iou_threshold, most=150)
    if hasattr(cv2.dnn, "NMSBoxesBatched"):
        expected = cv2.dnn.NMSBoxesBatched(as_opencv(boxes), scores.tolist(), classes.tolist(), 0.0, iou_threshold)
        assert sorted(found.tolist()) == sorted(expected)
    assert (np.diff(scores[found]) <= 0).all()


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_soft_suppression_is_opencvs(seed: int, method: Any) -> None:
    """The same boxes with the same new scores."""
    cv2 = opencv()
    boxes = some_boxes(seed, 60).round()  # OpenCV takes no others here
    scores = np.random.default_rng(seed).uniform(0.1, 1, 60)
    found, softened = soften(
        boxes, scores, None, method=method, iou_threshold=0.4, sigma=0.6, score_threshold=0.2, most=60
    )
    number = {"linear": cv2.dnn.SOFT_NMSMETHOD_SOFTNMS_LINEAR, "gaussian": cv2.dnn.SOFT_NMSMETHOD_SOFTNMS_GAUSSIAN}
    new_scores, expected = cv2.dnn.softNMSBoxes(
        np.array(as_opencv(boxes), int).tolist(), scores.tolist(), 0.2, 0.4, sigma=0.6, method=number[method]
    )
    assert found.tolist() == np.ravel(expected).tolist()
    np.testing.assert_allclose(softened, np.ravel(new_scores), rtol=1e-4)


def test_soft_suppression_leaves_other_classes_alone() -> None:
    """Of three equal boxes, only the one of the same class loses: linear, by all of it."""
    boxes = np.array([[0.0, 0, 10, 10]] * 3)
    found, scores = soften(
        boxes,
        np.array([0.9, 0.8, 0.7]),
        np.array([0, 1, 0]),
        method="linear",
        iou_threshold=0.5,
        sigma=0.5,
        score_threshold=0.0,
        most=3,
    )
    assert (found.tolist(), scores.tolist()) == ([0, 1], [0.9, 0.8])


def test_overlaps_are_computed_within_a_class_alone() -> None:
    """Of turned boxes each takes long: of 40 boxes in 4 classes, hard and soft, a box is held against 9 at most."""
    rng = np.random.default_rng(3)
    boxes = np.repeat(rng.uniform(0, 50, (40, 1)), 4, axis=1) + np.array([0, 0, 9, 9])
    scores, classes = rng.uniform(0.5, 1, 40), np.arange(40) % 4
    asked: list[int] = []

    def counted(box: np.ndarray, others: np.ndarray) -> Any:
        asked.append(len(others))
        return overlaps(box, others)

    limits: dict[str, Any] = {"iou_threshold": 0.5, "most": 40}
    suppress(boxes, scores, classes, overlaps=counted, **limits)
    soften(boxes, scores, classes, method="linear", sigma=0.5, score_threshold=0.1, overlaps=counted, **limits)
    assert max(asked) == 9
    asked.clear()
    suppress(boxes, scores, None, overlaps=counted, **limits)
    assert max(asked) == 39


def test_overlap_is_intersection_over_union() -> None:
    """Half a box beside, a quarter inside, nothing shared, and what is empty."""
    box = np.array([0.0, 0, 10, 10])
    others = np.array([[5.0, 0, 15, 10], [0, 0, 5, 5], [20, 20, 30, 30], [3, 3, 3, 3], [9, 9, 1, 1]])
    np.testing.assert_allclose(overlaps(box, others), [50 / 150, 25 / 100, 0, 0, 0])
    assert overlaps(others[3], others[3:4]).tolist() == [0]


def test_of_equal_scores_the_first_comes_first_and_no_more_than_most_stay() -> None:
    """As OpenCV's, which sorts stably."""
    boxes = np.array([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    assert suppress(boxes, np.array([0.5, 0.5, 0.5]), None, iou_threshold=0.5, most=2).tolist() == [0, 1]
    assert suppress(boxes[:0], np.zeros(0), None, iou_threshold=0.5, most=2).tolist() == []


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_v8(corners: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A row of the output: (4 + classes, boxes)."""
    return np.concatenate([as_centres(corners), scores], axis=1).T.astype(np.float32)


def yolo_v5(corners: np.ndarray, scores: np.ndarray, objectness: np.ndarray) -> np.ndarray:
    """A row of the output: (boxes, 5 + classes)."""
    return np.concatenate([as_centres(corners), objectness[:, None], scores], axis=1).astype(np.float32)


def plainly(corners: np.ndarray, scores: np.ndarray, threshold: float, iou: float) -> list[tuple[int, int]]:
    """Return which (box, class) a YOLO head keeps, best first: one loop for each class, as the papers say it."""
    kept: list[tuple[float, int, int]] = []
    for number in range(scores.shape[1]):
        mine = [box for box in range(len(corners)) if scores[box].argmax() == number and scores[box].max() > threshold]
        for box in sorted(mine, key=lambda each: -scores[each, number]):
            left, top, right, bottom = corners[box]
            for _, other, other_class in kept:
                other_left, other_top, other_right, other_bottom = corners[other]
                width = max(0.0, min(right, other_right) - max(left, other_left))
                height = max(0.0, min(bottom, other_bottom) - max(top, other_top))
                areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
                if other_class == number and width * height / (areas - width * height) > iou:
                    break
            else:
                kept.append((scores[box, number], box, number))
    return [(box, number) for _, box, number in sorted(kept, reverse=True)]


@pytest.mark.parametrize("name", ["YoloV5", "YoloV6", "yolov7", "YoloV8", "YoloV9", "YOLOv11"])
@pytest.mark.parametrize("seed", range(3))
def test_yolo_heads_do_what_their_formula_says(name: str, seed: int) -> None:
    """Every YOLO, in a batch of two, against plain loops."""
    rng = np.random.default_rng(seed)
    corners = [some_boxes(10 * seed + row, 40) for row in range(2)]
    scores = [rng.uniform(0, 1, (40, 3)) for _ in range(2)]
    objectness = [rng.uniform(0, 1, 40) for _ in range(2)]
    if name[-1] in "567":
        output = np.stack([yolo_v5(*each) for each in zip(corners, scores, objectness, strict=True)])
        scores = [each * factor[:, None] for each, factor in zip(scores, objectness, strict=True)]
    else:
        output = np.stack([yolo_v8(*each) for each in zip(corners, scores, strict=True)])
    head = find_postprocessor({"name": name, "score_threshold": 0.3, "iou_threshold": 0.5}, [("n", "?", "?")])
    for request, own, own_scores in zip(fill(head, [output]), corners, scores, strict=True):
        expected = plainly(own, own_scores, 0.3, 0.5)
        assert expected
        np.testing.assert_allclose(request["result"], own[[box for box, _ in expected]], atol=1e-4)
        np.testing.assert_allclose(request["scores"], [own_scores[pair] for pair in expected], rtol=1e-5)
        assert request["classes"].tolist() == [number for _, number in expected]
        kinds = [request[key].dtype.name for key in ("result", "scores", "classes")]
        assert kinds == ["float32", "float32", "int64"]


def test_yolo_v10_takes_the_boxes_as_they_are() -> None:
    """Sorted by score; rows that only fill up are left out, and so is a class that is none."""
    rows = [[1, 2, 11, 12, 0.5, 3], [5, 5, 25, 45, 0.9, 1], [0, 0, 0, 0, 0, 0], [1, 1, 9, 9, 0.8, np.nan]]
    (request,) = fill(YoloV10(), [np.array([rows], np.float32)])
    assert request["result"].tolist() == [[5, 5, 25, 45], [1, 2, 11, 12]]
    assert (request["classes"].tolist(), request["scores"].tolist()) == ([1, 3], pytest.approx([0.9, 0.5]))


def test_no_detection_is_an_empty_result() -> None:
    """Shapes (0, 4), (0,), (0,): still a result."""
    (request,) = fill(YoloV8(), [np.zeros((1, 6, 50), np.float32)])
    shapes = [request[key].shape for key in ("result", "scores", "classes")]
    assert shapes == [(0, 4), (0,), (0,)]


def test_options_decide_how_many_and_which_boxes_stay() -> None:
    """Two equal boxes of two classes and a third: class_agnostic, max_detections, min_size, soft."""
    corners = np.array([[0.0, 0, 20, 20], [0, 0, 20, 20], [40, 40, 43, 60]])
    output = yolo_v8(corners, np.array([[0.9, 0], [0, 0.8], [0.7, 0]]))[None]

    def scores(**options: Any) -> list[float]:
        (request,) = fill(YoloV8(**options), [output])
        return request["scores"].tolist()

    assert scores() == pytest.approx([0.9, 0.8, 0.7])
    assert scores(class_agnostic=True) == pytest.approx([0.9, 0.7])
    assert scores(max_detections=2) == pytest.approx([0.9, 0.8])
    assert scores(min_size=3) == pytest.approx([0.9, 0.8])
    assert scores(class_agnostic=True, soft="gaussian", sigma=1.0) == pytest.approx([0.9, 0.7, 0.8 * np.exp(-1)])
    assert scores(score_threshold="0.75") == pytest.approx([0.9, 0.8])


def outputs_of(name: str, corners: np.ndarray, scores: list[float]) -> list[np.ndarray]:
    """What a model of that kind gives for boxes of class 0 in an input of 64 x 96."""
    own = np.array(scores)[:, None]
    parts = as_centres(corners / ((96, 64) * 2))
    logits = np.log(own / (1 - own))
    arrays = {
        "YoloV5": [yolo_v5(corners, own, np.ones(len(own)))],
        "YoloV8": [yolo_v8(corners, own)],
        "YoloV10": [np.concatenate([corners, own, 0 * own], axis=1)],
        "Nms": [corners, own],
        "RtDetr": [logits, parts],
        "Detr": [np.concatenate([logits, 0 * own], axis=1), parts],
    }
    return [array[None].astype(np.float32) for array in arrays[name]]


@pytest.mark.parametrize("name", ["YoloV5", "YoloV8", "YoloV10", "Nms", "RtDetr", "Detr"])
def test_boxes_that_are_left_out_take_nobodys_place(name: str) -> None:
    """The two best are too small, or in the padding alone: max_detections=1 gives the third, not the fourth."""
    corners = np.array([[40.0, 20, 40.2, 40], [10, 0, 30, 6], [24, 20, 48, 44], [60, 20, 84, 44]])
    outputs = outputs_of(name, corners, [0.9, 0.8, 0.7, 0.6])
    head = find_postprocessor({"name": name, "max_detections": 1}, [array.shape for array in outputs])
    (request,) = fill(head, outputs, [{"data": EMPTY_DATA, "inverse_trans": Letterbox()}])
    np.testing.assert_allclose(request["result"], [[50, 25, 100, 75]], atol=1e-3)
    assert (request["scores"].tolist(), request["classes"].tolist()) == (pytest.approx([0.7]), [0])


@pytest.mark.parametrize("soft", [None, "linear"])
def test_boxes_that_are_left_out_suppress_nothing(soft: Any) -> None:
    """A box of 3 pixels over a better one of 2 stays as it is, if that is not to be given."""
    output = yolo_v8(np.array([[10.0, 10, 12, 30], [10, 10, 13, 30]]), np.array([[0.9], [0.8]]))[None]
    (request,) = fill(YoloV8(min_size=2, soft=soft), [output])
    assert (request["result"].tolist(), request["scores"].tolist()) == ([[10, 10, 13, 30]], pytest.approx([0.8]))
    (request,) = fill(YoloV8(min_size=1, soft=soft, score_threshold=0.5), [output])
    assert request["result"].tolist() == [[10, 10, 12, 30]]


def test_boxes_are_measured_as_they_are_given() -> None:
    """From 1001.49998 to 1002.50001 is more than one pixel; in float32, it is one."""
    corners = np.array([[0.0, 0, 10, 10]])
    request = {
        "data": EMPTY_DATA,
        "inverse_trans": lambda x, y: (np.where(x > 0, 1002.50001, 1001.49998), y),
    }
    output = yolo_v8(corners, np.array([[0.9]]))[None]
    assert fill(YoloV8(), [output], [dict(request)])[0]["result"].shape == (0, 4)
    (given,) = fill(YoloV8(min_size=0.5), [output], [dict(request)])
    assert given["result"].tolist() == [[1001.5, 0, 1002.5, 10]]


@pytest.mark.parametrize(
    ("head", "output"),
    [
        (YoloV8(), yolo_v8(some_boxes(0, 90), np.full((90, 2), 0.5)).T[None]),
        (YoloV5(), yolo_v5(some_boxes(0, 90), np.full((90, 2), 0.5), np.full(90, 0.5)).T[None]),
        (YoloV8(), yolo_v8(some_boxes(0, 9), np.full((9, 2), 3.0))[None]),
    ],
    ids=["v8 turned round", "v5 turned round", "logits"],
)
def test_scores_that_are_no_probabilities_fail(head: Any, output: np.ndarray) -> None:
    """As those of an output whose axes are in another order, instead of boxes that mean nothing."""
    batch = [{"data": EMPTY_DATA}]
    with pytest.raises(UnfitError) as caught:
        head([output], batch)
    assert "expected scores from 0 to 1, got" in str(caught.value.errors[0])
    assert "result" not in batch[0]


# ---- where the boxes are ---------------------------------------------------------------------------------------------


def test_boxes_lead_back_through_the_letterbox_and_end_at_the_edges_of_the_picture() -> None:
    """What is in the padding alone is left out."""
    corners = np.array([[48.0, 32, 72, 44], [-10, 4, 24, 20], [10, 0, 20, 6]])
    output = yolo_v8(corners, np.array([[0.9], [0.8], [0.7]]))[None]
    (request,) = fill(YoloV8(), [output], [{"data": EMPTY_DATA, "inverse_trans": Letterbox()}])
    np.testing.assert_allclose(request["result"], [[100, 50, 150, 75], [0, 0, 50, 25]], atol=1e-3)
    assert request["classes"].tolist() == [0, 0]


def test_an_inverse_of_the_users_is_asked_too_and_source_size_cuts_off() -> None:
    """Any callable with x and y."""
    output = yolo_v8(np.array([[10.0, 10, 30, 30]]), np.array([[0.9]]))[None]
    request = {"data": EMPTY_DATA, "inverse_trans": lambda x, y: (2 * x, y + 1)}
    assert fill(YoloV8(), [output], [dict(request)])[0]["result"].tolist() == [[20, 11, 60, 31]]
    assert fill(YoloV8(), [output], [{**request, "source_size": (25, 50)}])[0]["result"].tolist() == [[20, 11, 50, 25]]


def test_the_source_size_of_an_inverse_may_be_an_array() -> None:
    """It comes before that of the request."""

    class OfArrays(Letterbox):
        source_size: Any = np.array([100, 200])

    output = yolo_v8(np.array([[48.0, 32, 120, 44]]), np.array([[0.9]]))[None]
    (request,) = fill(
        YoloV8(), [output], [{"data": EMPTY_DATA, "inverse_trans": OfArrays(), "source_size": (100, 150)}]
    )
    np.testing.assert_allclose(request["result"], [[100, 50, 200, 75]], atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 64, 96), (1, 3, 64, 96), (64, 96, 3)])
def test_boxes_of_a_stretched_picture_are_those_of_its_source_size(shape: tuple[int, ...]) -> None:
    """Without inverse_trans; the size of the input is that of the data."""
    output = yolo_v8(np.array([[24.0, 16, 48, 32]]), np.array([[0.9]]))[None]
    (request,) = fill(YoloV8(), [output], [{"data": np.zeros(shape), "source_size": (640, 192)}])
    assert request["result"].tolist() == [[48, 160, 96, 320]]
    for row in range(2 if len(shape) == 3 else 0):  # of the tensor of a batch, as steps on a GPU hand it on
        data = Row(np.zeros((2, *shape)), row)
        (request,) = fill(YoloV8(), [output], [{"data": data, "source_size": (640, 192)}])
        assert request["result"].tolist() == [[48, 160, 96, 320]]


@pytest.mark.parametrize(
    ("request_keys", "problem"),
    [
        ({"inverse_trans": 3}, "inverse_trans must be callable with x and y, got 3"),
        ({"source_size": "large"}, "source_size must be height and width of the picture, got 'large'"),
        ({"source_size": (0, 5)}, "source_size must be height and width"),
        ({"source_size": (5, 5), "data": [1, 2]}, "expected an image of three axes or more in the data"),
    ],
)
def test_a_request_that_does_not_say_where_its_picture_is_fails_alone(
    request_keys: dict[str, Any], problem: str
) -> None:
    """UnfitError names it; the model is then run for the others."""
    output = np.repeat(yolo_v8(np.array([[10.0, 10, 30, 30]]), np.array([[0.9]]))[None], 2, axis=0)
    with pytest.raises(UnfitError) as caught:
        YoloV8()([output], [{"data": EMPTY_DATA}, {"data": EMPTY_DATA, **request_keys}])
    assert list(caught.value.errors) == [1]
    assert problem in str(caught.value.errors[1])


# ---- DETR, RT-DETR, plain boxes --------------------------------------------------------------------------------------


def queries(seed: int, class_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners from 0 to 1, the same as centres and sizes, and logits, of 30 queries."""
    rng = np.random.default_rng(seed)
    centres = np.concatenate([rng.uniform(0.3, 0.7, (30, 2)), rng.uniform(0.1, 0.5, (30, 2))], axis=1)
    corners = np.concatenate([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], axis=1)
    return corners, centres, rng.normal(0, 2, (30, class_count))


@pytest.mark.parametrize(("class_count", "swapped"), [(3, False), (3, True), (4, False)])
def test_rt_detr_takes_the_best_pairs_of_query_and_class(class_count: int, swapped: bool) -> None:
    """Sigmoids, as many as there are queries, above the threshold; a query may have two classes. In pixels.

    Two outputs of one shape are taken as logits, then boxes.
    """
    corners, centres, logits = queries(1, class_count)
    outputs = [logits[None].astype(np.float32), centres[None].astype(np.float32)]
    (request,) = fill(RtDetr(score_threshold=0.6), outputs[::-1] if swapped else outputs)
    pairs = sorted((1 / (1 + np.exp(-logits[q, c])), q, c) for q in range(30) for c in range(class_count))[::-1][:30]
    pairs = [pair for pair in pairs if pair[0] > 0.6]
    assert len({query for _, query, _ in pairs}) < len(pairs)
    np.testing.assert_allclose(request["scores"], [score for score, _, _ in pairs], rtol=1e-5)
    assert request["classes"].tolist() == [number for _, _, number in pairs]
    expected = corners[[query for _, query, _ in pairs]] * (96, 64, 96, 64)
    np.testing.assert_allclose(request["result"], expected, atol=1e-3)


def test_rt_detr_in_one_output_has_probabilities() -> None:
    """As Ultralytics exports it: the best class of each query."""
    corners, centres, logits = queries(2, 3)
    probabilities = 1 / (1 + np.exp(-logits))
    (request,) = fill(RtDetr(), [np.concatenate([centres, probabilities], axis=1)[None].astype(np.float32)])
    order = [query for query in np.argsort(-probabilities.max(1)) if probabilities[query].max() > 0.5]
    np.testing.assert_allclose(request["result"], corners[order] * (96, 64, 96, 64), atol=1e-3)
    assert request["classes"].tolist() == probabilities[order].argmax(1).tolist()


def test_detr_leaves_out_the_class_of_no_object() -> None:
    """Softmax over all classes; the last one is no answer. Through inverse_trans, as for the others."""
    corners, centres, logits = queries(3, 4)
    (request,) = fill(
        Detr(score_threshold=0.4, min_size=0),
        [logits[None].astype(np.float32), centres[None].astype(np.float32)],
        [{"data": EMPTY_DATA, "inverse_trans": Letterbox()}],
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = [query for query in np.argsort(-probabilities[:, :3].max(1)) if probabilities[query, :3].max() > 0.4]
    pixels = corners[order] * (96, 64, 96, 64)
    expected = np.stack([pixels[:, 0] * 200 / 96, (pixels[:, 1] - 8) * 100 / 48], axis=1)
    np.testing.assert_allclose(request["result"][:, :2], expected.clip(0, (200, 100)), atol=1e-3)
    assert request["classes"].tolist() == probabilities[order, :3].argmax(1).tolist()


@pytest.mark.parametrize(("form", "make"), [("xyxy", None), ("xywh", as_opencv), ("cxcywh", as_centres)])
@pytest.mark.parametrize("swapped", [False, True])
def test_nms_takes_boxes_in_three_forms(form: str, make: Any, swapped: bool) -> None:
    """In the input's pixels or as parts of it, without the background; outputs in any order."""
    corners = np.array([[10.0, 10, 30, 30], [11, 10, 30, 30], [50, 20, 80, 40], [0, 0, 90, 60]])
    scores = np.array([[0.1, 0.6, 0.0], [0.1, 0.7, 0.0], [0.1, 0.0, 0.5], [0.9, 0.0, 0.1]])
    boxes = np.asarray(make(corners) if make else corners) / ((96, 64) * 2)
    outputs = [boxes[None].astype(np.float32), scores[None].astype(np.float32)]
    head = Nms(boxes=form, normalized=True, background=0)
    (request,) = fill(head, outputs[::-1] if swapped else outputs)
    np.testing.assert_allclose(request["result"], corners[[1, 2]], atol=1e-3)
    assert request["classes"].tolist() == [1, 2]


def test_nms_takes_scores_without_classes() -> None:
    """(batch, boxes): all are of class 0."""
    outputs = [np.array([[[0.0, 0, 10, 10], [0, 0, 10, 11]]], np.float32), np.array([[0.4, 0.6]], np.float32)]
    (request,) = fill(Nms(), outputs)
    assert (request["result"].tolist(), request["classes"].tolist()) == ([[0, 0, 10, 11]], [0])


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shapes", "problem"),
    [
        ("YoloV12", [()], "no postprocessor is named 'YoloV12'; did you mean 'YoloV1"),
        (
            {"name": "YoloV8", "score_treshold": 0.5},
            [()],
            "no option 'score_treshold', only score_threshold, .*; did you mean 'score_threshold'",
        ),
        ({"name": "YoloV8", "score_threshold": 2}, [()], "YoloV8: score_threshold must be between 0 and 1, got 2"),
        ({"name": "YoloV8", "soft": "cubic"}, [()], "YoloV8: soft must be 'linear' or 'gaussian' or none, got 'cubic'"),
        ({"name": "split", "k": 1}, [()], "postprocessor 'split' has no options, got k"),
        ({"score_threshold": 0.5}, [()], "postprocessor must have a name"),
        ("YoloV8", [(1, 84, 8400), (1, 32, 160, 160)], r"expected one output of shape \(batch, 4 \+ classes, boxes\)"),
        ("YoloV8", [("n", 4, 8400)], r"got \('n', 4, 8400\)"),
        ("YoloV5", [("n", 25200, 5)], r"expected one output of shape \(batch, boxes, 5 \+ classes\), got"),
        ("YoloV10", [(1, 300, 7)], r"expected one output of shape \(batch, boxes, 6\), got \(1, 300, 7\)"),
        ("RtDetr", [(1, 300, 80), (1, 200, 4)], r"expected outputs of shapes \(batch, queries, classes\)"),
        ("Detr", [(1, 300, 84)], "expected two outputs"),
        (
            "Detr",
            [(1, 5, 1), (1, 5, 4)],
            r"two outputs, \(batch, queries, classes \+ 1\), at least 2, and .*\(1, 5, 1\)",
        ),
        ("RtDetr", [(1, 5, 4), (1, 5, 0)], r"with at least 1 class, got \(1, 5, 4\), \(1, 5, 0\)"),
        ("Nms", [(1, 5, 4), (1, 5, 0)], r"\(batch, boxes, classes\), at least 1 class, .*got \(1, 5, 4\), \(1, 5, 0\)"),
        ("Nms", [("n", "k", 4), ("n", "k", "k", "c")], "expected two outputs"),
    ],
)
def test_what_cannot_work_is_refused_when_the_pipe_is_built(given: Any, shapes: Any, problem: str) -> None:
    """Names, options, and models with other outputs, as far as they are declared."""
    with pytest.raises(ConfigError, match=problem):
        find_postprocessor(given, shapes)


def test_outputs_that_were_not_declared_are_checked_when_they_come() -> None:
    """BackendError, with the shapes; also where there are too few rows."""
    with pytest.raises(BackendError, match=r"YoloV8: expected one output .*got \(1, 3\)"):
        fill(YoloV8(), [np.zeros((1, 3), np.float32)])
    with pytest.raises(BackendError, match="a row for each of 2 requests"):
        fill(YoloV8(), [np.zeros((1, 6, 5), np.float32)], [{"data": EMPTY_DATA}] * 2)
