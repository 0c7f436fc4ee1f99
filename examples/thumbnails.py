"""Thumbnails of a folder of images:  python thumbnails.py FOLDER OUTPUT"""

import argparse
from pathlib import Path

from PIL import Image

import fastpipe


def main() -> None:
    """Shrink every file of a folder; what is no image is named, and the others go on."""
    parser = argparse.ArgumentParser(description="Thumbnails of a folder of images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    with fastpipe.Pipe(Path(__file__).with_suffix(".toml")) as pipe:
        requests = ({"data": path.read_bytes()} for path in files)
        for path, answer in zip(files, pipe.map(requests, return_exceptions=True), strict=True):
            if isinstance(answer, BaseException):
                print(f"{path.name}: {answer}")
                continue
            Image.fromarray(answer["result"]).save(arguments.output / f"{path.stem}.png")
            print(f"{path.name}: done")


if __name__ == "__main__":
    main()
