"""How many bytes a pipeline writes for each byte it is given, estimated from the contracts alone.

One typical record of each edge is really encoded by the edge's codec: texts and bytes of 12, whole numbers of a
million (or the type's largest), lists and free dimensions of 4, nothing null. Every node is taken to give one record
on each port for each record it gets: an upper bound for routers and filters, too low for nodes that fan out and for
loops, which count as one round. Keys, headers, compression and replication are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

import numpy as np

from dataflow.codecs import codec_for
from dataflow.core.schema import FLOATS, INTEGERS, FieldType, Schema, column_of
from dataflow.planner.plan import EdgePlan, Plan

TYPICAL_LENGTH: Final = 12
TYPICAL_ITEMS: Final = 4
TYPICAL_INTEGER: Final = 1_000_000


@dataclass(frozen=True)
class WriteEstimate:
    """Bytes per record of the input (of each, where there are several), and what is written for them.

    `by_edge` counts an edge's own topic and the topics it is published to.
    """

    read_bytes: float
    by_edge: Mapping[str, float]

    @property
    def written_bytes(self) -> float:
        return sum(self.by_edge.values())

    @property
    def ratio(self) -> float | None:
        """Bytes written per byte read; None for a pipeline without inputs."""
        return self.written_bytes / self.read_bytes if self.read_bytes else None


def estimate_writes(plan: Plan) -> WriteEstimate:
    """The estimate for one record on each input of `plan`."""
    records = _records_by_edge(plan)
    read = sum(record_bytes(e.schema, e.codec) for e in plan.edges.values() if not e.node)
    return WriteEstimate(
        float(read), {e.name: records[e.name] * _written(e) for e in plan.edges.values() if e.node}
    )


def _written(edge: EdgePlan) -> int:
    own = record_bytes(edge.schema, edge.codec) if edge.write else 0
    return own + sum(record_bytes(p.schema, p.codec) for p in edge.publish)


def _records_by_edge(plan: Plan) -> dict[str, float]:
    """Records on each edge for one record on each input, or from each source."""
    records = {e.name: 1.0 for e in plan.edges.values() if not e.node}
    # The first round is counted, once: how many follow is not in the contracts.
    records |= {e.name: 0.0 for e in plan.edges.values() if e.loop}
    waiting = dict(plan.nodes)
    while waiting:
        ready = [n for n in waiting.values() if all(e in records for es in n.inputs.values() for e in es)]
        assert ready, "a plan has no cycle but loops"
        for node in ready:
            fed = sum(records[e] for edges in node.inputs.values() for e in edges)
            records.update(dict.fromkeys(node.outputs.values(), fed if node.inputs else 1.0))
            del waiting[node.name]
    return records


def record_bytes(schema: Schema, codec: str) -> int:
    """Length of one typical record of a contract under a codec."""
    columns = {f.name: column_of(f.type, [typical_value(f.type)]) for f in schema}
    encoded = codec_for(codec, schema).encode(columns, 1)
    assert encoded.values[0] is not None, f"a typical record of {schema.describe()} encodes"
    return len(encoded.values[0])


def typical_value(field_type: FieldType) -> Any:
    """A value of a type, the same each time: what estimates are made with."""
    kind = field_type.kind
    if field_type.shape:
        shape = [TYPICAL_ITEMS if size == -1 else size for size in field_type.shape]
        return np.full(shape, typical_value(FieldType(kind)), dtype=kind)
    if kind in INTEGERS:
        return min(TYPICAL_INTEGER, int(np.iinfo(kind).max))
    if kind in FLOATS:
        return float(np.dtype(kind).type(1 / 3))
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        return [typical_value(field_type.item)] * TYPICAL_ITEMS
    if kind == "record":
        return {f.name: typical_value(f.type) for f in field_type.fields}
    if kind == "enum":
        return field_type.symbols[0]
    if kind == "decimal":
        return Decimal(1).scaleb(-field_type.scale)
    return {
        "bool": True,
        "string": "x" * TYPICAL_LENGTH,
        "bytes": b"x" * TYPICAL_LENGTH,
        "timestamp": datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None),
        "date": date(2024, 1, 1),
    }[kind]
