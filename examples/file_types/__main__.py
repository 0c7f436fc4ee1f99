"""The command: ``python examples/file_types PATH ...``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a folder, which is the package ``file_types``

try:
    import fastpipe
    from file_types import pipeline
except ModuleNotFoundError as error:
    sys.exit(f"file_types: {error}; README.md beside it says what it needs")

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print what each file is; a folder stands for the files in it."""
    parser = argparse.ArgumentParser(prog="python examples/file_types", description=__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="*", type=Path, default=[HERE], help="(default: this example)")
    given = parser.parse_args().paths
    files = [file for path in given for file in (sorted(path.glob("*.*")) if path.is_dir() else [path])]
    with fastpipe.Pipe(pipeline.configuration()) as pipe:
        answers = pipe.map(({"data": file.read_bytes()} for file in files), return_exceptions=True)
        for file, answer in zip(files, answers, strict=True):
            if isinstance(answer, BaseException):
                print(f"{file.name}: {answer}")
            else:
                print(f"{file.name}: {answer['result']}, {answer['score']:.0%}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"file_types: {error}; README.md beside it says what it needs")
    except OSError as error:
        sys.exit(f"file_types: {error}")
