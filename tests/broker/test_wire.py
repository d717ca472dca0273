"""The hand-made metadata request against things that are no Kafka (the real one is in test_server)."""

from __future__ import annotations

import socket
import struct
import threading

from hypothesis import given
from hypothesis import strategies as st

from dataflow.broker.wire import ClusterView, _parse, ask_metadata


def answer(cluster_id: str, brokers: dict[int, tuple[str, str | None]], correlation: int = 7) -> bytes:
    """A Metadata version 5 answer as far as we read it."""

    def text(value: str | None) -> bytes:
        return (
            struct.pack(">h", -1)
            if value is None
            else struct.pack(">h", len(value.encode())) + value.encode()
        )

    body = struct.pack(">iii", correlation, 0, len(brokers))
    for node_id, (host, rack) in brokers.items():
        body += struct.pack(">i", node_id) + text(host) + struct.pack(">i", 9092) + text(rack)
    return body + text(cluster_id) + struct.pack(">ii", 1, 0)


names = st.text(max_size=30)
hosts = st.dictionaries(st.integers(0, 2**31 - 1), st.tuples(names, st.none() | names), max_size=5)


@given(names, hosts)
def test_answers_are_read_back(cluster_id: str, brokers: dict[int, tuple[str, str | None]]) -> None:
    assert _parse(answer(cluster_id, brokers)) == ClusterView(cluster_id, frozenset(brokers))
    assert _parse(answer(cluster_id, brokers, correlation=8)) is None


def serve(reply: bytes) -> tuple[int, threading.Thread]:
    """Answer one connection with `reply` and close."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(1024)
            connection.sendall(reply)

    thread = threading.Thread(target=run)
    thread.start()
    return server.getsockname()[1], thread


def test_strangers_are_no_broker() -> None:
    strangers = (
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\x20\0\0",
        struct.pack(">i", 12) + b"\xff" * 12,
        struct.pack(">iiii", 12, 7, 0, 3),
    )
    for reply in strangers:
        port, thread = serve(reply)
        assert ask_metadata("127.0.0.1", port) is None
        thread.join()


def test_nobody_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert ask_metadata("127.0.0.1", port) is None
