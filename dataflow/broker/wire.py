"""One Kafka request by hand, without a client library: who answers at a port, and which brokers does it see.

Kafka protocol, Metadata version 5: a request header (version 1) and two fields; the answer lists live brokers, the
cluster id and the controller.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_METADATA = 3
_METADATA_VERSION = 5
_CORRELATION = 7


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What one broker knows: the cluster's id and the node ids that are up."""

    cluster_id: str
    node_ids: frozenset[int]


def ask_metadata(host: str, port: int, *, timeout_s: float = 2.0) -> ClusterView | None:
    """The view of the broker at this address; None when nobody, or something that is no Kafka, answers."""
    client = b"dataflow"
    header = struct.pack(">hhih", _METADATA, _METADATA_VERSION, _CORRELATION, len(client)) + client
    body = header + struct.pack(">i?", 0, False)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            size = struct.unpack(">i", _read(connection, 4))[0]
            if not 8 <= size <= 1 << 20:
                return None
            return _parse(_read(connection, size))
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _read(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("closed in the middle of an answer")
        parts += part
    return bytes(parts)


def _parse(answer: bytes) -> ClusterView | None:
    correlation, _throttle, brokers = struct.unpack_from(">iii", answer)
    if correlation != _CORRELATION:
        return None
    position = 12
    node_ids = set()
    for _ in range(brokers):
        node_ids.add(struct.unpack_from(">i", answer, position)[0])
        _host, position = _string(answer, position + 4)
        _rack, position = _string(answer, position + 4)
    cluster_id, _end = _string(answer, position)
    return ClusterView(cluster_id, frozenset(node_ids))


def _string(answer: bytes, position: int) -> tuple[str, int]:
    length = max(struct.unpack_from(">h", answer, position)[0], 0)
    start = position + 2
    return answer[start : start + length].decode(), start + length
