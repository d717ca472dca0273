"""Records of a changelog topic: one entry of keyed state each, the newest by key counts, a tombstone removes it.

Key:    kind (1 byte) · node (2 bytes length, UTF-8) · record key (4 bytes length, bytes) · name (UTF-8, the rest)
Value:  v, a value    0 · msgpack, or 1 · expires_ms (8 bytes) · msgpack
        t, a timer    clock (1 byte: 0 processing, 1 event) · at_ms (8 bytes)
        w, a node's watermark (neither record key nor name): 8 bytes

Integers are big-endian, times signed. The name has no length, so that entries of one record key lie together by name.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from dataflow.core.errors import StateError
from dataflow.state.api import TimerClock

VALUE: Final = b"v"
TIMER: Final = b"t"
WATERMARK: Final = b"w"
FOREVER: Final = b"\0"
EXPIRING: Final = b"\1"
CLOCKS: Final[tuple[TimerClock, ...]] = ("processing", "event")

_SHORT: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct(">I")
_TIME: Final = struct.Struct(">q")
_TIMER: Final = struct.Struct(">Bq")

pack_length = _LENGTH.pack
pack_time = _TIME.pack


class Entry(NamedTuple):
    """What a changelog key names. `kind` is VALUE, TIMER or WATERMARK."""

    kind: bytes
    node: str
    key: bytes
    name: str


def head_of(kind: bytes, node: str) -> bytes:
    """The part of a changelog key that all entries of a node share."""
    encoded = node.encode()
    return kind + _SHORT.pack(len(encoded)) + encoded


def encode_key(entry: Entry) -> bytes:
    head = head_of(entry.kind, entry.node)
    if entry.kind == WATERMARK:
        return head
    return head + _LENGTH.pack(len(entry.key)) + entry.key + entry.name.encode()


def decode_key(raw: bytes) -> Entry:
    """The reverse of `encode_key`. Raises ValueError for bytes that it cannot have made."""
    kind = raw[:1]
    try:
        at = 3 + _SHORT.unpack_from(raw, 1)[0]
        node = raw[3:at].decode()
        if kind == WATERMARK and len(raw) == at:
            return Entry(kind, node, b"", "")
        start = at + 4
        end = start + _LENGTH.unpack_from(raw, at)[0]
        if kind in (VALUE, TIMER) and end <= len(raw):
            return Entry(kind, node, raw[start:end], raw[end:].decode())
    except (struct.error, UnicodeDecodeError):
        pass
    raise ValueError(f"key {raw[:80]!r}")


def encode_timer(clock: TimerClock, at_ms: int) -> bytes:
    return _TIMER.pack(CLOCKS.index(clock), at_ms)


def decode_timer(raw: bytes) -> tuple[TimerClock, int]:
    clock, at_ms = _TIMER.unpack(raw)
    return CLOCKS[clock], at_ms


def decode_time(raw: bytes) -> int:
    return int(_TIME.unpack(raw)[0])


def expires_of(raw: bytes) -> int:
    """Unix time in ms from which a value's entry reads as absent; 0: never."""
    return _TIME.unpack_from(raw, 1)[0] if raw[:1] == EXPIRING else 0


def packed_of(raw: bytes) -> bytes:
    """The msgpack in a value's entry."""
    return raw[9:] if raw[:1] == EXPIRING else raw[1:]


def check_record(place: str, offset: int, key: bytes | None, value: bytes | None) -> None:
    """Raise StateError, naming `place` and `offset`, unless this is a record that we write to a changelog."""
    try:
        kind = decode_key(key or b"").kind
        if value is not None and not _is_value(kind, value):
            raise ValueError(f"value {value[:80]!r}")
    except (ValueError, IndexError, struct.error) as error:
        raise StateError(
            f"record at {place} offset {offset} is not one of a changelog: {error}",
            hint="only the engine writes there; delete the record's key, or the topic to start without state",
        ) from None


def _is_value(kind: bytes, value: bytes) -> bool:
    if kind == VALUE:
        return (value[:1] == FOREVER and len(value) > 1) or (value[:1] == EXPIRING and len(value) > 9)
    if kind == TIMER:
        return decode_timer(value)[0] in CLOCKS
    return len(value) == _TIME.size
