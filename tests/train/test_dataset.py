"""Datasets of files for torch's DataLoader: folders of classes, damaged files, and workers however they are started."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastpipe import ConfigError, NoResult, PipeError
from fastpipe.train import Dataset, collate

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed here (extra cpu)")
torch = pytest.importorskip("torch", reason="PyTorch is not installed here (extra torch)")

TOML = '[small]\nbackend = "S[DecodeMat,ResizeMat,NormalizeMat]"\nresize_h = 6\nresize_w = 5\npreset = "imagenet"\n'


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes with two photos each, one in a folder of its own, and what is no photo."""
    root = tmp_path / "photos"
    for number, name in enumerate(("cat/1.jpg", "cat/more/2.PNG", "dog/1.bmp", "dog/3.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 30, 3), 40 * number, np.uint8)
        path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    (root / "dog" / "notes.txt").write_text("a good dog")
    (root / "dog" / ".hidden.jpg").write_text("no photo")
    (root / "cat" / "again").symlink_to(root / "cat")
    (tmp_path / "pipeline.toml").write_text(TOML)
    return root


def test_a_folder_of_classes_is_read_as_torchvision_reads_it(photos: Path) -> None:
    """Classes and files in the order of their names; a link that leads in a circle is followed once."""
    data = Dataset(photos, photos.parent / "pipeline.toml")
    names = [str(Path(path).relative_to(photos)) for path, _ in data.samples]
    assert names == ["cat/1.jpg", "cat/more/2.PNG", "dog/1.bmp", "dog/3.png"]
    assert (data.classes, data.class_to_idx, data.targets) == (["cat", "dog"], {"cat": 0, "dog": 1}, [0, 0, 1, 1])
    assert len(data) == 4
    tensor, label = data[3] or (None, None)
    assert (tensor.shape, tensor.dtype, label) == ((3, 6, 5), torch.float32, 1)


def test_pairs_of_a_path_and_a_label_are_a_dataset(photos: Path) -> None:
    """A label may be anything."""
    data = Dataset([(photos / "cat" / "1.jpg", [0.5, 2.0])], photos.parent / "pipeline.toml")
    assert (data[0] or (0, 0))[1] == [0.5, 2.0]
    assert data.classes == []


def test_a_damaged_file_is_raised_with_its_name(photos: Path) -> None:
    """By default; so is a file that is gone."""
    (photos / "cat" / "1.jpg").write_bytes(b"\xff\xd8\xff damaged")
    (photos / "cat" / "2.jpg").write_bytes(b"")
    data = Dataset(photos, photos.parent / "pipeline.toml")
    (photos / "cat" / "2.jpg").unlink()
    with pytest.raises(NoResult, match="step DecodeMat gave no result") as caught:
        data[0]
    assert f"fastpipe: of the file {photos}/cat/1.jpg" in caught.value.__notes__
    with pytest.raises(FileNotFoundError):
        data[1]


def test_a_damaged_file_is_left_out_and_named_in_the_log(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The batch is that much smaller; of a batch without any there is nothing to give."""
    (photos / "cat" / "1.jpg").write_bytes(b"\xff\xd8\xff damaged")
    data = Dataset(photos, photos.parent / "pipeline.toml", on_error="skip")
    with caplog.at_level(logging.WARNING, "fastpipe.train"):
        tensors, labels = collate([data[0], data[1], data[2]])
    assert tensors.shape == (2, 3, 6, 5)
    assert labels.tolist() == [0, 1]
    (message,) = caplog.messages
    assert message.startswith(f"{photos}/cat/1.jpg is skipped: NoResult: node 'small'")
    with pytest.raises(PipeError, match="none of the 1 files"):
        collate([data[0]])


def test_what_augment_raises_is_nobodys_damaged_file(photos: Path) -> None:
    """A mistake in the user's code does not make an empty dataset."""
    from fastpipe.train import transform

    def broken(image: object) -> object:
        raise ZeroDivisionError("mine")

    prepare = transform(photos.parent / "pipeline.toml", augment=broken, augment_before="NormalizeMat")
    with pytest.raises(ZeroDivisionError):
        Dataset(photos, prepare, on_error="skip")[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root / "nowhere", "there is no folder"),
        (lambda root: root / "cat" / "more", "has no folders"),
        (
            lambda root: (root / "fox").mkdir() or root,
            "no file that ends with one of .jpg, .jpeg, .png, .webp, .bmp in",
        ),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(photos: Path, make: object, said: str) -> None:
    """With what is missing."""
    with pytest.raises(ConfigError, match=said):
        Dataset(make(photos), photos.parent / "pipeline.toml")  # type: ignore[operator]


LOADERS = """
import sys
import torch
from torch.utils.data import DataLoader
import cv2
from fastpipe.train import Dataset


def thread_count(batch):
    with open("/proc/self/status") as status:
        own = next(int(line.split()[1]) for line in status if line.startswith("Threads:"))
    return torch.stack([tensor for tensor, _ in batch]), cv2.getNumThreads(), own


if __name__ == "__main__":
    data = Dataset(sys.argv[1], sys.argv[2])
    here = torch.stack([data[index][0] for index in range(len(data))])  # built in the parent before it forks
    for way, count in (("fork", 2), ("spawn", 1)):
        loader = DataLoader(data, batch_size=2, num_workers=count, multiprocessing_context=way, collate_fn=thread_count)
        batches = list(loader)
        same = torch.equal(torch.cat([tensors for tensors, _, _ in batches]), here)
        print(way, same, {threads for _, threads, _ in batches}, max(own for _, _, own in batches))
"""


def test_workers_give_the_same_tensors_forked_and_spawned(photos: Path, tmp_path: Path) -> None:
    """Each builds its own nodes, also where the parent has built them before; OpenCV has one thread in a worker."""
    script = tmp_path / "loaders.py"
    script.write_text(LOADERS)
    ran = subprocess.run(
        [sys.executable, "-P", script, photos, tmp_path / "pipeline.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    forked, spawned = (line.rsplit(" ", 1) for line in ran.stdout.splitlines())
    assert forked[0] == "fork True {1}"
    assert int(forked[1]) <= 2  # the worker, and torch's watch over its queue
    assert spawned[0] == "spawn True {1}"


def test_it_is_pickled_small(photos: Path) -> None:
    """A spawned worker gets the list of files and the description, and no more."""
    data = Dataset(photos, photos.parent / "pipeline.toml")
    expected = data[0] or (torch.empty(0), 0)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal((again[0] or (torch.empty(0), 0))[0], expected[0])
