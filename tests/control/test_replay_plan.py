"""What part of a plan a replay runs, and on which topics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.control.replay_fabric import ShadowFabric
from dataflow.control.replay_plan import Shadow, shadow_plan, with_partitions
from dataflow.core.errors import PlanError, SpecError, TransportError
from dataflow.planner.plan import DEAD_LETTERS, Plan
from dataflow.registry import Registry
from dataflow.transport.api import EARLIEST
from dataflow.transport.memory import MemoryFabric

YAML = """
kind: Topic
name: numbers
partitions: 2
fields: {a: float64, b: float64}
---
kind: Topic
name: others
partitions: 2
fields: {a: float64, b: float64}
---
kind: Topic
name: published
fields: {a: float64, b: float64}
---
kind: Pipeline
name: shape
inputs: {numbers: numbers, others: others}
outputs: {published: after}
answer: {from: after, input: numbers}
nodes:
  left:   {use: transform.select, from: numbers, with: {set: {a: a + 1}}}
  right:  {use: transform.select, from: numbers, with: {set: {b: b + 1}}}
  both:   {use: join.by_id, from: {left: left, right: right}, with: {select: {left: [a, b], right: []}}}
  merged: {use: filter.when, from: [both, others], with: {when: a > 0}}
  after:  {use: transform.select, from: merged, with: {set: {a: a * 2}}, isolate: true}
"""
PREFIX = "dataflow.replay-1."


@pytest.fixture
def registry() -> Registry:
    return Registry.default()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/shape.yaml").write_text(YAML)
    return assemble(tmp_path, environ=os.environ).plans[0]


def shadow(plan: Plan, registry: Registry, edge: str = "") -> Shadow:
    return shadow_plan(plan, plan, registry, edge, PREFIX)


def test_all_of_it_on_topics_and_groups_of_its_own(plan: Plan, registry: Registry) -> None:
    made = shadow(plan, registry)
    assert list(made.fed) == ["numbers", "others"]
    assert list(made.compared) == ["left", "right", "both", "merged", "after"]
    topics = [t for e in made.plan.edges.values() for t in e.topics]
    assert len(topics) == len(made.plan.edges)
    assert all(t.startswith(PREFIX) for t in [*topics, *made.plan.topics])
    assert all(s.group.startswith(PREFIX) for s in made.plan.stages)
    # Nobody is answered, nothing is published.
    assert made.plan.answer is None
    assert not any(e.publish for e in made.plan.edges.values())
    assert not any(s.answers or s.leaves or s.on_answer_path for s in made.plan.stages)
    # The names that ids are made of stay.
    assert (made.plan.pipeline, made.plan.version) == (plan.pipeline, plan.version)
    assert set(topics) | {PREFIX + DEAD_LETTERS} == set(made.plan.topics)


def test_what_else_a_node_reads_is_fed_too(plan: Plan, registry: Registry) -> None:
    made = shadow(plan, registry, "both")
    assert list(made.fed) == ["both", "others"]
    assert list(made.plan.nodes) == ["merged", "after"]
    assert made.plan.edges["both"].node == ""
    made = shadow(plan, registry, "merged")
    assert (list(made.fed), [s.reads for s in made.plan.stages]) == (["merged"], [("merged",)])


def test_branches_cannot_be_put_together_from_one_side(plan: Plan, registry: Registry) -> None:
    with pytest.raises(
        PlanError, match="'both' puts the branches of one record together, and 'right' is not"
    ):
        shadow(plan, registry, "left")


def test_partitions_are_those_of_what_is_fed(plan: Plan, registry: Registry) -> None:
    made = with_partitions(shadow(plan, registry), {"numbers": 5})
    assert made.plan.edges["numbers"].partitions == 5
    assert made.plan.topics[made.plan.edges["numbers"].topics[0]].partitions == 5
    assert max(s.partitions for s in made.plan.stages) == 5


def test_an_edge_that_is_not_there(plan: Plan, registry: Registry) -> None:
    with pytest.raises(SpecError, match=r"no edge 'merge'.*did you mean 'merged'"):
        shadow(plan, registry, "merge")


def test_it_writes_nowhere_else() -> None:
    log = MemoryFabric()
    fabric = ShadowFabric(log, PREFIX, {DEAD_LETTERS: PREFIX + DEAD_LETTERS})
    for name in (f"{PREFIX}x", PREFIX + DEAD_LETTERS, "x"):
        log.create(name, 1, {})
    for producer in (fabric.producer(), fabric.transactional("t")):
        with pytest.raises(TransportError, match="does not write to topic 'x'"):
            producer.send("x", b"1")
        producer.close()
    producer = fabric.producer()
    producer.send(f"{PREFIX}x", b"1")
    producer.send(DEAD_LETTERS, b"2")
    producer.close()
    consumer = fabric.consumer()
    consumer.assign({(n, 0): EARLIEST for n in log.topics()})
    assert {(m.topic(), m.value()) for m in consumer.poll(10, 1)} == {
        (f"{PREFIX}x", b"1"),
        (PREFIX + DEAD_LETTERS, b"2"),
    }
    fabric.close()
