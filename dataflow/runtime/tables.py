"""Broadcast tables in memory: the newest row of each key, found by any fields, bounded in size."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from dataflow.core.batch import to_list
from dataflow.core.errors import CodecError, ContractError, NodeError, nearest
from dataflow.core.limits import MAX_TABLE_BYTES
from dataflow.core.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

Values: TypeAlias = tuple[Any, ...]

# A dict entry with its share of free slots, in CPython: 24 bytes of entry, 8 of index, filled to two thirds at most.
_ENTRY_BYTES: Final = 56
_FILE_BATCH_ROWS: Final = 16_384


class BroadcastTable:
    """One row per key; an upsert replaces it. Indices made by `index` follow every change. Single-threaded.

    `size_bytes` estimates what rows and indices take (values shared between rows are counted each time). Beyond
    `max_bytes` an upsert raises NodeError and leaves the table as it was: better than a killed process.
    """

    def __init__(self, schema: Schema, *, name: str = "table", max_bytes: int = MAX_TABLE_BYTES) -> None:
        self._schema = schema
        self._name = name
        self._max_bytes = max_bytes
        self._rows: dict[bytes, Values] = {}
        self._indices: dict[tuple[tuple[str, ...], str], _Index | _TimeIndex] = {}
        self.size_bytes = 0

    @property
    def schema(self) -> Schema:
        return self._schema

    def __len__(self) -> int:
        return len(self._rows)

    def upsert(self, key: bytes, values: Values) -> None:
        """Set the row of `key`: the newest of all from now on. `values` in schema order, as Python scalars."""
        before = self._rows.get(key)
        size = self.size_bytes + self._cost(key, values) - (0 if before is None else self._cost(key, before))
        if size > self._max_bytes:
            raise NodeError(
                f"table '{self._name}' takes more than {self._max_bytes / 1e6:,.0f} MB in memory at row "
                f"{len(self._rows) + 1:,}",
                hint="make a smaller table (fewer fields, fewer rows, or compact the topic)",
            )
        self.size_bytes = size
        self._rows.pop(key, None)  # rows are in order of their last change: an index made later needs it
        self._rows[key] = values
        for index in self._indices.values():
            if before is not None:
                index.remove(key, before)
            index.add(key, values)

    def delete(self, key: bytes) -> None:
        """Forget the row of `key`, if there is one."""
        before = self._rows.pop(key, None)
        if before is None:
            return
        self.size_bytes -= self._cost(key, before)
        for index in self._indices.values():
            index.remove(key, before)

    def index(self, fields: Sequence[str], as_of: str = "") -> Callable[[Values], Values | None]:
        """See `sdk.Table.index`. A row with null in one of the fields is never found.

        Raises ContractError for an unknown field and for lists, records and tensors, which cannot be compared.
        """
        names = tuple(fields)
        found = self._indices.get((names, as_of))
        if found is None:
            positions = self._positions(names)
            if as_of:
                found = _TimeIndex(positions, self._positions((as_of,))[0], self._rows)
            else:
                found = _Index(positions, self._rows)
            for key, values in self._rows.items():
                found.add(key, values)
            self.size_bytes += found.cost(len(names)) * len(self._rows)
            self._indices[names, as_of] = found
        return found.find

    def _positions(self, names: Sequence[str]) -> list[int]:
        if not names:
            raise ContractError(f"table '{self._name}': an index needs a field")
        for name in names:
            if name not in self._schema:
                raise ContractError(
                    f"table '{self._name}' has no field '{name}'", hint=nearest(name, self._schema.names)
                )
            kind = self._schema[name].type
            if kind.shape or kind.kind in {"list", "record"}:
                raise ContractError(
                    f"table '{self._name}': field '{name}' is {kind.describe()}, which cannot be looked up"
                )
        return [self._schema.names.index(name) for name in names]

    def _cost(self, key: bytes, values: Values) -> int:
        indices = sum(index.cost(len(names)) for (names, _), index in self._indices.items())
        return (
            _ENTRY_BYTES + sys.getsizeof(key) + sys.getsizeof(values) + sum(map(_bytes_of, values)) + indices
        )


def _bytes_of(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return 112 + int(value.nbytes)
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(_bytes_of, value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(_bytes_of, value.values()))
    return sys.getsizeof(value)


class _Index:
    """Values of some fields -> the key of the newest row that has them.

    Most values have one row, whose key is held as it is; where there are more, an ordered set of keys (a dict), newest
    last: when the newest goes, the one before it is found again.
    """

    def __init__(self, positions: Sequence[int], rows: dict[bytes, Values]) -> None:
        self._pick = itemgetter(*positions) if len(positions) > 1 else _single(positions[0])
        self._rows = rows
        self._keys: dict[Values, bytes | dict[bytes, None]] = {}

    @staticmethod
    def cost(fields: int) -> int:
        return _ENTRY_BYTES + 40 + 8 * fields

    def find(self, values: Values) -> Values | None:
        key = self._keys.get(values)
        if key is None:
            return None
        return self._rows[next(reversed(key)) if type(key) is dict else key]  # type: ignore[index]  # bytes by now

    def add(self, key: bytes, row: Values) -> None:
        values = self._pick(row)
        if None in values:
            return
        held = self._keys.setdefault(values, key)
        if isinstance(held, dict):
            held.pop(key, None)
            held[key] = None
        elif held != key:
            self._keys[values] = {held: None, key: None}

    def remove(self, key: bytes, row: Values) -> None:
        values = self._pick(row)
        held = self._keys.get(values)
        if isinstance(held, dict):
            held.pop(key, None)
            if len(held) == 1:
                self._keys[values] = next(iter(held))
        elif held == key:
            del self._keys[values]


class _TimeIndex:
    """Values of some fields -> the rows that have them, by time; of equal times the newest row is last."""

    def __init__(self, positions: Sequence[int], time: int, rows: dict[bytes, Values]) -> None:
        self._pick = itemgetter(*positions) if len(positions) > 1 else _single(positions[0])
        self._time = time
        self._rows = rows
        self._found: dict[Values, tuple[list[Any], list[bytes]]] = {}

    @staticmethod
    def cost(fields: int) -> int:
        return _Index.cost(fields) + 16

    def find(self, values: Values) -> Values | None:
        *same, time = values
        found = self._found.get(tuple(same))
        if found is None or time is None:
            return None
        times, keys = found
        place = bisect_right(times, time)
        return self._rows[keys[place - 1]] if place else None

    def add(self, key: bytes, row: Values) -> None:
        values, time = self._pick(row), row[self._time]
        if time is None or None in values:
            return
        times, keys = self._found.setdefault(values, ([], []))
        place = bisect_right(times, time)  # rows come by time: nearly always the end
        times.insert(place, time)
        keys.insert(place, key)

    def remove(self, key: bytes, row: Values) -> None:
        values, time = self._pick(row), row[self._time]
        found = self._found.get(values)
        if found is None or time is None:
            return
        times, keys = found
        for place in range(bisect_left(times, time), bisect_right(times, time)):
            if keys[place] == key:
                del times[place], keys[place]
                break
        if not times:
            del self._found[values]


def _single(position: int) -> Callable[[Values], Values]:
    return lambda row: (row[position],)


def load_file(table: BroadcastTable, path: Path, key: Sequence[str] = ()) -> None:
    """Upsert every row of a Parquet or CSV file, in order: the last row of a key wins.

    `key` names the fields that identify a row; () makes every row one of its own. Raises NodeError naming the file.
    """
    import pyarrow as pa

    from dataflow.codecs.tables import columns_of

    names = table.schema.names
    positions = [names.index(name) for name in key]
    count = 0
    try:
        for part in _batches(path, names):
            columns = columns_of(table.schema, part)
            for values in zip(*(to_list(columns[name]) for name in names), strict=True):
                identity = repr([values[p] for p in positions]) if positions else str(count)
                table.upsert(identity.encode(), values)
                count += 1
    except (OSError, pa.ArrowException, CodecError) as error:
        raise NodeError(f"table file '{path}', after {count:,} rows: {str(error).splitlines()[0]}") from error


def _batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as opened:
            present = [name for name in names if name in opened.schema_arrow.names]
            yield from opened.iter_batches(_FILE_BATCH_ROWS, columns=present)
    elif path.suffix == ".csv":
        # Read whole, as its contract was: a type guessed from the first block might not be that of the rest.
        yield from pyarrow.csv.read_csv(path).to_batches()
    else:
        raise NodeError(f"table file '{path}' is no table", hint="a file ending in .parquet or .csv")
