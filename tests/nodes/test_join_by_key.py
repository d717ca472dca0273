"""`join.by_key` against a plain model: which pairs there are, what is given late, and that batches do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.errors import ContractError
from dataflow.core.schema import Field, FieldType, Schema
from nodes.join_by_key import JoinByKey, JoinOfKeys
from tests.nodes.keyed import KeyedRun

TIME = Field("at", FieldType("timestamp"), event_time=True)
LEFT = Schema((Field("n", FieldType("int64")), TIME))
RIGHT = Schema((Field("m", FieldType("int64")), Field("seen", FieldType("timestamp"), event_time=True)))
THIRD = Schema((Field("k", FieldType("int64")), Field("third", FieldType("timestamp"), event_time=True)))
START = datetime(2026, 1, 5)  # noqa: DTZ001  (times of a column are UTC without saying so)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def left(n: int, seconds: int, key: bytes = b"a") -> tuple[bytes, dict[str, Any]]:
    return key, {"n": n, "at": at(seconds)}


def right(m: int, seconds: int, key: bytes = b"a") -> tuple[bytes, dict[str, Any]]:
    return key, {"m": m, "seen": at(seconds)}


def run(**said: Any) -> KeyedRun:
    return KeyedRun(JoinByKey, {"l": LEFT, "r": RIGHT}, said)


def pairs(joined: KeyedRun) -> list[tuple[int | None, int | None]]:
    return [(made["n"], made["m"]) for made in joined.out]


def test_a_match_is_given_when_the_later_one_comes_whichever_it_is() -> None:
    with run(within="10s") as joined:
        joined.give([left(1, 0)], "l")
        assert pairs(joined) == []
        joined.give([right(7, 10), right(8, 11)], "r")
        assert pairs(joined) == [(1, 7)]
        joined.give([left(2, 15)], "l")
        assert pairs(joined) == [(1, 7), (2, 7), (2, 8)]


def test_before_and_after_are_seen_from_the_first_side() -> None:
    with run(before="5s", after="0s") as joined:
        joined.give([right(1, 94), right(2, 95), right(3, 100), right(4, 101)], "r")
        joined.give([left(9, 100)], "l")
        assert pairs(joined) == [(9, 2), (9, 3)]


def test_keys_do_not_meet() -> None:
    with run(within="1h") as joined:
        joined.give([left(1, 0, b"a"), left(2, 0, b"b")], "l")
        joined.give([right(7, 0, b"b")], "r")
        assert pairs(joined) == [(2, 7)]
        assert joined.made[0].key == b"b"


def test_what_nothing_matched_comes_with_null_once_both_sides_are_past_it() -> None:
    with run(within="10s", how="left", missing="without") as joined:
        joined.give([left(1, 0), left(2, 11)], "l")
        assert joined.out == []  # the right side may still bring one
        joined.give([right(7, 10)], "r")
        assert pairs(joined) == [(1, 7), (2, 7)]
        joined.give([left(3, 30), left(4, 60)], "l")
        joined.give([right(8, 100)], "r")
        assert pairs(joined)[2:] == [(3, None)]
        assert joined.out[2]["without"] == ["r"]


def test_outer_gives_those_of_the_other_side_too() -> None:
    with run(within="10s", how="outer") as joined:
        joined.give([right(7, 0)], "r")
        joined.give([left(1, 100)], "l")
        joined.give([right(8, 200)], "r")
        assert (None, 7) in pairs(joined)
        joined.drain()
        assert sorted(pairs(joined), key=str) == sorted([(None, 7), (1, None), (None, 8)], key=str)


def test_unmatched_records_are_dropped_or_dead_letters() -> None:
    for unmatched, error in (("drop", ""), ("fail", "Unmatched")):
        with run(within="10s", unmatched=unmatched) as joined:
            joined.give([left(1, 0)], "l")
            joined.give([right(7, 50)], "r")
            joined.drain()
            ended = joined.ends.ended
            assert [(e.reason, e.error) for e in ended] == [("no r", error), ("no l", error)]
            if error:
                assert ended[0].record is not None
                assert ended[0].record["n"] == 1
                assert [e.port for e in ended] == ["l", "r"]
            assert joined.entries(b"a") == []


def test_a_record_after_its_time_is_late() -> None:
    for late in ("drop", "fail"):
        with run(within="10s", late=late) as joined:
            joined.give([left(1, 100)], "l")
            joined.give([right(7, 100)], "r")
            joined.give([left(2, 90), left(3, 89)], "l")
            assert joined.ends.dropped == ([(3, "late")] if late == "drop" else [])
            assert [f[:2] for f in joined.ends.failed] == ([(3, "Late")] if late == "fail" else [])
            assert pairs(joined) == [(1, 7), (2, 7)]


def test_late_records_go_on_at_the_port_of_their_side() -> None:
    with run(within="10s", late={"l": "old"}) as joined:
        joined.give([left(1, 100), left(4, 101)], "l")
        joined.give([right(7, 100), right(8, 70)], "r")
        joined.give([left(2, 90), left(3, 89)], "l")
        assert [(m.port, m.fields) for m in joined.made if m.port != "out"] == [
            ("old", {"n": 3, "at": at(89)})
        ]
        assert (
            joined.made[-1].id == b"00000005-0000-7000-8000-000000000000"
        )  # its own, it is the record it was
        assert joined.ends.dropped == [(3, "late")], "side r says nothing of ports"
        assert pairs(joined) == [(1, 7), (4, 7), (2, 7)]


def test_unmatched_records_go_on_as_they_came_once_their_time_is_over() -> None:
    with run(within="10s", unmatched={"l": "alone", "r": "fail"}) as joined:
        joined.give([left(1, 0), left(2, 50, b"b")], "l")
        assert joined.made == []
        joined.give([right(7, 50, b"b"), right(8, 61)], "r")
        joined.restart()
        joined.give([left(3, 100)], "l")
        assert [(m.port, m.key, m.fields) for m in joined.made] == [
            ("alone", b"a", {"n": 1, "at": at(0)}),
            ("out", b"b", {"n": 2, "at": at(50), "m": 7, "seen": at(50)}),
        ]
        joined.drain()
        assert [(m.port, m.fields["n"], m.id[:8]) for m in joined.made if m.port == "alone"] == [
            ("alone", 1, b"00000000"),
            ("alone", 3, b"00000004"),
        ]
        assert [(e.reason, e.error, e.port) for e in joined.ends.ended] == [("no l", "Unmatched", "r")]
        assert joined.entries(b"a") == joined.entries(b"b") == []


def test_who_waits_for_an_unmatched_record_is_answered_by_what_comes_of_it_on_its_port() -> None:
    ways = {"l": "alone", "r": "others"}
    with run(within="10s", unmatched=ways) as joined:
        for side, give in (("l", left), ("r", right)):
            out = joined.give([give(1, 0, side.encode())], side, reply=b"caller", deadline_ms=500)
            assert out.held == ([0] if side == "l" else []), "the first side's caller waits for what is made"
        joined.drain()
        found = {m.port: (m.reply, m.deadline_ms) for m in joined.made}
        assert found == {"alone": (b"caller", 500), "others": (b"", 0)}


def test_sides_with_one_contract_may_share_a_port() -> None:
    inputs = {"l": LEFT, "r": LEFT}
    said = {
        "within": "10s",
        "prefix": {"r": "r_"},
        "unmatched": {"l": "alone", "r": "alone"},
        "late": {"r": "alone"},
    }
    with KeyedRun(JoinByKey, inputs, said) as joined:
        joined.give([left(1, 0)], "l")
        joined.give([left(2, 20, b"b")], "r")
        joined.give([left(3, 60)], "l")
        joined.give([left(4, 55), left(5, 10)], "r")
        joined.drain()
        assert [(m.port, m.fields["n"]) for m in joined.made] == [
            ("alone", 1),
            ("alone", 2),
            ("out", 3),
            ("alone", 5),
        ]


def test_a_record_without_key_or_time_fails_alone() -> None:
    schema = Schema((Field("n", FieldType("int64")), Field("at", FieldType("timestamp", nullable=True))))
    with KeyedRun(JoinByKey, {"l": schema, "r": RIGHT}, {"within": "1s", "times": {"l": "at"}}) as joined:
        joined.give(
            [(None, {"n": 1, "at": at(0)}), (b"a", {"n": 2, "at": None}), (b"a", {"n": 3, "at": at(0)})], "l"
        )
        joined.give([right(7, 0)], "r")
        assert [f[:2] for f in joined.ends.failed] == [(0, "NoKey"), (1, "NoEventTime")]
        assert pairs(joined) == [(3, 7)]


def test_a_record_that_comes_again_while_it_waits_is_known() -> None:
    with run(within="10s") as joined:
        joined.give([left(1, 0)], "l")
        joined._rows = 0  # the same record once more: ids are numbered
        joined.give([left(1, 0)], "l")
        assert joined.ends.dropped == [(0, "it waits here already")]
        joined.give([right(7, 0)], "r")
        assert pairs(joined) == [(1, 7)]


def test_without_event_time_the_clock_closes_windows() -> None:
    plain = (Schema((Field("n", FieldType("int64")),)), Schema((Field("m", FieldType("int64")),)))
    with KeyedRun(JoinByKey, dict(zip("lr", plain, strict=True)), {"within": "10s", "how": "left"}) as joined:
        joined.give([(b"a", {"n": 1})], "l")
        joined.give([(b"a", {"m": 7})], "r", step_ms=10_000)
        joined.give([(b"a", {"n": 2})], "l", step_ms=60_000)
        assert joined.out == [{"n": 1, "m": 7}]
        joined.until(80_000)
        assert joined.out == [{"n": 1, "m": 7}]
        joined.until(80_001)
        assert joined.out == [{"n": 1, "m": 7}, {"n": 2, "m": None}]


def test_three_sides_are_complete_when_the_last_is_there() -> None:
    inputs = {"l": LEFT, "r": RIGHT, "t": THIRD}
    with KeyedRun(JoinByKey, inputs, {"within": "10s", "how": "left", "missing": "without"}) as joined:
        joined.give([right(7, 5)], "r")
        joined.give([left(1, 0), left(2, 50)], "l")
        assert joined.out == []
        joined.give([(b"a", {"k": 3, "third": at(8)})], "t")
        assert [(m["n"], m["m"], m["k"]) for m in joined.out] == [(1, 7, 3)]
        joined.give([right(8, 55)], "r")
        joined.drain()
        assert [(m["n"], m["m"], m["k"]) for m in joined.out[1:]] == [(2, 8, None)]
        assert joined.out[1]["without"] == ["t"]


def test_one_result_for_each_with_the_latest_of_the_others() -> None:
    with run(within="10s", how="left", match="one") as joined:
        joined.give([right(7, 0), right(8, 4), right(9, 2)], "r")
        joined.give([left(1, 5), left(2, 20)], "l")
        assert pairs(joined) == [(1, 8)]
        joined.give([right(10, 6), right(11, 25), right(12, 26)], "r")
        assert pairs(joined) == [(1, 8), (2, 11)]
        joined.give([left(3, 100)], "l")
        joined.drain()
        assert pairs(joined) == [(1, 8), (2, 11), (3, None)]


def test_one_result_with_the_sides_that_are_there_when_its_time_is_over() -> None:
    inputs = {"l": LEFT, "r": RIGHT, "t": THIRD}
    with KeyedRun(JoinByKey, inputs, {"within": "10s", "how": "left", "match": "one"}) as joined:
        joined.give([left(1, 5)], "l")
        joined.give([right(7, 5), right(8, 9), right(9, 7)], "r")
        joined.drain()
        assert [(m["n"], m["m"], m["k"]) for m in joined.out] == [(1, 8, None)]


def test_a_silent_side_is_not_waited_for_beyond_its_idle_timeout() -> None:
    with run(within="10s", how="left", idle_timeout="30s") as joined:
        joined.give([left(1, 0)], "l")
        joined.give([left(2, 100)], "l", step_ms=20_000)
        assert joined.out == []
        joined.until(30_000)
        assert pairs(joined) == [(1, None)]


def test_a_record_after_a_long_silence_is_looked_after_soon() -> None:
    """While all was silent the next look was set for when something is due, an hour later."""
    with run(before="1h", after="0s", how="left", idle_timeout="1s") as joined:
        joined.give([right(7, 0)], "r")
        joined.until(10_000)  # its own time is over at 3,600 s
        joined.give([left(1, 20, b"b")], "l")
        joined.until(12_100)
        assert pairs(joined) == [(1, None)]


@dataclass(frozen=True)
class Given:
    side: str
    number: int
    seconds: int
    key: bytes


GIVEN = st.lists(
    st.builds(
        Given,
        st.sampled_from("lr"),
        st.just(0),
        st.integers(0, 60),
        st.sampled_from([b"a", b"b"]),
    ),
    max_size=25,
).map(lambda found: [Given(g.side, i, g.seconds, g.key) for i, g in enumerate(found)])


def expected(found: Sequence[Given], within: int, how: str) -> list[tuple[Any, Any]]:
    """All pairs of records that were not late; and with left and outer, the others with nothing."""
    latest = {"l": -(10**9), "r": -(10**9)}
    good: list[Given] = []
    for one in found:
        reach = within if one.side == "l" else 2 * within
        if one.seconds + reach >= min(latest.values()):
            good.append(one)
        latest[one.side] = max(latest[one.side], one.seconds)
    both = [
        (a, b)
        for a, b in product([g for g in good if g.side == "l"], [g for g in good if g.side == "r"])
        if a.key == b.key and abs(a.seconds - b.seconds) <= within and together(a, b, found, within)
    ]
    made: list[tuple[Any, Any]] = [(a.number, b.number) for a, b in both]
    if how != "inner":
        made += [(g.number, None) for g in good if g.side == "l" and all(g is not a for a, _ in both)]
    if how == "outer":
        made += [(None, g.number) for g in good if g.side == "r" and all(g is not b for _, b in both)]
    return sorted(made, key=str)


def together(a: Given, b: Given, found: Sequence[Given], within: int) -> bool:
    """Whether the earlier of the two was still waiting when the later one came."""
    early, late = sorted((a, b), key=lambda g: g.number)
    mark = min(
        max((g.seconds for g in found[: late.number] if g.side == side), default=-(10**9)) for side in "lr"
    )
    return early.seconds + within >= mark


@settings(deadline=None, max_examples=150)
@given(
    GIVEN,
    st.integers(0, 15),
    st.sampled_from(["inner", "left", "outer"]),
    st.lists(st.booleans(), max_size=25),
)
@example(
    [Given("r", 0, 0, b"a"), Given("l", 1, 30, b"a"), Given("r", 2, 30, b"a"), Given("l", 3, 5, b"a")],
    5,
    "left",
    [],
)
def test_any_history_in_any_batches_gives_what_the_model_says(
    found: list[Given], within: int, how: str, cuts: list[bool]
) -> None:
    with run(within=f"{within}s", how=how) as joined:
        batch: list[Given] = []

        def give() -> None:
            if batch:
                make = left if batch[0].side == "l" else right
                joined.give([make(g.number, g.seconds, g.key) for g in batch], batch[0].side)
                batch.clear()

        for index, one in enumerate(found):
            cut = index < len(cuts) and cuts[index]
            if batch and (cut or batch[0].side != one.side):
                give()
            if cut:
                joined.restart()
            batch.append(one)
        give()
        joined.drain()
        assert sorted(pairs(joined), key=str) == expected(found, within, how)
        assert len({made.id for made in joined.made}) == len(joined.made)
        assert joined.entries(b"a") == joined.entries(b"b") == []


def contract(said: dict[str, Any], **inputs: Schema) -> None:
    with KeyedRun(JoinByKey, inputs or {"l": LEFT, "r": RIGHT}, said):
        pass


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "within: the window of time is needed"),
        ({"within": "1s", "after": "2s"}, "within: is short for before and after"),
        ({"within": "1s", "missing": "x"}, "missing: has no effect with how: inner"),
        ({"within": "1s", "times": {"x": "at"}}, "times: no side 'x'"),
        ({"within": "1s", "select": {"l": ["zz"]}}, "no field 'zz' in side 'l'"),
        ({"within": "1s", "late": {"lf": "old"}}, "late: no side 'lf'"),
        (
            {"within": "1s", "unmatched": {"r": "x", "l": "x"}},
            "unmatched: port 'x' has the records of side 'r'",
        ),
        (
            {"within": "1s", "how": "left", "unmatched": {"l": "x"}},
            "unmatched: a record of 'l' that nothing matches is a result here",
        ),
    ],
)
def test_wrong_settings_say_what_is_valid(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message.replace("(", "\\(")) as caught:
        contract(said)
    assert caught.value.path


def test_a_port_for_late_records_needs_event_time() -> None:
    inputs = {side: Schema((Field(side, FieldType("int64")),)) for side in "ab"}
    with pytest.raises(ContractError, match="late: the sides have no event time, so no record is late"):
        contract({"within": "1s", "late": {"a": "old"}}, **inputs)


@pytest.mark.parametrize(
    ("port", "message"), [("out", "the port 'out' is for what is joined"), ("Old", "'Old' is no port name")]
)
def test_a_port_needs_a_name_of_its_own(port: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JoinOfKeys.model_validate({"within": "1s", "late": {"l": port}})


def test_event_time_on_one_side_only_is_refused() -> None:
    with pytest.raises(ContractError, match="side 'r' has no event time, and side 'l' has one"):
        contract({"within": "1s"}, l=LEFT, r=Schema((Field("m", FieldType("int64")),)))
