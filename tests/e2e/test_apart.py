"""Joins whose sides come of different stages, on the real broker: with workers killed, and with callers who wait."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e._processes import Workers, worker_processes
from tests.e2e._project import Deployed, deployed
from tests.e2e.checker import Record, read_records
from tests.e2e.processes import Running

pytestmark = [pytest.mark.broker, pytest.mark.slow]

COUNT = 6_000
TORN = """
kind: Pipeline
name: {{name}}
inputs: {{{{events: {{name}}.events}}}}
delivery: {delivery}
nodes:
  fast: {{{{use: filter.when, from: events, with: {{{{when: n % 7 != 0}}}}}}}}
  slow: {{{{use: work.slow, from: events, with: {{{{seconds: 0.0004}}}}, isolate: true}}}}
  some: {{{{use: filter.when, from: slow, with: {{{{when: n % 5 != 0}}}}}}}}
  both:
    use: join.by_id
    from: {{{{fast: fast, some: some}}}}
    with: {{{{how: outer, select: {{{{some: [n]}}}}, prefix: {{{{some: some_}}}}, missing: without}}}}
  after: {{{{use: transform.select, from: both}}}}
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with worker_processes(tmp_path) as made:
        yield made


def joined(project: Deployed, bootstrap: str, edge: str) -> dict[int, list[Record]]:
    topic = project.edge(edge)
    found: dict[int, list[Record]] = {}
    for record in read_records(bootstrap, [topic])[topic]:
        n = record.value["n"] if record.value["n"] is not None else record.value["some_n"]
        found.setdefault(n, []).append(record)
    return found


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_nothing_is_lost_between_the_sides_whoever_is_killed(
    tmp_path: Path, kafka: KafkaFabric, unique: str, bootstrap: str, workers: Workers, delivery: str
) -> None:
    """One side is far behind the other: at each kill thousands of records wait for it in state."""
    project = deployed(tmp_path / "project", unique, kafka, pipeline=TORN.format(delivery=delivery))
    assert [s.name for s in project.plan.stages] == ["fast", "slow", "some", "both"]
    project.produce(range(COUNT), named=True)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    behind = next(i for i, s in enumerate(project.plan.stages) if s.name == "slow")
    for share in (0.15, 0.4, 0.65):
        worker = workers.start(project, bootstrap)
        wanted = int(COUNT * (share + chance.random() * 0.2))
        wait_for(lambda: sum(project.committed(behind).values()) > wanted, "a worker between the sides", 120)  # noqa: B023
        worker.kill()
    last = workers.start(project, bootstrap)
    expected = {
        n: [side for side, by in (("fast", 7), ("some", 5)) if n % by == 0] for n in range(COUNT) if n % 35
    }
    wait_for(
        lambda: project.finished() and project.written(project.edge("after")) >= len(expected), "the end", 180
    )
    for edge in ("both", "after"):
        found = joined(project, bootstrap, edge)
        assert {n: records[0].value["without"] for n, records in found.items()} == expected
        twice = {n: records for n, records in found.items() if len(records) > 1}
        if delivery == "exactly_once":
            assert twice == {}
        for records in twice.values():
            assert len({(r.id, str(r.value)) for r in records}) == 1
    assert last.terminate() == 0, last.output()


# ---------------------------------------------------------------- callers

WORK = '''
"""Two branches that do what a request tells them."""

import time
from pathlib import Path

from dataflow.sdk import Drop, Fail


def fast(row: dict) -> dict:
    return behave("fast", row)


def slow(row: dict) -> dict:
    return behave("slow", row)


def behave(name: str, row: dict) -> dict:
    if f"{name}:drop" in row["do"]:
        raise Drop("not wanted")
    if f"{name}:fail" in row["do"]:
        raise Fail("cannot be")
    if f"{name}:until " in row["do"]:
        while not Path(row["do"].partition(" ")[2]).exists():
            time.sleep(0.01)
    return {name: f"{name} of {row['what']}"}
'''
ASKED = """
kind: Topic
name: asked
partitions: 2
fields: {what: string, do: string}
---
kind: Pipeline
name: NAME
inputs: {asked: asked}
answer: {from: [end]}
delivery: DELIVERY
deadline: 30s
nodes:
  fast: {use: transform.python, from: asked, with: {call: work.fast}, out: {fast: string}}
  slow: {use: transform.python, from: asked, with: {call: work.slow}, out: {slow: string}, isolate: true}
  both: {use: join.by_id, from: {fast: fast, slow: slow}, with: {how: outer, missing: withoutWAIT}}
  end: {use: transform.select, from: both}
"""


PIPELINES = (
    ("once", "exactly_once", ""),
    ("least", "at_least_once", ""),
    ("soon", "exactly_once", ", wait: 500ms"),
)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("asked")
    place = folder / "pipelines" / "asked"
    place.mkdir(parents=True)
    (folder / "dataflow.yaml").write_text("kind: Project\nname: asked\n")
    (place / "work.py").write_text(WORK)
    topic, _, asked = ASKED.partition("---")
    made = [
        asked.replace("NAME", name).replace("DELIVERY", delivery).replace("WAIT", wait)
        for name, delivery, wait in PIPELINES
    ]
    (place / "pipeline.yaml").write_text("---".join([topic, *made]))
    with Running(folder, "up", "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C", 120)
        with httpx.Client(base_url=running.url, timeout=60) as client:
            wait_for(lambda: client.get("/v2/health/ready").status_code == 200, "readiness", 60)
            yield client


def ask(door: httpx.Client, pipeline: str, do: str) -> httpx.Response:
    return door.post(f"/pipelines/{pipeline}", json={"what": "it", "do": do})


WHOLE = {"fast": "fast of it", "slow": "slow of it", "without": []}


@pytest.mark.parametrize("pipeline", ["once", "least"])
def test_a_caller_of_branches_in_different_stages(door: httpx.Client, pipeline: str) -> None:
    assert ask(door, pipeline, "").json() == WHOLE
    assert ask(door, pipeline, "slow:fail").json() == {**WHOLE, "slow": None, "without": ["slow"]}
    assert ask(door, pipeline, "fast:drop").json() == {**WHOLE, "fast": None, "without": ["fast"]}
    refused = ask(door, pipeline, "fast:drop,slow:fail")
    assert (refused.status_code, "cannot be" in refused.text) == (500, True)
    dropped = ask(door, pipeline, "fast:drop,slow:drop")
    assert (dropped.status_code, "not wanted" in dropped.text) == (422, True)


def test_a_caller_does_not_wait_for_a_side_that_takes_too_long(door: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    assert ask(door, "soon", f"slow:until {gate}").json() == {**WHOLE, "slow": None, "without": ["slow"]}
    gate.touch()
    wait_for(lambda: ask(door, "soon", "").json() == WHOLE, "both sides in time")
