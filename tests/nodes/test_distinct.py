"""`distinct`: each record once, by where it comes from, by its id, or by fields."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dataflow.codecs import codec_for
from dataflow.codecs.values import coerce_records
from dataflow.control.assemble import assemble
from dataflow.core import headers, ids
from dataflow.core.errors import ContractError
from dataflow.core.schema import Schema
from dataflow.testing import PipelineRun, contract_of
from dataflow.transport.api import Header
from nodes.distinct import DistinctNode

YAML = """
kind: Topic
name: things
key: n
partitions: 2
fields: {{name: string, n: int64}}
---
kind: Pipeline
name: once
inputs: {{thing: things}}
nodes:
  once: {{use: distinct, from: thing, with: {settings}}}
"""
SCHEMA = Schema.of(name="string", n="int64")


def run_of(folder: Path, settings: str) -> PipelineRun:
    (folder / "pipelines").mkdir()
    (folder / "pipelines/once.yaml").write_text(YAML.format(settings=settings))
    assembled = assemble(folder, environ=os.environ)
    return PipelineRun(folder, assembled.plans[0], assembled.registry)


def send(run: PipelineRun, n: int, head: list[Header], key: bytes | None = b"k") -> None:
    edge = run.plan.edges["thing"]
    decoded = coerce_records(edge.schema, [{"name": "a", "n": n}])
    (value,) = codec_for(edge.codec, edge.schema).encode(decoded.columns, 1).values
    producer = run.fabric.producer()
    producer.send("things", value, key, head, 0)
    producer.close()
    run.settle()


def numbers(run: PipelineRun) -> list[Any]:
    return [r["n"] for r in run.result().edges["once"]]


def test_by_source_with_or_without_a_key(tmp_path: Path) -> None:
    with run_of(tmp_path, "{within: 1m}") as run:
        for n, source in enumerate([b"in/0/7/a:0", b"in/0/7/a:1", b"in/0/7/a:0", b"in/1/7/a:0"]):
            send(run, n, [(headers.SOURCE, source)])
            send(run, 10 + n, [(headers.SOURCE, source)], key=None)
        # Without a source it is the id that counts; none of the three has one of its own.
        send(run, 5, [])
        send(run, 5, [])
        send(run, 6, [(headers.SOURCE, b"")])
        assert numbers(run) == [0, 10, 1, 11, 3, 13, 5, 5, 6]
        assert run.result().dropped == {"once": {"repeated": 2}}
        # Remembered for so long, and no longer.
        run.clock.advance(59)
        send(run, 7, [(headers.SOURCE, b"in/0/7/a:0")])
        run.clock.advance(2)
        send(run, 8, [(headers.SOURCE, b"in/0/7/a:0")])
        assert numbers(run)[-1] == 8
        assert 7 not in numbers(run)


def test_by_id(tmp_path: Path) -> None:
    record_id = ids.mint(1_700_000_000_000)
    with run_of(tmp_path, "{by: id}") as run:
        for n in range(3):
            send(run, n, [(headers.ID, record_id)])
        send(run, 3, [(headers.ID, ids.mint(1_700_000_000_000))])
        assert numbers(run) == [0, 3]


def test_by_fields_also_within_one_batch(tmp_path: Path) -> None:
    with run_of(tmp_path, "{by: [n], within: 1h}") as run:
        run.feed("thing", [{"name": name, "n": n} for name, n in [("a", 1), ("b", 1), ("c", 2), ("d", 1)]])
        run.settle()
        assert sorted(numbers(run)) == [1, 2]


def test_its_contract_is_that_of_its_input() -> None:
    assert contract_of(DistinctNode, SCHEMA, {}) == {"out": SCHEMA}
    with pytest.raises(ContractError, match=r"no field 'm'.*did you mean|no field 'm'"):
        contract_of(DistinctNode, SCHEMA, {"by": ["name", "m"]})
