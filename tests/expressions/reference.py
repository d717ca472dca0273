"""A naive interpreter: random expressions as text, each with a Python function that says what one row must give.

Text and meaning are made side by side, so the reference shares nothing with the parser or the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dataflow.core.schema import FieldType, Schema

Row = Mapping[str, Any]

SCHEMA = Schema.of(
    i="int64",
    small="int16",
    maybe=FieldType("int64", nullable=True),
    perhaps=FieldType("int64", nullable=True),
    f="float64",
    maybe_f=FieldType("float64", nullable=True),
    perhaps_f=FieldType("float64", nullable=True),
    s="string",
    maybe_s=FieldType("string", nullable=True),
    b="bool",
    maybe_b=FieldType("bool", nullable=True),
    t="timestamp",
    maybe_t=FieldType("timestamp", nullable=True),
)
LOW, HIGH = -(2**63), 2**63 - 1
FIRST, LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001  (UTC, as columns are)


@dataclass(frozen=True)
class Case:
    """An expression as `text`, and its value for a row."""

    text: str
    run: Callable[[Row], Any]


def strict(text: str, function: Callable[..., Any], *parts: Case) -> Case:
    """Null in, null out."""

    def run(row: Row) -> Any:
        values = [part.run(row) for part in parts]
        return None if any(value is None for value in values) else function(*values)

    return Case(text.format(*(part.text for part in parts)), run)


def field(name: str) -> st.SearchStrategy[Case]:
    return st.just(Case(name, lambda row: row[name]))


def clamp(value: int) -> int:
    return min(max(value, LOW), HIGH)


def divide(a: float, b: float) -> float:
    """IEEE 754, where Python raises."""
    a, b = float(a), float(b)
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


def plus(a: float, b: float) -> float:
    return float(a) + float(b)


def times(a: float, b: float) -> float:
    return float(a) * float(b)


def kleene_and(*values: bool | None) -> bool | None:
    if any(value is False for value in values):
        return False
    return None if None in values else True


def kleene_or(*values: bool | None) -> bool | None:
    if any(value is True for value in values):
        return True
    return None if None in values else False


def move(moment: datetime, seconds: int) -> datetime:
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return LAST if seconds > 0 else FIRST


def least(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def cast_int(value: float) -> int | None:
    return int(value) if math.isfinite(value) and LOW <= math.trunc(value) <= HIGH else None


def choose(condition: Case, then: Case, otherwise: Case) -> Case:
    text = f"({then.text} if {condition.text} else {otherwise.text})"
    return Case(text, lambda row: (then if condition.run(row) else otherwise).run(row))


def coalesce(a: Case, b: Case) -> Case:
    def run(row: Row) -> Any:
        first = a.run(row)
        return b.run(row) if first is None else first

    return Case(f"coalesce({a.text}, {b.text})", run)


def logic(word: str, function: Callable[..., Any], parts: list[Case]) -> Case:
    text = "(" + f" {word} ".join(part.text for part in parts) + ")"
    return Case(text, lambda row: function(*(part.run(row) for part in parts)))


def is_null(part: Case, *, negated: bool) -> Case:
    words = "is not null" if negated else "is null"
    return Case(f"({part.text} {words})", lambda row: (part.run(row) is None) != negated)


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


whole = st.integers(-5, 5) | st.sampled_from([LOW, LOW + 1, HIGH - 1, HIGH]) | st.integers(LOW, HIGH)
letters = st.text(alphabet="abE%_'\"\\ é", max_size=4)
moments = st.datetimes(FIRST, LAST) | st.datetimes(datetime(1969, 1, 1), datetime(2030, 1, 1))  # noqa: DTZ001
floats = st.floats(width=64) | st.sampled_from([0.0, -0.0, 0.5, 1.5, math.nan, math.inf, -math.inf])
rows = st.fixed_dictionaries(
    {
        "i": whole,
        "small": st.integers(-(2**15), 2**15 - 1),
        "maybe": st.none() | whole,
        "perhaps": st.none() | whole,
        "f": floats,
        "maybe_f": st.none() | floats,
        "perhaps_f": st.none() | floats,
        "s": letters,
        "maybe_s": st.none() | letters,
        "b": st.booleans(),
        "maybe_b": st.none() | st.booleans(),
        "t": moments,
        "maybe_t": st.none() | moments,
    }
)


def literal_float(value: float) -> Case:
    return Case(repr(value), lambda _row: value)


integer_leaves = (
    field("i") | field("small") | field("maybe") | field("perhaps")
    | st.integers(-3, 3).map(lambda value: Case(str(value), lambda _row: value))
)  # fmt: skip
float_leaves = (
    field("f") | field("maybe_f") | field("perhaps_f")
    | st.sampled_from([0.0, 1.5, -2.25, 1e300]).map(literal_float)
)  # fmt: skip
text_leaves = field("s") | field("maybe_s") | letters.map(lambda text: Case(quote(text), lambda _row: text))
bool_leaves = (
    field("b")
    | field("maybe_b")
    | st.booleans().map(lambda value: Case(str(value).lower(), lambda _row: value))
)
time_leaves = (
    field("t")
    | field("maybe_t")
    | moments.map(
        lambda moment: Case(f"timestamp('{moment.replace(tzinfo=UTC).isoformat()}')", lambda _row: moment)
    )
)


def _integer_step(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    pair = (inner, inner)
    return st.one_of(
        st.builds(lambda a, b: strict("({} + {})", lambda x, y: clamp(x + y), a, b), *pair),
        st.builds(lambda a, b: strict("({} - {})", lambda x, y: clamp(x - y), a, b), *pair),
        st.builds(lambda a, b: strict("({} * {})", lambda x, y: clamp(x * y), a, b), *pair),
        st.builds(lambda a, b: strict("({} // {})", lambda x, y: clamp(x // y) if y else None, a, b), *pair),
        st.builds(lambda a, b: strict("({} % {})", lambda x, y: x % y if y else None, a, b), *pair),
        st.builds(lambda a: strict("(-({}))", lambda x: clamp(-x), a), inner),
        st.builds(lambda a: strict("abs({})", lambda x: clamp(abs(x)), a), inner),
        st.builds(lambda a, b: strict("max({}, {})", max, a, b), *pair),
        st.builds(lambda a: strict("int({})", cast_int, a), float_leaves),
        st.builds(lambda a: strict("length({})", len, a), text_leaves),
        st.builds(lambda a: strict("hour_of_day({})", lambda x: x.hour, a), time_leaves),
        st.builds(lambda a: strict("weekday({})", lambda x: x.weekday(), a), time_leaves),
        st.builds(lambda a: strict("day_of_year({})", lambda x: x.timetuple().tm_yday, a), time_leaves),
        st.builds(coalesce, *pair),
        st.builds(choose, bools_of(inner), inner, inner),
    )


def _float_step(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    pair = (inner, inner)
    return st.one_of(
        st.builds(lambda a, b: strict("({} + {})", plus, a, b), *pair),
        st.builds(lambda a, b: strict("({} - {})", lambda x, y: float(x) - float(y), a, b), *pair),
        st.builds(lambda a, b: strict("({} * {})", times, a, b), *pair),
        st.builds(lambda a, b: strict("({} / {})", divide, a, b), *pair),
        st.builds(lambda a, b: strict("({} / {})", divide, a, b), integer_leaves, integer_leaves),
        st.builds(lambda a, b: strict("min({}, {})", least, a, b), *pair),
        st.builds(lambda a: strict("(-({}))", lambda x: -x, a), inner),
        st.builds(lambda a: strict("sqrt({})", lambda x: math.sqrt(x) if x >= 0 else math.nan, a), inner),
        st.builds(lambda a: strict("floor({})", lambda x: float(np.floor(x)), a), inner),
        st.builds(lambda a: strict("float({})", float, a), integer_leaves),
        st.builds(coalesce, *pair),
        st.builds(choose, bools_of(inner), inner, inner),
    )


def _text_step(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return st.one_of(
        st.builds(lambda a, b: strict("concat({}, {})", lambda x, y: x + y, a, b), inner, inner),
        st.builds(lambda a: strict("upper({})", str.upper, a), inner),
        st.builds(lambda a: strict("substring({}, 1, 2)", lambda x: x[1:3], a), inner),
        st.builds(lambda a: strict("string({})", str, a), integer_leaves),
        st.builds(lambda a: strict("string({})", repr, a), float_leaves),
        st.builds(coalesce, inner, inner),
        st.builds(choose, bools_of(inner), inner, inner),
    )


def _time_step(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    seconds = st.integers(-(10**12), 10**12)
    return st.one_of(
        st.builds(lambda a, n: strict(f"({{}} + seconds({n}))", lambda x: move(x, n), a), inner, seconds),
        st.builds(lambda a, n: strict(f"({{}} - {abs(n)})", lambda x: move(x, -abs(n)), a), inner, seconds),
        st.builds(
            lambda a: strict("hour({})", lambda x: x.replace(minute=0, second=0, microsecond=0), a), inner
        ),
        st.builds(lambda a: strict("month({})", lambda x: datetime(x.year, x.month, 1), a), inner),  # noqa: DTZ001
        st.builds(coalesce, inner, inner),
        st.builds(choose, bools_of(inner), inner, inner),
    )


def compared(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    def build(operator: str, a: Case, b: Case) -> Case:
        functions: dict[str, Callable[[Any, Any], bool]] = {
            "==": lambda x, y: x == y,
            "!=": lambda x, y: x != y,
            "<": lambda x, y: x < y,
            "<=": lambda x, y: x <= y,
            ">": lambda x, y: x > y,
            ">=": lambda x, y: x >= y,
        }
        return strict(f"({{}} {operator} {{}})", functions[operator], a, b)

    return st.builds(build, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), inner, inner)


def within(part: Case, items: list[str], negated: bool) -> Case:
    listed = ", ".join(quote(item) for item in items)
    # Not `strict` with braces in the texts: they are no format.
    text = f"({part.text} {'not in' if negated else 'in'} [{listed}])"
    return Case(text, lambda row: None if (v := part.run(row)) is None else (v in items) != negated)


def bools_of(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return bool_leaves | compared(inner) | st.builds(is_null, inner, negated=st.booleans())


def _bool_step(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    several = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(
        several.map(lambda parts: logic("and", kleene_and, parts)),
        several.map(lambda parts: logic("or", kleene_or, parts)),
        st.builds(lambda a: strict("(not {})", lambda x: not x, a), inner),
        compared(integers), compared(reals), compared(texts), compared(times_),
        st.builds(within, texts, st.lists(letters, min_size=1, max_size=4), st.booleans()),
        st.builds(lambda a, b: strict("startswith({}, {})", str.startswith, a, b), texts, texts),
        st.builds(is_null, integers, negated=st.booleans()),
        st.builds(choose, inner, inner, inner),
    )  # fmt: skip


integers = st.recursive(integer_leaves, _integer_step, max_leaves=6)
reals = st.recursive(float_leaves, _float_step, max_leaves=6)
texts = st.recursive(text_leaves, _text_step, max_leaves=5)
times_ = st.recursive(time_leaves, _time_step, max_leaves=4)
bools = st.recursive(bool_leaves, _bool_step, max_leaves=8)
cases = st.one_of(integers, reals, texts, times_, bools)
