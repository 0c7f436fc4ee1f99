"""The bracket notation and the tree of steps behind it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpipe.config.notation import Sequential, Step, parse
from fastpipe.contract import Backend
from fastpipe.errors import ConfigError


def as_tuple(step: Step) -> tuple[Any, ...]:
    """What a step says, comparable."""
    children = tuple(as_tuple(child) for child in step.children)
    return step.backend, children, step.filter, step.arguments, dict(step.parameters)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", ("A", (), None, (), {})),
        ("package.module:Name-x", ("package.module:Name-x", (), None, (), {})),
        ("A[B]", ("A", (("B", (), None, (), {}),), None, (), {})),
        (" S [ A ,\n ( or ) B ] ", ("S", (("A", (), None, (), {}), ("B", (), "or", (), {})), None, (), {})),
        ("A()", ("A", (), None, (), {})),
        ("A(5, key = 0.5)", ("A", (), None, (5,), {"key": 0.5})),
        ("A(-1e-3, .5, +7, 1.)", ("A", (), None, (-1e-3, 0.5, 7, 1.0), {})),
        ("A(true, False, none)", ("A", (), None, (True, False, None), {})),
        ("A(models/m-1.onnx, two words)", ("A", (), None, ("models/m-1.onnx", "two words"), {})),
        ("A(4x3x224x224)", ("A", (), None, ("4x3x224x224",), {})),
        ("""A("a,b]", k='it\\'s "5"')""", ("A", (), None, ("a,b]",), {"k": 'it\'s "5"'})),
        ("A('5', 'true', '')", ("A", (), None, ("5", "true", ""), {})),
        ("(x)A(1)[B(2)]", ("A", (("B", (), None, (2,), {}),), "x", (1,), {})),
    ],
)
def test_the_notation_means_this_tree(text: str, expected: tuple[Any, ...]) -> None:
    """Each form of the notation becomes the tree it stands for."""
    assert as_tuple(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "the name of a backend"),
        ("A[", 3, "the name of a backend"),
        ("A[]", 3, "the name of a backend"),
        ("S[A,,B]", 5, "the name of a backend"),
        ("A[B", 2, "never closed"),
        ("S[A,B[C]", 2, "never closed"),
        ("A(1", 2, "never closed"),
        ("A]", 2, "found ']'"),
        ("A B", 3, "found 'B'"),
        ("A[B]C", 5, "nothing more"),
        ("A[B C]", 5, "',' or ']'"),
        ("(orA", 5, "')'"),
        ("()A", 2, "the name of a filter"),
        ("A(,)", 3, "a value"),
        ("A('x)", 3, "a value"),
        ("A(k=1, 2)", 8, "cannot follow"),
        ("A(k=1, k=2)", 8, "given twice"),
        ("A(1 [", 5, "',' or ')'"),
        ("A[" * 100, 129, "nested deeper"),
    ],
)
def test_a_mistake_is_pointed_at_by_column(text: str, column: int, words: str) -> None:
    """The error has the column, counted from 1, and says what was expected there."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"column {column}: ")
    assert words in str(caught.value)


names = st.from_regex(r"[A-Za-z_][\w.-]{0,6}", fullmatch=True)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)


NO_STEPS: st.SearchStrategy[Step] = st.nothing()


def steps_around(children: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    return st.builds(
        lambda name, inside, chosen, parameters: Step(name, *inside, filter=chosen, **parameters),
        names,
        st.just([]) if children is NO_STEPS else st.lists(children, max_size=3),
        st.none() | names,
        st.dictionaries(st.sampled_from(["a", "key", "k2"]), values, max_size=2),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.recursive(steps_around(NO_STEPS), steps_around, max_leaves=6))
def test_what_a_step_shows_parses_to_the_same_step(step: Step) -> None:
    """str(step) is the notation: parsed again it is the same tree, with the same values and types."""
    assert repr(as_tuple(parse(str(step)))) == repr(as_tuple(step))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="AS[](),='\"\\ or1.|:", max_size=20))
def test_any_text_is_a_step_or_a_config_error(text: str) -> None:
    """No text makes the parser fail in any other way; a step's own notation is that step."""
    with contextlib.suppress(ConfigError):
        step = parse(text)
        assert repr(as_tuple(parse(str(step)))) == repr(as_tuple(step))


def test_sequential_is_the_notation_without_the_string() -> None:
    """Names, text, classes and steps are taken as children."""

    class Own(Backend):
        pass

    step = Sequential("A", "B[C]", Own, Step("D", filter="or", key=1))
    assert as_tuple(step)[1:2] == (
        (as_tuple(parse("A")), as_tuple(parse("B[C]")), (Own, (), None, (), {}), as_tuple(parse("(or)D(key=1)"))),
    )
    assert str(step) == "Sequential[A,B[C],Own,(or)D(key=1)]"


def test_a_step_cannot_be_changed() -> None:
    """Neither a step's fields nor its parameters can be set."""
    step = Step("A", key=1)
    with pytest.raises(AttributeError):
        step.backend = "B"  # type: ignore[misc]
    with pytest.raises(TypeError):
        step.parameters["key"] = 2  # type: ignore[index]


@pytest.mark.parametrize(
    "make", [lambda: Step("A[B]"), lambda: Step(Step("A")), lambda: Sequential(), lambda: Step("A", filter=3)]
)  # type: ignore[arg-type]
def test_a_step_that_makes_no_sense_is_refused(make: Any) -> None:
    """What cannot be a step is refused where it is written."""
    with pytest.raises(ConfigError):
        make()
