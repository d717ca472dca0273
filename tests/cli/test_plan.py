from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflow.cli.plan import compare_with_cluster
from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.planner.plan import Plan
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.memory import MemoryFabric
from tests.cli.project import DOUBLE, PIPELINE, call, make


def planned(folder: Path) -> Plan:
    return assemble(folder, environ={}).plans[0]


def test_text_is_the_same_each_time(tmp_path: Path) -> None:
    make(tmp_path)
    first = call(tmp_path, "plan")
    assert first.exit_code == 0
    assert first.output.startswith("pipeline hello, version ")
    assert call(tmp_path, "plan", "hello").output == first.output


def test_warnings_are_told_beside(tmp_path: Path) -> None:
    make(tmp_path, PIPELINE.replace("[doubled, route.low]}", "[doubled, route.low], when: eager}"))
    result = call(tmp_path, "plan")
    assert "an eager answer may be lost" in result.stderr
    assert "an eager answer may be lost" not in result.stdout


def test_json_and_what_changed_since(tmp_path: Path) -> None:
    make(tmp_path)
    old = tmp_path / "old.json"
    old.write_text(call(tmp_path, "plan", "--format", "json").output)
    assert call(tmp_path, "plan", "--diff", str(old)).output == "no change\n"
    make(
        tmp_path,
        PIPELINE.replace("value > 10", "value > 11"),
        topics__more_yaml="kind: Topic\nname: x\nfields: {a: string}\n",
    )
    lines = call(tmp_path, "plan", "--diff", str(old)).output.splitlines()
    assert lines[1:] == ["~ node route: settings.high: value > 10 -> value > 11"]
    shown = json.loads(call(tmp_path, "plan", "--diff", str(old), "--format", "json").output)
    assert shown == lines


def test_a_changed_function_is_a_change(tmp_path: Path) -> None:
    make(tmp_path)
    old = tmp_path / "old.json"
    old.write_text(call(tmp_path, "plan", "--format", "json").output)
    (tmp_path / "pipelines/hello/double.py").write_text(DOUBLE.replace("* 2", "* 3"))
    assert "~ pipeline hello: its code" in call(tmp_path, "plan", "--diff", str(old)).output


def test_a_pipeline_that_is_gone(tmp_path: Path) -> None:
    make(tmp_path)
    old = tmp_path / "old.json"
    old.write_text(call(tmp_path, "plan", "--format", "json").output)
    make(tmp_path, PIPELINE.replace("name: hello", "name: other"))
    lines = call(tmp_path, "plan", "--diff", str(old)).output.splitlines()
    assert lines == ["+ pipeline other", "- pipeline hello"]


def test_a_file_without_plans(tmp_path: Path) -> None:
    make(tmp_path)
    result = call(tmp_path, "plan", "--diff", str(tmp_path / "topics/readings.yaml"))
    assert result.exit_code == 1
    assert "holds no plans" in result.stderr
    assert "dataflow plan --format json" in result.stderr


def test_a_cluster_that_knows_nothing(tmp_path: Path) -> None:
    plan = planned(make(tmp_path))
    found = compare_with_cluster(MemoryFabric(), plan)
    assert found["running"] is None
    assert found["missing_topics"] == list(plan.topics)
    assert found["changes"] == ["+ pipeline hello"]
    assert found["blocked"] == []


def test_a_cluster_that_runs_it(tmp_path: Path) -> None:
    plan, fabric = planned(make(tmp_path)), MemoryFabric()
    deploy(fabric, plan)
    found = compare_with_cluster(fabric, plan)
    assert found["running"] == found["planned"] == plan.version
    assert not any(found[key] for key in ("missing_topics", "different_topics", "changes", "blocked"))


def test_a_cluster_that_runs_another_version_whose_readers_would_break(tmp_path: Path) -> None:
    fabric = MemoryFabric()
    deploy(fabric, planned(make(tmp_path)))
    code = DOUBLE.replace("value: float", "value: str").replace('row["value"] * 2', '"x"')
    make(tmp_path, PIPELINE.partition("tests:")[0], pipelines__hello__double_py=code)
    (tmp_path / "topics/readings.yaml").write_text(
        (tmp_path / "topics/readings.yaml").read_text().replace("partitions: 2", "partitions: 3")
    )
    found = compare_with_cluster(fabric, planned(tmp_path))
    changes, blocked = found["changes"], found["blocked"]
    assert isinstance(changes, list)
    assert isinstance(blocked, list)
    assert "~ edge doubled: field value: float64 -> string" in changes
    assert "topic 'readings': partitions is 2, planned 3: partitions of a topic never change" in blocked
    assert any("the change breaks readers of its streams" in line for line in blocked)


def test_no_cluster_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAFLOW_BOOTSTRAP", raising=False)
    result = call(make(tmp_path), "plan", "--compare")
    assert result.exit_code == 1
    assert "no broker is known" in result.stderr


@pytest.mark.broker
def test_a_real_cluster(tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str) -> None:
    make(
        tmp_path,
        PIPELINE.replace("name: hello", f"name: {unique}").replace(
            "readings: readings", f"readings: {unique}"
        ),
    )
    (tmp_path / "topics/readings.yaml").write_text(
        (tmp_path / "topics/readings.yaml").read_text().replace("name: readings", f"name: {unique}")
    )
    before = call(tmp_path, "plan", "--bootstrap", bootstrap)
    assert before.exit_code == 0
    assert before.output.startswith(f"pipeline {unique}: not deployed, planned ")
    assert f"    {unique}.doubled\n" in before.output
    deploy(kafka, planned(tmp_path))
    after = call(tmp_path, "plan", "--bootstrap", bootstrap)
    assert after.output.startswith(f"pipeline {unique}: up to date, planned ")
    assert f"{unique}.doubled" not in after.output


def test_graphs(tmp_path: Path) -> None:
    make(tmp_path)
    assert "route.when" in call(tmp_path, "graph").output
    assert call(tmp_path, "graph", "hello", "--format", "mermaid").output.startswith("flowchart TD\n")
    shown = json.loads(call(tmp_path, "graph", "--format", "json").output)
    assert [p["pipeline"] for p in shown["pipelines"]] == ["hello"]
