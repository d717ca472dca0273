"""Shares of a caller: how it is known that nothing of a request is left, though it went several ways at once.

A request that goes on as several records, or to several stages, is still one caller's. Each way has a share of him, which
is written behind his address (the value of ``df-reply-to``): ``topic/partition/request;0/1-1/2``. The shares of all ways
are the whole, which is not written. A way that ends without an answer gives its share back, with the reason; when all of
it is back, there will be no answer, and the caller is told. A share is a part of the line from 0 to 1, so that one that is
given back twice counts once.

The idea is the credit of F. Mattern, "Global quiescence detection based on credit distribution and recovery" (1989).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final

# Pieces of the line from 0 to 1, ascending, apart from each other.
Share = tuple[tuple[Fraction, Fraction], ...]

WHOLE: Final[Share] = ((Fraction(0), Fraction(1)),)
_NUMBER: Final = rb"(\d{1,40})/([1-9]\d{0,39})"
_PIECE: Final = re.compile(_NUMBER + rb"-" + _NUMBER)
# A stranger may write any bytes there.
_MAX_BYTES: Final = 16_384


def address_of(reply: bytes) -> bytes:
    """The caller's address without his share."""
    return reply.partition(b";")[0]


def share_of(reply: bytes) -> bytes:
    """The share as it is written; b"" for the whole."""
    return reply.partition(b";")[2]


def read_share(text: bytes) -> Share:
    """The share that is written; the whole for b"" and for what is none."""
    if not text or len(text) > _MAX_BYTES:
        return WHOLE
    found = []
    for piece in text.split(b","):
        match = _PIECE.fullmatch(piece)
        if match is None:
            return WHOLE
        low, low_of, high, high_of = map(int, match.groups())
        found.append((Fraction(low, low_of), Fraction(high, high_of)))
    return union(found)


def union(pieces: Iterable[tuple[Fraction, Fraction]]) -> Share:
    """All that lies in any of the pieces."""
    made: list[tuple[Fraction, Fraction]] = []
    for low, high in sorted(pieces):
        if made and low <= made[-1][1]:
            made[-1] = (made[-1][0], max(high, made[-1][1]))
        elif low < high:
            made.append((low, high))
    return tuple(made)


def parted(reply: bytes, count: int) -> list[bytes]:
    """A caller in `count` equal shares of the share that he is."""
    if count == 1:
        return [reply]
    address, left = address_of(reply), list(read_share(share_of(reply)))
    size = sum((high - low for low, high in left), Fraction(0)) / count
    made: list[bytes] = []
    for _ in range(count):
        part, wanted = [], size
        while wanted:
            low, high = left[0]
            end = min(high, low + wanted)
            part.append((low, end))
            wanted -= end - low
            left[0] = (end, high)
            if end == high:
                left.pop(0)
        made.append(_written(address, tuple(part)))
    return made


def merged(replies: Sequence[bytes]) -> bytes:
    """One caller with all the shares that are there of him; b"" for nobody."""
    known = dict.fromkeys(reply for reply in replies if reply)
    if len(known) < 2:
        return next(iter(known), b"")
    pieces = [piece for reply in known for piece in read_share(share_of(reply))]
    return _written(address_of(next(iter(known))), union(pieces))


def _written(address: bytes, share: Share) -> bytes:
    if share == WHOLE:
        return address
    text = ",".join(
        f"{low.numerator}/{low.denominator}-{high.numerator}/{high.denominator}" for low, high in share
    )
    return b"%b;%b" % (address, text.encode())
