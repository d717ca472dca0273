"""What tests of the runtime share: plans from YAML, a node that does what its rows say, a producer moved by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataflow.codecs import codec_for
from dataflow.control.deploy import deploy
from dataflow.core import headers
from dataflow.core.schema import Schema
from dataflow.planner.build import build_plan
from dataflow.planner.plan import Plan
from dataflow.planner.resolve import resolve
from dataflow.registry import Registry
from dataflow.runtime.parts import StageParts
from dataflow.runtime.workshop import Workshop
from dataflow.sdk import Batch, ContractContext, NodeContext, Out, Settings, node
from dataflow.spec import load_project
from dataflow.transport.api import Delivered, Header
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryMessage

RECORD = Schema.of(n="int64", do="string")


class Script(Settings):
    """`do` in a record says what becomes of it: in every node of this kind, or ``node:what,other:what``."""


@node("test.script", settings=Script, outputs=("out", "side"))
class Scripted:
    """pass | drop | fail | consume | both | side | children | raise | forget | retry (twice, then pass) | never."""

    def __init__(self, settings: Script, context: NodeContext) -> None:
        self._name = context.node
        self._tries: Counter[str] = Counter()

    @staticmethod
    def contract(settings: Script, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.input, "side": context.input}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        todo: dict[str, list[int]] = {}
        for index, (record_id, text) in enumerate(zip(batch.ids, batch["do"].tolist(), strict=True)):
            told = {where: what for where, _, what in (part.rpartition(":") for part in text.split(","))}
            what = told.get(self._name, told.get("", "pass"))
            if what == "retry":
                self._tries[record_id] += 1
                what = "pass" if self._tries[record_id] > 2 else "never"
            todo.setdefault(what, []).append(index)
        emitted = sorted(todo.pop("pass", []) + todo.get("both", []))
        if emitted:
            out.emit(batch.take(emitted), rows=emitted)
        side = sorted(todo.pop("side", []) + todo.pop("both", []))
        if side:
            out.emit(batch.take(side), rows=side, port="side")
        children = [i for i in todo.pop("children", []) for _ in range(2)]
        if children:
            out.emit(batch.take(children), rows=children, children=True)
        out.drop(todo.pop("drop", []), "not wanted")
        out.fail(todo.pop("fail", []), "cannot be", error="Impossible")
        out.fail(todo.pop("never", []), "not now", error="Busy", retryable=True)
        out.consume(todo.pop("consume", []))
        todo.pop("forget", None)
        if todo:
            raise ValueError(f"asked to {sorted(todo)}")


@node("test.add")
def add_one(batch: Batch, out: Out, settings: Settings) -> None:
    """n + 1, one to one."""
    del settings
    out.emit({"n": batch["n"] + np.int64(1), "do": batch["do"]})


@node("test.pass")
def pass_on(batch: Batch, out: Out, settings: Settings) -> None:
    """The batch as it is."""
    del settings
    out.emit(batch)


REGISTRY = Registry.of(Scripted, add_one, pass_on)

TOPIC = "kind: Topic\nname: {name}\nkey: n\npartitions: {partitions}\nfields: {{n: int64, do: string}}\n"


def make_plan(
    folder: Path,
    pipeline: str,
    *,
    partitions: int = 1,
    registry: Registry = REGISTRY,
    topic: str = TOPIC,
    others: str = "",
    name: str = "records",
) -> Plan:
    """The plan of a pipeline (YAML without kind and name) over one topic of `RECORD`s called `name`."""
    place = folder / "pipelines" / "p"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "dataflow.yaml").write_text("kind: Project\nname: test\n")
    (place / "topic.yaml").write_text(topic.format(name=name, partitions=partitions))
    (place / "others.yaml").write_text(others or "kind: Topic\nname: unused\nfields: {a: string}\n")
    (place / "pipeline.yaml").write_text(f"kind: Pipeline\nname: p\n{pipeline}")
    project = load_project(folder, environ={})
    resolved = resolve(project, "p", registry)
    assert not resolved.problems, resolved.problems
    return build_plan(project, resolved, {}, "code")


@dataclass(frozen=True)
class Sent:
    """A record handed to the producer. `seen` is a header by name."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: dict[str, bytes]
    partition: int
    on_delivery: Delivered | None

    @property
    def id(self) -> bytes:
        return self.headers[headers.ID]


@dataclass
class HandProducer:
    """Keeps what is sent; the test says when, in which order and how it is acknowledged."""

    sent: list[Sent] = field(default_factory=list)
    waiting: list[Sent] = field(default_factory=list)

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
        named = {n: v.encode() if isinstance(v, str) else v or b"" for n, v in headers or ()}
        record = Sent(topic, value, key, named, partition, on_delivery)
        self.sent.append(record)
        if on_delivery is not None:
            self.waiting.append(record)

    def acknowledge(self, index: int = 0, error: object | None = None) -> None:
        record = self.waiting.pop(index)
        assert record.on_delivery is not None
        record.on_delivery(error, record)

    def acknowledge_all(self) -> None:
        while self.waiting:
            self.acknowledge()

    def to(self, topic: str) -> list[Sent]:
        return [r for r in self.sent if r.topic == topic]

    def poll(self, timeout_s: float) -> int:
        return 0

    def flush(self, timeout_s: float) -> int:
        return len(self.waiting)

    def close(self) -> None: ...


def built(
    folder: Path, plan: Plan, stage: int = 0, registry: Registry = REGISTRY
) -> tuple[Workshop, StageParts]:
    """A deployed plan's stage over a log in memory."""
    fabric = MemoryFabric()
    deploy(fabric, plan)
    shop = Workshop(folder, registry, fabric)
    return shop, shop.build(plan, plan.stages[stage])


def encoded(records: Sequence[tuple[int, str]], schema: Schema = RECORD, codec: str = "avro") -> list[bytes]:
    """Wire bytes of records."""
    batch = Batch.of(schema, [{"n": n, "do": do} for n, do in records])
    values = codec_for(codec, schema).encode(batch.columns, len(batch)).values
    return [v for v in values if v is not None]


def message(
    offset: int,
    value: bytes | None,
    head: Sequence[tuple[str, Any]] = (),
    *,
    topic: str = "records",
    key: bytes | None = b"k",
    partition: int = 0,
) -> MemoryMessage:
    return MemoryMessage(topic, partition, offset, key, value, list(head) or None, 1_700_000_000_000)


def fetched(
    actions: Sequence[str],
    start: int = 0,
    head: Callable[[int], Sequence[tuple[str, Any]]] = lambda _: (),
    *,
    topic: str = "records",
) -> list[MemoryMessage]:
    """Messages whose rows do `actions`, with n = offset and key k<n mod 3>."""
    values = encoded([(start + i, do) for i, do in enumerate(actions)])
    return [
        message(start + i, v, head(start + i), key=f"k{(start + i) % 3}".encode(), topic=topic)
        for i, v in enumerate(values)
    ]
