"""Writes the input: a stock idempotent producer on a thread of its own, as far as it is let."""

from __future__ import annotations

import io
import random
import threading
import time
import uuid
from typing import Any, Final

import confluent_kafka as ck
import fastavro

from faults.story import Story
from faults.wire import QUIET, Schemas

_STEP: Final = 200
_TURN_S: Final = 0.02


class Feeder:
    """Writes records 0, 1, ... of a story to inputs. `allow` says how many may be written by now, of all together."""

    def __init__(self, bootstrap: str, schemas: Schemas, story: Story, topics: dict[str, float]) -> None:
        self._story = story
        self._topics = topics
        self._schemas = {t: schemas.like(set(self._event(t, 0))) for t in topics}
        self._question = schemas.like({"n"})
        self._producer = ck.Producer(
            {
                **QUIET,
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "compression.type": "lz4",
                "delivery.timeout.ms": 300_000,
                "queue.buffering.max.messages": 20_000,
            }
        )
        self._allowed = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.written = dict.fromkeys(topics, 0)
        self.poison: dict[str, list[tuple[bytes, bytes]]] = {t: [] for t in topics}
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def _event(self, topic: str, n: int) -> dict[str, Any]:
        return self._story.kept(n) if topic == "kept.events" else self._story.event(n)

    def allow(self, count: int) -> None:
        """Let it write up to `count` records, each input its share of them."""
        self._allowed = max(self._allowed, min(count, self._story.records))

    def send_poison(self, count: int) -> None:
        """Write what is no record at all to every input, between the others."""
        with self._lock:
            for topic, sent in self.poison.items():
                for _ in range(count):
                    number = len(sent)
                    key, value = f"w{number % 97}".encode(), b"\x00\xffpoison %d" % number
                    sent.append((key, value))
                    self._send(topic, key, value, [])

    def send_foreign(self, topic: str, partitions: int, count: int, chance: random.Random) -> None:
        """Write questions that no caller asked to a topic of requests, a few at a time."""
        fingerprint, schema = self._question
        for _ in range(count):
            body = io.BytesIO()
            fastavro.schemaless_writer(body, schema, {"n": chance.randrange(1 << 40)})
            head = [
                ("df-schema", fingerprint),
                ("df-id", str(uuid.UUID(int=chance.getrandbits(128))).encode()),
            ]
            with self._lock:
                self._producer.produce(
                    topic,
                    body.getvalue(),
                    None,
                    chance.randrange(partitions),
                    headers=head,
                    on_delivery=self._delivered,
                )
            time.sleep(chance.uniform(0, 0.02))

    @property
    def done(self) -> bool:
        """Whether all that is allowed is written and acknowledged."""
        behind = any(self.written[t] < int(self._allowed * share) for t, share in self._topics.items())
        return not behind and len(self._producer) == 0

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.flush(60)

    def _run(self) -> None:
        while not self._stop.wait(_TURN_S):
            for topic, share in self._topics.items():
                end = min(int(self._allowed * share), self.written[topic] + _STEP)
                with self._lock:
                    for n in range(self.written[topic], end):
                        self._write(topic, n)
                self.written[topic] = end
            self._producer.poll(0)

    def _write(self, topic: str, n: int) -> None:
        fingerprint, schema = self._schemas[topic]
        event = self._event(topic, n)
        body = io.BytesIO()
        fastavro.schemaless_writer(body, schema, wired(event, schema))
        self._send(topic, event["word"].encode(), body.getvalue(), [("df-schema", fingerprint)])

    def _send(self, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.05)
                time.sleep(0)

    def _delivered(self, error: ck.KafkaError | None, _message: ck.Message) -> None:
        if error is not None:
            self.refused.append(str(error))


def wired(event: dict[str, Any], schema: Any) -> dict[str, Any]:
    """A record as its Avro schema wants it: a tensor is its little-endian bytes."""
    import numpy as np

    tensors = {f["name"] for f in schema["fields"] if f["name"] == "x"}
    return {
        name: np.asarray(value, "<f4").tobytes() if name in tensors else value
        for name, value in event.items()
    }
