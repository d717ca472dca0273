"""Half of the baseline of `sync-plain`: round trips over two topics through `raw_relay`, so many at a time.

python -m benchmarks.raw_trip BOOTSTRAP SOURCE SINK CONCURRENCY WARM_UP COUNT
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

VALUE = bytes(128)  # as large as the request's record
_COMMON = {"socket.nagle.disable": True}


def fast_producer(bootstrap: str) -> Any:
    return Producer(
        {**_COMMON, "bootstrap.servers": bootstrap, "linger.ms": 0, "acks": "all", "enable.idempotence": True}
    )


def consumer_at_end(bootstrap: str, topic: str) -> Any:
    """A consumer of partition 0, after its last record."""
    made = Consumer(
        {
            **_COMMON, "bootstrap.servers": bootstrap, "group.id": "raw", "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 0, "fetch.wait.max.ms": 100,
        }
    )  # fmt: skip
    _, end = made.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    made.assign([TopicPartition(topic, 0, end)])
    return made


def main(bootstrap: str, source: str, sink: str, concurrency: int, warm_up: int, count: int) -> None:
    """Print the times of `count` trips in ms, and how long all of them took."""
    consumer, producer = consumer_at_end(bootstrap, sink), fast_producer(bootstrap)
    sent: dict[bytes, float] = {}
    clock = time.perf_counter
    total = warm_up + count
    times: list[float] = []
    started = clock()
    number = 0

    def send() -> None:
        nonlocal number
        key = str(number).encode()
        number += 1
        sent[key] = clock()
        producer.produce(source, VALUE, key, 0, headers=[("df-id", key)])

    for _ in range(concurrency):
        send()
    while len(times) < total:
        first = consumer.poll(0.05)
        if first is None:
            continue
        for message in (first, *consumer.consume(499, 0)):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            times.append(clock() - sent.pop(message.key()))
            if len(times) == warm_up:
                started = clock()
            if number < total:
                send()
        producer.poll(0)
    seconds = clock() - started
    producer.flush(10)  # a client that ends with reports under way says so, after the line that is read
    print(json.dumps({"seconds": seconds, "latencies_ms": [round(t * 1e3, 4) for t in times[warm_up:]]}))
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
