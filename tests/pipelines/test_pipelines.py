"""The example pipelines as a whole: they lint, their inline tests pass, and what comes out is what the model itself says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats  # type: ignore[import-untyped]  # it ships no types

from dataflow.cli.test import run_tests
from dataflow.control.assemble import Assembled, Models, assemble, build_models
from dataflow.planner.lint import lint
from dataflow.planner.plan import Plan
from dataflow.spec import load_project
from dataflow.testing import run_pipeline
from dataflow.testing.pipelines import PipelineRun
from pipelines.flight_delay import alarms, data, features, train

ROOT = Path(__file__).parents[2]
Column = np.ndarray[Any, np.dtype[Any]]
Records = list[dict[str, Any]]

DECLARED = [
    (pipeline, test.name)
    for pipeline, declared in load_project(ROOT, environ=os.environ).pipelines.items()
    for test in declared.spec.tests
]


@pytest.fixture(scope="module")
def made() -> Assembled:
    """The project with its models, which are built on first use: under half a minute from nothing."""
    return assemble(ROOT, environ=os.environ)


@pytest.fixture(scope="module")
def plans(made: Assembled) -> Mapping[str, Plan]:
    return {plan.pipeline: plan for plan in made.plans}


@pytest.fixture(scope="module")
def year() -> data.Year:
    return data.read_year()


def session(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        (ROOT / "pipelines" / path).read_bytes(), providers=["CPUExecutionProvider"]
    )


def records(table: pd.DataFrame, name: str) -> Records:
    """Rows of one of `data.SCHEMAS` as a producer says them."""
    schema = data.SCHEMAS[name]
    rows = table[schema.names]
    made: Records = pa.Table.from_pandas(rows, schema=schema, preserve_index=False).to_pylist()
    return made


def fed(year: data.Year, flights: pd.DataFrame) -> dict[str, Records]:
    """The flights, and the rows of the tables that they meet."""
    hours = flights["dep_time"].dt.floor("h")
    weather = year.weather[year.weather["hour"].isin(hours)]
    planes = year.planes[year.planes["tailnum"].isin(flights["tailnum"])]
    return {
        "weather.hourly": records(weather, "weather"),
        "planes": records(planes, "planes"),
        "departures": records(flights, "departures"),
    }


def by_flight(found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {record["flight_id"]: record for record in found}


# --- both


def test_the_examples_lint_without_a_warning_but_the_one_that_shows_it(made: Assembled) -> None:
    models = Models(made.project, build_models(made.project, made.project.models))
    (warning,) = lint(made.project, made.registry, models)
    assert made.warnings == (warning,)
    assert "answer_rules" in str(warning)
    assert "an eager answer may be lost" in str(warning)
    assert set(made.project.pipelines) >= {"flight-delay", "digits", "diamond", "crops"}


def test_every_example_has_inline_tests() -> None:
    assert {pipeline for pipeline, _ in DECLARED} == set(load_project(ROOT, environ=os.environ).pipelines)
    assert len(DECLARED) >= 6


@pytest.mark.parametrize(("pipeline", "name"), DECLARED, ids=lambda value: str(value)[:60])
def test_inline_tests_pass(made: Assembled, plans: Mapping[str, Plan], pipeline: str, name: str) -> None:
    (outcome,) = [o for o in run_tests(made, plans[pipeline]) if o.name == name]
    assert outcome.faults == (), outcome.notes


# --- flight-delay


def test_what_nobody_waits_for_is_off_the_answers_path(plans: Mapping[str, Plan]) -> None:
    stages = {node: stage for stage in plans["flight-delay"].stages for node in stage.nodes}
    assert stages["rebook"] is stages["weather"]
    assert stages["rebook"].on_answer_path
    for node in ("drift", "crew"):
        assert stages[node] is not stages["weather"]
        assert not stages[node].on_answer_path


def test_the_registration_stays_private_on_every_edge_that_holds_it(plans: Mapping[str, Plan]) -> None:
    labels = {
        name: edge.schema["tailnum"].privacy
        for name, edge in plans["flight-delay"].edges.items()
        if "tailnum" in edge.schema
    }
    assert {"departures", "features", "triage.late", "triage.on_time", "rebook", "crew"} <= set(labels)
    assert set(labels.values()) == {"identifier"}


def test_predictions_are_those_of_onnxruntime(
    made: Assembled, plans: Mapping[str, Plan], year: data.Year
) -> None:
    random = np.random.default_rng(6)
    rows = np.sort(random.choice(len(year.departures), 200, replace=False))
    flights = data.joined(year).iloc[rows]
    # By chance, but surely so: the sample has what is hard.
    assert flights["temp"].isna().any() or flights["wind_gust"].isna().any()
    assert flights["seats"].isna().any()
    x = features.features(train.columns_of(flights))
    (expected,) = session("flight_delay/flight_delay.onnx").run(["delay"], {"x": x})

    result = run_pipeline(ROOT, plans["flight-delay"], made.registry, fed(year, flights))

    assert result.dead_letters == []
    assert result.dropped == {}
    built = by_flight(result.edges["features"])
    predicted = by_flight(result.edges["predict"])
    late = by_flight(result.edges["rebook"])
    on_time = by_flight(result.edges["triage.on_time"])
    assert len(predicted) == len(rows)
    for flight, seen, delay in zip(flights["flight_id"], x, expected.tolist(), strict=True):
        said = np.array([np.nan if v is None else v for v in built[flight]["x"]], dtype=np.float64)
        np.testing.assert_array_equal(said.astype(np.float32), seen)
        assert predicted[flight]["delay"] == pytest.approx(delay, abs=1e-4)
        answered = late if delay >= 30 else on_time
        assert answered[flight]["delay"] == pytest.approx(delay, abs=1e-4)
    assert len(late) + len(on_time) == len(rows)
    assert len(late) > 10
    assert set(by_flight(result.edges["crew"])) == set(late)


def test_the_drift_detector_is_silent_in_winter_and_loud_in_summer(
    made: Assembled, plans: Mapping[str, Plan], year: data.Year
) -> None:
    """Through the whole pipeline: a window of February, which is not the reference's month, and one of July."""
    window = alarms.settings()["window"]
    at = [
        int(year.departures["dep_time"].searchsorted(pd.Timestamp(f"2013-0{m}-10", tz="UTC"))) for m in (2, 7)
    ]
    winter, summer = (year.departures.iloc[start : start + window] for start in at)
    given = fed(year, pd.concat([winter, summer]))
    tables = {name: given[name] for name in ("weather.hourly", "planes")}
    with PipelineRun(ROOT, plans["flight-delay"], made.registry, tables=tables) as run:
        for flights in (winter, summer):
            run.feed("departures", records(flights, "departures"))
            run.settle()
        found = run.result()
    assert found.dead_letters == []
    assert [(r["window"], r["drifted"]) for r in found.edges["drift"]] == [(0, False), (1, True)]
    silent, loud = found.edges["drift"]
    assert silent["p_value"] < 1e-6  # beyond chance, and yet no season
    assert {"temp", "dewp"} <= set(loud["drifted_features"]) <= set(features.WEATHER)


@pytest.mark.slow
def test_false_alarms_of_the_drift_detector(made: Assembled, year: data.Year) -> None:
    """`made`: the reference is written by the model's build."""
    assert made.registry.get("drift.ks")
    rates = alarms.measure(*alarms.features_by_month(year), shuffles=10)
    # What a rate of alpha itself would exceed once in a thousand runs.
    assert rates.chance.windows > 400
    assert rates.chance.alarms <= stats.binom.ppf(0.999, rates.chance.windows, rates.alpha)
    assert rates.winter.windows > 60
    assert rates.winter.alarms == 0
    assert rates.summer.windows > 20
    assert rates.summer.share == 1.0
    assert rates.winter_effect < 0.85 * alarms.settings()["min_effect"] < 0.6 * rates.summer_effect


# --- digits


@pytest.fixture(scope="module")
def images(made: Assembled) -> tuple[Column, Column]:
    """Held-out images uint8 [N, 8, 8] and their digits. `made`: the model's build writes them."""
    assert "digits" in made.project.models
    table = pq.read_table(ROOT / "pipelines" / "digits" / "digits_test.parquet")
    return np.array(table["image"].to_pylist(), dtype=np.uint8).reshape(-1, 8, 8), table["label"].to_numpy()


def test_digits_are_read_as_onnxruntime_reads_them(
    made: Assembled, plans: Mapping[str, Plan], images: tuple[Column, Column]
) -> None:
    shown, labels = images
    pixels = shown.reshape(-1, 64).astype(np.float32) / np.float32(16)
    digit, probabilities = session("digits/digits.onnx").run(None, {"pixels": pixels})
    result = run_pipeline(
        ROOT, plans["digits"], made.registry, {"images": [{"image": image} for image in shown]}
    )
    assert result.dead_letters == []
    # Two partitions and no key: the order is not the images' own. Probabilities tell them apart.
    found = result.edges["confidence"]
    assert len(found) == len(shown)
    seen = np.array([r["probabilities"] for r in found])
    for expected, row in zip(digit, probabilities, strict=True):
        distance = np.abs(seen - row).max(axis=1)
        at = int(distance.argmin())
        assert distance[at] < 1e-5
        assert found[at]["digit"] == expected
        assert found[at]["confidence"] == pytest.approx(float(row.max()), abs=1e-5)
    sure, unsure = result.edges["triage.sure"], result.edges["triage.unsure"]
    assert len(sure) + len(unsure) == len(shown)
    assert all(r["confidence"] >= 0.9 for r in sure)
    assert all(r["confidence"] < 0.9 for r in unsure)
    assert len(sure) == int((probabilities.max(axis=1) >= 0.9).sum())
    assert float((digit == labels).mean()) > 0.95
