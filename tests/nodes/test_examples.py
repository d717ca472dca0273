"""What `dataflow nodes show KIND` prints as an example lints, plans and runs."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflow.control.assemble import assemble
from dataflow.core.schema import FieldType, Schema
from dataflow.registry import Registry
from dataflow.testing import PipelineRun
from dataflow.testing.examples import write_example_files

KINDS = Registry.default(None).kinds()
RECORDS = 40


def sample(field_type: FieldType, index: int) -> Any:
    """A plain value of a type, a different one for each index where the type has many."""
    if field_type.shape:
        shape = [3 if size == -1 else size for size in field_type.shape]
        return np.full(shape, index % 2, dtype=field_type.kind).tolist()
    simple: dict[str, Any] = {
        "bool": index % 2 == 0,
        "string": str(index % 5),  # some examples cast it to a number
        "bytes": b"bytes",
        "timestamp": datetime(2024, 5, 1, tzinfo=UTC) + timedelta(minutes=index),
        "date": date(2024, 5, 1) + timedelta(days=index),
        "decimal": Decimal(index).scaleb(-field_type.scale),
    }
    if field_type.kind in simple:
        return simple[field_type.kind]
    if field_type.kind == "enum":
        return field_type.symbols[index % len(field_type.symbols)]
    if field_type.kind == "list":
        assert field_type.item is not None
        return [sample(field_type.item, index)]
    if field_type.kind == "record":
        return {f.name: sample(f.type, index) for f in field_type.fields}
    return index if "int" in field_type.kind else index / 2


def records(schema: Schema) -> list[dict[str, Any]]:
    return [{f.name: sample(f.type, i) for f in schema} for i in range(RECORDS)]


@pytest.mark.parametrize("name", [k.name for k in KINDS])
def test_example_runs(name: str, tmp_path: Path) -> None:
    kind = next(k for k in KINDS if k.name == name)
    folder = tmp_path / "pipelines" / "example"
    folder.mkdir(parents=True)
    (tmp_path / "dataflow.yaml").write_text("kind: Project\nname: example\n")
    (folder / "pipeline.yaml").write_text(kind.example)
    write_example_files(kind.example, folder)
    assembled = assemble(tmp_path, environ={})
    assert any(n.kind == name for p in assembled.plans for n in p.nodes.values())
    for plan in assembled.plans:
        if any(stage.source for stage in plan.stages):
            continue  # fed from outside Kafka: tests/runtime/test_feeder.py runs it
        tables = {n: records(t.schema) for n, t in plan.tables.items() if t.topic}
        with PipelineRun(tmp_path, plan, assembled.registry, tables=tables) as run:
            outside = {n for stage in plan.stages if stage.outside for n in stage.nodes}
            for edge in (*plan.inputs, *(e.name for e in plan.edges.values() if e.node in outside)):
                run.feed(edge, records(plan.edges[edge].schema))
            run.settle()
            result = run.result()
        assert not result.dead_letters
        taken = sum(m.records for m in run.shop.metrics.nodes.values())
        assert taken >= RECORDS
