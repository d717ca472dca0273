"""Where a graph is cut: keyed anew, open to others, never across depths."""

from __future__ import annotations

from pathlib import Path

from dataflow.planner.draw import graph_as_text
from dataflow.planner.estimate import estimate_writes
from dataflow.planner.plan import Plan
from dataflow.planner.rights import Right, rights_of
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.registry import Registry
from tests.planner.kinds import Gather, Join, KeyedAnew, Looping, Source
from tests.runtime.kit import Scripted, add_one, make_plan, pass_on

ALL = Registry.of(Scripted, add_one, pass_on, KeyedAnew, Gather, Join, Looping, Source)


def plan_of(folder: Path, text: str, partitions: int = 2, others: str = "") -> Plan:
    return make_plan(folder, text, partitions=partitions, others=others, registry=ALL)


def shown(plan: Plan) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By name: what it reads and its nodes."""
    return {s.name: (s.reads, s.nodes) for s in plan.stages}


def test_a_rekeyed_edge_is_a_topic_of_its_own_key_and_what_follows_reads_it(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [c]}
nodes:
  a: {use: test.pass, from: records}
  b: {use: test.rekey, from: a, with: {key: do, partitions: 8}}
  c: {use: test.pass, from: b}
""",
    )
    assert shown(plan) == {"a": (("records",), ("a", "b")), "c": (("b",), ("c",))}
    assert [(s.partitions, s.leaves, s.answers) for s in plan.stages] == [(2, ("b",), ()), (8, (), ("c",))]
    assert all(s.on_answer_path for s in plan.stages)
    assert plan.stages[1].reason == "it reads 'b' from Kafka: it is keyed anew, by do"
    edge = plan.edges["b"]
    assert (edge.key, edge.key_encoding, edge.partitions) == (("do",), "string", 8)
    assert plan.topics["p.b"].partitions == 8
    assert plan.edges["c"].partitions == 8
    assert (plan.edges["a"].key, plan.edges["a"].partitions) == ((), 2)


def test_the_new_key_of_a_number_is_a_long_and_its_partitions_are_the_inputs(tmp_path: Path) -> None:
    text = "inputs: {records: records}\nnodes:\n  b: {use: test.rekey, from: records, with: {key: n}}\n"
    edge = plan_of(tmp_path, text, partitions=3).edges["b"]
    assert (edge.key, edge.key_encoding, edge.partitions) == (("n",), "int64", 3)


def test_what_reads_both_sides_of_a_cut_lies_behind_it(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [c, d]}
nodes:
  a: {use: test.rekey, from: records, with: {key: n}}
  b: {use: test.pass, from: records}
  c: {use: test.pass, from: [a, b]}
  d: {use: test.pass, from: [a, records]}
""",
    )
    # d and a read one input on the path to an answer, and yet a stage never waits for what it writes itself.
    assert shown(plan) == {
        "a": (("records",), ("a", "b")),
        "c": (("a", "b"), ("c",)),
        "d": (("a", "records"), ("d",)),
    }
    assert plan.stages[0].leaves == ("a", "b")


def test_an_open_edge_is_read_from_kafka_and_outsiders_may_write_to_it(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
nodes:
  a: {use: test.pass, from: records, open: true}
  b: {use: test.pass, from: a}
  c: {use: test.pass, from: b}
""",
    )
    assert shown(plan) == {"a": (("records",), ("a",)), "b": (("a",), ("b", "c"))}
    assert plan.stages[1].reason == "it reads 'a' from Kafka: it is open, others write to it too"
    assert [e.name for e in plan.edges.values() if e.open] == ["a"]
    assert [r for r in rights_of(plan) if r.role == "outsider"] == [
        Right("outsider", "topic", "p.a", ("DESCRIBE", "WRITE")),
        Right("outsider", "topic", "records", ("DESCRIBE", "WRITE")),
    ]


def test_streams_of_inputs_sources_and_stages_merge(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records, others: others}
nodes:
  feed: {use: test.source}
  fed: {use: test.pass, from: feed, out: {n: int64, do: string}}
  far: {use: test.pass, from: others, isolate: true}
  all: {use: test.pass, from: [records, far, fed]}
""",
        others="kind: Topic\nname: others\nkey: n\npartitions: 2\nfields: {n: int64, do: string}\n",
    )
    assert shown(plan) == {
        "feed": ((), ("feed",)),
        "fed": (("feed", "records", "far"), ("fed", "all")),
        "far": (("others",), ("far",)),
    }


def test_branches_of_merged_streams_may_join(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records, others: others}
nodes:
  all: {use: test.pass, from: [records, others]}
  a: {use: test.pass, from: all}
  b: {use: test.pass, from: all}
  both: {use: test.gather, from: {a: a, b: b}}
""",
        others="kind: Topic\nname: others\npartitions: 2\nfields: {n: int64, do: string}\n",
    )
    assert shown(plan) == {"all": (("records", "others"), ("all", "a", "b", "both"))}


LOOP = """
inputs: {records: records}
answer: {from: [end]}
nodes:
  start: {use: test.pass, from: records}
  body: {use: test.pass, from: [start, end.again]}
  end: {use: test.loop, from: body}
  watch: {use: test.pass, from: end.again}
"""


def test_a_loop_comes_back_to_its_own_stage_by_way_of_kafka(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LOOP)
    assert shown(plan) == {
        "start": (("records", "end.again"), ("start", "body", "end")),
        "watch": (("end.again",), ("watch",)),
    }
    main = plan.stages[0]
    assert (main.leaves, main.answers, main.partitions) == (("end.again",), ("end",), 2)
    assert plan.edges["end.again"].loop == ("body",)
    assert [e.name for e in plan.edges.values() if e.loop] == ["end.again"]
    assert plan_from_json(plan_to_json(plan)) == plan
    assert "again ↺ body" in graph_as_text(plan)
    assert estimate_writes(plan).by_edge["body"] == estimate_writes(plan).by_edge["start"]


def test_a_loop_over_several_stages(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [end]}
nodes:
  body: {use: test.pass, from: [records, end.again]}
  far: {use: test.rekey, from: body, with: {key: do}}
  end: {use: test.loop, from: far}
""",
    )
    assert shown(plan) == {"body": (("records", "end.again"), ("body", "far")), "end": (("far",), ("end",))}
    assert [s.leaves for s in plan.stages] == [("far",), ("end.again",)]


def test_branches_within_a_loop_may_join(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
inputs: {records: records}
nodes:
  body: {use: test.pass, from: [records, end.again]}
  a: {use: test.pass, from: body}
  b: {use: test.pass, from: body}
  both: {use: test.gather, from: {a: a, b: b}}
  end: {use: test.loop, from: both}
""",
    )
    assert shown(plan) == {"body": (("records", "end.again"), ("body", "a", "b", "both", "end"))}
