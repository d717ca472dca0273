"""`onnx`: a small model between two topics, against the same engine handing it one record at a time.

Beside it, for scale: plain onnxruntime in memory at the batch that the engine fetches (no Kafka, no codec). Outputs
of both engines must be equal to onnxruntime's own on the same rows, and committed offsets at the end.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.cluster import Cluster, Process
from benchmarks.projects import Floats, deployed, inputs, session_of, write, write_model
from benchmarks.report import BenchmarkError, Outcome, Result, median, tell
from dataflow.codecs import codec_for
from dataflow.core import limits
from dataflow.planner.plan import Plan

GOAL: Final = 10.0
SOURCE: Final = "vectors"
# Rows that repeat: their answers are known beforehand.
DISTINCT: Final = 1_000
TOPIC = """
kind: Topic
name: vectors
fields: {x: "float32[32]"}
---
kind: Model
name: mlp
file: model.onnx
"""
_PIPELINE = """
kind: Pipeline
name: onnx-{run}
inputs: {{vectors: vectors}}
nodes:
  predict: {{use: model.onnx, from: vectors, with: {{model: mlp}}, keep: []}}
"""


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs of runs in turn. The slow side is given the first part of the records only, and a topic of its own."""
    records, few, pairs = (20_000, 2_000, 1) if quick else (400_000, 20_000, 3)
    pipelines = {
        f"pipelines/{side}{n}/pipeline.yaml": _PIPELINE.format(run=f"{side}{n}")
        for n in range(pairs)
        for side in ("batch", "single")
    }
    folder = write(cluster.folder / "onnx", {"pipelines/topics.yaml": TOPIC, **pipelines})
    model = write_model(folder / "pipelines/model.onnx")
    rows = inputs(DISTINCT)
    expected: Floats = session_of(model).run(["y"], {"x": rows})[0][:, 0]
    plans = deployed(folder, cluster.fabric)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    alone: list[float] = []
    fill(cluster, plans["onnx-batch0"], rows, few)
    for n in range(pairs):
        plan = plans[f"onnx-single{n}"]
        process = cluster.start(
            "single", "-m", "benchmarks.one_by_one", str(folder), cluster.bootstrap, plan.pipeline
        )
        theirs.append(measure(cluster, process, plan, expected))
    fill(cluster, plans["onnx-batch0"], rows, records - few, few)
    for n in range(pairs):
        plan = plans[f"onnx-batch{n}"]
        process = cluster.start_command("worker", folder, "--pipeline", plan.pipeline)
        ours.append(measure(cluster, process, plan, expected))
        alone.append(plain(model, rows[:1].repeat(limits.MAX_BATCH_RECORDS, axis=0)))
        tell(f"run {n}: ours {ours[-1]['rate']:,.0f}, one by one {theirs[n]['rate']:,.0f} records/s")
    value, baseline = median([r["rate"] for r in ours]), median([r["rate"] for r in theirs])
    raw = {
        "records": records, "batch_records": limits.MAX_BATCH_RECORDS,
        "onnxruntime_rows_per_second": [round(p) for p in alone],
        "ratio_to_onnxruntime": round(value / median(alone), 4), "ours": ours, "one_by_one": theirs,
    }  # fmt: skip
    return Outcome(Result.of("onnx", value, baseline, value / baseline, GOAL), "records/s", raw)


def fill(cluster: Cluster, plan: Plan, rows: Floats, count: int, start: int = 0) -> None:
    """So many records, the rows over and over."""
    edge = plan.edges[SOURCE]
    codec = codec_for(edge.codec, edge.schema)
    values = codec.encode({"x": rows}, len(rows)).values
    producer = cluster.fabric.producer(latency_first=False)
    for number in range(start, start + count):
        producer.send(
            edge.topics[0],
            values[number % len(values)],
            str(number).encode(),
            [("df-schema", codec.fingerprint)],
            0,
        )
    producer.close()


def measure(cluster: Cluster, process: Process, plan: Plan, expected: Floats) -> dict[str, Any]:
    """Until all is committed. Raises BenchmarkError for outputs that are not those expected."""
    seen = cluster.follow(process, plan.stages[0].group, plan.edges[SOURCE].topics[0])
    process.stop()
    values: list[bytes] = []
    edge = plan.edges["predict"]
    content = cluster.read(edge.topics[0], lambda message: values.append(message.value()))
    wanted = seen[-1].committed
    if content.records != wanted:
        raise BenchmarkError(f"{plan.pipeline}: {content.records} of {wanted} records")
    decoded = codec_for(edge.codec, edge.schema).decode(values)
    difference = np.abs(decoded.columns["y"] - np.resize(expected, wanted)).max()
    if decoded.failed or difference > 1e-5:
        raise BenchmarkError(f"{plan.pipeline}: outputs differ from the model's by up to {difference}")
    return {
        "rate": round(content.rate), "seconds": content.seconds, "records": content.records,
        "rss_mb": round(max(p.rss_mb for p in seen), 1), "max_difference": float(difference),
    }  # fmt: skip


def plain(model: Path, batch: Floats, runs: int = 500) -> float:
    """Rows per second of onnxruntime alone."""
    session = session_of(model)
    started = time.perf_counter()
    for _ in range(runs):
        session.run(["y"], {"x": batch})
    return runs * len(batch) / (time.perf_counter() - started)
