"""Records that failed for good, where their node has a port for them: they go on, and nobody is told twice."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from dataflow.codecs import codec_for
from dataflow.core import headers
from dataflow.planner.plan import DEAD_LETTERS, REPLIES, Plan
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.runtime.task import Task
from dataflow.spec import load_project
from dataflow.testing.pipelines import PipelineRun
from tests.runtime.keyed import KEYED
from tests.runtime.kit import REGISTRY, HandProducer, built, fetched, make_plan

TEXT = """
inputs: {records: records}
nodes:
  a: {use: test.script, from: records, failed: true, retry: {attempts: 2, backoff: 1s}}
  b: {use: test.pass, from: a}
"""


def test_the_contract_is_the_inputs_and_why(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXT)
    assert plan.edges["a.failed"].schema.names == ("n", "do", "error", "reason")
    assert plan.nodes["a"].outputs == {"out": "a", "side": "a.side", "failed": "a.failed"}
    assert plan_from_json(plan_to_json(plan)) == plan


def test_what_failed_goes_out_there_and_is_not_buried(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXT)
    with PipelineRun(tmp_path, plan, REGISTRY) as run:
        run.feed("records", [{"n": n, "do": do} for n, do in enumerate(["pass", "fail", "never", "raise"])])
        run.settle()
        result = run.result()
    assert [r["n"] for r in result.edges["b"]] == [0]
    told = {r["n"]: (r["error"], r["reason"], r["do"]) for r in result.edges["a.failed"]}
    assert told == {
        1: ("Impossible", "cannot be", "fail"),
        2: ("Busy", "not now", "never"),
        3: ("ValueError", "asked to ['raise']", "raise"),
    }
    assert result.dead_letters == []


ANSWERING = """
inputs: {{records: records}}
answer: {{from: {answers}, when: durable}}
nodes:
  a: {{use: test.script, from: records, failed: true}}
  b: {{use: test.script, from: a.failed}}
"""


@pytest.mark.parametrize("answers", ["[a]", "[a, b]"])
def test_a_caller_is_answered_from_there_or_told_of_the_failure(tmp_path: Path, answers: str) -> None:
    text = ANSWERING.format(answers=answers)
    # Two edges that answer need not have one contract.
    program = built(tmp_path, make_plan(tmp_path, text))[1].program
    producer = HandProducer()
    task = Task(program, 0, producer)
    task.take(
        ("records", 0),
        fetched(["pass", "a:fail"], 0, lambda n: [(headers.REPLY_TO, f"{REPLIES}/0/{n}".encode())]),
    )
    task.step(0)
    producer.acknowledge_all()
    task.collect()
    found = {r.key: r for r in producer.to(REPLIES)}
    assert found[b"0"].headers[headers.STATUS] == b"ok"
    if answers == "[a]":
        assert found[b"1"].headers[headers.STATUS] == b"failed"
        assert orjson.loads(found[b"1"].headers[headers.REASON])["error"] == "Impossible"
    else:
        assert found[b"1"].headers[headers.STATUS] == b"ok"
        codec = program.writers["b"].codec
        assert codec.decode([found[b"1"].value]).columns["error"].tolist() == ["Impossible"]
    assert producer.to(DEAD_LETTERS) == []


def test_a_keyed_node_has_it_too(tmp_path: Path) -> None:
    text = "inputs: {records: records}\nnodes:\n  count: {use: test.count, from: records, failed: true}\n"
    plan: Plan = make_plan(tmp_path, text, registry=KEYED)
    with PipelineRun(tmp_path, plan, KEYED) as run:
        run.feed("records", [{"n": 1, "do": "raise"}])
        run.settle()
        run.feed("records", [{"n": 1, "do": "count"}])
        run.settle()
        edges = run.result().edges
    assert [(r["n"], r["reason"]) for r in edges["count.failed"]] == [(1, "asked to")]
    assert [r["n"] for r in edges["count"]] == [1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [("{n: int64, do: string, reason: string}", "adds the field 'reason'")],
)
def test_a_contract_that_cannot_be_is_refused(tmp_path: Path, fields: str, said: str) -> None:
    from dataflow.planner.lint import lint

    make_plan(tmp_path, TEXT)
    (tmp_path / "pipelines/p/topic.yaml").write_text(f"kind: Topic\nname: records\nfields: {fields}\n")
    problems = lint(load_project(tmp_path, environ={}), REGISTRY)
    assert any(said in problem.message for problem in problems), problems


def test_the_wire_of_a_failed_record_keeps_its_identity(tmp_path: Path) -> None:
    program = built(tmp_path, make_plan(tmp_path, TEXT))[1].program
    producer = HandProducer()
    task = Task(program, 0, producer)
    task.take(("records", 0), fetched(["pass", "fail"], 0, lambda n: [("mine", str(n).encode())]))
    task.step(0)
    (sent,) = producer.to("p.a.failed")
    assert (sent.key, sent.headers["mine"]) == (b"k1", b"1")
    schema = program.writers["a.failed"].codec.schema
    assert codec_for("avro", schema).decode([sent.value]).columns["n"].tolist() == [1]
