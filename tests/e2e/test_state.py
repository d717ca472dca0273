"""State by key, with workers killed: at work, and while they restore. The counts of the keys are the judge."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.control.bounded import Source, run_files
from dataflow.control.deploy import deploy
from dataflow.registry import Registry
from dataflow.runtime.workshop import Workshop
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e._processes import Workers, members, worker_processes
from tests.e2e._project import TOPIC, Deployed
from tests.e2e.checker import Record, raw_messages, read_records

pytestmark = [pytest.mark.broker, pytest.mark.slow]

COUNT = 40_000
KEYS = 4_000
KINDS = '''
"""A count by key; and a restore that takes long enough to be met."""

import numpy as np

from dataflow.runtime import restore
from dataflow.sdk import Batch, NodeContext, Out, Settings, node


@node("work.count")
class Count:
    """n stays, twice becomes the number of the record among those of its word."""

    keyed = True

    def __init__(self, settings: Settings, context: NodeContext) -> None:
        restore.RESTORE_RECORDS = 20  # in the worker

    def process(self, batch: Batch, out: Out, port: str, state: object) -> None:
        counts = []
        for row in batch.rows:
            count = state.get(row.key, "count", 0) + 1
            state.put(row.key, "count", count)
            counts.append(count)
        out.emit({**batch.columns, "twice": np.array(counts, dtype=np.int64)})

    def fire(self, timers, out, state) -> None: ...
'''
PIPELINE = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
delivery: {delivery}
nodes:
  count: {{use: work.count, from: events}}
"""


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with worker_processes(tmp_path) as made:
        yield made


def project_of(folder: Path, name: str, fabric: KafkaFabric, delivery: str) -> Deployed:
    (folder / "nodes").mkdir(parents=True)
    (folder / "pipelines").mkdir()
    (folder / "dataflow.yaml").write_text(f"kind: Project\nname: {name}\n")
    (folder / "nodes" / "counting.py").write_text(KINDS)
    (folder / "pipelines" / "topic.yaml").write_text(TOPIC.format(name=name, partitions=4))
    (folder / "pipelines" / "pipeline.yaml").write_text(PIPELINE.format(name=name, delivery=delivery))
    plan = assemble(folder, environ=os.environ).plans[0]
    deploy(fabric, plan)
    return Deployed(name, folder, fabric, plan)


def word_of(n: int) -> bytes:
    return f"w{n % KEYS}".encode()


def produce(project: Deployed, numbers: range) -> None:
    """Records of KEYS words, in the order of n."""
    from dataflow.codecs import codec_for
    from dataflow.core import headers
    from dataflow.core.batch import Batch

    edge = project.plan.edges["events"]
    codec = codec_for("avro", edge.schema)
    records = [{"word": word_of(n).decode(), "n": n, "twice": 0} for n in numbers]
    values = codec.encode(Batch.of(edge.schema, records).columns, len(records)).values
    producer = project.fabric.producer(latency_first=False)
    for n, value in zip(numbers, values, strict=True):
        producer.send(project.source, value, word_of(n), [(headers.SCHEMA, codec.fingerprint)])
    assert producer.flush(60) == 0
    producer.close()


def counted(project: Deployed, bootstrap: str) -> dict[bytes, list[Record]]:
    """What is on the edge, by key, in the order of the log."""
    topic = project.edge("count")
    found: dict[bytes, list[Record]] = {}
    for record in sorted(read_records(bootstrap, [topic])[topic], key=lambda r: (r.partition, r.offset)):
        found.setdefault(record.key or b"", []).append(record)
    return found


def beyond(project: Deployed, count: int) -> Callable[[], bool]:
    return lambda: sum(project.committed().values()) > count


def kill_at_work_and_while_restoring(
    project: Deployed, bootstrap: str, workers: Workers, chance: random.Random
) -> None:
    """Three times at work; twice its files are gone as well, and the next one is killed before its state is back."""
    group = project.plan.stages[0].group
    with_files = chance.choice([1, 2])
    for turn, share in enumerate((0.1, 0.3, 0.55)):
        worker = workers.start(project, bootstrap)
        wait_for(beyond(project, int(COUNT * (share + chance.random() * 0.15))), "a worker at work", 120)
        worker.kill()
        if turn == with_files:
            continue
        # A quick one may not have saved any.
        shutil.rmtree(project.folder / ".dataflow" / "state", ignore_errors=True)
        before = project.committed()
        restoring = workers.start(project, bootstrap)
        wait_for(lambda: members(bootstrap, group) == 1, "one that restores", 60)
        restoring.freeze()
        assert project.committed() == before
        restoring.kill()


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_counts_by_key_survive_whoever_is_killed(
    tmp_path: Path, kafka: KafkaFabric, unique: str, bootstrap: str, workers: Workers, delivery: str
) -> None:
    project = project_of(tmp_path / "project", unique, kafka, delivery)
    produce(project, range(COUNT))
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    kill_at_work_and_while_restoring(project, bootstrap, workers, random.Random(seed))
    last = workers.start(project, bootstrap)
    wait_for(project.finished, "all at the end", 120)
    wanted = Counter(word_of(n) for n in range(COUNT))
    found = counted(project, bootstrap)
    final = {key: records[-1].value["twice"] for key, records in found.items()}
    if delivery == "exactly_once":
        assert final == wanted
        for key, records in found.items():
            assert [r.value["twice"] for r in records] == list(range(1, wanted[key] + 1)), key
            assert [r.value["n"] for r in records] == sorted(r.value["n"] for r in records), key
    else:
        assert final.keys() == wanted.keys()
        assert [key for key, count in final.items() if count < wanted[key]] == []
        assert {r.value["n"] for records in found.values() for r in records} == set(range(COUNT))
    assert last.terminate() == 0, last.output()
    # What is in the log is what was counted: a machine that has no file begins from it.
    shutil.rmtree(project.folder / ".dataflow" / "state")
    produce(project, range(COUNT, COUNT + KEYS))
    workers.start(project, bootstrap)
    wait_for(project.finished, "the new records", 120)
    again = {key: records[-1].value["twice"] for key, records in counted(project, bootstrap).items()}
    assert again == {key: count + 1 for key, count in final.items()}
    assert raw_messages(bootstrap, [project.plan.stages[0].changelog])


WINDOWS = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
nodes:
  day:
    use: window.tumbling
    from: events
    with: {{size: 24h, clock: processing, aggregate: {{records: count, largest: max(n)}}}}
"""


def test_a_run_over_a_file_gives_what_is_held_at_its_end(
    tmp_path: Path, kafka: KafkaFabric, unique: str
) -> None:
    """Windows by the clock of the worker: nobody waits for the day to be over."""
    folder = tmp_path / "project"
    (folder / "pipelines").mkdir(parents=True)
    (folder / "dataflow.yaml").write_text(f"kind: Project\nname: {unique}\n")
    (folder / "pipelines" / "topic.yaml").write_text(TOPIC.format(name=unique, partitions=2))
    (folder / "pipelines" / "pipeline.yaml").write_text(WINDOWS.format(name=unique))
    given = tmp_path / "given.csv"
    given.write_text("word,n,twice\na,1,0\nb,2,0\na,3,0\n")
    plan = assemble(folder, environ=os.environ).plans[0]
    shop = Workshop(folder, Registry.default(folder), kafka)
    out = tmp_path / "out.jsonl"
    report = run_files(shop, plan, {"events": Source(str(given))}, {}, str(out))
    assert (report.rows, report.out, report.good) == (3, 2, True)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted((x["records"], x["largest"]) for x in found) == [(1, 2), (2, 3)]
