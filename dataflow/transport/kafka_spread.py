"""One producer made of several, so that the requests to several topics are under way side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dataflow.transport.api import Delivered, Header
from dataflow.transport.kafka_clients import KafkaProducer

# Each client is a connection and two threads; what is written to more topics than these shares them.
MAX_CLIENTS: Final = 4


class SpreadProducer:
    """A `Producer` whose topics are dealt out to at most `most` clients, made as topics come.

    librdkafka writes one partition a request. With one of them under way at a time, the records that one batch gives on
    five edges take five trips to the broker one after another; a topic's own records keep their order all the same.
    """

    def __init__(self, make: Callable[[], KafkaProducer], most: int = MAX_CLIENTS) -> None:
        self._make = make
        self._most = most
        self._clients: list[KafkaProducer] = []
        self._homes: dict[str, KafkaProducer] = {}
        self._home(None)  # settings that the client refuses are known now, not with the first record

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
        home = self._homes.get(topic) or self._home(topic)
        home.send(topic, value, key, headers, partition, on_delivery, timestamp_ms)

    def _home(self, topic: str | None) -> KafkaProducer:
        taken = len(self._homes)
        if taken >= len(self._clients) and taken < self._most:
            self._clients.append(self._make())
        home = self._clients[taken % len(self._clients)]
        if topic is not None:
            self._homes[topic] = home
        return home

    def poll(self, timeout_s: float) -> int:
        served = sum(client.poll(0) for client in self._clients)
        if served or not timeout_s:
            return served
        # One queue can be waited on, of a client with something under way; the others' reports are there a moment later.
        waited = next((client for client in self._clients if client.under_way), self._clients[0])
        if not waited.poll(timeout_s):
            return 0
        return 1 + sum(client.poll(0) for client in self._clients if client is not waited)

    def flush(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        return sum(client.flush(max(deadline - time.monotonic(), 0.0)) for client in self._clients)

    def close(self) -> None:
        for client in self._clients:
            client.close()
