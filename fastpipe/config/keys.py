"""Every key of the scheduler, once: a row of a table from which all else is made.

From a row come its reading and its limits, the setting of the engine's Station, the JSON schema, and (a test holds them
together) the line of docs/configuration.md. To add a key is to add a row. Parameters of backends are not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fastpipe.announcing import NOT_WRITTEN
from fastpipe.config.key import Check, Key
from fastpipe.config.maps import read_map
from fastpipe.config.serving import SERVE_FORM, read_serve
from fastpipe.config.shapes import SHAPE_FORM, largest_batch, smallest_batch
from fastpipe.config.values import BadValue, coerce
from fastpipe.contract import Between

__all__ = ["NODE_KEYS", "PIPE_KEYS", "default_settings", "station_settings"]

_RULES = ("adaptive", "timeout", "greedy", "preferred")
_WHEN_FULL = ("block", "reject", "shed_oldest")
_REQUESTS = Annotated[int, Between(1, 1_000_000_000)]
_SECONDS = Annotated[float, Between(0.000_001, 1_000_000_000)]

_UNITS = {"": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
_SIZE = r"([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?(?:[iI]?[bB])?)"

_TEXT = {"type": "string"}
_NAMES = {"type": ["string", "array"], "items": {"type": "string", "minLength": 1}}
_PAIRS = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}, "minProperties": 1}


def _rule(value: Any) -> Any:
    """Return the name of a rule, or the object that is one."""
    if not isinstance(value, str) and callable(getattr(value, "decide", None)) and not isinstance(value, type):
        return value
    return _one_of(_RULES, value, ", or an object with decide(load)")


def _one_of(names: tuple[str, ...], value: Any, also: str = "") -> str:
    if not isinstance(value, str) or value.lower() not in names:
        raise BadValue("one of " + ", ".join(map(repr, names)) + also, value)
    return value.lower()


def _when_full(value: Any) -> str:
    return _one_of(_WHEN_FULL, value)


def _check_when_full(value: Any, written: Mapping[str, Any], largest: int | None) -> Iterator[tuple[str, str]]:
    if value not in (None, "block") and not (written.get("max_queue") or written.get("max_queue_bytes")):
        yield "when_full", "there is no max_queue or max_queue_bytes"


def _check_preferred(value: Any, written: Mapping[str, Any], largest: int | None) -> Iterator[tuple[str, str]]:
    is_rule = written.get("batching") == "preferred"
    if written.get("preferred_batch_sizes") is None:
        if is_rule:
            yield "batching", "'preferred' needs preferred_batch_sizes, such as [4, 8]"
        return
    if not is_rule:
        yield "preferred_batch_sizes", "only the rule batching='preferred' looks at it"
    if value is not None and (not value or min(value) < 1 or (largest is not None and max(value) > largest)):
        allowed = "at least 1" if largest is None else f"from 1 to max, which is {largest}"
        yield "preferred_batch_sizes", f"sizes {allowed}, got {list(value)}"


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(coerce(value, list[int]))


def _names(value: Any) -> tuple[str, ...]:
    if value == "":
        return ()
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise BadValue("a name, names with commas, or a list of names", value)
    return tuple(names)


def _map(value: Any) -> Any:
    return None if value == "" else read_map(value)


def _name(value: Any) -> str | None:
    if value == "":
        return None
    if not isinstance(value, str):
        raise BadValue("the name of a node", value)
    return value.strip()


def _bucket(value: Any) -> Any:
    if callable(value) or (isinstance(value, str) and value):
        return value
    raise BadValue("a key of the request or a function of it", value)


def _size(value: Any) -> int:
    """Return a number of bytes: of 256, "256", "256MB" or "1.5 GiB"."""
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    found = re.fullmatch(_SIZE, written.strip()) if isinstance(written, str) else None
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None:
        raise BadValue('a number of bytes, or a text with a unit such as "256MB" or "1.5 GiB"', value)
    size_bytes = int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
    if not 1 <= size_bytes <= 1 << 60:
        raise BadValue("from 1 byte to 2**60", value)
    return size_bytes


def _cache_key(value: Any) -> Any:
    return value if callable(value) else _names(value) or None


def _needs_cache(key: str) -> Check:
    def check(value: Any, written: Mapping[str, Any], largest: int | None) -> Iterator[tuple[str, str]]:
        if value is not None and written.get("cache") is None:
            yield key, "there is no cache"

    return check


def _state_key(value: Any) -> str | None:
    if value == "":
        return None
    if not isinstance(value, str):
        raise BadValue("a key of the request", value)
    return value


def _check_state_of(value: Any, written: Mapping[str, Any], largest: int | None) -> Iterator[tuple[str, str]]:
    if value is not None and written.get("cache") is not None:
        yield "cache", "an answer depends on the state that the requests before have left: take cache or state_of out"
    if value in ("data", "result", "state"):
        yield "state_of", f"{value!r} is a key of requests that means something else"


def _needs_states(key: str) -> Check:
    def check(value: Any, written: Mapping[str, Any], largest: int | None) -> Iterator[tuple[str, str]]:
        if written.get(key) is not None and written.get("state_of") is None:
            yield key, "there is no state_of"

    return check


def _table(*keys: Key) -> dict[str, Key]:
    return {key.name: key for key in keys}


NODE_KEYS = _table(
    Key(
        "backend",
        "What the node does: a name, the notation such as S[A,B], or package.module:Name.",
        form=_TEXT,
        is_read_with_backend=True,
        is_switched=True,
    ),
    Key(
        "instance_num",
        "How many objects of the backend there are, each running one batch at a time.",
        Annotated[int, Between(1, 4096)],
        1,
        field="instance_num",
        is_read_with_backend=True,
        is_passed_on=True,
        is_divided=True,
        is_switched=True,
    ),
    Key(
        "max",
        "How many requests a batch may have, or for models a shape such as 4x3x224x224.",
        default_in_words="what the backend says, else 1",
        takes_none=True,
        read=largest_batch,
        form=SHAPE_FORM,
        field="max",
        is_read_with_backend=True,
        is_passed_on=True,
        is_divided=True,
        is_switched=True,
    ),
    Key(
        "min",
        "The smallest batch a model takes.",
        default_in_words="1",
        takes_none=True,
        read=smallest_batch,
        form=SHAPE_FORM,
        is_read_with_backend=True,
        is_passed_on=True,
        is_divided=True,
        is_switched=True,
    ),
    Key(
        "batching_timeout",
        "How many milliseconds the oldest request may wait for others to join its batch.",
        Annotated[float, Between(0, 3_600_000)],
        2.0,
        default_in_words="2",
        unit=" ms",
        station="timeout_ms",
        is_passed_on=True,
        is_switched=True,
    ),
    Key(
        "batching",
        "The rule that forms batches.",
        Literal[_RULES],
        "adaptive",
        read=_rule,
        station="rule",
        is_switched=True,
    ),
    Key(
        "preferred_batch_sizes",
        "Batch sizes for the rule preferred.",
        list[Annotated[int, Between(1, 1 << 20)]],
        (),
        default_in_words="",
        takes_none=True,
        read=_sizes,
        check=_check_preferred,
        station="preferred",
        is_switched=True,
    ),
    Key(
        "next",
        "The nodes that come next.",
        default=(),
        default_in_words="",
        takes_none=True,
        read=_names,
        form=_NAMES,
        field="next",
        is_own_of_logical=True,
    ),
    Key(
        "map",
        "What the node reads from whom: b[result:data],c[result:other]; of b|c[result:data] the first that has run.",
        takes_none=True,
        read=_map,
        form={"anyOf": [_NAMES, {"type": "object", "additionalProperties": _PAIRS, "minProperties": 1}]},
        field="map",
        is_own_of_logical=True,
    ),
    Key(
        "filter",
        "A decision in front of the node.",
        default_in_words="see below",
        form=_TEXT,
        field="filter",
        is_own_of_logical=True,
    ),
    Key(
        "restart",
        "On a leaf: where a request starts over after it has passed every leaf.",
        takes_none=True,
        read=_name,
        form=_TEXT,
        field="restart",
        is_own_of_logical=True,
    ),
    Key(
        "restart_limit",
        "How often one request may start over at this node.",
        _REQUESTS,
        1000,
        field="restart_limit",
        is_own_of_logical=True,
    ),
    Key(
        "bucket",
        "A key of the request, or a function of it: only requests with equal values share a batch.",
        default_in_words="what the backend says",
        takes_none=True,
        read=_bucket,
        form={"type": "string", "minLength": 1},
        field="bucket",
        is_switched=True,
    ),
    Key(
        "max_queue",
        "How many requests may wait for the node.",
        _REQUESTS,
        default_in_words="no limit",
        takes_none=True,
        station="max_queue",
    ),
    Key(
        "max_queue_bytes",
        "How many bytes of data may wait for the node.",
        Annotated[int, Between(1, 1 << 60)],
        default_in_words="no limit",
        takes_none=True,
        station="max_queue_bytes",
    ),
    Key(
        "when_full",
        "What happens to a request that finds no room.",
        Literal[_WHEN_FULL],
        "block",
        read=_when_full,
        check=_check_when_full,
        station="when_full",
    ),
    Key(
        "hang_timeout",
        "How many seconds a batch may run before its instance is given up.",
        _SECONDS,
        default_in_words="no limit",
        unit=" seconds",
        takes_none=True,
        station="hang_timeout_s",
    ),
    Key(
        "cache",
        "How much memory may be used to keep answers: bytes, or a text with a unit such as 256MB.",
        default_in_words="no cache",
        takes_none=True,
        read=_size,
        form={"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^\\s*{_SIZE}\\s*$"}]},
    ),
    Key(
        "cache_ttl",
        "How many seconds an answer is kept.",
        _SECONDS,
        default_in_words="no limit",
        unit=" seconds",
        takes_none=True,
        check=_needs_cache("cache_ttl"),
    ),
    Key(
        "cache_key",
        "What tells requests apart: keys of the request, or a function of it.",
        default_in_words="all keys",
        takes_none=True,
        read=_cache_key,
        check=_needs_cache("cache_key"),
        form=_NAMES,
    ),
    Key(
        "state_of",
        "The key of a request that says to which sequence it belongs: a backend that has a state keeps one for each.",
        default_in_words="no states",
        takes_none=True,
        read=_state_key,
        check=_check_state_of,
        form={"type": "string", "minLength": 1},
    ),
    Key(
        "max_states",
        "How many states are kept.",
        _REQUESTS,
        10_000,
        check=_needs_states("max_states"),
    ),
    Key(
        "state_ttl",
        "How many seconds a state is kept after its last use.",
        _SECONDS,
        600.0,
        unit=" seconds",
        check=_needs_states("state_ttl"),
    ),
)
"""Keys of a node, by name; beside the nodes, they are defaults for every node."""

PIPE_KEYS = _table(
    Key(
        "request_timeout",
        "The default time limit, in seconds, for requests without a timeout.",
        _SECONDS,
        default_in_words="no limit",
        unit=" seconds",
        field="request_timeout_s",
    ),
    Key(
        "max_in_flight",
        "How many requests may be in the pipe at once, queued or running.",
        _REQUESTS,
        default_in_words="no limit",
        unit=" requests",
        field="max_in_flight",
    ),
    Key(
        "when_overloaded",
        "What happens to a request beyond that.",
        Literal["block", "reject"],
        "block",
        field="when_overloaded",
    ),
    Key(
        "when_hung",
        "What happens when a batch exceeds hang_timeout: the instance is replaced, or the process ends (abort).",
        Literal["replace", "abort"],
        "replace",
        field="when_hung",
    ),
    Key(
        "obey_request_keys",
        "Which control keys of a caller's request are obeyed: node_name, restart, request_size.",
        list[Literal["node_name", "restart", "request_size"]],
        (),
        default_in_words="none",
        field="obey_request_keys",
    ),
    Key(
        "without_result",
        "What happens to a request that ends without a result because a step set none.",
        Literal["error", "end"],
        "error",
        field="without_result",
    ),
    Key(
        "serve",
        "What a server announces of the pipe: a table of max_batch_size, inputs and outputs.",
        default=NOT_WRITTEN,
        default_in_words="what the backends say",
        read=read_serve,
        form=SERVE_FORM,
        field="interface",
    ),
)
"""Keys of the whole pipe, which stand beside the nodes."""


def default_settings(keys: Mapping[str, Key]) -> dict[str, Any]:
    """Return what the ``settings`` of a node, or of a pipe, are where nothing is written."""
    return {key.name: key.default for key in keys.values() if key.field is None and not key.is_read_with_backend}


def station_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a node that the engine's Station takes, by its names for them."""
    given = {key.station: settings[name] for name, key in NODE_KEYS.items() if key.station is not None}
    return {name: value for name, value in given.items() if value is not None}
