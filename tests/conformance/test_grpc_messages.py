"""Our messages are the protocol's: every name, number and type of ours is in tritonclient's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.router.grpc_api import inference_pb2

OURS: FileDescriptor = inference_pb2.DESCRIPTOR
THEIRS = {
    **service_pb2.DESCRIPTOR.message_types_by_name,
    **model_config_pb2.DESCRIPTOR.message_types_by_name,
}


def fields(message: Descriptor) -> Iterator[tuple[object, ...]]:
    for field in message.fields:
        kind = field.message_type or field.enum_type
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED
        oneof = field.containing_oneof.name if field.containing_oneof else None
        yield field.name, field.number, field.type, repeated, kind.full_name if kind else None, oneof


@pytest.mark.parametrize("name", OURS.message_types_by_name)
def test_every_field_is_theirs(name: str) -> None:
    def compare(ours: Descriptor, theirs: Descriptor) -> None:
        assert set(fields(ours)) <= set(fields(theirs))
        for inner in ours.nested_types:
            compare(inner, theirs.nested_types_by_name[inner.name])

    compare(OURS.message_types_by_name[name], THEIRS[name])


def test_every_method_and_datatype_is_theirs() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in OURS.services_by_name["GRPCInferenceService"].methods:
        other = theirs[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            other.input_type.full_name,
            other.output_type.full_name,
        )
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)
    kinds = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    ours = OURS.enum_types_by_name["DataType"].values_by_name
    assert {name: value.number for name, value in ours.items()} == {name: v.number for name, v in kinds.items()}
