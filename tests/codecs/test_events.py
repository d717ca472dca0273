"""Structured CloudEvents as records, and records as events."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest

from dataflow.codecs import codec_for
from dataflow.codecs.events import Events
from dataflow.core.batch import Row
from dataflow.core.schema import Schema

SCHEMA = Schema.of(n="int64")
ID = b"00000000-0000-7000-8000-000000000001"


def decoded(value: bytes, schema: Schema = SCHEMA) -> tuple[list[int], list[str]]:
    found = codec_for("cloudevents", schema).decode([value])
    return found.columns["n"].tolist(), [str(error) for _, error in found.failed]


@pytest.mark.parametrize("value", [
    b'{"specversion": "1.0", "id": "1", "source": "/", "type": "t", "data": {"n": 7}}',
    b'{"specversion": "1.0", "data_base64": "%b"}' % base64.b64encode(b'{"n": 7}'),
    b'{"n": 7}',
])  # fmt: skip
def test_the_data_of_an_event_is_the_record(value: bytes) -> None:
    assert decoded(value) == ([7], [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"specversion": "1.0"}', "an event without data"),
        (b'{"specversion": "1.0", "data": null}', "is not a record"),
        (b'{"specversion": "1.0", "data_base64": "%%%"}', "an event whose data_base64 holds no JSON"),
        (b'{"specversion": "1.0", "data_base64": 5}', "an event whose data_base64 holds no JSON"),
        (b'{"specversion": "1.0", "data_base64": "eyE="}', "an event whose data_base64 holds no JSON"),
        (b'{"specversion": "1.0", "data": {"m": 1}}', "n"),
        (b"{", "is not JSON"),
    ],
)
def test_an_event_that_holds_no_record_is_named(value: bytes, reason: str) -> None:
    columns, (said,) = decoded(value)
    assert columns == []
    assert reason in said


def test_a_contract_that_has_the_field_itself_is_taken_at_its_word() -> None:
    schema = Schema.of(n="int64", specversion="string")
    assert decoded(b'{"specversion": "1.0", "n": 3, "data": {"n": 7}}', schema) == ([3], [])


def test_a_structured_event_comes_back_as_the_record() -> None:
    (value,) = codec_for("cloudevents", SCHEMA).encode({"n": np.array([7])}, 1).values
    assert value == b'{"n":7}'
    made = Events('a "type"', "/pipelines/p/n", "cloudevents").wrapped(value, ID)
    assert made is not None
    assert orjson.loads(made) == {
        "specversion": "1.0", "id": ID.decode(), "source": "/pipelines/p/n", "type": 'a "type"',
        "datacontenttype": "application/json", "data": {"n": 7},
    }  # fmt: skip
    assert decoded(made) == ([7], [])


@pytest.mark.parametrize("codec", ["avro", "cloudevents"])
def test_a_record_without_a_value_stays_one(codec: str) -> None:
    assert Events("t", "/", codec).wrapped(None, ID) is None


def test_headers_of_the_event_that_came_in_do_not_go_out() -> None:
    row = Row(ID, None, 0, [("ce_id", b"old"), ("content-type", b"text/plain"), ("mine", b"1")], b"", 0, 0)
    binary, structured = Events("t", "/", "avro"), Events("t", "/", "cloudevents")
    assert binary.beside(row) == [("mine", b"1"), ("ce_id", ID)]
    assert structured.beside(row) == [("mine", b"1")]
    assert dict(binary.headers()) == {
        "ce_specversion": b"1.0", "ce_source": b"/", "ce_type": b"t", "content-type": b"application/avro",
    }  # fmt: skip
    assert dict(structured.headers()) == {"content-type": b"application/cloudevents+json; charset=UTF-8"}
