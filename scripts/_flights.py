"""The flights of the demo: files to produce, and what onnxruntime itself says of the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flight_delay import data, features, train
from scripts._stage import ROOT

Column = np.ndarray[Any, np.dtype[Any]]

# Three windows of the drift detector each. February: the detector's reference is of January.
REPLAYED = 15_000
WINTER_BEGIN = pd.Timestamp("2013-02-01", tz="UTC")
SUMMER_BEGIN = pd.Timestamp("2013-07-01", tz="UTC")
# Asked over HTTP: a month that neither the training nor the replay has seen.
ASKED_BEGIN = pd.Timestamp("2013-12-01", tz="UTC")
ASKED_ROWS = 200
SEED = 12


@dataclass(frozen=True, slots=True)
class Flights:
    """The year, the files made of it, and the flights to ask about with the delays that onnxruntime predicts."""

    year: data.Year
    files: Mapping[str, Path]
    asked: list[dict[str, Any]]
    expected: Column


def prepare(folder: Path) -> tuple[data.Year, dict[str, Path]]:
    """Write the tables and the two slices to replay as Parquet; the year and the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    year = data.read_year()
    departures = year.table("departures")
    tables = {name: year.table(name) for name in ("weather", "planes")}
    for name, begin in (("winter", WINTER_BEGIN), ("summer", SUMMER_BEGIN)):
        tables[name] = departures.slice(position(year, begin), REPLAYED)
    files = {name: folder / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        pq.write_table(table, files[name])
    return year, files


def position(year: data.Year, begin: pd.Timestamp) -> int:
    """Row of the first departure at or after an instant."""
    return int(year.departures["dep_time"].searchsorted(begin))


def choose(year: data.Year, files: Mapping[str, Path]) -> Flights:
    """Flights of December at random, and the model's own answers: joined, encoded and run without the engine."""
    begin = position(year, ASKED_BEGIN)
    random = np.random.default_rng(SEED)
    rows = np.sort(random.choice(np.arange(begin, len(year.departures)), ASKED_ROWS, replace=False))
    flights = data.joined(year).iloc[rows]
    session = onnxruntime.InferenceSession(
        (ROOT / "pipelines" / "flight_delay" / "flight_delay.onnx").read_bytes(),
        providers=["CPUExecutionProvider"],
    )
    (expected,) = session.run(["delay"], {"x": features.features(train.columns_of(flights))})
    schema = data.SCHEMAS["departures"]
    asked = pa.Table.from_pandas(flights[schema.names], schema=schema, preserve_index=False).to_pylist()
    return Flights(year, files, asked, expected)
