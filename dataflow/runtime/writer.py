"""Batches become records: edges, published copies and dead letters, each counted by the batch's barrier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dataflow.codecs import Codec
from dataflow.codecs.events import Events
from dataflow.codecs.keys import encode_keys
from dataflow.codecs.values import conform
from dataflow.core import headers
from dataflow.core.batch import Batch, Encoded, Row
from dataflow.core.errors import CodecError, RecordTooLargeError, shortened
from dataflow.core.homes import home_of, with_home
from dataflow.core.schema import Schema
from dataflow.observe.metrics import EdgeMetrics
from dataflow.planner.plan import DEAD_LETTERS
from dataflow.runtime.execution import Ended
from dataflow.transport.api import Header, Message, Producer


class Barrier:
    """The acknowledgements one batch waits for. `error` is the first refusal."""

    __slots__ = ("error", "left")

    def __init__(self) -> None:
        self.left = 0
        self.error: str = ""

    def acknowledged(self, error: object | None, message: object) -> None:
        """Delivery callback of every record of the batch."""
        del message
        self.left -= 1
        if error is not None:
            self.error = self.error or str(error)

    @property
    def open(self) -> bool:
        return self.left > 0

    @property
    def through(self) -> bool:
        """All is acknowledged."""
        return self.left <= 0 and not self.error


@dataclass(frozen=True)
class Target:
    """A topic an edge is written to, under one codec. `key` fields make the key, () keeps the record's own.

    A record whose key is made here is placed by it, not on the task's own partition: it may belong to another task.
    `max_bytes` bounds the value, `room_bytes` value, key and the headers that travel on: what the topic really takes.
    `contract` is a stranger's (a published copy): columns are fitted to it, records are placed by key instead of on the
    task's own partition, and nothing of a request goes along. Records that left their partition by an edge of `home` are
    written back to it; `leaves` is the name of this one among them, which is noted on its records. `events`: the records are.
    """

    topic: str
    codec: Codec
    partitions: int
    max_bytes: int
    room_bytes: int
    constant: tuple[Header, ...]
    key: tuple[str, ...] = ()
    key_encoding: str = ""
    contract: Schema | None = None
    home: tuple[str, ...] = ()
    leaves: str = ""
    events: Events | None = None


class EdgeWriter:
    """Writes one edge to its topic and to where it is published. `requests`: reply-to and deadline go along."""

    def __init__(
        self,
        name: str,
        node: str,
        codec: Codec,
        targets: Sequence[Target],
        metrics: EdgeMetrics,
        *,
        requests: bool,
    ) -> None:
        self.name = name
        self.codec = codec
        self._node = node
        self._targets = targets
        self._metrics = metrics
        self._requests = requests

    def seal(self, batch: Batch) -> tuple[Batch, list[Ended]]:
        """The batch with its wire bytes; rows that do not encode, or are too large for the edge's topic, end here."""
        encoded, ended = self._encoded(batch)
        own = next((t for t in self._targets if t.contract is None), None)
        if own is None or encoded.encoded is None or _all_fit(encoded.rows, encoded.encoded.values, own):
            return encoded, ended
        large = [
            (i, row, value)
            for i, (row, value) in enumerate(zip(encoded.rows, encoded.encoded.values, strict=True))
            if not _fits(row, value, own)
        ]
        if not large:
            return encoded, ended
        ended += [self._too_large(row, value, own) for _, row, value in large]
        gone = {i for i, _, _ in large}
        return encoded.take([i for i in range(len(encoded)) if i not in gone]), ended

    def _encoded(self, batch: Batch) -> tuple[Batch, list[Ended]]:
        encoded = batch.encoded
        if encoded is not None and encoded.fingerprint == self.codec.fingerprint:
            return batch, []
        made = self.codec.encode(batch.columns, len(batch))
        batch.encoded = Encoded(self.codec.fingerprint, made.values)
        if not made.failed:
            return batch, []
        ended = [Ended(batch.rows[i], str(e), self._node, type(e).__name__) for i, e in made.failed]
        lost = {i for i, _ in made.failed}
        return batch.take([i for i in range(len(batch)) if i not in lost]), ended

    def write(self, batch: Batch, partition: int, producer: Producer, barrier: Barrier) -> list[Ended]:
        """Send every row (sealed before) to every target; rows that a published copy cannot hold end as failed."""
        ended: list[Ended] = []
        for target in self._targets:
            ended += self._send(target, batch, partition, producer, barrier)
        if self._targets:
            self._metrics.records += len(batch)
        return ended

    def _send(
        self, target: Target, batch: Batch, partition: int, producer: Producer, barrier: Barrier
    ) -> list[Ended]:
        ended: list[Ended] = []
        if target.contract is not None:
            batch = _fitted(batch, target, self._node, ended)
        encoded = batch.encoded
        assert encoded is not None, "a batch is sealed before it is written"
        values = encoded.values
        keys = [row.key for row in batch.rows]
        if target.key:
            keys = encode_keys(batch.schema, target.key, batch.columns, len(batch), target.key_encoding)
        foreign = target.contract is not None
        where = -1 if foreign or target.key else partition % target.partitions
        requests = self._requests and not foreign
        size = 0
        topic, limit, constant = target.topic, target.max_bytes, target.constant
        acknowledged, send = barrier.acknowledged, producer.send
        events = target.events
        if events is not None:
            values = [events.wrapped(v, row.id) for v, row in zip(values, batch.rows, strict=True)]
        for row, key, value in zip(batch.rows, keys, values, strict=True):
            length = len(value) if value is not None else 0
            if length > limit:
                ended.append(self._too_large(row, value, target))
                continue
            carry = with_home(row.carry, target.leaves, partition) if target.leaves else row.carry
            head: list[Header] = [
                (headers.ID, row.id),
                *constant,
                *(carry if events is None else events.beside(row)),
            ]
            if row.parents:
                head.append((headers.PARENTS, b",".join(row.parents)))
            if row.attempt:
                head.append((headers.ATTEMPT, str(row.attempt)))
            if requests and row.reply:
                head += [(headers.REPLY_TO, row.reply), (headers.DEADLINE, str(row.deadline_ms))]
            # Counted before the call: a full queue serves callbacks from within it.
            barrier.left += 1
            try:
                at = home_of(row.carry, target.home) if target.home else None
                send(topic, value, key, head, where if at is None else at % target.partitions, acknowledged)
            except RecordTooLargeError:
                barrier.left -= 1
                ended.append(self._too_large(row, value, target))
                continue
            size += len(value) if value is not None else 0
        self._metrics.bytes += size
        return ended

    def _too_large(self, row: Row, value: bytes | None, target: Target) -> Ended:
        length = len(value or b"")
        reason = f"a record of {length} bytes for topic '{target.topic}' (limit {target.max_bytes})"
        if length <= target.max_bytes:
            rest = _weight(row, value) - length
            reason = (
                f"a record of {length} bytes, and {rest} of key and headers, for topic '{target.topic}' "
                f"(it takes {target.room_bytes} in all)"
            )
        return Ended(row, reason, self._node, RecordTooLargeError.__name__)


def _weight(row: Row, value: bytes | None) -> int:
    """Bytes of value, key and the headers that travel on."""
    weight = len(value or b"") + len(row.key or b"")
    if row.carry:
        weight += sum(len(name) + len(v or b"") for name, v in row.carry)
    return weight


def _all_fit(rows: Sequence[Row], values: Sequence[bytes | None], target: Target) -> bool:
    """Whether even a record of the longest value, the longest key and the most headers would fit: the usual case."""
    value = max([len(v) for v in values if v is not None], default=0)
    key = max([len(row.key) for row in rows if row.key is not None], default=0)
    carried = max([_weight(row, None) for row in rows if row.carry], default=0)
    return value <= target.max_bytes and value + key + carried <= target.room_bytes


def _fits(row: Row, value: bytes | None, target: Target) -> bool:
    return len(value or b"") <= target.max_bytes and _weight(row, value) <= target.room_bytes


def _fitted(batch: Batch, target: Target, node: str, ended: list[Ended]) -> Batch:
    """The batch under a stranger's contract, encoded; rows that do not fit it end here."""
    assert target.contract is not None
    try:
        fitted = conform(target.contract, batch.columns, len(batch))
    except CodecError as error:
        ended += [Ended(row, str(error), node, type(error).__name__) for row in batch.rows]
        return batch.take([])
    made = target.codec.encode(fitted.columns, len(fitted.good))
    good = fitted.good.tolist()
    failed = [*fitted.failed, *((good[i], e) for i, e in made.failed)]
    ended += [Ended(batch.rows[i], str(e), node, type(e).__name__) for i, e in failed]
    lost = {i for i, _ in made.failed}
    rows = [batch.rows[r] for i, r in enumerate(good) if i not in lost]
    values = [v for i, v in enumerate(made.values) if i not in lost]
    columns = fitted.columns
    if lost:
        kept = [i for i in range(len(good)) if i not in lost]
        columns = {n: c[kept] for n, c in columns.items()}
    return Batch(target.contract, columns, rows, Encoded(target.codec.fingerprint, values))


def send_dead_letter(
    producer: Producer, origin: str, message: Message, ended: Ended, barrier: Barrier
) -> None:
    """The record as it was read, its own headers first, then the cause and where it came from."""
    pipeline = origin.partition("@")[0]
    head: list[Header] = [h for h in message.headers() or () if h[0] not in headers.ON_DEAD_LETTER]
    if not any(name == headers.ID for name, _ in head):
        head.append((headers.ID, ended.row.id))
    head += [
        (headers.ERROR, ended.error),
        (headers.ERROR_MESSAGE, shortened(ended.reason)),
        (headers.ERROR_NODE, f"{pipeline}/{ended.node}"),
        (headers.ERROR_TOPIC, message.topic()),
        (headers.ERROR_PARTITION, str(message.partition())),
        (headers.ERROR_OFFSET, str(message.offset())),
        (headers.ERROR_TIME, str(int(time.time() * 1000))),
        (headers.ERROR_VERSION, origin),
    ]
    barrier.left += 1
    producer.send(DEAD_LETTERS, message.value(), message.key(), head, -1, barrier.acknowledged)
