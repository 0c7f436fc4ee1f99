"""What a user wrote -> tables -> a description: a dict, a TOML file, keywords, or all of them, checked and typed.

    one node     Pipe(backend="DecodeMat", instance_num=2)
    many         Pipe({"decode": {"backend": ..., "next": "model"}, "model": {...}}, instance_num=2)

Beside the tables, and in the table ``global``, are defaults for every node, and the keys of the whole pipe. Every
mistake is found before anything is built, and all are said at once. The caller's objects are never changed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastpipe.config.described import NodeConfig, PipeConfig, Written
from fastpipe.config.keys import PIPE_KEYS, default_settings
from fastpipe.config.nodes import NodeReader
from fastpipe.config.problems import Problems, shown_part
from fastpipe.config.values import BadValue, own_copy
from fastpipe.errors import ConfigError

__all__ = ["BYTE_ORDER_MARK", "examine", "load", "load_changed", "read_toml"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # with which some editors begin a file
_MOST_LEVELS = 64
_TOO_DEEP = f"tables and lists are nested more than {_MOST_LEVELS} levels deep"
# torchpipe's files may write the names of its constants where keys are meant.
_KEY_CONSTANT = re.compile(r"\bTASK_[A-Z_]+_KEY\b")
_KEY_CONSTANTS = {
    "TASK_DATA_KEY": "data",
    "TASK_RESULT_KEY": "result",
    "TASK_CONTEXT_KEY": "context",
    "TASK_BOX_KEY": "_box",
    "TASK_INFO_KEY": "_info",
    "TASK_CPU_RESULT_KEY": "cpu_result",
    "TASK_NODE_NAME_KEY": "node_name",
    "TASK_REQUEST_SIZE_KEY": "request_size",
    "TASK_RESTART_KEY": "restart",
}


def load(
    source: str | Path | Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    add_more: Callable[[tuple[NodeConfig, ...], Problems], None] | None = None,
) -> PipeConfig:
    """Read and check a configuration.

    Args:
        source: the path of a TOML file, or a mapping of node names to nodes, or of one node's keys; or nothing.
        keywords: more of the same; where both have a value, the keyword wins. Neither is changed.
        add_more: called if there are mistakes, to note what else is wrong, as far as the nodes could be read.

    Raises:
        ConfigError: with all mistakes.
        MissingExtra: if nothing is wrong but an optional library that is not installed.
    """
    tables, base_directory = _read(source)
    own_source = source if source is None or isinstance(source, str | Path) else own_copy(dict(source))
    written = Written(own_source, keywords, own_copy(dict(tables)), base_directory)
    config, problems, remarks = _examine(written)
    if problems.mistakes and add_more is not None:
        add_more(config.nodes, problems)
    problems.raise_if_any()
    for remark in remarks:
        warnings.warn(remark, stacklevel=3)
    return config


def load_changed(config: PipeConfig, node: str, changes: Mapping[str, Any]) -> PipeConfig:
    """Read and check a configuration again with some keys of a node changed; the file is not read again.

    Raises:
        ConfigError, MissingExtra: as of ``load``.
    """
    changed, problems, _ = _examine(config.written.changed(node, own_copy(dict(changes))))
    problems.raise_if_any()
    return changed


def examine(
    tables: Mapping[str, Any], keywords: Mapping[str, Any], base_directory: Path | None
) -> tuple[PipeConfig, Problems, list[str]]:
    """Return the description as far as it can be read, what is wrong with it, and what else is to be said."""
    return _examine(Written(tables, keywords, tables, base_directory))


def _examine(written: Written) -> tuple[PipeConfig, Problems, list[str]]:
    problems = Problems()
    defaults, tables = _flattened(written.tables, problems)
    more_defaults, more_tables = _flattened(written.keywords, problems)
    defaults.update(more_defaults)
    for name, table in more_tables.items():
        tables[name] = {**tables.get(name, {}), **table}
    of_the_pipe = _of_the_pipe(defaults, problems)
    reader = NodeReader(defaults, tables, written.base_directory, problems)
    return PipeConfig(reader.read(written.changes), written, **of_the_pipe), problems, reader.warnings


def _of_the_pipe(defaults: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Take the keys of the whole pipe out of the defaults of nodes, and return the fields of PipeConfig."""
    fields: dict[str, Any] = {}
    settings = default_settings(PIPE_KEYS)
    is_limited = "max_in_flight" in defaults
    for name, key in PIPE_KEYS.items():
        if name not in defaults:
            continue
        try:
            value = key.value({name: defaults.pop(name)})
        except BadValue as problem:
            problems.add_general("configuration", str(problem), name, shown_part(problem))
            continue
        except ConfigError as error:
            for mistake in error.problems:
                problems.add_general("configuration", mistake.text, name, mistake.part)
            continue
        (settings if key.field is None else fields)[key.field or name] = value
    if fields.get("when_overloaded", "block") != "block" and not is_limited:
        problems.add_general("configuration", "there is no max_in_flight", "when_overloaded", None)
    return {**fields, "settings": settings}


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[Mapping[str, Any], Path | None]:
    """Return what is written, and the directory of the file it is written in."""
    if source is None:
        return {}, None
    if isinstance(source, Mapping):
        return source, None
    if not isinstance(source, str | Path):
        raise ConfigError(f"a mapping or the path of a TOML file is expected, got {source!r}")
    path = Path(source)
    try:
        text = path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode()
        return read_toml(text), path.absolute().parent
    except FileNotFoundError:
        hint = "" if path.suffix else "; for one node write Pipe(backend=...)"
        raise ConfigError(f"there is no file {str(source)!r}{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: it is no UTF-8, or no TOML
        raise ConfigError(f"{str(source)!r} cannot be read: {error}") from error


def read_toml(text: str) -> dict[str, Any]:
    """Return what a configuration file says.

    Raises:
        TOMLDecodeError: if it is no TOML, or nested more deeply than anything can walk through.
    """
    import tomllib  # only here: most pipes are written in Python

    try:
        written = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError(_TOO_DEEP) from None
    level: list[Any] = [written]
    for _ in range(_MOST_LEVELS):
        inside = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [inner for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return written
    raise tomllib.TOMLDecodeError(_TOO_DEEP)


def _flattened(written: Mapping[str, Any], problems: Problems) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return copies of the defaults (what stands beside the tables, and in ``global``) and of the tables."""
    defaults: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name, value in written.items():
        if not isinstance(name, str):
            problems.add_general("configuration", f"names are text, got {name!r}")
        elif isinstance(value, Mapping) and not _is_of_the_pipe(name, value):
            tables.update(_logical_apart(name, {key: _own_value(each) for key, each in value.items()}))
        else:
            defaults[name] = _own_value(value)
    for key, value in tables.pop("global", {}).items():
        if key in defaults and defaults[key] != value:
            sentence = f"{key!r} stands beside the tables and in 'global', with different values"
            problems.add_general("configuration", sentence, key)
        defaults[key] = value
    if "global" in defaults:
        problems.add_general("configuration", f"'global' must be a table, got {defaults.pop('global')!r}")
    return defaults, tables


def _is_of_the_pipe(name: str, table: Mapping[str, Any]) -> bool:
    """Whether a table is the value of a key of the whole pipe, and not the node of that name, which has a backend."""
    return name in PIPE_KEYS and "backend" not in table


def _logical_apart(name: str, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the node and its logical nodes: ``[rec.2]``, unquoted, is in TOML a table ``2`` inside ``rec``."""
    inner = [key for key, value in table.items() if str(key).isdecimal() and isinstance(value, Mapping)]
    return {name: table} | {f"{name}.{key}": dict(table.pop(key)) for key in inner}


def _own_value(value: Any) -> Any:
    """Return a copy of what was written; where torchpipe's files say TASK_DATA_KEY, they mean the key ``data``."""
    if isinstance(value, str) and "TASK_" in value:
        return _KEY_CONSTANT.sub(lambda match: _KEY_CONSTANTS.get(match.group(), match.group()), value)
    return own_copy(value)
