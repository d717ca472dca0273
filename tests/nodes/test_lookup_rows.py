"""`join.lookup` in a table that comes as a stream, partition by partition."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dataflow.core.errors import ContractError
from dataflow.core.schema import Field, FieldType, Schema
from nodes._lookup_rows import LOOK_MS, MAX_AT_ONCE
from nodes.lookup import JoinLookup
from tests.nodes.keyed import KeyedRun

ORDERS = Schema.of(order="int64")
LEVELS = Schema((Field("level", FieldType("int32")), Field("place", FieldType("string", nullable=True))))
UNREAD = frozenset({("node", "table")})


def run(**said: Any) -> KeyedRun:
    return KeyedRun(JoinLookup, {"in": ORDERS, "table": LEVELS}, said)


def order(n: int, key: bytes | None = b"oslo") -> tuple[bytes | None, dict[str, Any]]:
    return key, {"order": n}


def level(n: int, key: bytes | None = b"oslo") -> tuple[bytes | None, dict[str, Any]]:
    return key, {"level": n, "place": None}


def told(found: KeyedRun) -> list[tuple[int, int | None]]:
    return [(made["order"], made["level"]) for made in found.out]


def test_a_record_has_the_newest_row_of_its_key() -> None:
    with run() as found:
        found.give([level(7), level(9, b"rome")], "table")
        found.give([order(1), order(2, b"rome"), order(3, b"bonn")])
        found.give([level(6)], "table")
        found.restart()
        found.give([order(4), order(5, b"rome")])
        assert told(found) == [(1, 7), (2, 9), (3, None), (4, 6), (5, 9)]
        assert [made.key for made in found.made[:3]] == [b"oslo", b"rome", b"bonn"]
        assert found.out[0] == {"order": 1, "level": 7, "place": None}


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after the table was read"])
def test_what_becomes_of_a_record_without_a_row(waits: bool) -> None:
    def lost(**said: Any) -> KeyedRun:
        with run(**said) as found:
            found.give([level(7)], "table")
            if waits:
                found.task.unread(UNREAD)
            found.give([order(1), order(2, b"bonn"), order(3, None)])
            found.task.unread(frozenset())
            found.until(LOOK_MS)
        return found

    assert told(lost()) == [(1, 7), (2, None), (3, None)]
    defaulted = lost(on_missing="default", default={"level": 0})
    assert told(defaulted) == [(1, 7), (2, 0), (3, 0)]
    dropped = lost(on_missing="drop")
    failed = lost(on_missing="fail")
    assert told(dropped) == told(failed) == [(1, 7)]
    reasons = ["no row in input 'table' for the key b'bonn'", "no row in input 'table' for the key None"]
    if waits:
        assert [e.reason for e in dropped.ends.ended] == ["no row in input 'table'"] * 2
        assert [e.reason for e in failed.ends.ended] == reasons
        assert [(e.error, e.record) for e in failed.ends.ended] == [
            ("LookupError", {"order": 2}),
            ("LookupError", {"order": 3}),
        ]
    else:
        assert dropped.ends.dropped == [(2, "no row in input 'table'"), (3, "no row in input 'table'")]
        assert [(error, reason) for _, error, reason in failed.ends.failed] == [
            ("LookupError", reason) for reason in reasons
        ]


def test_records_wait_until_the_table_was_read_to_its_end_and_keep_their_order() -> None:
    with run() as found:
        found.task.unread(UNREAD)
        out = found.give([order(1), order(2, b"rome")], reply=b"caller", deadline_ms=900)
        assert out.held == [0, 1], "who waits for them is answered later"
        found.give([level(7)], "table")
        found.restart()
        found.task.unread(UNREAD)
        found.until(10 * LOOK_MS)
        found.give([order(3)])
        found.give([level(8), level(9, b"rome")], "table")
        assert found.made == []
        found.task.unread(frozenset())
        found.give([order(4)])  # nothing goes past those that wait
        assert found.made == []
        found.until(found.now_ms + LOOK_MS)
        assert told(found) == [(1, 8), (2, 9), (3, 8), (4, 8)]
        assert [(m.id[:8], m.reply, m.deadline_ms) for m in found.made[:2]] == [
            (b"00000000", b"caller", 900),
            (b"00000001", b"caller", 900),
        ]
        found.task.unread(UNREAD)  # from then on the table is not waited for
        found.give([order(5)])
        assert told(found)[4:] == [(5, 8)]
        assert found.entries(b"oslo") == ["row"]


def test_what_waited_goes_on_piece_by_piece() -> None:
    many = MAX_AT_ONCE + 10
    with run() as found:
        found.task.unread(UNREAD)
        found.give([order(n) for n in range(many)])
        found.task.unread(frozenset())
        found.give([level(7)], "table")
        found.fire_late(LOOK_MS)
        assert len(found.made) == MAX_AT_ONCE
        found.give([order(many)])
        found.until(2 * LOOK_MS)
        assert told(found) == [(n, 7) for n in range(many + 1)]


def test_at_the_end_of_the_inputs_nothing_waits_any_more() -> None:
    with run() as found:
        found.task.unread(UNREAD)
        found.give([order(n) for n in range(MAX_AT_ONCE + 1)])
        found.drain()
        assert told(found) == [(n, None) for n in range(MAX_AT_ONCE + 1)]


def test_a_row_without_a_key_fails_alone() -> None:
    with run() as found:
        found.give([level(7, None), level(8)], "table")
        found.give([order(1)])
        assert [error for _, error, _ in found.ends.failed] == ["NoKey"]
        assert told(found) == [(1, 8)]


def test_a_tombstone_ends_the_row_of_its_key_and_a_later_row_begins_anew() -> None:
    with run() as found:
        found.give([level(7), level(9, b"rome"), (b"oslo", None), (b"bonn", None)], "table")
        found.give([order(1), order(2, b"rome")])
        found.give([(b"rome", None), level(5, b"rome"), (None, None)], "table")
        found.restart()
        found.give([order(3), order(4, b"rome")])
        assert told(found) == [(1, None), (2, 9), (3, None), (4, 5)]
        assert found.entries(b"oslo") == []
        assert [error for _, error, _ in found.ends.failed] == ["NoKey"]


HOURLY = Schema.of(level="int32", since=FieldType("timestamp", nullable=True))
TIMED = Schema.of(order="int64", at="timestamp")
# As columns hold times, and so that names of rows are in order on both sides of 1970.
START = datetime(1969, 12, 31, 23, tzinfo=UTC).replace(tzinfo=None)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def timed(**said: Any) -> KeyedRun:
    settings = {"as_of": {"since": "at"}, "select": ["level"], **said}
    return KeyedRun(JoinLookup, {"in": TIMED, "table": HOURLY}, settings)


def since(hours: float | None, n: int, key: bytes | None = b"oslo") -> tuple[bytes | None, dict[str, Any]]:
    return key, {"level": n, "since": None if hours is None else at(hours)}


def asked(hours: float, n: int, key: bytes | None = b"oslo") -> tuple[bytes | None, dict[str, Any]]:
    return key, {"order": n, "at": at(hours)}


def test_a_record_has_the_row_that_held_at_its_time() -> None:
    with timed() as found:
        found.give([since(2, 20), since(0, 0), since(1, 10), since(1, 9, b"rome")], "table")
        found.give([asked(1.5, 1), asked(-1, 2), asked(2, 3), asked(0.9, 4, b"rome"), asked(9, 5, b"rome")])
        found.restart()
        found.give([since(1.2, 12), since(1, 11)], "table")  # one between two, one in the place of another
        found.give([asked(1.1, 6), asked(1.5, 7), asked(1, 8, None), asked(5, 9, b"bonn")])
        assert told(found) == [
            (1, 10), (2, None), (3, 20), (4, None), (5, 9), (6, 11), (7, 12), (8, None), (9, None),
        ]  # fmt: skip


def test_a_row_that_is_too_old_at_the_records_time_is_not_there() -> None:
    with timed(max_age="1h") as found:
        found.task.unread(UNREAD)
        found.give([asked(1, 1), asked(1.5, 2)])
        found.give([since(0, 7)], "table")
        found.task.unread(frozenset())
        found.until(LOOK_MS)
        found.give([asked(0.5, 3), asked(3, 4)])
        assert told(found) == [(1, 7), (2, None), (3, 7), (4, None)]


def test_rows_are_kept_as_long_as_the_history_goes_back() -> None:
    with timed(history="2h") as found:
        found.give([since(n, n) for n in range(10)], "table")
        found.give([asked(7, 1), asked(6.9, 2), asked(8.5, 3)])
        assert told(found) == [(1, 7), (2, None), (3, 8)]
        assert len(found.entries(b"oslo")) == 3
        found.give([since(3, 33)], "table")  # too late: nothing asks for it any more
        assert len(found.entries(b"oslo")) == 3
        found.give([(b"oslo", None)], "table")
        assert found.entries(b"oslo") == []


def test_a_row_without_a_time_is_dropped() -> None:
    with timed() as found:
        found.give([since(None, 7), since(0, 8)], "table")
        found.give([asked(1, 1)])
        assert found.ends.dropped == [(0, "the row has no time")]
        assert told(found) == [(1, 8)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"history": "1h", "as_of": {}},
            "history: has no effect without as_of (from: {in: EDGE, table: EDGE})",
        ),
        ({"max_age": "1h", "as_of": {}}, "max_age: has no effect without as_of (as_of: {FIELD: TIME})"),
        (
            {"as_of": {"level": "at"}},
            "as_of: level in input 'table' is int32 (times are compared: both are timestamps)",
        ),
    ],
)
def test_wrong_times_say_what_is_valid(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught, timed(**said):
        pass
    assert str(caught.value) == message


def contract(said: dict[str, Any], inputs: Sequence[str]) -> None:
    schemas = {"in": ORDERS, "table": LEVELS, "tabel": LEVELS}
    with KeyedRun(JoinLookup, {name: schemas[name] for name in inputs}, said):
        pass


@pytest.mark.parametrize(
    ("said", "inputs", "message"),
    [
        ({}, ["in"], "table: which table is needed (table: TOPIC, or from: {in: EDGE, table: EDGE})"),
        ({}, ["in", "tabel"], "from: no input 'tabel' (from: {in: EDGE, table: EDGE})"),
        ({"table": "levels"}, ["in", "table"], "table: there is an input 'table', too (leave one out)"),
        ({"table": "levels"}, ["in"], "by: at least one field is needed (by: {FIELD: FIELD})"),
        (
            {"by": {"place": "order"}},
            ["in", "table"],
            (
                "by: an input 'table' is looked up by record key (`rekey` gives the input another key; a broadcast table "
                "(table: TOPIC) can be looked up by any field)"
            ),
        ),
        ({"select": ["levl"]}, ["in", "table"], "select: no field 'levl' in input 'table' (did you mean 'level'?)"),
    ],
)  # fmt: skip
def test_wrong_declarations_say_what_is_valid(said: dict[str, Any], inputs: list[str], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract(said, inputs)
    assert str(caught.value) == message
