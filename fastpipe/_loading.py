"""Pipes for the command line: by ``module:attribute``, or by what a record says of its configuration."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpipe.errors import PipeError
from fastpipe.pipe import Pipe

__all__ = ["pipe_named", "pipe_of_record"]


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


def pipe_of_record(configuration: Mapping[str, Any], config: Path | None) -> Pipe:
    """Build the pipe that a record comes from.

    Args:
        configuration: what the record says; see ``recorder``.
        config: a file to use instead of the one that the record names.

    Raises:
        PipeError: the record cannot say what its pipe was, or its file is gone.
        ConfigError, ...: whatever ``Pipe`` raises.
    """
    keywords = configuration.get("keywords") or {}
    if config is not None:
        return Pipe(config, **keywords)
    if configuration.get("needs"):
        raise PipeError(str(configuration["needs"]))
    path = configuration.get("file")
    if path is None:
        return Pipe(configuration.get("mapping"), **keywords)
    if not Path(path).is_file():
        raise PipeError(f"the configuration {path} is not there: say --config FILE or --pipe module:attribute")
    return Pipe(path, **keywords)
