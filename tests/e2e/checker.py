"""The judge: reads topics as a stranger would and says what was lost, doubled, changed or put out of order.

It shares nothing with the engine but the wire: a stock client, fastavro, and the schemas in topic ``dataflow.schemas``.
Inputs carry a number ``n`` that is unique and grows with the log per key; outputs carry the ``n`` they come from.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import confluent_kafka as ck
import fastavro

EDGE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Record:
    """One record of a topic, decoded; `id` is its header df-id."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    id: str
    value: dict[str, Any]


@dataclass
class Verdict:
    """What is wrong. `doubled` is how many records came again: what at-least-once may do, with the same id."""

    lost: list[int] = field(default_factory=list)
    invented: list[int] = field(default_factory=list)
    doubled: int = 0
    other_ids: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    disordered: list[tuple[bytes | None, int]] = field(default_factory=list)
    strayed: list[bytes | None] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing lost, invented, changed or out of order; duplicates only of the same id."""
        return not any(
            (self.lost, self.invented, self.other_ids, self.changed, self.disordered, self.strayed)
        )


def judge(
    inputs: Iterable[Record],
    outputs: Sequence[Record],
    expected: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> Verdict:
    """Hold one edge against the input. `expected` gives the record that an input's must become, None for none.

    Order per key is that of first occurrences: a duplicate may come later, an original may not.
    """
    wanted = {r.value["n"]: made for r in inputs if (made := expected(r.value)) is not None}
    verdict = Verdict()
    first: dict[int, Record] = {}
    newest: dict[bytes | None, int] = {}
    places: dict[bytes | None, int] = {}
    for record in sorted(outputs, key=lambda r: (r.partition, r.offset)):
        n = record.value["n"]
        if n not in wanted:
            verdict.invented.append(n)
            continue
        if record.value != wanted[n]:
            verdict.changed.append(n)
        if places.setdefault(record.key, record.partition) != record.partition:
            verdict.strayed.append(record.key)
        if n in first:
            verdict.doubled += 1
            if record.id != first[n].id:
                verdict.other_ids.append(n)
            continue
        first[n] = record
        if n < newest.get(record.key, -1):
            verdict.disordered.append((record.key, n))
        newest[record.key] = n
    verdict.lost = sorted(wanted.keys() - first.keys())
    ids: dict[str, int] = {}
    verdict.other_ids += [n for n, r in first.items() if ids.setdefault(r.id, n) != n]
    return verdict


def raw_messages(bootstrap: str, topics: Sequence[str]) -> list[ck.Message]:
    """All committed records of some topics, to the ends they have now."""
    consumer = ck.Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"checker-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    try:
        listed = consumer.list_topics(timeout=EDGE_TIMEOUT_S).topics
        places = [ck.TopicPartition(t, n, ck.OFFSET_BEGINNING) for t in topics for n in listed[t].partitions]
        ends = {
            (p.topic, p.partition): consumer.get_watermark_offsets(p, timeout=EDGE_TIMEOUT_S) for p in places
        }
        behind = {place for place, (low, high) in ends.items() if high > low}
        consumer.assign([p for p in places if (p.topic, p.partition) in behind])
        found: list[ck.Message] = []
        deadline = time.monotonic() + EDGE_TIMEOUT_S
        while behind:
            batch = consumer.consume(10_000, 0.1)
            assert batch or time.monotonic() < deadline, (
                f"nothing more to read, and {behind} are not at their ends"
            )
            for message in batch:
                assert message.error() is None, message.error()
                found.append(message)
            at = {(p.topic, p.partition): p.offset for p in consumer.position(consumer.assignment())}
            behind = {p for p in behind if at[p] < ends[p][1]}
        return found
    finally:
        consumer.close()


def published_schemas(bootstrap: str) -> dict[bytes, Any]:
    """Avro schemas by fingerprint, as any client finds them."""
    found: dict[bytes, Any] = {}
    for message in raw_messages(bootstrap, ["dataflow.schemas"]):
        document = json.loads(message.value())
        if "avro" in document:
            found[message.key()] = fastavro.parse_schema(document["avro"])
    return found


def read_records(bootstrap: str, topics: Sequence[str]) -> dict[str, list[Record]]:
    """Every record of some Avro topics, by topic."""
    schemas = published_schemas(bootstrap)
    found: dict[str, list[Record]] = {t: [] for t in topics}
    for message in raw_messages(bootstrap, topics):
        head = dict(message.headers() or ())
        schema = schemas[head["df-schema"]]
        value: Any = fastavro.schemaless_reader(io.BytesIO(message.value()), schema, None)
        found[message.topic()].append(
            Record(
                message.topic(), message.partition(), message.offset(), message.key(),
                head.get("df-id", b"").decode(), value,
            )
        )  # fmt: skip
    return found
