"""Who may import whom: the arrows of docs/design.md, and nothing optional at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED_AS = {"fastpipe": "fastpipe", "kernels": "fastpipe.kernels", "backends": "fastpipe.backends"}

OPTIONAL = {
    *("PIL", "cryptography", "cupy", "cv2", "modelopt", "numba", "nvidia", "onnx", "onnxruntime", "rich", "simplejpeg"),
    *("skimage", "tensorrt", "tensorrt_rtx", "torch"),
}

PUBLIC = {"fastpipe", "backend", "batched", "errors", "expression", "filters", "pipe"}
"""What a user imports; everything that stands on top of the pipe may use this and no more."""

MAY_IMPORT: dict[str, set[str]] = {
    # A module of fastpipe, or the first folder it is in -> what it may import; "fastpipe" is the package itself. What
    # has only a .pxd is a part of the engine.
    "errors": set(),
    "_cpus": set(),
    "_forks": set(),
    "filters": {"errors"},
    "backend": {"errors", "_function"},
    "_function": {"backend", "errors"},
    "registry": {"_forks", "_function", "backend", "errors"},
    "_secrets": set(),
    "expression": {"_secrets", "errors"},
    "_values": {"backend"},
    "_plan": {"_secrets", "_values", "backend", "errors", "expression", "filters", "registry"},
    "_proxies": {"_plan", "backends", "errors"},
    "config": {"_plan", "_proxies", "_secrets", "_values", "backend", "backends", "errors", "expression"},
    "graph": {"config", "errors", "filters"},
    "_faults": {"backend", "errors"},
    "_snapshots": set(),
    "_results": {"_faults", "errors"},
    "_async_map": {"_results", "backend", "errors", "pipe"},
    "_core": {
        "_batching",
        "_faults",
        "_hanging",
        "_inbox",
        "_parking",
        "_ranking",
        "_results",
        "_snapshots",
        "errors",
        "filters",
    },
    "_batching": set(),
    "_hanging": set(),
    "_inbox": {"_parking"},
    "_ranking": {"_inbox"},
    "_parking": set(),
    "kernels": {"errors"},
    "backends": {"_cpus", "_describe", "_results", "_snapshots", "backend", "errors", "filters", "kernels"},
    "pipe": {
        "_async_map",
        "_results",
        "_building",
        "_core",
        "_cpus",
        "_faults",
        "_forks",
        "_future",
        "_hung",
        "_values",
        "_wiring",
        "_workers",
        "backend",
        "config",
        "debugger",
        "errors",
        "graph",
        "picture",
        "recorder",
    },
    "_wiring": {"_building", "_plan", "config", "errors", "graph"},
    "_building": {"_core", "_workers", "backend", "backends", "config", "errors", "filters", "graph", "pipe"},
    "_future": {"_core", "backend"},
    "_hung": {"_building", "_core", "_faults", "_workers", "backend", "config", "errors", "pipe"},
    "_workers": {"_core", "backend", "errors"},
    "batched": {"_forks", "_results", "backend", "pipe"},
    "_layout": set(),
    "picture": {"_layout", "backends", "config", "filters", "graph"},
    "check": {"_plan", "_secrets", "_values", "_wiring", "config", "errors", "pipe"},
    "schema": {"_plan", "_values", "backend", "config", "errors", "registry"},
    "_describe": {"_secrets"},
    "_terminal": set(),
    "_steps": {"_debug_views", "_describe", "_secrets", "backend", "filters"},
    "debugger": {
        "_core",
        "_debug_views",
        "_describe",
        "_steps",
        "backend",
        "config",
        "errors",
        "filters",
        "pipe",
        "recorder",
    },
    "_debug_views": {"_describe", "_steps", "backend", "debugger", "filters"},
    "_records": {"_describe", "_secrets", "errors"},
    "recorder": {"_describe", "_records", "_secrets", "backend", "errors", "fastpipe", "pipe"},
    "_loading": {"errors", "pipe", "registry"},
    "prompt": {"_terminal", "debugger", "errors", "pipe"},
    "_comparison": {"_describe", "_records"},
    "replay": {"_comparison", "_describe", "_loading", "_records", "_terminal", "errors", "pipe", "prompt", "recorder"},
    "cli": {
        "_building",
        "_faults",
        "_terminal",
        "check",
        "config",
        "errors",
        "graph",
        "picture",
        "pipe",
        "prompt",
        "replay",
        "schema",
    },
    "__main__": {"cli"},
    "fastpipe": {"_core", "backend", "batched", "errors", "expression", "filters", "pipe", "registry"},
    "demo": PUBLIC | {"kernels"},
}


def room_of(module: str) -> str:
    """Return the key of ``MAY_IMPORT`` for a full module name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "fastpipe"


def is_module(name: str) -> bool:
    """Say whether ``fastpipe.x.y`` is a module or a package here, not an object inside one."""
    folder = next(
        (f for f, package in INSTALLED_AS.items() if f"{name}.".startswith(f"{package}.") and f != "fastpipe"), ""
    )
    relative = Path(folder, *name.split(".")[2:]) if folder else Path(*name.split("."))
    path = ROOT / relative
    return path.is_dir() or any(path.with_suffix(suffix).is_file() for suffix in (".py", ".pyx", ".pxd"))


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package as (full name, source)."""
    for folder, package in INSTALLED_AS.items():
        for path in sorted((ROOT / folder).rglob("*.p*")):
            if path.suffix in {".py", ".pyi", ".pyx", ".pxd"}:
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join([package, *(part for part in inner if part != "__init__")]), path


def imports_of(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield what ``path`` imports from fastpipe as (full module name, line), wherever in the file it stands."""
    text = path.read_text()
    if path.suffix in {".pyx", ".pxd"}:  # ast does not read Cython; an import is one line there
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


def test_every_module_has_a_place_in_the_table() -> None:
    """A new module is given its arrows here (and in docs/design.md) before it imports anything."""
    without = {room_of(name) for name, _ in modules()} - set(MAY_IMPORT)
    assert not without, f"not in MAY_IMPORT: {', '.join(sorted(without))}"


def test_no_module_imports_what_it_may_not() -> None:
    """Each forbidden arrow is printed with the line that draws it."""
    forbidden = [
        f"{path.relative_to(ROOT)}:{line}: {name} -> {imported}"
        for name, path in modules()
        for imported, line in imports_of(name, path)
        if room_of(imported) not in MAY_IMPORT.get(room_of(name), set()) | {room_of(name)}
    ]
    assert not forbidden, "forbidden imports:\n" + "\n".join(forbidden)


@pytest.mark.parametrize("module", ["fastpipe", "fastpipe.kernels", "fastpipe.backends"])
def test_importing_loads_no_optional_library_and_prints_nothing(module: str, tmp_path: Path) -> None:
    """Optional libraries are loaded by the backend that needs them, not by an import."""
    script = f"import sys, {module}; print(*sorted({OPTIONAL} & set(sys.modules)), end='')"
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
