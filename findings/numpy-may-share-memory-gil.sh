#!/usr/bin/env bash
# ``numpy.may_share_memory`` lets go of the GIL, although it only compares a few numbers. Seen with NumPy 2.4.6: beside
# a thread that computes in Python, a call of half a microsecond may wait for the GIL until the other's turn, 5 ms, is
# over. fastpipe's kernels, which keep the GIL for small images to avoid just that, ask it only where a caller gave an
# array.
#
# Shown without measuring time: nobody is asked to give up the GIL (a switch interval of 1000 s), and another thread
# waits for it. Beside calls of ``numpy.empty`` the other never runs; beside ``may_share_memory`` it does. Fails if that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
import threading

import numpy as np


def ran_beside(call):
    """Say whether another thread, which only waits for the GIL, had it while this one called."""
    may_run, has_run = threading.Lock(), []
    may_run.acquire()

    def wait_for_turn():
        with may_run:
            has_run.append(True)

    thread = threading.Thread(target=wait_for_turn)
    thread.start()
    sys.setswitchinterval(1000)
    may_run.release()
    for _ in range(300_000):
        call()
        if has_run:
            break
    answer = bool(has_run)
    sys.setswitchinterval(0.005)
    thread.join()
    return answer


print("numpy", np.__version__)
one, other = np.zeros(4), np.zeros(4)
beside_empty = ran_beside(lambda: np.empty(4))
beside_shared = ran_beside(lambda: np.may_share_memory(one, other))
print(f"another thread ran beside numpy.empty: {beside_empty}, beside numpy.may_share_memory: {beside_shared}")
sys.exit((beside_empty, beside_shared) != (False, True))
PY
