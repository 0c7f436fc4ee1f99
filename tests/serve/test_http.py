"""The protocol over HTTP, judged by clients: tritonclient's two, and plain requests for what those do not send."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")
pytest.importorskip("orjson", reason="the extra serve is not installed here")

from helpers import WAIT_S, Gate, until
from served import Served, serving

from fastpipe import Backend, PerRequest, Pipe, QueueFull, Request
from fastpipe.serve.exchange import Limits
from fastpipe.serve.http import Settings
from fastpipe.serve.repository import Repository
from fastpipe.serve.server import Plan

httpx = pytest.importorskip("httpx")

ROWS = {
    "max_batch_size": 8,
    "inputs": {"x": {"datatype": "FP32", "shape": [3], "key": "data"}},
    "outputs": {"y": {"datatype": "FP32", "shape": [3], "key": "result", "labels": ["a", "b", "c"]}},
}


class Fails(PerRequest):
    """Raises what it is asked to."""

    def run(self, request: Request) -> None:
        if request["data"] == b"full":
            raise QueueFull("the queue is full")
        raise ValueError("a secret of the backend")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server of an echo, of one with rows, and of one that fails."""
    models = {
        "echo": lambda: Pipe(backend="Identity", max=8),
        "rows": lambda: Pipe({"a": {"backend": "Identity", "max": 8}, "serve": ROWS}),
        "fails": lambda: Pipe(backend=Fails),
    }
    with serving(models, Plan(settings=Settings(limits=Limits(body_bytes=128 << 20)))) as own:
        yield own


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    with httpx.Client(base_url=served.url, timeout=WAIT_S) as own:
        yield own


def ask(client: Any, name: str, *inputs: dict[str, Any], **more: Any) -> Any:
    return client.post(f"/v2/models/{name}/infer", json={"inputs": list(inputs), **more})


def data(value: list[Any], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "data", "datatype": datatype, "shape": [len(value)], "data": value, **more}


# ---- tritonclient ------------------------------------------------------------------------------------------------

NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32")
ARRAYS = {
    **{name: np.array([[0, 1, 1], [1, 0, 1]]).astype(name) for name in (*NUMBERS, "float64")},
    "bytes": np.array([[b"\xff\x00", b"", b"abc"]], object),
    "empty": np.zeros((0, 4), np.float32),
}


def array_of(name: str) -> Any:
    if name == "bfloat16":
        return np.array([[0.5, -2]], pytest.importorskip("ml_dtypes").bfloat16)
    return ARRAYS[name]


def tensor_for(module: Any, array: Any, *, binary: bool = True) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    datatype = "BYTES" if array.dtype == object else np_to_triton_dtype(array.dtype)
    tensor = module.InferInput("data", array.shape, datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("name", [*ARRAYS, "bfloat16"])
def test_every_datatype_there_and_back(served: Served, name: str, binary_in: bool, binary_out: bool) -> None:
    """By the blocking client of Triton, as binary data and as JSON."""
    triton = pytest.importorskip("tritonclient.http")
    array = array_of(name)
    if name in ("bytes", "bfloat16") and not (binary_in and binary_out):
        pytest.skip("the client refuses it in JSON")
    if name == "empty" and not binary_in:
        pytest.skip("the client sends no shape of it in JSON")
    with triton.InferenceServerClient(served.address) as client:
        wanted = [triton.InferRequestedOutput("result", binary_data=binary_out)]
        answer = client.infer("echo", [tensor_for(triton, array, binary=binary_in)], outputs=wanted, request_id="7")
    back = answer.as_numpy("result")
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert answer.get_response()["id"] == "7"


def test_text_of_triton_s_client_in_json(served: Served) -> None:
    """From JSON it is text."""
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(served.address) as client:
        tensor = tensor_for(triton, np.array(["é", ""], object), binary=False)
        wanted = [triton.InferRequestedOutput("result", binary_data=False)]
        assert client.infer("echo", [tensor], outputs=wanted).as_numpy("result").tolist() == ["é", ""]


def test_what_triton_s_client_asks_of_a_server(served: Served) -> None:
    """Health, metadata, configuration, statistics, the repository; shared memory is refused in words."""
    triton = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(served.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("rows")
        assert client.is_model_ready("rows", "1")
        assert not client.is_model_ready("none")
        assert client.get_server_metadata()["name"] == "fastpipe"
        assert client.get_model_metadata("rows") == {
            "name": "rows",
            "versions": ["1"],
            "platform": "fastpipe",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
        config = client.get_model_config("rows")
        assert config["max_batch_size"] == 8
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
        index = {row["name"]: row["state"] for row in client.get_model_repository_index()}
        assert index == {"echo": "READY", "rows": "READY", "fails": "READY"}
        before = client.get_inference_statistics("echo")["model_stats"][0]
        client.infer("echo", [tensor_for(triton, np.ones(2, np.float32))])
        after = client.get_inference_statistics("echo", "1")["model_stats"][0]
        assert after["inference_count"] == before["inference_count"] + 1
        assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
        assert after["execution_count"] > before["execution_count"]
        with pytest.raises(InferenceServerException, match=r"\[501\] shared memory is not served"):
            client.register_system_shared_memory("x", "/x", 8)
        with pytest.raises(InferenceServerException, match=r"\[501\] clients do not change settings"):
            client.update_trace_settings("echo", {"trace_level": ["OFF"]})


def test_hits_of_a_cache_are_in_triton_s_statistics() -> None:
    """What nodes have answered from what they keep, and what came there and ran."""
    models = {"echo": lambda: Pipe(backend="Identity", cache="1MB")}
    with serving(models, Plan()) as own, httpx.Client(base_url=own.url, timeout=WAIT_S) as client:
        for _ in range(3):
            assert client.post("/v2/models/echo/generate", json={"data": "hi"}).json()["result"] == "hi"
        stats = client.get("/v2/models/echo/stats").json()["model_stats"][0]
    assert stats["inference_stats"]["cache_hit"]["count"] == 2
    assert stats["inference_stats"]["cache_miss"]["count"] == 1
    assert stats["execution_count"] == 1


def test_loading_by_triton_s_client() -> None:
    """Where clients may, they unload a model and load it again."""
    triton = pytest.importorskip("tritonclient.http")
    models = Repository({"m": lambda: Pipe(backend="Identity")}, control=True)
    with serving(models) as own, triton.InferenceServerClient(own.address) as client:
        client.unload_model("m")
        assert not client.is_model_ready("m")
        client.load_model("m")
        assert client.is_model_ready("m")


def test_large_tensors(served: Served) -> None:
    """100 MB there and back."""
    triton = pytest.importorskip("tritonclient.http")
    array = np.arange(25_000_000, dtype=np.float32)
    with triton.InferenceServerClient(served.address, network_timeout=WAIT_S, connection_timeout=WAIT_S) as client:
        back = client.infer("echo", [tensor_for(triton, array)]).as_numpy("result")
    assert np.array_equal(back, array)


def test_a_large_tensor_is_not_copied(served: Served) -> None:
    """10 MB in and out: the memory that is received into is all that the server takes."""
    pytest.importorskip("uvloop", reason="the standard library's loop copies what it cannot write at once")
    size = 10_000_000
    entry = {"name": "data", "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    sent = b"".join(
        [
            b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n",
            b"inference-header-content-length: %d\r\n" % len(head),
            b"content-length: %d\r\n\r\n" % (len(head) + size),
            head,
            bytes(range(250)) * (size // 250),
        ]
    )
    got = memoryview(bytearray(size + 10_000))
    position = 0
    with socket.create_connection(("127.0.0.1", served.port), WAIT_S) as connection:
        tracemalloc.start()
        try:
            connection.sendall(sent)
            while count := connection.recv_into(got[position:]):
                position += count
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert bytes(got[position - size : position]) == sent[-size:]
    assert peak_bytes < 1.1 * size


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_by_triton_s_client(served: Served, algorithm: str) -> None:
    """Of request and answer."""
    triton = pytest.importorskip("tritonclient.http")
    array = np.zeros((1000, 100), np.float32)
    with triton.InferenceServerClient(served.address) as client:
        answer = client.infer(
            "echo",
            [tensor_for(triton, array)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    assert np.array_equal(answer.as_numpy("result"), array)


def test_the_asynchronous_client(served: Served) -> None:
    """Which calls JSON an octet-stream, and says other headers; 32 at once."""
    triton = pytest.importorskip("tritonclient.http.aio")

    async def main() -> None:
        async with triton.InferenceServerClient(served.address) as client:
            assert await client.is_server_ready()
            for binary in (True, False):
                arrays = [np.full((1, 3), number, np.float32) for number in range(32)]
                tensors = []
                for array in arrays:
                    tensor = triton.InferInput("x", array.shape, "FP32")
                    tensor.set_data_from_numpy(array, binary_data=binary)
                    tensors.append(tensor)
                answers = await asyncio.gather(*(client.infer("rows", [tensor]) for tensor in tensors))
                assert all(np.array_equal(a.as_numpy("y"), b) for a, b in zip(answers, arrays, strict=True))

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_classification_by_triton_s_client(served: Served) -> None:
    """``class_count`` gives score, index and label."""
    triton = pytest.importorskip("tritonclient.http")
    tensor = triton.InferInput("x", (2, 3), "FP32")
    tensor.set_data_from_numpy(np.array([[0.1, 0.7, 0.2], [3, 1, 2]], np.float32))
    with triton.InferenceServerClient(served.address) as client:
        answer = client.infer("rows", [tensor], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert answer.as_numpy("y").tolist() == [[b"0.700000:1:b", b"0.200000:2:c"], [b"3.000000:0:a", b"2.000000:2:c"]]


# ---- plain requests ----------------------------------------------------------------------------------------------


def test_errors_are_a_text_under_error(client: Any) -> None:
    """With the status of the table; the model's own have their type, and a retry has its time."""
    for answer, status, says in (
        (ask(client, "none", data([1.0])), 404, "no model is named 'none'"),
        (client.get("/v2/models/echo/versions/2"), 404, "has no version '2'; there are 1"),
        (client.get("/v2/models/echo/infer"), 405, "takes POST, not 'GET'"),
        (client.get("/nothing"), 404, "nothing is at '/nothing'"),
        (ask(client, "fails", data(["x"], "BYTES")), 500, "ValueError: a secret of the backend"),
        (ask(client, "fails", data(["full"], "BYTES")), 429, "the queue is full"),
        (client.post("/v2/models/echo/infer", content=b"{"), 400, "the JSON cannot be read"),
        (client.post("/v2/models/echo/infer", content=b"[1]"), 400, "must be a JSON object"),
        (client.post("/v2/models/echo/infer"), 400, "the JSON cannot be read"),
        (client.post("/v2/models/echo/infer", json={}), 400, "inputs must be a list"),
    ):
        assert answer.status_code == status
        assert says in answer.json()["error"]
        assert answer.headers.get("retry-after") == ("1" if status == 429 else None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "dat"}, "no input is named 'dat'; did you mean 'data'"),
        ({"name": 3}, "name must be a text"),
        ({"datatype": "FP31"}, "datatype must be one of"),
        ({"shape": [3]}, "has 3 elements, data has 2"),
        ({"shape": [-2]}, "shape must be a list of whole numbers"),
        ({"data": ["a", "b"]}, "data of FP32 are numbers, got 'a'"),
        ({"data": None}, "data must be a list"),
        ({"parameters": 3, "data": ...}, "parameters must be an object"),
        ({"parameters": {"binary_data_size": 8}, "data": ...}, "binary_data_size ends at 8, and there are 0 bytes"),
        ({"parameters": {"binary_data_size": -1}, "data": ...}, "neither data nor binary_data_size"),
        ({"parameters": {"shared_memory_region": "x"}, "data": ...}, "shared memory is not served"),
    ],
)
def test_inputs_that_are_wrong(client: Any, change: dict[str, Any], says: str) -> None:
    """What is wrong is said, and nothing runs."""
    entry = {key: value for key, value in {**data([1.0, 2.0]), **change}.items() if value is not ...}
    answer = ask(client, "echo", entry)
    assert answer.status_code in (400, 501)
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"outputs": [{"name": "results"}]}, "no output is named 'results'"),
        ({"outputs": [{"name": "result"}, {"name": "result"}]}, "asked for twice"),
        ({"outputs": {"name": "result"}}, "outputs must be a list"),
        ({"outputs": [{"name": "result", "parameters": {"classification": -1}}]}, "classification must be"),
        ({"outputs": [{"name": "result", "parameters": {"binary_data": 1}}]}, "must be true or false"),
        ({"parameters": {"timeout": "soon"}}, "timeout must be a number"),
        ({"parameters": []}, "parameters must be an object"),
        ({"id": 7}, "id must be a text"),
    ],
)
def test_requests_that_are_wrong(client: Any, more: dict[str, Any], says: str) -> None:
    """The same of what stands beside the inputs."""
    answer = ask(client, "echo", data([1.0]), **more)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_what_is_not_finite_in_json(client: Any) -> None:
    """Requests may say NaN and Infinity, as clients in Python do; answers say null for NaN, and keep infinity."""
    body = b'{"inputs":[{"name":"data","datatype":"FP32","shape":[3],"data":[NaN,Infinity,1.5]}]}'
    answer = client.post("/v2/models/echo/infer", content=body)
    assert answer.status_code == 200
    assert answer.content.endswith(b'"data":[null, Infinity, 1.5]}]}')
    answer = ask(client, "echo", data([0.1, 2.0]))
    assert answer.json()["outputs"][0]["data"] == [0.1, 2.0]


@pytest.mark.parametrize("kind", ["image/jpeg", "text/plain; charset=utf-8", "application/octet-stream"])
def test_a_body_that_is_the_input(client: Any, kind: str) -> None:
    """A file is uploaded as it is."""
    answer = client.post("/v2/models/echo/infer", content=b"hello", headers={"content-type": kind})
    assert answer.json()["outputs"][0] == {"name": "result", "datatype": "BYTES", "shape": [1], "data": ["hello"]}


def test_a_raw_request(client: Any) -> None:
    """Triton's form of it: the answer is binary, too; of numbers, the bytes say the shape."""
    headers = {"inference-header-content-length": "0"}
    answer = client.post("/v2/models/echo/infer", content=b"\xff\xd8", headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 6}
    assert answer.content[length:] == b"\x02\0\0\0\xff\xd8"
    row = np.array([1, 2, 3], np.float32).tobytes()
    answer = client.post("/v2/models/rows/infer", content=row, headers=headers)
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == row
    answer = client.post("/v2/models/rows/infer", content=row[:-1], headers=headers)
    assert answer.status_code == 400


def test_rows_are_views_of_one_body_and_writable(served: Served) -> None:
    """What a backend gets may be changed in place, whether a request is small or large."""

    class Writes(Backend):
        max_batch = 4

        def forward(self, batch: list[Request]) -> None:
            for request in batch:
                request["data"] += 1
                request["result"] = request["data"]

    with (
        serving({"m": lambda: Pipe({"a": {"backend": Writes}, "serve": ROWS})}) as own,
        httpx.Client(base_url=own.url) as client,
    ):
        for count in (1, 3):
            body = np.zeros((count, 3), np.float32).tobytes()
            entry = {
                "name": "x",
                "datatype": "FP32",
                "shape": [count, 3],
                "parameters": {"binary_data_size": len(body)},
            }
            head = json.dumps({"inputs": [entry]}).encode()
            answer = client.post(
                "/v2/models/m/infer",
                content=head + body,
                headers={"inference-header-content-length": str(len(head))},
            )
            assert answer.json()["outputs"][0]["data"] == [1.0] * 3 * count


@pytest.mark.parametrize("length", ["-1", "x", "5000", "1e3", "9" * 40])
def test_a_header_length_that_lies(client: Any, length: str) -> None:
    """It is held against the body."""
    answer = client.post("/v2/models/echo/infer", content=b"{}", headers={"inference-header-content-length": length})
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_answers_are_compressed_for_who_asks(client: Any) -> None:
    """JSON for everybody who takes it, binary tensors for those that name nothing else."""
    long = data([0.0] * 2000)
    for accepted, encoding, binary in (
        ("gzip", "gzip", False),
        ("gzip", "gzip", True),
        ("deflate", "deflate", True),
        ("gzip, deflate, br", "gzip", False),
        ("gzip, deflate, br", None, True),
        ("br", None, False),
    ):
        answer = client.post(
            "/v2/models/echo/infer",
            json={"inputs": [long], "parameters": {"binary_data_output": binary}},
            headers={"accept-encoding": accepted},
        )
        assert answer.headers.get("content-encoding") == encoding
        assert len(answer.content) > 4000  # httpx has undone it


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (b"no gzip", "gzip", "not what its Content-Encoding says"),
        (gzip.compress(b"{}")[:-4], "gzip", "cut short"),
        (gzip.compress(b"{}") + b"more", "gzip", "goes on behind its end"),
        (zlib.compress(b"{}"), "gzip", "not what its Content-Encoding says"),
        (b"{}", "br", "must be gzip or deflate"),
    ],
)
def test_compressed_bodies_that_are_wrong(client: Any, body: bytes, encoding: str, says: str) -> None:
    """They are the client's fault."""
    answer = client.post("/v2/models/echo/infer", content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_a_bomb(client: Any) -> None:
    """A body that would be larger than bodies may be is not unpacked to its end."""
    deflater = zlib.compressobj(9)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(200)) + deflater.flush()
    assert len(bomb) < 1 << 20
    answer = client.post("/v2/models/echo/infer", content=bomb, headers={"content-encoding": "deflate"})
    assert answer.status_code == 413


def test_deep_and_large_json(client: Any) -> None:
    """Nested 10^5 deep, or more than the server takes: a status, not a stack."""
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert client.post("/v2/models/echo/infer", content=deep).status_code == 400
    large = b'{"inputs":["' + b"x" * (33 << 20) + b'"]}'
    answer = client.post("/v2/models/echo/infer", content=large)
    assert answer.status_code == 413
    assert "send tensors as binary data" in answer.json()["error"]


def test_generate(client: Any) -> None:
    """Values by the names of inputs; one element is that element."""
    assert client.post("/v2/models/echo/generate", json={"data": "hi", "id": "7"}).json() == {
        "model_name": "echo",
        "model_version": "1",
        "id": "7",
        "result": "hi",
    }
    assert client.post("/v2/models/rows/generate", json={"x": [1, 2, 3]}).json()["y"] == [1, 2, 3]
    answer = client.post("/v2/models/echo/generate", json={"text": "hi"})
    assert (answer.status_code, answer.json()) == (400, {"error": "inputs are missing: data; the request has 'text'"})
    answer = client.post("/v2/models/rows/generate", json={"z": 1})
    assert (answer.status_code, answer.json()) == (400, {"error": "inputs are missing: x; the request has 'z'"})


def test_methods_and_heads(client: Any) -> None:
    """HEAD has the headers of GET and no body; answers say their length."""
    got = client.get("/v2/health/live")
    assert (got.status_code, got.headers["content-type"]) == (200, "application/json")
    head = client.head("/v2/health/live")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(got.content)))
    assert client.delete("/v2/models/echo").status_code == 405


def test_metrics(client: Any) -> None:
    """What all pipes have counted, each under its model's name."""
    pytest.importorskip("prometheus_client")
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'fastpipe_healthy{pipe="echo"} 1' in page.text
    assert 'fastpipe_healthy{pipe="rows"} 1' in page.text


def test_the_live_page() -> None:
    """``/live`` leads to it; without it, there is nothing."""
    models = {"m": lambda: Pipe(backend="Identity")}
    with serving(models, Plan(live_port=0)) as own, httpx.Client(base_url=own.url) as client:
        answer = client.get("/live")
        assert answer.status_code == 307
        assert client.get(answer.headers["location"]).status_code == 200


def test_a_token() -> None:
    """Whoever has none may ask for health, and nothing else; errors of backends can be kept back."""
    settings = Settings(token="a-token-of-sixteen-letters", hide_errors=True)
    models = {"fails": lambda: Pipe(backend=Fails)}
    with serving(models, Plan(settings=settings)) as own, httpx.Client(base_url=own.url) as client:
        assert client.get("/v2/health/ready").status_code == 200
        refused = client.get("/v2/models/fails")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        client.headers["authorization"] = "Bearer a-token-of-sixteen-letters"
        assert client.get("/v2/models/fails").status_code == 200
        answer = ask(client, "fails", data(["x"], "BYTES"))
        assert (answer.status_code, "secret" in answer.text) == (500, False)


def test_a_client_that_leaves_cancels_its_request() -> None:
    """Its request is not run, if it waits."""
    gate = Gate()
    with serving({"m": lambda: Pipe(backend=gate, max=1)}) as own:
        pipe = own.service.repository.model("m").pipe
        with httpx.Client(base_url=own.url, timeout=0.2) as client:
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    ask(client, "m", data([1.0]))
        until(lambda: pipe.stats()["requests"]["cancelled"] == 2)
        gate.opened.set()
        until(lambda: pipe.in_flight == 0)
        assert len(gate.batches) == 1
        assert own.service.repository.model("m").statistics.cancelled == 2


def test_a_model_folder(tmp_path: Path) -> None:
    """Versions are asked for by their paths."""
    for version in ("1", "2"):
        (tmp_path / "m" / version).mkdir(parents=True)
        (tmp_path / "m" / version / "pipeline.toml").write_text(
            f'[node]\nbackend = "Add"\nkey = "result"\nvalue = {version}\n'
        )
    with serving(Repository.of_folder(tmp_path)) as own, httpx.Client(base_url=own.url) as client:
        assert ask(client, "m", data([1.0])).json()["model_version"] == "2"
        answer = ask(client, "m/versions/1", data([1.0])).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("1", [1])
        assert client.get("/v2/models/m").json()["versions"] == ["1", "2"]
        assert client.post("/v2/repository/models/m/load").status_code == 501
