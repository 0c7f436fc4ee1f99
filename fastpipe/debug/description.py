"""What a pipe was made from, for whoever has to make it again, or must not show all of it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from fastpipe.redaction import Secrets, own_copy_without
from fastpipe.summaries import summarize

if TYPE_CHECKING:
    from fastpipe.config.described import NodeConfig, PipeConfig

__all__ = ["Description", "sha256_of"]


@dataclass(frozen=True, eq=False)
class Description:
    """What a pipe was made from: as it was written, and the nodes that this means."""

    source: str | Path | Mapping[str, Any] | None
    keywords: Mapping[str, Any]
    configs: Sequence[NodeConfig]

    @classmethod
    def of(cls, made_of: PipeConfig) -> Description:
        """Return the description of a pipe that was made of this."""
        return cls(made_of.written.source, made_of.written.keywords_now(), made_of.nodes)

    def secrets(self, known: Secrets | None = None) -> Secrets:
        """Return what nobody should see of it, as it was written and as the backends get it, with what is ``known``."""
        plans = [config.plan for config in self.configs if config.plan is not None]
        parameters = (step.parameters for plan in plans for step in plan.steps())
        return (Secrets() if known is None else known).and_of(self.source, self.keywords, *parameters)

    def manifest(self) -> dict[str, Any]:
        """Return what a record says of it, without secrets; it can be written as JSON."""
        from importlib.metadata import version

        left_out: list[str] = []
        source, keywords = (_with_names(own_copy_without(each, left_out)) for each in (self.source, self.keywords))
        described: dict[str, Any] = {"file": None, "keywords": None, "mapping": None, "needs": None}
        odd = next(_not_plain(keywords), None)
        if isinstance(source, str | Path):
            path = Path(source).absolute()
            described["file"] = str(path)
            described["sha256"] = sha256_of(path)
        elif odd is None and source is not None:
            odd = next(_not_plain(source), None)
            described["mapping"] = None if odd is not None else _as_json(source)
        if odd is None:
            described["keywords"] = _as_json(keywords)
        else:
            described = {"needs": f"{odd}: no text says what that is, so replay needs --pipe module:attribute"}
        described["left_out"] = left_out
        versions = {"fastpipe": version("fastpipe-engine"), "python": sys.version.split()[0]}
        nodes = [config.name for config in self.configs]
        return {**versions, "directory": os.getcwd(), "configuration": described, "nodes": nodes}


def sha256_of(path: Path) -> str | None:
    """Return the hash of a file's content; None: it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _with_names(written: Any) -> Any:
    """The configuration with ``module:Name`` for a backend's class, or function, that can be imported by that name."""
    if not isinstance(written, Mapping):
        return written
    return {
        key: _importable(inner) if key == "backend" and isinstance(inner, type | FunctionType) else _with_names(inner)
        for key, inner in written.items()
    }


def _importable(backend: type | FunctionType) -> Any:
    module = sys.modules.get(backend.__module__)
    can_be_found = backend.__module__ != "__main__" and getattr(module, backend.__qualname__, None) is backend
    return f"{backend.__module__}:{backend.__qualname__}" if can_be_found else backend


def _not_plain(value: Any, where: str = "") -> Iterator[str]:
    """Yield what JSON cannot say of a configuration."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_plain(inner, f"{where}[{index}]")
    elif value is not None and not isinstance(value, str | int | float | Path):
        yield f"the configuration's {where} is {summarize(value)}"


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
