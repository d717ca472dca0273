"""`memory`: a worker with the flagship stays under 250 MB, and a million records leave it as large as it was.

Every departure of a month, over and over, through all stages of `flight-delay` in one worker. The ratio is the
budget over the largest size seen; it holds only if the second half of the records did not make it larger either.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice
from typing import Any, Final

from benchmarks.cluster import ROOT, Cluster, Progress
from benchmarks.projects import deployed
from benchmarks.report import BenchmarkError, Outcome, Result, tell
from dataflow.codecs import codec_for
from dataflow.codecs.keys import encode_keys
from dataflow.codecs.tables import columns_of
from dataflow.core.schema import Schema
from dataflow.planner.plan import DEAD_LETTERS, EdgePlan, Plan, TablePlan
from dataflow.transport.api import Header
from pipelines.flight_delay import data

BUDGET_MB: Final = 250.0
# Largest size in the second half of the records over that in the first.
FLAT: Final = 1.05
PIPELINE: Final = "flight-delay"
MONTH: Final = 1
RECORDS = 1_000_000
QUICK_RECORDS = 100_000
_SHOWN: Final = 20

Wire = list[tuple[bytes | None, bytes | None]]  # key, value


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Feed as fast as the worker takes it; its size is looked at all the while."""
    records = QUICK_RECORDS if quick else RECORDS
    plan = deployed(ROOT, cluster.fabric, (PIPELINE,))[PIPELINE]
    year = data.read_year((MONTH,))
    for name, table in plan.tables.items():
        _send(cluster, table.topic, _wire(table, table.schema, year.table(_short(name))), 0)
    entrance = plan.edges["departures"]
    departures = _wire(entrance, entrance.schema, year.table("departures"))
    topic = entrance.topics[0]
    _send(cluster, topic, departures, records)
    tell(f"{records:,} departures written")
    buried = _buried(cluster)
    process = cluster.start_command("worker", ROOT, "--pipeline", PIPELINE)
    seen: list[Progress] = []
    rates: dict[str, int] = {}
    for stage in (s for s in plan.stages if not s.source):
        started = seen[-1].seconds if seen else 0.0
        source = plan.edges[stage.reads[0]].topics[0]
        looked = cluster.follow(process, stage.group, source, 1.0 if records > 200_000 else 0.2)
        seen += looked
        rates[stage.name] = _rate(looked, started)
    process.stop()
    _check(cluster, plan, records, buried)
    return _outcome(records, seen, rates)


def _outcome(records: int, seen: list[Progress], rates: dict[str, int]) -> Outcome:
    working = [p for p in seen if p.committed]
    half = len(working) // 2
    before, after = (max(p.rss_mb for p in part) for part in (working[: half or 1], working[half:]))
    peak = max(p.rss_mb for p in seen)
    result = Result.of("memory", peak, BUDGET_MB, BUDGET_MB / peak, 1.0)
    flat = after <= before * FLAT
    tell(f"largest {peak:.0f} MB; first half {before:.0f}, second half {after:.0f} MB; records/s {rates}")
    raw: dict[str, Any] = {
        "records": records, "first_half_mb": round(before, 1), "second_half_mb": round(after, 1), "flat": flat,
        "records_per_second_of_stage": rates,
        "sizes": [
            {"committed": p.committed, "rss_mb": round(p.rss_mb, 1), "cpu_s": round(p.cpu_s, 1)}
            for p in seen[:: max(len(seen) // _SHOWN, 1)]
        ],
    }  # fmt: skip
    return Outcome(replace(result, holds=result.holds and flat), "MB", raw)


def _short(table: str) -> str:
    """`weather.hourly` is the table `weather` of the data."""
    return table.partition(".")[0]


def _wire(place: EdgePlan | TablePlan, schema: Schema, table: Any) -> tuple[list[Header], Wire]:
    """The rows of an Arrow table as records under a contract, and the headers that all of them have."""
    codec = codec_for(place.codec, schema)
    columns, count = columns_of(schema, table), table.num_rows
    encoded = codec.encode(columns, count)
    if encoded.failed:
        raise BenchmarkError(f"'{place.name}': {encoded.failed[0][1]}")
    keys = encode_keys(schema, place.key, columns, count)
    head: list[Header] = [("df-schema", codec.fingerprint)] if codec.fingerprint else []
    return head, list(zip(keys, encoded.values, strict=True))


def _send(cluster: Cluster, topic: str, wire: tuple[list[Header], Wire], count: int) -> None:
    """`count` records, round and round; 0 is each once."""
    head, pairs = wire
    producer = cluster.fabric.producer(latency_first=False)
    for key, value in islice(cycle(pairs), count or len(pairs)):
        producer.send(topic, value, key, head)
    producer.close()


def _rate(seen: list[Progress], started: float) -> int:
    first = next((p for p in seen if p.committed), seen[-1])
    moved, seconds = seen[-1].committed - first.committed, seen[-1].seconds - (first.seconds or started)
    return round(moved / seconds) if seconds > 0 else 0


def _buried(cluster: Cluster) -> int:
    """Dead letters of all pipelines on the cluster."""
    return sum(cluster.ends(DEAD_LETTERS).values())


def _check(cluster: Cluster, plan: Plan, records: int, buried_before: int) -> None:
    """Every departure ended on one of the two answers, and none was buried."""
    # Read, not asked for: the end of a topic counts the marks of transactions too.
    ends = {e: cluster.read(plan.edges[e].topics[0]).records for e in ("rebook", "triage.on_time")}
    buried = _buried(cluster) - buried_before
    if sum(ends.values()) != records or buried:
        raise BenchmarkError(f"{records} departures ended as {ends} and {buried} dead letters")
