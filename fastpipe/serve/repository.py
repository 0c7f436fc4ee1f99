"""The models that a server has: by name and version, loaded and unloaded while it serves.

    Repository({"ocr": "ocr.toml"})                        one model, version 1, built by open()
    Repository({"ocr": {"1": "old.toml", "2": "new.toml"}})
    Repository({"ocr": pipe})                              a pipe that somebody else has built, and closes
    Repository.of_folder("models")                         NAME.toml, NAME/pipeline.toml, NAME/VERSION/pipeline.toml

Nothing is built before ``open()``, which belongs into the process that serves: a pipe does not survive a fork.

Everything but the constructors is for one event loop's thread; pipes are built, and closed, on threads of their own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fastpipe.errors import ConfigError, in_brief, nearest
from fastpipe.faults import text_of
from fastpipe.pipe import Pipe
from fastpipe.serve.announced import signature_of
from fastpipe.serve.signature import Signature
from fastpipe.serve.statistics import Statistics
from fastpipe.serve.statuses import NotReady, NotServed, UnknownModel

__all__ = ["Model", "Repository", "Source"]

Source: TypeAlias = Pipe | str | Path | Callable[[], Pipe]
"""A pipe that is built; the path of a configuration; or a function that builds a pipe."""

FILE = "pipeline.toml"
FIRST = "1"
"""The version of what has none."""
_NAME = re.compile(r"[\w.-]{1,200}")


@dataclass(eq=False)
class Model:
    """A version of a model that is loaded. A call keeps it for its whole time, whatever is loaded meanwhile."""

    name: str
    version: str
    pipe: Pipe
    signature: Signature
    statistics: Statistics = field(default_factory=Statistics)
    is_streaming: bool = False
    """Whether one call may have several answers: a backend of the pipe hands on parts."""

    def problems(self) -> list[str]:
        """Return why it is not ready, a sentence for each reason; empty: it is."""
        found: list[str] = self.pipe.health()["problems"]
        return found

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """Return the protocol's model metadata."""
        return {"name": self.name, "versions": versions, "platform": "fastpipe", **self.signature.metadata()}

    def config(self) -> dict[str, Any]:
        """Return what Triton's model configuration extension says of a model, as far as its clients look at it."""
        announced = self.signature.metadata()
        optional = {spec.name for spec in self.signature.inputs if spec.is_optional}
        skip = 1 if self.signature.max_batch_size else 0  # a configuration has shapes without the axis of rows

        def described(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
            kind = {"BYTES": "STRING"}
            return [
                {
                    "name": each["name"],
                    "data_type": f"TYPE_{kind.get(each['datatype'], each['datatype'])}",
                    "dims": each["shape"][skip:],
                    **({"optional": True} if tensors is announced["inputs"] and each["name"] in optional else {}),
                }
                for each in tensors
            ]

        return {
            "name": self.name,
            "platform": "fastpipe",
            "backend": "fastpipe",
            "max_batch_size": self.signature.max_batch_size,
            "input": described(announced["inputs"]),
            "output": described(announced["outputs"]),
            "model_transaction_policy": {"decoupled": self.is_streaming},
        }


@dataclass(eq=False)
class _Entry:
    """A version of a model that may be loaded."""

    name: str
    version: str
    source: Source
    signature: Signature | None
    model: Model | None = None
    state: str = "UNAVAILABLE"
    reason: str = "not loaded yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_owned(self) -> bool:
        """Whether the repository builds the pipe, and closes it."""
        return not isinstance(self.source, Pipe)


class Repository:
    """Models by name and version.

    Args:
        models: sources by name; or, by name, sources by version. Versions are whole numbers from 1 on, as text.
        signatures: by name: what a model announces instead of what its configuration says, or what is derived.
        control: whether clients may load and unload.

    Raises:
        ConfigError: a name or a version is none.
    """

    def __init__(
        self,
        models: Mapping[str, Source | Mapping[str, Source]],
        *,
        signatures: Mapping[str, Signature] | None = None,
        control: bool = False,
    ) -> None:
        self.control = control
        self.is_draining = False
        """The server is shutting down: it is not ready, and answers what it has begun."""
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._ready: dict[tuple[str, str], Model] = {}
        """What is loaded, by (name, version); by (name, "") the newest version. What ``model`` looks at."""
        self._closing: set[asyncio.Task[None]] = set()
        self._loading: set[asyncio.Task[None]] = set()
        signatures = signatures or {}
        for name, given in models.items():
            versions = given if isinstance(given, Mapping) else {FIRST: given}
            for version, source in versions.items():
                self._add(name, version, source, signatures.get(name))

    def _add(self, name: str, version: str, source: Source, signature: Signature | None) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"a model's name has letters, digits, '_', '-' and '.', got {in_brief(name)}")
        if not re.fullmatch("[1-9][0-9]{0,17}", version):
            raise ConfigError(f"model {name!r}: a version is a whole number from 1 on, got {in_brief(version)}")
        if isinstance(source, str):
            source = Path(source)
        self._entries.setdefault(name, {})[version] = _Entry(name, version, source, signature)

    @classmethod
    def of_folder(
        cls, folder: str | Path, *, control: bool = False, build: Callable[[Path], Pipe] = Pipe
    ) -> Repository:
        """Return the models of a folder: NAME.toml, NAME/pipeline.toml or NAME/VERSION/pipeline.toml.

        Args:
            folder: which; it is looked through once.
            control: whether clients may load and unload.
            build: makes a pipe of a file.

        Raises:
            ConfigError: it has none, or is no folder.
        """
        folder = Path(folder)
        models: dict[str, dict[str, Source]] = {}
        for path in sorted([*folder.glob("*.toml"), *folder.glob(f"*/{FILE}"), *folder.glob(f"*/*/{FILE}")]):
            inner = path.relative_to(folder).parts
            name = inner[0].removesuffix(".toml") if len(inner) == 1 else inner[0]
            models.setdefault(name, {})[inner[1] if len(inner) == 3 else FIRST] = partial(build, path)
        if not models:
            raise ConfigError(
                f"{str(folder)!r} has no models: NAME.toml, NAME/{FILE} or NAME/VERSION/{FILE} are looked for"
            )
        return cls(models, control=control)

    # ---- who asks ----------------------------------------------------------------------------------------------

    def model(self, name: str, version: str = "") -> Model:
        """Return a model that is loaded; without a version, its newest.

        Raises:
            UnknownModel: there is no such model, or version.
            NotReady: it is not loaded.
        """
        found = self._ready.get((name, version))
        if found is not None:
            return found
        versions = self._entries.get(name)
        if versions is None:
            raise UnknownModel(f"no model is named {in_brief(name)}{nearest(name, self._entries)}")
        if version and version not in versions:
            raise UnknownModel(f"model {name!r} has no version {in_brief(version)}; there are {', '.join(versions)}")
        entry = versions[version] if version else max(versions.values(), key=lambda each: int(each.version))
        raise NotReady(f"model {name!r}, version {entry.version}: {entry.reason or 'not loaded'}")

    def names(self) -> list[str]:
        """Return the names of all models, loaded or not."""
        return list(self._entries)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are loaded, the oldest first."""
        loaded = [version for version, entry in self._entries.get(name, {}).items() if entry.model is not None]
        return sorted(loaded, key=int)

    def models(self) -> list[Model]:
        """Return all that are loaded."""
        return [model for (_, version), model in self._ready.items() if version]

    def is_ready(self) -> bool:
        """Whether the server is: it is not shutting down, all that was to be loaded is, and all pipes are healthy."""
        if self.is_draining:
            return False
        wanted = [entry for entry in self._all() if entry.reason != UNLOADED]
        return all(entry.model is not None and not entry.model.problems() for entry in wanted)

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model is loaded, and its pipe healthy.

        Raises:
            UnknownModel: there is no such model, or version.
        """
        try:
            model = self.model(name, version)
        except NotReady:
            return False
        return not self.is_draining and not model.problems()

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """Return what Triton's repository extension says: name, version, state and reason of each."""
        rows = []
        for entry in self._all():
            problems = [] if entry.model is None else entry.model.problems()
            is_ready = entry.model is not None and not problems
            state = "READY" if is_ready else entry.state if entry.model is None else "UNAVAILABLE"
            reason = entry.reason if entry.model is None else "; ".join(problems)
            if is_ready or not only_ready:
                rows.append({"name": entry.name, "version": entry.version, "state": state, "reason": reason})
        return rows

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return the document of Triton's statistics extension; of all models, where no name is given."""
        if name:
            self.model(name, version)  # says what is wrong with the name
        models = [
            model
            for model in self.models()
            if (not name or model.name == name) and (not version or model.version == version)
        ]
        return {"model_stats": [each.statistics.document(each.name, each.version, each.pipe) for each in models]}

    # ---- life --------------------------------------------------------------------------------------------------

    async def open(self, *, strict: bool = True) -> None:
        """Build what is not built; again, it does nothing.

        Args:
            strict: raise what a build has raised. Otherwise the model is UNAVAILABLE, for that reason.
        """
        for entry in self._all():
            async with entry.lock:
                if entry.model is not None or entry.reason == UNLOADED:
                    continue
                try:
                    await self._build(entry)
                except Exception:
                    if strict:
                        raise

    async def load(self, name: str, *, asked_by_client: bool = True) -> None:
        """Load a model, all its versions; of one that is loaded, build it anew, and switch once that is done.

        No request fails by it: those in flight end in the pipe that they began in. A caller that is cancelled stops
        waiting; the model is loaded all the same.

        Raises:
            UnknownModel: there is none of that name.
            NotReady: the server is shutting down.
            NotServed: the server does not let clients do this.
            Exception: whatever building a pipe raises; what was loaded before goes on.
        """
        task = asyncio.ensure_future(self._load(self._controlled(name, asked_by_client)))
        self._loading.add(task)  # a client that leaves meanwhile does not leave a pipe behind that nobody closes
        task.add_done_callback(self._loading.discard)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(partial(_say_how_it_ended, name))
            raise
        task.result()

    async def _load(self, entries: list[_Entry]) -> None:
        for entry in entries:
            async with entry.lock:
                if self.is_draining:
                    raise NotReady("the server is shutting down")
                await self._build(entry)

    async def unload(self, name: str, *, asked_by_client: bool = True) -> None:
        """Unload a model, all its versions: new calls are refused, and its pipe closes once those in flight have ended.

        Raises:
            UnknownModel, NotServed: as ``load``.
        """
        for entry in self._controlled(name, asked_by_client):
            async with entry.lock:
                former, entry.model = entry.model, None
                entry.state, entry.reason = "UNAVAILABLE", UNLOADED
                self._know()
                self._let_go(entry, None if former is None else former.pipe)

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the pipes that were built here, once what is in flight has ended; after ``timeout`` seconds that fails.

        Pipes that were handed in stay open. Idempotent.
        """
        self.is_draining = True
        for entry in self._all():
            async with entry.lock:
                former, entry.model = entry.model, None
                entry.state, entry.reason = "UNAVAILABLE", "the server is shutting down"
                self._let_go(entry, None if former is None else former.pipe, timeout)
        self._know()
        while self._closing:
            await asyncio.gather(*self._closing)

    def _all(self) -> list[_Entry]:
        return [entry for versions in self._entries.values() for entry in versions.values()]

    def _controlled(self, name: str, asked_by_client: bool) -> list[_Entry]:
        if asked_by_client and not self.control:
            raise NotServed("this server does not load or unload models for clients: it is started without --control")
        if name not in self._entries:
            raise UnknownModel(f"no model is named {in_brief(name)}{nearest(name, self._entries)}")
        return list(self._entries[name].values())

    async def _build(self, entry: _Entry) -> None:
        """Build a pipe beside the one that is there, if one is, and switch; the caller holds the entry's lock."""
        if entry.model is None:
            entry.state, entry.reason = "LOADING", "it is being built"
        try:
            pipe = await asyncio.to_thread(_built, entry.source)
            try:
                signature = entry.signature or signature_of(pipe)
            except BaseException:
                self._let_go(entry, pipe)
                raise
        except BaseException as error:
            if entry.model is None:
                entry.state, entry.reason = "UNAVAILABLE", f"{type(error).__name__}: {text_of(error)}"
            raise
        former = entry.model
        statistics = Statistics() if former is None else former.statistics
        is_streaming = any(station.streams for station in pipe.stations)
        entry.model = Model(entry.name, entry.version, pipe, signature, statistics, is_streaming)
        entry.state, entry.reason = "READY", ""
        self._know()
        if former is not None and former.pipe is not pipe:
            self._let_go(entry, former.pipe)

    def _know(self) -> None:
        """Bring what ``model`` looks at up to date."""
        ready: dict[tuple[str, str], Model] = {}
        for name, versions in self._entries.items():
            for version in self.versions(name):
                model = versions[version].model
                if model is not None:
                    ready[name, version] = ready[name, ""] = model
        self._ready = ready

    def _let_go(self, entry: _Entry, pipe: Pipe | None, timeout: float | None = None) -> None:
        if pipe is None or not entry.is_owned:
            return
        task = asyncio.ensure_future(pipe.aclose(timeout))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


UNLOADED = "unloaded"


def _say_how_it_ended(name: str, task: asyncio.Task[None]) -> None:
    """Log why a model was not loaded, which whoever has asked for it has not waited for."""
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger("fastpipe.serve").warning("model %r was not loaded", name, exc_info=task.exception())


def _built(source: Source) -> Pipe:
    pipe = source if isinstance(source, Pipe) else Pipe(source) if isinstance(source, Path | str) else source()
    if not isinstance(pipe, Pipe):
        raise ConfigError(f"a function that builds a pipe returns a fastpipe.Pipe, got {type(pipe).__name__}")
    forked = [problem for problem in pipe.health()["problems"] if "fork" in problem]
    if forked:
        raise ConfigError(
            f"{forked[0]}: give the path of its configuration, or a function that builds it, and it is built in the "
            "process that serves"
        )
    return pipe
