"""Run a whole plan in this process: real codecs, real nodes, real tasks and offsets, a log in memory, a clock by hand.

Nothing sleeps: when all stages wait for a retry, the clock moves to it. The same code runs on Kafka; only the log and
the clock differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from dataflow.codecs import codec_for
from dataflow.codecs.keys import encode_keys
from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.control.deploy import deploy
from dataflow.core import headers
from dataflow.core.errors import CodecError, NodeError, nearest
from dataflow.planner.plan import DEAD_LETTERS, EdgePlan, Plan
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.sdk import Schema
from dataflow.transport.api import EARLIEST
from dataflow.transport.memory import MemoryFabric

# A test starts at this time unless it says otherwise: 2024-01-01T00:00:00Z.
START_S: Final = 1_704_067_200.0
# More turns than any finite test takes: a pipeline that never comes to rest is a fault to be told, not to hang on.
MAX_TURNS: Final = 100_000
# ... and more moves of the clock to a timer: one that sets itself again and again has no end.
MAX_TIMERS: Final = 10_000


class HandClock:
    """A clock that moves only when told to."""

    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class DeadLetter:
    """A record that failed in a test run."""

    node: str
    error: str
    message: str
    key: bytes | None
    value: bytes | None


@dataclass
class RunResult:
    """What a run left behind: records by edge (as JSON would say them), and the dead letters."""

    edges: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)


class PipelineRun:
    """A deployed plan on a log of its own. Use as a context manager; `feed`, `settle`, `result` as often as wanted.

    `end` is for the last: no more is fed, and all that waits for time or for more records comes out.
    """

    def __init__(
        self,
        project: Path,
        plan: Plan,
        registry: Registry,
        *,
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.plan = plan
        self.clock = HandClock()
        self.fabric = MemoryFabric(self.clock)
        self.shop = Workshop(project, registry, self.fabric)
        self._tables = dict(tables or {})
        self._stack = ExitStack()
        self._loops: list[StageLoop] = []

    def __enter__(self) -> PipelineRun:
        deploy(self.fabric, self.plan)
        for name, records in self._tables.items():
            table = self.plan.tables.get(name)
            if table is None:
                raise NodeError(
                    f"pipeline '{self.plan.pipeline}' has no table '{name}'",
                    hint=nearest(name, self.plan.tables),
                )
            self._write(table.topic, table.schema, table.codec, table.key, "", records, f"table '{name}'")
        for stage in self.plan.stages:
            if not (stage.source or stage.outside):
                loop = StageLoop(partial(self.shop.build, self.plan, stage), self.fabric, self.clock)
                loop.open(self._stack)
                self._loops.append(loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def feed(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records to an input, or to the edge of a node that does not run here, being a process outside. Raises CodecError for the first that does not fit its contract."""
        edge = self.plan.edges.get(name)
        outside = {n for stage in self.plan.stages if stage.outside for n in stage.nodes}
        if edge is None or edge.node not in {"", *outside}:
            valid = [e.name for e in self.plan.edges.values() if e.node in {"", *outside}]
            raise NodeError(
                f"pipeline '{self.plan.pipeline}' has no input '{name}'", hint=nearest(name, valid)
            )
        # What a process outside keys its records by is not known here: they stay in their order.
        partition = 0 if edge.node else -1
        self._write(
            edge.topics[0],
            edge.schema,
            edge.codec,
            edge.key,
            edge.key_encoding,
            records,
            f"input '{name}'",
            partition,
        )

    def _write(
        self,
        topic: str,
        schema: Schema,
        codec_name: str,
        key: Sequence[str],
        encoding: str,
        records: Sequence[Mapping[str, Any]],
        place: str,
        partition: int = -1,
    ) -> None:
        decoded = coerce_records(schema, records)
        for row, error in decoded.failed:
            raise CodecError(f"{place}: record {row + 1}: {error}", row=row)
        codec = codec_for(codec_name, schema)
        encoded = codec.encode(decoded.columns, len(records))
        for row, error in encoded.failed:
            raise CodecError(f"{place}: record {row + 1}: {error}", row=row)
        keys = encode_keys(schema, key, decoded.columns, len(records), encoding)
        producer = self.fabric.producer()
        for record_key, value in zip(keys, encoded.values, strict=True):
            producer.send(topic, value, record_key, partition=partition)
        producer.close()

    def settle(self) -> None:
        """Turn all stages until nothing moves; retries are waited for by moving the clock."""
        for turn in itertools.count():
            if turn > MAX_TURNS:
                raise NodeError(
                    f"pipeline '{self.plan.pipeline}' does not come to rest", hint="does it feed itself?"
                )
            before = self._progress()
            for loop in self._loops:
                loop.turn(0)
                loop.commit_now()
            if self._progress() != before:
                continue
            due = [d for loop in self._loops if (d := loop.due_ms) is not None]
            if not due:
                return
            self._move_clock(min(due))

    def end(self) -> None:
        """All inputs have ended: the clock moves from timer to timer until there are none, and nodes give what they hold.

        Raises NodeError for timers without an end.
        """
        self._run_timers()
        for loop in self._loops:
            loop.end_inputs()
            self.settle()
            self._run_timers()

    def _run_timers(self) -> None:
        for moved in itertools.count():
            self.settle()
            due = [d for loop in self._loops if (d := loop.timer_ms) is not None]
            if not due:
                return
            if moved >= MAX_TIMERS:
                raise NodeError(
                    f"pipeline '{self.plan.pipeline}': there are timers left after {MAX_TIMERS}",
                    hint="does a timer set itself again each time?",
                )
            self._move_clock(min(due))

    def _move_clock(self, time_ms: int) -> None:
        # Never below: the loops read it in whole ms, and would wait for one more.
        self.clock.now_s = max(self.clock.now_s, time_ms / 1000)
        if int(self.clock.now_s * 1000) < time_ms:
            self.clock.now_s += 0.0005

    def _progress(self) -> tuple[object, ...]:
        ends = tuple(p.end for t in self.fabric.stored.values() for p in t.partitions)
        return (
            ends,
            tuple(s.records for s in self.shop.metrics.stages.values()),
            tuple((x.idle, x.tasks, x.drained.is_set()) for x in self._loops),
        )

    def result(self) -> RunResult:
        """All that is on the edges now."""
        made = RunResult()
        for edge in self.plan.edges.values():
            if edge.write:
                made.edges[edge.name], made.ids[edge.name] = self._read(edge)
        for message in self._messages([DEAD_LETTERS]):
            found = {name: value.decode(errors="replace") for name, value in message.headers() or ()}
            node = found.get(headers.ERROR_NODE, "").partition("/")[2]
            letter = DeadLetter(
                node, found[headers.ERROR], found[headers.ERROR_MESSAGE], message.key(), message.value()
            )
            made.dead_letters.append(letter)
        for (_, node), metrics in self.shop.metrics.nodes.items():
            if metrics.dropped.counts:
                made.dropped[node] = dict(metrics.dropped.counts)
        return made

    def _read(self, edge: EdgePlan) -> tuple[list[dict[str, Any]], list[str]]:
        messages = self._messages(edge.topics)
        decoded = codec_for(edge.codec, edge.schema).decode([m.value() for m in messages])
        found = [dict(m.headers() or ()).get(headers.ID, b"").decode() for m in messages]
        ids = [found[i] for i in decoded.good.tolist()]
        return to_jsonable(edge.schema, decoded.columns, len(ids)), ids

    def _messages(self, topics: Sequence[str]) -> list[Any]:
        """Records of some topics in the order of their times, then of partitions and offsets."""
        admin = self.fabric.admin()
        infos = admin.describe(topics)
        consumer = self.fabric.consumer()
        consumer.assign({(t, n): EARLIEST for t, info in infos.items() for n in range(info.partitions)})
        found: list[Any] = []
        while batch := consumer.poll(10_000, 0):
            found += batch
        return sorted(found, key=lambda m: (m.timestamp()[1], m.topic(), m.partition(), m.offset()))


def run_pipeline(
    project: Path,
    plan: Plan,
    registry: Registry,
    given: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> RunResult:
    """Feed records to the inputs of a plan, one input after the other as given, and return what is on every edge.

    `given` may also name tables of the plan: their records are there before the first input. Raises CodecError for a
    record that does not fit its contract, NodeError for an unknown input.
    """
    inputs = {n: r for n, r in given.items() if n not in plan.tables}
    loaded = {**{n: r for n, r in given.items() if n in plan.tables}, **(tables or {})}
    with PipelineRun(project, plan, registry, tables=loaded) as run:
        for name, records in inputs.items():
            run.feed(name, records)
            run.settle()
        run.end()
        return run.result()
