"""``GET /state/...``: a changelog written as a task writes it, asked over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dataflow.codecs.keys import encode_key
from dataflow.core import limits
from dataflow.core.errors import GatewayError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.gateway.http import RequestError
from dataflow.gateway.state_view import Place, StateView, locate
from dataflow.planner.plan import EdgePlan, NodePlan, Plan, StagePlan, TopicPlan
from dataflow.state.store import open_store
from dataflow.state.task_state import TaskState
from dataflow.transport.api import Fabric
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.murmur import murmur2_partition
from tests.conftest import wait_for
from tests.gateway.fixtures import edge, fabric_for, plan_of, talk

CHANGELOG = "dataflow.state.sums.sum"
PARTITIONS = 4
ORDERS = Schema((Field("shop", FieldType("string")), Field("number", FieldType("int64"))))
EVERYTHING = GatewaySettings(tokens={"all": frozenset({"private"}), "some": frozenset()})


def keyed_plan(schema: Schema = ORDERS, key: tuple[str, ...] = ("shop",), changelog: str = CHANGELOG) -> Plan:
    """orders -> clean -> sum, which keeps state; `last` keeps none."""
    nodes = {
        "clean": NodePlan("clean", "filter", {}, {"in": ("orders",)}, {"out": "clean"}),
        "sum": NodePlan("sum", "python", {}, {"in": ("clean",)}, {"out": "sum"}),
        "last": NodePlan("last", "select", {}, {"in": ("sum",)}, {"out": "last"}),
    }
    orders = EdgePlan("orders", ("orders",), schema, "avro", PARTITIONS, key)
    edges = {"orders": orders, **{n: replace(edge(n, schema), node=n) for n in nodes}}
    stages = (
        StagePlan("sum", "sums.sum", ("orders",), ("clean", "sum"), "", PARTITIONS, changelog=changelog),
        StagePlan("last", "sums.last", ("sum",), ("last",), "", PARTITIONS),
    )
    topics = {changelog: TopicPlan(changelog, PARTITIONS, "changelog", {"cleanup.policy": "compact"})}
    return replace(plan_of(), edges=edges, nodes=nodes, stages=stages, topics=topics, answer=None)


class Writer:
    """A task's state, whose commits go to the changelog."""

    def __init__(self, fabric: Fabric, partition: int, now_ms: int = 1_000, topic: str = CHANGELOG) -> None:
        self.state = TaskState(open_store(None, "", now_ms))
        self.state.begin(now_ms)
        self.node = self.state.node_state("sum")
        self._producer = fabric.producer()
        self._partition = partition
        self._topic = topic
        self._offset = 0

    def commit(self) -> None:
        self.state.settle()
        changes = self.state.changes()
        for key, value in changes:
            self._producer.send(self._topic, value, key, None, self._partition)
        assert self._producer.flush(30) == 0
        self._offset += len(changes)
        self.state.committed(self._offset)


def fabric_of(plan: Plan) -> MemoryFabric:
    fabric = fabric_for(plan_of())
    for topic in plan.topics.values():
        fabric.admin().create(topic.name, topic.partitions, topic.config)
    return fabric


def ask(
    paths: Sequence[str],
    plan: Plan,
    fabric: MemoryFabric,
    token: str = "",
    settings: GatewaySettings | None = None,
) -> list[httpx.Response]:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> list[httpx.Response]:
        del gateway
        heads = {"authorization": f"Bearer {token}"} if token else {}
        return [await client.get(path, headers=heads) for path in paths]

    return talk(steps, plan, fabric=fabric, answer=None, settings=settings)


def test_values_and_timers_of_a_key() -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    partition = murmur2_partition(b"berlin", PARTITIONS)
    writer = Writer(fabric, partition)
    writer.node.put(b"berlin", "total", {"count": 3, "raw": b"\x00", "by": {7: 1.5}})
    writer.node.put(b"berlin", "seen", True, ttl_ms=1 << 45)
    writer.node.put(b"berlin", "over", True, ttl_ms=1)
    writer.node.put(b"paris", "total", 1)
    writer.node.set_timer(b"berlin", "close", 5_000, "event")
    writer.node.set_timer(b"berlin", "again", 6_000)
    writer.node.advance(4_000)
    writer.commit()
    (answer,) = ask(["/state/sums/sum/berlin"], plan, fabric)
    assert answer.status_code == 200
    assert answer.json() == {
        "pipeline": "sums",
        "node": "sum",
        "key": "berlin",
        "changelog": CHANGELOG,
        "partition": partition,
        "offset": 7,
        "watermark_ms": 4_000,
        "values": [
            {"name": "seen", "value": True, "expires_ms": 1_000 + (1 << 45)},
            {"name": "total", "value": {"count": 3, "raw": "AA==", "by": {"7": 1.5}}},
        ],
        "timers": [
            {"name": "again", "clock": "processing", "at_ms": 6_000},
            {"name": "close", "clock": "event", "at_ms": 5_000},
        ],
        "cut": False,
    }


def test_it_is_read_on_at_each_question() -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    view = StateView(fabric)
    writer = Writer(fabric, 0)
    place = Place("sum", b"k", CHANGELOG, 0)
    for count in range(3):
        writer.node.put(b"k", "count", count)
        writer.commit()
        assert view.read(place, 1_000)["values"] == [{"name": "count", "value": count}]
    writer.node.delete(b"k", "count")
    writer.commit()
    with pytest.raises(GatewayError, match="keeps nothing for this key"):
        view.read(place, 1_000)
    view.close()


def test_a_key_in_the_query_in_hex_and_in_a_partition_of_choice() -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    writer = Writer(fabric, 3)
    writer.node.put(b"a/b\xff", "n", 1)
    writer.commit()
    found, missing = ask(
        [f"/state/sums/sum?key={b'a/b'.hex()}ff&raw=hex&partition=3", "/state/sums/sum?key=a/b"], plan, fabric
    )
    assert (found.status_code, found.json()["key"]) == (200, "612f62ff")
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/state/sms/sum/k", 404, "did you mean 'sums'"),
        ("/state/sums/sm/k", 404, "did you mean 'sum'"),
        ("/state/sums/last/k", 404, "node 'last' keeps no state (nodes of stages that do: clean, sum)"),
        ("/state/sums/sum/k", 404, "node 'sum' keeps nothing for this key"),
        ("/state/sums/sum", 400, "no key is given"),
        ("/state/sums/sum/k?raw=octal", 400, "valid: hex, utf8"),
        ("/state/sums/sum/k?raw=hex", 400, "is not hexadecimal"),
        ("/state/sums/sum/k?partition=9", 400, "valid: 0 to 3"),
        ("/state/sums/sum/k?partition=x", 400, "partition=x is no number"),
        ("/state/sums/sum/k?ky=1", 400, "did you mean 'key'"),
    ],
)
def test_what_is_wrong_is_told(path: str, status: int, said: str) -> None:
    plan = keyed_plan()
    (answer,) = ask([path], plan, fabric_of(plan))
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_pipeline_without_state_says_so() -> None:
    plan = keyed_plan(changelog="")
    (answer,) = ask(["/state/sums/sum/k"], plan, fabric_for(plan_of()))
    assert "no node of this pipeline does" in answer.json()["error"]


def test_a_topic_that_is_not_there_is_told() -> None:
    (answer,) = ask(["/state/sums/sum/k"], keyed_plan(), fabric_for(plan_of()))
    assert answer.status_code == 404
    assert "is the pipeline deployed?" in answer.json()["error"]


def test_state_of_private_fields_needs_the_scope() -> None:
    private = Schema((replace(ORDERS["shop"], privacy="identifier"), ORDERS["number"]))
    plan = keyed_plan(private)
    fabric = fabric_of(plan)
    writer = Writer(fabric, murmur2_partition(b"k", PARTITIONS))
    writer.node.put(b"k", "n", 1)
    writer.commit()
    (hidden,) = ask(["/state/sums/sum/k"], plan, fabric, "some", EVERYTHING)
    assert hidden.status_code == 403
    assert "reads private fields (shop)" in hidden.json()["error"]
    (shown,) = ask(["/state/sums/sum/k"], plan, fabric, "all", EVERYTHING)
    assert shown.status_code == 200
    (stranger,) = ask(["/state/sums/sum/k"], plan, fabric, "", EVERYTHING)
    assert stranger.status_code == 401


@pytest.mark.parametrize(
    ("kind", "key", "text", "record"),
    [
        ("string", ("a",), "7", {"a": "7"}),
        ("string", ("a",), '["x"]', {"a": '["x"]'}),
        ("int32", ("a",), "-7", {"a": -7}),
        ("bool", ("a",), "true", {"a": True}),
        ("date", ("a",), "2024-05-01", {"a": "2024-05-01"}),
        ("timestamp", ("a",), "2024-05-01T12:00:00Z", {"a": "2024-05-01T12:00:00Z"}),
        ("string", ("a", "b"), '["x",7]', {"a": "x", "b": 7}),
    ],
)
def test_a_key_is_written_as_its_contract_says(
    kind: Any, key: tuple[str, ...], text: str, record: dict[str, Any]
) -> None:
    schema = Schema((Field("a", FieldType(kind)), Field("b", FieldType("int64"))))
    plan = keyed_plan(schema, key)
    made = encode_key(schema, key, record)
    assert made is not None
    assert locate(plan, "sum", text) == Place("sum", made, CHANGELOG, murmur2_partition(made, PARTITIONS))


@pytest.mark.parametrize(("key", "text"), [(("number",), "x"), (("shop", "number"), "x"), (("shop", "number"), '["x"]'),
                                           (("number",), "null"), (("number",), "1.5")])  # fmt: skip
def test_what_makes_no_key_is_refused(key: tuple[str, ...], text: str) -> None:
    with pytest.raises(GatewayError, match=r"is not one of \(.*number: int64"):
        locate(keyed_plan(key=key), "sum", text)


def test_without_a_declared_key_the_text_is_the_key() -> None:
    assert locate(keyed_plan(key=()), "sum", "é").key == "é".encode()


def test_a_topic_made_anew_is_read_anew() -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    view = StateView(fabric)
    place = Place("sum", b"k", CHANGELOG, 0)
    for value in ("old", "new"):
        writer = Writer(fabric, 0)
        writer.node.put(b"k", value, 1)
        writer.commit()
        assert [v["name"] for v in view.read(place, 1_000)["values"]] == [value]
        fabric.admin().delete([CHANGELOG])
        fabric.admin().create(CHANGELOG, PARTITIONS, {})
    view.close()


def test_a_long_way_is_gone_in_parts() -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    writer = Writer(fabric, 0)
    for number in range(12_000):
        writer.node.put(b"%d" % number, "n", number)
    writer.commit()
    view = StateView(fabric, wait_s=0)
    place = Place("sum", b"11999", CHANGELOG, 0)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"is at offset \d+ of 12000"):
            view.read(place, 1_000)
    assert view.read(place, 1_000)["values"] == [{"name": "n", "value": 11_999}]
    view.close()


def test_what_is_shown_and_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = keyed_plan()
    fabric = fabric_of(plan)
    writer = Writer(fabric, 0)
    for number in range(5):
        writer.node.put(b"k", f"n{number}", bytes(100))
    writer.commit()
    for name, value, shown in (("ENTRIES", 3, 3), ("BYTES", 250, 2), ("ENTRIES", 5, 5)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, f"MAX_STATE_VIEW_{name}", value)
            view = StateView(fabric)
            found = view.read(Place("sum", b"k", CHANGELOG, 0), 1_000)
            assert (len(found["values"]), found["cut"]) == (shown, shown < 5)
            view.close()
    monkeypatch.setattr(limits, "MAX_STATE_VIEWS", 2)
    view = StateView(fabric)
    for partition in (0, 1, 2, 0):
        with pytest.raises(GatewayError, match="keeps nothing"):
            view.read(Place("sum", b"none", CHANGELOG, partition), 1_000)
    assert list(view._replicas) == [(CHANGELOG, 2), (CHANGELOG, 0)]
    view.close()


@pytest.mark.broker
def test_on_the_real_broker_only_what_is_committed_is_seen(
    kafka: KafkaFabric, unique: str, tmp_path: Path
) -> None:
    topic = f"dataflow.state.{unique}"
    kafka.admin().create(topic, 1, {"cleanup.policy": "compact"})
    writer = Writer(kafka, 0, topic=topic)
    writer.node.put(b"k", "n", 1)
    writer.commit()
    view = StateView(kafka)
    place = Place("sum", b"k", topic, 0)
    assert view.read(place, 1_000)["values"] == [{"name": "n", "value": 1}]

    transaction = kafka.transactional(f"{unique}.0")
    transaction.begin()
    writer.node.put(b"k", "n", 2)
    writer.state.settle()
    for key, value in writer.state.changes():
        transaction.send(topic, value, key, None, 0)
    transaction.flush(30)
    assert view.read(place, 1_000)["values"] == [{"name": "n", "value": 1}]
    reader = kafka.consumer(unique)
    transaction.commit({}, reader)
    wait_for(lambda: view.read(place, 1_000)["values"] == [{"name": "n", "value": 2}], "the commit is seen")
    reader.close()
    transaction.close()
    view.close()
