"""Records that could not be processed: found, shown, and sent back to where they were read.

What was redriven is kept in the compacted topic `dataflow.redrives`: key ``topic id/partition/offset`` of the dead
letter, value JSON ``{"time_ms", "id", "attempt", "topic", "partition"}``. The record is acknowledged before its mark is
written: a crash between the two may redrive it twice, under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from dataflow.control.deploy import prepare_topics
from dataflow.control.records import RecordReader, Stream, TapRecord
from dataflow.control.starts import FROM_EARLIEST, Start
from dataflow.control.streams import read_messages
from dataflow.core import headers
from dataflow.core.errors import SpecError, TransportError
from dataflow.core.schema import Schema
from dataflow.planner.plan import DEAD_LETTERS, TopicPlan
from dataflow.runtime.schemas import SchemaStore, read_compacted, reader_codecs
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Header, Message

REDRIVES: Final = "dataflow.redrives"
FLUSH_S: Final = 60.0
# Redriven between two waits for the acknowledgement and their marks.
_BATCH: Final = 500
# What a redriven record sheds: the cause, and the caller, who was told already.
_SHED: Final = headers.ON_DEAD_LETTER | {
    headers.REPLY_TO, headers.DEADLINE, headers.ATTEMPT, headers.REDRIVE_ID,
}  # fmt: skip


@dataclass(frozen=True)
class Letter:
    """A dead letter. `topic`, `source_partition`, `source_offset` are where the record was read; "" and -1 if unknown.

    `redriven_ms` is when it was last sent back, 0 if never.
    """

    message: Message
    mark: bytes
    headers: tuple[tuple[str, bytes], ...]
    id: str
    error: str
    reason: str
    pipeline: str
    node: str
    version: str
    topic: str
    source_partition: int
    source_offset: int
    failed_ms: int
    attempt: int
    redriven_ms: int

    @property
    def position(self) -> str:
        """Its place among the dead letters, as `find_letter` takes it: partition/offset."""
        return f"{self.message.partition()}/{self.message.offset()}"


@dataclass(frozen=True)
class LetterFilter:
    """Which letters: all that is given must hold. `error` is the class of the error, `since_ms` Unix time."""

    pipeline: str = ""
    node: str = ""
    error: str = ""
    since_ms: int = -1
    record_id: str = ""

    def __call__(self, letter: Letter) -> bool:
        return (
            self.pipeline in ("", letter.pipeline)
            and self.node in ("", letter.node)
            and self.error in ("", letter.error)
            and self.record_id in ("", letter.id)
        )


@dataclass(frozen=True)
class Redriven:
    """What became of one letter. `skipped` says why it was not sent back; "" if it was (or, dry, would be)."""

    letter: Letter
    skipped: str = ""


def read_letters(fabric: Fabric, wanted: LetterFilter = LetterFilter()) -> Iterator[Letter]:
    """The letters that are there now, oldest first. None where nothing was ever deployed."""
    admin = fabric.admin()
    info = admin.describe([DEAD_LETTERS]).get(DEAD_LETTERS)
    if info is None:
        return
    positions = [(DEAD_LETTERS, p) for p in range(info.partitions)]
    low, high = admin.offsets(positions, EARLIEST), admin.offsets(positions, LATEST)
    start = Start(time_ms=wanted.since_ms) if wanted.since_ms >= 0 else FROM_EARLIEST
    marks = redrive_times(fabric)
    for messages in read_messages(fabric, start.offsets(admin, positions, low, high), high):
        for message in messages:
            letter = _letter(message, info.topic_id, marks)
            if wanted(letter):
                yield letter


def find_letter(fabric: Fabric, reference: str) -> Letter:
    """A letter by its place (``partition/offset``, or ``offset`` in partition 0) or the id of its record (the newest).

    Raises SpecError if there is none.
    """
    place = reference.removeprefix(DEAD_LETTERS + "/").split("/")
    if all(part.isdigit() for part in place) and len(place) <= 2:
        position = "/".join(place if len(place) == 2 else ["0", *place])
        found = [x for x in read_letters(fabric) if x.position == position]
    else:
        found = list(read_letters(fabric, LetterFilter(record_id=reference.strip().lower())))
    if not found:
        raise SpecError(
            f"no dead letter '{reference}'", hint="dataflow dead-letters list shows partition/offset and id"
        )
    return found[-1]


def decode_letter(
    fabric: Fabric, letter: Letter, streams: Mapping[str, Stream], *, show_private: bool = False
) -> tuple[TapRecord, Stream, Schema] | None:
    """The record under the present contract of its topic (its `error` says why not); None if there is no contract.

    The schema is that of the value shown.
    """
    stream = streams.get(letter.topic)
    if stream is None:
        return None
    find_codec = reader_codecs(SchemaStore(fabric), stream.codec, stream.schema)
    reader = RecordReader(stream, find_codec, {}, show_private=show_private)
    (record,) = reader.read([letter.message])
    return record, stream, reader.schema


def redrive(
    fabric: Fabric, letters: Iterable[Letter], *, dry_run: bool = False, again: bool = False
) -> Iterator[Redriven]:
    """Send letters back to the topic and partition they were read from; each is yielded once it is acknowledged.

    Bytes, key, headers and id are the original's, df-attempt is one more; who waited for an answer does not any more.
    Letters sent back before are skipped unless `again`. Raises TransportError if the broker refuses one.
    """
    partitions = {name: info.partitions for name, info in fabric.admin().topics().items()}
    if not dry_run:
        prepare_topics(fabric.admin(), [TopicPlan(REDRIVES, 1, "redrives", {"cleanup.policy": "compact"})])
    batch: list[Letter] = []
    for letter in letters:
        skipped = ""
        if not letter.topic:
            skipped = "it was not read from a topic (a timer, or a record made from state): there is nowhere to send it"
        elif letter.topic not in partitions:
            skipped = f"topic '{letter.topic}' is gone"
        elif letter.redriven_ms and not again:
            skipped = "redriven before"
        if skipped or dry_run:
            yield Redriven(letter, skipped)
            continue
        batch.append(letter)
        if len(batch) >= _BATCH:
            yield from _send_back(fabric, batch, partitions)
            batch = []
    yield from _send_back(fabric, batch, partitions)


def _send_back(fabric: Fabric, letters: list[Letter], partitions: Mapping[str, int]) -> Iterator[Redriven]:
    if not letters:
        return
    producer = fabric.producer(latency_first=False)
    refused: list[str] = []

    def delivered(error: object | None, message: object) -> None:
        del message
        if error is not None:
            refused.append(str(error))

    def settle(what: str) -> None:
        left = producer.flush(FLUSH_S)
        if left or refused:
            why = refused[0] if refused else f"{left} were not acknowledged"
            raise TransportError(f"{what}: {why}", hint="those not listed as redriven can be redriven again")

    try:
        for letter in letters:
            within = 0 <= letter.source_partition < partitions[letter.topic]
            message = letter.message
            partition = letter.source_partition if within else -1
            producer.send(
                letter.topic, message.value(), message.key(), _headers(letter), partition, delivered
            )
        settle("redriving")
        now_ms = int(time.time() * 1000)
        for letter in letters:
            told = {
                "time_ms": now_ms,
                "id": letter.id,
                "attempt": letter.attempt + 1,
                "topic": letter.topic,
                "partition": letter.source_partition,
            }
            producer.send(REDRIVES, orjson.dumps(told), letter.mark, None, 0, delivered)
        settle("noting what was redriven")
    finally:
        producer.close()
    yield from map(Redriven, letters)


def _headers(letter: Letter) -> list[Header]:
    kept: list[Header] = [h for h in letter.headers if h[0] not in _SHED]
    return [
        *kept,
        (headers.ATTEMPT, str(letter.attempt + 1)),
        (headers.REDRIVE_ID, f"{DEAD_LETTERS}/{letter.position}"),
    ]


def mark_of(topic_id: str, partition: int, offset: int) -> bytes:
    """How a dead letter is named in the topic of redrives."""
    return f"{topic_id}/{partition}/{offset}".encode()


def redrive_times(fabric: Fabric) -> dict[bytes, int]:
    """When (Unix ms) which letter was last redriven, by its mark."""
    if REDRIVES not in fabric.admin().topics():
        return {}
    found = {}
    for key, message in read_compacted(fabric, REDRIVES).items():
        found[key] = message.timestamp()[1]
    return found


def _letter(message: Message, topic_id: str, marks: Mapping[bytes, int]) -> Letter:
    carried = tuple(message.headers() or ())
    said = {name: (value or b"").decode("utf-8", "replace") for name, value in carried}
    mark = mark_of(topic_id, message.partition(), message.offset())
    pipeline, _, node = said.get(headers.ERROR_NODE, "").partition("/")
    return Letter(
        message=message,
        mark=mark,
        headers=carried,
        id=said.get(headers.ID, ""),
        error=said.get(headers.ERROR, ""),
        reason=said.get(headers.ERROR_MESSAGE, ""),
        pipeline=pipeline,
        node=node,
        version=said.get(headers.ERROR_VERSION, "").partition("@")[2],
        topic=said.get(headers.ERROR_TOPIC, ""),
        source_partition=_number(said.get(headers.ERROR_PARTITION, "")),
        source_offset=_number(said.get(headers.ERROR_OFFSET, "")),
        failed_ms=max(_number(said.get(headers.ERROR_TIME, "")), 0) or message.timestamp()[1],
        attempt=max(_number(said.get(headers.ATTEMPT, "")), 0),
        redriven_ms=marks.get(mark, 0),
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else -1
