"""`sync-durable`, `sync-eager`, `sync-committed`: a caller waits at the HTTP door of one process that is gateway and worker.

All servers have the same small ONNX model and get the same V2 JSON. Ours writes every request and every answer to Kafka:
`durable` answers once the answer's record is acknowledged, `eager` once it is computed, `committed` once the transaction
that holds it is through.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.cluster import Cluster, wait_until
from benchmarks.projects import deployed, inputs, session_of, write, write_model
from benchmarks.report import BenchmarkError, Outcome
from benchmarks.servers import catalogue
from benchmarks.servers.catalogue import V2, Model, Peer
from benchmarks.servers.duel import Duels, Goal, Length, ceiling, outcome
from benchmarks.servers.load import Load, json_body, wrong
from benchmarks.servers.running import Server, await_answer, start_ours
from dataflow.planner.plan import Plan

BODIES: Final = 64
NAME: Final = "mlp"

_PROJECT = """
kind: Topic
name: vectors
fields: {{x: "float32[32]"}}
---
kind: Model
name: mlp
file: model.onnx
---
kind: Pipeline
name: mlp
delivery: {delivery}
inputs: {{vectors: vectors}}
answer: {{from: predict, when: {when}}}
nodes:
  predict: {{use: model.onnx, from: vectors, with: {{model: mlp}}, keep: []}}
"""


@dataclass(frozen=True)
class Scene:
    """Ours, running and answering, and what all are asked."""

    ours: Server
    plan: Plan
    model: Model
    load: Load


def scene(cluster: Cluster, when: str, delivery: str = "at_least_once") -> Scene:
    """Deploy the pipeline, start ours, and wait for its first answer."""
    folder = write(
        cluster.folder / f"sync-{when}",
        {"pipelines/mlp/pipeline.yaml": _PROJECT.format(when=when, delivery=delivery)},
    )
    model = Model(NAME, write_model(folder / "pipelines/mlp/model.onnx"))
    rows = inputs(BODIES)
    expected = tuple(float(y) for y in session_of(model.path).run(["y"], {"x": rows})[0][:, 0])
    load = Load("", V2.format(model=NAME), tuple(json_body(row[None]) for row in rows), expected)
    plan = deployed(folder, cluster.fabric)[NAME]
    ours = start_ours(cluster, folder, load.path)
    await_answer(ours, lambda server: ask_http(server, load))
    return Scene(ours, plan, model, load)


def ask_http(server: Server, load: Load) -> str:
    """What is wrong with the server's answer to the first body; empty for nothing."""
    url = f"http://{server.address}{server.path}"
    request = urllib.request.Request(url, load.bodies[0], dict(load.headers))
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            head = "".join(
                f"{k}: {v}\r\n" for k, v in answer.headers.items() if k.lower() != "transfer-encoding"
            )
            body = answer.read()
            return wrong(f"x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body, load.expected[0])
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read()[:500].decode(errors='replace')}"
    except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
        return repr(error)


def run_durable(cluster: Cluster, *, quick: bool) -> Outcome:
    """Against every peer; a goal beside MLServer counts for both ways to run it."""
    here = catalogue
    goals = (
        Goal(here.KSERVE, 1, "p50", 1 / 0.6),
        Goal(here.TRITON, 32, "rate", 1.0),
        Goal(here.MLSERVER, 32, "rate", 6.0),
        Goal(here.MLSERVER_ALONE, 32, "rate", 6.0),
    )
    return _against(cluster, "sync-durable", "durable", goals, here.ALL, quick=quick)


def run_eager(cluster: Cluster, *, quick: bool) -> Outcome:
    """Against the server written by hand; beside it the one that has written what ours writes, when it answers."""
    hand = catalogue.HAND_WRITTEN
    goals = (Goal(hand, 1, "p50", 1 / 1.5), Goal(hand, 32, "rate", 0.8))
    peers = (hand, catalogue.HAND_WRITTEN_DURABLE)
    return _against(cluster, "sync-eager", "eager", goals, peers, quick=quick)


def _against(
    cluster: Cluster, name: str, when: str, goals: Sequence[Goal], peers: Sequence[Peer], *, quick: bool
) -> Outcome:
    length = Length.of(quick=quick)
    there = scene(cluster, when)
    duels = Duels(there.model, there.load, length, ask_http)
    client = ceiling(cluster, there.load, length)
    found = duels.against(cluster, there.ours, peers)
    all_committed(cluster, there.plan)
    return outcome(name, goals, found, **{"ceiling of the client": client})


def all_committed(cluster: Cluster, plan: Plan) -> None:
    """Every request that was sent is read and committed. Raises BenchmarkError."""
    if plan.answer is None:
        raise BenchmarkError("the pipeline has no answer")
    topic, group = plan.answer.requests_topic, plan.stages[0].group
    end = sum(cluster.ends(topic).values())
    if not end:
        raise BenchmarkError(f"no request reached '{topic}'")
    wait_until(
        lambda: cluster.committed(group, topic) >= end, f"the commit of all {end} records of '{topic}'"
    )
