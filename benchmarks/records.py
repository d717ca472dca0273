"""`records`: Avro of ten mixed fields, through a function over numpy columns, to Avro of ten fields.

Beside it Kafka Streams (one thread), which passes the same bytes on and looks into none, and Quix Streams, which does the
same work with its own Avro serializers, a record at a time; its outputs must be the same bytes. At least once, committing
each 100 ms.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.cluster import Cluster, Process
from benchmarks.engines.beside import Engine, Work, compare, outcome_of
from benchmarks.passthrough_peers import start_streams
from benchmarks.peers import python_of
from benchmarks.projects import deployed, write
from benchmarks.report import Outcome
from dataflow.codecs import codec_for
from dataflow.codecs.avro_schema import avro_schema
from dataflow.planner.plan import Plan
from dataflow.transport.api import Header

QUIX_AVRO: Final = "quixstreams[avro]==3.28.1"
PARTITIONS: Final = 4
SOURCE: Final = "bench.readings"
_DISTINCT: Final = 5_000

_TOPIC: Final = f"""
kind: Topic
name: {SOURCE}
partitions: {PARTITIONS}
fields:
  sensor: string
  site: {{type: enum, symbols: [north, south, east, west]}}
  at: timestamp
  count: int64
  ok: bool
  note: {{type: string, nullable: true}}
  gain: float32
  a: float64
  b: float64
  mode: int32
"""
_PIPELINE: Final = """
kind: Pipeline
name: {name}
inputs: {{reading: bench.readings}}
nodes:
  derived:
    use: transform.python
    from: reading
    with: {{call: derived.derived}}
    out:
      sensor: string
      site: {{type: enum, symbols: [north, south, east, west]}}
      at: timestamp
      count: int64
      ok: bool
      note: {{type: string, nullable: true}}
      gain: float32
      total: float64
      spread: float64
      warm: bool
"""
_FUNCTION: Final = '''
import numpy as np

from dataflow.sdk import Batch, Out

KEPT = ("sensor", "site", "at", "count", "ok", "note", "gain")


def derived(batch: Batch, out: Out) -> None:
    """Seven fields as they are, three computed."""
    a, b = batch["a"], batch["b"]
    kept = {name: batch[name] for name in KEPT}
    out.emit({**kept, "total": a * b + batch["count"], "spread": np.abs(a - b), "warm": a > 20.0})
'''


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    """Pairs with each engine."""
    records, pairs, limit_s = (10_000, 1, 8.0) if quick else (400_000, 3, 20.0)
    names = [f"records-{number}" for number in range(2 * pairs)]
    files = {"topics/readings.yaml": _TOPIC}
    for name in names:
        files[f"pipelines/{name}/pipeline.yaml"] = _PIPELINE.format(name=name)
        files[f"pipelines/{name}/derived.py"] = _FUNCTION
    folder = write(cluster.folder / "records", files)
    plan = deployed(folder, cluster.fabric)[names[0]]
    schemas = folder / "schemas.json"
    edges = {"in": "reading", "out": "derived"}
    schemas.write_text(
        json.dumps({way: avro_schema(plan.edges[e].schema, "Record") for way, e in edges.items()})
    )
    _fill(cluster, plan, records)
    engines = engines_of(schemas)
    work = Work(folder, names, "derived", PARTITIONS, records, pairs, limit_s)
    return outcome_of("records", engines, compare(cluster, work, engines))


def engines_of(schemas: Path) -> tuple[Engine, ...]:
    """Those to beat; `schemas` is the file that Quix reads its Avro schemas from."""

    def streams(cluster: Cluster, sink: str, group: str) -> Process:
        return start_streams(cluster, SOURCE, sink, group)

    return (
        Engine("Kafka Streams", 1.0, streams, same=False),
        Engine("Quix Streams", 5.0, partial(_start_quix, schemas)),
    )


def _fill(cluster: Cluster, plan: Plan, records: int) -> None:
    """Some thousand rows over and over, round and round the partitions."""
    edge = plan.edges["reading"]
    codec = codec_for(edge.codec, edge.schema)
    random = np.random.default_rng(11)
    began = datetime(2026, 1, 5, tzinfo=UTC).replace(tzinfo=None)
    notes = random.integers(0, 3, _DISTINCT).tolist()
    rows = {
        "sensor": np.array([f"sensor-{n:05d}" for n in random.integers(0, 99_999, _DISTINCT)], dtype=object),
        "site": np.array(["north", "south", "east", "west"], dtype=object)[random.integers(0, 4, _DISTINCT)],
        "at": np.array([began + timedelta(seconds=n) for n in range(_DISTINCT)], dtype="datetime64[us]"),
        "count": random.integers(0, 1_000_000, _DISTINCT),
        "ok": random.random(_DISTINCT) < 0.9,
        "note": np.array([None if n else f"note {n}" for n in notes], dtype=object),
        "gain": random.random(_DISTINCT).astype(np.float32),
        "a": random.normal(20.0, 5.0, _DISTINCT),
        "b": random.normal(20.0, 5.0, _DISTINCT),
        "mode": random.integers(0, 8, _DISTINCT).astype(np.int32),
    }
    values = codec.encode(rows, _DISTINCT).values
    producer = cluster.fabric.producer(latency_first=False)
    for number in range(records):
        headers: list[Header] = [("df-schema", codec.fingerprint)]
        producer.send(SOURCE, values[number % _DISTINCT], None, headers, number % PARTITIONS)
    producer.close()


def _start_quix(schemas: Path, cluster: Cluster, sink: str, group: str) -> Process:
    module = ("-m", "benchmarks.engines.quix_records", cluster.bootstrap, SOURCE, sink, group, str(schemas))
    return cluster.start("quix", *module, python=python_of(QUIX_AVRO))
