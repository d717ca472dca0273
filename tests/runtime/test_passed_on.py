"""Exactly once, a request that goes on to another stage is committed at once: only then does that stage see it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dataflow.core import headers
from dataflow.planner.plan import REPLIES, Plan
from dataflow.testing import PipelineRun
from tests.runtime.kit import REGISTRY, encoded, make_plan

TEXT = """
delivery: exactly_once
inputs: {records: records}
answer: {from: [b]}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.pass, from: a, isolate: true}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tmp_path, TEXT)


@pytest.mark.parametrize(
    ("waits", "what", "seen"), [(True, "pass", 1), (False, "pass", 0), (True, "drop", 0)]
)
def test_what_a_caller_waits_for_is_committed_before_its_time(
    tmp_path: Path, plan: Plan, waits: bool, what: str, seen: int
) -> None:
    with PipelineRun(tmp_path, plan, REGISTRY) as run:
        first = run._loops[0]
        first.turn(0)
        first._parts.commit_every_ms = 1_000_000_000
        first._committed_at = time.monotonic()
        producer = run.fabric.producer()
        (value,) = encoded([(1, what)])
        head = [(headers.REPLY_TO, f"{REPLIES}/0/q")] if waits else []
        producer.send("p.requests", value, b"k", [*head])
        producer.close()
        for _ in range(4):
            first.turn(0)
        (part,) = run.fabric.stored["p.a"].partitions
        assert len(part.records) == seen
        # One that ends here is committed too: its caller is told after the commit.
        committed = run.fabric.admin().group_offsets(plan.stages[0].group, [("p.requests", 0)])
        assert bool(committed.get(("p.requests", 0))) == waits
