"""What is true of every error class, whoever raises it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from fastpipe import errors
from fastpipe.errors import (
    AT_KEY,
    BackendHung,
    ConfigError,
    GraphError,
    ItemErrors,
    MissingExtra,
    Mistake,
    PipeError,
    RequestTimeout,
    UnknownNode,
)

MISSING = ModuleNotFoundError("No module named 'torch'", name="torch")
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PipeError)]
WITH_CONSTRUCTORS: dict[type[PipeError], Callable[[], PipeError]] = {
    MissingExtra: lambda: MissingExtra("TorchTensor", "torch", MISSING),
    ItemErrors: lambda: ItemErrors({2: ValueError("bad"), 0: KeyError("worse")}),
    BackendHung: lambda: BackendHung("it hangs", "Thread 'fastpipe main#0': ..."),
    ConfigError: lambda: ConfigError(
        Mistake("must be at least 1", "resize", "max_h"),
        Mistake("no such file", None, "model", "a.onnx"),
        Mistake("must be text", None, "serve", ("inputs", "x", "key")),
        Mistake("what?", None, "serve", ("x", AT_KEY)),
    ),
    GraphError: lambda: GraphError("node 'resize': next: no node is named 'modle'"),
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle protocol {number}": lambda error, number=number: pickle.loads(pickle.dumps(error, number))
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def like(value: Any) -> Any:
    """Return what two equal errors have in common; exceptions themselves compare by identity."""
    if isinstance(value, BaseException):
        return type(value), str(value), like(value.args), like(vars(value))
    if isinstance(value, Mistake):
        return type(value), str(value), value.text, value.node, value.key, value.part
    if isinstance(value, dict):
        return {key: like(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [like(inner) for inner in value]
    return value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_copying_and_pickling(kind: type[PipeError], way: str) -> None:
    """Type, message, arguments, attributes and notes are those of the original; a process pool sends errors so."""
    error = WITH_CONSTRUCTORS.get(kind, lambda: kind("what went wrong"))()
    error.add_note("fastpipe: node 'main'")
    restored = WAYS[way](error)
    assert restored is not error
    assert like(restored) == like(error)


def test_what_an_error_knows_besides_its_message_survives() -> None:
    """The mistakes with their places, the stacks of a hang, the errors of items, the library that is missing."""
    config, hung, items, missing = (
        pickle.loads(pickle.dumps(WITH_CONSTRUCTORS[kind]()))
        for kind in (ConfigError, BackendHung, ItemErrors, MissingExtra)
    )
    assert [(each.node, each.key, each.part) for each in config.problems] == [
        ("resize", "max_h", None),
        (None, "model", "a.onnx"),
        (None, "serve", ("inputs", "x", "key")),
        (None, "serve", ("x", AT_KEY)),
    ]
    assert hung.stacks.startswith("Thread")
    assert [type(each) for each in items.errors.values()] == [ValueError, KeyError]
    assert (missing.name, missing.msg) == ("torch", str(missing))


def test_the_error_of_a_subclass_with_a_constructor_of_its_own_survives() -> None:
    """A user's subclass is restored without its constructor, which wants what only the raiser has."""
    restored = copy.copy(OfUsers(3, "cats"))
    assert (type(restored), str(restored), restored.count) == (OfUsers, "3 cats too many", 3)


class OfUsers(RequestTimeout):
    def __init__(self, count: int, what: str) -> None:
        super().__init__(f"{count} {what} too many")
        self.count = count


def test_a_restored_error_is_caught_as_the_original_is() -> None:
    """As the builtin that it also is, with the same text."""
    with pytest.raises(KeyError) as caught:
        raise pickle.loads(pickle.dumps(UnknownNode("the graph has several roots")))
    assert str(caught.value) == "the graph has several roots"


def test_a_library_that_is_there_and_does_not_load_is_not_called_missing() -> None:
    """An ImportError without a module's name comes from within the library: installing it again may not help."""
    broken = ImportError("initialization failed")
    assert str(MissingExtra("OnnxTensor", "cpu", broken)) == (
        "OnnxTensor cannot load what it needs (initialization failed); if it is not installed whole: "
        "pip install 'fastpipe-engine[cpu]'"
    )
    assert str(MissingExtra("TorchTensor", "torch", MISSING)) == (
        "TorchTensor needs torch: pip install 'fastpipe-engine[torch]'"
    )
