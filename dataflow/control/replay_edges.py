"""What a replay wrote on an edge against what was recorded there, record by record, by id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dataflow.control.records import Stream
from dataflow.control.replay_ledger import Ledger, Wire
from dataflow.control.replay_plan import Shadow
from dataflow.control.replay_report import MAX_LISTED, EdgeComparison, MissingRecord
from dataflow.control.replay_stretch import Stretch, ids_of
from dataflow.control.replay_values import Comparer, Side
from dataflow.control.streams import id_seeds, read_messages
from dataflow.core import headers, ids
from dataflow.planner.plan import DEAD_LETTERS, EdgePlan, Plan
from dataflow.runtime.schemas import SchemaStore, reader_codecs
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Message, Position

# Outputs are looked for from a little before the first record of the stretch (clocks differ) to this long after its
# last one, and everywhere else only if some are not found there.
SLACK_MS: Final = 10_000
LATE_MS: Final = 600_000


@dataclass(frozen=True)
class Judge:
    """Compares the edges of one replay; `recorded` is the plan of the recording."""

    fabric: Fabric
    ledger: Ledger
    recorded: Plan
    shadow: Shadow
    tolerance: float
    show_private: bool
    begin_ms: int
    end_ms: int

    def compare(self, name: str) -> EdgeComparison:
        """One edge; those upstream of it first, so that what comes of the stretch is known."""
        result = EdgeComparison(name)
        old, new = self.shadow.compared[name], self.shadow.plan.edges[name]
        self.ledger.begin_edge()
        self._take_replayed(new, result)
        comparer = Comparer(
            self._side(self.recorded, old),
            self._side(self.shadow.plan, new),
            self.tolerance,
            result,
            show_private=self.show_private,
        )
        admin = self.fabric.admin()
        topics = admin.describe(old.topics)
        if not topics:
            result.notes.append(f"its topic {', '.join(old.topics)} is gone")
        positions = [(n, p) for n, info in topics.items() for p in range(info.partitions)]
        low, high = admin.offsets(positions, EARLIEST), admin.offsets(positions, LATEST)
        first, last = self._around(positions, low, high)
        seeds = id_seeds(admin, topics)
        self._scan(first, last, seeds, comparer, result)
        if self.ledger.left:
            self._scan(low, first, seeds, comparer, result)
            self._scan(last, high, seeds, comparer, result)
        comparer.flush()
        result.extra = self.ledger.left
        result.extra_records = list(self.ledger.unmatched(MAX_LISTED))
        if result.extra and any(low[p] and first[p] == low[p] for p in positions):
            result.notes.append(
                "the recording no longer holds all records of that time: some are extra because retention took them"
            )
        return result

    def _side(self, plan: Plan, edge: EdgePlan) -> Side:
        find = reader_codecs(SchemaStore(self.fabric), edge.codec, edge.schema)
        return Side(Stream.of_edge(plan, edge), find)

    def _around(
        self, positions: Sequence[Position], low: Mapping[Position, int], high: Mapping[Position, int]
    ) -> tuple[dict[Position, int], dict[Position, int]]:
        """Where the outputs of the stretch are, most likely."""
        admin = self.fabric.admin()
        first = admin.offsets(positions, max(self.begin_ms - SLACK_MS, 0))
        last = admin.offsets(positions, self.end_ms + LATE_MS)
        first = {p: min(max(first[p], low[p]), high[p]) for p in positions}
        return first, {p: min(max(last[p], first[p]), high[p]) for p in positions}

    def _take_replayed(self, edge: EdgePlan, result: EdgeComparison) -> None:
        admin = self.fabric.admin()
        topics = admin.describe(edge.topics)
        seeds = id_seeds(admin, topics)
        low, high = admin.offsets(list(seeds), EARLIEST), admin.offsets(list(seeds), LATEST)
        for messages in read_messages(self.fabric, low, high):
            for message, record_id in zip(messages, ids_of(messages, seeds), strict=True):
                if not self.ledger.put_replayed(record_id, _wire(message)):
                    result.repeated += 1

    def _scan(
        self,
        starts: Mapping[Position, int],
        ends: Mapping[Position, int],
        seeds: Mapping[Position, int],
        comparer: Comparer,
        result: EdgeComparison,
    ) -> None:
        """Match the recorded records between offsets; the last chance of those that are of the stretch."""
        for messages in read_messages(self.fabric, starts, ends):
            for message, record_id in zip(messages, ids_of(messages, seeds), strict=True):
                parents = _parents(message)
                ours = self.ledger.belongs(record_id, parents) or self.ledger.was_replayed(record_id)
                if not ours:
                    continue
                wire = _wire(message)
                if not self.ledger.put_recorded(record_id, wire):
                    result.repeated += 1
                    continue
                version = _header(message, headers.ORIGIN).partition("/")[0].partition("@")[2]
                result.versions[version] = result.versions.get(version, 0) + 1
                replayed = self.ledger.match(record_id, wire)
                if replayed is not None:
                    comparer.add(record_id.decode(), wire, replayed)
                    continue
                result.missing += 1
                if len(result.missing_records) < MAX_LISTED:
                    reason = self.ledger.letter([record_id, *parents])
                    result.missing_records.append(MissingRecord(record_id.decode(), reason))


def note_letters(fabric: Fabric, shadow: Shadow, ledger: Ledger) -> dict[str, int]:
    """Read the dead letters of the replay: how many, by "node: error"; the ledger knows the reason of each."""
    counts: dict[str, int] = {}
    topic = shadow.renamed[DEAD_LETTERS]
    admin = fabric.admin()
    seeds = id_seeds(admin, admin.describe([topic]))
    low, high = admin.offsets(list(seeds), EARLIEST), admin.offsets(list(seeds), LATEST)
    for messages in read_messages(fabric, low, high):
        for message, record_id in zip(messages, ids_of(messages, seeds), strict=True):
            node = _header(message, headers.ERROR_NODE).partition("/")[2] or "(reading)"
            name = f"{node}: {_header(message, headers.ERROR)}"
            counts[name] = counts.get(name, 0) + 1
            ledger.note_letter(record_id, f"{name}: {_header(message, headers.ERROR_MESSAGE)}")
    return counts


def behind(fabric: Fabric, recorded: Plan, stretches: Sequence[Stretch]) -> Iterator[str]:
    """Stages of the recording that have not processed all of the stretch yet."""
    for stage in recorded.stages:
        for stretch in stretches:
            if stretch.edge not in stage.reads:
                continue
            wanted = {p: e for p, e in stretch.ends.items() if e > stretch.starts[p]}
            done = fabric.admin().group_offsets(stage.group, list(wanted))
            left = sum(max(end - max(done.get(p, 0), stretch.starts[p]), 0) for p, end in wanted.items())
            if left:
                yield (
                    f"stage '{stage.name}' of the pipeline itself has not processed {left} records of the stretch: "
                    "what is extra may still be recorded"
                )


def _wire(message: Message) -> Wire:
    return Wire(message.value(), message.key(), _header(message, headers.SCHEMA).encode())


def _parents(message: Message) -> list[bytes]:
    said = _header(message, headers.PARENTS)
    found = said.encode().split(b",") if said else []
    strange = set(ids.malformed(found))
    return [p for i, p in enumerate(found) if i not in strange]


def _header(message: Message, name: str) -> str:
    found = next((v for n, v in reversed(message.headers() or ()) if n == name), None)
    return (found or b"").decode("utf-8", "replace")
