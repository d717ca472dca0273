"""A keyed node that does what its rows say, and loops over a log in memory that can be broken in between."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataflow.codecs import codec_for
from dataflow.control.deploy import deploy
from dataflow.core import headers
from dataflow.core.schema import Schema
from dataflow.planner.plan import DEAD_LETTERS, REPLIES, Plan
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.sdk import (
    BEHIND,
    Batch,
    ContractContext,
    KeyedState,
    NodeContext,
    Out,
    Row,
    Settings,
    Timer,
    ids,
    node,
    pack_row,
    unpack_row,
)
from dataflow.testing.pipelines import HandClock
from dataflow.transport.api import Header
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryMessage
from tests.runtime.kit import RECORD, Scripted, encoded, make_plan, pass_on

END_MS = 1 << 60


@node("test.count")
class Counted:
    """Counts the records of a key: n becomes the count.

    count | raise (after counting) | retry (fails twice) | hold (kept until `flush`) | flush (held ones are created anew)
    | end | lose (the held one ends, dropped or failed) | timer:MS | boom:MS | again:MS (a timer that counts, raises, or sets
    itself again) | far (held until an event timer).
    """

    keyed = True

    def __init__(self, settings: Settings, context: NodeContext) -> None:
        self._name = context.node

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        waiting: set[bytes] = set()
        for index, (row, record) in enumerate(zip(batch.rows, batch.to_dicts(), strict=True)):
            key = row.key or b""
            if key in waiting:
                out.fail([index], "behind", error=BEHIND, retryable=True)
                continue
            before = state.savepoint()
            count = state.get(key, "count", 0) + 1
            state.put(key, "count", count)
            try:
                self._one(index, row, record, count, out, state)
            except ConnectionError as error:
                state.rollback(before)
                tries = state.get(key, "tries", 0) + 1
                state.put(key, "tries", tries)
                if tries < 3:
                    waiting.add(key)
                    out.fail([index], str(error), error="Busy", retryable=True)
                else:
                    state.delete(key, "tries")
                    state.put(key, "count", count)
                    emit(out, index, count, "retried")

    def _one(
        self, index: int, row: Row, record: dict[str, Any], count: int, out: Out, state: KeyedState
    ) -> None:
        key = row.key or b""
        what, _, delay = record["do"].partition(":")
        if what == "raise":
            raise ValueError("asked to")
        if what == "retry":
            raise ConnectionError("not now")
        if what == "hold":
            out.hold([index])
            state.put(key, "held", [*state.get(key, "held", []), [pack_row(row), record]])
            return
        if what in {"flush", "end", "lose"}:
            held = state.get(key, "held", [])
            state.delete(key, "held")
            for packed, kept in held:
                if what == "flush":
                    create(out, self._name, unpack_row(packed), count, f"held {kept['n']}", [index])
                elif what == "end":
                    out.end(unpack_row(packed), "nobody came")
                else:
                    out.end(unpack_row(packed), "it is lost", error="Lost", record=kept)
        if what in {"timer", "boom", "again"}:
            state.set_timer(key, what, state.now_ms + int(delay))
        if what == "far":
            state.set_timer(key, "far", state.now_ms, "event")
        emit(out, index, count, what)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        for timer in timers:
            count = state.get(timer.key, "count", 0) + 100
            state.put(timer.key, "count", count)
            if timer.name == "again":
                state.set_timer(timer.key, "again", timer.at_ms + 1_000)
            if timer.name == "boom":
                raise ValueError("a timer that cannot be")
            row = Row(ids.joined(self._name, timer.at_ms, timer.key), timer.key)
            create(out, self._name, row, count, f"fired {timer.name}")

    def drain(self, out: Out, state: KeyedState) -> None:
        state.advance(END_MS)
        while timer := state.pop_event_timer():
            row = Row(ids.joined(self._name, timer.at_ms, timer.key, b"end"), timer.key)
            create(out, self._name, row, state.get(timer.key, "count", 0), "drained")


def emit(out: Out, index: int, count: int, did: str) -> None:
    out.emit({"n": np.array([count]), "do": np.array([did], dtype=object)}, rows=[index])


def create(out: Out, node_name: str, row: Row, count: int, did: str, after: list[int] | None = None) -> None:
    made = Row(
        ids.joined(node_name, 0, row.id, b"made"),
        row.key,
        carry=row.carry,
        reply=row.reply,
        deadline_ms=row.deadline_ms,
        parents=(row.id,),
    )
    out.create({"n": np.array([count]), "do": np.array([did], dtype=object)}, [made], after=after)


KEYED = Registry.of(Counted, Scripted, pass_on)
TOPIC = "records"


class Keyed:
    """A deployed plan whose first stage counts; loops of it, and what they left on the log."""

    def __init__(self, folder: Path, plan: Plan, files: Path | None = None) -> None:
        self.clock = HandClock()
        self.fabric = MemoryFabric(self.clock)
        self.plan = plan
        self.stage = plan.stages[0]
        self.project = folder
        self.files = files
        self._written = 0
        deploy(self.fabric, plan)

    def loop(self) -> StageLoop:
        shop = Workshop(self.project, KEYED, self.fabric, state_folder=self.files)
        return StageLoop(partial(shop.build, self.plan, self.stage), self.fabric, self.clock)

    def write(
        self, what: Sequence[tuple[str, str]], *, head: Sequence[Header] = (), partition: int = 0
    ) -> None:
        """Records of (key, what to do)."""
        producer = self.fabric.producer()
        for key, do in what:
            (value,) = encoded([(self._written, do)])
            self._written += 1
            producer.send(TOPIC, value, key.encode(), list(head), partition)
        producer.close()

    def settle(self, loop: StageLoop, turns: int = 12) -> None:
        """Turn until nothing is in hand, moving the clock over retries but not to timers."""
        for _ in range(turns):
            loop.turn(0)
            if loop.due_ms is not None:
                self.clock.now_s = max(self.clock.now_s, loop.due_ms / 1000 + 0.001)
        loop.commit_now()

    def run(self, what: Sequence[tuple[str, str]] = (), **given: Any) -> None:
        """One life of a loop: it takes what there is, commits and ends well."""
        self.write(what, **given)
        with ExitStack() as stack:
            loop = self.loop()
            loop.open(stack)
            self.settle(loop)

    def records(self, topic: str = "p.count", partition: int = 0) -> list[MemoryMessage]:
        return self.fabric.stored[topic].partitions[partition].records

    def seen(self, topic: str = "p.count", partition: int = 0) -> list[tuple[str, int, str]]:
        """(key, count, what was done) of the records on an edge."""
        records = self.records(topic, partition)
        columns = codec_for("avro", RECORD).decode([r.value() for r in records]).columns
        keys = [(r.key() or b"").decode() for r in records]
        return list(zip(keys, columns["n"].tolist(), columns["do"].tolist(), strict=True))

    def letters(self) -> list[MemoryMessage]:
        return self.records(DEAD_LETTERS)

    def replies(self) -> list[tuple[str, str, bytes | None]]:
        """(whose, status, value)."""
        found = []
        for partition in self.fabric.stored[REPLIES].partitions:
            for record in partition.records:
                told = dict(record.headers() or ())
                found.append(((record.key() or b"").decode(), told[headers.STATUS].decode(), record.value()))
        return found

    def committed(self, partition: int = 0) -> int:
        position = (TOPIC, partition)
        return self.fabric.admin().group_offsets(self.stage.group, [position]).get(position, 0)


def reply_to(name: str) -> list[Header]:
    return [(headers.REPLY_TO, f"{REPLIES}/0/{name}".encode())]


COUNT = """
inputs: {{records: records}}
delivery: {delivery}
nodes:
  count: {{use: test.count, from: records, retry: {{attempts: 9, backoff: 1s}}}}
"""


def keyed(
    folder: Path, delivery: str = "at_least_once", partitions: int = 1, *, files: bool = False
) -> Keyed:
    plan = make_plan(folder, COUNT.format(delivery=delivery), partitions=partitions, registry=KEYED)
    return Keyed(folder, plan, folder / "state" if files else None)
