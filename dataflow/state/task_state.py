"""The state of one task: what its batches changed lies over the committed store until the commit has succeeded."""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.state.api import KeyedState, Timer
from dataflow.state.store import Store


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

    @property
    def checkpoint(self) -> int:
        """The changelog offset to restore from; 0: from the start. More than the partition's end: call `forget` first."""
        raise NotImplementedError

    def restore(self, records: Sequence[tuple[int, bytes | None, bytes | None]], next_offset: int) -> None:
        """Apply changelog records (offset, key, value) at start. Raises StateError naming a record that is none of ours."""
        raise NotImplementedError

    def forget(self) -> None:
        """Empty the local store, to be restored from the changelog's start."""
        raise NotImplementedError

    def node_state(self, name: str) -> KeyedState:
        """What a node sees; the same object for the same name. Timers of a node fire once this was called for it."""
        raise NotImplementedError

    def begin(self, now_ms: int) -> None:
        """A batch or a firing of timers begins; `now_ms` is its clock. Savepoints of before end here."""
        raise NotImplementedError

    def settle(self) -> None:
        """The batch or firing is over: its changes go with the next commit."""
        raise NotImplementedError

    def discard(self) -> None:
        """Back to what was committed last."""
        raise NotImplementedError

    @property
    def wants_commit(self) -> bool:
        """Whether `changes` would give anything: settled changes wait, be it only of timers or of entries that expired."""
        raise NotImplementedError

    @property
    def pending_bytes(self) -> int:
        """Size of the settled changes that wait for a commit: beyond limits.MAX_STATE_PENDING_BYTES commit early."""
        raise NotImplementedError

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """The settled changes, one record (key, value or tombstone) per changed entry, for the changelog.

        Once per commit: the next call is after `committed`. Empty: nothing to write, and `committed` is not needed.
        """
        raise NotImplementedError

    def committed(self, next_offset: int) -> None:
        """What `changes` gave is committed; `next_offset` follows the last record written (delivery report's offset + 1)."""
        raise NotImplementedError

    def due_ms(self) -> int | None:
        """When `pop_due` has something to do: the earliest processing timer, or entry to remove. None: nothing waits."""
        raise NotImplementedError

    def pop_due(self, now_ms: int, limit: int) -> list[tuple[str, Timer]]:
        """Take up to `limit` (node, processing timer) that are due, in the order of Timer; and remove what expired.

        Between `begin` and `settle`. It may return none and have changed something all the same (expired entries).
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let the store go. What was not committed is lost, what was committed is kept."""
        raise NotImplementedError
