#!/usr/bin/env bash
# After `pip install --editable`, `setup.py build_ext --inplace` compiles extension modules again that are up to date.
#
# An editable build sets build_lib and build_temp to a temporary folder (setuptools/command/editable_wheel.py,
# `_configure_build`), and copies the module into the source tree. `build_ext --inplace` compares the sources with the
# module in build/lib.*, which is not there, so it compiles; a second time it does not. Whoever sets both back to the
# usual folders in `build_ext.finalize_options` compiles once, as setup.py of this repository does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet setuptools==80.9.0 wheel==0.45.1
mkdir "$folder/project"
cd "$folder/project"
cat > setup.py <<'PY'
from setuptools import Extension, setup

setup(name="twice", version="1", ext_modules=[Extension("twice", ["twice.c"])])
PY
cat > twice.c <<'C'
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "twice"};
PyMODINIT_FUNC PyInit_twice(void) { return PyModule_Create(&definition); }
C
# A compiler that notes what it compiles.
cat > "$folder/compiler" <<SH
#!/bin/sh
case " \$* " in *" -c "*) echo "\$*" >> "$folder/compiled" ;; esac
exec cc "\$@"
SH
chmod +x "$folder/compiler"
export CC="$folder/compiler"
touch "$folder/compiled"
count() { wc -l < "$folder/compiled"; }
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --editable .
installed=$(count)
"$folder/venv/bin/python" setup.py --quiet build_ext --inplace
again=$(count)
"$folder/venv/bin/python" setup.py --quiet build_ext --inplace
third=$(count)
version=$("$folder/venv/bin/python" -c 'from importlib.metadata import version; print(version("setuptools"))')
echo "setuptools $version: compiled $installed times by the installation, $((again - installed)) by build_ext after it," \
    "$((third - again)) by the next build_ext"
[ "$installed $again $third" = "1 2 2" ] || { echo "the behaviour has changed"; exit 1; }
