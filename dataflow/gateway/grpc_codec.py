"""V2 inference in protobuf messages: a ModelInferRequest to columns, columns to a ModelInferResponse.

Pure. What a request means is read by `v2.decode_document` and what a field looks like by `v2_types`, as over HTTP: here
are only the clothes. The messages are protobuf's classes of package ``inference``, whoever made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from dataflow.core.errors import GatewayError, nearest
from dataflow.core.schema import Column, Schema
from dataflow.gateway import v2
from dataflow.gateway.v2_types import DATATYPES, KIND_OF, OutputTensor, output_tensor

# Which member of InferTensorContents holds the elements of a datatype; FP16 and BF16 have none.
CONTENTS_OF: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE: Final = {"int_contents": np.int32, "uint_contents": np.uint32}
RAW_ASKED: Final = "binary_data_output"  # the parameter's name over HTTP


def decode(request: Schema, answer: Schema, message: Any) -> tuple[v2.InferRequest, bool]:
    """The request in a ModelInferRequest, and whether its answer is to be raw. Raises GatewayError (400, 413).

    An answer is raw (`raw_output_contents`) where the inputs are, and typed where they are: a client that speaks one
    form need not know the other. The request's parameter ``binary_data_output`` says otherwise.
    """
    blobs = message.raw_input_contents
    if blobs and len(blobs) != len(message.inputs):
        raise GatewayError(
            400,
            f"'raw_input_contents' has {len(blobs)} parts where there are {len(message.inputs)} inputs",
            hint="either all inputs are raw or none is",
        )
    parameters = parameters_of(message.parameters)
    raw = bool(parameters.get(RAW_ASKED, bool(blobs)))
    document = {
        "id": message.id,
        # Choices are checked as binary: what has no typed form is answered raw, see `encode`.
        "parameters": {**parameters, RAW_ASKED: True},
        "inputs": [
            _raw_input(entry, len(blobs[index])) if blobs else _typed_input(entry)
            for index, entry in enumerate(message.inputs)
        ],
        "outputs": [
            {"name": entry.name, "parameters": {**parameters_of(entry.parameters), "binary_data": True}}
            for entry in message.outputs
        ],
    }
    joined = None if not blobs else memoryview(blobs[0] if len(blobs) == 1 else b"".join(blobs))
    return v2.decode_document(request, answer, document, joined), raw


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Each InferParameter as the Python value that is set in it; None where nothing is."""
    made: dict[str, Any] = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        made[name] = None if choice is None else getattr(value, choice)
    return made


def _head(entry: Any) -> dict[str, Any]:
    parameters = parameters_of(entry.parameters)
    parameters.pop("binary_data_size", None)  # says something of a body that is not there
    return {
        "name": entry.name, "datatype": entry.datatype, "shape": list(entry.shape), "parameters": parameters,
    }  # fmt: skip


def _raw_input(entry: Any, size: int) -> dict[str, Any]:
    if entry.HasField("contents"):
        raise GatewayError(400, f"input '{entry.name[:200]}' has both 'contents' and 'raw_input_contents'")
    made = _head(entry)
    made["parameters"]["binary_data_size"] = size
    return made


def _typed_input(entry: Any) -> dict[str, Any]:
    made = _head(entry)
    datatype, shown = entry.datatype, entry.name[:200]
    if datatype not in CONTENTS_OF:
        if datatype in DATATYPES:
            raise GatewayError(
                400,
                f"input '{shown}': {datatype} has no typed contents",
                hint="send it in raw_input_contents",
            )
        near = nearest(datatype[:40], DATATYPES)
        raise GatewayError(400, f"input '{shown}': unknown datatype '{datatype[:40]}'", hint=near)
    member = CONTENTS_OF[datatype]
    for found, _ in entry.contents.ListFields():
        if found.name != member:
            raise GatewayError(
                400, f"input '{shown}': '{found.name}' is filled where datatype {datatype} needs '{member}'"
            )
    made["data"] = _elements(shown, datatype, member, getattr(entry.contents, member))
    return made


def _elements(name: str, datatype: str, member: str, contents: Sequence[Any]) -> Column | list[Any]:
    if datatype == "BYTES":
        return list(contents)
    kind = np.dtype(KIND_OF[datatype])
    wide = np.array(contents, dtype=_WIDE.get(member, kind))
    made = wide.astype(kind)
    if made.dtype != wide.dtype and not np.array_equal(made, wide):
        index = int(np.flatnonzero(made != wide)[0])
        raise GatewayError(400, f"input '{name}': element {index} is {wide[index]}, which is no {datatype}")
    return made


def encode(
    response: Any,
    names: Mapping[str, Any],
    answer: Schema,
    columns: Mapping[str, Column],
    outputs: Sequence[v2.Choice],
    *,
    raw: bool,
) -> Any:
    """A new ModelInferResponse of class `response`; `names` are its model_name, model_version, id and parameters (texts).

    Not raw it is raw all the same where an output has no typed form (FP16): a message is wholly one or the other.
    """
    message = response(**{name: value for name, value in names.items() if name != "parameters"})
    _say(message.parameters, names.get("parameters", {}))
    tensors = [output_tensor(answer[choice.name], columns[choice.name]) for choice in outputs]
    raw = raw or any(tensor.datatype not in CONTENTS_OF for tensor in tensors)
    for tensor in tensors:
        entry = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _say(entry.parameters, tensor.parameters)
        if raw:
            message.raw_output_contents.append(v2.binary(tensor))
        else:
            _fill(entry.contents, tensor)
    return message


def _say(parameters: Any, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        parameters[name].string_param = text


def _fill(contents: Any, tensor: OutputTensor) -> None:
    member = getattr(contents, CONTENTS_OF[tensor.datatype])
    if isinstance(tensor.values, np.ndarray):
        member.extend(tensor.values.reshape(-1).tolist())
    else:
        member.extend(v.encode() if isinstance(v, str) else v for v in tensor.values)
