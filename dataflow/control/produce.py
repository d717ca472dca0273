"""Records from outside onto a topic, by its contract."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from dataflow.codecs import codec_for
from dataflow.codecs.keys import check_key, encode_keys
from dataflow.control.deploy import prepare_topics
from dataflow.control.records import Stream
from dataflow.core import headers, ids
from dataflow.core.errors import (
    CodecError,
    DataflowError,
    RecordTooLargeError,
    TopicGoneError,
    TransportError,
)
from dataflow.core.schema import Column
from dataflow.planner.build import system_topics, topic_of
from dataflow.planner.plan import SCHEMAS
from dataflow.runtime.schemas import SchemaStore, StoredSchema
from dataflow.spec.loader import Project
from dataflow.transport.api import Fabric, Header

FLUSH_S: Final = 120.0


@dataclass(frozen=True)
class Sent:
    """What became of a batch when it was handed over: the ids, in row order, and the rows that could not be sent."""

    ids: list[bytes]
    failed: list[tuple[int, DataflowError]]


class TopicProducer:
    """Writes columns to one topic, encoded and keyed by its contract; each record gets an id. A context manager.

    `key` names other fields to make the key from; () is the contract's. Raises ContractError for fields that make no
    key, TopicGoneError for a topic that does not exist (see `create_topic`). Its contract is published for taps.
    """

    def __init__(self, fabric: Fabric, stream: Stream, *, key: Sequence[str] = ()) -> None:
        (self.topic,) = stream.topics
        self._stream = stream
        self._codec = codec_for(stream.codec, stream.schema)
        self._key = tuple(key) or stream.key
        self._key_encoding = stream.key_encoding if not key or tuple(key) == stream.key else ""
        check_key(stream.schema, self._key)
        admin = fabric.admin()
        if self.topic not in admin.describe([self.topic]):
            raise TopicGoneError(
                f"topic '{self.topic}' does not exist", hint="dataflow up creates what is declared"
            )
        prepare_topics(admin, [t for t in system_topics() if t.name == SCHEMAS])
        if self._codec.fingerprint:
            stored = StoredSchema(stream.codec, stream.schema, self.topic)
            SchemaStore(fabric).publish_all([(self._codec.fingerprint, stored)])
        self._producer = fabric.producer(latency_first=False)
        self.acknowledged = 0
        self.refused = 0
        self.refusal = ""

    def send(
        self, columns: Mapping[str, Column], count: int, carried: Sequence[Sequence[Header]] | None = None
    ) -> Sent:
        """Hand over `count` rows of columns of the contract; does not wait for the acknowledgement (`flush` does).

        `carried` are headers of each row's own: they travel with it through a pipeline.
        """
        encoded = self._codec.encode(columns, count)
        failed: dict[int, DataflowError] = dict(encoded.failed)
        keys = encode_keys(self._stream.schema, self._key, columns, count, self._key_encoding)
        schema: list[Header] = [(headers.SCHEMA, self._codec.fingerprint)] if self._codec.fingerprint else []
        now_ms = int(time.time() * 1000)
        made = [ids.mint(now_ms) for _ in range(count)]
        for row, (value, key, record_id) in enumerate(zip(encoded.values, keys, made, strict=True)):
            if row in failed:
                continue
            head: list[Header] = [(headers.ID, record_id), *schema, *(carried[row] if carried else ())]
            try:
                self._producer.send(self.topic, value, key, head, on_delivery=self._delivered)
            except RecordTooLargeError as error:
                failed[row] = CodecError(error.message, row=row, hint=error.hint)
        self._producer.poll(0)
        return Sent(made, sorted(failed.items(), key=lambda item: item[0]))

    def _delivered(self, error: object | None, message: object) -> None:
        del message
        if error is None:
            self.acknowledged += 1
        else:
            self.refused += 1
            self.refusal = self.refusal or str(error)

    def flush(self) -> None:
        """Wait until all is acknowledged. Raises TransportError if the broker refused a record or went away."""
        left = self._producer.flush(FLUSH_S)
        if left:
            raise TransportError(
                f"{left} records for topic '{self.topic}' were not acknowledged", hint="is the broker up?"
            )
        if self.refused:
            raise TransportError(
                f"{self.refused} records for topic '{self.topic}' were refused: {self.refusal}"
            )

    def close(self) -> None:
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create_topic(fabric: Fabric, project: Project | None, topic: str) -> bool:
    """Make a topic as the project declares it, if it is declared there and does not exist; whether it was made."""
    declared = project.topics.get(topic) if project is not None else None
    if declared is None:
        return False
    planned = topic_of(declared.spec, "input")
    return fabric.admin().create(planned.name, planned.partitions, planned.config)
