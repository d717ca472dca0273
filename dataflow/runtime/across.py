"""A join whose sides come of different stages: what came of a record waits in keyed state for what is still to come.

The join itself is as ever: it gathers all there is of some records. It is asked once each side of a record has arrived or
will not come, or a time is over. A side is a *way* here: the edge that it comes by, for a side may be fed by several; all of
them are waited for, as in a stage of one piece. That a way is closed follows from what stages say on the control topic:
see `planner.apart`. The key of the state is the record's id, and its attempt: a redrive begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from dataflow.codecs import Codec
from dataflow.core import limits, shares
from dataflow.core.batch import Batch, Encoded, Row, concatenate, pack_row, unpack_row
from dataflow.core.errors import NodeError
from dataflow.core.outcomes import LATE, Out
from dataflow.core.schema import Schema
from dataflow.planner.plan import CONTROL, NodePlan
from dataflow.runtime.nodes import Gatherer
from dataflow.sdk import Node, Sides
from dataflow.state.api import KeyedState, Timer

# Names of a record's entries: a part by its way, a closure by source and edge, and what was there when all was over.
PART: Final = "part "
CLOSED: Final = "closed "
DONE: Final = "done"
WAIT: Final = "wait"


@dataclass(frozen=True)
class Side:
    """A side as its contract is now, and how to read what was kept under an older one (by fingerprint)."""

    codec: Codec
    older: Callable[[bytes], Codec | None]


@dataclass(frozen=True, slots=True)
class Whole:
    """A record of which nothing more is waited for: its parts, each with its way, its identity, the row that ended it."""

    parts: Sequence[tuple[str, Mapping[str, Any]]]
    row: Row
    after: int


def by_way(plan: NodePlan) -> NodePlan:
    """The node as it is run: each edge of a side comes on a port of its own, and closures on one more."""
    ways = {_way(port, edge): (edge,) for port, edges in plan.inputs.items() for edge in edges}
    return replace(plan, inputs={**ways, CONTROL: (CONTROL,)})


def identity(row: Row) -> bytes:
    """What parts of one record, and what is said of it, have in common."""
    return row.id if not row.attempt else b"%b/%d" % (row.id, row.attempt)


class Across:
    """The join of a stage. `sides` by port; `wait_ms` None: as long as a caller waits, or the record may come at all."""

    keyed = True

    def __init__(self, node: Node, plan: NodePlan, sides: Mapping[str, Side], wait_ms: int | None) -> None:
        self._node = node
        self._plan = plan
        self._sides = sides
        self._wait_ms = wait_ms
        self._outputs = tuple(plan.outputs)
        self._edges = {_way(port, edge): edge for port, edges in plan.inputs.items() for edge in edges}
        self._ports = {_way(port, edge): port for port, edges in plan.inputs.items() for edge in edges}
        self._nothing = "no " + ", ".join(plan.inputs)

    def open(self) -> None:
        if hasattr(self._node, "open"):
            self._node.open()

    def close(self) -> None:
        if hasattr(self._node, "close"):
            self._node.close()

    # ---- what comes

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        """Parts of records on a way, or what stages say of records."""
        heard = port == CONTROL
        self._gather(self._hear(batch, state, out) if heard else self._take(batch, port, state, out), out)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """The time of some records is over: what is there of them has to do."""
        whole: list[Whole] = []
        for timer in timers:
            found = dict(state.items(timer.key))
            parts = self._parts(found)
            self._forget(timer.key, found, state)
            if parts:
                # What lies in Kafka may still come, for as long as it lies there.
                state.put(timer.key, DONE, list(parts), limits.EDGE_RETENTION_MS)
                whole.append(_whole(parts, -1))
        self._gather(whole, out)

    def _take(self, batch: Batch, way: str, state: KeyedState, out: Out) -> list[Whole]:
        fingerprint, values = self._encoded(batch, way)
        name, whole = PART + way, []
        taken: list[int] = []
        for index, row in enumerate(batch.rows):
            key = identity(row)
            found = dict(state.items(key))
            arrived = found.get(DONE)
            if arrived is not None and way not in arrived:
                out.drop([index], LATE)
                continue
            taken.append(index)
            if arrived is not None or name in found:
                # Written twice, at least once: whoever waits for the first is not told of the second.
                out.end(unasked(row), LATE)
                continue
            part = {"row": pack_row(row), "as": fingerprint, "value": values[index]}
            if self._is_whole({**found, name: part}, self._edges):
                parts = self._parts({**found, name: part})
                self._settle(key, found, parts, state)
                whole.append(_whole(parts, index))
                continue
            self._set_timer(key, found, state, row)
            try:
                state.put(key, name, part)
            except NodeError as error:  # too large for state: nothing more comes on this way
                out.end(row, str(error), error=type(error).__name__)
                state.put(key, closure(self._edges[way], self._edges[way]), True)
        out.hold(taken)
        return whole

    def _encoded(self, batch: Batch, way: str) -> tuple[bytes, Sequence[bytes | None]]:
        """Fingerprint and wire bytes of a batch: those it came with, as a rule."""
        codec = self._sides[self._ports[way]].codec
        if batch.encoded is not None and batch.encoded.fingerprint == codec.fingerprint:
            return codec.fingerprint, batch.encoded.values
        return codec.fingerprint, codec.encode(batch.columns, len(batch)).values

    def _hear(self, batch: Batch, state: KeyedState, out: Out) -> list[Whole]:
        out.consume()
        whole: list[Whole] = []
        sources, edges = batch["source"].tolist(), batch["edge"].tolist()
        for index, row in enumerate(batch.rows):
            if edges[index] not in self._plan.apart:
                continue  # it concerns another join
            key, name = identity(row), closure(sources[index], edges[index])
            found = dict(state.items(key))
            if DONE in found or name in found:
                continue
            if not self._is_whole({**found, name: True}, self._edges):
                state.put(key, name, True)
                self._set_timer(key, found, state, row)
                continue
            parts = self._parts(found)
            self._settle(key, found, parts, state)
            if parts:
                whole.append(_whole(parts, index))
            else:
                out.end(unasked(row), self._nothing)  # whoever waits was told where each side ended
        return whole

    # ---- when it is over

    def _is_whole(self, found: Mapping[str, Any], ways: Iterable[str]) -> bool:
        """Whether of a record with these entries nothing more can come on some ways."""
        closed = {name for name in found if name.startswith(CLOSED)}
        return all(PART + way in found or self._is_closed(self._edges[way], closed) for way in ways)

    def _is_closed(self, edge: str, closed: set[str]) -> bool:
        """Whether no record can come by an edge any more: not from any of its sources, or not into the join."""
        if closure(edge, edge) in closed:
            return True
        sources = self._plan.apart.get(edge, ())
        return bool(sources) and all(
            closure(source, edge) in closed or self._is_closed(source, closed) for source in sources
        )

    def _parts(self, found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The parts by way, in the order of the sides."""
        return {way: found[PART + way] for way in self._edges if PART + way in found}

    def _set_timer(self, key: bytes, found: Mapping[str, Any], state: KeyedState, row: Row) -> None:
        if self._wait_ms is not None:
            if not found:
                state.set_timer(key, WAIT, state.now_ms + self._wait_ms)
        elif row.reply and row.deadline_ms:
            state.set_timer(key, WAIT, row.deadline_ms)
        elif not found:
            state.set_timer(key, WAIT, state.now_ms + limits.EDGE_RETENTION_MS)

    def _settle(
        self, key: bytes, found: Mapping[str, Any], parts: Mapping[str, Any], state: KeyedState
    ) -> None:
        self._forget(key, found, state)
        state.put(key, DONE, list(parts), limits.APART_DOUBLES_MS)

    def _forget(self, key: bytes, found: Mapping[str, Any], state: KeyedState) -> None:
        for name in found:
            state.delete(key, name)
        if found:
            state.clear_timer(key, WAIT)

    # ---- what is given

    def _gather(self, whole: Sequence[Whole], out: Out) -> None:
        """Ask the join; where it raises, ask it for each record by itself."""
        if not whole:
            return
        try:
            self._ask(whole, out)
        except Exception as error:  # noqa: BLE001  (user code: whatever comes is the records' failure)
            if len(whole) > 1:
                for one in whole:
                    self._gather([one], out)
                return
            reason, name = str(error) or type(error).__name__, type(error).__name__
            self._fail(whole[0], reason, name, out)

    def _ask(self, whole: Sequence[Whole], out: Out) -> None:
        """All of it or, where the join raises, nothing is given to `out`."""
        rows = [numbered(one.row, number) for number, one in enumerate(whole)]
        sides = {port: batch for port in self._sides if (batch := self._side(port, whole, rows)) is not None}
        everything = Batch(Schema(()), {}, [row for batch in sides.values() for row in batch.rows])
        given = Out(everything, self._outputs)
        cast("Gatherer", self._node).gather(Sides.of(sides), given)
        given.settle()
        record_of = [row.source for row in everything.rows]
        over: set[int] = set()
        for emission in given.emissions:
            records = [record_of[parent] for parent in emission.parents.tolist()]
            over.update(records)
            after = [whole[record].after for record in records]
            out.create(emission.columns, [whole[r].row for r in records], port=emission.port, after=after)
        for loss in given.dropped:
            over.add(record_of[loss.row])
            out.end(whole[record_of[loss.row]].row, loss.reason)
        for loss in given.failed:
            over.add(record_of[loss.row])
            self._fail(whole[record_of[loss.row]], loss.reason, loss.error, out)
        for record in set(range(len(whole))) - over:
            out.end(whole[record].row, "the join took it in")

    def _side(self, port: str, whole: Sequence[Whole], rows: Sequence[Row]) -> Batch | None:
        """All parts of one side."""
        found = [
            (self._row_of(port, part, rows[number]), part)
            for number, one in enumerate(whole)
            for way, part in one.parts
            if self._ports.get(way) == port
        ]
        if not found:
            return None
        side = self._sides[port]
        kinds = dict.fromkeys(part["as"] for _, part in found)
        batches = []
        for kind in kinds:
            own = kind == side.codec.fingerprint
            codec = side.codec if own else side.older(kind)
            if codec is None:
                raise NodeError(f"side '{port}': what waited has a schema that is not known: {kind.decode()}")
            chosen = [(row, part["value"]) for row, part in found if part["as"] == kind]
            values = [value for _, value in chosen]
            columns = codec.decode(values).columns
            encoded = Encoded(kind, values) if own else None
            batches.append(Batch(side.codec.schema, columns, [row for row, _ in chosen], encoded))
        if len(batches) == 1:
            return batches[0]
        merged = concatenate(side.codec.schema, batches)
        return merged.take(sorted(range(len(merged)), key=lambda i: merged.rows[i].source))

    def _row_of(self, port: str, part: Mapping[str, Any], row: Row) -> Row:
        """The identity of a part that came on a port: that of the record, one object on all sides."""
        del port, part
        return row

    def _fail(self, one: Whole, reason: str, error: str, out: Out) -> None:
        """A dead letter of the record as it came on its first side."""
        way, part = one.parts[0]
        side = self._sides[self._ports[way]]
        record = None
        if part["as"] == side.codec.fingerprint:
            columns = side.codec.decode([part["value"]]).columns
            record = Batch(side.codec.schema, columns, [one.row]).to_dicts()[0]
        out.end(one.row, reason, error=error, record=record, port=way)


def _way(port: str, edge: str) -> str:
    return f"{port}/{edge}"


def closure(source: str, edge: str) -> str:
    return f"{CLOSED}{source} {edge}"


def _whole(parts: Mapping[str, Mapping[str, Any]], after: int) -> Whole:
    return Whole(list(parts.items()), whole_row(parts.values()), after)


def whole_row(parts: Iterable[Mapping[str, Any]]) -> Row:
    """The identity of a record: that of its first part, and the caller with all that its parts have of him."""
    rows = [unpack_row(part["row"]) for part in parts]
    first = rows[0]
    reply = shares.merged([row.reply for row in rows if row.reply])
    deadline_ms = max(row.deadline_ms for row in rows)
    return Row(
        first.id, first.key, first.source, first.carry, reply, deadline_ms, first.attempt, first.parents
    )


def numbered(row: Row, number: int) -> Row:
    return Row(row.id, row.key, number, row.carry, row.reply, row.deadline_ms, row.attempt, row.parents)


def unasked(row: Row) -> Row:
    """The row without its caller: he is told elsewhere."""
    return Row(row.id, row.key, row.source, row.carry, b"", 0, row.attempt, row.parents)
