"""Where a torch model comes from: a module, something that makes one, or a file; and what may be in a file.

Loading a pickle runs whatever code its author put there, and TorchScript is code. A file is therefore looked at first:
exported programs are loaded as far as ``torch_archives`` understands them, all else is refused, unless the caller
trusts it.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastpipe.errors import ConfigError

from .shapes import InputSpec
from .torch_archives import Suspicious, harmless_copy, kind_of
from .torch_programs import SizeRules, read_program
from .torch_rows import ProgramOutput

__all__ = ["Loaded", "describe", "load", "on_device"]

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model, ready to be moved to a device."""

    module: torch.nn.Module
    names: list[str] | None  # of its inputs, in order; None: it takes any number
    required: int  # so many of them have to be given
    specs: list[InputSpec] | None  # None: it does not say which shapes it takes
    dtypes: list[torch.dtype] | None  # the same
    is_exported: bool  # its types are a part of its graph
    rules: SizeRules | None = None  # of an exported program
    arrange: Callable[[Any], Callable[..., Any]] | None = None  # makes of it what is called with tensors alone
    outputs: list[ProgramOutput] | None = None  # what an exported program's graph says of its outputs


def describe(model: Any) -> str:
    """Return what messages call the model."""
    if isinstance(model, Path | str):
        return f"model '{model}'"
    return f"model {getattr(model, '__qualname__', type(model).__qualname__)}"


def load(model: Any, weights: Path | None, device: torch.device, *, trusted: bool) -> Loaded:
    """Return a model of one's own, in evaluation mode; a module that was given is copied.

    Args:
        model: a file, ``"module:Name"``, a module, or what makes one when it is called without arguments.
        weights: a file with the state dict to be put into it.
        device: where an exported program is to run; modules come as they are.
        trusted: whether files may run code.

    Raises:
        ConfigError: if it cannot be had, or is no model.
    """
    if isinstance(model, Path | str):
        path = Path(model)
        if path.exists() or ":" not in path.name:
            if weights is not None:
                raise ConfigError("weights go into a model that is no file; this file has its own")
            return _from_file(path, device, trusted=trusted)
        try:
            model = pkgutil.resolve_name(path.name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"there is no such file, and as 'module:Name' it cannot be imported: {error}") from error
    if isinstance(model, torch.nn.Module):
        try:
            module = copy.deepcopy(model)
        except Exception as error:  # whatever the module's parts raise
            raise ConfigError(f"it cannot be copied, which every instance does: {error}") from error
    else:
        module = model() if callable(model) else model
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"expected a torch.nn.Module or what makes one, got a {type(module).__name__}")
    if weights is not None:
        _put_in(module, weights)
    return _plain(module)


def _plain(module: torch.nn.Module) -> Loaded:
    names, required = _parameters(module)
    return Loaded(module.eval(), names, required, None, None, False)


def _parameters(module: torch.nn.Module) -> tuple[list[str] | None, int]:
    """Return the names of the inputs, and how many of them have no default."""
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward  # annotated as if it were Python's
        arguments = list(forward.schema.arguments)[1:]
        return [each.name for each in arguments], sum(not each.has_default_value() for each in arguments)
    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None, 1
    taken = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return [each.name for each in taken], sum(each.default is each.empty for each in taken)


def _put_in(module: torch.nn.Module, weights: Path) -> None:
    try:
        state = torch.load(_existing(weights), map_location="cpu", weights_only=True)
        module.load_state_dict(state)
    except ConfigError:
        raise
    except Exception as error:  # of the restricted reader, or of a state dict that does not fit
        raise ConfigError(f"the weights '{weights}' are no state dict of it: {error}") from error


def _from_file(path: Path, device: torch.device, *, trusted: bool) -> Loaded:
    content = _existing(path).read_bytes()
    kind = kind_of(content)
    if kind == "compiled":
        raise ConfigError(
            "it is a package of AOTInductor: machine code for one kind of machine, which TorchTensor does not run. "
            "Save the program itself with torch.export.save, and compile='inductor' compiles it where it runs"
        )
    try:
        if not trusted:
            content = _without_code(content, kind)
        if kind == "TorchScript":
            _log.warning("'%s' is TorchScript, which torch has deprecated: torch.export replaces it", path)
            scripts: Any = torch.jit  # its annotations are not complete
            return _plain(scripts.load(io.BytesIO(content), map_location="cpu"))
        if kind == "exported":
            return _exported(torch.export.load(io.BytesIO(content)), device)
        module = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except ConfigError:
        raise
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise ConfigError(f"torch cannot load it: {str(error).strip()}") from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"it holds a {type(module).__name__}, no model; a state dict is given as weights, with its module as model"
        )
    return _plain(module)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"there is {'a folder' if path.is_dir() else 'nothing'} at {path.absolute()}, not a file")
    return path


def _without_code(content: bytes, kind: str) -> bytes:
    """Return a file that may be loaded though nobody vouches for it.

    Raises:
        ConfigError: if loading it, or running it, may run code that is in it.
    """
    if kind == "exported":
        try:
            return harmless_copy(content)
        except Suspicious as error:
            reason = f"it {error}, and loading that"
    elif kind == "TorchScript":
        reason = "it is TorchScript, whose operators may read and write files, and running that"
    else:
        reason = "it is a pickle, and loading that"
    raise ConfigError(f"{reason} runs whatever code is in it: trusted=true loads it, if you know who made it")


def _exported(program: Any, device: torch.device) -> Loaded:
    found = read_program(program, device)
    return Loaded(
        found.module,
        found.names,
        len(found.names),
        found.specs,
        found.dtypes,
        True,
        rules=found.rules,
        arrange=found.arrange,
        outputs=found.outputs,
    )


def on_device(loaded: Loaded, device: torch.device, *, channels_last: bool) -> Any:
    """Return what is called with the inputs as tensors, on its device."""
    module: Any = loaded.module.to(device)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module if loaded.arrange is None else loaded.arrange(module)
