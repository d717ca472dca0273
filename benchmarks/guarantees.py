"""`guarantees`: what exactly-once costs over at-least-once, and how long a caller waits for a committed answer.

Throughput: a pipeline under both guarantees, commits each 100 ms, and the same two loops written by hand around the
client (`raw_loop`, `raw_transactions`), all in turn. What transactions cost the client is not ours to save: the ratio is
ours, exactly-once over at-least-once, over the client's own. All four write the same values in the same order.

Answers: `committed`, the default under exactly-once, through gateway and worker; against a transaction by hand that
touches the same partitions and is answered after it (`raw_committed`), and the same request to a server by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import answers, call, free_port, summary, write_bodies
from benchmarks.cluster import Cluster, Process, wait_until
from benchmarks.passthrough import FUNCTION, PARTITIONS, SOURCE, TOPIC, fill
from benchmarks.passthrough import measure as measure_run
from benchmarks.projects import deployed, inputs, session_of, write, write_model
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell, tightest

THROUGHPUT_GOAL: Final = 0.95
# 1.6 times the baseline's p50, as a ratio that grows when we are better.
ANSWER_GOAL: Final = 1 / 1.6
CONCURRENCIES: Final = (1, 32)
GUARANTEES: Final = {"once": "exactly_once", "least": "at_least_once"}
PATH: Final = "/v2/models/committed/infer"
_TRIPS: Final = ("committed.there", "committed.output", "committed.back")

_PIPELINE = """
kind: Pipeline
name: {name}
delivery: {delivery}
inputs: {{source: bench.source}}
edges: {{codec: raw}}
nodes:
  same: {{use: transform.python, from: source, with: {{call: same.same}}, out: {{payload: bytes}}}}
"""
_COMMITTED = """
kind: Topic
name: committed.vectors
fields: {x: "float32[32]"}
---
kind: Model
name: mlp
file: model.onnx
---
kind: Pipeline
name: committed
delivery: exactly_once
inputs: {vectors: committed.vectors}
answer: {from: predict, when: committed}
nodes:
  predict: {use: model.onnx, from: vectors, with: {model: mlp}, keep: []}
"""

Runs = dict[str, list[dict[str, Any]]]


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Both measurements; the result is that of the goal which is held by less."""
    throughput, runs = _throughput(cluster, quick=quick)
    answer, rounds = _answers(cluster, quick=quick)
    found = {"throughput": throughput, "committed answer": answer}
    raw = {
        "goals": {n: json.loads(r.line()) for n, r in found.items()},
        "throughput": runs,
        "answers": rounds,
    }
    return Outcome(tightest("guarantees", found), "share of at-least-once, or p50 in ms", raw)


def _throughput(cluster: Cluster, *, quick: bool) -> tuple[Result, Runs]:
    records, rounds = (20_000, 1) if quick else (600_000, 5)
    plans = _deploy(cluster, rounds)
    fill(cluster, records)
    runs: Runs = {}
    for round_ in range(rounds):
        sides = ["once", "least", "raw-once", "raw-least"]
        for side in sides if round_ % 2 == 0 else reversed(sides):
            name = f"{side}-{round_}"
            if side in GUARANTEES:
                process = cluster.start_command("worker", cluster.folder / "guarantees", "--pipeline", name)
                group, sink = plans[name].stages[0].group, f"{name}.same"
            else:
                group, sink = name, f"bench.sink-{name}"
                process = _start_loop(cluster, side, sink, group)
            runs.setdefault(side, []).append(measure_run(cluster, process, group, sink, records))
        if len({r[-1]["digest"] for r in runs.values()}) != 1:
            raise BenchmarkError(f"outputs differ: { {s: r[-1] for s, r in runs.items()} }")
        tell(f"round {round_}: " + ", ".join(f"{s} {r[-1]['rate']:,.0f}" for s, r in runs.items()))
    ours, theirs = _share(runs, "once", "least"), _share(runs, "raw-once", "raw-least")
    return Result.of("throughput", ours, theirs, ours / theirs, THROUGHPUT_GOAL), runs


def _share(runs: Runs, once: str, least: str) -> float:
    """Median over the rounds of the one's rate over the other's in the same round."""
    return median([a["rate"] / b["rate"] for a, b in zip(runs[once], runs[least], strict=True)])


def _deploy(cluster: Cluster, rounds: int) -> dict[str, Any]:
    """A pipeline for each run: each has a group and an edge of its own."""
    files = {"topics/source.yaml": TOPIC}
    for round_ in range(rounds):
        for side, delivery in GUARANTEES.items():
            folder = f"pipelines/{side}{round_}"
            files[f"{folder}/pipeline.yaml"] = _PIPELINE.format(name=f"{side}-{round_}", delivery=delivery)
            files[f"{folder}/same.py"] = FUNCTION
    return dict(deployed(write(cluster.folder / "guarantees", files), cluster.fabric))


def _start_loop(cluster: Cluster, side: str, sink: str, group: str) -> Process:
    cluster.fabric.admin().create(sink, PARTITIONS, {})
    module = "benchmarks.raw_transactions" if side == "raw-once" else "benchmarks.raw_loop"
    return cluster.start(side, "-m", module, cluster.bootstrap, SOURCE, sink, group)


def _answers(cluster: Cluster, *, quick: bool) -> tuple[Result, Runs]:
    """Rounds of the three measurements in turn; the goal is that of one caller at a time."""
    rounds = 1 if quick else 5
    folder = write(cluster.folder / "committed", {"pipelines/mlp/pipeline.yaml": _COMMITTED})
    model = write_model(folder / "pipelines/mlp/model.onnx")
    rows = inputs(64)
    expected = [float(y) for y in session_of(model).run(["y"], {"x": rows})[0][:, 0]]
    bodies = write_bodies(cluster.folder / "committed.json", rows, expected)
    plan = deployed(folder, cluster.fabric)["committed"]
    ours, server = _start_servers(cluster, folder, model, bodies)
    sides: dict[str, Callable[[int, int, int], str]] = {
        "transaction": lambda c, w, n: _trip(cluster, c, w, n),
        "server": lambda c, w, n: call(cluster, server, PATH, bodies, c, w, n),
        "ours": lambda c, w, n: call(cluster, ours, PATH, bodies, c, w, n),
    }
    raw: Runs = {}
    for round_ in range(rounds):
        for concurrency in CONCURRENCIES:
            count = (100 if quick else 1_500) * (1 if concurrency == 1 else 4)
            for name in sides if round_ % 2 == 0 else reversed(sides):
                numbers = summary(sides[name](concurrency, max(count // 4, concurrency), count))
                raw.setdefault(f"{name} at {concurrency}", []).append(numbers)
        tell(f"round {round_}: " + ", ".join(f"{n} {v[-1]['p50_ms']:.2f} ms" for n, v in raw.items()))
    assert plan.answer is not None
    topic, group = plan.answer.requests_topic, plan.stages[0].group
    end = sum(cluster.ends(topic).values())
    wait_until(lambda: cluster.committed(group, topic) == end, f"the commit of all {end} requests")
    p50 = {name: median([r["p50_ms"] for r in raw[f"{name} at {CONCURRENCIES[0]}"]]) for name in sides}
    baseline = p50["transaction"] + p50["server"]
    return Result.of("committed answer", p50["ours"], baseline, baseline / p50["ours"], ANSWER_GOAL), raw


def _start_servers(cluster: Cluster, folder: Path, model: Path, bodies: Path) -> tuple[str, str]:
    """Addresses of our gateway (with a worker behind it) and of the server by hand; both answer."""
    for topic in _TRIPS:
        cluster.fabric.admin().create(topic, 1, {})
    relay = cluster.start(
        "raw-committed", "-m", "benchmarks.raw_committed", cluster.bootstrap, *_TRIPS, "raw-committed"
    )
    ports = [free_port(), free_port()]
    cluster.start_command("worker", folder)
    gateway = cluster.start_command("gateway", folder, "--port", str(ports[0]))
    server = cluster.start("raw-server", "-m", "benchmarks.raw_server", str(model), str(ports[1]))
    body = json.loads(bodies.read_text())["bodies"][0].encode()
    wait_until(lambda: "ready" in relay.output(), "the relay")
    for port, process in zip(ports, (gateway, server), strict=True):
        wait_until(lambda port=port, process=process: answers(process, port, PATH, body), process.name)  # type: ignore[misc]
    return f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"


def _trip(cluster: Cluster, concurrency: int, warm_up: int, count: int) -> str:
    numbers = (str(concurrency), str(warm_up), str(count))
    there, _, back = _TRIPS
    return cluster.start(
        "raw-trip", "-m", "benchmarks.raw_trip", cluster.bootstrap, there, back, *numbers
    ).wait()
