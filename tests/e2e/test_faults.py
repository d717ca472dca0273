"""Faults of data, topics and broker, on a real broker: the stage goes on, or stops loudly; nothing is lost in silence."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import confluent_kafka as ck
import psutil
import pytest
from confluent_kafka.admin import AdminClient

from dataflow.broker import Broker, BrokerSettings
from dataflow.codecs import codec_for
from dataflow.codecs.export import to_avsc
from dataflow.core import headers, limits
from dataflow.core.batch import Batch
from dataflow.planner.plan import DEAD_LETTERS
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.worker import Worker
from dataflow.runtime.workshop import Workshop
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.murmur import murmur2_partition
from tests.conftest import wait_for
from tests.e2e import checker
from tests.e2e._processes import members, worker_processes
from tests.e2e._project import EDGES, Deployed, deployed, doubled, event
from tests.e2e.checker import Verdict, judge, raw_messages, read_records

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ONE_STAGE = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
nodes:
  double: {{use: work.double, from: events}}
"""
STUBBORN = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
nodes:
  double: {{use: work.stubborn, from: events, retry: {{attempts: 100, backoff: 50ms, backoff_max: 50ms}}}}
"""


@contextmanager
def working(project: Deployed) -> Iterator[Worker]:
    worker = Worker(
        Workshop(project.folder, Registry.default(project.folder), project.fabric), [project.plan]
    )
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def sound(project: Deployed, bootstrap: str, edges: tuple[str, ...] = tuple(EDGES)) -> dict[str, Verdict]:
    found = read_records(bootstrap, [project.source, *map(project.edge, edges)])
    verdicts = {e: judge(found[project.source], found[project.edge(e)], EDGES[e]) for e in edges}
    assert all(v.sound for v in verdicts.values()), verdicts
    return verdicts


def loop_of(worker: Worker, project: Deployed) -> StageLoop:
    return cast(StageLoop, worker.stages[project.name, project.plan.stages[0].name]._loop)


def test_poison_among_good_records_goes_to_the_dead_letters_as_it_was(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    project = deployed(tmp_path / "project", unique, kafka)
    poison = [(b"\x00\xffnot avro %d" % n, b"w%d" % n) for n in range(50)]
    with working(project):
        producer = kafka.producer()
        for n, (value, key) in enumerate(poison):
            if n % 10 == 0:
                project.produce(range(n * 20, n * 20 + 200))
            evil: list[Any] = [(headers.ID, b"\xfe" * 36), (headers.DEADLINE, None), ("mine", b"%d" % n)]
            producer.send(project.source, value, key, evil)
        producer.send(project.source, None, b"w0", [(headers.SCHEMA, b"00000000")])
        producer.close()
        wait_for(project.finished, "all committed")
    letters = [
        m for m in raw_messages(bootstrap, [DEAD_LETTERS]) if header(m, headers.ERROR_TOPIC) == project.source
    ]
    garbage = [m for m in letters if m.value() is not None]
    assert sorted((m.value(), m.key()) for m in garbage) == sorted(poison)
    assert {header(m, headers.ERROR) for m in garbage} == {"CodecError"}
    assert {header(m, headers.ERROR_NODE) for m in letters} == {f"{project.name}/"}
    assert all(header(m, headers.ERROR_VERSION) == project.plan.origin for m in letters)
    assert [header(m, headers.ERROR) for m in letters if m.value() is None] == ["UnknownSchema"]
    source = {(m.partition(), m.offset()): m.value() for m in raw_messages(bootstrap, [project.source])}
    for letter in letters:
        place = int(header(letter, headers.ERROR_PARTITION)), int(header(letter, headers.ERROR_OFFSET))
        assert source[place] == letter.value()
    good = [event(n) for n in range(1_000)]
    found = read_records(bootstrap, [project.edge("double")])[project.edge("double")]
    assert sorted(r.value["n"] for r in found) == [g["n"] for g in good]
    assert all(r.value == doubled(event(r.value["n"])) for r in found)


def header(message: ck.Message, name: str) -> str:
    return cast(bytes, dict(message.headers() or ()).get(name, b"")).decode()


def test_a_broker_that_dies_and_comes_back_costs_nothing(tmp_path: Path, unique: str) -> None:
    with Broker(BrokerSettings(data=tmp_path / "broker", ephemeral=True)) as broker:
        fabric = KafkaFabric(broker.bootstrap)
        project = deployed(tmp_path / "project", unique, fabric)
        project.produce(range(20_000))
        with working(project) as worker:
            wait_for(lambda: project.written(project.edge("double")) > 2_000, "at work")
            broker.kill()
            broker.start()
            project.produce(range(20_000, 22_000))
            wait_for(project.finished, "the end", 60)
            assert {s.metrics.state for s in worker.stages.values()} == {"running"}
        sound(project, broker.bootstrap)
        assert project.finished()
        fabric.close()


def test_an_offset_that_left_the_log_stops_the_stage(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    project = deployed(tmp_path / "project", unique, kafka, partitions=1, pipeline=ONE_STAGE)
    project.produce(range(100))
    with working(project):
        wait_for(project.finished, "the first records")
    project.produce(range(100, 200))
    admin = AdminClient({"bootstrap.servers": bootstrap})
    cut = ck.TopicPartition(project.source, 0, 150)
    admin.delete_records([cut])[cut].result(10)
    with working(project) as worker:
        wait_for(lambda: worker.failed, "the stage stopped")
        assert worker.failed[0].state == "failed"
        assert "no longer in the log" in worker.failed[0].error
    assert project.written(project.edge("double")) == 100
    assert project.committed() == {(project.source, 0): 100}


def test_a_topic_created_anew_stops_the_stage_and_is_read_from_its_start_after(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    project = deployed(tmp_path / "project", unique, kafka, partitions=1, pipeline=ONE_STAGE)
    project.produce(range(500))
    with working(project) as worker:
        wait_for(project.finished, "the first records")
        wait_for(lambda: worker.stages[project.name, "double"].metrics.lag == 0, "the watcher saw the topic")
        kafka.admin().delete([project.source])
        wait_for(lambda: project.source not in kafka.admin().topics(), "the topic gone")
        wait_for(lambda: created(project), "the topic anew")
        project.produce(range(1_000, 1_200))
        wait_for(lambda: worker.failed, "the stage stopped")
        assert project.source in worker.failed[0].error
    with working(project):
        wait_for(project.finished, "the new records")
    found = read_records(bootstrap, [project.edge("double")])[project.edge("double")]
    assert {r.value["n"] for r in found} >= set(range(1_000, 1_200))
    assert len({r.id for r in found}) == 700


def created(project: Deployed) -> bool:
    planned = project.plan.topics[project.source]
    return project.fabric.admin().create(planned.name, planned.partitions, planned.config)


STUBBORN_KIND = '''

class Stubborn:
    """Fails records of one word, until it is told otherwise."""

    stubborn = True

    def __init__(self, settings: Settings, context: object) -> None: ...

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        bad = np.flatnonzero((batch["word"] == "w0") & self.stubborn)
        good = np.setdiff1d(np.arange(len(batch)), bad)
        out.fail(bad.tolist(), "not now", retryable=True)
        taken = batch.take(good)
        out.emit({**taken.columns, "twice": taken["n"] * np.int64(2)}, rows=good)


node("work.stubborn")(Stubborn)
'''


def test_what_cannot_go_on_is_paused_within_bounds_and_the_rest_goes_on(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.e2e import _project

    monkeypatch.setattr(_project, "KINDS", _project.KINDS + STUBBORN_KIND)
    project = deployed(tmp_path / "project", unique, kafka, pipeline=STUBBORN)
    count = 40_000
    project.produce(range(count))
    with working(project) as worker:
        ends = project.ends(project.source)
        partition = murmur2_partition(b"w0", len(ends))
        # On a busy machine others are paused, too, for a moment.
        wait_for(lambda: stuck(worker, project) == {partition}, "one partition paused")
        others = [place for place in ends if place[1] != partition]
        wait_for(lambda: all(project.committed()[p] == ends[p] for p in others), "the other partitions done")
        loop = loop_of(worker, project)
        task = loop._tasks[partition]
        held = sum(len(taken) for _, taken in task._backlog if not isinstance(taken, int))
        # One poll may bring several runs of a partition; what is paused brings none.
        assert (
            held
            <= (limits.MAX_BATCHES_IN_FLIGHT + 1) * limits.MAX_BATCH_RECORDS
            < ends[project.source, partition]
        )
        assert members(bootstrap, project.plan.stages[0].group) == 1
        assert worker.stages[project.name, "double"].metrics.state == "running"
        cast(Any, loop._parts.nodes[0]).stubborn = False
        wait_for(project.finished, "the end")
    assert sound(project, bootstrap, ("double",)) == {"double": Verdict()}


def stuck(worker: Worker, project: Deployed) -> set[int]:
    loop = loop_of(worker, project)
    return set(loop.paused) if loop is not None else set()


def test_a_stock_client_in_another_process_reads_every_edge(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    project = deployed(tmp_path / "project", unique, kafka)
    project.produce(range(300))
    with working(project):
        wait_for(project.finished, "all committed")
    script = """
import json, runpy, sys
module = runpy.run_path(sys.argv[1], run_name="checker")
found = module["read_records"](sys.argv[2], sys.argv[3:])
foreign = [m for m in sys.modules if m.split(".")[0] in ("dataflow", "nodes")]
print(json.dumps([foreign, {t: [r.value for r in records] for t, records in found.items()}]))
"""
    topics = [t for edge in project.plan.edges.values() for t in edge.topics]
    answer = subprocess.run(
        [sys.executable, "-I", "-c", script, str(Path(checker.__file__)), bootstrap, *topics],
        capture_output=True,
        check=True,
        timeout=60,
    )
    foreign, found = json.loads(answer.stdout)
    assert foreign == []
    for name, edge in project.plan.edges.items():
        expected = [made for n in range(300) if (made := EDGES.get(name, dict)(event(n))) is not None]
        assert sorted(found[edge.topics[0]], key=lambda v: v["n"]) == expected, name
    published = {json.dumps(s, sort_keys=True) for s in raw_schemas(bootstrap)}
    for edge in project.plan.edges.values():
        assert json.dumps(to_avsc(edge.schema, "Record"), sort_keys=True) in published


def raw_schemas(bootstrap: str) -> list[Any]:
    return [json.loads(m.value()).get("avro") for m in raw_messages(bootstrap, ["dataflow.schemas"])]


def test_memory_stays_flat_over_300_000_records(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    project = deployed(tmp_path / "project", unique, kafka, pipeline=ONE_STAGE)
    step = 100_000
    with worker_processes(tmp_path) as workers:
        worker = workers.start(project, bootstrap)
        sizes = []
        for _ in range(3):
            project.produce(range(step))
            wait_for(project.finished, "all committed", 60)
            sizes.append(psutil.Process(worker.process.pid).memory_info().rss)
        assert project.written(project.edge("double")) == 3 * step
    # Queues of client and allocator settle within the first step.
    assert max(sizes[1:]) - sizes[0] < 24 * 1024 * 1024, sizes


def test_an_edge_whose_topic_takes_less_than_planned_fails_rows_not_the_partition(
    tmp_path: Path, kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    """The topic was there before, with a lower limit: it is reported and not changed."""
    kafka.admin().create(f"{unique}.double", 1, {"max.message.bytes": "20000"})
    project = deployed(tmp_path / "project", unique, kafka, partitions=1, pipeline=ONE_STAGE)
    edge = project.plan.edges["events"]
    # Nothing that compresses: the broker's limit is on what arrives.
    words = ["a", secrets.token_hex(30_000), "b"]
    records = [{**event(n), "word": word} for n, word in enumerate(words)]
    values = codec_for("avro", edge.schema).encode(Batch.of(edge.schema, records).columns, 3).values
    producer = kafka.producer()
    for value in values:
        producer.send(project.source, value, b"k")
    producer.close()
    with working(project):
        wait_for(project.finished, "all committed")
    letters = [
        m for m in raw_messages(bootstrap, [DEAD_LETTERS]) if header(m, headers.ERROR_TOPIC) == project.source
    ]
    assert [header(m, headers.ERROR) for m in letters] == ["RecordTooLargeError"]
    assert project.written(project.edge("double")) == 2
