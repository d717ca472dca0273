"""Broadcast tables of a stage: files read once, compacted topics read to their end and then followed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dataflow.codecs import codec_for
from dataflow.core.batch import to_list
from dataflow.core.errors import PlanError, TransportError, nearest
from dataflow.planner.plan import TablePlan
from dataflow.runtime.tables import BroadcastTable, load_file
from dataflow.sdk import Table
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Message, Position

LOAD_TIMEOUT_S: Final = 300.0


class TopicTables:
    """All tables of one stage. Single-threaded: the stage's loop loads and refreshes them."""

    def __init__(self, fabric: Fabric, plans: Mapping[str, TablePlan], folder: Path) -> None:
        self._fabric = fabric
        self._plans = plans
        self._folder = folder
        self._tables = {name: BroadcastTable(p.schema, name=name) for name, p in plans.items()}
        self._by_topic = {p.topic: name for name, p in plans.items() if p.topic}
        self._codecs = {name: codec_for(p.codec, p.schema) for name, p in plans.items() if p.topic}
        self._consumer: Consumer | None = None

    def get(self, name: str) -> Table:
        table = self._tables.get(name)
        if table is None:
            raise PlanError(f"no table '{name}' in this stage", hint=nearest(name, self._tables))
        return table

    def load(self) -> None:
        """Read every table to the end it has now. Raises TransportError when that takes too long."""
        for name, plan in self._plans.items():
            if plan.file:
                load_file(self._tables[name], self._folder / plan.file, plan.key)
        if not self._by_topic:
            return
        positions = [
            (t, n) for t, name in self._by_topic.items() for n in range(self._plans[name].partitions)
        ]
        ends = self._fabric.admin().offsets(positions, LATEST)
        self._consumer = self._fabric.consumer()
        self._consumer.assign(dict.fromkeys(positions, EARLIEST))
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while not self._reached(self._consumer, ends):
            self._take(self._consumer.poll(500, 0.05))
            if time.monotonic() > deadline:
                raise TransportError(
                    f"loading the tables {sorted(self._by_topic)} took over {LOAD_TIMEOUT_S:.0f} s"
                )

    @staticmethod
    def _reached(consumer: Consumer, ends: Mapping[Position, int]) -> bool:
        # Positions, not offsets of records seen: the last records may be compacted away.
        now = consumer.position(list(ends))
        return all((now[p] or 0) >= end for p, end in ends.items())

    def refresh(self) -> None:
        """Take in what has come since; waits for nothing."""
        if self._consumer is not None:
            self._take(self._consumer.poll(500, 0))

    def _take(self, messages: Sequence[Message]) -> None:
        by_table: dict[str, list[Message]] = {}
        for message in messages:
            by_table.setdefault(self._by_topic[message.topic()], []).append(message)
        for name, found in by_table.items():
            self._upsert(name, found)

    def _upsert(self, name: str, messages: list[Message]) -> None:
        table = self._tables[name]
        newest = {m.key() or b"": m for m in messages}
        for key, message in newest.items():
            if message.value() is None:
                table.delete(key)
        alive = [(k, m.value()) for k, m in newest.items() if m.value() is not None]
        decoded = self._codecs[name].decode([value for _, value in alive])
        # A record of a table that does not decode is left out: a lookup of its key then misses, as declared there.
        names = table.schema.names
        lists = [to_list(decoded.columns[n]) for n in names]
        for index, values in zip(decoded.good.tolist(), zip(*lists, strict=True), strict=True):
            table.upsert(alive[index][0], values)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
