"""`dataflow serve` on a real broker: requests handed over in memory, processes replaced and killed under load."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dataflow.codecs import codec_for
from dataflow.control.deploy import read_plans
from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.transport.api import EARLIEST, LATEST, Message
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e.processes import Running, succeed
from tests.e2e.project import SMALL, write_files
from tests.e2e.test_commands import SHARE

pytestmark = pytest.mark.broker


@pytest.fixture(params=["at_least_once", "exactly_once"])
def deployed(bootstrap: str, tmp_path: Path, unique: str, request: pytest.FixtureRequest) -> Path:
    """A project whose one pipeline, `unique`, says y = 2 x and which process it was; deployed."""
    topic = f"kind: Topic\nname: {unique}\npartitions: 2\nfields: {{name: string, x: float64}}\n"
    pipeline = SMALL["pipelines/shown/pipeline.yaml"]
    pipeline = pipeline.replace("name: shown", f"name: {unique}").replace("plant.shown", unique)
    pipeline += f"delivery: {request.param}\n"
    files = {
        "dataflow.yaml": "kind: Project\nname: shared\n",
        "topics/t.yaml": topic,
        "pipelines/p/pipeline.yaml": pipeline,
        "pipelines/p/times.py": SHARE,
    }
    write_files(tmp_path, files)
    succeed(tmp_path, "deploy", unique, "--bootstrap", bootstrap)
    return tmp_path


class Callers:
    """Threads that ask, each on a kept connection, one request after another; what they were told."""

    def __init__(self, url: str, pipeline: str, count: int = 6) -> None:
        self._url, self._path = url, f"/pipelines/{pipeline}"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.told: Counter[Any] = Counter()
        self.workers: set[int] = set()
        self.ids: set[bytes] = set()  # of requests that were answered
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(count)]

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                x = float(number * 1_000_000 + turn)
                try:
                    answer = client.post(self._path, json={"name": f"{number}", "x": x})
                    said = answer.json()
                    good = answer.status_code == 200 and said["y"] == 2 * x
                    told: Any = "good" if good else (answer.status_code, answer.text[:100])
                    worker, record_id = said.get("worker", 0), answer.headers.get("df-id", "")
                except httpx.HTTPError as error:
                    told, worker, record_id = type(error).__name__, 0, ""
                with self._lock:
                    self.ids.add(record_id.encode())
                    self.told[told] += 1
                    self.workers.add(worker)

    @contextmanager
    def asking(self) -> Iterator[Callers]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def good(self, more: int, by: int = 0) -> None:
        """Wait for so many good answers more; `by` a process among others."""
        wanted = self.told["good"] + more
        with self._lock:
            self.workers = set()
        wait_for(lambda: self.told["good"] >= wanted and (not by or by in self.workers), "answers")


def children(parent: Running) -> set[int]:
    return {child.pid for child in psutil.Process(parent.process.pid).children()}


def handed(url: str, pipeline: str) -> int:
    line = rf'^dataflow_stage_handed_total\{{pipeline="{pipeline}"[^}}]*\}} (\S+)'
    found = re.search(line, httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_requests_are_handed_over_and_are_in_the_log(
    deployed: Path, bootstrap: str, kafka: KafkaFabric, unique: str
) -> None:
    with Running(deployed, "serve", "--port", "0", "--bootstrap", bootstrap) as serve:
        url = serve.url
        with httpx.Client(base_url=url, timeout=60) as client:

            def ask(x: float) -> float:
                answer = client.post(f"/pipelines/{unique}", json={"name": "n", "x": x})
                assert answer.status_code == 200, answer.text
                return float(answer.json()["y"])

            asked = 0

            def more() -> bool:
                nonlocal asked
                asked += 1
                assert ask(float(asked)) == 2.0 * asked
                return handed(url, unique) >= 50

            wait_for(more, "requests to be handed over")
            foreign_runs_too(kafka, unique, ask)
        assert "%" in succeed(deployed, "status", "--url", url)
    positions = [(f"{unique}.requests", p) for p in range(2)]
    ends = kafka.admin().offsets(positions, LATEST)
    assert sum(ends.values()) >= asked
    group = read_plans(kafka)[unique].stages[0].group
    assert kafka.admin().group_offsets(group, positions) == {p: e for p, e in ends.items() if e}


def foreign_runs_too(kafka: KafkaFabric, pipeline: str, ask: Any) -> None:
    """What somebody else writes to the lanes comes out as well, while requests go on."""
    plan = read_plans(kafka)[pipeline]
    assert plan.answer is not None
    edge = plan.edges[plan.answer.input]
    codec = codec_for(edge.codec, edge.schema)
    producer, sent = kafka.producer(), set()
    out = read_from_end(kafka, plan.edges[plan.answer.edges[0]].topics[0])
    for number in range(40):
        batch = Batch.of(edge.schema, [{"name": "foreign", "x": 0.5 + number}])
        value = codec.encode(batch.columns, 1).values[0]
        record_id = ids.mint(int(time.time() * 1000))
        sent.add(record_id)
        producer.send(plan.answer.requests_topic, value, None, [(headers.ID, record_id)], number % 2)
        producer.poll(0)
        ask(float(number))
    producer.close()
    seen: Counter[bytes] = Counter()

    def arrived() -> bool:
        ask(1.0)
        seen.update(dict(m.headers() or ())[headers.ID] for m in out())
        return sent <= set(seen)

    wait_for(arrived, "all that the stranger wrote")
    assert {n for i, n in seen.items() if i in sent} == {1}


def read_from_end(kafka: KafkaFabric, topic: str) -> Any:
    consumer = kafka.consumer()
    partitions = kafka.admin().describe([topic])[topic].partitions
    consumer.assign(kafka.admin().offsets([(topic, p) for p in range(partitions)], LATEST))

    def poll() -> list[Message]:
        return list(consumer.poll(500, 0.05))

    return poll


def test_processes_are_replaced_one_by_one_without_a_failed_request(
    deployed: Path, bootstrap: str, unique: str
) -> None:
    with Running(deployed, "serve", "--port", "0", "--processes", "2", "--bootstrap", bootstrap) as serve:
        serve.shows("2 processes")
        with Callers(serve.url, unique).asking() as callers:
            callers.good(100)
            before = children(serve)
            serve.process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(now := children(serve)) == 2 and not now & before, "two new processes")
            callers.good(100)
        assert set(callers.told) == {"good"}, callers.told
    assert serve.process.returncode == 0


def test_a_killed_process_loses_no_accepted_request_and_is_replaced(
    deployed: Path, bootstrap: str, kafka: KafkaFabric, unique: str
) -> None:
    """Callers of the process that died see their connection end; what of theirs is in Kafka is run by others."""
    with Running(deployed, "serve", "--port", "0", "--processes", "2", "--bootstrap", bootstrap) as serve:
        serve.shows("2 processes")
        with Callers(serve.url, unique).asking() as callers:
            callers.good(200)
            victim = min(children(serve))
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(now := children(serve)) == 2 and victim not in now, "a new process")
            callers.good(200)
        failures = set(callers.told) - {"good"}
        assert failures <= {"ReadError", "RemoteProtocolError", "ConnectError"}, callers.told
        plan = read_plans(kafka)[unique]
        assert plan.answer is not None
        positions = [(plan.answer.requests_topic, p) for p in range(2)]
        ends = kafka.admin().offsets(positions, LATEST)
        group = plan.stages[0].group
        wait_for(
            lambda: kafka.admin().group_offsets(group, positions) == ends, "what the dead left to be done"
        )
    asked = ids_in(kafka, plan.answer.requests_topic)
    answered = ids_in(kafka, plan.edges[plan.answer.edges[0]].topics[0])
    assert len(asked) >= callers.told["good"]
    assert asked <= answered
    # At least once a request and what was made of it go out side by side: a kill may fall in between.
    orphans = answered - asked
    assert not orphans & callers.ids
    assert not orphans or plan.delivery == "at_least_once"


def ids_in(kafka: KafkaFabric, topic: str) -> set[bytes]:
    """Of all records of a topic that nobody writes to any more."""
    positions = [(topic, p) for p in range(kafka.admin().describe([topic])[topic].partitions)]
    ends = {p: e for p, e in kafka.admin().offsets(positions, LATEST).items() if e}
    consumer = kafka.consumer()
    consumer.assign(kafka.admin().offsets(list(ends), EARLIEST))
    found: set[bytes] = set()

    def read() -> bool:
        found.update(dict(m.headers() or ())[headers.ID] for m in consumer.poll(500, 0.05))
        at = consumer.position(list(ends))
        return all((at[p] or 0) >= end for p, end in ends.items())

    wait_for(read, f"all of {topic}")
    consumer.close()
    return found
