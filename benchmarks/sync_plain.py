"""`sync-plain`: a caller waits at the HTTP door for one ONNX node; gateway and worker are two processes.

The baseline is what the same machine needs for the two things that cannot be left out, measured in the same rounds:
a round trip over two Kafka topics through a relay process that does nothing, and the same request to a server
written by hand around onnxruntime. Goal: their medians' sum over ours, at 1 and at 32 requests at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import answers, call, free_port, summary, write_bodies
from benchmarks.cluster import Cluster, wait_until
from benchmarks.projects import deployed, inputs, session_of, write, write_model
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell

GOAL: Final = 0.6
CONCURRENCIES: Final = (1, 32)
BODIES: Final = 64
PATH: Final = "/v2/models/mlp/infer"
_TRIPS: Final = ("bench.there", "bench.back")

_PROJECT = """
kind: Topic
name: vectors
fields: {x: "float32[32]"}
---
kind: Model
name: mlp
file: model.onnx
---
kind: Pipeline
name: mlp
inputs: {vectors: vectors}
answer: {from: predict}
nodes:
  predict: {use: model.onnx, from: vectors, with: {model: mlp}, keep: []}
"""


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Rounds of the three measurements in turn; each number is the median over the rounds."""
    rounds = 1 if quick else 5
    folder = write(cluster.folder / "sync", {"pipelines/mlp/pipeline.yaml": _PROJECT})
    model = write_model(folder / "pipelines/mlp/model.onnx")
    rows = inputs(BODIES)
    expected = [float(y) for y in session_of(model).run(["y"], {"x": rows})[0][:, 0]]
    bodies = write_bodies(cluster.folder / "bodies.json", rows, expected)
    plan = deployed(folder, cluster.fabric)["mlp"]
    ours, raw_server = _start_servers(cluster, folder, model, bodies)
    sides: dict[str, Callable[[int, int, int], str]] = {
        "trip": lambda c, w, n: _trip(cluster, c, w, n),
        "server": lambda c, w, n: call(cluster, raw_server, PATH, bodies, c, w, n),
        "ours": lambda c, w, n: call(cluster, ours, PATH, bodies, c, w, n),
    }
    raw: dict[str, list[dict[str, Any]]] = {}
    for round_ in range(rounds):
        for concurrency in CONCURRENCIES:
            count = (200 if quick else 3_000) * (1 if concurrency == 1 else 4)
            names = list(sides) if round_ % 2 == 0 else list(reversed(sides))
            for name in names:
                numbers = summary(sides[name](concurrency, max(count // 4, concurrency), count))
                raw.setdefault(f"{name} at {concurrency}", []).append(numbers)
        tell(f"round {round_}: " + ", ".join(f"{n} {v[-1]['p50_ms']:.2f} ms" for n, v in raw.items()))
    if not plan.answer:
        raise BenchmarkError("the pipeline has no answer")
    topic, group = plan.answer.requests_topic, plan.stages[0].group
    end = sum(cluster.ends(topic).values())
    wait_until(lambda: cluster.committed(group, topic) == end, f"the commit of all {end} requests")
    return _outcome(raw)


def _outcome(raw: dict[str, list[dict[str, Any]]]) -> Outcome:
    """The ratio is the smaller one of the two concurrencies; value and baseline are those of it."""
    found = []
    for concurrency in CONCURRENCIES:
        p50 = {
            s: median([r["p50_ms"] for r in raw[f"{s} at {concurrency}"]]) for s in ("trip", "server", "ours")
        }
        baseline = p50["trip"] + p50["server"]
        found.append((baseline / p50["ours"], p50["ours"], baseline, concurrency))
        tell(f"at {concurrency}: ours {p50['ours']:.3f} ms, floor {baseline:.3f} ms ({p50})")
    ratio, value, baseline, _ = min(found)
    ratios = {f"at {concurrency}": round(r, 3) for r, _, _, concurrency in found}
    return Outcome(
        Result.of("sync-plain", value, baseline, ratio, GOAL), "ms, p50", {"ratios": ratios, "rounds": raw}
    )


def _start_servers(cluster: Cluster, folder: Path, model: Path, bodies: Path) -> tuple[str, str]:
    """Addresses of our gateway (with a worker behind it) and of the server by hand; both answer."""
    for topic in _TRIPS:
        cluster.fabric.admin().create(topic, 1, {})
    relay = cluster.start("raw-relay", "-m", "benchmarks.raw_relay", cluster.bootstrap, *_TRIPS)
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
    return cluster.start("raw-trip", "-m", "benchmarks.raw_trip", cluster.bootstrap, *_TRIPS, *numbers).wait()
