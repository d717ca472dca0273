"""`sync-plain`: a caller waits at the HTTP door for one ONNX node; gateway and worker are two processes.

The baseline is what the same machine needs for the two things that cannot be left out, measured in the same rounds:
a round trip over two Kafka topics through a relay process that does nothing, and the same request to a server
written by hand around onnxruntime. Goals: their medians' sum over ours, at 1 and at 32 requests at a time; and our
requests/s at 32 over those of MLServer, as it comes and without its workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import answers, call, free_port, summary, write_bodies
from benchmarks.cluster import Cluster, wait_until
from benchmarks.projects import deployed, inputs, session_of, write, write_model
from benchmarks.report import Outcome, Result, median, tell, tightest
from benchmarks.servers import catalogue
from benchmarks.servers.catalogue import Model
from benchmarks.servers.duel import Duels, Goal, Length, result_of
from benchmarks.servers.load import Load, json_body
from benchmarks.servers.running import Server
from benchmarks.servers.sync import all_committed, ask_http

# 1.25 times the baseline's p50, as a ratio that grows when we are better.
GOAL: Final = 1 / 1.25
RATE_GOAL: Final = 4.0
CONCURRENCIES: Final = (1, 32)
BODIES: Final = 64
PATH: Final = "/v2/models/mlp/infer"
PEERS: Final = (catalogue.MLSERVER, catalogue.MLSERVER_ALONE)
Runs = dict[str, list[dict[str, Any]]]
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
    gateway, raw_server = _start_servers(cluster, folder, model, bodies)
    ours = gateway.address
    sides: dict[str, Callable[[int, int, int], str]] = {
        "trip": lambda c, w, n: _trip(cluster, c, w, n),
        "server": lambda c, w, n: call(cluster, raw_server, PATH, bodies, c, w, n),
        "ours": lambda c, w, n: call(cluster, ours, PATH, bodies, c, w, n),
    }
    raw: Runs = {}
    for round_ in range(rounds):
        for concurrency in CONCURRENCIES:
            count = (200 if quick else 3_000) * (1 if concurrency == 1 else 4)
            names = list(sides) if round_ % 2 == 0 else list(reversed(sides))
            for name in names:
                numbers = summary(sides[name](concurrency, max(count // 4, concurrency), count))
                raw.setdefault(f"{name} at {concurrency}", []).append(numbers)
        tell(f"round {round_}: " + ", ".join(f"{n} {v[-1]['p50_ms']:.2f} ms" for n, v in raw.items()))
    load = Load("", PATH, tuple(json_body(row[None]) for row in rows), tuple(expected))
    duels = Duels(Model("mlp", model), load, Length.of(quick=quick), ask_http)
    peers = duels.against(cluster, gateway, PEERS)
    all_committed(cluster, plan)
    return _outcome(raw, peers)


def _outcome(raw: Runs, peers: dict[str, Any]) -> Outcome:
    """The result is that of the goal which is furthest from being reached."""
    found: dict[str, Result] = {}
    told: dict[str, Any] = {}
    for concurrency in CONCURRENCIES:
        sides = {s: [r["p50_ms"] for r in raw[f"{s} at {concurrency}"]] for s in ("trip", "server", "ours")}
        floors = [trip + server for trip, server in zip(sides["trip"], sides["server"], strict=True)]
        each = [floor / ours for floor, ours in zip(floors, sides["ours"], strict=True)]
        name = f"p50 beside two hops and a server by hand, {concurrency} at a time"
        found[name] = Result.of(name, median(sides["ours"]), median(floors), median(each), GOAL)
        told[name] = {**vars(found[name]), "spread": [round(min(each), 3), round(max(each), 3)]}
        tell(f"at {concurrency}: ours {median(sides['ours']):.3f} ms, floor {median(floors):.3f} ms")
    for goal in (Goal(peer, CONCURRENCIES[-1], "rate", RATE_GOAL) for peer in PEERS):
        found[goal.name], beside = result_of(goal, peers)
        told[goal.name] = {**vars(found[goal.name]), **beside}
    least = tightest("sync-plain", found)
    return Outcome(least, "p50 in ms, or requests/s", {"goals": told, "rounds": raw, "peers": peers})


def _start_servers(cluster: Cluster, folder: Path, model: Path, bodies: Path) -> tuple[Server, str]:
    """Our gateway (with a worker behind it), and the address of the server by hand; both answer."""
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
    return Server("ours", gateway, f"127.0.0.1:{ports[0]}", PATH), f"127.0.0.1:{ports[1]}"


def _trip(cluster: Cluster, concurrency: int, warm_up: int, count: int) -> str:
    numbers = (str(concurrency), str(warm_up), str(count))
    return cluster.start("raw-trip", "-m", "benchmarks.raw_trip", cluster.bootstrap, *_TRIPS, *numbers).wait()
