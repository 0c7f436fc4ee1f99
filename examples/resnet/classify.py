"""JPEGs through ResNet50:  python classify.py IMAGE... [--gpu] [--weights FILE]"""

import argparse
import sys
import tomllib
from pathlib import Path

import fastpipe

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Print the class of every image; what is no image is named, and the others go on."""
    parser = argparse.ArgumentParser(description="JPEGs through ResNet50.")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--gpu", action="store_true", help="gpu.toml instead of cpu.toml")
    parser.add_argument(
        "--weights", type=Path, help="a state dict of torchvision's ResNet50; random, if it is not there"
    )
    arguments = parser.parse_args()
    sys.path.insert(0, str(FOLDER))  # where the file finds "resnet50:make"
    config = tomllib.loads((FOLDER / ("gpu.toml" if arguments.gpu else "cpu.toml")).read_text())
    if arguments.weights:
        config["model"]["weights"] = arguments.weights.absolute()
    with fastpipe.Pipe(config) as pipe:
        requests = ({"data": path.read_bytes()} for path in arguments.images)
        for path, answer in zip(arguments.images, pipe.map(requests, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException):
                print(f"{path.name}: {answer}")
            else:
                print(f"{path.name}: class {answer['class']}, {answer['score']:.1%}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, fastpipe.PipeError) as error:
        sys.exit(f"classify: {error}")
