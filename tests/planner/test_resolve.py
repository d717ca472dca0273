"""Resolved graphs, and every fault of the graph with its whole line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.core.errors import ModelError, SpecError
from dataflow.core.schema import Schema
from dataflow.planner.resolve import Models, Resolved, resolve, unbuilt
from dataflow.sdk import ModelInfo
from tests.planner.kinds import REGISTRY
from tests.spec.projects import project_of

TOPICS = """
kind: Topic
name: t
key: id
partitions: 4
codec: json
fields: {id: string, x: float32, y: float64}
---
kind: Topic
name: u
key: id
partitions: 2
fields: {id: string, z: int32}
---
kind: Topic
name: keyless
fields: {id: string}
---
kind: Model
name: m
file: m.onnx
build: python train.py
"""


def resolved(folder: Path, pipeline: str, models: Models | None = None) -> Resolved:
    head = "kind: Pipeline\nname: p\n"
    project = project_of(folder, {"topics/t.yaml": TOPICS, "pipelines/p.yaml": head + pipeline})
    assert [str(p) for p in project.problems if not p.file.startswith("pipelines")] == []
    return resolve(project, "p", REGISTRY, models=models)


def shown(found: Resolved) -> list[str]:
    return [str(problem).removeprefix("pipelines/p.yaml:") for problem in found.problems]


def test_a_graph(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t, u: u}
edges: {codec: arrow}
nodes:
  last:  {use: test.join, from: {left: [split.a, split.b], right: u}}
  split: {use: test.split, from: first, with: {by: {a: x, b: y}}}
  first: {use: test.filter, from: t, with: {when: good}}
  made:  {use: test.source}
  after: {use: test.pass, from: made, out: {z: "float32[3]"}, keep: [id]}
  rest:  {use: test.pass, from: first.rest}
""",
    )
    assert shown(found) == []
    assert list(found.nodes) == ["first", "split", "last", "made", "after", "rest"]
    assert list(found.edges) == [
        "t", "u", "first", "first.rest", "split.a", "split.b", "last", "made", "after", "rest",
    ]  # fmt: skip
    assert found.edges["t"].codec == "json"
    assert found.edges["t"].key == ("id",)
    assert found.edges["t"].key_encoding == "string"
    assert found.edges["t"].topic == "t"
    last = found.edges["last"]
    assert (last.codec, last.partitions, last.key, last.producer, last.topic) == (
        "arrow",
        4,
        (),
        "last",
        None,
    )
    assert last.schema.names == ("id", "x", "y", "z")
    assert found.edges["made"].partitions == 1
    assert found.nodes["last"].inputs == {"left": ("split.a", "split.b"), "right": ("u",)}
    assert found.nodes["split"].outputs == {"a": "split.a", "b": "split.b"}
    after = found.nodes["after"]
    assert after.out is not None
    assert after.out.describe() == "z: float32[3]"
    assert after.contracts["out"] == after.out
    assert after.keep == ("id",)
    assert found.origins("last") == {"t", "u"}
    assert found.origins("after") == {"made"}


def test_partitions_of_the_pipelines_edges_may_be_declared(tmp_path: Path) -> None:
    found = resolved(
        tmp_path, "inputs: {t: t}\nedges: {partitions: 8}\nnodes: {a: {use: test.pass, from: t}}\n"
    )
    assert found.edges["a"].partitions == 8


def test_unknown_names(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: tt, v: t}
nodes:
  a: {use: test.pas, from: vv}
  b: {use: test.need, from: v, with: {feild: x}}
  c: {use: test.join, from: {left: v, rihgt: v}}
  d: {use: test.uses, from: [v, w], with: {model: n}}
  e: {use: test.split, from: v, with: {by: {a: x, b: y}}}
  f: {use: test.pass, from: e}
  g: {use: test.uses, from: v, with: {table: tu}}
  h: {use: test.uses, from: v, with: {table: keyless}}
  i: {use: test.uses, from: v, with: {table: none.csv}}
""",
    )
    assert shown(found) == [
        "4:13: unknown topic 'tt' (did you mean 't'?)",
        "6:12: unknown node kind 'test.pas' (did you mean 'test.pass'?)",
        "6:28: unknown edge 'vv' (did you mean 'v'?)",
        "7:38: 'field' is missing",
        "7:39: unknown name 'feild' (did you mean 'field'?)",
        "8:29: nothing feeds the input port 'right' (from: {right: ...})",
        "8:39: unknown input port 'rihgt' (did you mean 'right'?)",
        "9:33: unknown edge 'w' (valid: a, b, c, d, e.a, e.b, f, g, h, i, t, v)",
        "9:51: unknown model 'n' (valid: m)",
        "11:29: unknown edge 'e' (its ports: e.a, e.b)",
        "12:46: unknown table 'tu' (did you mean the topic 'u'?)",
        "13:46: topic 'keyless' has no key, so it cannot be a table (declare key: in the topic)",
        f"14:46: no file 'none.csv' in {tmp_path}/pipelines",
    ]


def test_what_follows_from_another_fault_is_not_reported(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: tt}
nodes:
  a: {use: test.pass, from: t, wit: 1}
  b: {use: test.nope, from: a}
  c: {use: test.need, from: [a, b.x], with: {field: nothing}}
  d: {from: c}
  e: {use: test.pass, from: d}
""",
    )
    assert shown(found) == [
        "4:13: unknown topic 'tt' (did you mean 't'?)",
        "7:12: unknown node kind 'test.nope' (did you mean 'test.need'?)",
    ]
    assert found.nodes == {}
    assert found.is_known("b.x")
    assert not found.is_known("x")


def test_cycles(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t}
nodes:
  a: {use: test.pass, from: [t, c]}
  b: {use: test.pass, from: a}
  c: {use: test.pass, from: b}
  d: {use: test.pass, from: c}
  e: {use: test.pass, from: e}
""",
    )
    assert shown(found) == [
        "6:29: these nodes feed each other in a cycle: a -> b -> c -> a (loop.until makes a loop that ends)",
        "10:29: these nodes feed each other in a cycle: e -> e (loop.until makes a loop that ends)",
    ]


def test_a_field_that_no_one_provides(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t}
nodes:
  a: {use: test.need, from: t, with: {field: xx}}
  b: {use: test.need, from: a, with: {field: zzz}}
  c: {use: test.need, from: t, with: {field: nothing}}
""",
    )
    assert shown(found) == [
        "6:46: no field 'xx' in the input (did you mean 'x'?)",
        "8:46: no field 'nothing' in the input (valid: id, x, y)",
    ]


def test_edges_that_do_not_merge(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t, u: u}
nodes:
  a: {use: test.pass, from: t, out: {id: string, x: float64, y: float64}}
  b: {use: test.pass, from: [t, u, a]}
  c: {use: test.join, from: {left: [t, a], right: u}}
  d: {use: test.pass, from: [t, t]}
""",
    )
    assert shown(found) == [
        "7:33: 'u' and 't' differ: 'x', 'y' only in 't', not in 'u' (give both the same fields)",
        "7:36: 'a' and 't' differ: 'x' is float32 in 't', float64 in 'a' (give both the same fields)",
        "8:40: 'a' and 't' differ: 'x' is float32 in 't', float64 in 'a' (give both the same fields)",
        "9:33: edge 't' is there twice",
    ]


def test_ports(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t}
nodes:
  a: {use: test.join, from: t}
  b: {use: test.pass}
  c: {use: test.source, from: t}
  d: {use: test.pass, from: []}
  t: {use: test.pass, from: t}
""",
    )
    assert shown(found) == [
        "6:29: 'test.join' has the input ports left, right: say which (from: {left: ..., right: ...})",
        "7:6: nothing reaches node 'b': 'from' is missing (from: an input or an edge)",
        "8:31: 'test.source' makes its records itself: it has no input (leave it out)",
        "9:6: nothing reaches node 'd': 'from' is missing (from: an input or an edge)",
        "10:3: 't' is an input already (rename one of the two)",
    ]


def test_a_bad_expression_is_pointed_at(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        """
inputs: {t: t}
nodes:
  a: {use: test.filter, from: t, with: {when: a + b}}
  b: {use: test.filter, from: t, with: {when: "a + b"}}
  c:
    use: test.filter
    from: t
    with:
      when: >
        a + b
  d: {use: test.filter, from: t, with: {when: bare}}
""",
    )
    assert shown(found) == [
        "6:50: when: column 4: odd",
        "7:51: when: column 4: odd",
        "12:13: when: column 4: odd",
        "14:48: with.when: odd",
    ]


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    def models(name: str) -> ModelInfo:
        return ModelInfo(name, tmp_path / "m.onnx", Schema.of(y="float32"), Schema.of(score="float32"))

    text = "inputs: {t: t}\nnodes: {a: {use: test.uses, from: t, with: {model: m}}}\n"
    assert shown(resolved(tmp_path, text, models)) == ["4:52: model 'm' needs 'y' as float32, not float64"]
    good = resolved(tmp_path, text)
    assert good.nodes["a"].models == ("m",)
    assert shown(good) == []

    def broken(name: str) -> ModelInfo:
        raise ModelError(f"cannot read '{name}'", hint="build it")

    assert shown(resolved(tmp_path, text, broken)) == ["4:44: cannot read 'm' (build it)"]


def test_models_without_signatures(tmp_path: Path) -> None:
    project = project_of(tmp_path, {"topics/t.yaml": TOPICS})
    assert unbuilt(project)("m") == ModelInfo("m", tmp_path / "topics/m.onnx", Schema(()), Schema(()))


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/planes.csv").write_text("id,seats\nN1,149\n")
    text = """
inputs: {t: t}
nodes:
  a: {use: test.uses, from: t, with: {table: planes.csv}}
  b: {use: test.uses, from: a, with: {table: u}}
"""
    found = resolved(tmp_path, text)
    assert shown(found) == []
    assert found.edges["b"].schema.describe() == "id: string, x: float32, y: float64, seats: int64, z: int32"
    assert (found.tables["planes.csv"].file, found.tables["planes.csv"].key) == ("planes.csv", ())
    assert (found.tables["u"].topic, found.tables["u"].key) == ("u", ("id",))
    assert found.nodes["a"].tables == ("planes.csv",)


def test_a_kind_with_a_fault_of_its_own(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        "inputs: {t: t}\nnodes:\n  a: {use: test.broken, from: t}\n  b: {use: test.mute, from: t}\n",
    )
    assert shown(found) == [
        "5:12: kind 'test.broken' fails on this node: KeyError: 'nowhere' (this is a fault of the kind)",
        "6:12: kind 'test.mute' gives no contract for its port 'out' (this is a fault of the kind)",
    ]


def test_settings_are_checked(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        "inputs: {t: t}\nnodes:\n  a: {use: test.uses, from: t, with: {rows: 0, table: 1}}\n",
    )
    assert shown(found) == [
        "5:45: rows: at least 1 is needed, not 0",
        "5:55: table: text is needed, not 1",
    ]


def test_no_such_pipeline(tmp_path: Path) -> None:
    project = project_of(tmp_path, {"topics/t.yaml": TOPICS})
    with pytest.raises(SpecError, match="no pipeline 'p'"):
        resolve(project, "p", REGISTRY)
