"""`state`: counts by key and windows by key, Kafka to Kafka with a changelog, beside Quix Streams; and their restoring.

counts   each record adds to its key's count and sum, read from and written to the state, and gives both: one update
windows  count and sum by key in tumbling windows of event time, given when the window closes

Both engines read the same JSON records, run at least once and commit equally often, one process each, in turn; what they
wrote is compared with what the records say, key by key. Rates are by the broker's clock, which stamps the outputs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.cluster import Cluster, Process
from benchmarks.passthrough import numbers_of
from benchmarks.peers import QUIX, PeerError, python_of
from benchmarks.projects import deployed, write
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest
from benchmarks.restore import key_of_each
from benchmarks.restore import measure as measure_restore
from dataflow.core import limits
from dataflow.planner.plan import Plan

RATE_GOAL: Final = 40_000.0
PEER_GOAL: Final = 3.0
WINDOWS: Final = 5
PARTITIONS: Final = 4
# Both write to the changelog and commit so often: it is what a crash runs again, and how often a hot key is written.
COMMIT_S: Final = limits.COMMIT_INTERVAL_MS / 1000
# Quix's own default: measured once, beside.
QUIX_COMMIT_S: Final = 5.0
# Event times begin so long before now: Kafka refuses records of the future.
BEFORE_S: Final = 3_600

_TOPICS: Final = {
    "topics/counted.yaml": f"""
kind: Topic
name: state.counted
key: sensor
codec: json
partitions: {PARTITIONS}
fields: {{sensor: string, value: int64}}
""",
    "topics/timed.yaml": f"""
kind: Topic
name: state.timed
key: sensor
codec: json
partitions: {PARTITIONS}
fields: {{sensor: string, value: int64, at: {{type: timestamp, event_time: true}}}}
""",
}
_COUNTS = """
kind: Pipeline
name: counts-{run}
inputs: {{reading: state.counted}}
edges: {{codec: json}}
nodes:
  count: {{use: transform.python, from: reading, with: {{call: counts.count}}, keep: [sensor]}}
"""
_FUNCTION = '''
from typing import TypedDict

from dataflow.sdk import KeyedContext


class Counted(TypedDict):
    readings: int
    total: int


def count(row: dict, context: KeyedContext) -> Counted:
    """Records and their sum so far, of the record's key."""
    counted = context.state.get("counted")
    readings, total = (1, row["value"]) if counted is None else (counted[0] + 1, counted[1] + row["value"])
    context.state.set("counted", [readings, total])
    return {"readings": readings, "total": total}
'''
_WINDOWS = """
kind: Pipeline
name: windows-{run}
inputs: {{reading: state.timed}}
edges: {{codec: json}}
nodes:
  sums:
    use: window.tumbling
    from: reading
    with: {{size: {size_ms}ms, aggregate: {{readings: count, total: sum(value)}}}}
"""

Found = dict[tuple[bytes, int], tuple[int, int]]  # (key, window's start in ms or 0) -> (readings, total)


@dataclass(frozen=True)
class Job:
    """One of the two, and what it must come to."""

    name: str
    node: str
    source: str
    records: int
    outputs: int
    expected: Found
    window_ms: int = 0


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs of runs of each job, then the restores; the result is that of the goal which is held by least."""
    records, keys, pairs = (20_000, 500, 1) if quick else (600_000, 10_000, 3)
    size_ms = records // WINDOWS
    files = dict(_TOPICS)
    for pair in range(pairs):
        files[f"pipelines/counts{pair}/pipeline.yaml"] = _COUNTS.format(run=pair)
        files[f"pipelines/counts{pair}/counts.py"] = _FUNCTION
        files[f"pipelines/windows{pair}/pipeline.yaml"] = _WINDOWS.format(run=pair, size_ms=size_ms)
    plans = deployed(write(cluster.folder / "state", files), cluster.fabric)
    try:
        peer = python_of(QUIX)
    except PeerError as error:
        tell(f"without the peer: {error}")
        peer, raw = "", {"peer": f"{QUIX} did not install: {error}"}
    else:
        raw = {"peer": QUIX}
    found: dict[str, Result] = {}
    runs: dict[str, Any] = {}
    for job in (_fill_counts(cluster, records, keys), _fill_windows(cluster, records, keys, size_ms)):
        ours, theirs = _measure_pairs(cluster, job, plans, peer, pairs)
        runs[job.name] = {"ours": ours, "quix": theirs}
        if peer:
            rare = _run_quix(cluster, job, peer, f"quix-rare-{job.name}", QUIX_COMMIT_S)
            runs[job.name][f"quix, commits each {QUIX_COMMIT_S:.0f} s"] = rare
        found |= results_of(job, ours, theirs)
    restored, runs["restore"] = measure_restore(cluster, quick=quick)
    found |= restored
    goals = {name: json.loads(r.line()) for name, r in found.items()}
    return Outcome(
        tightest("state", found), "updates/s, ratio, or s", {**raw, "keys": keys, "goals": goals, **runs}
    )


def results_of(job: Job, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Result]:
    """Against the fixed goal, and against the peer: 0 times as fast as one that is not there."""
    rate = median([r["rate"] for r in ours])
    peer = median([r["rate"] for r in theirs]) if theirs else 0.0
    return {
        job.name: Result.of(job.name, rate, RATE_GOAL, rate / RATE_GOAL, 1.0),
        f"{job.name} beside Quix": Result.of(
            f"{job.name} beside Quix", rate, peer, rate / peer if peer else 0.0, PEER_GOAL
        ),
    }


def _measure_pairs(
    cluster: Cluster, job: Job, plans: dict[str, Plan], peer: str, pairs: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs of ours and of the peer's (none without one), in turn."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            name = f"{job.name}-{pair}"
            if side:
                ours.append(_run_ours(cluster, job, plans[name]))
            elif peer:
                theirs.append(_run_quix(cluster, job, peer, f"quix-{name}", COMMIT_S))
        tell(f"{job.name} {pair}: {ours[-1]['rate']:,.0f}, Quix {theirs[-1]['rate'] if peer else 0:,.0f} /s")
    return ours, theirs


def _run_ours(cluster: Cluster, job: Job, plan: Plan) -> dict[str, Any]:
    sink = plan.edges[job.node].topics[0]
    _stamped(cluster, sink)
    process = cluster.start_command("worker", cluster.folder / "state", "--pipeline", plan.pipeline)
    return _measure(cluster, process, job, plan.stages[0].group, sink)


def _run_quix(cluster: Cluster, job: Job, python: str, name: str, commit_s: float) -> dict[str, Any]:
    sink = f"state.{name}"
    cluster.fabric.admin().create(sink, PARTITIONS, {})
    _stamped(cluster, sink)
    folder = str(cluster.folder / name)
    given = (job.name, cluster.bootstrap, job.source, sink, name, folder, str(commit_s), str(job.window_ms))
    process = cluster.start("quix", "-m", "benchmarks.quix_peer", *given, python=python)
    return _measure(cluster, process, job, name, sink)


def _stamped(cluster: Cluster, topic: str) -> None:
    """Have the broker's clock on the records: engines give outputs the times of what they are made from."""
    cluster.fabric.admin().alter(topic, {"message.timestamp.type": "LogAppendTime"})


def _measure(cluster: Cluster, process: Process, job: Job, group: str, sink: str) -> dict[str, Any]:
    seen = cluster.follow(process, group, job.source)
    process.stop()
    last: dict[tuple[bytes, int], dict[str, Any]] = {}

    def note(message: Any) -> None:
        value = json.loads(message.value())
        last[message.key(), _start_ms(value)] = value

    content = cluster.read(sink, note)
    found = {at: (value["readings"], value["total"]) for at, value in last.items()}
    if found != job.expected or content.records != job.outputs:
        wrong = sum(found.get(at) != expected for at, expected in job.expected.items())
        raise BenchmarkError(
            f"{process.name}: {content.records} of {job.outputs} outputs; {wrong} of {len(job.expected)} are wrong, "
            f"{len(found.keys() - job.expected.keys())} unexpected"
        )
    numbers = {**numbers_of(content, seen), "rate": round(job.records / content.seconds)}
    del numbers["digest"]  # results of several keys lie in the topic in an order of each engine's own
    return numbers


def _start_ms(value: dict[str, Any]) -> int:
    start = value.get("start", value.get("window_start", 0))
    return start if isinstance(start, int) else round(datetime.fromisoformat(start).timestamp() * 1000)


def _fill_counts(cluster: Cluster, records: int, keys: int) -> Job:
    expected: Found = {}
    topic = "state.counted"

    def made(_: int, key: str, value: int) -> tuple[dict[str, Any], int]:
        at = (key.encode(), 0)
        readings, total = expected.get(at, (0, 0))
        expected[at] = (readings + 1, total + value)
        return {"sensor": key, "value": value}, 0

    _fill(cluster, topic, records, keys, made)
    return Job("counts", "count", topic, records, records, expected)


def _fill_windows(cluster: Cluster, records: int, keys: int, size_ms: int) -> Job:
    """A record each ms of event time.

    In each partition there is one before all, of a window of its own, whose result says when reading began, and one
    long after all, which closes what is open and has no result.
    """
    expected: Found = {}
    topic = "state.timed"
    begin_ms = int(time.time() - BEFORE_S) * 1000 // size_ms * size_ms
    end_ms = begin_ms + (WINDOWS + 1) * size_ms

    def made(number: int, key: str, value: int) -> tuple[dict[str, Any], int]:
        at_ms = begin_ms + number
        at = (key.encode(), at_ms // size_ms * size_ms)
        readings, total = expected.get(at, (0, 0))
        expected[at] = (readings + 1, total + value)
        return _timed(key, value, at_ms), at_ms

    firsts, lasts = key_of_each(PARTITIONS, "first"), key_of_each(PARTITIONS, "last")
    _send(cluster, topic, ((key, *made(-1, key, 0)) for key in firsts))
    _fill(cluster, topic, records, keys, made)
    _send(cluster, topic, ((key, _timed(key, 0, end_ms), end_ms) for key in lasts))
    everything = records + len(firsts) + len(lasts)
    return Job("windows", "sums", topic, everything, len(expected), expected, size_ms)


def _timed(key: str, value: int, at_ms: int) -> dict[str, Any]:
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"sensor": key, "value": value, "at": at.replace("+00:00", "Z")}


def _fill(
    cluster: Cluster,
    topic: str,
    records: int,
    keys: int,
    made: Callable[[int, str, int], tuple[dict[str, Any], int]],
) -> None:
    """Each key as often as any other, in an order that is not theirs."""
    named = ((number, f"sensor-{number * 7_919 % keys:06d}") for number in range(records))
    _send(cluster, topic, ((key, *made(number, key, number % 100)) for number, key in named))


def _send(cluster: Cluster, topic: str, records: Iterable[tuple[str, dict[str, Any], int]]) -> None:
    """Records by key, with their time in ms (0: now)."""
    producer = cluster.fabric.producer(latency_first=False)
    for key, record, at_ms in records:
        value = json.dumps(record, separators=(",", ":")).encode()
        producer.send(topic, value, key.encode(), None, -1, None, at_ms)
    producer.close()
