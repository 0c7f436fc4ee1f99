"""Named ``mean`` and ``std`` of the steps that normalise: the numbers that models were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastpipe.errors import ConfigError

__all__ = ["Preset", "levels_of"]

Preset = Literal["imagenet", "clip", "yolo"]

# Mean and std of RGB on the scale 0 to 1, as each source writes them:
# - imagenet: torchvision's ImageClassification (transforms/_presets.py), and timm's IMAGENET_DEFAULT_MEAN and _STD;
# - clip: OpenAI's CLIP (clip/clip.py), and transformers' OPENAI_CLIP_MEAN and _STD;
# - yolo: Ultralytics' predictor (engine/predictor.py): RGB, divided by 255.
_OF_RGB: dict[Preset, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "yolo": ((0.0,), (1.0,)),
}
WHITE = 255.0


def levels_of(
    backend: str,
    preset: Preset | None,
    color: Literal["rgb", "bgr", "gray"] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Sequence[float], Sequence[float], Literal["rgb", "bgr", "gray"] | None]:
    """Return mean and std on the scale 0 to 255, in the order of the color, and the color.

    Without a preset they are what is given, 0 and 1 where nothing is. A preset is of RGB where no color is given.

    Raises:
        ConfigError: if a preset meets mean or std, or gray and the preset has three numbers.
    """
    if preset is None:
        return (0.0,) if mean is None else mean, (1.0,) if std is None else std, color
    if mean is not None or std is not None:
        raise ConfigError(
            f"{backend}: preset = {preset!r} has a mean and std of its own; take out either it or mean and std"
        )
    means, stds = (tuple(level * WHITE for level in levels) for levels in _OF_RGB[preset])
    if color == "gray" and len(means) > 1:
        raise ConfigError(f"{backend}: preset = {preset!r} is of three channels, color = 'gray' of one")
    if color == "bgr":
        means, stds = means[::-1], stds[::-1]
    return means, stds, color or "rgb"
