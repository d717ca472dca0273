"""What a user is told: the place, the offending text, what is valid, the nearest name."""

from __future__ import annotations

import pytest

from dataflow.core.errors import ExpressionError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.expressions import parse_expression

SCHEMA = Schema.of(
    delay="float32",
    origin="string",
    ok="bool",
    at="timestamp",
    state=FieldType("enum", symbols=("on_time", "late")),
    x=FieldType("float32", (3,)),
    image=FieldType("uint8", (-1, 4)),
    place=FieldType("record", fields=(Field("city", FieldType("string")),)),
    tags=FieldType("list", item=FieldType("string")),
)

CASES = [
    # expression, column, words of the message, words of the hint
    ("", 1, "the expression is empty", "a value is expected"),
    ("delay >", 8, "at the end: a value is expected", ""),
    ("delai > 30", 1, "'delai': no field 'delai'", "did you mean 'delay'?"),
    ("origin == EWR", 11, "no field 'EWR'", "a text needs quotes: 'EWR'"),
    ("delay = 30", 7, "'='", "write =="),
    ("delay <> 30", 7, "'<>'", "write !="),
    ("ok && ok", 4, "'&&'", "write and"),
    ("ok || ok", 4, "'||'", "write or"),
    ("!ok", 1, "'!'", "write not"),
    ("ok AND ok", 4, "'AND'", "lower case: and"),
    ("ok and True", 8, "no field 'True'", ""),
    ("delay ** 2", 7, "'**'", "write pow(a, b)"),
    ("delay between 1 and 2", 7, "'between'", "x >= low and x <= high"),
    ("ok ? 1 : 2", 4, "'?'", "a if condition else b"),
    ("1 < delay < 2", 11, "comparisons do not chain", "a < b and b < c"),
    ("delay == null", 1, "a comparison with null is always null", "is null"),
    ("delay != null", 1, "a comparison with null is always null", "is not null"),
    ("origin > 30", 1, "string and int64 do not compare", "float(s) reads a number"),
    ("at > '2013-01-01'", 1, "timestamp and string do not compare", "timestamp('2013-01-01T00:00:00Z')"),
    ("ok > true", 1, "bool values have no order", "only == and !="),
    ("state == 'lat'", 1, "'lat' is no symbol of enum<on_time|late>", "did you mean 'late'?"),
    ("state in ['late', 'early']", 19, "'early' is no symbol", "valid: late, on_time"),
    ("tags == tags", 1, "list<string> and list<string> do not compare", "is null"),
    ("origin + 'x'", 1, "'+' takes numbers, this is string", "concat(a, b)"),
    ("ok + 1", 1, "'+' takes numbers, this is bool", "int(b)"),
    ("x * 2", 1, "'*' takes numbers, this is float32[3]", "take an element"),
    ("1 + null", 5, "this is null", ""),
    ("at + at", 1, "no timestamp + timestamp", "seconds(5)"),
    ("delay and ok", 1, "'and' takes true or false, this is float32", "write delay != 0"),
    ("not origin", 5, "'not' takes true or false", "write origin == '...'"),
    ("1 if delay else 2", 6, "'if' takes true or false", "delay != 0"),
    ("1 if ok else 'a'", 1, "'if' chooses between int64 and string", "casts"),
    ("null if ok else null", 1, "no type", "float(null)"),
    ("null", 1, "null by itself has no type", "float(null)"),
    ("delay in [null]", 11, "a list holds no null", "is null"),
    ("delay in [delay]", 11, "a list holds constants", "x == a or x == b"),
    ("delay in ['a']", 11, "float32 and string do not compare", ""),
    ("delay in (1, 2)", 10, "'[' is expected after 'in'", ""),
    ("origin like origin", 13, "a pattern is written as such", "startswith"),
    ("delay like '3%'", 1, "'like' takes a text", "string(x)"),
    ("origin like '" + "a" * 300 + "'", 13, "256 are allowed", ""),
    ("rond(delay)", 1, "no function 'rond'", "did you mean 'round'?"),
    ("abs()", 1, "abs() does not take no arguments", "usage: abs(x)"),
    ("abs(1, 2)", 1, "abs() does not take 2 arguments", "usage: abs(x)"),
    ("sqrt(origin)", 6, "sqrt() takes a number, this is string", "float(x)"),
    ("upper(delay)", 7, "upper() takes a text, this is float32", "string(x)"),
    ("hour(origin)", 6, "hour() takes a timestamp or a date", "timestamp("),
    ("truncate(at, 'our')", 14, "truncate() takes a unit", "did you mean 'hour'?"),
    ("truncate(at, origin)", 14, "truncate() takes a unit", "one of second"),
    ("round(delay, 99)", 14, "a whole number from 0 to 15", ""),
    ("timestamp('yesterday')", 11, "no timestamp in ISO 8601", "2013-01-01T00:00:00Z"),
    ("date(delay)", 6, "date() takes a timestamp or a text", ""),
    ("int(at)", 5, "int() takes a number, a bool or a text", "ts - timestamp"),
    ("bool(at)", 6, "bool() takes a number or a text", ""),
    ("string(x)", 8, "string() takes", ""),
    ("sum(delay)", 5, "sum() takes a tensor or a list of numbers", ""),
    ("max(tags)", 5, "a tensor or a list of numbers", ""),
    ("min(delay, origin)", 1, "min() takes numbers", ""),
    ("coalesce(delay, origin)", 1, "coalesce() takes values of one type", ""),
    ("contains(tags, 1)", 16, "the list holds string, this is int64", ""),
    ("length(delay)", 8, "length() takes a text", ""),
    ("x[3]", 1, "no element 3 in float32[3]", "0 to 2"),
    ("x[-4]", 1, "no element -4", ""),
    ("image[0][4]", 1, "no element 4 in uint8[4]", "0 to 3"),
    ("x[delay]", 3, "an index is a whole number", ""),
    ("delay[0]", 1, "float32 has no elements", ""),
    ("origin[0]", 1, "string has no elements", "substring"),
    ("place.town", 1, "no field 'town' in the record", "valid: city"),
    ("place.citi", 1, "no field 'citi'", "did you mean 'city'?"),
    ("delay.x", 1, "it is no record", "`delay.x`"),
    ("origin == 'EWR", 11, "the quote ' is not closed", "double it"),
    ("delay > 3O", 10, "a number ends where letters begin", ""),
    ("delay # 3", 7, "the character '#' has no meaning", "backticks"),
    ("99999999999999999999", 1, "does not fit 64 bits", "1e20"),
    ("-9223372036854775809", 1, "does not fit 64 bits", "-1e19"),
    ("1e999", 1, "beyond the range of float64", ""),
]


@pytest.mark.parametrize(("text", "column", "message", "hint"), CASES, ids=[case[0][:40] for case in CASES])
def test_message(text: str, column: int, message: str, hint: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text, SCHEMA)
    assert message in caught.value.message
    assert caught.value.column == column
    assert f"column {column}" in caught.value.message
    assert hint in caught.value.hint


def test_where_begins_the_message() -> None:
    with pytest.raises(
        ExpressionError, match=r"^with\.late: column 1, at 'delai': no field 'delai' \(did you mean"
    ):
        parse_expression("delai > 30", SCHEMA, where="with.late")
    with pytest.raises(ExpressionError, match=r"^with\.late: column 8, at the end"):
        parse_expression("delay >", SCHEMA, where="with.late")


def test_a_long_offender_is_shortened() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression("'" + "a" * 200 + "' + 1", SCHEMA)
    assert len(caught.value.message) < 120
