"""Which rows of several sides are one record, and columns in which some of them have nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dataflow.sdk import Column, ContractError, Field, FieldType, Schema, Sides, column_of, nearest, to_list

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Matched:
    """The N records that reached any side, in the order in which they were read.

    positions   by side: the record's row in that side's batch, -1 where the side has none
    keepers     the record's row on the first side that has it, counted over all sides; the others say nothing new
    others      all rows that are no keeper
    doubled     record -> the first side that has more than one row of it
    """

    positions: dict[str, Indices]
    keepers: Indices
    others: Indices
    doubled: dict[int, str]

    def __len__(self) -> int:
        return len(self.keepers)


def match(sides: Sides, ports: Sequence[str]) -> Matched:
    """Put together the rows that are one record: of the same fetched record, with the same id.

    The id alone would not do: a fetched batch may hold one record twice, each with branches of its own.
    """
    present = [port for port in ports if port in sides.batches]
    first = sides.batches[present[0]].rows
    aligned = all(sides.batches[port].rows == first for port in present[1:])
    sources = [row.source for row in first]
    in_order = sources == sorted(sources)
    if aligned and in_order and len(set(first)) == len(first):  # by identity: the usual case, and cheap
        every = np.arange(len(first))
        none = np.full(len(first), -1, dtype=np.intp)
        positions = {port: every if port in sides.batches else none for port in ports}
        doubled: dict[int, str] = {}
    else:
        positions, doubled = _by_id(sides, ports)
    count = len(positions[ports[0]])
    keepers = np.full(count, -1, dtype=np.intp)
    for port in reversed(present):
        found = positions[port]
        keepers = np.where(found >= 0, found + sides.starts[port], keepers)
    others = np.ones(sum(len(batch) for batch in sides.batches.values()), dtype=np.bool_)
    others[keepers] = False
    return Matched(positions, keepers, np.flatnonzero(others), doubled)


def _by_id(sides: Sides, ports: Sequence[str]) -> tuple[dict[str, Indices], dict[int, str]]:
    records: dict[tuple[int, bytes], int] = {}
    found: dict[str, dict[int, int]] = {port: {} for port in ports}
    doubled: dict[int, str] = {}
    for port in ports:
        rows = sides.batches[port].rows if port in sides.batches else ()
        for position, row in enumerate(rows):
            record = records.setdefault((row.source, row.id), len(records))
            if found[port].setdefault(record, position) != position:
                doubled.setdefault(record, port)
    order = np.argsort(np.array([source for source, _ in records], dtype=np.intp), kind="stable")
    place = {record: index for index, record in enumerate(order.tolist())}
    positions = {}
    for port in ports:
        positions[port] = np.full(len(records), -1, dtype=np.intp)
        for record, position in found[port].items():
            positions[port][place[record]] = position
    return positions, {place[record]: port for record, port in doubled.items()}


def optional(field: Field) -> Field:
    """The field where it may be absent. It cannot be the event time any more: that is never null."""
    return replace(field, type=replace(field.type, nullable=True), event_time=False)


def spread(column: Column, nullable: FieldType, positions: Indices) -> Column:
    """The values at `positions` as a column of a nullable type; null where the position is -1."""
    present = np.flatnonzero(positions >= 0)
    if nullable.column_dtype.kind == "M":
        times = np.full(len(positions), "NaT", dtype=nullable.column_dtype)
        times[present] = column[positions[present]]
        return times
    values: list[object] = [None] * len(positions)
    for at, value in zip(present.tolist(), to_list(column[positions[present]]), strict=True):
        values[at] = value
    return column_of(nullable, values)


def check_free(name: str, schema: Schema, path: tuple[str | int, ...], hint: str) -> None:
    """Raise ContractError if a field that a kind adds has the name of one that is there."""
    if name in schema:
        raise ContractError(f"field '{name}' is there already", path=path, hint=hint)


def check_field(name: str, schema: Schema, where: str, path: tuple[str | int, ...]) -> Field:
    """The field called `name`; raises ContractError with the nearest name if `where` has none."""
    if name not in schema:
        raise ContractError(f"no field '{name}' in {where}", path=path, hint=nearest(name, schema.names))
    return schema[name]
