"""The folder that Sphinx reads: the repository's pages where they lie in it, and what they link to.

The pages are written for a reader of the repository, so their links lead to files and folders of it. Sphinx knows no
folders: a link to one becomes a link to its README.md. A file that is no page is copied, and the site offers it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from os.path import normpath, relpath
from pathlib import Path

__all__ = ["FENCE", "ROOT", "DeadLink", "page_names", "stage"]

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("docs/site/index.md")

_FOLDERS = (".", "docs", "docs/gpu", "docs/recipes", "examples", "examples/*", "bench", "proofs", "findings")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(
    r"""(?P<before>\]\(|<img\ [^>]*?src=")(?P<target>[^)\s#:"]+)(?P<fragment>\#[^)\s]*)?(?=[)"])""", re.VERBOSE
)


class DeadLink(Exception):
    """A page links to what is not there."""


def page_names() -> list[str]:
    """Return the repository's pages without their suffixes, sorted; the home page is not one of them."""
    pages = {page.relative_to(ROOT) for pattern in _FOLDERS for page in ROOT.glob(f"{pattern}/*.md")}
    return sorted(str(page.with_suffix("")) for page in pages)


def stage(folder: Path) -> None:
    """Write the pages and what they link to into a new folder.

    Raises:
        DeadLink: if a link leads to a file that is not there, or to a folder that has no README.md.
    """
    for name in page_names():
        page = Path(f"{name}.md")
        _write(folder, page, page)
    _write(folder, HOME, Path("index.md"))


def _write(folder: Path, page: Path, place: Path) -> None:
    """Write one page of the repository to its place in the folder, and copy the files that it shows or offers."""

    def followed(target: str) -> str:
        found = Path(normpath(page.parent / target))
        if (ROOT / found).is_dir():
            found /= "README.md"
        if not (ROOT / found).exists():
            raise DeadLink(f"{page}: there is no {found}")
        if found.suffix != ".md":
            (folder / found).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / found, folder / found)
        return relpath(found, place.parent)

    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(with_links((ROOT / page).read_text(), followed))


def with_links(text: str, followed: Callable[[str], str]) -> str:
    """Return Markdown whose relative links lead where ``followed`` says; code is left as it is."""
    parts = FENCE.split(text)
    for number in range(0, len(parts), 2):  # the odd ones are code
        parts[number] = _LINK.sub(
            lambda link: link["before"] + followed(link["target"]) + (link["fragment"] or ""),
            parts[number],
        )
    return "".join(parts)
