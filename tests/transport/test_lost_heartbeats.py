"""The answer to a heartbeat is lost, and in it what the member was to give up: it must not be lost with it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dataflow.broker import Broker, BrokerSettings
from dataflow.transport.api import Position
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for


class Member:
    """A member of a group, on a thread of its own."""

    def __init__(self, fabric: KafkaFabric, topics: Sequence[str]) -> None:
        self.owned: set[Position] = set()
        self.wanted = topics
        self.consumer = fabric.consumer("group")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        subscribed: Sequence[str] = ()
        while not self._stop.is_set():
            if subscribed != self.wanted:
                subscribed = self.wanted
                self.consumer.subscribe(subscribed, self)
            self.consumer.poll(10, 0.02)
        self.consumer.close()

    def starting(self, positions: Sequence[Position]) -> None: ...

    def assigned(self, positions: Sequence[Position]) -> None:
        self.owned |= set(positions)

    def revoked(self, positions: Sequence[Position]) -> None:
        self.owned -= set(positions)

    lost = revoked

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.broker
def test_what_an_answer_that_came_too_late_said_is_done_all_the_same(
    tmp_path: Path,
) -> None:
    """The broker is frozen; meanwhile another member asks for a share, and then heartbeats give up to wait.

    Without a new start, in most of such rounds the one never hears that it has to give a partition up.
    """
    with Broker(BrokerSettings(data=tmp_path, ephemeral=True)) as broker:
        fabric = KafkaFabric(broker.bootstrap)
        fabric.admin().create("shared", 2, {})
        fabric.admin().create("other", 1, {})
        one = Member(fabric, ["shared"])
        for _ in range(2):
            wait_for(lambda: len(one.owned) == 2, "all for one")
            share_while_frozen(fabric, broker.pid, one)
        one.close()
        fabric.close()


def share_while_frozen(fabric: KafkaFabric, pid: int, one: Member) -> None:
    two = Member(fabric, ["other"])
    wait_for(lambda: two.owned == {("other", 0)}, "two members")
    os.kill(pid, signal.SIGSTOP)
    try:
        two.wanted = ["other", "shared"]
        wait_for(lambda: one.consumer._signs.unheard, "a heartbeat without an answer")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(one.owned) == 1 and len(two.owned) == 2, "each its share")
    two.close()
