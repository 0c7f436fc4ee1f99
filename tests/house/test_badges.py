"""The badges in README.md say what pyproject.toml says. ``FASTPIPE_DRAW=1`` draws them anew."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

LETTER = 6.6  # px a letter takes of 11 px, at most
BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{what}: {said}">
<title>{what}: {said}</title>
<rect width="{width}" height="20" rx="3" fill="#0a62a9"/>
<path d="M3 0h{left}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{at_left}" y="14">{what}</text><text x="{at_right}" y="14">{said}</text>
</g>
</svg>
"""


def said_by(settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what each badge has to say, by the name of its file."""
    project = settings["project"]
    versions = sorted(
        int(found[1]) for each in project["classifiers"] if (found := re.search(r"Python :: 3\.(\d+)$", each))
    )
    systems = [each.rpartition(" :: ")[2] for each in project["classifiers"] if each.startswith("Operating System")]
    needs = [re.match(r"\w+", each)[0] for each in project["dependencies"]]  # type: ignore[index]
    return {
        "python": ("Python", f"3.{versions[0]} to 3.{versions[-1]}"),
        "system": ("system", ", ".join(systems)),
        "license": ("license", project["license"]),
        "needs": ("needs", ", ".join(needs)),
        "types": ("types", "strict mypy" if settings["tool"]["mypy"]["strict"] else "mypy"),
    }


def drawn(what: str, said: str) -> str:
    """Return a badge as SVG."""
    left, right = round(len(what) * LETTER) + 12, round(len(said) * LETTER) + 12
    return BADGE.format(
        what=what, said=said, width=left + right, left=left - 3, at_left=left // 2, at_right=left + right // 2
    )


def test_the_badges_are_true(repository_root: Path) -> None:
    """Each is of what the project's file says now, and README.md shows each."""
    wanted = said_by(tomllib.loads((repository_root / "pyproject.toml").read_text()))
    folder = repository_root / "docs/badges"
    if os.environ.get("FASTPIPE_DRAW") == "1":
        for name, words in wanted.items():
            (folder / f"{name}.svg").write_text(drawn(*words))
        pytest.skip("drawn anew")
    assert {path.stem for path in folder.glob("*.svg")} == set(wanted)
    readme = (repository_root / "README.md").read_text()
    for name, words in wanted.items():
        assert (folder / f"{name}.svg").read_text() == drawn(*words)
        assert f"![{': '.join(words)}](docs/badges/{name}.svg)" in readme
