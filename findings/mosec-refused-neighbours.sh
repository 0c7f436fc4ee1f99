#!/usr/bin/env bash
# A request that a mosec worker refuses by ValidationError has its whole batch refused, with status 422 and its message.
#
# The three others are right, and are answered alone; in a batch with one that is wrong they are told that they are
# wrong. The same holds for DecodingError (400), which the default `deserialize` raises for a body that is no JSON.
# A stage in front that takes one request at a time refuses alone.
# mosec 0.9.8.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "mosec==0.9.8"
cat > "$folder/server.py" <<'PY'
from mosec import Server, Worker
from mosec.errors import ValidationError


class Root(Worker):
    def deserialize(self, data):
        number = super().deserialize(data)
        if number < 0:
            raise ValidationError(f"{number} is negative")
        return number

    def forward(self, numbers):
        return [number**0.5 for number in numbers]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Root, max_batch_size=4, max_wait_time=500)
    server.run()
PY
"$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]


def ask(body):
    try:
        answer = urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/inference", body), timeout=20)
        return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


server = subprocess.Popen([sys.executable, f"{sys.argv[1]}/server.py", "--address", "127.0.0.1", "--port", str(port), "--log-level", "error"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
try:
    for _ in range(300):
        try:
            if ask(b"4") == (200, "2.0"):
                break
        except OSError:
            pass
        time.sleep(0.2)
    alone = [ask(body) for body in (b"4", b"9", b"16", b"-1")]
    with ThreadPoolExecutor(4) as pool:
        negative = list(pool.map(ask, (b"4", b"9", b"16", b"-1")))
        no_json = list(pool.map(ask, (b"4", b"9", b"16", b"no JSON")))
finally:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
print(f"mosec {importlib.metadata.version('mosec')}")
for what, answers in ("alone", alone), ("with -1 in the batch", negative), ("with what is no JSON in the batch", no_json):
    print(f"  {what}: {answers}")
assert [status for status, _ in alone] == [200, 200, 200, 422]
assert [status for status, _ in negative] == [422] * 4, "the behaviour has changed, or the four did not share a batch"
PY
