"""Pipelines on pipelines, on a cluster: another pipeline's topic is made as it would make it, and never changed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dataflow.control.assemble import Assembled, LintError, assemble
from dataflow.control.deploy import deploy, orphans, read_plans
from dataflow.control.streams import known_topics
from dataflow.planner.plan import Plan
from dataflow.transport.memory import MemoryFabric

FIRST = """
kind: Topic
name: raw
key: n
partitions: 2
fields: {n: int64}
---
kind: Pipeline
name: first
inputs: {raw: raw}
edges: {retention: RETENTION}
nodes:
  NODE: {use: transform.select, from: raw, with: {set: {twice: n * 2}}}
"""
SECOND = """
kind: Pipeline
name: second
inputs: {half: first.NODE}
nodes:
  big: {use: filter.when, from: half, with: {when: twice > 10}}
"""


def made(
    folder: Path, *texts: str, retention: str = "1h", node: str = "twice", fabric: MemoryFabric | None = None
) -> Assembled:
    (folder / "pipelines").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        said = text.replace("RETENTION", retention).replace("NODE", node)
        (folder / "pipelines" / f"{number}.yaml").write_text(said)
    return assemble(folder, environ={}, deployed=lambda: read_plans(fabric) if fabric is not None else {})


def plans(assembled: Assembled) -> dict[str, Plan]:
    return {plan.pipeline: plan for plan in assembled.plans}


@pytest.fixture
def fabric() -> MemoryFabric:
    return MemoryFabric()


def test_the_reader_may_be_deployed_first(tmp_path: Path, fabric: MemoryFabric) -> None:
    both = plans(made(tmp_path, FIRST, SECOND))
    assert deploy(fabric, both["second"]) == []
    assert deploy(fabric, both["first"]) == []
    info = fabric.admin().describe(["first.twice"])["first.twice"]
    assert (info.partitions, info.config["retention.ms"]) == (2, "3600000")


def test_settings_of_another_pipelines_topic_are_not_touched(tmp_path: Path, fabric: MemoryFabric) -> None:
    deploy(fabric, plans(made(tmp_path / "one", FIRST, retention="5h"))["first"])
    second = plans(made(tmp_path / "two", FIRST, SECOND, retention="1h"))["second"]
    assert deploy(fabric, second, alter_topics=True) == []
    info = fabric.admin().describe(["first.twice"])["first.twice"]
    assert info.config["retention.ms"] == "18000000"


def test_a_project_may_read_what_only_the_cluster_knows(tmp_path: Path, fabric: MemoryFabric) -> None:
    deploy(fabric, plans(made(tmp_path / "one", FIRST))["first"])
    second = plans(made(tmp_path / "two", SECOND, fabric=fabric))["second"]
    assert second.edges["half"].schema.names == ("n", "twice")
    assert second.edges["half"].key == ("n",)
    with pytest.raises(LintError, match=r"unknown topic 'first\.twice'"):
        made(tmp_path / "three", SECOND)
    with pytest.raises(LintError, match=r"pipeline 'first' has no edge 'twce' \(did you mean 'twice'\?\)"):
        made(tmp_path / "four", SECOND, node="twce", fabric=fabric)


def test_a_reader_of_what_is_no_longer_written_is_named(
    tmp_path: Path, fabric: MemoryFabric, caplog: pytest.LogCaptureFixture
) -> None:
    both = plans(made(tmp_path / "one", FIRST, SECOND))
    for plan in both.values():
        deploy(fabric, plan)
    assert orphans(both["first"], both.values()) == []
    renamed = plans(made(tmp_path / "two", FIRST, node="double"))["first"]
    with caplog.at_level(logging.WARNING, "dataflow.deploy"):
        deploy(fabric, renamed)
    assert [r.getMessage() for r in caplog.records] == [
        "pipeline 'second' reads 'first.twice', which 'first' no longer writes"
    ]


def test_a_topic_is_best_known_by_the_pipeline_that_writes_it(tmp_path: Path) -> None:
    both = plans(made(tmp_path, FIRST, SECOND))
    for names in (("first", "second"), ("second", "first")):
        known = known_topics({name: both[name] for name in names})
        assert known["first.twice"].schema == both["first"].edges["twice"].schema
    assert known_topics({"second": both["second"]})["first.twice"].codec == "avro"


def test_one_pipeline_of_a_chain_is_planned_alone(tmp_path: Path) -> None:
    third = "kind: Pipeline\nname: third\nnodes:\n  more: {use: transform.select, from: second.big, with: {keep: [n]}}\n"
    assembled = made(tmp_path, FIRST, SECOND, third)
    assert [p.pipeline for p in assemble(tmp_path, ["third"], environ={}).plans] == ["third"]
    assert set(plans(assembled)) == {"first", "second", "third"}
