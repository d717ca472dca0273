"""What a stage says on the control topic when a batch is over: of which of its records there is nothing more to come.

Of each record that was taken from a source and is not on an edge that it leads to (`ClosePlan`); a record that a node on
that way holds is not over. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataflow.core.batch import Batch, Row
from dataflow.core.homes import home_said
from dataflow.core.outcomes import LATE
from dataflow.core.schema import column_of
from dataflow.planner.plan import CONTROL_SCHEMA, ClosePlan, StagePlan, join_source
from dataflow.runtime.execution import Ended
from dataflow.runtime.hand import InHand

Identity = tuple[bytes, int]
SENT_ELSEWHERE = "sent another way"


def closures(stage: StagePlan, outputs: Mapping[str, Iterable[str]], hand: InHand) -> Batch | None:
    """What is to be said of a batch that is over; None for nothing. `outputs` are the edges of each node."""
    causes: dict[Identity, Ended] = {}
    for ended in hand.ended:
        before = causes.get(_identity(ended.row))
        if before is None or (ended.error and not before.error):
            causes[_identity(ended.row)] = ended
    rows: list[Row] = []
    said: list[tuple[str, str, str, str, str]] = []
    for close in stage.closes:
        gone = _gone(close, outputs, hand)
        rows += gone
        for row in gone:
            cause = causes.get(_identity(row))
            why = (SENT_ELSEWHERE, "", "") if cause is None else (cause.reason, cause.error, cause.node)
            said.append((close.source, close.edge, *why))
    if not rows:
        return None
    columns = {
        field.name: column_of(field.type, [line[i] for line in said])
        for i, field in enumerate(CONTROL_SCHEMA)
    }
    return Batch(CONTROL_SCHEMA, columns, rows)


def _gone(close: ClosePlan, outputs: Mapping[str, Iterable[str]], hand: InHand) -> list[Row]:
    """The records from a source that are not on an edge, once each."""
    taken = _taken(close, outputs, hand)
    if not taken:
        return []
    there = {
        _identity(row) for edge, batch in hand.execution.written if edge == close.edge for row in batch.rows
    }
    if close.source == close.edge:
        there = set()
    for node, rows, indices in hand.execution.holds:
        if node in close.through:
            there.update(_identity(rows[i]) for i in indices)
    return [_bare(row, close.home) for identity, row in taken.items() if identity not in there]


def _taken(close: ClosePlan, outputs: Mapping[str, Iterable[str]], hand: InHand) -> dict[Identity, Row]:
    """The records that came from a source in this batch; of a side that a join reads, those that did not reach it.

    Where children are made they come from there, and of their own edge those that could not be written.
    """
    if close.source == hand.edge:
        unread = [ended.row for ended in hand.ended if not ended.node and ended.row.source >= 0]
        rows = unread if close.source == close.edge else [*hand.first, *unread]
        return {_identity(row): row for row in rows}
    maker = next((name for name, edges in outputs.items() if close.source in edges), None)
    if maker is not None:
        made = _made(close, maker, set(outputs[maker]), hand)
        return {_identity(row): row for row in made}
    node = next((name for name in outputs if join_source(name) == close.source), None)
    if node is None:
        return {}
    edges = set(outputs[node])
    given = [row for edge, batch in hand.execution.written if edge in edges for row in batch.rows]
    over = [e.row for e in hand.ended if e.node == node and e.reason != LATE]
    return {_identity(row): row for row in (*given, *over)}


def _made(close: ClosePlan, maker: str, edges: set[str], hand: InHand) -> list[Row]:
    """The children that a node made on an edge in this batch."""
    written = hand.execution.written
    if close.source != close.edge:
        return [row for edge, batch in written if edge == close.source for row in batch.rows]
    parents = {row.id for edge, batch in written if edge in edges for row in batch.rows}
    return [e.row for e in hand.ended if e.node == maker and e.row.parents and e.row.parents[0] in parents]


def _identity(row: Row) -> Identity:
    return row.id, row.attempt


def _bare(row: Row, home: tuple[str, ...]) -> Row:
    """The row as it is spoken of: nobody waits for what is said."""
    carry = home_said(row.carry, home) if row.carry else ()
    return Row(row.id, row.key, row.source, carry, attempt=row.attempt, parents=row.parents)
