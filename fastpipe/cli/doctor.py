"""``fastpipe doctor``: what there is on this machine that a pipe runs on, and what would make it slow.

It changes nothing, starts no pipe, and asks no other machine. Of optional libraries it imports OpenCV, whose build
it looks at.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastpipe import _core
from fastpipe.cli.tables import Figures
from fastpipe.cli.terminal import complain, escaped_line, say, show
from fastpipe.cpus import cgroup_quota, usable_cpu_count
from fastpipe.summaries import in_units

__all__ = ["add_arguments", "examined", "run", "version_line"]

LIBRARIES = (
    *("numpy", "opencv-python-headless", "opencv-python", "simplejpeg", "Pillow", "onnx", "onnxruntime"),
    *("onnxruntime-gpu", "torch", "cupy-cuda13x", "cupy-cuda12x", "nvidia-nvjpeg", "tensorrt-cu13"),
    *("cryptography", "rich", "tree-sitter", "matplotlib", "optuna"),
    *("uvicorn", "starlette", "orjson", "grpcio", "protobuf", "prometheus-client", "opentelemetry-sdk", "ray"),
)
GPU_LIBRARIES = {"torch", "cupy-cuda13x", "cupy-cuda12x", "onnxruntime-gpu", "tensorrt-cu13"}
GPU_QUERY = ("name", "driver_version", "memory.total", "memory.used", "compute_cap")
NVIDIA_SMI_TIMEOUT_S = 20.0
# With each, a library starts so many threads, whatever the quota.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Facts = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe doctor`` takes."""
    parser.add_argument("--json", action="store_true", help="write JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Look at the machine; 0."""
    facts, remarks = examined()
    if arguments.json:
        say((json.dumps({**facts, "remarks": remarks}, indent=2), ""))
        return 0
    for title, section in facts.items():
        say((title, "bold"))
        show(Figures(["", ""], [[f"  {name}", _in_words(value)] for name, value in section.items()], words=2))
    say(("remarks", "bold"))
    for remark in remarks:
        say((f"  {remark}", "yellow"))
    if not remarks:
        say(("  nothing here would make a pipe slow", "green"))
    return 0


def version_line() -> str:
    """Return which fastpipe this is, how its engine was built, and on what it runs."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.machine()}"
    return f"fastpipe {_version('fastpipe-engine')} ({_engine()} engine, {python}, {system})"


def _engine() -> str:
    kind = "debug" if _core.is_debug_build else "release"
    return kind if _core.has_futex else f"portable {kind}"  # threads sleep without futexes: see engine/sleeping.hpp


def examined() -> tuple[Facts, list[str]]:
    """Return all that was found, by section and name, and what is to be said of it."""
    facts: Facts = {}
    remarks: list[str] = []
    for title, look in _SECTIONS.items():
        section, said = look()
        facts[title] = section
        remarks += said
    return facts, remarks


Findings = tuple[dict[str, Any], list[str]]


def _fastpipe() -> Findings:
    section = {
        "version": _version("fastpipe-engine"),
        "engine": _engine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "folder": str(Path(_core.__file__).parent),
        "start method": multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0],
    }
    remarks = []
    if _core.is_debug_build:
        remarks.append("the engine is a debug build, several times slower: install it without FASTPIPE_DEBUG=1")
    if os.environ.get("FASTPIPE_TEST_HOOKS") == "1":
        remarks.append("FASTPIPE_TEST_HOOKS=1 lets tests stop the engine and its time: take it out of the environment")
    if hasattr(sys, "gettotalrefcount"):
        remarks.append("this Python is a debug build, several times slower")
    if sys.flags.dev_mode:
        remarks.append("Python's development mode (-X dev, PYTHONDEVMODE) makes every allocation slower")
    if sys.gettrace() is not None or sys.getprofile() is not None:
        remarks.append("a tracer or profiler is on: every call of Python's is slower")
    if section["start method"] == "fork":
        section["in a fork"] = "a pipe built before it refuses requests in the child: build it there"
    return section, remarks


def _cpus() -> Findings:
    seen = os.cpu_count() or 1
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else seen
    quota, usable = cgroup_quota(), usable_cpu_count()
    flags = _cpu_flags()
    section: dict[str, Any] = {
        "usable": usable,
        "machine": seen,
        "affinity mask": mask,
        "cgroup quota": quota,
        "model": _model_name(),
        "vector units": [name for name in ("neon", "asimd", "avx2", "avx512f", "amx_tile") if name in flags],
        "governor": _text_of(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        **{name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }
    remarks = []
    if usable == 1:
        remarks.append("there is one CPU: callers, workers and models take turns; only batching makes a pipe faster")
    if quota is not None and quota < mask and "OMP_NUM_THREADS" not in os.environ:
        remarks.append(
            f"the quota is {quota:g} CPUs of {mask}: OpenMP and BLAS start {mask} threads, and use it up, at which the "
            f"process is stopped; set OMP_NUM_THREADS={usable}"
        )
    if (stopped := _throttled_share()) > 0.01:
        remarks.append(f"the quota has stopped this process's group in {stopped:.0%} of its periods")
    if section["governor"] == "powersave":
        remarks.append("the CPUs' governor is powersave: latencies after a pause are longer than with performance")
    return section, remarks


def _libraries() -> Findings:
    section: dict[str, Any] = {name: version for name in LIBRARIES if (version := _version(name)) is not None}
    remarks = [*_remarks_on_vector_units(section), *_remarks_on_jpeg(section)]
    if {"opencv-python", "opencv-python-headless"} <= section.keys():
        remarks.append("opencv-python and opencv-python-headless overwrite each other: uninstall both, install one")
    return section, remarks


def _remarks_on_vector_units(section: Mapping[str, Any]) -> Iterator[str]:
    """Yield which libraries do not use what this CPU has."""
    import numpy as np

    if "avx2" not in _cpu_flags():
        return
    with contextlib.suppress(Exception):  # its report is none of NumPy's promises
        units: Any = np.show_config(mode="dicts")
        used = {*units["SIMD Extensions"].get("baseline", ()), *units["SIMD Extensions"].get("found", ())}
        if not used & {"AVX2", "X86_V3"}:
            yield "NumPy was built without AVX2, which this CPU has: a wheel of the index has it"
    opencv = _imported("cv2") if any("opencv" in name for name in section) else None
    if opencv is not None and "AVX2" not in opencv.getCPUFeaturesLine():
        yield "OpenCV was built without AVX2, which this CPU has: resizing and colours are slower"


def _remarks_on_jpeg(section: Mapping[str, Any]) -> Iterator[str]:
    if os.environ.get("JSIMD_FORCENONE") == "1":
        yield "JSIMD_FORCENONE=1 keeps libjpeg-turbo from vector units: decoding takes several times as long"
    opencv = _imported("cv2") if any("opencv" in name for name in section) else None
    if opencv is None:
        return
    built_with = next((line for line in opencv.getBuildInformation().splitlines() if line.strip()[:5] == "JPEG:"), "")
    if built_with and "turbo" not in built_with:
        yield f"OpenCV decodes JPEG by {built_with.partition(':')[2].strip()}, not libjpeg-turbo: decoding is slower"


def _gpus() -> Findings:
    section: dict[str, Any] = {}
    remarks: list[str] = []
    driver = _text_of(Path("/proc/driver/nvidia/version"))
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            command = [program, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
            asked = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
            for number, line in enumerate(filter(None, map(str.strip, asked.stdout.splitlines()))):
                section[f"cuda:{number}"] = dict(zip(GPU_QUERY, map(str.strip, line.split(",")), strict=False))
        except (OSError, subprocess.SubprocessError) as error:
            remarks.append(f"nvidia-smi does not answer: {_told_of(error)}")
    if driver is not None:
        section["driver"] = driver.splitlines()[0].removeprefix("NVRM version:").strip()
    if not section:
        section["found"] = None
    has_gpu = any(name.startswith("cuda:") for name in section)
    if has_gpu and not any(_version(name) for name in GPU_LIBRARIES):
        remarks.append("there is a GPU, and no library that computes on it: extras torch, cuda, tensorrt")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if has_gpu and hidden is not None and hidden.strip() in ("", "-1"):
        remarks.append(f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs from this process")
    return section, remarks


def _caches() -> Findings:
    from fastpipe.backends.model.engine_cache import default_folder

    section: dict[str, Any] = {"TensorRT engines": _folder(default_folder(), (".engine",))}
    remarks = []
    if not section["TensorRT engines"]["writable"] and _version("tensorrt-cu13"):
        remarks.append(f"{default_folder()} cannot be written to: TensorRT builds its engines anew in every process")
    return section, remarks


_SECTIONS: Mapping[str, Callable[[], Findings]] = {
    "fastpipe": _fastpipe,
    "cpus": _cpus,
    "libraries": _libraries,
    "gpus": _gpus,
    "caches": _caches,
}


# ---- how it is found -------------------------------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _imported(name: str) -> Any:
    """Import an optional module; None: it cannot be, which is said where that is not because it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        complain(f"importing {name} raised {type(error).__name__}: {error}")
        return None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _cpu_flags() -> frozenset[str]:
    for line in (_text_of(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _model_name() -> str:
    for line in (_text_of(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _throttled_share() -> float:
    """Return in which share of its periods the process's cgroup was stopped because its quota was used up."""
    counts: dict[str, int] = {}
    for line in (_text_of(Path("/sys/fs/cgroup/cpu.stat")) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            counts[name] = int(value)
    return counts.get("nr_throttled", 0) / max(counts.get("nr_periods", 0), 1)


def _folder(path: Path, suffixes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a cache's folder has. One that is not there is writable if it can be made."""
    files = [entry for entry in _files_in(path) if entry.name.endswith(suffixes)]
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    return {
        "folder": str(path),
        "files": len(files),
        "size_bytes": sum(entry.stat().st_size for entry in files),
        "writable": os.access(nearest, os.W_OK),
    }


def _files_in(path: Path) -> Sequence[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _told_of(error: Exception) -> str:
    stderr = getattr(error, "stderr", None)
    return escaped_line(stderr.strip() if isinstance(stderr, str) and stderr.strip() else str(error))


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, dict) and "folder" in value:
        can = "writable" if value["writable"] else "not writable"
        return f"{value['folder']}: {value['files']} files, {in_units(value['size_bytes'])}, {can}"
    if isinstance(value, dict):
        return ", ".join(map(str, value.values()))
    return f"{value:g}" if isinstance(value, float) else str(value)
