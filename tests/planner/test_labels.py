"""What lint and resolve make of two things that only look like faults: models not built yet, and labels left out."""

from __future__ import annotations

from pathlib import Path

from dataflow.planner.lint import lint
from dataflow.planner.resolve import resolve
from dataflow.registry import Registry
from tests.spec.projects import project_of

TOPIC = """
kind: Topic
name: people
fields: {person: {type: string, privacy: identifier}, age: int32}
"""
PYTHON = """
from typing import TypedDict

class Seen(TypedDict):
    person: str
    older: int

def grow(row) -> Seen:
    return {"person": row["person"], "older": row["age"] + 1}
"""


def test_a_private_field_stays_private_under_its_name(tmp_path: Path) -> None:
    pipeline = """
kind: Pipeline
name: p
inputs: {people: people}
nodes:
  grow: {use: transform.python, from: people, with: {call: code.grow}}
"""
    project = project_of(
        tmp_path, {"topics/t.yaml": TOPIC, "pipelines/p.yaml": pipeline, "pipelines/code.py": PYTHON}
    )
    found = resolve(project, "p", Registry.default(None))
    assert found.problems == ()
    schema = found.edges["grow"].schema
    assert {f.name: f.privacy for f in schema} == {"person": "identifier", "older": ""}


def test_a_model_not_built_yet_is_a_warning_and_nothing_follows_from_it(tmp_path: Path) -> None:
    pipeline = """
kind: Model
name: m
file: m.onnx
build: python train.py
---
kind: Pipeline
name: p
inputs: {people: people}
answer: triage.late
nodes:
  predict: {use: model.onnx, from: people, with: {model: m}}
  triage: {use: route.when, from: predict, with: {late: "delay > 30", on_time: otherwise}}
"""
    project = project_of(tmp_path, {"topics/t.yaml": TOPIC, "pipelines/p.yaml": pipeline})
    (problem,) = lint(project, Registry.default(None))
    assert problem.severity == "warning"
    assert "model 'm' is not built yet" in problem.message
    assert "dataflow model build m" in problem.hint
