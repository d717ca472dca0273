"""Clusters with Kafka's own defaults: groups of the classic protocol, where partitions of two inputs must come together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.transport.api import EARLIEST
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e._processes import Workers, worker_processes
from tests.e2e._project import KINDS, TOPIC, Deployed
from tests.e2e.test_state import produce, word_of

pytestmark = [pytest.mark.broker, pytest.mark.slow]

COUNT = 4_000
PIPELINE = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events, more: {name}.more}}
delivery: exactly_once
nodes:
  double: {{use: work.double, from: [events, more]}}
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with worker_processes(tmp_path) as made:
        yield made


def test_stages_with_two_inputs_are_shared_by_workers_that_come_and_die(
    tmp_path: Path, kafka: KafkaFabric, unique: str, bootstrap: str, workers: Workers
) -> None:
    folder = tmp_path / "project"
    (folder / "nodes").mkdir(parents=True)
    (folder / "pipelines").mkdir()
    protocol = "kafka: {group.protocol: classic}"
    (folder / "dataflow.yaml").write_text(f"kind: Project\nname: {unique}\n{protocol}\n")
    (folder / "nodes" / "work.py").write_text(KINDS)
    topic = TOPIC.format(name=unique, partitions=4)
    (folder / "pipelines" / "topic.yaml").write_text(topic)
    (folder / "pipelines" / "more.yaml").write_text(topic.replace(".events", ".more"))
    (folder / "pipelines" / "pipeline.yaml").write_text(PIPELINE.format(name=unique))
    plan = assemble(folder, environ=os.environ).plans[0]
    deploy(kafka, plan)
    project = Deployed(unique, folder, kafka, plan)
    for _ in range(2):
        workers.start(project, bootstrap)
    for turn in range(3):
        produce(project, range(turn * COUNT, (turn + 1) * COUNT))
        produce(Other(unique, folder, kafka, plan), range(turn * COUNT, (turn + 1) * COUNT))
        wait_for(project.finished, "all of both inputs", 120)
        if turn == 0:
            workers.start(project, bootstrap)
        elif turn == 1:
            workers.started[0].kill()
    assert all(worker.running for worker in workers.started[1:])
    out = kafka.consumer()
    out.assign(dict.fromkeys(project.places(project.edge("double")), EARLIEST))
    keys: Counter[bytes | None] = Counter()

    def read() -> bool:
        keys.update(message.key() for message in out.poll(500, 0.1))
        return keys.total() >= 6 * COUNT

    wait_for(read, "all that came out")
    assert keys == Counter(word_of(n) for n in range(3 * COUNT) for _ in range(2))
    assert not out.poll(500, 1)


class Other(Deployed):
    """The same, of which the other input is written."""

    @property
    def source(self) -> str:
        return f"{self.name}.more"
