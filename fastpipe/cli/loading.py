"""Pipes for the command line: of a file, by ``module:attribute``, or by what a record says of its configuration."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpipe.cli.modules import look_beside
from fastpipe.config.registry import distrusting
from fastpipe.errors import ConfigError, PipeError
from fastpipe.pipe import Pipe

__all__ = ["pipe_named", "pipe_of_file", "pipe_of_record"]

MOST_CONFIGURATION_BYTES = 16 << 20  # a record may name any file of the machine
REMEDY = "--config FILE takes a configuration of yours instead, --trust runs whatever the record names"


def pipe_of_file(path: Path, keywords: Mapping[str, Any] | None = None) -> Pipe:
    """Build the pipe that a file describes; ``keywords`` win over it. Modules beside the file are found from now on.

    Raises:
        PipeError: there are mistakes in it; the message has them with their places, as ``fastpipe check`` says them.
        ConfigError, ...: whatever else ``Pipe`` raises.
    """
    look_beside(path)
    try:
        return Pipe(path, **(keywords or {}))
    except ConfigError as error:
        from fastpipe.cli.check import check
        from fastpipe.cli.reporting import lines_of

        report = check(path)
        if keywords or not report.mistake_count:  # what a constructor has refused
            raise
        lines = "\n".join("".join(text for text, _ in line) for line in lines_of(report))
        raise PipeError(f"the configuration has mistakes\n{lines}") from error


def pipe_named(name: str) -> Pipe:
    """Return the pipe that ``module:attribute`` names: a Pipe, a configuration, or a function that returns either.

    Raises:
        PipeError: it names none of these.
        Exception: whatever importing the module or calling the function raises.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise PipeError(f"--pipe is written module:attribute, got {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PipeError(
            f"--pipe {name}: there is no module {error.name!r}; it is looked for from {os.getcwd()}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PipeError(f"--pipe {name}: {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, Pipe):
        found = found()
    if isinstance(found, Mapping | str | Path):
        found = Pipe(found)
    if not isinstance(found, Pipe):
        raise PipeError(
            f"--pipe {name} is no Pipe, and no configuration, nor does it return one: {type(found).__name__}"
        )
    return found


def pipe_of_record(configuration: Any, config: Path | None, *, trust: bool, allow_missing: bool = False) -> Pipe:
    """Build the pipe that a record comes from.

    Args:
        configuration: what the record says; see ``recorder``. Anybody may have written it.
        config: a file of the user's to use instead; of the record, nothing is then used unless it is trusted.
        trust: build whatever the record names; otherwise what computes only, of what is in the box.
        allow_missing: build it without the keys that were left out of the record.

    Raises:
        PipeError: the record cannot say what its pipe was, or its file is gone.
        ConfigError, ...: whatever ``Pipe`` raises.
    """
    if config is not None:
        look_beside(config)
        if not trust:
            return Pipe(config)
    if not isinstance(configuration, dict):
        raise PipeError(f"the record's configuration is damaged: a mapping is expected, got {configuration!r}")
    keywords = _checked(configuration, "keywords", dict) or {}
    left_out = [key for key in _checked(configuration, "left_out", list) or () if isinstance(key, str)]
    if left_out and not allow_missing:
        keys = ", ".join(left_out)
        raise PipeError(
            f"the record leaves out the configuration's {keys}, which look like secrets: say --config FILE or --pipe "
            "module:attribute; --allow-missing builds it without"
        )
    if config is not None:
        return Pipe(config, **keywords)
    needs = _checked(configuration, "needs", str)
    if needs:
        raise PipeError(needs)
    path = _checked(configuration, "file", str)
    mapping = _checked(configuration, "mapping", dict)
    if path is not None and not Path(path).is_file():
        raise PipeError(f"the configuration {path} is not there: say --config FILE or --pipe module:attribute")
    source = mapping if path is None else path
    if trust:
        if path is not None:
            look_beside(Path(path))
        return Pipe(source, **keywords)
    if path is not None and Path(path).stat().st_size > MOST_CONFIGURATION_BYTES:
        raise PipeError(f"{path} has more than {MOST_CONFIGURATION_BYTES} bytes: {REMEDY}")
    with distrusting(REMEDY):
        return Pipe(source, **keywords)


def _checked(configuration: dict[str, Any], key: str, kind: type) -> Any:
    """Return what a record says, which is of a type or missing: text, where a mapping is meant, would be a path."""
    value = configuration.get(key)
    if value is not None and not isinstance(value, kind):
        raise PipeError(f"the record's configuration is damaged: {key} is {value!r}")
    return value
