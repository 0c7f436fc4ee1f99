"""The page of the command line, from argparse: what ``fastpipe COMMAND --help`` says."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from fastpipe.cli.main import parser_of
from reference.words import default_in_words

__all__ = ["commands", "page"]

_HEAD = """# Commands and options

What `fastpipe --help` and `fastpipe COMMAND --help` say. What the commands are for, with what they print, is told in
[The command line](../docs/command-line.md).

`python -m fastpipe` is the same command. The exit status is 0 if all is well, 1 if something is wrong with what was
given, 2 if the command itself was, 130 after Ctrl-C.
"""

_COLUMN = {"positional arguments": "Argument", "options": "Option"}


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, which knows all of its arguments."""
    return {name: _subparsers(parser_of([name])).choices[name] for name in _subparsers(parser_of([])).choices}


def page() -> str:
    """Return the page, for the folder ``reference/`` of the site."""
    return "\n".join([_HEAD, *_overview(), "", *(_section(parser) for parser in commands().values())])


def _overview() -> Iterator[str]:
    yield "| Command | Does |\n| --- | --- |"
    for name, parser in commands().items():
        yield f"| [`fastpipe {name}`](#fastpipe-{name}) | {_text(parser.description).partition('. ')[0].rstrip('.')} |"


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _section(parser: argparse.ArgumentParser) -> str:
    usage = re.sub(r"^ {7}", "", parser.format_usage().removeprefix("usage: "), flags=re.MULTILINE)
    parts = [f"## {parser.prog}\n", f"{_text(parser.description)}\n", f"```text\n{usage}```\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            parts.append("\n".join(_rows(actions, _COLUMN.get(group.title or "", group.title or ""))))
            parts.append("")
    if parser.epilog:
        parts.append(f"{_text(parser.epilog)}\n")
    return "\n".join(parts)


def _rows(actions: list[argparse.Action], kind: str) -> Iterator[str]:
    yield f"| {kind} | Means |\n| --- | --- |"
    for action in actions:
        yield f"| {_names(action)} | {_help(action)} |"


def _names(action: argparse.Action) -> str:
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    value = choices if action.metavar is None else action.metavar
    shown = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return f"`{shown}`"
    takes = "" if action.nargs == 0 else f" {shown}"
    return ", ".join(f"`{name}{takes}`".replace("|", r"\|") for name in action.option_strings)


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": "fastpipe"}
    if action.required and action.option_strings:
        text += " (required)"
    elif action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in text:
        text += f" (default: {default_in_words(action.default)})"
    return _text(text)


def _text(text: str | None) -> str:
    """Return plain text as Markdown: options and file names as code, signs that mean something there as they are."""
    words = re.sub(r"\s+", " ", text or "").strip()
    words = re.sub(r"([*_<>|\[\]\\])", r"\\\1", words)
    words = re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", words)
    return words
