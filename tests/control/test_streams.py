from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.control.records import DEAD_LETTER_STREAM, Stream, TapRecord, jsonable_records, key_text
from dataflow.control.starts import FROM_EARLIEST, FROM_LATEST, Start, parse_start, start_of_id
from dataflow.control.streams import EdgeReader, Merge, find_stream, find_writable, read_at
from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.core.errors import ExpressionError, SpecError, TopicGoneError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.planner.plan import SCHEMAS
from dataflow.runtime.schemas import SchemaStore, StoredSchema
from dataflow.transport.api import EARLIEST, Fabric, Producer
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryMessage
from tests.conftest import wait_for
from tests.control.project import make

SCHEMA = Schema.of(name="string", value="float64")
NOW_MS = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_MS / 1000

    def __call__(self) -> float:
        return self.now_s


_PRODUCERS: dict[Fabric, Producer] = {}


def send(
    fabric: Fabric,
    stream: Stream,
    *records: dict[str, Any],
    partition: int = -1,
    time_ms: int = 0,
    step_ms: int = 0,
    head: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write records; with `partition` -2 they take turns over two partitions."""
    codec = codec_for(stream.codec, stream.schema)
    values = codec.encode(Batch.of(stream.schema, records).columns, len(records)).values
    named = [(headers.SCHEMA, codec.fingerprint)] if codec.fingerprint else []
    if fabric not in _PRODUCERS:  # one for all tests: the first send of an idempotent producer takes a while
        _PRODUCERS[fabric] = fabric.producer()
    producer = _PRODUCERS[fabric]
    for i, value in enumerate(values):
        where = i % 2 if partition == -2 else partition
        producer.send(
            stream.topics[0],
            value,
            b"k",
            [*named, *head],
            where,
            timestamp_ms=time_ms and time_ms + i * step_ms,
        )
    assert producer.flush(10) == 0


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def fabric(request: pytest.FixtureRequest) -> Fabric:
    if request.param == "memory":
        return MemoryFabric()
    found: Fabric = request.getfixturevalue("kafka")
    return found


@pytest.fixture
def stream(fabric: Fabric, unique: str) -> Stream:
    # Times here are of 2023: retention would delete the records.
    fabric.admin().create(unique, 2, {"retention.ms": "-1"})
    return Stream(unique, (unique,), SCHEMA, "avro")


def rows(count: int) -> list[dict[str, Any]]:
    return [{"name": "a", "value": float(i)} for i in range(count)]


def values(records: Iterator[TapRecord] | EdgeReader) -> list[float]:
    return [r.value["value"] for r in records if r.value is not None]


def test_reads_all_partitions_in_the_order_of_time(fabric: Fabric, stream: Stream) -> None:
    send(fabric, stream, *rows(20), partition=-2, time_ms=NOW_MS, step_ms=1)
    found = list(EdgeReader(fabric, stream))
    assert values(iter(found)) == list(range(20))
    assert [(r.partition, r.offset) for r in found[:4]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {r.time_ms for r in found} == {NOW_MS + i for i in range(20)}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (FROM_EARLIEST, [0, 1, 2, 3, 4, 5]),
        (FROM_LATEST, []),
        (Start(offset=2), [4, 5]),
        (Start(offset=99), []),
        (Start(time_ms=NOW_MS + 3_000), [3, 4, 5]),
        (Start(time_ms=NOW_MS + 99_000), []),
    ],
)
def test_starts(fabric: Fabric, stream: Stream, start: Start, expected: list[float]) -> None:
    send(fabric, stream, *rows(6), partition=-2, time_ms=NOW_MS, step_ms=1_000)
    assert values(EdgeReader(fabric, stream, start=start)) == expected


def test_ends_at_what_was_the_end_and_at_a_time(fabric: Fabric, stream: Stream) -> None:
    send(fabric, stream, *rows(4), partition=0, time_ms=NOW_MS, step_ms=1)
    reader = EdgeReader(fabric, stream)
    send(fabric, stream, {"name": "a", "value": 9}, partition=0, time_ms=NOW_MS + 9)
    assert values(reader) == [0, 1, 2, 3]
    assert values(EdgeReader(fabric, stream, until_ms=NOW_MS + 2)) == [0, 1]


def test_follow_goes_on_until_stopped(fabric: Fabric, stream: Stream) -> None:
    send(fabric, stream, {"name": "a", "value": 0})
    reader = EdgeReader(fabric, stream, start=FROM_EARLIEST, follow=True)
    found: list[TapRecord] = []
    thread = threading.Thread(target=lambda: found.extend(reader))
    thread.start()
    collected: list[TapRecord] = []
    second = EdgeReader(fabric, stream, follow=True, limit=3)
    send(fabric, stream, {"name": "a", "value": 1}, {"name": "a", "value": 2})
    collected.extend(second)  # a limit ends a follower too
    assert values(iter(collected)) == [0, 1, 2]
    wait_for(lambda: len(found) == 3, "three records")
    reader.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_filters(fabric: Fabric, stream: Stream) -> None:
    record_id, other = ids.mint(NOW_MS), ids.mint(NOW_MS)
    send(fabric, stream, {"name": "a", "value": 1}, head=[(headers.ID, record_id)])
    send(fabric, stream, {"name": "b", "value": 2}, head=[(headers.ID, other), (headers.PARENTS, record_id)])
    send(fabric, stream, {"name": "c", "value": 3}, head=[(headers.CALLER_ID, b"mine")])
    reader = EdgeReader(fabric, stream, where="value > 1 and name != 'c'")
    assert values(reader) == [2]
    assert sorted(values(EdgeReader(fabric, stream, record_id=record_id.decode()))) == [1, 2]
    assert values(EdgeReader(fabric, stream, record_id="mine")) == [3]
    assert len(list(EdgeReader(fabric, stream, limit=2))) == 2
    with pytest.raises(ExpressionError, match="valeu"):
        EdgeReader(fabric, stream, where="valeu > 1")
    with pytest.raises(ExpressionError, match="expected a condition"):
        EdgeReader(fabric, stream, where="value + 1")


def test_records_that_do_not_decode_are_not_lost(fabric: Fabric, stream: Stream) -> None:
    producer = fabric.producer()
    producer.send(stream.topics[0], b"\xff", None, None, 0)
    producer.send(stream.topics[0], None, b"k", None, 0)
    producer.send(stream.topics[0], b"x", None, [(headers.SCHEMA, b"00ff")], 0)
    producer.flush(10)
    producer.close()
    send(fabric, stream, {"name": "a", "value": 1}, partition=0)
    found = list(EdgeReader(fabric, stream, where="value > 0"))
    assert [r.value is None for r in found] == [True, True, True, False]
    assert [bool(r.error) for r in found] == [True, True, True, False]
    assert "00ff" in found[2].error


def test_reads_across_a_change_of_contract(fabric: Fabric, stream: Stream, unique: str) -> None:
    fabric.admin().create(SCHEMAS, 1, {"cleanup.policy": "compact"})
    codec = codec_for("avro", SCHEMA)
    SchemaStore(fabric).publish_all([(codec.fingerprint, StoredSchema("avro", SCHEMA, unique))])
    send(fabric, stream, {"name": "old", "value": 1}, partition=0)
    wider = Schema((*SCHEMA.fields, Field("unit", FieldType("string", nullable=True))))
    new = Stream(unique, (unique,), wider, "avro")
    send(fabric, new, {"name": "new", "value": 2, "unit": "mile"}, partition=0)
    found = [r.value for r in EdgeReader(fabric, new)]
    assert found == [
        {"name": "old", "value": 1.0, "unit": None},
        {"name": "new", "value": 2.0, "unit": "mile"},
    ]


def test_private_fields_are_masked() -> None:
    fabric = MemoryFabric()
    inner = FieldType(
        "record", fields=(Field("card", FieldType("int64"), privacy="secret"), Field("n", FieldType("int8")))
    )
    schema = Schema(
        (
            Field("who", FieldType("string"), privacy="identifier"),
            Field("size", FieldType("float32", (2,)), privacy="body"),
            Field("orders", FieldType("list", item=inner)),
            Field("plain", FieldType("int64")),
        )
    )
    stream = Stream("people", ("people",), schema, "json", ("who",), "string", private_key=True)
    fabric.create("people", 1, {})
    fabric.producer().send(
        "people", b'{"who":"Ada","size":[1,2],"orders":[{"card":7,"n":1}],"plain":5}', b"Ada"
    )  # fmt: skip
    reader = EdgeReader(fabric, stream)
    (record,) = reader
    assert record.value == {"who": "***", "size": "***", "orders": [{"card": "***", "n": 1}], "plain": 5}
    assert (record.key, record.wire) == (b"***", None)
    (document,) = jsonable_records(reader.schema, [record], stream)
    assert document["value"]["orders"] == [{"card": "***", "n": 1}]
    with pytest.raises(ExpressionError, match="'who' is private"):
        EdgeReader(fabric, stream, where="who == 'Ada'")
    open_ = EdgeReader(fabric, stream, where="who == 'Ada'", show_private=True)
    (record,) = open_
    assert record.value is not None
    assert (record.value["who"], record.key) == ("Ada", b"Ada")
    assert open_.schema == schema


def test_a_record_without_id_has_the_one_that_the_engine_gives_it() -> None:
    fabric = MemoryFabric(Clock())
    fabric.create("t", 1, {})
    stream = Stream("t", ("t",), SCHEMA, "json")
    send(fabric, stream, {"name": "a", "value": 1})
    (record,) = EdgeReader(fabric, stream)
    seed = ids.seed_of(fabric.cluster_id(), fabric.describe(["t"])["t"].topic_id, 0)
    assert record.id.encode() == ids.of_positions(seed, [NOW_MS], [0])[0]


def test_keys_are_shown_as_declared() -> None:
    schema = Schema.of(number="int64", name="string")
    assert key_text((7).to_bytes(8, "big"), Stream("t", ("t",), schema, "json", ("number",), "int64")) == "7"
    plain = Stream("t", ("t",), schema, "json")
    assert key_text(b"abc", plain) == "abc"
    assert key_text(b"\xff\x00", plain) == "0xff00"
    assert key_text(None, plain) is None


def test_names_of_streams(tmp_path: Path, unique: str) -> None:
    made = make(tmp_path, unique, MemoryFabric())
    plans, project = made.plans, made.assembled.project
    assert find_stream(f"{made.first}.checked", plans).topics == (f"{made.first}.checked",)
    assert find_stream(f"{made.first}.readings", plans).topics == (made.readings,)
    assert find_stream(f"topic:{made.readings}", {}, project).key == ("sensor",)
    assert (
        find_stream(f"topic:{made.readings}", plans).schema
        == find_stream(f"topic:{made.readings}", {}, project).schema
    )
    assert find_stream("dataflow.dead-letters", {}) is DEAD_LETTER_STREAM
    for name, hint in (
        (f"{made.first}.chekced", "did you mean 'checked'"),
        (f"{made.first}x.checked", f"did you mean '{made.first}'"),
        (f"topic:{made.readings}x", f"did you mean '{made.readings}'"),
        (made.readings, f"topic:{made.readings}"),
    ):
        with pytest.raises(SpecError) as error:
            find_stream(name, plans, project)
        assert hint in str(error.value)
    with pytest.raises(SpecError, match="dataflow up"):
        find_stream(f"{made.first}.checked", {}, project)
    with pytest.raises(TopicGoneError):
        EdgeReader(MemoryFabric(), find_stream(f"{made.first}.checked", plans))


def test_outsiders_write_to_inputs_and_open_edges_only(tmp_path: Path, unique: str) -> None:
    made = make(tmp_path, unique, MemoryFabric())
    plans, project = made.plans, made.assembled.project
    topic = f"{made.first}.checked"
    with pytest.raises(SpecError) as error:
        find_writable(topic, plans, project)
    assert str(error.value) == (
        f"'{topic}' is an edge of pipeline '{made.first}': its node 'checked' writes it, and nobody else "
        f"(`open: true` at the node lets others write to it; its inputs: {made.readings})"
    )
    plan = plans[made.first]
    edges = {**plan.edges, "checked": replace(plan.edges["checked"], open=True)}
    assert find_writable(topic, {made.first: replace(plan, edges=edges)}, project).topics == (topic,)
    for allowed in (made.readings, f"{made.name}.doubles"):
        assert find_writable(allowed, plans, project).topics == (allowed,)


def test_read_at(fabric: Fabric, stream: Stream) -> None:
    send(fabric, stream, {"name": "a", "value": 1}, {"name": "b", "value": 2}, partition=1)
    found = read_at(fabric, (stream.topics[0], 1), 1)
    assert found is not None
    assert found.offset() == 1
    for position, offset in (((stream.topics[0], 1), 2), ((stream.topics[0], 7), 0), (("nothing", 0), 0)):
        assert read_at(fabric, position, offset) is None


@pytest.mark.broker
def test_a_compacted_end_ends_the_reading(kafka: KafkaFabric, unique: str) -> None:
    """The last offsets of a partition may be gone or be transaction markers: nothing is waited for there."""
    import confluent_kafka

    kafka.admin().create(unique, 1, {})
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": unique})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(unique, b'{"name":"a","value":1}')
    producer.commit_transaction(10)
    producer.begin_transaction()
    producer.produce(unique, b'{"name":"b","value":2}')
    producer.flush(10)
    producer.abort_transaction(10)
    stream = Stream(unique, (unique,), SCHEMA, "json")
    assert kafka.admin().offsets([(unique, 0)], EARLIEST) == {(unique, 0): 0}
    assert values(EdgeReader(kafka, stream)) == [1]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("earliest", FROM_EARLIEST),
        ("latest", FROM_LATEST),
        ("offset:12", Start(12)),
        ("12", Start(12)),
        ("-5m", Start(time_ms=NOW_MS - 300_000)),
        ("-90d", Start(time_ms=NOW_MS - 90 * 86_400_000)),
        ("2023-11-14T22:13:20Z", Start(time_ms=NOW_MS)),
        ("2023-11-14T22:13:20", Start(time_ms=NOW_MS)),
        ("2023-11-15T00:13:20+02:00", Start(time_ms=NOW_MS)),
    ],
)
def test_parse_start(text: str, start: Start) -> None:
    assert parse_start(text, NOW_MS) == start


def test_parse_start_of_an_id() -> None:
    record_id = ids.mint(NOW_MS).decode()
    start = parse_start(f"id:{record_id}", 0)
    assert start == start_of_id(record_id)
    assert 0 < NOW_MS - start.time_ms <= 60_000
    for text in ("", "offset:x", "id:nonsense", "5m", "yesterday", "9" * 40):
        with pytest.raises(SpecError):
            parse_start(text, NOW_MS)


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), min_size=1, max_size=4), st.integers(1, 7))
def test_merge_gives_everything_once_and_in_order(logs: list[list[int]], chunk: int) -> None:
    """Whatever order the partitions come in: nothing is lost, and sorted times come out sorted."""
    messages = [
        [MemoryMessage("t", p, i, None, b"", None, time) for i, time in enumerate(sorted(log))]
        for p, log in enumerate(logs)
    ]
    ends = {("t", p): len(log) for p, log in enumerate(logs)}
    merge = Merge(dict.fromkeys(ends, 0), ends)
    out = []
    fetched = [m for log in messages for m in log]  # one partition after the other: the worst case
    for at in range(0, len(fetched), chunk):
        merge.add(fetched[at : at + chunk], beyond=False)
        out += merge.take()
    assert not merge.behind
    times = [m.timestamp()[1] for m in out]
    assert times == sorted(t for log in logs for t in log)
    for p, log in enumerate(messages):
        assert [m.offset() for m in out if m.partition() == p] == list(range(len(log)))
