"""What a user wrote -> frozen dataclasses: a dict, a TOML file, keywords, or all of them, checked and typed.

    one node     Pipe(backend="DecodeMat", instance_num=2)
    many         Pipe({"decode": {"backend": ..., "next": "model"}, "model": {...}}, instance_num=2)

Beside the tables, and in the table ``global``, are defaults for every node. Every mistake is found here, before
anything is built, and all are said at once. What a node's parameters mean to its backends is the business of
``_plan.py``; whether the nodes make a graph, that of ``graph.py``. The caller's objects are never changed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastpipe._plan import PASSED_ON, SCHEDULER_KEYS, Problems, StepPlan, TreePlanner, is_grafting, resolve_filter
from fastpipe._proxies import proxied
from fastpipe._secrets import looks_secret
from fastpipe._values import BadValue, coerce, own_copy
from fastpipe.backend import Between
from fastpipe.backends.composites import Composite
from fastpipe.errors import ConfigError, Mistake, nearest

__all__ = ["MapEntry", "NodeConfig", "PipeConfig", "StepPlan", "examine", "load", "read_toml"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # with which some editors begin a file
ONE_NODE_NAME = "main"
_MOST_LEVELS = 64
_TOO_DEEP = f"tables and lists are nested more than {_MOST_LEVELS} levels deep"
WHEN_FULL = ("block", "reject", "shed_oldest")
BATCHING_RULES = ("adaptive", "timeout", "greedy", "preferred")

_INSTANCES = Annotated[int, Between(1, 4096)]
_BATCH_SIZE = Annotated[int, Between(1, 1 << 20)]
_TIMEOUT_MS = Annotated[float, Between(0, 3_600_000)]
_QUEUE = Annotated[int, Between(1, 1_000_000_000)]
_BYTES = Annotated[int, Between(1, 1 << 60)]
_SECONDS = Annotated[float, Between(0.000_001, 1_000_000_000)]

PIPE_KEYS: dict[str, tuple[str, Any, str]] = {
    "request_timeout": ("request_timeout_s", _SECONDS, " seconds"),
    "max_in_flight": ("max_in_flight", _QUEUE, " requests"),
    "when_overloaded": ("when_overloaded", Literal["block", "reject"], ""),
    "when_hung": ("when_hung", Literal["replace", "abort"], ""),
    "obey_request_keys": ("obey_request_keys", list[Literal["node_name", "restart", "request_size"]], ""),
    "without_result": ("without_result", Literal["error", "end"], ""),
}
"""Keys of the whole pipe, which stand beside the nodes: the field of PipeConfig, its type, and the unit."""
_RESTARTS = Annotated[int, Between(1, 1_000_000_000)]
_FORBIDDEN_IN_NAMES = re.compile(r"[\s,\[\]:|]")  # they would make `next` and `map` ambiguous
# Nothing is given back ("*+"), so that spaces are gone over once.
_MAP_ENTRY = re.compile(r"\s*+([^\s,\[\]|]*+(?:\s*+\|\s*+[^\s,\[\]|]++)*+)\s*+(?:\[([^\[\]]*+)\])?+\s*+(?:,|$)")
_MEMBER_KEYS = ("model", "min", "max", "instance_num")  # where "&" separates the values of several backends
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
_LOGICAL_KEYS = ("next", "map", "filter", "restart", "restart_limit")


@dataclass(frozen=True)
class MapEntry:
    """One entry of ``map``: which keys of which ancestor's request become which keys here."""

    sources: tuple[str, ...]
    """The ancestor's name; of several, the first that has run is read. Empty: the only parent."""
    keys: tuple[tuple[str, str], ...]
    """Pairs of key there, key here."""


@dataclass(frozen=True)
class NodeConfig:
    """One node, checked."""

    name: str
    plan: StepPlan | None
    """What to build; None for a logical node."""
    shares: str | None = None
    """For a logical node such as ``rec.2``: ``"rec"``, the node whose instances it uses."""
    instance_num: int = 1
    max: int | None = None
    """How many requests a batch may have; None: what the backend says."""
    batching_timeout_ms: float = 2.0
    batching: Any = "adaptive"
    """The name of a rule, or an object with the rule's method."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """For the rule "preferred"."""
    next: tuple[str, ...] = ()
    map: tuple[MapEntry, ...] | None = None
    filter: Callable[..., Any] | None = None
    """None: the default, which depends on the place in the graph."""
    filter_name: str | None = None
    restart: str | None = None
    """For a leaf: where its requests enter again."""
    restart_limit: int = 1000
    """How often one request may enter again here."""
    max_queue: int | None = None
    """How many requests may wait here; None: no limit."""
    max_queue_bytes: int | None = None
    """How many bytes of data may wait here; None: no limit."""
    when_full: str = "block"
    """What becomes of a request for which there is no room."""
    hang_timeout_s: float | None = None
    """How long a batch may run before its instance is given up; None: however long."""
    bucket: str | Callable[..., Any] | None = None
    """A key of the request, or a function of it; None: what the backend says."""
    is_hidden: bool = False
    """Nobody wrote it: proxies of the node it ``shares`` enter there, and no request by ``node_name``."""


@dataclass(frozen=True)
class PipeConfig:
    """All nodes, in the order they were written."""

    nodes: tuple[NodeConfig, ...]
    request_timeout_s: float | None = None
    """How long a request may take that says nothing itself."""
    max_in_flight: int | None = None
    """How many requests may be in the pipe at once; None: no limit."""
    when_overloaded: str = "block"
    """What becomes of one more."""
    when_hung: str = "replace"
    """What becomes of an instance that does not return within its node's ``hang_timeout``; or of the process."""
    obey_request_keys: Sequence[str] = ()
    """The keys that mean something to the engine also where a caller's own dict has them."""
    without_result: str = "error"
    """What becomes of a request that ends without a result because a step gave none."""


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
    written, base_directory = _read(source)
    nodes, problems, remarks = examine(written, keywords, base_directory)
    if problems.sentences and add_more is not None:
        add_more(nodes, problems)
    problems.raise_if_any()
    for remark in remarks:
        warnings.warn(remark, stacklevel=3)
    return PipeConfig(nodes, **_of_the_pipe(written, keywords))


def examine(
    written: Mapping[str, Any], keywords: Mapping[str, Any], base_directory: Path | None
) -> tuple[tuple[NodeConfig, ...], Problems, list[str]]:
    """Return the nodes as far as they can be read, everything that is wrong with them, and what else is to be said."""
    problems = Problems()
    defaults, tables = _flattened(written, problems)
    more_defaults, more_tables = _flattened(keywords, problems)
    defaults.update(more_defaults)
    for name, table in more_tables.items():
        tables[name] = {**tables.get(name, {}), **table}
    _check_keys_of_the_pipe(defaults, problems)
    loader = _Loader(defaults, tables, base_directory, problems)
    return loader.load(), problems, loader.warnings


def _check_keys_of_the_pipe(defaults: dict[str, Any], problems: Problems) -> None:
    """Take the keys of the whole pipe out of the defaults of nodes."""
    for key, (_, annotation, unit) in PIPE_KEYS.items():
        if key in defaults:
            try:
                coerce(defaults.pop(key), annotation)
            except BadValue as problem:
                problems.add("configuration", f"{key}: {_with_limits(problem, annotation, unit)}", key)


def _of_the_pipe(written: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, (field, annotation, _) in PIPE_KEYS.items():
        for source in (keywords, keywords.get("global", {}), written, written.get("global", {})):
            if key in source:
                found[field] = coerce(source[key], annotation)
                break
    return found


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
            problems.add("configuration", f"names are text, got {name!r}")
        elif isinstance(value, Mapping):
            tables.update(_logical_apart(name, {key: _own_value(each) for key, each in value.items()}))
        else:
            defaults[name] = _own_value(value)
    for key, value in tables.pop("global", {}).items():
        if key in defaults and defaults[key] != value:
            sentence = f"{key!r} stands beside the tables and in 'global', with different values"
            problems.add("configuration", sentence, key)
        defaults[key] = value
    if "global" in defaults:
        problems.add("configuration", f"'global' must be a table, got {defaults.pop('global')!r}")
    return defaults, tables


def _logical_apart(name: str, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the node and its logical nodes: ``[rec.2]``, unquoted, is in TOML a table ``2`` inside ``rec``."""
    inner = [key for key, value in table.items() if str(key).isdecimal() and isinstance(value, Mapping)]
    return {name: table} | {f"{name}.{key}": dict(table.pop(key)) for key in inner}


def _own_value(value: Any) -> Any:
    """Return a copy of what was written; where torchpipe's files say TASK_DATA_KEY, they mean the key ``data``."""
    if isinstance(value, str) and "TASK_" in value:
        return _KEY_CONSTANT.sub(lambda match: _KEY_CONSTANTS.get(match.group(), match.group()), value)
    return own_copy(value)


class _Loader:
    """Turns tables and defaults into nodes, noting problems."""

    def __init__(
        self,
        defaults: dict[str, Any],
        tables: dict[str, dict[str, Any]],
        base_directory: Path | None,
        problems: Problems,
    ) -> None:
        self.defaults = defaults
        self.tables = tables
        self.base_directory = base_directory
        self.problems = problems
        self.warnings: list[str] = []
        self.planners: dict[str, TreePlanner] = {}
        self.known: dict[str, None] = dict.fromkeys(SCHEDULER_KEYS)
        self.taken_defaults: set[str] = set(SCHEDULER_KEYS)
        self.users: dict[int, str] = {}  # id of a Backend object given as such -> the node that uses it

    def load(self) -> tuple[NodeConfig, ...]:
        if self._is_one_node():
            self.tables = {ONE_NODE_NAME: {**self.defaults, **self.tables}}
            self.defaults = {}
        elif not self.tables:
            hint = next(filter(None, (nearest(key, ["backend"]) for key in self.defaults)), "")
            odd = "".join(
                f"; {key!r} is {'no table' if looks_secret(key) else f'{value!r}, not a table'}"
                for key, value in list(self.defaults.items())[:1]
            )
            what = "there is no node: give backend=... or a table per node, such as {'decode': {'backend': ...}}"
            self.problems.add("configuration", what + (hint or odd))
            return ()
        # Real nodes first: a logical one is judged by what the node it shares takes.
        configs: dict[str, NodeConfig | None] = dict.fromkeys(self.tables)
        for name, table in self.tables.items():
            if self._is_name(name) and "." not in name:
                configs[name] = self._node(name, table)
        for name, table in self.tables.items():
            if self._is_name(name, say=False) and "." in name:
                configs[name] = self._logical_node(name, table)
        self._check_defaults()
        nodes = [config for config in configs.values() if config is not None]
        return (*nodes, *self._hidden(nodes))

    def _hidden(self, nodes: Sequence[NodeConfig]) -> list[NodeConfig]:
        """Return the logical nodes by which proxies enter."""
        hidden = proxied(
            {node.name: node.plan for node in nodes if node.plan is not None},
            {node.name: node.shares for node in nodes if node.shares is not None},
            {node.name: node.next for node in nodes},
            self.tables,
            self.problems,
        )
        return [NodeConfig(name, None, shares, is_hidden=True) for name, shares in hidden.items()]

    def _is_one_node(self) -> bool:
        """Whether what stands beside the tables is the node itself, and the tables, if any, are values of its keys."""
        if "backend" not in self.defaults:
            return False
        if not self.tables:
            return True
        planner = TreePlanner("", Problems())
        planner.read(self.defaults["backend"], self.defaults, {})
        return all(name == "map" or name in planner.known for name in self.tables)

    def _is_name(self, name: str, *, say: bool = True) -> bool:
        problem = ""
        if name == "default":
            problem = "no name for a node; defaults for every node are in the table 'global'"
        elif not name or name.startswith(".") or name.endswith("."):
            problem = "no name for a node"
        elif _FORBIDDEN_IN_NAMES.search(name):
            problem = "no name for a node: spaces, ',', ':', '|', '[' and ']' have a meaning in 'next' and 'map'"
        if problem and say:
            self.problems.add(f"node {name!r}", problem)
        return not problem

    # ---- one node ----------------------------------------------------------------------------------------------

    def _node(self, name: str, table: dict[str, Any]) -> NodeConfig | None:
        where = f"node {name!r}"
        keys = {**self.defaults, **table}
        timeout_ms = self._number(where, keys, "batching_timeout", _TIMEOUT_MS, 2.0)
        division = self._division(where, keys)
        if division is None:
            plan, instance_num, size = None, 1, None
            self.planners[name] = TreePlanner(where, self.problems)  # nothing is known of what it takes
        elif division:
            plan, instance_num, size = self._composite(name, table, division)
        else:
            plan, instance_num, _, size = self._planned(name, table, self.defaults)
            size = None if plan is not None and plan.composes_sizes else size
        return NodeConfig(
            name,
            plan,
            None,
            instance_num,
            size,
            timeout_ms,
            self._batching(where, keys.get("batching", "adaptive")),
            self._preferred(where, keys, size),
            self._next(where, keys.get("next")),
            self._map(where, keys.get("map")),
            resolve_filter(keys.get("filter"), where, self.problems),
            _name_of(keys.get("filter")),
            self._restart(where, keys.get("restart")),
            self._number(where, keys, "restart_limit", _RESTARTS, 1000),
            self._limit(where, keys, "max_queue", _QUEUE),
            self._limit(where, keys, "max_queue_bytes", _BYTES),
            self._when_full(where, keys),
            self._hang_timeout_s(where, keys),
            self._bucket(where, keys.get("bucket")),
        )

    def _planned(
        self, name: str, table: dict[str, Any], defaults: dict[str, Any], member: str = ""
    ) -> tuple[StepPlan | None, int, int | None, int | None]:
        """Return a node's plan (or that of one of several backends of it), ``instance_num``, ``min`` and ``max``."""
        where, keys = f"node {name!r}", {**defaults, **table}
        instance_num = self._number(where, keys, "instance_num", _INSTANCES, 1)
        size = self._batch_size(where, keys, "max")
        smallest = self._batch_size(where, keys, "min")
        if size is not None and smallest is not None and smallest > size:
            self.problems.add(where, f"min: must be at most max, which is {size}, got {smallest}{member}")
        planner = self.planners[name] = TreePlanner(where, self.problems, self.base_directory)
        plan = self._plan(planner, name, table, defaults, instance_num)
        if plan is not None:
            size = self._checked_size(where, plan, size, is_own="max" in table)
            instance_num = self._checked_objects(planner, instance_num, is_own="instance_num" in table)
            is_minded = member or plan.composes_sizes or "min" in planner.known
            if smallest is not None and smallest > 1 and "min" in table and not is_minded:
                self.problems.add(where, f"min: {plan.name} takes any number of requests from 1, got {smallest}")
        return plan, instance_num, smallest, size

    def _division(self, where: str, keys: dict[str, Any]) -> dict[str, list[str]] | None:
        """Return the values between ``&``, by key; None, with problems noted, if they cannot be told apart."""
        division: dict[str, list[str]] = {}
        for key, value in keys.items():
            if key.rpartition("::")[2] in _MEMBER_KEYS and isinstance(value, str) and "&" in value:
                values = _between_ampersands(value)
                if not values:
                    self.problems.add(where, f"{key}: must be one value for each backend between '&', got {value!r}")
                    return None
                division[key] = values
        if len({len(values) for values in division.values()}) > 1:
            listed = ", ".join(f"{key} has {len(values)} values" for key, values in division.items())
            sentence = f"the lists with '&' need one value for each backend: {listed}"
            self.problems.add(where, sentence, next(iter(division)))
            return None
        return division

    def _composite(
        self, name: str, table: dict[str, Any], division: dict[str, list[str]]
    ) -> tuple[StepPlan | None, int, None]:
        """Plan a node each of whose instances is made of several backends; their batches are composed."""
        where, members, limits, counts = f"node {name!r}", [], [], []
        total = len(next(iter(division.values())))
        for place in range(total):
            plan, count, smallest, size = self._planned(
                name,
                {key: division[key][place] if key in division else value for key, value in table.items()},
                {key: division[key][place] if key in division else value for key, value in self.defaults.items()},
                f" ({place + 1} of {total} between '&')",
            )
            for given, _ in self.planners[name].objects():
                self.problems.add(
                    where, f"backend: '&' needs {total} of {given}, and this is one; give its class instead"
                )
            counts.append(count)
            if plan is not None:
                members.append(replace(plan, name=f"{plan.name} {place + 1} of {total}"))
                limits.append((smallest, size))
        if len(set(counts)) > 1:
            got = "&".join(map(str, counts))
            self.problems.add(
                where, f"instance_num: each instance has one of each backend, so all are equal, got {got!r}"
            )
        if len(members) < total:
            return None, counts[0], None
        parameters = MappingProxyType({"limits": tuple(limits)})
        backend_name = members[0].name.rpartition(f" 1 of {total}")[0]
        return StepPlan(backend_name, Composite, parameters, tuple(members)), counts[0], None

    def _logical_node(self, name: str, table: dict[str, Any]) -> NodeConfig | None:
        where, shares = f"node {name!r}", name.partition(".")[0]
        if shares not in self.tables:
            near = nearest(shares, (other for other in self.tables if "." not in other))
            self.problems.add(where, f"there is no node {shares!r} whose instances it could share{near}")
            return None
        planner = self.planners.get(shares)
        if planner is not None and planner.root is not None:
            known = [*SCHEDULER_KEYS, *planner.known]
            for key in table:
                if key not in known and key.replace("::", "_") not in known:
                    self.problems.add(where, f"nobody takes {key!r}{nearest(key, known)}", key)
        if table.get("backend") is not None:
            self.problems.add(
                where,
                f"backend: it shares the instances of {shares!r} and runs no backend of its own: take the key out, or "
                "give the node a name without a dot",
            )
        ignored = [key for key in table if key not in _LOGICAL_KEYS and key != "backend"]
        if ignored:
            given = ", ".join(map(repr, ignored))
            remark = f"{where}: it shares the instances of {shares!r}; its own {given} is ignored"
            self.warnings.append(Mistake(remark, key=ignored[0]))
        keys = {**self.defaults, **table}
        return NodeConfig(
            name,
            None,
            shares,
            next=self._next(where, keys.get("next")),
            map=self._map(where, keys.get("map")),
            filter=resolve_filter(keys.get("filter"), where, self.problems),
            filter_name=_name_of(keys.get("filter")),
            restart=self._restart(where, keys.get("restart")),
            restart_limit=self._number(where, keys, "restart_limit", _RESTARTS, 1000),
        )

    def _plan(
        self, planner: TreePlanner, name: str, table: dict[str, Any], defaults: dict[str, Any], instance_num: int
    ) -> StepPlan | None:
        backend = table.get("backend", defaults.get("backend"))
        if backend is None or backend == "":
            close = next((key for key in table if nearest(key, ["backend"])), None)
            hint = "" if close is None else f"; is {close!r} meant to be it?"
            self.problems.add(planner.where, f"it has no backend{hint}")
            return None
        if planner.read(backend, table, defaults) is None:
            return None
        plan = planner.plan(
            {key: value for key, value in table.items() if _is_for_backends(key)},
            {key: value for key, value in defaults.items() if _is_for_backends(key)},
            {"node_name": name, "instance_num": instance_num},
        )
        known = [*SCHEDULER_KEYS, *planner.known]
        for key in table:
            if key not in SCHEDULER_KEYS and key not in planner.taken:
                hint = nearest(key, known)
                if isinstance(table[key], Mapping):
                    hint = f'; a node named {name}.{key} is written ["{name}.{key}"] in a TOML file'
                elif key == "max_batch":
                    hint = "; the node's key is 'max'"
                self.problems.add(planner.where, f"nobody takes {key!r}{hint}", key)
        self.known.update(dict.fromkeys(planner.known))
        self.taken_defaults |= planner.taken_defaults
        return plan

    def _checked_size(self, where: str, plan: StepPlan, size: int | None, *, is_own: bool) -> int | None:
        """Hold ``max`` against what the backend's class says; a default that is too large means as many as it takes."""
        limit = plan.backend.max_batch
        if size is None or not isinstance(limit, int) or size <= limit:
            return size
        if is_own:
            self.problems.add(where, f"max: {plan.name} takes at most {limit} at once, got {size}")
        return limit

    def _checked_objects(self, planner: TreePlanner, instance_num: int, *, is_own: bool) -> int:
        """Refuse to run one object twice at the same time."""
        for name, given in planner.objects():
            user = self.users.setdefault(id(given), planner.where)
            if user != planner.where:
                self.problems.add(planner.where, f"backend: {user} already uses this {name}; give the class instead")
            if instance_num > 1 and is_own:
                self.problems.add(
                    planner.where,
                    f"instance_num: must be 1 where the backend is an object, got {instance_num}: one {name} runs "
                    "one batch at a time; give its class instead",
                )
        return 1 if planner.objects() else instance_num

    def _check_defaults(self) -> None:
        if any(planner.root is None for planner in self.planners.values()) or not self.planners:
            return  # whoever would take them may be the one that could not be read
        for key in self.defaults:
            if key not in self.taken_defaults:
                self.problems.add("defaults", f"no node takes {key!r}{nearest(key, self.known)}", key)

    # ---- the scheduler's keys ----------------------------------------------------------------------------------

    def _preferred(self, where: str, keys: dict[str, Any], size: int | None) -> tuple[int, ...]:
        written = keys.get("preferred_batch_sizes")
        is_rule = keys.get("batching") == "preferred"
        if written is None:
            if is_rule:
                self.problems.add(where, "batching: 'preferred' needs preferred_batch_sizes, such as [4, 8]")
            return ()
        if not is_rule:
            self.problems.add(where, "preferred_batch_sizes: only the rule batching='preferred' looks at it")
        try:
            sizes = coerce(written, list[int])
        except BadValue as problem:
            self.problems.add(where, f"preferred_batch_sizes: {problem}")
            return ()
        if not sizes or min(sizes) < 1 or (size is not None and max(sizes) > size):
            allowed = "at least 1" if size is None else f"from 1 to max, which is {size}"
            self.problems.add(where, f"preferred_batch_sizes: sizes {allowed}, got {sizes}")
        return tuple(sizes)

    def _number(self, where: str, keys: dict[str, Any], key: str, annotation: Any, default: Any) -> Any:
        try:
            return coerce(keys.get(key, default), annotation)
        except BadValue as problem:
            unit = {"batching_timeout": " ms", "hang_timeout": " seconds"}.get(key, "")
            self.problems.add(where, f"{key}: {_with_limits(problem, annotation, unit)}")
            return default

    def _batch_size(self, where: str, keys: dict[str, Any], key: str) -> int | None:
        """Return the batch size in a number or a shape: ``4``, ``"4x3x224x224"``, with ``,`` ``;`` and ``|``."""
        value = keys.get(key)
        if value is None:
            return None
        try:
            if not isinstance(value, str):
                return int(coerce(value, _BATCH_SIZE))
            # Inputs (",") share the batch size; profiles (";") widen it; children of a Sequential ("|") narrow it.
            widest, narrowest = (max, min) if key == "max" else (min, max)
            shares = [share for share in value.split("|") if share.strip()] or [value]
            profiles = [[_leading_number(profile) for profile in share.split(";")] for share in shares]
            return narrowest(widest(sizes) for sizes in profiles)
        except BadValue:
            expected = "a number between 1 and 1048576, or a shape such as '4x3x224x224'"
            self.problems.add(where, f"{key}: {BadValue(expected, value)}")
            return None

    def _batching(self, where: str, value: Any) -> Any:
        if not isinstance(value, str) and callable(getattr(value, "decide", None)) and not isinstance(value, type):
            return value
        if not isinstance(value, str) or value.lower() not in BATCHING_RULES:
            expected = "one of " + ", ".join(map(repr, BATCHING_RULES)) + ", or an object with decide(load)"
            self.problems.add(where, f"batching: {BadValue(expected, value)}")
            return "adaptive"
        return value.lower()

    def _next(self, where: str, value: Any) -> tuple[str, ...]:
        if value is None or value == "":
            return ()
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            self.problems.add(where, f"next: {BadValue('a name, names with commas, or a list of names', value)}")
            return ()
        return tuple(names)

    def _limit(self, where: str, keys: dict[str, Any], key: str, annotation: Any) -> int | None:
        return None if keys.get(key) is None else int(self._number(where, keys, key, annotation, 1))

    def _hang_timeout_s(self, where: str, keys: dict[str, Any]) -> float | None:
        if keys.get("hang_timeout") is None:
            return None
        return float(self._number(where, keys, "hang_timeout", _SECONDS, 1.0))

    def _when_full(self, where: str, keys: dict[str, Any]) -> str:
        value = keys.get("when_full", "block")
        if not isinstance(value, str) or value.lower() not in WHEN_FULL:
            expected = "one of " + ", ".join(map(repr, WHEN_FULL))
            self.problems.add(where, f"when_full: {BadValue(expected, value)}", "when_full")
            return "block"
        if value.lower() != "block" and not (keys.get("max_queue") or keys.get("max_queue_bytes")):
            self.problems.add(where, "when_full: there is no max_queue or max_queue_bytes", "when_full")
        return value.lower()

    def _restart(self, where: str, value: Any) -> str | None:
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.problems.add(where, f"restart: {BadValue('the name of a node', value)}")
            return None
        return value.strip()

    def _map(self, where: str, value: Any) -> tuple[MapEntry, ...] | None:
        if value is None or value == "":
            return None
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = ",".join(value)
        try:
            if isinstance(value, str):
                entries = _read_map(value)
            elif isinstance(value, Mapping):
                entries = _read_map_table(value)
            else:
                raise ConfigError(str(BadValue("text such as 'B[result:x],C[result:data]'", value)))
        except ConfigError as error:
            self.problems.add_error(f"{where}: map", error)
            return None
        written: set[str] = set()
        for entry in entries:
            for _, here in entry.keys:
                if here in written:
                    self.problems.add(where, f"map: {here!r} is written twice")
                written.add(here)
        return entries

    def _bucket(self, where: str, value: Any) -> Any:
        if value is None or callable(value) or (isinstance(value, str) and value):
            return value
        self.problems.add(where, f"bucket: {BadValue('a key of the request or a function of it', value)}")
        return None


def _is_for_backends(key: str) -> bool:
    return (key not in SCHEDULER_KEYS or key in PASSED_ON) and not is_grafting(key)


def _between_ampersands(text: str) -> list[str]:
    """Return ``"x|b1&b4"`` as ``["x|b1", "x|b4"]``: a share without ``&`` is everybody's. Empty if it is malformed."""
    shares = [[value.strip() for value in share.split("&")] for share in text.split("|")]
    count = max(map(len, shares))
    if any(len(values) not in (1, count) or (len(values) > 1 and not all(values)) for values in shares):
        return []
    return ["|".join(values[place if len(values) > 1 else 0] for values in shares) for place in range(count)]


def _leading_number(shape: str) -> int:
    return int(coerce(shape.split(",")[0].lower().split("x")[0].strip(), _BATCH_SIZE))


def _with_limits(problem: BadValue, annotation: Any, unit: str) -> str:
    """Name the limits, and their unit, also where the value is no number at all."""
    if not hasattr(annotation, "__metadata__"):
        return str(problem)
    limits = annotation.__metadata__[0]
    between = f"between {limits.low} and {limits.high}{unit}"
    kind = "" if problem.expected.startswith("between") else f"{problem.expected} "
    return str(BadValue(f"{kind}{between}", problem.got))


def _name_of(filter: Any) -> str | None:
    if filter is None or isinstance(filter, str):
        return filter or None
    return getattr(filter, "__name__", None) or type(filter).__name__


def _read_map(text: str) -> tuple[MapEntry, ...]:
    """Read ``"B[result:x,color:color],C,[result:data]"``, and ``"light|heavy[result:data]"``."""
    entries: list[MapEntry] = []
    position = 0
    while position < len(text) or not entries:
        match = _MAP_ENTRY.match(text, position)
        if match is None or not (match.group(1) or match.group(2)):
            raise ConfigError(f"column {position + 1}: expected 'node[key there:key here]', in {text!r}")
        written, inside = match.groups()
        keys = [("result", "data")] if inside is None else [_read_pair(pair, text) for pair in inside.split(",")]
        entries.append(MapEntry(_read_sources(written, text), tuple(keys)))
        position = match.end()
    return tuple(entries)


def _read_sources(written: str, text: object) -> tuple[str, ...]:
    """Read ``light|heavy``: nodes of which one is read."""
    sources = tuple(name.strip() for name in written.split("|")) if written else ()
    if not all(sources) or len(set(sources)) < len(sources):
        raise ConfigError(f"expected the names of different nodes around '|', got {written!r} in {text!r}")
    return sources


def _read_pair(pair: str, text: str) -> tuple[str, str]:
    there, colon, here = (part.strip() for part in pair.partition(":"))
    if not (there and colon and here) or ":" in here:
        raise ConfigError(f"expected 'key there:key here', got {pair.strip()!r} in {text!r}")
    return there, here


def _read_map_table(table: Mapping[Any, Any]) -> tuple[MapEntry, ...]:
    """Read ``{"B": {"result": "x"}, "C": {"result": "data"}}``."""
    entries: list[MapEntry] = []
    for source, keys in table.items():
        pairs = tuple(keys.items()) if isinstance(keys, Mapping) else ()
        names = [key for pair in pairs for key in pair]
        if not isinstance(source, str) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"expected {{node: {{key there: key here}}}}, got {dict(table)!r}")
        entries.append(MapEntry(_read_sources(source, dict(table)), pairs))
    return tuple(entries)
