#!/usr/bin/env bash
# Ctrl-C while LitServe works on a request: the request is lost, and the server ends 30 s later.
#
# A terminal sends SIGINT to all processes. The model's worker ends in the middle of the request; the HTTP server waits
# for the answer that nobody will give, as long as its grace is, also where `timeout` says that requests take 8 s at most.
# Without a request in flight it ends within a second or two.
# LitServe 0.2.19.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "litserve==0.2.19"
cat > "$folder/server.py" <<'PY'
import sys
import time

import litserve


class Sleep(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, data):
        time.sleep(data["seconds"])
        return data


if __name__ == "__main__":
    server = litserve.LitServer(Sleep(), accelerator="cpu", timeout=8)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
PY
"$folder/venv/bin/python" - "$folder" <<'PY'
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and so its children


def ask(port, seconds):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps({"seconds": seconds}), {"Content-Type": "application/json"})
    return connection.getresponse().status


def interrupted(is_busy):
    """Return how long the server takes to end, and what became of a request of one second."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen([sys.executable, f"{sys.argv[1]}/server.py", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    said = []

    def ask_once():
        try:
            said.append(ask(port, 1))
        except OSError as error:
            said.append(type(error).__name__)

    try:
        for _ in range(300):
            try:
                assert ask(port, 0) == 200
                break
            except OSError:
                time.sleep(0.2)
        time.sleep(1)
        asking = threading.Thread(target=ask_once)
        if is_busy:
            asking.start()
            time.sleep(0.4)
        began_s = time.monotonic()
        os.killpg(server.pid, signal.SIGINT)
        server.wait(90)
        seconds = time.monotonic() - began_s
        if is_busy:
            asking.join()
        return seconds, said
    finally:
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


idle_s, _ = interrupted(False)
busy_s, said = interrupted(True)
print(f"litserve {importlib.metadata.version('litserve')}: Ctrl-C ends it after {idle_s:.1f} s when idle; "
      f"with a request of 1 s in flight after {busy_s:.1f} s, and the request gets {said}")
assert idle_s < 6, "the behaviour has changed, or the machine is too busy"
assert said != [200] and busy_s > 6, "the behaviour has changed"
PY
