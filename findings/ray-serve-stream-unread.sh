#!/usr/bin/env bash
# A generator of a Ray Serve deployment does not wait for a slow reader: it runs to its end while the reader is at the start.
#
# What was not read yet is kept, all of it, in front of the reader. An asynchronous generator of Python's own waits at its
# `yield`; so does one behind Ray's `_generator_backpressure_num_objects`, which Serve does not set.
# Ray 2.60.0. The install has 493 MB.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0"
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" - <<'PY'
import logging
import time

import ray
from ray import serve

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
serve.start(proxy_location="Disabled")


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Counts:
    def __init__(self):
        self.made = 0

    async def numbers(self, count):
        for number in range(count):
            self.made += 1
            yield number

    async def how_many(self):
        return self.made


handle = serve.run(Counts.bind())
stream = handle.options(stream=True).numbers.remote(3000)
assert next(stream) == 0
made, until = 0, time.monotonic() + 60
while made < 3000 and time.monotonic() < until:
    time.sleep(0.2)
    made = handle.how_many.remote().result()
print(f"ray {ray.__version__}: 1 read, {made} of 3000 made")
unread = sum(1 for _ in stream)
serve.shutdown()
ray.shutdown()
assert made == 3000, "the behaviour has changed: the generator waits for its reader"
assert unread == 2999
PY
