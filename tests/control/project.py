"""A project of two pipelines that read each other's topics, under names that nobody else uses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dataflow.codecs.values import coerce_records
from dataflow.control.assemble import Assembled, assemble
from dataflow.control.deploy import deploy
from dataflow.control.produce import TopicProducer
from dataflow.control.streams import find_topic
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime.worker import Worker, lag_of
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import Fabric
from tests.conftest import wait_for

YAML = """
kind: Topic
name: {name}.readings
key: sensor
partitions: 2
fields:
  sensor: string
  value: float64
  owner: {{type: string, nullable: true, privacy: identifier}}
---
kind: Topic
name: {name}.doubles
key: sensor
fields:
  sensor: string
  value: float64
---
kind: Pipeline
name: {name}-first
inputs: {{readings: {name}.readings}}
outputs: {{{name}.doubles: doubled}}
nodes:
  checked: {{use: transform.python, from: readings, with: {{call: work.check}}, keep: [sensor]}}
  doubled: {{use: transform.python, from: checked, with: {{call: work.double}}, keep: [sensor], isolate: true}}
---
kind: Pipeline
name: {name}-second
inputs: {{doubles: {name}.doubles}}
nodes:
  parts: {{use: transform.python, from: doubles, with: {{call: work.halves}}, keep: [sensor]}}
"""

WORK = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

class Value(TypedDict):
    value: float

def check(row: Any) -> Value | None:
    if row["value"] == 0:
        return None
    if row["value"] < 0 and Path(__file__).with_name("broken").exists():
        raise ValueError(f"{row['value']} is below zero")
    return {"value": row["value"]}

def double(row: Any) -> Value:
    return {"value": row["value"] * 2}

def halves(row: Any) -> Iterator[Value]:
    yield {"value": row["value"] / 2}
    yield {"value": row["value"] / 2}
"""


@dataclass
class Made:
    """The project on a fabric."""

    folder: Path
    name: str
    fabric: Fabric
    assembled: Assembled

    @property
    def plans(self) -> dict[str, Plan]:
        return {p.pipeline: p for p in self.assembled.plans}

    @property
    def readings(self) -> str:
        return f"{self.name}.readings"

    @property
    def first(self) -> str:
        return f"{self.name}-first"

    @property
    def second(self) -> str:
        return f"{self.name}-second"

    def deploy(self) -> None:
        self.assembled = assemble(self.folder, environ=os.environ)
        for plan in self.assembled.plans:
            deploy(self.fabric, plan)

    def produce(self, *records: Mapping[str, Any]) -> list[str]:
        return produce(self, self.readings, records)

    @contextmanager
    def working(self) -> Iterator[Workshop]:
        """Both pipelines run in this process until the block is left."""
        shop = Workshop(self.folder, self.assembled.registry, self.fabric)
        worker = Worker(shop, self.assembled.plans)
        worker.start()
        try:
            yield shop
        finally:
            worker.stop()

    def settle(self, shop: Workshop) -> None:
        """Wait until nothing is left to be processed."""
        stages = [(plan, stage) for plan in self.assembled.plans for stage in plan.stages]
        # Upstream before downstream: what one stage writes is there once its lag is 0.
        for plan, stage in stages:
            wait_for(partial(_done, shop, plan, stage), f"stage {stage.name}")


def _done(shop: Workshop, plan: Plan, stage: StagePlan) -> bool:
    return lag_of(shop, plan, stage) == 0


def produce(made: Made, topic: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    stream = find_topic(topic, made.plans, made.assembled.project)
    decoded = coerce_records(stream.schema, records)
    assert not decoded.failed
    with TopicProducer(made.fabric, stream) as producer:
        sent = producer.send(decoded.columns, len(records))
        producer.flush()
    assert not sent.failed
    return [record_id.decode() for record_id in sent.ids]


def make(folder: Path, name: str, fabric: Fabric) -> Made:
    """Write the project and deploy it."""
    pipelines = folder / "pipelines" / "all"
    pipelines.mkdir(parents=True)
    (pipelines / "pipeline.yaml").write_text(YAML.format(name=name))
    (pipelines / "work.py").write_text(WORK)
    (folder / "dataflow.yaml").write_text("kind: Project\n")
    made = Made(folder, name, fabric, assemble(folder, environ=os.environ))
    made.deploy()
    return made
