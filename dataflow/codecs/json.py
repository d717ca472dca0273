"""The JSON codec: one object per record, for topics that people or other programs read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from dataflow.codecs.base import (
    Decoded,
    EncodedRows,
    RowErrors,
    good_rows,
    no_value,
    row_error,
    sorted_failures,
)
from dataflow.codecs.converters import shown
from dataflow.codecs.values import FIRST_TIME, LAST_TIME, coerce_records, conform, to_jsonable
from dataflow.core.errors import CodecError
from dataflow.core.schema import Column, Schema


class JsonCodec:
    """Decodes strictly but for fields it does not know: those are left, so that a writer may add one."""

    name = "json"

    def __init__(self, schema: Schema, fingerprint: bytes) -> None:
        self.schema = schema
        self.fingerprint = fingerprint

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        errors: RowErrors = {}
        records: list[Any] = []
        for row, value in enumerate(values):
            try:
                records.append(self.load(value))  # type: ignore[arg-type]
            except orjson.JSONDecodeError as error:
                errors[row] = _not_json(row, value, error)
            except CodecError as error:
                errors[row] = CodecError(error.message, row=row)
        good = good_rows(len(values), errors)
        result = coerce_records(self.schema, records, ignore_unknown=True)
        for row, failure in result.failed:
            at = int(good[row])
            errors[at] = CodecError(failure.message, row=at, hint=failure.hint)
        return Decoded(result.columns, good[result.good], sorted_failures(errors))

    def load(self, value: bytes) -> Any:
        """What a record's bytes say, not yet held against the contract. Raises JSONDecodeError or CodecError."""
        return orjson.loads(value)

    def encode(self, columns: Mapping[str, Column], count: int) -> EncodedRows:
        checked = conform(self.schema, columns, count)
        errors: RowErrors = dict(checked.failed)
        for name, column in checked.columns.items():
            if column.dtype.kind == "M":
                outside = ~np.isnat(column) & ((column < FIRST_TIME) | (column > LAST_TIME))
                for index in np.flatnonzero(outside).tolist():
                    row = int(checked.good[index])
                    error = CodecError(f"{column[index]} cannot be written, valid: years 1..9999")
                    errors[row] = row_error(row, name, error)
        values: list[bytes | None] = [None] * count
        records = to_jsonable(self.schema, checked.columns, len(checked.good))
        for row, record in zip(checked.good.tolist(), records, strict=True):
            if row in errors:
                continue
            try:
                values[row] = orjson.dumps(record)
            except (TypeError, ValueError) as error:
                errors[row] = CodecError(f"encoding JSON: {error}", row=row)
        return EncodedRows(values, sorted_failures(errors))


def _not_json(row: int, value: bytes | None, error: orjson.JSONDecodeError) -> CodecError:
    if value is None:
        return no_value(row)
    return CodecError(f"{shown(value)} is not JSON: {error.msg} at byte {error.pos}", row=row)
