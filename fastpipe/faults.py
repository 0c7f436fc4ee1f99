"""What kind of trouble a backend's exception is: memory that ran out, or a device that is gone; where all threads are.

Libraries have types of their own for both. Nothing is imported for it: types are known by their names.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, MemberDescriptorType, TracebackType
from typing import TYPE_CHECKING, Any

from fastpipe.errors import BackendError, DeviceLost

if TYPE_CHECKING:
    from fastpipe.contract import Backend

__all__ = ["is_device_lost", "is_out_of_memory", "node_of", "own_copy", "stacks", "take_traceback", "text_of"]

_IS_WRITTEN_IN_PYTHON = 1 << 9  # a flag of types: Py_TPFLAGS_HEAPTYPE

_OUT_OF_MEMORY = {"OutOfMemoryError", "CUDAOutOfMemoryError"}
# The types in which libraries report what CUDA says: (module, name). Their text is theirs; that of any other exception
# may be a request's.
_OF_CUDA = {
    ("torch", "AcceleratorError"),
    ("torch.cuda", "CudaError"),
    ("cupy_backends.cuda.api.runtime", "CUDARuntimeError"),
    ("cupy_backends.cuda.api.driver", "CUDADriverError"),
    ("cuda.bindings._internal.utils", "CUDAError"),
    ("cuda.core._utils.cuda_utils", "CUDAError"),
    ("fastpipe.kernels._cuda_device", "CudaError"),
}
_CODES = ("error_code", "status", "code")  # the attribute that has CUDA's number, where there is one
# After one of these, CUDA answers every further call of the process with the same error: cudaErrorIllegalAddress and
# the others that the CUDA runtime's documentation says leave the process in an inconsistent state.
_STICKY_CODES = {214, 700, 702, 710, 714, 715, 716, 717, 718, 719}
_STICKY = (
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "device-side assert triggered",
    "hardware stack error",
    "uncorrectable ECC error",
    "the launch timed out and was terminated",
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_ASSERT",
)
_ON_CUDA = re.compile(r"cuda:(\d+)")
_NODE_IN_NOTE = re.compile(r"fastpipe: node '([^']+)'")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer requests at once might succeed: memory ran out, of the host or of a device.

    It costs the batch a few more runs if that is wrong, and nothing lasting: any exception may say so.
    """
    return any(kind is MemoryError or kind.__name__ in _OUT_OF_MEMORY for kind in type(error).__mro__)


def is_device_lost(error: BaseException, backend: Backend) -> bool:
    """Whether no further request can succeed in ``backend``, which has raised ``error``: its node is then lost.

    That is for good, so a request must not be able to bring it about. The backend says so itself (DeviceLost; one that
    tells of another node's device, that of a pipe which the backend calls, does not count), or a library reports, in
    its own type, an error after which CUDA answers nothing any more, the instance is on a device, and that does not
    answer.
    """
    if issubclass(type(error), DeviceLost):
        return getattr(error, "node", None) is None
    return _is_sticky(error) and not _answers(backend)


def _is_sticky(error: BaseException) -> bool:
    kinds = {(kind.__module__, kind.__name__) for kind in type(error).__mro__} & _OF_CUDA
    if not any(module in sys.modules for module, _ in kinds):
        return False
    codes = [code for code in (getattr(error, name, None) for name in _CODES) if isinstance(code, int)]
    if codes:
        return any(int(code) in _STICKY_CODES for code in codes)
    text = text_of(error)
    return any(phrase in text for phrase in _STICKY)


def _answers(backend: Backend) -> bool:
    """Whether the device of an instance works, or there is none."""
    try:
        if backend.is_device_alive is not None:
            return bool(backend.is_device_alive())
        on_cuda = _ON_CUDA.fullmatch(str(backend.place))
        if on_cuda is None:
            return True
        number = int(on_cuda[1])
        torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize(number)
        elif cupy is not None:
            cupy.cuda.Device(number).synchronize()
    except Exception:  # whatever it says, it cannot be waited for
        return False
    return True


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, which an exception class may have made as odd as it likes."""
    try:
        return str(error)
    except Exception as broken:
        return f"<its __str__ raises {type(broken).__name__}>"


def node_of(error: BaseException) -> str:
    """Return the node whose backend or filter raised, as the engine's note on the error says; empty: it says none."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, str) and (found := _NODE_IN_NOTE.search(note)):
            return found[1]
    return ""


def own_copy(error: BaseException) -> BaseException:
    """Return a copy of an exception, so that each of those who get it has notes and a traceback of its own.

    As ``copy.copy``, but no constructor of a user's class runs: its parameters need not be what ``args`` holds. The
    copy has the attributes, notes, traceback, cause and context of the original, the values themselves not copied. Of
    an exception that cannot be copied so, a BackendError is made, which has it as its cause.

    Raises:
        MemoryError: there is no memory for it.
    """
    kind = type(error)
    native = next(base for base in kind.__mro__ if not base.__flags__ & _IS_WRITTEN_IN_PYTHON)
    try:
        arguments = native.__reduce__(error)[1]  # type: ignore[call-arg]
        copied: BaseException = native.__new__(kind, *arguments)
        native.__init__(copied, *arguments)  # type: ignore[misc]
        copied.args = error.args
        state = object.__getstate__(error)
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        copied.__dict__.update(attributes or {})
        for name, value in (slots or {}).items():
            object.__setattr__(copied, name, value)
        for name, value in _members(native, error):
            with suppress(AttributeError):  # read-only: made of its arguments
                object.__setattr__(copied, name, value)
        if "__notes__" in copied.__dict__:
            copied.__dict__["__notes__"] = list(error.__notes__)
        copied.__cause__, copied.__context__ = error.__cause__, error.__context__
        copied.__suppress_context__ = error.__suppress_context__
        return copied.with_traceback(error.__traceback__)
    except MemoryError:
        raise
    except Exception:
        wrapped = BackendError(f"{kind.__name__}: {text_of(error)} (which several requests met, and cannot be copied)")
        wrapped.__cause__ = error
        return wrapped


def _members(native: type[BaseException], error: BaseException) -> Iterator[tuple[str, Any]]:
    """Yield what a built-in class keeps beside ``args``, as the ``name`` of an ImportError."""
    for base in native.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and not name.startswith("__"):
                value = member.__get__(error)
                if value is not None:
                    yield name, value


def is_engines(code: CodeType) -> bool:
    """Say whether a frame's code is the engine's own: its first page, or one of its chapters."""
    return code.co_filename.startswith(("fastpipe/_core.pyx", "fastpipe/engine/"))


def take_traceback(error: BaseException) -> TracebackType | None:
    """Cut off what a traceback has of the time before, when a backend raised the same object; return what it was then.

    Python puts what is new in front of what is there: an object that is raised for one request after the other would
    get a traceback without end, with the frames of all of them. An exception that is raised for the first time is left
    as it is.
    """
    entry = error.__traceback__
    first = entry
    called = before = start = None
    previous = None
    while entry is not None:
        code = entry.tb_frame.f_code
        was_in_engine = previous is not None and is_engines(previous.tb_frame.f_code)
        if is_engines(code):
            if not was_in_engine:
                before, start = previous, entry
        elif was_in_engine:
            if called is None:
                called = code
            elif called is code and before is not None:
                before.tb_next = None
                return start
        previous, entry = entry, entry.tb_next
    return first


def stacks() -> str:
    """Return where every Python thread of the process is, as text."""
    import traceback  # hardly ever needed

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)!r}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def with_request(error: BaseException, request: Any) -> BaseException:
    """Return an exception that ``map`` yields in the place of a request: it says which request it was."""
    try:
        error.failed_request = request  # type: ignore[attr-defined]
    except Exception:  # its class forbids it
        replacement = BackendError(f"{type(error).__name__}: {text_of(error)}")
        replacement.__cause__ = error
        replacement.failed_request = request  # type: ignore[attr-defined]
        return replacement
    return error
