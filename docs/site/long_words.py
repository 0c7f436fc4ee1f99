"""Where a line may end inside a long word of code: a table would never be narrower than the longest one in it."""

from __future__ import annotations

import re

__all__ = ["parts_of"]

LONGEST = 30
"""Characters of a word that is kept in one line; a phone has room for 40."""


def parts_of(code: str) -> list[str]:
    """Return the parts of code within a sentence between which a line may end; joined they are the code.

    A line may end behind blanks, and in words that are too long behind signs.
    """
    words = re.findall(r"\S+\s*|\s+", code)
    return [
        part for word in words for part in (re.split(r"(?<=[_/.,:=-])(?=.)", word) if len(word) > LONGEST else [word])
    ]
