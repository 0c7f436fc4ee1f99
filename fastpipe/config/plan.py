"""A node's tree of steps and its keys -> a plan: every backend found, every parameter checked and handed out.

A key of a node reaches every step whose constructor has a keyword by that name. Where several sources have a value
for the same parameter of a step, the first of these wins: the step's own, ``A(key=value)``; the node's ``"A::key"``;
the node's ``key``; the default ``"A::key"``; the default ``key``. Nothing is constructed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastpipe.config import registry
from fastpipe.config.notation import Step, as_step, parse_steps
from fastpipe.config.problems import Problems, shown_part
from fastpipe.config.values import BadValue, Parameter, coerce, constructor_parameters, own_copy
from fastpipe.contract import Backend, Child, Container, Request
from fastpipe.errors import AT_KEY, ConfigError, MissingExtra, Mistake, nearest
from fastpipe.filters import find_filter
from fastpipe.redaction import looks_secret

__all__ = ["StepPlan", "TreePlanner", "is_grafting", "resolve_filter"]

_GRAFTING = ("::backend", "::dependency")


def is_grafting(key: str) -> bool:
    """Whether a key says which backends stand inside another one."""
    return key.endswith(_GRAFTING)


@dataclass(frozen=True)
class StepPlan:
    """One step, checked: ready to be built, once per instance of its node."""

    name: str
    """As in errors: the name written, or the class's."""
    backend: type[Backend] | Backend
    parameters: Mapping[str, Any] = field(repr=False)  # a key may be among them
    """Keyword arguments of the constructor, each of the annotated type."""
    children: tuple[StepPlan, ...] = ()
    filter: Callable[[Request], Any] | None = None

    def steps(self) -> Iterator[StepPlan]:
        """Yield this step and all inside it."""
        yield self
        for child in self.children:
            yield from child.steps()

    @property
    def kind(self) -> type[Backend]:
        """The class of the backend."""
        return _class_of(self.backend)

    @property
    def thread_bound(self) -> bool:
        """Whether this step or one inside it must be built, run and closed on one thread."""
        return self.backend.thread_bound or any(child.thread_bound for child in self.children)

    @property
    def composes_sizes(self) -> bool:
        """Whether this step or one inside it composes batches, so that ``max`` and ``min`` are about its children."""
        composes = issubclass(self.kind, Container) and self.kind.composes_sizes
        return composes or any(child.composes_sizes for child in self.children)

    def build(self, *, composed: bool = False) -> Backend:
        """Construct the backend: first its children, the last one first, then itself.

        If a constructor raises, what was built before is closed, and the exception goes on as it is.

        Args:
            composed: it goes into a container that composes sizes.

        Raises:
            ConfigError: if it has a ``min_batch`` above 1, and nobody composes sizes for it.
        """
        backend = self._constructed()
        if backend.min_batch <= 1 or composed:
            return backend
        error = ConfigError(
            f"{self.name} takes {backend.min_batch} requests or more, and a batch may have one: it needs to stand "
            "inside Range[...], or be one of several with '&'"
        )
        _close_all([Child(self.name, backend)], error)
        raise error

    def _constructed(self) -> Backend:
        if isinstance(self.backend, Backend):
            return self.backend
        children: list[Child] = []
        try:
            composes = issubclass(self.backend, Container) and self.backend.composes_sizes
            for plan in reversed(self.children):
                children.insert(0, Child(plan.name, plan.build(composed=composes), plan.filter))
            # A backend may change a list it was given; instances must not see each other's changes.
            parameters = {key: own_copy(value) for key, value in self.parameters.items()}
            if issubclass(self.backend, Container):
                return self.backend(list(children), **parameters)
            return self.backend(**parameters)
        except BaseException as error:
            _close_all(children, error)
            raise


def _close_all(children: list[Child], reason: BaseException) -> None:
    for child in children:
        try:
            child.backend.close()
        except Exception as error:  # the reason for closing is what the user must see
            reason.add_note(f"closing {child.name!r} afterwards raised {type(error).__name__}: {error}")


@dataclass
class _Branch:
    """A step while it is being planned."""

    step: Step
    name: str
    backend: type[Backend] | Backend
    takes: dict[str, Parameter]
    children: list[_Branch]

    def walk(self) -> Iterator[_Branch]:
        yield self
        for child in self.children:
            yield from child.walk()

    def is_called(self, scope: str) -> bool:
        names = {self.name.lower(), _class_of(self.backend).__name__.lower()}
        return scope.lower() in names

    def takes_below(self, key: str) -> bool:
        return any(key in branch.takes for branch in self.walk())


@dataclass
class _Key:
    """A key of the node as it was written, and whom it is for."""

    written: str
    value: Any
    scope: str | None  # "A" of "A::key"
    parameter: str


@dataclass
class TreePlanner:
    """Plans one node: :meth:`read` finds the backends, :meth:`plan` gives each its parameters.

    ``taken`` and ``taken_defaults`` collect the keys, as written, that somebody takes; ``known`` what would be taken;
    ``badly_split`` the parameters that lack a value only because a ``"a|b"`` could not be divided.
    """

    node: str
    problems: Problems
    base_directory: Path | None = None
    taken: set[str] = field(default_factory=set)
    taken_defaults: set[str] = field(default_factory=set)
    badly_split: set[str] = field(default_factory=set)
    root: _Branch | None = None

    def read(self, backend: Any, own: Mapping[str, Any], defaults: Mapping[str, Any]) -> _Branch | None:
        """Find every backend of the tree that ``backend`` describes; None, with problems noted, if that fails."""
        try:
            step = as_step(backend)
            step = self._graft(step, own, self.taken, are_defaults=False)
            step = self._graft(step, defaults, self.taken_defaults, are_defaults=True)
        except ConfigError as error:
            self.problems.add_error(self.node, "backend", error)
            return None
        if step.filter is not None:
            text = f"{step}: in front of a whole node a filter is the key 'filter'"
            self.problems.add(self.node, "backend", text)
        self.root = self._branch(step)
        return self.root

    @property
    def known(self) -> list[str]:
        """Every key somebody in the tree takes, plain and scoped."""
        names: dict[str, None] = {}
        for branch in self.root.walk() if self.root else ():
            names.update(dict.fromkeys(branch.takes))
            names.update(dict.fromkeys(f"{branch.name}::{key}" for key in branch.takes))
        return list(names)

    def objects(self) -> list[tuple[str, Backend]]:
        """Return the steps that were given as objects, not classes, with their names."""
        branches = self.root.walk() if self.root else ()
        return [(branch.name, branch.backend) for branch in branches if isinstance(branch.backend, Backend)]

    def plan(self, own: Mapping[str, Any], defaults: Mapping[str, Any], injected: Mapping[str, Any]) -> StepPlan | None:
        """Return the plan of the tree that was read.

        Args:
            own: the node's keys that are not the scheduler's, and those of PASSED_ON.
            defaults: the same of every node.
            injected: parameters that reach whoever takes them and has no value from elsewhere.
        """
        if self.root is None:
            return None
        own_keys = [self._key(key, value) for key, value in own.items()]
        default_keys = [self._key(key, value) for key, value in defaults.items()]
        self._check_given_twice(own_keys)
        for keys, taken in ((own_keys, self.taken), (default_keys, self.taken_defaults)):
            for key in keys:
                if self._is_taken(key):
                    taken.add(key.written)
        # In the order of precedence, so that the first value found counts.
        layers = [
            [key for key in own_keys if key.scope is not None],
            [key for key in own_keys if key.scope is None],
            [key for key in default_keys if key.scope is not None],
            [key for key in default_keys if key.scope is None],
        ]
        return self._plan(self.root, layers, injected)

    # ---- finding the backends ----------------------------------------------------------------------------------

    def _graft(self, step: Step, keys: Mapping[str, Any], taken: set[str], *, are_defaults: bool) -> Step:
        """Put ``"A::backend": "B,C"`` into the tree: B and C become the children of every A; each key counts once.

        ``"A::dependency"`` is version 1 of torchpipe's word for it. Where A has children, a default gives way to them;
        the node's own key contradicts itself.
        """
        waiting = {key: value for key, value in keys.items() if is_grafting(key)}
        found = True
        while waiting and found:
            found = False
            for key, value in list(waiting.items()):
                name = key.rpartition("::")[0].lower()
                try:
                    inside = parse_steps(value) if isinstance(value, str) else (as_step(value),)
                    grafted, count = _with_children(step, name, inside, keep=are_defaults)
                except ConfigError as error:
                    raise ConfigError(*(_under(mistake, key) for mistake in error.problems)) from error
                if count:
                    step, found = grafted, True
                    del waiting[key]
                    taken.add(key)
        return step

    def _branch(self, step: Step) -> _Branch | None:
        children = [self._branch(child) for child in step.children]
        try:
            backend = registry.resolve(step.backend)
            takes = {} if isinstance(backend, Backend) else _takes(backend)
        except (ConfigError, MissingExtra) as error:
            self.problems.add_error(self.node, "backend", error, _written_name(step))
            return None
        is_container = issubclass(_class_of(backend), Container)
        if step.children and not is_container and _class_of(backend).surround is not None:
            # Torchpipe writes such a step around others: "SyncTensor[A]" for "S[A,SyncTensor]".
            return self._branch(step.behind_its_children())
        if step.children and not is_container:
            self._note(f"{step.name} takes no children, got {step}", step)
        elif step.children and isinstance(backend, Backend):
            self._note(f"{step.name} is an object that has its children already", step)
        elif is_container and not step.children and not isinstance(backend, Backend):
            self._note(f"{step.name} needs children, as in '{step.name}[A,B]'", step)
        planned = [child for child in children if child is not None]
        if len(planned) < len(children):
            return None
        return _Branch(step, step.name, backend, takes, planned)

    def _note(self, text: str, step: Step) -> None:
        self.problems.add(self.node, "backend", text, _written_name(step))

    # ---- giving each its parameters ----------------------------------------------------------------------------

    def _key(self, written: str, value: Any) -> _Key:
        """Tell ``"A::key"`` from ``"model::cache"``: a scope is the name of a step that takes the rest."""
        parts = written.split("::")
        for cut in range(1, len(parts)):
            scoped = _Key(written, value, "::".join(parts[:cut]), "_".join(parts[cut:]))
            if self._is_taken(scoped):
                return scoped
        return _Key(written, value, None, "_".join(parts))

    def _is_taken(self, key: _Key) -> bool:
        branches = self.root.walk() if self.root else ()
        return any(
            key.parameter in branch.takes for branch in branches if key.scope is None or branch.is_called(key.scope)
        )

    def _check_given_twice(self, keys: list[_Key]) -> None:
        seen: dict[tuple[str | None, str], str] = {}
        for key in keys:
            scope = None if key.scope is None else key.scope.lower()  # a step is called by its name in any case
            first = seen.setdefault((scope, key.parameter), key.written)
            if first != key.written:
                text = f"{first!r} and {key.written!r} are the same parameter"
                self.problems.add(self.node, key.written, text, AT_KEY)

    def _plan(self, branch: _Branch, layers: list[list[_Key]], injected: Mapping[str, Any]) -> StepPlan:
        parameters = self._own_parameters(branch)
        for layer in layers:
            for key in layer:
                if key.parameter not in branch.takes or key.parameter in parameters:
                    continue
                if key.scope is None or branch.is_called(key.scope):
                    self._set(parameters, branch, key.parameter, key.value, key.written)
        if not isinstance(branch.backend, Backend):
            for name, parameter in branch.takes.items():
                if name in parameters:
                    continue
                if name in injected:
                    self._set(parameters, branch, name, injected[name], name)
                elif parameter.required and name not in self.badly_split:
                    self.problems.add(self.node, name, f"{branch.name} needs it")
        return StepPlan(
            branch.name,
            branch.backend,
            MappingProxyType(parameters),
            tuple(
                self._plan(child, self._for_child(branch, index, layers), injected)
                for index, child in enumerate(branch.children)
            ),
            resolve_filter(branch.step.filter, self.node, self.problems, branch.step),
        )

    def _own_parameters(self, branch: _Branch) -> dict[str, Any]:
        """Return what the step itself says: ``A(5, key=value)``."""
        step = branch.step
        given = step.arguments or step.parameters
        if given and isinstance(branch.backend, Backend):
            self._note(f"{step.name} is an object: its parameters were given when it was made", step)
            return {}
        if len(step.arguments) > len(branch.takes):
            self._note(f"{step.name} takes {len(branch.takes)} parameters, got {step}", step)
        parameters: dict[str, Any] = {}
        for name, value in zip(branch.takes, step.arguments, strict=False):
            self._set(parameters, branch, name, value, "backend")
        for name, value in step.parameters.items():
            if name not in branch.takes:
                text = f"{step.name} takes no {name!r}{nearest(name, branch.takes)}"
                self.problems.add(self.node, "backend", text, name)
            elif name in parameters:
                self.problems.add(self.node, "backend", f"{step.name}: {name!r} is given twice", name)
            else:
                self._set(parameters, branch, name, value, "backend")
        return parameters

    def _set(self, parameters: dict[str, Any], branch: _Branch, name: str, value: Any, key: str) -> None:
        """Give a step a parameter; ``key`` is the node's, which is ``backend`` where the step itself says it."""
        try:
            parameters[name] = coerce(value, branch.takes[name].annotation, self.base_directory)
        except BadValue as problem:
            step = f"{branch.name}({name}): " if key == "backend" else ""
            if looks_secret(name):
                self.problems.add(self.node, key, f"{step}must be {problem.expected}; what was given is not shown")
            else:
                self.problems.add(self.node, key, f"{step}{problem}", shown_part(problem))
            parameters[name] = value  # nothing is built; it only keeps a weaker source from being tried

    def _for_child(self, branch: _Branch, index: int, layers: list[list[_Key]]) -> list[list[_Key]]:
        """Return the keys as the child at ``index`` sees them: ``"a|b"`` is one value per child."""
        seen = []
        for layer in layers:
            keys = []
            for key in layer:
                value = self._share(branch, index, key)
                if value is not None:
                    keys.append(value)
            seen.append(keys)
        return seen

    def _share(self, branch: _Branch, index: int, key: _Key) -> _Key | None:
        if key.scope is not None or not isinstance(key.value, str) or "|" not in key.value:
            return key
        takers = [number for number, child in enumerate(branch.children) if child.takes_below(key.parameter)]
        shares = [share.strip() for share in key.value.split("|")]
        if len(takers) < 2 and not _is_for_one(shares, takers, len(branch.children)):
            return key  # one child's own business: the text may well contain a "|"
        receivers = list(range(len(branch.children)))
        if len(shares) != len(receivers):
            receivers = takers
        if len(shares) != len(receivers):
            self.badly_split.add(key.parameter)
            is_secret = looks_secret(key.parameter)
            text = (
                f"{len(shares)} values between '|' for {len(branch.children)} children of {branch.name}, "
                f"{len(takers)} of which take it{'' if is_secret else f': {key.value!r}'}"
            )
            self.problems.add(self.node, key.written, text, None if is_secret else key.value)
            return None
        share = shares[receivers.index(index)] if index in receivers else ""
        return _Key(key.written, share, None, key.parameter) if share else None


def _is_for_one(shares: list[str], takers: list[int], children: int) -> bool:
    """Whether the only share that is not empty is that of the only child that takes it."""
    return len(shares) == children and [number for number, share in enumerate(shares) if share] == takers


def resolve_filter(
    filter: str | Callable[..., Any] | None, node: str, problems: Problems, step: Step | None = None
) -> Callable[[Request], Any] | None:
    """Return the filter itself: one registered by name, ``"module:Name"``, or a callable as it is.

    Args:
        filter: as it was written.
        node: in front of which, or in which, it stands.
        problems: notes what is wrong with it.
        step: in front of which it stands; None: of the node, whose key ``filter`` it is.
    """
    if filter is None or callable(filter):
        return filter
    if filter == "":  # as `next` and `map`: nothing is said
        return None
    key, inside = ("filter", "") if step is None else ("backend", f"{step}: ")
    if isinstance(filter, str):
        try:
            found = registry.import_object(filter) if ":" in filter else find_filter(filter)
        except ConfigError as error:
            if step is None:
                problems.add_error(node, key, error, filter, says_key=False)
            else:
                for mistake in error.problems:
                    problems.add(node, key, f"{inside}{mistake}", filter)
            return None
        if callable(found):
            return found
    else:
        found = filter
    shown = "" if step is None else f"{inside}filter: "
    problems.add(node, key, f"{shown}must be a name or a callable, got {found!r}")
    return None


def _under(mistake: Mistake, key: str) -> Mistake:
    """Return a mistake of a tree's notation with the key under which that part of the tree is written."""
    return Mistake(mistake.text, None, key, mistake.part, sentence=mistake)


def _written_name(step: Step) -> str | None:
    return step.backend if isinstance(step.backend, str) else None


def _takes(backend: type[Backend]) -> dict[str, Parameter]:
    return constructor_parameters(backend, skip_first=issubclass(backend, Container))


def _class_of(backend: type[Backend] | Backend) -> type[Backend]:
    return type(backend) if isinstance(backend, Backend) else backend


def _with_children(step: Step, name: str, inside: tuple[Step, ...], *, keep: bool) -> tuple[Step, int]:
    """Return ``step`` with ``inside`` as the children of every step called ``name``, and how many there were.

    Where such a step has children, it keeps them, or ConfigError is raised.
    """
    count = 0
    children = []
    for inner in step.children:
        grafted, found = _with_children(inner, name, inside, keep=keep)
        children.append(grafted)
        count += found
    if step.name.lower() == name and not (step.children and keep):
        if step.children:
            raise ConfigError(f"{step.name}::backend: {step.name} has children already, in {step}")
        return step.replaced(children=inside), count + 1
    is_kept = step.name.lower() == name
    return (step.replaced(children=tuple(children)) if count else step), count + is_kept
