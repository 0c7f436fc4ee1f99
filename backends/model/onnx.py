"""OnnxTensor: a model in an ONNX file, run by ONNX Runtime.

    {"backend": "OnnxTensor", "model": "resnet.onnx", "max": 8, "instance_num": 2}

How a request travels is told in ``onnx_runtime.model``; ``session`` there runs it, with what ``options`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpipe.errors import ConfigError

from .onnx_runtime.model import OnnxModel, Session
from .onnx_runtime.options import RuntimeSettings
from .onnx_runtime.session import RuntimeSession
from .source import name_of

__all__ = ["OnnxTensor"]


class OnnxTensor(OnnxModel):
    """Run an ONNX model in ONNX Runtime, on the CPU or by another of its execution providers, in batches.

    What goes in and out, and the parameters not named here, are those of ``OnnxModel``: ``model``, ``max``, ``min``,
    ``rows``, ``instance_num``, ``precision``, ``mean``, ``std``, ``fuse``, ``postprocessor``, ``threads``,
    ``warm_up`` and ``model_key``.

    **Other values**: text is an array of ``str``; what NumPy has no dtype for is one of ml_dtypes; a row of ``ZipMap``
    is a dict. Models with sequences, maps or what may be missing run one request at a time, as it comes.

    **GPUs**: if the first provider computes on one, torch tensors of the input's dtype on it are taken as they lie, and
    the results are tensors there.

    Args:
        providers: names of execution providers, in order of preference; ONNX Runtime gives each operator to the first
            that has it, and what none has to the CPU. One that this ONNX Runtime lacks, or that cannot be started, is
            an error.
        provider_options: of each provider, by its name, as ONNX Runtime documents them:
            ``{"CUDAExecutionProvider": {"device_id": 1}}``.
        fallback: leave out providers that cannot be had, and say so in the log; if none is left, take the CPU.
        session_options: of ONNX Runtime's ``SessionOptions``, by their names, the levels and modes as ``"all"``,
            ``"parallel"`` and so on; names with a dot are configuration entries: ``session.disable_prepacking``.
            Unless they say otherwise, idle threads do not spin, and ONNX Runtime logs nothing that it also raises.
        run_options: of each run, in the same form; ``{"memory.enable_memory_arena_shrinkage": "cpu:0"}`` gives memory
            back after each.
        custom_ops: libraries with operators of one's own, loaded before the model.
        trusted: load them; their code is run.

    Raises:
        ConfigError: also if an option does not exist, or a library is not there or not ``trusted``.
    """

    def __init__(
        self,
        *,
        providers: list[str] | None = None,
        provider_options: Mapping[str, Any] | None = None,
        fallback: bool = False,
        session_options: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        custom_ops: list[Path] | None = None,
        trusted: bool = False,
        **of_the_model: Any,
    ) -> None:
        try:
            self._settings = RuntimeSettings(
                providers=providers or ["CPUExecutionProvider"],
                provider_options=provider_options or {},
                falls_back=fallback,
                session=session_options or {},
                run=run_options or {},
                custom_ops=[Path(path) for path in custom_ops or ()],
                trusted=trusted,
            )
        except ConfigError as error:
            self._name = name_of(of_the_model.get("model", ""))
            raise self._named(error) from error.__cause__
        self._custom_ops = self._settings.custom_ops
        super().__init__(**of_the_model)

    def _open_session(self, source: Path | bytes, thread_count: int) -> Session:
        session = RuntimeSession(source, thread_count, self._settings)
        self._is_fine, self._runtime = self._settings.is_plain, self._settings.identity
        return session
