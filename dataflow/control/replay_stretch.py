"""The stretch of a recording: which offsets it is, and its records onto the topics of a replay, under their own ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dataflow.control.replay_ledger import Ledger
from dataflow.control.replay_report import FedEdge
from dataflow.control.starts import Start
from dataflow.control.streams import id_seeds, read_at, read_messages
from dataflow.core import headers, ids
from dataflow.core.errors import OffsetOutOfRangeError, SpecError, TopicGoneError, TransportError
from dataflow.planner.plan import EdgePlan
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Header, Message, Position, Producer

FLUSH_S: Final = 120.0
# Nobody waits for what a replay gives; the id is written anew, for some have none.
_SHED: Final = frozenset({headers.ID, headers.REPLY_TO, headers.DEADLINE})


@dataclass(frozen=True)
class Stretch:
    """Offsets of one edge's topics, end exclusive."""

    edge: str
    starts: Mapping[Position, int]
    ends: Mapping[Position, int]

    @property
    def size(self) -> int:
        return sum(max(self.ends[p] - self.starts[p], 0) for p in self.starts)

    @property
    def partitions(self) -> int:
        return max(p for _, p in self.starts) + 1


def find_stretch(fabric: Fabric, edge: EdgePlan, begin: Start, end: Start) -> Stretch:
    """The records of an edge from `begin` to `end` (not included).

    Raises TopicGoneError where it has no topic, OffsetOutOfRangeError where its begin is not there any more, SpecError
    where there is nothing in it; each says what there is.
    """
    admin = fabric.admin()
    topics = admin.describe(edge.topics)
    if not topics:
        raise TopicGoneError(f"no topic of edge '{edge.name}' exists: {', '.join(edge.topics)}")
    positions = [(name, p) for name, info in topics.items() for p in range(info.partitions)]
    low, high = admin.offsets(positions, EARLIEST), admin.offsets(positions, LATEST)
    starts = begin.offsets(admin, positions, low, high)
    ends = end.offsets(admin, positions, low, high)
    for position in positions:
        if starts[position] == low[position] > 0 and _is_gone(fabric, position, begin, low[position]):
            raise OffsetOutOfRangeError(
                f"edge '{edge.name}' does not hold all of that stretch any more. There is: {_what(fabric, positions, low, high)}",
                hint="--from earliest takes what is left",
            )
    found = Stretch(edge.name, starts, ends)
    if found.size == 0:
        raise SpecError(
            f"edge '{edge.name}' has no record in that stretch. There is: {_what(fabric, positions, low, high)}",
            hint="times are UTC unless they say otherwise",
        )
    return found


def _is_gone(fabric: Fabric, position: Position, begin: Start, low: int) -> bool:
    """Whether records of the stretch were before the first that is still there."""
    if begin.time_ms < 0:
        return 0 <= begin.offset < low
    first = read_at(fabric, position, low)
    return first is None or first.timestamp()[1] > begin.time_ms


def _what(
    fabric: Fabric, positions: Sequence[Position], low: Mapping[Position, int], high: Mapping[Position, int]
) -> str:
    """What the log holds, for an error."""
    told = []
    for position in positions[:8]:
        name = f"{position[0]}/{position[1]}"
        if low[position] >= high[position]:
            told.append(f"{name}: nothing")
            continue
        first, last = (read_at(fabric, position, o) for o in (low[position], high[position] - 1))
        times = [time_text(m.timestamp()[1]) for m in (first, last) if m is not None]
        told.append(f"{name}: offsets {low[position]} to {high[position] - 1} ({' to '.join(times)})")
    more = len(positions) - len(told)
    return "; ".join(told) + (f"; and {more} more partitions" if more else "")


def time_text(time_ms: int) -> str:
    """A time as ``--from`` and ``--to`` take it."""
    return (
        datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


class _Tally:
    """Of one fed edge: how many, of which times."""

    def __init__(self) -> None:
        self.records = 0
        self.first_ms = -1
        self.last_ms = -1

    def note(self, time_ms: int) -> None:
        self.records += 1
        self.first_ms = time_ms if self.first_ms < 0 else min(self.first_ms, time_ms)
        self.last_ms = max(self.last_ms, time_ms)


class Feeder:
    """Writes stretches onto the replay's topics, in the order of their times over all of them.

    Records keep partition, key, bytes, time and headers; what came without an id gets the one that the engine gave it.
    """

    def __init__(self, source: Fabric, shadow: Fabric, targets: Mapping[str, str], ledger: Ledger) -> None:
        self._source = source
        self._shadow = shadow
        self._targets = dict(targets)
        self._ledger = ledger
        self._refused = ""
        admin = source.admin()
        self._seeds = id_seeds(admin, admin.describe(sorted(targets)))

    def feed(self, stretches: Sequence[Stretch], on_progress: Callable[[int, int], None]) -> list[FedEdge]:
        """All of it, acknowledged. `on_progress` gets how many, and of how many. Raises TransportError."""
        starts = {p: o for s in stretches for p, o in s.starts.items()}
        ends = {p: o for s in stretches for p, o in s.ends.items()}
        total = sum(max(ends[p] - starts[p], 0) for p in starts)
        tallies = {topic: _Tally() for topic, _ in starts}
        producer = self._shadow.producer(latency_first=False)
        sent = 0
        try:
            for messages in read_messages(self._source, starts, ends):
                self._send(producer, messages)
                for message in messages:
                    tallies[message.topic()].note(message.timestamp()[1])
                sent += len(messages)
                on_progress(sent, total)
            left = producer.flush(FLUSH_S)
        finally:
            producer.close()
        if left or self._refused:
            raise TransportError(
                f"feeding the replay: {self._refused or f'{left} records were not acknowledged'}"
            )
        return [_fed(s, tallies) for s in stretches]

    def _send(self, producer: Producer, messages: Sequence[Message]) -> None:
        record_ids = ids_of(messages, [headers_of(m) for m in messages], self._seeds)
        self._ledger.add(record_ids)
        for message, record_id in zip(messages, record_ids, strict=True):
            head: list[Header] = [(headers.ID, record_id)]
            head += [h for h in message.headers() or () if h[0] not in _SHED]
            producer.send(
                self._targets[message.topic()],
                message.value(),
                message.key(),
                head,
                message.partition(),
                self._delivered,
                max(message.timestamp()[1], 0),
            )
        producer.poll(0)

    def _delivered(self, error: object | None, message: object) -> None:
        del message
        if error is not None:
            self._refused = self._refused or str(error)


def headers_of(message: Message) -> dict[str, bytes]:
    """The headers by name; of several of one name the last."""
    return {name: value or b"" for name, value in message.headers() or ()}


def ids_of(
    messages: Sequence[Message], named: Sequence[Mapping[str, bytes]], seeds: Mapping[Position, int]
) -> list[bytes]:
    """The id of each record, as the engine sees it; `named` are its headers."""
    found = [n.get(headers.ID, b"") for n in named]
    nameless: dict[Position, list[int]] = {}
    for index in ids.malformed(found):
        nameless.setdefault((messages[index].topic(), messages[index].partition()), []).append(index)
    for position, indices in nameless.items():
        chosen = [messages[i] for i in indices]
        made = ids.of_positions(
            seeds[position], [m.timestamp()[1] for m in chosen], [m.offset() for m in chosen]
        )
        for index, record_id in zip(indices, made, strict=True):
            found[index] = record_id
    return found


def _fed(stretch: Stretch, tallies: Mapping[str, _Tally]) -> FedEdge:
    found = [t for topic in {t for t, _ in stretch.starts} if (t := tallies[topic]).records]
    offsets = [
        f"{topic}/{partition}: {start}..{stretch.ends[topic, partition] - 1}"
        for (topic, partition), start in stretch.starts.items()
        if stretch.ends[topic, partition] > start
    ]
    return FedEdge(
        stretch.edge,
        sum(t.records for t in found),
        min((t.first_ms for t in found), default=-1),
        max((t.last_ms for t in found), default=-1),
        tuple(offsets),
    )
