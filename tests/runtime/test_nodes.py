"""What a running node may do wrong, and that its rows are accounted for all the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core import ids
from dataflow.core.batch import Batch, Encoded, Row
from dataflow.core.outcomes import Out
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.observe.metrics import NodeMetrics
from dataflow.planner.plan import NodePlan
from dataflow.runtime.nodes import NodeResult, NodeRunner

SCHEMA = Schema.of(n="int64")
PARENTS = [ids.of_positions(7, [1_000 + i], [i])[0] for i in range(20)]


class Calls:
    def __init__(self, process: Callable[[Batch, Out], None]) -> None:
        self._process = process

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        self._process(batch, out)


def rows_of(*numbers: int) -> Batch:
    rows = [Row(PARENTS[n], b"k", i, reply=b"r", deadline_ms=5, attempt=1) for i, n in enumerate(numbers)]
    return Batch.of(SCHEMA, [{"n": n} for n in numbers], rows)


def run(
    process: Callable[[Batch, Out], None], batch: Batch, schema: Schema = SCHEMA, node: str = "a"
) -> NodeResult:
    outputs = {"out": schema, "side": schema}
    runner = NodeRunner(
        NodePlan(node, "k", {}, {}, {}), Calls(process), outputs, NodeMetrics("p", node, "k"), "p"
    )
    return runner.run(batch, "in")


def failures(result: NodeResult) -> list[tuple[int, str]]:
    return [(loss.row, loss.error) for loss in result.failed]


def emitting(columns: dict[str, Any], **options: Any) -> Callable[[Batch, Out], None]:
    return lambda batch, out: out.emit(columns, **options)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"n": np.zeros(2, np.float64)}, "column 'n' is float64, the contract int64 wants int64"),
        ({"n": np.zeros((2, 3), np.int64)}, "has shape [3] per record, the contract wants []"),
        ({"m": np.zeros(2, np.int64)}, "missing ['n'], not declared ['m']"),
        ({"n": np.zeros(2, np.int64), "m": np.zeros(2, np.int64)}, "not declared ['m']"),
        ({}, "missing ['n']"),
    ],
)
def test_a_broken_contract_fails_each_row_once(columns: dict[str, Any], said: str) -> None:
    result = run(emitting(columns, rows=[0, 1]), rows_of(0, 1))
    assert result.emitted == []
    assert failures(result) == [(0, "ContractBroken"), (1, "ContractBroken")]
    assert said in result.failed[0].reason


def test_a_contract_broken_on_two_ports_fails_each_row_once() -> None:
    def process(batch: Batch, out: Out) -> None:
        out.emit({"n": np.zeros(2)})
        out.emit({"n": np.zeros(2)}, port="side")

    assert failures(run(process, rows_of(0, 1))) == [(0, "ContractBroken"), (1, "ContractBroken")]


def test_a_tensor_of_another_shape_is_refused() -> None:
    schema = Schema((Field("x", FieldType("float32", (2,))),))
    result = run(emitting({"x": np.zeros((1, 3), np.float32)}), rows_of(0), schema)
    assert failures(result) == [(0, "ContractBroken")]


def test_columns_of_unequal_length_fail_the_rows() -> None:
    result = run(emitting({"n": np.zeros(1, np.int64)}), rows_of(0, 1))
    assert failures(result) == [(0, "NodeError"), (1, "NodeError")]
    assert "column 'n' has 1 rows where 2 are emitted" in result.failed[0].reason


def test_an_exception_fails_only_what_is_not_accounted_for() -> None:
    def process(batch: Batch, out: Out) -> None:
        out.emit(batch.take([0]), rows=[0])
        out.drop([1], "no")
        raise KeyError("colour")

    result = run(process, rows_of(0, 1, 2, 3))
    assert [(p, b["n"].tolist()) for p, b in result.emitted] == [("out", [0])]
    assert [loss.row for loss in result.dropped] == [1]
    assert failures(result) == [(2, "KeyError"), (3, "KeyError")]


def test_user_code_that_ends_the_process_fails_its_rows_instead() -> None:
    result = run(lambda batch, out: sys.exit(3), rows_of(0))
    assert failures(result) == [(0, "SystemExit")]


def test_rows_not_accounted_for_fail() -> None:
    assert failures(run(lambda batch, out: out.consume([0]), rows_of(0, 1))) == [(1, "Unaccounted")]


@pytest.mark.parametrize("rows", [[2], [-1], [5]])
def test_rows_outside_the_batch_are_refused(rows: list[int]) -> None:
    result = run(lambda batch, out: out.drop(rows, "x"), rows_of(0, 1))
    assert failures(result) == [(0, "NodeError"), (1, "NodeError")]


def test_one_to_one_keeps_the_row_itself() -> None:
    batch = rows_of(3, 4)
    result = run(lambda batch, out: out.emit(batch), batch)
    assert [r is b for r, b in zip(result.emitted[0][1].rows, batch.rows, strict=True)] == [True, True]


def test_children_have_ids_of_their_own_and_all_else_of_their_parent() -> None:
    batch = rows_of(3)
    result = run(emitting({"n": np.arange(2)}, rows=[0, 0]), batch)
    parent, (first, second) = batch.rows[0], result.emitted[0][1].rows
    assert first.id == ids.child(parent.id, "p/a", "out", 0)
    assert second.id == ids.child(parent.id, "p/a", "out", 1)
    for child in (first, second):
        assert child.parents == (parent.id,)
        kept = ("key", "source", "carry", "reply", "deadline_ms", "attempt")
        assert all(getattr(child, name) == getattr(parent, name) for name in kept)


def spread(plan: Mapping[int, tuple[int, ...]]) -> Callable[[Batch, Out], None]:
    """Emit n, by calls: `plan[n]` says how many records of n go out with each call."""

    def process(batch: Batch, out: Out) -> None:
        numbers = batch["n"].tolist()
        for call in range(3):
            rows = [i for i, n in enumerate(numbers) for _ in range(plan[n][call])]
            if rows:
                out.emit({"n": batch["n"][rows]}, rows=rows)
        out.drop([i for i, n in enumerate(numbers) if not sum(plan[n])], "none")

    return process


@given(
    st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=6).flatmap(
        lambda counts: st.tuples(
            st.just(counts), st.lists(st.booleans(), min_size=len(counts), max_size=len(counts))
        )
    )
)
def test_ids_do_not_depend_on_what_else_is_in_the_batch(
    drawn: tuple[list[tuple[int, int, int]], list[bool]],
) -> None:
    counts, cuts = drawn
    plan = dict(enumerate(counts))
    everything = list(plan)

    def ids_of(groups: list[list[int]]) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for group in groups:
            for _, batch in run(spread(plan), rows_of(*group)).emitted:
                found += zip(batch["n"].tolist(), [r.id for r in batch.rows], strict=True)
        return found

    groups: list[list[int]] = [[]]
    for n, cut in zip(everything, cuts, strict=True):
        groups[-1].append(n)
        if cut:
            groups.append([])
    together = ids_of([everything])
    assert ids_of([g for g in groups if g]) == together
    assert len({i for _, i in together}) == len(together) == sum(map(sum, counts))
    assert all((i == PARENTS[n]) == (sum(plan[n]) == 1) for n, i in together)


def test_wire_bytes_are_kept_only_under_an_equal_contract() -> None:
    batch = rows_of(0)
    batch.encoded = Encoded(b"f", [b"wire"])
    kept = run(lambda b, out: out.emit(b), batch).emitted[0][1].encoded
    assert kept is not None
    assert kept.values == [b"wire"]
    other = Schema((Field("n", FieldType("int64"), doc="another"),))
    assert run(lambda b, out: out.emit(b), batch, other).emitted[0][1].encoded is None


def test_metrics_count_calls_and_records() -> None:
    metrics = NodeMetrics("p", "a", "k")
    runner = NodeRunner(
        NodePlan("a", "k", {}, {}, {}), Calls(lambda b, o: o.consume()), {"out": SCHEMA}, metrics, "p"
    )
    runner.run(rows_of(0, 1, 2), "in")
    assert (metrics.records, sum(metrics.seconds.counts), sum(metrics.batch_records.counts)) == (3, 1, 1)
