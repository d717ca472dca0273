"""The messages and the service of `inference.GRPCInferenceService`, in a descriptor pool of our own.

The names on the wire are the protocol's. In protobuf's default pool a second definition of package ``inference`` is an
error, and a process may hold a client's (tritonclient's, kserve's): so nothing of ours is registered there.
Protocol: open-inference-protocol `inference_grpc.md`; of Triton's extensions the streamed infer, the configuration (those
of its fields that a pipeline has), the statistics and the repository's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"

# A line per message: its name, and its fields as in a .proto file. A name with a dot is nested in the message before the
# dot. "oneof NAME" before the colon: at most one of the fields is set.
_MESSAGES: Final = """
ServerLiveRequest:
ServerLiveResponse: bool live = 1
ServerReadyRequest:
ServerReadyResponse: bool ready = 1
ModelReadyRequest: string name = 1; string version = 2
ModelReadyResponse: bool ready = 1
ServerMetadataRequest:
ServerMetadataResponse: string name = 1; string version = 2; repeated string extensions = 3
ModelMetadataRequest: string name = 1; string version = 2
ModelMetadataResponse: string name = 1; repeated string versions = 2; string platform = 3; \
repeated ModelMetadataResponse.TensorMetadata inputs = 4; repeated ModelMetadataResponse.TensorMetadata outputs = 5
ModelMetadataResponse.TensorMetadata: string name = 1; string datatype = 2; repeated int64 shape = 3
InferParameter oneof parameter_choice: bool bool_param = 1; int64 int64_param = 2; string string_param = 3; \
double double_param = 4; uint64 uint64_param = 5
InferTensorContents: repeated bool bool_contents = 1; repeated int32 int_contents = 2; \
repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4; repeated uint64 uint64_contents = 5; \
repeated float fp32_contents = 6; repeated double fp64_contents = 7; repeated bytes bytes_contents = 8
ModelInferRequest: string model_name = 1; string model_version = 2; string id = 3; map InferParameter parameters = 4; \
repeated ModelInferRequest.InferInputTensor inputs = 5; \
repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6; repeated bytes raw_input_contents = 7
ModelInferRequest.InferInputTensor: string name = 1; string datatype = 2; repeated int64 shape = 3; \
map InferParameter parameters = 4; InferTensorContents contents = 5
ModelInferRequest.InferRequestedOutputTensor: string name = 1; map InferParameter parameters = 2
ModelInferResponse: string model_name = 1; string model_version = 2; string id = 3; map InferParameter parameters = 4; \
repeated ModelInferResponse.InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6
ModelInferResponse.InferOutputTensor: string name = 1; string datatype = 2; repeated int64 shape = 3; \
map InferParameter parameters = 4; InferTensorContents contents = 5
ModelStreamInferResponse: string error_message = 1; ModelInferResponse infer_response = 2
ModelConfigRequest: string name = 1; string version = 2
ModelConfigResponse: ModelConfig config = 1
ModelConfig: string name = 1; string platform = 2; ModelVersionPolicy version_policy = 3; int32 max_batch_size = 4; \
repeated ModelInput input = 5; repeated ModelOutput output = 6; map ModelParameter parameters = 14; \
string backend = 17; ModelTransactionPolicy model_transaction_policy = 19
ModelVersionPolicy oneof policy_choice: ModelVersionPolicy.Latest latest = 1
ModelVersionPolicy.Latest: uint32 num_versions = 1
ModelInput: string name = 1; DataType data_type = 2; repeated int64 dims = 4; bool optional = 8
ModelOutput: string name = 1; DataType data_type = 2; repeated int64 dims = 3
ModelParameter: string string_value = 1
ModelTransactionPolicy: bool decoupled = 1
ModelStatisticsRequest: string name = 1; string version = 2
ModelStatisticsResponse: repeated ModelStatistics model_stats = 1
ModelStatistics: string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4; \
uint64 execution_count = 5; InferStatistics inference_stats = 6; repeated InferBatchStatistics batch_stats = 7; \
repeated MemoryUsage memory_usage = 8
InferStatistics: StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3; \
StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5; StatisticDuration compute_output = 6; \
StatisticDuration cache_hit = 7; StatisticDuration cache_miss = 8
InferBatchStatistics: uint64 batch_size = 1; StatisticDuration compute_input = 2; \
StatisticDuration compute_infer = 3; StatisticDuration compute_output = 4
StatisticDuration: uint64 count = 1; uint64 ns = 2
MemoryUsage: string type = 1; int64 id = 2; uint64 byte_size = 3
RepositoryIndexRequest: string repository_name = 1; bool ready = 2
RepositoryIndexResponse: repeated RepositoryIndexResponse.ModelIndex models = 1
RepositoryIndexResponse.ModelIndex: string name = 1; string version = 2; string state = 3; string reason = 4
"""
_DATA_TYPES: Final = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "STRING", "BF16",
)  # fmt: skip
# Methods named after their messages: Name(NameRequest) gives NameResponse.
UNARY: Final = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex",
)  # fmt: skip
STREAM: Final = "ModelStreamInfer"  # a stream of ModelInferRequest gives one of ModelStreamInferResponse

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


@dataclass(frozen=True)
class Protocol:
    """The message classes; `pool` holds their descriptors, for reflection."""

    pool: Any

    @staticmethod
    @cache
    def load() -> Protocol:
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(_file().SerializeToString())
        return Protocol(pool)

    def message(self, name: str) -> Any:
        """The class of a message, by its name within the package; asked for again it is the same one."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="dataflow/inference.proto", package=PACKAGE, syntax="proto3"
    )
    made: dict[str, Any] = {}
    for line in _MESSAGES.strip().splitlines():
        head, _, fields = line.partition(":")
        name, _, oneof = head.partition(" oneof ")
        outer, _, short = name.rpartition(".")
        message = made[outer].nested_type.add(name=short) if outer else file.message_type.add(name=short)
        made[name] = message
        if oneof:
            message.oneof_decl.add(name=oneof)
        for text in fields.split(";") if fields else ():
            field = _add_field(message, name, text.split())
            if oneof:
                field.oneof_index = 0
    types = file.enum_type.add(name="DataType")
    for number, data_type in enumerate(_DATA_TYPES):
        types.value.add(name=f"TYPE_{data_type}", number=number)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in UNARY:
        service.method.add(
            name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Response"
        )
    service.method.add(
        name=STREAM,
        input_type=f".{PACKAGE}.ModelInferRequest",
        output_type=f".{PACKAGE}.{STREAM}Response",
        client_streaming=True,
        server_streaming=True,
    )
    return file


def _add_field(message: Any, owner: str, words: Sequence[str]) -> Any:
    """One field from ``[repeated|map] TYPE NAME = NUMBER``; the keys of maps are strings."""
    kind, name, _, number = words[-4:]
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if len(words) > 4:
        field.label = _Field.LABEL_REPEATED
    if words[0] == "map":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", ("string", "key", "=", "1"))
        _add_field(entry, "", (kind, "value", "=", "2"))
        kind = f"{owner}.{entry.name}"
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    return field
