"""Single error codes from the broker, and what our transport makes of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import confluent_kafka as ck
import pytest

from dataflow.core.errors import FencedError, OffsetOutOfRangeError, TransportError
from dataflow.transport import kafka_clients, kafka_transactions
from dataflow.transport.api import EARLIEST, Position
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.kafka_clients import KafkaConsumer, KafkaProducer
from dataflow.transport.kafka_transactions import KafkaTransaction
from tests.conftest import wait_for
from tests.transport.mock_cluster import Api, MockCluster, mock_cluster

Code = ck.KafkaError
PLACE = ("t", 0)


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as made:
        made.topic("t", 1)
        made.topic("out", 1)
        made.coordinate("group", "g", 1)
        made.coordinate("transaction", "x", 2)
        yield made


@pytest.fixture
def fabric(cluster: MockCluster) -> Iterator[KafkaFabric]:
    # The mock knows neither the group protocol of Kafka 4 by itself nor many topic settings: the classic one it is.
    made = KafkaFabric(cluster.bootstrap, {"topic.metadata.refresh.interval.ms": 500})
    yield made
    made.close()


@dataclass
class Owner:
    """What a rebalance told."""

    owned: set[Position] = field(default_factory=set)
    gone: set[Position] = field(default_factory=set)

    def starting(self, positions: Sequence[Position]) -> None: ...

    def assigned(self, positions: Sequence[Position]) -> None:
        self.owned |= set(positions)

    def revoked(self, positions: Sequence[Position]) -> None:
        self.owned -= set(positions)

    def lost(self, positions: Sequence[Position]) -> None:
        self.owned -= set(positions)
        self.gone |= set(positions)


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def consumer(fabric: KafkaFabric, owner: Owner) -> Iterator[KafkaConsumer]:
    made = fabric.consumer("g")
    made.subscribe(["t"], owner)
    wait_for(lambda: made.poll(1, 0.1) or owner.owned, "the partition")
    yield made
    made.close()


@pytest.fixture
def transaction(fabric: KafkaFabric) -> Iterator[KafkaTransaction]:
    made = fabric.transactional("x")
    yield made
    made.close()


def send(transaction: KafkaTransaction, value: bytes = b"v") -> None:
    transaction.begin()
    transaction.send("out", value)


def values(fabric: KafkaFabric, topic: str, count: int) -> list[bytes | None]:
    reader = fabric.consumer()
    reader.assign({(topic, 0): EARLIEST})
    found: list[bytes | None] = []

    def read() -> bool:
        found.extend(m.value() for m in reader.poll(100, 0.1))
        return len(found) >= count

    wait_for(read, "the records")
    reader.close()
    return found


# ---------------------------------------------------------------- errors that pass


@pytest.mark.parametrize(
    ("api", "code"),
    [
        (Api.PRODUCE, Code.REQUEST_TIMED_OUT),
        (Api.PRODUCE, Code.NOT_LEADER_FOR_PARTITION),
        (Api.PRODUCE, Code.NOT_ENOUGH_REPLICAS),
        (Api.PRODUCE, Code._TRANSPORT),
        (Api.ADD_PARTITIONS, Code.CONCURRENT_TRANSACTIONS),
        (Api.ADD_PARTITIONS, Code.COORDINATOR_LOAD_IN_PROGRESS),
        (Api.ADD_OFFSETS, Code.NOT_COORDINATOR),
        (Api.ADD_OFFSETS, Code._TRANSPORT),
        (Api.TRANSACTION_OFFSETS, Code.COORDINATOR_LOAD_IN_PROGRESS),
        (Api.TRANSACTION_OFFSETS, Code.REQUEST_TIMED_OUT),
        (Api.END_TRANSACTION, Code.COORDINATOR_NOT_AVAILABLE),
        (Api.END_TRANSACTION, Code._TRANSPORT),
    ],
)
def test_what_passes_is_tried_again_and_commits(
    cluster: MockCluster,
    fabric: KafkaFabric,
    consumer: KafkaConsumer,
    transaction: KafkaTransaction,
    api: Api,
    code: int,
) -> None:
    cluster.fail(api, code, 2)
    send(transaction)
    transaction.commit({PLACE: 3}, consumer)
    assert values(fabric, "out", 1) == [b"v"]


@pytest.mark.parametrize(
    "code", [Code.CONCURRENT_TRANSACTIONS, Code.NOT_COORDINATOR, Code.COORDINATOR_NOT_AVAILABLE]
)
def test_taking_over_waits_for_what_settles(cluster: MockCluster, fabric: KafkaFabric, code: int) -> None:
    cluster.fail(Api.INIT_PRODUCER_ID, code, 2)
    made = fabric.transactional("x")
    send(made)
    made.abort()
    made.close()


def test_a_coordinator_that_moves_is_followed(
    cluster: MockCluster, consumer: KafkaConsumer, transaction: KafkaTransaction
) -> None:
    for offset, broker in enumerate((1, 2, 1)):
        cluster.coordinate("transaction", "x", broker)
        cluster.coordinate("group", "g", 3 - broker)
        send(transaction)
        transaction.commit({PLACE: offset}, consumer)


@pytest.mark.parametrize("single_flight", [False, True])
def test_records_keep_their_order_over_refusals(
    cluster: MockCluster, fabric: KafkaFabric, single_flight: bool
) -> None:
    cluster.topic("beside", 1)
    cluster.fail(Api.PRODUCE, Code.REQUEST_TIMED_OUT, 3)
    producer = fabric.producer(single_flight=single_flight)
    told: list[object] = []
    for n in range(50):
        for topic in ("out", "beside"):
            producer.send(topic, b"%d" % n, on_delivery=lambda error, _: told.append(error))
        if n % 10 == 0:
            producer.poll(0.02)
    assert producer.flush(30) == 0
    producer.close()
    assert told == [None] * 100
    for topic in ("out", "beside"):
        assert values(fabric, topic, 50) == [b"%d" % n for n in range(50)]


# ---------------------------------------------------------------- fenced


@pytest.mark.parametrize(
    ("api", "code"),
    [
        (Api.END_TRANSACTION, Code.INVALID_PRODUCER_EPOCH),
        (Api.END_TRANSACTION, Code.PRODUCER_FENCED),
        (Api.ADD_OFFSETS, Code.PRODUCER_FENCED),
        (Api.TRANSACTION_OFFSETS, Code.ILLEGAL_GENERATION),
        (Api.TRANSACTION_OFFSETS, Code.UNKNOWN_MEMBER_ID),
        (Api.TRANSACTION_OFFSETS, Code.FENCED_INSTANCE_ID),
    ],
)
def test_who_is_fenced_is_told_so_and_the_next_one_works(
    cluster: MockCluster, fabric: KafkaFabric, consumer: KafkaConsumer, api: Api, code: int
) -> None:
    fenced = fabric.transactional("x")
    cluster.fail(api, code)
    send(fenced)
    with pytest.raises(FencedError, match="moved to another process"):
        fenced.commit({PLACE: 3}, consumer)
    fenced.close()
    cluster.heal(api)
    after = fabric.transactional("x")
    send(after, b"w")
    after.commit({PLACE: 4}, consumer)
    after.close()


def test_a_producer_that_is_fenced_while_it_writes_says_so(
    cluster: MockCluster, fabric: KafkaFabric, consumer: KafkaConsumer
) -> None:
    fenced = fabric.transactional("x")
    cluster.fail(Api.PRODUCE, Code.INVALID_PRODUCER_EPOCH)
    send(fenced)
    with pytest.raises(FencedError):
        fenced.commit({PLACE: 1}, consumer)
    fenced.close()


def test_records_that_wait_behind_a_request_cost_no_cpu(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idempotent producer spins then, a core for each broker that is slow: stages that may do without have another."""
    told: list[dict[str, Any]] = []
    told_of = {"statistics.interval.ms": 100, "stats_cb": lambda text: told.append(json.loads(text))}
    fabric = KafkaFabric(cluster.bootstrap, told_of)
    producer = fabric.producer(latency_first=False, single_flight=True)
    producer.send("out", b"first")
    producer.flush(10)
    for broker in (1, 2):
        cluster.slow(broker, 60_000)
    rounds = []
    for _ in range(20):  # some go, the others wait for their answer
        for _ in range(20):
            producer.send("out", b"more")
        told.clear()
        wait_for(lambda: producer.poll(0.01) or told, "statistics")
        rounds.append(sum(b["wakeups"] for b in told[-1]["brokers"].values()))
    waiting = told[-1]["msg_cnt"] - sum(b["waitresp_msg_cnt"] for b in told[-1]["brokers"].values())
    assert waiting >= 300
    assert rounds[-1] - rounds[0] < 10_000, "it spins"
    assert isinstance(producer, KafkaProducer)
    producer.client.purge()
    fabric.close()


# ---------------------------------------------------------------- errors that stay


@pytest.mark.parametrize("code", [Code.REQUEST_TIMED_OUT, Code.COORDINATOR_NOT_AVAILABLE])
def test_an_outcome_that_nobody_tells_breaks_the_producer_and_not_the_next(
    cluster: MockCluster,
    fabric: KafkaFabric,
    consumer: KafkaConsumer,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    monkeypatch.setattr(kafka_transactions, "STEP_TIMEOUT_S", 1.0)
    silenced = fabric.transactional("x")
    cluster.fail(Api.END_TRANSACTION, code, 2_000)
    send(silenced)
    with pytest.raises(TransportError, match="committing transaction 'x'"):
        silenced.commit({PLACE: 1}, consumer)
    cluster.heal(Api.END_TRANSACTION)
    silenced.close()
    after = fabric.transactional("x")
    send(after)
    after.commit({PLACE: 2}, consumer)
    after.close()


def test_a_group_whose_coordinator_is_gone_does_not_hold_a_transaction_for_ever(
    cluster: MockCluster, fabric: KafkaFabric, consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka's own call never returns then."""
    held = fabric.transactional("x")
    send(held)
    held.commit({PLACE: 1}, consumer)  # the coordinator is known from here on
    monkeypatch.setattr(kafka_transactions, "STEP_TIMEOUT_S", 1.0)
    cluster.down(1)
    held.begin()
    with pytest.raises(TransportError, match="no answer within 1 s"):
        held.commit({PLACE: 2}, consumer)
    held.close()
    cluster.up(1)
    monkeypatch.undo()
    after = fabric.transactional("x")
    send(after)
    after.commit({PLACE: 3}, consumer)
    after.close()


def test_a_call_that_hangs_ends_some_time_after_the_broker_is_back_and_its_client_with_it(
    cluster: MockCluster, fabric: KafkaFabric, consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each broker that was away would leave a client for each partition behind, with its threads and connections."""
    usual = kafka_transactions.SETTINGS
    soon = {**usual, "connections.max.idle.ms": usual["connections.max.idle.ms"] // 10}
    monkeypatch.setattr(kafka_transactions, "SETTINGS", soon)
    held = fabric.transactional("x")
    send(held)
    held.commit({PLACE: 1}, consumer)
    monkeypatch.setattr(kafka_transactions, "STEP_TIMEOUT_S", 1.0)
    cluster.down(1)
    held.begin()
    with pytest.raises(TransportError, match="no answer within 1 s"):
        held.commit({PLACE: 2}, consumer)
    held.close()
    cluster.up(1)
    wait_for(lambda: not hasattr(held, "client"), "the end of its client")


def test_offsets_are_committed_within_a_rebalance(
    cluster: MockCluster, fabric: KafkaFabric, transaction: KafkaTransaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the thread that the consumer calls back may ask it then: others would wait until the rebalance is over."""
    monkeypatch.setattr(kafka_transactions, "STEP_TIMEOUT_S", 2.0)
    cluster.topic("two", 2)
    first, second = fabric.consumer("g"), fabric.consumer("g")

    class Committing(Owner):
        def revoked(self, positions: Sequence[Position]) -> None:
            super().revoked(positions)
            send(transaction)
            transaction.commit(dict.fromkeys(positions, 7), first)
            committed.extend(positions)

    committed: list[Position] = []
    owners = Committing(), Owner()
    first.subscribe(["two"], owners[0])
    wait_for(lambda: first.poll(1, 0.1) or len(owners[0].owned) == 2, "both partitions")
    second.subscribe(["two"], owners[1])
    wait_for(lambda: first.poll(1, 0.1) or second.poll(1, 0.1) or owners[1].owned, "one partition")
    assert committed
    second.close()
    monkeypatch.setattr(Committing, "revoked", Owner.revoked)
    first.close()


def test_who_may_not_is_told(cluster: MockCluster, fabric: KafkaFabric) -> None:
    cluster.fail(Api.INIT_PRODUCER_ID, Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    with pytest.raises(TransportError, match="taking over transaction 'x'"):
        fabric.transactional("x")


def test_an_offset_that_is_not_in_the_log_ends_the_reading(cluster: MockCluster, fabric: KafkaFabric) -> None:
    producer = fabric.producer()
    producer.send("t", b"v")
    producer.close()
    reader = fabric.consumer()
    cluster.fail(Api.FETCH, Code.OFFSET_OUT_OF_RANGE, 1)
    reader.assign({PLACE: 0})
    with pytest.raises(OffsetOutOfRangeError, match="no longer in the log"):
        wait_for(lambda: reader.poll(10, 0.1) and None, "the error")
    reader.close()


# ---------------------------------------------------------------- groups


def test_committed_offsets_that_cannot_be_asked_end_the_poll_and_the_close_is_clean(
    cluster: MockCluster, fabric: KafkaFabric, owner: Owner
) -> None:
    cluster.fail(Api.OFFSET_FETCH, Code.GROUP_AUTHORIZATION_FAILED, 20)
    made = fabric.consumer("g")
    made.subscribe(["t"], owner)
    with pytest.raises(TransportError, match="asking the"):
        wait_for(lambda: made.poll(1, 0.1) and None, "the error")
    made.close()
    assert owner.owned == set()


@pytest.mark.parametrize("code", [Code.NOT_COORDINATOR, Code.COORDINATOR_NOT_AVAILABLE, Code._TRANSPORT])
def test_an_offset_refused_for_now_is_committed_later(
    cluster: MockCluster, consumer: KafkaConsumer, code: int
) -> None:
    cluster.fail(Api.OFFSET_COMMIT, code, 3)
    consumer.commit({PLACE: 7}, wait=False)

    def through() -> bool:
        consumer.poll(1, 0.05)
        consumer.commit({}, wait=False)
        return consumer.committed([PLACE]) == {PLACE: 7}

    wait_for(through, "the commit")


def test_a_commit_that_is_never_answered_is_sent_again(
    consumer: KafkaConsumer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where nothing newer is to be committed does anybody notice."""
    monkeypatch.setattr(kafka_clients, "COMMIT_ANSWER_S", 0.001)
    client = consumer.client
    consumer.client = Lost()
    consumer.commit({PLACE: 5}, wait=False)
    consumer.commit({PLACE: 7}, wait=False)
    consumer.client = client

    def through() -> bool:
        consumer.poll(1, 0.05)
        consumer.commit({}, wait=False)
        return consumer.committed([PLACE]) == {PLACE: 7}

    wait_for(through, "the commit")
    assert f"no answer to a commit of [{PLACE}]" in caplog.text
    monkeypatch.undo()
    consumer.commit({}, wait=False)
    consumer.poll(1, 0.05)
    asked: list[object] = []
    monkeypatch.setattr(consumer, "client", SimpleNamespace(commit=lambda **told: asked.append(told)))
    consumer.commit({}, wait=False)
    monkeypatch.undo()
    assert not asked, "what was answered is not sent for ever"


class Lost:
    """A client that takes commits and never says what became of them."""

    def commit(self, *, offsets: object, asynchronous: bool) -> None: ...


def test_a_member_that_the_group_forgot_loses_its_partitions(
    cluster: MockCluster, consumer: KafkaConsumer, owner: Owner
) -> None:
    cluster.fail(Api.HEARTBEAT, Code.UNKNOWN_MEMBER_ID)
    wait_for(lambda: consumer.poll(1, 0.05) or owner.gone, "the loss")
    wait_for(lambda: consumer.poll(1, 0.05) or owner.owned, "the partition again")
