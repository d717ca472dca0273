"""Connections held to bounds; `attacks.listed` has more, with the answers that are right."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from dataflow.core.limits import MAX_PIPELINED, OTHER_DESCRIPTORS
from dataflow.gateway.connection import DoorLimits, room_for
from tests.conftest import wait_for
from tests.gateway.fixtures import Responder, Told, fabric_for, plan_of, total
from tests.gateway.test_server import served

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
RECORD = b'{"x":[1,2,3],"name":"a"}'
ASK = b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(RECORD) + RECORD


@contextmanager
def door(**limits: int) -> Iterator[tuple[int, Any]]:
    plan = plan_of()
    with served(plan, fabric_for(plan), limits=DoorLimits(**limits)) as opened:
        yield opened


class Caller:
    """A connection; `answer` reads one answer, None where it ends."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def ask(self, sent: bytes) -> tuple[int, Mapping[bytes, bytes], bytes] | None:
        self.socket.sendall(sent)
        return self.answer()

    def answer(self) -> tuple[int, Mapping[bytes, bytes], bytes] | None:
        line = self._file.readline()
        if not line:
            return None
        lines = iter(self._file.readline, b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (h.partition(b":") for h in lines)}
        return int(line.split()[1]), headers, self._file.read(int(headers[b"content-length"]))

    def status(self, sent: bytes) -> int | None:
        answer = self.ask(sent)
        return None if answer is None else answer[0]


def test_the_longest_idle_makes_room() -> None:
    with door(connections=2) as (port, _), Caller(port) as first, Caller(port) as second:
        assert first.status(LIVE) == 200
        assert second.status(LIVE) == 200
        assert first.status(LIVE) == 200  # now the second is idle for longer
        with Caller(port) as third:
            assert third.status(LIVE) == 200
            assert second.answer() is None
            assert first.status(LIVE) == 200


def test_no_room_where_none_is_idle() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    held, seen = threading.Event(), threading.Event()

    def answer(record: Mapping[str, Any]) -> Told:
        seen.set()
        assert held.wait(30)
        return total(record)

    limits = DoorLimits(connections=1)
    with served(plan, fabric, limits=limits) as (port, _), Responder(fabric, plan, answer):
        with Caller(port) as busy:
            busy.socket.sendall(ASK)
            assert seen.wait(30)
            with Caller(port) as stranger:
                refused = stranger.answer()
                assert refused is not None
                assert (refused[0], refused[1][b"retry-after"]) == (503, b"1")
                assert stranger.answer() is None
            held.set()
            last = busy.answer()
            assert last is not None
            assert last[0] == 200


def test_idle_connections_end() -> None:
    with door(keep_alive_ms=1_000, head_ms=200) as (port, _), Caller(port) as quiet, Caller(port) as once:
        assert once.status(LIVE) == 200
        assert once.answer() is None
        said = quiet.answer()
        assert said is not None
        assert said[0] == 408
        assert quiet.answer() is None


def test_what_was_asked_before_junk_is_answered_first() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    with served(plan, fabric) as (port, _), Responder(fabric, plan), Caller(port) as caller:
        answer = caller.ask(ASK + ASK + b"\x00junk\r\n\r\n")
        assert answer is not None
        assert answer[0] == 200
        last = caller.answer()
        assert last is not None
        assert (last[0], last[1][b"connection"]) == (200, b"close")
        assert caller.answer() is None


def test_requests_sent_ahead_are_few() -> None:
    with door() as (port, _), Caller(port) as caller:
        statuses = [caller.status(LIVE * (3 * MAX_PIPELINED))]
        while (answer := caller.answer()) is not None:
            statuses.append(answer[0])
        assert set(statuses) == {200}
        assert len(statuses) == MAX_PIPELINED + 1


def test_an_offer_of_another_protocol_is_left_unanswered() -> None:
    """As Java's own client makes it, with each request."""
    plan = plan_of()
    fabric = fabric_for(plan)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    length = ASK.replace(b"\r\nContent", b"\r\n" + offer + b"Content")
    chunks = (
        b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\n"
        + offer
        + b"Transfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n" % len(RECORD) + RECORD + b"\r\n0\r\n\r\n"
    )
    with served(plan, fabric) as (port, _), Responder(fabric, plan), Caller(port) as caller:
        for sent in (length, chunks, LIVE.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n"), length + ASK):
            assert caller.status(sent) == 200
        assert caller.answer() is not None
        caller.socket.sendall(length[:-5])
        assert caller.status(length[-5:]) == 200


@pytest.mark.parametrize("asked", [True, False])
def test_at_the_end_an_idle_connection_has_a_last_request(asked: bool) -> None:
    with door(farewell_ms=2_000) as (port, end), Caller(port) as caller:
        assert caller.status(LIVE) == 200
        end()

        def shut() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return True
            return False

        wait_for(shut, "the door to close")
        if asked:
            answer = caller.ask(LIVE)
            assert answer is not None
            assert (answer[0], answer[1][b"connection"]) == (200, b"close")
        assert caller.answer() is None


def test_a_stream_ends_with_its_connection_also_when_requests_wait_behind_it() -> None:
    plan = plan_of()
    taps: list[int] = []

    def observed(_: str, kind: str, status: int, __: float) -> None:
        if kind == "tap":
            taps.append(status)

    with served(plan, fabric_for(plan), observe=observed) as (port, _), Caller(port) as caller:
        caller.socket.sendall(b"GET /taps/sums/sum HTTP/1.1\r\nHost: localhost\r\n\r\n" + LIVE)
        head = caller.socket.recv(1_000)
        assert head.startswith(b"HTTP/1.1 200")
        caller.socket.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: taps == [200], "the tap to end")


def test_connections_need_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for soft, hard, wanted, room in (
        (4_096, 4_096, 100, 100),
        (1_024, 4_096, 1_000, 1_000),
        (1_024, 4_096, 10_000, 4_096 - OTHER_DESCRIPTORS),
        (1_024, resource.RLIM_INFINITY, 10_000, 10_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_000, 10_000),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        assert room_for(wanted) == room
    assert asked == [(1_000 + OTHER_DESCRIPTORS, 4_096), (4_096, 4_096), (10_000 + OTHER_DESCRIPTORS, -1)]
