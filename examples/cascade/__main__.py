"""A cheap model first, a better one where that is not sure: ``python examples/cascade``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastpipe

try:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
except ModuleNotFoundError as error:
    sys.exit(f"cascade: {error}; README.md beside it says what it needs")


class Classify(fastpipe.Backend):
    """An image of a digit, float64 of shape (64,) -> which one it is; sets ``score``, the probability of that.

    Args:
        model: a trained one of scikit-learn's, with ``predict_proba``.
    """

    max_batch = 64
    keeps_input = True

    def __init__(self, *, model: Any) -> None:
        self.model = model

    def forward(self, batch: list[fastpipe.Request]) -> None:
        probabilities = self.model.predict_proba(np.stack([request["data"] for request in batch]))
        for request, each in zip(batch, probabilities, strict=True):
            request.update(result=int(each.argmax()), score=float(each.max()))


def unless_sure(least_score: float) -> Callable[[fastpipe.Request], fastpipe.Status]:
    """Return a filter: in front of its node, a request with this score ends with the result that it has."""

    def end_if_sure(request: fastpipe.Request) -> fastpipe.Status:
        return fastpipe.Status.Break if request["score"] >= least_score else fastpipe.Status.Run

    return end_if_sure


def build(least_score: float = 0.8, *, cheap: Any = None, better: Any = None) -> fastpipe.Pipe:
    """Return a pipe of two trained models. Requests that the first is not sure of share the second one's batches."""
    return fastpipe.Pipe(
        cheap={"backend": Classify, "model": cheap, "next": "better"},
        better={"backend": Classify, "model": better, "filter": unless_sure(least_score)},
    )


def main() -> None:
    """Train both models with one half of scikit-learn's digits, and read the other half."""
    parser = argparse.ArgumentParser(prog="python examples/cascade", description=__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what other least scores do; needs matplotlib")
    options = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    half = len(images) // 2
    cheap = make_pipeline(StandardScaler(), LogisticRegression()).fit(images[:half], digits[:half])
    better = ExtraTreesClassifier(500, random_state=0).fit(images[:half], digits[:half])

    def read(least_score: float) -> tuple[int, int]:
        """Return how many of the images were read right, and how many of them the better model was asked for."""
        with build(least_score, cheap=cheap, better=better) as pipe:
            answers = pipe.map({"data": image} for image in images[half:])
            right = sum(answer["result"] == digit for answer, digit in zip(answers, digits[half:], strict=True))
            return right, pipe.stats()["nodes"]["better"]["requests"]

    print(f"{len(images) - half} images of digits")
    for name, least_score in (("cheap alone", 0.0), ("better alone", 1.1), ("cascade", 0.8)):
        right, asked = read(least_score)
        print(f"{name + ':':13} {right} right, {asked} by the better model")
    if options.plot:
        plot([read(least_score) for least_score in (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.1)], options.plot)


def plot(points: list[tuple[int, int]], path: Path) -> None:
    """Draw how many are right against how many the better model is asked for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([asked for _, asked in points], [right for right, _ in points], "o-", color="#33415c")
    for (right, asked), name in ((points[0], "cheap alone"), (points[5], "score ≥ 0.8"), (points[-1], "better alone")):
        is_last = name == "better alone"
        shift = (0, -16) if is_last else (8, -5 if name == "cheap alone" else -16)
        axes.annotate(name, (asked, right), shift, textcoords="offset points", ha="right" if is_last else "left")
    axes.set(xlabel="images that the better model is asked for", ylabel="images read right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
