"""The machinery of the documentation site, without Sphinx: ``make docs`` builds the site, and fails at any warning."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import long_words
import pytest
import staging
from check_prose import prose_of
from navigation import GENERATED, NAVIGATION, NESTED, TITLES
from reference import api, backends, command_line, configuration, docstrings, stubs, words

import fastpipe
from fastpipe.config import registry
from fastpipe.config.keys import NODE_KEYS, PIPE_KEYS
from fastpipe.config.values import constructor_parameters
from fastpipe.contract import Between, Container
from fastpipe.errors import MissingExtra


def section(page: str, heading: str) -> str:
    """Return what stands below a heading of a page in Markdown."""
    return re.split(r"^#+ ", page.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


# ---- pages and links -------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once() -> None:
    """A page that nobody can reach might as well not be there."""
    patterns = [pattern for group in (*NAVIGATION.values(), *NESTED.values()) for pattern in group]
    for page in [*staging.page_names(), *(f"reference/{name}" for name in GENERATED)]:
        assert sum(fnmatch.fnmatch(page, pattern) for pattern in patterns) == 1, page
    assert set(TITLES) <= set(patterns)


def test_the_pages_are_staged_with_what_they_link_to(tmp_path: Path) -> None:
    """A page file that a page offers or shows is beside it, the home page is at the root."""
    staging.stage(tmp_path)
    for name in staging.page_names():
        assert (tmp_path / f"{name}.md").exists()
    assert "](docs/concepts.md)" in (tmp_path / "index.md").read_text()
    assert (tmp_path / "examples/ocr/graph.svg").read_bytes() == (staging.ROOT / "examples/ocr/graph.svg").read_bytes()
    for name in staging.page_names():
        page = tmp_path / f"{name}.md"
        staging.with_links(page.read_text(), lambda target, page=page: assert_there(page, target))


def assert_there(page: Path, target: str) -> str:
    """Return a link's target; it is there, and no folder."""
    assert (page.parent / target).is_file(), f"{page} -> {target}"
    return target


def test_the_code_of_the_home_page_runs() -> None:
    """It is the first that a stranger copies."""
    blocks = staging.FENCE.findall((staging.ROOT / staging.HOME).read_text())
    assert len(blocks) == 1
    exec(compile(blocks[0].removeprefix("```python\n").removesuffix("```"), "index.md", "exec"), {"__name__": "page"})


def test_a_link_to_a_folder_leads_to_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sphinx knows no folders, GitHub does."""
    (tmp_path / "examples/ocr").mkdir(parents=True)
    (tmp_path / "examples/ocr/README.md").write_text("# OCR\n")
    (tmp_path / "page.md").write_text("See [it](examples/ocr/) and [its models](examples/ocr/#models).\n")
    monkeypatch.setattr(staging, "ROOT", tmp_path)
    staging._write(tmp_path / "site", Path("page.md"), Path("below/page.md"))
    written = (tmp_path / "site/below/page.md").read_text()
    assert written == "See [it](../examples/ocr/README.md) and [its models](../examples/ocr/README.md#models).\n"


@pytest.mark.parametrize("target", ["nothing.md", "folder"])
def test_a_dead_link_ends_the_build(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a page is one, too."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.md").write_text(f"[it]({target})\n")
    monkeypatch.setattr(staging, "ROOT", tmp_path)
    with pytest.raises(staging.DeadLink, match=f"page.md: there is no {target}"):
        staging._write(tmp_path / "site", Path("page.md"), Path("page.md"))


def test_links_in_code_and_to_elsewhere_stay() -> None:
    """What is no relative link of the prose is left alone."""
    text = "[a](x.md) [b](https://x.org/y.md) [c](#here)\n\n```text\n[d](x.md)\n```\n"
    assert staging.with_links(text, lambda target: f"../{target}") == text.replace("[a](x.md)", "[a](../x.md)")


def test_pictures_in_html_are_followed_like_links() -> None:
    """A table of pictures says how high they are, which Markdown cannot."""
    text = '| <img alt="a b" src="x/a.svg" height="90"> | [a](x/a.md#b) |\n'
    followed = '| <img alt="a b" src="../x/a.svg" height="90"> | [a](../x/a.md#b) |\n'
    assert staging.with_links(text, lambda target: f"../{target}") == followed


# ---- types in words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "said", "limits"),
    [
        (int, "whole number", ""),
        (Annotated[int, Between(1, 4096)], "whole number", "1 to 4,096"),
        (Annotated[float, Between(0.000_001, 1e9)], "number", "0.000001 to 1,000,000,000"),
        (Annotated[int, Between(1, 1 << 30)] | None, "whole number", "1 to 2^30"),
        (list[Annotated[int, Between(1, 9)]], "list of whole numbers", "1 to 9"),
        (Sequence[float], "list of numbers", ""),
        (tuple[int, int], "2 values: whole number, whole number", ""),
        (Literal["a", "b"], '`"a"` or `"b"`', ""),
        (Sequence[Literal["a", "b"]], 'list of `"a"` or `"b"`', ""),
        (str | Path | None, "text or path", ""),
        (Mapping[str, Any], "table", ""),
        (bool, "`true` or `false`", ""),
        (Any, "anything", ""),
    ],
)
def test_types_are_said_in_words(annotation: Any, said: str, limits: str) -> None:
    """As a reader of a configuration says them, not as Python does."""
    assert words.type_in_words(annotation) == said
    assert words.limits_in_words(annotation) == limits


@pytest.mark.parametrize(
    ("default", "said"),
    [
        (None, ""),
        (2.0, "`2`"),
        (0.5, "`0.5`"),
        (True, "`true`"),
        ("fp32", '`"fp32"`'),
        ((0, 1), "`[0, 1]`"),
        (0, "`0`"),
    ],
)
def test_defaults_are_said_as_a_configuration_has_them(default: Any, said: str) -> None:
    """2.0 is written 2, and True is true."""
    assert words.default_in_words(default) == said


# ---- references ------------------------------------------------------------------------------------------------


def test_the_reference_has_each_key_with_its_limits() -> None:
    """One section for each key, with what the table says of it and the whole of what docs/configuration.md says."""
    page = configuration.page()
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [*NODE_KEYS, *PIPE_KEYS]
    assert re.findall(r"\[`(\w+)`\]\(#\1\)", page) == [*NODE_KEYS, *PIPE_KEYS]
    number = section(page, "instance_num")
    assert "**Value:** whole number\n" in number
    assert "**Range:** 1 to 4,096\n" in number
    assert "**Default:** `1`\n" in number
    assert "[several GPUs](../docs/gpu/several-gpus.md)" in number
    assert "**Range:** 0.000001 to 1,000,000,000 seconds" in section(page, "hang_timeout")
    assert '**Value:** `"block"` or `"reject"` or `"shed_oldest"`' in section(page, "when_full")
    assert "[batching rules](../docs/configuration.md#batching-rules)" in section(page, "batching")
    assert "**Logical nodes:**" in section(page, "next")
    assert "**Value:** table of `max_batch_size`, `inputs`, `outputs`\n" in section(page, "serve")


def test_the_reference_has_each_command_with_its_options() -> None:
    """What ``--help`` says, of arguments and options, required or with their defaults."""
    page = command_line.page()
    parsers = command_line.commands()
    assert re.findall(r"^## fastpipe (\w+)$", page, re.MULTILINE) == list(parsers)
    assert re.findall(r"^\| \[`fastpipe (\w+)`\]\(#fastpipe-\1\) \| \w", page, re.MULTILINE) == list(parsers)
    for name, parser in parsers.items():
        said = section(page, f"fastpipe {name}")
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
                for option in action.option_strings:
                    assert f"`{option}" in said.replace(r"\|", "|"), f"{name}: {option}"
    bench = section(page, "fastpipe bench")
    assert "| `--clients N,...` | closed loop: so many callers" in bench
    assert "(default: 1,8,64) |" in bench
    assert "May be given several times (required) |" in bench


def find(name: str) -> Any:
    """Return a backend of the box, or skip the test where its libraries are not installed."""
    try:
        return registry.find(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", registry.built_in_names())
def test_each_parameter_of_a_backend_is_documented(name: str) -> None:
    """Its docstring, or that of a class that it extends, has a line for each keyword of its constructor."""
    backend = find(name)
    own, arguments = backends.documented(backend)
    assert own.text
    taken = constructor_parameters(backend, skip_first=issubclass(backend, Container))
    assert [key for key in taken if not arguments.get(key)] == []


def test_the_reference_shows_what_a_backend_takes() -> None:
    """Names, the extra, parameters with limits and defaults, what it raises, in reStructuredText."""
    entry = backends.Entry(["Sleep", "Nap"], find("Sleep"), "basic", "cpu")
    shown = "\n".join(backends._section(entry))
    assert shown.startswith(".. _backend-sleep:\n\nSleep\n~~~~~\n")
    assert "Other names: ``Nap``. Needs the extra ``cpu``." in shown
    assert "``time`` (number, 0 to 3,600,000; default ``0``)\n    milliseconds." in shown
    raises = "\n".join(backends._section(backends.Entry(["Copy"], find("Copy"), "basic", None)))
    assert "``source`` (text; required)\n    the key that is there." in raises
    assert "``KeyError``\n    if a request has no ``source``." in raises


def test_a_docstring_is_taken_apart() -> None:
    """Lines that go on are joined; what is no section stays."""
    parsed = backends.parsed(
        """Do it.

        **In**: a list: of numbers.

        Args:
            size: how large
                it is.
            name: its name.

        Raises:
            KeyError: if not.

        The end.
        """
    )
    assert parsed.text == "Do it.\n\n**In**: a list: of numbers.\n\nThe end."
    assert parsed.arguments == {"size": "how large it is.", "name": "its name."}
    assert parsed.raises == {"KeyError": "if not."}


def can_be_read(subject: api.Subject) -> bool:
    """Whether the libraries are installed that the names of a section need."""
    try:
        return all(hasattr(importlib.import_module(subject.module), name) for name in subject.names)
    except (MissingExtra, ModuleNotFoundError):
        return False


def test_the_page_of_the_api_has_each_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is added to ``__all__`` gets its place on the page; the build looks at all modules."""
    monkeypatch.setattr(api, "SUBJECTS", [subject for subject in api.SUBJECTS if can_be_read(subject)])
    assert {"fastpipe", "fastpipe.contract", "fastpipe.observe"} <= {subject.module for subject in api.SUBJECTS}
    assert api.unlisted() == []
    page = api.page()
    assert set(re.findall(r":: fastpipe\.(\w+)$", page, re.MULTILINE)) >= set(fastpipe.__all__)
    assert 'What travels: input under ``"data"``' in page
    assert "__call__(request: Request, *, timeout: float | None=None, priority: float=0, " in page


def test_each_name_on_the_page_of_the_api_is_described() -> None:
    """Data by a text below it in the source. Bases that nobody can look up are left out."""
    for subject in filter(can_be_read, api.SUBJECTS):
        module = importlib.import_module(subject.module)
        for name in subject.names:
            found = getattr(module, name)
            assert docstrings.of_data(module, name) if get_origin(found) or not callable(found) else found.__doc__, name
    assert api.is_worth_showing(fastpipe.PipeError)
    assert api.is_worth_showing(ValueError)
    assert not api.is_worth_showing(object)
    assert not any(map(api.is_worth_showing, fastpipe.Pipe.__bases__))


def test_code_in_a_docstring_is_marked_and_items_are_not() -> None:
    """The house indents code, Google's style indents the items of a section; Sphinx has to know which is which."""
    lines = ["Do it:", "", "    x = 1", "    y = 2", "", "Args:", "    x: one.", "", "    y: two.", "", "End."]
    marked = ["Do it:", "", "::", "", *lines[2:]]
    assert docstrings.with_code_marked(lines) == marked
    assert docstrings.with_code_marked(["- one", "", "    more of it"]) == ["- one", "", "    more of it"]


def test_what_is_compiled_has_the_signature_of_its_stub() -> None:
    """Without ``self``, with a request's public name, with defaults that the stub leaves out; a property has none."""
    assert stubs.signature_of("emit") == ("(request: Request, chunk: Any)", "bool")
    assert stubs.signature_of("Engine.clear_cache") == ("(node: str | None=None)", "int")
    parameters, result = stubs.signature_of("Engine.__call__") or ("", "")
    assert parameters.endswith("priority: float=0, eager: bool=False, entry: str | None=None)")
    assert result == "Request"
    assert stubs.signature_of("Engine.failures") is None


def test_long_words_of_code_may_be_broken_behind_signs() -> None:
    """And no others: a name that fits stays in one line."""
    assert long_words.parts_of("request_timeout = 5") == ["request_timeout ", "= ", "5"]
    broken = long_words.parts_of("tests/promises/test_state_machine.py -x")
    assert broken == ["tests/", "promises/", "test_", "state_", "machine.", "py ", "-x"]
    assert long_words.parts_of("") == []


def test_only_prose_is_checked_for_its_style() -> None:
    """Lines stay where they are; code between words becomes words that differ."""
    text = "# A a\n\nSee `a` `b` in [it](it.md).\n\n| a | a |\n\n```text\nthe the\n```\n    the the\n"
    blanked = prose_of(text)
    assert blanked.count("\n") == text.count("\n")
    assert blanked.split() == ["See", "abc", "def", "in", "[it]", "."]
