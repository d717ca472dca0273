"""A gather whose children come of another stage: they wait in keyed state, with their record, until all of them are over.

The key of the state is the record's id (and its attempt): children name it in `Row.parents`, and lie on its partition. One
entry holds all that is known of a child: its parts by way, and what was said of it on the control topic. A child is over
when it has come on each way or cannot any more; the record says how many there are, and one more entry counts. So a child
costs one entry, and is looked at once, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from dataflow.core import limits
from dataflow.core.batch import Batch, Row, pack_row, unpack_row
from dataflow.core.errors import NodeError
from dataflow.core.outcomes import LATE, ORPHAN, Out
from dataflow.planner.plan import CONTROL, NodePlan
from dataflow.runtime.across import (
    CLOSED,
    PART,
    WAIT,
    Across,
    Side,
    Whole,
    closure,
    identity,
    numbered,
    unasked,
    whole_row,
)
from dataflow.sdk import Node
from dataflow.state.api import KeyedState, Timer

_CHILD: Final = "child "
_FAMILY: Final = "family"


class Expecting(Protocol):
    """A gather of children."""

    def expected(self, batch: Batch) -> Sequence[int]: ...


@dataclass(slots=True)
class _Family:
    """What is known of a record and its children.

    over      how many children came, or cannot come any more
    count     how many there are; None where the record is not there to say so
    decided   the record itself came, or cannot come any more
    until_ms  when its time is over; 0 for no such time yet
    done      it is over, and why what comes now is not taken: LATE, or ORPHAN for one whose record did not come; "" before
    there     of one whose time was over: the children that had come; None for all
    """

    over: int = 0
    count: int | None = None
    decided: bool = False
    until_ms: int = 0
    done: str = ""
    there: frozenset[bytes] | None = None

    @property
    def is_whole(self) -> bool:
        return self.decided and (self.count is None or self.over >= self.count)


class _Book:
    """The families that one call has to do with: each is read once and, where it goes on or is over now, written once."""

    def __init__(self, state: KeyedState) -> None:
        self.state = state
        self._families: dict[bytes, _Family] = {}
        self._closed: dict[bytes, int] = {}

    def of(self, key: bytes) -> _Family:
        found = self._families.get(key)
        if found is None:
            stored = self.state.get(key, _FAMILY) or {}
            if stored.get("there") is not None:
                stored["there"] = frozenset(stored["there"])
            found = self._families[key] = _Family(**stored)
        return found

    def close(self, key: bytes, ttl_ms: int) -> None:
        """Remember for so long that a family is over."""
        self._closed[key] = ttl_ms

    def save(self) -> None:
        for key, family in self._families.items():
            if family.done and key not in self._closed:
                continue
            value: dict[str, Any] = {"done": family.done}
            if not family.done:
                value |= {"over": family.over, "count": family.count, "decided": family.decided}
                value["until_ms"] = family.until_ms
            elif family.there is not None:
                value["there"] = sorted(family.there)
            self.state.put(key, _FAMILY, value, self._closed.get(key, 0))


class Families(Across):
    """The gather of a stage. `children` is the port that they come on, `late` what becomes of one that comes too late."""

    def __init__(
        self,
        node: Node,
        plan: NodePlan,
        sides: Mapping[str, Side],
        wait_ms: int | None,
        *,
        children: str,
        late: str = "drop",
    ) -> None:
        super().__init__(node, plan, sides, wait_ms)
        self._children = children
        self._late = late
        self._child_ways = tuple(way for way, port in self._ports.items() if port == children)
        self._own_ways = tuple(way for way, port in self._ports.items() if port != children)
        self._child_edges = _upstream(plan.apart, plan.inputs[children])
        self._nothing = "no " + ", ".join(port for port in plan.inputs if port != children)

    # ---- what comes

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        """Children, or their records, on a way, or what stages say of either."""
        book = _Book(state)
        if port == CONTROL:
            whole = self._hear_of(batch, book, out)
        elif port in self._child_ways:
            whole = self._take_children(batch, port, book, out)
        else:
            whole = self._take_own(batch, port, book, out)
        book.save()
        self._gather(whole, out)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """The time of some records is over: what is there of them has to do."""
        book = _Book(state)
        made = [self._close(t.key, book, out, limits.EDGE_RETENTION_MS) for t in timers]
        book.save()
        self._gather([one for one in made if one is not None], out)

    def _take_children(self, batch: Batch, way: str, book: _Book, out: Out) -> list[Whole]:
        fingerprint, values = self._encoded(batch, way)
        name, edge = PART + way, self._edges[way]
        whole: list[Whole] = []
        for index, row in enumerate(batch.rows):
            key = _family_of(row)
            family = book.of(key)
            if not row.parents or family.done:
                self._refuse(row, family, out)
                continue
            found = book.state.get(key, _entry(row)) or {}
            if name in found:
                out.end(_alone(unasked(row)), LATE)  # written twice, by a worker that was killed
                continue
            part = {"row": pack_row(row), "as": fingerprint, "value": values[index]}
            try:
                self._note(key, row, {**found, name: part}, found, book)
            except NodeError as error:  # too large for state: nothing more comes of it
                out.end(_alone(row), str(error), error=type(error).__name__)
                self._note(key, row, {**found, closure(edge, edge): True}, found, book)
            self._settled(key, row, index, book, out, whole)
        out.hold()
        return whole

    def _take_own(self, batch: Batch, way: str, book: _Book, out: Out) -> list[Whole]:
        fingerprint, values = self._encoded(batch, way)
        counts = cast("Expecting", self._node).expected(batch)
        name, edge, state = PART + way, self._edges[way], book.state
        whole: list[Whole] = []
        for index, row in enumerate(batch.rows):
            key = identity(row)
            family = book.of(key)
            if family.done == ORPHAN:
                out.end(row, LATE)
                continue
            if family.done or state.get(key, name) is not None:
                out.end(unasked(row), LATE)
                continue
            part = {"row": pack_row(row), "as": fingerprint, "value": values[index]}
            try:
                state.put(key, name, part)
                family.count = counts[index]
            except NodeError as error:
                out.end(row, str(error), error=type(error).__name__)
                state.put(key, closure(edge, edge), True)
            family.decided = self._is_decided(key, state)
            self._settled(key, row, index, book, out, whole)
        out.hold()
        return whole

    def _hear_of(self, batch: Batch, book: _Book, out: Out) -> list[Whole]:
        out.consume()
        whole: list[Whole] = []
        sources, edges = batch["source"].tolist(), batch["edge"].tolist()
        for index, row in enumerate(batch.rows):
            of_child = edges[index] in self._child_edges
            if edges[index] not in self._plan.apart or (of_child and not row.parents):
                continue  # it concerns another join
            key, name = _family_of(row) if of_child else identity(row), closure(sources[index], edges[index])
            family = book.of(key)
            if family.done:
                continue
            if of_child:
                found = book.state.get(key, _entry(row)) or {}
                self._note(key, row, {**found, name: True}, found, book)
            else:
                book.state.put(key, name, True)
                family.decided = self._is_decided(key, book.state)
            self._settled(key, row, index, book, out, whole)
            if book.of(key).done == ORPHAN:
                out.end(unasked(row), self._nothing)  # whoever waits was told where it ended
        return whole

    def _note(
        self, key: bytes, row: Row, now: Mapping[str, Any], before: Mapping[str, Any], book: _Book
    ) -> None:
        """Store what is known of a child, and count it when it is over. Raises NodeError for what is too large."""
        book.state.put(key, _entry(row), now)
        ended = self._is_whole(now, self._child_ways) and not self._is_whole(before, self._child_ways)
        book.of(key).over += ended

    def _is_decided(self, key: bytes, state: KeyedState) -> bool:
        return self._is_whole(dict(state.items(key, PART) + state.items(key, CLOSED)), self._own_ways)

    def _refuse(self, row: Row, family: _Family, out: Out) -> None:
        """End a child that has no record to go to, or comes when that is over."""
        if family.done != LATE:
            out.end(_alone(row), ORPHAN)
        elif family.there is None or row.id in family.there:
            out.end(_alone(unasked(row)), LATE)
        elif self._late == "fail":
            out.end(_alone(row), "its record was put together without it", error="Late")
        else:
            out.end(_alone(row), LATE)

    # ---- when it is over

    def _settled(self, key: bytes, row: Row, index: int, book: _Book, out: Out, whole: list[Whole]) -> None:
        """Put a family among the whole ones if it is, or see to its time."""
        family = book.of(key)
        if not family.is_whole:
            self._set_time(key, family, row, book.state)
            return
        made = self._close(key, book, out, limits.APART_DOUBLES_MS, index)
        if made is not None:
            whole.append(made)

    def _set_time(self, key: bytes, family: _Family, row: Row, state: KeyedState) -> None:
        until_ms = family.until_ms
        if self._wait_ms is not None:
            until_ms = until_ms or state.now_ms + self._wait_ms
        elif row.reply and row.deadline_ms:
            until_ms = row.deadline_ms
        else:
            until_ms = until_ms or state.now_ms + limits.EDGE_RETENTION_MS
        if until_ms != family.until_ms:
            family.until_ms = until_ms
            state.set_timer(key, WAIT, until_ms)

    def _close(self, key: bytes, book: _Book, out: Out, ttl_ms: int, after: int = -1) -> Whole | None:
        """The record and its children, taken out of the state; without a record the children end."""
        family, found = book.of(key), dict(book.state.items(key))
        own = [(way, found[PART + way]) for way in self._own_ways if PART + way in found]
        children = [
            (way, known[PART + way])
            for name, known in found.items()
            if name.startswith(_CHILD)
            for way in self._child_ways
            if PART + way in known
        ]
        self._forget(key, found, book.state)
        if not family.is_whole:
            family.there = frozenset(part["row"]["id"] for _, part in children)
        family.done = LATE if own else ORPHAN
        book.close(key, ttl_ms)
        if own:
            parts = [*own, *children]
            return Whole(parts, whole_row(part for _, part in parts), after)
        for _, part in children:
            out.end(_alone(unpack_row(part["row"])), ORPHAN)
        return None

    def _row_of(self, port: str, part: Mapping[str, Any], row: Row) -> Row:
        return numbered(unpack_row(part["row"]), row.source) if port == self._children else row


def _upstream(ways: Mapping[str, Sequence[str]], edges: Iterable[str]) -> frozenset[str]:
    """These edges, and those on the ways to them."""
    found: set[str] = set()
    waiting = list(edges)
    while waiting:
        edge = waiting.pop()
        if edge not in found:
            found.add(edge)
            waiting += ways.get(edge, ())
    return frozenset(found)


def _family_of(row: Row) -> bytes:
    """The `identity` of a child's record."""
    parent = row.parents[0] if row.parents else b""
    return parent if not row.attempt else b"%b/%d" % (parent, row.attempt)


def _entry(row: Row) -> str:
    return _CHILD + row.id.decode()


def _alone(row: Row) -> Row:
    """A child as it ends here: of no concern to joins that wait for its record."""
    return Row(row.id, row.key, row.source, row.carry, row.reply, row.deadline_ms, row.attempt)
