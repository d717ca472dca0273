"""The second half of `state`: how long a worker that starts needs for state that is there already.

A pipeline keeps a count for each of a million keys. Then, in turn, its worker is started with its local file, without it
(all is read from the changelog), and a worker of a like pipeline that keeps nothing yet; each has one record of each
partition to process. From the start of the process to the commit of those records, less the same for the pipeline that
keeps nothing, is what the state cost. The counts in the outputs must go on where they were.
"""

from __future__ import annotations

import json
import shutil
import time
from itertools import count
from typing import Any, Final

from benchmarks.cluster import Cluster
from benchmarks.projects import deployed, write
from benchmarks.report import BenchmarkError, Result, median, tell
from dataflow.planner.plan import Plan
from dataflow.transport.murmur import murmur2_partition

CHANGELOG_GOAL_S: Final = 20.0
CHECKPOINT_GOAL_S: Final = 2.0
PARTITIONS: Final = 4
# What is measured is seconds, and the differences of some: below this a difference is none.
LEAST_S: Final = 0.05

_PIPELINE = """
kind: Topic
name: restore.{name}
key: sensor
partitions: {partitions}
codec: json
fields: {{sensor: string}}
---
kind: Pipeline
name: restore-{name}
inputs: {{reading: restore.{name}}}
edges: {{codec: json}}
nodes:
  count: {{use: transform.python, from: reading, with: {{call: counts.count}}}}
"""
_FUNCTION = '''
from typing import TypedDict

from dataflow.sdk import KeyedContext


class Counted(TypedDict):
    sensor: str
    readings: int


def count(row: dict, context: KeyedContext) -> Counted:
    """Records so far of the record's key."""
    readings = context.state.get("readings", 0) + 1
    context.state.set("readings", readings)
    return {"sensor": row["sensor"], "readings": readings}
'''


def measure(cluster: Cluster, *, quick: bool) -> tuple[dict[str, Result], dict[str, Any]]:
    """The two goals' results, and the raw numbers."""
    keys, rounds = (5_000, 1) if quick else (1_000_000, 3)
    folder = cluster.folder / "restore"
    files = {}
    for name in ("full", "empty"):
        files[f"pipelines/{name}/pipeline.yaml"] = _PIPELINE.format(name=name, partitions=PARTITIONS)
        files[f"pipelines/{name}/counts.py"] = _FUNCTION
    plans = deployed(write(folder, files), cluster.fabric)
    full, empty = plans["restore-full"], plans["restore-empty"]
    files_of_state = folder / ".dataflow" / "state" / cluster.fabric.admin().cluster_id()
    probes = key_of_each(PARTITIONS, "sensor")
    _send(cluster, full, [f"sensor-{n:07d}" for n in range(keys)])
    filled_s = _start(cluster, full)
    tell(f"{keys:,} keys kept after {filled_s:.1f} s")
    seconds: dict[str, list[float]] = {"empty": [], "checkpoint": [], "changelog": []}
    for round_ in range(rounds):
        for name in seconds if round_ % 2 == 0 else reversed(seconds):
            plan = empty if name == "empty" else full
            if name == "changelog":
                shutil.rmtree(files_of_state / plan.stages[0].group)
            _send(cluster, plan, probes)
            seconds[name].append(_start(cluster, plan))
        tell(f"restore {round_}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()))
    _check(cluster, full, keys, probes, 2 * rounds)
    _check(cluster, empty, 0, probes, rounds)
    raw = {"keys": keys, "filled_s": round(filled_s, 2), "starts_s": seconds}
    return {
        f"restore from the {name}": _result(name, seconds, goal_s)
        for name, goal_s in (("changelog", CHANGELOG_GOAL_S), ("checkpoint", CHECKPOINT_GOAL_S))
    }, raw


def _result(name: str, seconds: dict[str, list[float]], goal_s: float) -> Result:
    """The goal's seconds over ours, those beyond a start with nothing to restore."""
    spent = median([s - least for s, least in zip(seconds[name], seconds["empty"], strict=True)])
    return Result.of(f"restore from the {name}", spent, goal_s, goal_s / max(spent, LEAST_S), 1.0)


def key_of_each(partitions: int, prefix: str) -> list[str]:
    """The first key PREFIX-NUMBER of each partition."""
    found: dict[int, str] = {}
    for number in count():
        if len(found) == partitions:
            break
        key = f"{prefix}-{number:07d}"
        found.setdefault(murmur2_partition(key.encode(), partitions), key)
    return [found[p] for p in sorted(found)]


def _send(cluster: Cluster, plan: Plan, keys: list[str]) -> None:
    producer = cluster.fabric.producer(latency_first=False)
    for key in keys:
        producer.send(plan.edges["reading"].topics[0], b'{"sensor":"%s"}' % key.encode(), key.encode())
    producer.close()


def _start(cluster: Cluster, plan: Plan) -> float:
    """Seconds from the start of a worker until it has committed all there is; it is stopped then."""
    started = time.monotonic()
    worker = cluster.start_command("worker", cluster.folder / "restore", "--pipeline", plan.pipeline)
    seen = cluster.follow(worker, plan.stages[0].group, plan.edges["reading"].topics[0], 0.02)
    worker.stop()
    return seen[-1].seconds - started


def _check(cluster: Cluster, plan: Plan, keys: int, probes: list[str], starts: int) -> None:
    """Every key was counted once, the probes once more at each start."""
    counts: dict[str, list[int]] = {}

    def note(message: Any) -> None:
        value = json.loads(message.value())
        counts.setdefault(value["sensor"], []).append(value["readings"])

    cluster.read(plan.edges["count"].topics[0], note)
    most = starts + bool(keys)
    wrong = [k for k, found in counts.items() if found != ([*range(1, most + 1)] if k in probes else [1])]
    if wrong or len(counts) != max(keys, len(probes)):
        raise BenchmarkError(
            f"{plan.pipeline}: {len(counts)} keys; wrong, e.g. {[(k, counts[k]) for k in wrong[:3]]}"
        )
