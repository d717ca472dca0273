"""What is written and what must come of it: the reference model, by number. Shares nothing with the engine.

Record `n` of an input has a key and a place `turn` in the count of that key, both chosen by the seed: so a reader sees
from any record whether one before it is missing. `EDGES` gives for each edge what record `n` must be there, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faults.project import FACTORS

KEYS: Final = 211
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

    def event(self, n: int) -> dict[str, Any]:
        """Record n as it is written to the input."""
        return {
            "word": word(int(self.keys[n])), "n": n, "turn": int(self.turns[n]), "kind": int(self.kinds[n]),
            "twice": 0, "x": [float(n % 7), float(n % 11), float(n % 13), 1.0],
            "parts": [(n + i) % 10 for i in range(n % 4)],
        }  # fmt: skip


def word(key: int) -> str:
    return f"w{key}"


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


@dataclass(frozen=True)
class Edge:
    """An edge and what must be there: `judged` holds a record against the story, `fates` are the kinds that arrive."""

    topic: str
    judged: Judged
    absent: tuple[int, ...] = ()
    pieces: bool = False
    lacking: int = -1  # the part that is filtered out

    def wanted(self, story: Story, count: int) -> tuple[Integers, Integers]:
        """Number and index (0 where there are no pieces) of every record that must be there, of the first `count`."""
        n = np.flatnonzero(~np.isin(story.kinds[:count], self.absent)).astype(np.int64)
        if not self.pieces:
            return n, np.zeros(len(n), dtype=np.int64)
        index = np.concatenate([np.arange(children(int(m))) for m in n]) if len(n) else n
        numbers = np.repeat(n, n % 4)
        kept = (numbers + index) % 10 != self.lacking
        return numbers[kept], index.astype(np.int64)[kept]


_THROUGH: Final = (DROPPED, FAILING, LARGE)
EDGES: Final[Mapping[str, tuple[Edge, ...]]] = {
    "flow": (
        Edge("flow.sane", _sane, (DROPPED,)),
        Edge("flow.score", _score, (DROPPED,)),
        Edge("flow.tag", _tag, _THROUGH),
        Edge("flow.both", _both, _THROUGH),
        Edge("flow.pieces", _piece, _THROUGH, pieces=True),
        Edge("flow.pieces.parents", _both, _THROUGH),
        Edge("flow.worth", _piece, _THROUGH, pieces=True, lacking=4),
        Edge("flow.whole", _whole, _THROUGH),
        Edge("flow.last", _whole, _THROUGH),
    ),
    "plain": (
        Edge("plain.tag", _tag, (FAILING, LARGE)),
        Edge("plain.next", _tag, _THROUGH),
    ),
}
"""By pipeline, all that is written on the way from `PIPELINE.events`. A new pipeline is judged by an entry here."""
FATAL: Final = {"flow": (FAILING, LARGE), "plain": (FAILING, LARGE)}
"""Kinds of records that end in the dead letters, by pipeline."""
