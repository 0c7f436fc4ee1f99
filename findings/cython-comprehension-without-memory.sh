#!/usr/bin/env bash
# A list comprehension of Cython's lets go of an item twice if there is no memory for the list: the item is freed while
# others still use it. Seen with Cython 3.3.1: where an item is a new reference (``[f(x) for x in y]``), the helper
# ``__Pyx_ListComp_AppendAndDecref`` drops it whether or not the append failed, and the code behind it, on failure, drops
# it again. ``list.append`` in a loop does it once. fastpipe's engine uses that where memory may be lacking.
#
# Shown without a lack of memory: by the generated C, in which the temporary is still set when the error label, which
# drops it, is reached. Fails if a later Cython generates something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "Cython==3.3.1"
cat > "$folder/comprehension.pyx" <<'PYX'
def texts(list given):
    return ["x" + each for each in given]
PYX
cd "$folder"
"$folder/venv/bin/cython" --version
"$folder/venv/bin/cython" -3 comprehension.pyx -o comprehension.c
python3 - <<'PY'
import re

code = open("comprehension.c").read()
helper = re.search(r"static CYTHON_INLINE int __Pyx_ListComp_AppendAndDecref\(PyObject\* list, PyObject\* x\) \{.*?\n\}", code, re.S)[0]
assert re.search(r"int result = PyList_Append\(list, x\);\s*Py_DECREF\(x\);\s*return result;", helper), "the helper has changed"
call = re.search(r"if \(unlikely\(__Pyx_ListComp_AppendAndDecref\((\w+), (\w+)\)\)\) __PYX_ERR\(0, 2, (\w+)\)\n\s*(\w+) = 0;", code)
assert call and call[2] == call[4], "the item is no longer kept until after the call"
behind = code[code.index(f"{call[3]}:;", call.end()) :]
error = re.search(rf"__pyx_L1_error:;.*?__Pyx_XDECREF\({call[2]}\);", behind, re.S)
assert error, "the error label no longer drops the item"
print("the helper drops the item although the append has failed, and the error label drops it again")
PY
