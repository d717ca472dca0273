"""`open-loop`: requests come at random, whatever the server does; their time counts from when they were due.

Capacity is what a side does for 32 callers that ask again at once, measured first. Then Poisson arrivals at shares of it.
Two things are asked: at the same rate, up to 80 % of what KServe can do, our p99 is not above its; and beyond our own
capacity what is answered in time stays near the most that was: refused early, not late for everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from benchmarks.cluster import Cluster
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest
from benchmarks.servers import catalogue
from benchmarks.servers.catalogue import Peer
from benchmarks.servers.duel import Length
from benchmarks.servers.load import Load
from benchmarks.servers.running import HTTP_CLIENT, OURS, Server, await_answer, measure, start_peer
from benchmarks.servers.sync import Scene, all_committed, ask_http, scene

SHARES: Final = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
# The most that is asked of both at the same rate: beyond, one of them is overloaded.
COMMON_SHARE: Final = 0.8
GOODPUT_GOAL: Final = 0.9

Runs = dict[str, list[dict[str, Any]]]


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """With KServe as the peer."""
    return compare(cluster, catalogue.KSERVE, quick=quick)


def compare(cluster: Cluster, peer: Peer, *, quick: bool) -> Outcome:
    """With any server as the peer; one that cannot be installed or started is not beaten."""
    length = Length(1, 0.3, 0.1) if quick else Length(3, 4.0, 1.0)
    shares = (0.4, 1.2) if quick else SHARES
    there = scene(cluster, "durable")
    reason, capacity, beside = "", {"ours": _capacity(cluster, there.ours, there.load, length)}, Runs()
    try:
        theirs = start_peer(cluster, peer, there.model)
        try:
            await_answer(theirs, lambda server: ask_http(server, there.load))
            capacity["theirs"] = _capacity(cluster, theirs, there.load, length)
            beside = _beside(cluster, there, theirs, capacity["theirs"], shares, length)
        finally:
            theirs.process.stop()
    except BenchmarkError as error:
        there.ours.process.check()
        tell(f"{peer.name} is NOT measured: {error}")
        reason = str(error)
    alone = {
        f"{share:.0%}": [
            _open(cluster, there.ours, there.load, capacity["ours"] * share, length, round_)
            for round_ in range(length.pairs)
        ]
        for share in shares
    }
    all_committed(cluster, there.plan)
    raw: dict[str, Any] = {
        "command of ours": " ".join(OURS), "capacity": capacity, "beside": beside, "alone": alone,
    }  # fmt: skip
    return _outcome(peer, raw, reason)


def _capacity(cluster: Cluster, server: Server, load: Load, length: Length) -> float:
    runs = [measure(cluster, server, HTTP_CLIENT, length.lasting(load, 32)) for _ in range(length.pairs)]
    found = median([r["per_second"] for r in runs])
    tell(f"{server.name}: {found:,.0f}/s for 32 callers")
    return found


def _open(
    cluster: Cluster, server: Server, load: Load, rate: float, length: Length, seed: int
) -> dict[str, Any]:
    given = replace(length.lasting(load, 64), rate=rate, seed=seed)
    found = measure(cluster, server, HTTP_CLIENT, given)
    tell(f"{server.name} at {rate:,.0f}/s: p99 {found['p99_ms']:.1f} ms, {found['statuses']}")
    return {"rate": round(rate, 1), **found, "goodput": round(found["in_time"] / length.seconds, 1)}


def _beside(
    cluster: Cluster, there: Scene, theirs: Server, capacity: float, shares: Sequence[float], length: Length
) -> Runs:
    """Both at shares of the peer's capacity, in turn; the same arrivals for both of a pair."""
    found: Runs = {"ours": [], "theirs": []}
    for share in (s for s in shares if s <= COMMON_SHARE):
        for round_ in range(length.pairs):
            sides = {"ours": there.ours, "theirs": theirs}
            for side in sides if round_ % 2 == 0 else reversed(sides):
                measured = _open(cluster, sides[side], there.load, capacity * share, length, round_)
                found[side].append({"share": share, **measured})
    return found


def _outcome(peer: Peer, raw: dict[str, Any], reason: str) -> Outcome:
    results = {}
    shares = sorted({r["share"] for r in raw["beside"].get("ours", [])})
    for share in shares:
        ours, theirs = (
            [r["p99_ms"] for r in raw["beside"][side] if r["share"] == share] for side in ("ours", "theirs")
        )
        each = [b / a for a, b in zip(ours, theirs, strict=True)]
        name = f"p99 beside {peer.name} at {share:.0%} of its capacity"
        results[name] = (Result.of(name, median(ours), median(theirs), median(each), 1.0), each)
    if not shares:
        name = f"p99 beside {peer.name}"
        results[name] = (Result.of(name, 0.0, 0.0, 0.0, 1.0), [0.0])
    goodput = {share: median([r["goodput"] for r in runs]) for share, runs in raw["alone"].items()}
    beyond, most = list(goodput.values())[-1], max(goodput.values())
    name = "goodput at 120% beside the most"
    results[name] = (Result.of(name, beyond, most, beyond / most, GOODPUT_GOAL), [beyond / most])
    goals = {
        n: {**vars(r), "spread": [round(min(each), 3), round(max(each), 3)]}
        for n, (r, each) in results.items()
    }
    if reason:
        goals[f"p99 beside {peer.name}"]["not measured"] = reason
    least = tightest("open-loop", {n: r for n, (r, _) in results.items()})
    return Outcome(least, "p99 in ms, or answers in time/s", {"goals": goals, **raw})
