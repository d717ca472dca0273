"""A project that tests run in processes of its own: one topic in, three edges out, over two stages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow.codecs import codec_for
from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.planner.plan import Plan
from dataflow.transport.api import LATEST, Fabric, Header, Position

KINDS = '''
"""Kinds of the project's own."""

import time

import numpy as np

from dataflow.sdk import Batch, Out, Settings, node


@node("work.double")
def double(batch: Batch, out: Out, settings: Settings) -> None:
    """n stays, twice is set."""
    out.emit({**batch.columns, "twice": batch["n"] * np.int64(2)})


@node("work.even")
def even(batch: Batch, out: Out, settings: Settings) -> None:
    """Even numbers only."""
    odd = batch["n"] % 2 == 1
    kept = np.flatnonzero(~odd)
    out.emit(batch.take(kept), rows=kept)
    out.drop(np.flatnonzero(odd).tolist(), "odd")


class Slow(Settings):
    """Seconds that each record takes."""

    seconds: float


@node("work.slow", settings=Slow)
def slow(batch: Batch, out: Out, settings: Slow) -> None:
    """Takes its time."""
    time.sleep(settings.seconds * len(batch))
    out.emit(batch)
'''
TOPIC = """
kind: Topic
name: {name}.events
key: word
partitions: {partitions}
fields: {{word: string, n: int64, twice: int64}}
"""
PIPELINE = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
nodes:
  double: {{use: work.double, from: events}}
  even: {{use: work.even, from: double}}
  last: {{use: work.even, from: double, isolate: true}}
"""
WORDS = 97


@dataclass(frozen=True)
class Deployed:
    """A project in a folder, deployed on a cluster. `name` is the pipeline's and the prefix of its topics."""

    name: str
    folder: Path
    fabric: Fabric
    plan: Plan

    @property
    def source(self) -> str:
        return f"{self.name}.events"

    def edge(self, name: str) -> str:
        return f"{self.name}.{name}"

    def places(self, topic: str) -> list[Position]:
        return [(topic, n) for n in range(self.plan.topics[topic].partitions)]

    def ends(self, topic: str) -> dict[Position, int]:
        return self.fabric.admin().offsets(self.places(topic), LATEST)

    def written(self, topic: str) -> int:
        return sum(self.ends(topic).values())

    def committed(self, stage: int = 0) -> dict[Position, int]:
        """Committed offsets of a stage on all it reads, 0 where none."""
        planned = self.plan.stages[stage]
        places = [p for e in planned.reads for t in self.plan.edges[e].topics for p in self.places(t)]
        return {**dict.fromkeys(places, 0), **self.fabric.admin().group_offsets(planned.group, places)}

    def finished(self) -> bool:
        """Every stage has committed to the end of what it reads."""
        return all(
            committed == self.fabric.admin().offsets(list(committed), LATEST)
            for committed in map(self.committed, range(len(self.plan.stages)))
        )

    def produce(self, numbers: Sequence[int], *, named: bool = False) -> None:
        """Write input records under the contract's schema, keyed by one of 97 words; `named`: with ids of their own."""
        edge = self.plan.edges["events"]
        codec = codec_for("avro", edge.schema)
        columns = Batch.of(edge.schema, [event(n) for n in numbers]).columns
        head: list[Header] = [(headers.SCHEMA, codec.fingerprint)]
        producer = self.fabric.producer(latency_first=False)
        for n, value in zip(numbers, codec.encode(columns, len(numbers)).values, strict=True):
            own: list[Header] = [(headers.ID, ids.of_positions(1, [n], [n])[0])] if named else []
            producer.send(self.source, value, event(n)["word"].encode(), [*head, *own])
        assert producer.flush(60) == 0
        producer.close()


def event(n: int) -> dict[str, Any]:
    return {"word": f"w{n % WORDS}", "n": n, "twice": 0}


def doubled(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "twice": value["n"] * 2}


def even(value: dict[str, Any]) -> dict[str, Any] | None:
    return doubled(value) if value["n"] % 2 == 0 else None


EDGES = {"double": doubled, "even": even, "last": even}


def deployed(
    folder: Path, name: str, fabric: Fabric, *, partitions: int = 4, pipeline: str = PIPELINE
) -> Deployed:
    """Write the project, plan it, and put the plan on the cluster."""
    (folder / "nodes").mkdir(parents=True)
    (folder / "pipelines").mkdir()
    (folder / "dataflow.yaml").write_text(f"kind: Project\nname: {name}\n")
    (folder / "nodes" / "work.py").write_text(KINDS)
    (folder / "pipelines" / "topic.yaml").write_text(TOPIC.format(name=name, partitions=partitions))
    (folder / "pipelines" / "pipeline.yaml").write_text(pipeline.format(name=name))
    plan = assemble(folder, environ=os.environ).plans[0]
    deploy(fabric, plan)
    return Deployed(name, folder, fabric, plan)
