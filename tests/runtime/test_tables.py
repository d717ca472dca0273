"""Broadcast tables against a plain list of everything that happened."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataflow.core.errors import ContractError, NodeError
from dataflow.core.schema import FieldType, Schema
from dataflow.runtime.tables import BroadcastTable, load_file

SCHEMA = Schema.of(a="int64", b=FieldType("string", nullable=True), c="int64")


class TableMachine(RuleBasedStateMachine):
    """Upserts and deletes, with indices made at any time: each finds the newest row that is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.table = BroadcastTable(SCHEMA)
        self.rows: dict[bytes, tuple[Any, ...]] = {}  # in order of their last upsert
        self.indices: dict[tuple[str, ...], Any] = {}
        self.by_time: dict[tuple[str, ...], Any] = {}  # c is the time

    @rule(
        key=st.integers(0, 5), a=st.integers(0, 2), b=st.sampled_from([None, "x", "y"]), c=st.integers(0, 9)
    )
    def upsert(self, key: int, a: int, b: str | None, c: int) -> None:
        name = str(key).encode()
        self.table.upsert(name, (a, b, c))
        self.rows.pop(name, None)
        self.rows[name] = (a, b, c)

    @rule(key=st.integers(0, 6))
    def delete(self, key: int) -> None:
        name = str(key).encode()
        self.table.delete(name)
        self.rows.pop(name, None)

    @rule(fields=st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a"), ("c", "a")]))
    def index(self, fields: tuple[str, ...]) -> None:
        self.indices[fields] = self.table.index(fields)

    @rule(fields=st.sampled_from([("a",), ("b",), ("a", "b")]))
    def index_by_time(self, fields: tuple[str, ...]) -> None:
        self.by_time[fields] = self.table.index(fields, "c")

    @invariant()
    def finds_the_last_before_a_time(self) -> None:
        for fields, find in self.by_time.items():
            positions = [SCHEMA.names.index(f) for f in fields]
            for values in {tuple(row[p] for p in positions) for row in self.rows.values()}:
                for time in (-1, 0, 4, 9):
                    alive = [
                        r
                        for r in self.rows.values()
                        if tuple(r[p] for p in positions) == values and r[2] <= time
                    ]
                    latest = max((r[2] for r in alive), default=None)
                    expected = (
                        [r for r in alive if r[2] == latest][-1] if alive and None not in values else None
                    )
                    assert find((*values, time)) == expected
                assert find((*values, None)) is None

    @invariant()
    def finds_the_newest(self) -> None:
        for fields, find in self.indices.items():
            positions = [SCHEMA.names.index(f) for f in fields]
            asked = {tuple(row[p] for p in positions) for row in self.rows.values()} | {(0,) * len(fields)}
            for values in asked:
                alive = [r for r in self.rows.values() if tuple(r[p] for p in positions) == values]
                expected = alive[-1] if alive and None not in values else None
                assert find(values) == expected
        assert len(self.table) == len(self.rows)

    @invariant()
    def size_follows(self) -> None:
        again = BroadcastTable(SCHEMA)
        for fields in self.indices:
            again.index(fields)
        for fields in self.by_time:
            again.index(fields, "c")
        for key, row in self.rows.items():
            again.upsert(key, row)
        assert self.table.size_bytes == again.size_bytes


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_cap_refuses_and_leaves_the_table_as_it_was() -> None:
    table = BroadcastTable(
        Schema.of(k="string", x=FieldType("float64", (1000,))), name="big", max_bytes=20_000
    )
    find = table.index(["k"])
    table.upsert(b"1", ("1", np.zeros(1000)))
    table.upsert(b"2", ("2", np.zeros(1000)))
    size = table.size_bytes
    with pytest.raises(
        NodeError, match=r"table 'big' takes more than 0 MB in memory at row 3 \(make a smaller"
    ):
        table.upsert(b"3", ("3", np.zeros(1000)))
    assert (len(table), table.size_bytes, find(("3",))) == (2, size, None)
    table.upsert(b"2", ("2", np.zeros(1000)))
    table.delete(b"1")
    table.upsert(b"3", ("3", np.zeros(1000)))
    assert find(("3",)) is not None


def test_the_estimate_is_near_what_python_takes() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = BroadcastTable(Schema.of(k="string", x="float64", n="int64"))
        table.index(["k"])
        for i in range(20_000):
            table.upsert(str(i).encode(), (f"name-{i}", i / 7, i * 1_000_003))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.6 < table.size_bytes / taken < 1.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["z"], "table 't' has no field 'z'"),
        (["tags"], "field 'tags' is list<string>, which cannot be looked up"),
        (["x"], r"field 'x' is float32\[2\], which cannot be looked up"),
        ([], "an index needs a field"),
    ],
)
def test_what_cannot_be_an_index(fields: list[str], message: str) -> None:
    schema = Schema.of(
        k="string", tags=FieldType("list", item=FieldType("string")), x=FieldType("float32", (2,))
    )
    with pytest.raises(ContractError, match=message):
        BroadcastTable(schema, name="t").index(fields)


class TestFiles:
    def test_csv_and_parquet(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = Schema.of(hour="timestamp", origin="string", temp=FieldType("float32", nullable=True))
        (tmp_path / "w.csv").write_text(
            "origin,hour,temp,more\nEWR,2013-01-01T05:00:00Z,39.5,1\nLGA,2013-01-01T05:00:00Z,,1\n"
        )
        times = pa.array([datetime(2013, 1, 1, 5)] * 2, type=pa.timestamp("us", tz="UTC"))  # noqa: DTZ001
        made = pa.table(
            {"origin": ["EWR", "LGA"], "hour": times, "temp": pa.array([39.5, None], pa.float32())}
        )
        pq.write_table(made, tmp_path / "w.parquet")
        at = datetime(2013, 1, 1, 5)  # noqa: DTZ001  (as columns hold it: UTC)
        for name in ("w.csv", "w.parquet"):
            table = BroadcastTable(schema, name=name)
            load_file(table, tmp_path / name)
            find = table.index(["origin", "hour"])
            assert find(("EWR", at)) == (at, "EWR", 39.5)
            assert find(("LGA", at)) == (at, "LGA", None)
            assert find(("JFK", at)) is None

    def test_the_last_row_wins_and_a_key_replaces(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("k,v\na,1\nb,2\na,3\n")
        schema = Schema.of(k="string", v="int64")
        for key, rows in (((), 3), (("k",), 2)):
            table = BroadcastTable(schema)
            load_file(table, tmp_path / "t.csv", key)
            assert table.index(["k"])(("a",)) == ("a", 3)
            assert len(table) == rows

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("no.csv", None, r"table file '.*no\.csv', after 0 rows: .*No such file"),
            ("t.csv", "k,v\na,text\n", "after 0 rows: field 'v': "),
            ("t.csv", "k\na\n", "after 0 rows: field 'v' is not in the table"),
            ("t.parquet", "text", "after 0 rows: "),
            ("t.txt", "k,v\n", r"is no table \(a file ending in \.parquet or \.csv\)"),
        ],
    )
    def test_messages(self, tmp_path: Path, name: str, content: str | None, message: str) -> None:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(NodeError, match=message):
            load_file(BroadcastTable(Schema.of(k="string", v="int64")), tmp_path / name)
