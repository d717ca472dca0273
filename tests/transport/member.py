"""A member of a group, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dataflow.transport.api import Position
from dataflow.transport.kafka import KafkaFabric


class Member:
    """Knows what it owns; subscribes anew when `wanted` changes; until it is closed."""

    def __init__(
        self, fabric: KafkaFabric, group: str, topics: Sequence[str], *, together: bool = False
    ) -> None:
        self.owned: set[Position] = set()
        self.wanted = topics
        self.consumer = fabric.consumer(group, together=together)
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
