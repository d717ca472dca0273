"""The loop around the tasks: what it commits after something broke, and what it does when partitions come and go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from dataflow.codecs import codec_for
from dataflow.control.deploy import deploy
from dataflow.core import limits
from dataflow.core.errors import NodeBrokenError, TransportError
from dataflow.planner.plan import Plan
from dataflow.registry import Registry
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.sdk import Batch, NodeContext, Out, Settings, node
from dataflow.testing.pipelines import HandClock
from dataflow.transport.api import Producer
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryTransaction
from tests.runtime.kit import RECORD, REGISTRY, encoded, make_plan

ONE_NODE = """
inputs: {records: records}
nodes:
  a: {use: test.script, from: records, retry: {attempts: 9, backoff: 1h, backoff_max: 1h}}
"""


class Stages:
    """A deployed plan over a log in memory, and loops of its first stage."""

    log = MemoryFabric

    def __init__(self, folder: Path, plan: Plan, registry: Registry = REGISTRY) -> None:
        self.clock = HandClock()
        self.fabric = self.log(self.clock)
        self.plan = plan
        deploy(self.fabric, plan)
        self.shop = Workshop(folder, registry, self.fabric)

    def loop(self) -> StageLoop:
        return StageLoop(partial(self.shop.build, self.plan, self.plan.stages[0]), self.fabric, self.clock)

    def write(
        self, actions: Sequence[str], topic: str = "records", partition: int = 0, key: bytes = b"k"
    ) -> None:
        producer = self.fabric.producer()
        end = self.fabric.admin().offsets([(topic, partition)], -1)[topic, partition]
        for value in encoded([(end + i, do) for i, do in enumerate(actions)]):
            producer.send(topic, value, key, partition=partition)
        producer.close()

    def committed(self, topic: str = "records", partition: int = 0) -> int:
        position = (topic, partition)
        return self.fabric.admin().group_offsets(self.plan.stages[0].group, [position]).get(position, 0)

    def numbers(self, topic: str, partition: int = 0) -> list[int]:
        records = self.fabric.stored[topic].partitions[partition].records
        found: list[int] = (
            codec_for("avro", RECORD).decode([r.value() for r in records]).columns["n"].tolist()
        )
        return found


def turn_until_idle(loop: StageLoop, turns: int = 5) -> None:
    for _ in range(turns):
        loop.turn(0)
    loop.commit_now()


class Interrupt(BaseException):
    """What no engine can foresee, in the middle of a batch."""


@node("test.torn")
class Torn:
    """Breaks the loop itself, once."""

    error: BaseException | None = None

    def __init__(self, settings: Settings, context: NodeContext) -> None: ...

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        error, Torn.error = Torn.error, None
        if error is not None and "break" in batch["do"].tolist():
            raise error
        out.emit(batch)


@pytest.mark.parametrize(
    "error", [Interrupt(), NodeBrokenError("it cannot go on")], ids=["any", "a node's own"]
)
def test_after_an_error_in_the_loop_nothing_more_is_committed(tmp_path: Path, error: BaseException) -> None:
    Torn.error = error
    registry = Registry.of(Torn)
    plan = make_plan(
        tmp_path,
        "inputs: {records: records}\nnodes:\n  a: {use: test.torn, from: records}\n",
        registry=registry,
    )
    stages = Stages(tmp_path, plan, registry)
    stages.write(["pass", "break", "pass"])
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        with pytest.raises(type(error)):
            loop.turn(0)
    assert stages.committed() == 0
    assert stages.numbers("p.a") == []
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        turn_until_idle(loop)
    assert stages.numbers("p.a") == [0, 1, 2]
    assert stages.committed() == 3


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_what_is_at_least_once_is_written_by_a_producer_that_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    stages = Stages(tmp_path, make_plan(tmp_path, f"delivery: {delivery}\n{ONE_NODE}"))
    made: list[bool] = []
    usual = stages.fabric.producer

    def noted(*, latency_first: bool = True, single_flight: bool = False) -> Producer:
        made.append(single_flight)
        return usual(latency_first=latency_first, single_flight=single_flight)

    monkeypatch.setattr(stages.fabric, "producer", noted)
    with ExitStack() as stack:
        stages.loop().open(stack)
    assert made == [True]


@pytest.mark.usefixtures("seldom")
def test_an_abandoned_loop_commits_nothing(tmp_path: Path) -> None:
    stages = Stages(tmp_path, make_plan(tmp_path, ONE_NODE))
    stages.write(["pass"])
    loop = stages.loop()
    with ExitStack() as stack:
        loop.open(stack)
        loop.turn(0)
        loop.abandon()
        loop.commit_now()
    assert stages.committed() == 0


@pytest.mark.usefixtures("seldom")
def test_after_a_broken_commit_nothing_more_is_run_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMMIT_INTERVAL_MS", 10**12)
    stages = Stages(tmp_path, make_plan(tmp_path, ONE_NODE + "delivery: exactly_once\n"))
    stages.write(["pass"] * 3)

    def unknown(self: MemoryTransaction) -> None:
        assert not self._held, "it was committed"
        raise TransportError("who knows")

    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        turn_until_idle(loop)
        stages.write(["pass"])
        loop.turn(0)
        stages.write(["pass"])
        with monkeypatch.context() as patch:
            patch.setattr(MemoryTransaction, "finish_commit", unknown)
            with pytest.raises(TransportError, match="who knows"):
                loop.commit_now()
            loop.abandon()
        stages.write(["pass"])
        loop.dispatch(stages.fabric.stored["records"].partitions[0].records[4:])
        # Leaving the group does not run what is in hand: its transaction takes nothing more.
    assert (stages.numbers("p.a"), stages.committed()) == ([0, 1, 2, 3], 4)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_outputs_that_overtake_a_retry_are_not_seen_without_their_offsets(
    tmp_path: Path, delivery: str
) -> None:
    """At least once they are, and come again with the same ids if the worker dies now."""
    stages = Stages(tmp_path, make_plan(tmp_path, f"{ONE_NODE}delivery: {delivery}\n"))
    exactly = delivery == "exactly_once"
    stages.write(["retry"])
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        loop.turn(0)
        for _ in range(2):
            stages.write(["pass"], key=b"other")
            turn_until_idle(loop)
        assert (stages.numbers("p.a"), stages.committed()) == ([] if exactly else [1, 2], 0)
        waiting = loop._tasks[0]._hands._hands
        assert [hand.over for hand in waiting] == ([False, True, True] if exactly else [False])
        for _ in range(2):  # the second and the third attempt
            stages.clock.advance(3600)
            turn_until_idle(loop)
        assert (stages.numbers("p.a"), stages.committed()) == ([0, 1, 2] if exactly else [1, 2, 0], 3)


def test_closing_drains_and_commits(tmp_path: Path) -> None:
    stages = Stages(tmp_path, make_plan(tmp_path, ONE_NODE))
    stages.write(["pass"] * 3)
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        loop.turn(0)
    assert stages.committed() == 3


TWO_INPUTS = """
inputs: {records: records, others: others}
nodes:
  a: {use: test.script, from: [records, others], retry: {attempts: 9, backoff: 1h, backoff_max: 1h}}
"""
OTHERS = "kind: Topic\nname: others\npartitions: 2\nfields: {n: int64, do: string}\n"


def test_a_paused_task_that_loses_one_of_its_partitions_goes_on_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Range assignment of 4 and of 2 partitions to two members splits partition number 1."""
    monkeypatch.setattr(limits, "DRAIN_TIMEOUT_MS", 0)
    monkeypatch.setattr(limits, "MAX_BATCHES_WAITING", 1)
    stages = Stages(tmp_path, make_plan(tmp_path, TWO_INPUTS, partitions=4, others=OTHERS))
    with ExitStack() as stack:
        first, second = stages.loop(), stages.loop()
        first.open(stack)
        first.turn(0)
        for _ in range(limits.MAX_BATCHES_IN_FLIGHT + 1):
            stages.write(["retry"], partition=1)
            first.turn(0)
        assert first.paused == {1}
        second.open(stack)
        for _ in range(3):
            first.turn(0)
            second.turn(0)
        stages.write(["pass"], partition=1)
        for _ in range(60):
            stages.clock.advance(3600)
            first.turn(0)
        first.commit_now()
        assert stages.committed("records", 1) == limits.MAX_BATCHES_IN_FLIGHT + 2


def test_losing_part_of_a_task_skips_no_record_of_the_rest(tmp_path: Path) -> None:
    stages = Stages(tmp_path, make_plan(tmp_path, TWO_INPUTS, partitions=2, others=OTHERS))
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        loop.turn(0)
        stages.write(["retry", "pass"], partition=1)  # in hand, not finished, when the partition goes
        loop.turn(0)
        stages.write(["pass"], partition=1)
        with suppress(TransportError):  # or it starts anew
            loop.lost([("others", 1)])
            for _ in range(3):
                stages.clock.advance(3600)
                loop.turn(0)
            loop.commit_now()
    if stages.committed("records", 1) < 3:
        with ExitStack() as stack:
            loop = stages.loop()
            loop.open(stack)
            for _ in range(4):
                loop.turn(0)
                stages.clock.advance(3600)
    assert sorted(set(stages.numbers("p.a", 1))) == [0, 1, 2]


@pytest.mark.usefixtures("seldom")
def test_losing_everything_leaves_it_to_the_next_owner(tmp_path: Path) -> None:
    stages = Stages(tmp_path, make_plan(tmp_path, ONE_NODE))
    stages.write(["pass"] * 3)
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        loop.turn(0)
        loop.lost([("records", 0)])
        assert loop.idle
        loop.commit_now()
    assert stages.committed() == 0


def test_one_partition_of_another_loop_is_not_taken_for_ours(tmp_path: Path) -> None:
    """What was fetched before a partition went away is never handed to the task that is left."""
    stages = Stages(tmp_path, make_plan(tmp_path, ONE_NODE, partitions=2))
    stages.write(["pass"] * 5, partition=0)
    stages.write(["pass"] * 3, partition=1)
    with ExitStack() as stack:
        loop = stages.loop()
        loop.open(stack)
        loop.turn(0)
        loop.commit_now()
        loop.revoked([("records", 0)])
        stale = stages.fabric.stored["records"].partitions[0].records
        loop.dispatch(stale)
        turn_until_idle(loop)
    assert stages.committed("records", 1) == 3
    assert stages.numbers("p.a", 1) == [0, 1, 2]
