"""A running ``fastpipe serve``, in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import WAIT_S

START_S = 3 * WAIT_S
"""For processes that are started: the machine may be busy."""


class Command:
    """A running ``fastpipe serve``; with a process group of its own, signals can be sent to it and its workers."""

    def __init__(self, folder: Path, *arguments: str, http: str = "127.0.0.1:0", has_own_group: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fastpipe", "serve", "--grpc", "none", "--http", http, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if has_own_group else None,
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr or ()))
        self._reader.start()
        self.said = (self.process.stdout.readline() if self.process.stdout is not None else "").strip()
        found = re.search(r"http://[^:]+:(\d+)", self.said)
        self.port = int(found[1]) if found else 0

    def get(self, path: str) -> int:
        with self.connected() as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def infer(self, model: str) -> tuple[int, Any]:
        body = {"inputs": [{"name": "data", "datatype": "INT32", "shape": [1], "data": [7]}]}
        with self.connected() as connection:
            connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def connected(self) -> contextlib.closing[http.client.HTTPConnection]:
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S))

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the status, and what was written to stderr."""
        status = self.process.wait(START_S)
        self._reader.join(WAIT_S)
        return status, "".join(self.errors)


@contextlib.contextmanager
def command(folder: Path, *arguments: str, **more: Any) -> Iterator[Command]:
    running = Command(folder, *arguments, **more)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
        running.end()
        if running.process.stdout is not None:
            running.process.stdout.close()
        if running.process.stderr is not None:
            running.process.stderr.close()
