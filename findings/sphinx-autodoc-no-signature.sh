#!/usr/bin/env bash
# Sphinx 9: a handler of `autodoc-process-signature` cannot give a signature to what has none, such as a method of a compiled
# class. autodoc warns "list assignment index out of range" and leaves the method out of the page. Sphinx 8 shows it.
#
# The documentation of the event says that the handler "can return a tuple (signature, return_annotation) to change what
# Sphinx puts into the output", and that the signature that it is given may be None. The cause is `signatures[0] = ...` in
# autodoc/_dynamic/_signatures.py, where the list is empty if nothing was found.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir source
cat > source/conf.py <<'PY'
extensions = ["sphinx.ext.autodoc"]


def setup(app):
    app.connect("autodoc-process-signature", lambda *event: ("(text, form)", ""))
PY
printf 'Page\n====\n\n.. automethod:: datetime.datetime.strptime\n' > source/index.rst

seen=""
for version in 8.2.3 9.0.4; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check "sphinx==$version"
    "venv-$version/bin/sphinx-build" -q -b text source "out-$version" 2> said || true
    shown=$(grep -c 'strptime(text, form)' "out-$version/index.txt" || true)
    warned=$(grep -c 'strptime: list assignment index out of range' said || true)
    echo "Sphinx $version: on the page $shown times, warnings: $warned"
    seen="$seen $shown,$warned"
done
[ "$seen" = " 1,0 0,1" ] || { echo "the behaviour has changed" >&2; exit 1; }
