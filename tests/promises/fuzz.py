"""Coverage-guided fuzzing of everything that reads what strangers, or tired people, have written; needs atheris.

    python tests/promises/fuzz.py headers --seconds 3600      one reader for an hour
    python tests/promises/fuzz.py --seconds 60                each of them for a minute, which is what CI does

A reader may refuse with the errors of its contract. Anything else that it raises, more than ten seconds for one input,
or more than two gigabytes, is a finding: the process of that reader fails, and the input is in build/fuzz/READER/.
Inputs begin with a few seeds that this file makes, so no corpus is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "build" / "fuzz"
LONGEST_S = 10
MOST_MB = 2048

Reads = Callable[[bytes], None]


# ---- what reads, each with its seeds -----------------------------------------------------------------------------


def headers() -> tuple[Reads, Iterator[bytes]]:
    """Headers of images: the size, the orientation, and what goes on to a decoder."""
    sys.path.append(str(ROOT / "tests" / "support"))
    import image_corpus

    from fastpipe.backends.image.header import read_header
    from fastpipe.backends.image.more_headers import read_more

    formats = frozenset(("tiff", "gif", "jpeg2000", "avif", "heic"))

    def read(content: bytes) -> None:
        header = read_header(memoryview(content)) or read_more(memoryview(content), formats, 0)
        if header is not None:
            assert header.width >= 0
            assert header.height >= 0
            assert header.pieces is None or sum(map(len, header.pieces)) <= 2 * len(content) + 4096

    images = {**image_corpus.all_images(), **dict(image_corpus.more_images()), "heic": image_corpus.SMALL_HEIC}
    return read, (content for content in images.values() if len(content) < 4096)


def notation() -> tuple[Reads, Iterator[bytes]]:
    """The bracket notation; what was read is written the same way again."""
    from fastpipe.config.notation import parse
    from fastpipe.errors import ConfigError

    def read(content: bytes) -> None:
        try:
            step = parse(content.decode(errors="replace"))
        except ConfigError:
            return
        assert str(parse(str(step))) == str(step)

    return read, iter([b"S[A,(or)B[C],D(5, key='x y')]", b'A(k="\\"", 1e3, true, none)', b"m:N[o.p(-1)]"])


def configurations() -> tuple[Reads, Iterator[bytes]]:
    """Configuration files, nodes and graph; nothing that they name is imported, and nothing built."""
    from fastpipe.config import registry
    from fastpipe.config.problems import Problems
    from fastpipe.config.reading import examine
    from fastpipe.config.wiring import add_mistakes_of_the_graph
    from fastpipe.errors import ConfigError

    def refuse(name: str) -> Any:
        raise ConfigError(f"no module is imported here: {name}")

    registry.import_object = refuse

    def read(content: bytes) -> None:
        try:
            written = tomllib.loads(content.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
            return
        config, problems, _ = examine(written, {}, None)
        assert isinstance(problems, Problems)
        add_mistakes_of_the_graph(config.nodes, problems)

    seeds = [path.read_bytes() for path in sorted((ROOT / "tests" / "torchpipe").glob("*.toml"))]
    return read, iter(seeds)


def records() -> tuple[Reads, Iterator[bytes]]:
    """Files of recorded requests, whole ones and what is inside of them."""
    from fastpipe.debug import record_files
    from fastpipe.errors import PipeError

    folder = tempfile.mkdtemp(prefix="fastpipe-fuzz-")
    path = Path(folder, f"record{record_files.SUFFIX}")

    def read(content: bytes) -> None:
        # Half of the inputs are a manifest in a zip that is right: flipped bits would end at its checksums.
        if content[:1] < b"\x80":
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(record_files.MANIFEST, content[1:])
                archive.writestr("0.npy", content[-100:])
            content = packed.getvalue()
        path.write_bytes(content)
        try:
            record = record_files.read(path)
            assert isinstance(record.lost, list)
            record.request()
        except PipeError:
            return

    values = {
        "data": b"bytes",
        "more": [1, None, (2.5, {"k": 1 + 2j})],
        "text": "t",
        "path": Path("p"),
        "odd": {3: {4}},
    }
    encoded, _ = record_files.encode({"request": values, "answer": {"result": 3}})
    manifest = b"\x00" + json.dumps({"format": 1, "configuration": {}, "outcome": "failed", **encoded}).encode()
    return read, iter([manifest, b"\x80PK\x05\x06" + bytes(18)])


def onnx() -> tuple[Reads, Iterator[bytes]]:
    """ONNX files, for the files that they say lie beside them."""
    from onnx import TensorProto, helper

    from fastpipe.backends.model.onnx_runtime.files import weights_beside
    from fastpipe.errors import ConfigError

    def read(content: bytes) -> None:
        try:
            weights_beside(content)
        except ConfigError:
            return

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    outside = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.bin", "offset": "0", "length": "8"}.items():
        outside.external_data.add(key=key, value=value)
    node = helper.make_node("Add", ["w", "v"], ["y"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graphs = [helper.make_graph([node], "g", [], [result], each) for each in ([weight], [weight, outside])]
    return read, iter([helper.make_model(graph).SerializeToString() for graph in graphs])


def planted() -> tuple[Reads, Iterator[bytes]]:
    """Not a reader: a mistake that has to be found, or nothing that is said of the others counts."""

    def read(content: bytes) -> None:
        if content[:3] == b"bug":
            raise RuntimeError("planted")

    return read, iter([b"nothing"])


READERS: dict[str, Callable[[], tuple[Reads, Iterator[bytes]]]] = {
    reader.__name__: reader for reader in (planted, headers, notation, configurations, records, onnx)
}


# ---- running them ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz one reader in this process, or each in a process of its own; 0 if nothing was found but what is planted."""
    parser = argparse.ArgumentParser(description="Fuzz what reads untrusted input.")
    parser.add_argument("reader", nargs="?", choices=READERS, help="default: each of them")
    parser.add_argument("--seconds", type=int, default=60, metavar="S", help="for each reader (default: 60)")
    options = parser.parse_args(arguments)
    if options.reader is not None:
        fuzz(options.reader, options.seconds)  # does not return
    failed = []
    for name in READERS:
        command = [sys.executable, __file__, name, "--seconds", str(options.seconds)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        runs = next((line for line in ran.stdout.splitlines() if line.startswith("stat::number_of_executed")), "")
        was_found = ran.returncode != 0
        said = "found something" if was_found else "nothing found"
        sys.stdout.write(f"{name}: {said}, inputs: {runs[-12:].strip()}\n")
        if was_found is not (name == "planted"):
            sys.stdout.write(ran.stdout[-4000:])
            failed.append(name)
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one reader; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["fastpipe", "zipfile", "json"]):
        read, seeds = READERS[name]()
    findings = FINDINGS / name
    findings.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="fastpipe-fuzz-corpus-"))
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}", "-max_len=8192"]
    said = [f"-artifact_prefix={findings}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *said, str(corpus)], atheris.instrument_func(read))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
