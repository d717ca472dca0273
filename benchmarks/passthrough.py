"""`passthrough`: Kafka to Kafka, raw codec, one no-op node, against a loop written by hand.

The node is `transform.python` with an array-wise function that returns its batch: the plainest thing that a user
can put between two topics. Rates are records over the time between the first and the last output record, by the
times their producer gave them; both sides must reach the end with their committed offsets and write the same values
in the same order to the same partitions.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster import Cluster, Content, Process, Progress
from benchmarks.projects import deployed, write
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell

GOAL: Final = 0.5
VALUE_BYTES: Final = 200
PARTITIONS: Final = 4
SOURCE: Final = "bench.source"

TOPIC = f"""
kind: Topic
name: {SOURCE}
codec: raw
partitions: {PARTITIONS}
fields: {{payload: bytes}}
"""
_PIPELINE = """
kind: Pipeline
name: pass-{run}
inputs: {{source: bench.source}}
edges: {{codec: raw}}
nodes:
  same: {{use: transform.python, from: source, with: {{call: same.same}}, out: {{payload: bytes}}}}
"""
FUNCTION = '''
from dataflow.sdk import Batch, Out


def same(batch: Batch, out: Out) -> None:
    """Every row goes on as it is."""
    out.emit(batch)
'''


def project(folder: Path, runs: int) -> Path:
    """One pipeline per run: each has a group and an edge of its own."""
    pipelines = {f"pipelines/p{n}/pipeline.yaml": _PIPELINE.format(run=n) for n in range(runs)}
    functions = {f"pipelines/p{n}/same.py": FUNCTION for n in range(runs)}
    return write(folder, {"topics/source.yaml": TOPIC, **pipelines, **functions})


def fill(cluster: Cluster, records: int) -> None:
    """Records of 200 bytes with one header, round and round the partitions."""
    generator = random.Random(7)
    producer = cluster.fabric.producer(latency_first=False)
    for number in range(records):
        noise = generator.randbytes(72).hex()
        value = f'{{"number": {number:012d}, "sensor": "{number % 997:06d}", "note": "{noise}"}}'.encode()
        assert len(value) == VALUE_BYTES, len(value)
        producer.send(SOURCE, value, None, [("source", b"benchmark")], number % PARTITIONS)
    producer.close()


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs of runs, ours and the loop's in turn; the ratio is that of the medians."""
    records, pairs = (20_000, 1) if quick else (600_000, 5)
    folder = project(cluster.folder / "passthrough", pairs)
    plans = deployed(folder, cluster.fabric)
    fill(cluster, records)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for pair in range(pairs):
        sink = f"bench.sink-{pair}"
        cluster.fabric.admin().create(sink, PARTITIONS, {})
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            if side:
                stage = plans[f"pass-{pair}"].stages[0]
                worker = cluster.start_command("worker", folder, "--pipeline", f"pass-{pair}")
                ours.append(measure(cluster, worker, stage.group, f"pass-{pair}.same", records))
            else:
                group = f"raw-loop-{pair}"
                loop = cluster.start(
                    "raw-loop", "-m", "benchmarks.raw_loop", cluster.bootstrap, SOURCE, sink, group
                )
                theirs.append(measure(cluster, loop, group, sink, records))
        if ours[-1]["digest"] != theirs[-1]["digest"]:
            raise BenchmarkError(f"outputs differ: {ours[-1]} and {theirs[-1]}")
        tell(f"pair {pair}: ours {ours[-1]['rate']:,.0f}, loop {theirs[-1]['rate']:,.0f} records/s")
    value, baseline = median([r["rate"] for r in ours]), median([r["rate"] for r in theirs])
    # Of a quick run too little is seen to tell: the clock of CPU time has ticks of 10 ms.
    spent = median([r["cpu_us"] for r in ours])
    cpu = median([r["cpu_us"] for r in theirs]) / spent if spent else 0.0
    raw = {
        "records": records, "value_bytes": VALUE_BYTES, "partitions": PARTITIONS,
        "ratio_of_cpu_time": round(cpu, 3), "ours": ours, "baseline": theirs,
    }  # fmt: skip
    return Outcome(Result.of("passthrough", value, baseline, value / baseline, GOAL), "records/s", raw)


def measure(cluster: Cluster, process: Process, group: str, sink: str, records: int) -> dict[str, Any]:
    seen = cluster.follow(process, group, SOURCE)
    process.stop()
    content = cluster.read(sink)
    if content.records != records:
        raise BenchmarkError(f"{process.name}: {content.records} of {records} records in '{sink}'")
    return numbers_of(content, seen)


def numbers_of(content: Content, seen: list[Progress]) -> dict[str, Any]:
    """Rate by the outputs' times; CPU of the process per record, from the first commit seen to the last.

    Where these are so close that the clock of CPU time has not moved: of all that the process has done.
    """
    first = next(p for p in seen if p.committed)
    last = seen[-1]
    moved, spent_s = last.committed - first.committed, last.cpu_s - first.cpu_s
    cpu_us = spent_s / moved * 1e6 if moved and spent_s else last.cpu_s / last.committed * 1e6
    return {
        "rate": round(content.rate), "seconds": content.seconds, "cpu_us": round(cpu_us, 3),
        "rss_mb": round(max(p.rss_mb for p in seen), 1), "digest": content.digest,
    }  # fmt: skip
