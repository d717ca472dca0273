"""What a replay found. Plain data; `document` is what ``--json`` prints and the HTML page is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Records listed one by one, of each edge and kind of difference; the counts are of all.
MAX_LISTED: Final = 1_000


@dataclass(frozen=True)
class FieldDifference:
    """One value that is not as it was. `path` leads to it; ``(key)`` is the record key, ``(record)`` all of it."""

    id: str
    path: str
    recorded: str
    replayed: str


@dataclass
class FieldSummary:
    """How many records differ in a field, and the largest difference of its numbers (0 where it has none)."""

    records: int = 0
    largest: float = 0.0


@dataclass(frozen=True)
class MissingRecord:
    """A recorded record that the replay did not give. `reason` is its failure there, "" if it did not fail."""

    id: str
    reason: str = ""


@dataclass
class EdgeComparison:
    """One edge. `equal` are bytes or values alike, `within` differ by no more than the tolerance.

    repeated     records that were recorded, or replayed, more than once, byte for byte; they count once
    versions     how many of the recorded records each version of the pipeline wrote
    """

    edge: str
    equal: int = 0
    within: int = 0
    differing: int = 0
    missing: int = 0
    extra: int = 0
    repeated: int = 0
    fields: dict[str, FieldSummary] = field(default_factory=dict)
    differences: list[FieldDifference] = field(default_factory=list)
    missing_records: list[MissingRecord] = field(default_factory=list)
    extra_records: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def recorded(self) -> int:
        return self.equal + self.within + self.differing + self.missing

    @property
    def replayed(self) -> int:
        return self.equal + self.within + self.differing + self.extra

    @property
    def same(self) -> bool:
        return not (self.differing or self.missing or self.extra)


@dataclass(frozen=True)
class FedEdge:
    """What was fed to an edge: how many records, of which times (Unix ms) and offsets (``topic/partition: from..to``)."""

    edge: str
    records: int
    first_ms: int
    last_ms: int
    offsets: tuple[str, ...]


@dataclass
class ReplayReport:
    """All of it. `failed` counts dead letters by "node: error", `dropped` by "node: reason"."""

    pipeline: str
    recorded_version: str
    replayed_version: str
    changed: str = ""
    tolerance: float = 0.0
    fed: list[FedEdge] = field(default_factory=list)
    edges: list[EdgeComparison] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)
    off: dict[str, str] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        return all(edge.same for edge in self.edges)


def document(report: ReplayReport) -> dict[str, Any]:
    """The report as JSON says it."""
    made: dict[str, Any] = dataclasses.asdict(report)
    made["same"] = report.same
    for told, edge in zip(made["edges"], report.edges, strict=True):
        told |= {"recorded": edge.recorded, "replayed": edge.replayed, "same": edge.same}
    return made


def totals(report: ReplayReport) -> Mapping[str, int]:
    """The counts over all edges."""
    names = ("recorded", "replayed", "equal", "within", "differing", "missing", "extra")
    return {name: sum(getattr(edge, name) for edge in report.edges) for name in names}
