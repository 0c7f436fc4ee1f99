"""How many instructions does the host run for an image, from JPEG to class? Valgrind counts; no GPU is needed.

    python bench/gpu/instructions.py --image FILE [--beside FOLDER]

The GPU is one that does nothing (``null_gpu.py``), so that what remains is the host's part: Python's, the engine's, and
torch's calls. ``--beside``: another build in FOLDER, as ``bench/instructions.py`` takes it. Batches are of 64.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCHES, BATCH = 10, 64


def counted(image: Path, way: str, path: Path | None, library: Path) -> float:
    """Return the instructions for an image, sent in one of the ways.

    Args:
        image: a JPEG.
        way: "lists" or "map".
        path: a folder to import fastpipe from; None: as installed.
        library: what stands for nvJPEG.
    """
    with tempfile.TemporaryDirectory(prefix="fastpipe-instructions-") as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/part", "--dump-before=getppid"]
        command += [sys.executable, str(HERE / "null_gpu.py"), str(library), str(image), str(BATCHES), way]
        environment = {**os.environ, "PYTHONHASHSEED": "0", **({"PYTHONPATH": str(path)} if path else {})}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        total = re.search(r"^totals: (\d+)", Path(folder, "part.2").read_text(), re.MULTILINE)
    assert total is not None
    return int(total[1]) / (BATCHES * BATCH)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="a JPEG")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="count with the fastpipe/ in this folder, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastpipe-null-") as folder:
        library = Path(folder, "libnull.so")
        source = str(HERE / "null_nvjpeg.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", str(library)], check=True)
        for way in ("lists", "map"):
            here = counted(given.image, way, None, library)
            print(f"{way:6} {here:9.0f} instructions an image")
            if given.beside:
                beside = counted(given.image, way, given.beside.resolve(), library)
                print(f"{way:6} {beside:9.0f} beside it, {beside / here:.2f} x")


if __name__ == "__main__":
    main()
