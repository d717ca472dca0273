"""Run a node that takes all its sides at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataflow.core.batch import Batch, Row, to_list
from dataflow.core.outcomes import Out
from dataflow.core.schema import Schema
from dataflow.sdk import Sides
from dataflow.testing import NodeResult, build_node
from dataflow.testing.nodes import kind_of

Records = Sequence[Mapping[str, Any]]


def row(name: int | str, source: int | None = None, parent: int | str | None = None) -> Row:
    """A row whose id is made of a short name."""
    made = f"{name:0>8}-0000-7000-8000-000000000000".encode()
    parents = () if parent is None else (f"{parent:0>8}-0000-7000-8000-000000000000".encode(),)
    at = source if source is not None else int(name) if isinstance(name, int) else 0
    return Row(made, b"k", at, parents=parents)


def gather(
    target: Callable[..., Any],
    inputs: Mapping[str, Schema],
    sides: Mapping[str, tuple[Sequence[Row], Records]],
    settings: Mapping[str, Any] | None = None,
    keep: Sequence[str] | None = None,
) -> NodeResult:
    """What the node makes of rows and records by side, each row settled. Rows are counted over the sides by name.

    Sides without a row are left out, as the engine does.
    """
    made = build_node(target, inputs, settings, keep=keep)
    given = sorted((p, rows, records) for p, (rows, records) in sides.items() if rows)
    batches = {port: Batch.of(inputs[port], records, rows) for port, rows, records in given}
    kind = kind_of(target)
    ports = kind.ports(kind.settings.model_validate(dict(settings or {})))
    every = Batch(Schema(()), {}, [r for _, rows, _ in given for r in rows])
    out = Out(every, ports)
    made.gather(Sides.of(batches), out)  # type: ignore[attr-defined]  # a kind that gathers has it
    out.settle()
    result = NodeResult({p: [] for p in ports}, {p: [] for p in ports}, [], [])
    for emission in out.emissions:
        columns = [to_list(column) for column in emission.columns.values()]
        result.ports[emission.port].extend(
            dict(zip(emission.columns, cells, strict=True)) for cells in zip(*columns, strict=True)
        )
        result.parents[emission.port].extend(emission.parents.tolist())
    result.dropped.extend((loss.row, loss.reason) for loss in out.dropped)
    result.failed.extend((loss.row, loss.reason) for loss in out.failed)
    return result
