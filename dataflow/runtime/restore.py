"""Reads the changelogs of tasks that are to begin: from where the local file is to the end, before the first record runs.

One groupless reader for all of them, driven step by step: the loop goes on polling meanwhile, so membership is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dataflow.core.errors import TransportError
from dataflow.runtime.keeping import Keeper
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Message, Position

log = logging.getLogger("dataflow.restore")

# Of one step: small enough that the loop polls often, large enough that its costs vanish.
RESTORE_RECORDS: Final = 5_000
RESTORE_WAIT_S: Final = 0.01
# Without a single record or end for so long, the reading has failed.
RESTORE_STALL_S: Final = 60.0


@dataclass
class _Reading:
    keeper: Keeper
    next_offset: int
    end: int


class Restorer:
    """See the module. `add` a task's state, `step` until it is given back; `drop` it if the task goes away before."""

    def __init__(self, fabric: Fabric, changelog: str) -> None:
        self._fabric = fabric
        self._changelog = changelog
        self._added: dict[int, Keeper] = {}
        self._readings: dict[int, _Reading] = {}
        self._consumer: Consumer | None = None
        self._moved_at = 0.0

    def __contains__(self, partition: object) -> bool:
        return partition in self._added or partition in self._readings

    def __len__(self) -> int:
        return len(self._added) + len(self._readings)

    def add(self, partition: int, keeper: Keeper) -> None:
        """Take the state of a task to be restored: its changelog has no other writer from here on."""
        self._added[partition] = keeper

    def drop(self, partition: int) -> None:
        """Close a task's state that is being restored, if it is."""
        keeper = self._added.pop(partition, None)
        reading = self._readings.pop(partition, None)
        if reading is not None:
            keeper = reading.keeper
            self._assign()
        if keeper is not None:
            keeper.close()

    def close(self) -> None:
        for partition in [*self._added, *self._readings]:
            self.drop(partition)

    def step(self) -> dict[int, Keeper]:
        """Read on; the states that are complete, which are no longer kept here.

        Raises TransportError where the end is not reached, StateError for a record that is none of ours.
        """
        if self._added:
            self._begin()
        if self._consumer is not None:
            messages = self._consumer.poll(RESTORE_RECORDS, RESTORE_WAIT_S)
            self._take(messages)
            self._check_progress(moved=bool(messages))
        done = {p: r.keeper for p, r in self._readings.items() if r.next_offset >= r.end}
        if done:
            for partition, keeper in done.items():
                reading = self._readings.pop(partition)
                log.info("state of %s [%d] is restored up to %d", self._changelog, partition, reading.end)
                keeper.ready()
            self._assign()
        return done

    def _begin(self) -> None:
        """Look up how far each of the new ones has to be read."""
        added, self._added = self._added, {}
        positions = [(self._changelog, partition) for partition in added]
        ends = self._fabric.admin().offsets(positions, LATEST)
        starts = self._fabric.admin().offsets(positions, EARLIEST)
        for partition, keeper in added.items():
            position = (self._changelog, partition)
            if keeper.state.checkpoint > ends[position]:
                keeper.state.forget()  # the topic is not the one that the file was made from
            first = max(keeper.state.checkpoint, starts[position])
            self._readings[partition] = _Reading(keeper, first, ends[position])
        self._assign()

    def _assign(self) -> None:
        """Read what is not complete, each from where it is; nothing, without a client."""
        wanted = {
            (self._changelog, p): r.next_offset for p, r in self._readings.items() if r.next_offset < r.end
        }
        if not wanted:
            if self._consumer is not None:
                self._consumer.close()
            self._consumer = None
            return
        if self._consumer is None:
            self._consumer = self._fabric.consumer()
        self._consumer.assign(wanted)
        self._moved_at = time.monotonic()

    def _take(self, messages: Sequence[Message]) -> None:
        assert self._consumer is not None
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition(), []).append(message)
        for partition, found in by_partition.items():
            reading = self._readings.get(partition)
            if reading is not None:
                reading.next_offset = max(reading.next_offset, found[-1].offset() + 1)
                records = [(m.offset(), m.key(), m.value()) for m in found]
                reading.keeper.state.restore(records, reading.next_offset)
        # Positions, not only offsets of records seen: the last ones may be compacted away, or markers of transactions.
        positions: list[Position] = [(self._changelog, p) for p in self._readings]
        for (_, partition), offset in self._consumer.position(positions).items():
            reading = self._readings[partition]
            reading.next_offset = max(reading.next_offset, offset or 0)

    def _check_progress(self, *, moved: bool) -> None:
        now = time.monotonic()
        if moved:
            self._moved_at = now
        elif now - self._moved_at > RESTORE_STALL_S:
            left = {p: f"{r.next_offset} of {r.end}" for p, r in self._readings.items()}
            raise TransportError(
                f"restoring state from topic '{self._changelog}': the end was not reached for {RESTORE_STALL_S:.0f} s "
                f"(partition: offset {left})",
                hint="is the broker up? an open transaction of another process hides the end until it times out",
            )
