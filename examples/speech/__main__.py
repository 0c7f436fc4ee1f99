"""The command: ``python examples/speech [SOUND.wav ...]``; without any, a recording that comes in a package."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import wave
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a folder, which is the package ``speech``

try:
    import numpy as np
    import numpy.typing as npt

    import fastpipe
    from speech import pipeline
except ModuleNotFoundError as error:
    sys.exit(f"speech: {error}; README.md beside it says what it needs")


def main() -> int:
    """Print when somebody speaks in each recording, as if all of them came from microphones at the same time."""
    parser = argparse.ArgumentParser(prog="python examples/speech", description=__doc__)
    parser.add_argument("paths", metavar="SOUND", nargs="*", type=Path, help="WAV files: mono, 16 bits, 16 kHz")
    parser.add_argument("--service", metavar="URL", help="ask service.py there, with a connection for each recording")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the probabilities; needs matplotlib")
    options = parser.parse_args()
    sounds = {str(path): samples_of(path) for path in options.paths or [sample()]}
    found = asyncio.run(ask_service(options.service, sounds)) if options.service else listen(sounds)
    if options.plot:
        plot(sounds, found, options.plot)
    for name, probabilities in found.items():
        print(Path(name).name)
        for begin, end in spoken(probabilities):
            print(f"  {begin:5.2f} s to {end:5.2f} s")
    return 0


def listen(sounds: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return how likely it is that somebody speaks, in each piece of each recording."""
    found: dict[str, list[float]] = {name: [] for name in sounds}
    with fastpipe.Pipe(pipeline.configuration()) as pipe:
        for moment in range(max(map(len, sounds.values()))):
            # What the microphones have given in these 32 ms.
            requests = [{"data": each[moment], "stream": name} for name, each in sounds.items() if moment < len(each)]
            pipe(requests)
            for request in requests:
                found[request["stream"]].append(request["result"])
    return found


async def ask_service(url: str, sounds: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the same, as a service says: each recording has a connection of its own."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    async def ask(pieces: Any) -> list[float]:
        found = []
        async with connect(url) as socket:
            for piece in pieces:
                await socket.send((piece * 32768).astype("<i2").tobytes())
                found.append(json.loads(await socket.recv())["speech"])
        return found

    try:
        return dict(zip(sounds, await asyncio.gather(*map(ask, sounds.values())), strict=True))
    except WebSocketException as error:
        raise ConnectionError(f"{url}: {error}") from error


def sample() -> Path:
    """Return a recording that comes in a package: ten seconds of a voice."""
    return Path(str(distribution("useful-moonshine-onnx").locate_file("moonshine_onnx/assets/beckett.wav")))


def samples_of(path: Path) -> npt.NDArray[np.float32]:
    """Return a recording in pieces of 512 samples, the last one filled up with silence."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, pipeline.RATE_HZ):
            raise ValueError(f"{path} is not mono of 16 bits at 16 kHz")
        numbers = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    pieces = np.zeros((-(-len(numbers) // pipeline.SAMPLES), pipeline.SAMPLES), np.float32)
    pieces.flat[: len(numbers)] = numbers / np.float32(32768)
    return pieces


def spoken(probabilities: list[float], *, shortest_pause_s: float = 0.25) -> Iterator[tuple[float, float]]:
    """Yield when speech begins and ends, in seconds; pauses that are shorter do not count."""
    seconds = pipeline.SAMPLES / pipeline.RATE_HZ
    begin = end = None
    for index, probability in enumerate(probabilities):
        if probability <= 0.5:
            continue
        if begin is not None and end is not None and index * seconds - end >= shortest_pause_s:
            yield begin, end
            begin = None
        begin = index * seconds if begin is None else begin
        end = (index + 1) * seconds
    if begin is not None and end is not None:
        yield begin, end


def plot(sounds: Mapping[str, Any], found: Mapping[str, list[float]], path: Path) -> None:
    """Draw each recording, and behind it the probability that somebody speaks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 * len(sounds)), layout="constrained")
    for axes, (name, sound) in zip(figure.subplots(len(sounds), squeeze=False)[:, 0], sounds.items(), strict=True):
        seconds = np.arange(len(sound)) * pipeline.SAMPLES / pipeline.RATE_HZ
        axes.fill_between(seconds, found[name], step="post", color="#f4c7a8", linewidth=0)
        axes.plot(np.arange(sound.size) / pipeline.RATE_HZ, 0.5 + sound.ravel(), color="#33415c", linewidth=0.4)
        axes.set(xlim=(0, sound.size / pipeline.RATE_HZ), ylim=(0, 1), yticks=(0, 0.5, 1), title=Path(name).name)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"speech: {error}; README.md beside it says what it needs")
    except (EOFError, OSError, ValueError, wave.Error) as error:
        sys.exit(f"speech: {str(error) or 'an empty file'}")
