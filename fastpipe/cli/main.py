"""The command ``fastpipe``: look at a configuration, run it, measure it, tune it; watch pipes, requests and machines.

The exit status is 0 if all is well, 1 if something is wrong with what was given, 2 if the command itself was.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastpipe.cli.modules import look_beside
from fastpipe.cli.paths import check_output, writing
from fastpipe.cli.terminal import Escaping, complain, escaped_line, put, say
from fastpipe.errors import PipeError, nearest
from fastpipe.faults import text_of

if TYPE_CHECKING:
    from fastpipe.show.picture import Picture

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["main", "parser_of"]

FINE, MISTAKES = 0, 1
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
_KINDS = {"txt": ".txt", "svg": ".svg", "html": ".html .htm", "png": ".png", "mmd": ".mmd", "dot": ".dot .gv"}
_SUFFIXES = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. ``arguments`` are those behind the command's name."""
    # Whatever else writes there, such as logging and warnings, writes text of files and requests.
    with contextlib.redirect_stderr(Escaping(sys.stderr)):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, unknown = parser_of(given).parse_known_args(given)
    if unknown:
        options.command.error(_unknown(unknown, options.command))
    # A file may name backends of modules beside which the command is run, as with `python -m`. A record may not: beside
    # it may lie whatever came with it, under the name of a module that fastpipe imports.
    if options.runs_own_code(options) and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKES
    except (PipeError, OSError) as error:
        complain(f"fastpipe: {_told(error)}")
        return MISTAKES
    except SystemExit as leaving:  # argparse's, or of code that a file names, which Python would show unescaped
        if leaving.code is None or isinstance(leaving.code, int):
            raise
        complain(text_of(leaving))
        return MISTAKES
    except BaseException:  # of code that a file names: its traceback is shown, but not by Python, as above
        import traceback

        complain(traceback.format_exc().rstrip("\n"))
        return MISTAKES
    return status


def _unknown(arguments: Sequence[str], command: argparse.ArgumentParser) -> str:
    """Return what a command says of arguments that it does not take."""
    known = [option for action in command._actions for option in action.option_strings]
    near = next(filter(None, (nearest(each.partition("=")[0], known) for each in arguments)), "")
    return f"unrecognized arguments: {' '.join(arguments)}{near}"


def _told(error: PipeError | OSError) -> str:
    """Return what an error says: of a file, which one, and what the system says of it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def parser_of(given: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; of the one that ``given`` begins with, it knows the arguments."""
    parser = argparse.ArgumentParser(
        prog="fastpipe", description="Look at configurations of pipes, run them, and look into requests."
    )
    parser.add_argument("--version", action=_Version, help="say which fastpipe, engine and Python this is")
    parser.set_defaults(runs_own_code=lambda options: True)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_graph(commands)
    _add_check(commands)
    _add_schema(commands)
    _add_debug(commands, is_given="debug" in given[:1])
    _add_replay(commands, is_given="replay" in given[:1])
    for name, what in _TOOLS.items():
        _add_tool(commands, name, what, given)
    for command in commands.choices.values():
        command.set_defaults(command=command)
    return parser


def _add_graph(commands: _Commands) -> None:
    graph = commands.add_parser(
        "graph", help="draw a configuration", description="Draw a configuration. Nothing is built."
    )
    graph.add_argument("file", metavar="FILE", type=Path, help="a TOML file")
    _add_output(graph)
    graph.add_argument("--format", choices=sorted(_KINDS), help="default: what OUT ends with, else txt")
    graph.add_argument("--dark", action="store_true", help="for a dark page (png; others adapt themselves)")
    graph.add_argument("--scale", type=float, default=2.0, metavar="FACTOR", help="of a png (default: 2)")
    graph.set_defaults(run=_graph, fail=graph.error)


def _add_check(commands: _Commands) -> None:
    check = commands.add_parser(
        "check",
        help="find all mistakes in configurations",
        description="Find all mistakes in configurations, with their places. Backends are imported; none is built "
        "without --build.",
    )
    check.add_argument("files", metavar="FILE", nargs="+", type=Path, help="TOML files")
    check.add_argument("--build", action="store_true", help="where no mistake is found, build the pipe, too")
    check.add_argument("--strict", action="store_true", help="warnings are mistakes, too")
    check.set_defaults(run=_check)


def _add_schema(commands: _Commands) -> None:
    schema = commands.add_parser(
        "schema",
        help="write the JSON schema of configurations",
        description="Write the JSON schema of configurations, by which editors complete and check them.",
    )
    _add_output(schema)
    schema.set_defaults(run=_schema)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", metavar="OUT", type=Path, help="where to write (default: to the terminal)")


# The arguments of these come with modules that the others do not need.


def _add_debug(commands: _Commands, *, is_given: bool) -> None:
    debug = commands.add_parser(
        "debug",
        help="take a request through a pipe, node by node",
        description="Build a pipe, and take one request through it at a prompt, node by node.",
    )
    if is_given:
        from fastpipe.cli import prompt

        prompt.add_arguments(debug)
        debug.set_defaults(run=prompt.run)


def _add_replay(commands: _Commands, *, is_given: bool) -> None:
    replay = commands.add_parser(
        "replay",
        help="run recorded requests again",
        description="Run recorded requests again, eagerly, and compare what comes of them with what came then.",
    )
    if is_given:
        from fastpipe.cli import replay as replaying

        replaying.add_arguments(replay)
        replay.set_defaults(run=replaying.run, runs_own_code=replaying.is_trusted)


_TOOLS = {
    "run": ("take files or lines through a pipe", "Take files or lines through a pipe, and write what comes of each."),
    "bench": ("measure a pipe under load", "Measure throughput and latencies of a pipe under load."),
    "tune": (
        "find the best settings of a pipe",
        "Search the settings with which a pipe answers most requests a second while its latencies stay within a limit.",
    ),
    "doctor": (
        "look at this machine",
        "Say what there is of CPUs, libraries, GPUs and caches, and what would make a pipe slow here.",
    ),
    "serve": (
        "serve pipes over HTTP and gRPC",
        "Serve pipes by the Open Inference Protocol v2, over HTTP and gRPC, until a signal ends it.",
    ),
    "export": (
        "write a torch model as ONNX",
        "Write a torch model as an ONNX file whose batch axis is open: tried in batches of 1, 2 and 3 beside torch, "
        "and proved to keep requests apart.",
    ),
    "quantize": (
        "write a pipe's model in INT8",
        "Write the ONNX model of a pipe in INT8, calibrated on real data through the pipe's own nodes.",
    ),
    "compare": (
        "compare two models on real data",
        "Run two models, or one in two precisions, on real data through the pipe's own nodes, and say how far apart "
        "they are.",
    ),
    "live": ("watch a running pipe", "Show what the pipe of a running service does, node by node, each second."),
}
"""Commands with a module of their own, which has ``add_arguments`` and ``run``: their help, and description."""

_NEED_NO_PIPE = ("doctor", "live")


def _add_tool(commands: _Commands, name: str, what: tuple[str, str], given: Sequence[str]) -> None:
    tool = commands.add_parser(name, help=what[0], description=what[1])
    if name in given[:1]:
        module = importlib.import_module(f"fastpipe.cli.{name}")
        module.add_arguments(tool)
        tool.set_defaults(run=module.run, given=given[1:], runs_own_code=lambda options: name not in _NEED_NO_PIPE)


class _Version(argparse.Action):
    """``--version``: what is said is looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from fastpipe.cli.doctor import version_line

        say((version_line(), ""))
        parser.exit()


# ---- commands --------------------------------------------------------------------------------------------------


def _graph(options: argparse.Namespace) -> int:
    check_output("--output", options.output)
    suffix = options.output.suffix.lower() if options.output is not None else ".txt"
    kind: str = options.format or _SUFFIXES.get(suffix, "")
    if not kind:
        options.fail(
            f"{str(options.output)!r} ends with none of {', '.join(_SUFFIXES)}: --format says what it is to be"
        )
    try:
        picture = _picture_of(options.file)
    except PipeError as error:
        name = escaped_line(str(options.file))
        complain(f"fastpipe graph: {name}: {error}\n`fastpipe check {name}` says where")
        return MISTAKES
    if kind == "txt" and options.output is None:
        for rails, name, rest in picture.rows():
            say((rails, "dim"), (name, "bold cyan"), (rest, ""))
        return FINE
    if kind == "png":
        if options.output is None:
            options.fail("a PNG needs a file: -o graph.png")
        with writing(options.output):
            options.output.write_bytes(picture.png(dark=options.dark, scale=options.scale))
        return FINE
    drawn: dict[str, Callable[[], str]] = {
        "txt": lambda: f"{picture}\n",
        "svg": picture.svg,
        "html": lambda: picture.html(options.file.name),
        "mmd": picture.mermaid,
        "dot": picture.dot,
    }
    put(drawn[kind](), options.output)
    return FINE


def _picture_of(path: Path) -> Picture:
    from fastpipe.config.reading import load
    from fastpipe.config.sub_graphs import jumps_of
    from fastpipe.config.wiring import compile_graph
    from fastpipe.show.picture import Picture

    look_beside(path)
    with warnings.catch_warnings():  # `check` shows them
        warnings.simplefilter("ignore")
        configs = load(path, {}).nodes
    return Picture(configs, compile_graph(configs, jumps_of(configs)))


def _check(options: argparse.Namespace) -> int:
    from fastpipe.cli.check import check
    from fastpipe.cli.reporting import lines_of

    reports = [check(path, builds=options.build) for path in options.files]
    for report in reports:
        for line in lines_of(report):
            say(*line)
    if not all(report.has_positions for report in reports if report.findings):
        say(("lines and columns are known with: pip install 'fastpipe-engine[cli]'", "dim"))
    mistakes = sum(report.mistake_count for report in reports)
    warned = sum(report.warning_count for report in reports)
    return MISTAKES if mistakes or (options.strict and warned) else FINE


def _schema(options: argparse.Namespace) -> int:
    import json

    from fastpipe.cli.schema import schema

    check_output("--output", options.output)

    put(json.dumps(schema(), indent=2) + "\n", options.output)
    return FINE
