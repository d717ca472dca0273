from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from dataflow.core import limits
from dataflow.core.errors import StateError
from dataflow.state.changelog import (
    EXPIRING,
    FOREVER,
    TIMER,
    VALUE,
    Entry,
    encode_key,
    encode_timer,
    head_of,
    pack_length,
    pack_time,
)
from dataflow.state.store import Store, open_store


def value(key: bytes, name: str, node: str = "n") -> bytes:
    return encode_key(Entry(VALUE, node, key, name))


def timer(key: bytes, name: str, node: str = "n") -> bytes:
    return encode_key(Entry(TIMER, node, key, name))


def filled(path: Path, now_ms: int = 1_000, topic_id: str = "topic") -> Store:
    store = open_store(path, topic_id, now_ms)
    store.apply(
        [(value(b"k", "a"), FOREVER + b"\x01"), (timer(b"k", "t"), encode_timer("event", 5))], 7, now_ms
    )
    return store


def is_full(store: Store) -> bool:
    return (store.next_offset, store.get(value(b"k", "a")), store.timer(timer(b"k", "t"))) == (
        7, FOREVER + b"\x01", encode_timer("event", 5),
    )  # fmt: skip


def is_empty(store: Store) -> bool:
    return store.next_offset == 0 and not store.items(b"", 9) and not store.timers("n", 1, (0, b"", ""), 9)


def test_it_comes_back_from_its_file_even_if_nobody_closed_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "0.sqlite"
    child = f"""
import os, pathlib
from tests.state.test_store import filled
filled(pathlib.Path({str(path)!r}))
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", child], check=False, timeout=60, cwd=Path(__file__).parents[2])
    store = open_store(path, "topic", 2_000)
    assert is_full(store)
    store.close()


def test_changes_replace_and_remove(tmp_path: Path) -> None:
    store = filled(tmp_path / "0.sqlite")
    store.apply(
        [(value(b"k", "a"), None), (value(b"k", "b"), FOREVER + b"\x02"), (timer(b"k", "t"), None)], 9, 1
    )
    assert (store.get(value(b"k", "a")), store.timer(timer(b"k", "t")), store.next_offset) == (None, None, 9)
    assert store.has(value(b"k", "b"))
    assert not store.has(value(b"k", "a"))
    assert not store.has(timer(b"k", "t"))
    store.close()


def test_items_are_those_of_the_prefix_in_order() -> None:
    store = open_store(None, "topic", 0)
    entries = [
        value(b"k", "a"),
        value(b"k", "aé"),
        value(b"k", "b"),
        value(b"k\0", "a"),
        value(b"k", "a", "m"),
    ]
    store.apply([(entry, FOREVER + b"\x01") for entry in reversed(entries)], 1, 0)
    head = head_of(VALUE, "n") + pack_length(1) + b"k"
    assert [entry for entry, _ in store.items(head, 9)] == entries[:3]
    assert [entry for entry, _ in store.items(head + b"a", 9)] == entries[:2]
    assert [entry for entry, _ in store.items(head, 1)] == entries[:1]
    store.close()


def test_timers_come_by_time_key_and_name_from_where_one_was() -> None:
    store = open_store(None, "topic", 0)
    ordered = [(-5, b"z", "a"), (1, b"a", "b"), (1, b"b", ""), (1, b"b", "a"), (2, b"", "")]
    store.apply([(timer(k, n), encode_timer("event", at)) for at, k, n in reversed(ordered)], 1, 0)
    store.apply([(timer(b"q", "q"), encode_timer("processing", 1))], 1, 0)
    before_all = (-(1 << 63), b"", "")
    assert store.timers("n", 1, before_all, 9) == ordered
    assert store.timers("n", 1, ordered[1], 2) == ordered[2:4]
    assert store.timers("n", 0, before_all, 9) == [(1, b"q", "q")]
    assert store.timers("m", 1, before_all, 9) == []
    store.close()


def test_entries_whose_time_is_over_come_by_it() -> None:
    store = open_store(None, "topic", 0)
    store.apply([(value(b"k", str(at)), EXPIRING + pack_time(at) + b"\x01") for at in (30, 10, 20)], 1, 0)
    store.apply([(value(b"k", "forever"), FOREVER + b"\x01")], 1, 0)
    assert [at for at, _ in store.expired((0, b""), 20, 9)] == [10, 20]
    assert [at for at, _ in store.expired((10, value(b"k", "10")), 99, 9)] == [20, 30]
    store.apply([(value(b"k", "10"), FOREVER + b"\x01")], 1, 0)
    assert [at for at, _ in store.expired((0, b""), 99, 9)] == [20, 30]
    store.close()


def test_a_file_of_another_topic_is_emptied(tmp_path: Path) -> None:
    filled(tmp_path / "0.sqlite").close()
    store = open_store(tmp_path / "0.sqlite", "another", 1_000)
    assert is_empty(store)
    store.close()


@pytest.mark.parametrize(
    "away_ms",
    [limits.MAX_STATE_FILE_AGE_MS, limits.MAX_STATE_FILE_AGE_MS + 1, -limits.MAX_STATE_FILE_AGE_MS - 1],
)
def test_a_file_older_than_tombstones_are_kept_is_emptied(tmp_path: Path, away_ms: int) -> None:
    """... as is one from the future: one of the two clocks is wrong, and nobody knows which."""
    filled(tmp_path / "0.sqlite", 10**12).close()
    store = open_store(tmp_path / "0.sqlite", "topic", 10**12 + away_ms)
    assert is_full(store) if abs(away_ms) == limits.MAX_STATE_FILE_AGE_MS else is_empty(store)
    store.close()


def test_closing_says_that_it_was_complete_until_then(tmp_path: Path) -> None:
    filled(tmp_path / "0.sqlite", 10**12).close(10**12 + limits.MAX_STATE_FILE_AGE_MS)
    store = open_store(tmp_path / "0.sqlite", "topic", 10**12 + 2 * limits.MAX_STATE_FILE_AGE_MS)
    assert is_full(store)
    store.close()


LATER = 10**12


def read(store: Store, count: int) -> None:
    store.restore("log [0]", [(n, value(b"%d" % n, "a"), FOREVER + b"\x01") for n in range(count)], count)


def test_a_file_is_complete_only_once_the_changelog_was_read_to_its_end(tmp_path: Path) -> None:
    """Half of it is kept for the next start only if it was complete not long ago: tombstones may be gone."""
    path = tmp_path / "0.sqlite"
    store = open_store(path, "topic", LATER)
    read(store, 5)
    store.restored(None)
    store.close()
    store = open_store(path, "topic", LATER)
    assert is_empty(store), "it never was"
    read(store, 5)
    store.restored(LATER)
    store.close()
    store = open_store(path, "topic", LATER + limits.MAX_STATE_FILE_AGE_MS)
    assert store.next_offset == 5
    read(store, 9)
    store.restored(None)
    store.close()
    store = open_store(path, "topic", LATER + limits.MAX_STATE_FILE_AGE_MS)
    assert store.next_offset == 9
    store.close()
    store = open_store(path, "topic", LATER + limits.MAX_STATE_FILE_AGE_MS + 1)
    assert is_empty(store)
    store.close()


@pytest.mark.parametrize(("bound", "value"), [("STATE_RESTORE_RECORDS", 3), ("STATE_RESTORE_BYTES", 50)])
def test_what_is_restored_is_stored_many_at_once(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(limits, bound, value)
    store = open_store(None, "topic", 0)
    read(store, 2)
    assert (store.next_offset, store.read_to) == (0, 2)
    read(store, 4)
    assert (store.next_offset, store.read_to) == (4, 4)
    read(store, 5)
    store.restored(None)
    assert (store.next_offset, len(store.items(b"", 9))) == (5, 5)
    store.close()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5_000])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.sqlite"
    path.write_bytes(content)
    store = open_store(path, "topic", 1_000)
    assert is_empty(store)
    store.apply([(value(b"k", "a"), FOREVER + b"\x01")], 7, 1_000)
    store.close()
    again = open_store(path, "topic", 1_000)
    assert again.next_offset == 7
    again.close()


def test_damage_that_is_met_later_is_an_error_once(tmp_path: Path) -> None:
    path = tmp_path / "0.sqlite"
    store = filled(path)
    store.apply([(value(b"%05d" % n, "a"), FOREVER + bytes(500)) for n in range(2_000)], 8, 1_000)
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        # Behind the pages that say what is where.
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
    damaged = open_store(path, "topic", 1_000)
    with pytest.raises(StateError, match="restored from the changelog at the next start"):
        damaged.items(b"", 9_999)
    damaged.close()
    store = open_store(path, "topic", 1_000)
    assert is_empty(store)
    store.close()


def test_while_another_one_has_the_file_there_is_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "0.sqlite"
    owner = filled(path)
    other = open_store(path, "topic", 1_000)
    assert is_empty(other)
    other.apply([(value(b"k", "b"), FOREVER + b"\x01")], 9, 1_000)
    assert other.has(value(b"k", "b"))
    other.close()
    assert is_full(owner)
    owner.close()
    third = open_store(path, "topic", 1_000)
    assert is_full(third)
    third.close()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="DATAFLOW_STATE_DIR"):
        open_store(tmp_path / "file" / "0.sqlite", "topic", 0)


def test_a_lock_that_the_disk_does_not_know_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StateError, match="no locks available"):
        open_store(tmp_path / "0.sqlite", "topic", 0)


def test_clear_empties(tmp_path: Path) -> None:
    store = filled(tmp_path / "0.sqlite")
    store.clear()
    assert is_empty(store)
    store.close()


def test_a_full_disk_is_told_and_leaves_what_was(tmp_path: Path) -> None:
    store = filled(tmp_path / "0.sqlite")
    store._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(StateError, match="is the disk full"):
        store.apply([(value(b"%d" % n, "a"), FOREVER + bytes(1_000)) for n in range(200)], 9, 1_000)
    assert is_full(store)
    store.close()
