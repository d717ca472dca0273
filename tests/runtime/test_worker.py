"""Stages on threads: restarts after what may pass, a loud end after what may not, and a clean stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from dataflow.control.deploy import deploy
from dataflow.core.errors import OffsetOutOfRangeError, TopicGoneError, TransportError
from dataflow.observe.metrics import StageMetrics
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime import worker as workers
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.worker import StageThread, Worker, lag_of
from dataflow.runtime.workshop import Workshop
from dataflow.transport.memory import MemoryFabric
from tests.conftest import wait_for
from tests.runtime.kit import REGISTRY, encoded, make_plan


class Loop:
    """Runs until stopped, or raises what it is given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.stopped = threading.Event()

    def run(self) -> None:
        if self.error is not None:
            raise self.error
        self.stopped.wait(20)

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StageThread]]:
    monkeypatch.setattr(workers, "RESTART_BACKOFF_S", 0.001)
    made: list[StageThread] = []

    def start(*errors: BaseException | None) -> StageThread:
        loops = iter([Loop(e) for e in errors])
        stage = StageThread(lambda: cast(StageLoop, next(loops)), StageMetrics("p", "s"))
        made.append(stage)
        stage.start()
        return stage

    yield start
    for stage in made:
        stage.stop()
        assert stage.join(20)


def test_a_clean_stop_is_no_failure(thread: Callable[..., StageThread]) -> None:
    stage = thread(None)
    stage.stop()
    assert stage.join(20)
    assert stage.metrics.state == "stopped"
    assert not stage.failed


@pytest.mark.parametrize("passing", [TransportError("away"), RuntimeError("a bug"), SystemExit(3)])
def test_what_may_pass_is_met_by_a_restart(
    thread: Callable[..., StageThread], passing: BaseException
) -> None:
    stage = thread(passing, passing, None)
    wait_for(lambda: stage.metrics.state == "starting", "the third start")
    stage.stop()
    assert stage.join(20)
    assert stage.metrics.state == "stopped"


@pytest.mark.parametrize("final", [OffsetOutOfRangeError("gone"), TopicGoneError("anew")])
def test_what_may_not_stops_it_for_good(thread: Callable[..., StageThread], final: Exception) -> None:
    stage = thread(final, None)
    assert stage.join(20)
    assert stage.failed
    assert stage.metrics.error == str(final)


def test_failed_from_outside(thread: Callable[..., StageThread]) -> None:
    stage = thread(None)
    stage.fail(TopicGoneError("anew"))
    assert stage.join(20)
    assert stage.failed


TWO_STAGES = """
inputs: {records: records}
nodes:
  a: {use: test.add, from: records}
  b: {use: test.pass, from: a, isolate: true}
"""


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Plan, Workshop, Worker]]:
    monkeypatch.setattr(workers, "WATCH_INTERVAL_S", 0.02)
    plan = make_plan(tmp_path, TWO_STAGES, partitions=2)
    fabric = MemoryFabric()
    deploy(fabric, plan)
    shop = Workshop(tmp_path, REGISTRY, fabric)
    worker = Worker(shop, [plan])
    worker.start()
    yield plan, shop, worker
    worker.stop()


def no_lag(shop: Workshop, plan: Plan, stage: StagePlan) -> bool:
    """By the group's offsets, and as the watcher measured it."""
    return lag_of(shop, plan, stage) == 0 == shop.metrics.stage("p", stage.name).lag


def test_records_flow_and_lag_comes_down(running: tuple[Plan, Workshop, Worker]) -> None:
    plan, shop, worker = running
    producer = shop.fabric.producer()
    for value in encoded([(n, "pass") for n in range(100)]):
        producer.send("records", value, b"k%d" % (len(value) % 7))
    producer.close()
    ends = {("p.b", 0), ("p.b", 1)}
    wait_for(
        lambda: sum(shop.fabric.admin().offsets(list(ends), -1).values()) == 100,
        "all records on the last edge",
    )
    for stage in plan.stages:
        wait_for(partial(no_lag, shop, plan, stage), "no lag")
    assert worker.failed == []


def test_a_topic_created_anew_fails_its_stage_and_leaves_the_others(
    running: tuple[Plan, Workshop, Worker],
) -> None:
    _, shop, worker = running
    wait_for(lambda: all(s.metrics.lag == 0 for s in worker.stages.values()), "the watcher's first round")
    admin = shop.fabric.admin()
    with cast(MemoryFabric, shop.fabric).changed:
        admin.delete(["p.a"])
        admin.create("p.a", 2, {})
    wait_for(lambda: [s.stage for s in worker.failed] == ["b"], "the reader of the topic failed")
    assert worker.stages["p", "a"].metrics.state == "running"
    assert "created anew" in worker.failed[0].error


def test_records_deleted_before_they_were_read_fail_the_stage(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TWO_STAGES)
    fabric = MemoryFabric()
    deploy(fabric, plan)
    shop = Workshop(tmp_path, REGISTRY, fabric)

    def write(count: int) -> None:
        producer = fabric.producer()
        for value in encoded([(n, "pass") for n in range(count)]):
            producer.send("records", value, b"k")
        producer.close()

    write(5)
    first = Worker(shop, [plan])
    first.start()
    wait_for(lambda: lag_of(shop, plan, plan.stages[0]) == 0, "the first records committed")
    first.stop()
    write(5)
    fabric.delete_records(("records", 0), 8)
    second = Worker(shop, [plan])
    second.start()
    wait_for(lambda: [s.stage for s in second.failed] == ["a"], "the stage stopped")
    assert "offset 5 is not in the log (8..10)" in second.failed[0].error
    second.stop()
    assert lag_of(shop, plan, plan.stages[0]) == 5
