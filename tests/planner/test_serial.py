"""A plan out of the topic of plans is the plan that was put there, the order that its author meant included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dataflow.planner.serial import digest, plan_from_json, plan_to_json
from dataflow.registry import Registry
from tests.runtime.kit import make_plan

ROUTE = """
inputs: {records: records}
nodes:
  way: {use: route.when, from: records, with: {zero: n >= 0, any: n >= -9, above: otherwise}}
  one: {use: join.any, from: {zeros: way.zero, anything: way.any}}
"""


def test_what_is_read_back_is_equal_and_in_order(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ROUTE, registry=Registry.default(None))
    found = plan_from_json(plan_to_json(plan))
    assert found == plan
    assert list(found.nodes["way"].settings) == ["zero", "any", "above"]
    assert list(found.nodes["one"].inputs) == ["zeros", "anything"]


def test_an_order_that_a_node_may_mean_is_part_of_the_version_and_others_are_not(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ROUTE, registry=Registry.default(None))
    way = plan.nodes["way"]
    turned = replace(way, settings=dict(reversed(list(way.settings.items()))))
    assert digest(replace(plan, nodes={**plan.nodes, "way": turned})) != digest(plan)
    assert digest(replace(plan, nodes=dict(reversed(list(plan.nodes.items()))))) == digest(plan)
