from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from dataflow.gateway.grpc_proto import PACKAGE, SERVICE, STREAM, UNARY, Protocol

# What a pipeline has none of, and Triton's configurations may hold.
LEFT_OUT = ("ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy", "ModelStatistics")


def ours() -> Iterator[Any]:
    waiting = list(
        Protocol.load().pool.FindFileByName("dataflow/inference.proto").message_types_by_name.values()
    )
    while waiting:
        descriptor = waiting.pop()
        waiting.extend(descriptor.nested_types)
        yield descriptor


def theirs() -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting = [
        *service_pb2.DESCRIPTOR.message_types_by_name.values(),
        *model_config_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    while waiting:
        descriptor = waiting.pop()
        waiting.extend(descriptor.nested_types)
        found[descriptor.full_name] = descriptor
    return found


def shape_of(field: Any) -> tuple[Any, ...]:
    of = field.message_type or field.enum_type
    return (
        field.name,
        field.type,
        field.is_repeated,
        field.containing_oneof.name if field.containing_oneof else "",
        of.full_name if of else "",
    )


def test_every_message_is_on_the_wire_what_tritons_is() -> None:
    known = theirs()
    for descriptor in ours():
        reference = {field.number: shape_of(field) for field in known[descriptor.full_name].fields}
        for field in descriptor.fields:
            assert shape_of(field) == reference[field.number], descriptor.full_name
        if descriptor.name not in LEFT_OUT:
            assert len(descriptor.fields) == len(reference), descriptor.full_name
        assert descriptor.GetOptions().map_entry == known[descriptor.full_name].GetOptions().map_entry


def test_data_types_are_tritons() -> None:
    ours_ = Protocol.load().pool.FindEnumTypeByName("inference.DataType").values_by_name
    reference = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    assert {n: v.number for n, v in ours_.items()} == {n: v.number for n, v in reference.items()}


def test_methods_are_tritons() -> None:
    reference = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    made = Protocol.load().pool.FindServiceByName(SERVICE)
    assert [method.name for method in made.methods] == [*UNARY, STREAM]
    for method in made.methods:
        known = reference[method.name]
        assert method.input_type.full_name == known.input_type.full_name
        assert method.output_type.full_name == known.output_type.full_name
        assert method.client_streaming == known.client_streaming
        assert method.server_streaming == known.server_streaming


def test_both_definitions_live_in_one_process() -> None:
    made = Protocol.load().message("ModelInferRequest")(model_name="sums", id="7")
    made.parameters["timeout"].int64_param = 5
    read = service_pb2.ModelInferRequest.FromString(made.SerializeToString())
    assert (read.model_name, read.id, read.parameters["timeout"].int64_param) == ("sums", "7", 5)
    assert type(read) is not type(made)


def test_a_message_class_is_made_once_and_unknown_ones_are_refused() -> None:
    protocol = Protocol.load()
    assert protocol.message("InferParameter") is protocol.message("InferParameter")
    with pytest.raises(KeyError, match=f"{PACKAGE}.None"):
        protocol.message("None")
