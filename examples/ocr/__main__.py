"""The command line of the demo: ``python examples/ocr [PATH ...]``, or ``python examples/ocr --serve``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastpipe.errors import MissingExtra, PipeError

if not __package__:  # run as a folder: it is the package ``ocr``, not a heap of modules
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from ocr import DemoError

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the process's exit status; what is wrong is said in one line on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.serve and options.paths:
        parser.error("--serve takes no files")
    try:
        try:
            if options.serve:
                from ocr import service
            else:
                from ocr import command
        except ModuleNotFoundError as error:
            raise MissingExtra("the demo", "demo", error) from error
        if options.serve:
            service.serve(options.http, options.grpc, options.instances)
        else:
            command.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (DemoError, ImportError, OSError, PipeError) as error:
        print(f"ocr: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/ocr",
        description="Read the text on pages with three models in one pipe, and compare with a plain loop. Of the sample"
        " pages, a search in what was read then answers under load, beside other ways of serving it.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", type=Path, help="image files; without any, sample pages")
    parser.add_argument("--text", action="store_true", help="print the text of all pages, not only of the first")
    parser.add_argument("--open", action="store_true", help="open the picture of the first page, with its boxes")
    parser.add_argument("--instances", type=_at_least_one, help="of each node (default: as many as CPUs, up to 8)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-pictures"), help="folder for the pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--reference", action="store_true", help="also read the pages with rapidocr_onnxruntime itself, and compare"
    )
    service = parser.add_argument_group("as a service")
    service.add_argument("--serve", action="store_true", help="a page to drop pictures on, and the same for programs")
    service.add_argument("--http", metavar="ADDRESS", default="127.0.0.1:8000", help="(default: %(default)s)")
    service.add_argument("--grpc", metavar="ADDRESS", default="127.0.0.1:8001", help="or 'none' (default: %(default)s)")
    return parser


def _at_least_one(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
