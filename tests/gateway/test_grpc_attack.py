"""What strangers may send: nothing hangs, nothing fails in a way of its own, and what was held is given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.limits import MAX_BODY_BYTES, MAX_GRPC_ARRIVALS, MAX_HEALTH_WATCHES
from dataflow.gateway.grpc_proto import SERVICE, STREAM, UNARY
from tests.conftest import wait_for
from tests.gateway.fixtures import Responder, fabric_for, plan_of
from tests.gateway.grpc_fixtures import Client, Served, door, refused, request

CODE = grpc.StatusCode
# What a wrong request is told; never INTERNAL or UNKNOWN, which would be a fault of ours.
EXPECTED = (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.RESOURCE_EXHAUSTED)
GOOD = request(rows=2, id="mine").SerializeToString()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Served, Client]]:
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan), door(plan, fabric) as opened:
        yield opened


def outcome(client: Client, method: str, body: bytes, **options: Any) -> Any:
    """The code of a call; OK is one."""
    ask = client.channel.unary_unary(f"/{SERVICE}/{method}")
    try:
        ask(body, timeout=60, **options)
    except grpc.RpcError as error:
        return error.code()
    return CODE.OK


@given(st.data())
def test_bytes_changed_anywhere(both: tuple[Served, Client], data: Any) -> None:
    served, client = both
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not body:
            body += b"\0"
    assert outcome(client, "ModelInfer", bytes(body)) in (CODE.OK, *EXPECTED)
    assert len(served.gateway.exchange.pending) == 0


@given(st.sampled_from(UNARY), st.binary(max_size=50))
def test_bytes_of_no_meaning(both: tuple[Served, Client], method: str, body: bytes) -> None:
    assert outcome(both[1], method, body) in (CODE.OK, *EXPECTED)


OTHERS = (
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


@pytest.mark.parametrize("method", OTHERS)
def test_the_other_services_name_what_is_wrong(both: tuple[Served, Client], method: str) -> None:
    ask = both[1].channel.unary_unary(f"/{method}")
    code, words, _ = refused(lambda: ask(b"\xff\xff", timeout=60))
    assert (code, "the message is no grpc." in words) == (CODE.INVALID_ARGUMENT, True)


def test_a_call_without_a_message(both: tuple[Served, Client]) -> None:
    ask = both[1].channel.stream_unary(f"/{SERVICE}/ModelInfer")
    code, words, _ = refused(lambda: ask(iter(()), timeout=60))
    assert (code, words) == (CODE.INVALID_ARGUMENT, "the call has no message")


def test_calls_whose_message_never_comes_hold_nobody_up_for_long() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    with Responder(fabric, plan), door(plan, fabric) as (_, client):
        ask = client.channel.stream_unary(f"/{SERVICE}/ModelInfer")
        holding = [ask.future(never(), timeout=60) for _ in range(MAX_GRPC_ARRIVALS + 8)]
        assert outcome(client, "ModelInfer", GOOD) == CODE.OK
        codes = [call.code() for call in holding if call.done()]
        assert set(codes) <= {CODE.DEADLINE_EXCEEDED}
        for call in holding:
            call.cancel()
        ended.set()


@given(st.lists(st.binary(max_size=50) | st.just(GOOD), max_size=5))
def test_streams_of_no_meaning(both: tuple[Served, Client], bodies: list[bytes]) -> None:
    ask = both[1].channel.stream_stream(f"/{SERVICE}/{STREAM}")
    assert len(list(ask(iter(bodies), timeout=60))) == len(bodies)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_what_unpacks_to_more_than_a_body_may_be(both: tuple[Served, Client], compression: Any) -> None:
    served, client = both
    body = bytes(MAX_BODY_BYTES + 1)
    assert outcome(client, "ModelInfer", body, compression=compression) == CODE.RESOURCE_EXHAUSTED
    assert served.gateway._budget.used == 0


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-deadline-ms", "9" * 5_000),),
        (("x-deadline-ms", "-1"),),
        (("x-request-id", "i" * 300),),
        (("x-row-errors", "maybe"),),
        (("x-deadline-ms", "1"), ("x-deadline-ms", "soon")),
    ],
)
def test_metadata_that_say_nothing(both: tuple[Served, Client], metadata: Any) -> None:
    nameless = request().SerializeToString()
    assert outcome(both[1], "ModelInfer", nameless, metadata=metadata) == CODE.INVALID_ARGUMENT


def test_metadata_of_a_body_that_is_not_there_change_nothing(both: tuple[Served, Client]) -> None:
    metadata = (("content-encoding", "gzip"), ("content-length", "7"), ("origin", "https://evil.example"))
    assert outcome(both[1], "ModelInfer", GOOD, metadata=metadata) == CODE.OK


def test_more_metadata_than_gRPC_takes(both: tuple[Served, Client]) -> None:  # noqa: N802
    flood = tuple((f"x-{i}", "v" * 1_000) for i in range(100))
    assert outcome(both[1], "ModelInfer", GOOD, metadata=flood) == CODE.RESOURCE_EXHAUSTED
    assert outcome(both[1], "ModelInfer", GOOD) == CODE.OK


def test_watches_of_health_are_bounded() -> None:
    plan = plan_of()
    with door(plan, fabric_for(plan)) as (_, client):
        stub = health_pb2_grpc.HealthStub(client.channel)
        asked = health_pb2.HealthCheckRequest()
        watching = [stub.Watch(asked) for _ in range(MAX_HEALTH_WATCHES)]
        for watch in watching:
            next(watch)
        code, words, _ = refused(lambda: next(stub.Watch(asked)))
        assert code == CODE.RESOURCE_EXHAUSTED
        assert str(MAX_HEALTH_WATCHES) in words
        watching[0].cancel()

        def open_again() -> bool:
            try:
                next(stub.Watch(asked))
            except grpc.RpcError:
                return False
            return True

        wait_for(open_again, "a watch to be let in")
