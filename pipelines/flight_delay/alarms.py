"""How often the drift detector of `flight-delay` is wrong, measured with the real node on the flights of 2013.

    python -m pipelines.flight_delay.alarms

Two ways of being wrong are told apart:

by chance    windows drawn at random from the reference's own month differ from it by chance alone. `alpha` promises how
             many of them alarm at most; measured with `min_effect` 0, so that nothing but the test decides.
by weather   windows of consecutive flights are a few days of one weather: all of them differ from January beyond
             chance. `min_effect` says how much of that is still winter; measured with the pipeline's own settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from dataflow.core.batch import Batch, Row
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.registry import Registry
from dataflow.spec import load_project
from dataflow.testing.nodes import build_node

from . import data, features, train

Column = np.ndarray[Any, np.dtype[Any]]

FOLDER = Path(__file__).parent
PIPELINE = "flight-delay"
SEED = 20130101
WINTER = (12, 1, 2)
SUMMER = (7,)
SHUFFLES = 20
REFERENCE_ROWS = 5_000
CHANCE_WINDOW = 500
# Windows that begin at each of so many places: one winter holds few windows that do not overlap.
STARTS = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of some windows alarmed; `apart` of the windows share no flight with each other."""

    alarms: int
    windows: int
    apart: int

    @property
    def share(self) -> float:
        return self.alarms / self.windows

    def __str__(self) -> str:
        return f"{self.alarms} of {self.windows} windows ({self.share:.2%})"


@dataclass(frozen=True, slots=True)
class Rates:
    """False alarms by chance and by weather, and true ones in summer; the largest and smallest effects beside them."""

    alpha: float
    chance: Rate
    winter: Rate
    summer: Rate
    winter_effect: float
    summer_effect: float


def settings() -> dict[str, Any]:
    """The settings of the node `drift` as declared in `pipeline.yaml`."""
    declared = load_project(FOLDER, environ=os.environ)
    found = next(
        (p.spec for name, p in declared.pipelines.items() if name == PIPELINE),
        None,
    )
    assert found is not None, "the pipeline is declared beside this file"
    return dict(found.nodes["drift"].settings)


def results(x: Column, given: Mapping[str, Any], folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Records of one drift node, newly opened, over features x float32 [N, F] in the order given."""
    schema = Schema.of(x=FieldType("float32", (x.shape[1],)))
    made = build_node(Registry.default().get("drift.ks"), schema, given, folder=folder)
    batch = Batch(schema, {"x": x}, [Row(b"")] * len(x))
    out = Out(batch, ("out",))
    made.process(batch, out, "in")
    return list(_emitted(out))


def _emitted(out: Out) -> Iterator[dict[str, Any]]:
    for emission in out.emissions:
        names = list(emission.columns)
        for values in zip(*(emission.columns[name].tolist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def features_by_month(year: data.Year) -> tuple[Column, Column]:
    """(features float32 [N, F], local month [N]) of all departures in the order of leaving the gate."""
    flights = data.joined(year)
    month = flights["sched_dep"].dt.tz_convert(data.NEW_YORK).dt.month
    return features.features(train.columns_of(flights)), month.to_numpy()


def by_chance(january: Column, given: Mapping[str, Any], shuffles: int = SHUFFLES) -> Rate:
    """Alarms where there is nothing to find: January in random order, against its own first rows."""
    random = np.random.default_rng(SEED)
    fair = {
        **given, "reference": {"first": REFERENCE_ROWS}, "window": CHANCE_WINDOW, "min_effect": 0.0,
    }  # fmt: skip
    found = [r for _ in range(shuffles) for r in results(random.permutation(january), fair)]
    return Rate(sum(r["drifted"] for r in found), len(found), len(found))


def in_order(x: Column, given: Mapping[str, Any], folder: Path = FOLDER) -> tuple[Rate, list[float]]:
    """Alarms, and the largest effect of each window, of consecutive flights under the pipeline's own settings."""
    step = given["window"] // STARTS
    runs = [results(x[start * step :], given, folder) for start in range(STARTS)]
    found = [r for run in runs for r in run]
    rate = Rate(sum(r["drifted"] for r in found), len(found), len(runs[0]))
    return rate, [max(f["effect"] for f in r["features"]) for r in found]


def measure(x: Column, month: Column, folder: Path = FOLDER, shuffles: int = SHUFFLES) -> Rates:
    """All rates, from the features and months of a year of flights. `folder` holds the reference."""
    given = settings()
    # December of 2013 follows January and February: three months in their own order, windows across their borders.
    winter, winter_effects = in_order(x[np.isin(month, WINTER)], given, folder)
    summer, summer_effects = in_order(x[np.isin(month, SUMMER)], given, folder)
    chance = by_chance(x[month == train.REFERENCE_MONTH], given, shuffles)
    alpha = float(given.get("alpha", 0.01))
    return Rates(alpha, chance, winter, summer, max(winter_effects), min(summer_effects))


@click.command()
def main() -> None:
    """Measure how often the drift detector of the pipeline is wrong."""
    rates = measure(*features_by_month(data.read_year()))
    click.echo(f"by chance   {rates.chance}, at most {rates.alpha:.0%} is promised")
    click.echo(
        f"winter      {rates.winter}, {rates.winter.apart} of them apart; largest effect {rates.winter_effect:.2f}"
    )
    click.echo(
        f"summer      {rates.summer}, {rates.summer.apart} of them apart; smallest effect {rates.summer_effect:.2f}"
    )


if __name__ == "__main__":
    main()
