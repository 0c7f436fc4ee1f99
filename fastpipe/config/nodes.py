"""Tables -> nodes: each key read, each backend planned, logical and hidden nodes added, all problems noted.

What a key means is said in ``keys``; what a node's parameters mean to its backends is the business of ``plan``; whether
the nodes make a graph, that of ``wiring``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastpipe.config import registry
from fastpipe.config.described import NodeConfig
from fastpipe.config.hints import hint_of, misspelt_attributes
from fastpipe.config.key import Key
from fastpipe.config.keys import NODE_KEYS, default_settings
from fastpipe.config.plan import StepPlan, TreePlanner, is_grafting, resolve_filter
from fastpipe.config.problems import NO_BACKEND, Problems
from fastpipe.config.sub_graphs import is_sub_graph, proxied
from fastpipe.config.values import BadValue
from fastpipe.errors import AT_KEY, ConfigError, Mistake, nearest
from fastpipe.redaction import looks_secret

__all__ = ["ONE_NODE_NAME", "NodeReader"]

ONE_NODE_NAME = "main"
_FORBIDDEN_IN_NAMES = re.compile(r"[\s,\[\]:|]")  # they would make `next` and `map` ambiguous
_ALSO_DIVIDED = ("model",)  # beside the scheduler's keys in which "&" separates the values of several backends


@dataclass(frozen=True)
class _Planned:
    """A node's plan, or that of one of several backends of it, and the keys that are read with it."""

    plan: StepPlan | None
    instance_num: int
    smallest: int | None
    largest: int | None


class NodeReader:
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
        self.known: dict[str, None] = {}  # what the backends of all nodes take
        self.taken_defaults: set[str] = set(NODE_KEYS)
        self.users: dict[int, str] = {}  # id of a Backend object given as such -> the node that uses it

    def read(self, changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> tuple[NodeConfig, ...]:
        """Return the nodes; ``changes``: by node, keys that win over what is written."""
        self.defaults = self._with_text_keys(None, self.defaults)
        self.tables = {name: self._with_text_keys(name, table) for name, table in self.tables.items()}
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
            self.problems.add_general("configuration", what + (hint or odd))
            return ()
        for name, keys in changes.items():
            self.tables[name] = {**self.tables[name], **self._with_text_keys(name, keys)}
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

    def _with_text_keys(self, node: str | None, table: Mapping[Any, Any]) -> dict[str, Any]:
        """Return a table without keys that are no text, which are noted; ``node`` None: of the defaults."""
        for key in table:
            if not isinstance(key, str):
                text = f"keys are text, got {key!r}"
                if node is None:
                    self.problems.add_general("defaults", text)
                else:
                    self.problems.add(node, None, text)
        return {key: value for key, value in table.items() if isinstance(key, str)}

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
            self.problems.add(name, None, problem)
        return not problem

    # ---- one node ----------------------------------------------------------------------------------------------

    def _node(self, name: str, table: dict[str, Any]) -> NodeConfig:
        keys = {**self.defaults, **table}
        division = self._division(name, keys)
        if division is None:
            planned = _Planned(None, 1, None, None)
            self.planners[name] = TreePlanner(name, self.problems)  # nothing is known of what it takes
        elif division:
            planned = self._composite(name, table, division)
        else:
            planned = self._planned(name, table, self.defaults)
            if planned.plan is not None and planned.plan.composes_sizes:
                planned = replace(planned, largest=None)
        fields, settings = self._values(name, keys, planned.largest)
        if planned.plan is not None and is_sub_graph(planned.plan) and settings["cache"] is not None:
            settings["cache"] = None  # as a default it is for the other nodes
            if "cache" in table:
                text = (
                    f"{planned.plan.name} is a node whose work others do: give those a cache, or make it a step, "
                    f"S[{planned.plan.name}]"
                )
                self.problems.add(name, "cache", text)
        if planned.plan is not None and is_sub_graph(planned.plan) and settings["state_of"] is not None:
            text = f"{planned.plan.name} is a node whose work others do: give those the key"
            self.problems.add(name, "state_of", text)
        return NodeConfig(
            name,
            planned.plan,
            instance_num=planned.instance_num,
            max=planned.largest,
            settings=settings,
            **fields,
        )

    def _values(
        self, name: str, keys: Mapping[str, Any], largest: int | None, *, is_logical: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the keys say that have nothing to do with backends: fields of NodeConfig, and its settings."""
        fields: dict[str, Any] = {}
        settings = default_settings(NODE_KEYS)
        for key in NODE_KEYS.values():
            if key.is_read_with_backend or (is_logical and not key.is_own_of_logical):
                continue
            if key.name == "filter":  # a name of the registry
                fields["filter"] = resolve_filter(keys.get("filter"), name, self.problems)
                fields["filter_name"] = _name_of(keys.get("filter"))
                continue
            value, is_readable = self._value(name, key, keys)
            if key.check is not None:
                for other, text in key.check(value if is_readable else None, keys, largest):
                    self.problems.add(name, other, text)
            (settings if key.field is None else fields)[key.field or key.name] = value
        return fields, settings

    def _value(self, name: str, key: Key, keys: Mapping[str, Any]) -> tuple[Any, bool]:
        """Return the value of a key; if it cannot be read, its default, and False."""
        try:
            return key.value(keys), True
        except BadValue as problem:
            self.problems.add_bad(name, key.name, problem)
        except ConfigError as error:
            self.problems.add_error(name, key.name, error)
        return key.default, False

    def _planned(self, name: str, table: dict[str, Any], defaults: dict[str, Any], member: str = "") -> _Planned:
        """Return the plan of a node, or of one of several backends of it, with the keys that are read beside it."""
        keys = {**defaults, **table}
        instance_num, _ = self._value(name, NODE_KEYS["instance_num"], keys)
        size, _ = self._value(name, NODE_KEYS["max"], keys)
        smallest, _ = self._value(name, NODE_KEYS["min"], keys)
        if size is not None and smallest is not None and smallest > size:
            self.problems.add(name, "min", f"must be at most max, which is {size}, got {smallest}{member}")
        planner = self.planners[name] = TreePlanner(name, self.problems, self.base_directory)
        plan = self._plan(planner, table, defaults, instance_num)
        if plan is not None:
            remarks = [remark for step in plan.steps() for remark in misspelt_attributes(step.kind)]
            self.warnings += [Mistake(remark, name, "backend") for remark in dict.fromkeys(remarks)]
            size = self._checked_size(name, plan, size, is_own="max" in table)
            instance_num = self._checked_objects(planner, instance_num, is_own="instance_num" in table)
            is_minded = member or plan.composes_sizes or "min" in planner.known
            if smallest is not None and smallest > 1 and "min" in table and not is_minded:
                self.problems.add(name, "min", f"{plan.name} takes any number of requests from 1, got {smallest}")
        return _Planned(plan, instance_num, smallest, size)

    def _division(self, name: str, keys: dict[str, Any]) -> dict[str, list[str]] | None:
        """Return the values between ``&``, by key; None, with problems noted, if they cannot be told apart."""
        division: dict[str, list[str]] = {}
        for key, value in keys.items():
            if _is_divided(key.rpartition("::")[2]) and isinstance(value, str) and "&" in value:
                values = _between_ampersands(value)
                if not values:
                    text = f"must be one value for each backend between '&', got {value!r}"
                    self.problems.add(name, key, text, value)
                    return None
                division[key] = values
        if len({len(values) for values in division.values()}) > 1:
            listed = ", ".join(f"{key} has {len(values)} values" for key, values in division.items())
            text = f"the lists with '&' need one value for each backend: {listed}"
            self.problems.note(Mistake(text, name, next(iter(division)), sentence=f"node {name!r}: {text}"))
            return None
        return division

    def _composite(self, name: str, table: dict[str, Any], division: dict[str, list[str]]) -> _Planned:
        """Plan a node each of whose instances is made of several backends; their batches are composed."""
        total = len(next(iter(division.values())))
        members = []
        for index in range(total):
            own, of_all = (
                {key: division[key][index] if key in division else value for key, value in keys.items()}
                for keys in (table, self.defaults)
            )
            members.append(self._planned(name, own, of_all, f" ({index + 1} of {total} between '&')"))
            for given, _ in self.planners[name].objects():
                text = f"'&' needs {total} of {given}, and this is one; give its class instead"
                self.problems.add(name, "backend", text)
        counts = [member.instance_num for member in members]
        if len(set(counts)) > 1:
            got = "&".join(map(str, counts))
            text = f"each instance has one of each backend, so all are equal, got {got!r}"
            self.problems.add(name, "instance_num", text)
        plans = [member.plan for member in members if member.plan is not None]
        if len(plans) < total:
            return _Planned(None, counts[0], None, None)
        limits = tuple((member.smallest, member.largest) for member in members)
        children = tuple(replace(plan, name=f"{plan.name} {index} of {total}") for index, plan in enumerate(plans, 1))
        plan = StepPlan(plans[0].name, registry.composer(), MappingProxyType({"limits": limits}), children)
        return _Planned(plan, counts[0], None, None)

    def _logical_node(self, name: str, table: dict[str, Any]) -> NodeConfig | None:
        shares = name.partition(".")[0]
        if shares not in self.tables:
            near = nearest(shares, self.planners)
            self.problems.add(name, None, f"there is no node {shares!r} whose instances it could share{near}")
            return None
        self._check_keys_of_logical(name, table, shares)
        keys = {**self.defaults, **table}
        fields, _ = self._values(name, keys, None, is_logical=True)
        return NodeConfig(
            name,
            None,
            shares,
            **fields,
        )

    def _check_keys_of_logical(self, name: str, table: dict[str, Any], shares: str) -> None:
        planner = self.planners.get(shares)
        if planner is not None and planner.root is not None:
            known = [*NODE_KEYS, *planner.known]
            for key in table:
                if key not in known and key.replace("::", "_") not in known:
                    hint = hint_of(key, planner.known, at_node=True)
                    self.problems.add(name, key, f"nobody takes {key!r}{hint}", AT_KEY)
        if table.get("backend") is not None:
            text = (
                f"it shares the instances of {shares!r} and runs no backend of its own: take the key out, or give the "
                "node a name without a dot"
            )
            self.problems.add(name, "backend", text)
        ignored = [key for key in table if not _is_own_of_logical(key) and key != "backend"]
        if ignored:
            given = ", ".join(map(repr, ignored))
            remark = f"it shares the instances of {shares!r}; its own {given} is ignored"
            self.warnings.append(Mistake(remark, name, ignored[0], AT_KEY))

    def _plan(
        self, planner: TreePlanner, table: dict[str, Any], defaults: dict[str, Any], instance_num: int
    ) -> StepPlan | None:
        backend = table.get("backend", defaults.get("backend"))
        if backend is None or backend == "":
            close = next((key for key in table if nearest(key, ["backend"])), None)
            hint = "" if close is None else f"; is {close!r} meant to be it?"
            self.problems.add(planner.node, None, f"{NO_BACKEND}{hint}")
            return None
        if planner.read(backend, table, defaults) is None:
            return None
        plan = planner.plan(
            {key: value for key, value in table.items() if _is_for_backends(key)},
            {key: value for key, value in defaults.items() if _is_for_backends(key)},
            {"node_name": planner.node, "instance_num": instance_num},
        )
        self._check_all_taken(planner, table)
        self.known.update(dict.fromkeys(planner.known))
        self.taken_defaults |= planner.taken_defaults
        return plan

    def _check_all_taken(self, planner: TreePlanner, table: dict[str, Any]) -> None:
        known = [*NODE_KEYS, *planner.known]
        for key in table:
            if key not in NODE_KEYS and key not in planner.taken:
                hint = hint_of(key, planner.known, at_node=True)
                meant = "" if "backend" in table else nearest(planner.node, known)
                if not hint and meant:  # a table beside the keys of an only node, whose name is misspelt
                    hint = f"; {planner.node!r} is a table of no key, and so counts as a node{meant}"
                elif not hint and isinstance(table[key], Mapping):
                    hint = f'; a node named {planner.node}.{key} is written ["{planner.node}.{key}"] in a TOML file'
                self.problems.add(planner.node, key, f"nobody takes {key!r}{hint}", AT_KEY)

    def _checked_size(self, name: str, plan: StepPlan, size: int | None, *, is_own: bool) -> int | None:
        """Hold ``max`` against what the backend's class says; a default that is too large means as many as it takes."""
        limit = plan.backend.max_batch
        if size is None or not isinstance(limit, int) or size <= limit:
            return size
        if is_own:
            self.problems.add(name, "max", f"{plan.name} takes at most {limit} at once, got {size}")
        return limit

    def _checked_objects(self, planner: TreePlanner, instance_num: int, *, is_own: bool) -> int:
        """Refuse to run one object twice at the same time."""
        for kind, given in planner.objects():
            user = self.users.setdefault(id(given), planner.node)
            if user != planner.node:
                text = f"node {user!r} already uses this {kind}; give the class instead"
                self.problems.add(planner.node, "backend", text)
            if instance_num > 1 and is_own:
                text = (
                    f"must be 1 where the backend is an object, got {instance_num}: one {kind} runs one batch at a "
                    "time; give its class instead"
                )
                self.problems.add(planner.node, "instance_num", text)
        return 1 if planner.objects() else instance_num

    def _check_defaults(self) -> None:
        if any(planner.root is None for planner in self.planners.values()) or not self.planners:
            return  # whoever would take them may be the one that could not be read
        for key in self.defaults:
            if key not in self.taken_defaults:
                text = f"no node takes {key!r}{hint_of(key, self.known, at_node=False)}"
                self.problems.add_general("defaults", text, key)


def _is_own_of_logical(name: str) -> bool:
    return name in NODE_KEYS and NODE_KEYS[name].is_own_of_logical


def _is_divided(name: str) -> bool:
    return name in _ALSO_DIVIDED or (name in NODE_KEYS and NODE_KEYS[name].is_divided)


def _is_for_backends(key: str) -> bool:
    return (key not in NODE_KEYS or NODE_KEYS[key].is_passed_on) and not is_grafting(key)


def _between_ampersands(text: str) -> list[str]:
    """Return ``"x|b1&b4"`` as ``["x|b1", "x|b4"]``: a share without ``&`` is everybody's. Empty if it is malformed."""
    shares = [[value.strip() for value in share.split("&")] for share in text.split("|")]
    count = max(map(len, shares))
    if any(len(values) not in (1, count) or (len(values) > 1 and not all(values)) for values in shares):
        return []
    return ["|".join(values[index if len(values) > 1 else 0] for values in shares) for index in range(count)]


def _name_of(filter: Any) -> str | None:
    if filter is None or isinstance(filter, str):
        return filter or None
    return getattr(filter, "__name__", None) or type(filter).__name__
