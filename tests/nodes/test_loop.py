"""`loop.until`: who goes round, who leaves by which port, and what a caller is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.codecs import codec_for
from dataflow.control.assemble import Assembled, assemble
from dataflow.core import headers
from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema
from dataflow.planner.plan import REPLIES
from dataflow.testing import PipelineRun, contract_of, run_node
from dataflow.transport.api import Header
from dataflow.transport.memory_log import MemoryMessage
from nodes.loop import LoopUntil

SCHEMA = Schema.of(n="int64", good=FieldType("bool", nullable=True), x="float64")


def test_the_three_ways_have_the_contract_of_the_input() -> None:
    settings = {"until": "good", "max_visits": 3}
    assert contract_of(LoopUntil, SCHEMA, settings) == {"again": SCHEMA, "done": SCHEMA, "exhausted": SCHEMA}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": "n", "max_visits": 3}, "until: 'n' gives int64 where true or false is needed"),
        ({"until": "m > 1", "max_visits": 3}, "until: .*no field 'm'"),
    ],
)
def test_what_is_no_condition_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        contract_of(LoopUntil, SCHEMA, settings)


@pytest.mark.parametrize("most", [0, -1, 1_000_001, "many"])
def test_a_loop_is_bounded(most: object) -> None:
    with pytest.raises(ValidationError):
        contract_of(LoopUntil, SCHEMA, {"until": "good", "max_visits": most})


def test_null_and_nan_are_not_true() -> None:
    rows = [{"n": n, "good": good, "x": x} for n, (good, x) in enumerate([(True, 1), (False, 1), (None, 1)])]
    found = run_node(LoopUntil, SCHEMA, rows, {"until": "good", "max_visits": 2})
    assert found.parents == {"done": [0], "again": [1, 2], "exhausted": []}
    nan = [{"n": 1, "good": True, "x": float("nan")}]
    found = run_node(LoopUntil, SCHEMA, nan, {"until": "abs(x) < 1", "max_visits": 1})
    assert found.parents == {"done": [], "again": [], "exhausted": [0]}


TOPIC = "kind: Topic\nname: numbers\nkey: name\npartitions: 2\nfields: {name: string, n: int64, left: int64}\n---\n"

COUNTED = """
kind: Pipeline
name: counted
delivery: DELIVERY
inputs: {number: numbers}
answer: {from: [good.done, good.exhausted], input: number}
nodes:
  less: {use: transform.select, from: [number, good.again], with: {set: {left: left - 1}}}
  kept: {use: filter.when, from: less, with: {when: n != 13}}
  good: {use: loop.until, from: kept, with: {until: left <= 0, max_visits: 5}}
  after: {use: transform.select, from: [good.done, good.exhausted], with: {set: {n: n * 2}}}
"""

NESTED = """
kind: Pipeline
name: nested
delivery: DELIVERY
inputs: {number: numbers}
nodes:
  outer: {use: transform.select, from: [number, around.again], with: {set: {left: left + 10}}}
  inner: {use: transform.select, from: [outer, within.again], with: {set: {left: left - 1}}}
  within: {use: loop.until, from: inner, with: {until: "false", max_visits: 3}}
  round: {use: transform.select, from: [within.done, within.exhausted], with: {set: {n: n + 1}}}
  around: {use: loop.until, from: round, with: {until: n >= 4, max_visits: 9}}
"""


def made(folder: Path, pipeline: str, delivery: str) -> Assembled:
    place = folder / "pipelines" / "p"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "dataflow.yaml").write_text("kind: Project\nname: test\n")
    (place / "pipeline.yaml").write_text(TOPIC + pipeline.replace("DELIVERY", delivery).strip("\n") + "\n")
    return assemble(folder, environ={})


@pytest.fixture(scope="module", params=["at_least_once", "exactly_once"])
def counted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Assembled]:
    folder = tmp_path_factory.mktemp("counted")
    return folder, made(folder, COUNTED, request.param)


def rounds_of(start: int) -> int:
    """How often a record comes to the loop's end: once at least, and no more than it may."""
    return min(max(start, 1), 5)


def carried(message: MemoryMessage) -> dict[str, bytes]:
    return dict(message.headers() or ())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(-2, 9)), max_size=15))
def test_every_record_leaves_once_after_the_rounds_it_needs(
    counted: tuple[Path, Assembled], items: list[tuple[str, int, int]]
) -> None:
    folder, assembled = counted
    (plan,) = assembled.plans
    records = [{"name": name, "n": n, "left": left} for name, n, left in items]
    lasting = [item for item in items if item[1] != 13]
    with PipelineRun(folder, plan, assembled.registry) as run:
        run.feed("number", records)
        run.settle()
        result = run.result()
        stored = {
            t: [m for p in run.fabric.stored[t].partitions for m in p.records] for t in run.fabric.stored
        }
    ended: dict[str, list[tuple[str, int, int]]] = {"done": [], "exhausted": []}
    for name, n, start in lasting:
        left = start - rounds_of(start)
        ended["done" if left <= 0 else "exhausted"].append((name, n, left))
    for port, expected in ended.items():
        found = [(r["name"], r["n"], r["left"]) for r in result.edges[f"good.{port}"]]
        assert sorted(found) == sorted(expected)
    assert len(result.edges["good.again"]) == sum(rounds_of(left) - 1 for _, _, left in lasting)
    assert len(result.edges["after"]) == len(lasting)
    # A record keeps its id: with its rounds it is one of a kind, and outside the loop nothing of them is left.
    seen = [(carried(m)[headers.ID], carried(m)[headers.VISITS]) for m in stored["counted.good.again"]]
    assert len(set(seen)) == len(seen)
    for edge in ("good.done", "good.exhausted", "after"):
        assert all(headers.VISITS not in carried(m) for m in stored[f"counted.{edge}"])
    assert result.dropped.get("kept", {}).get("filtered", 0) == len(records) - len(lasting)
    assert not result.dead_letters


@pytest.mark.parametrize(
    ("record", "status", "edge", "left"),
    [
        ({"name": "a", "n": 1, "left": 4}, b"ok", b"good.done", 0),
        ({"name": "a", "n": 1, "left": 99}, b"ok", b"good.exhausted", 94),
        ({"name": "a", "n": 13, "left": 4}, b"dropped", None, None),
    ],
)
def test_a_caller_is_answered_when_the_record_leaves(
    counted: tuple[Path, Assembled],
    record: dict[str, Any],
    status: bytes,
    edge: bytes | None,
    left: int | None,
) -> None:
    folder, assembled = counted
    (plan,) = assembled.plans
    schema, codec = plan.edges["number"].schema, codec_for("avro", plan.edges["number"].schema)
    assert plan.answer is not None
    with PipelineRun(folder, plan, assembled.registry) as run:
        run.feed("number", [{"name": "b", "n": 5, "left": 3}])
        run.feed("number", [record])
        (asked,) = [m for p in run.fabric.stored["numbers"].partitions for m in p.records if m.key() == b"a"]
        producer = run.fabric.producer()
        head: list[Header] = [
            (headers.REPLY_TO, f"{REPLIES}/0/q"),
            (headers.DEADLINE, str(int(run.clock.now_s * 1000) + 60_000)),
        ]
        producer.send(plan.answer.requests_topic, asked.value(), b"a", head)
        producer.close()
        run.settle()
        (reply,) = [m for p in run.fabric.stored[REPLIES].partitions for m in p.records]
    found = carried(reply)
    assert (found[headers.STATUS], found.get(headers.EDGE)) == (status, edge)
    if left is not None:
        decoded = codec.decode([reply.value()])
        assert decoded.columns["left"].tolist() == [left]
    assert schema.names == ("name", "n", "left")


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_an_inner_loop_begins_anew_in_each_round_of_the_outer_one(tmp_path: Path, delivery: str) -> None:
    assembled = made(tmp_path, NESTED, delivery)
    (plan,) = assembled.plans
    with PipelineRun(tmp_path, plan, assembled.registry) as run:
        run.feed("number", [{"name": "a", "n": 0, "left": 0}, {"name": "b", "n": 3, "left": 0}])
        run.settle()
        result = run.result()
        again = [m for p in run.fabric.stored["nested.around.again"].partitions for m in p.records]
    # Each round adds 10 and takes 3 off: four rounds for a, one for b.
    assert sorted((r["name"], r["n"], r["left"]) for r in result.edges["around.done"]) == [
        ("a", 4, 28),
        ("b", 4, 7),
    ]
    assert len(result.edges["within.again"]) == (4 + 1) * 2
    assert [carried(m)[headers.VISITS] for m in again] == [b"nested/around=%d" % n for n in (1, 2, 3)]
