"""Timers over the life of tasks, and the end of bounded inputs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from dataflow.control.dead_letters import read_letters, redrive
from dataflow.core import headers
from dataflow.core.errors import NodeError
from dataflow.planner.plan import Plan
from dataflow.runtime import clockwork
from dataflow.testing import pipelines
from dataflow.testing.pipelines import PipelineRun
from tests.runtime.keyed import COUNT, KEYED, keyed
from tests.runtime.kit import make_plan

BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
pytestmark = pytest.mark.usefixtures("seldom")


@BOTH
def test_timers_fire_in_their_order_and_are_committed_without_records(tmp_path: Path, delivery: str) -> None:
    run = keyed(tmp_path, delivery)
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        run.write([("b", "timer:2000"), ("a", "timer:1000"), ("c", "timer:1000"), ("d", "timer:9000")])
        run.settle(loop)
        start_ms = int(run.clock.now_s * 1000)
        assert loop.timer_ms is not None
        assert loop.timer_ms - start_ms <= 1000
        run.clock.advance(3)
        loop.turn(0)
        loop.commit_now()
        assert run.seen()[4:] == [
            ("a", 101, "fired timer"),
            ("c", 101, "fired timer"),
            ("b", 101, "fired timer"),
        ]
        loop.abandon()  # it is through: nothing is lost with the loop
    run.run([("a", "count")])
    assert run.seen()[7:] == [("a", 102, "count")]


@BOTH
def test_timers_fire_after_a_restart(tmp_path: Path, delivery: str) -> None:
    run = keyed(tmp_path, delivery)
    run.run([("a", "timer:1000"), ("b", "timer:60000")])
    run.clock.advance(10)
    run.run()
    run.run()
    assert run.seen() == [("a", 1, "timer"), ("b", 1, "timer"), ("a", 101, "fired timer")]


def test_a_timer_fires_once_when_its_firing_was_not_committed(tmp_path: Path) -> None:
    run = keyed(tmp_path, "exactly_once")
    run.run([("a", "timer:1000")])
    run.clock.advance(10)
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        loop.turn(0)
        loop.abandon()
    run.run()
    assert run.seen() == [("a", 1, "timer"), ("a", 101, "fired timer")]


def test_a_timer_that_raises_is_dead_lettered_and_the_others_fire(tmp_path: Path) -> None:
    run = keyed(tmp_path)
    run.run([("a", "timer:1000"), ("b", "boom:1000"), ("c", "timer:1000")])
    run.clock.advance(2)
    run.run()
    run.run([("b", "count")])
    assert run.seen()[3:] == [("a", 101, "fired timer"), ("c", 101, "fired timer"), ("b", 2, "count")]
    (letter,) = run.letters()
    told = dict(letter.headers() or ())
    assert told[headers.ERROR] == b"ValueError"
    assert told[headers.ERROR_MESSAGE] == b"a timer that cannot be"
    assert told[headers.ERROR_NODE] == b"p/count"
    assert letter.key() == b"b"
    described = orjson.loads(letter.value() or b"")["timer"]
    assert (described["timer"], described["key"], described["clock"]) == ("boom", "b", "processing")
    (done,) = redrive(run.fabric, list(read_letters(run.fabric)))
    assert "not read from a topic" in done.skipped


# ---------------------------------------------------------------- the end


def test_at_the_end_timers_fire_and_nodes_give_what_they_hold(tmp_path: Path) -> None:
    plan: Plan = make_plan(tmp_path, COUNT.format(delivery="at_least_once"), registry=KEYED)
    with PipelineRun(tmp_path, plan, KEYED) as run:
        run.feed("records", [{"n": 1, "do": "timer:60000"}, {"n": 2, "do": "far"}, {"n": 3, "do": "timer:1"}])
        run.settle()
        assert len(run.result().edges["count"]) == 3
        run.end()
        told = [record["do"] for record in run.result().edges["count"]]
    assert told == ["timer", "far", "timer", "fired timer", "fired timer", "drained"]


def test_at_the_end_timers_do_not_wait_for_their_time(tmp_path: Path) -> None:
    run = keyed(tmp_path, files=True)
    run.write([("a", "timer:60000"), ("b", "far"), ("c", "timer:1000")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        run.settle(loop)
        before_s = run.clock.now_s
        loop.end_inputs()
        run.settle(loop)
        loop.turn(0)
        assert loop.drained.is_set()
        assert run.clock.now_s - before_s < 1
    assert [did for _, _, did in run.seen()[3:]] == ["fired timer", "fired timer", "drained"]
    assert [key for key, _, _ in run.seen()[3:]] == ["c", "a", "b"]


def test_timers_without_an_end_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clockwork, "MAX_LAST_TIMERS", 5)
    run = keyed(tmp_path)
    run.write([("a", "again:1000")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        run.settle(loop)
        loop.end_inputs()
        run.settle(loop, 20)
        loop.turn(0)
        assert loop.drained.is_set()
    assert [count for _, count, _ in run.seen()] == [1, 101, 201, 301, 401, 501]
    assert "again and again: 5 were fired" in caplog.text
    plan = make_plan(tmp_path, COUNT.format(delivery="at_least_once"), registry=KEYED)
    monkeypatch.setattr(pipelines, "MAX_TIMERS", 20)
    with PipelineRun(tmp_path, plan, KEYED) as inline:
        inline.feed("records", [{"n": 1, "do": "again:1000"}])
        inline.settle()
        with pytest.raises(NodeError, match="there are timers left after 20"):
            inline.end()


def test_timers_that_are_always_due_leave_turns_to_the_records(tmp_path: Path) -> None:
    run = keyed(tmp_path)
    run.run([("a", "again:1000")])
    run.clock.advance(10_000)  # one firing for each second of it
    run.write([("b", "count")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        for _ in range(12):
            loop.turn(0)
        loop.commit_now()
    assert ("b", 1, "count") in run.seen()
    assert sum(did == "fired again" for _, _, did in run.seen()) > 3
