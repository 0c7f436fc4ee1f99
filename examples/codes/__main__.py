"""The command: ``python examples/codes [PICTURE ...]``; without any, a picture that it makes itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a folder, which is the package ``codes``

try:
    import fastpipe
    from codes import pipeline, sample
except ModuleNotFoundError as error:
    sys.exit(f"codes: {error}; README.md beside it says what it needs")


def main() -> int:
    """Print the codes of each picture, best first."""
    parser = argparse.ArgumentParser(prog="python examples/codes", description=__doc__)
    parser.add_argument("paths", metavar="PICTURE", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for pictures with a frame around each code")
    options = parser.parse_args()
    pictures = {path.name: path.read_bytes() for path in options.paths} or {"sample.jpg": sample.sample_picture()}
    with fastpipe.Pipe(pipeline.configuration()) as pipe:
        answers = pipe.map(({"data": picture} for picture in pictures.values()), return_exceptions=True)
        for (name, picture), answer in zip(pictures.items(), answers, strict=True):
            if isinstance(answer, BaseException):
                print(f"{name}: {answer}")
                continue
            print(f"{name}: {len(answer['result'])} codes")
            for text, number, score in zip(answer["result"], answer["classes"], answer["scores"], strict=True):
                print(f"  {pipeline.NAMES[number]}, {score:.0%}: {text or 'cannot be read'}")
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                sample.marked(picture, answer).save(options.out / f"{Path(name).stem}.jpg", quality=80)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"codes: {error}; README.md beside it says what it needs")
    except OSError as error:
        sys.exit(f"codes: {error}")
