"""What every codec gives: the protocol and the results of a batch, with failures listed row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dataflow.core.batch import Indices
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import Column, Schema

RowErrors = dict[int, CodecError]


@dataclass(slots=True)
class Decoded:
    """Columns of the good rows only; `good` are their indices in the input, `failed` the others with the cause."""

    columns: dict[str, Column]
    good: Indices
    failed: list[tuple[int, CodecError]] = field(default_factory=list)


@dataclass(slots=True)
class EncodedRows:
    """One value per row, None where the row failed (a raw codec of a nullable field also gives None for null)."""

    values: list[bytes | None]
    failed: list[tuple[int, CodecError]] = field(default_factory=list)


class Codec(Protocol):
    """Bytes of N records to columns and back. Stateless: one instance may serve many threads.

    `fingerprint` is the value of header ``df-schema`` (ASCII hex), b"" for raw. `decode` and `encode` never raise
    for one bad row. `encode` raises CodecError only when a whole column is missing or of another length.
    """

    @property
    def name(self) -> str: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def fingerprint(self) -> bytes: ...
    def decode(self, values: Sequence[bytes | None]) -> Decoded: ...
    def encode(self, columns: Mapping[str, Column], count: int) -> EncodedRows: ...


def row_error(row: int, name: str, error: CodecError) -> CodecError:
    """The same error, placed: field and row added."""
    place = f"field '{name}'" if name else "record"
    text = error.message if error.message.startswith((".", "[")) else f": {error.message}"
    return CodecError(f"{place}{text}", row=row, hint=error.hint)


def sorted_failures(errors: Mapping[int, CodecError]) -> list[tuple[int, CodecError]]:
    return sorted(errors.items(), key=lambda item: item[0])


def good_rows(count: int, errors: Mapping[int, CodecError]) -> Indices:
    if not errors:
        return np.arange(count)
    mask = np.ones(count, dtype=bool)
    mask[list(errors)] = False
    return np.flatnonzero(mask)


def require_columns(schema: Schema, columns: Mapping[str, Column], count: int) -> None:
    """Raise CodecError unless every field has a column of `count` rows."""
    for name in schema.names:
        column = columns.get(name)
        if column is None:
            raise CodecError(f"encoding: field '{name}' has no column", hint=nearest(name, columns))
        if len(column) != count:
            raise CodecError(f"encoding: column '{name}' has {len(column)} rows where {count} are expected")


def no_value(row: int) -> CodecError:
    return CodecError(
        "the record has no value (a tombstone)", row=row, hint="this contract has no null record"
    )


def object_column(cells: Sequence[object]) -> Column:
    """An object array of `cells`, element by element (numpy would make a matrix of equal-length lists)."""
    column: Column = np.empty(len(cells), dtype=object)
    for index, cell in enumerate(cells):
        column[index] = cell
    return column


def scalar_column(cells: Sequence[object]) -> Column:
    """An object array of cells that numpy takes as scalars (str, bytes, numbers, None): one C loop."""
    column: Column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
