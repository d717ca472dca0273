"""The hand-off: what is given in memory is in the log, runs once and in its order, and strangers' records are not lost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from dataflow.core import headers, ids
from dataflow.core.inprocess import Given, Handover
from dataflow.planner.plan import REPLIES, Plan
from dataflow.runtime.lanes import ATTENTIVE_S, HOLD_S, LOOK_S, QUIET_S, RETRY_S, Lanes
from dataflow.runtime.stage import StageLoop
from dataflow.transport.api import Delivered, Header
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryProducer
from tests.runtime.kit import encoded, make_plan
from tests.runtime.test_stage import Stages

ANSWERING = """
inputs: {records: records}
answer: {from: a}
nodes:
  a: {use: test.script, from: records}
"""
REQUESTS = "p.requests"
UNKEYED = "kind: Topic\nname: {name}\npartitions: {partitions}\nfields: {{n: int64, do: string}}\n"


class Asked:
    """One request and what became of it."""

    def __init__(self, *actions: str, first: int = 0) -> None:
        made = ids.mint(1_700_000_000_000)
        self.ids = [ids.child(made, "gateway", "in", i) for i in range(len(actions))]
        self.reports: list[object | None] = []
        self.back = 0
        self.given = Given(
            self.ids,
            encoded([(first + i, do) for i, do in enumerate(actions)]),
            f"{REPLIES}/0/".encode(),
            [(headers.DEADLINE, b"9999999999999")],
            self.reports.append,
            self._back,
        )

    def _back(self) -> None:
        self.back += 1


class SlowProducer(MemoryProducer):
    """Tells deliveries only when asked to, or refuses a record."""

    held = False
    refused = ""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: list[Header] | None = None,
        partition: int = -1,
        on_delivery: Delivered | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        if topic == SlowProducer.refused and on_delivery is not None:
            on_delivery("too large for the broker", None)
            return
        super().send(topic, value, key, headers, partition, on_delivery, timestamp_ms)

    def poll(self, timeout_s: float) -> int:
        return 0 if SlowProducer.held else super().poll(timeout_s)


class SlowFabric(MemoryFabric):
    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> MemoryProducer:
        return SlowProducer(self)


class Handing(Stages):
    """A stage that requests are handed to."""

    log = SlowFabric

    def __init__(self, folder: Path, plan: Plan | None = None) -> None:
        super().__init__(folder, plan or make_plan(folder, ANSWERING, topic=UNKEYED))
        SlowProducer.held, SlowProducer.refused = False, ""
        self.seconds = 0.0

    @property
    def handover(self) -> Handover:
        found = self.shop.inside.to("p", self.plan.version)
        assert found is not None
        return found

    def opened(self, stack: ExitStack) -> StageLoop:
        """A loop with its lanes at a clock moved by hand, ready for requests."""
        loop = self.loop()
        loop.open(stack)
        assert isinstance(loop._source, Lanes)
        loop._source._clock = lambda: self.seconds
        self.turn(loop)
        assert not self.handover.give(Asked("pass").given), "none is wanted before the first came"
        self.turn(loop)
        return loop

    def turn(self, loop: StageLoop, turns: int = 4) -> None:
        for _ in range(turns):
            self.seconds += LOOK_S
            loop.turn(0)

    def ask(self, *actions: str, first: int = 0) -> Asked:
        asked = Asked(*actions, first=first)
        assert self.handover.give(asked.given)
        return asked

    def foreign(self, *actions: str) -> None:
        """What somebody else writes to the lane."""
        self.write(actions, REQUESTS)

    def out(self) -> list[int]:
        return self.numbers("p.a")

    def answered(self) -> list[bytes]:
        records = self.fabric.stored[REPLIES].partitions[0].records
        return [r.key() or b"" for r in records]


def test_a_request_is_written_run_answered_and_committed_without_being_fetched(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        asked = world.ask("pass", "pass")
        world.turn(loop)
        loop.commit_now()
        assert world.numbers(REQUESTS) == [0, 1]
        assert world.out() == [0, 1]
        assert world.answered() == asked.ids
        assert asked.reports == [None, None]
        assert world.committed(REQUESTS) == 2
        metrics = world.shop.metrics.stage("p", world.plan.stages[0].name)
        assert (metrics.records, metrics.handed) == (2, 2)
    assert world.committed(REQUESTS) == 2


def test_handed_or_fetched_the_same_records(tmp_path: Path) -> None:
    """The same requests by Kafka and by hand: topics, keys, values, partitions and headers are the same."""
    actions = ["pass", "fail", "drop", "both", "children"]
    found = []
    asked = Asked(*actions)
    for handing in (True, False):
        world = Handing(tmp_path)
        with ExitStack() as stack:
            loop = world.opened(stack)
            if handing:
                assert world.handover.give(asked.given)
            else:
                producer = world.fabric.producer()
                given = asked.given
                for record_id, value in zip(given.record_ids, given.values, strict=True):
                    head: list[Header] = [
                        (headers.ID, record_id), (headers.REPLY_TO, given.reply_prefix + record_id), *given.shared,
                    ]  # fmt: skip
                    producer.send(REQUESTS, value, None, head, 0)
                producer.close()
            world.turn(loop, 8)
        found.append(_all_records(world.fabric))
    assert found[0] == found[1]
    assert {topic for topic, *_ in found[0]} >= {REQUESTS, "p.a", "dataflow.dead-letters", REPLIES}


def _all_records(fabric: MemoryFabric) -> list[tuple[object, ...]]:
    timed = (headers.ERROR_TIME,)
    return [
        (name, number, r.key(), r.value(), [h for h in r.headers() or () if h[0] not in timed])
        for name, topic in sorted(fabric.stored.items())
        for number, partition in enumerate(topic.partitions)
        for r in partition.records
        if name in (REQUESTS, REPLIES, "dataflow.dead-letters") or name.startswith("p.")
    ]


def test_what_a_stranger_writes_to_a_lane_is_run_and_nothing_of_ours_twice(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.ask("pass", first=100)
        world.turn(loop)
        world.foreign("pass", "pass")  # offsets 1 and 2, numbers 1 and 2
        world.ask("pass", first=200)  # offset 3: its report shows the gap
        world.turn(loop, 12)
        assert sorted(world.out()) == [1, 2, 100, 200]
        world.ask("pass", first=300)
        world.turn(loop)
        assert sorted(world.out()) == [1, 2, 100, 200, 300]
        loop.commit_now()
        assert world.committed(REQUESTS) == 5


def test_no_offset_beyond_a_strangers_record_is_committed_before_that_has_run(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.foreign("pass")
        SlowProducer.held = True
        world.ask("pass", first=100)
        world.turn(loop, 1)
        SlowProducer.held = False
        loop._serve_reports(0)
        for task in loop._tasks.values():
            task.collect()
        loop.commit_now()
        assert world.out() == [100]
        assert world.committed(REQUESTS) == 0
        world.turn(loop, 6)
        loop.commit_now()
        assert world.out() == [100, 0]
        assert world.committed(REQUESTS) == 2


def test_a_quiet_lane_is_read(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.ask("pass", first=100)
        world.turn(loop)
        world.foreign("pass")
        world.turn(loop, 1)
        assert world.out() == [100]
        world.seconds += QUIET_S * 1.1
        world.turn(loop, 3)
        assert world.out() == [100, 1]
        world.ask("pass", first=200)
        world.turn(loop)
        assert world.out() == [100, 1, 200]


def test_a_request_that_kafka_refuses_is_told_and_holds_back_nothing(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        SlowProducer.refused = REQUESTS
        lost = world.ask("pass", first=100)
        world.turn(loop)
        assert lost.reports == ["too large for the broker"]
        SlowProducer.refused = ""
        kept = world.ask("pass", first=200)
        world.turn(loop)
        loop.commit_now()
        assert kept.reports == [None]
        assert world.committed(REQUESTS) == 1


def test_a_dead_letter_of_a_handed_request_says_its_offset(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.ask("pass")
        world.turn(loop)
        world.ask("pass", "fail")
        world.turn(loop)
        letters = [r for p in world.fabric.stored["dataflow.dead-letters"].partitions for r in p.records]
        found = [dict(r.headers() or ()) for r in letters]
        assert [(h[headers.ERROR_TOPIC], h[headers.ERROR_OFFSET]) for h in found] == [
            (REQUESTS.encode(), b"2")
        ]


def test_requests_in_the_hands_of_one_who_dies_are_run_by_the_next(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    loop = world.opened(ExitStack())
    SlowProducer.held = True
    world.ask("pass", "pass")
    world.turn(loop, 1)
    assert world.committed(REQUESTS) == 0
    SlowProducer.held = False
    world.fabric.groups[world.plan.stages[0].group].members.clear()  # as after its session
    with ExitStack() as stack:
        world.turn(heir := world.opened(stack))
        heir.commit_now()
        assert world.committed(REQUESTS) == 2
        assert sorted(world.out()) == [0, 0, 1, 1]


def test_what_was_not_taken_goes_back_when_the_stage_ends(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.turn(loop)
        asked = world.ask("pass")
    assert asked.back == 1
    assert not world.handover.give(Asked("pass").given)
    assert world.numbers(REQUESTS) == []


def test_partitions_that_went_away_take_no_request(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        asked = world.ask("pass")
        loop.revoked([("records", 0), (REQUESTS, 0)])
        world.turn(loop, 1)
        world.seconds += HOLD_S * 1.1
        world.turn(loop, 1)
        assert asked.back == 1
        assert not world.handover.give(Asked("pass").given)


def test_where_others_write_all_the_time_requests_go_by_kafka(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)

        def busy() -> None:
            world.foreign("pass")
            # More has come meanwhile, each time it is looked.
            loop._consumer.high = lambda position: 10**9  # type: ignore[method-assign]
            loop._consumer.ends = dict  # type: ignore[method-assign]

        world.seconds += ATTENTIVE_S * 1.1
        world.turn(loop, 1)
        busy()
        world.turn(loop, 1)
        first = Asked("pass")
        assert not world.handover.give(first.given)
        for _ in range(4):
            busy()
            world.turn(loop, 1)
        waiting = world.ask("pass")
        world.seconds += HOLD_S * 1.1
        world.turn(loop, 1)
        assert waiting.back == 1
        assert not world.handover.give(Asked("pass").given)
        world.turn(loop, 1)
        assert not world.handover.give(Asked("pass").given), "it is not tried again at once"
        world.seconds += RETRY_S * 2.1
        world.turn(loop, 1)
        world.ask("pass")


def test_a_full_task_takes_nothing_more(tmp_path: Path) -> None:
    world = Handing(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        SlowProducer.held = True
        asked = []
        for number in range(12):
            asked.append(world.ask("pass", first=number))
            world.turn(loop, 1)
        assert len(world.out()) < 12
        SlowProducer.held = False
        world.turn(loop, 20)
        assert world.out() == list(range(12))
        assert all(a.reports == [None] for a in asked)


def exactly_once(folder: Path) -> Handing:
    return Handing(folder, make_plan(folder, ANSWERING + "delivery: exactly_once\n", topic=UNKEYED))


def test_exactly_once_a_request_runs_when_it_is_acknowledged(tmp_path: Path) -> None:
    world = exactly_once(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        SlowProducer.held = True
        asked = world.ask("pass", "fail")
        world.turn(loop)
        assert world.numbers(REQUESTS) == [0, 1]
        assert world.out() == []
        SlowProducer.held = False
        world.turn(loop)
        assert world.out() == [0]
        assert world.answered() == asked.ids
        assert world.committed(REQUESTS) == 2


def test_exactly_once_nothing_comes_of_a_request_that_kafka_refuses(tmp_path: Path) -> None:
    world = exactly_once(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        SlowProducer.refused = REQUESTS
        lost = world.ask("pass", first=100)
        world.turn(loop)
        SlowProducer.refused = ""
        assert lost.reports == ["too large for the broker"]
        world.ask("pass", first=200)
        world.turn(loop)
        assert world.out() == [200]


def test_exactly_once_what_lies_behind_a_strangers_record_is_fetched_and_runs_once(tmp_path: Path) -> None:
    world = exactly_once(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        world.ask("pass", first=100)
        world.turn(loop)
        world.foreign("pass")
        asked = world.ask("pass", "pass", first=200)
        world.turn(loop, 12)
        assert world.out() == [100, 1, 200, 201], "in the order of the log"
        assert world.answered()[1:] == asked.ids
        world.ask("pass", first=300)
        world.turn(loop)
        assert world.out() == [100, 1, 200, 201, 300]
        assert world.committed(REQUESTS) == 5


def test_exactly_once_a_partition_that_moves_leaves_what_was_not_acknowledged_to_its_next_owner(
    tmp_path: Path,
) -> None:
    world = exactly_once(tmp_path)
    with ExitStack() as stack:
        loop = world.opened(stack)
        SlowProducer.held = True
        world.ask("pass", first=100)
        world.turn(loop, 1)
        loop.revoked([("records", 0), (REQUESTS, 0)])
        SlowProducer.held = False
        world.turn(loop)
        assert world.out() == []
        assert world.committed(REQUESTS) == 0
        loop.assigned([("records", 0), (REQUESTS, 0)])


def test_keyed_requests_go_by_kafka(tmp_path: Path) -> None:
    assert _handover(tmp_path, make_plan(tmp_path, ANSWERING)) is None, "with a key"
    assert _handover(tmp_path, make_plan(tmp_path, ANSWERING, topic=UNKEYED)) is not None


def _handover(folder: Path, plan: Plan) -> Handover | None:
    stages = Stages(folder, plan)
    stages.shop.build(plan, plan.stages[0])
    return stages.shop.inside.to("p", plan.version)
