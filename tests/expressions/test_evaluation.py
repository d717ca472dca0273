"""What each form and function gives: types, nulls, tensors, lists, records, casts, times."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from dataflow.core.batch import Batch, to_list
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.expressions import parse_expression

WHEN = datetime(2013, 3, 6, 17, 45, 30, 250000)  # noqa: DTZ001  (columns are UTC without saying so)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001
SCHEMA = Schema.of(
    delay="float32",
    half="float16",
    seats="int32",
    big="uint64",
    price=FieldType("decimal", precision=10, scale=2),
    name="string",
    note=FieldType("string", nullable=True),
    count=FieldType("int16", nullable=True),
    ok=FieldType("bool", nullable=True),
    state=FieldType("enum", symbols=("on_time", "late")),
    at="timestamp",
    day=FieldType("date", nullable=True),
    raw="bytes",
    x=FieldType("float32", (3,)),
    image=FieldType("uint8", (2, 2)),
    free=FieldType("int64", (-1,)),
    maybe_x=FieldType("float32", (2,), nullable=True),
    tags=FieldType("list", item=FieldType("string")),
    readings=FieldType("list", item=FieldType("float64"), nullable=True),
    place=FieldType(
        "record",
        fields=(
            Field("city", FieldType("string")),
            Field("height", FieldType("int32", nullable=True)),
            Field("since", FieldType("timestamp")),
        ),
    ),
    maybe_place=FieldType("record", nullable=True, fields=(Field("city", FieldType("string")),)),
)
FULL: dict[str, Any] = {
    "delay": 0.9, "half": 0.1, "seats": 180, "big": 2**64 - 1, "price": Decimal("10.10"), "name": "N14228",
    "note": "Ünïcode", "count": 3, "ok": True, "state": "late", "at": WHEN, "day": date(2013, 3, 6), "raw": b"ab",
    "x": np.array([1, 5, 2], np.float32), "image": np.array([[1, 2], [255, 3]], np.uint8),
    "free": np.array([4, 5], np.int64), "maybe_x": np.array([1, 2], np.float32), "tags": ["a", "b"],
    "readings": [1.0, 3.0],
    "place": {"city": "Newark", "height": 5, "since": datetime(2000, 1, 1, 1, tzinfo=UTC)},
    "maybe_place": {"city": "Nome"},
}  # fmt: skip
NULLS = FULL | {
    "note": None, "count": None, "ok": None, "day": None, "free": np.array([], np.int64), "maybe_x": None,
    "tags": [], "readings": None, "maybe_place": None, "place": FULL["place"] | {"height": None},
}  # fmt: skip

CASES: list[tuple[str, str, Any, Any]] = [
    # expression, type, value of FULL, value of NULLS
    ("delay", "float32", np.float32(0.9), np.float32(0.9)),
    ("delay >= 0.9", "bool", True, True),
    ("delay == 0.9", "bool", True, True),
    ("delay in [0.9, 1]", "bool", True, True),
    ("half == 0.1", "bool", True, True),
    ("float(delay) >= 0.9", "bool", False, False),
    ("seats + 1", "int64", 181, 181),
    ("seats / 0", "float64", math.inf, math.inf),
    ("-seats / 0", "float64", -math.inf, -math.inf),
    ("seats // 0", "int64?", None, None),
    ("seats % 7", "int64", 5, 5),
    ("seats // 2.5", "float64", 72.0, 72.0),
    ("big == 18446744073709551615", "bool", True, True),
    ("big > seats", "bool", True, True),
    ("big > -1", "bool", True, True),
    ("big + 1", "int64", 2**63 - 1, 2**63 - 1),
    ("price == 10.10", "bool", True, True),
    ("price in [10.1]", "bool", True, True),
    ("price * 2", "float64", 20.2, 20.2),
    ("coalesce(price, price)", "decimal(10,2)", Decimal("10.10"), Decimal("10.10")),
    ("max(price, 11)", "float64", 11.0, 11.0),
    ("string(price)", "string", "10.10", "10.10"),
    ("int(price)", "int64?", 10, 10),
    ("count + 1", "int64?", 4, None),
    ("count", "int16?", 3, None),
    ("coalesce(count, 0)", "int16", 3, 0),
    ("coalesce(count, 100000)", "int64", 3, 100000),
    ("coalesce(note, name)", "string", "Ünïcode", "N14228"),
    ("coalesce(count, delay, null)", "float32", np.float32(3), np.float32(0.9)),
    ("count is null", "bool", False, True),
    ("count is not null and count > 2", "bool?", True, False),
    ("ok and seats > 1", "bool?", True, None),
    ("ok or seats > 1", "bool?", True, True),
    ("not ok", "bool?", False, None),
    ("ok == true", "bool?", True, None),
    ("null or true", "bool", True, True),
    ("1 if ok else 2", "int64", 1, 2),
    ("count if ok else null", "int16?", 3, None),
    ("note in ['Ünïcode']", "bool?", True, None),
    ("count not in [1, 2]", "bool?", True, None),
    ("state == 'late'", "bool", True, True),
    ("state", "enum<on_time|late>", "late", "late"),
    ("state if ok else 'on_time'", "enum<on_time|late>", "late", "on_time"),
    ("state if ok else 'other'", "string", "late", "other"),
    ("raw == raw", "bool", True, True),
    ("length(raw) + length(name) + length(tags)", "int64", 10, 8),
    ("length(note)", "int64?", 7, None),
    ("lower(note)", "string?", "ünïcode", None),
    ("name like 'N%8'", "bool", True, True),
    ("name not like 'N_____'", "bool", False, False),
    ("contains(tags, 'b')", "bool", True, False),
    ("contains(readings, 3)", "bool?", True, None),
    ("substring(name, 1)", "string", "14228", "14228"),
    ("substring(name, -5, 2)", "string", "N1", "N1"),
    ("substring(name, 2, -1)", "string", "", ""),
    ("trim(concat(' ', name, ' '))", "string", "N14228", "N14228"),
    ("endswith(name, '28') and startswith(name, 'N') and contains(name, '42')", "bool", True, True),
    ("x[1]", "float32", np.float32(5), np.float32(5)),
    ("x[-1] + 1", "float64", 3.0, 3.0),
    ("image[1, 0]", "uint8", 255, 255),
    ("image[1][0] + 1", "int64", 256, 256),
    ("argmax(image)", "int64", 2, 2),
    ("sum(image)", "int64", 261, 261),
    ("mean(x)", "float64", pytest.approx(8 / 3), pytest.approx(8 / 3)),
    ("max(x)", "float32", np.float32(5), np.float32(5)),
    ("min(x)", "float32", np.float32(1), np.float32(1)),
    ("free[1]", "int64?", 5, None),
    ("max(free)", "int64?", 5, None),
    ("mean(free)", "float64?", 4.5, None),
    ("argmax(free)", "int64?", 1, None),
    ("sum(free)", "int64", 9, 0),
    ("length(free)", "int64", 2, 0),
    ("maybe_x[0]", "float32?", 1.0, None),
    ("sum(maybe_x)", "float64?", 3.0, None),
    ("sum(readings)", "float64?", 4.0, None),
    ("readings[1]", "float64?", 3.0, None),
    ("tags[0]", "string?", "a", None),
    ("place.city", "string", "Newark", "Newark"),
    ("place.height", "int32?", 5, None),
    ("place.since < at", "bool", True, True),
    ("hour_of_day(place.since)", "int64", 1, 1),
    ("maybe_place.city", "string?", "Nome", None),
    ("maybe_place is null", "bool", False, True),
    ("hour(at)", "timestamp", datetime(2013, 3, 6, 17), datetime(2013, 3, 6, 17)),  # noqa: DTZ001
    ("week(at)", "timestamp", datetime(2013, 3, 4), datetime(2013, 3, 4)),  # noqa: DTZ001
    ("truncate(at, 'year')", "timestamp", datetime(2013, 1, 1), datetime(2013, 1, 1)),  # noqa: DTZ001
    ("truncate(day, 'month')", "timestamp?", datetime(2013, 3, 1), None),  # noqa: DTZ001
    ("hour_of_day(at) * 100 + minute_of_hour(at)", "int64", 1745, 1745),
    ("second_of_minute(at)", "int64", 30, 30),
    ("weekday(at)", "int64", 2, 2),
    ("weekday(day)", "int64?", 2, None),
    ("day_of_month(at) + day_of_year(at) + month_of_year(at) + year_number(at)", "int64", 2087, 2087),
    ("date(at)", "date", date(2013, 3, 6), date(2013, 3, 6)),
    ("day == date(at)", "bool?", True, None),
    ("day < at", "bool?", True, None),
    ("coalesce(day, at)", "timestamp", datetime(2013, 3, 6), WHEN),  # noqa: DTZ001
    ("at - timestamp('2013-03-06T18:45:30.25+02:00')", "float64", 3600.0, 3600.0),
    ("at - hour(at) > minutes(45)", "bool", True, True),
    ("at + hours(0.5)", "timestamp", WHEN.replace(hour=18, minute=15), WHEN.replace(hour=18, minute=15)),
    ("at + count", "timestamp?", WHEN.replace(second=33), None),
    ("at + float(name)", "timestamp?", None, None),
    ("at + days(10000000)", "timestamp", LAST, LAST),
    ("string(at)", "string", "2013-03-06T17:45:30.250000Z", "2013-03-06T17:45:30.250000Z"),
    ("string(day)", "string?", "2013-03-06", None),
    ("timestamp(name)", "timestamp?", None, None),
    ("timestamp(1.5)", "timestamp", datetime(1970, 1, 1, 0, 0, 1, 500000), datetime(1970, 1, 1, 0, 0, 1, 500000)),  # noqa: DTZ001
    ("date('2013-01-02')", "date", date(2013, 1, 2), date(2013, 1, 2)),
    ("int(' 12 ')", "int64", 12, 12),
    ("int('1_2')", "int64?", None, None),
    ("int('9223372036854775808')", "int64?", None, None),
    ("uint8(seats + 76)", "uint8?", None, None),
    ("int8(-1.9)", "int8", -1, -1),
    ("uint8(image)", "uint8[2,2]", "image", "image"),
    ("int8(image)", "int8[2,2]?", None, None),
    ("float64(x)", "float64[3]", "x", "x"),
    ("float32(free)", "float32[?]", "free", "free"),
    ("int8(free)", "int8[?]?", "free", "free"),
    ("float('1e3')", "float64", 1000.0, 1000.0),
    ("float('1,5')", "float64?", None, None),
    ("float32(1e300)", "float32", math.inf, math.inf),
    ("string(delay)", "string", "0.9", "0.9"),
    ("string(true)", "string", "true", "true"),
    ("bool(name)", "bool?", None, None),
    ("bool('True') and bool(seats) and bool(delay)", "bool?", True, True),
    ("isnan(log(-1)) and not isnan(delay)", "bool", True, True),
    ("round(2.675, 2) + round(0.5) + round(1.5)", "float64", 4.68, 4.68),
    ("floor(-1.5) + ceil(1.2) + floor(seats)", "float64", 180.0, 180.0),
    ("clip(seats, 0, 100)", "int32", 100, 100),
    ("pow(2, 10) + exp(0) + sqrt(4) + abs(-3)", "float64", 1030.0, 1030.0),
    ("min(seats, 3, 200) + max(1.5, 2)", "float64", 5.0, 5.0),
    ("float(null)", "float64?", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "described", "full", "nulls"), CASES, ids=[case[0] for case in CASES])
def test_type_and_value(text: str, described: str, full: Any, nulls: Any) -> None:
    expression = parse_expression(text, SCHEMA)
    assert expression.type.describe() == described
    for records, wanted in (
        ([FULL], [full]),
        ([NULLS], [nulls]),
        ([FULL, NULLS, FULL], [full, nulls, full]),
        ([], []),
    ):
        column = expression.evaluate(Batch.of(SCHEMA, records))
        assert column.dtype == expression.type.column_dtype
        assert len(column) == len(records)
        for record, found, value in zip(records, to_list(column), wanted, strict=True):
            if isinstance(value, str) and value in ("x", "image", "free"):
                assert isinstance(found, np.ndarray)
                assert found.tolist() == record[value].tolist()
                assert found.dtype == expression.type.kind
            else:
                assert found == value, text
                assert (found is None) == (value is None)


def test_a_bare_field_is_the_column_itself() -> None:
    batch = Batch.of(SCHEMA, [FULL])
    for name in SCHEMA.names:
        assert parse_expression(name, SCHEMA).evaluate(batch) is batch[name]


def test_columns_are_never_written_to() -> None:
    batch = Batch.of(SCHEMA, [FULL, NULLS])
    before = {name: batch[name].copy() for name in SCHEMA.names}
    for text, *_ in CASES:
        parse_expression(text, SCHEMA).evaluate(batch)
    for name, column in before.items():
        assert repr(column.tolist()) == repr(batch[name].tolist())


def test_fields_are_the_top_level_ones() -> None:
    found = parse_expression(
        "place.city == 'x' or x[0] > coalesce(count, 1) or hour(at) == at", SCHEMA
    ).fields
    assert found == {"place", "x", "count", "at"}


def test_one_expression_serves_batches_of_any_size() -> None:
    expression = parse_expression("'a' if true else name", SCHEMA)
    assert [expression.evaluate(Batch.of(SCHEMA, [FULL] * n)).tolist() for n in (0, 1, 3)] == [
        [],
        ["a"],
        ["a"] * 3,
    ]
    truth = parse_expression("1 < 2", SCHEMA)
    assert [truth.matches(Batch.of(SCHEMA, [FULL] * n)).tolist() for n in (0, 1, 3)] == [
        [],
        [True],
        [True] * 3,
    ]
