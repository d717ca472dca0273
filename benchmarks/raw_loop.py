"""Baseline of `passthrough`: what one would write by hand with confluent-kafka, at-least-once, and no engine.

python -m benchmarks.raw_loop BOOTSTRAP SOURCE SINK GROUP
"""

from __future__ import annotations

import signal
import sys
import time

from confluent_kafka import Consumer, Producer

COMMIT_S = 0.1


def main(bootstrap: str, source: str, sink: str, group: str) -> None:
    """Copy records with their headers until SIGTERM; flush and commit each 100 ms."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    common = {"bootstrap.servers": bootstrap, "socket.nagle.disable": True}
    consumer = Consumer(
        {
            **common, "group.id": group, "group.protocol": "consumer", "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "fetch.queue.backoff.ms": 0,
        }
    )  # fmt: skip
    producer = Producer(
        {
            **common, "acks": "all", "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
    )  # fmt: skip
    consumer.subscribe([source])
    produce = producer.produce
    committed = time.monotonic()
    dirty = False
    while not stopping:
        first = consumer.poll(0.05)
        if first is not None:
            for message in (first, *consumer.consume(499, 0)):
                if message.error() is not None:
                    raise SystemExit(str(message.error()))
                produce(sink, message.value(), message.key(), message.partition(), headers=message.headers())
            dirty = True
        producer.poll(0)
        now = time.monotonic()
        if dirty and now - committed >= COMMIT_S:
            producer.flush()
            consumer.commit(asynchronous=False)
            committed, dirty = now, False
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
