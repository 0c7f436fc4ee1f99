"""Models by name and version: found, loaded, replaced while they serve, closed."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("orjson", reason="the extra serve is not installed here")

from helpers import WAIT_S, Gate, run_loop, until_set

from fastpipe import ConfigError, Pipe, PipeClosed
from fastpipe.serve.answering import Call, answer
from fastpipe.serve.repository import Repository
from fastpipe.serve.statuses import NotReady, NotServed, UnknownModel
from fastpipe.serve.tensors import Tensor

ONE = [Tensor("data", "INT64", np.array([1]))]
IDENTITY = '[node]\nbackend = "Identity"\n'


def test_a_folder_of_models(tmp_path: Path) -> None:
    """Files, folders, and folders of versions; the newest answers if nobody says which."""
    (tmp_path / "a.toml").write_text(IDENTITY)
    for path in ("b/pipeline.toml", "c/2/pipeline.toml", "c/10/pipeline.toml"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(IDENTITY)

    async def main() -> None:
        repository = Repository.of_folder(tmp_path)
        with pytest.raises(NotReady, match="model 'a', version 1: not loaded yet"):
            repository.model("a")
        assert not repository.is_ready()
        await repository.open()
        assert repository.is_ready()
        assert repository.model("c").version == "10"
        assert repository.model("c", "2").version == "2"
        assert repository.versions("c") == ["2", "10"]
        assert [(row["name"], row["version"], row["state"]) for row in repository.index()] == [
            ("a", "1", "READY"),
            ("b", "1", "READY"),
            ("c", "10", "READY"),
            ("c", "2", "READY"),
        ]
        with pytest.raises(UnknownModel, match="no model is named 'bb'; did you mean 'b'"):
            repository.model("bb")
        with pytest.raises(UnknownModel, match="model 'c' has no version '3'"):
            repository.model("c", "3")
        pipes = [model.pipe for model in repository.models()]
        await repository.aclose()
        assert all(pipe.closing for pipe in pipes)
        assert not repository.is_ready()

    run_loop(main)


@pytest.mark.parametrize(
    ("models", "says"),
    [({"a/b": "x.toml"}, "a model's name"), ({"a": {"v1": "x.toml"}}, "a version is a whole number")],
)
def test_names_and_versions(models: dict, says: str) -> None:
    """What could not stand in a path is refused."""
    with pytest.raises(ConfigError, match=says):
        Repository(models)


def test_an_empty_folder(tmp_path: Path) -> None:
    """It says what was looked for."""
    with pytest.raises(ConfigError, match=r"NAME.toml, NAME/pipeline.toml or NAME/VERSION/pipeline.toml"):
        Repository.of_folder(tmp_path)


def test_a_build_that_fails() -> None:
    """It raises what the pipe has raised; or the model is there, and unavailable for that reason."""

    async def main() -> None:
        repository = Repository({"bad": lambda: Pipe(backend="Nothing"), "good": lambda: Pipe(backend="Identity")})
        with pytest.raises(ConfigError, match="Nothing"):
            await repository.open()
        await repository.open(strict=False)
        states = {row["name"]: (row["state"], row["reason"]) for row in repository.index()}
        assert states["good"] == ("READY", "")
        assert states["bad"][0] == "UNAVAILABLE"
        assert "Nothing" in states["bad"][1]
        assert [row["name"] for row in repository.index(only_ready=True)] == ["good"]
        with pytest.raises(NotReady, match="Nothing"):
            repository.model("bad")
        await repository.aclose()

    run_loop(main)


def test_loading_again_switches_without_a_failure() -> None:
    """What is in flight ends in the old pipe, which then closes; new calls go to the new one; counts go on."""
    gates: list[Gate] = []

    def build() -> Pipe:
        gates.append(Gate())
        return Pipe(backend=gates[-1])

    async def main() -> None:
        repository = Repository({"m": build}, control=True)
        await repository.open()
        old = repository.model("m")
        call = asyncio.ensure_future(answer(Call(old, ONE)))
        await until_set(gates[0].inside)
        await repository.load("m")
        new = repository.model("m")
        assert new.pipe is not old.pipe
        gates[1].opened.set()
        await answer(Call(new, ONE))
        assert not call.done()
        gates[0].opened.set()
        await call
        while not old.pipe.closing:
            await asyncio.sleep(0.001)
        assert repository.statistics("m")["model_stats"][0]["inference_count"] == 2
        await repository.aclose()

    run_loop(main)


def test_a_load_that_fails_leaves_what_is_there() -> None:
    """The old pipe goes on."""
    sources = [lambda: Pipe(backend="Identity"), lambda: Pipe(backend="Nothing")]

    async def main() -> None:
        repository = Repository({"m": lambda: sources.pop(0)()}, control=True)
        await repository.open()
        with pytest.raises(ConfigError):
            await repository.load("m")
        await answer(Call(repository.model("m"), ONE))
        assert repository.is_model_ready("m")
        await repository.aclose()

    run_loop(main)


def test_who_asks_for_a_load_and_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """The model is loaded all the same, and what it replaces is closed; a failure is logged."""
    begun, goes_on = threading.Event(), threading.Event()
    built: list[Pipe] = []

    def build() -> Pipe:
        begun.set()
        assert goes_on.wait(WAIT_S)
        if len(built) == 2:
            raise ValueError("a third one")
        built.append(Pipe(backend="Identity"))
        return built[-1]

    async def leave() -> None:
        begun.clear()
        goes_on.clear()
        load = asyncio.ensure_future(repository.load("m"))
        await until_set(begun)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        goes_on.set()

    async def main() -> None:
        await leave()
        while not repository.is_model_ready("m"):
            await asyncio.sleep(0.001)
        await leave()
        while not built[0].closing:
            await asyncio.sleep(0.001)
        await leave()
        await repository.aclose()
        assert built[1].closing

    repository = Repository({"m": build}, control=True)
    with caplog.at_level(logging.WARNING, "fastpipe.serve"):
        run_loop(main)
    assert caplog.messages == ["model 'm' was not loaded"]


def test_nothing_is_loaded_while_the_server_shuts_down() -> None:
    """A load that waits its turn then is refused; one that has begun is closed with the others."""
    begun, goes_on = threading.Event(), threading.Event()
    built: list[Pipe] = []

    def build() -> Pipe:
        begun.set()
        assert goes_on.wait(WAIT_S)
        built.append(Pipe(backend="Identity"))
        return built[-1]

    async def main() -> None:
        repository = Repository({"m": build}, control=True)
        loads = [asyncio.ensure_future(repository.load("m")) for _ in range(2)]
        await until_set(begun)
        closing = asyncio.ensure_future(repository.aclose())
        await asyncio.sleep(0)
        goes_on.set()
        await loads[0]
        with pytest.raises(NotReady, match="shutting down"):
            await loads[1]
        await closing
        assert [pipe.closing for pipe in built] == [True]

    run_loop(main)


def test_a_pipe_that_cannot_be_announced_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was built in vain, as when the library of a datatype is missing."""
    built: list[Pipe] = []

    def build() -> Pipe:
        built.append(Pipe(backend="Identity"))
        return built[-1]

    def refuse(pipe: Pipe) -> None:
        raise NotServed("no such datatype here")

    async def main() -> None:
        repository = Repository({"m": build})
        with pytest.raises(NotServed):
            await repository.open()
        await repository.aclose()
        assert [pipe.closing for pipe in built] == [True]

    monkeypatch.setattr("fastpipe.serve.repository.signature_of", refuse)
    run_loop(main)


def test_unloading() -> None:
    """New calls are refused; the server is ready without it; it can be loaded again."""

    async def main() -> None:
        repository = Repository({"m": lambda: Pipe(backend="Identity")}, control=True)
        await repository.open()
        await repository.unload("m")
        with pytest.raises(NotReady, match="unloaded"):
            repository.model("m")
        assert not repository.is_model_ready("m")
        assert repository.is_ready()
        await repository.open()
        assert not repository.is_model_ready("m")
        await repository.load("m")
        assert repository.is_model_ready("m")
        await repository.aclose()

    run_loop(main)


def test_clients_do_not_load_unless_they_may() -> None:
    """It is off, unless whoever started the server says otherwise."""

    async def main() -> None:
        repository = Repository({"m": lambda: Pipe(backend="Identity")})
        await repository.open()
        for ask in (repository.load, repository.unload):
            with pytest.raises(NotServed, match="--control"):
                await ask("m")
        await repository.load("m", asked_by_client=False)
        await repository.aclose()

    run_loop(main)


def test_a_pipe_that_was_handed_in_stays_open() -> None:
    """Who has built it closes it; once it is closed, the model is not ready, and says why."""

    async def main() -> None:
        repository = Repository({"m": pipe})
        await repository.open()
        model = repository.model("m")
        await repository.aclose()
        assert not pipe.closing
        pipe.close()
        assert model.problems() == ["the pipe is closed"]
        with pytest.raises(PipeClosed):
            await answer(Call(model, ONE))

    with Pipe(backend="Identity") as pipe:
        run_loop(main)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # eventlet, where a test has imported it, warns of it
def test_a_pipe_from_before_a_fork_is_refused_in_words() -> None:
    """The child is told to have it built there."""
    with Pipe(backend="Identity") as pipe:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(Repository({"m": pipe}).open())
            except ConfigError as error:
                os._exit(0 if "give the path of its configuration" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_closing_with_a_limit() -> None:
    """What has not ended by then fails; closing does not wait for it."""
    gate = Gate()

    async def main() -> None:
        repository = Repository({"m": lambda: Pipe(backend=gate, max=1)})
        await repository.open()
        calls = [asyncio.ensure_future(answer(Call(repository.model("m"), ONE))) for _ in range(2)]
        await until_set(gate.inside)
        closing = asyncio.ensure_future(repository.aclose(0.0))
        done, _ = await asyncio.wait(calls, timeout=WAIT_S)
        assert {type(call.exception()) for call in done} == {PipeClosed}
        gate.opened.set()
        await closing

    run_loop(main)
