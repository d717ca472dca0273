"""What a plan says of stages that keep state: the topic of it, the rights it needs, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.core.errors import PlanError
from dataflow.planner.plan import Plan
from dataflow.planner.report import plan_as_text
from dataflow.planner.rights import rights_of
from dataflow.planner.serial import plan_from_json, plan_to_json
from tests.runtime.keyed import KEYED
from tests.runtime.kit import make_plan

TEXT = """
inputs: {records: records}
nodes:
  a: {use: test.pass, from: records}
  count: {use: test.count, from: a}
  last: {use: test.pass, from: count, isolate: true}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path, TEXT, partitions=3, registry=KEYED)


def test_a_stage_with_a_keyed_node_has_a_changelog_and_others_do_not(plan: Plan) -> None:
    assert {s.name: s.changelog for s in plan.stages} == {"a": "dataflow.state.p.a", "last": ""}
    topic = plan.topics["dataflow.state.p.a"]
    assert (topic.partitions, topic.role, topic.config["cleanup.policy"]) == (3, "changelog", "compact")
    assert plan_from_json(plan_to_json(plan)) == plan


def test_the_report_shows_it_and_workers_may_use_it(plan: Plan) -> None:
    text = plan_as_text(plan)
    assert "state   in dataflow.state.p.a" in text
    assert "delete.retention.ms=86400000 (1d)" in text
    rights = {(r.role, r.name): r.operations for r in rights_of(plan)}
    assert rights["worker", "dataflow.state.p.a"] == ("DESCRIBE", "READ", "WRITE")
    assert ("gateway", "dataflow.state.p.a") not in rights


def test_state_wants_equal_partitions_of_all_that_its_stage_reads(tmp_path: Path) -> None:
    text = """
inputs: {records: records, others: others}
nodes:
  count: {use: test.count, from: records}
  a: {use: test.pass, from: others}
  b: {use: test.pass, from: [a, count]}
"""
    others = "kind: Topic\nname: others\npartitions: 2\nfields: {n: int64, do: string}\n"
    with pytest.raises(PlanError, match="state needs equal partitions of all that a stage reads"):
        make_plan(tmp_path, text, partitions=3, registry=KEYED, others=others)
