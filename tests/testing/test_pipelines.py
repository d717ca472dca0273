"""Fused or cut, in one batch or many, with or without a restart: the same records on every edge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.core import limits
from dataflow.core.errors import CodecError, NodeError
from dataflow.planner.plan import Plan
from dataflow.testing.pipelines import PipelineRun, RunResult, run_pipeline
from tests.runtime.kit import REGISTRY, make_plan

PIPELINE = """
inputs: {{records: records}}
nodes:
  a: {{use: test.script, from: records, retry: {{attempts: 4, backoff: 1s}}{cut}}}
  b: {{use: test.add, from: a{cut}}}
  c: {{use: test.script, from: b, retry: {{attempts: 4, backoff: 2s}}{cut}}}
  d: {{use: test.pass, from: a.side{cut}}}
  e: {{use: test.script, from: c{cut}}}
"""
ACTIONS = st.lists(
    st.builds(
        "{}:{}".format,
        st.sampled_from("ace"),
        st.sampled_from(
            ["pass", "side", "both", "children", "drop", "fail", "never", "retry", "consume", "forget"]
        ),
    ),
    max_size=2,
    unique_by=lambda text: text[0],
).map(lambda parts: ",".join(parts) or "pass")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Plan]]:
    made = {}
    for name, cut in (("fused", ""), ("cut", ", isolate: true")):
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, make_plan(folder, PIPELINE.format(cut=cut), partitions=3))
    assert [len(plan.stages) for _, plan in made.values()] == [1, 5]
    return made


def by_key(result: RunResult) -> dict[str, dict[int, list[tuple[str, dict[str, Any]]]]]:
    """What is on each edge: by key (an input's n, which `test.add` moves by one), in order."""
    found: dict[str, dict[int, list[tuple[str, dict[str, Any]]]]] = {}
    for edge, records in result.edges.items():
        keyed = defaultdict(list)
        for record_id, record in zip(result.ids[edge], records, strict=True):
            keyed[record["n"] % 1_000].append((record_id, record))
        found[edge] = dict(keyed)
    return found


def records_of(actions: Sequence[str]) -> list[dict[str, Any]]:
    """Three keys; those of `test.add` stay apart."""
    return [{"n": (i % 3) * 10, "do": do} for i, do in enumerate(actions)]


@given(st.lists(ACTIONS, min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_fused_or_cut_in_whatever_batches(
    plans: dict[str, tuple[Path, Plan]], actions: list[str], size: int
) -> None:
    records = records_of(actions)
    found = []
    for folder, plan in plans.values():
        for batch_records in (size, 500):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(limits, "MAX_BATCH_RECORDS", batch_records)
                found.append(by_key(run_pipeline(folder, plan, REGISTRY, {"records": records})))
    assert found[0]["records"]
    for other in found[1:]:
        assert other == found[0]


@given(st.lists(ACTIONS, min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_every_record_ends_somewhere(plans: dict[str, tuple[Path, Plan]], actions: list[str]) -> None:
    """Each input is on an edge that nobody reads, in the dead letters, dropped, or taken in by a node."""
    folder, plan = plans["fused"]
    result = run_pipeline(folder, plan, REGISTRY, {"records": records_of(actions)})
    failing = sum(any(f":{f}" in do for f in ("fail", "never", "forget")) for do in actions)
    assert len(result.dead_letters) <= failing
    dropped = sum(sum(d.values()) for d in result.dropped.values())
    consumed = sum(":consume" in do for do in actions)
    ended = (
        len(result.dead_letters)
        + dropped
        + consumed
        + sum(len(result.edges[e]) for e in ("c.side", "d", "e", "e.side"))
    )
    assert ended >= len(actions)


def test_feeding_and_settling_again(plans: dict[str, tuple[Path, Plan]]) -> None:
    folder, plan = plans["cut"]
    with PipelineRun(folder, plan, REGISTRY) as run:
        for n in range(3):
            run.feed("records", [{"n": n, "do": "pass"}])
            run.settle()
            assert sorted(r["n"] for r in run.result().edges["e"]) == list(range(1, n + 2))


def test_retries_move_the_clock_and_nothing_sleeps(plans: dict[str, tuple[Path, Plan]]) -> None:
    folder, plan = plans["fused"]
    with PipelineRun(folder, plan, REGISTRY) as run:
        started = run.clock()
        run.feed("records", [{"n": 1, "do": "a:retry"}])
        run.settle()
        assert len(run.result().edges["a"]) == 1
        assert run.clock() - started == pytest.approx(1 + 2, abs=0.01)


def test_a_dead_letter_says_where_and_why(plans: dict[str, tuple[Path, Plan]]) -> None:
    folder, plan = plans["fused"]
    letter = run_pipeline(folder, plan, REGISTRY, {"records": [{"n": 1, "do": "c:fail"}]}).dead_letters[0]
    assert (letter.node, letter.error, letter.message) == ("c", "Impossible", "cannot be")


def test_what_cannot_be_fed_is_said(plans: dict[str, tuple[Path, Plan]]) -> None:
    folder, plan = plans["fused"]
    with pytest.raises(NodeError, match=r"has no input 'recrods'.*did you mean 'records'"):
        run_pipeline(folder, plan, REGISTRY, {"recrods": []})
    with pytest.raises(NodeError, match="has no input 'a'"):
        run_pipeline(folder, plan, REGISTRY, {"a": []})
    with pytest.raises(CodecError, match=r"input 'records': record 2: .*'n'"):
        run_pipeline(folder, plan, REGISTRY, {"records": [{"n": 1, "do": "x"}, {"n": "one", "do": "x"}]})
