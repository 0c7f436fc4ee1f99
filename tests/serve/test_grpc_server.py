"""A server of gRPC: its repository, its limits, its address, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import WAIT_S

from fastpipe import ConfigError, Pipe, PipeError

pytest.importorskip("orjson", reason="orjson is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
import grpc
import tritonclient.grpc as client_of
from grpc_serving import Echo, begun, element, refusal, served, standing_still, tensor, typed
from tritonclient.utils import InferenceServerException

from fastpipe.serve.grpc_server import GrpcServer


@pytest.fixture
def gate() -> Iterator[Any]:
    with standing_still() as made:
        yield made


@pytest.fixture
def echoing() -> Iterator[Any]:
    """A function that serves an echo, "m", with settings, and returns a client of it."""
    with Pipe({"echo": {"backend": Echo}}) as pipe, ExitStack() as stack:

        def start(**settings: Any) -> Any:
            made = stack.enter_context(served({"m": pipe}, **settings))
            address = settings.get("address", made.address)
            return made, stack.enter_context(client_of.InferenceServerClient(address))

        yield start


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    """By clients, where the server lets them; a call of an unloaded model is UNAVAILABLE."""
    (tmp_path / "m.toml").write_text('[step]\nbackend = "Identity"\n')
    with (
        served({"m": tmp_path / "m.toml"}, control=True) as made,
        client_of.InferenceServerClient(made.address) as client,
    ):
        assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]
        client.unload_model("m")
        assert not client.is_model_ready("m")
        assert client.get_model_repository_index(as_json=True)["models"][0]["state"] == "UNAVAILABLE"
        with pytest.raises(InferenceServerException, match="unloaded") as caught:
            client.infer("m", element(b"x"))
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        client.load_model("m")
        assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]
        with pytest.raises(InferenceServerException, match="parameter 'config' is not taken"):
            client.load_model("m", config='{"max_batch_size": 3}')
        with pytest.raises(InferenceServerException, match="no model is named 'n'"):
            client.load_model("n")


def test_models_stay_where_clients_have_no_control(echoing: Any) -> None:
    """As the server was started."""
    _, client = echoing()
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("m")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert client.is_model_ready("m")


def test_messages_too_large_are_refused(echoing: Any) -> None:
    """Also those that are large only when decompressed."""
    _, client = echoing(body_bytes=1 << 20)
    large = [tensor("data", np.zeros(1 << 20, np.uint8), "UINT8")]
    for how in ({}, {"compression_algorithm": "gzip"}):
        with pytest.raises(InferenceServerException, match="larger than max") as caught:
            client.infer("m", large, **how)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]


def test_what_is_not_raw_is_bounded(echoing: Any) -> None:
    """Elements in fields of their type, names, parameters: they become many times as large in memory."""
    made, client = echoing(json_bytes=1000)
    request = typed("INT8", [2000], int_contents=[1] * 2000)
    request.model_name = "m"
    code, words = refusal(made, request)
    assert code == "RESOURCE_EXHAUSTED"
    assert "at most 1000 are taken: send tensors as raw_input_contents" in words
    raw = [tensor("data", np.ones(2000, np.int8), "INT8")]
    assert client.infer("m", raw).as_numpy("result").sum() == 2000


def test_messages_in_flight_are_bounded(gate: Any) -> None:
    """One more than the server keeps is refused, and served once there is room."""
    backend, pipe, _ = gate
    with served({"m": pipe}, buffered_bytes=1000) as made, client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"a" * 900)
        assert backend.inside.wait(WAIT_S)
        with pytest.raises(InferenceServerException, match="as many bytes of requests as it may") as caught:
            client.infer("m", element(b"b" * 900))
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        backend.opened.set()
        assert first.result(WAIT_S) == [b"a" * 900]
        assert client.infer("m", element(b"b" * 900)).as_numpy("result").tolist() == [b"b" * 900]


def test_answers_are_compressed_where_that_is_set(echoing: Any) -> None:
    """gRPC does it; what comes is the same."""
    _, client = echoing(compression="gzip")
    back = client.infer("m", [tensor("data", np.ones(9999, np.int8), "INT8")]).as_numpy("result")
    assert back.sum() == 9999


def test_an_address_in_use_is_an_error(echoing: Any) -> None:
    """By default gRPC would let a second server take half of the calls of the first."""
    made, _ = echoing()
    other = GrpcServer(made.service, made.address)
    with pytest.raises(PipeError, match=f"gRPC cannot listen at {made.address}"):
        asyncio.run(other.start())


def test_workers_share_a_port(echoing: Any) -> None:
    """Where both say so."""
    made, client = echoing(shares_port=True)

    async def start_and_stop() -> int:
        other = GrpcServer(made.service, made.address, shares_port=True)
        port = await other.start()
        await other.stop(0)
        return port

    assert asyncio.run(start_and_stop()) == made.port
    assert client.is_server_live()


def test_a_wrong_setting_is_refused(echoing: Any) -> None:
    """Before anything listens."""
    made, _ = echoing()
    with pytest.raises(ConfigError, match="compression must be one of none, deflate, gzip, got 'zip'"):
        GrpcServer(made.service, compression="zip")  # type: ignore[arg-type]


def test_whoever_asks_needs_the_token(echoing: Any) -> None:
    """But for health, which is asked by who has none."""
    made, client = echoing(token="secret")
    right = {"authorization": "Bearer secret"}
    assert client.infer("m", element(b"x"), headers=right).as_numpy("result").tolist() == [b"x"]
    assert client.get_model_metadata("m", headers=right).name == "m"
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    for ask in (
        lambda headers: client.infer("m", element(b"x"), headers=headers),
        lambda headers: client.get_model_metadata("m", headers=headers),
        lambda headers: client.get_log_settings(headers=headers),
    ):
        for headers in ({}, {"authorization": "Bearer secre"}):
            with pytest.raises(InferenceServerException) as caught:
                ask(headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    with grpc.insecure_channel(made.address) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([]))
        with pytest.raises(grpc.RpcError) as refused:
            next(stream)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_stopping_answers_what_was_begun(gate: Any) -> None:
    """New calls are refused meanwhile; gRPC itself cancels one that comes at just that moment."""
    backend, _, made = gate
    with client_of.InferenceServerClient(made.address) as client:
        _, first = begun(client, b"x")
        assert backend.inside.wait(WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(made.server.stop(WAIT_S), made.loop)
        codes: list[str] = []
        while not codes or codes[-1] == "StatusCode.CANCELLED":
            try:
                client.is_server_live()
            except InferenceServerException as error:
                codes.append(error.status())
        assert codes[-1] == "StatusCode.UNAVAILABLE"
        assert len(codes) <= 2
        backend.opened.set()
        stopping.result(WAIT_S)
        assert first.result(WAIT_S) == [b"x"]


def test_a_unix_socket_is_served(echoing: Any, tmp_path: Path) -> None:
    """For clients on the same machine."""
    _, client = echoing(address=f"unix:{tmp_path}/s")
    assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]


def test_a_unix_socket_is_taken_from_nobody(echoing: Any, tmp_path: Path) -> None:
    """gRPC itself would: it removes whatever socket lies there. At the end the path is free."""
    made, client = echoing(address=f"unix:{tmp_path}/s")
    with pytest.raises(PipeError, match=f"cannot listen at unix:{tmp_path}/s: another server has it"):
        echoing(address=f"unix:{tmp_path}/s")
    assert client.infer("m", element(b"x")).as_numpy("result").tolist() == [b"x"]
    made.run(made.server.stop(0))
    assert not list(tmp_path.iterdir())


# ---- health ----------------------------------------------------------------------------------------------------------


def test_health_of_the_server(gate: Any) -> None:
    """As load balancers and Kubernetes ask; a watch tells of a change."""
    _, _, made = gate

    def decoded(body: bytes) -> int:
        return body[1] if body else 0

    with grpc.insecure_channel(made.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert decoded(check(b"", timeout=WAIT_S)) == 1
        service = b"inference.GRPCInferenceService"
        assert decoded(check(bytes([10, len(service)]) + service, timeout=WAIT_S)) == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x01x", timeout=WAIT_S)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=WAIT_S)
        assert decoded(next(watch)) == 1
        assert decoded(next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x01x", timeout=WAIT_S))) == 3
        made.repository.is_draining = True
        assert decoded(next(watch)) == 2
        assert decoded(check(b"", timeout=WAIT_S)) == 2
        made.run(made.server.stop(WAIT_S))
        assert list(watch) == []
