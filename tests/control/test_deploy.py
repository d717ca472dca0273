"""Plans onto a cluster: what is made, what is only reported, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dataflow.control.deploy import compare_topics, deploy, forget, read_plans
from dataflow.core.errors import PlanError, TransportError
from dataflow.planner.plan import PLANS, SCHEMAS, Plan
from dataflow.runtime.schemas import SchemaStore, read_compacted
from dataflow.transport.memory import MemoryFabric
from tests.runtime.kit import make_plan

PIPELINE = "inputs: {records: records}\nnodes:\n  a: {use: test.pass, from: records}\n"
FIELDS = "kind: Topic\nname: {{name}}\nkey: n\npartitions: {{partitions}}\nfields: {fields}\n"


def plan_of(folder: Path, fields: str = "{n: int64, do: string}", partitions: int = 2) -> Plan:
    topic = FIELDS.format(fields=fields.replace("{", "{{").replace("}", "}}"))  # `make_plan` formats it again
    return make_plan(folder, PIPELINE, partitions=partitions, topic=topic)


@pytest.fixture
def fabric() -> MemoryFabric:
    return MemoryFabric()


def test_a_first_deployment_makes_all_and_can_be_read_back(tmp_path: Path, fabric: MemoryFabric) -> None:
    plan = plan_of(tmp_path)
    assert read_plans(fabric) == {}
    assert deploy(fabric, plan) == []
    assert read_plans(fabric) == {"p": plan}
    found = fabric.describe(list(plan.topics))
    assert {n: (t.partitions, t.config) for n, t in found.items()} == {
        n: (t.partitions, t.config) for n, t in plan.topics.items()
    }
    assert compare_topics(fabric, plan.topics.values()) == ([], [])
    assert len(read_compacted(fabric, SCHEMAS)) == 1


def test_the_same_again_writes_nothing(tmp_path: Path, fabric: MemoryFabric) -> None:
    deploy(fabric, plan_of(tmp_path))
    before = fabric.offsets([(PLANS, 0), (SCHEMAS, 0)], -1)
    deploy(fabric, plan_of(tmp_path))
    assert fabric.offsets([(PLANS, 0), (SCHEMAS, 0)], -1) == before


def test_what_differs_is_reported_and_changed_only_on_request(tmp_path: Path, fabric: MemoryFabric) -> None:
    plan = plan_of(tmp_path)
    fabric.create("records", 2, {"cleanup.policy": "compact", "retention.ms": "1"})
    planned = plan.topics["records"].config
    differences = deploy(fabric, plan)
    assert {str(d) for d in differences} == {
        f"topic 'records': cleanup.policy is compact, planned {planned['cleanup.policy']}",
        f"topic 'records': retention.ms is 1, planned {planned['retention.ms']}",
        f"topic 'records': max.message.bytes is the broker's default, planned {planned['max.message.bytes']}",
    }
    assert fabric.describe(["records"])["records"].config["retention.ms"] == "1"
    assert deploy(fabric, plan, alter_topics=True) == []
    assert deploy(fabric, plan) == []


def test_other_partitions_are_an_error_and_nothing_is_made(tmp_path: Path, fabric: MemoryFabric) -> None:
    fabric.create("records", 3, {})
    with pytest.raises(TransportError, match="partitions is 3, planned 2"):
        deploy(fabric, plan_of(tmp_path), alter_topics=True)
    assert set(fabric.topics()) == {"records"}


@pytest.mark.parametrize(
    "after",
    [
        "{n: int64, do: string, more: {type: string, nullable: true}}",
        "{n: int64, do: {type: string, doc: said}}",
    ],
)
def test_a_change_that_all_can_read_is_taken(tmp_path: Path, fabric: MemoryFabric, after: str) -> None:
    deploy(fabric, plan_of(tmp_path))
    plan = plan_of(tmp_path, after)
    deploy(fabric, plan)
    assert read_plans(fabric) == {"p": plan}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("{n: string, do: string}", "field 'n'"),
        ("{n: int64, do: string, more: string}", "'more'"),
        ("{n: int64}", "'do'"),
    ],
)
def test_a_change_that_breaks_readers_is_refused_and_changes_nothing(
    tmp_path: Path, fabric: MemoryFabric, after: str, said: str
) -> None:
    first = plan_of(tmp_path)
    deploy(fabric, first)
    state = (fabric.topics(), fabric.offsets([(PLANS, 0), (SCHEMAS, 0)], -1))
    with pytest.raises(PlanError, match="pipeline 'p': the change breaks readers of its streams") as refusal:
        deploy(fabric, plan_of(tmp_path, after))
    assert said in str(refusal.value)
    assert "edge 'records'" in str(refusal.value)
    assert "another name" in refusal.value.hint
    assert (fabric.topics(), fabric.offsets([(PLANS, 0), (SCHEMAS, 0)], -1)) == state
    assert read_plans(fabric) == {"p": first}


def test_another_codec_is_refused(tmp_path: Path, fabric: MemoryFabric) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    edges = {**plan.edges, "a": dataclasses.replace(plan.edges["a"], codec="json")}
    with pytest.raises(PlanError, match="edge 'a': codec avro became json"):
        deploy(fabric, dataclasses.replace(plan, version="x", edges=edges))


def test_forgetting_leaves_the_topics(tmp_path: Path, fabric: MemoryFabric) -> None:
    deploy(fabric, plan_of(tmp_path))
    topics = fabric.topics()
    forget(fabric, "p")
    assert read_plans(fabric) == {}
    assert fabric.topics() == topics


def test_a_stored_plan_of_another_version_is_passed_over(
    tmp_path: Path, fabric: MemoryFabric, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    producer = fabric.producer()
    producer.send(PLANS, b'{"from": "the future"}', b"q")
    producer.send(PLANS, b"garbage", b"r")
    assert read_plans(fabric) == {"p": plan}
    assert "pipeline 'q'" in caplog.text


class Refusing(MemoryFabric):
    """Its broker takes nothing more."""

    def producer(self, **options: Any) -> Any:
        made = super().producer(**options)
        send = made.send

        def refused(topic: str, value: bytes | None, key: bytes | None = None, **options: Any) -> None:
            report = options.pop("on_delivery", None)
            callback = report and (lambda _error, message: report("disk full", message))
            send(topic, value, key, on_delivery=callback, **options)

        made.send = refused  # type: ignore[method-assign, assignment]  # this one producer
        return made


def test_a_refused_plan_or_schema_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"writing to topic 'dataflow\.schemas': disk full"):
        deploy(Refusing(), plan_of(tmp_path))
    fabric = Refusing()
    fabric.create(PLANS, 1, {})
    with pytest.raises(TransportError, match=r"writing to topic 'dataflow\.plans': disk full"):
        forget(fabric, "p")


def test_an_unpublished_schema_is_published_at_the_next_attempt(tmp_path: Path, fabric: MemoryFabric) -> None:
    plan = plan_of(tmp_path)
    deploy(fabric, plan)
    store = SchemaStore(fabric)
    store.publish(plan)
    assert fabric.offsets([(SCHEMAS, 0)], -1) == {(SCHEMAS, 0): 1}
