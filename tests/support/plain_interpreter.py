"""What a graph means, in plain Python: one node after the other, everything copied. The judge of the engine.

Written from the specification, not from the engine, and meant to be read beside docs/graphs.md. A graph is a mapping of
names to nodes, in file order. A node has ``next`` (a list), ``map`` (``{node: {key there: key here}}``; with ``"a|b"``
for a node, the first of them that has run is read), ``filter`` (a name, or a function of the request), ``restart``,
``restart_limit``, and its work: ``kind`` with any parameters, or ``steps``, a list of such, each with a ``filter``.
Kinds are ``"Jump"``, ``"MapReduce"``, and functions of one request.

Where branches race, the specification allows several ends. The walk here asks ``pick`` at each such place, and
:func:`outcomes` repeats it until every answer has been tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastpipe import Status

Request = dict[str, Any]
Nodes = Mapping[str, Mapping[str, Any]]
Kinds = Mapping[str, Callable[[Request, Mapping[str, Any], str], None]]
"""Kind -> what it does to one request, given its parameters and the name of the node whose instances run it."""

TRIES = 256  # a graph with more orders of events than that is not worth looking at


class Failed(NamedTuple):
    """An exception that the specification asks for: the name of its type, and words that it and its notes have."""

    kind: str
    words: tuple[str, ...]


class _Fails(Exception):
    def __init__(self, kind: str, *words: str) -> None:
        self.failed = Failed(kind, words)


class TooManyOutcomes(Exception):
    """There are more orders of events than are worth trying."""


def outcomes(
    nodes: Nodes,
    kinds: Kinds,
    request: Request,
    entry: str | None = None,
    obeyed: Sequence[str] = (),
    *,
    lets_go: bool = False,
) -> tuple[list[Request | Failed], Counter[str] | None]:
    """Return every end that is allowed, and how often each node runs; None instead of that if branches may be dropped.

    An end is what the caller's dict is afterwards, or a failure (which takes only an old answer out of that dict).
    ``entry``: where the call says that the request enters. ``obeyed``: the pipe's ``obey_request_keys``. ``lets_go``: a
    request may end without a result because a step gave none.
    """
    ends: list[Request | Failed] = []
    script: list[list[int]] = []  # for each place where there is a choice: [chosen, out of how many]
    for _ in range(TRIES):
        place = 0

        def pick(count: int) -> int:
            nonlocal place
            if place == len(script):
                script.append([0, count])
            place += 1
            return script[place - 1][0]

        walk = _Walk(nodes, kinds, pick, obeyed, lets_go)
        try:
            end: Request | Failed = walk.whole(request, entry)
        except _Fails as error:
            end = error.failed
        if end not in ends:
            ends.append(end)
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return ends, walk.ran if walk.has_run_all else None
        script[-1][0] += 1
    raise TooManyOutcomes


def written_back(request: Request, answer: Request) -> Request:
    """What is left of a part's dict when its answer is written into it: extra keys stay, an old result does not."""
    whole = {**request, **answer}
    if "result" not in answer:
        whole.pop("result", None)
    return whole


def roots_of(nodes: Nodes) -> list[str]:
    """Where requests enter by themselves."""
    jumped_to = {step.get("jump") for node in nodes.values() for step in node.get("steps", [node])}
    followers = {name for node in nodes.values() for name in node.get("next", ())}
    return [name for name in nodes if name not in followers | jumped_to]


def reached_from(nodes: Nodes, entry: str) -> list[str]:
    """What a request may come to that enters there, in file order."""
    found = {entry}
    for _ in nodes:
        found.update(target for name in list(found) for target in nodes[name].get("next", ()))
    return [name for name in nodes if name in found]


def leaves_of(nodes: Nodes, entry: str) -> list[str]:
    """The ends of the ways from there."""
    return [name for name in reached_from(nodes, entry) if not nodes[name].get("next")]


def names_leaf(nodes: Nodes) -> bool:
    """Whether the key ``answered_by`` is the pipe's."""
    return any(len(leaves_of(nodes, root)) > 1 for root in roots_of(nodes))


WITHOUT = "who left it without a result"
"""A key of requests within the interpreter: a step gave none, and no filter has let the request go so."""


class _Walk:
    def __init__(
        self, nodes: Nodes, kinds: Kinds, pick: Callable[[int], int], obeyed: Sequence[str], lets_go: bool
    ) -> None:
        self.nodes, self.kinds, self.pick, self.lets_go = nodes, kinds, pick, lets_go
        self.obeyed, self.ignored = obeyed, {"restart", "request_size"} - set(obeyed)
        self.ran: Counter[str] = Counter()
        self.has_run_all = True

    def whole(self, request: Request, entry: str | None) -> Request:
        """Run a caller's request: it enters without an old answer where the call says, or at the root that it names."""
        roots = roots_of(self.nodes)
        name = entry or request.get("node_name", roots[0] if len(roots) == 1 else None)
        if name not in self.nodes:
            raise _Fails("UnknownNode", *map(repr, [] if entry else roots))
        if not entry and name not in roots and "node_name" not in self.obeyed:
            raise _Fails("UnknownNode", f"entry={name!r}", "obey_request_keys")
        old = {"result", "answered_by"} if names_leaf(self.nodes) else {"result"}
        left = {key: value for key, value in request.items() if key not in old}
        answer = self.rounds(name, {key: value for key, value in left.items() if key not in self.ignored})
        return left | {key: value for key, value in answer.items() if key not in ("data", "node_name", WITHOUT)}

    def rounds(self, name: str, request: Request, *, is_part: bool = False) -> Request:
        """Enter at a node, and again as long as ``restart`` says so."""
        entered: Counter[str] = Counter()
        default = "Run"
        while True:
            request, leaf, target = self.one_round(name, request, default, is_part)
            if "restart" in request:
                target = request.pop("restart")
                if "result" not in request:
                    target = None
            if target is None:
                return {**request, "answered_by": leaf} if leaf else request
            request.pop(WITHOUT, None)
            if entered[target] == self.nodes[target].get("restart_limit", 1000):
                raise _Fails("RestartLimit", repr(target), str(entered[target]))
            entered[target] += 1
            name, default = target, "swap"

    def one_round(
        self, entry: str, request: Request, default: str, is_part: bool
    ) -> tuple[Request, str | None, str | None]:
        """Walk from ``entry`` to the leaves; return the answer, of several leaves the one that gave it, ``restart``."""
        reached = reached_from(self.nodes, entry)
        parents = {name: [other for other in reached if name in self.nodes[other].get("next", ())] for name in reached}
        leaves = leaves_of(self.nodes, entry)
        left: dict[str, Request] = {}  # as the requests were when they left their nodes
        ran: set[str] = set()
        ends: list[tuple[Request, str | None] | _Fails] = []
        leaves_without: set[str] = set()  # those that ran, and gave no result
        waiting = list(reached)
        # What lies behind an end never has all its parents. Ends that remain lie beside each other: they race.
        while ready := [name for name in waiting if all(parent in left for parent in parents[name])]:
            name = ready[0]
            waiting.remove(name)
            node = self.nodes[name]
            try:
                if name == entry:
                    here, usual = dict(request), default
                elif node.get("map"):
                    here, usual = self.mapped(name, left, ran), "Run"
                else:
                    here, usual = dict(left[parents[name][0]]), "swap"
                status = self.decide(node.get("filter", usual), here, f"node {name!r}")
                if status is Status.Run:
                    self.work(name, here)
                    ran.add(name)
                    if name in leaves and here.get(WITHOUT):
                        leaves_without.add(name)
                elif status is Status.Break and node.get("filter", usual) == "swap":
                    self.check(here, is_part)
                elif status is Status.Break:
                    here.pop(WITHOUT, None)
            except _Fails as error:
                ends.append(error)
                continue
            if status is Status.Break:
                ends.append((here, name if len(leaves) > 1 else None))
                continue
            for hidden in self.hidden(name, status, parents):
                left[hidden] = dict(here)
                if hidden != name:
                    waiting.remove(hidden)
        if ends:
            self.has_run_all = False
            end = ends[self.pick(len(ends)) if len(ends) > 1 else 0]
            if isinstance(end, _Fails):
                raise end
            return *end, None
        restarts = [self.nodes[leaf]["restart"] for leaf in leaves if self.nodes[leaf].get("restart")]
        answering = [leaf for leaf in leaves if leaf in ran]
        if len(leaves) == 1 or (restarts and not answering):
            answering = leaves
        answer = {key: value for leaf in answering for key, value in left[leaf].items()}
        answer[WITHOUT] = bool(leaves_without)
        self.check(answer, is_part)
        named = [leaf for leaf in answering if "result" in left[leaf]] or answering
        last = named[-1] if len(leaves) > 1 and named else None
        return answer, last, restarts[-1] if restarts else None

    def check(self, request: Request, is_part: bool) -> None:
        """Fail a request that ends here without a result because a step gave none; a part's whole goes on with that."""
        if request.get(WITHOUT) and "result" not in request and not is_part and not self.lets_go:
            raise _Fails("NoResult", "gave no result")

    def hidden(self, name: str, status: Status, parents: Mapping[str, list[str]]) -> list[str]:
        """The nodes that a request leaves together with ``name``, which comes first."""
        inside = [name]
        if status is Status.SerialSkip:
            while len(following := self.nodes[inside[-1]].get("next", ())) == 1 and len(parents[following[0]]) == 1:
                inside.append(following[0])
        elif status is Status.SubGraphSkip:
            for _ in parents:
                inside += [n for n in parents if n not in inside and parents[n] and set(parents[n]) <= set(inside)]
        return inside

    def mapped(self, name: str, left: Mapping[str, Request], ran: set[str]) -> Request:
        """The new dict that a node's ``map`` makes; the context comes along unless it is named."""
        made: Request = {}
        for written, keys in self.nodes[name]["map"].items():
            source = written
            if "|" in written:
                source = next((other for other in written.split("|") if other in ran), "")
            if source not in left:
                reads = f"map of node {name!r} reads {written!r}"
                raise _Fails("KeyError", reads, "of which none ran" if "|" in written else "which did not run")
            for there, here in keys.items():
                if there not in left[source]:
                    raise _Fails("KeyError", f"map of node {name!r} reads {there!r} from {source!r}")
                made[here] = left[source][there]
            if "context" in left[source] and "context" not in keys:
                made.setdefault("context", left[source]["context"])
        return made

    def decide(self, chosen: Any, request: Request, where: str) -> Status:
        """Ask a filter; it may change the request."""
        if callable(chosen):
            try:
                status = chosen(request)
            except ValueError as error:
                raise _Fails("ValueError", str(error), where) from None
            if not isinstance(status, Status):
                raise _Fails("BackendError", where)
        elif chosen == "swap":
            status = Status.Run if "result" in request else Status.Break
            if "result" in request:
                request["data"] = request.pop("result")
        elif chosen in ("or", "else"):
            status = Status.Skip if "result" in request else Status.Run
        elif chosen in ("Break", "break"):
            request.pop("result", None)
            status = Status.Break
        else:
            names = {"run": "Run", "Continue": "Run", "skip": "Skip", "error": "Error"}
            names |= {"serial_skip": "SerialSkip", "subgraph_skip": "SubGraphSkip"}
            status = Status[names.get(chosen, chosen)]
        if status is Status.Error:
            raise _Fails("BackendError", where)
        return status

    def work(self, name: str, request: Request) -> None:
        """Run a node, or its steps: between them is a ``swap``; a request that breaks or skips more leaves."""
        node = self.nodes[name.partition(".")[0]]
        steps = node.get("steps", [{**node, "filter": "Run"}])
        has_queue = "steps" in node or node["kind"] not in ("Jump", "MapReduce")
        if has_queue and node.get("max", 1) > 1 and node.get("bucket", "data") not in request:
            raise _Fails("KeyError", repr(node["bucket"]), f"node {name!r}")
        self.ran[name] += 1
        request.pop(WITHOUT, None)
        for index, step in enumerate(steps):
            chosen = step.get("filter", "swap" if index else "Run")
            status = self.decide(chosen, request, f"node {name!r}")
            if status is Status.Run:
                request[WITHOUT] = self.step(name, step, request) and "result" not in request
            elif status is Status.Skip:
                if index == len(steps) - 1:
                    request.pop(WITHOUT, None)
            else:
                if chosen != "swap":
                    request.pop(WITHOUT, None)
                return

    def step(self, name: str, step: Mapping[str, Any], request: Request) -> bool:
        """Run one step; False: if there is no result now, a filter inside of it would have it so."""
        if step["kind"] == "Jump":
            part = {key: value for key, value in request.items() if key not in ("context", "node_name", WITHOUT)}
            answer = written_back(part, self.rounds(step["jump"], part, is_part=True))
            is_blamed = bool(answer.pop(WITHOUT, False))
            if "result" not in answer:
                request.pop("result", None)
            request.update(answer)
            return is_blamed
        if step["kind"] == "MapReduce":
            return self.map_reduce(step, request)
        else:
            try:
                self.kinds[step["kind"]](request, step, name.partition(".")[0])
            except ValueError as error:
                raise _Fails("ValueError", str(error), f"node {name!r}") from None
            return True

    def map_reduce(self, step: Mapping[str, Any], request: Request) -> bool:
        keys = step.get("split", ["data"])
        for key in keys or ["data"]:
            if not isinstance(request.get(key), list):
                raise _Fails("TypeError", repr(key))
        columns = [request[key] for key in keys]
        if len(set(map(len, columns))) > 1:
            raise _Fails("ValueError", "lengths differ")
        parts = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)] if keys else request["data"]
        if not all(isinstance(part, dict) for part in parts):
            raise _Fails("TypeError")
        if not keys:  # they may be a caller's
            parts = [{k: v for k, v in part.items() if k not in {"result", *self.ignored}} for part in parts]
        answers: list[Request | _Fails] = []
        for part in parts:
            try:
                answers.append(written_back(part, self.rounds(step["jump"], dict(part), is_part=True)))
            except _Fails as error:
                answers.append(error)
        failures = [answer for answer in answers if isinstance(answer, _Fails)]
        silent = [
            answer.pop(WITHOUT, False) for answer in answers if isinstance(answer, dict) and "result" not in answer
        ]
        for answer in answers:
            if isinstance(answer, dict):
                answer.pop(WITHOUT, None)
        on_error = step.get("on_error", "fail")
        if failures and on_error == "fail":
            raise failures[self.pick(len(failures)) if len(failures) > 1 else 0]
        if on_error == "skip":
            answers = [answer for answer in answers if not isinstance(answer, _Fails)]
        for key in step.get("merge", ["result"]):
            if on_error != "none" and any(key not in answer for answer in answers if isinstance(answer, dict)):
                raise _Fails("KeyError", f"gathers {key!r}")
            request[key] = [answer.get(key) if isinstance(answer, dict) else None for answer in answers]
        return any(silent) or not silent
