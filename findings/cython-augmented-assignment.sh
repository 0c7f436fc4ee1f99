#!/usr/bin/env bash
# Cython 3.3.1 makes C that no compiler takes of `call(x).field += 1`, where `call` is a cdef function that returns a cdef class.
#
# `call(x).field = 1` and reading the field are translated well, and so is `+=` on a variable that has the result. For the
# augmented assignment the result is kept as a plain PyObject*, which has no such member: the error is the C compiler's,
# about a temporary with no name, and says nothing of the line of the .pyx.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cython==3.3.1
include=$("$folder/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('include'))")

check() { # name, the statement: translate a module with it, and have its C compiled; prints what came of it
    cat >"$folder/$1.pyx" <<PYX
cdef class Counter:
    cdef long count

cdef Counter same(Counter counter):
    return counter

def run(Counter counter):
    cdef Counter kept = same(counter)
    $2
    return kept.count
PYX
    "$folder/venv/bin/cython" -3 "$folder/$1.pyx" -o "$folder/$1.c"
    if cc -fsyntax-only -I"$include" "$folder/$1.c" 2>"$folder/$1.txt"; then
        echo compiles
    else
        grep -m1 -o "error: .*" "$folder/$1.txt" | grep -o "has no member named.*"
    fi
}

echo "Cython $("$folder/venv/bin/cython" --version 2>&1 | grep -o '[0-9.]*')"
for statement in "same(counter).count = 1" "kept.count += 1" "same(counter).count += 1"; do
    came=$(check module "$statement")
    echo "  $statement: $came"
    case "$statement$came" in
    "same(counter).count += 1has no member named"*) ;;
    *"compiles") [ "$statement" != "same(counter).count += 1" ] || { echo "the behaviour has changed"; exit 1; } ;;
    *) echo "the behaviour has changed"; exit 1 ;;
    esac
done
