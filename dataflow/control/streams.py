"""Reading any stream from outside: no group, nothing committed, nobody slowed. What a tap is made of."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from dataflow.control.records import DEAD_LETTER_STREAM, RecordReader, Stream, TapRecord
from dataflow.control.starts import FROM_EARLIEST, Start
from dataflow.core import ids
from dataflow.core.errors import SpecError, TopicGoneError, nearest
from dataflow.core.limits import MAX_BATCH_RECORDS
from dataflow.core.schema import Schema
from dataflow.planner.plan import DEAD_LETTERS, Plan
from dataflow.runtime.schemas import SchemaStore, reader_codecs
from dataflow.spec.loader import Project
from dataflow.transport.api import EARLIEST, LATEST, Admin, Fabric, Message, Position, TopicInfo

TOPIC_PREFIX: Final = "topic:"
# Wake-ups of a reader that waits, and so how late it hears of `stop`.
POLL_S: Final = 0.2
# A partition whose end does not come for this long although the broker answers: what is left there are holes
# (compacted records, markers of transactions), which no client is told about.
QUIET_S: Final = 10.0
# Held back to put the records of several partitions in the order of their times: beyond it order gives way.
MAX_MERGE_RECORDS: Final = 20_000
MAX_MERGE_BYTES: Final = 32 * 1024 * 1024


def find_stream(name: str, plans: Mapping[str, Plan], project: Project | None = None) -> Stream:
    """``PIPELINE.EDGE``, ``topic:NAME`` or ``dataflow.dead-letters``. Raises SpecError with what there is.

    Edges are those of `plans` (as deployed); contracts of topics those of `project`, then of the plans.
    """
    if name in (DEAD_LETTERS, TOPIC_PREFIX + DEAD_LETTERS):
        return DEAD_LETTER_STREAM
    if name.startswith(TOPIC_PREFIX):
        return find_topic(name.removeprefix(TOPIC_PREFIX), plans, project)
    pipeline, _, edge_name = name.partition(".")
    plan = plans.get(pipeline)
    if plan is None:
        declared = project is not None and pipeline in project.pipelines
        hint = "dataflow up starts it" if declared else nearest(pipeline, plans)
        known = known_topics(plans, project)
        if name in known:
            hint = f"{TOPIC_PREFIX}{name} reads the topic"
        raise SpecError(f"no pipeline '{pipeline}' on this cluster", hint=hint)
    edge = plan.edges.get(edge_name)
    if edge is None:
        raise SpecError(
            f"pipeline '{pipeline}' has no edge '{edge_name}'", hint=nearest(edge_name, plan.edges)
        )
    if not edge.topics:
        raise SpecError(f"edge '{name}' is declared `write: off`: there is nothing to read")
    return Stream.of_edge(plan, edge)


def find_topic(name: str, plans: Mapping[str, Plan], project: Project | None = None) -> Stream:
    """A topic by its contract. Raises SpecError with the nearest name."""
    known = known_topics(plans, project)
    if name not in known:
        raise SpecError(f"no contract for topic '{name}'", hint=nearest(name, known))
    return known[name]


def find_writable(name: str, plans: Mapping[str, Plan], project: Project | None = None) -> Stream:
    """A topic that outsiders may write to. Raises SpecError for a pipeline's own edges, but those that are open."""
    for plan in plans.values():
        for edge in plan.edges.values():
            if name in edge.topics and edge.node and not edge.open:
                inputs = sorted(t for e in plan.edges.values() if not e.node for t in e.topics)
                raise SpecError(
                    f"'{name}' is an edge of pipeline '{plan.pipeline}': its node '{edge.node}' writes it, and nobody else",
                    hint=f"`open: true` at the node lets others write to it; its inputs: {', '.join(inputs)}",
                )
    return find_topic(name, plans, project)


def known_topics(plans: Mapping[str, Plan], project: Project | None = None) -> dict[str, Stream]:
    """Every topic whose contract is known: the project's own declarations win over what is deployed."""
    known: dict[str, Stream] = {}
    for plan in plans.values():
        for edge in plan.edges.values():
            stream = Stream.of_edge(plan, edge)
            for topic in edge.topics:
                made = Stream(topic, (topic,), *_rest(stream))
                # A topic of another pipeline is best known by that one.
                known[topic] = known.get(topic, made) if edge.upstream else made
            for copy in edge.publish:
                private = any(copy.schema[n].privacy for n in copy.key)
                known[copy.topic] = Stream(
                    copy.topic, (copy.topic,), copy.schema, copy.codec, copy.key, copy.key_encoding, private
                )
        for table in plan.tables.values():
            if table.topic:
                known.setdefault(
                    table.topic, Stream(table.topic, (table.topic,), table.schema, table.codec, table.key)
                )
    if project is not None:
        known |= {n: Stream.of_topic(d.spec) for n, d in project.topics.items()}
    return known


def _rest(stream: Stream) -> tuple[Schema, str, tuple[str, ...], str, bool]:
    return stream.schema, stream.codec, stream.key, stream.key_encoding, stream.private_key


class EdgeReader:
    """Reads all partitions of a stream, oldest first as far as the records at hand tell; iterate it once.

    start       where to begin
    follow      go on as records come, until `stop`; else end at what was the end when the reading began
    until_ms    end at the first record of each partition with this time or later
    limit       end after so many records
    where, record_id, show_private   see `RecordReader`
    `schema` is that of the values: private fields are texts "***" unless `show_private`.
    Raises, when made, ExpressionError for a bad filter and TopicGoneError where there is no such topic; when
    iterated, TransportError. Records that do not decode are given with their `error`.
    """

    def __init__(
        self,
        fabric: Fabric,
        stream: Stream,
        *,
        start: Start = FROM_EARLIEST,
        follow: bool = False,
        where: str = "",
        record_id: str = "",
        until_ms: int | None = None,
        limit: int | None = None,
        show_private: bool = False,
        schemas: SchemaStore | None = None,
    ) -> None:
        self._fabric = fabric
        self.stream = stream
        self._follow = follow
        self._limit = limit
        self._stop = threading.Event()
        admin = fabric.admin()
        topics = admin.describe(stream.topics)
        if not topics:
            raise TopicGoneError(
                f"no topic of '{stream.name}' exists: {', '.join(stream.topics)}",
                hint="was anything written yet?",
            )
        positions = [(name, p) for name, info in topics.items() for p in range(info.partitions)]
        seeds = id_seeds(admin, topics)
        find_codec = reader_codecs(schemas or SchemaStore(fabric), stream.codec, stream.schema)
        self._reader = RecordReader(
            stream, find_codec, seeds, where=where, record_id=record_id, show_private=show_private
        )
        low, high = admin.offsets(positions, EARLIEST), admin.offsets(positions, LATEST)
        self._starts = start.offsets(admin, positions, low, high)
        self._ends = high if until_ms is None else admin.offsets(positions, until_ms)

    @property
    def schema(self) -> Schema:
        return self._reader.schema

    @property
    def behind(self) -> int:
        """How many offsets lay between start and end when the reading began: what a progress bar counts to."""
        return sum(max(self._ends[p] - self._starts[p], 0) for p in self._starts)

    def stop(self) -> None:
        """End the iteration soon. Thread-safe."""
        self._stop.set()

    def __iter__(self) -> Iterator[TapRecord]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[TapRecord]]:
        """The records in runs of what was at hand, none empty."""
        left = self._limit
        for messages in read_messages(
            self._fabric, self._starts, self._ends, follow=self._follow, stop=self._stop
        ):
            made = self._reader.read(messages)
            if left is not None:
                made = made[:left]
                left -= len(made)
            if made:
                yield made
            if left == 0:
                return


def read_messages(
    fabric: Fabric,
    starts: Mapping[Position, int],
    ends: Mapping[Position, int],
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[list[Message]]:
    """The messages between offsets (end exclusive), and with `follow` all that come after, until `stop`.

    Oldest first as far as what is at hand tells. Raises TransportError.
    """
    merge = Merge(starts, ends)
    if not merge.behind and not follow:
        return
    consumer = fabric.consumer()
    try:
        consumer.assign(starts if follow else {p: starts[p] for p in merge.behind})
        heard = time.monotonic()
        while stop is None or not stop.is_set():
            fetched = consumer.poll(MAX_BATCH_RECORDS, POLL_S)
            if fetched:
                heard = time.monotonic()
                merge.add(fetched, beyond=follow)
            elif merge.behind:
                merge.reached(consumer.position(sorted(merge.behind)))
                if time.monotonic() - heard > QUIET_S:
                    fabric.admin().offsets(list(ends), LATEST)  # raises if the broker is away
                    merge.behind.clear()
            ready = merge.take()
            for at in range(0, len(ready), MAX_BATCH_RECORDS):
                yield ready[at : at + MAX_BATCH_RECORDS]
            if not merge.behind and not follow:
                return
    finally:
        consumer.close()


def id_seeds(admin: Admin, topics: Mapping[str, TopicInfo]) -> dict[Position, int]:
    """Seeds of the ids that records without one get, as the engine makes them; `topics` as described."""
    cluster = admin.cluster_id()
    return {
        (name, p): ids.seed_of(cluster, info.topic_id, p)
        for name, info in topics.items()
        for p in range(info.partitions)
    }


class Merge:
    """Puts messages of several partitions in the order of their times. Pure.

    A message is held back while a partition in `behind` (its end is not reached) has none at hand: an older one may
    come from there.
    """

    def __init__(self, starts: Mapping[Position, int], ends: Mapping[Position, int]) -> None:
        self._ends = ends
        self._held: dict[Position, deque[Message]] = {p: deque() for p in starts}
        self._count = self._bytes = 0
        self.behind = {p for p, offset in starts.items() if offset < ends[p]}

    def add(self, messages: Iterable[Message], *, beyond: bool) -> None:
        """Messages as fetched; those at or after their partition's end are left out unless `beyond`."""
        for message in messages:
            position = message.topic(), message.partition()
            end = self._ends[position]
            if message.offset() + 1 >= end:
                self.behind.discard(position)
            if beyond or message.offset() < end:
                self._held[position].append(message)
                self._count += 1
                self._bytes += len(message.value() or b"")

    def reached(self, positions: Mapping[Position, int | None]) -> None:
        """Where the reader stands: past the end although no record came from there."""
        for position, offset in positions.items():
            if offset is not None and offset >= self._ends[position]:
                self.behind.discard(position)

    def take(self) -> list[Message]:
        """What may go on now, in order."""
        ready: list[Message] = []
        full = self._count > MAX_MERGE_RECORDS or self._bytes > MAX_MERGE_BYTES
        keep = self._count // 2 if full else self._count
        heads = [(h[0].timestamp()[1], p) for p, h in self._held.items() if h]
        heapq.heapify(heads)
        waited = {p for p in self.behind if not self._held[p]}
        while heads and (not waited or (full and self._count > keep)):
            _, position = heads[0]
            held = self._held[position]
            message = held.popleft()
            ready.append(message)
            self._count -= 1
            self._bytes -= len(message.value() or b"")
            if held:
                heapq.heapreplace(heads, (held[0].timestamp()[1], position))
            else:
                heapq.heappop(heads)
                if position in self.behind:
                    waited.add(position)
        return ready


def read_at(fabric: Fabric, position: Position, offset: int) -> Message | None:
    """The one record at a position, None if the log no longer (or not yet) holds it."""
    admin = fabric.admin()
    info = admin.describe([position[0]]).get(position[0])
    if info is None or not 0 <= position[1] < info.partitions:
        return None
    low, high = admin.offsets([position], EARLIEST)[position], admin.offsets([position], LATEST)[position]
    if not low <= offset < high:
        return None
    found = [m for part in read_messages(fabric, {position: offset}, {position: offset + 1}) for m in part]
    return found[0] if found else None
