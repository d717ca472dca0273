"""A reader beside the run, in a process of its own: read committed, as records come.

``python -m faults.reader BOOTSTRAP FILE TOPIC...`` until its standard input ends; then it reads on to the ends of that
moment and writes what it saw, and in which order, as arrays `TOPIC/PARTITION/offset|digest`. A log that tells a late
reader anything else than it told this one has changed its mind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import confluent_kafka as ck
import numpy as np
import numpy.typing as npt

from faults.wire import TIMEOUT_S, consumer, end_of, partitions

Seen = dict[tuple[str, int], tuple["array[int]", "array[int]"]]


def digest(message: ck.Message) -> int:
    """Of everything of a record that readers see."""
    body = zlib.crc32(message.value() or b"", zlib.crc32(message.key() or b""))
    for name, value in message.headers() or ():
        body = zlib.crc32(value or b"", zlib.crc32(name.encode(), body))
    return body


def note(seen: Seen, messages: Sequence[ck.Message]) -> None:
    for message in messages:
        if message.error() is not None:
            continue
        place = (message.topic(), message.partition())
        if place not in seen:
            seen[place] = (array("q"), array("q"))
        offsets, digests = seen[place]
        offsets.append(message.offset())
        digests.append(digest(message))


def main(bootstrap: str, path: Path, topics: Sequence[str]) -> None:
    client = consumer(bootstrap)
    seen: Seen = {}
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    places = partitions(client, topics)
    client.assign([ck.TopicPartition(*p, ck.OFFSET_BEGINNING) for p in places])
    while not ended.is_set():
        note(seen, client.consume(2_000, 0.2))
    read_on(bootstrap, places, seen)
    arrays = {}
    for (topic, partition), (offsets, digests) in seen.items():
        arrays[f"{topic}/{partition}/offset"] = np.asarray(offsets)
        arrays[f"{topic}/{partition}/digest"] = np.asarray(digests)
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes the arrays for the flag after them
    os._exit(0)  # the first client may not be able to end


def read_on(bootstrap: str, places: Sequence[tuple[str, int]], seen: Seen) -> None:
    """Read the rest with a new client: after the death of brokers the threads of one may wait for each other for ever."""
    client = consumer(bootstrap)
    starts = {p: seen[p][0][-1] + 1 if p in seen else 0 for p in places}
    ends = {p: end_of(client, p) for p in places}
    client.assign([ck.TopicPartition(*p, start) for p, start in starts.items()])
    last = time.monotonic()
    while time.monotonic() - last < TIMEOUT_S:
        at = {(p.topic, p.partition): p.offset for p in client.position(client.assignment())}
        if all(max(at[p], starts[p]) >= end for p, end in ends.items() if end > 0):
            break
        batch = client.consume(2_000, 0.2)
        note(seen, batch)
        if batch:
            last = time.monotonic()


class Reader:
    """The reader's process, from outside."""

    def __init__(self, bootstrap: str, path: Path, topics: Sequence[str]) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.reader", bootstrap, str(path), *topics], stdin=subprocess.PIPE
        )

    def finish(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """End it and give what it saw. Raises RuntimeError."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(TIMEOUT_S * 3):
            raise RuntimeError("the concurrent reader failed")
        with np.load(self._path) as found:
            return {name: found[name] for name in found.files}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
