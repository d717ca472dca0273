"""Records of an edge as server-sent events: decoded, filtered, masked. Pure but for the codecs it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from dataflow.codecs import Codec, codec_for
from dataflow.codecs.values import to_jsonable
from dataflow.core import headers
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import DataflowError, GatewayError
from dataflow.core.privacy import MASK, is_private, masked
from dataflow.core.schema import Schema
from dataflow.core.shares import address_of
from dataflow.expressions import parse_expression
from dataflow.planner.plan import EdgePlan, Plan
from dataflow.transport.api import Message

WriterOf = Callable[[bytes], Schema | None]


class Events:
    """Makes events of messages. One per tap; used by one thread.

    record_id  only records that are, derive from, or answer this id (a record's or a caller's own); "" for all
    where      only records for which this expression is true; "" for all
    private    whether fields labelled private are shown
    writer_of  the contract of a fingerprint in df-schema, None if unknown: how records of other versions are read
    """

    def __init__(
        self,
        plan: Plan,
        edge: EdgePlan,
        *,
        record_id: str = "",
        where: str = "",
        private: bool = False,
        writer_of: WriterOf | None = None,
    ) -> None:
        self._edge = edge
        self._record_id = record_id.encode()
        self._writer_of = writer_of
        self._codec = codec_for(edge.codec, edge.schema)
        self._codecs: dict[bytes, Codec] = {self._codec.fingerprint: self._codec, b"": self._codec}
        self._hidden = () if private else tuple(f for f in edge.schema if is_private(f))
        self._hide_key = not private and _has_private_key(plan)
        self._where = parse_expression(where, edge.schema, where="where") if where else None
        if self._where is not None:
            if self._where.type.kind != "bool":
                raise GatewayError(
                    400, f"where: {where[:200]} is no condition", hint="it must be true or false"
                )
            # A filter on what is masked would tell it bit by bit.
            secret = sorted(f.name for f in self._hidden if f.name in self._where.fields)
            if secret:
                raise GatewayError(
                    403, f"where: field '{secret[0]}' is private", hint="needs scope 'private'"
                )

    def of(self, messages: Sequence[Message]) -> list[bytes]:
        """The events of the messages that pass the filters, in order."""
        by_schema: dict[bytes, list[int]] = {}
        found = [dict(message.headers() or ()) for message in messages]
        for index, carried in enumerate(found):
            if not self._record_id or self._concerns(carried):
                by_schema.setdefault(carried.get(headers.SCHEMA, b""), []).append(index)
        said: dict[int, dict[str, Any]] = {}
        for fingerprint, indices in by_schema.items():
            said |= self._said(self._codec_of(fingerprint), messages, indices, found)
        return [self._event(messages[i], found[i], said[i]) for i in sorted(said)]

    def _concerns(self, carried: dict[str, bytes]) -> bool:
        wanted = self._record_id
        return (
            carried.get(headers.ID) == wanted
            or carried.get(headers.CALLER_ID) == wanted
            or wanted in carried.get(headers.PARENTS, b"").split(b",")
            or address_of(carried.get(headers.REPLY_TO, b"")).endswith(b"/" + wanted)
        )

    def _codec_of(self, fingerprint: bytes) -> Codec:
        codec = self._codecs.get(fingerprint)
        if codec is None:
            writer = self._writer_of(fingerprint) if self._writer_of is not None else None
            codec = self._codec
            if writer is not None:
                try:
                    codec = codec_for(self._edge.codec, self._edge.schema, writer=writer)
                except DataflowError:  # the contracts do not fit: each record tells so
                    codec = self._codec
            self._codecs[fingerprint] = codec
        return codec

    def _said(
        self,
        codec: Codec,
        messages: Sequence[Message],
        indices: Sequence[int],
        found: Sequence[dict[str, bytes]],
    ) -> dict[int, dict[str, Any]]:
        decoded = codec.decode([messages[i].value() for i in indices])
        good = [indices[i] for i in decoded.good.tolist()]
        values = to_jsonable(self._edge.schema, decoded.columns, len(good))
        keep = [True] * len(good)
        said: dict[int, dict[str, Any]] = {}
        if self._where is not None:
            rows = [Row(found[i].get(headers.ID, b""), messages[i].key()) for i in good]
            truth = self._where.evaluate(Batch(self._edge.schema, decoded.columns, rows))
            keep = [value is True for value in truth.tolist()]
        else:
            for i, error in decoded.failed:  # the message shows what it could not read
                text = "the record does not decode" if self._hidden else str(error)
                said[indices[i]] = {"value": None, "error": text}
        for index, value, kept in zip(good, values, keep, strict=True):
            if kept:
                for declared in self._hidden:
                    value[declared.name] = masked(declared, value[declared.name])
                said[index] = {"value": value}
        return said

    def _event(self, message: Message, carried: dict[str, bytes], said: dict[str, Any]) -> bytes:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        time = datetime.fromtimestamp(message.timestamp()[1] / 1_000, UTC)
        document = {
            "id": carried.get(headers.ID, b"").decode("ascii", "replace"),
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "key": self._key(message.key()),
            **said,
        }
        place = f"id: {topic}/{partition}/{offset}\nevent: record\ndata: ".encode()
        return place + orjson.dumps(document) + b"\n\n"

    def _key(self, key: bytes | None) -> str | None:
        if key is None:
            return None
        if self._hide_key:
            return MASK
        try:
            return key.decode()
        except UnicodeDecodeError:
            return "0x" + key.hex()


def _has_private_key(plan: Plan) -> bool:
    """Whether any edge is keyed by a private field: an edge without a key of its own keeps its parent's."""
    return any(
        name in edge.schema and bool(edge.schema[name].privacy)
        for edge in plan.edges.values()
        for name in edge.key
    )
