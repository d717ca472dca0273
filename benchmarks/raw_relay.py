"""Half of the baseline of `sync-plain`: a process that copies each record of a topic to another at once.

python -m benchmarks.raw_relay BOOTSTRAP SOURCE SINK
"""

from __future__ import annotations

import signal
import sys

from benchmarks.raw_trip import consumer_at_end, fast_producer


def main(bootstrap: str, source: str, sink: str) -> None:
    """No group, no commits, one header: the least that a second process can do."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    consumer, producer = consumer_at_end(bootstrap, source), fast_producer(bootstrap)
    print("ready", flush=True)
    while not stopping:
        first = consumer.poll(0.05)
        if first is None:
            continue
        for message in (first, *consumer.consume(499, 0)):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            producer.produce(sink, message.value(), message.key(), 0, headers=message.headers())
        producer.poll(0)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
