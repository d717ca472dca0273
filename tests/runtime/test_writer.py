"""From batches to records: what an edge can hold, what strangers get of it, and what goes into a reply."""

from __future__ import annotations

import decimal

import orjson
import pytest

from dataflow.codecs import codec_for
from dataflow.core import headers
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import RecordTooLargeError, TransportError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.observe.metrics import EdgeMetrics
from dataflow.runtime.execution import Ended
from dataflow.runtime.replies import Replies
from dataflow.runtime.writer import Barrier, EdgeWriter, Target
from dataflow.transport.murmur import murmur2_partition
from tests.runtime.kit import HandProducer

MONEY = Schema((Field("n", FieldType("int64")), Field("price", FieldType("decimal", precision=4, scale=2))))
THEIRS = Schema.of(n="int16", price=FieldType("decimal", precision=4, scale=2))
REPLY = b"dataflow.replies/2/request-1"


def rows_of(count: int) -> list[Row]:
    return [
        Row(
            f"{i:08x}-0000-7000-8000-000000000000".encode(),
            f"k{i}".encode(),
            i,
            [("mine", b"1")],
            REPLY,
            9,
            1,
        )
        for i in range(count)
    ]


def money(*pairs: tuple[int, str]) -> Batch:
    records = [{"n": n, "price": decimal.Decimal(price)} for n, price in pairs]
    return Batch.of(MONEY, records, rows_of(len(pairs)))


def writer_of(*targets: Target, requests: bool = False) -> EdgeWriter:
    return EdgeWriter(
        "e", "node", codec_for("avro", MONEY), targets, EdgeMetrics("p", "e"), requests=requests
    )


def own(max_bytes: int = 1_000, room: int = 10_000) -> Target:
    codec = codec_for("avro", MONEY)
    return Target(
        "p.e", codec, 2, max_bytes, room, ((headers.SCHEMA, codec.fingerprint), (headers.ORIGIN, b"p@v/n"))
    )


def copy(max_bytes: int = 1_000) -> Target:
    return Target("theirs", codec_for("json", THEIRS), 7, max_bytes, 10_000, (), ("n",), "string", THEIRS)


def write(writer: EdgeWriter, batch: Batch, partition: int = 5) -> tuple[HandProducer, list[Ended], Barrier]:
    producer, barrier = HandProducer(), Barrier()
    sealed, ended = writer.seal(batch)
    ended += writer.write(sealed, partition, producer, barrier)
    return producer, ended, barrier


def test_a_record_carries_what_belongs_to_it() -> None:
    producer, ended, barrier = write(writer_of(own()), money((1, "1.50")))
    sent = producer.sent[0]
    assert ended == []
    assert (sent.topic, sent.partition, sent.key) == ("p.e", 1, b"k0")
    assert sent.headers == {
        headers.ID: rows_of(1)[0].id, headers.SCHEMA: codec_for("avro", MONEY).fingerprint,
        headers.ORIGIN: b"p@v/n", "mine": b"1", headers.ATTEMPT: b"1",
    }  # fmt: skip
    states = [barrier.open]
    producer.acknowledge_all()
    states.append(barrier.open)
    assert (states, barrier.error) == ([True, False], "")


def test_a_request_goes_on_only_where_it_is_asked_to() -> None:
    sent = write(writer_of(own(), copy(), requests=True), money((1, "1.50")))[0].sent
    assert [(s.topic, headers.REPLY_TO in s.headers, headers.DEADLINE in s.headers) for s in sent] == [
        ("p.e", True, True), ("theirs", False, False),
    ]  # fmt: skip


def test_rows_that_do_not_encode_end_and_the_others_are_whole() -> None:
    producer, ended, _ = write(writer_of(own()), money((1, "1.50"), (2, "123456.00"), (3, "2.00")))
    assert [(e.row.source, e.error, e.node) for e in ended] == [(1, "CodecError", "node")]
    decoded = codec_for("avro", MONEY).decode([s.value for s in producer.sent])
    assert decoded.columns["n"].tolist() == [1, 3]


def test_an_edge_nobody_writes_is_not_limited() -> None:
    sealed, ended = writer_of().seal(money((1, "1.50")))
    assert (len(sealed), ended) == (1, [])


def test_a_copy_is_fitted_keyed_and_placed_by_its_own_contract() -> None:
    batch = money((1, "1.50"), (70_000, "1.00"), (3, "2.00"))
    producer, ended, _ = write(writer_of(own(), copy()), batch)
    copies = producer.to("theirs")
    assert [orjson.loads(c.value or b"")["n"] for c in copies] == [1, 3]
    assert [c.key for c in copies] == [b"1", b"3"]
    assert {c.partition for c in copies} == {-1}
    assert len(producer.to("p.e")) == 3
    assert [(e.row.source, e.error) for e in ended] == [(1, "CodecError")]
    assert murmur2_partition(b"1", 7) in range(7)


def test_a_copy_of_nothing_that_fits() -> None:
    producer, ended, _ = write(writer_of(own(), copy()), money((70_000, "1.00")))
    assert producer.to("theirs") == []
    assert len(ended) == 1


@pytest.mark.parametrize(
    ("max_bytes", "room", "said"), [(3, 10_000, "limit 3"), (1_000, 8, "it takes 8 in all")]
)
def test_too_large_for_the_edge(max_bytes: int, room: int, said: str) -> None:
    producer, ended, barrier = write(writer_of(own(max_bytes, room)), money((1, "1.50")))
    assert producer.sent == []
    assert not barrier.open
    assert [(e.error, said in e.reason) for e in ended] == [("RecordTooLargeError", True)]


class Small(HandProducer):
    """Its client takes no value of more than ten bytes."""

    def send(self, topic: str, value: bytes | None, *arguments: object, **options: object) -> None:
        if len(value or b"") > 10:
            raise RecordTooLargeError("a record of many bytes")
        super().send(topic, value, *arguments, **options)  # type: ignore[arg-type]  # passed through


class Away(HandProducer):
    def send(self, topic: str, value: bytes | None, *arguments: object, **options: object) -> None:
        raise TransportError("unknown partition")


def test_an_answer_too_large_for_a_reply_is_told_as_a_failure() -> None:
    producer = Small()
    Replies(producer).answer(rows_of(1)[0], "e", b"x" * 11, b"f")
    sent = producer.sent[0]
    assert (sent.partition, sent.key, sent.value) == (2, b"request-1", None)
    assert sent.headers[headers.STATUS] == b"failed"
    assert orjson.loads(sent.headers[headers.REASON])["error"] == "RecordTooLargeError"


def test_a_reply_that_cannot_be_sent_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    Replies(Away()).answer(rows_of(1)[0], "e", b"x", b"f")
    Replies(Away()).refuse(Ended(rows_of(1)[0], "why", "node"))
    assert caplog.text.count("a reply was not sent") == 2


@pytest.mark.parametrize(
    ("ended", "status"),
    [(("why", "n", ""), b"dropped"), (("why", "n", "Bad"), b"failed"), (("expired", "", ""), b"expired")],
)
def test_refusals_say_why(ended: tuple[str, str, str], status: bytes) -> None:
    producer = HandProducer()
    reason, name, error = ended
    Replies(producer).refuse(Ended(rows_of(1)[0], reason, name, error))
    assert producer.sent[0].headers[headers.STATUS] == status
    assert orjson.loads(producer.sent[0].headers[headers.REASON]) == {
        "reason": reason,
        "node": name,
        "error": error,
    }


def test_a_long_cause_is_cut_within_its_characters() -> None:
    producer = HandProducer()
    Replies(producer).refuse(Ended(rows_of(1)[0], "\u00e9" * 10_000, "n", "Bad"))
    text = orjson.loads(producer.sent[0].headers[headers.REASON])["reason"]
    assert set(text) == {"\u00e9"}
    assert len(text.encode()) <= 4_096


def test_the_barrier_keeps_the_first_refusal() -> None:
    barrier = Barrier()
    barrier.left = 3
    barrier.acknowledged(None, None)
    barrier.acknowledged("first", None)
    barrier.acknowledged("second", None)
    assert (barrier.open, barrier.error) == (False, "first")
