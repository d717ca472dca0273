"""Every row ends exactly once, whatever the graph, the outcomes and the retries; time is moved by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import Batch, Row
from dataflow.core.outcomes import Out
from dataflow.core.schema import Schema
from dataflow.observe.metrics import NodeMetrics
from dataflow.planner.plan import NodePlan, RetryPolicy
from dataflow.runtime.execution import Ended, Execution, Program
from dataflow.runtime.nodes import NodeRunner
from dataflow.runtime.waiting import backoff_ms

SCHEMA = Schema.of(n="int64")
# What a node does with a row: attempts that fail first, then the end of it.
Fate = tuple[int, str]
FATES = st.tuples(
    st.sampled_from([0, 0, 0, 1, 2, 5]),
    st.sampled_from(["out", "out", "side", "both", "drop", "fail", "consume"]),
)


@dataclass
class Fated:
    """Does with each row what was drawn for it, and notes the time of each attempt."""

    fates: Mapping[int, Fate]
    tries: Counter[int] = field(default_factory=Counter)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        for index, n in enumerate(batch["n"].tolist()):
            failures, end = self.fates[n]
            self.tries[n] += 1
            row = batch.take([index])
            if self.tries[n] <= failures:
                out.fail([index], "not now", retryable=True)
            elif end in {"out", "side", "both"}:
                for name in {"both": ("out", "side")}.get(end, (end,)):
                    out.emit(row, rows=[index], port=name)
            elif end == "drop":
                out.drop([index], "unwanted")
            elif end == "fail":
                out.fail([index], "broken")
            else:
                out.consume([index])


POLICY = RetryPolicy(3, 10, 15)


def program_of(parents: list[tuple[int, str]], fates: list[dict[int, Fate]]) -> Program:
    """A tree: node i reads port `parents[i][1]` of node `parents[i][0]` (-1: the input)."""
    runners = tuple(
        NodeRunner(
            NodePlan(f"n{i}", "k", {}, {}, {"out": f"n{i}.out", "side": f"n{i}.side"}, retry=POLICY),
            Fated(fate),
            {"out": SCHEMA, "side": SCHEMA},
            NodeMetrics("p", f"n{i}", "k"),
            "p",
        )
        for i, fate in enumerate(fates)
    )
    feeds: dict[str, list[tuple[int, str]]] = {}
    for i, (parent, port) in enumerate(parents):
        feeds.setdefault("in" if parent < 0 else f"n{parent}.{port}", []).append((i, "in"))
    return Program(runners, {e: tuple(f) for e, f in feeds.items()}, tuple(r.plan.outputs for r in runners))


def rows_of(keys: list[int]) -> Batch:
    rows = [
        Row(f"{i:08x}-0000-7000-8000-000000000000".encode(), f"k{k}".encode(), i) for i, k in enumerate(keys)
    ]
    return Batch.of(SCHEMA, [{"n": i} for i in range(len(keys))], rows)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[int, str]], list[dict[int, Fate]], list[int]]:
    keys = draw(st.lists(st.integers(0, 2), min_size=1, max_size=8))
    size = draw(st.integers(1, 4))
    parents = [(-1, "out")]
    for i in range(1, size):
        parents.append((draw(st.integers(-1, i - 1)), draw(st.sampled_from(["out", "side"]))))
    fates = [{n: draw(FATES) for n in range(len(keys))} for _ in range(size)]
    return parents, fates, keys


def fed(program: Program, batch: Batch) -> Execution:
    execution = Execution(program)
    execution.feed("in", batch)
    return execution


def run(program: Program, batch: Batch) -> tuple[Execution, list[int]]:
    execution = fed(program, batch)
    now_ms, times = 1_000, []
    while not execution.over:
        now_ms = max(now_ms, execution.due_ms)
        times.append(now_ms)
        execution.step(now_ms)
        assert execution.over or execution.due_ms > now_ms
    return execution, times


def expected(
    program: Program, fates: list[dict[int, Fate]], count: int
) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int, str]]]:
    """By the naive model: each row on its own, depth first."""
    written: Counter[tuple[str, int]] = Counter()
    ended: Counter[tuple[str, int, str]] = Counter()

    def enter(edge: str, n: int) -> None:
        for node, _ in program.feeds.get(edge, ()):
            failures, end = fates[node][n]
            if failures >= POLICY.attempts:
                ended[f"n{node}", n, "not now"] += 1
            elif end in {"out", "side", "both"}:
                for port in {"both": ("out", "side")}.get(end, (end,)):
                    written[f"n{node}.{port}", n] += 1
                    enter(f"n{node}.{port}", n)
            elif end != "consume":
                ended[f"n{node}", n, {"drop": "unwanted", "fail": "broken"}[end]] += 1

    for n in range(count):
        enter("in", n)
    return written, ended


@given(graphs())
def test_every_row_ends_as_the_naive_model_says_and_keys_keep_their_order(
    drawn: tuple[list[tuple[int, str]], list[dict[int, Fate]], list[int]],
) -> None:
    parents, fates, keys = drawn
    program = program_of(parents, fates)
    execution, times = run(program, rows_of(keys))
    written = Counter((e, int(n)) for e, batch in execution.written for n in batch["n"])
    ended = Counter((x.node, x.row.source, x.reason) for x in execution.ended)
    assert (written, ended) == expected(program, fates, len(keys))
    by_edge: dict[str, dict[bytes, list[int]]] = {}
    for edge, batch in execution.written:
        for row in batch.rows:
            by_edge.setdefault(edge, {}).setdefault(row.key or b"", []).append(row.source)
    for edge, by_key in by_edge.items():
        for key, sources in by_key.items():
            assert sources == sorted(sources), (edge, key)
    assert times == sorted(times)
    assert times[-1] - times[0] <= len(fates) * (10 + 15)


def test_rows_behind_a_retried_one_of_another_key_do_not_wait() -> None:
    fates: list[dict[int, Fate]] = [{0: (1, "out"), 1: (0, "out"), 2: (0, "out")}]
    program = program_of([(-1, "out")], fates)
    execution = fed(program, rows_of([0, 1, 0]))
    execution.step(1_000)
    assert [b["n"].tolist() for _, b in execution.written] == [[1]]
    assert execution.due_ms == 1_010
    execution.step(1_009)
    assert len(execution.written) == 1
    execution.step(1_010)
    assert execution.over
    assert [n for _, b in execution.written for n in b["n"].tolist()] == [1, 0, 2]


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(9, 100, 1_000)
    assert [backoff_ms(policy, n) for n in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]
    assert backoff_ms(RetryPolicy(2, 50, 0), 3) == 50


def test_an_edge_nobody_of_this_stage_reads_ends_there() -> None:
    execution, _ = run(program_of([(-1, "out")], [{0: (0, "side")}]), rows_of([0]))
    assert [(e, len(b)) for e, b in execution.written] == [("n0.side", 1)]
    assert execution.ended == []


def test_metrics_count_drops_failures_and_retries() -> None:
    program = program_of([(-1, "out")], [{0: (2, "drop"), 1: (9, "out"), 2: (0, "fail")}])
    execution, _ = run(program, rows_of([0, 1, 2]))
    metrics = program.runners[0].metrics
    assert metrics.retries == 4
    assert metrics.dropped.counts == {"unwanted": 1}
    assert metrics.failed.counts == {"NodeError": 2}
    assert {type(e) for e in execution.ended} == {Ended}


def test_waits_grow_to_their_limit_and_jitter_shortens_them_the_same_way_each_time() -> None:
    plain = RetryPolicy(9, 100, 1_000)
    assert [backoff_ms(plain, n) for n in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]
    shaken = RetryPolicy(9, 100, 1_000, 0.5)
    waits = {backoff_ms(shaken, 3, f"row {n}".encode()) for n in range(200)}
    assert len(waits) > 50
    assert all(200 <= wait <= 400 for wait in waits)
    assert backoff_ms(shaken, 3, b"row 1") == backoff_ms(shaken, 3, b"row 1")


def test_a_clock_that_goes_back_makes_no_wait_longer() -> None:
    program = program_of([(-1, "out")], [{0: (1, "out"), 1: (0, "out")}])
    execution = fed(program, rows_of([0, 1]))
    hour_ms = 3_600_000
    execution.step(hour_ms)
    execution.step(1_000)
    wait_ms = backoff_ms(POLICY, 1)
    assert execution.due_ms == 1_000 + wait_ms
    execution.step(1_000 + wait_ms - 1)
    assert execution.due_ms == 1_000 + wait_ms
    execution.step(1_000 + wait_ms)
    assert execution.over
    assert sorted(n for _, b in execution.written for n in b["n"].tolist()) == [0, 1]


@pytest.mark.parametrize("honoured", [True, False])
def test_a_row_that_waited_beyond_its_deadline_is_not_run_again(honoured: bool) -> None:
    """The one behind it is, and what was held back for its key goes out."""
    program = program_of([(-1, "out")], [{0: (0, "out"), 1: (2, "out"), 2: (1, "out"), 3: (1, "out")}])
    rows = [
        Row(f"{i:08x}-0000-7000-8000-000000000000".encode(), b"k", i, reply=reply, deadline_ms=1_010)
        for i, reply in enumerate([b"r/0", b"r/1", b"", b"r/3"])
    ]
    rows[3] = Row(rows[3].id, b"k", 3, reply=b"r/3", deadline_ms=9_999)
    execution = Execution(program, deadlines=honoured)
    execution.feed("in", Batch.of(SCHEMA, [{"n": i} for i in range(4)], rows))
    for now_ms in (1_000, 1_010, 1_025):
        execution.step(now_ms)
    assert execution.over
    ended = [(x.row.source, x.reason, x.error) for x in execution.ended]
    assert ended == ([(1, "expired", "")] if honoured else [])
    written = sorted(n for _, b in execution.written for n in b["n"].tolist())
    assert written == ([0, 2, 3] if honoured else [0, 1, 2, 3])
    assert program.runners[0].metrics.dropped.counts == ({"expired": 1} if honoured else {})


def test_records_of_one_source_are_in_their_order_after_a_retry() -> None:
    """Children of one record, and what a timer made at once: they have no place in the log of their own."""
    program = program_of([(-1, "out")], [{0: (0, "out"), 1: (2, "out"), 2: (1, "out"), 3: (0, "out")}])
    rows = [Row(f"{i:08x}-0000-7000-8000-000000000000".encode(), b"k", 0) for i in range(4)]
    execution, _ = run(program, Batch.of(SCHEMA, [{"n": i} for i in range(4)], rows))
    assert [n for _, batch in execution.written for n in batch["n"].tolist()] == [0, 1, 2, 3]
