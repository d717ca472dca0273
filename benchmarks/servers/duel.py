"""Ours and a peer in turn, over and over: what is said of a peer is the median over such pairs, with their spread.

Peers run one at a time, beside ours and its broker: what waits costs next to nothing, and is the same for both sides.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from benchmarks.calls import free_port
from benchmarks.cluster import Cluster
from benchmarks.peers import PeerError
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest
from benchmarks.servers import trivial
from benchmarks.servers.catalogue import Model, Peer
from benchmarks.servers.load import Load
from benchmarks.servers.running import (
    HTTP_CLIENT,
    OURS,
    Server,
    await_answer,
    call,
    measure,
    start_peer,
)

CONCURRENCIES: Final = (1, 32)
Pairs = dict[str, dict[str, list[dict[str, Any]]]]  # "at 1": "ours" and "theirs", a number of each a pair


@dataclass(frozen=True)
class Goal:
    """`ratio` of a peer at a concurrency: its p50 over ours, or our requests/s over its; larger is better for us."""

    peer: Peer
    concurrency: int
    measure: str  # p50 | rate
    goal: float

    @property
    def name(self) -> str:
        what = "p50" if self.measure == "p50" else "requests/s"
        return f"{what} beside {self.peer.name}, {self.concurrency} at a time"


@dataclass(frozen=True)
class Length:
    """How long each run takes, and how many pairs there are."""

    pairs: int
    seconds: float
    warm_up_s: float

    def lasting(self, load: Load, concurrency: int) -> Load:
        return replace(load, concurrency=concurrency, seconds=self.seconds, warm_up_s=self.warm_up_s)

    @staticmethod
    def of(*, quick: bool) -> Length:
        return Length(1, 0.2, 0.1) if quick else Length(5, 2.0, 0.5)


@dataclass(frozen=True)
class Duels:
    """What is asked of whom: all of the same model, with the same requests, by the same client."""

    model: Model
    load: Load
    length: Length
    ask: Callable[[Server, Load], str]
    client: str = HTTP_CLIENT
    concurrencies: Sequence[int] = CONCURRENCIES
    # What peers are asked that cannot take `load`: by name, the same in another encoding.
    instead: Mapping[str, Load] = field(default_factory=dict)

    def of(self, peer: str) -> Load:
        return self.instead.get(peer, self.load)

    def against(self, cluster: Cluster, ours: Server, peers: Sequence[Peer]) -> dict[str, Any]:
        """Pairs with each peer, or why there are none. Ours is warm before the first, as it is before the last."""
        if peers:
            measure(cluster, ours, self.client, self.length.lasting(self.load, self.concurrencies[-1]))
        return {peer.name: self._against(cluster, ours, peer) for peer in peers}

    def _against(self, cluster: Cluster, ours: Server, peer: Peer) -> dict[str, Any]:
        tell(f"{peer.name}: starting")
        try:
            theirs = start_peer(cluster, peer, self.model)
        except PeerError as error:
            tell(f"{peer.name} is NOT measured: {error}")
            return {"not measured": str(error)}
        try:
            await_answer(theirs, lambda server: self.ask(server, self.of(peer.name)))
            pairs = self.pairs(cluster, ours, theirs)
        except BenchmarkError as error:
            ours.process.check()  # else it is not the peer that failed
            tell(f"{peer.name} is NOT measured: {error}")
            return {"not measured": str(error)}
        finally:
            theirs.process.stop()
        return {"versions": theirs.versions, "pairs": pairs}

    def pairs(self, cluster: Cluster, ours: Server, theirs: Server) -> Pairs:
        found: Pairs = {}
        for concurrency in self.concurrencies:
            sides = {"ours": (ours, self.load), "theirs": (theirs, self.of(theirs.name))}
            at = found.setdefault(f"at {concurrency}", {side: [] for side in sides})
            for pair in range(self.length.pairs):
                for side in sides if pair % 2 == 0 else reversed(sides):
                    server, load = sides[side]
                    given = self.length.lasting(load, concurrency)
                    at[side].append(measure(cluster, server, self.client, given))
            told = {s: f"{median([r['p50_ms'] for r in runs]):.2f} ms" for s, runs in at.items()}
            rates = {s: f"{median([r['per_second'] for r in runs]):,.0f}/s" for s, runs in at.items()}
            tell(f"{theirs.name} at {concurrency}: {told}, {rates}")
        return found


def ratios(pairs: Pairs, goal: Goal) -> list[float]:
    """Of each pair."""
    at = pairs[f"at {goal.concurrency}"]
    both = zip(at["ours"], at["theirs"], strict=True)
    if goal.measure == "p50":
        return [theirs["p50_ms"] / ours["p50_ms"] for ours, theirs in both]
    return [ours["per_second"] / theirs["per_second"] for ours, theirs in both]


def result_of(goal: Goal, found: Mapping[str, Any]) -> tuple[Result, dict[str, Any]]:
    """The result, and what the report shows beside it; one that was not measured is not beaten."""
    pairs = found[goal.peer.name].get("pairs")
    if pairs is None:
        return Result.of(goal.name, 0.0, 0.0, 0.0, goal.goal), {
            "not measured": found[goal.peer.name]["not measured"]
        }
    key = "p50_ms" if goal.measure == "p50" else "per_second"
    ours, theirs = (median([r[key] for r in pairs[f"at {goal.concurrency}"][s]]) for s in ("ours", "theirs"))
    each = ratios(pairs, goal)
    return Result.of(goal.name, ours, theirs, median(each), goal.goal), {
        "spread": [round(min(each), 3), round(max(each), 3)]
    }


def outcome(name: str, goals: Sequence[Goal], found: Mapping[str, Any], **more: Any) -> Outcome:
    """The result is that of the goal which is furthest from being reached."""
    results = {goal.name: result_of(goal, found) for goal in goals}
    told = {n: {**json.loads(r.line()), **beside} for n, (r, beside) in results.items()}
    raw = {"goals": told, "peers": found, "command of ours": " ".join(OURS), **more}
    least = tightest(name, {n: r for n, (r, _) in results.items()})
    return Outcome(least, "p50 in ms, or requests/s", raw)


def ceiling(
    cluster: Cluster, load: Load, length: Length, concurrencies: Sequence[int] = CONCURRENCIES
) -> dict[str, Any]:
    """What the client itself can do, against a server that does nothing."""
    port = free_port()
    process = cluster.start("trivial", "-m", "benchmarks.servers.trivial", str(port))
    given = replace(load.at(f"127.0.0.1:{port}", "/"), expected=(trivial.Y,))
    server = Server("trivial", process, given.address, "/")
    await_answer(server, lambda s: _listens(s, port))
    found = {}
    for concurrency in concurrencies:
        asked = replace(given, concurrency=concurrency, seconds=length.seconds, warm_up_s=length.warm_up_s)
        found[f"at {concurrency}"] = call(cluster, HTTP_CLIENT, asked)
    process.stop()
    return found


def _listens(server: Server, port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError as error:
        return f"{server.name}: {error}"
    return ""
