"""What kind of trouble a backend's exception is: memory that ran out, or a device that is gone; where all threads are.

Libraries have types of their own for both, and CUDA's errors come as RuntimeErrors that only their text tells apart.
Nothing is imported for it: types are known by their names.
"""

from __future__ import annotations

import sys
import threading

from fastpipe.errors import DeviceLost

__all__ = ["is_device_lost", "is_out_of_memory", "stacks", "text_of"]

_OUT_OF_MEMORY = {"OutOfMemoryError", "CUDAOutOfMemoryError"}
# After one of these, CUDA answers every further call of the process with the same error: cudaErrorIllegalAddress and
# the others that the CUDA runtime's documentation says leave the process in an inconsistent state.
_STICKY = (
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "device-side assert triggered",
    "hardware stack error",
    "uncorrectable ECC error",
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer requests at once might succeed: memory ran out, of the host or of a device."""
    return any(kind is MemoryError or kind.__name__ in _OUT_OF_MEMORY for kind in type(error).__mro__)


def is_device_lost(error: BaseException) -> bool:
    """Whether no further request can succeed on this device, in this process."""
    if issubclass(type(error), DeviceLost):
        return True
    if not issubclass(type(error), RuntimeError):
        return False
    text = text_of(error)
    return any(phrase in text for phrase in _STICKY)


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, which an exception class may have made as odd as it likes."""
    try:
        return str(error)
    except Exception:
        return "(its str() raises)"


def stacks() -> str:
    """Return where every Python thread of the process is, as text."""
    import traceback  # hardly ever needed

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)!r}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
