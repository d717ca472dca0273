"""`sync-committed`: exactly once, answers after the commit, in one process.

Beside the transaction by hand (`raw_committed`), which touches the same partitions and is answered after it; and beside
MLServer, which promises nothing of the kind.
"""

from __future__ import annotations

import json
from typing import Any, Final

from benchmarks.calls import summary
from benchmarks.cluster import Cluster, wait_until
from benchmarks.report import Outcome, Result, median, tell, tightest
from benchmarks.servers import catalogue
from benchmarks.servers.duel import Duels, Goal, Length, outcome
from benchmarks.servers.running import HTTP_CLIENT, measure
from benchmarks.servers.sync import Scene, all_committed, ask_http, scene

# 1.6 times the baseline's p50, as a ratio that grows when we are better.
P50_GOAL: Final = 1 / 1.6
RATE_GOAL: Final = 3.0
_TRIPS: Final = ("committed.there", "committed.output", "committed.back")

Rounds = dict[str, list[dict[str, Any]]]


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """p50 beside the raw transaction, one caller; requests/s beside MLServer, 32 callers; and p50 at 32 in the numbers."""
    length = Length.of(quick=quick)
    there = scene(cluster, "committed", "exactly_once")
    rounds = _beside_transactions(cluster, there, length, 100 if quick else 1_500)
    duels = Duels(there.model, there.load, length, ask_http)
    peers = (catalogue.MLSERVER, catalogue.MLSERVER_ALONE)
    goals = tuple(Goal(peer, 32, "rate", RATE_GOAL) for peer in peers)
    found = duels.against(cluster, there.ours, peers)
    all_committed(cluster, there.plan)
    beside = outcome("sync-committed", goals, found)
    each = [t["p50_ms"] / o["p50_ms"] for t, o in zip(rounds["theirs"], rounds["ours"], strict=True)]
    ours, theirs = (median([r["p50_ms"] for r in rounds[side]]) for side in ("ours", "theirs"))
    name = "p50 beside the raw transaction, 1 at a time"
    result = Result.of(name, ours, theirs, median(each), P50_GOAL)
    told = {**json.loads(result.line()), "spread": [round(min(each), 3), round(max(each), 3)]}
    raw = {**beside.raw, "goals": {name: told, **beside.raw["goals"]}, "transactions": rounds}
    least = tightest("sync-committed", {"transaction": result, "peers": beside.result})
    return Outcome(least, beside.unit, raw)


def _beside_transactions(cluster: Cluster, there: Scene, length: Length, count: int) -> Rounds:
    for topic in _TRIPS:
        cluster.fabric.admin().create(topic, 1, {})
    options = (cluster.bootstrap, *_TRIPS, "raw-committed")
    relay = cluster.start("raw-committed", "-m", "benchmarks.raw_committed", *options)
    wait_until(lambda: "ready" in relay.output(), "the relay")
    rounds: Rounds = {"ours": [], "theirs": []}
    for pair in range(length.pairs):
        for side in rounds if pair % 2 == 0 else reversed(rounds):
            if side == "ours":
                given = length.lasting(there.load, 1)
                rounds[side].append(measure(cluster, there.ours, HTTP_CLIENT, given))
            else:
                rounds[side].append(summary(_trip(cluster, count)))
    relay.stop()
    told = {s: f"{median([r['p50_ms'] for r in runs]):.2f} ms" for s, runs in rounds.items()}
    tell(f"raw transaction at 1: {told}")
    return rounds


def _trip(cluster: Cluster, count: int) -> str:
    there, _, back = _TRIPS
    numbers = ("1", str(count // 4), str(count))
    arguments = ("-m", "benchmarks.raw_trip", cluster.bootstrap, there, back, *numbers)
    return cluster.start("raw-trip", *arguments).wait()
