"""The Open Inference Protocol v2 with binary tensors: bytes of a request to columns, columns to bytes of an answer.

Pure. Whatever the bytes are, `decode` gives a request or raises GatewayError (400, 413): sizes are checked in plain
integers before anything is allocated.
Protocol: open-inference-protocol `inference_rest.md`; Triton's `extension_binary_data.md`.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from dataflow.core.errors import GatewayError, nearest
from dataflow.core.limits import MAX_REQUEST_ROWS
from dataflow.core.schema import Column, Schema
from dataflow.gateway.http import parse_json
from dataflow.gateway.v2_raw import raw_request
from dataflow.gateway.v2_types import (
    CONTENT_TYPE,
    DATATYPES,
    KIND_OF,
    NO_JSON,
    InputTensor,
    OutputTensor,
    datatype_of,
    expected,
    input_column,
    output_tensor,
)

HEADER_LENGTH: Final = b"inference-header-content-length"
MAX_DIMENSIONS: Final = 32  # numpy 1.26's own limit
MAX_ID_CHARACTERS: Final = 256
# Parameters of Triton's extensions that change what a request means: ignoring them would give wrong answers.
_UNSUPPORTED: Final = ("shared_memory_region", "classification", "sequence_id")


@dataclass(frozen=True, slots=True)
class Choice:
    """An output the caller wants, and whether as binary."""

    name: str
    binary: bool


@dataclass(slots=True)
class InferRequest:
    """A decoded request: `count` rows as columns of the pipeline's input contract.

    id           the caller's own, "" if none
    timeout_us   Triton's parameter ``timeout`` in microseconds, 0 if none
    row_errors   our parameter of that name, "" if none
    """

    id: str
    columns: dict[str, Column]
    count: int
    outputs: Sequence[Choice]
    timeout_us: int = 0
    row_errors: str = ""


def decode(request: Schema, answer: Schema, body: bytes, header_length: bytes | None = None) -> InferRequest:
    """Decode an infer request. `header_length` is the value of header Inference-Header-Content-Length if sent."""
    document, blobs = raw_request(request, body) if header_length == b"0" else _split(body, header_length)
    return decode_document(request, answer, document, blobs)


def decode_document(
    request: Schema, answer: Schema, document: Mapping[str, Any], blobs: memoryview | None
) -> InferRequest:
    """As `decode`, of a request in its JSON form with its binary tensors one after the other in `blobs`.

    `data` of an input may be a flat array of its datatype too. Raises GatewayError (400, 413).
    """
    caller_id = document.get("id", "")
    if not isinstance(caller_id, str) or len(caller_id) > MAX_ID_CHARACTERS:
        raise GatewayError(400, f"'id' must be a text of at most {MAX_ID_CHARACTERS} characters")
    parameters = _parameters(document, "the request")
    timeout_us, row_errors = 0, ""
    if parameters:
        timeout_us = _count(parameters, "timeout", "microseconds as an integer")
        # Records run in the order of the log: a priority is taken from clients that send one, and changes nothing.
        _count(parameters, "priority", "an integer from 0")
        row_errors = parameters.get("row_errors", "")
        if type(row_errors) is not str:
            raise GatewayError(400, "parameter 'row_errors' must be 'request' or 'entry'")
    tensors = _tensors(document.get("inputs"), blobs, request)
    outputs = _choices(document.get("outputs"), answer, parameters.get("binary_data_output") is True)
    count = _row_count(tensors)
    columns = {}
    for declared in request:
        tensor = tensors.get(declared.name)
        if tensor is None:
            if not declared.type.nullable:
                raise GatewayError(400, f"input '{declared.name}' is missing", hint=expected(declared))
            columns[declared.name] = _null_column(declared.type.column_dtype, count)
        else:
            columns[declared.name] = input_column(declared, tensor)
    return InferRequest(caller_id, columns, count, outputs, timeout_us, row_errors)


def _count(parameters: Mapping[str, Any], name: str, wanted: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise GatewayError(400, f"parameter '{name}' is {value!r:.80}, expected {wanted}")
    return value


def _split(body: bytes, header_length: bytes | None) -> tuple[dict[str, Any], memoryview | None]:
    """The JSON object of a request, and the binary tensors behind it if there are any."""
    blobs: memoryview | None = None
    end: int | None = None
    if header_length is not None:
        # isdigit of bytes is ASCII only; more than 18 digits is longer than any body and need not become an int.
        if not header_length.isdigit() or len(header_length) > 18 or not 0 < int(header_length) <= len(body):
            raise GatewayError(
                400,
                f"header Inference-Header-Content-Length is '{header_length[:40].decode('latin-1')}', expected the "
                f"length of the JSON part, 0 to {len(body)}",
            )
        end = int(header_length)
        blobs = memoryview(body)[end:]
    try:
        document = parse_json(body, end)
    except orjson.JSONDecodeError as error:
        raise GatewayError(
            400,
            f"the body is not JSON: {error.msg} at byte {error.pos}",
            hint="" if blobs is not None else "binary tensors need header Inference-Header-Content-Length",
        ) from None
    if not isinstance(document, dict):
        raise GatewayError(400, "the body must be a JSON object with 'inputs'")
    return document, blobs


def _parameters(owner: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise GatewayError(400, f"'parameters' of {place} must be an object")
    for name in _UNSUPPORTED:
        if name in parameters:
            raise GatewayError(400, f"parameter '{name}' of {place} is not supported")
    return parameters


def _tensors(inputs: Any, blobs: memoryview | None, request: Schema) -> dict[str, InputTensor]:
    if not isinstance(inputs, list) or not inputs:
        raise GatewayError(
            400, "'inputs' must be a list with a tensor for each field", hint=request.describe()
        )
    tensors: dict[str, InputTensor] = {}
    at = 0
    for entry in inputs:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise GatewayError(
                400, "each of 'inputs' must be an object with 'name', 'datatype', 'shape', 'data'"
            )
        if name not in request:
            raise GatewayError(400, f"no input '{name[:200]}'", hint=nearest(name[:200], request.names))
        if name in tensors:
            raise GatewayError(400, f"input '{name}' is there twice")
        parameters = _parameters(entry, f"input '{name}'")
        size = parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or size < 0:
                raise GatewayError(400, f"input '{name}': 'binary_data_size' must be a count of bytes")
            if blobs is None or at + size > len(blobs):
                left = 0 if blobs is None else len(blobs) - at
                raise GatewayError(
                    400, f"input '{name}' says {size} bytes of binary data where {left} are left in the body"
                )
            tensors[name] = _tensor(name, entry, parameters, blobs[at : at + size])
            at += size
        else:
            tensors[name] = _tensor(name, entry, parameters, None)
    if blobs is not None and at != len(blobs):
        raise GatewayError(400, f"{len(blobs) - at} bytes follow the last binary tensor")
    return tensors


def _tensor(
    name: str, entry: Mapping[str, Any], parameters: Mapping[str, Any], blob: memoryview | None
) -> InputTensor:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        shown = str(datatype)[:40]
        raise GatewayError(400, f"input '{name}': unknown datatype '{shown}'", hint=nearest(shown, DATATYPES))
    shape = entry.get("shape")
    if not isinstance(shape, list) or not 0 < len(shape) <= MAX_DIMENSIONS:
        raise GatewayError(
            400, f"input '{name}': 'shape' must be a list such as [1, 3]; the first is the rows"
        )
    for size in shape:
        if type(size) is not int or size < 0:
            raise GatewayError(400, f"input '{name}': shape {str(shape)[:100]} has a size that is no count")
    count = math.prod(shape)
    elements: Column | list[Any]
    if blob is None:
        data = entry.get("data")
        if not isinstance(data, list | np.ndarray):
            raise GatewayError(400, f"input '{name}': 'data' must be a list")
        if datatype in NO_JSON:
            raise GatewayError(
                400, f"input '{name}': {datatype} has no JSON form", hint="send it as binary data"
            )
        elements = _flattened(name, data, shape)
    elif "data" in entry:
        raise GatewayError(400, f"input '{name}' has both 'data' and 'binary_data_size'")
    elif datatype == "BYTES":
        elements = _split_bytes(name, blob, count)
    else:
        dtype = np.dtype("<u2") if datatype == "BF16" else np.dtype(KIND_OF[datatype]).newbyteorder("<")
        if count * dtype.itemsize != len(blob):
            raise GatewayError(
                400,
                f"input '{name}': {len(blob)} bytes of binary data where datatype {datatype}, shape {shape} "
                f"needs {count * dtype.itemsize}",
            )
        elements = _numbers(blob, datatype, dtype)
    return InputTensor(name, datatype, tuple(shape), parameters, elements)


def _numbers(blob: memoryview, datatype: str, dtype: np.dtype[Any]) -> Column:
    if datatype == "BOOL":  # any byte but 0 is true; a numpy bool must be 0 or 1
        return np.frombuffer(blob, dtype=np.uint8).astype(bool)
    if datatype == "BF16":  # the upper half of a float32
        return (np.frombuffer(blob, dtype=dtype).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(blob, dtype=dtype)


def _flattened(name: str, data: Column | list[Any], shape: list[int]) -> Column | list[Any]:
    """`data`, flat or nested as `shape` says, as a flat list in row-major order."""
    elements = data
    if len(data) and type(data[0]) is list:
        good = len(data) == shape[0]
        for size in shape[1:]:
            good = good and all(type(part) is list and len(part) == size for part in elements)
            if not good:
                break
            elements = list(chain.from_iterable(elements))
        if not good:
            raise GatewayError(400, f"input '{name}': nested 'data' does not follow shape {shape}")
    if len(elements) != math.prod(shape):
        raise GatewayError(
            400, f"input '{name}': {len(elements)} elements where shape {shape} needs {math.prod(shape)}"
        )
    return elements


def _split_bytes(name: str, blob: memoryview, count: int) -> list[Any]:
    """BYTES elements: a little-endian u32 length before each."""
    if count * 4 > len(blob):
        raise GatewayError(400, f"input '{name}': {len(blob)} bytes are too few for {count} BYTES elements")
    elements: list[Any] = []
    at, end = 0, len(blob)
    unpack = struct.Struct("<I").unpack_from
    for index in range(count):
        if at + 4 > end:
            raise GatewayError(400, f"input '{name}': the binary data ends before element {index}")
        (size,) = unpack(blob, at)
        at += 4
        if at + size > end:
            raise GatewayError(
                400, f"input '{name}': element {index} says {size} bytes where {end - at} are left"
            )
        elements.append(bytes(blob[at : at + size]))
        at += size
    if at != end:
        raise GatewayError(400, f"input '{name}': {end - at} bytes follow element {count - 1}")
    return elements


def _row_count(tensors: Mapping[str, InputTensor]) -> int:
    first = next(iter(tensors.values()))
    count = first.shape[0]
    for tensor in tensors.values():
        if tensor.shape[0] != count:
            raise GatewayError(
                400,
                f"input '{tensor.name}' has {tensor.shape[0]} rows where '{first.name}' has {count}",
                hint="the first size of every shape is the number of rows",
            )
    if not 0 < count <= MAX_REQUEST_ROWS:
        raise GatewayError(
            400 if count == 0 else 413, f"the request has {count} rows, valid: 1 to {MAX_REQUEST_ROWS}"
        )
    return count


def _null_column(dtype: np.dtype[Any], count: int) -> Column:
    if dtype.kind == "M":
        return np.full(count, np.datetime64("NaT"), dtype=dtype)
    return np.full(count, None, dtype=object)


def _choices(outputs: Any, answer: Schema, binary: bool) -> Sequence[Choice]:
    if outputs is None or outputs == []:
        chosen = [Choice(name, binary) for name in answer.names]
    else:
        if not isinstance(outputs, list):
            raise GatewayError(400, "'outputs' must be a list of objects with 'name'")
        chosen = []
        for entry in outputs:
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise GatewayError(400, "each of 'outputs' must be an object with 'name'")
            if name not in answer:
                raise GatewayError(400, f"no output '{name[:200]}'", hint=nearest(name[:200], answer.names))
            if any(choice.name == name for choice in chosen):
                raise GatewayError(400, f"output '{name}' is asked for twice")
            wants = _parameters(entry, f"output '{name}'").get("binary_data", binary)
            chosen.append(Choice(name, wants is True))
    for choice in chosen:
        if not choice.binary and datatype_of(answer[choice.name].type) in NO_JSON:
            raise GatewayError(
                400,
                f"output '{choice.name}' is FP16, which has no JSON form",
                hint="ask for it with binary_data",
            )
    return chosen


def encode(
    names: Mapping[str, Any], answer: Schema, columns: Mapping[str, Column], outputs: Sequence[Choice]
) -> tuple[bytes, int]:
    """The body of an answer and the length of its JSON part, 0 if it is JSON alone.

    `names` are its leading members: model_name, model_version, id, parameters.
    """
    blobs: list[bytes] = []
    entries: list[dict[str, Any]] = []
    for choice in outputs:
        tensor = output_tensor(answer[choice.name], columns[choice.name])
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        parameters: dict[str, Any] = dict(tensor.parameters)
        if choice.binary:
            blobs.append(binary(tensor))
            parameters["binary_data_size"] = len(blobs[-1])
        else:
            entry["data"], said = _json_data(tensor)
            parameters |= said
        if parameters:
            entry["parameters"] = parameters
        entries.append(entry)
    text = orjson.dumps({**names, "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, 0)


def binary(tensor: OutputTensor) -> bytes:
    """The elements as Triton's binary extension has them: little-endian, a length before each of BYTES."""
    values = tensor.values
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[bytes] = []
    for value in values:
        element = value.encode() if isinstance(value, str) else value
        parts += (len(element).to_bytes(4, "little"), element)
    return b"".join(parts)


def _json_data(tensor: OutputTensor) -> tuple[Any, dict[str, str]]:
    """Flat data and how it is said: bytes as text where all are UTF-8, else as base64 (``content_type``)."""
    values = tensor.values
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1), {}
    try:
        return [v.decode() if isinstance(v, bytes) else v for v in values], {}
    except UnicodeDecodeError:
        raw = [v for v in values if isinstance(v, bytes)]
        return [base64.b64encode(v).decode() for v in raw], {CONTENT_TYPE: "base64"}


def metadata(name: str, version: str, request: Schema, answer: Schema) -> dict[str, Any]:
    """A pipeline as V2 sees a model."""

    def tensors(schema: Schema) -> list[dict[str, Any]]:
        return [
            {"name": f.name, "datatype": datatype_of(f.type), "shape": [-1, *f.type.shape]} for f in schema
        ]

    return {
        "name": name,
        "versions": [version],
        "platform": "dataflow_pipeline",
        "inputs": tensors(request),
        "outputs": tensors(answer),
    }
