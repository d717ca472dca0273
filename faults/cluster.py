"""The brokers: one or three real ones, each with a door behind the proxy; which of them leads what; full disks."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient

from dataflow.broker import Broker, BrokerSettings, Node
from dataflow.broker.node import free_ports
from faults.proxy import HOST, Proxy

# Transactions left open by the dead are looked for this often: Kafka's own ten seconds on top of the transaction's
# timeout would be most of what readers wait.
_PROPERTIES: Final = {
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
}


class Brokers:
    """`nodes` brokers and the proxy before them. `bootstrap` is the way in for the harness, `door` for the engine."""

    def __init__(self, folder: Path, nodes: int) -> None:
        ports = free_ports()
        doors = {n: (next(ports), next(ports)) for n in range(1, nodes + 1)}
        settings = BrokerSettings(
            folder,
            heap_mb=320 if nodes > 1 else 384,
            nodes=nodes,
            doors=doors,
            properties=_PROPERTIES,
            ready_timeout_s=240,
        )
        self._broker = Broker(settings)
        self._broker.start()
        self.proxy = Proxy({told: listens for listens, told in doors.values()})
        self.bootstrap = self._broker.bootstrap
        self.door = ",".join(f"{HOST}:{told}" for _, told in doors.values())
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    @property
    def nodes(self) -> Sequence[Node]:
        return self._broker.nodes

    def controller(self) -> Node:
        """The node that leads the metadata quorum, by its own files."""
        votes = []
        for node in self.nodes:
            state = json.loads((node.folder / "kafka/__cluster_metadata-0/quorum-state").read_text())
            votes.append((int(state["leaderEpoch"]), int(state["leaderId"])))
        leader = max(votes)[1]
        return next((n for n in self.nodes if n.address.node_id == leader), self.nodes[0])

    def leader(self, topic: str, partition: int) -> Node:
        """The node that leads a partition; of an internal topic, the coordinator of what lives there."""
        found = self.admin.list_topics(topic, timeout=20).topics[topic].partitions[partition].leader
        return next((n for n in self.nodes if n.address.node_id == found), self.nodes[0])

    def internal_partitions(self, topic: str) -> int:
        return len(self.admin.list_topics(topic, timeout=20).topics[topic].partitions)

    def in_sync(self) -> bool:
        """Whether every replica of every partition is in sync."""
        try:
            topics = self.admin.list_topics(timeout=5).topics.values()
        except ck.KafkaException:
            return False
        return all(
            p.leader > 0 and len(p.isrs) == len(p.replicas) for t in topics for p in t.partitions.values()
        )

    def fill_disk(self, node: Node) -> None:
        """Let every write of the node to a file fail from now on, as on a full disk (EFBIG in place of ENOSPC).

        A limit of its process, for which nobody needs to be root; it goes with the process.
        """
        _, hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (0, hard))

    def close(self) -> None:
        self.proxy.close()
        self._broker.kill()
        self._broker.stop()
