"""Does a real Prometheus get right answers from a service under load, and what does a scrape of 50 nodes cost?

A service of two nodes, one of which sleeps 2 ms and batches, is called by 8 clients, and scraped by ``prometheus``
twice a second. Then Prometheus is asked for three quantiles, which are compared with those of ``stats()``, for every
expression of the Grafana dashboard, and for those of the alerts. Needs Debian's package ``prometheus`` and
``prometheus-client``; 10 seconds.

    python bench/observe_prometheus.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import prometheus_client

import fastpipe
from fastpipe.observe.metrics import PrometheusCollector, generate_latest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "observing"
WAIT_S = 20.0
CLIENT_COUNT = 8
RATE_WINDOW_S = 5

QUERIES = {
    "from call to answer, p50": ("histogram_quantile(0.5, sum by (le) (rate({}_bucket[5s])))", "latency_s", "p50"),
    "from call to answer, p99": ("histogram_quantile(0.99, sum by (le) (rate({}_bucket[5s])))", "latency_s", "p99"),
    "in the backend of 'slow', p90": (
        'histogram_quantile(0.9, sum by (le) (rate(fastpipe_node_run_duration_seconds_bucket{{node="slow"}}[5s])))',
        "run_s",
        "p90",
    ),
}
"""What is asked; in which distribution of stats() the answer is."""


class Slow(fastpipe.Backend):
    """Two milliseconds for a batch of any size, without the GIL."""

    keeps_input = True

    def forward(self, batch: list[fastpipe.Request]) -> None:
        time.sleep(0.002)
        for request in batch:
            request["result"] = request["data"]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def metrics_served(registry: Any) -> Iterator[int]:
    """Serve a registry at ``/metrics`` of a port of loopback, which is yielded."""

    def application(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")])
        return [generate_latest(registry)]

    server = make_server("127.0.0.1", 0, application, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def prometheus_of(port: int, folder: Path) -> Iterator[str]:
    """Run Prometheus, which scrapes a port; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
        f"rule_files: [{json.dumps(str(EXAMPLES / 'alerts.yml'))}]\n"
        f"scrape_configs: [{{job_name: service, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{own}/-/ready", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "prometheus has ended"
                assert time.monotonic() < deadline_s, "prometheus does not get ready"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{own}"
    finally:
        process.terminate()
        assert process.wait(WAIT_S) == 0


def ask(address: str, query: str) -> list[Any]:
    """Return what Prometheus answers: a list of series."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    assert told["status"] == "success", (query, told)
    found: list[Any] = told["data"]["result"]
    return found


@contextlib.contextmanager
def under_load(pipe: fastpipe.Pipe) -> Iterator[None]:
    """Have clients call a pipe all the time."""
    stops = threading.Event()

    def call() -> None:
        while not stops.is_set():
            assert pipe({"data": 1})["result"] == 1

    threads = [threading.Thread(target=call) for _ in range(CLIENT_COUNT)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stops.set()
        for thread in threads:
            thread.join()


def watch(seconds: float) -> list[tuple[str, str, float, float]]:
    """Return (what, query, Prometheus' answer, that of stats()) for each of QUERIES, under load."""
    nodes = {"fast": {"backend": "Identity", "next": "slow"}, "slow": {"backend": Slow, "max": 4, "instance_num": 2}}
    registry = prometheus_client.CollectorRegistry()
    with fastpipe.Pipe(nodes) as pipe, tempfile.TemporaryDirectory() as folder:
        registry.register(PrometheusCollector({"demo": pipe}))
        with metrics_served(registry) as port, under_load(pipe), prometheus_of(port, Path(folder)) as address:
            time.sleep(max(seconds - RATE_WINDOW_S, 0.0))
            before = pipe.stats()
            time.sleep(RATE_WINDOW_S)
            stats = pipe.stats(since=before)
            told = []
            for what, (query, distribution, quantile) in QUERIES.items():
                query = query.format("fastpipe_request_duration_seconds")
                ((_, value),) = [series["value"] for series in ask(address, query)]
                own = stats[distribution] if distribution == "latency_s" else stats["nodes"]["slow"][distribution]
                told.append((what, query, float(value), own[quantile]))
            check_expressions(address)
    return told


def check_expressions(address: str) -> None:
    """Ask for all that the dashboard and the alerts ask for; what is always counted has to have an answer."""
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in expressions:
        query = expression.replace("$pipe", "demo").replace("$__rate_interval", "5s")
        assert ask(address, query) or "failures" in expression, f"no answer: {query}"
    rules = re.findall(r"^\s+expr: (.+)$", (EXAMPLES / "alerts.yml").read_text(), re.MULTILINE)
    for rule in rules:
        ask(address, rule)
    print(f"all {len(expressions)} expressions of the dashboard are answered, and the {len(rules)} of the alerts run")


def scrape_ms(node_count: int, repeats: int) -> dict[str, float]:
    """Return the median times of a scrape of a pipe of so many nodes, in milliseconds, and its lines."""
    nodes = {f"n{index}": {"backend": "Identity", "max": 8, "next": f"n{index + 1}"} for index in range(node_count)}
    del nodes[f"n{node_count - 1}"]["next"]
    registry = prometheus_client.CollectorRegistry()
    with fastpipe.Pipe(nodes) as pipe:
        registry.register(PrometheusCollector({"demo": pipe}))
        for number in range(1000):
            pipe({"data": number})
        ways = {
            "fastpipe.observe.metrics.generate_latest": lambda: generate_latest(registry),
            "prometheus_client.generate_latest": lambda: prometheus_client.generate_latest(registry),
        }
        told = {way: statistics.median(time_ms(write) for _ in range(repeats)) for way, write in ways.items()}
        return {**told, "lines": len(generate_latest(registry).splitlines())}


def time_ms(write: Any) -> float:
    """Return the CPU time of a call, which others on the machine change little."""
    began_s = time.thread_time()
    write()
    return (time.thread_time() - began_s) * 1e3


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    is_quick = parser.parse_args().quick
    if shutil.which("prometheus") is None:
        raise SystemExit("prometheus is not installed: apt-get install prometheus")
    for what, query, value, own in watch(6.0 if is_quick else 10.0):
        print(f"{what}: {value * 1e3:.2f} ms by Prometheus, {own * 1e3:.2f} ms by stats()\n    {query}")
        print(json.dumps({"query": query, "prometheus_s": value, "stats_s": own}))
    scrape = scrape_ms(50, 5 if is_quick else 50)
    print(json.dumps({"scrape of 50 nodes, median CPU ms": scrape}))


if __name__ == "__main__":
    main()
