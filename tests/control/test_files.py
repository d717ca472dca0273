from __future__ import annotations

import io
import os
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.codecs.values import coerce_records
from dataflow.control.files import FileWriter, Ignored, format_of, read_file
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import SpecError
from dataflow.core.schema import Field, FieldType, Schema

SCHEMA = Schema.of(name="string", value="float64", count=FieldType("int32", nullable=True))
RICH = Schema(
    (
        Field("text", FieldType("string")),
        Field("at", FieldType("timestamp")),
        Field("price", FieldType("decimal", precision=8, scale=2)),
        Field("x", FieldType("float32", (2, 2))),
        Field("tags", FieldType("list", item=FieldType("string"))),
        Field("who", FieldType("record", fields=(Field("n", FieldType("int64")),), nullable=True)),
        Field("raw", FieldType("bytes")),
        Field("on", FieldType("bool")),
    )
)
RECORDS = [
    {
        "text": 'a "quoted", two\nlined', "at": "2024-05-01T12:00:00.5Z", "price": "12.50", "x": [[1, 2], [3, 4]],
        "tags": ["p", "q"], "who": {"n": 7}, "raw": "AAE=", "on": True,
    },
    {
        "text": "ü", "at": "1999-01-01T00:00:00Z", "price": "-0.01", "x": [[0, 0], [0, 0.5]],
        "tags": [], "who": None, "raw": "", "on": False,
    },
]  # fmt: skip


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(
    path: str, schema: Schema = SCHEMA, **options: Any
) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """Good rows, bad rows as text, numbers of the good ones."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    numbers: list[int] = []
    for batch in read_file(path, schema, **options):
        rows += Batch(schema, batch.columns, [Row(b"")] * batch.count).to_dicts()
        bad += [str(b).replace(str(Path(path).parent) + "/", "") for b in batch.failed]
        numbers += batch.numbers
    return rows, bad, numbers


def test_csv_rows_that_do_not_fit_are_placed(tmp_path: Path) -> None:
    text = 'name,value,count\na,1,2\nb,x,2\n"c\nc",3,\n\nd,4\ne,5,1e9\nf,6,7\n'
    rows, bad, numbers = read(write(tmp_path / "r.csv", text))
    assert rows == [
        {"name": "a", "value": 1.0, "count": 2},
        {"name": "c\nc", "value": 3.0, "count": None},
        {"name": "f", "value": 6.0, "count": 7},
    ]
    assert numbers == [1, 3, 6]
    assert [b.partition(" ")[0] for b in bad] == ["r.csv:3:", "r.csv:7:", "r.csv:8:"]
    assert "field 'value'" in bad[0]
    assert "2 columns where the header has 3" in bad[1]


def test_csv_columns_are_matched_by_name(tmp_path: Path) -> None:
    ignored = Ignored()
    rows, bad, _ = read(write(tmp_path / "r.csv", "\ufeffvalue, name,more\r\n1,a,z\r\n"), ignored=ignored)
    assert (rows, bad) == ([{"name": "a", "value": 1.0, "count": None}], [])
    assert ignored.names == ["more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam,value\na,1\n", "has no column 'name' .*did you mean 'nam'"),
        ("", "no header"),
        (b"name,value\n\xff,1\n", "r.csv:2: not UTF-8"),
        ('name,value\n"a"b,1\n', "r.csv:2: "),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(write(tmp_path / "r.csv", text))


def test_json_lines(tmp_path: Path) -> None:
    text = '{"name":"a","value":1}\n\n{"name":"b"}\nnonsense\n[1]\n{"name":"c","value":2,"extra":1}\n{"name":"d","value":3}'
    rows, bad, numbers = read(write(tmp_path / "r.jsonl", text))
    assert [r["name"] for r in rows] == ["a", "d"]
    assert [b.partition(" ")[0] for b in bad] == ["r.jsonl:3:", "r.jsonl:4:", "r.jsonl:5:", "r.jsonl:6:"]
    assert "field 'value' is missing" in bad[0]
    assert "unknown field 'extra'" in bad[3]
    assert numbers[0] == 1


def test_many_lines_come_in_batches(tmp_path: Path) -> None:
    text = "".join(f'{{"name":"{i}","value":{i}}}\n' for i in range(20_000))
    path = write(tmp_path / "r.jsonl", text)
    sizes = [b.count for b in read_file(path, SCHEMA)]
    assert sum(sizes) == 20_000
    assert max(sizes) <= 1_000
    assert read(path)[2] == list(range(1, 20_001))


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"value": [1.0, 2.0, None, 4.0], "name": ["a", "b", "c", None], "more": [1, 2, 3, 4]})
    path = tmp_path / "r.parquet"
    pq.write_table(table, path)
    ignored = Ignored()
    rows, bad, numbers = read(str(path), ignored=ignored)
    assert [r["name"] for r in rows] == ["a", "b"]
    assert [b.partition(" ")[0] for b in bad] == ["r.parquet:3:", "r.parquet:4:"]
    assert (numbers, ignored.names) == ([1, 2], ["more"])
    with pytest.raises(SpecError, match="has no column 'name'"):
        read(write_parquet(tmp_path, {"value": [1.0]}))
    with pytest.raises(SpecError, match=r"broken\.parquet"):
        read(write(tmp_path / "broken.parquet", "nothing"))


def write_parquet(folder: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), folder / "other.parquet")
    return str(folder / "other.parquet")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, form: str) -> None:
    decoded = coerce_records(RICH, RECORDS)
    assert not decoded.failed
    path = str(tmp_path / f"r.{form}")
    with FileWriter(path, RICH) as writer:
        writer.write(decoded.columns, 2)
        writer.write({n: c[:0] for n, c in decoded.columns.items()}, 0)
    assert writer.rows == 2
    rows, bad, _ = read(path, RICH)
    assert bad == []
    assert [r["price"] for r in rows] == [Decimal("12.50"), Decimal("-0.01")]
    expected = Batch(RICH, decoded.columns, [Row(b"")] * 2).to_dicts()
    for row, wanted in zip(rows, expected, strict=True):
        assert np.array_equal(row.pop("x"), wanted.pop("x"))
        assert row == wanted


def test_formats() -> None:
    assert [format_of(n) for n in ("a.csv", "a.PARQUET", "a.json", "-")] == [
        "csv",
        "parquet",
        "jsonl",
        "jsonl",
    ]
    assert format_of("a.txt", "csv") == "csv"
    with pytest.raises(SpecError, match="--format"):
        format_of("a.txt")
    with pytest.raises(SpecError, match="did you mean 'parquet'"):
        format_of("a", "parket")


def test_no_such_file(tmp_path: Path) -> None:
    write(tmp_path / "readings.csv", "")
    with pytest.raises(SpecError, match=r"did you mean 'readings\.csv'"):
        read(str(tmp_path / "reading.csv"))
    with pytest.raises(SpecError, match="cannot write"):
        FileWriter(str(tmp_path / "no" / "folder.csv"), SCHEMA)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_pipe_is_read_as_it_comes(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a batch to fill: a line is given on before the next one is written."""
    source, sink = os.pipe()
    lines = {
        "csv": [b"name,value\na,1\n", b"b,2\n"],
        "jsonl": [b'{"name":"a","value":1}\n', b'{"name":"b","value":2}\n'],
    }
    with os.fdopen(source, "rb") as stream, os.fdopen(sink, "wb", buffering=0) as end:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        batches = read_file("-", SCHEMA, form)
        seen = threading.Event()
        end.write(lines[form][0])
        first = next(batches)
        assert first.columns["name"].tolist() == ["a"]
        seen.set()
        end.write(lines[form][1])
        assert next(batches).columns["name"].tolist() == ["b"]
        end.close()
        assert next(batches, None) is None
