#!/usr/bin/env bash
# A LitServe server that gets SIGTERM ends, and its other processes go on answering at its port.
#
# `kill`, systemd with KillMode=process and supervisors send SIGTERM to one process, the first. That one ends at once;
# the HTTP server and the model's worker are processes of their own, which nobody tells. Ctrl-C, which a terminal sends
# to all of them, ends all.
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
    server = litserve.LitServer(Same(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
PY
"$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.metadata
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]


def ask():
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", b'{"number": 1}', {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=20).status


def processes(session):
    count = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += int(fields[3]) == session and fields[0] != "Z"
    return count


server = subprocess.Popen([sys.executable, f"{sys.argv[1]}/server.py", str(port)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
try:
    for _ in range(300):
        try:
            assert ask() == 200
            break
        except OSError:
            time.sleep(0.2)
    os.kill(server.pid, signal.SIGTERM)
    status = server.wait(30)
    time.sleep(10)
    left, answer = processes(server.pid), ask()
finally:
    os.killpg(server.pid, signal.SIGKILL)
print(f"litserve {importlib.metadata.version('litserve')}: the server's process ends with {signal.Signals(-status).name}; "
      f"10 s later {left} processes are there, and a request has status {answer}")
assert left > 0 and answer == 200, "the behaviour has changed"
PY
