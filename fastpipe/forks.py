"""Locks of modules, in processes that fork."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["ProcessLock"]


class ProcessLock:
    """A reentrant lock of which the child of a fork has another: who held it at the fork is not there to give it back.

        with _lock.of_this_process:
            ...

    What it guards may be half done in the child if another thread was at it: write so that it can be done again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_renewed_in_children = False

    @property
    def of_this_process(self) -> AbstractContextManager[bool]:
        """The lock, to be asked for at each use: whoever holds one over a fork gives back the one that it took."""
        if not self._is_renewed_in_children:  # not at import
            os.register_at_fork(after_in_child=self._renew)
            self._is_renewed_in_children = True
        return self._lock

    def _renew(self) -> None:
        self._lock = threading.RLock()
