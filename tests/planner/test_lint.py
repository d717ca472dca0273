"""The messages are the product: each bad input's whole line is asserted."""

from __future__ import annotations

from pathlib import Path

from dataflow.core.schema import Schema
from dataflow.planner.lint import check, lint
from dataflow.planner.resolve import resolve
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, ModelInfo, Settings, node
from tests.planner.kinds import REGISTRY, Base
from tests.spec.projects import project_of

TOPICS = """
kind: Topic
name: t
key: id
partitions: 4
fields: {id: string, x: float32, y: float64}
---
kind: Topic
name: u
key: id
partitions: 2
fields: {id: string, z: int32}
---
kind: Topic
name: target
fields: {id: string, x: float64, z: int32}
"""


def lines(folder: Path, pipeline: str, *, registry: Registry = REGISTRY, more: str = "") -> list[str]:
    head = "kind: Pipeline\nname: p\n"
    files = {"topics/t.yaml": TOPICS, "pipelines/p.yaml": head + pipeline}
    if more:
        files["pipelines/more.yaml"] = more
    project = project_of(folder, files)
    return [str(problem).removeprefix("pipelines/p.yaml:") for problem in lint(project, registry)]


def test_a_good_project_has_no_problems(tmp_path: Path) -> None:
    assert (
        lines(
            tmp_path,
            """
inputs: {t: t, u: u}
outputs: {target: wide}
answer: {from: [wide, split.a], when: committed, input: t}
nodes:
  split: {use: test.split, from: t, with: {by: {a: x, b: y}}}
  wide: {use: test.pass, from: split.b, out: {id: string, x: float32, z: int16, more: string}}
  unused: {use: test.pass, from: u}
tests:
  - {name: one, given: {t: [{id: a}]}, expect: {wide: [{z: 1}], split.a: [], t: [{id: a}]}}
""",
        )
        == []
    )


def test_a_pipeline_needs_a_node(tmp_path: Path) -> None:
    assert lines(tmp_path, "inputs: {t: t}\nnodes: {}\n") == [
        "4:8: a pipeline needs a node (nodes: {name: {use: KIND, from: INPUT}})",
    ]


def test_exactly_once(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
delivery: exactly_once
inputs: {a: t, b: u}
answer: {from: n, input: a, when: durable}
nodes: {n: {use: test.join, from: {left: a, right: b}}, other: {use: test.pass, from: b}}
""",
    ) == [
        (
            "4:11: exactly_once needs equal partitions of all that a stage reads; stage 'n' reads 'a' 4, 'b' 2 "
            "(declare equal `partitions`, or bring them to one count by `rekey`)"
        ),
        (
            "6:35: warning: when: a durable answer comes before the commit: after a crash the committed one may differ "
            "(committed waits for it, some 4 ms more)"
        ),
        (
            "7:35: 'test.join' joins partition by partition, but 'a' has 4 partitions and 'b' has 2 partitions "
            "(give their topics equal partitions)"
        ),
    ]


def test_merged_streams_lie_on_equal_partitions(tmp_path: Path) -> None:
    text = """
inputs: {t: t, u: u, keyless: keyless}
nodes:
  a: {use: test.pass, from: t, out: {id: string}}
  b: {use: test.pass, from: u, out: {id: string}}
  c: {use: test.pass, from: [a, b]}
  d: {use: test.pass, from: [keyless, a]}
  e: {use: test.gather, from: {one: [a, b], two: [a, b]}}
  f: {use: test.rekey, from: b, with: {key: id, partitions: 4}}
  g: {use: test.pass, from: [a, f]}
"""
    keyless = "kind: Topic\nname: keyless\nfields: {id: string}\n"
    hint = "(give their topics equal `partitions`, or bring one to the other's by `rekey`)"
    assert lines(tmp_path, text, more=keyless) == [
        f"8:33: node 'c' merges streams that lie on different partitions: 'a' on 4 and 'b' on 2 {hint}",
        f"10:41: node 'e' merges streams that lie on different partitions: 'a' on 4 and 'b' on 2 {hint}",
        f"10:54: node 'e' merges streams that lie on different partitions: 'a' on 4 and 'b' on 2 {hint}",
    ]


def test_merged_streams_of_different_keys_are_a_warning(tmp_path: Path) -> None:
    text = """
inputs: {t: t, v: v}
nodes:
  a: {use: test.pass, from: t, out: {id: string}}
  b: {use: test.pass, from: v, out: {id: string}}
  c: {use: test.pass, from: [a, b]}
  d: {use: test.rekey, from: c, with: {key: id}}
  e: {use: test.pass, from: [d, a]}
"""
    other = "kind: Topic\nname: v\nkey: shop\npartitions: 4\nfields: {id: string, shop: string}\n"
    assert lines(tmp_path, text, more=other) == [
        (
            "8:33: warning: node 'c' merges streams that are keyed differently: 'a' by id and 'b' by shop "
            "(order is kept within each of them; `rekey` gives all one key)"
        ),
    ]


def test_open_edges(tmp_path: Path) -> None:
    text = """
inputs: {t: t}
nodes:
  a: {use: test.pass, from: t, open: true}
  b: {use: test.pass, from: t, open: true, write: off}
  c: {use: test.pass, from: t, open: 1}
"""
    assert lines(tmp_path, text) == [
        (
            "6:38: warning: outsiders may write to topic 'p.a': what they write is processed as this pipeline's own "
            "(`dataflow plan` lists the right to give them)"
        ),
        "7:38: open: others are to write to 'b', but it is `write: off`: it has no topic (leave one of the two out)",
        "8:38: open: true or false is needed, not 1",
    ]


def test_what_a_stage_fetches_is_written(tmp_path: Path) -> None:
    text = """
inputs: {t: t}
nodes:
  a: {use: test.rekey, from: t, with: {key: id}, write: off}
  b: {use: test.pass, from: a}
  c: {use: test.pass, from: a}
"""
    assert lines(tmp_path, text) == [
        (
            "6:57: edge 'a' of pipeline 'p' is `write: off`, but stage 'c' reads it "
            "(write it, or keep both nodes in one stage)"
        ),
    ]


def test_sides_that_come_of_different_streams(tmp_path: Path) -> None:
    text = """
inputs: {t: t}
nodes:
  a: {use: test.pass, from: t}
  b: {use: test.pass, from: t, open: true}
  c: {use: test.gather, from: {one: a, two: b}}
"""
    assert [line for line in lines(tmp_path, text) if "warning" not in line] == [
        (
            "8:31: node 'c' of pipeline 'p' gathers the branches of one record, but its sides come of different stages: "
            "a, b ('test.gather' needs all of them in one stage (no `isolate` in between); join.by_id, join.any and "
            "each.gather do not)"
        ),
    ]


def test_loops(tmp_path: Path) -> None:
    good = """
inputs: {t: t}
nodes:
  a: {use: test.pass, from: [t, b.again]}
  b: {use: test.loop, from: a}
"""
    assert lines(tmp_path / "good", good) == []
    assert lines(tmp_path / "none", "inputs: {t: t}\nnodes:\n  b: {use: test.loop, from: t}\n") == [
        ("5:12: 'b.again' leads back to no node before 'b': nothing goes round "
        "(add 'b.again' to the 'from' of the node where a round begins)"),
    ]  # fmt: skip
    assert lines(tmp_path / "alone", good.replace("[t, b.again]", "b.again")) == [
        ("6:29: nothing enters the loop at node 'a': 'b.again' only comes back to it "
        "(add the edge that a first round begins with)"),
    ]  # fmt: skip
    assert lines(tmp_path / "plain", good.replace("b.again", "b")) == [
        "6:29: these nodes feed each other in a cycle: a -> b -> a (loop.until makes a loop that ends)",
        (
            "7:12: 'b.again' leads back to no node before 'b': nothing goes round "
            "(add 'b.again' to the 'from' of the node where a round begins)"
        ),
    ]
    other = (
        good.replace("from: a}", "from: c}")
        + "  c: {use: test.pass, from: a, out: {id: string, x: float64}}\n"
    )
    assert lines(tmp_path / "other", other) == [
        "6:33: 'b.again' and 't' differ: 'y' only in 't', not in 'b.again' (give both the same fields)",
    ]
    off = good.replace("from: a}", "from: a, write: off}")
    assert lines(tmp_path / "off", off) == [
        ("7:39: edge 'b.again' of pipeline 'p' is `write: off`, but stage 'a' reads it "
        "(write it, or keep both nodes in one stage)"),
    ]  # fmt: skip
    apart = (
        good.replace("from: a}", "from: c}")
        + "  c: {use: test.rekey, from: a, with: {key: id, partitions: 8}}\n"
    )
    assert lines(tmp_path / "apart", apart) == [
        ("6:33: node 'a' merges streams that lie on different partitions: 't' on 4 and 'b.again' on 8 "
        "(give their topics equal `partitions`, or bring one to the other's by `rekey`)"),
    ]  # fmt: skip


def test_outputs(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {t: t}
outputs:
  target: a
  targt: a
  u: [b]
  t: aa
nodes:
  a: {use: test.pass, from: t}
""",
    ) == [
        "6:11: topic 'target' needs the field 'z', which 'a' does not have (valid: id, x, y)",
        "7:3: unknown topic 'targt' (did you mean 'target'?)",
        "8:6: u: text is needed, not ['b']",
        "9:3: warning: topic 't' is also the input 't': its records come round again",
        "9:6: unknown edge 'aa' (did you mean 'a'?)",
    ]


def test_an_output_of_another_type(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {t: t}
outputs: {target: a}
nodes: {a: {use: test.pass, from: t, out: {id: string?, x: float32, z: int64}}}
""",
    ) == [
        "5:19: topic 'target' needs 'id' as string, 'a' has string? (cast it by transform.select)",
        "5:19: topic 'target' needs 'z' as int32, 'a' has int64 (cast it by transform.select)",
    ]


def test_answers(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {t: t, u: u}
answer: {from: [a, b, split, t, bb], when: eager, input: t}
nodes:
  a: {use: test.pass, from: t}
  b: {use: test.pass, from: u}
  split: {use: test.split, from: t, with: {by: {x: x, y: y}}}
""",
    ) == [
        "5:20: no path leads from the input 't' to 'b' (it is fed by 'u')",
        "5:23: unknown edge 'split' (its ports: split.x, split.y)",
        "5:30: 't' is the input itself: an answer comes from a node",
        "5:33: unknown edge 'bb' (did you mean 'b'?)",
        (
            "5:44: warning: when: an eager answer may be lost in a crash: the caller has it, the topics do not "
            "(durable waits for Kafka)"
        ),
    ]


def test_the_input_of_an_answer(tmp_path: Path) -> None:
    nodes = "nodes: {a: {use: test.pass, from: t}}\n"
    assert lines(tmp_path / "a", f"inputs: {{t: t, u: u}}\nanswer: a\n{nodes}") == [
        "4:9: there are several inputs: say which one requests go to (input: t or u)"
    ]
    assert lines(tmp_path / "b", f"inputs: {{t: t}}\nanswer: {{from: a, input: tt}}\n{nodes}") == [
        "4:26: unknown input 'tt' (did you mean 't'?)"
    ]
    assert lines(tmp_path / "c", "answer: a\nnodes: {a: {use: test.source}}\n") == [
        "3:9: an answer needs an input that requests go to (inputs: {name: TOPIC})"
    ]


def test_an_answer_behind_a_fault_is_not_reported(tmp_path: Path) -> None:
    assert lines(tmp_path, "inputs: {t: t}\nanswer: a\nnodes: {a: {use: test.nope, from: t}}\n") == [
        "5:18: unknown node kind 'test.nope' (did you mean 'test.need'?)"
    ]


@node("test.pairs", inputs=("*",))
class Pairs(Base):
    pairs_keys = True

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.inputs["one"]}


def test_records_of_one_key_come_together_if_their_keys_are_equal_bytes(tmp_path: Path) -> None:
    text = "inputs: {a: a, b: b}\nnodes:\n  n: {use: test.pairs, from: {one: a, two: b}}\n"
    more = (
        "kind: Topic\nname: a\nkey: n\nfields: {n: int64}\n---\n"
        "kind: Topic\nname: b\nkey: n\nfields: {n: TYPE}\n"
    )
    registry = Registry.of(Pairs)
    assert lines(tmp_path / "1", text, registry=registry, more=more.replace("TYPE", "int32")) == []
    other = lines(tmp_path / "2", text, registry=registry, more=more.replace("TYPE", "string"))
    expected = (
        "5:30: 'test.pairs' brings records of one key together, and their keys are other bytes: 'a' by n as int64 and "
        "'b' by n as string (equal `key_encoding`, or `rekey` one of them)"
    )
    assert other == [expected]
    without = more.replace("name: b\nkey: n\nfields: {n: TYPE}", "name: b\nfields: {n: int64}")
    expected = (
        "5:44: 'test.pairs' brings records of one key together, and those of 'b' have none "
        "(key: FIELD in its topic, or `rekey`)"
    )
    assert lines(tmp_path / "3", text, registry=registry, more=without) == [expected]


def test_partitions_of_edges_must_divide_those_of_the_input(tmp_path: Path) -> None:
    """A task writes to the partition of its number, which is where keys belong if one count divides the other."""
    text = "inputs: {t: t}\nedges: {partitions: %d}\nnodes:\n  n: {use: test.pass, from: t}\n"
    for index, (count, good) in enumerate({1: True, 2: True, 4: True, 3: False, 8: False}.items()):
        expected = (
            f"4:21: partitions: 'n' would have {count}, and 't', which it is made of, has 4: records would not lie where "
            "their keys belong (leave it out, or valid: 1, 2, 4; `rekey` spreads records over any number)"
        )
        assert lines(tmp_path / str(index), text % count) == ([] if good else [expected])
    rekeyed = text.replace("use: test.pass, from: t", "use: test.rekey, from: t, with: {key: id}")
    assert lines(tmp_path / "rekeyed", rekeyed % 8 + "  m: {use: test.pass, from: n}\n") == []


def test_more_partitions_than_an_input_without_keys_has(tmp_path: Path) -> None:
    files = {"topics/k.yaml": "kind: Topic\nname: k\npartitions: 4\nfields: {id: string}\n"}
    files["pipelines/p.yaml"] = (
        "kind: Pipeline\nname: p\ninputs: {k: k}\nedges: {partitions: 8}\nnodes:\n  n: {use: test.pass, from: k}\n"
    )
    (problem,) = lint(project_of(tmp_path, files), REGISTRY)
    assert problem.severity == "warning"
    assert "'n' would have 8, and 'k', which it is made of, has 4: some partitions would stay empty" in str(
        problem
    )


def test_a_join_of_differently_partitioned_topics(tmp_path: Path) -> None:
    text = """
inputs: {t: t, u: u}
nodes:
  a: {use: test.pass, from: t}
  b: {use: test.join, from: {left: a, right: u}}
  c: {use: test.join, from: {left: a, right: t}}
"""
    assert lines(tmp_path, text) == [
        (
            "7:29: 'test.join' joins partition by partition, but 'a' has 4 partitions and 'u' has 2 partitions "
            "(give their topics equal partitions)"
        )
    ]


def test_a_codec_that_cannot_carry_the_edges(tmp_path: Path) -> None:
    text = "inputs: {t: t}\nedges: {codec: raw}\nnodes: {a: {use: test.pass, from: t}, b: {use: test.pass, from: a, out: {x: bytes}}}\n"
    assert lines(tmp_path, text) == [
        (
            "4:16: codec: 'raw' carries one field of type bytes, 'a' has id: string, x: float32, y: float64 "
            "(valid: avro, arrow, json)"
        )
    ]


def test_inline_tests(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {t: t}
nodes: {ab: {use: test.pass, from: t}, c: {use: test.nope, from: t}}
tests:
  - name: one
    given: {tt: [{id: a}], t: [{idd: a, x: 1}]}
    expect: {abc: [], ab: [{x: 1}, {xx: 1}], c.port: [{whatever: 1}]}
""",
    ) == [
        "5:49: unknown node kind 'test.nope' (did you mean 'test.need'?)",
        "8:13: unknown input 'tt' (did you mean 't'?)",
        "8:33: 't' has no field 'idd' (did you mean 'id'?)",
        "9:14: unknown edge 'abc' (did you mean 'ab'?)",
        "9:37: 'ab' has no field 'xx' (did you mean 'x'?)",
    ]


def test_durations(tmp_path: Path) -> None:
    assert lines(
        tmp_path,
        """
inputs: {t: t}
deadline: 0ms
edges: {retention: 0d}
nodes: {a: {use: test.pass, from: t, retry: {backoff: 1m, backoff_max: 1s}}}
""",
    ) == [
        "5:11: deadline: a duration of zero is not possible here, not '0ms' (e.g. 500ms, 2s, 1h30m, 7d)",
        "6:20: retention: a duration of zero is not possible here, not '0d' (e.g. 500ms, 2s, 1h30m, 7d)",
        "7:55: backoff: longer than backoff_max, which is 1s",
    ]
    assert lines(tmp_path, "deadline: 11m\ninputs: {t: t}\nnodes: {a: {use: test.pass, from: t}}\n") == [
        "3:11: deadline: a deadline of 11m is too long (at most 10m)"
    ]


def test_one_name_for_two_pipelines_and_a_model_without_a_file(tmp_path: Path) -> None:
    more = """
kind: Pipeline
name: p
nodes: {a: {use: test.source}}
---
kind: Model
name: m
file: none.onnx
"""
    assert lines(tmp_path, "inputs: {t: t}\nnodes: {a: {use: test.pass, from: t}}\n", more=more) == [
        "pipelines/more.yaml:7:7: no file 'none.onnx' (or say how to make it, e.g. build: python train.py)",
        "2:7: pipeline 'p' is declared twice (first at pipelines/more.yaml:2)",
    ]


def test_problems_of_several_documents_at_once_in_their_order(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "topics/t.yaml": "kind: Topic\nname: t\nfields: {x: floaty}\n",
            "pipelines/b.yaml": "kind: Pipeline\nname: b\ninputs: {t: t}\nnodes: {a: {use: test.nope, from: t}}\n",
            "pipelines/a.yaml": "kind: Pipeline\nname: a\ninputs: {t: tt}\nnodes: {a: {use: test.pass, from: tt}}\n",
        },
    )
    assert [str(problem) for problem in lint(project, REGISTRY)] == [
        "pipelines/a.yaml:3:13: unknown topic 'tt' (none is declared)",
        "pipelines/a.yaml:4:35: unknown edge 'tt' (did you mean 't'?)",
        "pipelines/b.yaml:4:18: unknown node kind 'test.nope' (did you mean 'test.need'?)",
        "topics/t.yaml:3:13: x: unknown type 'floaty' (did you mean 'float64'?)",
    ]


# ---- with the real kinds


REAL = """
kind: Topic
name: flights
key: tailnum
fields: {tailnum: string, delay: "float32?", image: "float32[2]"}
---
kind: Model
name: late
file: late.onnx
build: "true"
"""


def real(folder: Path, nodes: str) -> list[str]:
    files = {
        "topics/t.yaml": REAL,
        "pipelines/p.yaml": f"kind: Pipeline\nname: p\ninputs: {{t: flights}}\n{nodes}",
    }
    files["pipelines/f.py"] = (
        "from typing import TypedDict\n\nclass Out(TypedDict):\n    a: int\n\n"
        "def call(row: dict) -> Out:\n    raise SystemExit('lint must not run this')\n\nraise SystemExit('nor this')\n"
    )
    project = project_of(folder, files)

    def models(name: str) -> ModelInfo:
        return ModelInfo(
            name, folder / "late.onnx", Schema.of(image="float32", delay="float32"), Schema.of(p="float32")
        )

    return [str(p).removeprefix("pipelines/p.yaml:") for p in lint(project, Registry.default(), models)]


def test_real_kinds_a_bad_expression(tmp_path: Path) -> None:
    assert real(
        tmp_path,
        """
nodes:
  a: {use: filter.when, from: t, with: {when: delay > tailnum}}
  b: {use: route.when, from: t, with: {late: "dely > 30", on_time: otherwise}}
""",
    ) == [
        (
            "6:47: when: column 1, at 'delay > tailnum': float32? and string do not compare "
            "(float(s) reads a number, string(x) writes one)"
        ),
        "7:47: late: column 1, at 'dely': no field 'dely' (did you mean 'delay'?)",
    ]


def test_real_kinds_user_code_is_never_run(tmp_path: Path) -> None:
    assert (
        real(
            tmp_path,
            "nodes:\n  a: {use: transform.python, from: t, with: {call: f.call}}\n"
            "  b: {use: filter.when, from: a, with: {when: a > 1}}\n",
        )
        == []
    )


def test_real_kinds_a_model_that_does_not_fit(tmp_path: Path) -> None:
    found = real(tmp_path, "nodes:\n  a: {use: model.onnx, from: t, with: {model: late}}\n")
    assert len(found) == 1
    assert found[0].startswith("5:")
    assert "image" in found[0] or "delay" in found[0]


def test_check_holds_what_resolve_found(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "topics/t.yaml": TOPICS,
            "pipelines/p.yaml": "kind: Pipeline\nname: p\ninputs: {t: tt}\nanswer: b\nnodes: {a: {use: test.pass, from: t}}\n",
        },
    )
    found = check(project, resolve(project, "p", REGISTRY))
    assert [problem.message for problem in found] == ["unknown topic 'tt'", "unknown edge 'b'"]
