"""`passthrough-peers`: the pipeline of `passthrough` beside Kafka Streams (one thread), Quix Streams, bytewax and Faust.

All copy the same 200-byte records from a topic of four partitions to another, at least once, committing each 100 ms (bytewax
does not commit). Peers keep the time stamps of what they read, so rates are told by watching the output topic grow, for all
alike; and a peer that is not through in time is stopped, and its rate is that of what it did. Outputs of those who finish
must be the same records, in whatever order.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.cluster import Cluster, Process
from benchmarks.engines.streams import class_path
from benchmarks.passthrough import PARTITIONS, SOURCE, fill, project
from benchmarks.peers import QUIX, python_of
from benchmarks.projects import deployed
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest

BYTEWAX: Final = "bytewax[kafka]==0.21.1"
LOOK_S: Final = 0.02
# The first record of a JVM or of a group that forms comes late; no more than this.
START_S: Final = 60.0


@dataclass(frozen=True)
class Engine:
    """`start(cluster, sink, group)` copies until it is stopped. A goal of 0 is none."""

    name: str
    goal: float
    start: Callable[[Cluster, str, str], Process]


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs with each engine; one that cannot be installed is told, and counts as not beaten."""
    records, pairs, limit_s = (10_000, 1, 8.0) if quick else (400_000, 3, 20.0)
    folder = project(cluster.folder / "passthrough", len(ENGINES) * pairs)
    plans = deployed(folder, cluster.fabric)
    fill(cluster, records)
    free = iter(plans)
    peers: dict[str, Any] = {}
    for engine in ENGINES:
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        peers[engine.name] = {"runs": found}
        try:
            for pair in range(pairs):
                for side in found if pair % 2 == 0 else reversed(found):
                    if side == "ours":
                        name = next(free)
                        sink = f"{name}.same"
                        process = cluster.start_command("worker", folder, "--pipeline", name)
                    else:
                        sink = f"bench.{engine.name.split()[0].lower()}-{pair}"
                        cluster.fabric.admin().create(sink, PARTITIONS, {})
                        process = engine.start(cluster, sink, f"group-{sink}")
                    found[side].append(_watch(cluster, process, sink, records, limit_s))
        except BenchmarkError as error:
            tell(f"{engine.name} is NOT measured: {error}")
            peers[engine.name] = {"not measured": str(error)}
            continue
        sums = {r["sum"] for runs in found.values() for r in runs if r["complete"]}
        if len(sums) > 1:
            raise BenchmarkError(f"outputs differ: {found}")
        rates = {side: f"{median([r['rate'] for r in runs]):,.0f}/s" for side, runs in found.items()}
        tell(f"{engine.name}: {rates}")
    return _outcome(peers)


def _outcome(peers: dict[str, Any]) -> Outcome:
    results, told = {}, {}
    for engine in ENGINES:
        name, peer = f"records/s beside {engine.name}", peers[engine.name]
        if "runs" not in peer:
            results[name] = Result.of(name, 0.0, 0.0, 0.0, engine.goal)
            told[name] = {**vars(results[name]), "not measured": peer["not measured"]}
            continue
        ours, theirs = ([run["rate"] for run in peer["runs"][side]] for side in ("ours", "theirs"))
        each = [a / b for a, b in zip(ours, theirs, strict=True)]
        results[name] = Result.of(name, median(ours), median(theirs), median(each), engine.goal)
        told[name] = {**vars(results[name]), "spread": [round(min(each), 3), round(max(each), 3)]}
    return Outcome(tightest("passthrough-peers", results), "records/s", {"goals": told, "engines": peers})


def _watch(cluster: Cluster, process: Process, sink: str, records: int, limit_s: float) -> dict[str, Any]:
    """Until all are there or the time is over; then it is stopped. Raises BenchmarkError for one that writes nothing."""
    first: tuple[float, int] | None = None
    until = time.monotonic() + START_S
    now, written = 0.0, 0
    while written < records and time.monotonic() < until:
        process.check()
        now, written = time.monotonic(), sum(cluster.ends(sink).values())
        if written and first is None:
            first = (now, written)
            until = now + limit_s
        time.sleep(LOOK_S)
    cpu_s, pss_mb = process.family_cpu_s(), process.family_pss_mb()
    process.stop()
    if first is None:
        raise BenchmarkError(f"{process.name} wrote nothing:\n{process.output()[-2000:]}")
    if now <= first[0]:  # all at one look
        now, first = now + LOOK_S, (first[0], 0)
    total, count = 0, 0

    def add(message: Any) -> None:
        nonlocal total, count
        total += zlib.crc32(message.value())
        count += 1

    complete = written >= records
    if complete:
        cluster.read(sink, add)
        if count != records:
            raise BenchmarkError(f"{process.name} wrote {count} records of {records}")
    return {
        "rate": round((written - first[1]) / (now - first[0])), "records": written, "complete": complete,
        "sum": total, "cpu_us": round(cpu_s / written * 1e6, 2), "pss_mb": round(pss_mb, 1),
    }  # fmt: skip


def _start_streams(cluster: Cluster, sink: str, group: str) -> Process:
    arguments = ("-cp", class_path(), "Passthrough", cluster.bootstrap, SOURCE, sink, group)
    return cluster.start("kafka-streams", *arguments, python="java")


def _start_quix(cluster: Cluster, sink: str, group: str) -> Process:
    module = ("-m", "benchmarks.engines.quix_app", cluster.bootstrap, SOURCE, sink, group)
    return cluster.start("quix", *module, python=python_of(QUIX))


def _start_bytewax(cluster: Cluster, sink: str, group: str) -> Process:
    del group
    flow = f"benchmarks.engines.bytewax_app:flow({cluster.bootstrap!r}, {SOURCE!r}, {sink!r})"
    return cluster.start("bytewax", "-m", "bytewax.run", flow, python=python_of(BYTEWAX))


def _start_faust(cluster: Cluster, sink: str, group: str) -> Process:
    return cluster.start(
        "faust", "-m", "benchmarks.engines.faust_app", cluster.bootstrap, SOURCE, sink, group
    )


ENGINES: Final = (
    Engine("Kafka Streams", 1.2, _start_streams),
    Engine("Quix Streams", 3.5, _start_quix),
    Engine("bytewax", 0.0, _start_bytewax),
    Engine("Faust", 25.0, _start_faust),
)
