"""Who may import whom: the arrows of docs/design.md, and nothing optional at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_AS = {"fastpipe": "fastpipe", "kernels": "fastpipe.kernels", "backends": "fastpipe.backends"}

OPTIONAL = {
    *("PIL", "cryptography", "cupy", "cv2", "grpc", "matplotlib", "modelopt", "nvidia", "onnx", "onnxruntime"),
    *(
        "onnxscript",
        "onnxsim",
        "onnxslim",
        "opentelemetry",
        "openvino",
        "optuna",
        "prometheus_client",
        "ray",
        "resvg_py",
    ),
    *("rich", "simplejpeg", "skimage", "tensorrt", "tensorrt_rtx", "tomlkit", "torch", "torchvision"),
    *("google", "grpc", "httptools", "ml_dtypes", "orjson", "starlette", "uvicorn", "uvloop"),
}

FLOORS = [
    # From the top: what is on a floor imports from its own room and from floors below, and nothing else.
    ["fastpipe.__main__"],
    ["fastpipe.cli"],
    ["fastpipe"],
    ["fastpipe.scale"],
    ["fastpipe.serve"],
    ["fastpipe.batched_function", "fastpipe.observe"],
    ["fastpipe.pipe"],
    ["fastpipe._maps", "fastpipe._streams"],
    ["fastpipe.debug", "fastpipe.observe.timeline"],
    ["fastpipe.show"],
    ["fastpipe.models"],
    ["fastpipe.train"],
    ["fastpipe.instances"],
    ["fastpipe.process"],
    ["fastpipe._future", "fastpipe.measures", "fastpipe.observe.stream_rows"],
    ["fastpipe._core"],
    ["fastpipe.engine"],
    ["fastpipe.backends"],
    ["fastpipe.kernels"],
    ["fastpipe.config"],
    ["fastpipe.functions"],
    ["fastpipe.streaming"],
    ["fastpipe.contents"],
    ["fastpipe.snapshots", "fastpipe.cpus", "fastpipe.forks"],
    ["fastpipe.faults"],
    ["fastpipe.contract"],
    ["fastpipe.filters", "fastpipe.results", "fastpipe.summaries", "fastpipe.observe.perfetto"],
    ["fastpipe.errors", "fastpipe.redaction", "fastpipe.announcing", "fastpipe.padding", "fastpipe.sites"],
]
"""The house; ``fastpipe`` itself is the package, with its public names. Rooms on one floor do not know each other."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """Return the room in which a module is, given its full name; empty if none has it."""
    if module == "fastpipe":
        return module
    parts = module.split(".")
    return next((room for n in (3, 2) if (room := ".".join(parts[:n])) in FLOOR_OF), "")


def is_module(name: str) -> bool:
    """Say whether ``fastpipe.x.y`` is a module or a package here, not an object inside one."""
    folder = next(
        (f for f, package in INSTALLED_AS.items() if f"{name}.".startswith(f"{package}.") and f != "fastpipe"), ""
    )
    relative = Path(folder, *name.split(".")[2:]) if folder else Path(*name.split("."))
    path = ROOT / relative
    return path.is_dir() or any(path.with_suffix(suffix).is_file() for suffix in (".py", ".pyx", ".pxd"))


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package as (full name, source); the engine's chapters are part of ``_core``."""
    for folder, package in INSTALLED_AS.items():
        for path in sorted((ROOT / folder).rglob("*.p*")):
            if path.suffix == ".pxi":
                yield "fastpipe._core", path
            if path.suffix in {".py", ".pyi", ".pyx", ".pxd"}:
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join([package, *(part for part in inner if part != "__init__")]), path


def imports_of(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield what ``path`` imports from fastpipe as (full module name, line), wherever in the file it stands."""
    text = path.read_text()
    if path.suffix in {".pyx", ".pxd", ".pxi"}:  # ast does not read Cython; an import is one line there
        for number, line in enumerate(text.splitlines(), 1):
            if found := re.match(r"\s*(?:from|import|cimport)\s+(fastpipe[\w.]*)", line):
                yield found[1], number
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "fastpipe")


def test_every_module_is_on_a_floor() -> None:
    """A new module is given its floor here (and in ``fastpipe/__init__.py``) before it imports anything."""
    without = {name for name, _ in modules() if not room_of(name)}
    assert not without, f"not in FLOORS: {', '.join(sorted(without))}"


def test_imports_go_down() -> None:
    """``TYPE_CHECKING`` is no excuse: who needs another's type needs to know it."""
    upwards = [
        f"{path.relative_to(ROOT)}:{line}: {name} -> {imported}"
        for name, path in modules()
        for imported, line in imports_of(name, path)
        if room_of(imported) != room_of(name) and FLOOR_OF[room_of(imported)] <= FLOOR_OF[room_of(name)]
    ]
    assert not upwards, "imports upwards:\n" + "\n".join(upwards)


CLIMBS_OF_CHAPTERS = {
    # Methods that Python calls stand with their class; what they do is further up.
    *(("lines", "admission"), ("clocks", "watching"), ("station", "watching"), ("station", "serving")),
    *(("walks", "outcomes"), ("walks", "futures"), ("walks", "loops"), ("chunks", "futures")),
    # An end has something begin: who is let in, or the whole whose last part it was.
    *(("outcomes", "admission"), ("outcomes", "routing")),
    # A turn in a sequence comes, and goes, with what happens to requests.
    *(("routing", "sequences"), ("outcomes", "sequences")),
    # An answer may be there, or is had by others, too: who is about to run, has run, fails or waits has it looked to.
    *(("routing", "caching"), ("running", "caching"), ("outcomes", "caching"), ("loops", "caching")),
}
"""Calls from a chapter of the engine into one above it; no other is made."""


def test_chapters_of_the_engine_call_downwards() -> None:
    """A request is read from the top to the bottom of the list of includes in ``_core.pyx``."""
    order = re.findall(r'^include "engine/(\w+)\.pxi"$', (ROOT / "fastpipe" / "_core.pyx").read_text(), re.MULTILINE)
    texts = {name: (ROOT / "fastpipe" / "engine" / f"{name}.pxi").read_text() for name in order}
    types = re.findall(r'^include "engine/(\w+)\.pxi"$', (ROOT / "fastpipe" / "_core.pxd").read_text(), re.MULTILINE)
    assert {*texts, *types} == {path.stem for path in (ROOT / "fastpipe" / "engine").glob("*.pxi")}
    function = re.compile(r"^(?:cdef|def) [^\n(=]*?\b(\w+)\(", re.MULTILINE)
    home = {name: chapter for chapter, text in texts.items() for name in function.findall(text)}
    calls = {
        (chapter, home[name])
        for chapter, text in texts.items()
        for name in re.findall(r"(?<![\w.])(\w+)\(", re.sub(r"#.*|\bdef \w+\(", "", text))
        if name in home
    }
    assert {(here, there) for here, there in calls if order.index(there) < order.index(here)} == CLIMBS_OF_CHAPTERS
    private = {
        name for name in home if name.startswith("_") and re.search(rf"^cdef .*\b{name}\(", texts[home[name]], re.M)
    }
    foreign = {
        f"{here}: {name}"
        for here in order
        for name in re.findall(r"(?<![\w.])(_\w+)\(", texts[here])
        if name in private and home[name] != here
    }
    assert foreign == set(), "an underscore says that a function is its chapter's own"


@pytest.mark.parametrize("room", ["", ".kernels", ".backends", ".serve", ".train", ".models.comparing"])
def test_importing_loads_no_optional_library_and_prints_nothing(room: str, tmp_path: Path) -> None:
    """Optional libraries are loaded by the backend that needs them, not by an import."""
    script = f"import sys, fastpipe{room}; print(*sorted({OPTIONAL} & set(sys.modules)), end='')"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("folder", ["kernels", "backends"])
def test_a_second_copy_from_the_repository_root_is_refused(folder: str) -> None:
    """With the root on the path, ``import kernels`` would make classes that are not fastpipe.kernels' own."""
    ran = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert f"ImportError: import fastpipe.{folder}" in ran.stderr
