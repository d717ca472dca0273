"""The committed state of one task on this machine: a cache of its changelog partition, so that a start need not read all.

One SQLite file in WAL mode, of one process at a time. Rows are changelog records, timers taken apart so that an index
gives them in the order in which they fire. What went wrong with the file costs a longer restore, never an answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from dataflow.core import limits
from dataflow.core.errors import StateError
from dataflow.state import changelog
from dataflow.state.api import Timer
from dataflow.state.changelog import TIMER

log = logging.getLogger("dataflow.state")

Change = tuple[bytes, bytes | None]  # changelog key, value or tombstone
Record = tuple[int, bytes | None, bytes | None]  # offset, key, value of a changelog record as it was read

# A version in the file: another one is emptied.
_FORMAT: Final = 1
# SQLite's name for a private file that is gone when it is closed.
_TEMPORARY: Final = ""
_MEMORY: Final = ":memory:"
_TABLES: Final = """
CREATE TABLE entries (id BLOB PRIMARY KEY, value BLOB NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX expiring ON entries (expires_ms, id) WHERE expires_ms > 0;
CREATE TABLE timers (node TEXT, key BLOB, name TEXT, clock INTEGER NOT NULL, at_ms INTEGER NOT NULL,
                     PRIMARY KEY (node, key, name)) WITHOUT ROWID;
CREATE INDEX firing ON timers (node, clock, at_ms, key, name);
CREATE TABLE checkpoint (topic_id TEXT NOT NULL, next_offset INTEGER NOT NULL, complete_ms INTEGER NOT NULL);
"""
_PUT: Final = """
INSERT INTO entries VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms
"""
_PUT_TIMER: Final = """
INSERT INTO timers VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET clock = excluded.clock, at_ms = excluded.at_ms
"""
_EARLIEST: Final = """
SELECT at_ms, key, name FROM timers
WHERE node = ? AND clock = ? AND (at_ms, key, name) > (?, ?, ?) ORDER BY at_ms, key, name LIMIT ?
"""
_EXPIRED: Final = """
SELECT expires_ms, id FROM entries
WHERE expires_ms > 0 AND (expires_ms, id) > (?, ?) AND expires_ms <= ? ORDER BY expires_ms, id LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of ours with the lock that keeps other processes out."""

    path: Path
    lock: IO[bytes]


class Store:
    """See the module. One thread at a time; it is complete up to the changelog offset `next_offset`, 0 when empty."""

    def __init__(
        self, connection: sqlite3.Connection, topic_id: str, file: _File | None = None, opened_ms: int = 0
    ) -> None:
        """`connection` has the tables. Use `open_store`."""
        self.opened_ms = opened_ms
        self._connection = connection
        self._topic_id = topic_id
        self._file = file
        self._run = connection.execute
        self.next_offset: int = self._run("SELECT next_offset FROM checkpoint").fetchone()[0]
        # While it is restored: the newest by key, up to an offset.
        self.read_to: int = self.next_offset
        self._restoring: dict[bytes, bytes | None] = {}
        self._restoring_bytes = 0

    def get(self, entry: bytes) -> bytes | None:
        """The value stored under a changelog key that is no timer's."""
        try:
            row = self._run("SELECT value FROM entries WHERE id = ?", (entry,)).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return None if row is None else row[0]

    def timer(self, entry: bytes) -> bytes | None:
        """The value stored under a timer's changelog key."""
        _, node, key, name = changelog.decode_key(entry)
        try:
            row = self._run(
                "SELECT clock, at_ms FROM timers WHERE node = ? AND key = ? AND name = ?", (node, key, name)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return None if row is None else changelog.encode_timer(changelog.CLOCKS[row[0]], row[1])

    def has(self, entry: bytes) -> bool:
        return (self.timer(entry) if entry[:1] == TIMER else self.get(entry)) is not None

    def items(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` entries whose changelog keys begin with `prefix`, in the order of their keys."""
        # After all that begin with it: 0xff is no byte of UTF-8, and a prefix ends within a name.
        return self._all(
            "SELECT id, value FROM entries WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (prefix, prefix + b"\xff", limit),
        )

    def timers(
        self, node: str, clock: int, after: tuple[int, bytes, str], limit: int
    ) -> list[tuple[int, bytes, str]]:
        """Timers (at_ms, key, name) of a node behind `after`, in that order."""
        return self._all(_EARLIEST, (node, clock, *after, limit))

    def timers_of(self, node: str, key: bytes, limit: int) -> list[Timer]:
        """Up to `limit` timers of a record key, by name."""
        rows = self._all(
            "SELECT at_ms, name, clock FROM timers WHERE node = ? AND key = ? ORDER BY name LIMIT ?",
            (node, key, limit),
        )
        return [Timer(at_ms, key, name, changelog.CLOCKS[clock]) for at_ms, name, clock in rows]

    def expired(self, after: tuple[int, bytes], until_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Entries (expires_ms, changelog key) behind `after` that read as absent at `until_ms`, in that order."""
        return self._all(_EXPIRED, (*after, until_ms, limit))

    def _all(self, question: str, values: Sequence[object]) -> list[Any]:
        try:
            return self._run(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def apply(self, changes: Iterable[Change], next_offset: int, complete_ms: int | None) -> None:
        """Store committed changes, at most one per entry, and the offset behind them, in one transaction.

        `complete_ms`: at this time the changelog had no more than that; None while it is being restored.
        """
        values: list[tuple[bytes, bytes, int]] = []
        gone: list[tuple[bytes]] = []
        timers: list[tuple[str, bytes, str, int, int]] = []
        cleared: list[tuple[str, bytes, str]] = []
        for entry, value in changes:
            if entry[:1] != TIMER:
                if value is None:
                    gone.append((entry,))
                else:
                    values.append((entry, value, changelog.expires_of(value)))
                continue
            _, node, key, name = changelog.decode_key(entry)
            if value is None:
                cleared.append((node, key, name))
            else:
                clock, at_ms = changelog.decode_timer(value)
                timers.append((node, key, name, changelog.CLOCKS.index(clock), at_ms))
        many = self._connection.executemany
        try:
            with self._transaction():
                many("DELETE FROM entries WHERE id = ?", sorted(gone))
                many("DELETE FROM timers WHERE node = ? AND key = ? AND name = ?", cleared)
                # In the order of the tree: neighbours share a page.
                many(_PUT, sorted(values))
                many(_PUT_TIMER, sorted(timers))
                self._run(
                    "UPDATE checkpoint SET next_offset = ?, complete_ms = coalesce(?, complete_ms)",
                    (next_offset, complete_ms),
                )
        except sqlite3.Error as error:
            raise self._broken(error) from None
        self.next_offset = next_offset
        self.read_to = max(self.read_to, next_offset)

    def restore(self, place: str, records: Sequence[Record], next_offset: int) -> None:
        """Take records of the changelog; they are stored many at once, the last of them by `restored`.

        Raises StateError naming one that is no record of ours, and takes none then.
        """
        size_bytes = 0
        for offset, key, value in records:
            changelog.check_record(place, offset, key, value)
            size_bytes += len(key or b"") + len(value or b"")
        self._restoring.update((key, value) for _, key, value in records if key is not None)
        self._restoring_bytes += size_bytes
        self.read_to = next_offset
        large = self._restoring_bytes >= limits.STATE_RESTORE_BYTES
        if large or len(self._restoring) >= limits.STATE_RESTORE_RECORDS:
            self.restored(None)

    def restored(self, complete_ms: int | None) -> None:
        """Store what was restored and is not yet. `complete_ms`: the end was reached, as it was at this time."""
        self.apply(self._restoring.items(), self.read_to, complete_ms)
        self._restoring.clear()
        self._restoring_bytes = 0

    def clear(self) -> None:
        """Empty it: as if it had never read its changelog."""
        try:
            with self._transaction():
                self._run("DELETE FROM entries")
                self._run("DELETE FROM timers")
                self._run("UPDATE checkpoint SET next_offset = 0, complete_ms = 0")
        except sqlite3.Error as error:
            raise self._broken(error) from None
        self.next_offset = self.read_to = 0
        self._restoring.clear()
        self._restoring_bytes = 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # A full disk may have rolled back already.
            if self._connection.in_transaction:
                self._connection.rollback()
            raise
        self._run("COMMIT")

    def _broken(self, error: sqlite3.Error) -> StateError:
        """The error to raise; a damaged file is taken away, so that the next start makes a new one."""
        where = "in memory" if self._file is None else f"'{self._file.path}'"
        if self._file is None or "full" in str(error):
            return StateError(f"local state {where}: {error}", hint="is the disk full?")
        _remove(self._file.path)
        return StateError(
            f"local state {where}: {error}", hint="it is restored from the changelog at the next start"
        )

    def close(self, complete_ms: int = 0) -> None:
        """Let the file go; `complete_ms` (0: unknown) says until when it was complete."""
        with contextlib.suppress(sqlite3.Error):
            if complete_ms:
                self._run("UPDATE checkpoint SET complete_ms = ?", (complete_ms,))
        self._connection.close()
        if self._file is not None:
            self._file.lock.close()


def open_store(path: Path | None, topic_id: str, now_ms: int) -> Store:
    """The store in a file (None: in memory), or an empty one that is as good: never an error about the file's content.

    `topic_id` is the identity of the changelog topic (cluster's topic id, or the name where there is none): a file made
    from another one is emptied, as is one that is damaged, or so old that the changelog may have compacted tombstones
    away since. Locked by another process: a temporary one. Folders are made. Raises StateError where none can be.
    """
    if path is None:
        return Store(_created(_MEMORY, topic_id), topic_id, None, now_ms)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise StateError(
            f"folder of local state '{path.parent}': {error.strerror}", hint="set DATAFLOW_STATE_DIR"
        ) from None
    if lock is None:
        log.warning(
            "local state '%s' is in use by another process; this one restores its own from the changelog",
            path,
        )
        return temporary_store(topic_id)
    file = _File(path, lock)
    if path.exists():
        found = _opened(path, topic_id, now_ms)
        if found is not None:
            return Store(found, topic_id, file, now_ms)
        _remove(path)
    try:
        return Store(_created(str(path), topic_id), topic_id, file, now_ms)
    except sqlite3.Error as error:
        lock.close()
        raise StateError(
            f"local state '{path}': {error}", hint="set DATAFLOW_STATE_DIR to a folder with room"
        ) from None


def temporary_store(topic_id: str) -> Store:
    """An empty store in a private file that is gone when it is closed."""
    return Store(_created(_TEMPORARY, topic_id), topic_id)


def _lock(path: Path) -> IO[bytes] | None:
    """The lock of a file beside it, held until it is closed; None where another one holds it."""
    lock = Path(f"{path}.lock").open("ab")  # noqa: SIM115 - closed by the store
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return lock


def _opened(path: Path, topic_id: str, now_ms: int) -> sqlite3.Connection | None:
    """The connection to a file that can be gone on with."""
    connection = None
    try:
        connection = _connected(str(path))
        if connection.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
            found, _, complete_ms = connection.execute("SELECT * FROM checkpoint").fetchone()
            if found == topic_id and abs(now_ms - complete_ms) <= limits.MAX_STATE_FILE_AGE_MS:
                return connection
    except (sqlite3.Error, TypeError, ValueError) as error:
        log.warning("local state '%s' is damaged (%s); it is restored from the changelog", path, error)
    if connection is not None:
        connection.close()
    return None


def _connected(name: str) -> sqlite3.Connection:
    # The task moves between threads only as a whole.
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # 16 MB: a page that changes often is copied, and the disk waited for, less often.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA temp_store = MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _created(name: str, topic_id: str) -> sqlite3.Connection:
    """A new one, complete at no time: what is restored only in part may miss tombstones later, and starts anew."""
    connection = _connected(name)
    try:
        connection.executescript(f"BEGIN; {_TABLES} COMMIT; PRAGMA user_version = {_FORMAT}")
        connection.execute("INSERT INTO checkpoint VALUES (?, 0, 0)", (topic_id,))
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            Path(f"{path}{suffix}").unlink()
