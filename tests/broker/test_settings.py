"""Kafka properties that follow from settings."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dataflow.broker.settings import (
    Address,
    BrokerSettings,
    parse_properties,
    properties_text,
    server_properties,
)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_written_as_ascii_that_java_reads_back(value: str) -> None:
    text = properties_text({"name": value})
    assert text.isascii()
    written = text.removeprefix("name=").removesuffix("\n")
    assert "\n" not in written
    units = written.encode("ascii").decode("unicode_escape").encode("utf-16-be", "surrogatepass")
    assert units.decode("utf-16-be") == value


def test_what_kafka_writes_is_read() -> None:
    text = "#\n#Sun Nov 22\nnode.id=1\nversion=1\n cluster.id = ab-c \n\nnonsense\n"
    assert parse_properties(text) == {"node.id": "1", "version": "1", "cluster.id": "ab-c"}


def test_one_node_listens_on_loopback_only_and_needs_no_second() -> None:
    address = Address(1, 9092, 9093)
    properties = server_properties(BrokerSettings(Path("x")), address, [address])
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:9093"
    assert {value for name, value in properties.items() if name.endswith("replication.factor")} == {"1"}
    assert properties["group.consumer.heartbeat.interval.ms"] == "500"
    assert properties["group.consumer.session.timeout.ms"] == "6000"


def test_three_nodes_are_a_static_quorum_that_survives_one() -> None:
    addresses = [Address(number, 9000 + number, 9100 + number) for number in (1, 2, 3)]
    properties = server_properties(BrokerSettings(Path("x"), nodes=3), addresses[1], addresses)
    assert properties["node.id"] == "2"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:9101,2@127.0.0.1:9102,3@127.0.0.1:9103"
    assert {value for name, value in properties.items() if name.endswith("replication.factor")} == {"3"}
    assert properties["min.insync.replicas"] == properties["transaction.state.log.min.isr"] == "2"


def test_the_users_own_settings_win() -> None:
    address = Address(1, 9092, 9093)
    settings = BrokerSettings(Path("x"), properties={"log.retention.hours": "1"})
    assert server_properties(settings, address, [address])["log.retention.hours"] == "1"
