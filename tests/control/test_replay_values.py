"""Records as recorded and as replayed: what counts as equal, near, different; and the ledger that holds them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.control.records import Stream
from dataflow.control.replay_ledger import Ledger, Wire, pack, unpack
from dataflow.control.replay_report import EdgeComparison
from dataflow.control.replay_values import Comparer, Side
from dataflow.core import ids
from dataflow.core.differences import ABSENT, differences, path_text, same
from dataflow.core.schema import Field, FieldType, Schema, column_of

SCHEMA = Schema(
    (
        Field("price", FieldType("float64")),
        Field("count", FieldType("int64")),
        Field("name", FieldType("string", nullable=True), privacy="identifier"),
        Field("x", FieldType("float32", shape=(2,))),
        Field("when", FieldType("timestamp", nullable=True)),
    )
)
BASE: dict[str, Any] = {"price": 1.0, "count": 3, "name": "Ada", "x": [1.0, 2.0], "when": None}


def wire(values: dict[str, Any], schema: Schema = SCHEMA, key: bytes | None = b"k") -> Wire:
    codec = codec_for("avro", schema)
    columns = {f.name: column_of(f.type, [values[f.name]]) for f in schema}
    (value,) = codec.encode(columns, 1).values
    return Wire(value, key, codec.fingerprint)


def compare(
    one: Wire, other: Wire, tolerance: float = 1e-6, *, schema: Schema = SCHEMA, show_private: bool = False
) -> EdgeComparison:
    result = EdgeComparison("edge")
    was, now = (Side(Stream("s", ("t",), s, "avro"), lambda _f: None) for s in (SCHEMA, schema))
    comparer = Comparer(was, now, tolerance, result, show_private=show_private)
    comparer.add("id", one, other)
    comparer.flush()
    assert result.equal + result.within + result.differing == 1
    return result


def told(result: EdgeComparison) -> list[tuple[str, str, str]]:
    return [(d.path, d.recorded, d.replayed) for d in result.differences]


def test_equal_near_and_different() -> None:
    base = wire(BASE)
    assert compare(base, wire(BASE)).equal == 1
    assert compare(base, wire({**BASE, "price": 1.0 + 1e-7})).within == 1
    assert compare(base, wire({**BASE, "x": [1.0, 2.0 + 1e-6]})).within == 1
    far = compare(base, wire({**BASE, "price": 1.5, "x": [1.0, 2.5]}))
    assert sorted(told(far)) == [("price", "1.0", "1.5"), ("x[1]", "2.0", "2.5")]
    assert (far.fields["price"].records, far.fields["price"].largest) == (1, 0.5)
    assert told(compare(base, wire({**BASE, "count": 4}))) == [("count", "3", "4")]
    assert compare(base, wire({**BASE, "price": 1.5, "x": [1.0, 2.5]}), 0.5).within == 1


def test_nan_is_nan_and_infinities_are_far() -> None:
    base = wire({**BASE, "price": math.nan})
    assert compare(base, wire({**BASE, "price": math.nan, "x": [1.0, 2.0 + 1e-7]})).differing == 0
    assert told(compare(wire({**BASE, "price": math.inf}), wire({**BASE, "price": 1e300}))) == [
        ("price", "Infinity", "1e+300")
    ]


def test_keys_and_private_fields() -> None:
    base = wire(BASE)
    assert told(compare(base, wire(BASE, key=b"other"))) == [("(key)", "k", "other")]
    other = wire({**BASE, "name": "Bob"})
    assert told(compare(base, other)) == [("name", "***", "***")]
    assert told(compare(base, other, show_private=True)) == [("name", "Ada", "Bob")]
    assert told(compare(base, wire({**BASE, "name": None}))) == [("name", "***", "null")]


def test_another_contract_and_what_does_not_decode() -> None:
    wider = Schema((*SCHEMA, Field("added", FieldType("int64"))))
    more = wire({**BASE, "added": 1}, wider)
    assert told(compare(wire(BASE), more, schema=wider)) == [("added", "no such field", "1")]
    ((path, was, now),) = told(compare(wire(BASE), Wire(b"\x00", b"k", b""), show_private=True))
    assert path == "(record)"
    assert was.startswith("{price: 1.0")
    assert "does not decode" in now
    ((_, was, now),) = told(compare(wire(BASE), Wire(b"\x00", b"k", b"ff")))
    assert (was, now) == ("***", "***")


@given(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([0.0, 1e-6, 0.1, 2.0]),
)
def test_columns_are_compared_as_single_values_are(one: float, other: float, tolerance: float) -> None:
    result = compare(wire({**BASE, "price": one}), wire({**BASE, "price": other}), tolerance)
    assert (result.differing == 0) == same(one, other, tolerance)
    assert (result.equal == 1) == (one == other)


def test_paths_of_differences() -> None:
    one = {"a": [1, {"b": 2}], "gone": 1}
    other = {"a": [1, {"b": 3}], "new": 2}
    found = {path_text(p): (a, b) for p, a, b in differences(one, other, 0)}
    assert found == {"a[1].b": (2, 3), "gone": (1, ABSENT), "new": (ABSENT, 2)}
    assert list(differences({"a": 1}, {"a": 1, "b": 2}, 0, partial=True)) == []
    assert list(differences([1], [1, 2], 0)) == [((), [1], [1, 2])]


def test_ids_are_packed() -> None:
    record_id = ids.mint(1_700_000_000_000)
    assert unpack(pack(record_id)) == record_id.decode()


def records(count: int) -> list[bytes]:
    return ids.of_positions(7, [1_000] * count, range(count))


def test_the_ledger_matches_equal_records_first() -> None:
    (one,) = records(1)
    a, b, c = (Wire(v, None, b"") for v in (b"a", b"b", b"c"))
    with Ledger() as ledger:
        assert ledger.put_replayed(one, a)
        assert ledger.put_replayed(one, b)
        assert not ledger.put_replayed(one, a)
        assert ledger.match_equal(one, b)
        assert not ledger.match_equal(one, b)
        assert ledger.came_before(one, b)
        assert not ledger.came_before(one, c)
        assert ledger.came_before(one, c)
        assert ledger.match(one) == a
        assert ledger.match(one) is None
        assert ledger.left == 0


def test_the_ledger_knows_what_comes_of_the_stretch() -> None:
    root, child, grandchild, other, odd = records(5)
    with Ledger() as ledger:
        ledger.add([root])
        assert ledger.belongs(child, [root])
        assert ledger.belongs(grandchild, [other, child])
        assert not ledger.belongs(other, [odd])
        ledger.put_replayed(odd, Wire(b"x", None, b""))
        assert ledger.was_replayed(odd)
        assert list(ledger.unmatched(10)) == [odd.decode()]
        ledger.match_equal(odd, Wire(b"x", None, b""))
        ledger.end_edge()
        ledger.begin_edge()
        assert (ledger.left, ledger.was_replayed(odd)) == (0, False)
        # What was matched is of the stretch: what comes of it is, too.
        assert ledger.belongs(other, [odd])
        ledger.note_letter(root, "it broke")
        assert ledger.letter([child, root]) == "it broke"
        assert ledger.letter([child]) == ""
    assert not ledger.folder.exists()


@pytest.mark.parametrize(
    "one", [Wire(None, b"ab", b""), Wire(b"", b"ab", b""), Wire(b"a", b"b", b""), Wire(b"ab", b"", b"")]
)
def test_digests_tell_where_bytes_are(one: Wire) -> None:
    others = {Wire(b"ab", None, b""), Wire(b"", b"", b"ab"), Wire(None, b"", b"ab"), Wire(b"a", b"", b"b")}
    assert one.digest not in {o.digest for o in others}
    assert len(np.unique([o.digest.hex() for o in others])) == len(others)
