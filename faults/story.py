"""What is written and what must come of it: the reference model, by number. Shares nothing with the engine.

Record `n` of an input has a key and a place `turn` in the count of that key, both chosen by the seed: so a reader sees
from any record whether one before it is missing. `EDGES` gives for each edge what record `n` must be there, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faults.project import FACTORS, SILENCE_MS, STEP_MS, WINDOW_MS

PARTITIONS: Final = 4
KEYS: Final = 211
LOTS: Final = 13
EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
DROPPED, FAILING, LATE, LARGE = 3, 5, 6, 7
# Of 1,000 records, how many are of a kind that does not simply go through.
SHARES: Final = {DROPPED: 50, FAILING: 3, LATE: 0.3, LARGE: 0.05}

Record = Mapping[str, Any]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Story:
    """The input of one pipeline: `records` records, the same for the same seed."""

    seed: int
    records: int

    @cached_property
    def keys(self) -> Integers:
        """Number of the key by n: few keys have many records, as in life."""
        random = np.random.default_rng(self.seed)
        weights = 1 / np.arange(1, KEYS + 1) ** 0.6
        return random.choice(KEYS, self.records, p=weights / weights.sum()).astype(np.int64)

    @cached_property
    def turns(self) -> Integers:
        """The count of its key by n, from 0."""
        order = np.argsort(self.keys, kind="stable")
        ends = np.cumsum(np.bincount(self.keys, minlength=KEYS))
        starts = np.concatenate([[0], ends[:-1]])
        turns = np.empty(self.records, dtype=np.int64)
        turns[order] = np.arange(self.records) - starts[self.keys[order]]
        return turns

    @cached_property
    def kinds(self) -> Integers:
        random = np.random.default_rng(self.seed + 1)
        shares = np.array([*SHARES.values()]) / 1000
        names = np.array([0, *SHARES])
        return names[random.choice(len(names), self.records, p=[1 - shares.sum(), *shares])].astype(np.int64)

    @cached_property
    def homes(self) -> Integers:
        """Where each key lives among `PARTITIONS`, by its number."""
        return np.array([murmur2(word(k).encode()) % PARTITIONS for k in range(KEYS)])

    @cached_property
    def tallies(self) -> tuple[Integers, Integers]:
        """By n, what pipeline `kept` counts and adds up for its key: of all that do not fail, up to and with n."""
        counted = self.kinds != FAILING
        order = np.argsort(self.keys, kind="stable")
        made = []
        for values in (counted.astype(np.int64), np.where(counted, np.arange(self.records), 0)):
            running = np.cumsum(values[order])
            sizes = np.bincount(self.keys, minlength=KEYS)
            before = np.concatenate([[0], running])[np.concatenate([[0], np.cumsum(sizes)[:-1]])]
            by_n = np.empty(self.records, dtype=np.int64)
            by_n[order] = running - np.repeat(before, sizes)
            made.append(by_n)
        return made[0], made[1]

    def silences(self, count: int) -> Integers:
        """Of the first `count` records, those after which their key was silent: told when event time comes there."""
        n = np.flatnonzero(self.kinds[:count] != FAILING)
        keys = self.keys[n]
        order = np.argsort(keys, kind="stable")
        n, keys = n[order], keys[order]
        until = self._event_time_ends(count)[self.homes[keys]]
        same = keys[1:] == keys[:-1]
        until[:-1][same] = n[1:][same] * STEP_MS
        return np.sort(n[n * STEP_MS + SILENCE_MS <= until])

    def windows(self, count: int) -> dict[int, tuple[int, int]]:
        """The windows of all keys that event time has closed: the last n of each, and how many records, and their sum."""
        n = np.arange(count)
        keys = self.keys[:count]
        window = n * STEP_MS // WINDOW_MS
        code = keys * (int(window[-1]) + 1) + window if count else n
        _, place = np.unique(code, return_inverse=True)
        sizes, sums = np.bincount(place), np.bincount(place, weights=n)
        last = np.zeros(len(sizes), dtype=np.int64)
        np.maximum.at(last, place, n)
        ends = (last * STEP_MS // WINDOW_MS + 1) * WINDOW_MS
        closed = ends <= self._event_time_ends(count)[self.homes[self.keys[last]]]
        return {
            int(m): (int(size), int(total))
            for m, size, total in zip(last[closed], sizes[closed], sums[closed], strict=True)
        }

    @cached_property
    def every_window(self) -> dict[int, tuple[int, int]]:
        return self.windows(self.records)

    def _event_time_ends(self, count: int) -> Integers:
        """The latest event time of each partition, in ms since `EPOCH`; -1 for none."""
        ends = np.full(PARTITIONS, -1, dtype=np.int64)
        np.maximum.at(ends, self.homes[self.keys[:count]], np.arange(count) * STEP_MS)
        return ends

    def kept(self, n: int) -> dict[str, Any]:
        """Record n as it is written to the input of `kept`."""
        return {
            "word": word(int(self.keys[n])), "n": n, "turn": int(self.turns[n]), "kind": int(self.kinds[n]),
            "lot": lot(n), "at": EPOCH + timedelta(milliseconds=n * STEP_MS),
        }  # fmt: skip

    def event(self, n: int) -> dict[str, Any]:
        """Record n as it is written to the inputs of the others."""
        return {
            "word": word(int(self.keys[n])), "n": n, "turn": int(self.turns[n]), "kind": int(self.kinds[n]),
            "twice": 0, "x": [float(n % 7), float(n % 11), float(n % 13), 1.0],
            "parts": [(n + i) % 10 for i in range(n % 4)],
        }  # fmt: skip


def word(key: int) -> str:
    return f"w{key}"


def lot(n: int) -> str:
    return f"l{n % LOTS}"


def murmur2(data: bytes) -> int:
    """Kafka's hash of a key (Austin Appleby's MurmurHash2, 32 bits, as Java's clients take it), positive."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return (h ^ (h >> 15)) & 0x7FFFFFFF


def total(n: int) -> float:
    """What the model makes of record n, before its factor."""
    return float(n % 7 + n % 11 + n % 13 + 1)


def children(n: int) -> int:
    """How many parts record n has."""
    return n % 4


Judged = Callable[[Story, Record], bool]


def _sane(story: Story, value: Record) -> bool:
    return _plain(value) == story.event(value["n"])


def _plain(value: Record) -> dict[str, Any]:
    """With the tensor as a list: on the wire it is little-endian bytes."""
    tensor = value.get("x")
    if isinstance(tensor, bytes):
        return {**value, "x": np.frombuffer(tensor, "<f4").tolist()}
    return dict(value)


def _score(_story: Story, value: Record) -> bool:
    return bool(value["y"] / total(value["n"]) in FACTORS)


def _tag(story: Story, value: Record) -> bool:
    n = value["n"]
    return _plain(value) == {**story.event(n), "twice": 2 * n}


def _both(story: Story, value: Record) -> bool:
    found = _plain(value)
    y = found.pop("y")
    found.pop("count", None)
    return _tag(story, found) and _score(story, {"n": value["n"], "y": y})


def _piece(_story: Story, value: Record) -> bool:
    n, index = value["n"], value["index"]
    return bool(value["count"] == children(n) and index < children(n) and value["part"] == (n + index) % 10)


def _whole(story: Story, value: Record) -> bool:
    n = value["n"]
    event = story.event(n)
    parts = event["parts"]
    return (
        all(value[name] == event[name] for name in ("word", "turn", "kind"))
        and value["twice"] == 2 * n
        and value["part"] == [None if p == 4 else p for p in parts]
        and value["gone"] == [i for i, p in enumerate(parts) if p == 4]
        and value.get("thrice", 3 * n) == 3 * n
        and _score(story, value)
    )


def _tally(story: Story, value: Record) -> bool:
    n = value["n"]
    seen, total_ = story.tallies
    return bool(value["seen"] == seen[n] and value["total"] == total_[n])


def _window(story: Story, value: Record) -> bool:
    n = value["n"]
    begins = EPOCH + timedelta(milliseconds=n * STEP_MS // WINDOW_MS * WINDOW_MS)
    return value["window_start"] == begins and story.every_window.get(n) == (value["records"], value["total"])


def _lots(story: Story, value: Record) -> bool:
    return dict(value) == story.kept(value["n"])


# A record's code: its number, and which of several it is.
PIECES: Final = 4
Wanted = Callable[[Story, int], Integers]


def through(*absent: int) -> Wanted:
    """Codes of all records but those of some kinds."""
    return lambda story, count: (
        np.flatnonzero(~np.isin(story.kinds[:count], absent)).astype(np.int64) * PIECES
    )


def parts(*absent: int, lacking: int = -1) -> Wanted:
    """Codes of the parts of records, without one that is filtered out."""

    def wanted(story: Story, count: int) -> Integers:
        n = through(*absent)(story, count) // PIECES
        numbers = np.repeat(n, n % 4)
        first = np.repeat(np.cumsum(n % 4) - n % 4, n % 4)
        index = np.arange(len(numbers)) - first
        kept = (numbers + index) % 10 != lacking
        made: Integers = numbers[kept] * PIECES + index[kept]
        return made

    return wanted


def silences(story: Story, count: int) -> Integers:
    return story.silences(count) * PIECES + 1


def tallied(story: Story, count: int) -> Integers:
    return np.concatenate([through(FAILING)(story, count), silences(story, count)])


def closed_windows(story: Story, count: int) -> Integers:
    return np.array(sorted(story.windows(count)), dtype=np.int64) * PIECES


def only(_value: Record) -> int:
    return 0


@dataclass(frozen=True)
class Edge:
    """An edge: `wanted` says which records must be there, `judged` whether one is what it must be.

    `which` is which of the several records of one number this is; `by_lot`, that the edge is keyed by lot.
    """

    topic: str
    judged: Judged
    wanted: Wanted
    which: Callable[[Record], int] = only
    by_lot: bool = False


def piece_of(value: Record) -> int:
    return int(value["index"])


def silent(value: Record) -> int:
    return int(value["silent"])


_GONE: Final = (DROPPED, FAILING, LARGE)
EDGES: Final[Mapping[str, tuple[Edge, ...]]] = {
    "flow": (
        Edge("flow.sane", _sane, through(DROPPED)),
        Edge("flow.score", _score, through(DROPPED)),
        Edge("flow.tag", _tag, through(*_GONE)),
        Edge("flow.both", _both, through(*_GONE)),
        Edge("flow.pieces", _piece, parts(*_GONE), piece_of),
        Edge("flow.pieces.parents", _both, through(*_GONE)),
        Edge("flow.worth", _piece, parts(*_GONE, lacking=4), piece_of),
        Edge("flow.whole", _whole, through(*_GONE)),
        Edge("flow.last", _whole, through(*_GONE)),
    ),
    "kept": (
        Edge("kept.tally", _tally, tallied, silent),
        Edge("kept.loud", _tally, silences, silent),
        Edge("kept.window", _window, closed_windows),
        Edge("kept.lots", _lots, through(), by_lot=True),
        Edge("kept.counted", _lots, through(DROPPED), by_lot=True),
    ),
    "plain": (
        Edge("plain.tag", _tag, through(FAILING, LARGE)),
        Edge("plain.next", _tag, through(*_GONE)),
    ),
}
"""By pipeline, all that is written on the way from `PIPELINE.events`. A new pipeline is judged by an entry here."""
FATAL: Final = {"flow": (FAILING, LARGE), "kept": (FAILING,), "plain": (FAILING, LARGE)}
"""Kinds of records that end in the dead letters, by pipeline."""
EXACTLY_ONCE: Final = ("flow", "kept")
