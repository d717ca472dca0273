"""The words here are the product: each fault's whole line is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.core.errors import SpecError
from dataflow.spec import Problem, errors_of, load_project
from tests.spec.projects import project_of, shown, write

TOPIC = """
kind: Topic
name: t
key: id
fields: {id: string, x: float32}
"""


def test_a_project_is_read(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "dataflow.yaml": """
                name: demo
                kafka: {bootstrap: "${BOOT:localhost:9092}", security.protocol: SASL_SSL, sasl.password: {file: secret}}
                gateway:
                  port: ${PORT:9000}
            """,
            "secret": "hunter2\n",
            "topics/deep/t.yaml": TOPIC,
            "models/m.yml": "kind: Model\nname: m\nfile: m.onnx\ninputs: train.py\noptions: {intra_threads: 2}\n",
            "pipelines/p/p.yaml": """
                kind: Pipeline
                name: p
                inputs: {t: t}
                nodes: {n: {use: k, from: t}}
                ---
                kind: Topic
                name: own
                fields: {x: int64}
            """,
            "docker-compose.yml": "services: {}\n",
            "k8s.yaml": "apiVersion: v1\nkind: Deployment\n",
            "extra.yaml": "other: 1\n---\n" + TOPIC.replace("name: t", "name: root"),
            "pipelines/p/.hidden/x.yaml": "not: ours",
        },
        {"BOOT": "kafka:1"},
    )
    assert shown(project) == []
    assert sorted(project.topics) == ["own", "root", "t"]
    assert list(project.models) == ["m"]
    assert project.models["m"].spec.inputs == ("train.py",)
    assert project.models["m"].spec.chosen_options == {"intra_threads": 2}
    assert list(project.pipelines) == ["p"]
    assert project.pipelines["p"].folder == tmp_path / "pipelines/p"
    assert project.pipelines["p"].place(("nodes", "n", "use")) == (4, 18)
    assert (project.name, project.settings.gateway.port) == ("demo", 9000)
    assert project.settings.kafka.settings(tmp_path) == {
        "bootstrap.servers": "kafka:1", "security.protocol": "SASL_SSL", "sasl.password": "hunter2",
    }  # fmt: skip


def test_an_empty_folder_is_a_project_by_its_name(tmp_path: Path) -> None:
    project = load_project(tmp_path, environ={})
    assert (project.name, project.problems) == (tmp_path.name, [])
    with pytest.raises(SpecError, match="no pipeline 'p'"):
        project.pipeline("p")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no folder"):
        load_project(tmp_path / "none", environ={})


def test_all_faults_of_a_document_at_once(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "pipelines/p.yaml": """
                kind: Pipeline
                name: p q
                inputs:   {dep: t}
                answer:   {from: [rebook], when: commited}
                delivery: exactly_twice
                deadline: 2
                edges:    {retention: 0s, codex: avro, partitions: none}
                nodes:
                  one:   {use: join.lookup, from: dep, wit: {table: weather}}
                  two:   {from: one, out: {x: {type: float23, shape: [12]}}, isolate: on}
                  two:   {from: weather}
                  three: {use: a.b, from: dep, write: sampled, retry: {attempts: 0}, keep: {a: b}}
                  4:     {use: a.b, from: dep, out: {a-b: string}}
                tests:
                  - {name: a, given: {dep: [1]}}
            """
        },
    )
    assert shown(project) == [
        "pipelines/p.yaml:2:7: name: 'p q' is no valid name (a letter, then letters, digits, _ and -)",
        (
            "pipelines/p.yaml:4:34: when: 'commited' is not possible "
            "(did you mean 'committed'? valid: committed, durable, eager)"
        ),
        (
            "pipelines/p.yaml:5:11: delivery: 'exactly_twice' is not possible "
            "(did you mean 'exactly_once'? valid: at_least_once, exactly_once)"
        ),
        "pipelines/p.yaml:6:11: deadline: a duration is needed, not 2 (e.g. 500ms, 2s, 1h30m, 7d)",
        (
            "pipelines/p.yaml:7:23: retention: a duration of zero is not possible here, not '0s' "
            "(e.g. 500ms, 2s, 1h30m, 7d)"
        ),
        "pipelines/p.yaml:7:27: unknown name 'codex' (did you mean 'codec'?)",
        "pipelines/p.yaml:7:52: partitions: a whole number is needed, not 'none'",
        "pipelines/p.yaml:9:40: unknown name 'wit' (did you mean 'with'?)",
        "pipelines/p.yaml:10:10: 'use' is missing",
        "pipelines/p.yaml:10:31: x: unknown type 'float23' (did you mean 'float32'?)",
        "pipelines/p.yaml:10:71: isolate: true or false is needed, not 'on'",
        "pipelines/p.yaml:11:3: 'two' is declared twice (first in line 10)",
        "pipelines/p.yaml:12:39: write: 'sampled' is not possible in this version (valid: on, off)",
        "pipelines/p.yaml:12:66: attempts: at least 1 is needed, not 0",
        "pipelines/p.yaml:12:76: keep: a list is needed, not {'a': 'b'}",
        "pipelines/p.yaml:13:3: '4' is no valid name (a letter, then letters, digits, _ and -)",
        "pipelines/p.yaml:13:38: 'a-b' is no field name (a letter or _, then letters, digits and _)",
        "pipelines/p.yaml:15:5: 'expect' is missing",
        "pipelines/p.yaml:15:29: dep: a mapping is needed, not 1",
    ]


def test_a_node_with_a_fault_leaves_the_rest_to_lint(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "pipelines/p.yaml": "kind: Pipeline\nname: p\nnodes: {a: {use: k, wit: 1}, b: {use: k, from: a}, c: {}}\n"
        },
    )
    declared = project.pipelines["p"]
    assert list(declared.spec.nodes) == ["a", "b"]
    assert declared.left_out == {"a", "c"}


def test_a_fault_in_a_test_keeps_the_places_of_the_others(tmp_path: Path) -> None:
    text = "kind: Pipeline\nname: p\nnodes: {a: {use: k}}\ntests:\n- {nam: x}\n- {name: y, given: {}, expect: {}}\n"
    declared = project_of(tmp_path, {"pipelines/p.yaml": text}).pipelines["p"]
    assert [test.name for test in declared.spec.tests] == ["", "y"]
    assert declared.place(("tests", 1, "name")) == (6, 10)


def test_deadline_above_the_limit(tmp_path: Path) -> None:
    text = "kind: Pipeline\nname: p\ndeadline: 1h\nnodes: {a: {use: k}}\n"
    assert shown(project_of(tmp_path, {"pipelines/p.yaml": text})) == [
        "pipelines/p.yaml:3:11: deadline: a deadline of 1h is too long (at most 10m)"
    ]


def test_topic_faults(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "topics/a.yaml": """
                kind: Topic
                name: a
                key: [idd, image]
                cleanup: compact
                codec: raw
                fields:
                  id: string
                  image: uint8[3]
                  when: {type: string, event_time: true}
                  then: {type: timestamp, event_time: true}
            """,
            "topics/b.yaml": """
                kind: Topic
                name: b/c
                partitions: 0
                cleanup: compacted
                max_record_bytes: 1 potato
                fields: {}
            """,
            "topics/c.yaml": "kind: Topic\nname: c\nkey: x\nkey_encoding: int\ncleanup: compact\nfields: {x: string}\n",
            "topics/f.yaml": "kind: Topic\nname: f\nkey: n\nkey_encoding: int32\nfields: {n: int64}\n",
            "topics/e.yaml": "kind: Topic\nname: e\nkey: n\nkey_encoding: int32\nfields: {n: uint16}\n",
            "topics/d.yaml": "kind: Topic\nname: d\ncleanup: compact\nfields: {x: string}\n",
        },
    )
    assert shown(project) == [
        "topics/a.yaml:3:7: key: no field 'idd' (did you mean 'id'?)",
        "topics/a.yaml:3:12: key: field 'image' of type uint8[3] cannot be a key",
        "topics/a.yaml:5:8: codec: 'raw' carries exactly one field, of type bytes (valid: avro, arrow, json, cloudevents)",
        "topics/a.yaml:9:36: event_time: field 'when' is no timestamp",
        "topics/a.yaml:10:39: event_time: field 'when' is it already",
        "topics/b.yaml:2:7: name: 'b/c' is no topic name (letters, digits and . _ -, at most 249 of them)",
        "topics/b.yaml:3:13: partitions: at least 1 is needed, not 0",
        (
            "topics/b.yaml:4:10: cleanup: 'compacted' is not possible "
            "(did you mean 'compact'? valid: delete, compact, compact,delete)"
        ),
        "topics/b.yaml:5:19: max_record_bytes: a size is needed, not '1 potato' (e.g. 64KiB, 10MB, 1GB)",
        "topics/b.yaml:6:9: fields: it must not be empty",
        "topics/c.yaml:4:15: key_encoding: 'int64' needs a whole number, not string",
        "topics/d.yaml:3:10: a compacted topic needs a key (e.g. key: id)",
        (
            "topics/f.yaml:4:15: key_encoding: 'int32' takes 4 bytes, which do not hold every int64 "
            "(valid: int64, string, composite; or declare 'n' as int32)"
        ),
    ]


@pytest.mark.parametrize(
    ("key", "encoding"),
    [
        ("s", "string"),
        ("i", "int64"),
        ("t", "int64"),
        ("b", "bytes"),
        ("[s, i]", "composite"),
        ("d", "string"),
    ],
)
def test_the_default_of_a_key(tmp_path: Path, key: str, encoding: str) -> None:
    fields = "fields: {s: string, i: int32, t: timestamp, b: bytes, d: date}"
    project = project_of(tmp_path, {"topics/t.yaml": f"kind: Topic\nname: t\nkey: {key}\n{fields}\n"})
    assert project.topics["t"].spec.key_bytes == encoding


def test_names_declared_twice(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "topics/a.yaml": TOPIC,
            "topics/b.yaml": f"{TOPIC}\n---{TOPIC}",
            "dataflow.yaml": "name: a\n---\nname: b\n",
        },
    )
    assert shown(project) == [
        "dataflow.yaml:3:7: the project's settings are declared twice (first at dataflow.yaml:1)",
        "topics/b.yaml:2:7: topic 't' is declared twice (first at topics/a.yaml:2)",
        "topics/b.yaml:8:7: topic 't' is declared twice (first at topics/a.yaml:2)",
    ]


def test_documents_of_no_kind(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "topics/a.yaml": "name: t\n",
            "topics/b.yaml": "kind: Topc\n",
            "topics/c.yaml": "- 1\n",
            "topics/d.yaml": "kind: 3\n",
        },
    )
    assert shown(project) == [
        "topics/a.yaml:1:1: 'kind' is missing (valid: Topic, Model, Pipeline)",
        "topics/b.yaml:1:7: unknown kind 'Topc' (did you mean 'Topic'?)",
        "topics/c.yaml:1:1: a declaration is a mapping (start with kind: Topic, Model, Pipeline)",
        "topics/d.yaml:1:7: unknown kind 3 (valid: Model, Pipeline, Topic)",
    ]


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path, {"topics/b.yaml": TOPIC})
    (folder / "topics/a.yaml").write_bytes(b"\xff\xfe\x00")
    project = load_project(folder, environ={})
    assert shown(project) == ["topics/a.yaml:1:1: cannot read the file: it is not UTF-8 text"]
    assert list(project.topics) == ["t"]


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    project = project_of(
        tmp_path,
        {
            "dataflow.yaml": """
                kafka: {sasl.password: hunter2, sasl.username: [hunter3], bootstrap: 5}
                gateway: {token: 12345, prt: 1}
            """
        },
    )
    assert shown(project) == [
        "dataflow.yaml:1:48: sasl.username: text, a number or {file: PATH} is needed",
        "dataflow.yaml:1:70: bootstrap: text is needed",
        "dataflow.yaml:2:18: token: text is needed",
        "dataflow.yaml:2:25: unknown name 'prt' (did you mean 'port'?)",
    ]
    assert not any("hunter" in str(problem.as_dict()) for problem in project.problems)
    kept = project_of(
        tmp_path / "b", {"dataflow.yaml": "kafka: {sasl.password: hunter2}\ngateway: {token: tok}\n"}
    )
    assert "hunter2" not in repr(kept.settings)
    assert "tok'" not in repr(kept.settings)


def test_a_secret_file_that_is_not_there(tmp_path: Path) -> None:
    project = project_of(tmp_path, {"dataflow.yaml": "kafka: {sasl.password: {file: none}}\n"})
    with pytest.raises(SpecError, match=r"kafka: sasl.password: cannot read 'none': No such file"):
        project.settings.kafka.settings(tmp_path)


def test_problems_sort_print_and_serialise() -> None:
    error = Problem("a.yaml", 2, 1, "wrong", "x", "do y")
    warning = Problem("a.yaml", 10, 1, "risky", severity="warning")
    assert sorted([warning, error]) == [error, warning]
    assert str(error) == "a.yaml:2:1: wrong (do y)"
    assert str(warning) == "a.yaml:10:1: warning: risky"
    assert errors_of([error, warning]) == [error]
    assert error.as_dict() == {
        "file": "a.yaml", "line": 2, "column": 1, "message": "wrong", "value": "x", "hint": "do y", "severity": "error",
    }  # fmt: skip
