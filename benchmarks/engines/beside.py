"""A pipeline of ours beside other engines that do the same work between two topics, in turn.

Peers keep the time stamps of what they read, so rates are told by watching the output topic grow, for all alike; and a peer
that is not through in time is stopped, and its rate is that of what it did.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster import Cluster, Process
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest

LOOK_S: Final = 0.02
# The first record of a JVM or of a group that forms comes late; no more than this.
START_S: Final = 60.0


@dataclass(frozen=True)
class Engine:
    """`start(cluster, sink, group)` works until it is stopped. A goal of 0 is none. `same`: it gives the records ours does."""

    name: str
    goal: float
    start: Callable[[Cluster, str, str], Process]
    same: bool = True


@dataclass(frozen=True)
class Work:
    """What is done: our project, a pipeline of it for each run and the edge they write; and how much for how long.

    `sum_of` a value tells apart what an engine made of a record.
    """

    folder: Path
    pipelines: Sequence[str]
    edge: str
    partitions: int
    records: int
    pairs: int
    limit_s: float
    sum_of: Callable[[bytes], int] = zlib.crc32


def compare(cluster: Cluster, work: Work, engines: Sequence[Engine]) -> dict[str, Any]:
    """Pairs with each engine; one that cannot be installed is told, and counts as not beaten."""
    free = iter(work.pipelines)
    peers: dict[str, Any] = {}
    for engine in engines:
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        peers[engine.name] = {"runs": found}
        try:
            for pair in range(work.pairs):
                for side in found if pair % 2 == 0 else reversed(found):
                    if side == "ours":
                        name = next(free)
                        sink = f"{name}.{work.edge}"
                        process = cluster.start_command("worker", work.folder, "--pipeline", name)
                    else:
                        sink = f"bench.{engine.name.split()[0].lower()}-{pair}"
                        cluster.fabric.admin().create(sink, work.partitions, {})
                        process = engine.start(cluster, sink, f"group-{sink}")
                    found[side].append(_watch(cluster, process, sink, work))
        except BenchmarkError as error:
            tell(f"{engine.name} is NOT measured: {error}")
            peers[engine.name] = {"not measured": str(error)}
            continue
        if differ(found["ours"] + (found["theirs"] if engine.same else [])):
            raise BenchmarkError(f"outputs differ: {found}")
        rates = {side: f"{median([r['rate'] for r in runs]):,.0f}/s" for side, runs in found.items()}
        tell(f"{engine.name}: {rates}")
    return peers


def differ(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether those that were through in time gave different records."""
    return len({run["sum"] for run in runs if run["complete"]}) > 1


def outcome_of(name: str, engines: Sequence[Engine], peers: dict[str, Any]) -> Outcome:
    """The result is that of the goal which is furthest from being reached."""
    results, told = {}, {}
    for engine in engines:
        goal, peer = f"records/s beside {engine.name}", peers[engine.name]
        if "runs" not in peer:
            results[goal] = Result.of(goal, 0.0, 0.0, 0.0, engine.goal)
            told[goal] = {**vars(results[goal]), "not measured": peer["not measured"]}
            continue
        ours, theirs = ([run["rate"] for run in peer["runs"][side]] for side in ("ours", "theirs"))
        each = [a / b for a, b in zip(ours, theirs, strict=True)]
        results[goal] = Result.of(goal, median(ours), median(theirs), median(each), engine.goal)
        told[goal] = {**vars(results[goal]), "spread": [round(min(each), 3), round(max(each), 3)]}
    return Outcome(tightest(name, results), "records/s", {"goals": told, "engines": peers})


def _watch(cluster: Cluster, process: Process, sink: str, work: Work) -> dict[str, Any]:
    """Until all are there or the time is over; then it is stopped. Raises BenchmarkError for one that writes nothing."""
    first: tuple[float, int] | None = None
    records = work.records
    until = time.monotonic() + START_S
    now, written = 0.0, 0
    while written < records and time.monotonic() < until:
        process.check()
        now, written = time.monotonic(), sum(cluster.ends(sink).values())
        if written and first is None:
            first = (now, written)
            until = now + work.limit_s
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
        total += work.sum_of(message.value())
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
