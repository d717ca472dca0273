"""What a node is told of its inputs: whether records lie unread, be it in Kafka or in the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import orjson
import pytest

from dataflow.control.deploy import deploy
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.unread import Unread
from dataflow.runtime.workshop import Workshop
from dataflow.state.store import open_store
from dataflow.state.task_state import TaskState
from dataflow.testing.pipelines import HandClock
from dataflow.transport.memory import MemoryFabric
from nodes.join_by_key import JoinByKey
from tests.runtime.kit import Scripted, built, make_plan, pass_on

pytestmark = pytest.mark.usefixtures("seldom")

KINDS = Registry.of(JoinByKey, Scripted, pass_on)
TOPICS = """
kind: Topic
name: {name}
key: shop
partitions: {partitions}
codec: json
fields: {{shop: string, n: int64, at: {{type: timestamp, event_time: true}}}}
"""
JOIN = """
inputs: {l: left, r: right}
edges: {codec: json}
nodes:
  both:
    use: join.by_key
    from: {l: l, r: r}
    with: {how: left, within: 10s, idle_timeout: 30s, select: {l: [n], r: [at]}, missing: without}
"""


class Joined:
    """A join over two topics, one partition each, and loops of it."""

    def __init__(self, folder: Path) -> None:
        right = TOPICS.format(name="right", partitions=1)
        self.plan = make_plan(folder, JOIN, registry=KINDS, topic=TOPICS, name="left", others=right)
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
            for _ in range(6):
                loop.turn(0)
            yield loop
            loop.commit_now()

    def write(self, topic: str, records: Sequence[tuple[int, int]]) -> None:
        """(n, event time in seconds), all of one key."""
        producer = self.fabric.producer()
        for n, seconds in records:
            moment = f"2026-01-05T09:{seconds // 60:02d}:{seconds % 60:02d}Z"
            producer.send(topic, orjson.dumps({"shop": "oslo", "n": n, "at": moment}), b"oslo", partition=0)
        producer.close()

    def seen(self) -> list[tuple[int, bool]]:
        """(n of the left record, whether it has one of the right)."""
        records = [orjson.loads(r.value() or b"") for r in self.fabric.stored["p.both"].partitions[0].records]
        return [(r["n"], not r["without"]) for r in records]


def turn(loop: StageLoop, times: int = 4) -> None:
    for _ in range(times):
        loop.turn(0)


def test_an_input_that_is_read_to_its_end_and_silent_is_idle(tmp_path: Path) -> None:
    run = Joined(tmp_path)
    with run.loop() as loop:
        run.write("left", [(1, 0), (2, 100)])
        turn(loop)
        run.clock.advance(29)
        run.write("left", [(3, 101)])
        turn(loop)
        assert run.seen() == []
        run.clock.advance(2)
        turn(loop)
        assert run.seen() == [(1, False)], "the left side goes on without the right one, which is silent"


def test_an_input_whose_records_wait_in_the_task_is_not_idle(tmp_path: Path) -> None:
    run = Joined(tmp_path)
    with run.loop() as loop:
        run.write("left", [(1, 0), (2, 100)])
        turn(loop)
        run.clock.advance(29)
        run.write("left", [(3, 101)])
        turn(loop)
        run.write("right", [(7, 5)])
        run.clock.advance(2)
        loop.turn(
            0
        )  # fetches the record; the timer that looks after silent inputs comes before it is processed
        turn(loop)
        assert run.seen() == [(1, True)]
        run.clock.advance(31)
        turn(loop)
        assert run.seen() == [(1, True), (2, False), (3, False)], "both are silent now"


def test_after_a_stop_an_input_that_was_idle_is_waited_for_until_it_is_read(tmp_path: Path) -> None:
    run = Joined(tmp_path)
    with run.loop() as loop:
        run.write("left", [(1, 0), (2, 20)])
        turn(loop)
        run.clock.advance(31)
        turn(loop)
        assert run.seen() == [(1, False), (2, False)]
    run.write("left", [(3, 50), (4, 500)])
    run.write("right", [(7, 50)])
    run.clock.advance(600)  # nobody ran
    with run.loop():
        assert run.seen()[2:] == [(3, True)], "its partner lay there unread"


def test_while_partitions_are_paused_nothing_of_them_is_known(tmp_path: Path) -> None:
    right = TOPICS.format(name="right", partitions=1)
    plan = make_plan(tmp_path, JOIN, registry=KINDS, topic=TOPICS, name="left", others=right)
    _, parts = built(tmp_path, plan, registry=KINDS)
    program = parts.program
    left, right_ = ("left", 0), ("right", 0)
    unread = Unread(program.program, program.intakes, [left, right_])
    with open_state() as state:
        node = state.node_state("both")

        def told(*waiting: tuple[str, int]) -> list[str]:
            unread.tell(state, set(waiting))
            return [port for port in ("l", "r") if node.unread(port)]

        assert told() == ["l", "r"], "at first no end is known"
        unread.read(left, end=True)
        assert told() == ["r"]
        unread.read(right_, end=True)
        assert told(right_) == ["r"], "its last records wait in the task"
        assert told() == []
        unread.read(left, end=False)
        assert told() == ["l"]
        unread.read(left, end=True)
        unread.lose_sight()
        assert told() == ["l", "r"]


def test_what_lies_unread_is_unread_for_every_node_behind_it_in_the_stage(tmp_path: Path) -> None:
    pipeline = JOIN.replace("from: {l: l, r: r}", "from: {l: changed, r: r}").replace(
        "nodes:\n", "nodes:\n  changed: {use: test.pass, from: l}\n"
    )
    right = TOPICS.format(name="right", partitions=1)
    plan = make_plan(tmp_path, pipeline, registry=KINDS, topic=TOPICS, name="left", others=right)
    _, parts = built(tmp_path, plan, registry=KINDS)
    unread = Unread(parts.program.program, parts.program.intakes, [("left", 0), ("right", 0)])
    unread.read(("right", 0), end=True)
    with open_state() as state:
        unread.tell(state, ())
        late = state.node_state("both")  # a node that asks for its state later is told, too
        assert late.unread("l")
        assert not late.unread("r")


@contextmanager
def open_state() -> Iterator[TaskState]:
    state = TaskState(open_store(None, "topic", 0))
    yield state
    state.close()
