"""Joins whose sides come of different stages: what they give, what their callers are told, whatever comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.core import headers, limits
from dataflow.core.inprocess import Reply
from dataflow.core.shares import read_share
from dataflow.gateway.correlation import Correlator
from dataflow.gateway.replies import reply_of
from dataflow.planner.plan import CONTROL, DEAD_LETTERS, REPLIES, Plan
from dataflow.registry import Registry
from dataflow.testing import PipelineRun
from dataflow.testing.pipelines import START_S
from dataflow.transport.api import Header
from nodes.batching import BatchWindow
from nodes.join import JoinAny, JoinById
from tests.runtime.kit import Scripted, add_one, encoded, make_plan, pass_on

KINDS = Registry.of(Scripted, add_one, pass_on, JoinById, JoinAny)
BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])

# `b` is a stage of its own, and so is `c` behind it. What each does is in the record.
TEXT = """
inputs: {records: records}
answer: {from: [end], input: records}
delivery: DELIVERY
nodes:
  a: {use: test.script, from: records, retry: {backoff: 1ms}}
  b: {use: test.script, from: records, retry: {backoff: 1ms}ALONE}
  c: {use: test.script, from: b}
  both:
    use: JOIN
    from: {a: a, c: c}
    with: WITH
  end: {use: test.pass, from: both}
"""
OUTER = "{how: outer, select: {c: [n]}, prefix: {c: c_}, missing: without}"
INNER = "{select: {c: [n]}, prefix: {c: c_}}"


def diamond(
    folder: Path,
    options: str = OUTER,
    *,
    join: str = "join.by_id",
    delivery: str = "at_least_once",
    cut: bool = True,
) -> Plan:
    text = TEXT.replace("WITH", options).replace("JOIN", join).replace("DELIVERY", delivery)
    text = text.replace("ALONE", ", isolate: true" if cut else "")
    return make_plan(folder, text, registry=KINDS)


def identity(number: int) -> bytes:
    return b"018cc251-f400-7000-8000-%012d" % number


@dataclass
class Run:
    """A pipeline on a log in memory whose stages are turned one by one, with callers who wait."""

    folder: Path
    plan: Plan
    run: PipelineRun = field(init=False)
    told: dict[int, Reply] = field(default_factory=dict)
    replies: int = 0

    def __enter__(self) -> Run:
        self.run = PipelineRun(self.folder, self.plan, KINDS)
        self.run.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.run.__exit__()

    def restart(self) -> None:
        """All stages stop and are opened again, with what the changelog has."""
        self.run._stack.close()
        self.run._loops.clear()
        self.run.__enter__()

    def ask(
        self, actions: Sequence[str], first: int = 0, *, deadline_s: float = 30, attempt: int = 0
    ) -> None:
        """Write requests, numbered from `first`; each `do` is what nodes do with it."""
        producer = self.run.fabric.producer()
        deadline = str(int((self.run.clock() + deadline_s) * 1000))
        values = encoded([(first + n, do) for n, do in enumerate(actions)])
        for number, value in enumerate(values, first):
            found: list[Header] = [
                (headers.ID, identity(number)),
                (headers.REPLY_TO, f"{REPLIES}/0/{number}"),
            ]
            found += [(headers.DEADLINE, deadline)]
            if attempt:
                found.append((headers.ATTEMPT, str(attempt)))
            producer.send("records", value, b"k%d" % (number % 7), found)
        producer.close()

    def turn(self, *stages: str) -> None:
        """Let stages do all they can, in this order."""
        named = {s.name: loop for s, loop in zip(self.plan.stages, self.run._loops, strict=True)}
        for stage in stages:
            for _ in range(20):
                named[stage].turn(0)
                named[stage].commit_now()

    def records(self, edge: str) -> list[dict[str, Any]]:
        return self.run.result().edges[edge]

    def outcomes(self) -> dict[int, str]:
        """What each caller was told, by number: `ok`, or the status and why. One answer each."""
        waiting: Correlator[Reply] = Correlator()
        found: dict[int, str] = {}
        for message in self.run._messages([REPLIES]):
            reply = reply_of(message)
            assert reply is not None
            number = int(reply.record_id)
            if number not in found and reply.record_id not in waiting._rows:
                waiting.open(reply.record_id, [reply.record_id], 1 << 60, 0)
            if reply.share:
                grave = reply.status == headers.STATUS_FAILED
                ended = waiting.give_back(reply.record_id, read_share(reply.share), reply, grave=grave)
            else:
                ended = waiting.resolve(reply.record_id, reply, good=reply.good)
            if ended is not None and ended.results[0] is not None:
                told = ended.results[0]
                found[number] = "ok" if told.good else f"{told.status}: {told.why()['reason']}"
        return found

    def said(self) -> list[tuple[str, str, str]]:
        """What stages said on the control topic: edge, reason and error."""
        assert self.plan.control is not None
        return [(r["edge"], r["reason"], r["error"]) for r in self.run._read(self.plan.control)[0]]

    def letters(self) -> list[str]:
        return sorted(
            dict(m.headers() or ())[headers.ERROR_NODE].decode().partition("/")[2]
            for m in self.run._messages([DEAD_LETTERS])
        )


def seen(run: Run) -> dict[int, list[str]]:
    """The results by number, each with the sides it is without."""
    found = run.records("both")
    numbers = [r["n"] if r["n"] is not None else r["c_n"] for r in found]
    assert len(numbers) == len(set(numbers)), "joined twice"
    return {n: r["without"] for n, r in zip(numbers, found, strict=True)}


# ---------------------------------------------------------------- either order


@BOTH
@pytest.mark.parametrize(
    "order",
    [
        ("a", "b", "c", "both"),
        ("b", "c", "a", "both"),
        ("a", "both", "b", "c", "both"),
        ("b", "c", "both", "a", "both"),
    ],
)
def test_the_sides_come_in_either_order(tmp_path: Path, delivery: str, order: tuple[str, ...]) -> None:
    with Run(tmp_path, diamond(tmp_path, delivery=delivery)) as run:
        run.ask(
            [
                "pass",
                "a:drop",
                "b:drop",
                "a:fail",
                "b:fail",
                "b:side",
                "a:drop,b:fail",
                "c:drop",
                "a:fail,b:drop",
            ]
        )
        run.turn(*order)
        assert seen(run) == {0: [], 1: ["a"], 2: ["c"], 3: ["a"], 4: ["c"], 5: ["c"], 7: ["c"]}
        assert run.outcomes() == {
            **dict.fromkeys([0, 1, 2, 3, 4, 5, 7], "ok"), 6: "failed: cannot be", 8: "failed: cannot be"
        }  # fmt: skip
        assert run.letters() == ["a", "a", "b", "b"]
        assert set(run.records("both")[0]) == {"n", "do", "c_n", "without"}


FATES = st.sampled_from(["pass", "drop", "fail", "retry", "never", "side", "raise"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(st.tuples(FATES, FATES, FATES), min_size=1, max_size=8),
    options=st.sampled_from([OUTER, INNER, "{how: outer, required: [c], select: {c: [n]}, prefix: {c: c_}}"]),
    delivery=st.sampled_from(["at_least_once", "exactly_once"]),
    order=st.permutations(["a", "b", "c", "both"]),
)
def test_cut_or_whole_a_diamond_gives_the_same(
    tmp_path: Path, fates: list[tuple[str, ...]], options: str, delivery: str, order: list[str]
) -> None:
    actions = [",".join(f"{n}:{f}" for n, f in zip("abc", row, strict=True)) for row in fates]
    found = []
    for cut in (False, True):
        with Run(tmp_path, diamond(tmp_path, options, delivery=delivery, cut=cut)) as run:
            run.ask(actions)
            if cut:
                stages = {s.name for s in run.plan.stages}
                run.turn(*(name for name in order if name in stages))
            run.run.settle()
            result = run.run.result()
            by_id = {
                edge: dict(zip(result.ids[edge], result.edges[edge], strict=True)) for edge in ("both", "end")
            }
            told = {n: text.partition(":")[0] for n, text in run.outcomes().items()}
            buried = {dict(m.headers() or ())[headers.ID] for m in run.run._messages([DEAD_LETTERS])}
            found.append((by_id, told, buried, len(run.records("both"))))
    assert found[0] == found[1]


# ---------------------------------------------------------------- what will not come


def test_what_ends_two_stages_before_is_known_too(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.ask(["b:drop", "c:drop", "pass"])
        run.turn("a", "b", "both")
        assert seen(run) == {0: ["c"]}
        run.turn("c", "both")
        assert seen(run) == {0: ["c"], 1: ["c"], 2: []}
        assert sorted(run.said()) == [("b", "not wanted", ""), ("c", "not wanted", "")]
        assert run.outcomes() == dict.fromkeys(range(3), "ok")


def test_both_sides_end_and_the_caller_hears_of_the_failure(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path, INNER)) as run:
        run.ask(["a:drop,b:drop", "a:drop,b:fail", "a:fail,b:drop", "b:drop"])
        run.turn("a")
        assert run.outcomes() == {}
        run.turn("both")
        assert run.outcomes() == {}
        run.turn("b", "c", "both")
        assert run.outcomes() == {
            0: "dropped: not wanted", 1: "failed: cannot be", 2: "failed: cannot be", 3: "dropped: not wanted"
        }  # fmt: skip
        assert run.run.result().dropped["both"] == {"no a, c": 3, "no c": 1}
        assert len(run.letters()) == 2


def test_a_request_that_expires_on_one_side(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.ask(["pass"], deadline_s=1)
        run.turn("a", "both")
        run.run.clock.advance(2)
        run.turn("b", "c", "both")
        assert run.said() == [("b", "expired", "")]
        assert seen(run) == {0: ["c"]}


def test_a_record_that_a_join_cannot_read_closes_its_side(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.ask(["pass"])
        run.turn("a", "both")
        producer = run.run.fabric.producer()
        producer.send("p.c", b"\xff", b"k0", [(headers.ID, identity(0))])
        producer.close()
        run.turn("both")
        assert seen(run) == {0: ["c"]}
        assert ("c", "CodecError") in [(edge, error) for edge, _, error in run.said()]


# ---------------------------------------------------------------- time, doubles


def test_the_time_to_wait_is_over(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path, OUTER.replace("missing", "wait: 2s, missing"))) as run:
        run.ask(["pass", "b:drop"])
        run.turn("a", "both")
        assert seen(run) == {}
        run.run.clock.advance(3)
        run.turn("both")
        assert seen(run) == {0: ["c"], 1: ["c"]}
        run.turn("b", "c", "both")
        assert seen(run) == {0: ["c"], 1: ["c"]}
        assert run.run.result().dropped["both"] == {"late": 1}
        assert run.outcomes() == {0: "ok", 1: "ok"}


def test_without_a_time_a_caller_is_waited_for_until_his_deadline(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.ask(["pass"], deadline_s=7)
        run.turn("a", "both")
        assert run.run._loops[-1].timer_ms == int((START_S + 7) * 1000)
        run.run.clock.advance(8)
        run.turn("both")
        assert seen(run) == {0: ["c"]}


def test_a_record_nobody_waits_for_may_come_for_a_day(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.run.feed("records", [{"n": 0, "do": "pass"}])
        run.turn("a", "both")
        assert run.run._loops[-1].timer_ms == int(START_S * 1000) + limits.EDGE_RETENTION_MS


def test_at_the_end_of_bounded_inputs_nothing_waits(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path)) as run:
        run.ask(["pass"])
        run.turn("a", "both")
        run.run.end()
        assert seen(run) == {0: []}


def test_parts_that_are_written_twice(tmp_path: Path) -> None:
    """A worker that is killed before its commit writes all again: before, after, and while the others come."""
    with Run(tmp_path, diamond(tmp_path, INNER)) as run:
        run.ask(["pass", "b:drop"])
        run.turn("a", "both")
        again(run, "p.a", "both")
        run.turn("b", "c", "both")
        again(run, "p.c", "both")
        again(run, "p.a", "both")
        again(run, "p.control", "both")
        assert [r["n"] for r in run.records("both")] == [0]
        assert run.outcomes() == {0: "ok", 1: "dropped: not wanted"}
        assert run.run.result().dropped["both"] == {"late": 7, "no c": 1}


def again(run: Run, topic: str, stage: str) -> None:
    producer = run.run.fabric.producer()
    for message in run.run._messages([topic]):
        producer.send(topic, message.value(), message.key(), list(message.headers() or ()))
        run.turn(stage)
    producer.close()


def test_a_redriven_record_is_joined_anew(tmp_path: Path) -> None:
    with Run(tmp_path, diamond(tmp_path, INNER)) as run:
        run.ask(["b:retry"])
        run.run.settle()
        run.ask(["pass"], attempt=1)
        run.run.settle()
        assert [r["n"] for r in run.records("both")] == [0, 0]
        assert Counter(run.outcomes().values()) == {"ok": 1}


# ---------------------------------------------------------------- restarts


@BOTH
def test_what_waits_survives_a_restart(tmp_path: Path, delivery: str) -> None:
    plan = diamond(tmp_path, delivery=delivery)
    with Run(tmp_path, plan) as run:
        run.ask(["pass", "b:drop", "a:drop"])
        run.turn("a", "both")
        run.restart()
        run.run.settle()
        assert seen(run) == {0: [], 1: ["c"], 2: ["a"]}
        assert run.outcomes() == dict.fromkeys(range(3), "ok")


# ---------------------------------------------------------------- shapes


def test_several_edges_feed_a_side(tmp_path: Path) -> None:
    """Hard ones go to a stage of their own, easy ones do not; which way one went is known for each."""
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [both], input: records}
nodes:
  which: {use: test.script, from: records}
  base: {use: test.pass, from: records}
  hard: {use: test.script, from: which.side, isolate: true}
  both: {use: join.by_id, from: {score: [which, hard], base: base}, with: {select: {score: []}, how: outer, required: [base], missing: without}}
""",
        registry=KINDS,
    )
    with Run(tmp_path, plan) as run:
        run.ask(
            ["pass", "which:side", "which:side,hard:drop", "which:drop", "which:both", "which:both,hard:drop"]
        )
        run.turn("which", "both")
        assert sorted(r["n"] for r in run.records("both")) == [0, 3]
        run.turn("hard", "both")
        found = {r["n"]: r["without"] for r in run.records("both")}
        assert found == {0: [], 1: [], 2: ["score"], 3: ["score"], 5: []}
        # Both ways had it: which of them is meant cannot be known, as in one stage.
        assert run.letters() == ["both"]
        told = run.outcomes()
        assert told.pop(4).startswith("failed: side 'score' has more than one")
        assert told == dict.fromkeys([0, 1, 2, 3, 5], "ok")


def test_the_first_side_in_order_wins_whichever_comes_first(tmp_path: Path) -> None:
    plan = diamond(tmp_path, "{side: by}", join="join.any")
    with Run(tmp_path, plan) as run:
        run.ask(["pass", "a:drop", "b:drop", "a:fail,b:drop"])
        run.turn("b", "c", "both")
        run.turn("a", "both")
        assert {r["n"]: r["by"] for r in run.records("both")} == {0: "a", 1: "c", 2: "a"}
        assert run.outcomes() == {0: "ok", 1: "ok", 2: "ok", 3: "failed: cannot be"}


def test_joins_follow_joins(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [abc], input: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.script, from: records, isolate: true}
  c: {use: test.script, from: records, isolate: true}
  ab: {use: join.by_id, from: {a: a, b: b}, with: {select: {b: []}, how: outer, missing: m}}
  on: {use: test.script, from: ab}
  abc: {use: join.by_id, from: {ab: on, c: c}, with: {select: {c: []}, how: outer, required: [c], missing: n_without}}
""",
        registry=KINDS,
    )
    joins = [n for n, node in plan.nodes.items() if node.apart]
    assert joins == ["ab", "abc"]
    with Run(tmp_path, plan) as run:
        actions = ["a:drop,b:drop", "b:drop", "on:drop", "on:fail", "c:drop", "pass"]
        run.ask(actions)
        run.turn("a", "c", "b", "abc", "ab", "abc")
        found = [(r["n"], r["m"], r["n_without"]) for r in run.records("abc")]
        assert sorted(found, key=str) == [
            (1, ["b"], []),
            (5, [], []),
            (None, None, ["ab"]),
            (None, None, ["ab"]),
            (None, None, ["ab"]),
        ]
        assert run.outcomes() == {
            **dict.fromkeys([0, 1, 2, 3, 5], "ok"), 4: "dropped: not wanted"
        }  # fmt: skip


# ---------------------------------------------------------------- callers of several stages


@pytest.mark.parametrize("order", [("b", "c"), ("c", "b")])
@BOTH
def test_a_request_that_goes_to_two_stages_is_refused_when_both_have_nothing(
    tmp_path: Path, delivery: str, order: tuple[str, str]
) -> None:
    plan = make_plan(
        tmp_path,
        f"""
inputs: {{records: records}}
answer: {{from: [b, c], input: records}}
delivery: {delivery}
nodes:
  a: {{use: test.script, from: records}}
  b: {{use: test.script, from: a, isolate: true}}
  c: {{use: test.script, from: [a, a.side], isolate: true}}
""",
        registry=KINDS,
    )
    with Run(tmp_path, plan) as run:
        actions = [
            "b:drop",
            "c:drop",
            "b:drop,c:drop",
            "b:drop,c:fail",
            "a:drop",
            "a:side,c:drop",
            "a:both,c:drop",
            "a:both,b:drop,c:drop",
        ]
        run.ask(actions)
        run.turn("a", order[0])
        early = {4: "dropped: not wanted"}
        early |= {1: "ok", 6: "ok"} if order[0] == "b" else {0: "ok", 5: "dropped: not wanted"}
        assert run.outcomes() == early
        run.turn(order[1])
        assert run.outcomes() == {
            0: "ok", 1: "ok", 2: "dropped: not wanted", 3: "failed: cannot be", 4: "dropped: not wanted",
            5: "dropped: not wanted", 6: "ok", 7: "dropped: not wanted",
        }  # fmt: skip


def test_a_request_of_which_a_part_is_retried(tmp_path: Path) -> None:
    """One branch has left when the other comes to nothing: what is kept for it is given back."""
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [c, e], input: records}
nodes:
  a: {use: test.script, from: records}
  c: {use: test.script, from: a, isolate: true}
  d: {use: test.script, from: a, retry: {backoff: 10s, backoff_max: 10s}}
  e: {use: test.script, from: d, isolate: true}
""",
        registry=KINDS,
    )
    with Run(tmp_path, plan) as run:
        run.ask(["c:drop,d:never", "c:drop,d:retry", "c:drop,d:retry,e:drop", "c:drop", "d:never"])
        run.turn("a", "c", "e")
        assert run.outcomes() == {3: "ok", 4: "ok"}
        run.run.settle()
        assert run.outcomes() == {0: "failed: not now", 1: "ok", 2: "dropped: not wanted", 3: "ok", 4: "ok"}


def test_children_of_a_request_that_go_on_are_all_waited_for(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [b], input: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.script, from: a, isolate: true}
""",
        registry=KINDS,
    )
    with Run(tmp_path, plan) as run:
        run.ask(["a:children,b:drop", "a:children"])
        run.run.settle()
        assert run.outcomes() == {0: "dropped: not wanted", 1: "ok"}
        assert len(run.run._messages([REPLIES])) == 4


def test_what_is_dropped_behind_a_join_is_told(tmp_path: Path) -> None:
    """Also where the join had all of the caller at once, and where nobody says what became of the record."""
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [said], input: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.script, from: a.side, isolate: true}
  end: {use: test.script, from: a, isolate: true}
  last: {use: join.any, from: {end: end, b: b}}
  said: {use: test.script, from: last}
""",
        registry=KINDS,
    )
    with Run(tmp_path, plan) as run:
        run.ask(
            [
                "said:drop",
                "a:side,said:drop",
                "a:both,said:drop",
                "a:both,said:consume",
                "said:fail",
                "pass",
            ]
        )
        run.run.settle()
        assert run.outcomes() == {
            0: "dropped: not wanted", 1: "dropped: not wanted", 2: "dropped: not wanted",
            3: "dropped: the request ended on a branch without an answer", 4: "failed: cannot be", 5: "ok",
        }  # fmt: skip


def test_stages_that_close_nothing_say_nothing(tmp_path: Path) -> None:
    plan = diamond(tmp_path, cut=False)
    assert (plan.control, [s.closes for s in plan.stages]) == (None, [()])
    assert CONTROL not in plan.edges


# ---------------------------------------------------------------- a side that is held in the same stage

HELD = """
inputs: {records: records}
answer: {from: [both], input: records}
delivery: DELIVERY
nodes:
  slow: {use: batch.window, from: records, with: {size: 3, wait: 10s}}
  fast: {use: test.pass, from: records}
  both: {use: join.by_id, from: {fast: fast, slow: slow}, with: {select: {slow: [n]}, prefix: {slow: slow_}}}
"""


@BOTH
def test_a_join_waits_for_a_side_that_is_held_in_its_own_stage(tmp_path: Path, delivery: str) -> None:
    kinds = Registry.of(Scripted, add_one, pass_on, JoinById, BatchWindow)
    plan = make_plan(tmp_path, HELD.replace("DELIVERY", delivery), registry=kinds)
    with PipelineRun(tmp_path, plan, kinds) as run:
        producer = run.fabric.producer()
        for number, value in enumerate(encoded([(n, "pass") for n in range(4)])):
            producer.send("records", value, b"k", [(headers.ID, identity(number))], partition=0)
        run.settle()
        assert sorted(r["slow_n"] for r in run.result().edges["both"]) == [0, 1, 2]
        run.clock.advance(10)
        run.settle()
        assert sorted(r["slow_n"] for r in run.result().edges["both"]) == [0, 1, 2, 3]
        assert run.result().dropped.get("both", {}) == {}


def test_what_is_held_before_the_branches_needs_no_cut(tmp_path: Path) -> None:
    kinds = Registry.of(Scripted, add_one, pass_on, JoinById, BatchWindow)
    text = HELD.replace("DELIVERY", "at_least_once").replace(
        "fast: {use: test.pass, from: records}", "fast: {use: test.pass, from: slow}"
    )
    assert len(make_plan(tmp_path, text, registry=kinds).stages) == 1
