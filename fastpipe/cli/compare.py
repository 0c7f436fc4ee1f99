"""``fastpipe compare``: two models, or one in two precisions, on real data through the pipe's own nodes."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastpipe.cli.data import HELP, Inputs
from fastpipe.cli.modules import look_beside
from fastpipe.cli.paths import check_output
from fastpipe.cli.quantize import complain_of_failures
from fastpipe.cli.terminal import complain, put, say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe compare`` takes."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, a TOML file, with the first model")
    parser.add_argument(
        "other",
        metavar="OTHER",
        type=Path,
        nargs="?",
        help="a model file to put in the first one's place; or another TOML file, whose model is taken",
    )
    parser.add_argument("--data", metavar="DATA", required=True, action="append", help=HELP)
    parser.add_argument("--precision", metavar="P", help="of the second model, such as fp16")
    parser.add_argument("--node", metavar="NODE", help="the node of the model (default: the first that runs one)")
    parser.add_argument(
        "-o", "--output", metavar="OUT.html", type=Path, help="a page with the worst inputs as pictures"
    )
    parser.add_argument(
        "--worst", metavar="N", type=int, default=12, help="how many inputs it shows (default: %(default)s)"
    )
    parser.add_argument(
        "--least-agreement",
        metavar="SHARE",
        type=float,
        help="the exit status is 1 if a smaller share has the same top class, as in 0.99",
    )
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Compare and say what was seen; 1 if too few agree."""
    if arguments.worst < 1:
        arguments.fail(f"--worst: at least 1, got {arguments.worst}")
    if arguments.least_agreement is not None and not 0 <= arguments.least_agreement <= 1:
        arguments.fail(f"--least-agreement: a share from 0 to 1 is expected, got {arguments.least_agreement}")
    if arguments.other is None and arguments.precision is None:
        arguments.fail("there is nothing to compare with: name another model, or --precision")
    check_output("--output", arguments.output)
    from fastpipe.models.comparing import compare, other_model
    from fastpipe.models.comparison_page import page_of, summary_of
    from fastpipe.models.inputs import model_of

    look_beside(arguments.file)
    if arguments.other is not None and arguments.other.suffix == ".toml":
        look_beside(arguments.other)
    first = model_of(arguments.file, arguments.node)
    changes = {} if arguments.precision is None else {"precision": arguments.precision}
    second = other_model(first, arguments.other, changes)
    names = first.called, second.called
    samples = ((item.name, item.read) for item in Inputs(arguments.data))
    found = compare(first, second, samples, names=names, worst=arguments.worst)
    complain_of_failures(found.failed)
    say((names[0], "bold"), (" and ", ""), (names[1], "bold"))
    for name, value in summary_of(found):
        say((f"  {name}: ", "dim"), (value, ""))
    for difference in found.worst[:3]:
        classes = "" if difference.classes is None else ", class {} -> {}".format(*difference.classes)
        say((f"  worst: {difference.name}: {difference.relative:.2%}{classes}", ""))
    if arguments.output is not None:
        put(page_of(found), arguments.output)
        say((f"pictures of the worst {len(found.worst)}: {arguments.output}", ""))
    if arguments.least_agreement is not None:
        if not found.has_classes:
            complain("--least-agreement: the first output is no list of scores, so that there is no top class")
            return 1
        return int(found.agreement < arguments.least_agreement)
    return 0
