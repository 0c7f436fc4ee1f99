"""``fastpipe export``: a torch model as an ONNX file whose batch axis is open, and proved to be one."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastpipe.cli.paths import check_output, writing
from fastpipe.cli.terminal import say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastpipe export`` takes."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:Name of a torch module, or of a class or function that makes one without arguments; or a "
        ".pt2 file",
    )
    parser.add_argument("-o", "--output", metavar="OUT.onnx", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--shape",
        metavar="3x224x224[:TYPE]",
        action="append",
        default=[],
        help="of an item of an input, without the batch axis, and its type (default: float32); once for each input. A "
        ".pt2 file says it itself",
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="a state dict to put into the module")
    parser.add_argument(
        "--simplify",
        action="store_true",
        help="try onnxsim and onnxslim, those that are installed, and keep what has the fewest operators",
    )
    parser.add_argument("--opset", metavar="N", type=int, default=18, help="of the file (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=1e-3,
        help="how far a number may be from torch's, of the largest in its output (default: %(default)s)",
    )
    parser.add_argument("--trusted", action="store_true", help="load files that could run code, such as pickles")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Export and say what was seen; 0 if the file was written."""
    from fastpipe.models.exporting import export

    shapes, dtypes = [], []
    for text in arguments.shape:
        shape, _, dtype = text.partition(":")
        if not all(size.isdecimal() and int(size) for size in shape.split("x")):
            arguments.fail(f"--shape {text}: sizes with an x between them are expected, as in 3x224x224 or 16:int64")
        shapes.append(tuple(int(size) for size in shape.split("x")))
        dtypes.append(dtype or "float32")
    check_output("--output", arguments.output)
    model = arguments.model if ":" in arguments.model else Path(arguments.model)
    with writing(arguments.output):
        done = export(
            model,
            arguments.output,
            shapes=shapes,
            dtypes=dtypes,
            weights=arguments.weights,
            simplifies=arguments.simplify,
            opset=arguments.opset,
            tolerance=arguments.tolerance,
            trusted=arguments.trusted,
        )
    say((str(done.path), "bold"), (f": {done.inputs} -> {done.outputs}", ""))
    say((f"{done.node_count} operators, {done.size_bytes / 1e6:.2f} MB, {done.kept}", ""))
    for line in done.tried:
        say((f"  {line}", "dim"))
    differences = ", ".join(f"{size}: {value:.1e}" for size, value in done.differences.items())
    say((f"as torch in batches of {differences} (of the largest number); its rows are proved", ""))
    return 0
