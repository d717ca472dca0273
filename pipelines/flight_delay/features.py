"""The features of a departure: one function, called when the model is trained and when it serves.

Only what is known when the aircraft leaves the gate goes in. Encodings look at no target.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dataflow.sdk import Batch

Column = np.ndarray[Any, np.dtype[Any]]

# Most frequent first, counted over the months that the model is trained on. A name's place is its value, an unknown
# name counts as rarer than all. Changing these means training again.
ORIGINS = ("EWR", "JFK", "LGA")
CARRIERS = ("UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX", "FL", "AS", "F9", "YV", "HA", "OO")
BUSIEST_FIRST = (
    "ATL ORD LAX BOS MCO CLT SFO FLL MIA DCA DTW DFW RDU TPA IAH DEN MSP PBI LAS BNA SJU IAD PHX BUF CLE "
    "STL MDW SEA CVG MSY CMH RSW PIT SAN MKE CHS JAX BTV SLC PWM RIC ROC AUS HOU MCI IND BWI MEM SYR PHL "
    "GSO DAY ORF PDX SRQ SDF XNA MHT BQN CAK SNA GSP GRR OMA SAV HNL SAT LGB TYS DSM MSN STT ALB BDL BUR "
    "PSE BGR PVD OKC SJC OAK TUL BHM SMF ACK AVL ABQ MVY EGE CRW TVC CAE ILM MYR BZN PSP ANC HDN MTJ CHO "
    "JAC SBN EYW LEX"
)
DESTINATIONS = tuple(BUSIEST_FIRST.split())

TEXTS = {"origin": ORIGINS, "carrier": CARRIERS, "dest": DESTINATIONS}
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
NULLABLE = (*WEATHER, "year", "seats")
REQUIRED = ("dep_delay", "distance", "sched_dep", "sched_arr", *TEXTS)
# The columns of x, in order.
NAMES = (
    *("dep_delay", "distance", "block_minutes", "local_hour", "weekday"),
    *TEXTS,
    *WEATHER,
    *("plane_age_years", "seats"),
)

RANKS = {field: {name: float(place) for place, name in enumerate(names)} for field, names in TEXTS.items()}
MINUTE_US = 60_000_000
DAY_MINUTES = 24 * 60


def _nth_sunday(year: int, month: int, number: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(6 - first.weekday()) % 7 + 7 * (number - 1))


def _clock_changes() -> Column:
    """Instants (int64 microseconds, UTC) at which New York's clocks go forward, back, forward, ... (1)

    (1) Since 2007: 2:00 on the second Sunday of March and of daylight time the first Sunday of November.
    """
    changes = []
    for year in range(2007, 2050):
        for sunday, hour in ((_nth_sunday(year, 3, 2), 7), (_nth_sunday(year, 11, 1), 6)):
            changes.append(datetime(sunday.year, sunday.month, sunday.day, hour, tzinfo=UTC).timestamp())
    return (np.array(changes) * 1_000_000).astype(np.int64)


CLOCK_CHANGES_US = _clock_changes()


def build(batch: Batch) -> dict[str, Column]:
    """Return `x`, float32 [N, len(NAMES)], of departures with their weather and plane (absent ones null)."""
    columns = {name: batch[name] for name in REQUIRED}
    columns.update((name, batch.floats(name)) for name in NULLABLE)
    return {"x": features(columns)}


def features(columns: Mapping[str, Column]) -> Column:
    """Return the features `NAMES` of N departures as float32 [N, F]; NaN where a nullable field is missing.

    `columns`: `TEXTS` as arrays of str, `sched_dep` and `sched_arr` as datetime64 in UTC, other fields as floats, those
    of `NULLABLE` with NaN for missing. Reads, never writes, its columns.
    """
    sched_dep_us = columns["sched_dep"].astype("datetime64[us]").view(np.int64)
    sched_arr_us = columns["sched_arr"].astype("datetime64[us]").view(np.int64)
    in_summer = np.searchsorted(CLOCK_CHANGES_US, sched_dep_us, side="right") & 1
    local_minute = sched_dep_us // MINUTE_US + (in_summer - 5) * 60
    local_day = local_minute // DAY_MINUTES
    local_year = local_day.view("datetime64[D]").astype("datetime64[Y]").view(np.int64) + 1970

    x = np.empty((len(sched_dep_us), len(NAMES)), dtype=np.float32)
    made = iter(x.T)
    next(made)[:] = columns["dep_delay"]
    next(made)[:] = columns["distance"]
    next(made)[:] = (sched_arr_us - sched_dep_us) / MINUTE_US
    next(made)[:] = (local_minute % DAY_MINUTES) / 60
    next(made)[:] = (local_day + 3) % 7  # 1970 began on a Thursday; Monday is 0
    for field, ranks in RANKS.items():
        next(made)[:] = list(map(ranks.get, columns[field].tolist(), repeat(float(len(ranks)))))
    for field in WEATHER:
        next(made)[:] = columns[field]
    next(made)[:] = local_year - columns["year"]
    next(made)[:] = columns["seats"]
    return x
