"""How many images a second does a DataLoader give with the nodes of a pipe, and with torchvision's own transforms?

    python bench/training.py                      three sizes of JPEGs, in this process, and with two workers
    python bench/training.py --images FOLDER      your JPEGs
    python bench/training.py --quick              a few images, to see that it runs

Both decode, make the shorter side 256, cut out 224 x 224 and normalise, with the numbers of ImageNet: torchvision as
``ImageFolder`` with ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize``, fastpipe with ``ResizeShorterMat``,
``CenterCropMat`` and ``NormalizeMat``; once more with ``scale = "auto"``, which decodes no more of a JPEG than is
needed. Tensors are compared before anything is timed. Contestants take turns; the figures are medians of the turns,
with the least and the greatest. Torch and OpenCV use one thread, as they do in workers. Each turn is timed twice: by a
clock, with the start of the workers, and in processor time of all processes, which others on the machine disturb less.
It does not show what a GPU would wait for, nor files that have to come from a disk.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import images
from common import Spread

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NODES = {
    "decode": {"backend": "S[DecodeMat,ResizeShorterMat]", "shorter_side": 256, "next": "prepare"},
    "prepare": {"backend": "S[CenterCropMat,NormalizeMat]", "crop_h": 224, "crop_w": 224, "preset": "imagenet"},
}
SCALED = {**NODES, "decode": {**NODES["decode"], "scale": "auto"}}
BATCH = 32
FILES_OF_EACH = 64
# Both divide by 255 and by the standard deviation, in another order; JPEG decoders of two versions round differently.
LARGEST_DIFFERENCE = 0.02
GOAL = 1.3
CLOCKS = ("clock", "processor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and the least ratios beside the goal; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG files to take instead of the samples")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="default: 0 2")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1024, help="images of each turn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one turn of a batch, of one size, without workers")
    options = parser.parse_args(arguments)
    if options.quick:
        options.workers, options.turns, options.count = [0], 1, BATCH
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = images.names(options.images)[: 1 if options.quick else 3]
    print(f"{_torchvision_in_words()}; batches of {BATCH}; {options.turns} turns of {options.count} images")
    names_of_columns = "torchvision, images/s | fastpipe | times | fastpipe, scale = auto | times"
    print(f"| images | workers | seconds | {names_of_columns} |")
    print(f"| {' | '.join(['---'] * 8)} |")
    ratios: dict[str, list[float]] = {"fastpipe": [], "scaled": []}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), images.jpeg(name, options.images))
            contestants = {"torchvision": _torchvision(folder), "fastpipe": _ours(folder, NODES)}
            _compare(name, contestants)
            contestants["scaled"] = _ours(folder, SCALED)
            for workers in options.workers:
                for clock, rates in _in_turns(contestants, workers, options.turns, options.count).items():
                    for who, found in ratios.items():
                        if clock == "processor":
                            found.append(statistics.median(rates[who]) / statistics.median(rates["torchvision"]))
                    print(f"| {name} | {workers} | {clock} | {_row(rates)} |", flush=True)
    least = {who: min(found) for who, found in ratios.items()}
    print(f"least ratios in processor time: {least['fastpipe']:.2f}, scaled {least['scaled']:.2f}; the goal is {GOAL}")
    return 0


def _write(folder: Path, jpeg: bytes) -> None:
    (folder / "only").mkdir()
    for number in range(FILES_OF_EACH):
        (folder / "only" / f"{number}.jpg").write_bytes(jpeg)


def _ours(folder: str, nodes: dict[str, Any]) -> Any:
    from fastpipe.train import Dataset

    return Dataset(folder, nodes)


def _import_torchvision() -> Any:
    """Return torchvision, whose transforms also work where its operators do not fit the installed torch.

    A wheel that was built for torch with CUDA cannot load its operators beside torch for the CPU; transforms need none.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        import torchvision
    import torchvision.datasets
    import torchvision.transforms

    return torchvision


def _torchvision_in_words() -> str:
    import cv2
    import PIL
    import torch

    versions = {"torchvision": _import_torchvision(), "torch": torch, "Pillow": PIL, "OpenCV": cv2}
    return ", ".join(f"{name} {library.__version__}" for name, library in versions.items())


def _torchvision(folder: str) -> Any:
    torchvision = _import_torchvision()
    from torchvision import transforms

    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return torchvision.datasets.ImageFolder(folder, transforms.Compose(steps))


def _compare(name: str, contestants: dict[str, Any]) -> None:
    """Raise WrongAnswer if tensors differ by more than rounding."""
    from common import WrongAnswer

    first, second = (data[0][0] for data in contestants.values())
    difference = float((first - second).abs().max())
    if first.shape != second.shape or difference > LARGEST_DIFFERENCE:
        raise WrongAnswer(f"{name}: tensors of {first.shape} and {second.shape} differ by {difference}")


def _in_turns(contestants: dict[str, Any], workers: int, turns: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Return images a second by each way of timing, of each contestant, turn by turn; who begins changes."""
    rates: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in contestants} for clock in CLOCKS}
    order = list(contestants)
    for _ in range(turns):
        for name in order:
            for clock, seconds in zip(CLOCKS, _seconds_of(contestants[name], workers, count), strict=True):
                rates[clock][name].append(count / seconds)
        order.append(order.pop(0))
    return rates


def _seconds_of(data: Any, workers: int, count: int) -> tuple[float, float]:
    """Return how long one epoch of so many images takes, by the clock and in processor time."""
    from torch.utils.data import DataLoader, RandomSampler

    sampler = RandomSampler(data, replacement=True, num_samples=count)
    began_s, began_processor_s = time.perf_counter(), _processor_s()
    got = sum(len(batch[0]) for batch in DataLoader(data, BATCH, sampler=sampler, num_workers=workers))
    assert got == count
    return time.perf_counter() - began_s, _processor_s() - began_processor_s


def _processor_s() -> float:
    """Return what this process, and all workers that have ended, have had of the processors."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _row(rates: dict[str, list[float]]) -> str:
    cells = []
    for name, values in rates.items():
        spread = Spread.of(values)
        cells.append(f"{spread.median:.0f} ({spread.least:.0f} to {spread.greatest:.0f})")
        if name != "torchvision":
            ratio = Spread.of_ratio(values, rates["torchvision"])
            cells.append(f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.greatest:.2f})")
    return " | ".join(cells)


if __name__ == "__main__":
    raise SystemExit(main())
