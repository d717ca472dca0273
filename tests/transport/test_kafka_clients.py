"""What the real client may do between two calls, played by a stand-in: a real broker does it too rarely to wait for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import confluent_kafka as ck
import pytest

from dataflow.core.errors import FencedError, TransportError
from dataflow.transport import kafka_clients, kafka_signs
from dataflow.transport.api import EARLIEST, Position
from dataflow.transport.kafka_clients import KafkaConsumer


@dataclass
class Fetched:
    place: Position
    number: int
    found: ck.KafkaError | None = None

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.number

    def error(self) -> ck.KafkaError | None:
        return self.found


@dataclass
class Client:
    """Stands in for `confluent_kafka.Consumer`."""

    first: Fetched | None = None
    rest: Callable[[], list[Fetched]] = list
    stored: dict[Position, ck.TopicPartition] = field(default_factory=dict)
    commits: list[dict[Position, int]] = field(default_factory=list)
    seeks: list[tuple[Position, int]] = field(default_factory=list)
    answer: list[ck.TopicPartition] | None = None
    callbacks: dict[str, Any] = field(default_factory=dict)
    subscribed: int = 0

    def subscribe(self, topics: Sequence[str], **callbacks: Any) -> None:
        self.subscribed += 1
        self.callbacks = callbacks

    def unsubscribe(self) -> None: ...

    def poll(self, timeout: float) -> Fetched | None:
        return self.first

    def consume(self, count: int, timeout: float) -> list[Fetched]:
        return self.rest()

    def committed(self, partitions: list[ck.TopicPartition], timeout: float) -> list[ck.TopicPartition]:
        return [self.stored.get((p.topic, p.partition), p) for p in partitions]

    def incremental_assign(self, partitions: list[ck.TopicPartition]) -> None: ...

    def incremental_unassign(self, partitions: list[ck.TopicPartition]) -> None: ...

    def close(self) -> None: ...

    def seek(self, partition: ck.TopicPartition) -> None:
        self.seeks.append(((partition.topic, partition.partition), partition.offset))

    def commit(self, offsets: list[ck.TopicPartition], asynchronous: bool) -> list[ck.TopicPartition] | None:
        self.commits.append({(p.topic, p.partition): p.offset for p in offsets})
        return None if asynchronous else self.answer


class Owner:
    def starting(self, positions: Sequence[Position]) -> None: ...

    def assigned(self, positions: Sequence[Position]) -> None: ...

    def revoked(self, positions: Sequence[Position]) -> None: ...

    def lost(self, positions: Sequence[Position]) -> None: ...


A, B = ("t", 0), ("t", 1)


@pytest.fixture
def consumer() -> KafkaConsumer:
    made = KafkaConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0}, EARLIEST)
    made.client.close()
    made.client = Client()
    made.subscribe(["t"], Owner())
    return made


def part(position: Position, offset: int = -1001) -> ck.TopicPartition:
    return ck.TopicPartition(*position, offset)


class Failed:
    """A partition as the client returns it with an error."""

    def __init__(self, position: Position, offset: int, code: int) -> None:
        self.topic, self.partition, self.offset, self.error = *position, offset, ck.KafkaError(code)


def test_what_was_fetched_before_its_partition_went_away_is_left_out(consumer: KafkaConsumer) -> None:
    client = consumer.client
    client.first = Fetched(A, 7)

    def rest() -> list[Fetched]:
        client.callbacks["on_revoke"](client, [part(A)])
        return [Fetched(A, 8), Fetched(B, 3)]

    client.rest = rest
    assert [m.offset() for m in consumer.poll(10, 0)] == [3]
    client.rest = list
    assert [m.offset() for m in consumer.poll(10, 0)] == [7]


def test_a_partition_that_went_and_came_back_in_one_call_is_read_again(consumer: KafkaConsumer) -> None:
    client = consumer.client
    client.first = Fetched(A, 7)
    client.stored = {A: part(A, 5)}

    def rest() -> list[Fetched]:
        client.callbacks["on_lost"](client, [part(A)])
        client.callbacks["on_assign"](client, [part(A)])
        return [Fetched(A, 5)]

    client.rest = rest
    assert list(consumer.poll(10, 0)) == []
    assert client.seeks == [(A, 5)]


def test_an_end_that_is_one_no_more_is_not_told(consumer: KafkaConsumer) -> None:
    """Who takes it for the newest reads what came after it again."""
    end = ck.KafkaError(ck.KafkaError._PARTITION_EOF)
    consumer.client.first = Fetched(A, 7, end)
    consumer.client.rest = lambda: [Fetched(B, 3, end), Fetched(A, 7)]
    assert [m.offset() for m in consumer.poll(10, 0)] == [7]
    assert consumer.ends() == {B: 3}
    consumer.client.rest = list
    consumer.poll(10, 0)
    consumer.client.first = Fetched(A, 7)
    consumer.poll(10, 0)
    assert consumer.ends() == {}


def test_an_unknown_committed_offset_is_not_taken_for_none(consumer: KafkaConsumer) -> None:
    failed: Any = Failed(A, -1001, ck.KafkaError.UNSTABLE_OFFSET_COMMIT)
    consumer.client.stored = {A: failed}
    consumer.client.callbacks["on_assign"](consumer.client, [part(A)])
    with pytest.raises(TransportError, match="asking the offset"):
        consumer.poll(1, 0)


@pytest.mark.parametrize("name", ["on_assign", "on_revoke", "on_lost"])
def test_what_a_rebalance_raises_is_raised_once_and_not_by_the_client(
    consumer: KafkaConsumer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, positions: Sequence[Position]) -> None:
        raise ValueError(positions)

    for told in ("starting", "revoked", "lost"):
        monkeypatch.setattr(Owner, told, refuse)
    callback = partial(consumer.client.callbacks[name], consumer.client, [part(A)])
    for after in (partial(consumer.poll, 1, 0), consumer.close):
        callback()
        with pytest.raises(ValueError, match="'t', 0"):
            after()
        after()


def test_a_refused_commit_goes_along_with_the_next(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10, B: 4}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError.NOT_COORDINATOR), [part(A, 10), part(B, 4)])
    consumer.commit({B: 6}, wait=True)
    consumer.commit({}, wait=True)
    assert consumer.client.commits == [{A: 10, B: 4}, {A: 10, B: 6}]


def test_a_refusal_that_a_later_commit_has_overtaken_is_forgotten(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10}, wait=False)
    consumer.commit({A: 20}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError._TIMED_OUT), [part(A, 10)])
    consumer._on_commit(None, [part(A, 20)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits == [{A: 10}, {A: 20}]


def test_a_refusal_does_not_lead_back_behind_a_commit_on_its_way(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10}, wait=False)
    consumer.commit({A: 20}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError._TIMED_OUT), [part(A, 10)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits == [{A: 10}, {A: 20}]
    consumer._on_commit(ck.KafkaError(ck.KafkaError._TIMED_OUT), [part(A, 20)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits[2:] == [{A: 20}]


def test_a_commit_that_the_client_tried_again_after_a_later_one_does_not_stay(
    consumer: KafkaConsumer,
) -> None:
    """Both are told to be through; the broker has the older one, which came last."""
    consumer.commit({A: 10}, wait=False)
    consumer.commit({A: 20}, wait=False)
    consumer._on_commit(None, [part(A, 20)])
    consumer._on_commit(None, [part(A, 10)])
    consumer.commit({}, wait=False)
    consumer._on_commit(None, [part(A, 20)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits == [{A: 10}, {A: 20}, {A: 20}]
    consumer.client.callbacks["on_revoke"](consumer.client, [part(A)])
    consumer._on_commit(None, [part(A, 10)])
    consumer.commit({}, wait=False)
    assert len(consumer.client.commits) == 3, "what moved away is not ours to lead forward"


def test_a_fenced_member_does_not_try_again(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError.UNKNOWN_MEMBER_ID), [part(A, 10)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits == [{A: 10}]


def test_a_member_with_an_epoch_out_of_date_tries_again(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError.STALE_MEMBER_EPOCH), [part(A, 10)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits == [{A: 10}, {A: 10}]


def test_a_member_that_is_fenced_and_never_told_ends(
    consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fenced() -> None:
        consumer.commit({A: 10}, wait=False)
        consumer._on_commit(ck.KafkaError(ck.KafkaError.UNKNOWN_MEMBER_ID), [part(A, 10)])

    fenced()
    consumer.poll(1, 0)
    consumer.client.callbacks["on_lost"](consumer.client, [part(A)])
    monkeypatch.setattr(kafka_clients, "MAX_FENCED_S", -1.0)
    consumer.poll(1, 0)
    fenced()
    with pytest.raises(FencedError, match="does not know this member"):
        consumer.poll(1, 0)
    consumer.close()


def test_a_partition_that_went_away_takes_its_refused_commit_along(consumer: KafkaConsumer) -> None:
    consumer.commit({A: 10, B: 1}, wait=False)
    consumer._on_commit(ck.KafkaError(ck.KafkaError._TIMED_OUT), [part(A, 10), part(B, 1)])
    consumer.client.callbacks["on_revoke"](consumer.client, [part(A)])
    consumer.commit({}, wait=False)
    assert consumer.client.commits[1:] == [{B: 1}]


def test_a_commit_refused_for_some_partitions_raises(consumer: KafkaConsumer) -> None:
    failed: Any = Failed(B, 4, ck.KafkaError.TOPIC_AUTHORIZATION_FAILED)
    consumer.client.answer = [part(A, 1), failed]
    with pytest.raises(TransportError, match="committing the offset of t"):
        consumer.commit({A: 1, B: 4}, wait=True)


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.monotonic()
        monkeypatch.setattr("dataflow.transport.kafka_clients.time.monotonic", lambda: self.now_s)


def test_a_member_whose_heartbeat_was_not_answered_joins_anew_but_not_all_the_time(
    consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    shown: list[int] = []
    monkeypatch.setattr(kafka_signs.log, "log", lambda level, *said: shown.append(level))
    late = "GroupCoordinator/1: Timed out ConsumerGroupHeartbeatRequest in flight (after 1001ms, timeout #0)"

    def missed(facility: str = "REQTMOUT", text: str = late, level: int = 20) -> None:
        consumer._signs.log(level, "%s [%s] %s", facility, "rdkafka#consumer-1", text)

    def after(seconds: float) -> int:
        """How often it has subscribed by then."""
        for _ in range(math.ceil(seconds / 0.5)):
            clock.now_s += 0.5
            consumer.poll(10, 0)
            consumer._signs._alive("{}")
        return int(consumer.client.subscribed)

    missed()
    assert (after(2), after(1), after(60)) == (1, 2, 2)
    for _ in range(3):
        missed()
    assert (after(4), after(60)) == (3, 3)
    missed()
    assert after(3) == 4
    missed()
    assert (after(6), after(5)) == (4, 5)
    missed(text="Timed out 1 in-flight, 0 retry-queued", level=30)
    missed("FAIL", "no broker", 40)
    assert (after(60), shown) == (5, [40])


def test_a_client_without_signs_of_life_is_given_up_and_not_closed(
    consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    closed: list[object] = []
    monkeypatch.setattr(Client, "close", closed.append)
    for _ in range(20):
        clock.now_s += 3600  # a slow node: who does not poll does not hear
        consumer.poll(10, 0)
    consumer._signs._alive("{}")
    for _ in range(59):
        clock.now_s += 0.5
        consumer.poll(10, 0)
    clock.now_s += 1
    with pytest.raises(TransportError, match="has not said a word"):
        consumer.poll(10, 0)
    references = sys.getrefcount(consumer.client)
    consumer.close()
    assert not closed
    assert sys.getrefcount(consumer.client) > references
