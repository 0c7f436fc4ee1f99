"""What a node writes as ``pad`` and ``max_tokens``: of one length, or of several, as height and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fastpipe.errors import ConfigError, nearest
from fastpipe.summaries import summarize

__all__ = ["Names", "Pad", "is_number", "is_whole", "read_pad"]

MOST_PADDING = 0.15
"""Share of a batch that may be padding, if nothing is said: more costs more than most models gain by company."""

_LARGEST_LENGTH = (1 << 31) - 1

Names = Mapping[str, Any]


@dataclass(frozen=True)
class Pad:
    """What is written of one length, and ``max_tokens``.

    Args:
        to: ``"longest"`` of the batch, or the lengths that there are.
        axis: which is padded, with the batch as number 0: a number, a name of the model's, or either by input.
        value: with what: one number, or by input. A mask is padded with 0.
        mask: the input that says what is no padding.
        length: the input that has the length.
        outputs: by output, the axis that depends on the length, or a list of them; [] for none.
        max_padding: the greatest share of a batch that may be padding, where it is padded to the longest.
        max_tokens: requests times what is padded of each, at most; of all lengths.
        key: what messages call it.
    """

    to: Literal["longest"] | Sequence[int]
    axis: int | str | Names | None = None
    value: float | Names = 0
    mask: str | None = None
    length: str | None = None
    outputs: Names = field(default_factory=dict)
    max_padding: float = MOST_PADDING
    max_tokens: int | None = None
    key: str = "pad"


def read_pad(pad: Any, max_tokens: int | None) -> tuple[Pad, ...] | None:
    """Return what is written of each length; None: nothing is padded.

    Raises:
        ConfigError: if it is no such thing; the message has the key, expected and got.
    """
    if pad is None:
        if max_tokens is not None:
            raise ConfigError("max_tokens: it bounds what is padded, so it needs pad, such as pad='longest'")
        return None
    if not isinstance(pad, list | tuple) or not any(isinstance(each, Mapping) for each in pad):
        return (_read_one(pad, max_tokens, "pad"),)
    if wrong := [each for each in pad if not isinstance(each, Mapping)]:
        raise ConfigError(f"pad: expected a table for each of several lengths, got {summarize(wrong[0])} among them")
    pads = tuple([_read_one(each, max_tokens, f"pad[{number}]") for number, each in enumerate(pad)])
    for each in pads:
        if len(pads) > 1 and each.axis is None:
            raise ConfigError(f"{each.key}.axis: expected the axis of this length, as there are several, got nothing")
    return pads


def _read_one(pad: Any, max_tokens: int | None, key: str) -> Pad:
    options = dict(pad) if isinstance(pad, Mapping) else {"to": pad}
    known = [option.name for option in fields(Pad) if option.name not in ("max_tokens", "key")]
    if wrong := [
        f"{key}: it has no {summarize(name)}, only {', '.join(known)}{nearest(name, known)}"
        for name in options
        if name not in known
    ]:
        raise ConfigError(*wrong)
    if "to" not in options:
        raise ConfigError(f"{key}: expected to = 'longest' or a list of lengths in it")
    to = options.pop("to")
    is_longest = isinstance(to, str) and to.lower() == "longest"
    share = options.get("max_padding", MOST_PADDING)
    if not is_number(share) or not 0 <= share <= 1:
        raise ConfigError(f"{key}.max_padding: expected a number from 0 to 1, got {summarize(share)}")
    if not isinstance(options.get("outputs", {}), Mapping):
        raise ConfigError(
            f"{key}.outputs: expected a table with the axes of each output that have the length, such as "
            f"{{ hidden = 1 }}, or {{ hidden = [] }} for one that has it nowhere, got {summarize(options['outputs'])}"
        )
    buckets: Literal["longest"] | tuple[int, ...] = "longest" if is_longest else _buckets(to, max_tokens, key)
    return Pad(buckets, max_tokens=max_tokens, key=key, **options)


def _buckets(to: Any, max_tokens: int | None, key: str) -> tuple[int, ...]:
    is_list = isinstance(to, list | tuple) and len(to) > 0
    if not is_list or not all(is_whole(size) and 0 < size <= _LARGEST_LENGTH for size in to):
        raise ConfigError(f"{key}: expected 'longest' or a list of lengths, such as [32, 64, 128], got {summarize(to)}")
    buckets = tuple(sorted(set(to)))
    if max_tokens is not None and buckets[-1] > max_tokens:
        raise ConfigError(
            f"{key}: no request of length {buckets[-1]} could run with max_tokens={max_tokens}: raise that, or take "
            f"the longer lengths out"
        )
    return buckets


def is_number(value: Any) -> bool:
    """Say whether it is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Say whether it is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
