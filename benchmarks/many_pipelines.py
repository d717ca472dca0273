"""`many-pipelines`: the CPU of a record in a worker with 1, 8 and 64 pipelines, at the same rate of records in all.

Each pipeline has a topic of its own with one partition and one node that passes its records on. The worker is ready, and
every group has committed, before its CPU time is looked at; so it is what records cost, and what waiting for them does,
not the start. The records are spread round and round the pipelines and fed at a steady rate.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster import Cluster, wait_until
from benchmarks.passthrough import FUNCTION, VALUE_BYTES
from benchmarks.projects import deployed, write
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell
from dataflow.planner.plan import Plan
from dataflow.transport.api import Producer

COUNTS: Final = (1, 8, 64)
RATE: Final = 10_000  # records/s, over all pipelines
STEP_S: Final = 0.01  # records are sent in steps of this
# 1.5 times the CPU of one pipeline, as a ratio that grows when we are better.
GOAL: Final = 1 / 1.5

_TOPIC = """
kind: Topic
name: {name}.in
codec: raw
partitions: 1
fields: {{payload: bytes}}
"""
_PIPELINE = """
kind: Pipeline
name: {name}
inputs: {{source: {name}.in}}
edges: {{codec: raw}}
nodes:
  same: {{use: transform.python, from: source, with: {{call: same.same}}, out: {{payload: bytes}}}}
"""

Deployed = dict[int, tuple[Path, dict[str, Plan]]]


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Rounds of all counts in turn; the ratio is that of the CPU with one pipeline over that with the most."""
    counts, rounds, records = ((1, 2), 1, 2_000) if quick else (COUNTS, 3, 15 * RATE)
    there: Deployed = {}
    for count in counts:
        folder = project(cluster.folder / f"many-{count}", count)
        there[count] = folder, deployed(folder, cluster.fabric)
    raw: dict[str, list[dict[str, Any]]] = {f"{count} pipelines": [] for count in counts}
    for round_ in range(rounds):
        for count in counts if round_ % 2 == 0 else reversed(counts):
            found = _measure(cluster, *there[count], records)
            raw[f"{count} pipelines"].append(found)
            tell(f"{count} pipelines: {found}")
    each = [
        first["cpu_us"] / max(last["cpu_us"], 1e-9)
        for first, last in zip(raw[f"{counts[0]} pipelines"], raw[f"{counts[-1]} pipelines"], strict=True)
    ]
    ours, one = (median([r["cpu_us"] for r in raw[f"{n} pipelines"]]) for n in (counts[-1], counts[0]))
    result = Result.of("many-pipelines", ours, one, median(each), GOAL)
    name = f"CPU of a record, {counts[-1]} pipelines beside {counts[0]}"
    told = {**json.loads(result.line()), "spread": [round(min(each), 3), round(max(each), 3)]}
    return Outcome(result, "us of CPU a record", {"goals": {name: told}, "records": records, "runs": raw})


def project(folder: Path, count: int) -> Path:
    """So many pipelines, all of the same shape."""
    files = {}
    for number in range(count):
        name = f"many-{count}-{number}"
        files[f"topics/{name}.yaml"] = _TOPIC.format(name=name)
        files[f"pipelines/{name}/pipeline.yaml"] = _PIPELINE.format(name=name)
        files[f"pipelines/{name}/same.py"] = FUNCTION
    return write(folder, files)


def _measure(cluster: Cluster, folder: Path, plans: dict[str, Plan], records: int) -> dict[str, Any]:
    """One run of a worker that has these pipelines only. Raises BenchmarkError if a record is missing."""
    chosen = [word for name in plans for word in ("--pipeline", name)]
    worker = cluster.start_command("worker", folder, *chosen)
    producer = cluster.fabric.producer(latency_first=False)
    try:
        _feed(producer, list(plans), len(plans))
        wait_until(lambda: _done(cluster, plans), "the first record of each pipeline", 120.0)
        before, began = worker.cpu_s(), time.monotonic()
        _feed(producer, list(plans), records)
        fed_s = time.monotonic() - began
        wait_until(lambda: _done(cluster, plans), "all records", 120.0)
        spent, took_s = worker.cpu_s() - before, time.monotonic() - began
        worker.check()
        rss = worker.rss_mb()
    finally:
        producer.close()
        worker.stop()
    for name in plans:
        source, sink = (sum(cluster.ends(topic).values()) for topic in (f"{name}.in", f"{name}.same"))
        if source != sink:
            raise BenchmarkError(f"'{name}': {sink} records of {source}")
    return {
        "cpu_us": round(spent / records * 1e6, 2), "rate": round(records / fed_s), "seconds": round(took_s, 2),
        "rss_mb": round(rss, 1),
    }  # fmt: skip


def _feed(producer: Producer, names: list[str], records: int) -> None:
    """Send them at the steady rate; all are acknowledged at the end."""
    value, began = bytes(VALUE_BYTES), time.monotonic()
    for number in range(records):
        if number % int(RATE * STEP_S) == 0:
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        producer.send(f"{names[number % len(names)]}.in", value, None, [], 0)
    producer.flush(60.0)


def _done(cluster: Cluster, plans: dict[str, Plan]) -> bool:
    return all(
        cluster.committed(plan.stages[0].group, f"{name}.in") == sum(cluster.ends(f"{name}.in").values())
        for name, plan in plans.items()
    )
