"""Ctrl-C at every moment of a piece of code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import CodeType
from typing import Any, TypeVar

MOST_MOMENTS = 1000

T = TypeVar("T")


def interrupted_everywhere(begin: Callable[[], T], watched: Collection[CodeType]) -> tuple[int, T]:
    """Call it with a KeyboardInterrupt behind one more instruction of that code each time, until one call is not hit.

    Returns:
        How many calls it took, and what the last one, which was not hit, has returned.
    """
    left = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code not in watched:
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left == 0 and event == "opcode":
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    for moment in range(1, MOST_MOMENTS):
        left = moment
        sys.settrace(trace)
        try:
            begun = begin()
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(before)
        return moment, begun
    raise AssertionError(f"it was interrupted {MOST_MOMENTS} times, and has more instructions still")
