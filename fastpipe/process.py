"""What concerns the whole process: its signals, what becomes of pipes in the child of a fork, and at the end.

Nothing is done at import, but when the first pipe is built.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from typing import Protocol

from fastpipe import _core
from fastpipe.cpus import usable_cpu_count
from fastpipe.forks import ProcessLock
from fastpipe.streaming import hand_on_by

__all__ = ["EXIT_DRAIN_S", "living_pipes", "open_pipes", "set_up"]

# At the end of the process, open pipes are closed; requests still in flight get so long to end.
EXIT_DRAIN_S = 5.0
# Waiting threads spin for so long before they sleep, where there are cores to spare for it.
SPIN_NS = 2_000
# A caller that has been woken may keep the next ones spinning for so long, where there are cores to spare.
LONGEST_LEASE_NS = 100_000


class _Closable(Protocol):
    def close(self, timeout: float | None = None) -> None: ...


open_pipes: weakref.WeakSet[_Closable] = weakref.WeakSet()
"""Those that are closed at the end of the process."""
living_pipes: weakref.WeakSet[_Closable] = weakref.WeakSet()
"""Closed ones, and those that are being built, too: what the child of a fork must not free."""

_is_set_up = False
_set_up_lock = ProcessLock()


def set_up() -> None:
    """Do, once, what concerns the process. To be called before a pipe is built; any thread."""
    global _is_set_up
    # Not once: it may be imported at any time, by another library, too.
    getcurrent = getattr(sys.modules.get("greenlet"), "getcurrent", None)
    if getcurrent is not None:
        _core.know_greenlets(getcurrent)
    if _is_set_up:
        return
    with _set_up_lock.of_this_process:
        if _is_set_up:
            return
        # Futures, and what tells where threads hang: they take longer to import than all of fastpipe, but when the
        # first is needed, there may be no file descriptor left to open a module with.
        import traceback  # noqa: F401

        from fastpipe._future import RequestFuture

        _core.configure_futures(RequestFuture)
        _configure()
        hand_on_by(_core)
        os.register_at_fork(after_in_child=_after_fork_in_child)
        # Runs after the program's own threads have been joined (they may call pipes until then); ours are daemons.
        atexit.register(_close_at_exit)
        # Last: the child of a fork in the middle does it again, and twice does no harm.
        _is_set_up = True


def _configure() -> None:
    main = threading.main_thread().ident
    # On one or two cores a spinning waiter occupies the core on which what it waits for would run.
    is_roomy = usable_cpu_count() > 2
    _core.configure_process(
        0 if main is None else main,
        spin_ns=SPIN_NS if is_roomy else 0,
        longest_lease_ns=LONGEST_LEASE_NS if is_roomy else 0,
    )


def _after_fork_in_child() -> None:
    _core.note_fork_in_child()
    open_pipes.clear()
    # Libraries have threads, locks and devices that are the parent's: what frees a model may wait for them for ever, or
    # crash. So the child frees nothing of what the parent has built, neither when it drops it nor when it ends.
    _core.abandon_in_child(list(living_pipes))
    living_pipes.clear()
    _configure()


def _close_at_exit() -> None:
    deadline = time.monotonic() + EXIT_DRAIN_S
    for pipe in list(open_pipes):
        pipe.close(timeout=max(deadline - time.monotonic(), 0.0))
    # Workers that an earlier close(timeout) left behind in a backend: native code that is still running when the
    # interpreter goes may abort the process.
    for thread in threading.enumerate():
        if thread.name.startswith("fastpipe "):
            thread.join(max(deadline - time.monotonic(), 0.0))
