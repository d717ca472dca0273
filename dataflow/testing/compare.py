"""Records found against records expected: what an inline test passes or fails by. Pure.

An expected record is partial: only the fields it names are compared, at any depth. The records of an edge come in
the order in which they were emitted, and there are exactly as many as expected. Floating-point numbers may differ by a tolerance, relative or
absolute, whichever is larger; whole numbers by the tolerance itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core.errors import DataflowError
from dataflow.core.schema import Schema

_MAX_SHOWN: Final = 80
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ABSENT: Final = object()


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
        differences = tuple(
            Difference(number, path, _shown(wanted), _shown(got))
            for number, (want, have) in enumerate(zip(expected, actual, strict=False), 1)
            for path, wanted, got in _differences(as_json(schema, want), have, tolerance, ())
        )
        if differences or len(expected) != len(actual):
            records = tuple(map(_shown, actual)) if len(expected) != len(actual) else ()
            wrong.append(EdgeDifference(edge, len(expected), len(actual), differences, records))
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


def _differences(
    expected: Any, found: Any, tolerance: float, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name, value in expected.items():
            yield from _differences(value, found.get(name, _ABSENT), tolerance, (*path, name))
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield path, expected, found
            return
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(one, other, tolerance, (*path, index))
    elif not _same(expected, found, tolerance):
        yield path, expected, found


def _same(expected: Any, found: Any, tolerance: float) -> bool:
    one, other = _number(expected), _number(found)
    if one is None or other is None:
        return bool(expected == found) and isinstance(expected, bool) == isinstance(found, bool)
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    if isinstance(expected, int) and isinstance(found, int):
        return abs(expected - found) <= tolerance  # never relative: an id is not nearly another one
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return _SPECIAL.get(value) if isinstance(value, str) else None


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "no such field"
    text = _text(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)


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


def path_text(path: Sequence[str | int]) -> str:
    """``offers[0].price``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
