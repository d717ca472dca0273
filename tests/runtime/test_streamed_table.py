"""`join.lookup` in a table that is a stream, run by the engine: what is read first, partitions, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import orjson
import pytest

from dataflow.control.deploy import deploy
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.testing.pipelines import HandClock
from dataflow.transport.memory import MemoryFabric
from nodes.lookup import JoinLookup
from tests.runtime.kit import make_plan

pytestmark = pytest.mark.usefixtures("seldom")

KINDS = Registry.of(JoinLookup)
ORDERS = "kind: Topic\nname: {name}\nkey: shop\npartitions: {partitions}\ncodec: json\nfields: {{shop: string, n: int64}}\n"
LEVELS = (
    "kind: Topic\nname: levels\nkey: shop\npartitions: 2\ncodec: json\nfields: {shop: string, level: int64}\n"
)
LOOKUP = """
inputs: {order: orders, level: levels}
delivery: DELIVERY
edges: {codec: json}
nodes:
  both: {use: join.lookup, from: {in: order, table: level}, with: {select: [level]}}
"""


class Run:
    """A lookup over two topics of two partitions, and loops of it."""

    def __init__(self, folder: Path, delivery: str) -> None:
        text = LOOKUP.replace("DELIVERY", delivery)
        self.plan = make_plan(
            folder, text, registry=KINDS, topic=ORDERS, name="orders", others=LEVELS, partitions=2
        )
        self.folder = folder
        self.clock = HandClock()
        self.fabric = MemoryFabric(self.clock)
        deploy(self.fabric, self.plan)

    @contextmanager
    def loop(self) -> Iterator[StageLoop]:
        shop = Workshop(self.folder, KINDS, self.fabric)
        loop = StageLoop(partial(shop.build, self.plan, self.plan.stages[0]), self.fabric, self.clock)
        with ExitStack() as stack:
            loop.open(stack)
            yield loop
            loop.commit_now()

    def write(self, topic: str, *values: tuple[str, str, int]) -> None:
        """(shop, field, value)."""
        producer = self.fabric.producer()
        for shop, name, value in values:
            producer.send(topic, orjson.dumps({"shop": shop, name: value}), shop.encode())
        producer.close()

    def seen(self) -> set[tuple[str, int, int | None]]:
        parts = self.fabric.stored["p.both"].partitions
        records = [orjson.loads(r.value() or b"") for part in parts for r in part.records]
        return {(r["shop"], r["n"], r["level"]) for r in records}


def turn(run: Run, loop: StageLoop, times: int = 12) -> None:
    for _ in range(times):
        loop.turn(0)
        run.clock.advance(0.02)
    loop.commit_now()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_the_table_is_read_before_the_first_record_and_followed_after(tmp_path: Path, delivery: str) -> None:
    run = Run(tmp_path, delivery)
    run.write("orders", ("oslo", "n", 1), ("rome", "n", 2), ("bonn", "n", 3))
    run.write("levels", *(("oslo", "level", n) for n in range(1_200)), ("rome", "level", 5))
    first = {("oslo", 1, 1_199), ("rome", 2, 5), ("bonn", 3, None)}
    with run.loop() as loop:
        turn(run, loop)
        assert run.seen() == first
        run.write("levels", ("oslo", "level", 7))
        turn(run, loop)
        run.write("orders", ("oslo", "n", 4))
        turn(run, loop)
    later = first | {("oslo", 4, 7)}
    assert run.seen() == later
    run.write("orders", ("oslo", "n", 5), ("rome", "n", 6))
    with run.loop() as loop:
        turn(run, loop)
    assert run.seen() == later | {("oslo", 5, 7), ("rome", 6, 5)}, "the rows came back with the state"


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_tombstone_ends_a_row_and_is_no_dead_letter(tmp_path: Path, delivery: str) -> None:
    run = Run(tmp_path, delivery)
    run.write("levels", ("oslo", "level", 7), ("rome", "level", 5))
    with run.loop() as loop:
        turn(run, loop)
        producer = run.fabric.producer()
        producer.send("levels", None, b"oslo")
        producer.send("orders", None, b"oslo")  # no table: a record without a value has no contract
        producer.close()
        turn(run, loop)
        run.write("orders", ("oslo", "n", 1), ("rome", "n", 2))
        turn(run, loop)
    assert run.seen() == {("oslo", 1, None), ("rome", 2, 5)}
    letters = [r for part in run.fabric.stored["dataflow.dead-letters"].partitions for r in part.records]
    assert [(r.key(), r.value()) for r in letters] == [(b"oslo", None)]


def test_what_waits_for_the_table_survives_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path, "exactly_once")
    run.write("orders", ("oslo", "n", 1))
    run.write("levels", *(("oslo", "level", n) for n in range(3_000)))
    with run.loop() as loop:
        for _ in range(3):  # not enough to read all of the table
            loop.turn(0)
        assert run.seen() == set()
    with run.loop() as loop:
        turn(run, loop, 20)
    assert run.seen() == {("oslo", 1, 2_999)}
