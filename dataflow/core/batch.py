"""Batches: N records as columns, and the rows' own identity beside them.

A batch is immutable by agreement: nobody writes into a column or a row that was handed over; `take` and
`replaced` share what they can. Everything a node sees is here; positions and broker timestamps are not, so that
a handed record and a fetched one look the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataflow.core.errors import ContractError
from dataflow.core.schema import Column, Schema, column_of

Header = tuple[str, bytes | None]  # Kafka allows a header without a value
Indices = npt.NDArray[np.intp]

# `Row.source` of a record that was not fetched with the batch in hand: below 0. UNPACKED is that of `unpack_row`.
UNPACKED: Final = -1
_MADE: Final = -(1 << 62)
_AFTER_BITS: Final = 40


class Row:
    """Identity of one record in flight. Shared between batches: never changed after it is made.

    id        canonical UUID text as ASCII bytes, the value of header ``df-id``
    key       the record key as bytes, None if it has none
    source    index of the fetched record this row comes from, in the task's batch in hand; below 0 for a record that was
              made from state, see `made_source`
    carry     headers that travel on unchanged (trace context, the caller's id, the user's own)
    reply     value of header df-reply-to: who waits for the answer; b"" when nobody does
    deadline_ms   Unix time in ms after which nobody waits; 0 for none
    parents   ids this row was derived from, where its own id differs; () otherwise
    attempt   0 at first, one more for each redrive
    """

    __slots__ = ("attempt", "carry", "deadline_ms", "id", "key", "parents", "reply", "source")

    def __init__(
        self,
        id: bytes,  # noqa: A002  (the field's own name)
        key: bytes | None = None,
        source: int = 0,
        carry: Sequence[Header] = (),
        reply: bytes = b"",
        deadline_ms: int = 0,
        attempt: int = 0,
        parents: tuple[bytes, ...] = (),
    ) -> None:
        self.id = id
        self.key = key
        self.source = source
        self.carry = carry
        self.reply = reply
        self.deadline_ms = deadline_ms
        self.attempt = attempt
        self.parents = parents

    def __repr__(self) -> str:
        return f"Row({self.id.decode()}, key={self.key!r}, source={self.source})"


@dataclass(slots=True)
class Encoded:
    """Wire bytes of a batch's rows, kept so that an edge with equal contract need not encode again."""

    fingerprint: bytes
    values: Sequence[bytes | None]


class Batch:
    """N rows under one schema. ``batch["x"]`` is a column of length N (see `core.schema` for its dtype).

    `deleted` are the indices of records without a value (tombstones): their columns hold nothing that means anything. Only
    a port that asks for them (`NodeClass.tombstones`) has any.
    """

    __slots__ = ("columns", "deleted", "encoded", "rows", "schema")

    def __init__(
        self,
        schema: Schema,
        columns: Mapping[str, Column],
        rows: Sequence[Row],
        encoded: Encoded | None = None,
        deleted: frozenset[int] = frozenset(),
    ) -> None:
        self.deleted = deleted
        self.schema = schema
        self.columns = columns
        self.rows = rows
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Column:
        column = self.columns.get(name)
        if column is None:
            _ = self.schema[name]  # raises with the nearest name
            raise ContractError(f"field '{name}' has no column")
        return column

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    @property
    def ids(self) -> list[str]:
        return [row.id.decode() for row in self.rows]

    @property
    def keys(self) -> list[bytes | None]:
        return [row.key for row in self.rows]

    @property
    def attempts(self) -> list[int]:
        return [row.attempt for row in self.rows]

    def floats(self, name: str) -> npt.NDArray[np.float64]:
        """A numeric column, nullable or not, as float64 with NaN for null."""
        column = self[name]
        if column.dtype == object:
            return np.array([np.nan if v is None else v for v in column], dtype=np.float64)
        return column.astype(np.float64, copy=False)

    def take(self, indices: Sequence[int] | Indices) -> Batch:
        """The rows at `indices`, in that order."""
        index = np.asarray(indices, dtype=np.intp)
        positions = index.tolist()
        rows = [self.rows[i] for i in positions]
        encoded = self.encoded
        if encoded is not None:
            encoded = Encoded(encoded.fingerprint, [encoded.values[i] for i in positions])
        deleted = (
            frozenset(at for at, i in enumerate(positions) if i in self.deleted)
            if self.deleted
            else self.deleted
        )
        return Batch(self.schema, {n: c[index] for n, c in self.columns.items()}, rows, encoded, deleted)

    def replaced(self, schema: Schema, columns: Mapping[str, Column]) -> Batch:
        """The same rows under another contract."""
        return Batch(schema, columns, self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per row, with Python scalars, None for null and arrays for tensors."""
        names = self.schema.names
        lists = [to_list(self.columns[n]) for n in names]
        if not names:
            return [{} for _ in self.rows]
        return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]

    @staticmethod
    def of(schema: Schema, records: Sequence[Mapping[str, Any]], rows: Sequence[Row] | None = None) -> Batch:
        """Build a batch from dicts that hold exactly the schema's fields (null may be left out).

        Raises ValueError, TypeError or OverflowError when a value does not fit its type.
        """
        columns = {f.name: column_of(f.type, [r.get(f.name) for r in records]) for f in schema}
        made = [Row(f"{i:08x}-0000-7000-8000-000000000000".encode(), source=i) for i in range(len(records))]
        return Batch(schema, columns, rows if rows is not None else made)


def pack_row(row: Row) -> dict[str, Any]:
    """A row's identity as state can carry it; `unpack_row` gives it back."""
    return {
        "id": row.id,
        "key": row.key,
        "carry": [[name, value] for name, value in row.carry],
        "reply": row.reply,
        "deadline_ms": row.deadline_ms,
        "attempt": row.attempt,
        "parents": list(row.parents),
    }


def unpack_row(packed: Mapping[str, Any]) -> Row:
    """The row of `pack_row`, of a record that was fetched at another time: its `source` is UNPACKED."""
    return Row(
        packed["id"],
        packed["key"],
        UNPACKED,
        [(name, value) for name, value in packed["carry"]],
        packed["reply"],
        packed["deadline_ms"],
        packed["attempt"],
        tuple(packed["parents"]),
    )


def made_source(after: int, number: int) -> int:
    """`Row.source` of a record made from state: below 0, another one for each `number`, growing in the order of making.

    `after` is the `source` of the fetched record that caused it, -1 for none (a timer).
    """
    order = int(read_order(np.array([after]))[0])
    return _MADE + ((order + 1) << _AFTER_BITS) + number % (1 << _AFTER_BITS)


def read_order(sources: Indices) -> Indices:
    """What to sort by to have rows in the order in which they were read: made ones after what caused them."""
    made = sources < UNPACKED
    if not made.any():
        return sources
    return np.where(made, ((sources - _MADE) >> _AFTER_BITS) - 1, sources)


def to_list(column: Column) -> list[Any]:
    """A column as Python values: scalars as themselves, datetimes as datetime/date or None, tensors as arrays."""
    if column.ndim > 1:
        return list(column)
    values: list[Any] = column.tolist()  # NaT becomes None
    return values


def concatenate(schema: Schema, batches: Iterable[Batch]) -> Batch:
    """The rows of several batches of one schema, in order."""
    parts = list(batches)
    if len(parts) == 1:
        return parts[0]
    columns = {n: np.concatenate([p.columns[n] for p in parts]) for n in schema.names}
    return Batch(schema, columns, [row for p in parts for row in p.rows])
