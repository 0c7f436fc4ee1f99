"""What a request costs a ``fastpipe serve`` in processor time, and how much memory the process has.

    python bench/serve_costs.py [--seconds 4]

Needs the extras ``cpu`` and ``serve``. Clients are threads of this process; the server is one of its own. Processor
time, unlike requests a second, hardly depends on what else the machine does.
"""

import argparse
import http.client
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

REPEATS, CLIENTS = 3, 8
ECHO = '[main]\nbackend = "Identity"\nmax = 8\n'
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "fastapi_service"


def processor_s(pid: int) -> float:
    """Return how long a process, and its threads, have run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return how much memory a process has in use."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def binary(name: str, datatype: str, shape: list[int], data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a call with one binary tensor, whose answer is binary, too."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def send(port: int, path: str, body: bytes, headers: dict[str, str], seconds: float) -> int:
    """Let all clients ask, one after the other each; return how many answers there were."""
    ends_s, counts = time.monotonic() + seconds, [0] * CLIENTS

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.monotonic() < ends_s:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            if (answer.status, len(answer.read()) > 0) != (200, True):
                raise SystemExit(f"{path}: {answer.status}")
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def measure(what: str, folder: Path, model: str, body: bytes, headers: dict[str, str], seconds: float) -> None:
    """Start a server, send it a request over and over again, and print what each has cost."""
    command = [sys.executable, "-m", "fastpipe", "serve", f"m={model}", "--http", "127.0.0.1:0", "--grpc", "none"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = int(server.stdout.readline().split()[0].rpartition(":")[2])
    idle_mb = resident_mb(server.pid)
    send(port, "/v2/models/m/infer", body, headers, 1)
    costs_ms = []
    for _ in range(REPEATS):
        before_s = processor_s(server.pid)
        count = send(port, "/v2/models/m/infer", body, headers, seconds)
        costs_ms.append((processor_s(server.pid) - before_s) / count * 1e3)
    print(
        f"{what:32} {statistics.median(costs_ms):5.2f} ms ({min(costs_ms):.2f} to {max(costs_ms):.2f}) a request, "
        f"{idle_mb:.0f} MB at first, {resident_mb(server.pid):.0f} MB under load"
    )
    server.terminate()
    server.wait()


def main() -> None:
    """Measure two echoes and the example."""
    parser = argparse.ArgumentParser(description="Measure what a request costs a server.")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of three windows")
    seconds = parser.parse_args().seconds
    noise = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX))[1]
    numbers = {"inputs": [{"name": "data", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "echo.toml").write_text(ECHO)
        measure("4 numbers in JSON, echoed", folder, "echo.toml", json.dumps(numbers).encode(), {}, seconds)
        body, headers = binary("data", "FP32", [1, 3, 224, 224], bytes(4 * 3 * 224 * 224))
        measure("602 kB of binary data, echoed", folder, "echo.toml", body, headers, seconds)
    file = jpeg.tobytes()
    body, headers = binary("image", "BYTES", [1, 1], struct.pack("<I", len(file)) + file)
    measure(f"JPEG of {len(file) // 1000} kB, thumbnail", EXAMPLE, "pipeline.toml", body, headers, seconds)


if __name__ == "__main__":
    main()
