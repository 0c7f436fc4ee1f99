"""Do workers that were forked from a process with a pipe stop as fast as others?

    python bench/preload.py [--quick] [--model FILE.onnx]

Starts gunicorn with four workers whose application has a pipe at module level, once built in each worker, once before
the fork (``--preload``), waits until it answers, and takes the time from SIGTERM to its end. The two take turns. Needs
gunicorn. Without a model the pipe runs ``Identity``; with one, ``OnnxTensor``, whose library has threads and exit
handlers.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Spread

APPLICATION = """
import fastpipe
PIPE = fastpipe.Pipe({keys!r})

def application(environment, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

# gunicorn kills workers that have not stopped within its graceful timeout, 30 s: who comes near it hangs.
LONGEST_S = 60.0


def answers(address: Path) -> bool:
    """Whether a worker answers a request."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(address))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"200 OK" in connection.recv(1000)
    except OSError:
        return False


def seconds_to_stop(folder: Path, *, preload: bool) -> float:
    """Start gunicorn, stop it, and return how long that took."""
    address = folder / "socket"
    options = ["--workers", "4", "--bind", f"unix:{address}", "--log-level", "error", "--no-control-socket"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, *(["--preload"] if preload else []), "application:application"],
        cwd=folder,
    )
    try:
        deadline_s = time.monotonic() + LONGEST_S
        while not answers(address):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("gunicorn does not answer")
            time.sleep(0.05)
        time.sleep(1.0)  # all four are up
        began_s = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait(LONGEST_S)
        return time.monotonic() - began_s
    finally:
        server.kill()
        server.wait()
        address.unlink(missing_ok=True)


def main() -> None:
    """Measure both in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of seven")
    parser.add_argument("--model", type=Path, help="an ONNX model to have in the pipe")
    arguments = parser.parse_args()
    keys = {"backend": "Identity"}
    if arguments.model is not None:
        keys = {"backend": "OnnxTensor", "model": str(arguments.model.resolve())}
    taken: dict[str, list[float]] = {"built in each worker": [], "built before the fork": []}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "application.py").write_text(APPLICATION.format(keys=keys))
        for _ in range(1 if arguments.quick else 7):
            for name, seconds in taken.items():
                seconds.append(seconds_to_stop(Path(folder), preload=name == "built before the fork"))
    print("seconds from SIGTERM to the end, where the pipe is")
    for name, seconds in taken.items():
        spread = Spread.of(seconds)
        print(f"{name:<24}{spread.median:>10.2f} ({spread.least:.2f} to {spread.greatest:.2f})")


if __name__ == "__main__":
    main()
