"""Check the style of all pages with proselint: ``python docs/site/check_prose.py``; a finding is an error.

proselint reads code and tables as if they were prose, so they are blanked out before. What it would also find is left
out in proselint.json: straight quotes and ``x`` between numbers, which are meant; "for ever", which is British; and
words that it takes for a range of dates, or for a redundancy, where they are none.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from staging import FENCE, ROOT, page_names

_NO_PROSE = re.compile(r"^(?: {4}|#|\|).*$", re.MULTILINE)  # indented code, headings, tables
_TARGET = re.compile(r"(?<=\])\([^)]*\)")
_CODE_OR_NUMBER = re.compile(r"`[^`]*`|\d[\dx,.]*")
_WORDS = ("abc", "def", "ghi", "jkl", "mno")


def main() -> int:
    """Check all pages and return the exit status."""
    names = page_names()
    with tempfile.TemporaryDirectory(prefix="fastpipe-prose-") as folder:
        for name in names:
            place = Path(folder) / f"{name}.md"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(prose_of((ROOT / f"{name}.md").read_text()))
        settings = str(Path(__file__).with_name("proselint.json"))
        ran = subprocess.run(
            # In front of "check", --config would be ignored (proselint 0.16).
            [sys.executable, "-m", "proselint", "check", "--config", settings, *(f"{n}.md" for n in names)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    sys.stderr.write(ran.stdout.replace(f"{folder}/", "") + ran.stderr)
    return ran.returncode


def prose_of(text: str) -> str:
    """Return Markdown without what is no prose, in the same lines.

    Code and numbers within a sentence become words, a different one each time, so that those around them do not meet.
    """
    for pattern in (FENCE, _NO_PROSE, _TARGET):
        text = pattern.sub(_blank, text)
    words = itertools.cycle(_WORDS)
    return _CODE_OR_NUMBER.sub(lambda found: next(words) + "\n" * found[0].count("\n"), text)


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


if __name__ == "__main__":
    sys.exit(main())
