"""A source stage feeds each record once, one process at a time, and goes on after a restart where the log ends."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.planner.plan import Plan
from dataflow.registry import Registry
from dataflow.runtime.feeder import Feeder
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import EARLIEST, LATEST, Fabric
from dataflow.transport.memory import MemoryFabric
from tests.conftest import wait_for

RECORDS = 2_000
PIPELINE = """
kind: Pipeline
name: replay
nodes:
  lines: {use: source.file, with: {path: lines.jsonl}, out: {n: int64}}
  even: {use: filter.when, from: lines, with: {when: "n % 2 == 0"}}
"""


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def fabric(request: pytest.FixtureRequest) -> Fabric:
    return MemoryFabric() if request.param == "memory" else request.getfixturevalue("kafka")


@pytest.fixture
def project(tmp_path: Path, unique: str) -> Path:
    folder = tmp_path / "pipelines" / "replay"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("name: replay", f"name: {unique}"))
    (folder / "lines.jsonl").write_text("".join(f"{json.dumps({'n': n})}\n" for n in range(RECORDS)))
    return tmp_path


def feeder(project: Path, plan: Plan, registry: Registry, fabric: Fabric) -> tuple[Feeder, threading.Thread]:
    shop = Workshop(project, registry, fabric)
    stage = next(s for s in plan.stages if s.source)
    made = Feeder(partial(shop.build, plan, stage), fabric, plan, stage)
    thread = threading.Thread(target=made.run)
    thread.start()
    return made, thread


def fed(fabric: Fabric, topic: str) -> int:
    return fabric.admin().offsets([(topic, 0)], LATEST)[topic, 0]


def test_fed_once_over_a_restart_and_by_one_of_two(project: Path, fabric: Fabric) -> None:
    assembled = assemble(project, environ={})
    (plan,) = assembled.plans
    deploy(fabric, plan)
    (topic,) = plan.edges["lines"].topics
    first, thread = feeder(project, plan, assembled.registry, fabric)
    wait_for(lambda: fed(fabric, topic) > 0, "the first records")
    first.stop()
    thread.join(30)
    assert not thread.is_alive()
    two = [feeder(project, plan, assembled.registry, fabric) for _ in range(2)]
    wait_for(lambda: fed(fabric, topic) >= RECORDS, "all records")
    for each, _ in two:
        each.stop()
    for _, thread in two:
        thread.join(30)
        assert not thread.is_alive()
    consumer = fabric.consumer()
    consumer.assign({(topic, 0): EARLIEST})
    found: list[bytes | None] = []
    while len(found) < RECORDS and (messages := consumer.poll(500, 10)):
        found += [m.value() for m in messages]
    consumer.close()
    assert len(found) == RECORDS
    assert len(set(found)) == RECORDS
