"""Baseline of `guarantees`: the loop of `raw_loop`, but outputs and offsets move together, a transaction each 100 ms.

python -m benchmarks.raw_transactions BOOTSTRAP SOURCE SINK GROUP
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Any, Final

from confluent_kafka import Consumer, Producer

COMMIT_S: Final = 0.1
STEP_S: Final = 10.0


def transactional_producer(bootstrap: str, name: str, **settings: Any) -> Any:
    """Ready to begin. Its retries are quick: the default wait of 100 ms would be the p99 of every commit."""
    made = Producer(
        {
            "bootstrap.servers": bootstrap, "socket.nagle.disable": True, "transactional.id": name,
            "transaction.timeout.ms": 10_000, "retry.backoff.ms": 2, "retry.backoff.max.ms": 20, **settings,
        }
    )  # fmt: skip
    made.init_transactions(STEP_S)
    return made


def commit(producer: Any, consumer: Any) -> None:
    """Commit what was produced with the positions that `consumer` has come to."""
    positions = consumer.position(consumer.assignment())
    producer.send_offsets_to_transaction(
        [p for p in positions if p.offset >= 0], consumer.consumer_group_metadata(), STEP_S
    )
    producer.commit_transaction(STEP_S)


def main(bootstrap: str, source: str, sink: str, group: str) -> None:
    """Copy records with their headers until SIGTERM."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap, "socket.nagle.disable": True, "group.id": group,
            "group.protocol": "consumer", "auto.offset.reset": "earliest", "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 0,
        }
    )  # fmt: skip
    queue = {"linger.ms": 5, "compression.type": "lz4", "queue.buffering.max.messages": 500_000}
    producer = transactional_producer(bootstrap, group, **queue)
    consumer.subscribe([source])
    produce = producer.produce
    committed = time.monotonic()
    begun = False
    while not stopping:
        first = consumer.poll(0.05)
        if first is not None:
            if not begun:
                producer.begin_transaction()
                begun = True
            for message in (first, *consumer.consume(499, 0)):
                if message.error() is not None:
                    raise SystemExit(str(message.error()))
                produce(sink, message.value(), message.key(), message.partition(), headers=message.headers())
        producer.poll(0)
        now = time.monotonic()
        if begun and now - committed >= COMMIT_S:
            commit(producer, consumer)
            committed, begun = now, False
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
