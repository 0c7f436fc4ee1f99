"""The page of all backends: names, parameters with types and limits, and what their docstrings say."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastpipe.backends import box
from fastpipe.config.values import Parameter, constructor_parameters
from fastpipe.contract import Backend, Container
from reference.docstrings import with_code_marked
from reference.words import default_in_words, limits_in_words, type_in_words

__all__ = ["Docstring", "Entry", "documented", "entries", "page"]

_HEAD = """Every backend in the box
========================

What each takes, gives and raises, from the backends themselves. How they work together, with examples, is told in
:doc:`The built-in backends </docs/backends>`; how to write one of your own in
:doc:`Writing a backend </docs/writing-a-backend>`.

Names are those of a configuration; their case does not matter. A parameter is a key of the node, or stands in
parentheses behind the name: ``ResizeMat(224, 224)``. Text stands for numbers, booleans and lists, too.
"""

_ROOMS = {
    "image": (
        "Images on the CPU",
        "They compute on the CPU. Images are NumPy arrays of shape (height, width, channels), uint8, BGR as OpenCV's.",
    ),
    "model": ("Models", "On the device that each of them says."),
    "tensor": (
        "Torch tensors",
        "Images are tensors of shape (1, channels, height, width). Where nothing else is said, the work is done on the "
        "device of the request's tensor, CPU or GPU, and the result stays there.",
    ),
    "gpu": ("Streams and devices", "They say where, and on which CUDA stream, other backends compute."),
    "flow": ("Graphs and chains", "They run other backends, wherever those compute."),
    "basic": ("Plumbing", "They handle keys of requests, on the CPU; values are handed on wherever they are."),
}
_SHARED = {"model": ("fastpipe.backends.model.onnx_runtime.model", "OnnxModel")}
"""Base classes whose docstring is that of several backends."""


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google form, taken apart."""

    text: str
    """Without the sections below; reStructuredText."""
    arguments: dict[str, str]
    raises: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One backend."""

    names: list[str]
    """The first is the one that the page has in its heading."""
    backend: type[Backend]
    room: str
    extra: str | None
    """What has to be installed for it."""


def entries() -> list[Entry]:
    """Return the backends of the box, in its order."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, module, class_name in box.BUILT_IN.values():
        found.setdefault((module, class_name), []).append(name)
    return [
        Entry(names, _imported(module, class_name), module.partition(".")[0], box.EXTRAS.get(module))
        for (module, class_name), names in found.items()
    ]


def _imported(module: str, class_name: str) -> Any:
    path = module if module.startswith("fastpipe.") else f"fastpipe.backends.{module}"
    return getattr(importlib.import_module(path), class_name)


def documented(backend: type) -> tuple[Docstring, dict[str, str]]:
    """Return a backend's own docstring, and what that or a base's docstring says of each of its parameters."""
    own = parsed(vars(backend).get("__doc__"))
    arguments: dict[str, str] = {}
    for base in backend.__mro__:
        if base not in (Backend, Container, object):
            for name, text in parsed(vars(base).get("__doc__")).arguments.items():
                arguments.setdefault(name, text)
    return own, arguments


def parsed(docstring: str | None) -> Docstring:
    """Take a docstring apart."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    sections: dict[str, list[str]] = {"": []}
    section = ""
    for line in lines:
        if line in ("Args:", "Raises:"):
            section = line
        elif line and not line.startswith(" "):
            section = ""
        sections.setdefault(section, []).append(line)
    return Docstring(
        "\n".join(with_code_marked(sections[""])).strip(),
        _items(sections.get("Args:", [])),
        _items(sections.get("Raises:", [])),
    )


def _items(lines: list[str]) -> dict[str, str]:
    """Return the items of a section, each with its text in one line."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", "\n".join(lines), re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).strip() for name, text in found}


# ---- the page --------------------------------------------------------------------------------------------------


def page() -> str:
    """Return the page as reStructuredText, for the folder ``reference/`` of the site."""
    by_room: dict[str, list[Entry]] = {room: [] for room in _ROOMS}
    for entry in entries():
        by_room[entry.room].append(entry)
    parts = [_HEAD]
    for room, (title, about) in _ROOMS.items():
        parts.append(f"{title}\n{'-' * len(title)}\n\n{about}\n\n{_links(by_room[room])}\n")
        if room in _SHARED:
            parts += _shared(_imported(*_SHARED[room]))
        parts += [line for entry in by_room[room] for line in _section(entry)]
    return "\n".join(parts)


def _links(these: list[Entry]) -> str:
    return " · ".join(f":ref:`{entry.names[0]} <backend-{entry.names[0].lower()}>`" for entry in these)


def _shared(base: type) -> Iterator[str]:
    own = parsed(base.__doc__)
    yield _heading(base.__name__)
    yield "*Base of* ``OnnxTensor`` *and* ``OpenvinoTensor``, *no name for a configuration.*\n"
    yield f"{own.text}\n"
    yield from _parameters(constructor_parameters(base), own.arguments)
    yield from _raises(own)


def _section(entry: Entry) -> Iterator[str]:
    own, arguments = documented(entry.backend)
    taken = constructor_parameters(entry.backend, skip_first=issubclass(entry.backend, Container))
    facts = [f"Other names: {', '.join(f'``{name}``' for name in entry.names[1:])}."] if entry.names[1:] else []
    facts += [f"Needs the extra ``{entry.extra}``."] if entry.extra else []
    shared = _SHARED.get(entry.room, ("", ""))[1]
    if any(base.__name__ == shared for base in entry.backend.__mro__):
        arguments = own.arguments  # the others are told there
        taken = {name: parameter for name, parameter in taken.items() if name in arguments}
        facts.append(f"All of :ref:`{shared} <backend-{shared.lower()}>` holds here.")
    yield _heading(entry.names[0])
    if facts:
        yield " ".join(facts) + "\n"
    yield f"{own.text}\n"
    yield from _parameters(taken, arguments)
    yield from _raises(own)


def _heading(name: str) -> str:
    return f".. _backend-{name.lower()}:\n\n{name}\n{'~' * len(name)}\n"


def _parameters(taken: dict[str, Parameter], arguments: dict[str, str]) -> Iterator[str]:
    if taken:
        yield ".. rubric:: Parameters\n"
    for name, parameter in taken.items():
        limits = limits_in_words(parameter.annotation)
        kind = type_in_words(parameter.annotation) + (f", {limits}" if limits else "")
        default = default_in_words(parameter.default)
        said = "required" if parameter.required else f"default {default}" if default else "optional"
        yield f"``{name}`` ({_as_rst(kind)}; {_as_rst(said)})\n    {arguments.get(name, '')}\n"


def _raises(own: Docstring) -> Iterator[str]:
    if own.raises:
        yield ".. rubric:: Raises\n"
    for name, text in own.raises.items():
        yield f"``{name}``\n    {text}\n"


def _as_rst(words: str) -> str:
    return words.replace("`", "``")
