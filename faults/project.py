"""The project under test, as files: two pipelines of records (exactly once, at least once) and two that answer callers.

`story` says what every edge has to hold; both are written apart from the engine, from its documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

# Longer than any fault takes.
HANDED_DEADLINE_S: Final = 120.0
FACTORS: Final = (1.0, 2.0, 4.0, 8.0)
"""What version 0, 1, ... of the model multiplies by."""
TOO_LARGE: Final = 1_100_000
SILENCE_MS: Final = 2_000
"""A key that has no record for so long, in event time, is told of: see pipeline `kept`."""
WINDOW_MS: Final = 5_000
STEP_MS: Final = 10
"""Event time between two records."""

_KINDS = '''
"""Kinds of the project's own: what goes wrong in them is said by the record."""

import os
import time
from pathlib import Path

import numpy as np

from dataflow.sdk import Batch, NodeContext, Out, Settings, node

GATE = Path(os.environ.get("FAULTS_FOLDER", ".")) / "slow"


class Tag:
    """twice is set. Kind 5 fails for ever, kind 6 the first time it is seen, kind 7 becomes too large.

    While there is a file `slow`, a batch takes the seconds that it says.
    """

    def __init__(self, settings: Settings, context: NodeContext) -> None:
        self._seen: set[int] = set()

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        if GATE.exists():
            time.sleep(float(GATE.read_text() or 0))
        kind, n = batch["kind"], batch["n"]
        bad = np.flatnonzero(kind == 5)
        late = np.array([r for r in np.flatnonzero(kind == 6).tolist() if int(n[r]) not in self._seen], dtype=int)
        self._seen.update(n[late].tolist())
        good = np.setdiff1d(np.arange(len(batch)), np.concatenate([bad, late]))
        if len(bad):
            out.fail(bad.tolist(), "kind 5 never works")
        if len(late):
            out.fail(late.tolist(), "not yet", retryable=True)
        if not len(good):
            return
        taken = batch.take(good)
        columns = {**taken.columns, "twice": taken["n"] * np.int64(2)}
        for row in np.flatnonzero(taken["kind"] == 7).tolist():
            columns["word"] = columns["word"].copy()
            columns["word"][row] = "x" * TOO_LARGE
        out.emit(columns, rows=good)


node("work.tag")(Tag)
'''.replace("TOO_LARGE", str(TOO_LARGE))

_FIELDS = (
    'word: string, n: int64, turn: int64, kind: int32, twice: int64, x: "float32[4]", parts: list<int32>'
)
_TOPICS = f"""
kind: Topic
name: flow.events
key: word
partitions: 4
fields: {{{_FIELDS}}}
---
kind: Topic
name: plain.events
key: word
partitions: 4
fields: {{{_FIELDS}}}
---
kind: Topic
name: kept.events
key: word
partitions: 4
fields:
  word: string
  n: int64
  turn: int64
  kind: int32
  lot: string
  at: {{type: timestamp, event_time: true}}
---
kind: Topic
name: holes.events
key: word
cleanup: compact
fields: {{word: string, n: int64}}
---
kind: Topic
name: doomed.events
key: word
fields: {{word: string, n: int64}}
---
kind: Topic
name: asked.events
partitions: 2
fields: {{n: int64}}
---
kind: Topic
name: handed.events
partitions: 2
fields: {{n: int64}}
---
kind: Model
name: total
file: total.onnx
"""
_RETRY = "retry: {attempts: 5, backoff: 20ms, backoff_max: 100ms}"
_FLOW = f"""
kind: Pipeline
name: flow
inputs: {{events: flow.events}}
delivery: exactly_once
nodes:
  sane:   {{use: filter.when, from: events, with: {{when: kind != 3, reason: kind 3}}}}
  score:  {{use: model.onnx, from: sane, with: {{model: total, inputs: [x]}}, keep: [n]}}
  tag:    {{use: work.tag, from: sane, {_RETRY}}}
  both:   {{use: join.by_id, from: {{score: score, tag: tag}}, with: {{select: {{score: [y]}}}}}}
  pieces: {{use: each.split, from: both, with: {{field: parts, as: part}}, keep: [n]}}
  worth:  {{use: filter.when, from: pieces, with: {{when: part != 4, reason: part 4}}}}
  whole:
    use: each.gather
    from: {{items: worth, of: pieces.parents}}
    with: {{fields: [part], on_missing: "null", missing: gone}}
    keep: [word, n, turn, kind, twice, y]
  last:   {{use: transform.select, from: whole, with: {{set: {{thrice: n * 3}}}}, isolate: true}}
"""
_PLAIN = f"""
kind: Pipeline
name: plain
inputs: {{events: plain.events}}
nodes:
  tag:  {{use: work.tag, from: events, {_RETRY}}}
  next: {{use: filter.when, from: tag, with: {{when: kind != 3, reason: kind 3}}, isolate: true}}
"""
_TALLY = '''
"""Counts and sums by key; and says of each key when it was silent for a while."""

from typing import TypedDict

from dataflow.sdk import Fail, KeyedContext, Timer


class Row(TypedDict):
    n: int
    seen: int
    total: int
    silent: bool


class Tally:
    def process(self, row: dict, context: KeyedContext) -> Row:
        state = context.state
        seen, total = state.get("seen", 0) + 1, state.get("total", 0) + row["n"]
        state.set("seen", seen)
        state.set("total", total)
        state.map("marks")[str(row["n"] % 7)] = row["n"]
        context.timer.at_event_time(context.event_time_ms + SILENCE_MS, name="silence")
        state.set("last", row["n"])
        if row["kind"] == 5:
            raise Fail("kind 5 never works, and changes nothing")
        return {"n": row["n"], "seen": seen, "total": total, "silent": False}

    def on_timer(self, timer: Timer, context: KeyedContext) -> Row:
        state = context.state
        return {"n": state.get("last"), "seen": state.get("seen"), "total": state.get("total"), "silent": True}
'''.replace("SILENCE_MS", str(SILENCE_MS))
_KEPT = f"""
kind: Pipeline
name: kept
inputs: {{events: kept.events}}
delivery: exactly_once
nodes:
  tally:  {{use: transform.python, from: events, with: {{call: tally.Tally}}}}
  loud:   {{use: filter.when, from: tally, with: {{when: silent, reason: not silent}}}}
  window:
    use: window.tumbling
    from: events
    with:
      size: {WINDOW_MS}ms
      aggregate: {{records: count, total: sum(n), n: max(n)}}
  lots:   {{use: rekey, from: events, with: {{key: lot, on_null: drop}}}}
  counted: {{use: filter.when, from: lots, with: {{when: kind != 3, reason: kind 3}}}}
"""
_SEEN = """
kind: Pipeline
name: {name}
inputs: {{events: {name}.events}}
delivery: exactly_once
nodes:
  seen: {{use: filter.when, from: events, with: {{when: n >= 0}}}}
"""
_ASKED = """
kind: Pipeline
name: {name}
inputs: {{question: {name}.events}}
answer: {{from: done}}
delivery: {delivery}
deadline: {deadline}
nodes:
  done: {{use: transform.select, from: question, with: {{set: {{answer: n * 3 + 1}}}}}}
"""


def write_project(folder: Path) -> Path:
    """Write everything but the model's later versions; `folder` is given back."""
    files = {
        "dataflow.yaml": "kind: Project\nname: faults\n",
        "nodes/work.py": _KINDS,
        "topics/topics.yaml": _TOPICS,
        "pipelines/flow/pipeline.yaml": _FLOW,
        "pipelines/plain/pipeline.yaml": _PLAIN,
        "pipelines/kept/pipeline.yaml": _KEPT,
        "pipelines/kept/tally.py": _TALLY,
        "pipelines/asked/pipeline.yaml": _ASKED.format(name="asked", delivery="exactly_once", deadline="20s"),
        "pipelines/handed/pipeline.yaml": _ASKED.format(
            name="handed", delivery="at_least_once", deadline=f"{HANDED_DEADLINE_S:.0f}s"
        ),
        "pipelines/holes/pipeline.yaml": _SEEN.format(name="holes"),
        "pipelines/doomed/pipeline.yaml": _SEEN.format(name="doomed"),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_model(folder, 0)
    return folder


def write_model(folder: Path, version: int) -> None:
    """The model of this version: x float32 [N, 4] -> y [N, 1], the sum times the version's factor."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights: Any = numpy_helper.from_array(np.full((4, 1), FACTORS[version], dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    fresh = folder / "topics" / ".total.onnx.swp"
    onnx.save(model, str(fresh))
    fresh.replace(folder / "topics" / "total.onnx")
