"""`five-nodes`: a caller waits for a pipeline of five nodes, every edge written, and for one of one node, in turn.

Four nodes that pass their record on come before the model; all are one stage, as the planner makes of them by itself. Both
pipelines are served by the same process, and each of the five edges has its record before a durable answer is given.
"""

from __future__ import annotations

from typing import Any, Final

from benchmarks.cluster import Cluster
from benchmarks.projects import deployed, inputs, session_of, write, write_model
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell
from benchmarks.servers.catalogue import V2
from benchmarks.servers.duel import CONCURRENCIES, Length
from benchmarks.servers.load import Load, json_body
from benchmarks.servers.running import HTTP_CLIENT, OURS, Server, await_answer, measure, start_ours
from benchmarks.servers.sync import BODIES, all_committed, ask_http
from dataflow.planner.plan import Plan

# 1.25 times the p50 of one node, as a ratio that grows when we are better.
GOAL: Final = 1 / 1.25

_SHARED = """
kind: Topic
name: vectors
fields: {x: "float32[32]"}
---
kind: Model
name: mlp
file: model.onnx
"""
_ONE = """
kind: Pipeline
name: one-node
inputs: {vectors: vectors}
answer: {from: predict, when: durable}
nodes:
  predict: {use: model.onnx, from: vectors, with: {model: mlp}, keep: []}
"""
_FIVE = """
kind: Pipeline
name: five-nodes
inputs: {vectors: vectors}
answer: {from: predict, when: durable}
nodes:
  first: {use: transform.select, from: vectors, with: {keep: [x]}}
  second: {use: transform.select, from: first, with: {keep: [x]}}
  third: {use: transform.select, from: second, with: {keep: [x]}}
  fourth: {use: transform.select, from: third, with: {keep: [x]}}
  predict: {use: model.onnx, from: fourth, with: {model: mlp}, keep: []}
"""


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs at 1 and at 32 callers; the goal is that of one caller."""
    files = {
        "models/shared.yaml": _SHARED, "pipelines/one/pipeline.yaml": _ONE, "pipelines/five/pipeline.yaml": _FIVE,
    }  # fmt: skip
    folder = write(cluster.folder / "five", files)
    path = write_model(folder / "models/model.onnx")
    rows = inputs(BODIES)
    expected = tuple(float(y) for y in session_of(path).run(["y"], {"x": rows})[0][:, 0])
    load = Load("", "", tuple(json_body(row[None]) for row in rows), expected)
    plans = deployed(folder, cluster.fabric)
    running = start_ours(cluster, folder, "")
    sides = {name: Server(name, running.process, running.address, V2.format(model=name)) for name in plans}
    for server in sides.values():
        await_answer(server, lambda asked: ask_http(asked, load))
    length = Length.of(quick=quick)
    raw: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for concurrency in CONCURRENCIES:
        at = raw.setdefault(f"at {concurrency}", {name: [] for name in sides})
        for pair in range(length.pairs):
            for name in sides if pair % 2 == 0 else reversed(sides):
                at[name].append(measure(cluster, sides[name], HTTP_CLIENT, length.lasting(load, concurrency)))
        told = {n: f"{median([r['p50_ms'] for r in runs]):.2f} ms" for n, runs in at.items()}
        tell(f"at {concurrency}: {told}")
    _check(cluster, plans)
    return _outcome(raw)


def _check(cluster: Cluster, plans: dict[str, Plan]) -> None:
    """Every edge of the five has a record for each request. Raises BenchmarkError."""
    for plan in plans.values():
        all_committed(cluster, plan)
    answer = plans["five-nodes"].answer
    assert answer is not None
    asked = sum(cluster.ends(answer.requests_topic).values())
    for node in ("first", "second", "third", "fourth", "predict"):
        written = sum(cluster.ends(f"five-nodes.{node}").values())
        if written < asked:
            raise BenchmarkError(f"edge '{node}' has {written} records of {asked} requests")


def _outcome(raw: dict[str, dict[str, list[dict[str, Any]]]]) -> Outcome:
    goals = {}
    for concurrency in CONCURRENCIES:
        at = raw[f"at {concurrency}"]
        one, five = ([run["p50_ms"] for run in at[name]] for name in ("one-node", "five-nodes"))
        each = [a / b for a, b in zip(one, five, strict=True)]
        name = f"p50 of five beside one, {concurrency} at a time"
        goal = GOAL if concurrency == 1 else 0.0  # at 32 it is throughput that five times the records cost
        result = Result.of(name, median(five), median(one), median(each), goal)
        goals[name] = (result, [round(min(each), 3), round(max(each), 3)])
    (first, _), *_ = goals.values()
    told = {n: {**vars(r), "spread": spread} for n, (r, spread) in goals.items()}
    result = Result.of("five-nodes", first.value, first.baseline, first.ratio, GOAL)
    return Outcome(result, "ms, p50", {"goals": told, "command of ours": " ".join(OURS), "runs": raw})
