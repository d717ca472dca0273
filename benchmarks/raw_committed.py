"""Half of the baseline of a committed answer: records are copied in transactions, and answered once those are through.

python -m benchmarks.raw_committed BOOTSTRAP SOURCE OUTPUT REPLIES GROUP

What has come is one transaction: its copies in OUTPUT and the offsets of SOURCE. Copies in REPLIES follow, outside of it:
the partitions that a pipeline of one stage touches between the request's record and the reply's.
"""

from __future__ import annotations

import signal
import sys

from confluent_kafka import Consumer

from benchmarks.raw_transactions import commit, transactional_producer
from benchmarks.raw_trip import fast_producer


def main(bootstrap: str, source: str, output: str, replies: str, group: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap, "socket.nagle.disable": True, "group.id": group,
            "group.protocol": "consumer", "auto.offset.reset": "latest", "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 0, "fetch.wait.max.ms": 100,
        }
    )  # fmt: skip
    producer = transactional_producer(bootstrap, group, **{"linger.ms": 0})
    answers = fast_producer(bootstrap)
    consumer.subscribe([source], on_assign=lambda *_: print("ready", flush=True))
    while not stopping:
        first = consumer.poll(0.05)
        answers.poll(0)
        if first is None:
            continue
        messages = (first, *consumer.consume(499, 0))
        producer.begin_transaction()
        for message in messages:
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            producer.produce(output, message.value(), message.key(), 0, headers=message.headers())
        commit(producer, consumer)
        for message in messages:
            answers.produce(replies, message.value(), message.key(), 0, headers=message.headers())
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
