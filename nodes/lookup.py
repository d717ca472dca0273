"""`join.lookup`: add the fields of a table's row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    DataflowError,
    FieldType,
    KeyedState,
    NodeContext,
    Out,
    Row,
    Schema,
    Timer,
    column_of,
    node,
    to_list,
)

from ._expressions import refuse_declarations
from ._lookup_contract import (
    Lookup,
    added_fields,
    check_inputs,
    check_keys,
    check_times,
    defaults_of,
    history_of,
    keys_of,
    times_of,
)
from ._lookup_rows import StreamedTable

EXAMPLE = """
# file: planes.csv
#| tailnum,year,seats
#| N14228,1999,149
#| N24211,1998,149
kind: Topic
name: departures
fields: {flight: string, tail: string}
---
kind: Pipeline
name: seats
inputs: {departures: departures}
nodes:
  plane:
    use: join.lookup
    from: departures
    with: {table: planes.csv, by: {tailnum: tail}, select: [seats], on_missing: "null"}
tests:
  - name: a plane that is not known has null seats
    given: {departures: [{flight: UA1, tail: N14228}, {flight: UA2, tail: N0}]}
    expect: {plane: [{flight: UA1, tail: N14228, seats: 149}, {flight: UA2, tail: N0, seats: null}]}
"""


@node("join.lookup", settings=Lookup, inputs=("in", "*"), example=EXAMPLE)
class JoinLookup:
    """Add the fields of the row that a table has for the record.

    `table` names a *broadcast* table. It is loaded to its end before the first record and follows its topic afterwards: a record meets the
    newest row there is when it is processed. Every worker holds all of it. Of several rows that match, the newest
    counts; a file's rows are in order. Keys match when they are equal; null matches nothing.

    With `as_of` time counts instead: a table with a row for each hour gives each record the row of its own hour, or of the
    last hour before that has one, however much later the record is processed.

    `from: {in: EDGE, table: EDGE}` is a *co-partitioned* table: any stream that is keyed as the input is, on equally many
    partitions. The newest row of each key lies in state, on disk, and each worker has those of its own partitions: the table may
    be larger than any memory. A record has the row of its own key. The first records wait until the table was read to its end;
    from then on each meets the newest row that was read before it. With `as_of` a key has a row for each time, kept as long as
    `history` says. A tombstone, a record of the table's topic without a value, ends all rows of its key.
    """

    pairs_keys = True
    tombstones = frozenset({"table"})
    holds = True

    @staticmethod
    def keyed_for(settings: Lookup, folder: Path) -> bool:
        del folder
        return settings.table is None

    def __init__(self, settings: Lookup, context: NodeContext) -> None:
        self._settings = settings
        self._context = context
        self._by = keys_of(settings, context.input)
        self._as_of = times_of(settings, context.input)
        self._time_at = -1
        self._find: Callable[[tuple[Any, ...]], tuple[Any, ...] | None] = _not_open
        self._added: list[tuple[int, str, FieldType]] = []
        self._fill: tuple[Any, ...] | None = None
        self.keyed = settings.table is None
        self._rows = (
            StreamedTable(context.inputs["table"], context.input, history_of(settings, self._as_of))
            if self.keyed
            else None
        )

    @staticmethod
    def tables(settings: Lookup) -> tuple[str, ...]:
        return () if settings.table is None else (settings.table,)

    @staticmethod
    def contract(settings: Lookup, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        check_inputs(settings, context.inputs)
        try:
            table = context.inputs["table"] if settings.table is None else context.topics(settings.table)
        except DataflowError as error:
            raise ContractError(error.message, path=("with", "table"), hint=error.hint) from None
        check_keys(settings, table, context.input)
        check_times(settings, table, context.input)
        added = added_fields(settings, table, context.input)
        defaults_of(settings, table)
        return {"out": Schema((*context.input.fields, *added.values()))}

    def open(self) -> None:
        """Take hold of the table; its index stays current by itself."""
        if self._settings.table is None:
            schema = self._context.inputs["table"]
        else:
            table = self._context.table(self._settings.table)
            schema = table.schema
            self._find = table.index(list(self._by), next(iter(self._as_of), ""))
        added = added_fields(self._settings, schema, self._context.input)
        names = schema.names
        self._added = [(names.index(name), field.name, field.type) for name, field in added.items()]
        self._time_at = names.index(next(iter(self._as_of))) if self._as_of else -1
        if self._settings.on_missing in {"null", "default"}:
            defaults = defaults_of(self._settings, schema)
            self._fill = tuple(defaults.get(name) for name in names)

    def process(self, batch: Batch, out: Out, port: str = "in", state: KeyedState | None = None) -> None:
        if self._rows is not None and state is not None:
            if port == "table":
                self._rows.keep(batch, out, state)
            elif self._rows.ready(state):
                self._give(batch, self._streamed(batch, self._rows, state), out)
            else:
                self._rows.hold(batch, out, state)
            return
        self._process(batch, out)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """Records that waited for the table may go on, or are looked after again."""
        del timers
        if self._rows is not None:
            self._release(self._rows.release(state), self._rows, out, state)

    def drain(self, out: Out, state: KeyedState) -> None:
        """The inputs have ended, the table's too."""
        while self._rows is not None:
            batch = self._rows.release(state, ended=True)
            if batch is None:
                return
            self._release(batch, self._rows, out, state)

    def _release(self, batch: Batch | None, rows: StreamedTable, out: Out, state: KeyedState) -> None:
        """Give records that were held."""
        if batch is None:
            return
        found = self._streamed(batch, rows, state)
        if self._fill is not None:
            found = [self._fill if row is None else row for row in found]
        missing = [index for index, row in enumerate(found) if row is None]
        for index in missing:
            if self._settings.on_missing == "drop":
                out.end(batch.rows[index], self._missed(None))
            else:
                record = batch.take([index]).to_dicts()[0]
                reason = self._missed(batch.rows[index])
                out.end(batch.rows[index], reason, error="LookupError", record=record)
        good = [index for index, row in enumerate(found) if row is not None]
        if good:
            part = batch.take(good)
            columns = {**part.columns, **self._columns([found[index] for index in good])}
            out.create(columns, list(part.rows))

    def _missed(self, row: Row | None) -> str:
        return f"no row in {self._settings.named}" + ("" if row is None else f" for the key {row.key!r}")

    def _process(self, batch: Batch, out: Out) -> None:
        given = [to_list(key.evaluate(batch)) for key in (*self._by.values(), *self._as_of.values())]
        self._give(batch, self._young(batch, list(map(self._find, zip(*given, strict=True)))), out)

    def _streamed(self, batch: Batch, rows: StreamedTable, state: KeyedState) -> list[Any]:
        return self._young(batch, rows.find(batch, state))

    def _give(self, batch: Batch, found: list[Any], out: Out) -> None:
        if None not in found:
            out.emit({**batch.columns, **self._columns(found)})
            return
        if self._fill is not None:
            fill = self._fill
            out.emit({**batch.columns, **self._columns([fill if row is None else row for row in found])})
            return
        self._end(batch, [index for index, row in enumerate(found) if row is None], out)
        rows = np.array([index for index, row in enumerate(found) if row is not None], dtype=np.intp)
        if len(rows):
            kept = {name: column[rows] for name, column in batch.columns.items()}
            out.emit({**kept, **self._columns([row for row in found if row is not None])}, rows=rows)

    def _young(self, batch: Batch, found: list[Any]) -> list[Any]:
        """What was found, without rows that are older than `max_age` at the record's time."""
        if self._settings.max_age is None:
            return found
        at, most = self._time_at, timedelta(milliseconds=self._settings.max_age)
        times = to_list(next(iter(self._as_of.values())).evaluate(batch))
        return [
            None if row is None or time - row[at] > most else row
            for row, time in zip(found, times, strict=True)
        ]

    def _columns(self, found: list[Any]) -> dict[str, Column]:
        """The added columns of rows that are all there."""
        return {name: column_of(kind, [row[at] for row in found]) for at, name, kind in self._added}

    def _end(self, batch: Batch, missing: list[int], out: Out) -> None:
        if self._settings.on_missing == "drop":
            out.drop(missing, self._missed(None))
            return
        if self._rows is not None:
            for row in missing:
                out.fail([row], self._missed(batch.rows[row]), error="LookupError")
            return
        keys = {name: to_list(key.evaluate(batch)) for name, key in self._by.items()}
        for row in missing:
            said = ", ".join(f"{name}={values[row]!r}" for name, values in keys.items())
            out.fail([row], f"{self._missed(None)} for {said}", error="LookupError")


def _not_open(_: tuple[Any, ...]) -> None:
    raise RuntimeError("join.lookup is used before it is opened")
