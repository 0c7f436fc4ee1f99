#!/usr/bin/env bash
# CPython 3.11 to 3.13 loses an exception on its way if memory runs out while a frame that it leaves is cleared: what arrives
# is "SystemError: error return without exception set", with no trace of what was raised.
#
# Such a frame, which the exception's traceback keeps, is given a frame object as its f_back, that of its caller. Where there
# is no memory for that, _PyFrame_MakeAndSetFrameObject (Python/frame.c) drops the pending exception for the MemoryError, and
# take_ownership clears that one. 3.10 keeps the exception. `except LookupError` does not catch what is left, and neither
# does `except MemoryError`.
set -euo pipefail
python=${PYTHON:-python3}
"$python" -c "import _testcapi; _testcapi.set_nomemory" 2>/dev/null || { echo "needs a CPython built with its tests"; exit 2; }
"$python" - <<'PY'
import sys

import _testcapi


def raises():
    raise LookupError("words")


def calls():
    raises()


def calls_too():
    calls()


lost = {}
for point in range(1, 100):  # allocation number `point` fails, and no other
    error = None
    _testcapi.set_nomemory(point, point + 1)
    try:
        calls_too()
    except (LookupError, MemoryError):
        pass
    except SystemError as caught:
        error = caught
    finally:
        _testcapi.remove_mem_hooks()
    if error is not None:
        lost[point] = str(error)

print(f"CPython {sys.version.split()[0]}: SystemError at {lost}")
expected = {"error return without exception set"} if sys.version_info >= (3, 11) else set()
if set(lost.values()) != expected:
    sys.exit("the behaviour has changed")
PY
