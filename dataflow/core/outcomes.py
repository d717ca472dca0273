"""What became of each row: `Out` collects it, and `settle` checks that every row was accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dataflow.core.batch import Batch, Indices, Row
from dataflow.core.errors import NodeError, nearest
from dataflow.core.schema import Column

UNTOUCHED, EMITTED, CONSUMED, DROPPED, FAILED = range(5)
_NAMES: Final = ("untouched", "emitted", "consumed", "dropped", "failed")

# Error of a row that a keyed node did not run because an earlier row of its key waits for its retry. Failed with this
# error and `retryable`, a row is run again after that one, and it does not count as an attempt.
BEHIND: Final = "Behind"

# Reason of a record that came when all that it belongs to was over.
LATE: Final = "late"

# Reason of a child that ends because the record that it was made of did not come.
ORPHAN: Final = "no parent"


@dataclass(frozen=True, slots=True)
class Emission:
    """Records for one port: `columns` of length M, and for each the index of its parent row in the input batch.

    `made` are the identities of records that have no parent there (`Out.create`); `parents` then are what caused them.
    """

    port: str
    columns: Mapping[str, Column]
    parents: Indices
    children: bool
    one_to_one: bool = False  # parents are 0..N-1
    reuse: Batch | None = None  # the columns are this batch's own: its wire bytes still hold
    made: Sequence[Row] | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """One row that was dropped or failed, and why. `error` is the exception class name for failures."""

    row: int
    reason: str
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """A row held earlier that ends now. `error` is "" for a drop; `record` are the fields of `port` to dead-letter."""

    row: Row
    reason: str
    error: str = ""
    record: Mapping[str, Any] | None = None
    port: str = "in"


class Out:
    """Where a node puts its results. One `Out` serves one call with one batch.

    Every row of the batch must end emitted (on one port or many), consumed (taken in with nothing to show: sinks
    and windows), dropped with a reason, or failed with a reason. A row may be emitted on several ports; it may not
    be emitted and also dropped or failed.
    """

    def __init__(self, batch: Batch, ports: Sequence[str]) -> None:
        self._batch = batch
        self._ports = tuple(ports)
        self.state = np.zeros(len(batch), dtype=np.int8)
        self.emissions: list[Emission] = []
        self.dropped: list[Loss] = []
        self.failed: list[Loss] = []
        self.held: list[int] = []
        self.endings: list[Ending] = []

    def emit(
        self,
        columns: Mapping[str, Column] | Batch,
        *,
        rows: Sequence[int] | Indices | None = None,
        port: str = "out",
        children: bool = False,
    ) -> None:
        """Emit records on `port`.

        `columns` holds arrays of equal length M; `rows[m]` is the input row that record m comes from, by default
        0..N-1 (one to one). A record keeps its parent's id unless its parent is emitted more than once on the port
        or `children` is set: then each is a child with an id of its own. Passing a Batch emits its columns.
        """
        whole = rows is None
        parents = np.arange(len(self._batch)) if rows is None else _indices(rows)
        reuse = columns if isinstance(columns, Batch) and not children else None
        data = columns.columns if isinstance(columns, Batch) else columns
        self._check(port, data, len(parents))
        if whole and not self.state.any():
            self.state[:] = EMITTED  # the usual case: all rows, and nothing said of any before
        else:
            self._mark(parents, EMITTED)
        self.emissions.append(Emission(port, data, parents, children, whole, reuse))

    def create(
        self,
        columns: Mapping[str, Column],
        rows: Sequence[Row],
        *,
        port: str = "out",
        after: Sequence[int] | Indices | None = None,
    ) -> None:
        """Emit M records made from state: `columns` hold arrays of length M, `rows` the identity of each.

        The node gives the identity: an id that is the same whenever the record is made again (`ids.joined`), the key,
        headers to carry, and who waits for an answer (`reply`, `deadline_ms`); `Row.source` is not looked at. `after[m]`
        is the row of the batch that caused record m, which orders it among the others; None: no row did (a timer), or
        all of them. No row of the batch is accounted for by this.
        """
        self._check(port, columns, len(rows))
        causes = np.full(len(rows), -1, dtype=np.intp) if after is None else _indices(after)
        if len(causes) != len(rows) or (causes >= len(self._batch)).any():
            raise NodeError(
                f"`after` names {len(causes)} rows for {len(rows)} records of a batch of {len(self._batch)}"
            )
        self.emissions.append(Emission(port, columns, causes, children=False, made=list(rows)))

    def _check(self, port: str, columns: Mapping[str, Column], count: int) -> None:
        if port not in self._ports:
            raise NodeError(f"no output port '{port}'", hint=nearest(port, self._ports))
        for name, column in columns.items():
            if len(column) != count:
                raise NodeError(f"column '{name}' has {len(column)} rows where {count} are emitted")

    def consume(self, rows: Sequence[int] | Indices | None = None) -> None:
        """Take rows in with nothing to emit for them (a sink wrote them). Who waits for one is told that it ended."""
        self._mark(np.arange(len(self._batch)) if rows is None else _indices(rows), CONSUMED)

    def hold(self, rows: Sequence[int] | Indices | None = None) -> None:
        """Take rows in; a record made from state later (`create`) answers who waits for them, or `end` tells them."""
        indices = np.arange(len(self._batch)) if rows is None else _indices(rows)
        self._mark(indices, CONSUMED)
        self.held += indices.tolist()

    def end(
        self,
        row: Row,
        reason: str,
        *,
        error: str = "",
        record: Mapping[str, Any] | None = None,
        port: str = "in",
    ) -> None:
        """End a row that was held earlier (`unpack_row`), as dropped or, with `error`, as failed.

        Who waits for it is told. A failure is dead-lettered: `record` are its fields as they came in on `port` (dict of
        Python values), so that the letter holds the record as it was and can be redriven; without it the letter has
        key and headers only.
        """
        self.endings.append(Ending(row, reason, error, record, port))

    def drop(self, rows: Iterable[int], reason: str) -> None:
        """End rows on purpose. `reason` is a short stable text: it labels a metric and is shown to a caller."""
        indices = _indices(rows)
        self._mark(indices, DROPPED)
        self.dropped.extend(Loss(i, reason) for i in indices.tolist())

    def fail(self, rows: Iterable[int], reason: str, *, error: str = "", retryable: bool = False) -> None:
        """End rows as failed: retried if `retryable` and the node's retry policy allows, else dead-lettered."""
        indices = _indices(rows)
        self._mark(indices, FAILED)
        self.failed.extend(Loss(i, reason, error or "NodeError", retryable) for i in indices.tolist())

    def _mark(self, indices: Indices, state: int) -> None:
        if len(indices) == 0:
            return
        if indices.min() < 0 or indices.max() >= len(self._batch):
            outside = int(indices.min() if indices.min() < 0 else indices.max())
            raise NodeError(f"row index {outside} is outside the batch of {len(self._batch)} rows")
        before = self.state[indices]
        clash = before != UNTOUCHED
        if state == EMITTED:  # a row may go out on several ports
            clash &= before != EMITTED
        if clash.any():
            row = int(indices[int(np.argmax(clash))])
            raise NodeError(
                f"row {row} was already {_NAMES[int(self.state[row])]} and is now {_NAMES[state]}"
            )
        if state != EMITTED and len(indices) > 1:
            named, counts = np.unique(indices, return_counts=True)
            if len(named) < len(indices):
                raise NodeError(f"row {int(named[np.argmax(counts)])} is named twice and ends once")
        self.state[indices] = state

    def settle(self) -> None:
        """Fail whatever the node did not account for: nothing is lost silently."""
        missed = np.flatnonzero(self.state == UNTOUCHED)
        if len(missed):
            self.fail(missed.tolist(), "the node did not account for this row", error="Unaccounted")


def _indices(rows: Iterable[int] | Indices) -> Indices:
    """Row numbers as an array. A mask is refused: as numbers it would mean rows 0 and 1."""
    found = np.asarray(rows if isinstance(rows, np.ndarray) else list(rows))
    if found.dtype == np.bool_ and len(found):
        raise NodeError(
            "rows are given as a mask where their numbers are wanted", hint="np.flatnonzero(mask)"
        )
    return found.astype(np.intp, copy=False)
