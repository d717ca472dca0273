"""Fetched records as those outside see them: identity, decoded value, what is private masked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dataflow.codecs import Codec, codec_for
from dataflow.codecs.keys import decode_key
from dataflow.codecs.values import to_jsonable
from dataflow.core import headers, ids
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import CodecError, ExpressionError
from dataflow.core.privacy import MASK, is_private, masked, masked_schema
from dataflow.core.schema import Column, Field, FieldType, Schema, column_of
from dataflow.core.shares import address_of
from dataflow.expressions import parse_expression
from dataflow.planner.plan import DEAD_LETTERS, EdgePlan, Plan
from dataflow.spec.topics import TopicSpec
from dataflow.transport.api import Message, Position

FindCodec = Callable[[bytes], Codec | None]


@dataclass(frozen=True)
class Stream:
    """What is read: topics under one contract. `private_key`: keys are (or derive from) a private field."""

    name: str
    topics: tuple[str, ...]
    schema: Schema
    codec: str
    key: tuple[str, ...] = ()
    key_encoding: str = ""
    private_key: bool = False

    @staticmethod
    def of_edge(plan: Plan, edge: EdgePlan) -> Stream:
        # An edge without a key of its own keeps its parent's record key.
        private = any(e.schema[n].privacy for e in plan.edges.values() for n in e.key if n in e.schema)
        key = edge.key if not edge.node else ()
        return Stream(
            f"{plan.pipeline}.{edge.name}",
            edge.topics,
            edge.schema,
            edge.codec,
            key,
            edge.key_encoding,
            private,
        )

    @staticmethod
    def of_topic(spec: TopicSpec) -> Stream:
        schema = spec.schema()
        private = any(schema[n].privacy for n in spec.key)
        return Stream(spec.name, (spec.name,), schema, spec.codec, tuple(spec.key), spec.key_bytes, private)

    @property
    def is_private(self) -> bool:
        return self.private_key or any(is_private(f) for f in self.schema)


# Bytes of many contracts, some of them with private fields perhaps.
OPAQUE: Final = Schema((Field("value", FieldType("bytes", nullable=True), privacy="unknown"),))
DEAD_LETTER_STREAM: Final = Stream(DEAD_LETTERS, (DEAD_LETTERS,), OPAQUE, "raw")


@dataclass(frozen=True, slots=True)
class TapRecord:
    """One record of a stream. `value` holds Python values, None where it does not decode: then `error` says why.

    `wire` are the value's bytes, None for a tombstone and wherever private fields are masked.
    """

    topic: str
    partition: int
    offset: int
    time_ms: int
    id: str
    key: bytes | None
    origin: str
    attempt: int
    value: dict[str, Any] | None
    headers: tuple[tuple[str, bytes], ...]
    error: str = ""
    wire: bytes | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the records that this one was made from, where its own id differs."""
        said = self.header(headers.PARENTS)
        return tuple(said.decode("ascii", "replace").split(",")) if said else ()

    def header(self, name: str) -> bytes:
        """The last header of this name; b"" if there is none."""
        return next((v for n, v in reversed(self.headers) if n == name), b"")


class RecordReader:
    """Makes `TapRecord`s of messages; those that do not pass the filters are left out. One thread at a time.

    where        only records for which this expression over the contract is true; "" for all
    record_id    only records that are, derive from or answer this id (a record's or a caller's own); "" for all
    seeds        of the ids of records that carry none, by position
    Raises ExpressionError for a bad filter, and for one on private fields unless `show_private`: it would tell them
    bit by bit.
    """

    def __init__(
        self,
        stream: Stream,
        find_codec: FindCodec,
        seeds: Mapping[Position, int],
        *,
        where: str = "",
        record_id: str = "",
        show_private: bool = False,
    ) -> None:
        self._stream = stream
        self._find_codec = find_codec
        self._seeds = seeds
        self._codec = codec_for(stream.codec, stream.schema)
        self._id = record_id.encode()
        self._hidden = () if show_private else tuple(f for f in stream.schema if is_private(f))
        self._hide_key = stream.private_key and not show_private
        self._where = parse_expression(where, stream.schema, where="where") if where else None
        self.schema = stream.schema if show_private else masked_schema(stream.schema)
        if self._where is not None:
            if self._where.type.kind != "bool":
                raise ExpressionError(
                    f"where: '{where}' is {self._where.type.describe()}, expected a condition",
                    hint="it must be true or false",
                )
            for declared in self._hidden:
                if declared.name in self._where.fields:
                    raise ExpressionError(
                        f"where: field '{declared.name}' is private", hint="needs --show-private"
                    )

    def read(self, messages: Sequence[Message]) -> list[TapRecord]:
        """The records of the messages that pass, in their order."""
        # Kafka allows a header without a value; none of ours is so.
        carried = [tuple((n, v or b"") for n, v in m.headers() or ()) for m in messages]
        named = [dict(c) for c in carried]
        record_ids = self._ids(messages, named)
        by_schema: dict[bytes, list[int]] = {}
        for index, found in enumerate(named):
            if not self._id or self._concerns(found, record_ids[index]):
                by_schema.setdefault(found.get(headers.SCHEMA, b""), []).append(index)
        said: dict[int, tuple[dict[str, Any] | None, str]] = {}
        for fingerprint, indices in by_schema.items():
            said |= self._decoded(fingerprint, messages, indices, record_ids)
        return [self._record(messages[i], carried[i], named[i], record_ids[i], said[i]) for i in sorted(said)]

    def _ids(self, messages: Sequence[Message], named: Sequence[Mapping[str, bytes]]) -> list[bytes]:
        """Each record's id; those without one get the id that the engine would give them."""
        found = [n.get(headers.ID, b"") for n in named]
        for index in ids.malformed(found):
            message = messages[index]
            seed = self._seeds.get((message.topic(), message.partition()), 0)
            (found[index],) = ids.of_positions(seed, [message.timestamp()[1]], [message.offset()])
        return found

    def _concerns(self, found: Mapping[str, bytes], record_id: bytes) -> bool:
        wanted = self._id
        return (
            record_id == wanted
            or found.get(headers.CALLER_ID) == wanted
            or wanted in found.get(headers.PARENTS, b"").split(b",")
            or address_of(found.get(headers.REPLY_TO, b"")).endswith(b"/" + wanted)
        )

    def _decoded(
        self,
        fingerprint: bytes,
        messages: Sequence[Message],
        indices: Sequence[int],
        record_ids: Sequence[bytes],
    ) -> dict[int, tuple[dict[str, Any] | None, str]]:
        """Value and error by index. A record that does not decode passes every filter but the id's: it is not lost."""
        # A raw reader takes the bytes of any contract.
        own = fingerprint in (b"", self._codec.fingerprint) or self._stream.codec == "raw"
        codec = self._codec if own else self._find_codec(fingerprint)
        if codec is None:
            shown = fingerprint.decode("ascii", "replace")
            why = f"schema {shown} is not in the topic of schemas, or cannot be read under this contract"
            return dict.fromkeys(indices, (None, why))
        decoded = codec.decode([messages[i].value() for i in indices])
        good = [indices[i] for i in decoded.good.tolist()]
        rows = [Row(record_ids[i], messages[i].key()) for i in good]
        batch = Batch(self._stream.schema, decoded.columns, rows)
        keep = self._where.matches(batch).tolist() if self._where is not None else [True] * len(good)
        said: dict[int, tuple[dict[str, Any] | None, str]] = {}
        for index, value, kept in zip(good, batch.to_dicts(), keep, strict=True):
            if kept:
                for declared in self._hidden:
                    value[declared.name] = masked(declared, value[declared.name])
                said[index] = (value, "")
        for row, error in decoded.failed:  # its message shows what it could not read
            said[indices[row]] = (None, "the record does not decode" if self._hidden else str(error))
        return said

    def _record(
        self,
        message: Message,
        carried: tuple[tuple[str, bytes], ...],
        named: Mapping[str, bytes],
        record_id: bytes,
        said: tuple[dict[str, Any] | None, str],
    ) -> TapRecord:
        key = message.key()
        attempt = named.get(headers.ATTEMPT, b"")
        return TapRecord(
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            time_ms=message.timestamp()[1],
            id=record_id.decode("ascii", "replace"),
            key=MASK.encode() if self._hide_key and key is not None else key,
            origin=named.get(headers.ORIGIN, b"").decode("utf-8", "replace"),
            attempt=int(attempt) if attempt.isdigit() and len(attempt) < 10 else 0,
            value=said[0],
            headers=carried,
            error=said[1],
            wire=None if self._hidden else message.value(),
        )


def columns_of_records(schema: Schema, records: Iterable[TapRecord]) -> tuple[dict[str, Column], int]:
    """The values of the records that decoded, as columns of `schema` (that of their reader), and how many."""
    values = [r.value for r in records if r.value is not None]
    return {f.name: column_of(f.type, [v[f.name] for v in values]) for f in schema}, len(values)


def jsonable_records(schema: Schema, records: Sequence[TapRecord], stream: Stream) -> list[dict[str, Any]]:
    """Records as JSON can say them: position, identity, and ``value`` or ``error``."""
    columns, count = columns_of_records(schema, records)
    values = iter(to_jsonable(schema, columns, count))
    made = []
    for record in records:
        document: dict[str, Any] = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "time_ms": record.time_ms,
            "id": record.id,
            "key": key_text(record.key, stream),
            "origin": record.origin,
            "value": next(values) if record.value is not None else None,
        }
        if record.attempt:
            document["attempt"] = record.attempt
        if record.parents:
            document["parents"] = list(record.parents)
        if record.error:
            document["error"] = record.error
        made.append(document)
    return made


def key_text(key: bytes | None, stream: Stream) -> str | None:
    """A key as people read it: decoded where the stream declares how, as text where it is text, else in hex."""
    if key is None:
        return None
    if stream.key and key != MASK.encode():
        try:
            found = decode_key(stream.schema, stream.key, key, stream.key_encoding)
            return ", ".join(str(value) for value in found.values())
        except CodecError:
            pass  # somebody else's key
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return "0x" + key.hex()
    return text if text.isprintable() else "0x" + key.hex()
