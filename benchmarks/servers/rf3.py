"""`sync-rf3`: a durable answer on three brokers, where every record is on all three and acknowledged by two at least.

The baseline is what such a cluster takes for one record: written with all acknowledgements by a raw client that reads it
back, one at a time, on a topic of one partition. Ours writes two, the request and the answer, side by side. Three brokers
and all else share this machine's cores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from confluent_kafka.admin import AdminClient

from benchmarks.calls import summary
from benchmarks.cluster import Cluster, started
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell
from benchmarks.servers.duel import Length
from benchmarks.servers.running import HTTP_CLIENT, measure
from benchmarks.servers.sync import all_committed, scene

NODES: Final = 3
# 1.5 times the round trip, as a ratio that grows when we are better.
GOAL: Final = 1 / 1.5
TOPIC: Final = "bench.trip"
WARM_UP_S: Final = 40.0


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs at one caller, on a cluster of its own; that which is given stands idle."""
    del cluster
    length = Length.of(quick=quick)
    trips = 200 if quick else 3_000
    with started(nodes=NODES) as three:
        three.fabric.admin().create(TOPIC, 1, {})
        there = scene(three, "durable")
        check(three, there.plan.edges["predict"].topics[0])
        # Three JVMs compile what they do for a long time on two cores, and are slow meanwhile.
        warm_up = replace(length, seconds=0.2 if quick else WARM_UP_S)
        measure(three, there.ours, HTTP_CLIENT, warm_up.lasting(there.load, 8))
        load = length.lasting(there.load, 1)
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trip": []}
        for pair in range(length.pairs):
            for side in runs if pair % 2 == 0 else reversed(runs):
                made = (
                    measure(three, there.ours, HTTP_CLIENT, load) if side == "ours" else _trip(three, trips)
                )
                runs[side].append(made)
            tell(f"pair {pair}: " + ", ".join(f"{side} {r[-1]['p50_ms']:.2f} ms" for side, r in runs.items()))
        all_committed(three, there.plan)
    ours, trip = ([run["p50_ms"] for run in runs[side]] for side in ("ours", "trip"))
    each = [theirs / mine for theirs, mine in zip(trip, ours, strict=True)]
    result = Result.of("sync-rf3", median(ours), median(trip), median(each), GOAL)
    told = {**vars(result), "spread": [round(min(each), 3), round(max(each), 3)]}
    goal = "p50 beside a raw round trip of one hop, 1 at a time"
    return Outcome(result, "ms, p50", {"goals": {goal: told}, "brokers": NODES, "runs": runs})


def check(cluster: Cluster, topic: str) -> None:
    """Raises BenchmarkError for a topic that is not in step on all brokers."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    for partition in admin.list_topics(topic, timeout=10).topics[topic].partitions.values():
        if len(partition.isrs) != NODES:
            raise BenchmarkError(f"{topic}[{partition.id}] is in step on {partition.isrs} of {NODES} brokers")


def _trip(cluster: Cluster, count: int) -> dict[str, Any]:
    numbers = ("1", str(count // 4), str(count))
    arguments = ("-m", "benchmarks.raw_trip", cluster.bootstrap, TOPIC, TOPIC, *numbers)
    return summary(cluster.start("raw-trip", *arguments).wait())
