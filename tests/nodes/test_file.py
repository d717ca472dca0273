"""`source.file`: three formats, one contract, and a pace that is a function of the clock it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.schema import FieldType, Schema
from dataflow.testing.examples import write_example_files
from dataflow.testing.nodes import build_node, contract_of, kind_of
from nodes.file import SourceFile

SCHEMA = Schema.of(
    name="string", n=FieldType("int32", nullable=True), at="timestamp", x=FieldType("float32", (2,)),
    lacking=FieldType("string", nullable=True),
)  # fmt: skip
AT = datetime(2024, 5, 1, 12, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"name": "a", "n": 1, "at": AT, "x": [1.0, 2.0]},
    {"name": "b, c", "n": None, "at": AT + timedelta(seconds=2), "x": [3.0, 4.5]},
]


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> str:
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [
            f'"{r["name"]}",{"" if r["n"] is None else r["n"]},more,{r["at"].isoformat()},"{json.dumps(r["x"])}"'
            for r in rows
        ]
        path.write_text("\ufeff" + "\n".join(["name,n,extra,at,x", *lines]) + "\n", encoding="utf-8")
    else:
        path.write_text(
            "\n\n".join(json.dumps({**r, "at": r["at"].isoformat(), "extra": 1}) for r in rows) + "\n"
        )
    return name


def source(folder: Path, schema: Schema = SCHEMA, **settings: Any) -> Any:
    return build_node(SourceFile, {}, settings, out=schema, folder=folder)


def read_all(made: Any, schema: Schema = SCHEMA, most: int = 1_000) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while (part := made.read(most)) is not None:
        columns, count = part
        rows.extend(Batch(schema, columns, [None] * count).to_dicts())  # type: ignore[list-item]
    return rows


def numbers(folder: Path, count: int, name: str = "n.csv") -> tuple[str, Schema]:
    (folder / name).write_text("n\n" + "".join(f"{i}\n" for i in range(count)))
    return name, Schema.of(n="int64")


class TestReading:
    @pytest.mark.parametrize("name", ["r.csv", "r.parquet", "r.jsonl"])
    def test_formats(self, tmp_path: Path, name: str) -> None:
        made = read_all(source(tmp_path, path=write(tmp_path, name)))
        assert [(r["name"], r["n"], r["at"], r["x"].tolist(), r["lacking"]) for r in made] == [
            ("a", 1, AT.replace(tzinfo=None), [1.0, 2.0], None),
            ("b, c", None, (AT + timedelta(seconds=2)).replace(tzinfo=None), [3.0, 4.5], None),
        ]

    def test_format_may_be_said(self, tmp_path: Path) -> None:
        write(tmp_path, "r.csv")
        (tmp_path / "r.csv").rename(tmp_path / "r.dat")
        assert len(read_all(source(tmp_path, path="r.dat", format="csv"))) == 2

    @pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
    def test_long_files_come_in_parts_in_order(self, tmp_path: Path, suffix: str) -> None:
        name, rows = f"n.{suffix}", [{"n": i} for i in range(10_000)]
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        elif suffix == "csv":
            numbers(tmp_path, 10_000)
        else:
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        schema = Schema.of(n="int64")
        made = source(tmp_path, schema, path=name)
        assert [r["n"] for r in read_all(made, schema, most=3_000)] == list(range(10_000))
        assert made.position == 10_000

    def test_an_empty_file(self, tmp_path: Path) -> None:
        name, schema = numbers(tmp_path, 0)
        made = source(tmp_path, schema, path=name, rate=1)
        assert made.due(0.0) == 1
        assert made.wait_s(0.0) == 0.0
        assert made.read(10) is None

    @pytest.mark.parametrize(("passed", "left"), [(0, 6), (2, 4), (6, 0), (9, 0)])
    def test_skip(self, tmp_path: Path, passed: int, left: int) -> None:
        name, schema = numbers(tmp_path, 6)
        made = source(tmp_path, schema, path=name)
        made.skip(passed)
        assert [r["n"] for r in read_all(made, schema)] == list(range(6))[6 - left :]


class TestBadRecords:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("r.csv", "n\n1\nx\n", r"r\.csv: record 2: field 'n': 'x'"),
            ("r.csv", "n,m\n1,2\n1\n", r"r\.csv: record 2: 1 columns where the header has 2"),
            ("r.csv", "m\n1\n", r"r\.csv has no column 'n' \(valid: m\)"),
            ("r.csv", "", r"has no column 'n' \(none is declared\)"),
            ("r.jsonl", '{"n": 1}\n{"n": 1.5}\n', r"r\.jsonl: record 2: field 'n': 1\.5"),
            ("r.jsonl", '{"n": 1}\n{"n": \n', r"record 2: '\{\"n\":' \(str\) is not a record"),
            ("r.jsonl", '{"m": 1}\n', r"record 1: field 'n' is missing"),
            ("r.parquet", "text", r"r\.parquet: "),
            ("q.csv", None, r"no file '.*r\.csv' \(did you mean 'q\.csv'\?\)"),
        ],
    )
    def test_messages(self, tmp_path: Path, name: str, content: str | None, message: str) -> None:
        (tmp_path / name).write_text(content if content is not None else "n\n")
        wanted = name if content is not None else "r.csv"
        with pytest.raises(NodeError, match=message):
            read_all(source(tmp_path, Schema.of(n="int64"), path=wanted), Schema.of(n="int64"))

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        for name in ("r.csv", "r.jsonl"):
            (tmp_path / name).write_bytes(b"n\n\xff\xfe\n")
            with pytest.raises(NodeError, match="can't decode"):
                read_all(source(tmp_path, Schema.of(n="int64"), path=name))

    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
    def test_skipping_them(self, tmp_path: Path, suffix: str) -> None:
        values = ["1", "x", "3", "y"]
        if suffix == "parquet":
            pq.write_table(pa.table({"n": values}), tmp_path / "r.parquet")
            schema = Schema.of(n=FieldType("enum", symbols=("1", "3")))
        else:
            schema = Schema.of(n="string", m="int64") if suffix == "csv" else Schema.of(n="int64")
            lines = [f"{v},{v}" if suffix == "csv" else f'{{"n": {v}}}' for v in values]
            (tmp_path / f"r.{suffix}").write_text("\n".join((["n,m"] if suffix == "csv" else []) + lines))
        made = source(tmp_path, schema, path=f"r.{suffix}", on_error="skip")
        assert [str(r["n"]) for r in read_all(made, schema)] == ["1", "3"]
        assert made.skipped == 2

    def test_a_file_of_bad_records_only(self, tmp_path: Path) -> None:
        (tmp_path / "r.csv").write_text("n\n" + "x\n" * 5_000)
        made = source(tmp_path, Schema.of(n="int64"), path="r.csv", on_error="skip")
        assert made.read(10) is None
        assert made.skipped == 5_000


def play(made: Any, most: int = 500, start_s: float = 1e6) -> list[float]:
    """Run as the engine does, on a hand-moved clock: the time at which each record was sent."""
    now_s = start_s
    sent: list[float] = []
    for _ in range(100_000):
        count = made.due(now_s)
        if count == 0:
            wait_s = made.wait_s(now_s)
            assert wait_s > 0
            now_s += wait_s
            continue
        part = made.read(min(count, most))
        if part is None:
            return [s - start_s for s in sent]
        sent.extend([now_s] * part[1])
    raise AssertionError("it does not end")


class TestPace:
    def test_without_a_pace_all_is_due(self, tmp_path: Path) -> None:
        name, schema = numbers(tmp_path, 10)
        assert play(source(tmp_path, schema, path=name)) == [0.0] * 10

    @given(rate=st.floats(0.01, 1e5), count=st.integers(1, 60))
    def test_a_rate(self, tmp_path_factory: pytest.TempPathFactory, rate: float, count: int) -> None:
        folder = tmp_path_factory.getbasetemp()
        name, schema = numbers(folder, count, f"rate-{count}.csv")
        sent = play(source(folder, schema, path=name, rate=rate))
        assert sent == pytest.approx([i / rate for i in range(count)], abs=2e-6)

    def test_a_late_caller_gets_what_has_become_due(self, tmp_path: Path) -> None:
        name, schema = numbers(tmp_path, 10)
        made = source(tmp_path, schema, path=name, rate=2)
        assert made.due(5.0) == 1
        made.read(1)
        assert (made.due(5.4), made.wait_s(5.4)) == (0, pytest.approx(0.1))
        assert made.due(6.6) == 3
        made.read(3)
        assert made.due(100.0) == 6

    @given(
        gaps=st.lists(st.one_of(st.none(), st.integers(-50, 200)), min_size=1, max_size=40),
        speed=st.sampled_from([0.5, 1.0, 60.0, 3_600.0]),
    )
    def test_by_the_records_own_times(
        self, tmp_path_factory: pytest.TempPathFactory, gaps: list[int | None], speed: float
    ) -> None:
        """Never before its time, never later than the latest time so far: times may go back or be missing."""
        folder = tmp_path_factory.getbasetemp()
        schema = Schema.of(at=FieldType("timestamp", nullable=True))
        times: list[datetime | None] = []
        now = AT
        for gap in gaps:
            now += timedelta(seconds=gap or 0)
            times.append(None if gap is None else now)
        (folder / "paced.jsonl").write_text(
            "".join(json.dumps({"at": t and t.isoformat()}) + "\n" for t in times)
        )
        sent = play(source(folder, schema, path="paced.jsonl", pace_by="at", speed=speed))
        first = next((t for t in times if t is not None), AT)
        expected, latest = [], 0.0
        for t in times:
            latest = latest if t is None else max(latest, (t - first).total_seconds() / speed)
            expected.append(latest)
        assert sent == pytest.approx(expected, abs=2e-6)

    def test_the_pace_goes_on_across_parts_and_starts_where_skip_left(self, tmp_path: Path) -> None:
        at = np.datetime64("2024-01-01") + np.arange(9_000).astype("m8[s]")
        pq.write_table(pa.table({"at": pa.array(at)}), tmp_path / "r.parquet")
        schema = Schema.of(at="timestamp")
        assert play(source(tmp_path, schema, path="r.parquet", pace_by="at")) == pytest.approx(
            list(range(9_000)), abs=2e-6
        )
        made = source(tmp_path, schema, path="r.parquet", pace_by="at", speed=2)
        made.skip(8_990)
        assert play(made) == pytest.approx([i / 2 for i in range(10)], abs=2e-6)
        made = source(tmp_path, schema, path="r.parquet", rate=4)
        made.skip(8_990)
        assert play(made) == pytest.approx([i / 4 for i in range(10)], abs=2e-6)


class TestContract:
    def contract(self, settings: Mapping[str, Any], out: Schema | None = None) -> Schema:
        def topics(name: str) -> Schema:
            if name != "readings":
                raise ContractError(f"unknown topic '{name}'", hint="did you mean 'readings'?")
            return SCHEMA

        return contract_of(SourceFile, {}, {"path": "r.csv", **settings}, out=out, topics=topics)["out"]

    def test_a_topic_or_a_declaration(self) -> None:
        assert self.contract({"topic": "readings"}) == SCHEMA
        assert self.contract({}, Schema.of(a="int8")).describe() == "a: int8"

    @pytest.mark.parametrize(
        ("settings", "path", "message"),
        [
            ({"topic": "reading"}, ("with", "topic"), "did you mean 'readings'?"),
            ({}, ("with", "path"), "what is in 'r.csv' is not declared (name a topic"),
            (
                {"topic": "readings", "pace_by": "att"},
                ("with", "pace_by"),
                "no field 'att' (did you mean 'at'?)",
            ),
            ({"topic": "readings", "pace_by": "n"}, ("with", "pace_by"), "'n' is int32?, not a timestamp"),
            ({"topic": "readings", "pace_by": "at", "rate": 1}, ("with", "pace_by"), "a source has one pace"),
            ({"topic": "readings", "speed": 2}, ("with", "speed"), "no effect without pace_by"),
            ({"topic": "readings", "path": "r.xls"}, ("with", "path"), "'r.xls' has no known extension"),
        ],
    )
    def test_messages(self, settings: dict[str, Any], path: tuple[str, ...], message: str) -> None:
        with pytest.raises(ContractError) as caught:
            self.contract(settings)
        assert message in str(caught.value)
        assert caught.value.path == path

    def test_both_is_one_too_many(self) -> None:
        with pytest.raises(ContractError, match="out: and topic: both say"):
            self.contract({"topic": "readings"}, SCHEMA)

    def test_the_kind(self, tmp_path: Path) -> None:
        kind = kind_of(SourceFile)
        assert kind.source
        assert kind.inputs == ()
        write_example_files(kind.example, tmp_path)
        schema = Schema.of(sensor="string", at="timestamp", value="float32")
        assert play(source(tmp_path, schema, path="readings.csv", pace_by="at", speed=60)) == pytest.approx(
            [0, 2 / 60]
        )
