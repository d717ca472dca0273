"""The raw codec: one field of kind bytes is the whole record value, passed through untouched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflow.codecs.base import (
    Decoded,
    EncodedRows,
    good_rows,
    no_value,
    require_columns,
    row_error,
    scalar_column,
)  # fmt: skip
from dataflow.codecs.converters import shown
from dataflow.core.errors import CodecError
from dataflow.core.schema import Column, Schema


class RawCodec:
    name = "raw"
    fingerprint = b""

    def __init__(self, schema: Schema) -> None:
        if len(schema) != 1 or schema.fields[0].type.kind != "bytes":
            raise CodecError(
                f"codec 'raw' carries exactly one field of type bytes, not {schema.describe() or 'no field'}",
                hint="use codec avro, arrow or json",
            )
        self.schema = schema
        self._field = schema.fields[0].name
        self._nullable = schema.fields[0].type.nullable

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        column = scalar_column(values)
        if self._nullable or None not in values:
            return Decoded({self._field: column}, np.arange(len(values)))
        errors = {row: no_value(row) for row, value in enumerate(values) if value is None}
        good = good_rows(len(values), errors)
        return Decoded({self._field: column[good]}, good, list(errors.items()))

    def encode(self, columns: Mapping[str, Column], count: int) -> EncodedRows:
        require_columns(self.schema, columns, count)
        values: list[Any] = columns[self._field].tolist()
        allowed = {bytes, type(None)} if self._nullable else {bytes}
        if set(map(type, values)) <= allowed:
            return EncodedRows(values)
        failed = []
        for row, value in enumerate(values):
            if type(value) not in allowed:
                error = CodecError(f"{shown(value)} ({type(value).__name__}) is not valid, expected bytes")
                failed.append((row, row_error(row, self._field, error)))
                values[row] = None
        return EncodedRows(values, failed)
