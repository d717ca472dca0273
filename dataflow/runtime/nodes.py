"""A running node: calls it with a batch, settles every row, and turns what it emitted into batches of its contract."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol

import numpy as np

from dataflow.core import ids
from dataflow.core.batch import Batch, Indices, Row, concatenate, made_source, read_order
from dataflow.core.errors import NodeBrokenError, NodeError
from dataflow.core.outcomes import UNTOUCHED, Emission, Ending, Loss, Out
from dataflow.core.schema import Schema
from dataflow.core.visits import visits_of, with_visits
from dataflow.observe.metrics import NodeMetrics
from dataflow.observe.traces import Tracing
from dataflow.planner.plan import FAILED_PORT, NodePlan
from dataflow.sdk import Node, Sides
from dataflow.state.api import KeyedState, Timer


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What one call gave: batches by output port, and the rows (indices of the input batch) that ended or are held.

    `endings` are rows of earlier batches.
    """

    emitted: list[tuple[str, Batch]]
    dropped: list[Loss]
    failed: list[Loss]
    held: Sequence[int] = ()
    endings: Sequence[Ending] = ()


NOTHING: Final = NodeResult([], [], [])


class Gatherer(Protocol):
    """A node that takes all its inputs at once."""

    def gather(self, sides: Sides, out: Out) -> None: ...


class KeyedNode(Protocol):
    """A node with state. `drain`, which it need not have, is called when the inputs of a bounded run have ended."""

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None: ...
    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None: ...
    def drain(self, out: Out, state: KeyedState) -> None: ...


class NodeRunner:
    """One node of a stage. An exception in it fails the rows of that batch that were not accounted for, no more.

    A `keyed` node is called as a whole: an exception undoes what the call changed in the state, and fails all its rows.
    `loop` is the output port that leads back to an earlier node. `numbers` tell the records made from state apart: nodes
    of one stage share it.
    """

    def __init__(
        self,
        plan: NodePlan,
        node: Node,
        outputs: Mapping[str, Schema],
        metrics: NodeMetrics,
        pipeline: str,
        tracing: Tracing | None = None,
        *,
        keyed: bool = False,
        numbers: Iterator[int] | None = None,
        loop: str = "",
    ) -> None:
        self.plan = plan
        self.node = node
        self.keyed = keyed
        self._numbers = numbers or count()
        self.metrics = metrics
        self._tracing = tracing
        self._outputs = outputs
        # What failed for good the engine writes, not the node.
        self.failed = outputs.get(FAILED_PORT) if plan.failed else None
        self._ports = tuple(port for port in outputs if port != FAILED_PORT or self.failed is None)
        # Ids of children hash the pipeline too: two pipelines on one stream must not make the same ids.
        self._id_name = f"{pipeline}/{plan.name}"
        self._loop = loop

    def run(self, batch: Batch, port: str, state: KeyedState | None = None) -> NodeResult:
        """Give the node a batch that arrived on one port. `state` is a keyed node's."""
        if not self.keyed:
            return self._call(batch, lambda out: self.node.process(batch, out, port))
        assert state is not None, "a keyed node is run with its state"
        node: KeyedNode = self.node  # type: ignore[assignment]  # a keyed kind has these methods
        try:
            return self._undoable(batch, state, lambda out: node.process(batch, out, port, state))
        except (Exception, SystemExit) as error:  # noqa: BLE001  (user code: whatever comes is the rows' failure)
            reason, name = str(error) or type(error).__name__, type(error).__name__
            return NodeResult([], [], [Loss(i, reason, name) for i in range(len(batch))])

    def gather(self, batches: Mapping[str, Batch]) -> NodeResult:
        """Give a gathering node all its sides; rows of the result are counted over all of them, in this order."""
        everything = Batch(Schema(()), {}, [row for batch in batches.values() for row in batch.rows])
        node: Gatherer = self.node  # type: ignore[assignment]  # a kind that gathers has this method
        return self._call(everything, lambda out: node.gather(Sides.of(batches), out))

    def fire(self, timers: Sequence[Timer], state: KeyedState) -> NodeResult:
        """Give a keyed node timers that are due. What it raises is raised again, when all it changed is undone."""
        node: KeyedNode = self.node  # type: ignore[assignment]  # a keyed kind has these methods
        return self._undoable(_no_rows(), state, lambda out: node.fire(timers, out, state))

    @property
    def drains(self) -> bool:
        """Whether the node wants to know that its inputs have ended."""
        return self.keyed and hasattr(self.node, "drain")

    def drain(self, state: KeyedState) -> NodeResult:
        """Tell a keyed node that all its inputs have ended. Raises as `fire` does."""
        node: KeyedNode = self.node  # type: ignore[assignment]  # `drains` says that it has this method
        return self._undoable(_no_rows(), state, lambda out: node.drain(out, state))

    def _call(self, batch: Batch, call: Callable[[Out], None]) -> NodeResult:
        out = Out(batch, self._ports)
        error = self._timed(batch, out, call)
        if error is not None:
            missed = np.flatnonzero(out.state == UNTOUCHED).tolist()
            out.fail(missed, str(error) or type(error).__name__, error=type(error).__name__)
        out.settle()
        emitted, broken = self._emitted(batch, out)
        out.failed.extend(Loss(r, broken[r], "ContractBroken") for r in sorted(broken))
        return NodeResult(emitted, out.dropped, out.failed, out.held, out.endings)

    def _undoable(self, batch: Batch, state: KeyedState, call: Callable[[Out], None]) -> NodeResult:
        """Like `_call`, but an exception or records that break the contract undo all of it, and are raised."""
        before = state.savepoint()
        out = Out(batch, self._ports)
        error = self._timed(batch, out, call)
        if error is None:
            out.settle()
            try:
                emitted, _ = self._emitted(batch, out, strict=True)
            except NodeError as fault:
                error = fault
        if error is not None:
            state.rollback(before)
            raise error
        return NodeResult(emitted, out.dropped, out.failed, out.held, out.endings)

    def _timed(self, batch: Batch, out: Out, call: Callable[[Out], None]) -> BaseException | None:
        """Call the node; what it raised. Raises NodeBrokenError, which is no row's failure."""
        raised: BaseException | None = None
        started = time.perf_counter()
        try:
            if self._tracing is None:
                call(out)
            else:
                with self._tracing.node(self.plan.name, self.plan.kind, len(batch)):
                    call(out)
        except NodeBrokenError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  (user code: whatever comes is the rows' failure)
            raised = error
        metrics = self.metrics
        metrics.seconds.observe(time.perf_counter() - started)
        metrics.batch_records.observe(len(batch))
        metrics.records += len(batch)
        return raised

    def _emitted(
        self, batch: Batch, out: Out, *, strict: bool = False
    ) -> tuple[list[tuple[str, Batch]], dict[int, str]]:
        """What was emitted, by port, and the rows of which something breaks the contract (`strict`: it is raised)."""
        emitted: dict[str, list[Batch]] = {}
        broken: dict[int, str] = {}
        families = _families(out.emissions)
        ordinals: dict[tuple[str, int], int] = {}
        for emission in out.emissions:
            rows = self._rows(emission, batch, families.get(emission.port, frozenset()), ordinals)
            if self._loop:
                rows = [self._counted(row, again=emission.port == self._loop) for row in rows]
            try:
                emitted.setdefault(emission.port, []).append(self._checked(emission, rows))
            except NodeError as error:
                if strict:
                    raise
                # The rows count as emitted; a node that breaks its contract loses all it emitted here.
                broken |= dict.fromkeys(emission.parents.tolist(), str(error))
        return [(port, _in_order(batches)) for port, batches in emitted.items() if batches], broken

    def _checked(self, emission: Emission, rows: Sequence[Row]) -> Batch:
        """The emitted records as a batch of the port's contract."""
        schema = self._outputs[emission.port]
        columns = emission.columns
        if emission.reuse is not None and emission.reuse.schema is schema:
            return Batch(schema, columns, rows, emission.reuse.encoded)
        if len(columns) != len(schema):
            raise NodeError(self._mismatch(schema, columns))
        for field in schema:
            column = columns.get(field.name)
            if column is None:
                raise NodeError(self._mismatch(schema, columns))
            wanted = field.type
            if column.dtype != wanted.column_dtype:
                raise NodeError(
                    f"{self.plan.name}.{emission.port}: column '{field.name}' is {column.dtype}, "
                    f"the contract {wanted.describe()} wants {wanted.column_dtype}"
                )
            if column.shape[1:] != (() if column.dtype.hasobject else wanted.shape):
                raise NodeError(
                    f"{self.plan.name}.{emission.port}: column '{field.name}' has shape {list(column.shape[1:])} per "
                    f"record, the contract wants {list(wanted.shape)}"
                )
        reuse = emission.reuse
        same = reuse is not None and reuse.schema == schema
        return Batch(schema, columns, rows, reuse.encoded if reuse is not None and same else None)

    def _mismatch(self, schema: Schema, columns: Mapping[str, object]) -> str:
        missing = [n for n in schema.names if n not in columns]
        extra = [n for n in columns if n not in schema]
        return f"{self.plan.name}: columns differ from the contract: missing {missing}, not declared {extra}"

    def _rows(
        self, emission: Emission, batch: Batch, families: Set[int], ordinals: dict[tuple[str, int], int]
    ) -> Sequence[Row]:
        """Identity of each emitted record: its parent's, or a child's where the row is in `families`.

        Decided row by row: what else is in the batch must not matter, or running it again would give other ids.
        `ordinals` count the children of each row over all emissions of a port.
        """
        if emission.made is not None:
            return self._made(emission.made, emission.parents.tolist(), batch.rows)
        if not emission.children and not families:
            return (
                list(batch.rows)
                if emission.one_to_one
                else [batch.rows[i] for i in emission.parents.tolist()]
            )
        rows = []
        for parent in emission.parents.tolist():
            if not emission.children and parent not in families:
                rows.append(batch.rows[parent])
                continue
            ordinal = ordinals.get((emission.port, parent), 0)
            ordinals[emission.port, parent] = ordinal + 1
            rows.append(self._child(batch.rows[parent], emission.port, ordinal))
        return rows

    def _counted(self, row: Row, *, again: bool) -> Row:
        """The row on its way round again with one round more, on its way out without a count."""
        return with_visits(row, self._id_name, visits_of(row, self._id_name) + 1 if again else 0)

    def _made(self, rows: Sequence[Row], causes: Sequence[int], read: Sequence[Row]) -> list[Row]:
        """The rows of records made from state, each with a `source` of its own."""
        made = []
        for row, cause, number in zip(rows, causes, self._numbers, strict=False):
            source = made_source(read[cause].source if cause >= 0 else -1, number)
            made.append(
                Row(row.id, row.key, source, row.carry, row.reply, row.deadline_ms, row.attempt, row.parents)
            )
        return made

    def _child(self, parent: Row, port: str, ordinal: int) -> Row:
        made = ids.child(parent.id, self._id_name, port, ordinal)
        return Row(
            made,
            parent.key,
            parent.source,
            parent.carry,
            parent.reply,
            parent.deadline_ms,
            parent.attempt,
            (parent.id,),
        )


def _families(emissions: Sequence[Emission]) -> dict[str, set[int]]:
    """By port, the rows that more than one record was emitted for: those records need ids of their own."""
    if len(emissions) == 1 and emissions[0].one_to_one:
        return {}
    found: dict[str, set[int]] = {}
    of_rows = [e for e in emissions if e.made is None]
    for port in {e.port for e in of_rows}:
        rows = [row for e in of_rows if e.port == port for row in e.parents.tolist()]
        if len(set(rows)) < len(rows):
            found[port] = {row for row, count in Counter(rows).items() if count > 1}
    return found


def _in_order(batches: Sequence[Batch]) -> Batch:
    """What several calls emitted on one port, as one batch in the order in which the records were read."""
    if len(batches) == 1:
        return batches[0]
    batch = concatenate(batches[0].schema, batches)
    return batch.take(in_read_order(batch.rows))


def in_read_order(rows: Sequence[Row]) -> Indices:
    """Indices of `rows` in the order in which their records were read; of one record, as they are."""
    return np.argsort(read_order(np.array([row.source for row in rows], dtype=np.intp)), kind="stable")


def _no_rows() -> Batch:
    return Batch(Schema(()), {}, [])
