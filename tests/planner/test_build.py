"""Where a plan is cut, what it makes, what it refuses; and that it survives the way to JSON and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dataflow.core import limits
from dataflow.core.errors import PlanError
from dataflow.planner.plan import ACCEPTED, DEAD_LETTERS, PLANS, REPLIES, RESULTS, SCHEMAS, ModelPlan, Plan
from dataflow.planner.serial import digest, plan_from_json, plan_to_json
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, Schema, Settings, node
from tests.runtime.kit import Scripted, add_one, make_plan, pass_on


@node("test.feed", source=True, inputs=())
class Feed:
    """Makes records."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": Schema.of(n="int64", do="string")}


@node("test.pair", inputs=("left", "right"))
class Pair:
    """Two inputs of one contract."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.inputs["left"]}


ALL = Registry.of(Scripted, add_one, pass_on, Feed, Pair)


def stages(plan: Plan) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By name: what it reads and its nodes."""
    return {s.name: (s.reads, s.nodes) for s in plan.stages}


def test_connected_nodes_without_an_answer_share_a_stage(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.pass, from: a}
  c: {use: test.pass, from: a.side}
""",
        partitions=3,
    )
    assert stages(plan) == {"a": (("records",), ("a", "b", "c"))}
    assert (plan.stages[0].group, plan.stages[0].partitions) == ("dataflow.p.a", 3)
    assert not plan.stages[0].on_answer_path


def test_what_an_answer_does_not_wait_for_is_cut_off(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [b]}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.pass, from: a}
  watch: {use: test.pass, from: a}
  store: {use: test.pass, from: watch}
""",
    )
    assert stages(plan) == {"a": (("records",), ("a", "b")), "watch": (("a",), ("watch", "store"))}
    main, watch = plan.stages
    assert (main.answers, main.leaves, main.on_answer_path) == (("b",), (), True)
    assert (watch.answers, watch.on_answer_path) == ((), False)
    assert "never slow or fail a request" in watch.reason


def test_isolated_nodes_are_stages_and_the_request_is_said_to_go_on(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records}
answer: {from: [c]}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.pass, from: a, isolate: true}
  c: {use: test.pass, from: b}
""",
    )
    assert stages(plan) == {"a": (("records",), ("a",)), "b": (("a",), ("b",)), "c": (("b",), ("c",))}
    assert [s.leaves for s in plan.stages] == [("a",), ("b",), ()]
    assert [s.on_answer_path for s in plan.stages] == [True] * 3
    assert "isolate: true" in plan.stages[1].reason


def test_nodes_that_an_answer_needs_of_one_input_read_it_once(tmp_path: Path) -> None:
    text = """
inputs: {records: records}
answer: {from: [a, b]}
nodes:
  a: {use: test.pass, from: records}
  b: {use: test.pass, from: records}
  aside: {use: test.pass, from: records}
"""
    plan = make_plan(tmp_path, text)
    assert stages(plan) == {"a": (("records",), ("a", "b")), "aside": (("records",), ("aside",))}


def test_a_source_is_a_stage_of_its_own(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        "nodes:\n  feed: {use: test.feed}\n  a: {use: test.pass, from: feed}\n",
        registry=ALL,
    )
    assert stages(plan) == {"feed": ((), ("feed",)), "a": (("feed",), ("a",))}
    assert [s.source for s in plan.stages] == [True, False]


def test_several_inputs_of_one_node(tmp_path: Path) -> None:
    others = "kind: Topic\nname: others\npartitions: 1\nfields: {n: int64, do: string}\n"
    plan = make_plan(
        tmp_path,
        """
inputs: {records: records, others: others}
nodes:
  a: {use: test.pair, from: {left: records, right: others}}
""",
        registry=ALL,
        others=others,
    )
    assert stages(plan) == {"a": (("records", "others"), ("a",))}
    assert plan.nodes["a"].inputs == {"left": ("records",), "right": ("others",)}


ANSWERED = """
inputs: {records: records}
outputs: {copies: b}
answer: {from: [b], when: committed}
deadline: 3s
edges: {retention: 1h}
nodes:
  a: {use: test.script, from: records, retry: {attempts: 4, backoff: 1s}}
  b: {use: test.pass, from: a}
"""
COPIES = "kind: Topic\nname: copies\nkey: do\npartitions: 5\ncodec: json\nfields: {n: int64, do: string}\n"


def test_the_topics_of_a_plan(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ANSWERED, partitions=3, others=COPIES)
    assert {t.name: (t.role, t.partitions) for t in plan.topics.values()} == {
        "records": ("input", 3), "copies": ("output", 5), "p.requests": ("requests", 3), "p.a": ("edge", 3),
        "p.a.side": ("edge", 3), "p.b": ("edge", 3), DEAD_LETTERS: ("dead-letters", 1), PLANS: ("plans", 1),
        SCHEMAS: ("schemas", 1), REPLIES: ("replies", 8), ACCEPTED: ("accepted", 1),
        RESULTS: ("results", 4),
    }  # fmt: skip
    assert plan.topics["p.a"].config["retention.ms"] == "3600000"
    assert (
        int(plan.topics["p.a"].config["max.message.bytes"])
        == limits.MAX_RECORD_BYTES + limits.MAX_HEADER_BYTES
    )
    largest = max(int(t.config.get("max.message.bytes", 0)) for t in plan.topics.values() if t.role == "edge")
    for shared in (DEAD_LETTERS, REPLIES):
        assert int(plan.topics[shared].config["max.message.bytes"]) > largest
    assert plan.edges["records"].topics == ("records", "p.requests")
    assert plan.edges["records"].key == ("n",)
    copy = plan.edges["b"].publish[0]
    assert (copy.topic, copy.codec, copy.key, copy.partitions) == ("copies", "json", ("do",), 5)
    assert plan.answer is not None
    assert (plan.answer.input, plan.answer.edges, plan.answer.when) == ("records", ("b",), "committed")
    assert (plan.deadline_ms, plan.origin) == (3_000, f"p@{plan.version}")
    assert dataclasses.astuple(plan.nodes["a"].retry) == (4, 1_000, 10_000, 0.0)


def test_an_unwritten_edge_has_no_topic(tmp_path: Path) -> None:
    text = "inputs: {records: records}\nnodes:\n  a: {use: test.pass, from: records, write: off}\n  b: {use: test.pass, from: a}\n"
    plan = make_plan(tmp_path, text)
    assert (plan.edges["a"].write, plan.edges["a"].topics) == (False, ())
    assert "p.a" not in plan.topics


def test_a_cut_at_an_unwritten_edge_is_refused(tmp_path: Path) -> None:
    text = """
inputs: {records: records}
nodes:
  a: {use: test.pass, from: records, write: off}
  b: {use: test.pass, from: a, isolate: true}
"""
    with pytest.raises(PlanError, match="edge 'a' of pipeline 'p' is `write: off`, but stage 'b' reads it"):
        make_plan(tmp_path, text)


def test_too_many_partitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"needs \d+ partitions \(limit 1000\)"):
        make_plan(tmp_path, ANSWERED, partitions=400, others=COPIES)


def test_a_plan_survives_json(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        make_plan(tmp_path, ANSWERED, others=COPIES),
        models={"m": ModelPlan("m", "m.onnx", "d", {"max_batch": 3})},
    )
    again = plan_from_json(plan_to_json(plan))
    assert again == plan
    assert plan_to_json(again) == plan_to_json(plan)
    assert digest(again) == digest(plan)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"pipeline": "p"}', b"\xff", b'{"edges": 3}'])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(PlanError, match="not a stored plan"):
        plan_from_json(data)


def test_the_version_is_of_all_that_matters_and_of_nothing_else(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one", ANSWERED, others=COPIES)
    assert make_plan(tmp_path / "elsewhere", ANSWERED, others=COPIES).version == plan.version
    assert (
        make_plan(tmp_path / "c", ANSWERED.replace("nodes:", "# said\nnodes:"), others=COPIES).version
        == plan.version
    )
    other_settings = make_plan(
        tmp_path / "two", ANSWERED.replace("attempts: 4", "attempts: 5"), others=COPIES
    )
    other_contract = make_plan(tmp_path / "three", ANSWERED, others=COPIES.replace("key: do", "key: n"))
    other_code = dataclasses.replace(plan, code_digest="other")
    other_model = dataclasses.replace(plan, models={"m": ModelPlan("m", "f", "digest")})
    found = {
        plan.version, other_settings.version, other_contract.version, digest(other_code), digest(other_model)
    }  # fmt: skip
    assert len(found) == 5
    assert digest(plan) == plan.version
