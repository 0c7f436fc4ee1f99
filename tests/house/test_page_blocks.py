"""What the pages show of commands is true, and no block of code is left out of the tests without a word."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpipe.cli.main import parser_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "docs/gpu", "docs/site", "bench", "examples", "examples/*", "proofs", "findings")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4,}(?P<text>\S.*)$", re.MULTILINE)
PROMPT = re.compile(r"^(?:\$ )?(?P<words>(?:python -m )?fastpipe .*)$", re.MULTILINE)
INLINE = re.compile(r"`(?P<words>fastpipe [a-z][^`]*)`")
COMMANDS = {"bash", "console", "sh", "shell"}
NO_COMMANDS = ("fastpipe log", "fastpipe is imported from")  # a thread's name, and an error
OUTPUT = {"text", "", "diff", "ini", "json", "yaml", "html", "dockerfile", "{toctree}"}
"""What is printed, or read by programs of others."""


def name_of(page: Path) -> str:
    """Return a page's name as a test's id."""
    return str(page.relative_to(ROOT))


def shown_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``fastpipe`` of a page that a reader may type as it stands."""
    blocks = [
        found["text"]
        for found in FENCE.finditer(text)
        if found["info"].split()[:1] and found["info"].split()[0] in COMMANDS
    ]
    blocks += [found["text"] for found in INDENTED.finditer(FENCE.sub("", text))]
    for block in blocks:
        for found in PROMPT.finditer(block.replace("\\\n", " ")):
            words = shlex.split(found["words"], comments=True)
            yield words[words.index("fastpipe") + 1 :]


def mistake_in(arguments: list[str]) -> str | None:
    """Return what the command line says of arguments; None: it takes them."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            _, unknown = parser_of(arguments).parse_known_args(arguments)
        except SystemExit as leaving:
            return said.getvalue() if leaving.code else None
    return f"unknown: {unknown}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_are_taken(page: Path) -> None:
    """Each ``fastpipe ...`` in a block has a command that exists, with options that it takes."""
    for arguments in shown_commands(page.read_text()):
        assert mistake_in(arguments) is None, f"{name_of(page)}: fastpipe {' '.join(arguments)}"


def help_of(command: str) -> str:
    """Return what ``fastpipe COMMAND --help`` says; an empty text where there is no such command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        parser_of([command]).parse_args([command, "--help"])
    return said.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_within_a_sentence_exist(page: Path) -> None:
    """Of `fastpipe tune FILE --p99-ms 25` in a sentence, the command and its options are known."""
    for found in INLINE.finditer(FENCE.sub("", page.read_text())):
        command, *words = found["words"].split()[1:]
        if not found["words"].startswith(NO_COMMANDS):
            text = help_of(command)
            assert text, f"{name_of(page)}: there is no command `fastpipe {command}`"
            options = [word.strip("[],.").partition("=")[0] for word in words if word.startswith("-")]
            unknown = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)]
            assert not unknown, f"{name_of(page)}: `{found['words']}` has options that are not there: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    """test_docs.py runs Python and reads TOML, commands are held against the parser here; the rest is not our code."""
    for found in FENCE.finditer(page.read_text()):
        words = found["info"].split()
        language = words[0] if words else ""
        assert language in {"python", "toml", *COMMANDS, *OUTPUT}, (
            f"{name_of(page)}: nobody reads a block of {language}"
        )
        if "no-run" in words:
            assert words.index("no-run") < len(words) - 1, f"{name_of(page)}: a block is not run; say why behind no-run"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_targets_of_make_exist(page: Path) -> None:
    """``make NAME`` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    shown = re.findall(r"(?:^ {4}|^\$ |`)make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert set(shown) <= targets


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "pipeline.toml", "--data", "1", "--clients", "1,8"], None),
        (["bench", "pipeline.toml", "--data", "1", "--client", "1"], None),  # argparse takes what is unambiguous
        (["bench", "pipeline.toml"], "required: --data"),
        (["tune", "pipeline.toml", "--data", "1", "--p98-ms", "3"], "--p98-ms"),
        (["measure", "pipeline.toml"], "invalid choice"),
    ],
)
def test_what_a_page_may_not_show_is_noticed(arguments: list[str], says: str | None) -> None:
    """The check above would be worthless if it took everything."""
    said = mistake_in(arguments)
    assert said is None if says is None else says in (said or "")


def test_commands_are_found_wherever_a_page_shows_them() -> None:
    """In a block of a console with a prompt, in an indented one, over several lines; not what they print."""
    page = """
```console
$ fastpipe check a.toml --strict  # finds mistakes
fastpiper: 1 mistake
$ fastpipe run a.toml \\
    --data @photos/
```

    fastpipe graph a.toml

```text
fastpipe nonsense
```
"""
    assert list(shown_commands(page)) == [
        ["check", "a.toml", "--strict"],
        ["run", "a.toml", "--data", "@photos/"],
        ["graph", "a.toml"],
    ]
