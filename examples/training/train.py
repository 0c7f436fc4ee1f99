"""Trains a small net with the nodes that serve it, then serves it:  python train.py [FOLDER] [--seconds 60]

FOLDER has a folder of images for each class, in `train` and `test`. Without it, crops of scikit-image's pictures are
made: of the left two thirds to train with, of the right third to test with.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastpipe
from fastpipe.train import Dataset, collate, transform

PIPELINE = Path(__file__).with_name("pipeline.toml")
PICTURES = ("astronaut", "brick", "chelsea", "coffee", "coins", "grass", "gravel", "ihc")
SIDE = 96


class Net(nn.Module):
    """A small net: images (n, 3, 56, 56), normalised -> (n, classes)."""

    def __init__(self, class_count: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.classes = nn.Linear(64, class_count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classes(self.layers(images).mean((2, 3)))


def main() -> None:
    """Train, save, serve, and say whether what is served is what was trained."""
    parser = argparse.ArgumentParser(description="Trains a small net with the nodes that serve it, then serves it.")
    parser.add_argument("folder", type=Path, nargs="?", help="with train/CLASS/ and test/CLASS/; default: crops")
    parser.add_argument("--seconds", type=float, default=60, help="of training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of the DataLoader (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("net.pt2"), help="where the net goes (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or make_crops(Path(made))
        net, classes = train(folder / "train", arguments.seconds, arguments.workers)
        save(net, arguments.out)
        serve(net, classes, folder / "test", arguments.out)


def make_crops(folder: Path, count: int = 60) -> Path:
    """Write crops of scikit-image's pictures, a class for each picture."""
    import cv2
    import skimage

    random = np.random.default_rng(0)
    for name in PICTURES:
        image = cv2.imread(str(Path(skimage.__path__[0], "data", f"{name}.png")))
        height, width = image.shape[:2]
        for part, left, right in (("train", 0, width * 2 // 3), ("test", width * 2 // 3, width)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count if part == "train" else count // 4):
                y, x = random.integers(0, height - SIDE), random.integers(left, right - SIDE)
                cv2.imwrite(str(folder / part / name / f"{number}.jpg"), image[y : y + SIDE, x : x + SIDE])
    return folder


def flip(image: np.ndarray) -> np.ndarray:
    """Augment: any code of yours, torchvision's or Albumentations', on an image of (height, width, 3), uint8."""
    return image[:, ::-1] if torch.rand(()) < 0.5 else image


def train(folder: Path, seconds: float, workers: int) -> tuple[Net, list[str]]:
    """Train for a while, and return the net and the names of the classes."""
    torch.manual_seed(0)
    prepare = transform(PIPELINE, augment=flip, augment_before="NormalizeMat")
    data = Dataset(folder, prepare, on_error="skip")
    loader = DataLoader(data, 32, shuffle=True, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0)
    net = Net(len(data.classes))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    end = time.monotonic() + seconds
    for epoch in itertools.count(1):
        losses = []
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if time.monotonic() > end:
            print(f"trained: {epoch} epochs of {len(data)} images, loss {np.mean(losses):.3f}")
            return net.eval(), data.classes


def save(net: Net, path: Path) -> None:
    """Export the net with a batch axis that is open."""
    example = torch.zeros(2, 3, 56, 56)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)


def serve(net: Net, classes: list[str], folder: Path, path: Path) -> None:
    """Ask the pipe for the class of each test image, and the net itself with the transform's tensors."""
    data = Dataset(folder, transform(PIPELINE))
    with torch.no_grad():
        trained = [int(net(torch.stack([image])).argmax()) for image, _ in data]
    with fastpipe.Pipe(PIPELINE, model={"model": path.absolute()}) as pipe:
        requests = ({"data": Path(file).read_bytes()} for file, _ in data.samples)
        served = [int(answer["class"]) for answer in pipe.map(requests)]
    same = sum(one == other for one, other in zip(trained, served, strict=True))
    right = sum(one == label for one, label in zip(served, data.targets, strict=True))
    print(f"served: {same} of {len(data)} classes as the trained net says, {right} of them right")
    print(f"example: {Path(data.samples[0][0]).name} of {classes[data.targets[0]]} is served as {classes[served[0]]}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, fastpipe.PipeError) as error:
        sys.exit(f"train: {error}")
