"""Which items belong to which record, in which order, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflow.sdk import Column, Row

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Family:
    """The items of several records, sorted by record and index.

    order     positions of the items in their batch; those of record i are ``order[starts[i]:starts[i + 1]]``
    index     of each item of `order`, its place in its record
    orphans   positions of items whose record is not there
    again     records that are there a second time: all items are the first one's
    """

    order: Indices
    index: Column
    starts: Indices
    orphans: Indices
    again: frozenset[int]

    def indices(self, record: int) -> Column:
        """The places of a record that are taken, ascending."""
        return self.index[self.starts[record] : self.starts[record + 1]]

    def lacking(self, record: int, count: int) -> list[int]:
        """The places of a record, of `count`, that are not taken."""
        there = self.indices(record)
        made: list[int] = [] if len(there) == count else np.setdiff1d(np.arange(count), there).tolist()
        return made

    def fault(self, record: int, count: int) -> tuple[str, str]:
        """(error, reason) if the items of a record, of which there should be `count`, contradict each other."""
        index = self.indices(record)
        if record in self.again:
            return "SeveralRecords", "this record came more than once on 'of'"
        if len(index) and (index[0] < 0 or index[-1] >= count):
            wrong = int(index[0] if index[0] < 0 else index[-1])
            return "WrongItem", f"item {wrong} is none of the {count} of this record"
        twice = np.flatnonzero(np.diff(index) == 0)
        if len(twice):
            return "SeveralRecords", f"item {int(index[twice[0]])} came more than once"
        return "", ""

    def lists(self, values: Any, records: Sequence[int], counts: Sequence[int] | None) -> list[Any]:
        """For each of `records` its part of `values`, which are in `order`; with `counts`, None at places not taken."""
        made = []
        for record in records:
            start, stop = self.starts[record], self.starts[record + 1]
            part = values[start:stop]
            if counts is not None and stop - start < counts[record]:
                full: list[Any] = [None] * counts[record]
                for place, value in zip(self.index[start:stop].tolist(), part, strict=True):
                    full[place] = value
                part = full
            made.append(part)
        return made


def gathered(parents: Sequence[Row], items: Sequence[Row], index: Column) -> Family:
    """Match items to parents: of the same fetched record, and derived from the parent's id.

    The id alone would not do: a fetched batch may hold one record twice, each with items of its own.
    """
    places: dict[tuple[int, bytes], int] = {}
    again = frozenset(
        at for at, row in enumerate(parents) if places.setdefault((row.source, row.id), at) != at
    )
    owners = [places.get((row.source, row.parents[0] if row.parents else b""), -1) for row in items]
    owner = np.array(owners, dtype=np.intp)
    order = np.lexsort((index, owner))
    order = order[owner[order] >= 0]
    starts = np.searchsorted(owner[order], np.arange(len(parents) + 1))
    return Family(order, index[order], starts, np.flatnonzero(owner < 0), again)
