"""Plans of gathers whose children come of another stage: the ways of children and of parents, and what cannot be."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from dataflow.core.errors import PlanError
from dataflow.core.schema import Schema
from dataflow.planner.lint import lint
from dataflow.planner.plan import ClosePlan, Plan
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, Settings, node
from dataflow.spec import load_project
from nodes.each import EachGather, EachSplit
from nodes.join import JoinById
from nodes.rekey import RekeyRecords
from nodes.top_k import RouteTopK
from tests.planner.kinds import Base, Looping
from tests.runtime.kit import Scripted, make_plan, pass_on


@node("test.counted")
class Counted(Base):
    """Gives records that look like items, and are none."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": Schema.of(do="string", n="int64", index="int32", count="int32")}


ALL = Registry.of(
    Counted, Scripted, pass_on, EachSplit, EachGather, JoinById, RouteTopK, RekeyRecords, Looping
)
TOPIC = (
    "kind: Topic\nname: {name}\nkey: n\npartitions: {partitions}\n"
    "fields: {{n: int64, do: string, items: {{type: list, items: {{type: string}}}}}}\n"
)
TEXT = """
inputs: {records: records}
nodes:
  first: {use: test.pass, from: records}
  split: {use: each.split, from: first, with: {field: items, as: do}, keep: [n]}
  item: {use: test.pass, from: split}
  more: {use: test.pass, from: item, isolate: true}
  all: {use: each.gather, from: {items: more, of: split.parents}, with: {fields: {done: do}}}
"""


def plan_of(folder: Path, text: str, partitions: int = 2) -> Plan:
    return make_plan(folder, text, registry=ALL, topic=TOPIC, partitions=partitions)


def closes(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    return {s.name: [(c.source, c.edge) for c in s.closes] for s in plan.stages}


def test_children_and_parents_have_ways_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT)
    assert plan.nodes["all"].apart == {
        "more": ("item",),
        "item": ("split",),
        "split": (),
        "split.parents": ("records",),
        "records": (),
    }
    assert closes(plan) == {
        "first": [("records", "split.parents"), ("split", "item"), ("split", "split")],
        "more": [("item", "more")],
        "all": [("more", "more"), ("split.parents", "split.parents")],
    }
    assert plan.stages[0].closes[1] == ClosePlan("split", "item", ("item",))
    assert [bool(s.changelog) for s in plan.stages] == [False, False, True]
    assert plan_from_json(plan_to_json(plan)) == plan


def test_a_split_that_is_fetched(tmp_path: Path) -> None:
    text = TEXT.replace(
        "item: {use: test.pass, from: split}", "item: {use: test.pass, from: split, isolate: true}"
    )
    assert closes(plan_of(tmp_path, text)) == {
        "first": [("records", "split.parents"), ("split", "split")],
        "item": [("split", "item")],
        "more": [("item", "more")],
        "all": [("more", "more"), ("split.parents", "split.parents")],
    }


def test_one_gather_within_another(tmp_path: Path) -> None:
    """What the inner one has taken in or given up it says itself, of the outer one's children."""
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
nodes:
  split: {use: each.split, from: records, with: {field: items, as: do}, keep: [n, items]}
  inner: {use: each.split, from: split, with: {field: items, as: do, index: i, count: c}, isolate: true}
  more: {use: test.pass, from: inner, isolate: true}
  some: {use: each.gather, from: {items: more, of: inner.parents}, with: {fields: {done: do}, index: i, count: c}}
  all: {use: each.gather, from: {items: some, of: split.parents}, with: {fields: [done]}}
""",
    )
    assert plan.nodes["some"].apart == {
        "more": ("inner",),
        "inner": (),
        "inner.parents": ("split",),
        "split": (),
    }
    assert plan.nodes["all"].apart == {"some": ("~some",), "split.parents": ("records",), "records": ()}
    assert ("~some", "some") in closes(plan)["some"]


def test_a_gather_of_one_stage_is_as_ever(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT.replace(", isolate: true", ""))
    assert len(plan.stages) == 1
    assert plan.control is None
    assert not plan.nodes["all"].apart


# ---------------------------------------------------------------- what cannot be


def faults(folder: Path, text: str) -> list[str]:
    with suppress(PlanError, AssertionError):
        plan_of(folder, text)  # writes the project, and refuses what lint finds
    return [f"{p.severity}: {p.message}" for p in lint(load_project(folder, environ={}), ALL)]


@pytest.mark.parametrize(
    ("changed", "by", "expected"),
    [
        (
            "of: split.parents",
            "of: other.parents",
            "node 'all' of pipeline 'p' has its items of 'split', and on the other side no records that these were made of",
        ),
        (
            "items: more",
            "items: [more, counted]",
            "node 'all' of pipeline 'p' has its items of another stage, and not all are made by an `each.split`: they begin at 'records'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_gathered(tmp_path: Path, changed: str, by: str, expected: str) -> None:
    more = """  two: {use: each.split, from: records, with: {field: items, as: item, index: i, count: k}, keep: [n, items]}
  other: {use: each.split, from: two, with: {field: items, as: do}, keep: [n]}
  counted: {use: test.counted, from: records}
"""
    text = TEXT.replace("  all:", more + "  all:").replace(changed, by)
    assert f"error: {expected}" in faults(tmp_path, text)


def test_a_comparison_of_what_another_stage_split(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("  all:")] + "  best: {use: route.top_k, from: more, with: {score: n, k: 1}}\n"
    said = (
        "error: node 'best' of pipeline 'p' compares what was split from one record, and would not have all of it: "
        "records of 'split' come from another stage"
    )
    assert faults(tmp_path / "cut", text) == [said]
    assert faults(tmp_path / "whole", text.replace(", isolate: true", "")) == []
    joined = text.replace("from: more,", "from: [item, more],")
    assert faults(tmp_path / "both", joined) == [said]


def test_a_time_to_wait_where_nothing_waits(tmp_path: Path) -> None:
    text = TEXT.replace("{fields: {done: do}}", "{fields: {done: do}, wait: 2s}")
    assert faults(tmp_path / "cut", text) == []
    assert faults(tmp_path / "whole", text.replace(", isolate: true", "")) == [
        "warning: wait: has no effect: all sides of 'all' are in one stage, which knows when they are over"
    ]


# ---------------------------------------------------------------- children that are keyed anew

AWAY = TEXT.replace(", isolate: true", "").replace(
    "  more: {use: test.pass, from: item}",
    "  by: {use: rekey, from: item, with: {key: do}}\n  more: {use: test.pass, from: by}",
)


def test_children_that_are_keyed_anew_go_back(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, AWAY)
    assert {e.name: e.home for e in plan.edges.values() if e.home} == {"more": ("p.by",)}
    assert plan.control is not None
    assert plan.control.home == ("p.by",)
    assert {(c.source, c.edge): c.home for s in plan.stages for c in s.closes if c.home} == {
        ("split", "by"): ("p.by",),
        ("by", "more"): ("p.by",),
    }
    assert plan_from_json(plan_to_json(plan)) == plan


@pytest.mark.parametrize(
    ("changed", "by", "expected"),
    [
        (
            "items: more",
            "items: by",
            "node 'all' of pipeline 'p' has its items from 'by', which keys them anew: they do not lie with their record",
        ),
        (
            "  all:",
            "  other: {use: test.pass, from: more, isolate: true}\n  all:",
            "'more' goes back to the partitions of what was split, for 'all': node 'other' would not have its records by their key",
        ),
        (
            "with: {key: do}",
            "with: {key: do, partitions: 4}",
            "the sides of node 'all' of pipeline 'p' come of different stages and lie on different partitions: 'more' 4, 'split.parents' 2",
        ),
    ],
)  # fmt: skip
def test_what_cannot_come_home(tmp_path: Path, changed: str, by: str, expected: str) -> None:
    assert f"error: {expected}" in faults(tmp_path, AWAY.replace(changed, by))


def test_two_gathers_of_one_edge(tmp_path: Path) -> None:
    twice = (
        AWAY
        + "  too: {use: each.gather, from: {items: more, of: split.parents}, with: {fields: {done: do}}}\n"
    )
    assert faults(tmp_path, twice) == []
