"""Functions of timestamps and dates. All times are UTC; weeks begin on Monday.

A length of time is a number of seconds: what ``ts - ts`` gives, and what ``ts + seconds(5)`` adds. A timestamp
moved beyond the years 1 to 9999 stays at their end, as an integer does at the end of int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Final

import numpy as np

from dataflow.core.errors import nearest
from dataflow.expressions.call import Arguments, Function
from dataflow.expressions.operators import numbers
from dataflow.expressions.promotion import as_float, as_int, as_timestamp
from dataflow.expressions.typed import (
    DATE,
    FLOAT64,
    INT64,
    TIMESTAMP,
    Array,
    Mask,
    Typed,
    constant,
    map_one,
    map_partial,
    map_rows,
    map_two,
)

_MICROSECONDS: Final = 1_000_000
# What Python's datetime can hold: beyond it codecs have no value to write.
_FIRST: Final = np.datetime64("0001-01-01T00:00:00", "us").astype(np.int64)
_LAST: Final = np.datetime64("9999-12-31T23:59:59.999999", "us").astype(np.int64)
# From the first of those to the last: moving by more ends at one of them.
_SPAN_SECONDS: Final = 10_000 * 366 * 86_400
_UNITS: Final = {"second": "s", "minute": "m", "hour": "h", "day": "D", "month": "M", "year": "Y"}
_EPOCH_WEEKDAY: Final = 3  # 1970-01-01 was a Thursday


def days_of(values: Array) -> Array:
    return values.astype("datetime64[D]")


def _start_of_week(values: Array) -> Array:
    days = days_of(values).astype(np.int64)
    return (days - (days + _EPOCH_WEEKDAY) % 7).astype("datetime64[D]").astype("datetime64[us]")


def _start_of(unit: str) -> Callable[[Array], Array]:
    if unit == "week":
        return _start_of_week
    code = f"datetime64[{_UNITS[unit]}]"
    return lambda values: values.astype(code).astype("datetime64[us]")


def _truncated(unit: str) -> Callable[[Arguments], Typed]:
    kernel = _start_of(unit)
    return lambda arguments: map_one(TIMESTAMP, kernel, arguments.time(0))


def _truncate(arguments: Arguments) -> Typed:
    units = (*_UNITS, "week")
    unit = arguments.constant_text(1)
    if unit not in units:
        hint = nearest(unit, units) if unit else f"one of {', '.join(units)}"
        arguments.fail(1, "truncate() takes a unit, written as a text such as 'hour'", hint)
    return map_one(TIMESTAMP, _start_of(unit), arguments.time(0))


def _part(kernel: Callable[[Array], Array]) -> Callable[[Arguments], Typed]:
    """A whole number read off the calendar or the clock. NaT gives some number: its row is null."""
    return lambda arguments: map_one(INT64, lambda values: kernel(values).astype(np.int64), arguments.time(0))


def _since(values: Array, of: str, unit: str) -> Array:
    fine, code = values.astype(f"datetime64[{unit}]"), f"datetime64[{unit}]"
    passed: Array = fine - values.astype(f"datetime64[{of}]").astype(code)
    return passed.astype(np.int64)


def _length_of_time(seconds: int) -> Callable[[Arguments], Typed]:
    return lambda arguments: numbers("*", arguments.number(0), constant(INT64, seconds))


def _moved(values: Array, seconds: Array, sign: int) -> tuple[Array, Mask]:
    """Timestamps moved by seconds, to the microsecond and within the years 1 to 9999; no answer for NaN."""
    if seconds.dtype.kind == "f":
        known = ~np.isnan(seconds)
        steps = np.rint(np.clip(np.where(known, seconds, 0.0), -_SPAN_SECONDS, _SPAN_SECONDS) * _MICROSECONDS)
    else:
        known = np.ones(1, dtype=np.bool_)
        steps = np.clip(seconds, -_SPAN_SECONDS, _SPAN_SECONDS) * _MICROSECONDS
    start = np.where(np.isnat(values), np.datetime64(0, "us"), values).astype(np.int64)
    moment = np.clip(start + sign * steps.astype(np.int64), _FIRST, _LAST)
    return moment.astype("datetime64[us]"), known


def moved(time: Typed, seconds: Typed, sign: int) -> Typed:
    """``time + seconds`` (sign 1) or ``time - seconds`` (sign -1). Null only where an operand is null or NaN."""
    time, seconds = as_timestamp(time), as_int(seconds) if seconds.is_integer else as_float(seconds)
    if seconds.is_integer or (seconds.constant and not math.isnan(seconds.single() or 0.0)):
        return map_two(TIMESTAMP, lambda values, steps: _moved(values, steps, sign)[0], time, seconds)
    return map_partial(TIMESTAMP, lambda values, steps: _moved(values, steps, sign), time, seconds)


def seconds_between(left: Typed, right: Typed) -> Typed:
    """``left - right`` as seconds."""

    def kernel(a: Array, b: Array) -> Array:
        return (a - b).astype(np.int64) / float(_MICROSECONDS)

    return map_two(FLOAT64, kernel, as_timestamp(left), as_timestamp(right))


def read_timestamp(text: str) -> datetime | None:
    """An ISO 8601 date or time; without a zone it is UTC. None if it is none. Gives UTC without a zone."""
    try:
        made = datetime.fromisoformat(text.strip())
        return made if made.tzinfo is None else made.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def _read_date(text: str) -> date | None:
    made = read_timestamp(text)
    return None if made is None else made.date()


def _from_seconds(seconds: Array) -> tuple[Array, Mask]:
    return _moved(np.zeros(1, dtype="datetime64[us]"), seconds, 1)


def _read_literal(arguments: Arguments, example: str) -> datetime | None:
    text = arguments.constant_text(0)
    if text is None:
        return None
    made = read_timestamp(text)
    if made is None:
        arguments.fail(0, f"{text!r} is no {arguments.name} in ISO 8601", f"e.g. {example}")
    return made


def _timestamp(arguments: Arguments) -> Typed:
    part = arguments.parts[0]
    if part.untyped:
        return constant(TIMESTAMP, None)
    if part.is_time:
        return as_timestamp(part)
    if part.is_number:
        return map_partial(TIMESTAMP, _from_seconds, arguments.float(0))
    if not part.is_text:
        arguments.fail(
            0, f"timestamp() takes a text, a date or seconds since 1970; this is {part.type.describe()}"
        )
    literal = _read_literal(arguments, "timestamp('2013-01-01T00:00:00Z')")
    return (
        constant(TIMESTAMP, literal) if literal else map_rows(TIMESTAMP, read_timestamp, part, partial=True)
    )


def _date(arguments: Arguments) -> Typed:
    part = arguments.parts[0]
    if part.untyped:
        return constant(DATE, None)
    if part.type.kind == "date":
        return part
    if part.is_time:
        return map_one(DATE, days_of, part)
    if not part.is_text:
        arguments.fail(0, f"date() takes a timestamp or a text; this is {part.type.describe()}")
    literal = _read_literal(arguments, "date('2013-01-01')")
    return constant(DATE, literal.date()) if literal else map_rows(DATE, _read_date, part, partial=True)


def _start(unit: str) -> Function:
    doc = f"The timestamp at which the {unit} of ts began: `truncate(ts, '{unit}')`."
    return Function(unit, f"{unit}(ts)", doc, 1, 1, _truncated(unit))


def _duration(unit: str, seconds: int) -> Function:
    return Function(unit, f"{unit}(x)", f"x {unit}, as a number of seconds.", 1, 1, _length_of_time(seconds))


def _weekday(values: Array) -> Array:
    return (days_of(values).astype(np.int64) + _EPOCH_WEEKDAY) % 7


FUNCTIONS: Final = (
    Function(
        "truncate", "truncate(ts, 'hour')",
        "The timestamp at which the second, minute, hour, day, week, month or year of ts began.", 2, 2, _truncate,
    ),
    *(_start(unit) for unit in ("minute", "hour", "day", "week", "month", "year")),
    Function("second_of_minute", "second_of_minute(ts)", "0 to 59.", 1, 1, _part(lambda v: _since(v, "m", "s"))),
    Function("minute_of_hour", "minute_of_hour(ts)", "0 to 59.", 1, 1, _part(lambda v: _since(v, "h", "m"))),
    Function("hour_of_day", "hour_of_day(ts)", "0 to 23.", 1, 1, _part(lambda v: _since(v, "D", "h"))),
    Function("weekday", "weekday(ts)", "0 (Monday) to 6 (Sunday).", 1, 1, _part(_weekday)),
    Function("day_of_month", "day_of_month(ts)", "1 to 31.", 1, 1, _part(lambda v: _since(v, "M", "D") + 1)),
    Function("day_of_year", "day_of_year(ts)", "1 to 366.", 1, 1, _part(lambda v: _since(v, "Y", "D") + 1)),
    Function("month_of_year", "month_of_year(ts)", "1 to 12.", 1, 1, _part(lambda v: _since(v, "Y", "M") + 1)),
    Function(
        "year_number", "year_number(ts)", "The year, e.g. 2013.",
        1, 1, _part(lambda v: v.astype("datetime64[Y]").astype(np.int64) + 1970),
    ),
    Function(
        "timestamp", "timestamp(x)",
        "Of an ISO 8601 text (UTC if it names no zone), a date, or seconds since 1970; null if it is none.",
        1, 1, _timestamp,
    ),
    Function("date", "date(x)", "The date of a timestamp or of an ISO 8601 text.", 1, 1, _date),
    _duration("seconds", 1),
    _duration("minutes", 60),
    _duration("hours", 3_600),
    _duration("days", 86_400),
)  # fmt: skip
