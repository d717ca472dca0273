"""Record ids: UUIDv7 (RFC 9562, 5.7) whose random bits are a hash, so that re-execution gives the same ids.

An id is canonical UUID text as ASCII bytes, the very value of header ``df-id``. Its first 48 bits are a Unix time in
ms: `dataflow trace` starts its search there. Pure functions; only `mint` uses randomness.
"""

from __future__ import annotations

import os
import re
import secrets
import uuid
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_HEX: Final = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
# Where the 32 hex digits go in the 36 characters of the canonical text.
_DIGITS: Final = np.array([i for i in range(36) if i not in (8, 13, 18, 23)])
_DASHES: Final = np.array([8, 13, 18, 23])
_IS_HEX: Final = np.isin(np.arange(256), _HEX)

_CANONICAL: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_FEW: Final = 32
_AT_ONCE: Final = 64
_BITS74: Final = (1 << 74) - 1
# Drawn and not yet used: `pop` and `extend` are atomic, from any thread. Two processes must never share some.
_random: Final[list[int]] = []
os.register_at_fork(after_in_child=_random.clear)


def mint(time_ms: int) -> bytes:
    """A fresh id for a request: UUIDv7 of this time with 74 random bits."""
    while True:
        try:
            return _from_bits(time_ms, _random.pop() & _BITS74)
        except IndexError:
            _refill()


def _refill() -> None:
    """Ask the system for random bytes of many ids at once: a call for each takes longer than all else of an id."""
    drawn = secrets.token_bytes(10 * _AT_ONCE)
    _random.extend(int.from_bytes(drawn[at : at + 10], "big") for at in range(0, len(drawn), 10))


def child(parent: bytes, node: str, port: str, ordinal: int) -> bytes:
    """Id of the `ordinal`-th record that `node` derives from `parent` on `port`: parent's time + hash."""
    return _hashed(time_ms_of(parent), b"child", parent, node.encode(), port.encode(), str(ordinal).encode())


def joined(node: str, time_ms: int, *parts: bytes) -> bytes:
    """Id of a record made from several (a join's pair, a window's result): hash of what identifies it."""
    return _hashed(time_ms, b"join", node.encode(), *parts)


def time_ms_of(record_id: bytes) -> int:
    """Unix time in ms within an id. Raises ValueError if `record_id` is no UUID text."""
    return uuid.UUID(record_id.decode()).int >> 80


def malformed(texts: Sequence[bytes]) -> list[int]:
    """Indices of those `texts` that are no canonical (lower-case) UUID text: what a stranger wrote there."""
    if len(texts) < _FEW:  # numpy's own cost, before the first text, is that of some thirty matches
        return [i for i, text in enumerate(texts) if _CANONICAL(text) is None]
    made: list[int] = [i for i, text in enumerate(texts) if len(text) != 36]
    if made or not texts:
        whole = [i for i, text in enumerate(texts) if len(text) == 36]
        return sorted(made + [whole[i] for i in malformed([texts[i] for i in whole])]) if whole else made
    raw = np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(len(texts), 36)
    good = _IS_HEX[raw[:, _DIGITS]].all(axis=1) & (raw[:, _DASHES] == ord("-")).all(axis=1)
    bad: list[int] = np.flatnonzero(~good).tolist()
    return bad


def seed_of(cluster: str, topic_id: str, partition: int) -> int:
    """Seed for `of_positions`: one per (cluster, topic id, partition)."""
    text = f"{cluster}\0{topic_id}\0{partition}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def of_positions(seed: int, times_ms: Sequence[int], offsets: Sequence[int]) -> list[bytes]:
    """Ids of records that arrived without one: timestamp + hash(cluster, topic id, partition, offset).

    The hash is splitmix64 (Steele, Lea, Flood 2014) of the seeded offset, two outputs a record, computed for the
    whole batch at once: some 0.3 us a record where a hash object each would cost 2.
    """
    count = len(offsets)
    with np.errstate(over="ignore"):
        state = np.asarray(offsets, dtype=np.uint64) * np.uint64(2) * _GOLDEN + np.uint64(seed)
        high, low = _splitmix(state + _GOLDEN), _splitmix(state + _GOLDEN + _GOLDEN)
    raw = np.empty((count, 16), dtype=np.uint8)
    times = np.maximum(np.asarray(times_ms, dtype=np.int64), 0).astype(">u8")
    raw[:, :6] = times.view(np.uint8).reshape(count, 8)[:, 2:]
    raw[:, 6:8] = high.view(np.uint8).reshape(count, 8)[:, :2]
    raw[:, 8:] = low.view(np.uint8).reshape(count, 8)
    raw[:, 6] = (raw[:, 6] & 0x0F) | 0x70
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    text = np.full((count, 36), ord("-"), dtype=np.uint8)
    digits = np.empty((count, 32), dtype=np.uint8)
    digits[:, 0::2] = _HEX[raw >> 4]
    digits[:, 1::2] = _HEX[raw & 15]
    text[:, _DIGITS] = digits
    made: list[bytes] = text.view("S36")[:, 0].tolist()
    return made


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hashed(time_ms: int, *parts: bytes) -> bytes:
    # Length-prefixed parts: ("ab", "c") and ("a", "bc") must not meet.
    data = b"".join(len(p).to_bytes(4, "little") + p for p in parts)
    return _from_bits(time_ms, int.from_bytes(blake2b(data, digest_size=10).digest(), "big") >> 6)


def _from_bits(time_ms: int, bits74: int) -> bytes:
    high, low = bits74 >> 62, bits74 & ((1 << 62) - 1)
    value = (max(time_ms, 0) & ((1 << 48) - 1)) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()
