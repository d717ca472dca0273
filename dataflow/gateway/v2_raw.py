"""Triton's raw binary request: the whole body is the elements of the one input, and nothing says so but the contract.

Protocol: Triton's `extension_binary_data.md`, section "Raw Binary Request".
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np

from dataflow.core.errors import GatewayError
from dataflow.core.schema import Schema
from dataflow.gateway.v2_types import KIND_OF, datatype_of, expected

_LENGTH: Final = struct.Struct("<I")


def raw_request(request: Schema, body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The request that a body means where Inference-Header-Content-Length is 0, and its one binary tensor.

    It goes to the one input there is, or the one that must be there. Of numbers the rows are as many as fill the body,
    one where the input has a free dimension; of BYTES the body is one element, without a length before it. Outputs are
    binary, as Triton's are. Raises GatewayError 400.
    """
    fields = [field for field in request if not field.type.nullable] or list(request)
    if len(fields) != 1:
        raise GatewayError(
            400,
            f"a raw binary request needs a pipeline of one input, this one has {len(fields)}",
            hint="send Inference-Header-Content-Length and name the inputs",
        )
    field = fields[0]
    datatype = datatype_of(field.type)
    if datatype == "BYTES":
        body = _LENGTH.pack(len(body)) + body
        shape = [1]
    else:
        shape = _shape(field.type.shape, np.dtype(KIND_OF[datatype]).itemsize, len(body))
        if not shape:
            raise GatewayError(
                400, f"input '{field.name}': {len(body)} bytes are no whole rows", hint=expected(field)
            )
    entry = {
        "name": field.name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(body)},
    }
    return {"inputs": [entry], "parameters": {"binary_data_output": True}}, memoryview(body)


def _shape(declared: tuple[int, ...], itemsize: int, size: int) -> list[int]:
    """Rows and dimensions of so many bytes; empty where they do not come out even."""
    free = [at for at, length in enumerate(declared) if length < 0]
    unit = itemsize * math.prod(length for length in declared if length >= 0)
    if len(free) > 1 or size == 0 or size % unit:
        return []
    if not free:
        return [size // unit, *declared]
    return [1, *(size // unit if length < 0 else length for length in declared)]
