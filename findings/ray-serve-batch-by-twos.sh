#!/usr/bin/env bash
# Ray Serve's @serve.batch runs batches of two although thirty requests wait for it.
#
# It forms the next batches while one still runs, each batch_wait_timeout_s after its first request, and these wait for
# the one that runs. So requests that come meanwhile do not meet: with batches that take 20 ms, max_batch_size=16 and a
# wait of 2 ms, 32 callers get batches of 2 on average, and a fifth of the throughput that a wait of 20 ms has.
# Ray 2.60.0. The install has 493 MB.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0"
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" - <<'PY'
import asyncio
import logging
import time

import ray
from ray import serve

logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
serve.start(proxy_location="Disabled")


def deploy(wait_s):
    class Model:
        def __init__(self):
            self.inside, self.log = 0, []

        @serve.batch(max_batch_size=16, batch_wait_timeout_s=wait_s)
        async def run(self, requests):
            self.log.append((len(requests), self.inside))
            await asyncio.sleep(0.02)
            return requests

        async def __call__(self, request):
            self.inside += 1
            try:
                return await self.run(request)
            finally:
                self.inside -= 1

        async def batches(self):
            return self.log

    name = f"wait{int(wait_s * 1000)}"
    return serve.run(serve.deployment(Model, max_ongoing_requests=64).options(ray_actor_options={"num_cpus": 0.1}).bind(), name=name, route_prefix=f"/{name}")


async def callers(handle, seconds):
    until, count = time.monotonic() + seconds, 0

    async def caller():
        nonlocal count
        while time.monotonic() < until:
            await handle.remote(1)
            count += 1

    await asyncio.gather(*(caller() for _ in range(32)))
    return count / seconds


print(f"ray {ray.__version__}; 32 callers, batches of at most 16 that take 20 ms")
means = {}
for wait_s in (0.002, 0.02):
    handle = deploy(wait_s)
    rate = asyncio.run(callers(handle, 4))
    log = handle.batches.remote().result()[10:]
    means[wait_s] = sum(size for size, _ in log) / len(log)
    inside = sum(inside for _, inside in log) / len(log)
    print(f"  batch_wait_timeout_s={wait_s}: {rate:.0f} requests/s, mean batch {means[wait_s]:.1f}, while {inside:.0f} requests are in the replica")
serve.shutdown()
ray.shutdown()
assert means[0.002] < 4, "the behaviour has changed: batches are as large as what waits allows"
assert means[0.02] > 6, "the behaviour has changed, or the machine is too busy to send requests"
PY
