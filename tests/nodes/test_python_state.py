"""State and timers of `transform.python` and `logic.python`, over real user modules and a task's state in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.core.errors import ContractError
from dataflow.core.outcomes import BEHIND
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.testing import contract_of
from dataflow.testing.nodes import kind_of
from nodes.python import LogicPython, ModelPython, TransformPython
from tests.nodes.keyed import KeyedRun

INPUT = Schema.of(x="int64")
TIMED = Schema((Field("x", FieldType("int64")), Field("at", FieldType("timestamp"), event_time=True)))
PRELUDE = """
import asyncio
from datetime import *
from typing import *
from dataflow.sdk import *
class Row(TypedDict):
    y: int
"""
COUNTER = """
def f(row: dict, context: KeyedContext) -> Row:
    n = context.state.get("n", 0) + 1
    context.state.set("n", n)
    if row["x"] < 0:
        raise ValueError("below zero")
    return {"y": n}
"""


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., KeyedRun]]:
    """A keyed node that runs `f` of a module with this text."""
    opened: list[KeyedRun] = []

    def run(
        text: str,
        inputs: Schema = INPUT,
        kind: type[Any] = TransformPython,
        given: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> KeyedRun:
        (tmp_path / "code.py").write_text(PRELUDE + dedent(text))
        made = KeyedRun(kind, inputs, {"call": "code.f", **(given or {})}, folder=tmp_path, **options)
        opened.append(made)
        return made

    yield run
    for one in opened:
        one.__exit__(None, None, None)


Run = Callable[..., KeyedRun]


def rows(*given: tuple[str, int]) -> list[tuple[bytes, dict[str, Any]]]:
    return [(key.encode(), {"x": x}) for key, x in given]


def timed(*given: tuple[str, int, int]) -> list[tuple[bytes, dict[str, Any]]]:
    """(key, x, seconds of event time)"""
    return [
        (key.encode(), {"x": x, "at": datetime.fromtimestamp(s, UTC).replace(tzinfo=None)})
        for key, x, s in given
    ]


class TestValues:
    def test_each_key_has_its_own(self, run: Run) -> None:
        node = run(COUNTER)
        node.give(rows(("a", 1), ("b", 1), ("a", 1)))
        node.give(rows(("a", 1)))
        assert [made["y"] for made in node.out] == [1, 1, 2, 3]

    def test_they_come_back_with_the_task(self, run: Run) -> None:
        node = run(COUNTER)
        node.give(rows(("a", 1), ("a", 1)))
        node.restart()
        node.give(rows(("a", 1)))
        assert node.out[-1] == {"y": 3}

    def test_a_row_that_raises_undoes_its_changes(self, run: Run) -> None:
        node = run(COUNTER)
        node.give(rows(("a", 1), ("a", -1), ("a", 1)))
        assert [made["y"] for made in node.out] == [1, 2]
        assert node.ends.failed == [(1, "ValueError", "below zero (code.py:13)")]

    def test_a_row_that_breaks_its_contract_undoes_its_changes(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                n = context.state.get("n", 0) + 1
                context.state.set("n", n)
                return {"y": "text" if row["x"] < 0 else n}
            """
        )
        node.give(rows(("a", 1), ("a", -1), ("a", 1)))
        assert [made["y"] for made in node.out] == [1, 2]
        assert node.ends.failed[0][:2] == (1, "ContractError")

    def test_a_drop_keeps_its_changes(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                n = context.state.get("n", 0) + 1
                context.state.set("n", n)
                if n < 3:
                    raise Drop("too few")
                return {"y": n}
            """
        )
        node.give(rows(("a", 1), ("a", 1), ("a", 1)))
        assert node.out == [{"y": 3}]
        assert node.ends.dropped == [(0, "too few"), (1, "too few")]

    def test_what_was_read_may_be_changed(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                seen = context.state.get("seen", [])
                seen.append(row["x"])
                if row["x"] > 0:
                    context.state.set("seen", seen)
                    seen.append(99)
                return {"y": len(context.state.get("seen", []))}
            """
        )
        node.give(rows(("a", 1), ("a", -1), ("a", 2)))
        assert [made["y"] for made in node.out] == [1, 1, 2]

    def test_time_to_live(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                known = context.state.get("known", False)
                context.state.set("known", True, ttl="1h")
                return {"y": int(known)}
            """
        )
        node.give(rows(("a", 1)))
        node.give(rows(("a", 1)), step_ms=3_599_999)
        node.give(rows(("a", 1)), step_ms=3_600_000)
        assert [made["y"] for made in node.out] == [0, 1, 0]

    def test_datetimes_are_as_in_rows(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                before = context.state.get("before", {"at": row["at"]})
                context.state.set("before", {"at": row["at"]})
                return {"y": (row["at"] - before["at"]) // timedelta(seconds=1)}
            """,
            TIMED,
        )
        node.give(timed(("a", 1, 10), ("a", 1, 25)))
        assert [made["y"] for made in node.out] == [0, 15]

    def test_what_cannot_be_stored_fails_its_row(self, run: Run) -> None:
        text = "def f(row: dict, context: KeyedContext) -> Row: context.state.set('a', object()); return {'y': 1}"
        node = run(text)
        node.give(rows(("a", 1)))
        assert node.ends.failed[0][1] == "NodeError"
        assert "cannot hold object" in node.ends.failed[0][2]

    @pytest.mark.parametrize("name", ["", "a b", "a[1]", "~inputs", "1st"])
    def test_names(self, run: Run, name: str) -> None:
        node = run(
            f"def f(row: dict, context: KeyedContext) -> Row: context.state.set({name!r}, 1); return {{'y': 1}}"
        )
        node.give(rows(("a", 1)))
        assert "is no name in state" in node.ends.failed[0][2]

    def test_a_record_without_a_key_fails(self, run: Run) -> None:
        node = run(COUNTER)
        node.give([(None, {"x": 1}), (b"", {"x": 1})])
        assert node.ends.failed[0][:2] == (0, "NoKey")
        assert "rekey" in node.ends.failed[0][2]
        assert node.out == [{"y": 1}]  # the empty key is a key

    def test_async_rows_run_one_after_another(self, run: Run) -> None:
        node = run(
            """
            async def f(row: dict, context: KeyedContext) -> Row:
                n = context.state.get("n", 0)
                await asyncio.sleep(0)
                context.state.set("n", n + 1)
                return {"y": n + 1}
            """
        )
        node.give(rows(("a", 1), ("a", 1), ("a", 1)))
        assert [made["y"] for made in node.out] == [1, 2, 3]

    def test_a_call_that_takes_too_long_undoes_its_changes(self, run: Run) -> None:
        node = run(
            """
            async def f(row: dict, context: KeyedContext) -> Row:
                n = context.state.get("n", 0) + 1
                context.state.set("n", n)
                if row["x"] < 0:
                    await asyncio.Event().wait()
                return {"y": n}
            """,
            given={"timeout_ms": 20},
        )
        node.give(rows(("a", 1), ("a", -1), ("b", 1)))
        assert [made["y"] for made in node.out] == [1, 1]
        assert node.ends.retryable == [1]
        node.give(rows(("a", 1)))
        assert node.out[-1] == {"y": 2}

    def test_children_and_kept_fields(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Iterator[Row]:
                for n in range(row["x"]):
                    context.state.set("n", context.state.get("n", 0) + 1)
                    yield {"y": context.state.get("n")}
            """,
            keep=["x"],
        )
        node.give(rows(("a", 2), ("b", 1), ("a", 1)))
        assert node.out == [{"y": 1, "x": 2}, {"y": 2, "x": 2}, {"y": 1, "x": 1}, {"y": 3, "x": 1}]


class TestCollections:
    def test_a_map(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                pages = context.state.map("pages")
                name = f"p{row['x']}"
                pages[name] = pages.get(name, 0) + 1
                pages.setdefault("always", -1)
                if row["x"] == 9:
                    del pages[name]
                    assert name not in pages and len(pages) == len(list(pages))
                assert sorted(pages) == list(pages)
                return {"y": sum(pages.values())}
            """
        )
        node.give(rows(("a", 1), ("a", 1), ("a", 2), ("b", 1), ("a", 9)))
        assert [made["y"] for made in node.out] == [0, 1, 2, 0, 2]
        assert node.entries(b"a") == ["pages[always]", "pages[p1]", "pages[p2]"]

    def test_items_of_a_map_with_a_time_to_live(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                seen = context.state.map("seen", ttl="10s")
                seen[str(row["x"])] = 1
                return {"y": len(seen)}
            """
        )
        node.give(rows(("a", 1)))
        node.give(rows(("a", 2)), step_ms=6_000)
        node.give(rows(("a", 3)), step_ms=6_000)
        assert [made["y"] for made in node.out] == [1, 2, 2]

    def test_a_list(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row:
                last = context.state.list("last")
                last.append(row["x"])
                if len(last) > 3:
                    last.popleft()
                if row["x"] == 0:
                    assert (last[0], last[-1]) == (3, 0)
                    last.clear()
                return {"y": sum(last)}
            """
        )
        node.give(rows(*(("a", x) for x in (1, 2, 3, 4, 0, 5))))
        assert [made["y"] for made in node.out] == [1, 3, 6, 9, 0, 5]
        assert node.entries(b"a") == ["last#", "last#000000000000"]

    def test_the_end_of_a_list(self, run: Run) -> None:
        text = "def f(row: dict, context: KeyedContext) -> Row: return {'y': context.state.list('l')[0]}"
        node = run(text)
        node.give(rows(("a", 1)))
        assert node.ends.failed[0][1] == "IndexError"


class TestRetry:
    TEXT = """
    def f(row: dict, context: KeyedContext) -> Row:
        n = context.state.get("n", 0) + 1
        context.state.set("n", n)
        if row["x"] < 0:
            raise Retry("not yet")
        return {"y": n}
    """

    def test_later_rows_of_its_key_stay_behind(self, run: Run) -> None:
        node = run(self.TEXT)
        node.give(rows(("a", 1), ("a", -1), ("b", 1), ("a", 1)))
        assert [made["y"] for made in node.out] == [1, 1]
        assert [end[:2] for end in node.ends.failed] == [(1, "Retry"), (3, BEHIND)]
        assert node.ends.retryable == [1, 3]
        node.give(rows(("a", 1), ("a", 1)))  # it runs again, and what was behind it
        assert [made["y"] for made in node.out[2:]] == [2, 3]

    def test_event_timers_of_its_key_wait_too(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row | None:
                    if row["x"] < 0:
                        raise Retry("not yet")
                    context.timer.at_event_time(row["at"] + timedelta(seconds=5))
                    context.state.set("x", row["x"])
                def on_timer(self, timer: Timer, context: KeyedContext):
                    return {"y": context.state.get("x")}
            """,
            TIMED,
        )
        node.give(timed(("a", 1, 0), ("a", -1, 1), ("b", 2, 9)))
        assert node.out == []
        node.give(timed(("a", 3, 1)))
        node.give(timed(("b", 2, 10)))
        assert node.out == [{"y": 3}]


class TestTimers:
    ALARM = """
    class f:
        def process(self, row: dict, context: KeyedContext) -> Row | None:
            context.timer.after("10s")
            context.state.set("last", row["x"])
        def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
            assert timer.key == context.key and context.now_ms >= timer.at_ms
            return {"y": context.state.get("last")}
    """

    def test_one_replaces_another_of_its_name(self, run: Run) -> None:
        node = run(self.ALARM)
        node.give(rows(("a", 1)))
        node.give(rows(("a", 2), ("b", 7)), step_ms=9_000)
        node.until(18_999)
        assert node.out == []
        node.until(19_000)
        assert [(made.key, made.fields["y"]) for made in node.made] == [(b"a", 2), (b"b", 7)]

    def test_they_come_back_with_the_task_and_make_the_same_ids(self, run: Run) -> None:
        ids = []
        for restarted in (False, True):
            node = run(self.ALARM)
            node.give(rows(("a", 1)))
            if restarted:
                node.restart()
            node.until(10_000)
            ids.append([made.id for made in node.made])
        assert ids[0] == ids[1]
        assert len(ids[0]) == 1

    def test_several_records_are_children(self, run: Run) -> None:
        node = run(
            """
            def f(row: dict, context: KeyedContext) -> Row | None:
                context.timer.at(1000, name="a")
                context.timer.at(datetime(1970, 1, 1, 0, 0, 2), name="b")
                context.timer.at(3000, name="c")
                context.timer.cancel("c")
            def ring(timer: Timer, context: KeyedContext) -> list[Row]:
                return [{"y": timer.at_ms}, {"y": 0}]
            """,
            given={"on_timer": "code.ring"},
        )
        node.give(rows(("k", 1)))
        node.until(9_000)
        assert [made["y"] for made in node.out] == [1000, 0, 2000, 0]
        assert len({made.id for made in node.made}) == 4

    def test_it_returns_the_kept_fields_too(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row | None:
                    context.timer.after(5)
                def on_timer(self, timer: Timer, context: KeyedContext):
                    return {"y": 1, "x": 2}
            """,
            keep=["x"],
        )
        node.give(rows(("k", 1)))
        node.until(9_000)
        assert node.out == [{"y": 1, "x": 2}]

    def test_one_that_fails_undoes_its_changes_and_is_told(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row:
                    context.timer.after(row["x"])
                    return {"y": context.state.get("n", 0)}
                def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    context.state.set("n", 1)
                    return {"y": "text"}
            """
        )
        node.give(rows(("k", 1)))
        node.until(1)
        node.give(rows(("k", 1)))
        assert [made["y"] for made in node.out] == [0, 0]
        (ended,) = node.ends.ended
        assert (ended.row.key, ended.error) == (b"k", "ContractError")
        assert "timer 'timer': code.f: on_timer returned field 'y'" in ended.reason

    def test_one_that_may_be_retried_fires_again_with_the_same_id(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row | None:
                    context.timer.after("1s")
                def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    if context.attempt < 3:
                        raise Retry(f"not yet {context.id}")
                    assert timer.at_ms == 1000
                    return {"y": context.now_ms}
            """
        )
        node.give(rows(("k", 1)))
        node.until(60_000)
        assert node.out == [{"y": 1_000 + 1_000 + 2_000 + 4_000}]
        assert node.ends.ended == []
        assert node.entries(b"k") == []

    def test_it_is_given_up_in_the_end(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row | None:
                    context.timer.after("1s")
                def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    raise Retry("never")
            """
        )
        node.give(rows(("k", 1)))
        node.until(3_600_000)
        assert [(end.error, end.reason) for end in node.ends.ended] == [("Retry", "timer 'timer': never")]
        assert node.task.due_ms() is None or not node.entries(b"k")

    def test_setting_one_where_none_is_called_fails_the_row(self, run: Run) -> None:
        node = run(
            "def f(row: dict, context: KeyedContext) -> Row: context.timer.after('1s'); return {'y': 1}"
        )
        node.give(rows(("k", 1)))
        assert "nothing would be called" in node.ends.failed[0][2]

    def test_async_ones(self, run: Run) -> None:
        node = run(
            """
            class f:
                async def process(self, row: dict, context: KeyedContext) -> Row | None:
                    context.timer.after("1s")
                async def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    await asyncio.sleep(0)
                    return {"y": 5}
            """,
            kind=LogicPython,
        )
        node.give(rows(("k", 1)))
        node.until(1_000)
        assert node.out == [{"y": 5}]


SILENCE = """
class f:
    def process(self, row: dict, context: KeyedContext) -> Row | None:
        context.state.set("n", context.state.get("n", 0) + 1)
        context.timer.at_event_time(context.event_time_ms + 10_000, name="gap")
    def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
        n = context.state.get("n")
        context.state.delete("n")
        return {"y": n}
"""


class TestEventTime:
    def test_a_timer_fires_when_the_watermark_passes(self, run: Run) -> None:
        node = run(SILENCE, TIMED)
        node.give(timed(("a", 1, 0), ("a", 1, 5), ("b", 1, 14)))
        assert node.out == []
        node.give(timed(("b", 1, 15)))
        assert [(made.key, made.fields["y"]) for made in node.made] == [(b"a", 2)]

    def test_a_row_moves_the_watermark_before_it_is_run(self, run: Run) -> None:
        node = run(SILENCE, TIMED)
        node.give(timed(("a", 1, 0), ("a", 1, 5), ("a", 1, 100), ("a", 1, 101), ("a", 1, 111)))
        assert [made["y"] for made in node.out] == [2, 2]

    def test_a_timer_for_a_time_that_has_passed_fires_at_once(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row:
                    context.timer.at_event_time(context.event_time_ms - 5_000)
                    return {"y": row["x"]}
                def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    return {"y": -timer.at_ms}
            """,
            TIMED,
        )
        node.give(timed(("a", 1, 10), ("a", 2, 20)))
        assert [made["y"] for made in node.out] == [1, -5_000, 2, -15_000]

    def test_the_watermark_waits_for_records_out_of_order(self, run: Run) -> None:
        node = run(SILENCE, TIMED, given={"delay": "3s"})
        node.give(timed(("a", 1, 0), ("b", 1, 12), ("a", 1, 1), ("b", 1, 13)))
        node.give(timed(("b", 1, 14)))
        assert [(made.key, made.fields["y"]) for made in node.made] == [(b"a", 2)]

    def test_the_end_of_the_inputs_fires_all(self, run: Run) -> None:
        node = run(SILENCE, TIMED)
        node.give(timed(("b", 1, 3), ("a", 1, 3)))
        node.drain()
        assert [made.key for made in node.made] == [b"a", b"b"]

    def test_while_the_input_is_silent_event_time_goes_on_with_the_clock(self, run: Run) -> None:
        node = run(SILENCE, TIMED, given={"idle_timeout": "2s"})
        node.give(timed(("a", 1, 1_000)), step_ms=50_000)
        node.until(59_999)
        assert node.out == []
        node.until(60_000)
        assert node.out == [{"y": 1}]
        assert node.task.due_ms() is None or node.task.next_timer_ms() is None

    def test_a_silence_in_which_nobody_ran_the_node_is_none(self, run: Run) -> None:
        node = run(SILENCE, TIMED, given={"idle_timeout": "2s"})
        node.give(timed(("a", 1, 1_000)))
        node.fire_late(3_600_000)
        assert node.out == []
        node.give(timed(("a", 1, 1_001)))
        node.until(3_600_000 + 10_000)
        assert node.out == [{"y": 2}]

    def test_without_event_time_there_are_no_such_timers(self, run: Run) -> None:
        node = run(
            """
            class f:
                def process(self, row: dict, context: KeyedContext) -> Row:
                    context.timer.at_event_time(5)
                def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                    return {"y": 5}
            """
        )
        node.give(rows(("k", 1)))
        assert "there is no event time here" in node.ends.failed[0][2]

    @settings(max_examples=30, deadline=None)
    @given(
        records=st.lists(
            st.tuples(st.sampled_from("abc"), st.just(1), st.integers(0, 60)), min_size=1, max_size=25
        ),
        cuts=st.lists(st.integers(1, 5), min_size=25, max_size=25),
    )
    def test_how_records_were_cut_into_batches_does_not_matter(
        self, tmp_path_factory: pytest.TempPathFactory, records: list[Any], cuts: Sequence[int]
    ) -> None:
        folder = tmp_path_factory.getbasetemp()
        (folder / "silence.py").write_text(PRELUDE + SILENCE)
        made = []
        for sizes in ([len(records)], cuts):
            with KeyedRun(
                TransformPython, TIMED, {"call": "silence.f", "delay": "2s"}, folder=folder
            ) as node:
                left = timed(*records)
                for size in sizes:
                    if left:
                        node.give(left[:size])
                    left = left[size:]
                node.drain()
                made.append(node.made)
        assert made[0] == made[1]


class TestContract:
    def contract(self, folder: Path, text: str, kind: type[Any] = TransformPython, **given: Any) -> Schema:
        (folder / "code.py").write_text(PRELUDE + dedent(text))
        return contract_of(kind, TIMED, {"call": "code.f", **given}, folder=folder)["out"]

    def test_the_annotation_makes_it_keyed(self, tmp_path: Path) -> None:
        self.contract(tmp_path, COUNTER)
        kind = kind_of(TransformPython)
        found = kind.settings.model_validate({"call": "code.f"})
        assert kind.keyed_for(found, tmp_path)
        (tmp_path / "code.py").write_text("def f(row, context): pass")
        assert not kind.keyed_for(found, tmp_path)

    @pytest.mark.parametrize(
        ("text", "given", "message"),
        [
            ("def f(batch: Batch, context: KeyedContext) -> Row: ...", {}, "takes a batch"),
            ("def f(row, state: KeyedContext) -> Row: ...", {}, "the parameter 'state' is a KeyedContext"),
            ("def f(row, context: KeyedContext) -> Row: ...", {"concurrency": 4}, "one after another"),
            (
                "def f(row, context: KeyedContext) -> Row: ...",
                {"on_timer": "code.rung"},
                "no function or class",
            ),
            ("def f(row, context: KeyedContext) -> Row: ...", {"time": "x"}, "'x' is int64"),
            ("def f(row, context: KeyedContext) -> Row: ...", {"time": "att"}, "no field 'att'"),
            ("def f(row) -> Row: ...", {"on_timer": "code.f"}, "has no state or timers"),
            ("def f(row) -> Row: ...", {"time": "at"}, "has no state or timers"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, text: str, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ContractError, match=message):
            self.contract(tmp_path, text, **given)

    def test_two_ways_to_say_what_a_timer_calls(self, tmp_path: Path) -> None:
        text = """
        class f:
            def process(self, row, context: KeyedContext) -> Row: ...
            def on_timer(self, timer, context) -> Row: ...
        """
        with pytest.raises(ContractError, match="has a method of that name"):
            self.contract(tmp_path, text, on_timer="code.g")

    def test_a_model_has_no_state(self, tmp_path: Path) -> None:
        with pytest.raises(ContractError, match="asks for state"):
            self.contract(tmp_path, COUNTER, ModelPython)

    def test_a_delay_without_event_time(self, tmp_path: Path) -> None:
        (tmp_path / "code.py").write_text(PRELUDE + COUNTER)
        with pytest.raises(ContractError, match="there is no event time"):
            contract_of(TransformPython, INPUT, {"call": "code.f", "delay": "1s"}, folder=tmp_path)


def test_durations_of_timers(run: Run) -> None:
    node = run(
        """
        class f:
            def process(self, row: dict, context: KeyedContext) -> Row | None:
                context.timer.after(timedelta(seconds=1), name="a")
                context.timer.after("1500ms", name="b")
                context.timer.after(2000, name="c")
            def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
                return {"y": timer.at_ms}
        """
    )
    node.give(rows(("k", 1)))
    node.until(timedelta(hours=1) // timedelta(milliseconds=1))
    assert [made["y"] for made in node.out] == [1000, 1500, 2000]
