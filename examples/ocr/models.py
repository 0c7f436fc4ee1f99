"""Where the three models are: files inside the package rapidocr-onnxruntime, which is not imported for them."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import onnxruntime

__all__ = ["DETECTOR", "DIRECTION", "RECOGNISER", "ModelsMissing", "alphabet", "model_path"]

PACKAGE = "rapidocr_onnxruntime"
DETECTOR = "ch_PP-OCRv4_det_infer.onnx"
DIRECTION = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
RECOGNISER = "ch_PP-OCRv4_rec_infer.onnx"


class ModelsMissing(ImportError):
    """The package with the models is not installed, or has other models; the message says what to install."""


def model_path(file_name: str) -> Path:
    """Return where a model is.

    Raises:
        ModelsMissing: if it is nowhere.
    """
    package = importlib.util.find_spec(PACKAGE)
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "models", file_name)
        if path.is_file():
            return path
    # Not in the extra "demo": it would bring a second OpenCV, whose files overwrite those of the first.
    raise ModelsMissing(
        f"no {file_name}: the demo's models are in a package of their own,"
        " pip install --no-deps rapidocr-onnxruntime==1.4.4",
        name=PACKAGE,
    )


@functools.cache
def alphabet(recogniser: Path) -> tuple[str, ...]:
    """Return the characters that a recogniser knows, by the index it gives them; the first means "none".

    The file brings them along, as a text of one character a line; the space comes last.

    Raises:
        ValueError: if it brings none.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it will not be run
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(recogniser), options, providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map.get("character")
    if not characters:
        raise ValueError(f"{recogniser} has no list of characters in its metadata")
    return ("", *characters.splitlines(), " ")
