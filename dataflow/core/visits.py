"""How often a record has come round each loop: header ``df-visits``, written and read in this one place.

Its value names the loops that the record is in and the rounds begun in each, as ``pipeline/node=3,pipeline/other=1``.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.core import headers
from dataflow.core.batch import Header, Row

# More digits than any bound has: int() of a stranger's digits is to stay small.
_MAX_DIGITS = 9


def visits_of(row: Row, loop: str) -> int:
    """Rounds of `loop` (``pipeline/node``) that the record has behind it; 0 for one that comes for the first time."""
    return dict(_counts(row.carry)).get(loop, 0)


def with_visits(row: Row, loop: str, visits: int) -> Row:
    """The row with another count of `loop`; 0 takes the loop out, so that a record that comes again begins anew."""
    if not visits and not any(name == headers.VISITS for name, _ in row.carry):
        return row
    counts = [(name, n) for name, n in _counts(row.carry) if name != loop]
    if visits:
        counts.append((loop, visits))
    carry: list[Header] = [h for h in row.carry if h[0] != headers.VISITS]
    if counts:
        carry.append((headers.VISITS, ",".join(f"{name}={n}" for name, n in counts).encode()))
    return Row(row.id, row.key, row.source, carry, row.reply, row.deadline_ms, row.attempt, row.parents)


def _counts(carry: Sequence[Header]) -> list[tuple[str, int]]:
    """Rounds by loop; what is no count is left out: strangers may write any bytes there."""
    value = next((v for name, v in carry if name == headers.VISITS and v), b"")
    found = []
    for part in value.decode("ascii", "replace").split(","):
        name, _, count = part.rpartition("=")
        if name and count.isascii() and count.isdigit() and len(count) <= _MAX_DIGITS:
            found.append((name, int(count)))
    return found
