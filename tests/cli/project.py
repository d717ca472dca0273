"""A small project for the commands, and how they are called."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from dataflow.cli.main import main
from tests.spec.projects import write

TOPIC = """
kind: Topic
name: readings
key: sensor
partitions: 2
fields:
  sensor: string
  value: float64
"""
PIPELINE = """
kind: Pipeline
name: hello
inputs: {readings: readings}
answer: {from: [doubled, route.low]}
nodes:
  route: {use: route.when, from: readings, with: {high: value > 10, low: otherwise}}
  doubled: {use: transform.python, from: route.high, with: {call: double.double}}
tests:
  - name: above ten is doubled
    given: {readings: [{sensor: a, value: 20}, {sensor: b, value: 1}]}
    expect: {doubled: [{sensor: a, value: 40}], route.low: [{sensor: b}]}
"""
DOUBLE = """
from typing import TypedDict

class Doubled(TypedDict):
    sensor: str
    value: float

def double(row: dict) -> Doubled:
    if row["value"] > 1000:
        raise ValueError("too much")
    return {"sensor": row["sensor"], "value": row["value"] * 2}
"""


def make(folder: Path, pipeline: str = PIPELINE, **files: str) -> Path:
    """The project, with other contents for its pipeline, and further files (``__`` in a name is a slash)."""
    more = {
        name.replace("__", "/").replace("_yaml", ".yaml").replace("_py", ".py"): text
        for name, text in files.items()
    }
    return write(
        folder,
        {
            "dataflow.yaml": "kind: Project\nname: test\n",
            "topics/readings.yaml": TOPIC,
            "pipelines/hello/pipeline.yaml": pipeline,
            "pipelines/hello/double.py": DOUBLE,
            **more,
        },
    )


def call(folder: Path, *arguments: str) -> Result:
    """`dataflow --project folder ARGUMENTS`; an unexpected exception fails the test at once."""
    return CliRunner().invoke(main, ["--project", str(folder), *arguments], catch_exceptions=False)
