"""Triton, with the server that nvidia-pytriton brings and its Python backend.  python of_pytriton.py [FEATURE ...]"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any

from http_probes import SERVICES, Peer, Running, register, running, series, under_change
from probes import CALLS, NO, PARTLY, YES, Cell, documented, main, probe
from serve_load import DidNotStart

DOCS = "https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs"
PYTHON_BACKEND = "https://github.com/triton-inference-server/python_backend"
SERVICE = (sys.executable, str(SERVICES / "triton_service.py"), "PORT", "OTHER1", "OTHER2")


def write(number: int) -> bytes:
    """Return a number as a request of the protocol."""
    tensor = {"name": "number", "shape": [1, 1], "datatype": "INT64", "data": [number]}
    return json.dumps({"inputs": [tensor]}).encode()


def read(body: bytes) -> list[int]:
    """Return the first output."""
    return [int(value) for value in json.loads(body)["outputs"][0]["data"]]


PEER = Peer(SERVICE, "/v2/models/model/infer", write, read, metrics=":OTHER2/metrics")

register(PEER, limit={"timeout_ms": 300}, room={"room": 4})


@probe("in_process")
def in_process() -> Cell:
    """The package that embeds the server in Python, tritonserver, is not this one."""
    import pytriton.triton

    calls = [name for name in CALLS if name in vars(pytriton.triton.Triton)]
    return Cell(PARTLY if calls else NO, ", ".join(calls) or "no: a server; the package tritonserver has a call")


@probe("metrics")
def metrics() -> Cell:
    """Two counters, whose ratio is the mean batch."""
    with running(PEER) as service:
        _, text = service.get(PEER.metrics)
    cell = series(text)
    has_mean = "nv_inference_exec_count{" in text and "nv_inference_count{" in text
    return Cell(YES, cell.text.replace("batch sizes: no", "mean batch by two counters")) if has_mean else cell


@probe("swap")
def swap() -> Cell:
    """The model is loaded again while requests come."""
    options = ("--model-control-mode=explicit", "--load-model=*")
    with running(Peer((*SERVICE, *options), PEER.path, write, read), max_batch=1) as service:
        load = service.of("/v2/repository/models/model/load", lambda _: b"{}", lambda _: None)
        return under_change(service, lambda: load.ask(0).status == 200)


@probe("graph")
def graph() -> Cell:
    """An ensemble of two models that read the same input; two callers at once."""
    peer = Peer(SERVICE, "/v2/models/graph/infer", write, lambda body: json.loads(body)["outputs"])
    with running(peer) as service:
        answers = service.ask_all([3, 4])
    pairs = [{each["name"]: each["data"] for each in answer.body} for answer in answers]
    assert [(pair["left"][0], pair["right"][0]) for pair in pairs] == [(4, 9), (5, 16)]
    return Cell(YES, f"ensemble; steps share batches of {pairs[0]['left'][1]}")


@probe("streaming")
def streaming() -> Cell:
    """Three parts, over gRPC."""
    with running(PEER) as service:
        return parts(service)


@probe("cancellation")
def cancellation() -> Cell:
    """HTTP first; over gRPC a call has a cancel of its own."""
    from http_probes import caller_leaves

    with running(PEER, max_batch=1) as service:
        by_http, by_grpc = caller_leaves(service), cancelled_call(service)
    return Cell(by_grpc.mark if by_http.mark == by_grpc.mark else PARTLY, f"HTTP: {by_http.text}; gRPC: {by_grpc.text}")


@probe("priority")
def priority() -> Cell:
    """One runs, three wait, the last of them is urgent."""
    order: list[int] = []
    with running(PEER, max_batch=1) as service:

        def ask(number: int, level: int) -> None:
            body = json.loads(write(number)) | {"parameters": {"priority": level}}
            service.of(PEER.path, lambda _: json.dumps(body).encode()).ask(0)
            order.append(number)

        threads = []
        for number, level in ((5_000_001, 2), (3, 2), (4, 2), (5, 1)):
            threads.append(threading.Thread(target=ask, args=(number, level)))
            threads[-1].start()
            time.sleep(0.08)
        for thread in threads:
            thread.join()
    return Cell(YES if order[1] == 5 else NO, "levels; the urgent one runs first" if order[1] == 5 else "in order")


@probe("state")
def state() -> Cell:
    """Two streams, whose requests meet in batches."""
    sums: dict[int, list[list[int]]] = {1: [], 2: []}
    with running(PEER) as service:

        def stream(of: int) -> None:
            for place, number in enumerate((1, 2, 3)):
                parameters = {"sequence_id": of, "sequence_start": place == 0, "sequence_end": place == 2}
                body = json.dumps(json.loads(write(number)) | {"parameters": parameters}).encode()
                asked = service.of("/v2/models/sums_of/infer", lambda _, body=body: body, read)
                sums[of].append(asked.ask(0).body)

        threads = [threading.Thread(target=stream, args=(of,)) for of in sums]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [[each[0] for each in of] for of in sums.values()] == [[1, 3, 6], [1, 3, 6]], sums
    size = max(each[1] for of in sums.values() for each in of)
    return Cell(YES if size > 1 else PARTLY, f"sequence batcher; batches of {size} streams; the model keeps the state")


@probe("misspelt")
def misspelt() -> Cell:
    """A key of config.pbtxt with a wrong letter."""
    try:
        with running(PEER, COMPARISON_MORE="\nmax_bach_size: 4\n"):
            return Cell(NO, "is ignored")
    except DidNotStart as error:
        is_named = re.search(r'no field named "max_bach_size"', error.log)  # far before the end of its log
        return Cell(YES if is_named else PARTLY, "the server does not start" + (", and names it" if is_named else ""))


@probe("protocol")
def protocol() -> Cell:
    """Health, and an inference over HTTP and gRPC."""
    with running(PEER, max_batch=1) as service:
        status, _ = service.get("/v2/health/ready")
        answer = service.ask(5).body[0]
        by_grpc = client(service).infer("model", [tensor_of(5)]).as_numpy("answer")[0][0]
    assert (status, answer, by_grpc) == (200, 5, 5)
    return Cell(YES, "HTTP and gRPC")


@probe("timeline")
def timeline() -> Cell:
    """Its trace of requests."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        options = (
            "--trace-config",
            f"triton,file={path}",
            "--trace-config",
            "rate=1",
            "--trace-config",
            "level=TIMESTAMPS",
        )
        with running(Peer((*SERVICE, *options), PEER.path, write, read)) as service:
            service.ask(1)
        events = json.loads(path.read_text()) if path.exists() else []
    names = {stamp["name"] for event in events for stamp in event.get("timestamps", ())}
    is_chrome = any("ph" in event for event in events)
    return Cell(YES if is_chrome else PARTLY, f"JSON of its own with {len(names)} time stamps a request; OpenTelemetry")


# ---- gRPC --------------------------------------------------------------------------------------------------------


def client(service: Running) -> Any:
    """Return a client of the running server."""
    import tritonclient.grpc

    return tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{service.others[0]}")


def tensor_of(number: int) -> Any:
    """Return a number as an input."""
    import numpy as np
    import tritonclient.grpc

    tensor = tritonclient.grpc.InferInput("number", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.array([[number]], np.int64))
    return tensor


def parts(service: Running) -> Cell:
    """Read three parts as they come."""
    came: list[float] = []
    began_s = time.perf_counter()
    is_over = threading.Event()

    def on_part(result: Any, error: Any) -> None:
        came.append(time.perf_counter() - began_s)
        if len(came) == 3:
            is_over.set()

    stream = client(service)
    stream.start_stream(on_part)
    tensor = tensor_of(1)
    tensor._input.shape[:] = [1]
    stream.async_stream_infer("parts", [tensor])
    assert is_over.wait(20)
    stream.stop_stream()
    mark = YES if came[0] < 0.45 < came[2] else NO
    return Cell(mark, f"gRPC: first part after {came[0]:.1f} s, the last after {came[2]:.1f} s")


def cancelled_call(service: Running) -> Cell:
    """One runs, another waits and is cancelled."""
    grpc = client(service)
    first = grpc.async_infer("model", [tensor_of(8_000_001)], lambda result, error: None)
    time.sleep(0.2)
    second = grpc.async_infer("model", [tensor_of(79)], lambda result, error: None)
    time.sleep(0.2)
    second.cancel()
    time.sleep(1.5)
    del first
    return Cell(NO, "runs all the same") if service.ran(79) else Cell(YES, "never runs")


documented(YES, "a process for each instance of a Python model", PYTHON_BACKEND, "cores")
documented(
    PARTLY,
    "by Kubernetes: charts of Helm",
    "https://github.com/triton-inference-server/server/tree/main/deploy",
    "machines",
)
documented(
    PARTLY,
    "a front end for vLLM and TensorRT-LLM; not in this package",
    f"{DOCS}/client_guide/openai_readme.html",
    "openai",
)
documented(PARTLY, "by the model's own code (BLS)", f"{DOCS}/bls.html", "loop", "map_reduce")
documented(
    YES,
    "DALI's backend",
    "https://github.com/triton-inference-server/dali_backend",
    "gpu_decode",
)

if __name__ == "__main__":
    main("nvidia-pytriton", "tritonclient")
