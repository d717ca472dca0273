"""The judge condemns engines that are broken on purpose, and acquits ours, over one story of a crash.

The log is in memory, with a producer that loses what was not acknowledged when its process dies: as Kafka's does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataflow.codecs import codec_for
from dataflow.control.deploy import deploy
from dataflow.core import headers, ids, limits
from dataflow.core.batch import Batch
from dataflow.planner.plan import Plan
from dataflow.runtime.offsets import OffsetTracker, Ticket
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.task import Task
from dataflow.runtime.workshop import Workshop
from dataflow.runtime.writer import Barrier
from dataflow.testing.pipelines import HandClock
from dataflow.transport.api import Delivered, Header
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryProducer
from tests.e2e.checker import Record, Verdict, judge
from tests.runtime.kit import RECORD, REGISTRY, make_plan

PIPELINE = """
inputs: {records: records}
nodes:
  a: {use: test.script, from: records, retry: {attempts: 5, backoff: 1s, backoff_max: 1s}}
"""
# Sent records of which the log has taken none yet, when the process dies.
IN_FLIGHT = 40


class Slowly:
    """A producer whose records arrive late: `IN_FLIGHT` of them wait while there are new ones, or until a flush."""

    def __init__(self, producer: MemoryProducer) -> None:
        self._producer = producer
        self._waiting: list[tuple[Any, ...]] = []
        self._busy = False

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: list[Header] | None = None,
        partition: int = -1,
        on_delivery: Delivered | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        self._busy = True
        self._waiting.append((topic, value, key, headers, partition, on_delivery, timestamp_ms))

    def poll(self, timeout_s: float) -> int:
        busy, self._busy = self._busy, False
        return self._pass_on(IN_FLIGHT if busy else 0)

    def flush(self, timeout_s: float) -> int:
        self._pass_on(0)
        return 0

    def _pass_on(self, keep: int) -> int:
        while len(self._waiting) > keep:
            self._producer.send(*self._waiting.pop(0))
        return self._producer.poll(0)

    def close(self) -> None:
        self.flush(0)


class Cluster(MemoryFabric):
    """A log whose producers acknowledge late."""

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> Any:
        return Slowly(super().producer(latency_first=latency_first, single_flight=single_flight))


def story(folder: Path) -> tuple[Verdict, Verdict]:
    """200 records, a retry among them, a crash after some turns, and another process to the end. Edge and letters."""
    plan = make_plan(folder, PIPELINE)
    clock = HandClock()
    fabric = Cluster(clock)
    deploy(fabric, plan)
    shop = Workshop(folder, REGISTRY, fabric)
    produce(fabric, plan)
    first = StageLoop(partial(shop.build, plan, plan.stages[0]), fabric, clock)
    opened = ExitStack()
    first.open(opened)
    for _ in range(8):
        turn(first, clock)
    first.turn(0)  # and no commit after
    fabric.leave(first._consumer, plan.stages[0].group)  # type: ignore[arg-type]  # the memory fabric's own
    with ExitStack() as stack:
        second = StageLoop(partial(shop.build, plan, plan.stages[0]), fabric, clock)
        second.open(stack)
        for _ in range(60):
            turn(second, clock)
    opened.pop_all()  # a dead process closes nothing
    inputs, outputs = read(fabric, "records"), read(fabric, "p.a")
    return judge(inputs, outputs, passed), judge(inputs, read(fabric, "dataflow.dead-letters"), failed)


def turn(loop: StageLoop, clock: HandClock) -> None:
    loop.turn(0)
    loop.commit_now()
    clock.advance(1)


def produce(fabric: MemoryFabric, plan: Plan) -> None:
    actions = ["retry" if n == 31 else "fail" if n % 50 == 7 else "pass" for n in range(200)]
    records = [{"n": n, "do": do} for n, do in enumerate(actions)]
    values = codec_for("avro", RECORD).encode(Batch.of(RECORD, records).columns, 200).values
    producer = MemoryProducer(fabric)
    for n, value in enumerate(values):
        producer.send("records", value, b"k%d" % (n % 3))
    producer.close()


def passed(value: dict[str, Any]) -> dict[str, Any] | None:
    return None if value["do"] == "fail" else value


def failed(value: dict[str, Any]) -> dict[str, Any] | None:
    return value if value["do"] == "fail" else None


def read(fabric: MemoryFabric, topic: str) -> list[Record]:
    codec = codec_for("avro", RECORD)
    found = []
    for message in fabric.stored[topic].partitions[0].records:
        value = Batch(RECORD, codec.decode([message.value()]).columns, [None]).to_dicts()[0]  # type: ignore[list-item]  # rows do not matter
        record_id = dict(message.headers() or ()).get(headers.ID, b"")
        found.append(Record(topic, 0, message.offset(), message.key(), record_id.decode(), value))
    return found


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BATCH_RECORDS", 20)
    monkeypatch.setattr(limits, "COMMIT_INTERVAL_MS", 10**12)


def test_our_engine_is_acquitted(tmp_path: Path) -> None:
    edge, letters = story(tmp_path)
    assert edge.sound, edge
    assert letters.sound, letters
    assert edge.doubled > 0, "the crash left nothing to run again: the story proves nothing"


Mutation = Callable[[pytest.MonkeyPatch], None]


def commits_before_acknowledged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Barrier, "open", property(lambda _: False))
    patch.setattr(Barrier, "through", property(lambda _: True))


def commits_when_taken(patch: pytest.MonkeyPatch) -> None:
    """As auto-commit does."""

    def begin(self: OffsetTracker, ends: dict[Any, int]) -> Ticket:
        self._ready.update(ends)
        return Ticket(ends)

    patch.setattr(OffsetTracker, "begin", begin)
    patch.setattr(OffsetTracker, "finish", lambda *_: None)


def passes_over_unfinished_work(patch: pytest.MonkeyPatch) -> None:
    """The newest finished offset, whatever is open before it: Faust's hole."""

    def finish(self: OffsetTracker, ticket: Ticket) -> None:
        self._ready.update(ticket.ends)

    def collect(self: Task) -> None:
        for hand in [h for h in self._unacknowledged if not h.barrier.open or h is self._unacknowledged[-1]]:
            self._unacknowledged.remove(hand)
            self.offsets.finish(hand.ticket)

    patch.setattr(OffsetTracker, "finish", finish)
    patch.setattr(Task, "collect", collect)


def drops_a_batch(patch: pytest.MonkeyPatch) -> None:
    take = Task.take
    calls = iter(range(1_000_000))

    def forgetful(self: Task, position: Any, messages: Sequence[Any]) -> None:
        if next(calls) != 2:
            take(self, position, messages)

    patch.setattr(Task, "take", forgetful)


def loses_failed_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("dataflow.runtime.task.send_dead_letter", lambda *_: None)


def works_out_of_order(patch: pytest.MonkeyPatch) -> None:
    def newest_first(self: Task, position: Any, messages: Sequence[Any]) -> None:
        self._backlog.append((position, messages[::-1]))

    patch.setattr(Task, "take", newest_first)


def makes_new_ids_each_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ids, "of_positions", lambda seed, times, offsets: [ids.mint(1) for _ in offsets])


@pytest.mark.parametrize(
    ("mutation", "charge"),
    [
        (commits_before_acknowledged, "lost"),
        (commits_when_taken, "lost"),
        (passes_over_unfinished_work, "lost"),
        (drops_a_batch, "lost"),
        (loses_failed_rows, "lost"),
        (works_out_of_order, "disordered"),
        (makes_new_ids_each_time, "other_ids"),
    ],
)
def test_a_broken_engine_is_condemned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: Mutation, charge: str
) -> None:
    mutation(monkeypatch)
    edge, letters = story(tmp_path)
    assert getattr(edge, charge) or getattr(letters, charge), (edge, letters)


def record(n: int, offset: int, *, key: bytes = b"k", record_id: str = "", partition: int = 0) -> Record:
    return Record("t", partition, offset, key, record_id or f"id{n}", {"n": n})


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ([record(0, 0), record(1, 1), record(2, 2)], {}),
        ([record(0, 0), record(1, 1), record(0, 2), record(2, 3)], {"doubled": 1}),
        ([record(0, 0), record(2, 1)], {"lost": [1]}),
        ([record(0, 0), record(2, 1), record(1, 2)], {"disordered": [(b"k", 1)]}),
        ([record(0, 0), record(1, 1), record(2, 2), record(7, 3)], {"invented": [7]}),
        ([record(0, 0), record(1, 1), record(2, 0, partition=1)], {"strayed": [b"k"]}),
        ([record(0, 0), record(1, 1, record_id="id0"), record(2, 2)], {"other_ids": [1]}),
        (
            [record(0, 0), record(1, 1), record(2, 2), record(2, 3, record_id="x")],
            {"doubled": 1, "other_ids": [2]},
        ),
    ],
)
def test_the_judge_names_each_fault(outputs: list[Record], fault: dict[str, Any]) -> None:
    assert judge([record(n, n) for n in range(3)], outputs, dict) == Verdict(**fault)
