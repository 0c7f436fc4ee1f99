"""A folder of classes, or a list of files with labels, as a dataset for torch's DataLoader."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fastpipe.errors import ConfigError, MissingExtra, PipeError
from fastpipe.train.transforms import Transform, as_tensor

__all__ = ["IMAGE_SUFFIXES", "Dataset", "collate"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""What ``DecodeMat`` decodes without ``more_formats``."""

MOST_NAMED = 5


class Dataset:
    """Files and their labels: item i is the transformed file i, and its label. For torch's DataLoader, map-style.

        photos/train/cat/1.jpg
        photos/train/dog/1.jpg            classes == ["cat", "dog"], labels 0 and 1

    Args:
        source: a folder that has a folder for each class, read as torchvision's ``ImageFolder`` reads it: classes in
            the order of their names, files of a class at any depth. Or pairs of a path and its label, which may be
            anything that the DataLoader's ``collate_fn`` takes.
        transform: a :class:`Transform`; or the path of a TOML file, or a mapping, of which one is made.
        on_error: what becomes of a file that cannot be read or has no result. "raise": its error, with a note that
            names the file. "skip": the item is None, and a warning in the log ``fastpipe.train`` names the file; the
            DataLoader needs ``collate_fn=fastpipe.train.collate``, and its batch is that much smaller. An error of
            ``augment``, and of building the nodes, is raised in any case.
        suffixes: of the files of a folder that count, in any case; None: all, but hidden ones.

    Attributes:
        samples: pairs of path and label.
        targets: the labels.
        classes: the names of the classes; of pairs, empty.
        class_to_idx: class to label.

    Raises:
        ConfigError: there is no such folder, or it has no class, or a class has no file; or as of ``Transform``.

    Thread-safety, fork, pickling: as of ``Transform``.
    """

    def __init__(
        self,
        source: str | Path | Iterable[tuple[str | Path, Any]],
        transform: Transform | str | Path | Mapping[str, Any],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        suffixes: Sequence[str] | None = IMAGE_SUFFIXES,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r:.100}")
        self.transform = transform if isinstance(transform, Transform) else Transform(transform)
        self.on_error = on_error
        self.classes: list[str] = []
        if isinstance(source, str | Path):
            self.classes, self.samples = _read_folder(Path(source), suffixes)
        else:
            self.samples = [(str(path), label) for path, label in source]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}

    @property
    def targets(self) -> list[Any]:
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        """Return tensor and label; None: the file is skipped, see ``on_error``."""
        path, label = self.samples[index]
        failure: Exception | None
        try:
            request = self.transform.request(Path(path))
        except OSError as error:
            failure = error
        else:
            failure = self.transform.attempt(request)
            if failure is None:
                return as_tensor(request["result"]), label
        if self.on_error == "raise":
            failure.add_note(f"fastpipe: of the file {path}")
            raise failure
        logging.getLogger("fastpipe.train").warning("%s is skipped: %s: %s", path, type(failure).__name__, failure)
        return None

    def __repr__(self) -> str:
        return f"<fastpipe.train.Dataset of {len(self)} files, {len(self.classes)} classes: {self.transform!r}>"


def collate(batch: Sequence[Any]) -> Any:
    """Put the items of a batch together as torch does, without those that are None.

    Raises:
        PipeError: all of them are.
        MissingExtra: torch is not installed.
    """
    kept = [item for item in batch if item is not None]
    if not kept:
        raise PipeError(f"none of the {len(batch)} files of a batch could be read: the log fastpipe.train names them")
    try:
        from torch.utils.data import default_collate
    except ImportError as error:
        raise MissingExtra("fastpipe.train", "torch", error) from error
    return default_collate(kept)


def _read_folder(root: Path, suffixes: Sequence[str] | None) -> tuple[list[str], list[tuple[str, Any]]]:
    """Return the names of the classes, and each file with the index of its class."""
    if not root.is_dir():
        raise ConfigError(f"there is no folder {str(root)!r}; a folder with a folder for each class is expected")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ConfigError(f"{str(root)!r} has no folders; one for each class is expected")
    endings = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
    samples: list[tuple[str, Any]] = []
    empty = []
    for label, name in enumerate(classes):
        count = len(samples)
        paths = sorted(_files_in(os.path.join(root, name), set()))
        samples += [(path, label) for path in paths if endings is None or path.lower().endswith(endings)]
        if len(samples) == count:
            empty.append(name)
    if empty:
        wanted = "" if endings is None else f" that ends with one of {', '.join(endings)}"
        raise ConfigError(
            f"{str(root)!r}: no file{wanted} in {', '.join(empty[:MOST_NAMED])}, of {len(classes)} classes"
        )
    return classes, samples


def _files_in(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files at any depth; a folder that links lead to twice is read once."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_in(entry.path, seen)
            elif entry.is_file():  # no pipe or socket: reading it could wait for ever
                yield entry.path
