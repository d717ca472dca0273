"""Windows against a plain model of them, over a task's state in memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.core.schema import Field, FieldType, Schema
from nodes.window import WindowCount, WindowHopping, WindowSession, WindowTumbling
from tests.nodes.keyed import KeyedRun

INPUT = Schema((
    Field("x", FieldType("int64")),
    Field("name", FieldType("string", nullable=True)),
    Field("at", FieldType("timestamp"), event_time=True),
))  # fmt: skip
TWO = {"left": INPUT, "right": INPUT}
UNTIMED = Schema.of(x="int64")
Given = Sequence[tuple[str, int, int]]  # key, x, seconds of event time
COUNT = {"aggregate": {"n": "count", "sum": "sum(x)"}}


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def rows(*given: tuple[str, int, int]) -> list[tuple[bytes, dict[str, Any]]]:
    return [(k.encode(), {"x": x, "name": f"{k}{x}", "at": moment(s)}) for k, x, s in given]


def run(target: type[Any], given: Mapping[str, Any], inputs: Any = INPUT, **options: Any) -> KeyedRun:
    return KeyedRun(target, inputs, {**COUNT, **given}, **options)


def results(node: KeyedRun) -> list[tuple[str, int, int, int, int]]:
    """(key, start, end, n, sum) in the order of emission."""
    return [
        (
            (made.key or b"").decode(),
            int(made.fields["window_start"].replace(tzinfo=UTC).timestamp()),
            int(made.fields["window_end"].replace(tzinfo=UTC).timestamp()),
            made.fields["n"],
            made.fields["sum"],
        )
        for made in node.made
        if made.port == "out"
    ]


class TestTumbling:
    def test_a_window_closes_when_the_watermark_passes_its_end(self) -> None:
        with run(WindowTumbling, {"size": "10s"}) as node:
            node.give(rows(("a", 1, 1), ("b", 5, 2), ("a", 2, 9)))
            assert node.made == []
            node.give(rows(("b", 7, 10)))  # another key's record moves it
            assert results(node) == [("a", 0, 10, 2, 3), ("b", 0, 10, 1, 5)]
            node.drain()
            assert results(node)[2:] == [("b", 10, 20, 1, 7)]

    def test_delay_holds_it_back(self) -> None:
        with run(WindowTumbling, {"size": "10s", "delay": "3s"}) as node:
            node.give(rows(("a", 1, 1), ("b", 1, 12), ("a", 2, 9)))
            assert node.made == []
            node.give(rows(("b", 1, 13)))
            assert results(node) == [("a", 0, 10, 2, 3)]

    def test_a_record_moves_the_watermark_and_is_counted_then(self) -> None:
        with run(WindowTumbling, {"size": "10s", "emit": "close"}) as node:
            node.give(rows(("a", 1, 1), ("a", 1, 12), ("a", 2, 25)))
            assert results(node) == [("a", 0, 10, 1, 1), ("a", 10, 20, 1, 1)]

    @pytest.mark.parametrize("late", ["drop", "fail", "port"])
    def test_a_late_record_goes_where_it_is_told(self, late: str) -> None:
        with run(WindowTumbling, {"size": "10s", "late": late}) as node:
            node.give(rows(("a", 1, 1), ("b", 1, 12), ("a", 2, 9)))
            gone = {
                "drop": node.ends.dropped,
                "fail": [(row, error) for row, error, _ in node.ends.failed],
                "port": [made.fields["x"] for made in node.made if made.port == "late"],
            }
            assert gone == {
                **{way: [] for way in gone},
                late: {"drop": [(2, "late")], "fail": [(2, "Late")], "port": [2]}[late],
            }

    def test_lateness_gives_corrected_results_with_ids_of_their_own(self) -> None:
        with run(WindowTumbling, {"size": "10s", "lateness": "5s"}) as node:
            node.give(rows(("a", 1, 1), ("b", 1, 12)))
            node.give(rows(("a", 2, 9), ("c", 9, 3)))
            node.give(rows(("b", 1, 15), ("a", 4, 9)))
            assert results(node) == [("a", 0, 10, 1, 1), ("a", 0, 10, 2, 3), ("c", 0, 10, 1, 9)]
            assert len({made.id for made in node.made}) == 3
            assert node.ends.dropped == [(5, "late")]
            assert node.entries(b"a") == []

    def test_an_offset_moves_the_windows(self) -> None:
        with run(WindowTumbling, {"size": "10s", "offset": "4s"}) as node:
            node.give(rows(("a", 1, 3), ("a", 2, 4), ("a", 4, 13), ("a", 8, 14)))
            node.drain()
            assert results(node) == [("a", -6, 4, 1, 1), ("a", 4, 14, 2, 6), ("a", 14, 24, 1, 8)]

    def test_updates_answer_each_record(self) -> None:
        with run(WindowTumbling, {"size": "10s", "emit": "update"}) as node:
            node.give(rows(("a", 1, 1), ("b", 5, 2), ("a", 2, 9), ("a", 1, 10)))
            node.drain()
            assert results(node) == [
                ("a", 0, 10, 1, 1),
                ("b", 0, 10, 1, 5),
                ("a", 0, 10, 2, 3),
                ("a", 10, 20, 1, 1),
            ]
            assert [made.id[:8] for made in node.made] == [b"00000000", b"00000001", b"00000002", b"00000003"]
            assert node.entries(b"a") == node.entries(b"b") == []

    def test_rows_without_key_or_time_fail(self) -> None:
        with run(WindowTumbling, {"size": "10s"}) as node:
            node.give([(None, {"x": 1, "at": moment(1)}), (b"a", {"x": 1})])
            assert [end[:2] for end in node.ends.failed] == [(0, "NoKey"), (1, "NoTime")]

    def test_open_windows_move_with_the_task(self) -> None:
        made = []
        for restarts in (False, True):
            with run(WindowTumbling, {"size": "10s"}) as node:
                node.give(rows(("a", 1, 1), ("b", 5, 2)))
                if restarts:
                    node.restart()
                node.give(rows(("a", 2, 9), ("b", 1, 30)))
                made.append(node.made)
        assert made[0] == made[1]
        assert len(made[0]) == 2


class TestInputs:
    def test_the_watermark_is_the_least_of_all_inputs(self) -> None:
        with run(WindowTumbling, {"size": "10s"}, TWO) as node:
            node.give(rows(("a", 1, 1), ("a", 1, 30)), port="left")
            assert node.made == []
            node.give(rows(("a", 2, 9), ("a", 0, 11)), port="right")
            assert results(node) == [("a", 0, 10, 2, 3)]

    def test_an_idle_input_is_not_waited_for(self) -> None:
        with run(WindowTumbling, {"size": "10s", "idle_timeout": "1m"}, TWO, now_ms=1_000_000) as node:
            node.give(rows(("a", 1, 1)), port="right")
            for step in range(6):
                node.until(1_000_000 + step * 10_000)
                node.give(rows(("a", 1, 2 + step * 5)), port="left")
            assert node.made == []
            node.until(1_059_999)
            assert node.made == []
            node.until(1_060_000)
            assert [r[:3] for r in results(node)] == [("a", 0, 10), ("a", 10, 20)]
            node.give(rows(("a", 1, 3), ("a", 1, 33)), port="right")  # it is back, and late
            assert [row for row, _ in node.ends.dropped] == [7]

    def test_while_all_are_silent_event_time_goes_on_with_the_clock(self) -> None:
        with run(WindowTumbling, {"size": "1h", "idle_timeout": "1m"}, now_ms=5_000_000) as node:
            node.give(rows(("a", 1, 600)))
            node.until(5_000_000 + 2_999_999)
            assert node.made == []
            node.until(5_000_000 + 3_000_000)  # 3,600 s of event time less 600
            assert results(node) == [("a", 0, 3600, 1, 1)]
            assert node.task.next_timer_ms() is None

    def test_an_input_that_comes_back_is_looked_after_again(self) -> None:
        with run(WindowTumbling, {"size": "1h", "idle_timeout": "1m"}, TWO) as node:
            node.give(rows(("a", 1, 0)), port="left")
            node.give(rows(("a", 1, 0)), port="right")
            node.until(100_000)  # both are silent: the next look is when the window would close
            node.give(rows(("a", 1, 100)), port="right")
            node.give(rows(("a", 1, 3_700)), port="left")
            assert node.made == []  # `right` is waited for
            node.until(160_000)
            assert results(node) == [("a", 0, 3600, 3, 3)]

    def test_time_in_which_nobody_ran_the_node_is_no_silence(self) -> None:
        with run(WindowTumbling, {"size": "10s", "idle_timeout": "5s"}) as node:
            node.give(rows(("a", 1, 1)))
            node.restart()
            node.fire_late(3_600_000)
            node.give(rows(("a", 2, 2)))
            assert node.ends.dropped == []
            node.until(3_600_000 + 10_000)
            assert results(node) == [("a", 0, 10, 2, 3)]


class TestProcessingTime:
    def test_windows_are_closed_by_the_clock(self) -> None:
        with run(WindowTumbling, {"size": "10s"}, UNTIMED, now_ms=5_000) as node:
            node.give([(b"a", {"x": 1}), (b"b", {"x": 2})])
            node.give([(b"a", {"x": 4})], step_ms=4_000)
            node.until(9_999)
            assert node.made == []
            node.until(10_000)
            assert results(node) == [("a", 0, 10, 2, 5), ("b", 0, 10, 1, 2)]
            assert node.task.next_timer_ms() is None

    def test_a_session_ends_after_its_gap(self) -> None:
        with run(WindowSession, {"gap": "10s"}, UNTIMED) as node:
            for _ in range(3):
                node.until(node.now_ms + 6_000)
                node.give([(b"a", {"x": 1})])
            node.until(60_000)
            assert results(node) == [("a", 6, 28, 3, 3)]

    def test_by_choice(self) -> None:
        with run(WindowTumbling, {"size": "10s", "clock": "processing"}) as node:
            node.give(rows(("a", 1, 1_000_000)))
            node.until(10_000)
            assert results(node) == [("a", 0, 10, 1, 1)]


class TestSession:
    def test_a_silence_of_the_key_ends_it(self) -> None:
        with run(WindowSession, {"gap": "10s"}) as node:
            node.give(rows(("a", 1, 0), ("a", 2, 9), ("b", 1, 12), ("b", 1, 18)))
            assert node.made == []
            node.give(rows(("b", 1, 19)))
            assert results(node) == [("a", 0, 19, 2, 3)]

    def test_a_record_between_two_makes_them_one(self) -> None:
        with run(WindowSession, {"gap": "10s", "delay": "31s"}) as node:
            node.give(rows(("a", 1, 0), ("a", 2, 15), ("a", 8, 40)))
            node.give(rows(("a", 4, 7)))
            node.drain()
            assert results(node) == [("a", 0, 25, 3, 7), ("a", 40, 50, 1, 8)]
            assert node.entries(b"a") == []

    def test_a_record_before_one_moves_its_beginning(self) -> None:
        with run(WindowSession, {"gap": "10s", "delay": "30s"}) as node:
            node.give(rows(("a", 1, 15), ("a", 2, 7)))
            node.drain()
            assert results(node) == [("a", 7, 25, 2, 3)]

    def test_a_late_record_reopens_it(self) -> None:
        with run(WindowSession, {"gap": "10s", "lateness": "20s"}) as node:
            node.give(rows(("a", 1, 0), ("b", 1, 12)))
            node.give(rows(("a", 2, 8)))  # ends at 18 now
            node.give(rows(("b", 1, 18)))
            node.give(rows(("b", 1, 60), ("a", 4, 9)))
            assert [r for r in results(node) if r[0] == "a"] == [("a", 0, 10, 1, 1), ("a", 0, 18, 2, 3)]
            assert len({made.id for made in node.made}) == len(node.made)
            assert node.ends.dropped == [(5, "late")]


class TestCount:
    def test_every_so_many_of_a_key(self) -> None:
        with run(WindowCount, {"count": 2}) as node:
            node.give(rows(("a", 1, 5), ("b", 9, 1), ("a", 2, 3)))
            node.give(rows(("a", 4, 6)))
            assert results(node) == [("a", 3, 5, 2, 3)]
            node.drain()
            assert results(node)[1:] == [("a", 6, 6, 1, 4), ("b", 1, 1, 1, 9)]
            assert node.entries(b"a") == []

    def test_one_that_does_not_fill_has_a_timeout(self) -> None:
        with run(WindowCount, {"count": 3, "timeout": "5s"}, UNTIMED) as node:
            node.give([(b"a", {"x": 1})])
            node.give([(b"a", {"x": 2})], step_ms=4_000)
            node.until(4_999)
            assert node.made == []
            node.until(5_000)
            assert results(node) == [("a", 0, 4, 2, 3)]

    def test_updates(self) -> None:
        with run(WindowCount, {"count": 2, "emit": "update"}) as node:
            node.give(rows(("a", 1, 1), ("a", 2, 2), ("a", 4, 3)))
            assert [made["n"] for made in node.out] == [1, 2, 1]

    @settings(max_examples=40, deadline=None)
    @given(
        given=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.just(1)), max_size=30),
        count=st.integers(1, 4),
        size=st.integers(1, 7),
    )
    def test_as_a_plain_count(self, given: Given, count: int, size: int) -> None:
        with run(WindowCount, {"count": count}) as node:
            for start in range(0, len(given), size):
                node.give(rows(*given[start : start + size]))
            node.drain()
            found = [(key, n, total) for key, _, _, n, total in results(node)]
            ids = {made.id for made in node.made}
        expected = []
        for key in "ab":
            xs = [x for k, x, _ in given if k == key]
            expected += [(key, len(c := xs[i : i + count]), sum(c)) for i in range(0, len(xs), count)]
        assert sorted(found) == sorted(expected)
        assert len(ids) == len(found)


# --- any records, any cuts, against a model that looks at one record after another


records_of = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-5, 5), st.integers(0, 80)), min_size=1, max_size=30
)
cuts_of = st.lists(st.integers(1, 6), min_size=30, max_size=30)


def cut(given: Given, sizes: Sequence[int]) -> list[Given]:
    parts: list[Given] = []
    left = list(given)
    for size in sizes:
        if left:
            parts.append(left[:size])
        left = left[size:]
    return parts


def model_aligned(given: Given, size: int, every: int, delay: int) -> tuple[set[tuple[Any, ...]], list[int]]:
    """Results of windows, and the rows that were late."""
    windows: dict[tuple[str, int], list[int]] = {}
    late, mark = [], -math.inf
    for row, (key, x, at) in enumerate(given):
        starts = [s for s in range(at // every * every, at - size, -every) if s + size > mark]
        for start in starts:
            windows.setdefault((key, start), []).append(x)
        if not starts:
            late.append(row)
        mark = max(mark, at - delay)
    return {(key, s, s + size, len(xs), sum(xs)) for (key, s), xs in windows.items()}, late


def model_sessions(given: Given, gap: int, delay: int) -> tuple[set[tuple[Any, ...]], list[int]]:
    """Likewise: sessions of a key are lists of (time, x); those that ended are out of reach."""
    alive: dict[str, list[list[tuple[int, int]]]] = {}
    over: list[tuple[str, list[tuple[int, int]]]] = []
    late, mark = [], -math.inf
    for row, (key, x, at) in enumerate(given):
        mine = alive.setdefault(key, [])
        near = [s for s in mine if min(s)[0] - gap < at < max(s)[0] + gap]
        if not near and at + gap <= mark:
            late.append(row)
        else:
            joined = sorted([(at, x), *(one for s in near for one in s)])
            alive[key] = [*(s for s in mine if s not in near), joined]
        mark = max(mark, at - delay)
        for name, sessions in alive.items():
            over += [(name, s) for s in sessions if max(s)[0] + gap <= mark]
            alive[name] = [s for s in sessions if max(s)[0] + gap > mark]
    over += [(name, s) for name, sessions in alive.items() for s in sessions]
    found = {(k, min(s)[0], max(s)[0] + gap, len(s), sum(x for _, x in s)) for k, s in over}
    return found, late


@settings(max_examples=150, deadline=None)
@given(
    given=records_of,
    cuts=cuts_of,
    sizes=st.sampled_from([(10, 10), (10, 5), (10, 3), (7, 7), (20, 6)]),
    delay=st.sampled_from([0, 5, 30]),
    restarts=st.sets(st.integers(0, 29), max_size=3),
)
def test_aligned_windows_are_those_of_the_model(
    given: Given, cuts: list[int], sizes: tuple[int, int], delay: int, restarts: set[int]
) -> None:
    size, every = sizes
    settings = {"size": f"{size}s", "every": f"{every}s", "delay": f"{delay}s"}
    expected, late = model_aligned(given, size, every, delay)
    made = []
    for parts in (cut(given, cuts), [given]):
        with run(WindowHopping, settings) as node:
            for number, part in enumerate(parts):
                node.give(rows(*part))
                if number in restarts:
                    node.restart()
            node.drain()
            assert set(results(node)) == expected
            assert len(results(node)) == len(expected)
            assert [row for row, _ in node.ends.dropped] == late
            made.append(node.made)
            assert all(node.entries(key) == [] for key in (b"a", b"b", b"c"))
    assert made[0] == made[1]  # ids and order too


@settings(max_examples=150, deadline=None)
@given(
    given=records_of,
    cuts=cuts_of,
    gap=st.sampled_from([1, 5, 12]),
    delay=st.sampled_from([0, 5, 30, 100]),
    restarts=st.sets(st.integers(0, 29), max_size=3),
)
def test_sessions_are_those_of_the_model(
    given: Given, cuts: list[int], gap: int, delay: int, restarts: set[int]
) -> None:
    expected, late = model_sessions(given, gap, delay)
    made = []
    for parts in (cut(given, cuts), [given]):
        with run(WindowSession, {"gap": f"{gap}s", "delay": f"{delay}s"}) as node:
            for number, part in enumerate(parts):
                node.give(rows(*part))
                if number in restarts:
                    node.restart()
            node.drain()
            assert set(results(node)) == expected
            assert len(results(node)) == len(expected)
            assert [row for row, _ in node.ends.dropped] == late
            made.append(node.made)
            assert all(node.entries(key) == [] for key in (b"a", b"b", b"c"))
    assert made[0] == made[1]


@settings(max_examples=60, deadline=None)
@given(given=records_of, cuts=cuts_of, kind=st.sampled_from(["tumbling", "session"]))
def test_the_last_result_of_a_window_has_all_that_was_not_late(
    given: Given, cuts: list[int], kind: str
) -> None:
    """With lateness, each window's last result is what a watermark held back so far would have given at once."""
    target = WindowTumbling if kind == "tumbling" else WindowSession
    sizes = {"size": "10s"} if kind == "tumbling" else {"gap": "5s"}
    with run(target, {**sizes, "lateness": "15s"}) as node:
        for part in cut(given, cuts):
            node.give(rows(*part))
        node.drain()
        taken = len(given) - len(node.ends.dropped)
        last = {(key, start): n for key, start, _, n, _ in results(node)}
        assert len({made.id for made in node.made}) == len(node.made)
    if kind == "tumbling":
        assert sum(last.values()) == taken
        assert all(n == sum(k == key and start <= s < start + 10 for k, _, s in given) or node.ends.dropped
                   for (key, start), n in last.items())  # fmt: skip
    else:
        assert sum(last.values()) >= taken  # a session that another swallowed gave its result before


def test_statistics_of_a_window() -> None:
    aggregate = {
        "n": "count", "named": "count(name)", "sum": "sum(x)", "mean": "mean(x)", "least": "min(x)", "most": "max(x)",
        "first": "first(name)", "last": "last(name)", "median": "quantile(x, 0.5)", "names": "distinct(name)",
        "since": "min(at)",
    }  # fmt: skip
    with KeyedRun(WindowTumbling, INPUT, {"size": "1m", "aggregate": aggregate}) as node:
        xs = [5, 1, 4, 1, 9]
        records = [
            (b"k", {"x": x, "name": None if x == 5 else f"n{x}", "at": moment(i + 3)})
            for i, x in enumerate(xs)
        ]
        node.give(records[:2])
        node.restart()
        node.give(records[2:])
        node.drain()
    assert node.out == [
        {
            "window_start": moment(0), "window_end": moment(60), "n": 5, "named": 4, "sum": 20, "mean": 4.0, "least": 1,
            "most": 9, "first": "n1", "last": "n9", "median": statistics.median(xs), "names": 3, "since": moment(3),
        }
    ]  # fmt: skip
