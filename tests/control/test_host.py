"""One process brought from one set of plans to the next: only what changed is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.control.deploy import deploy
from dataflow.control.host import Host
from dataflow.planner.plan import Plan
from dataflow.runtime.workshop import Workshop
from dataflow.transport.memory import MemoryFabric
from tests.conftest import wait_for
from tests.runtime.kit import REGISTRY, encoded, make_plan

PIPELINE = "inputs: {records: records}\nnodes:\n  a: {use: test.script, from: records, retry: {attempts: ATTEMPTS}}\n"


def plan_of(folder: Path, attempts: int = 1) -> Plan:
    return make_plan(folder, PIPELINE.replace("ATTEMPTS", str(attempts)))


@pytest.fixture
def fabric() -> MemoryFabric:
    return MemoryFabric()


@pytest.fixture
def host(tmp_path: Path, fabric: MemoryFabric) -> Iterator[Host]:
    made = Host(Workshop(tmp_path, REGISTRY, fabric))
    yield made
    made.stop()


def produce(fabric: MemoryFabric, count: int) -> None:
    producer = fabric.producer()
    for value in encoded([(n, "pass") for n in range(count)]):
        producer.send("records", value, b"k")
    producer.close()


def written(fabric: MemoryFabric) -> int:
    return fabric.offsets([("p.a", 0)], -1)["p.a", 0]


def test_plans_start_stay_change_and_go(tmp_path: Path, fabric: MemoryFabric, host: Host) -> None:
    first, second = plan_of(tmp_path), plan_of(tmp_path, attempts=2)
    deploy(fabric, first)
    assert host.run([first]) == ["p"]
    produce(fabric, 3)
    wait_for(lambda: written(fabric) == 3, "the first plan at work")
    wait_for(lambda: host.ready, "ready")
    assert host.run([first]) == []
    deploy(fabric, second)
    assert host.run([second]) == ["p"]
    assert host.plans["p"].version == second.version
    produce(fabric, 2)
    wait_for(lambda: written(fabric) == 5, "the second plan goes on where the first was")
    assert host.run([]) == []
    assert host.plans == {}
    produce(fabric, 1)
    host.stop()
    assert written(fabric) == 5
    assert host.failed == []


def test_a_host_that_does_not_work_serves_plans_only(tmp_path: Path, fabric: MemoryFabric) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    host = Host(Workshop(tmp_path, REGISTRY, fabric), work=False)
    assert host.run([plan]) == ["p"]
    assert [s["state"] for p in host.graph()["pipelines"] for s in p["stages"]] == ["elsewhere"]
    host.stop()


def test_what_failed_for_good_is_told(tmp_path: Path, fabric: MemoryFabric, host: Host) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    produce(fabric, 3)
    host.run([plan])
    wait_for(lambda: written(fabric) == 3, "at work")
    host.run([])
    produce(fabric, 3)
    fabric.delete_records(("records", 0), 5)
    host.run([plan])
    wait_for(lambda: host.failed, "the stage stopped")
    assert host.failed[0].startswith("p.a: records[0]: offset 3 is not in the log")
    assert not host.ready


def test_the_graph_shows_what_runs(tmp_path: Path, fabric: MemoryFabric, host: Host) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    host.run([plan])
    produce(fabric, 4)
    wait_for(lambda: written(fabric) == 4, "at work")
    graph = host.graph()["pipelines"][0]
    assert (graph["name"], graph["version"]) == ("p", plan.version)
    assert [(s["name"], s["records"], s["state"]) for s in graph["stages"]] == [("a", 4, "running")]
    assert {e["name"]: e["records"] for e in graph["edges"]} == {"records": 0, "a": 4, "a.side": 0}
