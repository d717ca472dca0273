"""Topics as a stranger reads them: a stock client, fastavro, and the schemas in topic ``dataflow.schemas``."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import confluent_kafka as ck
import fastavro

TIMEOUT_S: Final = 60.0
# An admin client asks the leader that it knew until it looks again: five minutes, unless told otherwise.
QUIET: Final = {"log_level": 0, "topic.metadata.refresh.interval.ms": 1_000}


def consumer(bootstrap: str, *, committed: bool = True, group: str = "") -> ck.Consumer:
    """A client that is assigned partitions, and commits nothing."""
    return ck.Consumer(
        {
            **QUIET,
            "bootstrap.servers": bootstrap,
            "group.id": group or f"judge-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "fetch.message.max.bytes": 4 << 20,
            "queued.max.messages.kbytes": 32_768,
        }
    )


def read_all(
    bootstrap: str,
    topics: Sequence[str],
    take: Callable[[Sequence[ck.Message]], None],
    *,
    committed: bool = True,
) -> None:
    """Give every record of `topics`, up to the ends they have now, to `take`. Raises RuntimeError if none come."""
    client = consumer(bootstrap, committed=committed)
    try:
        places = [ck.TopicPartition(*place, ck.OFFSET_BEGINNING) for place in partitions(client, topics)]
        ends = {(p.topic, p.partition): end_of(client, (p.topic, p.partition)) for p in places}
        behind = {place for place, end in ends.items() if end > 0}
        client.assign([p for p in places if (p.topic, p.partition) in behind])
        last = time.monotonic()
        while behind:
            batch = client.consume(5_000, 0.2)
            found = [m for m in batch if m.error() is None]
            take(found)
            at = {(p.topic, p.partition): p.offset for p in client.position(client.assignment())}
            before = len(behind)
            behind = {p for p in behind if at[p] < ends[p]}
            if found or len(behind) < before:
                last = time.monotonic()
            elif time.monotonic() - last > TIMEOUT_S:
                stuck = {p: (at[p], ends[p]) for p in behind}
                raise RuntimeError(f"nothing more to read, and these are not at their ends: {stuck}")
    finally:
        client.close()


def end_of(client: ck.Consumer, place: tuple[str, int]) -> int:
    """The end of a partition for this client, 0 if it is empty; asked again while the cluster settles. Raises KafkaException."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            low, high = client.get_watermark_offsets(ck.TopicPartition(*place), timeout=10)
            return int(high) if high > low else 0
        except ck.KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def partitions(client: ck.Consumer, topics: Sequence[str]) -> list[tuple[str, int]]:
    listed = client.list_topics(timeout=TIMEOUT_S).topics
    return [(t, n) for t in topics if t in listed for n in sorted(listed[t].partitions)]


class Schemas:
    """Writers' schemas by fingerprint, as any client finds them; read again when one is not known."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._known: dict[bytes, Any] = {}

    def decode(self, message: ck.Message) -> dict[str, Any]:
        """The value of an Avro record. Raises KeyError for a schema that nobody published."""
        fingerprint = header(message, "df-schema")
        if fingerprint not in self._known:
            self.read()
        value: Any = fastavro.schemaless_reader(io.BytesIO(message.value()), self._known[fingerprint], None)
        return dict(value)

    def read(self) -> None:
        def take(messages: Sequence[ck.Message]) -> None:
            for message in messages:
                document = json.loads(message.value())
                if "avro" in document:
                    self._known[message.key()] = fastavro.parse_schema(document["avro"])

        read_all(self._bootstrap, ["dataflow.schemas"], take)

    def like(self, names: set[str]) -> tuple[bytes, Any]:
        """The published schema with exactly these fields, and its fingerprint."""
        self.read()
        for fingerprint, schema in self._known.items():
            if {f["name"] for f in schema["fields"]} == names:
                return fingerprint, schema
        raise KeyError(f"no schema with the fields {sorted(names)}")


def header(message: ck.Message, name: str) -> bytes:
    """The value of a header, b"" where there is none."""
    for known, value in message.headers() or ():
        if known == name:
            return value if value is not None else b""
    return b""
