"""Dead letters of a batch: of records that were fetched, of those made from state or held in it, and of timers."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson

from dataflow.codecs import Codec
from dataflow.core import headers, ids
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import DataflowError
from dataflow.runtime.execution import Ended, Misfire
from dataflow.runtime.hand import InHand
from dataflow.runtime.intake import Intake
from dataflow.transport.api import Header, Message


@dataclass(frozen=True)
class Remade:
    """A record put together again, read like one that was fetched. Without a topic there is nowhere to redrive it to."""

    record_key: bytes | None
    record_value: bytes | None
    record_headers: list[tuple[str, bytes]]
    record_topic: str = ""
    record_partition: int = -1

    def topic(self) -> str:
        return self.record_topic

    def partition(self) -> int:
        return self.record_partition

    def offset(self) -> int:
        """Where it was is not known any more."""
        return -1

    def key(self) -> bytes | None:
        return self.record_key

    def value(self) -> bytes | None:
        return self.record_value

    def headers(self) -> list[tuple[str, bytes]]:
        return self.record_headers

    def timestamp(self) -> tuple[int, int]:
        return (0, 0)


def letters_of(
    hand: InHand, intakes: Mapping[str, Intake], codecs: Mapping[str, Codec], partition: int, pipeline: str
) -> Iterator[tuple[Message, Ended]]:
    """What is to be buried of a batch that has run, with the cause: each record that failed, and each timer.

    A record is buried once, with its first cause, however many of its children failed: it is redriven once.
    """
    buried: set[int | bytes] = set()
    for ended in hand.ended:
        source = ended.row.source
        identity = source if source >= 0 else ended.row.id
        if not ended.error or ended.goes_on or identity in buried:
            continue
        buried.add(identity)
        yield hand.messages[source] if source >= 0 else remade(ended, intakes, codecs, partition), ended
    for misfire in hand.execution.misfired:
        yield timer_letter(misfire, pipeline)


def remade(
    ended: Ended, intakes: Mapping[str, Intake], codecs: Mapping[str, Codec], partition: int
) -> Remade:
    """The record of a row made from state, or held earlier, with all that is known of it.

    `codecs` are those of the edges. A held one that was fetched (by `intakes`, by topic) can be redriven to its topic.
    """
    row, content = ended.row, ended.content
    if content is None:
        return Remade(row.key, None, _headers(row, b""))
    if content.encoded is not None:
        encoded = content.encoded
        return Remade(row.key, encoded.values[0], _headers(row, encoded.fingerprint))
    codec = codecs.get(content.edge)
    value = _encode(codec, content.record) if codec is not None and content.record is not None else None
    fingerprint = codec.fingerprint if codec is not None and value is not None else b""
    topic = next((t for t, intake in intakes.items() if intake.edge == content.edge), "")
    if not topic or value is None:
        return Remade(row.key, value, _headers(row, fingerprint))
    return Remade(row.key, value, _headers(row, fingerprint), topic, partition)


def _encode(codec: Codec, record: Mapping[str, object]) -> bytes | None:
    """Wire bytes of one record; None for what does not fit the contract: its letter then has no value."""
    try:
        batch = Batch.of(codec.schema, [record])
        made = codec.encode(batch.columns, 1)
        return None if made.failed else made.values[0]
    except (DataflowError, ValueError, TypeError, OverflowError):
        return None


def _headers(row: Row, fingerprint: bytes) -> list[tuple[str, bytes]]:
    made: list[Header] = [*row.carry, (headers.ID, row.id)]
    if row.parents:
        made.append((headers.PARENTS, b",".join(row.parents)))
    if row.attempt:
        made.append((headers.ATTEMPT, str(row.attempt).encode()))
    if fingerprint:
        made.append((headers.SCHEMA, fingerprint))
    return [(name, value) for name, value in made if isinstance(value, bytes)]


def timer_letter(misfire: Misfire, pipeline: str) -> tuple[Remade, Ended]:
    """The description of a timer whose node raised, as JSON, and its cause. `key` is text, or base64 where it is none."""
    timer = misfire.timer
    record_id = ids.joined(
        f"{pipeline}/{misfire.node}",
        timer.at_ms,
        b"timer",
        timer.key,
        timer.name.encode(),
        str(timer.at_ms).encode(),
    )
    described = {"node": misfire.node, "timer": timer.name, "at_ms": timer.at_ms, "clock": timer.clock}
    try:
        described["key"] = timer.key.decode()
    except UnicodeDecodeError:
        described["key_base64"] = base64.b64encode(timer.key).decode()
    row = Row(record_id, timer.key)
    letter = Remade(timer.key, orjson.dumps({"timer": described}), _headers(row, b""))
    return letter, Ended(row, misfire.reason, misfire.node, misfire.error)
