"""Gathers whose children come of another stage: fused or cut the same, and what is late, missing, failed or there twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.core import headers, limits
from dataflow.core.batch import Batch
from dataflow.core.schema import Field, FieldType, Schema, column_of
from dataflow.planner.plan import REPLIES, Plan
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, NodeContext, Out, Settings, node
from dataflow.state.changelog import VALUE, decode_key
from dataflow.testing import PipelineRun
from dataflow.testing.pipelines import START_S
from dataflow.transport.api import Header
from nodes.each import EachGather, EachSplit
from nodes.join import JoinById
from nodes.rekey import RekeyRecords
from tests.runtime import test_apart
from tests.runtime.kit import Scripted, add_one, make_plan, pass_on
from tests.runtime.test_apart import again, identity

KINDS = Registry.of(Scripted, add_one, pass_on, JoinById, EachSplit, EachGather, RekeyRecords)
BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
TOPIC = (
    "kind: Topic\nname: {name}\nkey: n\npartitions: {partitions}\n"
    "fields: {{n: int64, do: string, items: {{type: list, items: {{type: string}}}}}}\n"
)

# What each node does with a record, or a child, is written in it.
TEXT = """
inputs: {records: records}
answer: {from: [end], input: records}
delivery: DELIVERY
nodes:
  first: {use: test.script, from: records}
  split: {use: each.split, from: first, with: {field: items, as: do}, keep: [n]}
  item: {use: test.script, from: split, retry: {backoff: 1ms}ALONE}
  more: {use: test.script, from: item}
  own: {use: test.script, from: split.parents}
  all:
    use: each.gather
    from: {items: more, of: own}
    with: WITH
    keep: [n]
  end: {use: test.pass, from: all}
"""
NULL = '{fields: {done: do}, on_missing: "null", missing: lacking}'
FAIL = "{fields: {done: do}}"


def family(
    folder: Path, options: str = NULL, *, delivery: str = "at_least_once", cut: bool = True, **more: Any
) -> Plan:
    text = TEXT.replace("WITH", options).replace("DELIVERY", delivery)
    text = text.replace("ALONE", ", isolate: true" if cut else "")
    return make_plan(folder, text, registry=KINDS, topic=TOPIC, **more)


class Run(test_apart.Run):
    """A run of records that are lists."""

    def __enter__(self) -> Run:
        self.run = PipelineRun(self.folder, self.plan, KINDS)
        self.run.__enter__()
        return self

    def bring(self, *records: tuple[str, Sequence[str]], first: int = 0, deadline_s: float = 0) -> None:
        """Write records of (what is done with it, what with each of its children), numbered from `first`."""
        edge = self.plan.edges["records"]
        rows = [{"n": first + n, "do": do, "items": list(items)} for n, (do, items) in enumerate(records)]
        values = (
            codec_for(edge.codec, edge.schema).encode(Batch.of(edge.schema, rows).columns, len(rows)).values
        )
        producer = self.run.fabric.producer()
        for number, value in enumerate(values, first):
            found: list[Header] = [(headers.ID, identity(number))]
            if deadline_s:
                deadline = int((self.run.clock() + deadline_s) * 1000)
                found += [
                    (headers.REPLY_TO, f"{REPLIES}/0/{number}"),
                    (headers.DEADLINE, str(deadline)),
                ]
            producer.send("records", value, b"k%d" % number, found)
        producer.close()

    def gathered(self, edge: str = "all") -> dict[int, tuple[list[Any], list[int]]]:
        """By number: what was done with the children, and which are missing."""
        found = self.records(edge)
        numbers = [r["n"] for r in found]
        assert len(numbers) == len(set(numbers)), "gathered twice"
        return {r["n"]: (r["done"], r.get("lacking", [])) for r in found}

    def kept(self) -> list[str]:
        """What is in the state yet, but for the marks of what is over."""
        stage = next(s for s in self.plan.stages if "all" in s.nodes)
        left = {m.key(): m.value() for m in self.run._messages([stage.changelog])}
        entries = [decode_key(key) for key, value in left.items() if value is not None]
        return [name for kind, _, _, name in entries if (kind, name) != (VALUE, "family")]

    def lost(self, node: str = "all") -> dict[str, int]:
        return self.run.result().dropped.get(node, {})


# ---------------------------------------------------------------- what comes of them


@BOTH
@pytest.mark.parametrize(
    "order",
    [
        ("first", "item", "more", "all"),
        ("first", "all", "item", "all", "more", "all"),
        ("first", "item", "all", "more", "all"),
    ],
)
def test_children_come_together_whatever_comes_first(
    tmp_path: Path, delivery: str, order: tuple[str, ...]
) -> None:
    with Run(tmp_path, family(tmp_path, delivery=delivery)) as run:
        run.bring(
            ("pass", ["pass", "retry", "pass"]),
            ("pass", []),
            ("pass", ["item:drop", "more:fail", "item:side", "pass"]),
            ("own:drop", ["pass", "pass"]),
            ("pass", ["item:fail"]),
            ("first:drop", ["pass"]),
            deadline_s=30,
        )
        run.turn(*order)
        run.run.settle()
        assert run.gathered() == {
            0: (["pass", "retry", "pass"], []),
            1: ([], []),
            2: ([None, None, None, "pass"], [0, 1, 2]),
            4: ([None], [0]),
        }
        assert run.outcomes() == {
            **dict.fromkeys([0, 1, 2, 4], "ok"), 3: "dropped: no parent", 5: "dropped: not wanted"
        }  # fmt: skip
        assert run.letters() == ["item", "more"]
        assert run.lost() == {"no of": 2, "no parent": 2}
        assert not run.kept()


def test_what_is_missing_fails_the_record_if_that_is_the_policy(tmp_path: Path) -> None:
    with Run(tmp_path, family(tmp_path, FAIL)) as run:
        run.bring(("pass", ["pass", "item:drop"]), ("pass", ["pass"]), deadline_s=30)
        run.run.settle()
        assert run.gathered() == {1: (["pass"], [])}
        assert run.outcomes() == {0: "failed: 1 of 2 items are missing: 1", 1: "ok"}
        assert run.letters() == ["all"]


FATES = st.sampled_from(["pass", "drop", "fail", "retry", "never", "side", "raise"])
CHILDREN = st.lists(st.tuples(FATES, FATES), max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(st.tuples(FATES, FATES, CHILDREN), min_size=1, max_size=6),
    options=st.sampled_from([NULL, FAIL, "{fields: {done: do}, on_missing: skip}"]),
    delivery=st.sampled_from(["at_least_once", "exactly_once"]),
    order=st.permutations(["first", "item", "more", "all"]),
)
def test_cut_or_whole_a_family_gives_the_same(
    tmp_path: Path, fates: list[tuple[str, str, Any]], options: str, delivery: str, order: list[str]
) -> None:
    records = [
        (f"first:{first},own:{own}", [f"item:{item},more:{more}" for item, more in children])
        for first, own, children in fates
    ]
    found = []
    for cut in (False, True):
        with Run(tmp_path, family(tmp_path, options, delivery=delivery, cut=cut)) as run:
            run.bring(*records, deadline_s=30)
            if cut:
                run.turn(*order)
            run.run.settle()
            result = run.run.result()
            by_id = {
                edge: dict(zip(result.ids[edge], result.edges[edge], strict=True))
                for edge in ("split", "item", "more", "all", "end")
            }
            told = {n: text.partition(":")[0] for n, text in run.outcomes().items()}
            found.append((by_id, told, len(run.records("all"))))
            if cut:
                assert not run.kept()
    assert found[0] == found[1]


def test_ten_thousand_children(tmp_path: Path) -> None:
    """In order, with the answer to the caller though each child had a share of him."""
    children = [f"item:{'drop' if n % 1000 == 7 else 'pass'},{n}:x" for n in range(10_000)]
    with Run(tmp_path, family(tmp_path)) as run:
        run.bring(("pass", children), deadline_s=30)
        run.run.settle()
        done, lacking = run.gathered()[0]
        assert lacking == list(range(7, 10_000, 1000))
        assert done == [None if n % 1000 == 7 else text for n, text in enumerate(children)]
        assert run.outcomes() == {0: "ok"}
        assert not run.kept()


# ---------------------------------------------------------------- time, doubles, restarts


def test_what_is_there_when_the_time_is_over(tmp_path: Path) -> None:
    with Run(tmp_path, family(tmp_path, NULL.replace(", missing:", ", wait: 2s, missing:"))) as run:
        run.bring(
            ("pass", ["item:drop", "pass", "pass"]), ("pass", []), ("own:drop", ["pass"]), deadline_s=30
        )
        run.turn("first", "item", "all")
        assert set(run.gathered()) == {1}
        run.run.clock.advance(3)
        run.turn("all")
        assert run.gathered()[0] == ([None, None, None], [0, 1, 2])
        run.turn("more", "all")
        assert set(run.gathered()) == {0, 1}
        assert run.lost() == {"late": 2, "no of": 1, "no parent": 1}
        assert run.outcomes() == {0: "ok", 1: "ok", 2: "dropped: no parent"}


def test_late_children_are_dead_letters_if_asked(tmp_path: Path) -> None:
    with Run(
        tmp_path, family(tmp_path, NULL.replace(", missing:", ", wait: 2s, late: fail, missing:"))
    ) as run:
        run.bring(("pass", ["pass", "pass"]))
        run.turn("first", "item", "all")
        run.run.clock.advance(3)
        run.turn("all", "more", "all")
        assert run.gathered() == {0: ([None, None], [0, 1])}
        assert [(x.node, x.error) for x in run.run.result().dead_letters] == [("all", "Late")] * 2
        again(run, "p.more", "all")
        assert len(run.run.result().dead_letters) == 4  # each time they come


def test_without_a_time_a_caller_is_waited_for_until_his_deadline(tmp_path: Path) -> None:
    with Run(tmp_path, family(tmp_path)) as run:
        run.bring(("pass", ["pass"]), deadline_s=7)
        run.turn("first", "all")
        assert run.run._loops[-1].timer_ms == int((START_S + 7) * 1000)
        run.bring(("pass", ["pass"]), first=1)
        run.run.clock.advance(8)
        run.turn("first", "all")
        assert run.gathered() == {0: ([None], [0])}
        assert run.run._loops[-1].timer_ms == int((START_S + 8) * 1000) + limits.EDGE_RETENTION_MS


def test_children_that_expire_on_the_way(tmp_path: Path) -> None:
    with Run(tmp_path, family(tmp_path, NULL.replace(", missing:", ", wait: 60s, missing:"))) as run:
        run.bring(("pass", ["pass", "pass"]), deadline_s=1)
        run.turn("first", "all")
        run.run.clock.advance(2)
        run.turn("item", "all")
        assert run.gathered() == {0: ([None, None], [0, 1])}


def test_what_is_written_twice_counts_once(tmp_path: Path) -> None:
    """A worker that is killed before its commit writes all again: before, after, and while the others come."""
    with Run(tmp_path, family(tmp_path)) as run:
        run.bring(("pass", ["pass", "item:drop"]), deadline_s=30)
        run.turn("first", "all")
        again(run, "p.own", "all")
        run.turn("item")
        again(run, "p.control", "all")
        run.turn("more")
        again(run, "p.more", "all")
        assert run.gathered() == {0: (["pass", None], [1])}
        for topic in ("p.own", "p.more", "p.control"):
            again(run, topic, "all")
        assert run.gathered() == {0: (["pass", None], [1])}
        assert run.outcomes() == {0: "ok"}
        assert set(run.lost()) == {"late"}
        assert not run.letters()


@BOTH
def test_what_waits_survives_a_restart(tmp_path: Path, delivery: str) -> None:
    with Run(tmp_path, family(tmp_path, delivery=delivery)) as run:
        run.bring(("pass", ["item:drop", "pass", "pass"]), ("pass", ["pass"]), deadline_s=30)
        run.turn("first", "item", "all")
        run.restart()
        run.turn("more")
        run.restart()
        run.run.settle()
        assert run.gathered() == {0: ([None, "pass", "pass"], [0]), 1: (["pass"], [])}
        assert run.outcomes() == {0: "ok", 1: "ok"}
        assert not run.kept()


# ---------------------------------------------------------------- shapes

# A list of lists, each as a text; what is done with the innermost ones is their text.
NESTED = """
inputs: {records: records}
nodes:
  split: {use: each.split, from: records, with: {field: rows, as: row}, keep: [n]}
  row: {use: test.row, from: splitALONE}
  inner: {use: each.split, from: row, with: {field: cells, as: do, index: i, count: c}, keep: [n]}
  cell: {use: test.script, from: innerALONE}
  some:
    use: each.gather
    from: {items: cell, of: inner.parents}
    with: {fields: {cells: do}, on_missing: "null", index: i, count: c}
    keep: [index]
  tail: {use: test.tail, from: someALONE}
  all:
    use: each.gather
    from: {items: tail, of: split.parents}
    with: {fields: {done: cells}, on_missing: skip, missing: lacking}
    keep: [n]
"""
ROWS = "{{type: list, items: {{type: string}}}}"
NESTED_TOPIC = (
    "kind: Topic\nname: {name}\nkey: n\npartitions: {partitions}\nfields: {{n: int64, rows: " + ROWS + "}}\n"
)


@node("test.row")
class Row:
    """Cells of `row`, which has them between semicolons; a row that begins with `!` is dropped."""

    def __init__(self, settings: Settings, context: NodeContext) -> None: ...

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        cells = Field("cells", FieldType("list", item=FieldType("string")))
        return {"out": Schema((*context.input.fields, cells))}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        texts = batch["row"].tolist()
        good = [i for i, text in enumerate(texts) if not text.startswith("!")]
        out.drop([i for i in range(len(texts)) if i not in good], "not wanted")
        if good:
            cells = column_of(
                FieldType("list", item=FieldType("string")),
                [texts[i].split(";") if texts[i] else [] for i in good],
            )
            out.emit({**batch.take(good).columns, "cells": cells}, rows=good)


@node("test.tail")
class Tail:
    """Drops rows of a single cell that is missing."""

    def __init__(self, settings: Settings, context: NodeContext) -> None: ...

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        bad = [i for i, cells in enumerate(batch["cells"].tolist()) if list(cells) == [None]]
        good = [i for i in range(len(batch)) if i not in bad]
        out.drop(bad, "nothing left")
        if good:
            out.emit(batch.take(good), rows=good)


CELLS = st.lists(st.sampled_from(["cell:pass", "cell:drop", "cell:fail", "cell:raise"]), max_size=3)
LINES = st.lists(st.one_of(CELLS.map(";".join), st.just("!")), max_size=3)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(LINES, min_size=1, max_size=4),
    seeds=st.permutations(["split", "row", "cell", "some", "tail", "all"]),
    delivery=st.sampled_from(["at_least_once", "exactly_once"]),
)
def test_a_family_in_a_family(
    tmp_path: Path, records: list[list[str]], seeds: list[str], delivery: str
) -> None:
    kinds = Registry.of(Scripted, Row, Tail, EachSplit, EachGather)
    found = []
    for alone in ("", ", isolate: true"):
        text = NESTED.replace("ALONE", alone).replace("nodes:", f"delivery: {delivery}\nnodes:", 1)
        plan = make_plan(tmp_path, text, registry=kinds, topic=NESTED_TOPIC, partitions=2)
        with PipelineRun(tmp_path, plan, kinds) as run:
            run.feed("records", [{"n": n, "rows": rows} for n, rows in enumerate(records)])
            for name in seeds * 2 if alone else []:
                loops = {s.name: loop for s, loop in zip(plan.stages, run._loops, strict=True)}
                if name in loops:
                    loops[name].turn(0)
                    loops[name].commit_now()
            run.settle()
            result = run.result()
            assert len(result.edges["all"]) == len(records)
            assert not [t for loop in run._loops if (t := loop.timer_ms)]
            found.append({e: dict(zip(result.ids[e], result.edges[e], strict=True)) for e in ("some", "all")})
    assert found[0] == found[1]
    for line in found[0]["all"].values():
        rows = records[line["n"]]
        kept = [
            [c if c == "cell:pass" else None for c in (row.split(";") if row else [])]
            for row in rows
            if row != "!"
        ]
        assert line["done"] == [cells for cells in kept if cells != [None]]


def test_the_branches_of_a_child_are_joined_and_gathered(tmp_path: Path) -> None:
    """A join across stages on the way of children: what ends in it is known to the gather behind."""
    text = TEXT.replace(
        "  more: {use: test.script, from: item}\n",
        "  side: {use: test.script, from: split}\n"
        "  more: {use: join.by_id, from: {item: item, side: side}, with: {select: {side: []}}}\n",
    )
    found = []
    for cut in (False, True):
        alone = text.replace("WITH", NULL).replace("ALONE", ", isolate: true" if cut else "")
        plan = make_plan(tmp_path, alone.replace("DELIVERY", "exactly_once"), registry=KINDS, topic=TOPIC)
        with Run(tmp_path, plan) as run:
            run.bring(
                ("pass", ["pass", "item:drop", "side:fail", "item:drop,side:drop"]),
                ("pass", ["item:drop"]),
                deadline_s=30,
            )
            run.run.settle()
            found.append((run.gathered(), run.outcomes(), sorted(run.run.result().ids["all"])))
    assert found[0] == found[1]
    assert found[0][0] == {0: (["pass", None, None, None], [1, 2, 3]), 1: ([None], [0])}


def test_a_child_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    """As it is made: it is on no edge at all."""
    text = TEXT.replace("WITH", NULL).replace("ALONE", ", isolate: true").replace("DELIVERY", "at_least_once")
    text = text.replace("keep: [n]}", "keep: [n, label]}", 1)
    topic = TOPIC.replace("do: string,", "do: string, label: string,")
    plan = make_plan(tmp_path, text, registry=KINDS, topic=topic)
    edge, parents = plan.edges["split"], plan.edges["split.parents"]
    small = replace(plan, edges={**plan.edges, "split": replace(edge, max_record_bytes=200)})
    assert parents.max_record_bytes > 200
    with Run(tmp_path, small) as run:
        run.run.feed("records", [{"n": 0, "do": "pass", "label": "", "items": ["pass", "x" * 300, "pass"]}])
        run.run.settle()
        assert run.gathered() == {0: (["pass", None, "pass"], [1])}
        assert ("split", "RecordTooLargeError") in [(edge, error) for edge, _, error in run.said()]


def test_children_of_several_partitions(tmp_path: Path) -> None:
    with Run(tmp_path, family(tmp_path, partitions=3)) as run:
        run.bring(*[("pass", ["pass", "item:drop", "more:fail"][: n % 4]) for n in range(40)])
        run.run.settle()
        found = run.gathered()
        assert set(found) == set(range(40))
        assert all(
            found[n] == (["pass", None, None][: n % 4], [1, 2][: max(n % 4 - 1, 0)]) for n in range(40)
        )
        assert not run.kept()


def test_what_is_no_child_is_no_part_of_a_family(tmp_path: Path) -> None:
    """A stranger's record on the way, and a child of a child: they have no record to go to."""
    with Run(tmp_path, family(tmp_path, NULL.replace(", missing:", ", wait: 2s, missing:"))) as run:
        run.bring(("pass", ["more:children", "pass"]))
        run.run.settle()
        producer = run.run.fabric.producer()
        for message in run.run._messages(["p.item"])[:1]:
            producer.send("p.more", message.value(), b"k0", [(headers.ID, identity(99))])
        producer.close()
        run.run.settle()
        assert run.gathered() == {0: ([None, "pass"], [0])}
        run.run.end()
        assert run.lost() == {"no parent": 3}


# ---------------------------------------------------------------- away from home

AWAY = """
inputs: {records: records}
answer: {from: [all], input: records}
delivery: DELIVERY
nodes:
  split: {use: each.split, from: records, with: {field: items, as: do}, keep: [n]}
  item: {use: test.script, from: split, retry: {backoff: 1ms}}
  REKEYED
  more: {use: test.script, from: BEFORE}
  all:
    use: each.gather
    from: {items: more, of: split.parents}
    with: {fields: {done: do}, on_missing: "null", missing: lacking}
    keep: [n]
"""


@BOTH
@pytest.mark.parametrize(
    ("rekeyed", "last"),
    [
        ("by_do: {use: rekey, from: item, with: {key: do}}", "by_do"),
        (
            "by_do: {use: rekey, from: item, with: {key: do}}\n  by_index: {use: rekey, from: by_do, with: {key: index}}",
            "by_index",
        ),
    ],
)
def test_children_that_are_keyed_anew_come_home(
    tmp_path: Path, delivery: str, rekeyed: str, last: str
) -> None:
    """Wherever they are worked upon, and wherever they end."""
    found = []
    for lines, before in (("", "item"), (rekeyed, last)):
        text = AWAY.replace("REKEYED", lines).replace("BEFORE", before).replace("DELIVERY", delivery)
        plan = make_plan(tmp_path, text, registry=KINDS, topic=TOPIC, partitions=3)
        with Run(tmp_path, plan) as run:
            run.bring(
                *[
                    ("pass", [f"{x}:y", "item:drop", "more:fail", "pass", "more:retry"][: x % 6])
                    for x in range(24)
                ],
                deadline_s=30,
            )
            run.run.settle()
            result = run.run.result()
            found.append((dict(zip(result.ids["all"], result.edges["all"], strict=True)), run.outcomes()))
            assert len(result.edges["all"]) == 24
            if lines:
                stage = next(s for s in plan.stages if "more" in s.nodes)
                assert stage.reads == (last,)
                places = {m.key(): m.partition() for m in run.run._messages(["p.all"])}
                assert places == {m.key(): m.partition() for m in run.run._messages(["records"])}
                assert not run.kept()
    assert found[0] == found[1]


def test_families_in_families_away_from_home(tmp_path: Path) -> None:
    """The inner children leave the place to which the outer ones have gone."""
    kinds = Registry.of(Scripted, Row, Tail, EachSplit, EachGather, RekeyRecords)
    text = NESTED.replace("ALONE", "")
    away = text.replace(
        "  row: {use: test.row, from: split}",
        "  r: {use: rekey, from: split, with: {key: row}}\n  row: {use: test.row, from: r}",
    ).replace(
        "  cell: {use: test.script, from: inner}",
        "  q: {use: rekey, from: inner, with: {key: do}}\n  cell: {use: test.script, from: q}",
    )
    records = [["cell:pass;cell:drop;x:y", "!", "", "cell:fail"][: n % 5] for n in range(20)]
    found = []
    for one in (text, away):
        plan = make_plan(tmp_path, one, registry=kinds, topic=NESTED_TOPIC, partitions=3)
        with PipelineRun(tmp_path, plan, kinds) as run:
            run.feed("records", [{"n": n, "rows": rows} for n, rows in enumerate(records)])
            run.settle()
            result = run.result()
            assert len(result.edges["all"]) == 20
            found.append({e: dict(zip(result.ids[e], result.edges[e], strict=True)) for e in ("some", "all")})
    assert found[0] == found[1]
