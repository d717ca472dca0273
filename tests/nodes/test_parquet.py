"""`sink.parquet`: what is in the files, when they appear, and what happens when they cannot."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.outcomes import CONSUMED, Out
from dataflow.core.schema import FieldType, Schema
from dataflow.sdk import columns_of
from dataflow.testing.nodes import build_node, contract_of, run_node
from nodes.parquet import SinkParquet

SCHEMA = Schema.of(
    n="int64",
    name=FieldType("string", nullable=True),
    at="timestamp",
    x=FieldType("float32", (2, 3)),
    free=FieldType("uint8", (-1,)),
    tags=FieldType("list", item=FieldType("string")),
)
AT = datetime(2024, 5, 1, 12, tzinfo=UTC).replace(tzinfo=None)


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "n": i, "name": None if i % 2 else f"n{i}", "at": AT, "x": np.full((2, 3), i, "float32"),
            "free": np.arange(i % 4 + 1, dtype="uint8"), "tags": ["a"] * (i % 3),
        }
        for i in range(start, start + count)
    ]  # fmt: skip


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def numbers(folder: Path) -> list[list[Any]]:
    return [pq.read_table(file)["n"].to_pylist() for file in files(folder)]


class Sink:
    """A sink under test: rows in, state out."""

    def __init__(self, folder: Path, schema: Schema = SCHEMA, **settings: Any) -> None:
        self.schema = schema
        self.node: Any = build_node(SinkParquet, schema, {"path": "archive", **settings}, folder=folder)

    def take(self, count: int, start: int = 0) -> Out:
        batch = Batch.of(self.schema, [{n: r[n] for n in self.schema.names} for r in records(count, start)])
        out = Out(batch, ())
        self.node.process(batch, out)
        return out


def test_every_type_comes_back(tmp_path: Path) -> None:
    given = records(7)
    result = run_node(SinkParquet, SCHEMA, given, {"path": "archive"}, folder=tmp_path, batch_records=3)
    assert (result.dropped, result.failed) == ([], [])
    (file,) = files(tmp_path / "archive")
    back = Batch(SCHEMA, columns_of(SCHEMA, pq.read_table(file)), [None] * 7).to_dicts()  # type: ignore[list-item]
    for made, record in zip(back, given, strict=True):
        assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in made.items()} == {
            k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()
        }


def test_files_appear_whole_and_sorted(tmp_path: Path) -> None:
    sink = Sink(tmp_path, rows_per_file=5)
    folder = tmp_path / "archive"
    assert (sink.take(3).state == CONSUMED).all()
    assert numbers(folder) == []
    sink.take(3, 3)  # six would be too many: the first three go
    assert numbers(folder) == [[0, 1, 2]]
    sink.node.flush()
    assert numbers(folder) == [[0, 1, 2], [3, 4, 5]]
    sink.node.flush()
    assert len(files(folder)) == 2
    sink.take(12, 6)
    sink.node.flush()
    assert numbers(folder)[2:] == [[6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [16, 17]]
    assert [p for p in folder.iterdir() if p.suffix != ".parquet"] == []


def test_bytes_bound_what_waits(tmp_path: Path) -> None:
    sink = Sink(tmp_path, Schema.of(n="int64", x=FieldType("float32", (2, 3))), bytes_per_file=100)
    for start in range(4):
        sink.take(2, start * 2)
    sink.node.flush()
    assert numbers(tmp_path / "archive") == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_two_workers_do_not_meet(tmp_path: Path) -> None:
    for _ in range(2):
        sink = Sink(tmp_path)
        sink.take(1)
        sink.node.flush()
    assert len(files(tmp_path / "archive")) == 2


def test_ids(tmp_path: Path) -> None:
    sink = Sink(tmp_path, Schema.of(n="int64"), id_column="df_id", compression="none")
    sink.take(2)
    sink.node.flush()
    table = pq.read_table(files(tmp_path / "archive")[0])
    assert table["df_id"].to_pylist() == [f"{i:08x}-0000-7000-8000-000000000000" for i in range(2)]
    with pytest.raises(ContractError, match="the input has a field 'n'"):
        contract_of(SinkParquet, SCHEMA, {"path": "a", "id_column": "n"})


def test_it_has_no_outputs_and_commits_seldom() -> None:
    assert contract_of(SinkParquet, SCHEMA, {"path": "a"}) == {}
    assert SinkParquet.commit_every_ms == 5_000


def test_what_cannot_be_written_is_kept_and_refuses_more(tmp_path: Path) -> None:
    sink = Sink(tmp_path, Schema.of(n="int64"), rows_per_file=2)
    folder = tmp_path / "archive"
    sink.take(2)
    folder.rmdir()
    folder.write_text("in the way")
    out = sink.take(1, 2)
    assert [(loss.row, loss.error, loss.retryable) for loss in out.failed] == [(0, "OSError", True)]
    assert "sink.parquet: cannot write in" in out.failed[0].reason
    with pytest.raises(NodeError, match=r"sink\.parquet: cannot write in '.*archive'"):
        sink.node.flush()
    folder.unlink()
    folder.mkdir()
    sink.node.flush()
    assert numbers(folder) == [[0, 1]]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("in the way")
    with pytest.raises(NodeError, match=r"cannot make the folder '.*archive': File exists"):
        Sink(tmp_path)
