"""What a replay must remember of millions of records: on disk, in a file of its own that is thrown away.

Ids are packed to 16 bytes. Of one edge at a time the replayed records are held whole, the recorded ones stream past.
"""

from __future__ import annotations

import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

_CACHE_KBYTES: Final = 32_768
_TABLES: Final = """
CREATE TABLE stretch (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE letters (id BLOB PRIMARY KEY, reason TEXT) WITHOUT ROWID;
"""
_EDGE_TABLES: Final = """
DROP TABLE IF EXISTS replayed;
DROP TABLE IF EXISTS recorded;
CREATE TABLE replayed (id BLOB, digest BLOB, value BLOB, schema BLOB, key BLOB, matched INTEGER DEFAULT 0, UNIQUE (id, digest));
CREATE TABLE recorded (id BLOB, digest BLOB, PRIMARY KEY (id, digest)) WITHOUT ROWID;
"""


class Wire(NamedTuple):
    """A record as it is in its topic: value, key, and the fingerprint of its schema."""

    value: bytes | None
    key: bytes | None
    schema: bytes

    @property
    def digest(self) -> bytes:
        """Equal for records of equal bytes."""
        value, key, schema = self
        head = b"%d %d " % (-1 if value is None else len(value), -1 if key is None else len(key))
        return blake2b(b"".join((head, value or b"", key or b"", schema)), digest_size=8).digest()


def pack(record_id: bytes) -> bytes:
    """The 16 bytes of a canonical id."""
    return bytes.fromhex(record_id.decode().replace("-", ""))


def unpack(packed: bytes) -> str:
    return str(uuid.UUID(bytes=packed))


class Ledger:
    """See the module. A context manager; one thread. `folder` is thrown away with it.

    A record that came twice, byte for byte, counts once: what is at least once may be there again. Different records
    of one id (two branches into one node) are matched with their equal, else in their order.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="dataflow-replay-")
        self.folder = Path(self._temporary.name)
        self._database = sqlite3.connect(self.folder / "ledger.sqlite", isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
            f"PRAGMA cache_size=-{_CACHE_KBYTES}; {_TABLES} {_EDGE_TABLES} BEGIN;"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._temporary.cleanup()

    # ---- which records belong to the stretch

    def add(self, record_ids: Iterable[bytes]) -> None:
        """These records are of the stretch."""
        self._database.executemany(
            "INSERT OR IGNORE INTO stretch VALUES (?)", ((pack(i),) for i in record_ids)
        )

    def belongs(self, record_id: bytes, parents: Sequence[bytes]) -> bool:
        """Whether a record is of the stretch, or comes of one that is: then it is from now on, too."""
        find = self._database.execute
        if find("SELECT 1 FROM stretch WHERE id = ?", (pack(record_id),)).fetchone():
            return True
        if any(find("SELECT 1 FROM stretch WHERE id = ?", (pack(p),)).fetchone() for p in parents):
            find("INSERT OR IGNORE INTO stretch VALUES (?)", (pack(record_id),))
            return True
        return False

    def note_letter(self, record_id: bytes, reason: str) -> None:
        """A record failed in the replay."""
        self._database.execute("INSERT OR REPLACE INTO letters VALUES (?, ?)", (pack(record_id), reason))

    def letter(self, record_ids: Iterable[bytes]) -> str:
        """Why the first of these failed that did; "" if none did."""
        for record_id in record_ids:
            found = self._database.execute(
                "SELECT reason FROM letters WHERE id = ?", (pack(record_id),)
            ).fetchone()
            if found is not None:
                return str(found[0])
        return ""

    # ---- one edge

    def begin_edge(self) -> None:
        """Forget the records of the edge before."""
        # A script commits first what is open.
        self._database.executescript(f"{_EDGE_TABLES} BEGIN;")

    def put_replayed(self, record_id: bytes, wire: Wire) -> bool:
        """Keep a replayed record; False if it came before."""
        made = self._database.execute(
            "INSERT OR IGNORE INTO replayed (id, digest, value, schema, key) VALUES (?, ?, ?, ?, ?)",
            (pack(record_id), wire.digest, wire.value, wire.schema, wire.key),
        )
        return made.rowcount == 1

    def match_equal(self, record_id: bytes, wire: Wire) -> bool:
        """Match a recorded record with the replayed one of equal bytes; False if there is none, or it was matched."""
        made = self._database.execute(
            "UPDATE replayed SET matched = 1 WHERE id = ? AND digest = ? AND NOT matched",
            (pack(record_id), wire.digest),
        )
        return made.rowcount == 1

    def was_replayed(self, record_id: bytes) -> bool:
        found = self._database.execute("SELECT 1 FROM replayed WHERE id = ? LIMIT 1", (pack(record_id),))
        return found.fetchone() is not None

    def came_before(self, record_id: bytes, wire: Wire) -> bool:
        """Whether a recorded record was there before, byte for byte; it is from now on."""
        key = pack(record_id), wire.digest
        find = self._database.execute
        if find("SELECT 1 FROM replayed WHERE id = ? AND digest = ?", key).fetchone():
            return True  # matched, or `match_equal` had taken it
        return find("INSERT OR IGNORE INTO recorded VALUES (?, ?)", key).rowcount == 0

    def match(self, record_id: bytes) -> Wire | None:
        """Take a replayed record of this id, other bytes and all; None if none is left."""
        found = self._database.execute(
            "SELECT rowid, value, key, schema FROM replayed WHERE id = ? AND NOT matched ORDER BY rowid LIMIT 1",
            (pack(record_id),),
        ).fetchone()
        if found is None:
            return None
        self._database.execute("UPDATE replayed SET matched = 1 WHERE rowid = ?", found[:1])
        return Wire(*found[1:])

    def end_edge(self) -> None:
        """What was matched is of the stretch, and so is what comes of it."""
        self._database.execute("INSERT OR IGNORE INTO stretch SELECT id FROM replayed WHERE matched")

    @property
    def left(self) -> int:
        """Replayed records that nothing recorded was matched with."""
        (count,) = self._database.execute("SELECT count(*) FROM replayed WHERE NOT matched").fetchone()
        return int(count)

    def unmatched(self, limit: int) -> Iterator[str]:
        """Their ids, in the order in which they came."""
        found = self._database.execute(
            "SELECT id FROM replayed WHERE NOT matched ORDER BY rowid LIMIT ?", (limit,)
        )
        for (packed,) in found:
            yield unpack(packed)
