"""Plans of joins whose sides come of different stages: where they are cut, who says what, and what cannot be."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from dataflow.core.errors import PlanError
from dataflow.planner.lint import lint
from dataflow.planner.plan import CONTROL, ClosePlan, Plan
from dataflow.planner.report import plan_as_text
from dataflow.planner.rights import rights_of
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.registry import Registry
from dataflow.spec import load_project
from nodes.join import JoinAny, JoinById
from tests.planner.kinds import Gather, KeyedAnew, Looping
from tests.runtime.kit import Scripted, add_one, make_plan, pass_on

ALL = Registry.of(Scripted, add_one, pass_on, KeyedAnew, Gather, Looping, JoinById, JoinAny)
JOIN = "with: {select: {y: []}, how: outer, missing: without}"


def plan_of(folder: Path, text: str, **options: object) -> Plan:
    return make_plan(folder, text, registry=ALL, **{"partitions": 2, **options})  # type: ignore[arg-type]  # by name


def shown(plan: Plan) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {s.name: (s.reads, s.nodes) for s in plan.stages}


def closes(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    return {s.name: [(c.source, c.edge) for c in s.closes] for s in plan.stages}


DIAMOND = f"""
inputs: {{records: records}}
answer: {{from: [end]}}
nodes:
  a: {{use: test.pass, from: records}}
  x: {{use: test.pass, from: a}}
  y: {{use: test.pass, from: a, isolate: true}}
  both: {{use: join.by_id, from: {{x: x, y: y}}, {JOIN}}}
  end: {{use: test.pass, from: both}}
"""


def test_a_join_reads_its_sides_and_what_is_said_of_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, DIAMOND)
    assert shown(plan) == {
        "a": (("records",), ("a", "x")),
        "y": (("a",), ("y",)),
        "both": (("x", "y"), ("both", "end")),
    }
    assert closes(plan) == {
        "a": [("records", "a"), ("records", "x")],
        "y": [("a", "y")],
        "both": [("x", "x"), ("y", "y")],
    }
    assert plan.stages[0].closes[1] == ClosePlan("records", "x", ("a", "x"))
    assert plan.nodes["both"].apart == {"x": ("records",), "y": ("a",), "a": ("records",), "records": ()}
    assert [(s.hears, bool(s.changelog)) for s in plan.stages] == [
        (False, False),
        (False, False),
        (True, True),
    ]
    assert plan.stages[0].leaves == ("a", "x")
    assert plan_from_json(plan_to_json(plan)) == plan


def test_the_control_topic_is_there_where_it_is_needed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, DIAMOND)
    topic = plan.topics["p.control"]
    assert (topic.role, topic.partitions) == ("control", 2)
    assert plan.control is not None
    assert [edge.name for edge in plan.fetched(plan.stages[2])] == ["x", "y", CONTROL]
    assert CONTROL not in plan.edges
    assert "both" in plan.nodes
    assert CONTROL not in str(plan.nodes["both"].inputs)
    rights = [r.operations for r in rights_of(plan) if r.name == "p.control" and r.role == "worker"]
    assert rights == [("DESCRIBE", "READ", "WRITE")]
    text = plan_as_text(plan)
    assert "the sides of 'both' come of different stages" in text
    assert "hears   which records will not come, from p.control" in text.replace("  hears  ", " hears ")
    assert "p.control" not in plan_of(tmp_path, DIAMOND.replace(", isolate: true", "")).topics


def test_branches_that_read_the_input_each(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        f"""
inputs: {{records: records}}
answer: {{from: [both]}}
nodes:
  y: {{use: test.pass, from: records, isolate: true}}
  both: {{use: join.by_id, from: {{x: records, y: y}}, {JOIN}}}
""",
    )
    assert shown(plan) == {"y": (("records",), ("y",)), "both": (("records", "y"), ("both",))}
    assert closes(plan) == {"y": [("records", "y")], "both": [("records", "records"), ("y", "y")]}
    # Both stages have the request: each has half of its caller.
    assert [dict(s.shares) for s in plan.stages] == [{"records": (0, 2)}, {"records": (1, 2)}]


def test_a_join_isolated_from_its_branches(tmp_path: Path) -> None:
    text = DIAMOND.replace("y: {use: test.pass, from: a, isolate: true}", "y: {use: test.pass, from: a}")
    plan = plan_of(tmp_path, text.replace("use: join.by_id", "isolate: true, use: join.by_id"))
    assert shown(plan)["both"] == (("x", "y"), ("both",))
    assert closes(plan)["a"] == [("records", "x"), ("records", "y")]


def test_what_reads_a_join_and_what_is_before_it_is_apart_too(tmp_path: Path) -> None:
    text = DIAMOND.replace(
        "  end: {use: test.pass, from: both}",
        "  end: {use: join.by_id, from: {x: both, y: y}, with: {select: {y: []}}}",
    )
    plan = plan_of(tmp_path, text)
    assert shown(plan)["end"] == (("both", "y"), ("end",))
    assert plan.nodes["end"].apart["both"] == ("~both",)
    assert ("~both", "both") in closes(plan)["both"]


def test_a_monitor_joins_what_answers_with_what_does_not(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        f"""
inputs: {{records: records}}
answer: {{from: [x]}}
nodes:
  x: {{use: test.pass, from: records}}
  y: {{use: test.pass, from: records}}
  both: {{use: join.by_id, from: {{x: x, y: y}}, {JOIN}}}
""",
    )
    assert shown(plan)["both"] == (("x", "y"), ("both",))
    assert [dict(s.shares) for s in plan.stages] == [{}, {}, {}]
    assert not plan.stages[-1].on_answer_path
    assert closes(plan)["x"] == [("records", "x")]


# ---------------------------------------------------------------- what cannot be


def faults(folder: Path, text: str, partitions: int = 2) -> list[str]:
    with suppress(PlanError):
        plan_of(
            folder, text, partitions=partitions, others=OTHERS
        )  # writes the project, and refuses what lint finds
    project = load_project(folder, environ={})
    return [f"{p.severity}: {p.message}" for p in lint(project, ALL)]


OTHERS = "kind: Topic\nname: others\nkey: n\npartitions: 2\nfields: {n: int64, do: string}\n"
STREAMS = "node 'both' of pipeline 'p' gathers the branches of one record, but its sides come of different streams: "


@pytest.mark.parametrize(
    ("changed", "by", "expected"),
    [
        (
            "y: {use: test.pass, from: a, isolate: true}",
            "y: {use: test.rekey, from: a, with: {key: do}}",
            STREAMS + "'x' of records; 'y' of y",
        ),
        (
            "from: a, isolate: true",
            "from: others, isolate: true",
            STREAMS + "'x' of records; 'y' of others",
        ),
        (
            "use: join.by_id",
            "use: test.gather",
            "node 'both' of pipeline 'p' gathers the branches of one record, but its sides come of different stages: x, y",
        ),
        (
            "x: {use: test.pass, from: a}",
            "x: {use: test.pass, from: [a, end.again]}",
            "node 'both' of pipeline 'p' lies in a loop, and its sides come of different stages",
        ),
        (
            "x: {use: test.pass, from: a}",
            "x: {use: test.pass, from: a}\n  control: {use: test.pass, from: a}",
            "the topic 'p.control' is where stages speak to joins of others",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_joined(tmp_path: Path, changed: str, by: str, expected: str) -> None:
    text = DIAMOND.replace("inputs: {records: records}", "inputs: {records: records, others: others}")
    if "again" in by:
        text = text.replace(", how: outer, missing: without", "")
        text = text.replace("end: {use: test.pass", "end: {use: test.loop").replace(
            "from: [end]", "from: [end]"
        )
    if "gather" in by:
        text = text.replace(f", {JOIN}", "")
    text = text.replace("answer: {from: [end]}", "answer: {from: [end], input: records}")
    assert f"error: {expected}" in faults(tmp_path, text.replace(changed, by))


def test_sides_on_different_partitions(tmp_path: Path) -> None:
    text = DIAMOND.replace("nodes:", "edges: {partitions: 4}\nnodes:").replace(
        "{x: x, y: y}", "{x: records, y: y}"
    )
    assert (
        "error: the sides of node 'both' of pipeline 'p' come of different stages and lie on different partitions: "
        "'records' 2, 'y' 4"
    ) in faults(tmp_path, text)


def test_joins_of_different_partitions(tmp_path: Path) -> None:
    text = (
        DIAMOND.replace("inputs: {records: records}", "inputs: {records: records, others: others}")
        .replace("answer: {from: [end]}", "")
        .replace(
            "  end: {use: test.pass, from: both}",
            "  o: {use: test.pass, from: others, isolate: true}\n"
            f"  more: {{use: join.by_id, from: {{x: others, y: o}}, {JOIN}}}",
        )
    )
    assert faults(tmp_path / "same", text) == []
    assert "error: joins across stages need equal partitions within a pipeline: 'both' 3, 'more' 2" in faults(
        tmp_path / "other", text, partitions=3
    )


def test_an_edge_on_the_way_is_written(tmp_path: Path) -> None:
    text = DIAMOND.replace("x: {use: test.pass, from: a}", "x: {use: test.pass, from: a, write: off}")
    assert "error: edge 'x' of pipeline 'p' is `write: off`, but stage 'both' reads it" in faults(
        tmp_path, text
    )


def test_a_time_to_wait_where_nothing_waits(tmp_path: Path) -> None:
    waits = DIAMOND.replace("how: outer", "how: outer, wait: 2s")
    assert faults(tmp_path / "torn", waits) == []
    assert faults(tmp_path / "whole", waits.replace(", isolate: true", "")) == [
        "warning: wait: has no effect: all sides of 'both' are in one stage, which knows when they are over"
    ]
