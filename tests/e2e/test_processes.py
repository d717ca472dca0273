"""Real workers on a real broker: killed, frozen, ended, joined. The checker is the judge of what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e._processes import Workers, members, worker_processes
from tests.e2e._project import EDGES, Deployed, deployed
from tests.e2e.checker import Verdict, judge, read_records

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with worker_processes(tmp_path) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaFabric, unique: str) -> Deployed:
    return deployed(tmp_path / "project", unique, kafka)


def verdicts(project: Deployed, bootstrap: str) -> dict[str, Verdict]:
    """Of every edge."""
    topics = {name: project.edge(name) for name in EDGES}
    found = read_records(bootstrap, [project.source, *topics.values()])
    return {name: judge(found[project.source], found[topics[name]], EDGES[name]) for name in EDGES}


def beyond(project: Deployed, count: int) -> Callable[[], bool]:
    """Whether more than `count` records are on the first edge."""
    return lambda: project.written(project.edge("double")) > count


def in_hand(project: Deployed) -> int:
    """Records whose outputs are written and whose offsets are not committed), by partition at least."""
    ends, committed = project.ends(project.edge("double")), project.committed()
    return sum(max(ends[project.edge("double"), n] - offset, 0) for (_, n), offset in committed.items())


def test_killed_in_the_middle_of_100_000_records_with_work_in_hand(
    project: Deployed, bootstrap: str, workers: Workers
) -> None:
    count = 100_000
    project.produce(range(count))
    first = workers.start(project, bootstrap)
    wait_for(beyond(project, count // 5), "the first worker at work")
    for _ in range(100):  # frozen, it is looked at in peace; with nothing in hand it goes on for a moment
        first.freeze()
        committed, uncommitted = sum(project.committed().values()), in_hand(project)
        if uncommitted:
            break
        first.thaw()
        wait_for(lambda: in_hand(project), "work in hand")
    first.kill()
    assert uncommitted > 0
    assert 0 < committed < count
    assert project.written(project.edge("double")) < count

    workers.start(project, bootstrap)
    wait_for(project.finished, "the second worker at the end", 60)
    found = verdicts(project, bootstrap)
    assert all(v.sound for v in found.values()), {n: v for n, v in found.items() if not v.sound}
    # What was in hand ran again, with the same ids: at least once.
    assert uncommitted <= found["double"].doubled < count
    assert sum(project.committed().values()) == count


def test_frozen_beyond_its_session_and_thawed(project: Deployed, bootstrap: str, workers: Workers) -> None:
    count = 60_000
    project.produce(range(count))
    zombie = workers.start(project, bootstrap)
    wait_for(beyond(project, count // 6), "the first worker at work")
    zombie.freeze()
    assert sum(project.committed().values()) < count
    workers.start(project, bootstrap)
    wait_for(project.finished, "the second worker took over and finished", 60)
    before = project.committed()
    zombie.thaw()
    project.produce(range(count, count + 2_000))
    history = [before]

    def settled() -> bool:
        history.append(project.committed())
        return project.finished()

    wait_for(settled, "all done with the zombie back", 60)
    for earlier, later in pairwise(history):
        assert all(later[p] >= earlier[p] for p in earlier), "an offset went back"
    assert zombie.running
    assert zombie.terminate() == 0, zombie.output()
    found = verdicts(project, bootstrap)
    assert all(v.sound for v in found.values()), {n: v for n, v in found.items() if not v.sound}


def test_ended_in_order_it_leaves_no_duplicate(project: Deployed, bootstrap: str, workers: Workers) -> None:
    step = 20_000
    for n in range(2):
        project.produce(range(n * step, (n + 1) * step))
        before = project.written(project.edge("double"))
        worker = workers.start(project, bootstrap)
        wait_for(beyond(project, before + 1_000), "a worker at work")
        assert worker.terminate() == 0, worker.output()
        assert in_hand(project) == 0
    workers.start(project, bootstrap)
    wait_for(project.finished, "the last worker at the end", 60)
    for name, verdict in verdicts(project, bootstrap).items():
        assert verdict == Verdict(), name


def test_joining_and_leaving_under_load(project: Deployed, bootstrap: str, workers: Workers) -> None:
    count = 40_000
    group = project.plan.stages[0].group
    project.produce(range(count // 2))
    stays = workers.start(project, bootstrap)
    wait_for(beyond(project, 1_000), "the first worker at work")
    joins = workers.start(project, bootstrap)
    wait_for(lambda: members(bootstrap, group) == 2, "the second joined")
    project.produce(range(count // 2, count))
    wait_for(beyond(project, count // 2 + 1_000), "both at work")
    assert joins.terminate() == 0, joins.output()
    wait_for(project.finished, "the end", 60)
    assert stays.terminate() == 0, stays.output()
    for name, verdict in verdicts(project, bootstrap).items():
        assert verdict == Verdict(), name


CUT = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
nodes:
  double: {{use: work.double, from: events, isolate: true}}
  even: {{use: work.even, from: double, isolate: true}}
  last: {{use: work.even, from: double, isolate: true}}
"""


def test_fused_in_one_worker_or_cut_over_three_the_streams_are_the_same(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str, workers: Workers
) -> None:
    count = 4_000
    fused = deployed(tmp_path / "fused", f"{unique}a", kafka)
    cut = deployed(tmp_path / "cut", f"{unique}b", kafka, pipeline=CUT)
    assert [len(p.plan.stages) for p in (fused, cut)] == [2, 3]
    workers.start(fused, bootstrap)
    for _ in range(3):
        workers.start(cut, bootstrap)
    wait_for(lambda: members(bootstrap, cut.plan.stages[0].group) == 3, "three workers share the stage", 60)
    for project in (fused, cut):
        project.produce(range(count), named=True)
        wait_for(project.finished, "the end", 60)
    assert streams(fused, bootstrap) == streams(cut, bootstrap)


def streams(project: Deployed, bootstrap: str) -> dict[str, dict[bytes | None, list[tuple[str, int, int]]]]:
    """Every edge, by key and in order: id, number and value."""
    topics = {name: project.edge(name) for name in EDGES}
    found = read_records(bootstrap, list(topics.values()))
    made: dict[str, dict[bytes | None, list[tuple[str, int, int]]]] = {}
    for name, topic in topics.items():
        for record in sorted(found[topic], key=lambda r: (r.partition, r.offset)):
            row = (record.id, record.value["n"], record.value["twice"])
            made.setdefault(name, {}).setdefault(record.key, []).append(row)
    return made
