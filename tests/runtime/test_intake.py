"""Records as strangers may write them: any header, any bytes; and what our own writers say is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs import Codec, codec_for
from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.core.schema import FieldType, Schema
from dataflow.runtime.execution import Ended
from dataflow.runtime.intake import Intake
from dataflow.transport.memory_log import MemoryMessage
from tests.runtime.kit import RECORD, encoded, message

NEWER = Schema.of(n="int64", do="string", more=FieldType("string", nullable=True))
ID = b"00000000-0005-7000-8000-00000000abcd"  # a constant: names of tests are made of it


def intake(codec: str = "avro", *, tombstones: bool = False) -> Intake:
    own = codec_for(codec, RECORD)
    other = codec_for(codec, NEWER)

    def writer(fingerprint: bytes) -> Codec | None:
        return codec_for(codec, RECORD, writer=NEWER) if fingerprint == other.fingerprint else None

    return Intake("records", own, writer, tombstones=tombstones)


def read(
    messages: Sequence[MemoryMessage], now_ms: int = 0, *, honour: bool = True
) -> tuple[Batch, list[Ended]]:
    return intake().read(messages, 42, now_ms, honour_deadlines=honour)


def one(*head: tuple[str, Any], n: int = 0) -> MemoryMessage:
    return message(n, encoded([(n, "pass")])[0], head)


def test_a_record_without_an_id_gets_one_of_its_position() -> None:
    batch, ended = read([one(n=0), one(n=1), one((headers.ID, ID), n=2)])
    assert [r.id for r in batch.rows] == [*ids.of_positions(42, [1_700_000_000_000] * 2, [0, 1]), ID]
    assert ended == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x" * 36,
        b"\xff" * 36,
        ID.upper(),
        ID[:-1],
        ID + b"0",
        None,
        ID.replace(b"-", b"0"),
        ID[:-1] + b"g",
    ],
)
def test_what_is_no_id_is_none(value: bytes | None) -> None:
    batch, _ = read([one((headers.ID, value))])
    made = batch.rows[0].id
    assert made == ids.of_positions(42, [1_700_000_000_000], [0])[0]
    assert len(ids.child(made, "n", "out", 0)) == 36


_NAMES = st.sampled_from(
    [headers.ID, headers.SCHEMA, headers.REPLY_TO, headers.DEADLINE, headers.ATTEMPT, headers.PARENTS,
     headers.ORIGIN, headers.CALLER_ID, headers.ERROR, "traceparent", "mine"]
)  # fmt: skip


@given(
    st.lists(
        st.lists(st.tuples(_NAMES, st.none() | st.binary(max_size=40)), max_size=6), min_size=1, max_size=5
    )
)
def test_no_header_of_a_stranger_breaks_the_reading(heads: list[list[tuple[str, bytes | None]]]) -> None:
    messages = [one(*head, n=n) for n, head in enumerate(heads)]
    batch, ended = read(messages, 10**15)
    assert sorted([r.source for r in batch.rows] + [e.row.source for e in ended]) == list(range(len(heads)))
    for row in (*batch.rows, *(e.row for e in ended)):
        ids.time_ms_of(row.id)
        assert {name for name, _ in row.carry} <= {headers.CALLER_ID, headers.ERROR, "traceparent", "mine"}
        assert row.deadline_ms >= 0
        assert row.attempt >= 0
        assert isinstance(row.reply, bytes)


def test_request_headers_are_taken_over_and_others_carried() -> None:
    head = [
        (headers.ID, ID), (headers.REPLY_TO, b"dataflow.replies/1/x"), (headers.DEADLINE, b"77"),
        (headers.ATTEMPT, b"2"), (headers.CALLER_ID, b"mine"), ("traceparent", b"00"), (headers.ORIGIN, b"o"),
        (headers.PARENTS, b"p"),
    ]  # fmt: skip
    row = read([one(*head)])[0].rows[0]
    assert (row.reply, row.deadline_ms, row.attempt) == (b"dataflow.replies/1/x", 77, 2)
    assert row.carry == [(headers.CALLER_ID, b"mine"), ("traceparent", b"00")]


def test_a_mix_of_schemas_and_garbage_comes_out_in_log_order() -> None:
    old, new = codec_for("avro", RECORD), codec_for("avro", NEWER)
    newer = new.encode(Batch.of(NEWER, [{"n": 9, "do": "pass", "more": "x"}]).columns, 1).values[0]
    values = encoded([(i, "pass") for i in range(3)])
    batch, ended = read(
        [
            message(0, values[0], [(headers.SCHEMA, old.fingerprint)]),
            message(1, newer, [(headers.SCHEMA, new.fingerprint)]),
            message(2, values[1]),
            message(3, b"\x01", [(headers.SCHEMA, new.fingerprint)]),
            message(4, values[2], [(headers.SCHEMA, b"never-published")]),
            message(5, None),
            message(6, values[2], [(headers.SCHEMA, old.fingerprint)]),
        ]
    )
    assert batch["n"].tolist() == [0, 9, 1, 2]
    assert [r.source for r in batch.rows] == [0, 1, 2, 6]
    assert sorted((e.row.source, e.error) for e in ended) == [
        (3, "CodecError"), (4, "UnknownSchema"), (5, "CodecError"),
    ]  # fmt: skip
    assert "never-published" in next(e.reason for e in ended if e.row.source == 4)


def test_tombstones_are_rows_where_they_are_asked_for_and_fail_elsewhere() -> None:
    values = [None, encoded([(1, "pass")])[0], None, b"garbage", encoded([(4, "pass")])[0], None]
    messages = [message(n, value) for n, value in enumerate(values)]
    batch, ended = intake(tombstones=True).read(messages, 42, 0, honour_deadlines=True)
    assert [row.source for row in batch.rows] == [0, 1, 2, 4, 5]
    assert batch.deleted == {0, 2, 4}
    assert batch["n"][[1, 3]].tolist() == [1, 4]
    assert [e.row.source for e in ended] == [3]
    assert batch.take([4, 1]).deleted == {0}
    only, ended = intake(tombstones=True).read(messages[:1], 42, 0, honour_deadlines=True)
    assert (len(only), only.deleted) == (1, frozenset({0}))
    assert ended == []
    batch, ended = intake().read(messages, 42, 0, honour_deadlines=True)
    assert ([row.source for row in batch.rows], batch.deleted) == ([1, 4], frozenset())
    assert [e.row.source for e in ended] == [0, 2, 3, 5]


def test_garbage_keeps_the_wire_bytes_of_the_good_rows() -> None:
    values = encoded([(i, "pass") for i in range(2)])
    batch, _ = read([message(0, values[0]), message(1, b"\x01"), message(2, values[1])])
    assert batch.encoded is not None
    assert batch.encoded.values == values


def test_only_requests_whose_deadline_has_passed_expire() -> None:
    reply = (headers.REPLY_TO, b"dataflow.replies/0/a")
    messages = [
        one((headers.DEADLINE, b"100"), reply, n=0),
        one((headers.DEADLINE, b"101"), reply, n=1),
        one(reply, n=2),
        # Nobody waits for it: dropping it would lose a stranger's record in silence.
        one((headers.DEADLINE, b"1"), n=3),
    ]
    batch, ended = read(messages, 100)
    assert batch["n"].tolist() == [1, 2, 3]
    assert [(e.row.source, e.reason, e.error) for e in ended] == [(0, headers.STATUS_EXPIRED, "")]
    assert len(read(messages, 100, honour=False)[0]) == 4
