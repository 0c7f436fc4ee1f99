#!/usr/bin/env bash
# A LitServe server that waits for requests computes all the time once max_batch_size is above 1.
#
# With the default batch_timeout of 0 its worker asks the queue again and again without waiting; with a batch_timeout
# it asks every millisecond. With max_batch_size=1 it waits in the queue. Requests and answers are right in all cases.
# LitServe 0.2.19.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "litserve==0.2.19"
cat > "$folder/server.py" <<'PY'
import sys

import litserve


class Same(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, data):
        return data


if __name__ == "__main__":
    port, size, wait_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    waiting = {"batch_timeout": wait_s} if wait_s else {}
    api = Same(max_batch_size=size, **waiting)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
PY
"$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(session):
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def ask(port):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", b'{"number": 1}', {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=20))


def idle_ms(size, wait_s):
    """Return the CPU time that an idle server takes in a second."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen([sys.executable, f"{sys.argv[1]}/server.py", str(port), str(size), str(wait_s)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(300):
            try:
                assert ask(port) == {"number": 1}
                break
            except OSError:
                time.sleep(0.2)
        time.sleep(2)
        before_s, began_s = cpu_s(server.pid), time.monotonic()
        time.sleep(5)
        return (cpu_s(server.pid) - before_s) / (time.monotonic() - began_s) * 1e3
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


print(f"litserve {importlib.metadata.version('litserve')}: CPU time of an idle server, all its processes, in a second")
alone, at_once, waiting = idle_ms(1, 0), idle_ms(4, 0), idle_ms(4, 0.05)
print(f"  max_batch_size=1: {alone:.0f} ms; 4: {at_once:.0f} ms; 4 with batch_timeout=0.05: {waiting:.0f} ms")
assert alone < 30, "the behaviour has changed: without batches it computes, too"
assert at_once > 5 * alone + 50, "the behaviour has changed: it waits for requests without computing"
PY
