"""The Arrow codec: each record is an Arrow IPC stream with one record batch of one row.

The stream's head (schema) is the same for every record of a topic and its tail is constant: both are made once, and
a value that starts with our own head is read without parsing the schema again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from dataflow.codecs.base import Decoded, EncodedRows, RowErrors, good_rows, no_value, sorted_failures
from dataflow.codecs.tables import arrow_schema, columns_of, record_batch
from dataflow.codecs.values import conform
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import Column, Schema, empty_column

# End of an IPC stream: continuation mark and a length of zero (Arrow columnar format, "IPC streaming format").
_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class ArrowCodec:
    name = "arrow"

    def __init__(self, schema: Schema, fingerprint: bytes) -> None:
        if not len(schema):
            raise ContractError("codec 'arrow' cannot carry a record without fields", hint="use avro or json")
        self.schema = schema
        self.fingerprint = fingerprint
        self._schema = arrow_schema(schema)
        self._head: bytes = self._schema.serialize().to_pybytes()

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        errors: RowErrors = {}
        batches: list[pa.RecordBatch] = []
        for row, value in enumerate(values):
            try:
                batches.append(self._read(row, value))
            except CodecError as error:
                errors[row] = error
        good = good_rows(len(values), errors)
        try:
            return Decoded(self._columns(batches), good, sorted_failures(errors))
        except (CodecError, pa.ArrowException, ValueError):
            pass
        kept: list[pa.RecordBatch] = []
        for row, batch in zip(good.tolist(), batches, strict=True):
            try:
                self._columns([batch])
                kept.append(batch)
            except CodecError as error:
                errors[row] = CodecError(error.message, row=row, hint=error.hint)
            except (pa.ArrowException, ValueError) as error:
                errors[row] = _not_arrow(row, str(error))
        return Decoded(self._columns(kept), good_rows(len(values), errors), sorted_failures(errors))

    def _columns(self, batches: Sequence[pa.RecordBatch]) -> dict[str, Column]:
        if not batches:
            return {f.name: empty_column(f.type) for f in self.schema}
        table = pa.Table.from_batches(batches)
        return columns_of(self.schema, table)

    def _read(self, row: int, value: bytes | None) -> pa.RecordBatch:
        if value is None:
            raise no_value(row)
        try:
            if value.startswith(self._head):
                batches = [pa.ipc.read_record_batch(pa.py_buffer(value)[len(self._head) :], self._schema)]
            else:
                batches = pa.ipc.open_stream(value).read_all().combine_chunks().to_batches()
            rows = sum(batch.num_rows for batch in batches)
            for batch in batches:
                # Offsets that point outside their buffer would otherwise be read, and crash.
                batch.validate(full=True)
        except (pa.ArrowException, ValueError, OSError, EOFError) as error:
            raise _not_arrow(row, str(error)) from None
        if rows != 1:
            raise CodecError(f"the record carries {rows} rows, expected exactly one", row=row)
        return batches[0]

    def encode(self, columns: Mapping[str, Column], count: int) -> EncodedRows:
        checked = conform(self.schema, columns, count)
        values: list[bytes | None] = [None] * count
        batch = record_batch(self.schema, checked.columns)
        for index, row in enumerate(checked.good.tolist()):
            values[row] = self._head + batch.slice(index, 1).serialize().to_pybytes() + _END
        return EncodedRows(values, checked.failed)


def _not_arrow(row: int, why: str) -> CodecError:
    return CodecError(f"the record is not an Arrow IPC stream of this contract: {why}", row=row)
