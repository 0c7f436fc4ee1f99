#!/usr/bin/env bash
# resvg-py 0.5.0 leaves text out of an image, and says nothing, where none of the font families that the SVG names is there.
#
# Browsers, and other renderers, then take any font that has the letters. Here that holds even for the generic families at
# the end of a list, as 'sans-serif' means one font by name (Arial), and for text that names no family (Times New Roman): on a
# machine with other fonts only, a drawing loses all of its text. Naming the generic family in the call brings it back.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check resvg-py==0.5.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/fonts" matplotlib==3.11.2 # for its fonts
"$folder/venv/bin/python" - "$folder/fonts/matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf" <<'PY'
import sys, warnings
from importlib.metadata import version
import resvg_py

def draw(text, **options):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="24">{text}</svg>'
    return resvg_py.svg_to_bytes(svg_string=svg, font_files=[sys.argv[1]], skip_system_fonts=True, **options)

warnings.simplefilter("error")
blank = draw("")
cases = {
    "font-family='DejaVu Sans'": (draw("<text y='18' font-family='DejaVu Sans'>Ag</text>"), True),
    "font-family='Helvetica'": (draw("<text y='18' font-family='Helvetica'>Ag</text>"), False),
    "font-family='Helvetica, sans-serif'": (draw("<text y='18' font-family='Helvetica, sans-serif'>Ag</text>"), False),
    "no font-family": (draw("<text y='18'>Ag</text>"), False),
    "'Helvetica, sans-serif', sans_serif_family='DejaVu Sans'": (
        draw("<text y='18' font-family='Helvetica, sans-serif'>Ag</text>", sans_serif_family="DejaVu Sans"), True),
}
print("resvg-py", version("resvg-py"), "with DejaVu Sans as its only font")
for case, (image, is_drawn_here) in cases.items():
    print(f"  {case}: {'drawn' if image != blank else 'left out'}")
    if (image != blank) != is_drawn_here:
        sys.exit("the behaviour has changed")
PY
