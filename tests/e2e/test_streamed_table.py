"""`join.lookup` in a co-partitioned table on the real broker: read first, shared by two workers, back after a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from dataflow.control.assemble import Assembled, assemble
from dataflow.control.deploy import deploy
from dataflow.control.streams import EdgeReader, find_stream
from dataflow.runtime.worker import Worker
from dataflow.runtime.workshop import Workshop
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for

pytestmark = pytest.mark.broker

YAML = """
kind: Topic
name: {name}.orders
key: shop
partitions: 4
codec: json
fields: {{shop: string, n: int64}}
---
kind: Topic
name: {name}.levels
key: shop
partitions: 4
codec: json
fields: {{shop: string, level: int64}}
---
kind: Pipeline
name: {name}
inputs: {{order: "{name}.orders", level: "{name}.levels"}}
delivery: exactly_once
nodes:
  both: {{use: join.lookup, from: {{in: order, table: level}}, with: {{select: [level]}}}}
"""
SHOPS = [f"shop{n}" for n in range(40)]


class Shops:
    def __init__(self, folder: Path, name: str, fabric: KafkaFabric) -> None:
        (folder / "pipelines").mkdir()
        (folder / "dataflow.yaml").write_text(f"kind: Project\nname: {name}\n")
        (folder / "pipelines" / "all.yaml").write_text(YAML.format(name=name))
        self.folder, self.name, self.fabric = folder, name, fabric
        self.assembled: Assembled = assemble(folder, environ=os.environ)
        (self.plan,) = self.assembled.plans
        deploy(fabric, self.plan)
        self.orders = 0

    def write(self, topic: str, field: str, values: Sequence[tuple[str, int]]) -> None:
        producer = self.fabric.producer()
        for shop, value in values:
            producer.send(f"{self.name}.{topic}", orjson.dumps({"shop": shop, field: value}), shop.encode())
        assert producer.flush(30) == 0
        producer.close()

    def order(self) -> range:
        """An order of each shop; their numbers."""
        numbers = range(self.orders, self.orders + len(SHOPS))
        self.write("orders", "n", list(zip(SHOPS, numbers, strict=True)))
        self.orders = numbers.stop
        return numbers

    def levels(self) -> Mapping[int, int | None]:
        """By order, what was found; no order is there twice."""
        stream = find_stream(f"{self.name}.both", {self.name: self.plan})
        found = [dict(record.value or {}) for record in EdgeReader(self.fabric, stream)]
        made = {record["n"]: record["level"] for record in found}
        assert len(made) == len(found)
        return made

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        worker = Worker(Workshop(self.folder, self.assembled.registry, self.fabric), [self.plan])
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()


def tasks(*workers: Worker) -> list[int]:
    return [getattr(stage._loop, "tasks", 0) for worker in workers for stage in worker.stages.values()]


def test_each_worker_has_the_rows_of_its_partitions(tmp_path: Path, kafka: KafkaFabric, unique: str) -> None:
    shops = Shops(tmp_path, unique, kafka)
    first = shops.order()
    rows = [(shop, n) for n in range(100) for shop in SHOPS]
    shops.write("levels", "level", rows)
    with shops.worker() as one:
        wait_for(lambda: len(shops.levels()) == len(first), "the first orders")
        assert set(shops.levels().values()) == {99}, "all of the table was read before them"
        with shops.worker() as other:
            wait_for(lambda: tasks(one, other) == [2, 2], "two tasks each")
            second = shops.order()
            wait_for(lambda: len(shops.levels()) == second.stop, "orders at both workers")
        shops.write("levels", "level", [(shop, 500) for shop in SHOPS])
    with shops.worker():
        third = shops.order()
        wait_for(lambda: len(shops.levels()) == third.stop, "orders after a restart")
    found = shops.levels()
    assert {found[n] for n in second} == {99}
    assert {found[n] for n in third} <= {99, 500}, "the rows came back with the state, or newer ones"
