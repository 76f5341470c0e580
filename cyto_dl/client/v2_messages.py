"""The messages of the V2 protocol over gRPC, of which KServe and Triton have the same definition.

They are built here from the numbers of their fields, in a pool of their own: generated code would be a second
definition of the same names, which protobuf refuses in a process that imports KServe or Triton's client as well.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto
"""

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "inference"
SERVICE = f"/{_PACKAGE}.GRPCInferenceService"
_KINDS = {
    "text": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "integer": FieldDescriptorProto.TYPE_INT64,
    "boolean": FieldDescriptorProto.TYPE_BOOL,
}
_PARAMETERS = "map InferParameter"  # text -> InferParameter
# Message -> field -> its number and kind; fields that neither side uses here are left out, as protobuf allows.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "InferParameter": {"bool_param": (1, "boolean"), "int64_param": (2, "integer"), "string_param": (3, "text")},
    "InferInputTensor": {"name": (1, "text"), "datatype": (2, "text"), "shape": (3, "list integer")},
    "InferRequestedOutputTensor": {"name": (1, "text")},
    "ModelInferRequest": {
        "model_name": (1, "text"),
        "parameters": (4, _PARAMETERS),
        "inputs": (5, "list InferInputTensor"),
        "outputs": (6, "list InferRequestedOutputTensor"),
        "raw_input_contents": (7, "list bytes"),
    },
    "InferOutputTensor": {"name": (1, "text"), "datatype": (2, "text"), "shape": (3, "list integer")},
    "ModelInferResponse": {"outputs": (5, "list InferOutputTensor"), "raw_output_contents": (6, "list bytes")},
    "ModelReadyRequest": {"name": (1, "text")},
    "ModelReadyResponse": {"ready": (1, "boolean")},
    "ModelMetadataRequest": {"name": (1, "text")},
    "TensorMetadata": {"name": (1, "text"), "datatype": (2, "text"), "shape": (3, "list integer")},
    "ModelMetadataResponse": {
        "name": (1, "text"),
        "platform": (3, "text"),
        "inputs": (4, "list TensorMetadata"),
        "outputs": (5, "list TensorMetadata"),
    },
}


def message_classes() -> dict[str, Any]:
    """The classes of the messages, by name."""
    file = FileDescriptorProto(name="cyto_dl_v2.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    choice = file.message_type[0]
    choice.oneof_decl.add(name="parameter_choice")
    for each in choice.field:
        each.oneof_index = 0
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


def _add_field(message: DescriptorProto, name: str, number: int, kind: str) -> None:
    many, _, kind = kind.rpartition(" ")
    label = FieldDescriptorProto.LABEL_REPEATED if many else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind in _KINDS:
        field.type = _KINDS[kind]
        return
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{kind}"
    if many == "map":  # on the wire a list of entries with a key and a value
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "text")
        _add_field(entry, "value", 2, kind)
        field.type_name = f".{_PACKAGE}.{message.name}.ParametersEntry"
