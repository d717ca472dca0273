from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest

from dataflow.client import AsyncClient, Client
from dataflow.core.errors import CodecError, GatewayError, SpecError, TransportError
from dataflow.transport.memory import MemoryFabric
from tests.control.project import Made, make


@pytest.fixture
def made(tmp_path: Path, unique: str) -> Made:
    return make(tmp_path, unique, MemoryFabric())


@pytest.fixture
def client(made: Made) -> Iterator[Client]:
    with Client(project=made.folder, fabric=made.fabric, environ={}) as client:
        yield client


def test_produce_and_tap(client: Client, made: Made) -> None:
    records = [{"sensor": "a", "value": 1}, {"sensor": "b", "value": np.float64(2), "owner": "Ada"}]
    record_ids = client.produce(made.readings, records)
    found = list(client.tap(f"topic:{made.readings}", start="earliest"))
    assert [r.id for r in found] == record_ids
    assert [r.value for r in found] == [
        {"sensor": "a", "value": 1.0, "owner": None},
        {"sensor": "b", "value": 2.0, "owner": "***"},
    ]
    shown = client.tap(f"{made.first}.readings", start="earliest", where="value > 1", show_private=True)
    assert [r.value["owner"] for r in shown if r.value] == ["Ada"]
    assert [r.id for r in client.tap(f"{made.first}.readings", record_id=record_ids[0])] == record_ids[:1]


def test_produce_tables_and_frames(client: Client, made: Made) -> None:
    client.produce(made.readings, pa.table({"sensor": ["a"], "value": [1]}))
    client.produce(made.readings, pd.DataFrame({"sensor": ["b"], "value": [2.5]}))
    client.produce(made.readings, {"sensor": "c", "value": 3})
    tap = client.tap(f"topic:{made.readings}", start="earliest", show_private=True)
    table = tap.to_arrow()
    assert table.column("value").to_pylist() == [1.0, 2.5, 3.0]
    frame = tap.to_pandas()  # a tap can be read again
    assert frame["sensor"].tolist() == ["a", "b", "c"]
    assert list(frame.columns) == ["sensor", "value", "owner"]


def test_nothing_is_sent_if_a_row_does_not_fit(client: Client, made: Made) -> None:
    with pytest.raises(CodecError, match="field 'value'"):
        client.produce(made.readings, [{"sensor": "a", "value": 1}, {"sensor": "a", "value": "x"}])
    with pytest.raises(SpecError, match="did you mean"):
        client.produce(made.readings + "x", [])
    assert list(client.tap(f"topic:{made.readings}", start="earliest")) == []


def test_a_tap_follows_until_it_is_stopped(client: Client, made: Made) -> None:
    tap = client.tap(f"topic:{made.readings}")
    found: list[Any] = []
    got_one = threading.Event()

    def read() -> None:
        for record in tap:
            found.append(record)
            got_one.set()

    thread = threading.Thread(target=read)
    thread.start()
    client.produce(made.readings, {"sensor": "a", "value": 1})
    assert got_one.wait(30)
    tap.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert len(found) == 1


def test_async_taps(made: Made) -> None:
    async def steps() -> list[str]:
        async with AsyncClient(project=made.folder, fabric=made.fabric, environ={}) as client:
            tap = await client.tap(f"topic:{made.readings}")
            sent = await client.produce(made.readings, [{"sensor": s, "value": 1} for s in "abc"])
            seen = []
            async for record in tap:  # it follows: leaving the loop ends it
                seen.append(record.id)
                if len(seen) == 3:
                    break
            assert sorted(seen) == sorted(sent)
            again = await client.tap(f"topic:{made.readings}", start="earliest")
            assert (await again.to_arrow()).num_rows == 3
            return seen

    assert len(asyncio.run(steps())) == 3


class Gateway(ThreadingHTTPServer):
    """Answers as told and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.answer = 200, b"{}"
        self.asked: list[tuple[str, Mapping[str, str], Any]] = []
        self.connections: set[Any] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(
            (self.path, {k.lower(): v for k, v in self.headers.items()}, orjson.loads(body))
        )
        self.server.connections.add(self.client_address)
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_request_says_values_as_the_door_takes_them(gateway: Gateway) -> None:
    gateway.answer = b'{"y": 1.5}'
    with Client(gateway.url, token="t", environ={}) as client:
        record = {
            "x": np.arange(4, dtype=np.float32).reshape(2, 2), "n": np.int64(3), "nan": float("nan"),
            "at": datetime(2024, 5, 1, 12, tzinfo=UTC), "day": date(2024, 5, 1), "price": Decimal("1.50"), "raw": b"\x00",
        }  # fmt: skip
        assert client.request("a b", record, deadline=1.5) == {"y": 1.5}
    path, head, body = gateway.asked[0]
    assert path == "/pipelines/a%20b"
    assert (head["x-deadline-ms"], head["authorization"]) == ("1500", "Bearer t")
    assert body == {
        "x": [[0.0, 1.0], [2.0, 3.0]], "n": 3, "nan": "NaN", "at": "2024-05-01T12:00:00Z", "day": "2024-05-01",
        "price": "1.50", "raw": "AA==",
    }  # fmt: skip


def test_connections_are_kept(gateway: Gateway) -> None:
    gateway.answer = b"[]"
    with Client(gateway.url, environ={}) as client:
        for _ in range(3):
            assert client.request("p", []) == []
    assert len(gateway.connections) == 1
    assert "x-deadline-ms" not in gateway.asked[0][1]


def test_async_requests(gateway: Gateway) -> None:
    async def steps() -> list[Any]:
        async with AsyncClient(gateway.url, environ={}) as client:
            return await asyncio.gather(*(client.request("p", {"i": i}) for i in range(8)))

    assert asyncio.run(steps()) == [{}] * 8
    assert sorted(body["i"] for _, _, body in gateway.asked) == list(range(8))


def test_errors_carry_the_status(gateway: Gateway) -> None:
    gateway.status, gateway.answer = 404, b'{"error": "no pipeline \'x\'", "hint": "did you mean \'y\'?"}'
    with Client(gateway.url, environ={}) as client:
        with pytest.raises(GatewayError, match="did you mean 'y'") as error:
            client.request("x", {})
        assert error.value.status == 404
        gateway.status, gateway.answer = 502, b"<html>"
        with pytest.raises(GatewayError, match="html"):
            client.request("x", {})


def test_no_gateway(tmp_path: Path) -> None:
    with (
        Client("http://127.0.0.1:1", environ={}) as client,
        pytest.raises(TransportError, match="dataflow up"),
    ):
        client.request("x", {})
    with Client(project=tmp_path, environ={}) as client:
        assert client.url == "http://127.0.0.1:8080"
        (tmp_path / ".dataflow").mkdir()
        (tmp_path / ".dataflow" / "up.json").write_text(json.dumps({"gateway": "http://127.0.0.1:9"}))
        assert client.url == "http://127.0.0.1:9"
    assert Client(project=tmp_path, environ={"DATAFLOW_URL": "http://h"}).url == "http://h"
