"""Which caller waits for which record: pure bookkeeping, no clock, no threads, no I/O.

A request of N rows waits for N records, each known by its record id. A slot ends exactly once: answered (`resolve`
gave it back), expired (`expire` gave it back) or closed (`close`, when its caller is told something else). What
arrives for a row that is no longer waited for is counted in `late` and otherwise ignored: at-least-once delivery and
answers from several nodes make second replies normal.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from dataflow.core.errors import GatewayError
from dataflow.core.limits import MAX_PENDING_REQUESTS
from dataflow.core.schema import Column
from dataflow.core.shares import WHOLE, Share, union

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """One request in flight. Only the `Correlator` writes its bookkeeping; the last three are the owner's.

    results     one per row in the rows' order, None while it is waited for
    missing     rows without a result
    whole       one bad row ends the request (a V2 request has one status); else every row is waited for
    delivered   rows whose record the log has acknowledged, or that a stage of this process has been given to write
    waiter      whatever the owner wakes when the request ends
    columns     the answers of all rows, where they were decoded with those of others
    """

    __slots__ = (
        "columns", "deadline_ms", "delivered", "missing", "open", "record_ids", "request_id", "results", "waiter", "whole",
    )  # fmt: skip

    def __init__(
        self, request_id: bytes, record_ids: Sequence[bytes], deadline_ms: int, *, whole: bool
    ) -> None:
        self.request_id = request_id
        self.record_ids = record_ids
        self.results: list[Result | None] = [None] * len(record_ids)
        self.missing = len(record_ids)
        self.deadline_ms = deadline_ms
        self.whole = whole
        self.open = True
        self.delivered = 0
        self.waiter: object = None
        self.columns: Mapping[str, Column] | None = None


class Correlator(Generic[Result]):
    """All requests in flight of one gateway. Times are Unix ms and always given from outside."""

    def __init__(self, max_pending: int = MAX_PENDING_REQUESTS) -> None:
        self._max_pending: Final = max_pending
        self._rows: dict[bytes, tuple[Pending[Result], int]] = {}
        # Requests by deadline, and the heap of the deadlines. A request that ends early leaves its group at once, so
        # that nothing of it is held until its deadline; only the integer stays in the heap.
        self._groups: dict[int, dict[Pending[Result], None]] = {}
        self._deadlines: list[int] = []
        self._count = 0
        self._given_back: dict[bytes, tuple[Share, Result, bool]] = {}
        self.late = 0

    def __len__(self) -> int:
        """Requests in flight."""
        return self._count

    @property
    def rows(self) -> int:
        """Rows still waited for."""
        return len(self._rows)

    def waits(self, record_id: bytes) -> bool:
        """Whether a row is waited for. The only method that may be called from any thread."""
        return record_id in self._rows

    def open(
        self,
        request_id: bytes,
        record_ids: Sequence[bytes],
        deadline_ms: int,
        now_ms: int,
        *,
        whole: bool = True,
    ) -> Pending[Result]:
        """Start to wait for one reply to each of `record_ids` (at least one, none of them waited for already).

        Raises GatewayError: 429 when as many requests as allowed are in flight, 504 when the deadline is past.
        """
        if self._count >= self._max_pending:
            raise GatewayError(
                429,
                f"{self._count} requests are waiting for their answer, which is the limit",
                hint="try later",
            )
        if deadline_ms <= now_ms:
            raise GatewayError(504, "the deadline is past")
        pending: Pending[Result] = Pending(request_id, record_ids, deadline_ms, whole=whole)
        rows = self._rows
        for index, record_id in enumerate(record_ids):
            assert record_id not in rows, "a record id is waited for once"
            rows[record_id] = (pending, index)
        group = self._groups.get(deadline_ms)
        if group is None:
            group = self._groups[deadline_ms] = {}
            self._push(deadline_ms)
        group[pending] = None
        self._count += 1
        return pending

    def resolve(self, record_id: bytes, result: Result, *, good: bool = True) -> Pending[Result] | None:
        """Take the reply to one row; the request if that ended it, else None.

        The first reply of a row wins. A request ends with its last row, or with the first one that is not `good` if
        it is a whole.
        """
        found = self._rows.pop(record_id, None)
        if found is None:
            self.late += 1
            return None
        if self._given_back:
            self._given_back.pop(record_id, None)
        pending, index = found
        pending.results[index] = result
        pending.missing -= 1
        if pending.missing and (good or not pending.whole):
            return None
        self._end(pending)
        return pending

    def give_back(
        self, record_id: bytes, share: Share, result: Result, *, grave: bool
    ) -> Pending[Result] | None:
        """Take note that a row which went several ways at once has no answer on some of them; the request if that ended it.

        `share` is what of its caller is given back. Once all is, the row has `result`: the first that is `grave`, else the
        first.
        """
        if record_id not in self._rows:
            self.late += 1
            return None
        before, first, was_grave = self._given_back.get(record_id, ((), result, grave))
        known = union((*before, *share))
        told, told_grave = (result, True) if grave and not was_grave else (first, was_grave)
        if known == WHOLE:
            return self.resolve(record_id, told, good=False)
        self._given_back[record_id] = (known, told, told_grave)
        return None

    def close(self, pending: Pending[Result]) -> bool:
        """Stop waiting for a request; False if it had ended already."""
        if not pending.open:
            return False
        self._end(pending)
        return True

    def expire(self, now_ms: int) -> list[Pending[Result]]:
        """End and give back every request whose deadline is at or before `now_ms`, earliest first."""
        ended: list[Pending[Result]] = []
        while self._deadlines and self._deadlines[0] <= now_ms:
            group = self._groups.get(heapq.heappop(self._deadlines))
            for pending in list(group or ()):
                self._end(pending)
                ended.append(pending)
        return ended

    def next_deadline(self) -> int | None:
        """The earliest deadline of a request in flight, None if there is none."""
        while self._deadlines and self._deadlines[0] not in self._groups:
            heapq.heappop(self._deadlines)
        return self._deadlines[0] if self._deadlines else None

    def in_flight(self) -> list[Pending[Result]]:
        return [pending for group in self._groups.values() for pending in group]

    def _push(self, deadline_ms: int) -> None:
        heapq.heappush(self._deadlines, deadline_ms)
        if len(self._deadlines) > 2 * len(self._groups) + 1024:
            # Mostly deadlines of requests long answered: they would pile up until each one's time comes.
            self._deadlines = list(self._groups)
            heapq.heapify(self._deadlines)

    def _end(self, pending: Pending[Result]) -> None:
        pending.open = False
        self._count -= 1
        group = self._groups[pending.deadline_ms]
        del group[pending]
        if not group:
            del self._groups[pending.deadline_ms]
        if pending.missing:
            for record_id in pending.record_ids:
                self._rows.pop(record_id, None)
                self._given_back.pop(record_id, None)
