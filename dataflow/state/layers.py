"""What was changed lies over what is stored: one dict per step on the way from a batch in hand to the local file.

running     of the batch, or the firing of timers, in hand; with a journal, to undo a row
settled     of whole batches that are over
committing  given to the changelog, the commit's outcome not known yet
unsaved     committed, not yet in the local file (a hot key is written there once a second, not at each commit)

Entries are changelog keys and values; None is an entry that is gone. `live` has the newest of all of them, and values
read from the file before, so that a read is one look-up.
"""

from __future__ import annotations

from typing import Final

from dataflow.core import limits
from dataflow.state.changelog import TIMER
from dataflow.state.store import Change, Store

# What Python needs for an entry of a dict and its two objects, beside their content.
_OVERHEAD_BYTES: Final = 250


class _Missing:
    """Not known here: ask the next layer. None says that there is nothing."""


_MISSING: Final = _Missing()


def _size(entry: bytes, value: bytes | _Missing | None) -> int:
    """What an entry of `live` takes."""
    return 0 if isinstance(value, _Missing) else _OVERHEAD_BYTES + len(entry) + len(value or b"")


class Layers:
    """See the module. `live` and `running` are read by the nodes' facade; only `write` changes them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.live: dict[bytes, bytes | None] = {}
        self.running: dict[bytes, bytes | None] = {}
        self.settled: dict[bytes, bytes | None] = {}
        self.committing: dict[bytes, bytes | None] = {}
        self.unsaved: dict[bytes, bytes | None] = {}
        self.settled_bytes = 0
        self._held_bytes = 0
        # What `running` had before, since the engine's call; only once somebody asked for a savepoint.
        self._journal: list[tuple[bytes, bytes | _Missing | None]] | None = None

    def read(self, entry: bytes) -> bytes | None:
        """The newest value."""
        found = self.live.get(entry, _MISSING)
        if not isinstance(found, _Missing):
            return found
        value = self.store.timer(entry) if entry[:1] == TIMER else self.store.get(entry)
        self.live[entry] = value
        self._held_bytes += _size(entry, value)
        return value

    def write(self, entry: bytes, value: bytes | None) -> bool:
        """Change an entry, or remove it. False where it is known to be so already."""
        before = self.live.get(entry, _MISSING)
        if before == value:
            return False
        if self._journal is not None:
            self._journal.append((entry, self.running.get(entry, _MISSING)))
        self.running[entry] = self.live[entry] = value
        if isinstance(before, _Missing):
            self._held_bytes += _OVERHEAD_BYTES + len(entry) + len(value or b"")
        else:  # in the place of another: a hot key does not drive the others out
            self._held_bytes += len(value or b"") - len(before or b"")
        return True

    def changed(self, entry: bytes) -> bool:
        """Whether the local file does not have the newest value."""
        return (
            entry in self.running
            or entry in self.settled
            or entry in self.committing
            or entry in self.unsaved
        )

    def savepoint(self) -> int:
        if self._journal is None:
            self._journal = []
        return len(self._journal)

    def rollback(self, savepoint: int) -> list[bytes]:
        """Undo what was written since; the entries that changed by that, each once."""
        journal = self._journal
        assert journal is not None, "a savepoint was taken"
        assert savepoint <= len(journal), "a savepoint ends with the call in which it was taken"
        undone: dict[bytes, None] = {}
        while len(journal) > savepoint:
            entry, before = journal.pop()
            undone[entry] = None
            if isinstance(before, _Missing):
                del self.running[entry]
                before = self._below(entry)
            else:
                self.running[entry] = before
            self._held_bytes += _size(entry, before) - _size(entry, self.live[entry])
            if isinstance(before, _Missing):
                del self.live[entry]
            else:
                self.live[entry] = before
        return list(undone)

    def _below(self, entry: bytes) -> bytes | _Missing | None:
        """What the layers below `running` say."""
        for layer in (self.settled, self.committing, self.unsaved):
            found = layer.get(entry, _MISSING)
            if not isinstance(found, _Missing):
                return found
        return _MISSING

    def begin(self) -> bool:
        """A call of the engine begins: savepoints end. True if values read before were let go."""
        self._journal = None
        if self._held_bytes <= limits.MAX_STATE_CACHE_BYTES:
            return False
        self._keep_changed()
        return True

    def _keep_changed(self) -> None:
        # The dict stays the same object: the nodes' facades hold it.
        self.live.clear()
        for layer in (self.unsaved, self.committing, self.settled, self.running):
            self.live.update(layer)
        self._held_bytes = 0

    def settle(self) -> None:
        """The batch in hand is over."""
        self._journal = None
        self.settled_bytes += sum(len(e) + len(v or b"") for e, v in self.running.items())
        self.settled.update(self.running)
        self.running.clear()

    def take_settled(self) -> list[Change]:
        """The settled changes, for the changelog; an entry that came and went since the last commit is none."""
        assert not self.committing, "changes are taken once per commit"
        settled = self.settled
        self.settled, self.settled_bytes = {}, 0
        self.committing = {e: v for e, v in settled.items() if v is not None or self._stored(e)}
        return list(self.committing.items())

    def _stored(self, entry: bytes) -> bool:
        found = self.unsaved.get(entry, _MISSING)
        return self.store.has(entry) if isinstance(found, _Missing) else found is not None

    def committed(self) -> None:
        """What was taken is committed."""
        self.unsaved.update(self.committing)
        self.committing.clear()

    def save(self, next_offset: int, now_ms: int) -> None:
        """Bring the file up to what is committed."""
        self.store.apply(self.unsaved.items(), next_offset, now_ms)
        self.unsaved.clear()

    def discard(self) -> None:
        """Forget what is not committed."""
        self._journal = None
        for layer in (self.running, self.settled, self.committing):
            layer.clear()
        self.settled_bytes = 0
        self._keep_changed()

    def changed_timers(self) -> list[Change]:
        """The newest value of every timer that the local file does not have as it is."""
        newest = {**self.unsaved, **self.committing, **self.settled, **self.running}
        return [(e, v) for e, v in newest.items() if e[:1] == TIMER]
