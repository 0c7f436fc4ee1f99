"""The command: ``python examples/embedding [QUESTION] [--texts FILE]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a folder, which is the package ``embedding``

try:
    import numpy as np

    import fastpipe
    from embedding import pipeline
except ModuleNotFoundError as error:
    sys.exit(f"embedding: {error}; README.md beside it says what it needs")


def main() -> int:
    """Print the texts that are nearest to the question, nearest first."""
    parser = argparse.ArgumentParser(prog="python examples/embedding", description=__doc__)
    parser.add_argument("question", metavar="QUESTION", nargs="?", default="Where do they sell food?")
    parser.add_argument("--texts", type=Path, metavar="FILE", default=Path(__file__).with_name("sentences.txt"))
    parser.add_argument("--count", type=int, default=3, help="how many of the texts are printed (default: %(default)s)")
    options = parser.parse_args()
    texts = [line for line in options.texts.read_text().splitlines() if line]
    if not texts:
        raise ValueError(f"there is no text in {options.texts}")
    with fastpipe.Pipe(pipeline.configuration()) as pipe:
        question = pipe({"data": options.question})["result"]
        vectors = np.stack([answer["result"] for answer in pipe.map({"data": text} for text in texts)])
    print(options.question)
    nearness = vectors @ question  # the cosine, as both have length 1
    for index in np.argsort(-nearness)[: options.count]:
        print(f"  {nearness[index]:.2f}  {texts[index]}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"embedding: {error}; README.md beside it says what it needs")
    except (OSError, ValueError) as error:
        sys.exit(f"embedding: {error}")
