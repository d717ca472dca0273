"""Several clients as one producer: each topic has its own, and what any of them is told is served."""

from __future__ import annotations

import pytest

from dataflow.transport.api import Delivered, Header
from dataflow.transport.kafka_clients import KafkaProducer
from dataflow.transport.kafka_spread import SpreadProducer


class Client(KafkaProducer):
    """A client whose broker answers when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None]] = []
        self.reports: list[Delivered | None] = []
        self.answered = 0
        self.waited: list[float] = []
        self.closed = False

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
        self.sent.append((topic, value))
        self.reports.append(on_delivery)

    @property
    def under_way(self) -> int:
        return len(self.reports)

    def poll(self, timeout_s: float) -> int:
        if timeout_s:
            self.waited.append(timeout_s)
        served, self.answered = self.answered, 0
        for report in self.reports[:served]:
            if report is not None:
                report(None, None)
        del self.reports[:served]
        return served

    def flush(self, timeout_s: float) -> int:
        self.waited.append(timeout_s)
        return len(self.reports)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clients() -> list[Client]:
    return []


@pytest.fixture
def producer(clients: list[Client]) -> SpreadProducer:
    def make() -> Client:
        clients.append(Client())
        return clients[-1]

    return SpreadProducer(make, most=3)


def test_a_topic_stays_with_its_client_and_topics_share_when_there_are_many(
    producer: SpreadProducer, clients: list[Client]
) -> None:
    assert len(clients) == 1  # at once: settings that the client refuses are known before the first record
    for value in (b"1", b"2"):
        for topic in "abcd":
            producer.send(topic, value)
    assert [client.sent for client in clients] == [
        [("a", b"1"), ("d", b"1"), ("a", b"2"), ("d", b"2")],
        [("b", b"1"), ("b", b"2")],
        [("c", b"1"), ("c", b"2")],
    ]


def test_reports_of_all_are_served_and_none_is_waited_for_while_there_are_some(
    producer: SpreadProducer, clients: list[Client]
) -> None:
    told: list[str] = []
    for topic in "abc":
        producer.send(topic, b"", on_delivery=lambda error, message, topic=topic: told.append(topic))  # type: ignore[misc]
    clients[0].answered = clients[2].answered = 1
    assert producer.poll(0.5) == 2
    assert told == ["a", "c"]
    assert not any(client.waited for client in clients)


def test_one_with_something_under_way_is_waited_for(producer: SpreadProducer, clients: list[Client]) -> None:
    for topic in "ab":
        producer.send(topic, b"")
    clients[0].answered = 1
    assert producer.poll(0) == 1
    assert producer.poll(0.5) == 0
    assert [client.waited for client in clients] == [[], [0.5]]
    assert producer.poll(0) == 0
    assert [client.waited for client in clients] == [[], [0.5]]


def test_flush_counts_what_is_left_everywhere_and_waits_no_longer_than_told(
    producer: SpreadProducer, clients: list[Client]
) -> None:
    for topic in "abb":
        producer.send(topic, b"")
    assert producer.flush(0.5) == 3
    assert all(0 <= waited <= 0.5 for client in clients for waited in client.waited)
    producer.close()
    assert all(client.closed for client in clients)
