"""One request on every edge it reached: found by the time in its id, a widening search, and df-parents.

Nothing is indexed anywhere: the time in an id (children carry their parent's) says where in each topic to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dataflow.control.dead_letters import mark_of, redrive_times
from dataflow.control.records import OPAQUE, RecordReader, Stream, TapRecord
from dataflow.control.starts import start_of_id
from dataflow.control.streams import id_seeds, known_topics, read_messages
from dataflow.core import headers, ids
from dataflow.core.errors import DataflowError
from dataflow.core.limits import MAX_REQUEST_ROWS
from dataflow.planner.plan import DEAD_LETTERS, REPLIES, RESULTS, Plan, StagePlan
from dataflow.runtime.schemas import SchemaStore, reader_codecs
from dataflow.spec.loader import Project
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Message, Position

# How long after the time in the id its records are looked for, step by step.
WINDOWS_MS: Final = (5_000, 60_000, 600_000)
# Beyond it a search on a busy cluster ends unfinished, and says so.
MAX_SCANNED: Final = 2_000_000
# Ancestors of other times (a window's members) are looked for around at most so many times.
MAX_TIMES: Final = 20
# A record that dies again after each redrive is followed so many times.
MAX_REDRIVES: Final = 10
# Where callers are told: those who wait, and those who come back.
_TOLD: Final = (REPLIES, RESULTS)
_PREFIX: Final = 13  # characters of an id that say its time

Kind = Literal["record", "reply", "dead letter"]


@dataclass(frozen=True)
class Hop:
    """A record that belongs to the request. `streams` are the names of the edges whose record it is.

    `delta_ms` counts from the first hop. `status` is that of a reply, "failed" for a dead letter, else "written".
    """

    kind: Kind
    streams: tuple[str, ...]
    record: TapRecord
    delta_ms: int
    pipeline: str
    version: str
    node: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Trace:
    """All that was found, in the order of time.

    waiting    stages (pipeline.stage) that have not yet processed a record of the request
    ended      stages that did and wrote nothing that was found: the record was dropped there, or is a sink's
    complete   False if the search ended before all that was expected was found
    """

    id: str
    hops: tuple[Hop, ...]
    waiting: tuple[str, ...]
    ended: tuple[str, ...]
    scanned: int
    complete: bool


def trace(
    fabric: Fabric,
    plans: Mapping[str, Plan],
    record_id: str,
    *,
    project: Project | None = None,
    show_private: bool = False,
    windows_ms: Sequence[int] = WINDOWS_MS,
) -> Trace:
    """Find the request or record with this id, in all topics of `plans` and those that `project` declares.

    Raises SpecError for what is no id; finds no hops if it is not there.
    """
    begin_ms = start_of_id(record_id).time_ms
    wanted = record_id.strip().lower().encode()
    streams = known_topics(plans, project)
    search = _Search(fabric, streams, wanted)
    told = _Teller(fabric, plans, streams, search, show_private=show_private)
    upto_ms = begin_ms
    hops: tuple[Hop, ...] = ()
    accounts = _Accounts((), (), settled=False)
    for window_ms in windows_ms:
        end_ms = ids.time_ms_of(wanted) + window_ms
        search.sweep(upto_ms, end_ms)
        search.follow_times(begin_ms, end_ms)
        upto_ms = end_ms
        search.follow_redrives()
        hops = told.hops(search.related())
        accounts = _account(fabric, plans, hops)
        if accounts.settled or search.exhausted:
            break
    return Trace(
        record_id, hops, accounts.waiting, accounts.ended, search.scanned, not search.exhausted and bool(hops)
    )


class _Search:
    """Records whose ids (or parents' ids) bear one of the times looked for, gathered by sweeping over windows."""

    def __init__(self, fabric: Fabric, topics: Iterable[str], wanted: bytes) -> None:
        self._fabric = fabric
        self._wanted = wanted
        admin = fabric.admin()
        self.topics = admin.describe(sorted({*topics, DEAD_LETTERS, *_TOLD}))
        self.seeds = id_seeds(admin, self.topics)
        self._low = admin.offsets(list(self.seeds), EARLIEST)
        self._high = admin.offsets(list(self.seeds), LATEST)
        self._prefixes = {wanted[:_PREFIX]}
        self._seen: set[tuple[str, int, int]] = set()
        self._followed: set[tuple[int, int]] = set()
        self.found: dict[bytes, list[Message]] = {}
        self._parents: dict[bytes, set[bytes]] = {}
        self._children: dict[bytes, set[bytes]] = {}
        self.scanned = 0

    @property
    def exhausted(self) -> bool:
        return self.scanned >= MAX_SCANNED

    def sweep(self, from_ms: int, to_ms: int) -> None:
        """Gather from all topics what was written in [from, to)."""
        positions = list(self.seeds)
        admin = self._fabric.admin()
        starts, ends = admin.offsets(positions, from_ms), admin.offsets(positions, to_ms)
        starts = {p: min(max(o, self._low[p]), self._high[p]) for p, o in starts.items()}
        ends = {p: min(o, self._high[p]) for p, o in ends.items()}
        for messages in read_messages(self._fabric, starts, ends):
            self.scanned += len(messages)
            for message in messages:
                self._look_at(message)
            if self.exhausted:
                return

    def follow_times(self, begin_ms: int, end_ms: int) -> None:
        """Sweep again for the times of ancestors and descendants that are not the id's own."""
        for _ in range(3):
            related = self.related()
            new = {r[:_PREFIX] for r in related} - self._prefixes
            if not new or self.exhausted:
                return
            self._prefixes |= new
            times = sorted({ids.time_ms_of(r) for r in related if r[:_PREFIX] in new})[:MAX_TIMES]
            self.sweep(begin_ms, end_ms)
            for time_ms in times:
                if not begin_ms <= time_ms < end_ms:
                    self.sweep(max(time_ms - WINDOWS_MS[0], 0), time_ms + WINDOWS_MS[0])

    def follow_redrives(self) -> None:
        """Sweep when dead letters of the request were sent back, however much later that was."""
        for _ in range(MAX_REDRIVES):
            places = [
                (m.partition(), m.offset())
                for m in self._letters()
                if (m.partition(), m.offset()) not in self._followed
            ]
            if not places or self.exhausted:
                return
            times = redrive_times(self._fabric)
            for partition, offset in places:
                self._followed.add((partition, offset))
                time_ms = times.get(mark_of(self.topics[DEAD_LETTERS].topic_id, partition, offset))
                if time_ms is not None:
                    self.sweep(time_ms - WINDOWS_MS[0], time_ms + WINDOWS_MS[1])

    def _letters(self) -> list[Message]:
        return [m for r in self.related() for m in self.found.get(r, ()) if m.topic() == DEAD_LETTERS]

    def _look_at(self, message: Message) -> None:
        record_id = parents = b""
        for name, value in message.headers() or ():
            if name == headers.ID:
                record_id = value or b""
            elif name == headers.PARENTS:
                parents = value or b""
        position = message.topic(), message.partition()
        if len(record_id) != 36 or (record_id[:_PREFIX] in self._prefixes and ids.malformed([record_id])):
            time_ms = message.timestamp()[1]
            (record_id,) = ids.of_positions(self.seeds[position], [time_ms], [message.offset()])
        above = set(parents.split(b",")) if parents else set()
        if record_id[:_PREFIX] not in self._prefixes and not any(
            p[:_PREFIX] in self._prefixes for p in above
        ):
            return
        place = (*position, message.offset())
        if place not in self._seen:
            self._seen.add(place)
            above = {p for p in above if not ids.malformed([p])}  # strangers may write any bytes there
            self.found.setdefault(record_id, []).append(message)
            self._parents.setdefault(record_id, set()).update(above)
            for parent in above:
                self._children.setdefault(parent, set()).add(record_id)

    def related(self) -> set[bytes]:
        """The id with its ancestors and descendants; the ids of its rows where it is a request of many rows."""
        begin = {self._wanted}
        if self._wanted not in self.found and self._wanted not in self._children:
            rows = (ids.child(self._wanted, "gateway", "in", row) for row in range(MAX_REQUEST_ROWS))
            begin |= {r for r in rows if r in self.found}
        return _closure(begin, self._parents) | _closure(begin, self._children)


def _closure(begin: set[bytes], links: Mapping[bytes, set[bytes]]) -> set[bytes]:
    found, open_ = set(begin), list(begin)
    while open_:
        for other in links.get(open_.pop(), ()):
            if other not in found:
                found.add(other)
                open_.append(other)
    return found


class _Teller:
    """Makes hops of found messages: what edge, whose work, which value."""

    def __init__(
        self,
        fabric: Fabric,
        plans: Mapping[str, Plan],
        streams: Mapping[str, Stream],
        search: _Search,
        *,
        show_private: bool,
    ) -> None:
        self._plans = plans
        self._search = search
        self._schemas = SchemaStore(fabric)
        self._show_private = show_private
        self._streams = streams
        self._readers: dict[str, RecordReader] = {}
        self._names: dict[str, list[str]] = {}
        for plan in plans.values():
            for edge in plan.streams:
                for topic in edge.topics:
                    self._names.setdefault(topic, []).append(f"{plan.pipeline}.{edge.name}")

    def hops(self, related: Iterable[bytes]) -> tuple[Hop, ...]:
        messages = [m for r in related for m in self._search.found.get(r, ())]
        first_ms = min((m.timestamp()[1] for m in messages), default=0)
        hops = [self._hop(m, first_ms) for m in messages]
        return tuple(sorted(hops, key=self._order))

    def _order(self, hop: Hop) -> tuple[int, ...]:
        """By time; within a millisecond as the pipeline goes: its inputs, its nodes in order, what ended there."""
        record = hop.record
        plan = self._plans.get(hop.pipeline)
        nodes = [node for stage in plan.stages for node in stage.nodes] if plan is not None else []
        node = nodes.index(hop.node) if hop.node in nodes else -1
        ended = ("record", "dead letter", "reply").index(hop.kind)
        return record.time_ms, record.attempt, ended, node, record.partition, record.offset

    def _hop(self, message: Message, first_ms: int) -> Hop:
        topic = message.topic()
        (record,) = self._reader(topic).read([message])
        pipeline, _, rest = record.origin.partition("@")
        version, _, node = rest.partition("/")
        kind: Kind = "record"
        status, reason = "written", ""
        if topic in _TOLD:
            kind, status = "reply", record.header(headers.STATUS).decode() or "ok"
            reason = record.header(headers.REASON).decode("utf-8", "replace")
        elif topic == DEAD_LETTERS:
            kind, status = "dead letter", "failed"
            pipeline, _, node = record.header(headers.ERROR_NODE).decode("utf-8", "replace").partition("/")
            version = record.header(headers.ERROR_VERSION).decode().partition("@")[2]
            error, why = record.header(headers.ERROR), record.header(headers.ERROR_MESSAGE)
            reason = f"{error.decode('utf-8', 'replace')}: {why.decode('utf-8', 'replace')}"
        names = tuple(self._names.get(topic, (topic,)))
        delta_ms = record.time_ms - first_ms
        return Hop(kind, names, record, delta_ms, pipeline, version, node, status, reason)

    def _reader(self, topic: str) -> RecordReader:
        if topic not in self._readers:
            # Replies are of any answer's contract; the answer's own edge shows the value.
            opaque = topic in (*_TOLD, DEAD_LETTERS)
            stream = Stream(topic, (topic,), OPAQUE, "raw") if opaque else self._streams[topic]
            codecs = reader_codecs(self._schemas, stream.codec, stream.schema)
            self._readers[topic] = RecordReader(
                stream, codecs, self._search.seeds, show_private=self._show_private
            )
        return self._readers[topic]


@dataclass(frozen=True)
class _Accounts:
    waiting: tuple[str, ...]
    ended: tuple[str, ...]
    settled: bool


def _account(fabric: Fabric, plans: Mapping[str, Plan], hops: Sequence[Hop]) -> _Accounts:
    """What each stage that reads a found record did with it: not yet processed, something found, or nothing found."""
    waiting: dict[str, None] = {}
    ended: dict[str, None] = {}
    for plan in plans.values():
        for stage in plan.stages:
            read = [h for h in hops if h.kind == "record" and _reads(plan, stage, h.record.topic)]
            if not read:
                continue
            name = f"{plan.pipeline}.{stage.name}"
            committed = _committed(fabric, stage, {(h.record.topic, h.record.partition) for h in read})
            late = [
                h for h in read if h.record.offset >= committed.get((h.record.topic, h.record.partition), 0)
            ]
            if late:
                waiting[name] = None
            elif not any(_comes_from(plan, stage, read, h) for h in hops):
                ended[name] = None
    return _Accounts(tuple(waiting), tuple(ended), settled=bool(hops) and not waiting and not ended)


def _committed(fabric: Fabric, stage: StagePlan, positions: Iterable[Position]) -> dict[Position, int]:
    try:
        return fabric.admin().group_offsets(stage.group, sorted(positions))
    except DataflowError:
        return {}  # not allowed to ask: it counts as not yet processed


def _reads(plan: Plan, stage: StagePlan, topic: str) -> bool:
    return any(topic in edge.topics for edge in plan.fetched(stage))


def _comes_from(plan: Plan, stage: StagePlan, read: Sequence[Hop], hop: Hop) -> bool:
    if hop.kind == "dead letter":
        places = {(h.record.topic, str(h.record.partition), str(h.record.offset)) for h in read}
        names = (headers.ERROR_TOPIC, headers.ERROR_PARTITION, headers.ERROR_OFFSET)
        place = tuple(hop.record.header(n).decode("utf-8", "replace") for n in names)
        return hop.pipeline == plan.pipeline and place in places
    return hop.kind == "record" and hop.pipeline == plan.pipeline and hop.node in stage.nodes
