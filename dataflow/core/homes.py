"""Where children lay before they were keyed anew: header ``df-home``, written and read in this one place.

Its value is the edge that they went by and the partition that they came from, as ``pipeline.edge=3``: what puts them
together again has them from there. An edge further on takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dataflow.core import headers
from dataflow.core.batch import Header

# Beyond what Kafka can have; int() of a stranger's digits is to stay small.
_MAX_DIGITS = 6
_NOTE = b"~"


def home_of(carry: Sequence[Header], edges: Collection[str]) -> int | None:
    """The partition that a record with these headers came from, if it left by one of the edges."""
    value = next((v for name, v in carry if name == headers.HOME and v), None)
    if value is None:
        return None
    edge, _, digits = value.decode("utf-8", "replace").rpartition("=")
    known = edge in edges and digits.isdecimal() and len(digits) <= _MAX_DIGITS
    return int(digits) if known else None


def with_home(carry: Sequence[Header], edge: str, partition: int) -> Sequence[Header]:
    """The headers of a record that leaves a partition by an edge."""
    value = f"{edge}={partition}".encode()
    return [*(header for header in carry if header[0] != headers.HOME), (headers.HOME, value)]


def home_said(carry: Sequence[Header], edges: Collection[str]) -> Sequence[Header]:
    """Of these headers the one that says so, for a record that goes back if it left by one of the edges.

    For any other it is marked as no more than a note, so that what is said of the record later on may go back.
    """
    value = next((v for name, v in carry if name == headers.HOME and v), b"").lstrip(_NOTE)
    if not value:
        return ()
    goes = home_of([(headers.HOME, value)], edges) is not None
    return ((headers.HOME, value if goes else _NOTE + value),)
