"""Groups of the classic protocol, which most clusters have: nobody is asked for sessions as short as ours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.transport.member import Member

pytestmark = pytest.mark.broker


@pytest.fixture
def classic(bootstrap: str) -> Iterator[KafkaFabric]:
    fabric = KafkaFabric(bootstrap, {"group.protocol": "classic"})
    yield fabric
    fabric.close()


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
        members.append(Member(classic, unique, topics, together=True))
        wait_for(shared, "each its share")
    members.pop(0).close()
    wait_for(shared, "each its share again")
    for member in members:
        member.close()
