"""The page of all keys, from the table of keys; what a key does in full is its line of docs/configuration.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os.path import normpath

from staging import ROOT, with_links

from fastpipe.config.key import Key
from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS
from reference.words import default_in_words, form_in_words, limits_in_words, type_in_words

__all__ = ["page"]

_HEAD = """# Keys of a configuration

Every key that is fastpipe's own, from the table by which it reads them. How the keys work together is told in
[Configuration](../docs/configuration.md); any other key of a node is a parameter of its
[backends](backends.rst). Text stands for numbers, booleans and lists, too: `"2"` is 2.
`fastpipe schema` writes the same for an editor.

## Keys of a node

Beside the tables of the nodes, and in the table `global`, they are defaults for every node.
"""

_PIPE_HEAD = """## Keys of the pipe

They stand beside the nodes.
"""


def page() -> str:
    """Return the page, for the folder ``reference/`` of the site."""
    prose = _prose()
    parts = [_HEAD, _links(NODE_KEYS), *_sections(NODE_KEYS, prose), _PIPE_HEAD, _links(PIPE_KEYS)]
    return "\n".join([*parts, *_sections(PIPE_KEYS, prose)])


def _links(keys: Mapping[str, Key]) -> str:
    return " · ".join(f"[`{name}`](#{name})" for name in keys) + "\n"


def _prose() -> dict[str, str]:
    """Return what docs/configuration.md says of each key, with links that lead there from ``reference/``."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ((?:[^|\\]|\\.)*) \|$", text, re.MULTILINE)
    return {name: _from_reference(row.replace(r"\|", "|")) for name, row in rows}


def _from_reference(row: str) -> str:
    linked = with_links(row, lambda target: normpath(f"../docs/{target}"))
    linked = re.sub(r"\]\(#", "](../docs/configuration.md#", linked)
    return linked.replace(" *(ours)*", "")


def _sections(keys: Mapping[str, Key], prose: Mapping[str, str]) -> Iterator[str]:
    for name, key in keys.items():
        facts = "\n".join(f"- **{term}:** {text}" for term, text in _facts(key) if text)
        yield f"### {name}\n\n{_sentence(prose.get(name, key.meaning))}\n\n{facts}\n"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _facts(key: Key) -> Iterator[tuple[str, str]]:
    yield "Value", type_in_words(key.annotation) if key.form is None else form_in_words(key.form)
    yield "Range", limits_in_words(key.annotation, key.unit)
    yield "Default", _default(key)
    if key.is_own_of_logical:
        yield "Logical nodes", "such as `rec.2` have their own"
    if key.is_divided:
        yield "Several", "`&` in it separates the values of several backends"
    if key.is_switched:
        yield "While it serves", "`Pipe.swap` may change it"


def _default(key: Key) -> str:
    words = key.default_in_words
    if words == "see below":
        return "depends on the node's place in the graph"
    if words is None:
        return default_in_words(key.default) or "none"
    return (f"`{words}`" if words[:1].isdigit() else words) or "none"
