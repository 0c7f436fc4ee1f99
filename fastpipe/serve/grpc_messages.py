"""The messages of the Open Inference Protocol over gRPC, in a descriptor pool of their own.

The protocol's own description is ``grpc_predict_v2.proto`` of KServe, with Triton Inference Server's extensions
(``grpc_service.proto`` and ``model_config.proto``: streams, statistics, the repository, configurations). Names, numbers
and types below are theirs, and a test compares them; of a configuration there is what a pipe can say of itself, and the
messages of calls that are refused are not here, as nothing reads them.

No generated code: what grpcio-tools generates wants the protobuf that it was made for, and a second copy of these
messages in protobuf's default pool is an error in each process that has tritonclient's. In a pool of their own they
load with protobuf 4 to 7, beside tritonclient, in either order of import.

A message is a line for each field: its type, its name, its number. ``map T`` has keys of type string.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastpipe.errors import MissingExtra

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError, Message
except ImportError as missing:
    raise MissingExtra("fastpipe's gRPC server", "serve", missing) from missing

__all__ = ["PACKAGE", "DecodeError", "Message", "MessageTypes", "inference", "message_types"]

PACKAGE = "inference"

_INFERENCE = {
    # What is asked of the server.
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": """
        string name = 1
        string version = 2
        repeated string extensions = 3
    """,
    # What is asked of a model.
    "ModelReadyRequest": """
        string name = 1
        string version = 2
    """,
    "ModelReadyResponse": "bool ready = 1",
    "ModelMetadataRequest": """
        string name = 1
        string version = 2
    """,
    "ModelMetadataResponse": """
        string name = 1
        repeated string versions = 2
        string platform = 3
        repeated ModelMetadataResponse.TensorMetadata inputs = 4
        repeated ModelMetadataResponse.TensorMetadata outputs = 5
    """,
    "ModelMetadataResponse.TensorMetadata": """
        string name = 1
        string datatype = 2
        repeated int64 shape = 3
    """,
    # Inference.
    "InferParameter": """
        oneof parameter_choice bool bool_param = 1
        oneof parameter_choice int64 int64_param = 2
        oneof parameter_choice string string_param = 3
        oneof parameter_choice double double_param = 4
        oneof parameter_choice uint64 uint64_param = 5
    """,
    "InferTensorContents": """
        repeated bool bool_contents = 1
        repeated int32 int_contents = 2
        repeated int64 int64_contents = 3
        repeated uint32 uint_contents = 4
        repeated uint64 uint64_contents = 5
        repeated float fp32_contents = 6
        repeated double fp64_contents = 7
        repeated bytes bytes_contents = 8
    """,
    "ModelInferRequest": """
        string model_name = 1
        string model_version = 2
        string id = 3
        map InferParameter parameters = 4
        repeated ModelInferRequest.InferInputTensor inputs = 5
        repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6
        repeated bytes raw_input_contents = 7
    """,
    "ModelInferRequest.InferInputTensor": """
        string name = 1
        string datatype = 2
        repeated int64 shape = 3
        map InferParameter parameters = 4
        InferTensorContents contents = 5
    """,
    "ModelInferRequest.InferRequestedOutputTensor": """
        string name = 1
        map InferParameter parameters = 2
    """,
    "ModelInferResponse": """
        string model_name = 1
        string model_version = 2
        string id = 3
        map InferParameter parameters = 4
        repeated ModelInferResponse.InferOutputTensor outputs = 5
        repeated bytes raw_output_contents = 6
    """,
    "ModelInferResponse.InferOutputTensor": """
        string name = 1
        string datatype = 2
        repeated int64 shape = 3
        map InferParameter parameters = 4
        InferTensorContents contents = 5
    """,
    "ModelStreamInferResponse": """
        string error_message = 1
        ModelInferResponse infer_response = 2
    """,
    # Statistics.
    "ModelStatisticsRequest": """
        string name = 1
        string version = 2
    """,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
    "ModelStatistics": """
        string name = 1
        string version = 2
        uint64 last_inference = 3
        uint64 inference_count = 4
        uint64 execution_count = 5
        InferStatistics inference_stats = 6
        repeated InferBatchStatistics batch_stats = 7
        repeated MemoryUsage memory_usage = 8
        map InferResponseStatistics response_stats = 9
    """,
    "StatisticDuration": """
        uint64 count = 1
        uint64 ns = 2
    """,
    "InferStatistics": """
        StatisticDuration success = 1
        StatisticDuration fail = 2
        StatisticDuration queue = 3
        StatisticDuration compute_input = 4
        StatisticDuration compute_infer = 5
        StatisticDuration compute_output = 6
        StatisticDuration cache_hit = 7
        StatisticDuration cache_miss = 8
    """,
    "InferBatchStatistics": """
        uint64 batch_size = 1
        StatisticDuration compute_input = 2
        StatisticDuration compute_infer = 3
        StatisticDuration compute_output = 4
    """,
    "InferResponseStatistics": """
        StatisticDuration compute_infer = 1
        StatisticDuration compute_output = 2
        StatisticDuration success = 3
        StatisticDuration fail = 4
        StatisticDuration empty_response = 5
        StatisticDuration cancel = 6
    """,
    "MemoryUsage": """
        string type = 1
        int64 id = 2
        uint64 byte_size = 3
    """,
    # The repository.
    "ModelRepositoryParameter": """
        oneof parameter_choice bool bool_param = 1
        oneof parameter_choice int64 int64_param = 2
        oneof parameter_choice string string_param = 3
        oneof parameter_choice bytes bytes_param = 4
    """,
    "RepositoryIndexRequest": """
        string repository_name = 1
        bool ready = 2
    """,
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1",
    "RepositoryIndexResponse.ModelIndex": """
        string name = 1
        string version = 2
        string state = 3
        string reason = 4
    """,
    "RepositoryModelLoadRequest": """
        string repository_name = 1
        string model_name = 2
        map ModelRepositoryParameter parameters = 3
    """,
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": """
        string repository_name = 1
        string model_name = 2
        map ModelRepositoryParameter parameters = 3
    """,
    "RepositoryModelUnloadResponse": "",
    # A model's configuration, in parts.
    "ModelConfigRequest": """
        string name = 1
        string version = 2
    """,
    "ModelConfigResponse": "ModelConfig config = 1",
    "ModelConfig": """
        string name = 1
        string platform = 2
        string backend = 17
        int32 max_batch_size = 4
        repeated ModelInput input = 5
        repeated ModelOutput output = 6
        oneof scheduling_choice ModelDynamicBatching dynamic_batching = 11
        map ModelParameter parameters = 14
        ModelTransactionPolicy model_transaction_policy = 19
    """,
    "ModelInput": """
        string name = 1
        enum DataType data_type = 2
        repeated int64 dims = 4
        bool optional = 8
    """,
    "ModelOutput": """
        string name = 1
        enum DataType data_type = 2
        repeated int64 dims = 3
    """,
    "ModelDynamicBatching": "repeated int32 preferred_batch_size = 1",
    "ModelParameter": "string string_value = 1",
    "ModelTransactionPolicy": "bool decoupled = 1",
}

_ENUMS = {
    "DataType": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
        *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64"),
        *("TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    )
}
"""Names in the order of their numbers, from 0."""

_PROTO = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_PROTO, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}

MessageTypes = Mapping[str, Any]
"""The class of each message, by its name; nested ones as ``Outer.Inner``."""


def message_types(
    package: str, messages: Mapping[str, str], enums: Mapping[str, tuple[str, ...]] | None = None
) -> MessageTypes:
    """Make the classes of a package's messages, in a descriptor pool that nobody else has.

    Args:
        package: its name.
        messages: by name, nested ones after those around them; a line for each field, as in this module.
        enums: by name, the names of their values.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, values in (enums or {}).items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    described: dict[str, Any] = {}
    for name, fields in messages.items():
        outer, _, inner = name.rpartition(".")
        message = described[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        described[name] = message
        for line in filter(None, map(str.strip, fields.splitlines())):
            _add_field(message, f".{package}.{name}", f".{package}.", line)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _add_field(message: Any, full_name: str, prefix: str, line: str) -> None:
    """Add what a line says: ``[repeated | map | enum | oneof CHOICE] TYPE NAME = NUMBER``."""
    *labels, kind, name, _, number = line.split()
    field = message.field.add(name=name, number=int(number), label=_PROTO.LABEL_OPTIONAL)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _PROTO.TYPE_ENUM if "enum" in labels else _PROTO.TYPE_MESSAGE
        field.type_name = prefix + kind
    if "repeated" in labels:
        field.label = _PROTO.LABEL_REPEATED
    elif "oneof" in labels:
        choice = labels[-1]
        known = [each.name for each in message.oneof_decl]
        if choice not in known:
            message.oneof_decl.add(name=choice)
            known.append(choice)
        field.oneof_index = known.index(choice)
    elif "map" in labels:  # protobuf's way of writing one: repeated pairs
        pair = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        pair.options.map_entry = True
        pair.field.add(name="key", number=1, label=_PROTO.LABEL_OPTIONAL, type=_PROTO.TYPE_STRING)
        value = pair.field.add()
        value.CopyFrom(field)
        value.name, value.number = "value", 2
        field.label, field.type, field.type_name = (
            _PROTO.LABEL_REPEATED,
            _PROTO.TYPE_MESSAGE,
            f"{full_name}.{pair.name}",
        )


@cache
def inference() -> MessageTypes:
    """Return the classes of the protocol's messages: the same ones in each call."""
    return message_types(PACKAGE, _INFERENCE, _ENUMS)
