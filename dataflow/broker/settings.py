"""What an embedded broker is told: `BrokerSettings`, and the Kafka properties that follow from them (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KAFKA_VERSION = "4.3.0"
HOST = "127.0.0.1"
MAXIMUM_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """One embedded broker (or `nodes` of them as a static quorum).

    `data` holds lock, state and, unless `ephemeral`, the topics; `port` 0 chooses a free one and needs one node.
    `properties` are Kafka settings that win over ours. `doors` gives nodes, by id from 1, a second listener:
    (the port it listens on, the port its clients are told), for a proxy in between.
    """

    data: Path
    port: int = 0
    ephemeral: bool = False
    heap_mb: int = 384
    nodes: int = 1
    ready_timeout_s: float = 60.0
    properties: Mapping[str, str] = field(default_factory=dict)
    doors: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one node listens: clients on `port`, the metadata quorum on `controller_port`, loopback only."""

    node_id: int
    port: int
    controller_port: int

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"


def server_properties(
    settings: BrokerSettings, address: Address, addresses: Iterable[Address]
) -> dict[str, str]:
    """Kafka's configuration of one combined KRaft node. The log folder is relative to the node's own folder."""
    voters = ",".join(f"{node.node_id}@{HOST}:{node.controller_port}" for node in addresses)
    replicas = str(min(settings.nodes, 3))
    in_sync = "2" if settings.nodes >= 3 else "1"
    return {
        "node.id": str(address.node_id),
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": f"PLAINTEXT://{address.bootstrap},CONTROLLER://{HOST}:{address.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{address.bootstrap}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": "kafka",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        **_GROUPS,
        **_SESSIONS,
        **_STORAGE,
        **_SMALL,
        **_door(settings, address),
        **settings.properties,
    }


def _door(settings: BrokerSettings, address: Address) -> dict[str, str]:
    """The second listener of a node that has one."""
    if address.node_id not in settings.doors:
        return {}
    listens, told = settings.doors[address.node_id]
    own = f"PLAINTEXT://{address.bootstrap}"
    return {
        "listeners": f"{own},DOOR://{HOST}:{listens},CONTROLLER://{HOST}:{address.controller_port}",
        "advertised.listeners": f"{own},DOOR://{HOST}:{told}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,DOOR:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }


# A killed member is noticed within six seconds and nobody waits for late joiners. The broker refuses values below
# its own minima (heartbeat 5 s, session 45 s), so these come down too. The assignment interval would batch
# rebalances by a second each.
_GROUPS = {
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.assignors": "uniform,range",
    "group.consumer.assignment.interval.ms": "0",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.share.assignment.interval.ms": "0",
    "group.streams.assignment.interval.ms": "0",
}

# A node that was killed may register again only when its old session is over: with Kafka's own 9 s a start after
# kill -9 would take 11 s.
_SESSIONS = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}

# Topics are made as declared, never by a typing error. Offsets outlive the records they point to, so that an idle
# project does not start again from the beginning.
_STORAGE = {
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "message.max.bytes": str(MAXIMUM_MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MAXIMUM_MESSAGE_BYTES),
    "log.retention.hours": "168",
    "log.retention.bytes": str(8 * 1024**3),
    "log.retention.check.interval.ms": "30000",
    "log.segment.bytes": str(128 * 1024**2),
    "log.index.size.max.bytes": str(2 * 1024**2),
    "offsets.retention.minutes": str(30 * 24 * 60),
}

# One person's broker on a few cores: few internal partitions and threads. The cleaner would take 128 MB of the
# heap for itself.
_SMALL = {
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
    "group.coordinator.threads": "2",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024**2),
}


def properties_text(properties: Mapping[str, str]) -> str:
    """`properties` as a Java properties file: ASCII only, everything else as its UTF-16 escape."""
    return "".join(f"{name}={_escaped(value)}\n" for name, value in properties.items())


def parse_properties(text: str) -> dict[str, str]:
    """The plain subset of a properties file that Kafka writes itself (meta.properties): name=value and comments."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def _escaped(value: str) -> str:
    plain = value.replace("\\", "\\\\")
    units = plain.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)
