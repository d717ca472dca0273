"""`onnx-compute`: a model that takes its time, between two topics, against onnxruntime alone at the same batch; and what
batching is worth at the node itself, with the small model of `onnx`.

Both sides of the first have one thread for the model. Outputs must be equal to onnxruntime's own, and all is committed. The
second calls the node as the engine does, with a batch of the size that it fetches and with one row at a time; no Kafka.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster import Cluster
from benchmarks.onnx_model import TOPIC, fill, measure, plain
from benchmarks.projects import WIDTH, Floats, deployed, inputs, session_of, write, write_model
from benchmarks.report import Outcome, Result, median, tell, tightest
from dataflow.core import limits
from dataflow.core.batch import Batch, Row
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.serving import model_info
from dataflow.testing import build_node
from nodes.onnx import OnnxNode

COMPUTE_GOAL: Final = 0.9
NODE_GOAL: Final = 40.0
# 34 MFLOP a row: some 200 us of one core.
HIDDEN: Final = 4_096
# A topic of its own: what is in it is counted.
_TOPIC = TOPIC.replace("name: vectors", "name: compute.vectors")
_PIPELINE = """
kind: Pipeline
name: {name}
inputs: {{vectors: compute.vectors}}
nodes:
  predict: {{use: model.onnx, from: vectors, with: {{model: mlp}}, keep: []}}
"""


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    records, runs = (1_000, 1) if quick else (20_000, 3)
    names = [f"compute-{number}" for number in range(runs)]
    pipelines = {f"pipelines/{name}/pipeline.yaml": _PIPELINE.format(name=name) for name in names}
    folder = write(cluster.folder / "compute", {"pipelines/topics.yaml": _TOPIC, **pipelines})
    model = write_model(folder / "pipelines/model.onnx", (HIDDEN, HIDDEN))
    rows = inputs(limits.MAX_BATCH_RECORDS)
    expected: Floats = session_of(model).run(["y"], {"x": rows})[0][:, 0]
    plans = deployed(folder, cluster.fabric)
    fill(cluster, plans[names[0]], rows, records)
    ours: list[dict[str, Any]] = []
    alone: list[float] = []
    for name in names:
        alone.append(plain(model, rows, records // len(rows)))
        process = cluster.start_command("worker", folder, "--pipeline", name)
        found = measure(cluster, process, plans[name], expected)
        # Between the first output's time and the last's lies the work of all batches but the first.
        found["rate"] = round((records - len(rows)) / found["seconds"])
        ours.append(found)
        tell(f"{name}: ours {ours[-1]['rate']:,.0f}, onnxruntime alone {alone[-1]:,.0f} records/s")
    rates = [run["rate"] for run in ours]
    each = [rate / raw for rate, raw in zip(rates, alone, strict=True)]
    beside = Result.of("beside onnxruntime alone", median(rates), median(alone), median(each), COMPUTE_GOAL)
    node, by_row = _at_the_node(write_model(folder / "small.onnx"), 20 if quick else 200)
    batched = Result.of("the node beside one row at a time", node, by_row, node / by_row, NODE_GOAL)
    results = {result.name: result for result in (beside, batched)}
    goals = {name: vars(result) for name, result in results.items()}
    goals[beside.name]["spread"] = [round(min(each), 3), round(max(each), 3)]
    raw = {"records": records, "goals": goals, "ours": ours, "onnxruntime": [round(rate) for rate in alone]}
    return Outcome(tightest("onnx-compute", results), "records/s", raw)


def _at_the_node(model: Path, rounds: int) -> tuple[float, float]:
    """Rows per second through the node: in batches as they are fetched, and each row as a batch of its own."""
    schema = Schema.of(x=FieldType("float32", (WIDTH,)))
    info = model_info("mlp", model)
    node = build_node(OnnxNode, schema, {"model": "mlp"}, models=lambda _: info, keep=())
    count = limits.MAX_BATCH_RECORDS
    whole = Batch(schema, {"x": inputs(count)}, [Row(b"", None, n) for n in range(count)])
    rates = []
    for batches in ([whole], [whole.take([n]) for n in range(count)]):
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            for batch in batches:
                node.process(batch, Out(batch, ("out",)))
            times.append(time.perf_counter() - began)
        rates.append(count / median(times))
    getattr(node, "close", lambda: None)()
    batched, single = rates
    return batched, single
