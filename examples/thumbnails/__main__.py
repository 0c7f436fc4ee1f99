"""Thumbnails of a folder of images: ``python examples/thumbnails [FOLDER]``; without one, pictures of scikit-image."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

try:
    from PIL import Image
except ModuleNotFoundError as error:
    sys.exit(f"thumbnails: {error}; README.md beside it says what it needs")

import fastpipe

CONFIGURATION = Path(__file__).with_name("thumbnails.toml")
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "README.txt", "rocket.jpg")


def files_of(folder: Path | None) -> list[Path]:
    """Return the files of a folder, by name; without one, four pictures of scikit-image and a text."""
    if folder:
        return sorted(path for path in folder.iterdir() if path.is_file())
    found = find_spec("skimage")
    if found is None or found.origin is None:
        sys.exit("thumbnails: name a folder of images, or install scikit-image for a few")
    return [Path(found.origin).parent / "data" / name for name in SAMPLES]


def main() -> None:
    """Shrink every file; what is no image is named, and the others go on."""
    parser = argparse.ArgumentParser(prog="python examples/thumbnails", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", nargs="?")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: %(default)s", default=Path("thumbnails"))
    options = parser.parse_args()
    files = files_of(options.folder)
    options.out.mkdir(parents=True, exist_ok=True)
    with fastpipe.Pipe(CONFIGURATION) as pipe:
        requests = ({"data": path.read_bytes()} for path in files)
        for path, answer in zip(files, pipe.map(requests, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException):
                print(f"{path.name}: {answer}")
                continue
            small = options.out / f"{path.stem}.png"
            Image.fromarray(answer["result"]).save(small)
            print(f"{path.name}: {small}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"thumbnails: {error}")
