"""Trains the model of the pipeline `flight-delay` and says how good it is.

    python -m pipelines.flight_delay.train [--out DIR] [--sample ROWS]      # or, in this folder, python train.py

Writes `flight_delay.onnx`, `reference.parquet` (features of January, for the drift detector) and `metrics.json`.
The same data, sample and versions of packages give the same files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dataflow.core.errors import ModelError

if TYPE_CHECKING or __package__:
    from . import data, features, trees
else:  # a model's `build:` runs this file as a script, in its folder
    import data
    import features
    import trees

Column = np.ndarray[Any, np.dtype[Any]]

SEED = 20130101
# One month of each season. Whole months, because flights of one day share weather and jams: a random split would put
# an evening's neighbours on both sides and flatter the model.
HELD_OUT_MONTHS = (3, 6, 9, 12)
# The harder question, asked beside it: the last quarter by a model that has seen only what came before.
LAST_QUARTER = (10, 11, 12)
REFERENCE_MONTH = 1
REFERENCE_ROWS = 5_000
CHECKED_ROWS = 1_000
TOLERANCE_MINUTES = 1e-3
DEP_DELAY = features.NAMES.index("dep_delay")
DESCRIPTION = "Minutes late at arrival, from what is known when the aircraft leaves the gate: " + ", ".join(
    features.NAMES
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Flights that arrived: features x float32 [N, F], arrival delay in minutes [N], local month of departure [N]."""

    x: Column
    delay: Column
    month: Column

    def where(self, chosen: Column) -> Examples:
        """The examples at a mask or at indices."""
        return Examples(self.x[chosen], self.delay[chosen], self.month[chosen])

    def split(self, months: tuple[int, ...]) -> tuple[Examples, Examples]:
        """(those outside `months`, those inside)."""
        inside = np.isin(self.month, months)
        return self.where(~inside), self.where(inside)


@dataclass(frozen=True, slots=True)
class Error:
    """Mean absolute error and root of the mean squared error, in minutes."""

    mae: float
    rmse: float


def columns_of(flights: pd.DataFrame) -> Mapping[str, Column]:
    """The columns of `data.joined` in the types in which `features.features` gets them."""
    instants = {name: flights[name].dt.tz_localize(None) for name in ("sched_dep", "sched_arr")}
    texts = {name: flights[name].astype(object) for name in features.TEXTS}
    names = (*features.REQUIRED, *features.NULLABLE)
    floats = {name: flights[name].astype("float64") for name in names if name not in instants | texts}
    return {name: column.to_numpy() for name, column in {**instants, **texts, **floats}.items()}


def examples_of(year: data.Year) -> Examples:
    """Features and truth of the flights whose arrival is known."""
    flights = data.joined(year)
    flights = flights[flights["arr_delay"].notna()]
    month = flights["sched_dep"].dt.tz_convert(data.NEW_YORK).dt.month
    x = features.features(columns_of(flights))
    return Examples(x, flights["arr_delay"].to_numpy("float64"), month.to_numpy())


def sampled(examples: Examples, rows: int | None) -> Examples:
    """`rows` of the examples, drawn with `SEED` and kept in order; all of them for None."""
    if rows is None or rows >= len(examples.delay):
        return examples
    drawn = np.random.default_rng(SEED).choice(len(examples.delay), rows, replace=False)
    return examples.where(np.sort(drawn))


def one_thread() -> AbstractContextManager[object]:
    """Two threads spin while they wait for each other: on a busy machine that takes ten times as long as one."""
    limits: AbstractContextManager[object] = threadpool_limits(limits=1)
    return limits


def fit(examples: Examples) -> HistGradientBoostingRegressor:
    """Learn the minutes lost or made up after the gate.

    The departure delay is added back at the end: trees cannot go beyond the largest delay they saw, a sum can.
    Absolute error, because delays have a long tail and the typical flight is the one to get right.
    """
    model = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=150,
        max_leaf_nodes=31,
        min_samples_leaf=50,
        learning_rate=0.1,
        early_stopping=False,
        random_state=SEED,
    )
    with one_thread():
        return model.fit(examples.x, examples.delay - examples.x[:, DEP_DELAY])


def predict(model: HistGradientBoostingRegressor, x: Column) -> Column:
    """Arrival delay in minutes [N], by scikit-learn."""
    with one_thread():
        made: Column = x[:, DEP_DELAY] + model.predict(x)
    return made


def error(predicted: Column, actual: Column) -> Error:
    off = predicted - actual
    return Error(round(float(np.abs(off).mean()), 4), round(float(np.sqrt(np.square(off).mean())), 4))


def errors(model: HistGradientBoostingRegressor, trained: Examples, tested: Examples) -> dict[str, Error]:
    """Errors on `tested` of the model and of answers that need none.

    Most flights make up some minutes, so the departure delay is also judged with the usual change added: what the
    model gains over that is what it knows of the single flight.
    """
    known = tested.x[:, DEP_DELAY]
    guesses = {
        "model": predict(model, tested.x),
        "departure delay": known,
        "departure delay + median change": known + np.median(trained.delay - trained.x[:, DEP_DELAY]),
        "mean": np.full(len(tested.delay), trained.delay.mean()),
    }
    return {name: error(guess, tested.delay) for name, guess in guesses.items()}


def check_export(exported: onnx.ModelProto, model: HistGradientBoostingRegressor, x: Column) -> None:
    """Raise `ModelError` where the minutes of ONNX are not those of scikit-learn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        exported.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (answers,) = session.run(["delay"], {"x": x})
    difference = float(np.abs(answers - predict(model, x)).max())
    if difference > TOLERANCE_MINUTES:
        raise ModelError(
            f"flight_delay.onnx differs from scikit-learn by {difference:.6f} minutes on {len(x)} held-out rows, "
            f"at most {TOLERANCE_MINUTES} is valid",
            hint="do trees.py and the installed scikit-learn fit together?",
        )


def reference_table(examples: Examples) -> pa.Table:
    """`x` of flights of January, drawn from the whole month, as lists of float32 (NaN where missing)."""
    x = sampled(examples.where(examples.month == REFERENCE_MONTH), REFERENCE_ROWS).x
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    note: dict[str | bytes, str | bytes] = {"names": ",".join(features.NAMES)}
    kind = pa.list_(pa.float32(), x.shape[1])
    return pa.table([lists], schema=pa.schema([pa.field("x", kind, nullable=False)], metadata=note))


def train(out: Path, examples: Examples, sample: int | None = None) -> dict[str, Any]:
    """Train on the months that are not held out (on `sample` of their rows), write the files, return the metrics."""
    before, held_out = examples.split(HELD_OUT_MONTHS)
    trained = sampled(before, sample)
    model = fit(trained)
    exported = trees.export(model, start=DEP_DELAY, description=DESCRIPTION)
    check_export(exported, model, sampled(held_out, CHECKED_ROWS).x)
    earlier, last_quarter = examples.split(LAST_QUARTER)
    earlier = sampled(earlier, sample)
    months = {
        int(month): errors(model, trained, held_out.where(held_out.month == month))
        for month in HELD_OUT_MONTHS
    }
    metrics = {
        "features": list(features.NAMES),
        "rows": {"trained": len(trained.delay), "held out": len(held_out.delay)},
        "held out months": list(HELD_OUT_MONTHS),
        "errors": _plain(errors(model, trained, held_out)),
        "errors by month": {month: _plain(made) for month, made in months.items()},
        "errors in the last quarter, trained before it": _plain(errors(fit(earlier), earlier, last_quarter)),
    }
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(exported, out / "flight_delay.onnx")
    pq.write_table(reference_table(examples), out / "reference.parquet")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _plain(made: Mapping[str, Error]) -> dict[str, dict[str, float]]:
    return {name: asdict(one) for name, one in made.items()}


def report(metrics: Mapping[str, Any]) -> Table:
    """The errors, as a table for the terminal."""
    table = Table(title="Error in minutes", title_justify="left", box=box.SIMPLE)
    table.add_column("tested on")
    for name in metrics["errors"]:
        table.add_column(f"{name}\nMAE / RMSE", justify="right")
    held_out = ", ".join(map(str, metrics["held out months"]))
    last = "errors in the last quarter, trained before it"
    rows = {
        f"held out: {held_out}": metrics["errors"],
        **{f"  month {month}": made for month, made in metrics["errors by month"].items()},
        "last quarter": metrics[last],
    }
    for name, made in rows.items():
        table.add_row(name, *(f"{one['mae']:.2f} / {one['rmse']:.2f}" for one in made.values()))
    return table


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder to write to.",
)
@click.option("--sample", type=click.IntRange(min=1_000), help="Train on so many rows only.")
def main(out: Path, sample: int | None) -> None:
    """Train, check and write the model of the flight delay."""
    began = time.perf_counter()
    metrics = train(out, examples_of(data.read_year()), sample)
    console = Console()
    console.print(report(metrics))
    took_s = time.perf_counter() - began
    console.print(f"{metrics['rows']['trained']:,} flights in {took_s:.1f} s; flight_delay.onnx in {out}")


if __name__ == "__main__":
    main()
