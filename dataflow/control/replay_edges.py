"""What a replay wrote on an edge against what was recorded there, record by record, by id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dataflow.control.records import Stream
from dataflow.control.replay_ledger import Ledger, Wire
from dataflow.control.replay_plan import Shadow
from dataflow.control.replay_report import MAX_LISTED, EdgeComparison, MissingRecord
from dataflow.control.replay_stretch import Stretch, headers_of, ids_of
from dataflow.control.replay_values import Comparer, Side
from dataflow.control.streams import id_seeds, read_messages
from dataflow.core import headers, ids
from dataflow.planner.plan import DEAD_LETTERS, EdgePlan, Plan
from dataflow.runtime.schemas import SchemaStore, reader_codecs
from dataflow.transport.api import EARLIEST, LATEST, Fabric, Position

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
        self.ledger.end_edge()
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
        seeds = id_seeds(admin, admin.describe(edge.topics))
        low, high = admin.offsets(list(seeds), EARLIEST), admin.offsets(list(seeds), LATEST)
        for record_id, wire, _ in _records(self.fabric, low, high, seeds):
            if not self.ledger.put_replayed(record_id, wire):
                result.repeated += 1

    def _scan(
        self,
        starts: Mapping[Position, int],
        ends: Mapping[Position, int],
        seeds: Mapping[Position, int],
        comparer: Comparer,
        result: EdgeComparison,
    ) -> None:
        """Match the recorded records between offsets."""
        ledger = self.ledger
        for record_id, wire, named in _records(self.fabric, starts, ends, seeds):
            replayed: Wire | None = None
            if ledger.match_equal(record_id, wire):
                result.equal += 1
            elif not ledger.was_replayed(record_id) and not ledger.belongs(record_id, _parents(named)):
                continue
            elif ledger.came_before(record_id, wire):
                result.repeated += 1
                continue
            elif (replayed := ledger.match(record_id)) is not None:
                comparer.add(record_id.decode(), wire, replayed)
            else:
                self._miss(record_id, named, result)
            origin, _, _ = named.get(headers.ORIGIN, b"").decode("utf-8", "replace").partition("/")
            version = origin.partition("@")[2]
            result.versions[version] = result.versions.get(version, 0) + 1

    def _miss(self, record_id: bytes, named: Mapping[str, bytes], result: EdgeComparison) -> None:
        result.missing += 1
        self.ledger.add([record_id])
        if len(result.missing_records) < MAX_LISTED:
            reason = self.ledger.letter([record_id, *_parents(named)])
            result.missing_records.append(MissingRecord(record_id.decode(), reason))


def _records(
    fabric: Fabric,
    starts: Mapping[Position, int],
    ends: Mapping[Position, int],
    seeds: Mapping[Position, int],
) -> Iterator[tuple[bytes, Wire, dict[str, bytes]]]:
    """The records between offsets: id, bytes, headers by name."""
    for messages in read_messages(fabric, starts, ends):
        named = [headers_of(m) for m in messages]
        for message, found, record_id in zip(messages, named, ids_of(messages, named, seeds), strict=True):
            yield record_id, Wire(message.value(), message.key(), found.get(headers.SCHEMA, b"")), found


def note_letters(fabric: Fabric, shadow: Shadow, ledger: Ledger) -> dict[str, int]:
    """Read the dead letters of the replay: how many, by "node: error"; the ledger knows the reason of each."""
    counts: dict[str, int] = {}
    admin = fabric.admin()
    seeds = id_seeds(admin, admin.describe([shadow.renamed[DEAD_LETTERS]]))
    low, high = admin.offsets(list(seeds), EARLIEST), admin.offsets(list(seeds), LATEST)
    for record_id, _, named in _records(fabric, low, high, seeds):
        said = {n: v.decode("utf-8", "replace") for n, v in named.items() if n in headers.ON_DEAD_LETTER}
        node = said.get(headers.ERROR_NODE, "").partition("/")[2] or "(reading)"
        name = f"{node}: {said.get(headers.ERROR, '')}"
        counts[name] = counts.get(name, 0) + 1
        ledger.note_letter(record_id, f"{name}: {said.get(headers.ERROR_MESSAGE, '')}")
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


def _parents(named: Mapping[str, bytes]) -> list[bytes]:
    said = named.get(headers.PARENTS)
    found = said.split(b",") if said else []
    strange = set(ids.malformed(found))
    return [p for i, p in enumerate(found) if i not in strange]
