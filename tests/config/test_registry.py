"""Names of backends, and what may stand where a name is expected."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

from fastpipe import Pipe
from fastpipe.config import registry
from fastpipe.contract import Backend, PerRequest, Request
from fastpipe.errors import ConfigError, ItemErrors, MissingExtra
from fastpipe.functions import backend
from fastpipe.streaming import Streaming


@pytest.fixture(autouse=True)
def unchanged_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(registry, "_entry_points", None)


class Half(Backend):
    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"] / 2


def double(data: float) -> float:
    return data * 2


def as_class(thing: Any) -> type[Backend]:
    found = registry.resolve(thing)
    assert isinstance(found, type)
    return found


def test_a_built_in_is_found_in_any_case() -> None:
    """Names of the box, and their aliases, do not depend on case."""
    assert registry.find("identity") is registry.find("IDENTITY") is registry.find("PyIdentity")
    assert registry.find("s") is registry.find("Sequential")
    assert as_class("RuntimeError").__name__ == "RaiseRuntimeError"


def test_looking_up_a_name_imports_nothing_else() -> None:
    """Listing names imports no backend; finding one imports its module only."""
    code = (
        "import sys; from fastpipe.config import registry; "
        "loaded = lambda: {m for m in sys.modules if m.startswith('fastpipe.backends.')}; "
        "before = loaded(); registry.known_names(); listed = loaded(); registry.find('Identity'); "
        "print(listed - before, loaded() - before)"
    )
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set() {'fastpipe.backends.basic'}"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """The error names the known name closest to what was written."""
    with pytest.raises(ConfigError, match="no backend is named 'Identiti'; did you mean 'Identity'"):
        registry.find("Identiti")


def test_a_registered_class_is_found_in_any_case() -> None:
    """register() makes a name known."""
    registry.register("Half", Half)
    assert registry.find("hALF") is Half
    assert "Half" in registry.known_names()


def test_registering_the_same_again_is_fine_and_something_else_is_refused() -> None:
    """A module may be run twice, but a name has one meaning."""
    registry.register("double", double)
    registry.register("Double", double)
    with pytest.raises(ConfigError, match=r"already the name of .*replace=True"):
        registry.register("double", Half)
    with pytest.raises(ConfigError, match="ships with fastpipe"):
        registry.register("identity", Half)
    with pytest.raises(ConfigError, match="a name has letters"):
        registry.register("a[b]", Half)


def test_a_name_may_be_given_another_meaning_on_purpose() -> None:
    """replace=True, as for a notebook's cell that is run again; what is built keeps what it was built of."""
    registry.register("double", double)
    with Pipe(backend="double") as before:
        registry.register("DOUBLE", Half, replace=True)
        with Pipe(backend="double") as after:
            assert (before({"data": 4})["result"], after({"data": 4})["result"]) == (8, 2)
    registry.register("new", Half, replace=True)
    assert registry.find("new") is Half
    with pytest.raises(ConfigError, match="ships with fastpipe"):
        registry.register("identity", Half, replace=True)


def test_help_shows_what_a_backend_may_have() -> None:
    """Each attribute and optional method is in the docstring, which is all that help() shows of them."""
    documented = re.findall(r"^ {4}(\w+)(?:\(self.*\))?: ", inspect.getdoc(Backend) or "", re.MULTILINE)
    assert sorted(documented) == sorted(Backend.__annotations__)


def test_a_name_with_a_colon_is_imported() -> None:
    """'package.module:Name' needs no registration."""
    assert registry.find("fastpipe.backends.basic:Identity") is registry.find("Identity")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:Name", "cannot be imported"),
        ("fastpipe.backends.basic:Identiti", "did you mean 'Identity'"),
        ("fastpipe.backends.basic:", "'package.module:Name' is expected"),
        ("collections:OrderedDict", "subclass fastpipe.Backend"),
    ],
)
def test_an_import_that_fails_is_told_in_words(path: str, words: str) -> None:
    """Module, name and kind of what was found are each checked."""
    with pytest.raises(ConfigError, match=words):
        registry.find(path)


def test_an_entry_point_of_another_package_is_loaded_when_first_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points are known by name, and loaded only for a configuration that names them."""
    offered = importlib.metadata.EntryPoint("Offered", "fastpipe.backends.basic:Pow", "fastpipe.backends")
    broken = importlib.metadata.EntryPoint("Broken", "no_such_module:Name", "fastpipe.backends")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [offered, broken])
    assert {"Offered", "Broken"} <= set(registry.known_names())
    assert registry.find("offered") is registry.find("Pow")
    with pytest.raises(ConfigError, match="'Broken', offered by 'no_such_module:Name', cannot be loaded"):
        registry.find("broken")


def test_a_missing_optional_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of the box whose library is not installed says what to install."""
    monkeypatch.delitem(sys.modules, "fastpipe.backends.tensor.convert", raising=False)
    monkeypatch.setitem(registry._BUILT_IN, "needy", ("Needy", "tensor.convert", "Needy"))

    def import_module(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(registry.importlib, "import_module", import_module)
    with pytest.raises(MissingExtra, match=r"Needy needs torch: pip install 'fastpipe-engine\[torch\]'"):
        registry.find("Needy")


def test_classes_instances_and_functions_are_backends() -> None:
    """Whatever may stand for a backend is resolved to a class or to the object itself."""
    half = Half()
    assert registry.resolve(Half) is Half
    assert registry.resolve(half) is half
    request = {"data": 3}
    as_class(double)().forward([request])
    assert request["result"] == 6
    request = {"data": [1, 2]}
    as_class(len)().forward([request])
    assert request["result"] == 2


class DuckTyped:
    def forward(self, batch: list[Request]) -> None:
        pass


class WithoutForward(Backend):
    def foward(self, batch: list[Request]) -> None:
        pass


class WithoutRun(PerRequest):
    def rum(self, request: Request) -> None:
        pass


class AsyncForward(Backend):
    async def forward(self, batch: list[Request]) -> None:  # type: ignore[override]
        pass


class AsyncRun(PerRequest):
    async def run(self, request: Request) -> None:  # type: ignore[override]
        pass


class YieldingForward(Backend):
    def forward(self, batch: list[Request]) -> Any:
        yield batch


class YieldingRun(PerRequest):
    def run(self, request: Request) -> Any:
        yield request


class AsyncStreaming(Streaming):
    async def run(self, request: Request) -> Any:  # type: ignore[override]
        yield request


async def asynchronous(data: Any) -> Any:
    return data


def of_two(first: Any, second: Any) -> Any:
    return first


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (DuckTyped, "subclass fastpipe.Backend"),
        (DuckTyped(), "subclass fastpipe.Backend"),
        (int, "subclass fastpipe.Backend"),
        (3, "subclass fastpipe.Backend"),
        (WithoutForward, r"has no forward\(batch\); did you mean 'foward'"),
        (WithoutRun(), r"has no run\(request\); did you mean 'rum'"),
        (WithoutRun, r"has no run\(request\); did you mean 'rum'"),
        (asynchronous, "async function"),
        (AsyncForward, "AsyncForward.*: forward is an async function"),
        (AsyncForward(), "AsyncForward.*: forward is an async function"),
        (AsyncRun, "run is an async function"),
        (AsyncStreaming, "run is an async function"),
        (YieldingForward, "forward yields, .* extend Streaming"),
        (YieldingRun, "run yields, .* extend Streaming"),
        (of_two, "a function of one item is expected"),
        (lambda: 1, "a function of one item is expected"),
    ],
)
def test_what_is_no_backend_is_refused_with_what_to_do(thing: Any, words: str) -> None:
    """The error says how to make it one."""
    with pytest.raises(ConfigError, match=words):
        registry.resolve(thing)


def test_a_function_that_is_a_backend_can_still_be_called() -> None:
    """In a unit test it is the function that was written, to type checkers, too; a pipe makes instances of it."""

    @backend
    def scaled(data: float, *, factor: float = 2.0) -> float:
        return data * factor

    twice: float = scaled(3.0)
    assert (twice, scaled(3.0, factor=5.0)) == (6.0, 15.0)
    registry.register("scaled", scaled)
    with Pipe(backend=scaled) as pipe, Pipe(backend="Scaled", factor="5") as named, Pipe(backend="S[scaled]") as step:
        assert [each({"data": 3.0})["result"] for each in (pipe, named, step)] == [6.0, 15.0, 6.0]


def test_a_function_that_cannot_be_a_backend_is_refused_where_it_is_written() -> None:
    """Not when a pipe is made of it."""
    for wrong in (asynchronous, of_two, int):
        with pytest.raises(ConfigError):
            backend(wrong)


def test_the_class_of_a_function_keeps_its_name_and_its_parameters() -> None:
    """It looks like the function; keyword-only parameters configure it."""

    @backend
    def scaled(data: float, *, factor: float = 2.0) -> float:
        """Scale."""
        return data * factor

    made = as_class(scaled)
    assert (made.__name__, made.__doc__, made.__module__) == ("scaled", "Scale.", __name__)
    request = {"data": 3.0}
    made(factor=5.0).forward([request])  # type: ignore[call-arg]
    assert request["result"] == 15.0


def test_a_function_that_raises_fails_its_item_alone() -> None:
    """In a batch each item has its own outcome; a single item's exception is raised as it is."""

    @backend
    def inverse(data: float) -> float:
        return 1 / data

    batch = [{"data": 2.0}, {"data": 0.0}, {"data": 4.0}]
    with pytest.raises(ItemErrors) as caught:
        as_class(inverse)().forward(batch)
    assert list(caught.value.errors) == [1]
    assert [request.get("result") for request in batch] == [0.5, None, 0.25]
    with pytest.raises(ZeroDivisionError):
        as_class(inverse)().forward([{"data": 0.0}])
