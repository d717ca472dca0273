"""``make soak``: steady load for some minutes; memory, threads, descriptors and lag of worker and gateway stay flat.

Pipelines and load are those of `faults`, without faults. Figures go to `soak.json` and a drawing, `soak.svg`, beside it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from faults.watch import Measures, Watch
from faults.world import Sizes, World
from scripts._soak_plot import draw

Floats = npt.NDArray[np.float64]
# Before it caches fill, pools grow and code is loaded.
WARM_UP_SHARE: Final = 0.25
# Growth over the rest of the run that counts as flat: allocators and clients breathe.
MAX_BYTES_PER_MINUTE: Final = 1.5e6
MAX_BYTES: Final = 12e6
MAX_COUNT: Final = 4
MAX_LAG_S: Final = 10.0
SETTLE_S: Final = 180.0


@dataclass(frozen=True)
class Series:
    """One figure over time: seconds, values, and the limit that its growth had to keep to."""

    name: str
    unit: str
    at_s: Floats
    values: Floats
    growth: float
    limit: float

    @property
    def flat(self) -> bool:
        return self.growth <= self.limit

    def document(self) -> dict[str, Any]:
        return {
            "unit": self.unit, "growth": round(self.growth, 2), "limit": round(self.limit, 2), "flat": self.flat,
            "at_s": [round(s, 1) for s in self.at_s], "values": [round(v, 1) for v in self.values],
        }  # fmt: skip


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long the load lasts.")
@click.option(
    "--rate", type=int, default=1_000, show_default=True, help="Records a second, of all inputs together."
)
@click.option(
    "--callers", type=int, default=4, show_default=True, help="Callers over HTTP, one request after another."
)
@click.option(
    "--into", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True
)
def main(minutes: float, rate: int, callers: int, into: Path) -> None:
    """Load a worker and a gateway steadily and say whether anything of theirs grows."""
    folder = Path(tempfile.mkdtemp(prefix="dataflow-soak-"))
    records = int(minutes * 60 * rate)
    world = World(folder, Sizes(1, 1, 1, callers, records), seed=1, mutants={}, patched=False)
    try:
        found = soak(world, minutes * 60, rate)
        asked = len(world.callers.answers)
        failed = sum(a.status != 200 for a in world.callers.answers)
        fed = sum(world.feeder.written.values())
    finally:
        world.close()
        shutil.rmtree(folder, ignore_errors=True)
    document = {
        "minutes": minutes, "records": fed, "requests": asked, "requests_failed": failed,
        "flat": all(s.flat for s in found), "series": {s.name: s.document() for s in found},
    }  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    (into / "soak.json").write_text(json.dumps(document, indent=1) + "\n")
    (into / "soak.svg").write_text(draw([(s.name, s.unit, s.at_s, s.values, s.flat) for s in found]))
    for series in found:
        state = "flat" if series.flat else "GROWS"
        click.echo(
            f"{series.name:28} {state:6} {series.growth:12,.1f} {series.unit} (limit {series.limit:,.1f})",
            err=True,
        )
    click.echo(json.dumps({k: v for k, v in document.items() if k != "series"}))
    sys.exit(0 if document["flat"] and not failed else 1)


def soak(world: World, seconds: float, rate: int) -> list[Series]:
    """Let the load run and give what was measured. Raises RuntimeError when the pipelines never come up."""
    world.feeder.allow(rate)
    if wrong := world.settle(SETTLE_S):
        raise RuntimeError(f"the pipelines never came up: {wrong}")
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        world.feeder.allow(int(rate * passed))
        time.sleep(0.1)
    from_s = began - world.watch.began_s
    return [*_processes(world.watch, from_s), *_lags(world.watch, from_s, rate)]


def _processes(watch: Watch, from_s: float) -> list[Series]:
    """Of each process: bytes, threads, descriptors."""
    made = []
    for measures in watch.measures.values():
        rows = _table(measures, from_s)
        if len(rows) < 4:
            continue
        minutes = (rows[-1, 0] - rows[0, 0]) / 60
        limits = (max(MAX_BYTES, MAX_BYTES_PER_MINUTE * minutes), MAX_COUNT, MAX_COUNT)
        for column, (unit, limit) in enumerate(
            zip(("bytes", "threads", "descriptors"), limits, strict=True), 1
        ):
            values = rows[:, column]
            made.append(Series(f"{measures.name} {unit}", unit, rows[:, 0], values, growth(values), limit))
    return made


def _table(measures: Measures, from_s: float) -> Floats:
    return np.array([row for row in measures.rows if row[0] >= from_s], dtype=np.float64).reshape(-1, 4)


def _lags(watch: Watch, from_s: float, rate: int) -> list[Series]:
    """Of each group that reads what another stage wrote: records written and not yet committed."""
    made = []
    looks = [look for look in watch.looks if look.at_s >= from_s]
    for name, group in watch.groups.items():
        inside = [p for p in watch.inputs(name) if looks and p in looks[0].ends]
        if not inside:
            continue
        lag = np.array(
            [sum(max(k.ends[p] - k.committed[name][p], 0) for p in inside) for k in looks], dtype=np.float64
        )
        at_s = np.array([k.at_s for k in looks])
        made.append(Series(f"{group.name} lag", "records", at_s, lag, growth(lag), rate * MAX_LAG_S))
    return made


def growth(values: Floats) -> float:
    """By how much the last quarter lies above the first after the warm-up, by their medians."""
    rest = values[int(len(values) * WARM_UP_SHARE) :]
    quarter = max(len(rest) // 4, 1)
    return float(np.median(rest[-quarter:]) - np.median(rest[:quarter]))


if __name__ == "__main__":
    main()
