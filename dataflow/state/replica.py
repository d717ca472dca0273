"""A copy of one task's state for readers elsewhere, kept from its changelog partition: what was committed, a little late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataflow.core import limits
from dataflow.state import changelog
from dataflow.state.api import Timer
from dataflow.state.changelog import VALUE, WATERMARK, head_of, pack_length
from dataflow.state.node_state import unpacked
from dataflow.state.store import Record, temporary_store


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value under its name; `expires_ms` 0: it stays."""

    name: str
    value: Any
    expires_ms: int


@dataclass(frozen=True, slots=True)
class KeyView:
    """All that a node keeps for one key, by name; `cut`: there is more. `watermark_ms` None: the node has none."""

    values: tuple[StoredValue, ...]
    timers: tuple[Timer, ...]
    watermark_ms: int | None
    cut: bool


class Replica:
    """See the module. It lies in a temporary file. One thread at a time."""

    def __init__(self, topic: str, partition: int, topic_id: str, now_s: float) -> None:
        """`now_s`, here and below, is of any clock that only goes forward."""
        self.topic_id = topic_id
        self._place = f"{topic} [{partition}]"
        self._read_s = now_s
        self._store = temporary_store(topic_id)

    @property
    def next_offset(self) -> int:
        """Where to read on in the changelog; 0: at its start."""
        return self._store.read_to

    def read_at(self, now_s: float) -> None:
        """Told of each time when the changelog was read to its end."""
        self._read_s = now_s

    def outdated(self, now_s: float) -> bool:
        """Whether the changelog may have lost tombstones that were not read: make a new one then."""
        return now_s - self._read_s > limits.MAX_STATE_FILE_AGE_MS / 1000

    def apply(self, records: Sequence[Record], next_offset: int) -> None:
        """Take (offset, key, value) records. Raises StateError naming one that is none of ours."""
        self._store.restore(self._place, records, next_offset)

    def of_key(self, node: str, key: bytes, now_ms: int, max_entries: int, max_bytes: int) -> KeyView:
        """What a node keeps for a key, as it reads at `now_ms`."""
        self._store.restored(None)
        after_node = pack_length(len(key)) + key
        head = head_of(VALUE, node) + after_node
        found = self._store.items(head, max_entries + 1)
        values: list[StoredValue] = []
        size_bytes = 0
        for entry, raw in found[:max_entries]:
            size_bytes += len(entry) + len(raw)
            if size_bytes > max_bytes:
                break
            expires_ms = changelog.expires_of(raw)
            if not expires_ms or expires_ms > now_ms:
                name = entry[len(head) :].decode()
                values.append(StoredValue(name, unpacked(raw, name), expires_ms))
        timers = self._store.timers_of(node, key, max_entries + 1)
        mark = self._store.get(head_of(WATERMARK, node))
        return KeyView(
            tuple(values),
            tuple(timers[:max_entries]),
            None if mark is None else changelog.decode_time(mark),
            size_bytes > max_bytes or len(found) > max_entries or len(timers) > max_entries,
        )

    def close(self) -> None:
        self._store.close()
