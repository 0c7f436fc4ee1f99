"""``fastpipe quantize``: the model of a pipe in INT8, calibrated on real data through the pipe's own nodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from fastpipe.cli.data import HELP, Input, Inputs
from fastpipe.cli.modules import look_beside
from fastpipe.cli.paths import check_output, writing
from fastpipe.cli.terminal import complain, escaped_line, say

__all__ = ["add_arguments", "complain_of_failures", "run"]

METHODS = ("minmax", "entropy", "percentile")
MOST_SHOWN_FAILURES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe quantize`` takes."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the configuration, a TOML file")
    parser.add_argument("--data", metavar="DATA", required=True, action="append", help=HELP)
    parser.add_argument("-o", "--output", metavar="OUT.onnx", type=Path, required=True, help="where to write")
    parser.add_argument("--node", metavar="NODE", help="the node of the model (default: the first that runs one)")
    parser.add_argument(
        "--most",
        metavar="N",
        type=int,
        default=200,
        help="how many samples are used, from all over DATA (default: %(default)s)",
    )
    parser.add_argument(
        "--method", choices=METHODS, default="minmax", help="how ranges are chosen (default: %(default)s)"
    )
    parser.add_argument(
        "--per-tensor", action="store_true", help="one range for all of a weight, and not one for each of its channels"
    )
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Quantize and say what was done; 0 if the file was written."""
    if arguments.most < 1:
        arguments.fail(f"--most: at least 1, got {arguments.most}")
    check_output("--output", arguments.output)
    from fastpipe.models.quantizing import quantize

    look_beside(arguments.file)
    samples = ((item.name, item.read) for item in _spread(Inputs(arguments.data), arguments.most))
    with writing(arguments.output):
        done = quantize(
            arguments.file,
            samples,
            arguments.output,
            node=arguments.node,
            most=arguments.most,
            method=arguments.method,
            per_channel=not arguments.per_tensor,
        )
    complain_of_failures(done.failed)
    sizes = f"{done.size_before_bytes / 1e6:.2f} MB -> {done.size_bytes / 1e6:.2f} MB"
    say((str(done.path), "bold"), (f": {done.model.name} in INT8, {sizes}", ""))
    say((f"{done.quantized_count} operators in INT8; ranges of {done.used_count} samples", ""))
    say(("how much it loses: fastpipe compare FILE OUT.onnx, on data that it has not been calibrated with", "dim"))
    return 0


def _spread(inputs: Inputs, most: int) -> Iterator[Input]:
    """Yield so many of the inputs, from all of their list: a folder's first files may be all of one class."""
    count = inputs.count()
    for index, item in enumerate(inputs):
        if count is None or (index + 1) * most // count > index * most // count or count <= most:
            yield item


def complain_of_failures(failed: list[str]) -> None:
    """Say which samples were passed over, and why; of many, how many more."""
    for line in failed[:MOST_SHOWN_FAILURES]:
        complain(f"passed over: {escaped_line(line)}")
    if len(failed) > MOST_SHOWN_FAILURES:
        complain(f"passed over: {len(failed) - MOST_SHOWN_FAILURES} more")
