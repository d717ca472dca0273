"""The answer to a heartbeat is lost, and in it what the member was to give up: it must not be lost with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dataflow.broker import Broker, BrokerSettings
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.transport.member import Member


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
        one = Member(fabric, "group", ["shared"])
        for _ in range(2):
            wait_for(lambda: len(one.owned) == 2, "all for one")
            share_while_frozen(fabric, broker.pid, one)
        one.close()
        fabric.close()


def share_while_frozen(fabric: KafkaFabric, pid: int, one: Member) -> None:
    two = Member(fabric, "group", ["other"])
    wait_for(lambda: two.owned == {("other", 0)}, "two members")
    os.kill(pid, signal.SIGSTOP)
    try:
        two.wanted = ["other", "shared"]
        wait_for(lambda: one.consumer._signs.unheard, "a heartbeat without an answer")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(one.owned) == 1 and len(two.owned) == 2, "each its share")
    two.close()
