from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import orjson
import pytest

from dataflow.codecs import codec_for
from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.core.errors import GatewayError
from dataflow.core.privacy import masked
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.gateway.taps import Start, parse_start
from dataflow.planner.plan import Plan
from dataflow.transport.api import EARLIEST, LATEST, Header
from dataflow.transport.memory import MemoryFabric
from tests.gateway.fixtures import ANSWER, REQUEST, edge, fabric_for, plan_of, talk

IDS = [ids.mint(1_700_000_000_000 + i) for i in range(5)]
SHOWN = GatewaySettings(tokens={"all": frozenset({"private"}), "some": frozenset()})


def write(
    fabric: MemoryFabric, topic: str, schema: Schema, records: list[Mapping[str, Any]], codec: str = "avro"
) -> None:
    made = codec_for(codec, schema)
    values = made.encode(Batch.of(schema, records).columns, len(records)).values
    producer = fabric.producer()
    for i, value in enumerate(values):
        carried: list[Header] = [(headers.ID, IDS[i]), (headers.SCHEMA, made.fingerprint)]
        producer.send(topic, value, b"k%d" % i, carried, i % 2)


def sums(count: int = 5) -> list[Mapping[str, Any]]:
    return [{"total": float(i), "label": f"l{i}"} for i in range(count)]


def filled() -> tuple[Plan, MemoryFabric]:
    plan = plan_of()
    fabric = fabric_for(plan)
    write(fabric, "sums.sum", ANSWER, sums())
    return plan, fabric


def events(text: str) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def tap(
    path: str,
    used: tuple[Plan, MemoryFabric],
    settings: GatewaySettings | None = None,
    token: str = "",
    **providers: Any,
) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> httpx.Response:
        sent = {"authorization": f"Bearer {token}"} if token else {}
        answer = await client.get(path, headers=sent)
        assert not gateway._taps
        return answer

    plan, fabric = used
    return talk(steps, plan, fabric=fabric, answer=None, settings=settings, **providers)


def test_all_records_from_the_start() -> None:
    answer = tap("/taps/sums/sum?from=earliest&limit=5", filled())
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = sorted(events(answer.text), key=lambda e: e["key"])
    assert [e["value"] for e in found] == [dict(r) for r in sums()]
    assert [e["id"].encode() for e in found] == IDS
    assert {(e["topic"], e["partition"], e["offset"]) for e in found} == {
        ("sums.sum", i % 2, i // 2) for i in range(5)
    }
    assert "id: sums.sum/0/0\nevent: record\n" in answer.text


def test_from_an_offset() -> None:
    found = events(tap("/taps/sums/sum?from=1&limit=3", filled()).text)
    assert {(e["partition"], e["offset"]) for e in found} == {(0, 1), (0, 2), (1, 1)}


def test_from_a_time() -> None:
    plan = plan_of()
    clock = [1_000.0]
    fabric = MemoryFabric(lambda: clock[0])
    for name in ("sums.sum", "dataflow.replies"):
        fabric.create(name, 2, {})
    write(fabric, "sums.sum", ANSWER, sums(2))
    clock[0] = 2_000.0
    write(fabric, "sums.sum", ANSWER, [{"total": 9.0, "label": "new"}])
    found = events(tap("/taps/sums/sum?from=1970-01-01T00:30:00Z&limit=1", (plan, fabric)).text)
    assert [e["value"]["label"] for e in found] == ["new"]
    assert found[0]["time"] == "1970-01-01T00:33:20.000Z"


def test_one_id() -> None:
    wanted = IDS[3].decode()
    found = events(tap(f"/taps/sums/sum?from=earliest&limit=1&id={wanted}", filled()).text)
    assert [e["id"] for e in found] == [wanted]


def test_an_expression() -> None:
    found = events(tap("/taps/sums/sum?from=earliest&limit=2&where=total%20%3E%202", filled()).text)
    assert sorted(e["value"]["total"] for e in found) == [3.0, 4.0]


def test_private_fields_are_masked_without_the_scope() -> None:
    plan = plan_of(key=("name",))
    fabric = fabric_for(plan)
    rows: list[Mapping[str, Any]] = [{"x": [1, 2, 3], "name": "N1"}]
    write(fabric, "sums.requests", REQUEST, rows)
    path = "/taps/sums/rows?from=earliest&limit=1"
    (hidden,) = events(tap(path, (plan, fabric), SHOWN, "some").text)
    assert hidden["value"] == {"x": [1.0, 2.0, 3.0], "name": "***", "at": None}
    assert hidden["key"] == "***"
    (shown,) = events(tap(path, (plan, fabric), SHOWN, "all").text)
    assert shown["value"]["name"] == "N1"
    assert shown["key"] == "k0"


def test_private_fields_cannot_be_asked_about() -> None:
    plan = plan_of()
    used = (plan, fabric_for(plan))
    path = "/taps/sums/rows?where=name%20%3D%3D%20'N1'"
    assert tap(path, used, SHOWN, "some").status_code == 403
    # What cannot be decoded is not shown either: the message of the codec would tell.
    used[1].producer().send("sums.requests", b"N1 in the clear", partition=0)
    (broken,) = events(tap("/taps/sums/rows?from=earliest&limit=1", used, SHOWN, "some").text)
    assert broken["value"] is None
    assert "N1" not in broken["error"]


def test_masking_goes_into_records_and_lists() -> None:
    person = FieldType(
        "record", fields=(Field("age", FieldType("int8")), Field("name", FieldType("string"), privacy="name"))
    )
    declared = Field("people", FieldType("list", item=person))
    assert masked(declared, [{"age": 1, "name": "A"}, {"age": 2, "name": None}]) == [
        {"age": 1, "name": "***"},
        {"age": 2, "name": None},
    ]


def test_records_that_do_not_decode_are_told() -> None:
    plan, fabric = filled()
    fabric.producer().send("sums.sum", b"\xff", partition=1)
    found = events(tap("/taps/sums/sum?from=earliest&limit=6", (plan, fabric)).text)
    (broken,) = [e for e in found if "error" in e]
    assert (broken["partition"], broken["offset"], broken["value"]) == (1, 2, None)


def test_records_of_another_version_are_read_by_their_writers_contract() -> None:
    old = Schema.of(label="string", total="float32", gone="int64")
    plan = plan_of()
    fabric = fabric_for(plan)
    write(fabric, "sums.sum", old, [{"total": 1.0, "label": "old", "gone": 7}])
    known = {codec_for("avro", old).fingerprint: old}
    path = "/taps/sums/sum?from=earliest&limit=1"
    (found,) = events(tap(path, (plan, fabric), writer_of=known.get).text)
    assert found["value"] == {"total": 1.0, "label": "old"}


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/taps/sum/sum", 404, "did you mean 'sums'?"),
        ("/taps/sums/som", 404, "did you mean 'sum'?"),
        ("/taps/sums/sum?from=soon", 400, "no place to start"),
        ("/taps/sums/sum?limit=0", 400, "count of records"),
        ("/taps/sums/sum?form=latest", 400, "did you mean 'from'?"),
        ("/taps/sums/sum?from=1&from=2", 400, "given twice"),
        ("/taps/sums/sum?where=totall%20%3E%201", 400, "total"),
        ("/taps/sums/sum?where=total%20%2B%201", 400, "no condition"),
        ("/taps/sums/sum?where=%3E%3E", 400, "where"),
    ],
)
def test_wrong_taps_are_named(path: str, status: int, message: str) -> None:
    answer = tap(path, filled())
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_an_edge_without_topic_yet() -> None:
    plan, fabric = filled()
    fabric.delete(["sums.sum"])
    assert tap("/taps/sums/sum", (plan, fabric)).status_code == 404


async def collect(scope_path: str, gateway: Gateway, sent: list[bytes], leave: asyncio.Event) -> None:
    """A caller who reads a stream until `leave` is set; what it got is in `sent`."""

    async def receive() -> dict[str, Any]:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    path, _, query = scope_path.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1")],
    }  # fmt: skip
    await gateway(scope, receive, send)


async def until(sent: list[bytes], text: bytes) -> AsyncIterator[None]:
    while text not in b"".join(sent):
        await asyncio.sleep(0.001)
        yield


def test_latest_sees_what_comes_and_ends_when_the_caller_leaves() -> None:
    plan, fabric = filled()

    async def steps(_: httpx.AsyncClient, gateway: Gateway) -> bytes:
        sent: list[bytes] = []
        leave = asyncio.Event()
        reading = asyncio.create_task(collect("/taps/sums/sum", gateway, sent, leave))
        async for _wait in until(sent, b": tap of sum"):
            pass
        write(fabric, "sums.sum", ANSWER, [{"total": 5.0, "label": "news"}])
        async for _wait in until(sent, b"news"):
            pass
        leave.set()
        await reading
        assert not gateway._taps
        return b"".join(sent)

    assert len(events(talk(steps, plan, fabric=fabric, answer=None).decode())) == 1


def test_draining_ends_taps_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.gateway.app.MAX_TAPS", 1)
    plan, fabric = filled()

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> int:
        sent: list[bytes] = []
        reading = asyncio.create_task(collect("/taps/sums/sum", gateway, sent, asyncio.Event()))
        async for _wait in until(sent, b": tap of sum"):
            pass
        refused = await client.get("/taps/sums/sum")
        await gateway.drain()
        await reading
        return refused.status_code

    assert talk(steps, plan, fabric=fabric, answer=None) == 429


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("latest", Start(LATEST)),
        ("earliest", Start(EARLIEST)),
        ("17", Start(17)),
        ("-5m", Start(time_ms=700_000)),
        ("-1d", Start(time_ms=0)),
        ("1970-01-01T01:00:00+01:00", Start(time_ms=0)),
        ("1970-01-02", Start(time_ms=86_400_000)),
    ],
)
def test_places_to_start(text: str, start: Start) -> None:
    assert parse_start(text, 1_000_000) == start


@pytest.mark.parametrize("text", ["", "-5", "5m", "yesterday", "٣", "9" * 30, "-99999999999d"])
def test_no_places_to_start(text: str) -> None:
    with pytest.raises(GatewayError):
        parse_start(text, 0)


def test_edges_of_any_codec() -> None:
    plan = plan_of(edge("sum", ANSWER, "json"))
    fabric = fabric_for(plan)
    write(fabric, "sums.sum", ANSWER, sums(1), "json")
    assert events(tap("/taps/sums/sum?from=earliest&limit=1", (plan, fabric)).text)[0]["value"] == sums(1)[0]
