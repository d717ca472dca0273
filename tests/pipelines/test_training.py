"""The example models: trained here for real, on all held-out data, from a sample of the flights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.errors import ModelError
from dataflow.core.schema import FieldType, Schema
from dataflow.sdk import Batch
from pipelines.digits import preprocess
from pipelines.digits import train as digits
from pipelines.flight_delay import data, features, rebook, train, trees

SAMPLE_ROWS = 20_000
Column = features.Column


@dataclass(frozen=True)
class Flights:
    """One training of the flight delay on a sample."""

    folder: Path
    year: data.Year
    metrics: Mapping[str, Any]
    examples: train.Examples


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Flights:
    folder = tmp_path_factory.mktemp("flights")
    year = data.read_year()
    examples = train.examples_of(year)
    return Flights(folder, year, train.train(folder, examples, SAMPLE_ROWS), examples)


@pytest.fixture(scope="module")
def january() -> data.Year:
    return data.read_year([1])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.train(folder)
    return folder


def answers(model: Path, **tensors: Column) -> list[Column]:
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    made: list[Column] = session.run(None, tensors)
    return made


# --- flights: the tables


def test_every_flight_is_in_the_tables_or_counted_as_left_out(flights: Flights) -> None:
    year = flights.year
    assert (len(year.departures), year.cancelled, year.without_aircraft) == (328_521, 8_255, 2_512)
    assert len(year.departures) + year.cancelled == 336_776
    assert (len(year.arrivals), year.without_arrival) == (327_346, 1_175)
    assert year.departures["flight_id"].is_unique
    assert year.departures["dep_time"].is_monotonic_increasing
    assert set(year.arrivals["flight_id"]) <= set(year.departures["flight_id"])


def test_times_are_utc_and_block_times_are_those_of_real_flights(flights: Flights) -> None:
    departures = flights.year.departures
    source = data.read_source("flights")
    expected = pd.to_datetime(source["time_hour"], utc=True) + pd.to_timedelta(source["minute"], unit="min")
    expected.index = pd.Index(data.flight_ids(source))
    scheduled = departures.set_index("flight_id")["sched_dep"]
    assert (scheduled == expected.loc[scheduled.index]).all()
    block = (departures["sched_arr"] - departures["sched_dep"]).dt.total_seconds() / 60
    assert block.between(15, 720).all()
    honolulu = block[departures["dest"] == "HNL"].median()
    assert 600 < honolulu < 700  # ten and a half hours, and not the five that the clocks on the walls say


def test_the_weather_of_a_departure_was_read_before_it() -> None:
    readings = data.read_source("weather")
    weather = data.weather_of(readings)
    read_latest = pd.to_datetime(readings["time_hour"], utc=True) + pd.Timedelta("51min")
    by_origin = readings.assign(known=read_latest).sort_values(["known", "origin"], ignore_index=True)
    assert (weather["origin"] == by_origin["origin"]).all()
    assert (weather["temp"].fillna(-999) == by_origin["temp"].fillna(-999)).all()
    assert (weather["hour"] > by_origin["known"]).all()
    assert not weather.duplicated(["origin", "hour"]).any()


def test_the_command_writes_the_tables_of_the_chosen_month(tmp_path: Path, january: data.Year) -> None:
    result = CliRunner().invoke(data.main, ["--out", str(tmp_path), "--month", "1"])
    assert result.exit_code == 0, result.output
    for name, schema in data.SCHEMAS.items():
        table = pq.read_table(tmp_path / f"{name}.parquet")
        assert table.schema.equals(schema)
        assert table.num_rows == len(getattr(january, name))
    assert "2512" not in result.output  # that is the count of the whole year
    weather = pq.read_table(tmp_path / "weather.parquet")
    assert weather["wind_gust"].null_count > 0
    assert not np.isnan(weather["wind_gust"].drop_null().to_numpy()).any()


# --- flights: the features


def test_features_hold_nothing_from_the_future(january: data.Year) -> None:
    source = data.read_source("flights")
    order = np.random.default_rng(1).permutation(len(source))
    for later in ("arr_delay", "arr_time", "air_time"):
        source[later] = source[later].to_numpy()[order]
    tables = (data.read_source(name) for name in ("weather", "planes", "airports"))
    changed = data.build_year(source, *tables, months=[1])
    pd.testing.assert_frame_equal(changed.departures, january.departures)
    assert not changed.arrivals.equals(january.arrivals)
    before = features.features(train.columns_of(data.joined(january)))
    after = features.features(train.columns_of(data.joined(changed)))
    np.testing.assert_array_equal(before, after)


def test_one_row_and_a_batch_have_the_same_features(january: data.Year) -> None:
    columns = train.columns_of(data.joined(january))
    together = features.features(columns)
    assert together.dtype == np.float32
    assert together.shape == (len(january.departures), len(features.NAMES))
    for row in range(0, len(together), 997):
        alone = features.features({name: column[row : row + 1] for name, column in columns.items()})
        np.testing.assert_array_equal(alone, together[row : row + 1])


def test_the_node_builds_what_training_saw(january: data.Year) -> None:
    frame = data.joined(january).iloc[:200]
    columns = train.columns_of(frame)
    instants = {name: FieldType("timestamp") for name in ("sched_dep", "sched_arr")}
    texts = {name: FieldType("string") for name in features.TEXTS}
    numbers = {name: FieldType("float32") for name in ("dep_delay", "distance")}
    nullable = {name: FieldType("float32", nullable=True) for name in features.NULLABLE}
    schema = Schema.of(**instants, **texts, **numbers, **nullable)
    records = [
        {
            name: None if isinstance(value := columns[name][row], float) and np.isnan(value) else value
            for name in schema.names
        }
        for row in range(len(frame))
    ]
    assert any(record["wind_gust"] is None for record in records)
    built = features.build(Batch.of(schema, records))
    np.testing.assert_array_equal(built["x"], features.features(columns))


def test_the_local_hour_follows_the_clocks_of_new_york(january: data.Year) -> None:
    hours = pd.date_range("2008-01-01 00:30", "2040-01-01", freq="h", unit="us")
    local = hours.tz_localize("UTC").tz_convert("America/New_York")
    one = train.columns_of(data.joined(january).iloc[:1])
    columns = {name: np.repeat(column, len(hours)) for name, column in one.items()}
    columns["sched_dep"] = hours.to_numpy()
    columns["year"] = np.full(len(hours), 2000.0)
    x = dict(zip(features.NAMES, features.features(columns).T, strict=True))
    np.testing.assert_array_equal(x["local_hour"], local.hour.to_numpy() + np.float32(0.5))
    np.testing.assert_array_equal(x["weekday"], local.day_of_week.to_numpy())
    np.testing.assert_array_equal(x["plane_age_years"], local.year.to_numpy() - 2000)


def test_an_unknown_name_counts_as_rarer_than_all(january: data.Year) -> None:
    columns = dict(train.columns_of(data.joined(january).iloc[:1]))
    columns["dest"] = np.array(["XXX"], dtype=object)
    x = dict(zip(features.NAMES, features.features(columns)[0], strict=True))
    assert x["dest"] == len(features.DESTINATIONS)
    assert len(set(features.DESTINATIONS)) == len(features.DESTINATIONS)


# --- flights: the model


def test_the_model_beats_every_answer_that_needs_no_model(flights: Flights) -> None:
    judged = {"all": flights.metrics["errors"], **flights.metrics["errors by month"]}
    judged["last quarter"] = flights.metrics["errors in the last quarter, trained before it"]
    assert len(judged) == 2 + len(train.HELD_OUT_MONTHS)
    for where, errors in judged.items():
        for name, error in errors.items():
            if name != "model":
                assert errors["model"]["mae"] < error["mae"], (where, name)
    for measure in ("mae", "rmse"):
        assert (
            flights.metrics["errors"]["model"][measure]
            < 0.95 * flights.metrics["errors"]["departure delay"][measure]
        )


def test_the_metrics_file_tells_the_error_of_the_onnx_file(flights: Flights) -> None:
    written = json.loads((flights.folder / "metrics.json").read_text())
    assert written["errors"] == flights.metrics["errors"]
    _, held_out = flights.examples.split(train.HELD_OUT_MONTHS)
    (delay,) = answers(flights.folder / "flight_delay.onnx", x=held_out.x)
    assert delay.shape == held_out.delay.shape
    assert delay.dtype == np.float32
    found = train.error(delay, held_out.delay)
    assert found.mae == pytest.approx(written["errors"]["model"]["mae"], abs=1e-3)
    assert found.rmse == pytest.approx(written["errors"]["model"]["rmse"], abs=1e-3)


def test_onnx_answers_as_scikit_learn_does_missing_values_included(flights: Flights) -> None:
    before, held_out = flights.examples.split(train.HELD_OUT_MONTHS)
    model = train.fit(train.sampled(before, SAMPLE_ROWS))
    x = held_out.x[:20_000].copy()
    x[::2, features.NAMES.index("temp")] = np.nan
    x[::3] = np.nan  # nothing known at all
    x[::3, train.DEP_DELAY] = 10.0
    (delay,) = answers(flights.folder / "flight_delay.onnx", x=x)
    np.testing.assert_allclose(delay, train.predict(model, x), atol=train.TOLERANCE_MINUTES)
    # The same model trained twice, once here: also that training is deterministic.
    again = trees.export(model, start=train.DEP_DELAY, description=train.DESCRIPTION)
    assert again.SerializeToString() == (flights.folder / "flight_delay.onnx").read_bytes()


def test_an_export_that_differs_is_refused(flights: Flights) -> None:
    model = train.fit(train.sampled(flights.examples, 1_000))
    wrong = trees.export(model, start=features.NAMES.index("distance"), description="")
    with pytest.raises(ModelError, match=r"differs from scikit-learn by .* minutes on 100 held-out rows"):
        train.check_export(wrong, model, flights.examples.x[:100])


@given(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30),
    st.floats(allow_nan=False, width=32),
)
def test_a_threshold_in_float32_sends_every_row_the_same_way(threshold: float, x: float) -> None:
    (floor,) = trees.floor_to_float32(np.array([threshold]))
    for value in (np.float32(x), floor, np.nextafter(floor, np.float32(np.inf))):
        assert (value <= floor) == (float(value) <= threshold)


def test_the_reference_is_of_january(flights: Flights) -> None:
    table = pq.read_table(flights.folder / "reference.parquet")
    assert table.schema.metadata[b"names"].decode().split(",") == list(features.NAMES)
    x = np.array(table["x"].to_pylist(), dtype=np.float32)
    assert x.shape == (train.REFERENCE_ROWS, len(features.NAMES))
    january = {row.tobytes() for row in flights.examples.x[flights.examples.month == 1]}
    assert all(row.tobytes() in january for row in x)


# --- flights: business logic

LATE = {
    "flight_id": "20130208-UA-1545-EWR",
    "tailnum": "N14228",
    "carrier": "UA",
    "flight": 1545,
    "dest": "IAH",
    "seats": 149,
    "delay": np.float32(45.25),
    "sched_dep": datetime(2013, 2, 8, 10, 15, tzinfo=UTC),
    "sched_arr": datetime(2013, 2, 8, 14, 19, tzinfo=UTC),
}


@pytest.mark.parametrize(
    ("changed", "offers", "text"),
    [
        (
            {},
            45,
            "UA 1545 to IAH is expected 45 minutes late: offer about 45 connecting passengers another flight.",
        ),
        (
            {"delay": 120.0},
            149,
            "UA 1545 to IAH is expected 120 minutes late: offer all 149 seats another flight.",
        ),
        (
            {"seats": None, "delay": 300},
            rebook.TYPICAL_SEATS,
            "UA 1545 to IAH is expected 300 minutes late: ",
        ),
    ],
)
def test_offers_grow_with_the_delay(changed: dict[str, Any], offers: int, text: str) -> None:
    made = rebook.offer({**LATE, **changed})
    assert made["action"] == "rebook"
    assert made["offers"] == offers
    assert made["text"].startswith(text)
    assert set(made) == set(get_type_hints(rebook.Offer))
    json.dumps(made)  # plain values, no numpy


def test_a_crew_over_its_hours_is_relieved() -> None:
    notice = rebook.crew_notice(LATE)
    assert (notice["action"], notice["offers"]) == ("crew_notice", 0)
    assert notice["text"].endswith("be ready to leave again 30 minutes after arrival.")
    later = rebook.crew_notice({**LATE, "delay": 240.0})
    assert later["text"].endswith("8.1 hours since the scheduled departure: call a relief crew.")


# --- digits


def test_digits_are_read_and_the_metrics_tell_so(learned: Path) -> None:
    metrics = json.loads((learned / "metrics.json").read_text())
    _, held_out = digits.read_digits()
    label, probabilities = answers(learned / "digits.onnx", pixels=preprocess.scaled(held_out.images))
    assert label.dtype == np.int64
    assert label.shape == held_out.labels.shape
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (len(label), 10)
    accuracy = float((label == held_out.labels).mean())
    assert accuracy > 0.96
    assert metrics["accuracy"] == round(accuracy, 4)


def test_digits_onnx_answers_as_scikit_learn_does(learned: Path) -> None:
    training, held_out = digits.read_digits()
    model = digits.fit(digits.shifted(training))
    pixels = preprocess.scaled(held_out.images)
    label, probabilities = answers(learned / "digits.onnx", pixels=pixels)
    np.testing.assert_array_equal(label, model.predict(pixels))
    np.testing.assert_allclose(probabilities, model.predict_proba(pixels), atol=digits.TOLERANCE)
    assert digits.export(model).SerializeToString() == (learned / "digits.onnx").read_bytes()
    other = digits.fit(digits.Digits(training.images[:300], training.labels[:300]))
    with pytest.raises(ModelError, match="in probability on 450 held-out images"):
        digits.check_export(digits.export(other), model, pixels)


def test_the_images_of_the_demo_were_held_out(learned: Path) -> None:
    table = pq.read_table(learned / "digits_test.parquet")
    training, held_out = digits.read_digits()
    assert table.num_rows == digits.SHOWN_IMAGES
    images = np.array(table["image"].to_pylist(), dtype=np.uint8)
    np.testing.assert_array_equal(images, held_out.images[: digits.SHOWN_IMAGES].reshape(-1, 64))
    np.testing.assert_array_equal(table["label"].to_numpy(), held_out.labels[: digits.SHOWN_IMAGES])
    seen = {image.tobytes() for image in training.images}
    assert not any(image.tobytes() in seen for image in images)


def test_preprocessing_scales_images_and_reads_confidence() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) % 17
    batch = Batch.of(
        Schema.of(image=FieldType("uint8", shape=(8, 8))), [{"image": image}, {"image": image * 0}]
    )
    pixels = preprocess.scale(batch)["pixels"]
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, np.stack([image.reshape(64) / 16, np.zeros(64)]))
    scores = Schema.of(probabilities=FieldType("float32", shape=(10,)))
    sure = np.full(10, 0.01, dtype=np.float32)
    sure[3] = 0.91
    confidence = preprocess.confidence(Batch.of(scores, [{"probabilities": sure}]))["confidence"]
    assert confidence.dtype == np.float32
    np.testing.assert_array_equal(confidence, np.array([0.91], dtype=np.float32))


def test_shifted_images_keep_their_labels() -> None:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    image[0, 3, 4] = 16
    moved = digits.shifted(digits.Digits(image, np.array([7])))
    assert moved.labels.tolist() == [7] * 5
    places = [tuple(map(int, np.argwhere(one)[0])) for one in moved.images]
    assert sorted(places) == [(2, 4), (3, 3), (3, 4), (3, 5), (4, 4)]
