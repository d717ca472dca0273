"""`join`: what `join.by_id` adds to a pipeline of two branches, in one stage.

Four pipelines over the same records, in turn:

apart   two branches, each a `transform.select` that computes a field; both edges are topics
joined  the same, and `join.by_id` of both, whose own edge is not a topic: all that is new is the join itself
single  two branches as in `apart`, and a third `transform.select` that gives what the join gives, its edge a topic
whole   two branches, and the join with its edge a topic, as one would have it

`joined` over `apart` is the join's work on top of the plainest pipeline; `whole` over `single` has a third edge written by
either, so that what a written edge costs is in both. The result is the smaller of the two ratios. Outputs are compared.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np

from benchmarks.cluster import Cluster
from benchmarks.passthrough import numbers_of
from benchmarks.projects import deployed, write
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest
from dataflow.codecs import codec_for
from dataflow.planner.plan import Plan
from dataflow.transport.api import Header

GOAL: Final = 0.87  # at most 15 % more time for a record
SOURCE: Final = "join.loans"
PARTITIONS: Final = 4
PAIRS_OF_SIDES: Final = {"join alone": ("joined", "apart"), "join and its edge": ("whole", "single")}

_TOPIC = f"""
kind: Topic
name: {SOURCE}
partitions: {PARTITIONS}
fields: {{amount: float64, income: float64, years: int64}}
"""
_BRANCHES = """
kind: Pipeline
name: {name}
inputs: {{loan: join.loans}}
nodes:
  burden: {{use: transform.select, from: loan, with: {{set: {{burden: amount / income}}, keep: [burden]}}}}
  rate: {{use: transform.select, from: loan, with: {{set: {{rate: amount / years}}, keep: [rate]}}}}
"""
_LAST = {
    "apart": "",
    "joined": "  both: {{use: join.by_id, from: {{a: burden, b: rate}}, write: off}}\n",
    "whole": "  both: {{use: join.by_id, from: {{a: burden, b: rate}}}}\n",
    "single": (
        "  both: {{use: transform.select, from: loan, "
        "with: {{set: {{burden: amount / income, rate: amount / years}}, keep: [burden, rate]}}}}\n"
    ),
}


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Rounds of all four; each ratio is the median over the rounds."""
    records, rounds = (20_000, 1) if quick else (400_000, 5)
    files = {"topics/loans.yaml": _TOPIC}
    for round_ in range(rounds):
        for side, last in _LAST.items():
            text = (_BRANCHES + last).format(name=f"{side}-{round_}")
            files[f"pipelines/{side}{round_}/pipeline.yaml"] = text
    folder = write(cluster.folder / "join", files)
    plans = deployed(folder, cluster.fabric)
    _fill(cluster, plans["apart-0"], records)
    runs: dict[str, list[dict[str, Any]]] = {}
    for round_ in range(rounds):
        for side in _LAST if round_ % 2 == 0 else reversed(_LAST):
            runs.setdefault(side, []).append(_measure(cluster, plans[f"{side}-{round_}"], side, records))
        for edge in ("burden", "rate", "both"):
            if len({r[-1]["digests"][edge] for r in runs.values() if edge in r[-1]["digests"]}) != 1:
                raise BenchmarkError(f"outputs on '{edge}' differ: { {s: r[-1] for s, r in runs.items()} }")
        tell(f"round {round_}: " + ", ".join(f"{s} {r[-1]['rate']:,.0f}" for s, r in runs.items()))
    found = {
        name: _result(name, runs[with_join], runs[without])
        for name, (with_join, without) in PAIRS_OF_SIDES.items()
    }
    goals = {name: json.loads(r.line()) for name, r in found.items()}
    cpu = {
        name: round(_share(runs[without], runs[with_join], "cpu_us"), 3)
        for name, (with_join, without) in PAIRS_OF_SIDES.items()
    }
    raw = {"records": records, "goals": goals, "ratios_of_cpu_time": cpu, **runs}
    return Outcome(tightest("join", found), "records/s", raw)


def _result(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Result:
    value, baseline = median([r["rate"] for r in ours]), median([r["rate"] for r in theirs])
    return Result.of(name, value, baseline, _share(ours, theirs, "rate"), GOAL)


def _share(ones: list[dict[str, Any]], others: list[dict[str, Any]], what: str) -> float:
    return median([one[what] / other[what] for one, other in zip(ones, others, strict=True)])


def _fill(cluster: Cluster, plan: Plan, records: int) -> None:
    """A thousand rows over and over, round and round the partitions."""
    edge = plan.edges["loan"]
    codec = codec_for(edge.codec, edge.schema)
    random = np.random.default_rng(3)
    rows = {
        "amount": random.integers(1, 10_000, 1_000).astype(np.float64),
        "income": random.integers(1, 1_000, 1_000).astype(np.float64),
        "years": random.integers(1, 30, 1_000),
    }
    values = codec.encode(rows, 1_000).values
    producer = cluster.fabric.producer(latency_first=False)
    for number in range(records):
        headers: list[Header] = [("df-schema", codec.fingerprint)]
        producer.send(SOURCE, values[number % 1_000], None, headers, number % PARTITIONS)
    producer.close()


def _measure(cluster: Cluster, plan: Plan, side: str, records: int) -> dict[str, Any]:
    """One run; the rate is that of the edge `burden`, which all have."""
    process = cluster.start_command("worker", cluster.folder / "join", "--pipeline", plan.pipeline)
    seen = cluster.follow(process, plan.stages[0].group, SOURCE)
    process.stop()
    written = {name: edge.topics[0] for name, edge in plan.edges.items() if edge.node and edge.topics}
    if side == "joined" and "both" in written:
        raise BenchmarkError("the join's edge was not to be written")
    contents = {name: cluster.read(topic) for name, topic in written.items()}
    for name, content in contents.items():
        if content.records != records:
            raise BenchmarkError(f"{plan.pipeline}: {content.records} of {records} records on edge '{name}'")
    numbers = numbers_of(contents["burden"], seen)
    del numbers["digest"]
    return {**numbers, "digests": {name: content.digest for name, content in contents.items()}}
