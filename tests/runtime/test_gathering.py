"""Joins, fan-out and fan-in on the engine: what a branch drops, fails or retries is known to what waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.core import headers
from dataflow.planner.plan import REPLIES, Plan
from dataflow.registry import Registry
from dataflow.testing import PipelineRun, RunResult
from dataflow.testing.pipelines import START_S
from nodes.each import EachGather, EachSplit
from nodes.join import JoinAny, JoinById
from nodes.top_k import RouteTopK
from tests.runtime.kit import Scripted, add_one, encoded, make_plan, pass_on

KINDS = Registry.of(Scripted, add_one, pass_on, JoinById, JoinAny, EachSplit, EachGather, RouteTopK)

DIAMOND = """
inputs: {records: records}
answer: {from: [both], input: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.script, from: records}
  c: {use: test.add, from: b}
  both:
    use: join.by_id
    from: {a: a, c: c}
    with: {how: HOW, prefix: {c: c_}MISSING}
"""


def diamond(folder: Path, how: str = "outer") -> Plan:
    text = DIAMOND.replace("HOW", how).replace("MISSING", ", missing: without" if how == "outer" else "")
    return make_plan(folder, text, registry=KINDS)


def ran(folder: Path, plan: Plan, actions: Sequence[str]) -> RunResult:
    with PipelineRun(folder, plan, KINDS) as run:
        run.feed("records", [{"n": n, "do": do} for n, do in enumerate(actions)])
        run.settle()
        return run.result()


# --- join.by_id


def test_every_fate_of_a_branch_is_known_to_the_join(tmp_path: Path) -> None:
    actions = ["pass", "a:drop", "b:fail", "b:retry", "a:never", "a:drop,b:drop", "a:retry,b:raise", "b:side"]
    result = ran(tmp_path, diamond(tmp_path), actions)
    found = {r["n"] if r["n"] is not None else r["c_n"] - 1: r["without"] for r in result.edges["both"]}
    assert found == {0: [], 1: ["a"], 2: ["c"], 3: [], 4: ["a"], 6: ["c"], 7: ["c"]}
    assert len(result.edges["both"]) == 7
    # What failed is there to be redriven, though the record had a result.
    assert Counter(letter.node for letter in result.dead_letters) == {"b": 2, "a": 1}


def test_inner_drops_with_the_side_as_reason(tmp_path: Path) -> None:
    result = ran(tmp_path, diamond(tmp_path, "inner"), ["pass", "a:drop", "b:drop", "b:retry", "b:fail"])
    assert [r["n"] for r in result.edges["both"]] == [0, 3]
    assert result.dropped["both"] == {"no a": 1, "no c": 2}


def test_the_result_has_the_records_id(tmp_path: Path) -> None:
    result = ran(tmp_path, diamond(tmp_path), ["pass", "b:drop"])
    assert result.ids["both"] == result.ids["a"]
    assert result.ids["both"][:1] == result.ids["b"]


FATES = st.sampled_from(["pass", "drop", "fail", "retry", "never", "side"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(st.tuples(FATES, FATES), min_size=1, max_size=12), how=st.sampled_from(["inner", "outer"])
)
def test_a_diamond_is_what_its_branches_gave(tmp_path: Path, fates: list[tuple[str, str]], how: str) -> None:
    result = ran(tmp_path, diamond(tmp_path, how), [f"a:{a},b:{b}" for a, b in fates])
    there = [(a in {"pass", "retry"}, b in {"pass", "retry"}) for a, b in fates]
    wanted = [n for n, sides in enumerate(there) if (all(sides) if how == "inner" else any(sides))]
    found = [r["n"] if r["n"] is not None else r["c_n"] - 1 for r in result.edges["both"]]
    assert sorted(found) == wanted  # each once


def test_a_record_that_is_retried_holds_up_its_key_and_no_other(tmp_path: Path) -> None:
    """With a pause of ten seconds before the next attempt, the others are joined long before."""
    text = DIAMOND.replace("HOW", "inner").replace("MISSING", "")
    slow = text.replace(
        "b: {use: test.script,", "b: {use: test.script, retry: {backoff: 10s, backoff_max: 10s},"
    )
    topic = "kind: Topic\nname: {name}\nkey: do\npartitions: {partitions}\nfields: {{n: int64, do: string}}\n"
    plan = make_plan(tmp_path, slow, registry=KINDS, topic=topic)
    with PipelineRun(tmp_path, plan, KINDS) as run:
        actions = ["pass", "b:retry", "pass", "b:retry", "a:pass"]  # the key too
        run.feed("records", [{"n": n, "do": do} for n, do in enumerate(actions)])
        run.settle()
        written = [
            ((m.timestamp()[1] - START_S * 1000) // 1000, r["n"])
            for m, r in zip(run._messages(["p.both"]), run.result().edges["both"], strict=True)
        ]
    assert written == [(0, 0), (0, 2), (0, 4), (20, 1), (20, 3)]


def test_order_per_key_is_kept_past_a_join(tmp_path: Path) -> None:
    plan = diamond(tmp_path, "inner")
    with PipelineRun(tmp_path, plan, KINDS) as run:
        producer = run.fabric.producer()
        actions = ["pass", "b:retry", "pass", "a:retry", "pass", "pass"]
        for n, (value, key) in enumerate(zip(encoded(list(enumerate(actions))), "xxzyxy", strict=True)):
            producer.send("records", value, key.encode(), [(headers.ID, identity(n).encode())])
        producer.close()
        run.settle()
        found = [r["n"] for r in run.result().edges["both"]]
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [n for n in found if n in {0, 1, 4}] == [0, 1, 4]
    assert [n for n in found if n in {3, 5}] == [3, 5]
    assert found.index(2) < found.index(1)  # another key did not wait


def test_more_records_than_one_fetch_holds(tmp_path: Path) -> None:
    result = ran(tmp_path, diamond(tmp_path, "inner"), ["pass"] * 1_203)
    assert [r["n"] for r in result.edges["both"]] == list(range(1_203))


def request(run: PipelineRun, record: tuple[int, str], record_id: str, caller: str = "") -> None:
    (value,) = encoded([record])
    reply = [(headers.REPLY_TO, f"{REPLIES}/0/{caller}".encode())] if caller else []
    producer = run.fabric.producer()
    producer.send("p.requests", value, None, [(headers.ID, record_id.encode()), *reply])
    producer.close()


def identity(number: int) -> str:
    return f"0190{number:04x}-0000-7000-8000-000000000000"


def replies(run: PipelineRun) -> dict[str, list[str]]:
    """Statuses by caller."""
    found: dict[str, list[str]] = {}
    for message in run._messages([REPLIES]):
        named = dict(message.headers() or ())
        caller = named[headers.REPLY_TO].decode().rpartition("/")[2] if headers.REPLY_TO in named else ""
        found.setdefault(caller or (message.key() or b"").decode(), []).append(named[headers.STATUS].decode())
    return found


def test_a_caller_has_one_answer_whatever_became_of_the_branches(tmp_path: Path) -> None:
    actions = ["pass", "a:drop", "b:fail", "a:drop,b:drop", "a:drop,b:never"]
    for how, wanted in (
        ("outer", ["ok", "ok", "ok", "dropped", "failed"]),
        ("inner", ["ok", "dropped", "failed", "dropped", "failed"]),
    ):
        with PipelineRun(tmp_path, diamond(tmp_path, how), KINDS) as run:
            for n, do in enumerate(actions):
                request(run, (n, do), identity(n), f"r{n}")
            run.settle()
            assert [v for _, v in sorted(replies(run).items())] == [[status] for status in wanted]


def test_one_id_twice_in_a_fetch_is_two_records(tmp_path: Path) -> None:
    with PipelineRun(tmp_path, diamond(tmp_path), KINDS) as run:
        for n, do in enumerate(["pass", "a:drop", "pass"]):
            request(run, (n, do), identity(1))
        run.settle()
        result = run.result()
    assert [(r["n"], r["c_n"], r["without"]) for r in result.edges["both"]] == [
        (0, 1, []), (None, 2, ["a"]), (2, 3, []),
    ]  # fmt: skip
    assert result.dead_letters == []


def test_a_side_that_two_edges_give_the_same_record_fails_it(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        "inputs: {records: records}\nnodes:\n"
        "  a: {use: test.script, from: records}\n"
        "  both: {use: join.by_id, from: {x: [a, a.side], y: records}, with: {prefix: {y: y_}}}\n",
        registry=KINDS,
    )
    result = ran(tmp_path, plan, ["pass", "side", "both"])
    assert [r["n"] for r in result.edges["both"]] == [0, 1]
    assert [(d.error, d.message) for d in result.dead_letters] == [
        ("SeveralRecords", "side 'x' has more than one record with this id")
    ]


def test_joins_follow_joins(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        "inputs: {records: records}\nnodes:\n"
        + "".join(f"  {n}: {{use: test.script, from: records}}\n" for n in "abc")
        + "  ab: {use: join.by_id, from: {a: a, b: b}, with: {how: outer, prefix: {b: b_}, missing: m}}\n"
        "  abc: {use: join.by_id, from: {ab: ab, c: c}, with: {prefix: {c: c_}}}\n"
        "  any: {use: join.any, from: {c: c, b: b}, with: {side: by}}\n",
        registry=KINDS,
    )
    result = ran(tmp_path, plan, ["a:retry", "a:drop,c:retry", "c:never", "a:drop,b:drop", "c:drop"])
    assert [(r["c_n"], r["m"]) for r in result.edges["abc"]] == [(0, []), (1, ["a"])]
    assert {r["n"]: r["by"] for r in result.edges["any"]} == {0: "c", 1: "c", 2: "b", 3: "c", 4: "b"}


# --- each

LISTS = (
    "kind: Topic\nname: {name}\npartitions: {partitions}\nfields:\n  name: string\n"
    "  values: {{type: list, items: {{type: record, fields: {{n: int64, do: string}}}}}}\n"
)
EACH = """
inputs: {records: records}
answer: {from: [again], input: records}
nodes:
  each: {use: each.split, from: records, with: {field: values}}
  work: {use: test.script, from: each}
  again:
    use: each.gather
    from: {items: work, of: each.parents}
    with: {fields: [n], on_missing: POLICY, missing: lost}
    keep: [name]
"""


def each(folder: Path, policy: str, records: dict[str, list[str]]) -> RunResult:
    plan = make_plan(folder, EACH.replace("POLICY", policy), topic=LISTS, registry=KINDS)
    with PipelineRun(folder, plan, KINDS) as run:
        made = [
            {"name": name, "values": [{"n": n, "do": do} for n, do in enumerate(actions)]}
            for name, actions in records.items()
        ]
        run.feed("records", made)
        run.settle()
        return run.result()


FAMILIES = {"p": ["retry", "pass", "drop"], "q": [], "r": ["retry"], "s": ["pass", "fail"], "t": ["never"]}


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("fail", {"q": [], "r": [0]}),
        ("skip", {"p": [0, 1], "q": [], "r": [0], "s": [0], "t": []}),
        ('"null"', {"p": [0, 1, None], "q": [], "r": [0], "s": [0, None], "t": [None]}),
    ],
)
def test_children_come_back_after_retries_in_order(
    tmp_path: Path, policy: str, wanted: dict[str, list[int | None]]
) -> None:
    result = each(tmp_path, policy, FAMILIES)
    assert {r["name"]: r["n"] for r in result.edges["again"]} == wanted
    assert sorted(r["name"] for r in result.edges["again"]) == sorted(wanted)  # each once
    assert {r["name"]: r["lost"] for r in result.edges["again"]} == {
        name: [n for n, do in enumerate(FAMILIES[name]) if do in {"drop", "fail", "never"}] for name in wanted
    }
    names = [r["name"] for r in result.edges["each.parents"]]
    by_id = dict(zip(result.ids["each.parents"], names, strict=True))
    assert [by_id[i] for i in result.ids["again"]] == [r["name"] for r in result.edges["again"]]
    # Each record is buried once, for its first cause.
    buried = [(d.node, d.error) for d in result.dead_letters]
    assert sorted(buried) == sorted(
        [("work", "Impossible"), ("work", "Busy"), *([("again", "MissingItems")] if policy == "fail" else [])]
    )


def test_ten_thousand_children(tmp_path: Path) -> None:
    result = each(tmp_path, "fail", {"few": ["pass"], "many": ["pass"] * 10_000, "none": []})
    assert {r["name"]: len(r["n"]) for r in result.edges["again"]} == {"few": 1, "many": 10_000, "none": 0}
    assert result.edges["again"][1]["n"] == list(range(10_000))
    assert len(set(result.ids["each"])) == 10_001


NESTED_TOPIC = (
    "kind: Topic\nname: {name}\npartitions: {partitions}\nfields:\n"
    "  pages: {{type: list, items: {{type: record, fields: {{page: string, lines: {{type: list, items: {{type: string}}}}}}}}}}\n"
)
NESTED = """
inputs: {records: records}
nodes:
  pages: {use: each.split, from: records, with: {field: pages}}
  lines: {use: each.split, from: pages, with: {field: lines, as: do, count: lines_count}}
  work: {use: test.script, from: lines}
  whole_pages:
    use: each.gather
    from: {items: work, of: lines.parents}
    with: {fields: {texts: do}, on_missing: skip, count: lines_count}
    keep: [page, index]
  books:
    use: each.gather
    from: {items: whole_pages, of: pages.parents}
    with: {fields: [page, texts]}
    keep: []
"""


def test_splits_nest(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, NESTED, topic=NESTED_TOPIC, registry=KINDS)
    books: list[list[list[str]]] = [
        [["pass", "drop"], [], ["retry", "pass", "pass"]],
        [],
        [["retry"], ["drop"]],
    ]
    with PipelineRun(tmp_path, plan, KINDS) as run:
        made = [
            {"pages": [{"page": f"{b}.{p}", "lines": lines} for p, lines in enumerate(book)]}
            for b, book in enumerate(books)
        ]
        run.feed("records", made)
        run.settle()
        result = run.result()
    assert result.dead_letters == []
    # Records without a key: those without a retry are first.
    by_id = dict(zip(result.ids["books"], result.edges["books"], strict=True))
    assert [by_id[i] for i in result.ids["pages.parents"]] == [
        {
            "page": [f"{b}.{p}" for p in range(len(book))],
            "texts": [[do for do in lines if do != "drop"] for lines in book],
        }
        for b, book in enumerate(books)
    ]
    assert len(result.edges["books"]) == len(by_id) == len(books)


def test_children_of_a_record_that_is_there_twice_do_not_mix(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, EACH.replace("POLICY", "skip"), topic=LISTS, registry=KINDS)
    schema = plan.edges["records"].schema
    with PipelineRun(tmp_path, plan, KINDS) as run:
        producer = run.fabric.producer()
        for name, actions in (("first", ["pass", "retry"]), ("again", ["drop", "pass"])):
            record = {"name": name, "values": [{"n": n, "do": do} for n, do in enumerate(actions)]}
            (value,) = _values(schema, record)
            producer.send("records", value, None, [(headers.ID, identity(1).encode())])
        producer.close()
        run.settle()
        result = run.result()
    found = sorted((r["name"], r["n"]) for r in result.edges["again"])
    assert found == [("again", [1]), ("first", [0, 1])]


def _values(schema: Any, record: dict[str, Any]) -> list[bytes | None]:
    from dataflow.codecs.values import coerce_records

    decoded = coerce_records(schema, [record])
    return list(codec_for("avro", schema).encode(decoded.columns, 1).values)


def test_a_fan_out_within_a_fan_out_is_no_item(tmp_path: Path) -> None:
    """Children of children have another parent: they are told apart, not taken for items."""
    result = each(tmp_path, "skip", {"p": ["children", "pass"]})
    assert result.edges["again"] == [{"name": "p", "n": [1], "lost": [0]}]
    assert result.dropped["again"] == {"no parent": 2}


def test_top_k_waits_for_siblings_that_are_retried(tmp_path: Path) -> None:
    text = """
inputs: {records: records}
nodes:
  each: {use: each.split, from: records, with: {field: values}}
  work: {use: test.script, from: each}
  best: {use: route.top_k, from: work, with: {score: n, k: 1}}
"""
    plan = make_plan(tmp_path, text, topic=LISTS, registry=KINDS)
    with PipelineRun(tmp_path, plan, KINDS) as run:
        values = [{"n": n, "do": do} for n, do in enumerate(["pass", "pass", "retry", "drop"])]
        run.feed("records", [{"name": "p", "values": values}])
        run.settle()
        result = run.result()
    assert [r["n"] for r in result.edges["best.top"]] == [2]
    assert [r["n"] for r in result.edges["best.rest"]] == [0, 1]
