"""What tests of the engine may ask for: time that stands still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import time_stands_still


@pytest.fixture
def frozen_time() -> Iterator[None]:
    """Time stands still, but for _core._advance_time."""
    with time_stands_still():
        yield
