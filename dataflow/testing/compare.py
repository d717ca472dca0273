"""Records found against records expected: what an inline test passes or fails by. Pure.

An expected record is partial: only the fields it names are compared, at any depth. The records of an edge come in
the order in which they were emitted, and there are exactly as many as expected. Floating-point numbers may differ by a tolerance, relative or
absolute, whichever is larger; whole numbers by the tolerance itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core.differences import differences, path_text, shown
from dataflow.core.errors import DataflowError
from dataflow.core.schema import Schema


@dataclass(frozen=True)
class Difference:
    """One value that is not as expected. `record` counts from 1; `path` leads to the value, () is the record itself."""

    record: int
    path: tuple[str | int, ...]
    expected: str
    found: str


@dataclass(frozen=True)
class EdgeDifference:
    """All that is wrong with one edge. `records` are the found ones, to be shown where their number is wrong."""

    edge: str
    expected_count: int
    found_count: int
    differences: tuple[Difference, ...]
    records: tuple[str, ...] = ()


def compare_edges(
    expect: Mapping[str, Sequence[Mapping[str, Any]]],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    schemas: Mapping[str, Schema],
    tolerance: float,
) -> list[EdgeDifference]:
    """The edges of `expect` whose records are not as expected. `found` holds records as JSON says them."""
    wrong = []
    for edge, expected in expect.items():
        actual = found.get(edge, [])
        schema = schemas.get(edge, Schema(()))
        places = tuple(
            Difference(number, path, shown(wanted), shown(got))
            for number, (want, have) in enumerate(zip(expected, actual, strict=False), 1)
            for path, wanted, got in differences(as_json(schema, want), have, tolerance, partial=True)
        )
        if places or len(expected) != len(actual):
            records = tuple(map(shown, actual)) if len(expected) != len(actual) else ()
            wrong.append(EdgeDifference(edge, len(expected), len(actual), places, records))
    return wrong


def as_json(schema: Schema, record: Mapping[str, Any]) -> dict[str, Any]:
    """An expected record in the form of `to_jsonable`, field by field; what does not fit its type stays as written."""
    made = dict(record)
    for name, value in record.items():
        if name in schema and value is not None:
            alone = schema.select([name])
            try:
                decoded = coerce_records(alone, [{name: value}])
                if not decoded.failed:
                    made[name] = to_jsonable(alone, decoded.columns, 1)[0][name]
            except DataflowError:
                continue
    return made


def explain(difference: EdgeDifference) -> list[str]:
    """Lines for people: which record, which field, ``-`` what was expected, ``+`` what was found."""
    edge = difference
    lines = []
    if edge.found_count != edge.expected_count:
        lines.append(f"{edge.edge}: {_records(edge.expected_count)} expected, {edge.found_count} found")
        lines += [f"  + {record}" for record in edge.records[:10]]
        if len(edge.records) > 10:
            lines.append(f"  + ... {len(edge.records) - 10} more")
    for one in edge.differences:
        lines.append(f"{edge.edge}: record {one.record}: {path_text(one.path) or 'the record'}")
        lines += [f"  - {one.expected}", f"  + {one.found}"]
    return lines


def _records(number: int) -> str:
    return f"{number} record{'s' * (number != 1)}"
