"""Nodes of a pipe as a transform: equal to what is served, and clear about what cannot be part of one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpipe
from fastpipe import ConfigError, NoResult, Status
from fastpipe.backends.basic import Identity
from fastpipe.train import Transform, transform

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
torch = pytest.importorskip("torch", reason="PyTorch is not installed here (extra torch)")

SIZED = {"resize_h": 48, "resize_w": 40}
BOUNDED = {"max_h": 48, "max_w": 40}
SQUARE = [[3.0, 4.0], [50.0, 6.0], [48.0, 40.0], [5.0, 44.0]]
CHAINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Steps -> their keys, and what a request has beside its data.
    "DecodeMat": ({}, {}),
    "DecodeMat,CvtColorMat": ({"color": "rgb"}, {}),
    "DecodeMat,ResizeMat,NormalizeMat": ({**SIZED, "preset": "imagenet"}, {}),
    "DecodeMat,(run)ThrowIfNoResult,ResizeMat,NormalizeMat": ({**SIZED, "preset": "clip", "message": "no image"}, {}),
    "DecodeMat,PillowResizeMat,NormalizeMat": ({**SIZED, "preset": "yolo", "interpolation": "cubic"}, {}),
    "DecodeMat,ResizeShorterMat,CenterCropMat,NormalizeMat": (
        {"shorter_side": 40, "crop_h": 32, "crop_w": 36, "preset": "imagenet", "dtype": "float16"},
        {},
    ),
    "DecodeMat,ResizePadMat,CvtColorMat": ({**BOUNDED, "pad_value": 114, "color": "rgb"}, {}),
    "DecodeMat,TopLeftResizeMat": (BOUNDED, {}),
    "DecodeMat,LetterBoxMat,NormalizeMat": ({**BOUNDED, "preset": "yolo"}, {}),
    "DecodeMat,ResizeCenterPadMat": (BOUNDED, {}),
    "DecodeMat,AlignMat,DynamicResizeMat": ({"resize_h": 32, "max_w": 64, "align": 8}, {}),
    "DecodeMat,CropMat": ({}, {"box": [5, 6, 50, 40]}),
    "DecodeMat,CropResizeMat,NormalizeMat": ({**SIZED, "preset": "imagenet"}, {"box": [5, 6, 50, 40]}),
    "DecodeMat,PerspectiveTransformMat": ({}, {"quad": SQUARE}),
    "DecodeMat,ResizeMat,Mat2Tensor": ({**SIZED, "device": "cpu"}, {}),
    "DecodeMat,ResizeMat,NormalizeMat ": ({**SIZED, "preset": "imagenet", "scale": "auto"}, {}),  # scaled decoding
}


def image_files() -> dict[str, bytes]:
    """Return pictures of several kinds, the same each time."""
    pixels = np.random.default_rng(7).integers(0, 256, (24, 32, 3), np.uint8)
    large = cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(pixels, (61, 83), interpolation=cv2.INTER_CUBIC)
    kinds = {
        "jpeg": (".jpg", large),
        "upright png": (".png", small),
        "gray png": (".png", small[:, :, 0]),
        "png with alpha": (".png", np.dstack([small, small[:, :, :1]])),
        "webp": (".webp", large),
        "bmp": (".bmp", small),
    }
    return {name: cv2.imencode(suffix, image)[1].tobytes() for name, (suffix, image) in kinds.items()}


FILES = image_files()


def same(got: Any, expected: Any) -> bool:
    """Say whether two arrays or tensors have the same type of numbers, shape and bits."""
    got, expected = np.asarray(got), np.asarray(expected)
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("steps", CHAINS)
def test_a_tensor_equals_what_the_same_nodes_serve(steps: str) -> None:
    """Bit for bit, for each of the CPU's image backends, and whether they are steps of one node or nodes."""
    keys, more = CHAINS[steps]
    config = {"prepare": {"backend": f"S[{steps}]", **keys, "next": "model"}, "model": {"backend": "OnnxTensor"}}
    config["model"]["model"] = "is-not-there.onnx"  # before it has been trained
    with fastpipe.Pipe(backend=f"S[{steps}]", **keys) as pipe:
        served = {name: pipe({"data": data, **more})["result"] for name, data in FILES.items()}
    with transform(config) as prepare:
        for name, data in FILES.items():
            tensor = prepare({"data": data, **more})
            assert isinstance(tensor, torch.Tensor)
            assert same(tensor, served[name]), name


def test_a_line_of_nodes_with_filters_equals_the_pipe() -> None:
    """Each node hands its result to the next, or is skipped, as its filter says."""
    config: dict[str, Any] = {
        "decode": {"backend": "DecodeMat", "next": "large"},
        "large": {"backend": "ResizeMat", **SIZED, "filter": _swap_if_wide, "next": "colour"},
        "colour": {"backend": "CvtColorMat", "color": "rgb"},
    }
    with fastpipe.Pipe(config) as pipe, transform(config) as prepare:
        for data in FILES.values():
            assert same(prepare(data), pipe({"data": data})["result"])
        shapes = {prepare(data).shape[:2] for data in FILES.values()}
    assert shapes == {(48, 40), (83, 61)}


def _swap_if_wide(request: dict[str, Any]) -> Status:
    height, width = request["result"].shape[:2]
    if width < height:
        return Status.Skip
    request["data"] = request.pop("result")
    return Status.Run


ALL_IN_ONE = {
    "backend": "S[DecodeMat,(run)ThrowIfNoResult,ResizeMat,NormalizeMat,OnnxTensor]",
    "message": "no image",
    "model": "is-not-there.onnx",
    "NormalizeMat::mean": [1.0, 2.0, 3.0],
    "NormalizeMat::std": [4.0, 5.0, 6.0],
    **SIZED,
}


def test_a_node_with_the_model_inside_is_divided_in_front_of_it() -> None:
    """Of one Sequential with all steps, those before the model are the transform; or those before a step."""
    keys = {key: value for key, value in ALL_IN_ONE.items() if key not in ("backend", "model")}
    with fastpipe.Pipe(backend="S[DecodeMat,(run)ThrowIfNoResult,ResizeMat,NormalizeMat]", **keys) as pipe:
        served = pipe({"data": FILES["jpeg"]})["result"]
    assert same(transform(ALL_IN_ONE)(FILES["jpeg"]), served)
    shorter = transform(ALL_IN_ONE, before="NormalizeMat")
    assert shorter(FILES["jpeg"]).shape == (48, 40, 3)
    assert repr(shorter) == "<fastpipe.train.Transform main: S[DecodeMat,ThrowIfNoResult,ResizeMat]>"
    nested = {**ALL_IN_ONE, "backend": "S[S[DecodeMat,ResizeMat],S[NormalizeMat,OnnxTensor]]"}
    del nested["message"]
    assert same(transform(nested)(FILES["jpeg"]), served)


def test_what_augments_sees_the_image_in_front_of_its_step() -> None:
    """It changes what comes behind; without it the transform is what is served."""
    seen: list[Any] = []

    def flip(image: Any) -> Any:
        seen.append((image.dtype, image.shape))
        return image[:, ::-1]

    plain, flipped = transform(ALL_IN_ONE), transform(ALL_IN_ONE, augment=flip, augment_before="NormalizeMat")
    assert same(flipped(FILES["jpeg"]), plain(FILES["jpeg"]).numpy()[:, :, ::-1])
    assert seen == [(np.uint8, (48, 40, 3))]
    with pytest.raises(ConfigError, match="no node or step of the transform is named 'Nowhere'"):
        transform(ALL_IN_ONE, augment=flip, augment_before="Nowhere")
    with pytest.raises(ConfigError, match="give both, or none"):
        transform(ALL_IN_ONE, augment=flip)


def test_a_fork_to_models_ends_the_transform_there() -> None:
    """What several models have in common is in front of all of them."""
    model = {"backend": "OnnxTensor", "model": "is-not-there.onnx"}
    config = {
        "decode": {"backend": "DecodeMat", "next": "small"},
        "small": {"backend": "ResizeMat", **SIZED, "next": "first,second"},
        "first": model,
        "second": model,
    }
    assert transform(config)(FILES["bmp"]).shape == (48, 40, 3)
    assert transform(config, before="second").steps == ["decode: DecodeMat", "small: ResizeMat"]
    assert transform(config, before="small").steps == ["decode: DecodeMat"]


def test_a_step_of_one_node_is_meant_by_both_names() -> None:
    """Where several nodes have a step of that name; a model may then be part of the transform of the next."""
    config: dict[str, Any] = {
        "first": {"backend": "S[DecodeMat,ResizeMat]", **SIZED, "next": "second"},
        "second": {"backend": "S[CvtColorMat,ResizeMat,Identity]", "color": "rgb", "resize_h": 9, "resize_w": 9},
    }
    assert transform(config, before="ResizeMat").steps == ["first: S[DecodeMat]"]
    shorter = transform(config, before="second::ResizeMat")
    assert shorter.steps == ["first: S[DecodeMat,ResizeMat]", "second: S[CvtColorMat]"]
    assert shorter(FILES["jpeg"]).shape == (48, 40, 3)
    with pytest.raises(ConfigError, match="no node is named 'third'"):
        transform(config, before="third::ResizeMat")
    with pytest.raises(ConfigError, match="no node and no step is named 'first::CvtColorMat'"):
        transform(config, before="first::CvtColorMat")


def test_augment_in_front_of_a_step_with_a_filter_is_as_the_step_is() -> None:
    """Run leaves data and result as they are; what decides whether the step runs at all is refused."""
    seen: list[Any] = []

    def look(data: Any) -> Any:
        seen.append(type(data))
        return data

    plain = transform(ALL_IN_ONE)
    looking = transform(ALL_IN_ONE, augment=look, augment_before="ThrowIfNoResult")
    assert same(looking(FILES["jpeg"]), plain(FILES["jpeg"]))
    assert seen == [bytes]
    config = {**ALL_IN_ONE, "backend": "S[DecodeMat,(or)ThrowIfNoResult,ResizeMat,NormalizeMat,OnnxTensor]"}
    with pytest.raises(ConfigError, match="decides whether it runs"):
        transform(config, augment=look, augment_before="ThrowIfNoResult")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a fork": (
        {
            "decode": {"backend": "DecodeMat", "next": "a,b"},
            "a": {"backend": "ResizeMat", **SIZED},
            "b": {"backend": "CvtColorMat", "color": "rgb"},
        },
        {},
        ("node 'decode'", "a, b follow it", "before='a'"),
    ),
    "a sub-graph": (
        {
            "start": {"backend": "Jump", "jump": "other", "next": "end"},
            "end": {"backend": "Identity"},
            "other": {"backend": "Identity"},
        },
        {},
        ("node 'start': Jump is another graph",),
    ),
    "several roots": (
        {"a": {"backend": "DecodeMat"}, "b": {"backend": "DecodeMat"}},
        {},
        ("begins at one root, and there are 2: a, b",),
    ),
    "a map": (
        {"a": {"backend": "DecodeMat", "next": "b"}, "b": {"backend": "Identity", "map": "a[result:data]"}},
        {},
        ("node 'b'", "its map", "before='b'"),
    ),
    "a model that normalises": (
        {"backend": "S[DecodeMat,OnnxTensor]", "model": "no.onnx", "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]},
        {},
        ("OnnxTensor has mean and std", "NormalizeMat", "before='OnnxTensor'"),
    ),
    "no such end": ({"decode": {"backend": "DecodeMat"}}, {"before": "decod"}, ("'decod'", "did you mean 'decode'?")),
    "nothing in front": ({"backend": "DecodeMat"}, {"before": "DecodeMat"}, ("nothing stands in front of DecodeMat",)),
    "a mistake": ({"backend": "ResizeMat", "resize_h": 0, "resize_w": 5}, {}, ("resize_h",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_a_transform_is_said_before_anything_runs(what: str) -> None:
    """With the node, and what to do."""
    config, keywords, said = REFUSED[what]
    with pytest.raises(ConfigError) as caught:
        transform(config, **keywords)
    for part in said:
        assert part in str(caught.value)


def test_a_step_that_needs_the_engine_is_named() -> None:
    """Sub-graphs as steps, backends that stream, and those with a thread of their own."""

    class Streams(Identity):
        streams = True

    class Bound(Identity):
        thread_bound = True

    for backend, said in ((Streams, "Streams answers in parts"), (Bound, "Bound needs a thread of its own")):
        with pytest.raises(ConfigError, match=said):
            transform({"only": {"backend": backend}})


def test_a_backend_on_a_device_is_refused_when_it_is_built() -> None:
    """Workers have none; only the constructor knows where an instance is."""

    class There(Identity):
        def __init__(self) -> None:
            self.place = "cuda:0"

    with pytest.raises(ConfigError, match="node 'only': it is at cuda:0"):
        transform({"only": {"backend": There}})(b"")


def test_a_filter_that_may_end_a_request_early_is_not_cut_apart() -> None:
    """Behind the cut nobody would know that the request has left."""
    config = {**ALL_IN_ONE, "backend": "S[DecodeMat,(Skip)ThrowIfNoResult,ResizeMat,NormalizeMat,OnnxTensor]"}
    with pytest.raises(ConfigError, match="the filter in front of ThrowIfNoResult may end a request"):
        transform(config)


def test_what_a_step_raises_reaches_the_caller_with_the_node() -> None:
    """As its own type; what has no result says which step gave none."""
    with pytest.raises(fastpipe.BackendError, match="no image") as caught:
        transform(ALL_IN_ONE)(b"this is no image")
    assert "fastpipe: in node 'main', in a transform" in caught.value.__notes__
    config = {"decode": {"backend": "DecodeMat", "next": "small"}, "small": {"backend": "ResizeMat", **SIZED}}
    with pytest.raises(NoResult, match="node 'decode': step DecodeMat gave no result"):
        transform(config)(b"this is no image")


def test_a_filter_that_ends_a_request_leaves_no_tensor() -> None:
    """What an earlier node made is not handed out as if it were the last one's."""
    config = {
        "decode": {"backend": "DecodeMat", "next": "small"},
        "small": {"backend": "ResizeMat", **SIZED, "filter": lambda request: Status.Break},
    }
    with pytest.raises(NoResult, match="in front of node 'small'"):
        transform(config)(FILES["jpeg"])


def test_it_is_pickled_without_what_it_has_built(tmp_path: Path) -> None:
    """From a file, whose nodes are those it was read with, even if it is gone."""
    path = tmp_path / "pipeline.toml"
    path.write_text('[small]\nbackend = "S[DecodeMat,ResizeMat]"\nresize_h = 9\nresize_w = 7\n')
    first = transform(path, small={"resize_w": 8})
    expected = first(FILES["jpeg"])
    path.unlink()
    second = pickle.loads(pickle.dumps(first))
    assert isinstance(second, Transform)
    assert same(second(FILES["jpeg"]), expected)
    assert expected.shape == (9, 8, 3)
    assert len(pickle.dumps(first)) < 2000


def test_a_path_is_read_and_a_request_is_left_as_it_is(tmp_path: Path) -> None:
    """What the caller gives is not changed."""
    (tmp_path / "a.jpg").write_bytes(FILES["jpeg"])
    prepare = transform(backend := {"backend": "S[DecodeMat,ResizeMat]", **SIZED})
    request = {"data": FILES["jpeg"]}
    assert same(prepare(request), prepare(tmp_path / "a.jpg"))
    assert request == {"data": FILES["jpeg"]}
    assert backend == {"backend": "S[DecodeMat,ResizeMat]", **SIZED}
