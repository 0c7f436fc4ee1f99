"""The bracket notation ``"S[A,(or)B[C],D(5, key=x)]"``, and the small tree of steps it stands for.

    step       = ["(" filter ")"] name ["(" argument {"," argument} ")"] ["[" step {"," step} "]"]
    argument   = value | key "=" value
    value      = 'quoted' | "quoted" | number | true | false | none | bare words
    name       = letters, digits, "_", ".", ":", "-"       ("S" is Sequential, "module:Name" an import)

The notation is only sugar for ``Sequential("A", Step("B", "C", filter="or"), Step("D", time=5, key="x"))``; in Python
arguments always have names. Nothing else in fastpipe knows brackets, and nothing here knows which backends exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from fastpipe.errors import ConfigError, Mistake
from fastpipe.redaction import looks_secret, text_without

__all__ = ["Sequential", "Step", "as_step", "parse", "parse_steps"]

_NAME = re.compile(r"[\w.:-]+")
_KEY = re.compile(r"([^\W\d]\w*)\s*=")
_BARE = re.compile(r"[^,()\[\]=\"']+")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d{1,400}")  # Python refuses to read integers of more than some thousand digits
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}

# Deeper than any sensible pipe, and far from Python's own recursion limit, so that garbage is answered in words.
DEEPEST_NESTING = 64


@dataclass(frozen=True, eq=False, init=False)
class Step:
    """One backend in a tree of backends: which one, what is inside it, when it runs, and its own parameters.

    ``Step(A, B, C, filter="or", key=value)`` is ``"(or)A(key=value)[B,C]"``. A backend or a child is a name, a
    Backend subclass or instance, or a function of one item; a child may also be a Step or text in the notation.
    """

    backend: Any
    children: tuple[Step, ...]
    filter: str | Callable[..., Any] | None
    arguments: tuple[Any, ...]  # only from the notation, A(5): they bind to the constructor's parameters in order
    parameters: Mapping[str, Any]

    def __init__(
        self, backend: Any, /, *children: Any, filter: str | Callable[..., Any] | None = None, **parameters: Any
    ) -> None:
        if isinstance(backend, Step):
            raise ConfigError("Step(...) of a Step: use it as it is, or as a child")
        if isinstance(backend, str) and not _NAME.fullmatch(backend):
            raise ConfigError(f"Step({backend!r}): one name is expected here; children are further arguments")
        if not (filter is None or isinstance(filter, str) or callable(filter)):
            raise ConfigError(f"filter must be a name or a callable, got {filter!r}")
        self._fill(backend, tuple(as_step(child) for child in children), filter, (), parameters)

    def _fill(
        self,
        backend: Any,
        children: tuple[Step, ...],
        filter: str | Callable[..., Any] | None,
        arguments: tuple[Any, ...],
        parameters: Mapping[str, Any],
    ) -> None:
        for name, value in (
            ("backend", backend),
            ("children", children),
            ("filter", filter),
            ("arguments", arguments),
            ("parameters", MappingProxyType(dict(parameters))),
        ):
            object.__setattr__(self, name, value)  # frozen

    @property
    def name(self) -> str:
        """What the step is called in errors and in scoped keys: the name written, or the class's or function's."""
        if isinstance(self.backend, str):
            return self.backend
        return getattr(self.backend, "__name__", None) or type(self.backend).__name__

    def replaced(self, *, children: tuple[Step, ...]) -> Step:
        """Return the same step with other children."""
        return _step(self.backend, children, self.filter, self.arguments, self.parameters)

    def behind_its_children(self) -> Step:
        """Return the Sequential of the step's children and, behind them, the step itself."""
        last = _step(self.backend, (), None, self.arguments, self.parameters)
        return _step("Sequential", (*self.children, last), self.filter, (), {})

    def __str__(self) -> str:
        """The step in the notation; for what only Python can say, the name of the object stands in, for a key "..."."""
        text = ""
        if self.filter is not None:
            text = f"({self.filter if isinstance(self.filter, str) else _shown_name(self.filter)})"
        text += self.name
        written = [_shown(value) for value in self.arguments]
        written += [f"{key}={'...' if looks_secret(key) else _shown(value)}" for key, value in self.parameters.items()]
        if written:
            text += f"({', '.join(written)})"
        if self.children:
            text += f"[{','.join(map(str, self.children))}]"
        return text

    def __repr__(self) -> str:
        return f"<Step {self}>"


def _step(
    backend: Any,
    children: tuple[Step, ...],
    filter: str | Callable[..., Any] | None,
    arguments: tuple[Any, ...],
    parameters: Mapping[str, Any],
) -> Step:
    step = object.__new__(Step)
    step._fill(backend, children, filter, arguments, parameters)
    return step


def as_step(thing: Any) -> Step:
    """Return ``thing`` as a Step: a Step as it is, text parsed, anything else as the backend of a step."""
    if isinstance(thing, Step):
        return thing
    return parse(thing) if isinstance(thing, str) else Step(thing)


def Sequential(*steps: Any) -> Step:
    """Return the step that runs ``steps`` one after the other: ``"S[A,B]"`` without the string.

    Args:
        steps: names or text in the notation, Backend subclasses or instances, functions of one item, Steps.
    """
    if not steps:
        raise ConfigError("Sequential() needs at least one step")
    return Step("Sequential", *steps)


def parse(text: str) -> Step:
    """Read the bracket notation.

    Raises:
        ConfigError: with the column (1 is the first) and what was expected there.
    """
    parser = _Parser(text)
    step = parser.step(1)
    parser.skip_spaces()
    if parser.position < len(text):
        parser.fail("nothing more" if step.children else "'(', '[' or the end")
    return step


def parse_steps(text: str) -> tuple[Step, ...]:
    """Read steps with commas between them, as they stand in brackets: ``"A,(or)B[C]"``.

    Raises:
        ConfigError: as parse().
    """
    parser = _Parser(text)
    steps = [parser.step(1)]
    while parser.take(","):
        steps.append(parser.step(1))
    if parser.position < len(text):
        parser.fail("',' or the end")
    return tuple(steps)


class _Parser:
    """Recursive descent over one text; ``position`` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def fail(self, expected: str) -> NoReturn:
        found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
        self.fail_with(f"expected {expected}, found {found}")

    def fail_with(self, problem: str, position: int | None = None) -> NoReturn:
        column = (self.position if position is None else position) + 1
        raise ConfigError(Mistake(f"{problem} in {text_without(self.text)!r}", part=column))

    def skip_spaces(self) -> None:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1

    def take(self, character: str) -> bool:
        self.skip_spaces()
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        return True

    def name(self, what: str) -> str:
        self.skip_spaces()
        match = _NAME.match(self.text, self.position)
        if match is None:
            self.fail(what)
        self.position = match.end()
        return match.group()

    def step(self, depth: int) -> Step:
        if depth > DEEPEST_NESTING:
            self.fail_with(f"nested deeper than {DEEPEST_NESTING}")
        filter = None
        if self.take("("):
            filter = self.name("the name of a filter")
            if not self.take(")"):
                self.fail("')' after the filter")
        backend = self.name("the name of a backend")
        arguments, parameters = self.arguments() if self.take("(") else ((), {})
        children: list[Step] = []
        if self.take("["):
            opened_at = self.position - 1
            children.append(self.step(depth + 1))
            while not self.take("]"):
                if self.position == len(self.text):
                    self.fail_with("this '[' is never closed", opened_at)
                if not self.take(","):
                    self.fail("',' or ']'")
                children.append(self.step(depth + 1))
        return _step(backend, tuple(children), filter, arguments, parameters)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        opened_at = self.position - 1
        positional: list[Any] = []
        named: dict[str, Any] = {}
        if self.take(")"):
            return (), {}
        while True:
            self.skip_spaces()
            key = _KEY.match(self.text, self.position)
            if key is not None:
                if key.group(1) in named:
                    self.fail_with(f"{key.group(1)!r} is given twice")
                self.position = key.end()
                named[key.group(1)] = self.value()
            elif named:
                self.fail("'key=' (an argument without a name cannot follow one with a name)")
            else:
                positional.append(self.value())
            if self.take(")"):
                return tuple(positional), named
            if self.position == len(self.text):
                self.fail_with("this '(' is never closed", opened_at)
            if not self.take(","):
                self.fail("',' or ')'")

    def value(self) -> Any:
        self.skip_spaces()
        quoted = _QUOTED.match(self.text, self.position)
        if quoted is not None:
            self.position = quoted.end()
            inside = quoted.group(1) if quoted.group(1) is not None else quoted.group(2)
            return re.sub(r"\\(.)", r"\1", inside, flags=re.DOTALL)
        bare = _BARE.match(self.text, self.position)
        if bare is None or not bare.group().strip():
            self.fail("a value")
        self.position = bare.end()
        return _literal(bare.group().strip())


def _literal(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if _INTEGER.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return word


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value == value.strip() and _literal(value) is value
        return value if bare else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _shown_name(value)


def _shown_name(value: Any) -> str:
    return f"<{getattr(value, '__name__', None) or type(value).__name__}>"
