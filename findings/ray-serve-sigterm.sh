#!/usr/bin/env bash
# A program that has started Ray Serve, and gets SIGTERM, is aborted: status 134 and a crash report.
#
# SIGTERM is what supervisors and containers send to stop a program. After ray.init() alone the program ends with status
# 15, though with the same report of a crash; after serve.start() it ends by abort(), which leaves a core where cores are
# on. A handler of the program's own, set behind them, is kept, and ends it with the status that it says.
# Ray 2.60.0. The install has 493 MB.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0"
cat > "$folder/program.py" <<'PY'
import logging
import signal
import sys
import time

import ray

ray.init(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
if sys.argv[1] != "ray":
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    serve.start(proxy_location="Disabled")
if sys.argv[1] == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True:
    time.sleep(1)
PY
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.metadata
import resource
import signal
import subprocess
import sys

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print(f"ray {importlib.metadata.version('ray')}, after SIGTERM")
ended = {}
for case in ("ray", "serve", "handler"):
    program = subprocess.Popen([sys.executable, f"{sys.argv[1]}/program.py", case], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while program.stdout.readline().strip() != "ready":
        assert program.poll() is None
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=60)
    ended[case] = program.returncode
    told = "with" if "SIGTERM received" in errors else "without"
    print(f"  {case:8} status {program.returncode}, {told} the report of a crash")
assert ended["ray"] >= 0 and ended["handler"] == 0
assert ended["serve"] == -signal.SIGABRT, "the behaviour has changed"
PY
