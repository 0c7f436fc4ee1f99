"""What several files of these tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvjpeg_fake import Fake, compiled_into


@pytest.fixture(scope="session")
def compiled_nvjpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake nvJPEG, as a shared library."""
    return compiled_into(tmp_path_factory.mktemp("nvidia"))


@pytest.fixture
def fake(compiled_nvjpeg: Path) -> Iterator[Fake]:
    """The fake nvJPEG, as it is at first; afterwards all its handles have to be given back."""
    made = Fake(compiled_nvjpeg)
    made.set(**made.USUAL)
    yield made
    made.set(**made.USUAL)
    assert made.live == 0, "a handle was not given back"
