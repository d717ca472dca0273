"""Pipelines on pipelines: what an edge of another one is as an input, and every way in which it cannot be one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dataflow.planner.build import build_plan
from dataflow.planner.lint import lint
from dataflow.planner.plan import Plan
from dataflow.planner.report import plan_as_text
from dataflow.planner.rights import Right, rights_of
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.planner.upstream import Pipelines
from tests.planner.kinds import REGISTRY
from tests.spec.projects import project_of

FIRST = """
kind: Topic
name: t
key: id
partitions: 4
fields: {id: string, x: float32, mail: {type: string, privacy: contact}}
---
kind: Pipeline
name: first
delivery: DELIVERY
inputs: {t: t}
edges: {retention: 1h, codec: json}
nodes:
  a: {use: test.pass, from: t, open: true}
  split: {use: test.split, from: a, with: {by: {big: x, small: x}}}
  b: {use: test.rekey, from: a, with: {key: mail, partitions: 8}}
  c: {use: test.pass, from: b, out: {x: float32}}
  hidden: {use: test.pass, from: t, write: off}
"""
SECOND = "kind: Pipeline\nname: second\n"


def plan_of(folder: Path, second: str, delivery: str = "at_least_once") -> Plan:
    first = FIRST.replace("DELIVERY", delivery)
    project = project_of(folder, {"pipelines/first.yaml": first, "pipelines/second.yaml": SECOND + second})
    pipelines = Pipelines(project, REGISTRY)
    found = pipelines.resolved("second")
    assert [str(p) for p in found.problems] == []
    return build_plan(project, found, {}, "")


def lines(folder: Path, second: str, delivery: str = "at_least_once", **more: str) -> list[str]:
    files = {
        "pipelines/first.yaml": FIRST.replace("DELIVERY", delivery),
        "pipelines/second.yaml": SECOND + second,
        **{f"pipelines/{name}.yaml": text for name, text in more.items()},
    }
    problems = lint(project_of(folder, files), REGISTRY)
    return [str(p).removeprefix("pipelines/") for p in problems if "outsiders may write" not in p.message]


@pytest.mark.parametrize(
    "text",
    [
        "inputs: {x: first.split.big}\nnodes:\n  n: {use: test.pass, from: x}\n",
        "nodes:\n  n: {use: test.pass, from: first.split.big}\n",
    ],
    ids=["declared", "from"],
)
def test_an_edge_of_another_pipeline_is_an_input(tmp_path: Path, text: str) -> None:
    plan = plan_of(tmp_path, text)
    name = next(iter(plan.inputs))
    edge = plan.edges[name]
    assert plan.inputs == {name: "first.split.big"}
    assert (edge.topics, edge.codec, edge.partitions, edge.node) == (("first.split.big",), "json", 4, "")
    assert (edge.key, edge.key_encoding, edge.upstream, edge.open) == (
        ("id",),
        "string",
        "first.split.big",
        False,
    )
    assert edge.schema.names == ("id", "x", "mail")
    assert edge.schema["mail"].privacy == "contact"
    (stage,) = plan.stages
    assert (stage.reads, stage.nodes, stage.group) == ((name,), ("n",), "dataflow.second.n")
    topic = plan.topics["first.split.big"]
    assert (topic.role, topic.partitions, topic.config["retention.ms"]) == ("upstream", 4, "3600000")
    assert plan.edges["n"].partitions == 4
    assert not [r for r in rights_of(plan) if r.role == "outsider"]
    assert Right("worker", "topic", "first.split.big", ("DESCRIBE", "READ")) in rights_of(plan)
    assert "from    pipeline first, edge split.big\n" in plan_as_text(plan)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_the_key_and_the_partitions_are_those_of_the_other_pipeline(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, "nodes:\n  n: {use: test.pass, from: [first.b]}\n  m: {use: test.pass, from: first.c}\n"
    )
    keyed, unsaid = plan.edges["first.b"], plan.edges["first.c"]
    assert (keyed.key, keyed.key_encoding, keyed.partitions) == (("mail",), "string", 8)
    # The records of c have that key too, but the contract no longer says what it is made of.
    assert (unsaid.key, unsaid.partitions) == ((), 8)


def test_requests_may_go_to_such_an_input(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "answer: {from: n}\nnodes:\n  n: {use: test.pass, from: first.a}\n")
    assert plan.answer is not None
    assert plan.answer.input == "first.a"
    assert plan.edges["first.a"].topics == ("first.a", "second.requests")
    assert plan.topics["second.requests"].partitions == 4
    outside = [r.name for r in rights_of(plan) if r.role == "outsider"]
    assert outside == ["first.a"]  # it is open


def test_a_chain_of_pipelines_is_resolved_in_any_order(tmp_path: Path) -> None:
    third = "kind: Pipeline\nname: a-third\nnodes:\n  n: {use: test.pass, from: second.n}\n"
    assert lines(tmp_path, "nodes:\n  n: {use: test.pass, from: first.a}\n", a_third=third) == []


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {x: first.splt.big, y: first.split, z: first.hidden, u: first.t, v: frist.a, w: nowhere.a, s: second.n}
nodes:
  n: {use: test.pass, from: [x, y, z, u, v, w, s]}
  o: {use: test.pass, from: first.bb}
  p: {use: test.pass, from: [frist.b, second.n, nowhere.b]}
""",
    ) == [
        "second.yaml:4:13: pipeline 'first' has no edge 'splt.big' (did you mean 'split.big'?)",
        "second.yaml:4:32: pipeline 'first' has no edge 'split' (its ports: split.big, split.small)",
        ("second.yaml:4:48: edge 'hidden' of pipeline 'first' is `write: off`: there is nothing to read "
        "(write it, in pipeline 'first')"),
        ("second.yaml:4:65: 't' is an input of pipeline 'first', not an edge that it writes "
        "(read its topic: inputs: {t: t})"),
        "second.yaml:4:77: no pipeline 'frist', here or on the cluster (did you mean 'first'?)",
        "second.yaml:4:89: unknown topic 'nowhere.a' (valid: t)",
        "second.yaml:4:103: 'second.n' is an edge of this pipeline itself (from: n)",
        "second.yaml:7:29: pipeline 'first' has no edge 'bb' (did you mean 'b'?)",
        "second.yaml:8:30: no pipeline 'frist', here or on the cluster (did you mean 'first'?)",
        "second.yaml:8:39: 'second.n' is an edge of this pipeline itself (from: n)",
        "second.yaml:8:49: unknown edge 'nowhere.b' (valid: first.bb, frist.b, n, o, p, s, second.n, u, v, w, x, y, ...)",
    ]  # fmt: skip


def test_pipelines_that_read_each_other(tmp_path: Path) -> None:
    second = "nodes:\n  n: {use: test.pass, from: third.n}\n"
    third = "kind: Pipeline\nname: third\nnodes:\n  n: {use: test.pass, from: second.n}\n"
    (line,) = [x for x in lines(tmp_path, second, third=third) if "each other" in x]
    assert line.endswith("(make one pipeline of them, or publish to a topic of its own in between)"), line


def test_faults_of_the_other_pipeline_are_reported_there_alone(tmp_path: Path) -> None:
    second = "inputs: {x: broken.n, y: bad.n}\nnodes:\n  n: {use: test.pass, from: [x, y, broken.m]}\n"
    found = lines(
        tmp_path,
        second,
        broken="kind: Pipeline\nname: broken\ninputs: {t: t}\nnodes:\n  n: {use: test.nothing, from: t}\n  m: {use: test.pass, from: n}\n",
        bad="kind: Pipeline\nname: bad\nnodes: 3\n",
    )
    assert [x.partition(":")[0] for x in found] == ["bad.yaml", "broken.yaml"]


def test_one_topic_is_one_input(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        "inputs: {x: t, y: first.a, z: t}\nnodes:\n  n: {use: test.pass, from: [x, y, z, first.a]}\n",
    ) == [
        "second.yaml:3:31: input 'x' is the topic 't' already (use 'x')",
    ]


def test_exactly_once_on_at_least_once_is_a_warning(tmp_path: Path) -> None:
    second = "delivery: exactly_once\ninputs: {x: first.a}\nnodes:\n  n: {use: test.pass, from: [x, first.split.big]}\n"
    tail = "(exactly_once holds from end to end where both pipelines have it)"
    assert lines(tmp_path / "one", second) == [
        ("second.yaml:4:13: warning: pipeline 'first' delivers at least once: a record of 'first.a' that it writes twice "
        f"is two records here, with one id {tail}"),
        ("second.yaml:6:33: warning: pipeline 'first' delivers at least once: a record of 'first.split.big' that it writes "
        f"twice is two records here, with one id {tail}"),
    ]  # fmt: skip
    assert lines(tmp_path / "two", second, "exactly_once") == []


def test_a_deployed_pipeline_is_read_by_its_plan_and_asked_for_once(tmp_path: Path) -> None:
    first = FIRST.replace("DELIVERY", "exactly_once")
    project = project_of(tmp_path / "one", {"pipelines/first.yaml": first})
    plan = build_plan(project, Pipelines(project, REGISTRY).resolved("first"), {}, "")
    asked: list[int] = []

    def deployed() -> Mapping[str, Plan]:
        asked.append(1)
        return {"first": plan}

    def found(name: str, text: str, ask: Callable[[], Mapping[str, Plan]] = deployed) -> list[str]:
        other = project_of(tmp_path / name, {"pipelines/second.yaml": SECOND + text})
        pipelines = Pipelines(other, REGISTRY, deployed=ask)
        problems = [str(p).removeprefix("pipelines/") for p in lint(other, REGISTRY, pipelines=pipelines)]
        if not problems:
            made = build_plan(other, pipelines.resolved("second"), {}, "")
            inside = plan_of(tmp_path / f"{name}-inside", text, "exactly_once")
            assert (made.edges, made.topics, made.inputs) == (inside.edges, inside.topics, inside.inputs)
        return problems

    two = "inputs: {x: first.b}\nnodes:\n  n: {use: test.pass, from: x}\n  m: {use: test.pass, from: first.split.big}\n"
    assert found("two", two) == []
    assert len(asked) == 1
    assert found("three", "inputs: {x: first.spli, y: first.t, z: first.hidden, u: frst.a}\nnodes:\n  n: {use: test.pass, from: x}\n") == [
        "second.yaml:3:13: pipeline 'first' has no edge 'spli' (did you mean 'split.big'?)",
        ("second.yaml:3:28: 't' is an input of pipeline 'first', not an edge that it writes "
        "(read its topic: inputs: {t: t})"),
        ("second.yaml:3:40: edge 'hidden' of pipeline 'first' is `write: off`: there is nothing to read "
        "(write it, in pipeline 'first')"),
        "second.yaml:3:57: no pipeline 'frst', here or on the cluster (did you mean 'first'?)",
    ]  # fmt: skip
    assert found("four", "nodes:\n  n: {use: test.pass, from: first.a}\n", dict) == [
        "second.yaml:4:29: unknown edge 'first.a' (valid: n)",
    ]
