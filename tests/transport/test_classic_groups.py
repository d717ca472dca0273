"""Groups of the classic protocol, which most clusters have: nobody is asked for sessions as short as ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest

from dataflow.transport.api import Position
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for

pytestmark = pytest.mark.broker


@pytest.fixture
def classic(bootstrap: str) -> Iterator[KafkaFabric]:
    fabric = KafkaFabric(bootstrap, {"group.protocol": "classic"})
    yield fabric
    fabric.close()


class Member:
    """A member of a group on a thread of its own, until closed."""

    def __init__(self, fabric: KafkaFabric, group: str, topics: Sequence[str]) -> None:
        self.owned: set[Position] = set()
        self._consumer = fabric.consumer(group, together=True)
        self._consumer.subscribe(topics, self)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._consumer.poll(10, 0.02)
        self._consumer.close()

    def starting(self, positions: Sequence[Position]) -> None: ...

    def assigned(self, positions: Sequence[Position]) -> None:
        self.owned |= set(positions)

    def revoked(self, positions: Sequence[Position]) -> None:
        self.owned -= set(positions)

    lost = revoked

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_member_has_the_same_partitions_of_all_topics(classic: KafkaFabric, unique: str) -> None:
    topics = [f"{unique}.{name}" for name in ("one", "other")]
    for topic in topics:
        classic.admin().create(topic, 4, {})
    members: list[Member] = []

    def shared() -> bool:
        numbers = [sorted({number for _, number in m.owned}) for m in members]
        whole = all(
            m.owned == {(t, n) for t in topics for n in own} for m, own in zip(members, numbers, strict=True)
        )
        return whole and all(numbers) and sorted(chain(*numbers)) == [0, 1, 2, 3]

    for _ in range(3):
        members.append(Member(classic, unique, topics))
        wait_for(shared, "each its share")
    members.pop(0).close()
    wait_for(shared, "each its share again")
    for member in members:
        member.close()
