"""Where a key lives: the partitioner of Java clients, Faust and librdkafka's `murmur2_random`."""

from __future__ import annotations

from confluent_kafka import murmur2


def murmur2_partition(key: bytes, partitions: int) -> int:
    """Partition of `key` among `partitions`, as every producer of ours chooses it."""
    return int(murmur2(key, partitions))
