"""The state of one task: what its batches changed lies over the committed store until the commit has succeeded."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final

from dataflow.core import limits
from dataflow.state.api import Timer
from dataflow.state.changelog import decode_key
from dataflow.state.layers import Layers
from dataflow.state.node_state import NodeState
from dataflow.state.store import Change, Record, Store

_BEFORE_ALL: Final = (0, b"")
_AFTER_ALL_MS: Final = (1 << 63) - 1


class TaskState:
    """See the module. One thread at a time.

    Start:   open_store -> TaskState(...) -> restore(...) until the end -> node_state(n) for every keyed node of the stage
    Batch:   begin(now) -> node.process(..., state=node_state(n)) as often as needed, also over retries -> settle()
    Timers:  due_ms() says when; begin(now) -> pop_due(now, limit) -> node.fire(...) -> settle().  Only when no batch is
             between begin and settle. What pop_due took is part of that unit, as everything that fire changed.
    Commit:  changes() -> write them all to the changelog, in this order -> acknowledged, or in the transaction
             -> offsets committed -> committed(next_offset).  A batch may be between begin and settle meanwhile (its
             changes are not in it), and more may settle between changes() and committed().
    Error:   discard(), or close() and a new TaskState.
    """

    def __init__(self, store: Store, topic: str = "", partition: int = 0) -> None:
        """`topic` and `partition` of the changelog, for messages."""
        self._store = store
        self._place = f"{topic} [{partition}]"
        self._layers = Layers(store)
        self._nodes: dict[str, NodeState] = {}
        self._unread: Set[tuple[str, str]] = frozenset()
        self._now_ms = store.opened_ms
        self._saved_ms = 0
        self._next_offset = store.next_offset
        # The last entry looked at for its time to live, since the file was changed; and when the next one is over.
        self._swept: tuple[int, bytes] = _BEFORE_ALL
        self._expires_ms: int | None = self._next_expiry_ms()

    @property
    def checkpoint(self) -> int:
        """The changelog offset to restore from; 0: from the start. More than the partition's end: call `forget` first."""
        return self._store.read_to

    def restore(self, records: Sequence[Record], next_offset: int) -> None:
        """Apply changelog records (offset, key, value) at start. Raises StateError naming a record that is none of ours."""
        assert not self._nodes, "restored before the first batch"
        self._store.restore(self._place, records, next_offset)

    def forget(self) -> None:
        """Empty the local store, to be restored from the changelog's start."""
        self._store.clear()
        self._next_offset = 0
        self.discard()

    def node_state(self, name: str) -> NodeState:
        """What a node sees; the same object for the same name. Timers of a node fire once this was called for it."""
        node = self._nodes.get(name)
        if node is None:
            self._end_restore()
            node = self._nodes[name] = NodeState(name, self._layers)
            node.now_ms, node.unread_ports = self._now_ms, self._unread
            self._track([c for c in self._layers.changed_timers() if decode_key(c[0]).node == name])
        return node

    def _end_restore(self) -> None:
        """The first node asks for its state: all of it is read."""
        if self._nodes:
            return
        self._store.restored(self._now_ms)
        self._next_offset = self._store.next_offset
        self._expires_ms = self._next_expiry_ms()

    def begin(self, now_ms: int) -> None:
        """A batch or a firing of timers begins; `now_ms` is its clock. Savepoints of before end here."""
        self._now_ms = now_ms
        released = self._layers.begin()
        for node in self._nodes.values():
            node.now_ms = now_ms
            if released:
                node.release()

    def unread(self, ports: Set[tuple[str, str]]) -> None:
        """Input ports, as (node, port), that may have records which their nodes were not given yet."""
        self._unread = ports
        for node in self._nodes.values():
            node.unread_ports = ports

    def settle(self) -> None:
        """The batch or firing is over: its changes go with the next commit."""
        for node in self._nodes.values():
            node.settle()
        self._layers.settle()

    def discard(self) -> None:
        """Back to what was committed last."""
        self._layers.discard()
        for node in self._nodes.values():
            node.reload()
        self._track(self._layers.changed_timers())
        self._swept = _BEFORE_ALL
        self._expires_ms = self._next_expiry_ms()

    @property
    def wants_commit(self) -> bool:
        """Whether settled changes wait, be it only of timers or of expired entries. `changes` may still find none."""
        return bool(self._layers.settled)

    @property
    def pending_bytes(self) -> int:
        """Size of the settled changes that wait for a commit: beyond limits.MAX_STATE_PENDING_BYTES commit early."""
        return self._layers.settled_bytes

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """The settled changes, one record (key, value or tombstone) per changed entry, for the changelog.

        Once per commit: the next call is after `committed`. Empty: nothing to write, and `committed` is not needed.
        """
        return self._layers.take_settled()

    def committed(self, next_offset: int) -> None:
        """What `changes` gave is committed; `next_offset` follows the last record written (delivery report's offset + 1)."""
        self._layers.committed()
        self._next_offset = next_offset
        if len(self._layers.unsaved) >= limits.STATE_SAVE_ENTRIES or self._now_ms >= self._save_due_ms:
            self._save()

    def due_ms(self) -> int | None:
        """When `pop_due` has something to do: the earliest processing timer, or entry to remove. None: nothing waits."""
        times = [due.at_ms for node in self._nodes.values() if (due := node.peek("processing")) is not None]
        if self._expires_ms is not None:
            # Rounded up, so that many are removed at once.
            step = limits.STATE_EXPIRY_DELAY_MS
            times.append((self._expires_ms // step + 1) * step)
        if self._layers.unsaved:
            times.append(self._save_due_ms)
        return min(times, default=None)

    def next_timer_ms(self) -> int | None:
        """When the earliest processing timer is due, None without any. `due_ms` says when there is housekeeping, too."""
        times = [due.at_ms for node in self._nodes.values() if (due := node.peek("processing")) is not None]
        return min(times, default=None)

    def pop_due(self, now_ms: int, limit: int) -> list[tuple[str, Timer]]:
        """Take up to `limit` (node, processing timer) that are due, in the order of Timer; and remove what expired.

        Between `begin` and `settle`. It may return none and have changed something all the same (expired entries).
        """
        if self._layers.unsaved and now_ms >= self._save_due_ms:
            self._save()
        self._sweep(now_ms)
        popped: list[tuple[str, Timer]] = []
        while len(popped) < limit:
            waiting = [(due, n) for n in self._nodes.values() if (due := n.peek("processing")) is not None]
            if not waiting:
                break
            due, node = min(waiting, key=lambda found: (found[0][:3], found[1].name))
            if due.at_ms > now_ms:
                break
            popped.append((node.name, node.pop(due, "processing")))
        return popped

    def close(self) -> None:
        """Let the store go. What was not committed is lost, what was committed is kept."""
        try:
            if self._layers.unsaved:
                self._save()
        finally:
            # Before any node asked for its state, the changelog may not have been read to its end.
            self._store.close(self._now_ms if self._nodes else 0)

    @property
    def _save_due_ms(self) -> int:
        return self._saved_ms + limits.STATE_SAVE_INTERVAL_MS

    def _save(self) -> None:
        """Bring the file up to what is committed."""
        self._layers.save(self._next_offset, self._now_ms)
        self._saved_ms = self._now_ms
        self._swept = _BEFORE_ALL
        self._expires_ms = self._next_expiry_ms()
        if any(node.crowded for node in self._nodes.values()):
            for node in self._nodes.values():
                node.forget_timers()
            self._track(self._layers.changed_timers())

    def _sweep(self, now_ms: int) -> None:
        """Remove entries whose time to live is over. What was changed since the file was is looked at after it is saved."""
        if self._expires_ms is None or self._expires_ms > now_ms:
            return
        over = self._store.expired(self._swept, now_ms, limits.MAX_STATE_EXPIRED)
        for _, entry in over:
            if not self._layers.changed(entry):
                self._layers.write(entry, None)
        self._swept = over[-1]
        self._expires_ms = self._next_expiry_ms()
        for node in self._nodes.values():
            node.release()

    def _next_expiry_ms(self) -> int | None:
        following = self._store.expired(self._swept, _AFTER_ALL_MS, 1)
        return following[0][0] if following else None

    def _track(self, changes: Sequence[Change]) -> None:
        """Have the nodes' queues know the timers that the file does not have as they are."""
        for entry, value in changes:
            _, name, key, timer = decode_key(entry)
            if name in self._nodes:
                self._nodes[name].track(entry, key, timer, value)
