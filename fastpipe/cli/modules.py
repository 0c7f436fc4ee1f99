"""Where a command looks for the modules that a configuration of the user's names: beside the file, behind all others.

The file is code, and so are the modules that lie with it. Of a record's configuration, this is done only if the user
trusts it: beside it may lie whatever came with it, under the name of an optional library that is not installed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["look_beside", "modules_beside"]


def look_beside(path: Path) -> None:
    """Have ``module:Name`` find modules beside a file for as long as the command runs, imports in ``forward`` too."""
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)


@contextlib.contextmanager
def modules_beside(path: Path) -> Iterator[None]:
    """The same within this block only, for a command that looks at several files: each by itself."""
    folder = str(path.absolute().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
