"""Fetched records become one batch: identity from headers, columns from the codec, failures row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataflow.codecs import Codec
from dataflow.core import headers, ids
from dataflow.core.batch import Batch, Encoded, Row, concatenate
from dataflow.core.schema import Schema
from dataflow.core.shares import parted
from dataflow.runtime.execution import Ended
from dataflow.transport.api import Message

# What a record's headers name that is kept in the Row itself or written anew.
_OURS = headers.PER_HOP | {headers.REPLY_TO, headers.DEADLINE, headers.ATTEMPT}

WriterSchemas = Callable[
    [bytes], Schema | None
]  # fingerprint (value of df-schema) -> the schema it was written with


@dataclass(frozen=True)
class Intake:
    """Reads one edge. `writer_codec` finds the codec for records of another schema version.

    `share` is (which, of how many): several stages read the edge for an answer, each with a share of the callers. With
    `tombstones` a record without a value is a row, `Batch.deleted`; else it fails, as it has no contract.
    """

    edge: str
    codec: Codec
    writer_codec: Callable[[bytes], Codec | None]
    share: tuple[int, int] = (0, 1)
    tombstones: bool = False

    def read(
        self, messages: Sequence[Message], seed: int, now_ms: int, *, honour_deadlines: bool
    ) -> tuple[Batch, list[Ended]]:
        """Messages of one partition, in order -> a batch of the good rows, and the rows that ended here.

        `Row.source` is the index in `messages`. `seed` is `ids.seed_of` of the partition. Only a record that somebody
        waits for expires: there is nobody to tell of another, and it would be lost in silence.
        """
        rows, fingerprints = _rows(messages, seed)
        which, readers = self.share
        if readers > 1:
            for row in rows:
                row.reply = parted(row.reply, readers)[which] if row.reply else b""
        ended: list[Ended] = []
        alive: Sequence[int] = range(len(rows))
        if honour_deadlines and any(r.deadline_ms for r in rows):
            alive = [i for i, r in enumerate(rows) if not (r.reply and 0 < r.deadline_ms <= now_ms)]
            late = set(range(len(rows))) - set(alive)
            ended += [Ended(rows[i], headers.STATUS_EXPIRED, "") for i in sorted(late)]
        values = [m.value() for m in messages]
        if self.tombstones and None in values:
            gone = [rows[i] for i in alive if values[i] is None]
            alive = [i for i in alive if values[i] is not None]
            batch = self._read(alive, fingerprints, rows, values, ended)
            return with_deleted(batch, gone), ended
        return self._read(alive, fingerprints, rows, values, ended), ended

    def _read(
        self,
        alive: Sequence[int],
        fingerprints: Sequence[bytes],
        rows: Sequence[Row],
        values: Sequence[bytes | None],
        ended: list[Ended],
    ) -> Batch:
        kinds = dict.fromkeys(fingerprints)
        if len(kinds) <= 1:
            return self._decode(alive, next(iter(kinds), b""), rows, values, ended)
        batches = [
            self._decode([i for i in alive if fingerprints[i] == kind], kind, rows, values, ended)
            for kind in kinds
        ]
        return _in_log_order(concatenate(self.codec.schema, batches))

    def _decode(
        self,
        indices: Sequence[int],
        fingerprint: bytes,
        rows: Sequence[Row],
        values: Sequence[bytes | None],
        ended: list[Ended],
    ) -> Batch:
        codec: Codec | None = self.codec
        own = fingerprint in (b"", self.codec.fingerprint)
        if not own:
            codec = self.writer_codec(fingerprint)
        chosen = values if len(indices) == len(values) else [values[i] for i in indices]
        if codec is None:
            reason = (
                f"unknown schema {fingerprint.decode(errors='replace')}: it is not in the topic of schemas"
            )
            ended += [Ended(rows[i], reason, "", "UnknownSchema") for i in indices]
            return Batch(self.codec.schema, self.codec.decode([]).columns, [])
        decoded = codec.decode(chosen)
        ended += [Ended(rows[indices[i]], str(e), "", type(e).__name__) for i, e in decoded.failed]
        if not decoded.failed and len(indices) == len(rows):
            return Batch(
                self.codec.schema,
                decoded.columns,
                rows,
                Encoded(self.codec.fingerprint, values) if own else None,
            )
        good = [indices[i] for i in decoded.good.tolist()]
        encoded = Encoded(self.codec.fingerprint, [values[i] for i in good]) if own else None
        return Batch(self.codec.schema, decoded.columns, [rows[i] for i in good], encoded)


def _in_log_order(batch: Batch) -> Batch:
    return batch.take(np.argsort([row.source for row in batch.rows], kind="stable"))


def with_deleted(batch: Batch, gone: Sequence[Row]) -> Batch:
    """The batch with these rows, of records without a value, at their places in the log."""
    count = len(batch)
    columns = {
        name: np.concatenate([column, np.empty((len(gone), *column.shape[1:]), column.dtype)])
        for name, column in batch.columns.items()
    }
    deleted = frozenset(range(count, count + len(gone)))
    return _in_log_order(Batch(batch.schema, columns, [*batch.rows, *gone], deleted=deleted))


def _rows(messages: Sequence[Message], seed: int) -> tuple[list[Row], list[bytes]]:
    """Identity of each record, and the fingerprint of its schema (b"" where it names none)."""
    made = [_row_of(message.headers() or (), message.key(), index) for index, message in enumerate(messages)]
    rows = [row for row, _ in made]
    named = [row for row in rows if row.id]
    nameless = rows
    if named:
        # Strangers may write any bytes there; what is no id counts as absent.
        for i in ids.malformed([row.id for row in named]):
            named[i].id = b""
        nameless = [row for row in rows if not row.id]
    if nameless:
        chosen = messages if len(nameless) == len(messages) else [messages[row.source] for row in nameless]
        times = [message.timestamp()[1] for message in chosen]
        found = ids.of_positions(seed, times, [message.offset() for message in chosen])
        for row, record_id in zip(nameless, found, strict=True):
            row.id = record_id
    return rows, [fingerprint for _, fingerprint in made]


def _row_of(found: Sequence[tuple[str, bytes | None]], key: bytes | None, index: int) -> tuple[Row, bytes]:
    record_id = fingerprint = reply = b""
    deadline_ms = attempt = 0
    parents: tuple[bytes, ...] = ()
    carry: list[tuple[str, bytes | None]] = []
    for header in found:
        name, value = header
        if name not in _OURS:
            carry.append(header)
        elif value is None:  # Kafka allows it, and none of ours is so
            continue
        elif name == headers.ID:
            record_id = value
        elif name == headers.SCHEMA:
            fingerprint = value
        elif name == headers.REPLY_TO:
            reply = value
        elif name == headers.DEADLINE:
            deadline_ms = _integer(value)
        elif name == headers.ATTEMPT:
            attempt = _integer(value)
        elif name == headers.PARENTS:
            parents = tuple(value.split(b","))
    return Row(record_id, key, index, carry, reply, deadline_ms, attempt, parents), fingerprint


def _integer(value: bytes) -> int:
    """A decimal header; what is none counts as absent: strangers may write any bytes there."""
    return int(value) if value.isdigit() and len(value) <= 15 else 0
