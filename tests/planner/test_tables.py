from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.codecs.tables import table_of
from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema
from dataflow.planner.tables import table_schema_of


def test_parquet_of_others(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b"],
            "seats": pa.array([1, None], pa.int16()),
            "when": pa.array([0, 1], pa.timestamp("ns")),
            "names": [["x"], []],
            "at": [{"lat": 1.0}, None],
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "price": pa.array([None, None], pa.decimal128(9, 2)),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert table_schema_of(tmp_path / "t.parquet").describe() == (
        "id: string, seats: int16?, when: timestamp, names: list<string?>?, at: record<lat: float64?>?, "
        "kind: string, price: decimal(9,2)?"
    )


def test_parquet_of_ours_keeps_its_types(tmp_path: Path) -> None:
    schema = Schema.of(x=FieldType("float32", (2,)), level=FieldType("enum", symbols=("low", "high")))
    batch = Batch.of(schema, [{"x": [1, 2], "level": "low"}])
    pq.write_table(table_of(schema, batch.columns), tmp_path / "t.parquet")
    assert table_schema_of(tmp_path / "t.parquet").describe() == schema.describe()


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,seats,built,note\nN1,149,1999-01-01,\nN2,,2000-01-01,\n")
    with pytest.raises(ContractError) as raised:
        table_schema_of(tmp_path / "t.csv")
    assert str(raised.value) == "column 'note' has the type null, which no field can hold (cast it)"
    (tmp_path / "t.csv").write_text("id,seats,built\nN1,149,1999-01-01\nN2,,2000-01-01\n")
    assert table_schema_of(tmp_path / "t.csv").describe() == "id: string, seats: int64?, built: date"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no file 'none\.csv' in "):
        table_schema_of(tmp_path / "none.csv")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(ContractError, match=r"cannot read 't.parquet': "):
        table_schema_of(tmp_path / "t.parquet")
