"""The compacted topic of schemas: every contract a record was ever written under, by fingerprint.

Key: the fingerprint as in header df-schema. Value: JSON ``{"codec": ..., "schema": ..., "name": ...}``. Any client in
any language finds there what a record's header names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import orjson

from dataflow.codecs import Codec, codec_for, fingerprint
from dataflow.codecs.export import schema_from_dict, schema_to_dict, to_avsc
from dataflow.core.errors import CodecError, ContractError, TransportError
from dataflow.core.schema import Schema
from dataflow.planner.plan import SCHEMAS, Plan
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Message

READ_TIMEOUT_S = 15.0
# How long a fingerprint that was not found is not asked for again.
MISSING_S = 5.0
MAX_MISSING = 1_000


@dataclass(frozen=True)
class StoredSchema:
    """A writer's contract and the codec it wrote with; `name` is the edge or topic it was first seen on."""

    codec: str
    schema: Schema
    name: str = ""


def read_compacted(fabric: Fabric, topic: str) -> dict[bytes, Message]:
    """The newest record of each key of a one-partition compacted topic, read to its present end."""
    position = (topic, 0)
    end = fabric.admin().offsets([position], LATEST)[position]
    found: dict[bytes, Message] = {}
    consumer = fabric.consumer()
    try:
        consumer.assign({position: EARLIEST})
        idle = 0
        # Compare positions with the end, not offsets of records: the last ones may be compacted away.
        while (consumer.position([position])[position] or 0) < end:
            messages = consumer.poll(500, 0.1)
            idle = 0 if messages else idle + 1
            if idle * 0.1 > READ_TIMEOUT_S:
                raise TransportError(
                    f"reading topic '{topic}': its end {end} was not reached", hint="is the broker up?"
                )
            for message in messages:
                key = message.key() or b""
                if message.value() is None:
                    found.pop(key, None)
                else:
                    found[key] = message
    finally:
        consumer.close()
    return found


def write_compacted(fabric: Fabric, topic: str, records: Mapping[bytes, bytes | None]) -> None:
    """Write records and wait until all are acknowledged. Raises TransportError for one that is refused or not in time."""
    refused: list[object] = []

    def delivered(error: object | None, _message: object) -> None:
        if error is not None:
            refused.append(error)

    producer = fabric.producer()
    try:
        for key, value in records.items():
            producer.send(topic, value, key, on_delivery=delivered)
        left = producer.flush(READ_TIMEOUT_S)
    finally:
        producer.close()
    if refused or left:
        cause = refused[0] if refused else "the broker did not acknowledge it in time"
        raise TransportError(f"writing to topic '{topic}': {cause}")


class SchemaStore:
    """Schemas by fingerprint, read from the topic when an unknown one turns up. Thread-safe."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._lock = threading.Lock()
        self._known: dict[bytes, StoredSchema] = {}

    def lookup(self, found: bytes) -> StoredSchema | None:
        """The schema with this fingerprint, None if nobody ever published it."""
        with self._lock:
            if found not in self._known:
                self._refresh()
            return self._known.get(found)

    def publish(self, plan: Plan) -> None:
        """Make every contract of a plan known; those there already are left alone."""
        wanted: dict[bytes, StoredSchema] = {}
        for edge in plan.streams:
            copies = [(p.codec, p.schema, p.topic) for p in edge.publish]
            for codec, schema, name in [(edge.codec, edge.schema, f"{plan.pipeline}.{edge.name}"), *copies]:
                if codec != "raw":
                    wanted[fingerprint(schema, codec)] = StoredSchema(codec, schema, name)
        self.publish_all(wanted.items())

    def publish_all(self, schemas: Iterable[tuple[bytes, StoredSchema]]) -> None:
        """Write the schemas that the topic does not hold yet, and wait for the acknowledgement."""
        with self._lock:
            self._refresh()
            missing = {f: s for f, s in schemas if f not in self._known}
            if not missing:
                return
            write_compacted(self._fabric, SCHEMAS, {key: _document(s) for key, s in missing.items()})
            self._known.update(missing)

    def _refresh(self) -> None:
        if SCHEMAS not in self._fabric.admin().topics():
            return  # nothing was ever deployed here
        for key, message in read_compacted(self._fabric, SCHEMAS).items():
            if key not in self._known:
                stored = _parse(message.value() or b"")
                if stored is not None:
                    self._known[key] = stored


def _document(stored: StoredSchema) -> bytes:
    document = {"codec": stored.codec, "name": stored.name, "schema": schema_to_dict(stored.schema)}
    if stored.codec == "avro":
        # The Avro schema as well, so that a stranger needs nothing but an Avro library.
        document["avro"] = to_avsc(stored.schema, "Record")
    return orjson.dumps(document)


def _parse(value: bytes) -> StoredSchema | None:
    """What a record of the topic says; None for one that a stranger or a later version wrote."""
    try:
        document = orjson.loads(value)
        return StoredSchema(document["codec"], schema_from_dict(document["schema"]), document.get("name", ""))
    except (orjson.JSONDecodeError, KeyError, TypeError, ContractError):
        return None


def reader_codecs(schemas: SchemaStore, codec: str, schema: Schema) -> Callable[[bytes], Codec | None]:
    """Finds, and keeps, the codec that reads records written under another version of `schema` into it.

    None for a fingerprint that nobody published, and where the two contracts cannot meet.
    """
    found: dict[bytes, Codec] = {}
    missing: dict[bytes, float] = {}

    def find(named: bytes) -> Codec | None:
        if named in found:
            return found[named]
        # Schemas are published before their first record: what is not there need not be looked for with every batch.
        if time.monotonic() - missing.get(named, -MISSING_S) < MISSING_S:
            return None
        stored = schemas.lookup(named)
        try:
            if stored is not None and stored.codec == codec:
                found[named] = codec_for(codec, schema, writer=stored.schema)
                return found[named]
        except CodecError:
            pass  # the two contracts cannot meet
        if len(missing) >= MAX_MISSING:
            missing.clear()  # a stranger who makes up fingerprints must not fill the memory
        missing[named] = time.monotonic()
        return None

    return find
