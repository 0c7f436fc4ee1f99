"""The server of ``fastpipe serve``, which does what it is told on stdin.  python fastpipe_told.py FILE.toml PORT

swap NODE    gives the node new instances, and answers how many seconds that took
trace        counts allocations from now on
peak         answers how many bytes were allocated at most since then
"""

from __future__ import annotations

import sys
import threading
import time
import tomllib
import tracemalloc
from pathlib import Path
from typing import Any

import fastpipe
from fastpipe.serve.addresses import bind
from fastpipe.serve.repository import Repository
from fastpipe.serve.server import Plan, serve


def told(pipe: fastpipe.Pipe) -> None:
    """Do what each line says."""
    for line in sys.stdin:
        verb, *names = line.split()
        answer: Any = 0
        if verb == "swap":
            began_s = time.perf_counter()
            pipe.swap(*names)
            answer = time.perf_counter() - began_s
        elif verb == "trace":
            tracemalloc.start()
        elif verb == "peak":
            answer = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        print(answer, flush=True)


def main() -> None:
    """Serve until SIGTERM."""
    path, port = sys.argv[1:]
    with fastpipe.Pipe(tomllib.loads(Path(path).read_text())) as pipe:
        threading.Thread(target=told, args=(pipe,), daemon=True).start()
        serve(Repository({"model": pipe}), bind(f"127.0.0.1:{port}"), Plan(grace_s=5), lambda _: None)


if __name__ == "__main__":
    main()
