"""The protocol's messages: the same as tritonclient's, beside them; raw contents past protobuf."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("grpc", reason="grpcio is not installed here")
pytest.importorskip("google.protobuf", reason="protobuf is not installed here")

from fastpipe.serve import grpc_wire
from fastpipe.serve.grpc_messages import DecodeError, inference
from fastpipe.serve.statuses import InvalidRequest

ABRIDGED = {"ModelConfig", "ModelInput", "ModelOutput", "ModelDynamicBatching"}
"""Messages of which only the fields that a pipe fills are here."""


def fields_of(message: Any) -> dict[str, tuple[Any, ...]]:
    """What a descriptor says of each field that shows on the wire or in a name."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED,
            field.message_type and field.message_type.full_name,
            field.enum_type and field.enum_type.full_name,
            field.containing_oneof and field.containing_oneof.name,
        )
        for field in message.fields
    }


def theirs() -> dict[str, Any]:
    """tritonclient's descriptors, by name."""
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed here")
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    messages = {**config.DESCRIPTOR.message_types_by_name, **service.DESCRIPTOR.message_types_by_name}
    nested = {f"{name}.{inner}": each for name, m in messages.items() for inner, each in m.nested_types_by_name.items()}
    return {**messages, **nested}


def test_messages_are_those_of_tritonclient() -> None:
    """Names, numbers, types, choices and enums; where one is abridged, what is there is the same."""
    reference = theirs()
    for name, kind in inference().items():
        ours, expected = fields_of(kind.DESCRIPTOR), fields_of(reference[name])
        assert ours.items() <= expected.items(), name
        assert ours == expected or name in ABRIDGED, name
    ours, expected = (
        types["ModelInput"].fields_by_name["data_type"].enum_type.values_by_name
        for types in ({n: k.DESCRIPTOR for n, k in inference().items()}, reference)
    )
    assert {name: value.number for name, value in ours.items()} == {n: v.number for n, v in expected.items()}


@pytest.mark.parametrize("order", [("fastpipe", "tritonclient"), ("tritonclient", "fastpipe")])
def test_messages_load_beside_those_of_tritonclient(order: tuple[str, str], tmp_path: Path) -> None:
    """In one process, in either order: theirs are in protobuf's default pool, ours in one of their own."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed here")
    imports = {
        "fastpipe": "from fastpipe.serve.grpc_messages import inference; ours = inference()['ServerLiveRequest']",
        "tritonclient": "from tritonclient.grpc.service_pb2 import ServerLiveRequest as theirs",
    }
    script = "\n".join(
        [*(imports[each] for each in order), "assert ours.DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name"]
    )
    subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, check=True)


def read(body: bytes) -> Any:
    """Read a request in the two steps of the server."""
    kind = inference()["ModelInferRequest"]
    request = grpc_wire.cut(body)
    message = kind.FromString(request.head)
    assert not message.raw_input_contents
    assert not message.id
    message.raw_input_contents.extend(map(bytes, request.raw))
    message.id = request.id.decode()
    return message


contents = some.binary(max_size=300) | some.sampled_from([b"", b"a" * 127, b"b" * 128, b"c" * 70_000])


@given(
    raw=some.lists(contents, max_size=4),
    names=some.lists(some.text(max_size=40), max_size=3),
    id=some.text(max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_raw_contents_are_cut_out(raw: list[bytes], names: list[str], id: str) -> None:
    """What is left and what was cut out are together what protobuf reads of the whole."""
    request = inference()["ModelInferRequest"](model_name="m", id=id, raw_input_contents=raw)
    for name in names:
        request.inputs.add(name=name, datatype="FP32", shape=[1, -1, 2**40])
    body = request.SerializeToString()
    assert read(body) == request
    twice = body + request.SerializeToString()  # one message, with the fields of both
    assert read(twice) == inference()["ModelInferRequest"].FromString(twice)


@given(some.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bodies_are_read_as_protobuf_reads_them(data: some.DataObject) -> None:
    """Whatever bytes come, the answer is protobuf's: the same message, or an error where it has one."""
    request = inference()["ModelInferRequest"](model_name="m", raw_input_contents=[b"abc", b"d" * 200])
    request.inputs.add(name="x", datatype="FP32", shape=[3])
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(some.integers(0, 3))):
        body[data.draw(some.integers(0, len(body) - 1))] = data.draw(some.integers(0, 255))
    body = bytearray(data.draw(some.binary(max_size=40))) + body[: data.draw(some.integers(0, len(body)))]
    try:
        expected = inference()["ModelInferRequest"].FromString(bytes(body))
    except DecodeError:
        expected = None
    try:
        found = read(bytes(body))
    except DecodeError:
        found = None
    except InvalidRequest as error:
        found = expected if re.search("of kind|too many bytes", str(error)) else None
    assert found == expected


def test_unknown_fields_are_passed_over() -> None:
    """A client may be newer than the server."""
    kind = inference()["ModelInferRequest"]
    body = kind(model_name="m", id="7", raw_input_contents=[b"abc"]).SerializeToString()
    number, fixed_8, fixed_4, text = (
        b"\x80\x01\x96\x01",
        b"\x89\x01" + bytes(8),
        b"\x8d\x01" + bytes(4),
        b"\x92\x01\x01x",
    )
    for unknown in (number, fixed_8, fixed_4, text):
        request = read(unknown + body + unknown)
        assert (request.model_name, request.id, list(request.raw_input_contents)) == ("m", "7", [b"abc"])
    with pytest.raises(InvalidRequest, match="a field of kind 3"):
        read(b"\x83\x01\x84\x01" + body)
    with pytest.raises(InvalidRequest, match="too many bytes"):
        read(b"\xba\x00\x01x" + body)


@pytest.mark.parametrize("field", [b"\x1a\x00", b"\x2a\x00", b"\x3a\x00", b"\x80\x01\x00"])
def test_fields_without_end_are_refused(field: bytes) -> None:
    """Two bytes of a body could otherwise become a hundred: ids, inputs, raw contents, unknown ones."""
    with pytest.raises(InvalidRequest, match="more than 4096 inputs"):
        grpc_wire.cut(field * 5000)


def test_views_are_of_the_body_itself() -> None:
    """A tensor of 10 MB is not copied when it is cut out, nor when its field is written."""
    body = inference()["ModelInferRequest"](raw_input_contents=[bytes(10_000_000)]).SerializeToString()
    request = grpc_wire.cut(body)
    assert request.head == b""
    assert request.raw[0].obj is body
    answer = inference()["ModelInferResponse"].FromString(
        grpc_wire.field_head(grpc_wire.RAW_OUTPUT, len(request.raw[0])) + request.raw[0]
    )
    assert [len(each) for each in answer.raw_output_contents] == [10_000_000]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_fields_are_written_as_protobuf_writes_them(length: int) -> None:
    """At each number of bytes that a length takes."""
    answer = inference()["ModelInferResponse"](raw_output_contents=[bytes(length)])
    assert grpc_wire.field_head(grpc_wire.RAW_OUTPUT, length) + bytes(length) == answer.SerializeToString()
    whole = inference()["ModelStreamInferResponse"](infer_response=answer)
    inner = answer.SerializeToString()
    assert grpc_wire.field_head(grpc_wire.ANSWER_IN_STREAM, len(inner)) + inner == whole.SerializeToString()
