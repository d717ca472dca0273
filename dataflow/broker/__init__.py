"""The embedded broker: Apache Kafka in KRaft mode as a child process, from Python alone."""

from dataflow.broker.jars import Progress
from dataflow.broker.server import Broker, BrokerStatus, Cluster, Node, log_files, logs, status, stop
from dataflow.broker.settings import BrokerSettings

__all__ = [
    "Broker",
    "BrokerSettings",
    "BrokerStatus",
    "Cluster",
    "Node",
    "Progress",
    "log_files",
    "logs",
    "status",
    "stop",
]
