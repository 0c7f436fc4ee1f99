"""What a user may say of ONNX Runtime itself: execution providers, options of sessions and runs, custom operators.

ONNX Runtime takes any configuration entry, and does nothing with those that it does not know. Here every name is held
against what the installed library knows, so that a misspelt one is an error; what fastpipe decides itself is refused
with the key that says it.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from fastpipe.errors import ConfigError, nearest

__all__ = ["RuntimeSettings", "run_options", "session_options"]

_CPU = "CPUExecutionProvider"

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",  # from 1.22 on
    "all": "ORT_ENABLE_ALL",
}
_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
_ORDERS = {"default": "DEFAULT", "priority_based": "PRIORITY_BASED", "memory_efficient": "MEMORY_EFFICIENT"}

_OWNED = {
    "intra_op_num_threads": "threads says how many threads all instances of the node share",
    "use_per_session_threads": "every instance has threads of its own; threads says how many all of them share",
    "session.intra_op_num_threads": "threads says how many threads all instances of the node share",
    "session.inter_op_num_threads": "inter_op_num_threads says it",
    "session.intra_op_thread_affinities": "start the process on the CPUs that it is to use (taskset), or set threads",
    "optimized_model_filepath": "write that file once, with ONNX Runtime, and name it as the model",
}
"""Of session options, what is decided elsewhere -> how to say it."""

_OWNED_BY_RUNS = {"terminate": "a run is ended by nobody; a request's timeout lets its caller go on"}

_DOCUMENTED = (
    *("session.disable_prepacking", "session.use_env_allocators", "session.load_model_format"),
    *("session.set_denormal_as_zero", "session.disable_quant_qdq", "session.disable_double_qdq_remover"),
    *("session.enable_quant_qdq_cleanup", "session.disable_aot_function_inlining", "session.qdqisint8allowed"),
    *("session.use_device_allocator_for_initializers", "session.inter_op.allow_spinning"),
    *("session.intra_op.allow_spinning", "session.force_spinning_stop", "session.use_ort_model_bytes_directly"),
    *("session.use_ort_model_bytes_for_initializers", "session.x64quantprecision"),
    *("session.strict_shape_type_inference", "session.allow_released_opsets_only", "session.disable_cpu_ep_fallback"),
    *("session.node_partition_config_file", "session.debug_layout_transformation"),
    *("session.model_external_initializers_file_folder_path", "session.qdq_matmulnbits_accuracy_level"),
    *("session.save_external_prepacked_constant_initializers", "mlas.enable_gemm_fastmath_arm64_bfloat16"),
    *("optimization.enable_gelu_approximation", "optimization.disable_specified_optimizers"),
    *("optimization.minimal_build_optimizations", "ep.share_ep_contexts", "ep.stop_share_ep_contexts"),
)
"""Entries of the documentation. The compiler puts some of them into the library in pieces, where they are not found."""

_DOCUMENTED_OF_RUNS = (
    *("memory.enable_memory_arena_shrinkage", "disable_synchronize_execution_providers", "gpu_graph_id"),
    *("qnn.htp_perf_mode", "qnn.htp_perf_mode_post_run", "qnn.rpc_control_latency"),
)

_ENTRY = re.compile(rb"\0((?:session|optimization|memory|mlas|ep|ep_factory|kernel|debug)\.[A-Za-z0-9_.]{2,100})(?=\0)")

_instances = itertools.count()


@dataclass(frozen=True)
class RuntimeSettings:
    """What a node says of ONNX Runtime, checked as far as it can be before a model is there.

    Raises:
        ConfigError: all that is wrong with it, at once.
    """

    providers: Sequence[str] = (_CPU,)
    provider_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    falls_back: bool = False  # what cannot be had of the providers is left out
    session: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    custom_ops: Sequence[Path] = ()
    trusted: bool = False

    def __post_init__(self) -> None:
        problems = [*_problems_of_providers(self), *_problems_of_libraries(self)]
        try:
            session_options(self, 1)
        except ConfigError as error:
            problems += error.problems
        try:
            run_options(self)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(*problems)

    @property
    def is_plain(self) -> bool:
        """Whether it computes as float32 on the CPU does: nothing else was asked for."""
        return list(self.providers) == [_CPU]

    @property
    def identity(self) -> str:
        """Equal for settings with which a model gives the same."""
        return repr((list(self.providers), self.provider_options, self.session, self.run, list(self.custom_ops)))

    def with_options(self) -> list[tuple[str, dict[str, str]]]:
        """Return the providers as ONNX Runtime takes them, each with its options as text."""
        options = self.provider_options
        return [(name, {key: str(value) for key, value in options.get(name, {}).items()}) for name in self.providers]


# ---- providers and libraries -----------------------------------------------------------------------------------------


def _problems_of_providers(settings: RuntimeSettings) -> list[str]:
    wanted, problems = list(settings.providers), []
    if not wanted:
        problems.append("providers must name at least one execution provider")
    problems += [f"providers has {name!r} twice" for name in dict.fromkeys(wanted) if wanted.count(name) > 1]
    for name, options in settings.provider_options.items():
        if name not in wanted:
            problems.append(
                f"provider_options has {name!r}, which is none of the providers{nearest(name, wanted)}; expected a "
                f"table for each of {wanted}, by its name"
            )
        elif not isinstance(options, Mapping):
            problems.append(f"provider_options must have a table for {name!r}, got {options!r}")
        elif name == _CPU and options:
            problems.append(
                f"the {_CPU} has no options, got {', '.join(map(repr, options))}; session_options has what it does"
            )
        else:
            problems += [
                f"provider_options: {key!r} of {name!r} must be text, a number or a truth value, got {value!r}"
                for key, value in options.items()
                if not isinstance(value, str | int | float)
            ]
    return problems


def _problems_of_libraries(settings: RuntimeSettings) -> list[str]:
    problems = [
        f"custom_ops: there is {'a folder' if path.is_dir() else 'nothing'} at {path.absolute()}, not a file"
        for path in settings.custom_ops
        if not path.is_file()
    ]
    if settings.custom_ops and not settings.trusted:
        names = ", ".join(f"'{path}'" for path in settings.custom_ops)
        problems.append(
            f"custom_ops: loading {names} runs whatever code is in it: trusted=true loads it, if you know who made it"
        )
    return problems


# ---- options of sessions ---------------------------------------------------------------------------------------------


def session_options(settings: RuntimeSettings, thread_count: int) -> Any:
    """Return options for a session that computes with so many threads; nothing is loaded.

    Raises:
        ConfigError: for each option that does not exist, or has no such value.
    """
    given = dict(settings.session)
    if given.get("enable_profiling"):
        given.setdefault("profile_file_prefix", "onnxruntime_profile")  # ONNX Runtime's own
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: at "error", it writes to stderr what it also raises
    # A thread that spins takes the CPU from the other instances, and burns the quota of a cgroup.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    problems = [*_share_threads(options, given, thread_count)]
    for name, value in given.items():
        try:
            problem = _set_session_option(options, name, value)
        except (RuntimeError, TypeError, ValueError) as error:
            problem = f"session_options: {name!r} cannot be {value!r}: {str(error).strip().splitlines()[0]}"
        problems += [problem] if problem else []
    if problems:
        raise ConfigError(*problems)
    return options


def _share_threads(options: Any, given: dict[str, Any], thread_count: int) -> list[str]:
    """Give a session its threads; what says how they are used is taken out of the options."""
    mode = given.get("execution_mode", "sequential")
    at_once = given.pop("inter_op_num_threads", None)
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = max(1, thread_count)
    if mode != "parallel":
        if at_once is None:
            return []
        return ["session_options: 'inter_op_num_threads' needs execution_mode = 'parallel': operators run one by one"]
    if type(at_once) is not int or at_once < 1:
        return [
            "session_options: execution_mode = 'parallel' needs inter_op_num_threads, a whole number of at least 1: "
            "how many operators may run at once, which share the threads of the instance"
        ]
    options.inter_op_num_threads = at_once
    options.intra_op_num_threads = max(1, thread_count // at_once)
    return []


def _set_session_option(options: Any, name: str, value: Any) -> str:
    """Set one option; return what is wrong with it, or nothing."""
    if name in _OWNED:
        return f"session_options: {name!r} is not for you to set here: {_OWNED[name]}"
    setter = _SETTERS.get(name)
    if setter is not None:
        return setter(options, name, value)
    if not _is_entry(name, _DOCUMENTED):
        known = [*_SETTERS, "inter_op_num_threads", *_OWNED, *_DOCUMENTED, *_entries()]
        return f"session_options: this ONNX Runtime knows no {name!r}{nearest(name, known)}"
    if not isinstance(value, str | int):
        return f"session_options: {name!r} must be text, a whole number or a truth value, got {value!r}"
    options.add_session_config_entry(name, _entry_text(value))
    return ""


def _entry_text(value: str | int) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _choose(kind: str, choices: Mapping[str, str]) -> Callable[[Any, str, Any], str]:
    def choose(options: Any, name: str, value: Any) -> str:
        members = getattr(onnxruntime, kind)
        offered = [choice for choice, member in choices.items() if hasattr(members, member)]
        if value not in offered:
            return (
                f"session_options: {name!r} must be one of {', '.join(offered)}, got {value!r}{nearest(value, offered)}"
            )
        setattr(options, name, getattr(members, choices[value]))
        return ""

    return choose


def _set_truth(options: Any, name: str, value: Any) -> str:
    if not isinstance(value, bool):
        return f"session_options: {name!r} must be true or false, got {value!r}"
    setattr(options, name, value)
    return ""


def _set_number(options: Any, name: str, value: Any) -> str:
    if type(value) is not int or not 0 <= value <= 4:
        return f"session_options: {name!r} must be a whole number from 0 (all) to 4 (fatal errors only), got {value!r}"
    setattr(options, name, value)
    return ""


def _set_text(options: Any, name: str, value: Any) -> str:
    if not isinstance(value, str):
        return f"session_options: {name!r} must be text, got {value!r}"
    # Two instances would write one over the other's.
    text = f"{value}-{os.getpid()}-{next(_instances)}" if name == "profile_file_prefix" else value
    setattr(options, name, text)
    return ""


def _fix_axes(options: Any, name: str, value: Any) -> str:
    if not isinstance(value, Mapping) or not all(type(size) is int and size > 0 for size in value.values()):
        return (
            f"session_options: {name!r} must be a table from names of axes to sizes, as in {{seq = 128}}, got {value!r}"
        )
    for axis, size in value.items():
        options.add_free_dimension_override_by_name(axis, size)
    return ""


_SETTERS: dict[str, Callable[[Any, str, Any], str]] = {
    "graph_optimization_level": _choose("GraphOptimizationLevel", _LEVELS),
    "execution_mode": _choose("ExecutionMode", _MODES),
    "execution_order": _choose("ExecutionOrder", _ORDERS),
    "enable_cpu_mem_arena": _set_truth,
    "enable_mem_pattern": _set_truth,
    "enable_mem_reuse": _set_truth,
    "use_deterministic_compute": _set_truth,
    "enable_profiling": _set_truth,
    "profile_file_prefix": _set_text,
    "log_severity_level": _set_number,
    "logid": _set_text,
    "free_dimension_overrides": _fix_axes,
}


# ---- options of runs -------------------------------------------------------------------------------------------------


def run_options(settings: RuntimeSettings) -> Any:
    """Return the options of every run, or None if nothing is said of them.

    Raises:
        ConfigError: for each option that does not exist, or has no such value.
    """
    if not settings.run:
        return None
    options, problems = onnxruntime.RunOptions(), []
    options.log_severity_level = 4
    for name, value in settings.run.items():
        if name in _OWNED_BY_RUNS:
            problems.append(f"run_options: {name!r} is not for you to set here: {_OWNED_BY_RUNS[name]}")
        elif name in ("log_severity_level", "only_execute_path_to_fetches"):
            problem = (_set_number if name.startswith("log") else _set_truth)(options, name, value)
            problems += [problem.replace("session_options", "run_options")] if problem else []
        elif not _is_entry(name, _DOCUMENTED_OF_RUNS):
            known = ["log_severity_level", "only_execute_path_to_fetches", *_DOCUMENTED_OF_RUNS]
            problems.append(f"run_options: this ONNX Runtime knows no {name!r}{nearest(name, known)}")
        elif not isinstance(value, str | int):
            problems.append(f"run_options: {name!r} must be text, a whole number or a truth value, got {value!r}")
        else:
            options.add_run_config_entry(name, _entry_text(value))
    if problems:
        raise ConfigError(*problems)
    return options


# ---- what the library knows ------------------------------------------------------------------------------------------


def _is_entry(name: str, documented: Sequence[str]) -> bool:
    """Say whether the installed library may know a configuration entry: it is documented, or a text within it."""
    return name in documented or name in _entries()


@functools.cache
def _entries() -> frozenset[str]:
    """Return what looks like the name of a configuration entry in the installed libraries; takes 0.2 s, once."""
    found: set[str] = set()
    for path in (Path(onnxruntime.__file__).parent / "capi").glob("*.so*"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found.update(name.decode() for name in _ENTRY.findall(content))
    return frozenset(found)
