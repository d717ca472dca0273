"""Exactly once, whatever is killed: what read-committed readers see is each record once, in order, or not yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient, OffsetSpec

from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e._processes import Workers, worker_processes
from tests.e2e._project import EDGES, PIPELINE, Deployed, deployed
from tests.e2e.checker import Verdict
from tests.e2e.test_processes import beyond, verdicts

pytestmark = [pytest.mark.broker, pytest.mark.slow]

COUNT = 30_000


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with worker_processes(tmp_path) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, kafka: KafkaFabric, unique: str) -> Deployed:
    pipeline = PIPELINE.replace("nodes:", "delivery: exactly_once\nnodes:", 1)
    made = deployed(tmp_path / "project", unique, kafka, pipeline=pipeline)
    assert made.plan.delivery == "exactly_once"
    return made


def open_records(project: Deployed, bootstrap: str) -> int:
    """Records on the first edge that belong to transactions not ended: written, and seen by nobody."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    places = {ck.TopicPartition(*p): OffsetSpec.latest() for p in project.places(project.edge("double"))}
    total = 0
    for level, sign in ((ck.IsolationLevel.READ_UNCOMMITTED, 1), (ck.IsolationLevel.READ_COMMITTED, -1)):
        for future in admin.list_offsets(places, isolation_level=level).values():
            total += sign * future.result(10).offset
    return total


def everything_once(project: Deployed, bootstrap: str) -> None:
    wait_for(project.finished, "all stages at the end", 90)
    assert open_records(project, bootstrap) == 0
    found = verdicts(project, bootstrap)
    assert found == {name: Verdict() for name in EDGES}


def test_killed_again_and_again_with_transactions_open(
    project: Deployed, bootstrap: str, workers: Workers
) -> None:
    project.produce(range(COUNT))
    for share in (COUNT // 6, COUNT // 3, COUNT // 2):
        worker = workers.start(project, bootstrap)
        wait_for(beyond(project, share), "a worker at work", 60)
        for _ in range(
            200
        ):  # frozen, it is looked at in peace; between two transactions it goes on for a moment
            worker.freeze()
            if open_records(project, bootstrap):
                break
            worker.thaw()
        else:
            pytest.fail("no transaction was ever open")
        worker.kill()
    workers.start(project, bootstrap)
    everything_once(project, bootstrap)


def test_a_zombie_with_an_open_transaction_changes_nothing(
    project: Deployed, bootstrap: str, workers: Workers
) -> None:
    project.produce(range(COUNT))
    zombie = workers.start(project, bootstrap)
    wait_for(beyond(project, COUNT // 6), "the first worker at work", 60)
    for _ in range(200):
        zombie.freeze()
        if open_records(project, bootstrap):
            break
        zombie.thaw()
    else:
        pytest.fail("no transaction was ever open")
    workers.start(project, bootstrap)
    wait_for(project.finished, "the second worker took over and finished", 90)
    zombie.thaw()
    project.produce(range(COUNT, COUNT + 2_000))
    everything_once(project, bootstrap)
    assert zombie.running
    assert zombie.terminate() == 0, zombie.output()


def test_two_share_the_work_and_one_leaves_in_order(
    project: Deployed, bootstrap: str, workers: Workers
) -> None:
    project.produce(range(COUNT // 2))
    stays, leaves = (workers.start(project, bootstrap) for _ in range(2))
    wait_for(beyond(project, COUNT // 8), "work", 60)
    project.produce(range(COUNT // 2, COUNT))
    assert leaves.terminate() == 0, leaves.output()
    everything_once(project, bootstrap)
    assert stays.terminate() == 0, stays.output()
