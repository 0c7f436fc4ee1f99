"""Do models that come inside packages give through a pipe what ONNX Runtime gives alone?

    make real-models                    # installs the packages and tries all of them
    python tests/promises/real_models.py --only silero --json

Every model runs in each way that it can be run: by one caller and by sixteen with ``max = 1``, and by sixteen whose
requests share runs, where fastpipe finds the proof that they may; sixteen have two instances. Of a model with a state,
the state is handed on by the callers, then by the pipe (``state_of``). What fastpipe refuses must be what
``packaged_models`` says that it refuses. Every number is compared with that of a plain ``InferenceSession``, given one
request.

The largest difference of a number is in parts of that number, or of 1 where that is smaller; a way passes that is no
further than 1e-5. "of itself" is how far ONNX Runtime alone is from itself if it is given four requests at once.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from packaged_models import COUNT, MODELS, STREAMS, Array, PackagedModel, Sample, Stream

import fastpipe

LARGEST_DIFFERENCE = 1e-5
SMALLEST_CONTRAST = 1e-3
"""Answers to different requests are that far apart; otherwise one could get another's, and nobody would notice."""
CALLERS = 16
STEPS = 24
"""Requests of each stream."""


@dataclass
class Line:
    """One model, run in one way."""

    model: str
    axes: str
    way: str
    difference: float = 0.0
    own: float = 0.0
    largest_batch: int = 1
    problem: str = ""

    @property
    def text(self) -> str:
        outcome = self.problem or f"{self.difference:.1e}"
        own = f"{self.own:.1e}" if self.largest_batch > 1 and not self.problem else ""
        return f"{self.model:<20} {self.way:<26} {self.largest_batch:>5}  {outcome:>8}  {own:>9}  {self.axes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each way; return 1 if one fails, or if no package is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--json", action="store_true", help="lines of JSON instead of a table")
    options = parser.parse_args(arguments)
    lines = []
    if not options.json:
        _say(f"{'model':<20} {'way':<26} {'batch':>5}  {'largest':>8}  {'of itself':>9}  inputs")
    for line in tried(options.only):
        _say(json.dumps(asdict(line)) if options.json else line.text)
        lines.append(line)
    failed = [line for line in lines if line.problem]
    if not lines:
        sys.stderr.write("none of the packages is installed: see make real-models\n")
    return 1 if failed or not lines else 0


def tried(only: str = "", count: int = COUNT, steps: int = STEPS) -> Iterator[Line]:
    """Yield the lines of all models whose package is installed.

    Args:
        only: of models with this in their name.
        count: requests in each way.
        steps: requests of each stream.
    """
    for model in MODELS:
        if only in model.name and model.path is not None:
            yield from ways_of(model, count)
    for stream in STREAMS:
        if only in stream.name and stream.path is not None:
            yield from ways_of_stream(stream, steps)


def ways_of(model: PackagedModel, count: int = COUNT) -> Iterator[Line]:
    """Yield the lines of a model; its package is installed."""
    session = _session(model.path)
    samples = [model.sample(number) for number in range(count)]
    alone = [_plain(session, sample, model.plain_rows) for sample in samples]
    own = _own_difference(session, samples, alone)
    axes = _inputs_of(session)
    one = {"max": 1} if model.plain_rows == 1 else {"max": model.plain_rows, **model.options}
    ways = [("one caller", 1, one), (f"{CALLERS} callers", CALLERS, one)]
    if not model.refused:
        ways.append((f"{CALLERS} callers, batches", CALLERS, {**model.options, "max": model.batch}))
    if model.pad:
        ways.append((f"{CALLERS} callers, padded", CALLERS, {**model.options, "max": model.batch, "pad": model.pad}))
    for way, callers, keys in ways:
        instances = min(2, callers)
        with fastpipe.Pipe(
            backend="OnnxTensor", model=model.path, instance_num=instances, threads=instances, **keys
        ) as pipe:
            answers = _called(lambda sample, pipe=pipe: pipe({"data": sample})["result"], samples, callers)
            wanted = alone
            if callers > 1:  # one caller with all of them: full batches, where they may share any
                requests = [{"data": sample} for sample in samples]
                pipe(requests)
                answers += [request["result"] for request in requests]
                wanted = alone * 2
            line = Line(model.name, axes, way, own=own, largest_batch=_largest_batch(pipe))
        line.difference = max(map(_difference, answers, wanted))
        if not line.difference <= LARGEST_DIFFERENCE:
            line.problem = f"{line.difference:.1e} FAILS"
        elif max(_difference(each, alone[0]) for each in alone) < SMALLEST_CONTRAST:
            line.problem = "FAILS: all requests have the same answer, which tells nothing"
        yield line
    if model.refused:
        yield _refusal(model, axes)


def _refusal(model: PackagedModel | Stream, axes: str) -> Line:
    """Return the line of a model that may not be batched: that it is refused, and with which words."""
    line = Line(model.name, axes, "batches: refused")
    try:
        fastpipe.Pipe(backend="OnnxTensor", model=model.path, threads=1, max=4, **model.options).close()
    except fastpipe.ConfigError as error:
        if model.refused not in str(error):
            line.problem = f"FAILS: refused with other words: {error}"
    else:
        line.problem = "FAILS: it is not refused"
    return line


# ---- with a state ----------------------------------------------------------------------------------------------------


def ways_of_stream(stream: Stream, steps: int = STEPS) -> Iterator[Line]:
    """Yield the lines of a model with a state; its package is installed."""
    session = _session(stream.path)
    names = [output.name for output in session.get_outputs()]
    expected = []
    for number in range(CALLERS):
        alone = Follower(stream, number)
        for step in range(steps):
            outputs = session.run(None, alone.request(step)["data"])
            alone.take(dict(zip(names, outputs, strict=True)))
        expected.append(alone)
    axes = _inputs_of(session)
    most = 1 if stream.refused else 4
    for way, count, keys in (
        ("one caller", 1, {"max": 1}),
        (f"{CALLERS} callers", CALLERS, {"max": 1}),
        ("4 streams", 4, {"max": most}),
        ("4 streams, state_of", 4, {"max": most, "state_of": "stream"}),
        (f"{CALLERS} streams, state_of", CALLERS, {"max": most, "state_of": "stream"}),
    ):
        with _pipe_of(stream, **keys) as pipe:
            followers = [Follower(stream, number, hands_on="state_of" not in keys) for number in range(count)]
            if count == 4:
                _in_step(pipe, followers, steps)
            else:
                _called(functools.partial(_followed, pipe, steps), followers, count)
            line = Line(stream.name, axes, way, largest_batch=_largest_batch(pipe))
        pairs = zip((each.outputs for each in followers), expected[:count], strict=True)
        line.difference = max(
            _difference(list(given.values()), [wanted[name] for name in given])
            for followed, alone in pairs
            for given, wanted in zip(followed, alone.outputs, strict=True)
        )
        if not line.difference <= LARGEST_DIFFERENCE:
            line.problem = f"{line.difference:.1e} FAILS"
        yield line
    if stream.refused:
        yield _refusal(stream, axes)


class Follower:
    """Asks for one stream, step by step.

    Args:
        stream: the model.
        number: of the stream.
        hands_on: it brings the state that the answer before had; otherwise the pipe keeps it.
    """

    def __init__(self, stream: Stream, number: int, *, hands_on: bool = True) -> None:
        self._stream, self._number, self._hands_on = stream, number, hands_on
        self._state = stream.first_state()
        self.outputs: list[dict[str, Array]] = []

    def request(self, step: int) -> fastpipe.Request:
        inputs = _inputs(self._stream, self._number, step)
        return {"data": {**inputs, **self._state} if self._hands_on else inputs, "stream": self._number}

    def take(self, found: dict[str, Array]) -> None:
        if self._hands_on:
            self._state = self._stream.next_state(found)
        self.outputs.append(found)


def _pipe_of(stream: Stream, **keys: Any) -> fastpipe.Pipe:
    """Return a pipe of the model; with ``state_of`` it keeps the states, and its results are the other outputs."""
    model = {"model": stream.path, "threads": 1, "result_as": "dict", **stream.options}
    if "state_of" in keys:
        model["state"] = {name: output for name, (_, output) in stream.state.items()}
    return fastpipe.Pipe(backend="OnnxTensor", **model, **keys)


def _followed(pipe: fastpipe.Pipe, steps: int, follower: Follower) -> None:
    for step in range(steps):
        follower.take(pipe(follower.request(step))["result"])


def _in_step(pipe: fastpipe.Pipe, followers: Sequence[Follower], steps: int) -> None:
    """Ask for the next step of all streams together."""
    for step in range(steps):
        requests = [follower.request(step) for follower in followers]
        pipe(requests)
        for follower, request in zip(followers, requests, strict=True):
            follower.take(request["result"])


@functools.cache
def _inputs(stream: Stream, number: int, step: int) -> Sample:
    return stream.inputs(number, step)


# ---- ONNX Runtime alone ----------------------------------------------------------------------------------------------


def _session(path: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _plain(session: onnxruntime.InferenceSession, sample: Sample, rows: int) -> list[Array]:
    """Return the outputs for one request; rows of zeros follow where the model is run with more."""
    fixed = session.get_inputs()[0].shape[0]
    rows = max(rows, fixed if isinstance(fixed, int) else 1)
    padded = {name: np.concatenate([array, *[np.zeros_like(array)] * (rows - 1)]) for name, array in sample.items()}
    outputs: list[Array] = session.run(None, padded)
    return [output[:1] for output in outputs] if rows > 1 else outputs


def _own_difference(
    session: onnxruntime.InferenceSession, samples: Sequence[Sample], alone: Sequence[list[Array]]
) -> float:
    """Return how far ONNX Runtime's answers to four requests at once are from those to one; 0 if it takes no four."""
    by_shape: dict[Any, list[int]] = {}
    for index, sample in enumerate(samples):
        by_shape.setdefault(tuple(array.shape for array in sample.values()), []).append(index)
    four = max(by_shape.values(), key=len)[:4]
    try:
        joined = {name: np.concatenate([samples[index][name] for index in four]) for name in samples[0]}
        outputs = session.run(None, joined)
    except Exception:  # ONNX Runtime's errors have no base class of their own; a fixed batch, most often
        return 0.0
    if any(output.shape[:1] != (len(four),) for output in outputs):
        return 0.0
    rows = [[output[row : row + 1] for output in outputs] for row in range(len(four))]
    return max(_difference(row, alone[index]) for row, index in zip(rows, four, strict=True))


# ---- comparing -------------------------------------------------------------------------------------------------------


def _difference(given: Any, wanted: Sequence[Array]) -> float:
    """Return the largest difference, in parts of the number that was wanted, or of 1; infinite: other shapes."""
    outputs = given if isinstance(given, list) else [given]
    if [output.shape for output in outputs] != [output.shape for output in wanted]:
        return float("inf")
    worst = 0.0
    for output, expected in zip(outputs, wanted, strict=True):
        numbers = expected.astype(np.float64)
        apart = np.abs(output.astype(np.float64) - numbers) / np.maximum(1.0, np.abs(numbers))
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst


def _called(call: Callable[[Any], Any], samples: Sequence[Any], callers: int) -> list[Any]:
    """Return the answers, asked for by so many threads that begin together."""
    if callers == 1:
        return [call(sample) for sample in samples]
    start = threading.Barrier(min(callers, len(samples)))
    turn = itertools.count()

    def ask(sample: Any) -> Any:
        if next(turn) < start.parties:
            start.wait()
        return call(sample)

    with ThreadPoolExecutor(start.parties) as pool:
        return list(pool.map(ask, samples))


def _largest_batch(pipe: fastpipe.Pipe) -> int:
    (node,) = pipe.stats()["nodes"].values()
    return int(node["batch_sizes"]["max"])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _inputs_of(session: onnxruntime.InferenceSession) -> str:
    return ", ".join(f"{value.name} {_axes(value.shape)}" for value in session.get_inputs())


def _axes(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(axis) if axis is not None and len(str(axis)) <= 15 else "?" for axis in shape) + "]"


if __name__ == "__main__":
    sys.exit(main())
