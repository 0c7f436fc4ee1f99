"""Metrics of pipes: for Prometheus, judged by promtool, and for OpenTelemetry, by the SDK's in-memory reader."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import WAIT_S, Adds, Gate, until

import fastpipe
from fastpipe import Backend, Pipe, QueueFull, Request
from fastpipe.measures import edges
from fastpipe.observe import catalogue, metrics, pipes
from fastpipe.padding import PaddingCount

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = shutil.which("promtool")


class Echo(Backend):
    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


@pytest.fixture
def prometheus_client() -> Any:
    return pytest.importorskip("prometheus_client", reason="the extra 'metrics' is not installed")


def registry_of(pipes: dict[str, Pipe], **settings: Any) -> Any:
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.PrometheusCollector(pipes, **settings))
    return registry


def samples_of(text: str) -> dict[str, float]:
    """Return all series of a text, as ``name{labels}``, with their values."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in lines}


def check(text: str) -> None:
    """Have promtool judge a text, where there is one."""
    if PROMTOOL is None:
        return
    ran = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# ---- Prometheus ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_stats(prometheus_client: Any) -> None:
    """Outcomes, failures by reason, and histograms whose counts at each bound are exact."""
    nodes = {"a": {"backend": Adds(bad=(3,)), "next": "b"}, "b": {"backend": Echo, "max": 4}}
    with Pipe(nodes) as pipe:
        for number in range(10):
            try:
                pipe({"data": number})
            except ValueError:
                continue
        text = metrics.generate_latest(registry_of({"ocr": pipe})).decode()
        stats = pipe.stats()
    check(text)
    samples = samples_of(text)
    assert samples['fastpipe_requests_total{outcome="done",pipe="ocr"}'] == 9
    assert samples['fastpipe_failures_total{pipe="ocr",reason="error"}'] == 1
    assert samples['fastpipe_node_failures_total{node="a",pipe="ocr",reason="error"}'] == 1
    assert samples['fastpipe_node_requests_total{node="b",pipe="ocr"}'] == 9
    assert samples['fastpipe_node_instances{node="a",pipe="ocr",state="in_service"}'] == 1
    assert samples['fastpipe_healthy{pipe="ocr"}'] == 1
    assert samples['fastpipe_node_run_duration_seconds_count{node="a",pipe="ocr"}'] == stats["nodes"]["a"]["batches"]
    buckets = {
        float(found[1]): value
        for series, value in samples.items()
        if (found := re.fullmatch(r'fastpipe_request_duration_seconds_bucket\{le="([^"]+)",pipe="ocr"\}', series))
    }
    measured = stats["latency_s"]
    for bound, count in buckets.items():
        assert count == sum(here for edge, here in measured["buckets"].items() if edge <= bound)
    assert (
        buckets[math.inf] == samples['fastpipe_request_duration_seconds_count{pipe="ocr"}'] == measured["count"] == 10
    )
    assert samples['fastpipe_request_duration_seconds_sum{pipe="ocr"}'] == pytest.approx(measured["sum"])


def test_the_quick_way_writes_the_same_numbers_as_the_clients(prometheus_client: Any) -> None:
    """And the metrics of others in the registry, as the client writes them."""
    nodes = {'a%"b': {"backend": Echo, "max": 4, "next": "b"}, "b": {"backend": Echo, "cache": "1MB"}}
    with Pipe(nodes) as pipe:
        pipe([{"data": number} for number in range(20)])
        registry = registry_of({'o"c\\r': pipe}, labels={"pid": "17"})
        prometheus_client.Counter("others", "Of somebody else.", registry=registry).inc(3)
        pipe.close()  # nothing moves any more
        own, clients = metrics.generate_latest(registry).decode(), prometheus_client.generate_latest(registry).decode()
    check(own)
    check(clients)
    own_samples, clients_samples = samples_of(own), samples_of(clients)
    created = {series for series in clients_samples if series.startswith("others_created")}
    assert own_samples.keys() == clients_samples.keys()
    assert {k: v for k, v in own_samples.items() if k not in created} == pytest.approx(
        {k: v for k, v in clients_samples.items() if k not in created}
    )
    assert own_samples["others_total"] == 3
    assert [line for line in own.splitlines() if line[0] == "#"] == [
        line for line in clients.splitlines() if line[0] == "#"
    ]


def test_bounds_are_edges_of_the_engine_and_near_what_was_asked_for(prometheus_client: Any) -> None:
    """Any number of seconds is moved by 3.2 % at most; sizes up to 32 and powers of two stay."""
    wanted = [0.0007, 0.1, 0.3, 1, 7]
    bounds = catalogue.Bounds(wanted, [1, 5, 32, 64])
    seconds = bounds.of(next(each for each in catalogue.ALL if each.name == "fastpipe.request.duration"), 0)
    assert set(seconds) <= set(edges("run_s"))
    assert all(abs(bound - asked) <= asked / 31 for bound, asked in zip(seconds, wanted, strict=True))
    sizes = next(each for each in catalogue.ALL if each.name == "fastpipe.node.batch.size")
    assert bounds.of(sizes, 40) == (1, 5, 32, 64)
    assert bounds.of(sizes, 5) == (1, 5)
    with Pipe(backend=Echo) as pipe:
        text = metrics.generate_latest(registry_of({"p": pipe}, seconds=(0.1,), sizes=(1, 2))).decode()
    assert text.count("fastpipe_node_run_duration_seconds_bucket") == 2


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"seconds": (math.nan,)}, ValueError, "seconds must be numbers above 0; got nan"),
        ({"seconds": (0,)}, ValueError, "seconds must be numbers above 0; got 0"),
        ({"sizes": ("4",)}, TypeError, "sizes must be numbers above 0; got '4'"),
        ({"pipes": {"p": Echo()}}, TypeError, r"'p' must be a pipe; got Echo \(of a batched function: its .pipe\)"),
        ({"pipes": {3: None}}, TypeError, "the name of a pipe must be a text; got 3"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(
    prometheus_client: Any, settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        metrics.PrometheusCollector(**settings)


def test_several_pipes_share_a_collector_and_a_closed_one_keeps_its_numbers(prometheus_client: Any) -> None:
    """It is not healthy any more, and makes room for another of its name; a second collector is refused."""
    first, second = Pipe(backend=Echo), Pipe(backend=Echo)
    collector = metrics.PrometheusCollector({"a": first})
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(metrics.PrometheusCollector({"b": second}))
    collector.add("b", second)
    with pytest.raises(ValueError, match="another pipe is called 'a' already"):
        collector.add("a", second)
    first({"data": 1})
    first.close()
    samples = samples_of(metrics.generate_latest(registry).decode())
    assert samples['fastpipe_requests_total{outcome="done",pipe="a"}'] == 1
    assert (samples['fastpipe_healthy{pipe="a"}'], samples['fastpipe_healthy{pipe="b"}']) == (0, 1)
    collector.add("a", second)
    samples = samples_of(metrics.generate_latest(registry).decode())
    assert samples['fastpipe_requests_total{outcome="done",pipe="a"}'] == 0
    collector.remove("a")
    collector.remove("a")
    assert 'pipe="a"' not in metrics.generate_latest(registry).decode()
    second.close()


def test_a_node_at_several_places_has_series_for_each(prometheus_client: Any) -> None:
    """Their sum is the node's."""

    class Placed(Echo):
        places = iter(["cuda:0", "cuda:1"])

        def __init__(self) -> None:
            self.place = next(self.places)

    with Pipe({"n": {"backend": Placed, "instance_num": 2}}) as pipe:
        for number in range(6):
            pipe({"data": number})
        samples = samples_of(metrics.generate_latest(registry_of({"p": pipe})).decode())
    series = [f'fastpipe_node_requests_total{{node="n",pipe="p",place="cuda:{index}"}}' for index in range(2)]
    assert sum(samples[each] for each in series) == 6
    assert 'fastpipe_node_requests_total{node="n",pipe="p"}' not in samples


def test_weights_refusals_and_what_waits_are_shown(prometheus_client: Any) -> None:
    """A full queue, and requests that weigh other than 1."""

    class Heavy(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.padding_counts = (PaddingCount(),)

        def weigh(self, request: Request) -> float:
            return 2.0

        def forward(self, batch: list[Request]) -> None:
            super().forward(batch)
            self.padding_counts[0].add(own=3, padded=4)

    gate = Heavy()
    with Pipe({"n": {"backend": gate, "max": 4, "max_queue": 1, "when_full": "reject"}}) as pipe:
        futures = [pipe.submit({"data": 0})]
        assert gate.inside.wait(WAIT_S)
        futures.append(pipe.submit({"data": 1}))
        with pytest.raises(QueueFull):
            pipe.submit({"data": 2})
        registry = registry_of({"p": pipe})
        samples = samples_of(metrics.generate_latest(registry).decode())
        assert samples['fastpipe_node_refused_total{node="n",pipe="p"}'] == 1
        assert samples['fastpipe_node_queued{node="n",pipe="p"}'] == 1
        assert samples['fastpipe_node_running{node="n",pipe="p"}'] == 1
        assert samples['fastpipe_node_queue_oldest_seconds{node="n",pipe="p"}'] > 0
        assert samples['fastpipe_in_flight{pipe="p"}'] == 2
        gate.opened.set()
        for future in futures:
            future.result(WAIT_S)
        samples = samples_of(metrics.generate_latest(registry).decode())
    assert samples['fastpipe_node_batch_weight_sum{node="n",pipe="p"}'] == 4
    assert samples['fastpipe_node_batch_weight_bucket{le="1.0",node="n",pipe="p"}'] == 0
    assert samples['fastpipe_node_batch_weight_bucket{le="2.0",node="n",pipe="p"}'] == 2
    assert samples['fastpipe_node_elements_total{node="n",of="request",pipe="p"}'] == 6
    assert samples['fastpipe_node_elements_total{node="n",of="padding",pipe="p"}'] == 2


def test_requests_go_on_in_the_middle_of_a_scrape(prometheus_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each step took too long: the GIL is free between any two nodes, while they are read and written."""
    answered: list[int] = []
    nodes: dict[str, dict[str, Any]] = {
        f"n{number}": {"backend": Echo, "next": f"n{number + 1}"} for number in range(9)
    }
    nodes["n9"] = {"backend": Echo}
    with Pipe(nodes) as pipe, Pipe(backend=Echo) as other:

        def sleep(seconds: float) -> None:
            assert seconds > 0
            answered.append(other({"data": len(answered)})["result"])

        monkeypatch.setattr(pipes, "HELD_S", 0.0)
        monkeypatch.setattr(pipes, "time", SimpleNamespace(perf_counter=time.perf_counter, sleep=sleep))
        text = metrics.generate_latest(registry_of({"p": pipe})).decode()
    assert text.count("fastpipe_node_queued{node=") == 10
    assert answered == list(range(len(answered)))
    assert len(answered) > 10 * len(catalogue.OF_NODES)


def test_scrapes_under_load_never_fail_and_counters_never_fall(prometheus_client: Any) -> None:
    """Four clients, and a scrape after the other; of each scrape, the bounds rise to the count."""
    stops = threading.Event()
    with Pipe({"n": {"backend": Echo, "max": 4, "instance_num": 2}}) as pipe:

        def call() -> None:
            while not stops.is_set():
                pipe({"data": 1})

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        registry, before = registry_of({"p": pipe}), {}
        try:
            for _ in range(20):
                text = metrics.generate_latest(registry).decode()
                now = {
                    series: value
                    for series, value in samples_of(text).items()
                    if re.search("_total|_bucket|_count", series)
                }
                assert all(now[series] >= value for series, value in before.items())
                ends = 'fastpipe_request_duration_seconds_{}pipe="p"}}'
                assert now[ends.format('bucket{le="+Inf",')] == now[ends.format("count{")]
                before = now
        finally:
            stops.set()
            for thread in threads:
                thread.join()
    assert before['fastpipe_requests_total{outcome="done",pipe="p"}'] > 0


SERVICE = """
import os, sys, fastpipe, prometheus_client
from fastpipe.observe.metrics import PrometheusCollector

pipe = fastpipe.Pipe(backend="Identity")
for number in range(int(sys.argv[1])):
    pipe({"data": number})
registry = prometheus_client.CollectorRegistry()
directory = sys.argv[2] if len(sys.argv) > 2 else None
labels = {} if directory else {"pid": str(os.getpid())}
registry.register(PrometheusCollector({"ocr": pipe}, labels=labels, directory=directory))
server, _ = prometheus_client.start_http_server(0, "127.0.0.1", registry)
print(server.server_port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def services() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.communicate(timeout=WAIT_S)


def test_processes_that_are_scraped_each_by_itself_tell_themselves_apart(
    prometheus_client: Any, services: list[subprocess.Popen[str]]
) -> None:
    """By the label ``pid``; their buckets have the same bounds, so that sums over processes are right."""
    for count in (2, 3):
        command = [sys.executable, "-P", "-c", SERVICE, str(count)]
        services.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    together: dict[str, float] = {}
    for service in services:
        assert service.stdout is not None
        port = int(service.stdout.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            text = answer.read().decode()
        check(text)
        together |= samples_of(text)
    done = {series: value for series, value in together.items() if 'requests_total{outcome="done"' in series}
    assert sorted(done.values()) == [2, 3]
    assert {f'pid="{service.pid}"' in "".join(done) for service in services} == {True}
    bounds = [
        set(re.findall(rf'duration_seconds_bucket{{le="([^"]+)",pid="{s.pid}"', "\n".join(together))) for s in services
    ]
    assert bounds[0] == bounds[1] != set()


def test_processes_that_share_a_directory_are_all_shown_by_whichever_is_scraped(
    prometheus_client: Any, services: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """At the moment of the scrape; one that was killed is forgotten, one that is stopped left out."""
    for count in (2, 3, 4):
        command = [sys.executable, "-P", "-c", SERVICE, str(count), str(tmp_path / "ocr")]
        services.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    ports = [int(service.stdout.readline()) for service in services if service.stdout is not None]

    def done(port: int) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            text = answer.read().decode()
        check(text)
        found = re.findall(r'requests_total\{outcome="done",pid="(\d+)",pipe="ocr"\} (\S+)', text)
        return {process: float(value) for process, value in found}

    expected = {str(service.pid): count for service, count in zip(services, (2, 3, 4), strict=True)}
    assert [done(port) for port in ports] == [expected] * 3
    services[2].kill()
    services[2].wait(WAIT_S)
    del expected[str(services[2].pid)]
    assert [done(port) for port in ports[:2]] == [expected] * 2
    assert len(list((tmp_path / "ocr").iterdir())) == 2
    services[1].send_signal(signal.SIGSTOP)
    try:
        assert done(ports[0]) == {str(services[0].pid): 2}
    finally:
        services[1].send_signal(signal.SIGCONT)
    until(lambda: done(ports[0]) == expected)


@pytest.mark.parametrize("answer", [b"7", b"[7]", b"[[]]", b'[["p", {"buckets": 1}, true]]', b"[" * 100_000, None])
def test_a_peer_that_answers_nonsense_or_trickles_is_left_out(
    prometheus_client: Any, tmp_path: Path, answer: bytes | None
) -> None:
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener, fastpipe.Pipe(backend=Echo) as pipe:
        listener.bind(str(tmp_path / "1-hostile.sock"))
        listener.listen()

        def tell() -> None:
            asker, _ = listener.accept()
            with asker, contextlib.suppress(OSError):
                if answer is not None:
                    asker.sendall(answer)
                while answer is None and not ended.wait(0.1):
                    asker.sendall(b" ")

        telling = threading.Thread(target=tell)
        telling.start()
        collector = metrics.PrometheusCollector({"p": pipe}, directory=tmp_path)
        try:
            registry = prometheus_client.CollectorRegistry()
            begun = time.monotonic()
            registry.register(collector)
            text = metrics.generate_latest(registry).decode()
            assert f'pid="{os.getpid()}"' in text
            assert 'pid="1"' not in text
            assert time.monotonic() - begun < WAIT_S
        finally:
            ended.set()
            collector.close()
            telling.join(WAIT_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_told_nothing(prometheus_client: Any, tmp_path: Path) -> None:
    with fastpipe.Pipe(backend=Echo) as pipe:
        directory = Path(tempfile.mkdtemp(dir="/tmp"))
        collector = metrics.PrometheusCollector({"p": pipe}, directory=directory)
        try:
            collector_socket = next(directory.glob("*.sock"))
            directory.chmod(0o777)
            collector_socket.chmod(0o777)
            code = "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
            code += (
                "s.connect(sys.argv[1]); s.settimeout(5)\ntry: print(len(s.recv(9)))\nexcept ConnectionError: print(0)"
            )
            told = subprocess.check_output(
                [sys.executable, "-P", "-c", code, str(collector_socket)], timeout=WAIT_S, text=True
            )
            assert told.strip() == "0"
        finally:
            collector.close()
            shutil.rmtree(directory)


def test_a_directory_that_cannot_be_used_is_said(prometheus_client: Any, tmp_path: Path) -> None:
    """And closing twice, or without a directory, does nothing."""
    (tmp_path / "file").touch()
    with Pipe(backend=Echo) as pipe:
        with pytest.raises(fastpipe.PipeError, match=r"metrics cannot be shared in '.*file': .*exists"):
            metrics.PrometheusCollector({"p": pipe}, directory=tmp_path / "file")
        with pytest.raises(fastpipe.PipeError, match="is too long a name for a socket"):
            metrics.PrometheusCollector({"p": pipe}, directory=tmp_path / ("x" * 100))
        collector = metrics.PrometheusCollector({"p": pipe}, directory=tmp_path / "fine")
        assert any(thread.name == "fastpipe metrics" for thread in threading.enumerate())
        for each in (collector, collector, metrics.PrometheusCollector({"p": pipe})):
            each.close()
    assert list((tmp_path / "fine").iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # eventlet, where a test has imported it, warns of it
def test_the_child_of_a_fork_shows_its_own_pipes_only(prometheus_client: Any) -> None:
    """Its parent's are left out; one of the same name takes its place."""
    with Pipe(backend=Echo) as pipe:
        pipe({"data": 1})
        collector = metrics.PrometheusCollector({"p": pipe})
        registry = prometheus_client.CollectorRegistry()
        registry.register(collector)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                before = metrics.generate_latest(registry).decode()
                collector.add("p", Pipe(backend=Echo))
                after = samples_of(metrics.generate_latest(registry).decode())
                os.write(writing, json.dumps([samples_of(before), after['fastpipe_healthy{pipe="p"}']]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            assert json.loads(file.read()) == [{}, 1]
        os.waitpid(child, 0)


def open_sockets() -> set[str]:
    """Return what this process has open, by the kernel's names."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # eventlet, where a test has imported it, warns of it
def test_parent_and_child_of_a_fork_share_a_directory(prometheus_client: Any, tmp_path: Path) -> None:
    """The child listens once it has a pipe, and keeps nothing open of its parent's, who may end before it does."""
    before = open_sockets()
    with Pipe(backend=Echo) as pipe:
        collector = metrics.PrometheusCollector({"p": pipe}, directory=tmp_path)
        registry = prometheus_client.CollectorRegistry()
        registry.register(collector)
        listening = open_sockets() - before
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                collector.add("p", Pipe(backend=Echo))
                named = re.findall(r'healthy\{pid="(\d+)"', metrics.generate_latest(registry).decode())
                os.write(writing, json.dumps([sorted(named), len(listening & open_sockets())]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            told = json.loads(file.read())
        os.waitpid(child, 0)
        collector.close()
    assert len(listening) == 1
    assert told == [sorted([str(os.getpid()), str(child)]), 0]


# ---- OpenTelemetry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def otel() -> Any:
    return pytest.importorskip("opentelemetry.sdk.metrics.export", reason="the extra 'otel' is not installed")


def points_of(data: Any, scope: str = "fastpipe") -> dict[str, Any]:
    """Return {metric name: metric} of what was collected or exported."""
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for each in resource.scope_metrics
        for metric in each.metrics
        if each.scope.name == scope
    }


def test_instruments_have_the_names_units_and_numbers_of_the_catalogue(otel: Any) -> None:
    """All but histograms; one look at the pipe for all of them."""
    from opentelemetry.sdk.metrics import MeterProvider

    reader = otel.InMemoryMetricReader()
    provider = MeterProvider([reader])
    with Pipe({"a": {"backend": Adds(bad=(1,)), "next": "b"}, "b": {"backend": Echo, "cache": "1MB"}}) as pipe:
        shown = metrics.instrument({"ocr": pipe}, provider)
        with pytest.raises(ValueError, match="bad"):
            pipe({"data": 1})
        pipe({"data": 2})
        found = points_of(reader.get_metrics_data())
        expected = {each.name: each for each in catalogue.ALL if each.kind != "histogram"}
        without_points = {"fastpipe.node.batches_left", "fastpipe.node.elements"}
        assert found.keys() == expected.keys() - without_points
        assert {(m.unit, m.description) for m in found.values()} == {
            (expected[name].unit, expected[name].text) for name in found
        }
        values = {
            (name, *sorted(point.attributes.items())): point.value
            for name, metric in found.items()
            for point in metric.data.data_points
        }
        assert values["fastpipe.requests", ("outcome", "done"), ("pipe", "ocr")] == 1
        assert values["fastpipe.node.failures", ("node", "a"), ("pipe", "ocr"), ("reason", "error")] == 1
        assert values["fastpipe.node.instances", ("node", "b"), ("pipe", "ocr"), ("state", "in_service")] == 1
        assert values["fastpipe.node.cache.requests", ("node", "b"), ("outcome", "miss"), ("pipe", "ocr")] == 1
        assert values["fastpipe.node.cache.entries", ("node", "b"), ("pipe", "ocr")] == 1
        assert ("fastpipe.node.cache.entries", ("node", "a"), ("pipe", "ocr")) not in values
        assert type(found["fastpipe.in_flight"].data).__name__ == "Sum"
        assert type(found["fastpipe.node.queue.oldest"].data).__name__ == "Gauge"
        shown.remove("ocr")
    provider.shutdown()


def exported(pipe: Pipe, otel: Any, temporality: Any, calls: tuple[int, ...]) -> list[Any]:
    """Return the data of one export after each number of calls."""
    from opentelemetry.sdk.metrics import Histogram, MeterProvider

    exports: list[Any] = []

    class Keeps(otel.MetricExporter):  # type: ignore[misc]
        def export(self, data: Any, timeout_millis: float = 0, **keywords: Any) -> Any:
            exports.append(data)
            return otel.MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 0, **keywords: Any) -> None:
            """Nothing is open."""

    exporter = metrics.PipeMetricsExporter(Keeps({Histogram: temporality}), {"ocr": pipe}, seconds=(0.001, 1))
    reader = otel.PeriodicExportingMetricReader(exporter, math.inf)
    provider = MeterProvider([reader])
    metrics.instrument({"ocr": pipe}, provider)
    for count in calls:
        for number in range(count):
            pipe({"data": number})
        provider.force_flush()
    provider.shutdown()
    return exports


def test_histograms_reach_an_exporter_whole_and_with_its_temporality(otel: Any) -> None:
    """Since the pipe was built, with one begin for all exports; or since the export before."""
    how = otel.AggregationTemporality
    for temporality, counts in ((how.CUMULATIVE, [5, 7]), (how.DELTA, [5, 2])):
        with Pipe({"n": {"backend": Echo, "max": 4}}) as pipe:
            first, second, *_ = exported(pipe, otel, temporality, (5, 2))
            found = [points_of(data)["fastpipe.node.run.duration"] for data in (first, second)]
            points = [metric.data.data_points[0] for metric in found]
            assert [metric.data.aggregation_temporality for metric in found] == [temporality] * 2
            assert [point.count for point in points] == [sum(point.bucket_counts) for point in points] == counts
            assert points[0].attributes == {"pipe": "ocr", "node": "n"}
            assert set(points[0].explicit_bounds) <= set(edges("run_s"))
            assert len(points[0].bucket_counts) == len(points[0].explicit_bounds) + 1 == 3
            assert (points[0].start_time_unix_nano == points[1].start_time_unix_nano) == (temporality is how.CUMULATIVE)
            assert "fastpipe.requests" in points_of(first)
            json.loads(first.to_json())


def test_times_of_zero_are_counted_in_the_first_bucket(otel: Any) -> None:
    """Nothing was queued: five zeros, in no bucket of their own, and no resolution is lost for what comes later."""
    with Pipe(backend=Echo) as pipe:
        (data, *_) = exported(pipe, otel, otel.AggregationTemporality.CUMULATIVE, (5,))
    (point,) = points_of(data)["fastpipe.node.queue.duration"].data.data_points
    assert (list(point.bucket_counts), point.sum, point.count) == ([5, 0, 0], 0, 5)


# ---- the catalogue, the page, the dashboard --------------------------------------------------------------------------


def test_names_for_prometheus_are_those_that_opentelemetrys_exporter_makes(otel: Any) -> None:
    """So that a pipe behind a collector of OpenTelemetry's has the same series."""
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus", reason="it is not installed")
    client = pytest.importorskip("prometheus_client")
    from opentelemetry.sdk.metrics import MeterProvider

    before = set(client.REGISTRY._collector_to_names)
    provider = MeterProvider([exporter.PrometheusMetricReader()])
    (collector,) = set(client.REGISTRY._collector_to_names) - before
    backend = Adds(bad=(1,))
    backend.padding_counts = (PaddingCount(),)
    with Pipe({"n": {"backend": backend, "max": 4, "cache": "1MB"}}) as pipe:
        metrics.instrument({"ocr": pipe}, provider)
        with pytest.raises(ValueError, match="bad"):
            pipe({"data": 1})
        pipe.submit({"data": 2}).result(WAIT_S)
        named = {family.name + "_total" * (family.type == "counter") for family in collector.collect()}
    provider.shutdown()
    named = {name for name in named if name.startswith("fastpipe")}
    assert named == {each.prometheus for each in catalogue.ALL if each.kind != "histogram"}


def test_the_table_of_the_page_is_the_catalogue() -> None:
    """One row a metric: both names, the kind, the unit, the labels and the meaning."""
    page = (ROOT / "docs" / "observing.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `fastpipe_")]
    assert rows == [catalogue_row(each) for each in catalogue.ALL]


def catalogue_row(measure: catalogue.Measure) -> str:
    own = ["`node`", "`place`"] if measure in catalogue.OF_NODES else []
    labels = ", ".join([*own, *([f"`{measure.label}`"] if measure.label else [])])
    unit = measure.unit.strip("{}")
    return f"| `{measure.prometheus}` | `{measure.name}` | {measure.kind} | {unit} | {labels} | {measure.text} |"


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() -> None:
    """Every name in every expression, without what Prometheus adds to histograms."""
    names = {each.prometheus for each in catalogue.ALL}
    folder = ROOT / "examples" / "observing"
    dashboard = json.loads((folder / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    expressions += re.findall(r"^\s+expr: (.+)$", (folder / "alerts.yml").read_text(), re.MULTILINE)
    assert len(expressions) > 12
    for expression in expressions:
        used = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bfastpipe_\w+", expression)}
        assert used, expression
        assert used <= names, expression


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: it comes with Debian's package 'prometheus'")
def test_the_alerts_go_off_on_invented_series() -> None:
    """``promtool test rules``: nothing for a pipe that is well, and each for what it is for."""
    ran = subprocess.run(
        [str(PROMTOOL), "test", "rules", "alerts_test.yml"],
        cwd=ROOT / "examples" / "observing",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_is_imported_before_it_is_asked_for_and_what_is_missing_is_said() -> None:
    """An import of ``fastpipe.observe.metrics`` works without any extra."""
    script = """
import sys
sys.modules["prometheus_client"] = sys.modules["opentelemetry"] = None
from fastpipe.observe import metrics
for name in metrics.__all__:
    try:
        getattr(metrics, name)
    except ImportError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        f"fastpipe.observe.metrics.{name} needs {library}: pip install 'fastpipe-engine[{extra}]'"
        for name, library, extra in (
            ("PipeMetricsExporter", "opentelemetry", "otel"),
            ("PrometheusCollector", "prometheus_client", "metrics"),
            ("generate_latest", "prometheus_client", "metrics"),
            ("instrument", "opentelemetry", "otel"),
        )
    ]
    assert "observe" not in vars(fastpipe) or "fastpipe.observe" in sys.modules
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        metrics.nothing  # noqa: B018
