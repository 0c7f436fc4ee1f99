"""Sessions of ONNX Runtime: how one is opened, with which providers and how many threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from fastpipe.errors import ConfigError, nearest

from .onnx_graph import LOG_SEVERITY

__all__ = ["open_session"]


def open_session(source: Path | bytes, thread_count: int, providers: list[str] | None) -> Any:
    """Return a session that is quiet, does not spin, and does not fall back to another provider in silence."""
    available = onnxruntime.get_available_providers()
    wanted = providers or ["CPUExecutionProvider"]
    for name in wanted:
        if name not in available:
            raise ConfigError(
                f"this ONNX Runtime has no provider {name!r}{nearest(name, available)}; it has {', '.join(available)}"
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_SEVERITY
    options.intra_op_num_threads = max(1, thread_count)
    options.inter_op_num_threads = 1
    # A thread that spins takes the CPU from the other instances, and burns the quota of a cgroup.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(source, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise ConfigError(f"ONNX Runtime cannot load it: {str(error).strip()}") from error
    session.disable_fallback()
    refused = [name for name in wanted if name not in session.get_providers()]
    if refused:
        raise ConfigError(f"the provider {refused[0]!r} could not be started; see the log of ONNX Runtime")
    return session
