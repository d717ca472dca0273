"""One suite for every transport: what the engine relies on holds for the log in memory and for real Kafka alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import confluent_kafka as ck
import pytest

from dataflow.core.errors import FencedError, OffsetOutOfRangeError, RecordTooLargeError
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Header, Message, Position
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.kafka_clients import KafkaConsumer
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.murmur import murmur2_partition
from tests.conftest import wait_for


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def fabric(request: pytest.FixtureRequest) -> Iterator[Fabric]:
    if request.param == "memory":
        yield MemoryFabric()
    else:
        yield request.getfixturevalue("kafka")


class Owner:
    """Records who owns what."""

    def __init__(self) -> None:
        self.owned: set[Position] = set()
        self.log: list[str] = []
        self.on_revoke: Callable[[Sequence[Position]], None] = lambda _: None

    def starting(self, positions: Sequence[Position]) -> None:
        assert not self.owned & set(positions)
        self.log.append("starting")

    def assigned(self, positions: Sequence[Position]) -> None:
        assert self.log[-1] == "starting"
        self.owned |= set(positions)
        self.log.append("assigned")

    def revoked(self, positions: Sequence[Position]) -> None:
        self.on_revoke(positions)
        self.owned -= set(positions)
        self.log.append("revoked")

    def lost(self, positions: Sequence[Position]) -> None:
        self.owned -= set(positions)
        self.log.append("lost")


def read(consumer: Consumer, count: int, timeout_s: float = 20.0) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(100, 0.05)
    return found


def fill(fabric: Fabric, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
    producer = fabric.producer()
    for value in values:
        producer.send(topic, value, partition=partition)
    assert producer.flush(10) == 0
    producer.close()


def test_record_comes_back_as_it_was_sent(fabric: Fabric, unique: str) -> None:
    assert fabric.admin().create(unique, 2, {})
    producer = fabric.producer()
    reports: list[object] = []
    headers: list[Header] = [
        ("df-id", b"\x00\xff"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("text", "é"),
        ("empty", b""),
    ]
    producer.send(
        unique, b"value", b"key", headers, 1, lambda e, _: reports.append(e), timestamp_ms=1_700_000_000_123
    )
    producer.send(unique, None, b"tombstone", partition=1)
    assert producer.flush(10) == 0
    assert reports == [None]
    consumer = fabric.consumer()
    consumer.assign({(unique, 0): EARLIEST, (unique, 1): EARLIEST})
    first, second = read(consumer, 2)
    assert (first.topic(), first.partition(), first.offset()) == (unique, 1, 0)
    assert (first.key(), first.value(), first.timestamp()[1]) == (b"key", b"value", 1_700_000_000_123)
    assert list(first.headers() or ()) == [
        ("df-id", b"\x00\xff"), ("twice", b"1"), ("twice", b"2"), ("text", "é".encode()), ("empty", b""),
    ]  # fmt: skip
    assert second.value() is None
    assert not second.headers()
    consumer.close()
    producer.close()


def test_keys_live_where_java_clients_put_them(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 7, {})
    producer = fabric.producer()
    keys = [f"key-{i}".encode() for i in range(50)]
    for key in keys:
        producer.send(unique, b"", key)
    producer.flush(10)
    consumer = fabric.consumer()
    consumer.assign({(unique, p): EARLIEST for p in range(7)})
    placed = {m.key(): m.partition() for m in read(consumer, 50)}
    assert placed == {k: murmur2_partition(k, 7) for k in keys}
    consumer.close()
    producer.close()


def test_creating_twice_says_so_and_changes_nothing(fabric: Fabric, unique: str) -> None:
    admin = fabric.admin()
    assert admin.create(unique, 3, {"retention.ms": "60000"})
    assert not admin.create(unique, 5, {"retention.ms": "1"})
    info = admin.describe([unique, unique + "-absent"])
    assert list(info) == [unique]
    assert info[unique].partitions == 3
    assert info[unique].config["retention.ms"] == "60000"
    assert info[unique].topic_id
    admin.alter(unique, {"retention.ms": "120000"})
    assert admin.describe([unique])[unique].config["retention.ms"] == "120000"


def test_offsets_by_place_and_by_time(fabric: Fabric, unique: str) -> None:
    admin = fabric.admin()
    admin.create(unique, 1, {})
    producer = fabric.producer()
    for time_ms in (1_700_000_001_000, 1_700_000_002_000, 1_700_000_003_000):
        producer.send(unique, b"x", partition=0, timestamp_ms=time_ms)
    producer.flush(10)
    producer.close()
    at = (unique, 0)
    assert admin.offsets([at], EARLIEST) == {at: 0}
    assert admin.offsets([at], LATEST) == {at: 3}
    assert admin.offsets([at], 1_700_000_001_500) == {at: 1}
    assert admin.offsets([at], 1_700_000_009_000) == {at: 3}


def test_group_goes_on_where_it_committed(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    fill(fabric, unique, [b"0", b"1", b"2", b"3"])
    first = fabric.consumer(unique)
    first.subscribe([unique], Owner())
    assert [m.value() for m in read(first, 4)] == [b"0", b"1", b"2", b"3"]
    first.commit({(unique, 0): 2}, wait=True)
    assert first.committed([(unique, 0)]) == {(unique, 0): 2}
    first.close()
    assert fabric.admin().group_offsets(unique, [(unique, 0)]) == {(unique, 0): 2}
    assert fabric.admin().group_offsets(unique + "-none", [(unique, 0)]) == {}
    second = fabric.consumer(unique)
    second.subscribe([unique], Owner())
    assert [m.value() for m in read(second, 2)] == [b"2", b"3"]
    second.close()


def test_partitions_are_shared_and_handed_over(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 4, {})
    one, two = fabric.consumer(unique), fabric.consumer(unique)
    owner_one, owner_two = Owner(), Owner()
    one.subscribe([unique], owner_one)
    deadline = time.monotonic() + 30
    while len(owner_one.owned) < 4 and time.monotonic() < deadline:
        one.poll(10, 0.05)
    assert len(owner_one.owned) == 4
    two.subscribe([unique], owner_two)
    while (len(owner_one.owned), len(owner_two.owned)) != (2, 2) and time.monotonic() < deadline:
        one.poll(10, 0.02)
        two.poll(10, 0.02)
    assert (len(owner_one.owned), len(owner_two.owned)) == (2, 2)
    assert not owner_one.owned & owner_two.owned
    two.close()
    while len(owner_one.owned) < 4 and time.monotonic() < deadline:
        one.poll(10, 0.05)
    assert len(owner_one.owned) == 4
    one.close()
    assert owner_one.log[-1] == "revoked"


def test_a_revoked_member_may_still_commit(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    fill(fabric, unique, [b"0", b"1"])
    consumer = fabric.consumer(unique)
    owner = Owner()
    owner.on_revoke = lambda positions: consumer.commit(dict.fromkeys(positions, 1), wait=True)
    consumer.subscribe([unique], owner)
    read(consumer, 2)
    consumer.close()
    assert fabric.admin().group_offsets(unique, [(unique, 0)]) == {(unique, 0): 1}


def test_paused_partition_is_silent_and_loses_nothing(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 2, {})
    consumer = fabric.consumer()
    consumer.assign({(unique, 0): 0, (unique, 1): 0})
    consumer.pause([(unique, 0)])
    fill(fabric, unique, [b"a", b"b"], 0)
    fill(fabric, unique, [b"c"], 1)
    assert [m.value() for m in read(consumer, 1)] == [b"c"]
    assert not consumer.poll(10, 0.3)
    consumer.resume([(unique, 0)])
    assert [m.value() for m in read(consumer, 2)] == [b"a", b"b"]
    consumer.seek((unique, 0), 1)
    assert [m.value() for m in read(consumer, 1)] == [b"b"]
    assert consumer.position([(unique, 0)]) == {(unique, 0): 2}
    consumer.close()


def test_an_end_is_told_when_it_is_reached_and_again_after_a_pause(fabric: Fabric, unique: str) -> None:
    """Whether an input is silent is known by this: of what is paused it is not known, and of what is not, it is."""
    fabric.admin().create(unique, 2, {})
    consumer = fabric.consumer(f"{unique}.group")
    consumer.subscribe([unique], Owner())
    told: dict[Position, int] = {}

    def reached(wanted: dict[Position, int]) -> bool:
        consumer.poll(10, 0.05)
        told.update(consumer.ends())
        return told == wanted

    first, second = (unique, 0), (unique, 1)
    wait_for(lambda: reached({first: 0, second: 0}), "the ends of two empty partitions")
    consumer.poll(10, 0)
    assert consumer.ends() == {}, "an end is told once"
    fill(fabric, unique, [b"a", b"b"])
    told.clear()
    wait_for(lambda: reached({first: 2}), "the end after two records")
    told.clear()
    consumer.pause([first, second])
    consumer.poll(10, 0.05)
    assert consumer.ends() == {}
    consumer.resume([first, second])
    wait_for(lambda: reached({first: 2, second: 0}), "both ends again")
    consumer.close()


def test_a_committed_offset_that_left_the_log_is_loud(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    fill(fabric, unique, [b"x"])
    consumer = fabric.consumer()
    consumer.assign({(unique, 0): 5})
    with pytest.raises(OffsetOutOfRangeError, match=unique):
        read(consumer, 1)
    consumer.close()


def test_a_record_over_the_topics_limit_is_refused(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {"max.message.bytes": "1000"})
    producer = fabric.producer()
    refused: list[object] = []
    try:
        producer.send(unique, b"x" * 5000, on_delivery=lambda e, _: refused.append(e))
        producer.flush(10)
    except RecordTooLargeError as error:
        refused.append(error)
    assert len(refused) == 1
    assert refused[0] is not None
    producer.close()


def values(fabric: Fabric, topic: str, count: int) -> list[bytes | None]:
    consumer = fabric.consumer()
    consumer.assign({(topic, 0): EARLIEST})
    found = [m.value() for m in read(consumer, count, 5 if count else 0.5)]
    consumer.close()
    return found


def owning(fabric: Fabric, group: str, topic: str) -> Consumer:
    """A member of `group` that owns partition 0 of `topic`."""
    consumer = fabric.consumer(group)
    owner = Owner()
    consumer.subscribe([topic], owner)
    deadline = time.monotonic() + 20
    while not owner.owned and time.monotonic() < deadline:
        consumer.poll(1, 0.05)
    assert owner.owned
    return consumer


def test_a_transaction_is_seen_whole_with_its_offsets(fabric: Fabric, unique: str) -> None:
    source, target = unique, unique + "-out"
    fabric.admin().create(source, 1, {})
    fabric.admin().create(target, 1, {})
    fill(fabric, source, [b"in"])
    consumer = owning(fabric, unique, source)
    producer = fabric.transactional(unique)
    acknowledged: list[object] = []
    producer.begin()
    producer.send(target, b"a", on_delivery=lambda e, _: acknowledged.append(e))
    producer.send(target, b"b", on_delivery=lambda e, _: acknowledged.append(e))
    assert producer.flush(10) == 0
    assert acknowledged == [None, None]
    assert values(fabric, target, 0) == []
    producer.commit({(source, 0): 1}, consumer)
    assert values(fabric, target, 2) == [b"a", b"b"]
    assert fabric.admin().group_offsets(unique, [(source, 0)]) == {(source, 0): 1}
    producer.close()
    consumer.close()


def test_an_aborted_transaction_is_never_seen(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    producer = fabric.transactional(unique)
    producer.begin()
    producer.send(unique, b"never")
    producer.flush(10)
    producer.abort()
    producer.begin()
    producer.send(unique, b"seen")
    consumer = fabric.consumer(unique)
    producer.commit({}, consumer)
    consumer.close()
    assert values(fabric, unique, 1) == [b"seen"]
    producer.close()


@pytest.mark.broker
def test_offsets_are_told_while_a_transaction_holds_newer_ones(
    kafka: KafkaFabric, bootstrap: str, unique: str
) -> None:
    """A worker that was killed leaves such a transaction until it times out; who asks for the lag does not wait for it."""
    kafka.admin().create(unique, 1, {})
    fill(kafka, unique, [b"a", b"b"])
    consumer = owning(kafka, unique, unique)
    assert isinstance(consumer, KafkaConsumer)
    consumer.commit({(unique, 0): 1}, wait=True)
    dead = ck.Producer({"bootstrap.servers": bootstrap, "transactional.id": unique})
    dead.init_transactions(10)
    dead.begin_transaction()
    newer = [ck.TopicPartition(unique, 0, 2)]
    dead.send_offsets_to_transaction(newer, consumer.client.consumer_group_metadata(), 10)
    assert kafka.admin().group_offsets(unique, [(unique, 0)]) == {(unique, 0): 1}
    dead.abort_transaction(10)
    consumer.close()


def test_closing_undoes_what_is_open(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    producer = fabric.transactional(unique)
    producer.begin()
    producer.send(unique, b"never")
    producer.close()
    fill(fabric, unique, [b"seen"])
    assert values(fabric, unique, 1) == [b"seen"]


def test_a_later_producer_of_the_name_fences_the_earlier(fabric: Fabric, unique: str) -> None:
    fabric.admin().create(unique, 1, {})
    zombie = fabric.transactional(unique)
    zombie.begin()
    zombie.send(unique, b"zombie")
    zombie.flush(10)
    heir = fabric.transactional(unique)
    heir.begin()
    heir.send(unique, b"heir")
    consumer = fabric.consumer(unique)
    with pytest.raises(FencedError):
        zombie.commit({}, consumer)
    heir.commit({}, consumer)
    assert values(fabric, unique, 1) == [b"heir"]
    zombie.close()
    heir.close()
    consumer.close()


def test_the_end_is_reached_although_no_record_is_there(fabric: Fabric, unique: str) -> None:
    """After a commit the log ends in a marker, which is no record: reading "to the end" must not wait for one."""
    fabric.admin().create(unique, 1, {})
    producer = fabric.transactional(unique)
    producer.begin()
    producer.send(unique, b"last")
    owner = fabric.consumer(unique)
    producer.commit({}, owner)
    producer.close()
    owner.close()
    at = (unique, 0)
    consumer = fabric.consumer()
    consumer.assign({at: EARLIEST})
    assert [m.value() for m in read(consumer, 1)] == [b"last"]

    def reached() -> bool:
        consumer.poll(10, 0.05)
        # Asked each time: the marker may be written a little after the commit returned.
        return consumer.position([at]) == fabric.admin().offsets([at], LATEST)

    wait_for(reached, "the end")
    consumer.close()
