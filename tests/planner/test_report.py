from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.core.schema import KINDS, FieldType, Schema
from dataflow.planner.estimate import estimate_writes, record_bytes
from dataflow.planner.plan import Plan
from dataflow.planner.report import diff_plans, partitions_of, plan_as_dict, plan_as_text
from dataflow.planner.rights import rights_of
from dataflow.planner.serial import digest, plan_from_json
from tests.spec.projects import write

FILES = {
    "dataflow.yaml": "kind: Project\nname: test\n",
    "topics.yaml": """
        kind: Topic
        name: readings
        key: sensor
        partitions: 2
        fields: {sensor: string, value: float64}
        ---
        kind: Topic
        name: limits
        key: sensor
        cleanup: compact
        fields: {sensor: string, highest: float64}
        ---
        kind: Topic
        name: alarms
        codec: json
        fields: {sensor: string}
        """,
    "pipelines/p.yaml": """
        kind: Pipeline
        name: watch
        inputs: {readings: readings}
        outputs: {alarms: route.high}
        answer: {from: route.low}
        deadline: 2s
        nodes:
          limit: {use: join.lookup, from: readings, with: {table: limits, by: {sensor: sensor}}}
          route: {use: route.when, from: limit, with: {high: value > highest, low: otherwise}, retry: {attempts: 2}}
          audit: {use: filter.when, from: limit, with: {when: value > 0}}
        """,
}

EXPECTED = """\
pipeline watch, version VERSION
  delivery  at least once
  answer    the first record on route.low, when durable, within 2s
  requests  go to watch.requests, read as input 'readings'

stages
  limit
    why      all that an answer waits for
    group    dataflow.watch.limit
    tasks    2
    reads    readings
    runs     limit (join.lookup), route (route.when)
    writes   limit, route.high, route.low
    answers  route.low
  audit
    why     not on the path to an answer: it must never slow or fail a request
    group   dataflow.watch.audit
    tasks   2
    reads   limit
    runs    audit (filter.when)
    writes  audit

edges
  readings
    from    topics of others and requests
    tap     readings, watch.requests
    key     sensor (string)
    codec   avro
    fields  sensor: string, value: float64
  limit
    from    node limit
    tap     watch.limit
    key     that of the record it comes from
    codec   avro
    fields  sensor: string, value: float64, highest: float64?
  route.high
    from    node route
    tap     watch.route.high
    copy    alarms (json)
    key     that of the record it comes from
    codec   avro
    fields  sensor: string, value: float64, highest: float64?
"""


def planned(folder: Path, *, old: str = "", new: str = "") -> Plan:
    text = FILES["pipelines/p.yaml"].replace(old, new)
    write(folder, {**FILES, "pipelines/p.yaml": text})
    return assemble(folder, environ={}).plans[0]


def test_text(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    text = plan_as_text(plan)
    assert text.replace(plan.version, "VERSION").startswith(EXPECTED)
    assert text == plan_as_text(plan_from_json(json.dumps(plan_as_dict(plan)["plan"]).encode()))


def test_topics_rights_and_costs_are_told(tmp_path: Path) -> None:
    text = plan_as_text(planned(tmp_path))
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert (
        "alarms output 1 cleanup.policy=delete, max.message.bytes=1032768, retention.ms=604800000 (7d)"
        in lines
    )
    assert "dataflow.plans plans 1 cleanup.policy=compact" in lines
    assert "table limits topic limits, by sensor" in lines
    assert "worker group dataflow.watch.audit DESCRIBE, READ" in lines
    assert "gateway topic watch.requests DESCRIBE, READ, WRITE" in lines
    assert "30 of 1000 partitions (14 topics)" in lines
    assert "6.90 bytes written per input byte: 145 bytes written for each record of 21" in lines


def test_nothing_is_written_without_a_right(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    rights = {(r.role, r.name): r.operations for r in rights_of(plan)}
    for edge in plan.edges.values():
        for topic in (*(edge.topics if edge.node else ()), *(p.topic for p in edge.publish)):
            assert "WRITE" in rights["worker", topic]
    for stage in plan.stages:
        assert "READ" in rights["worker", stage.group]
        for name in stage.reads:
            for topic in plan.edges[name].topics:
                assert "READ" in rights["worker", topic]
    assert "WRITE" not in rights["worker", "readings"]
    assert rights["worker", "limits"] == ("DESCRIBE", "READ")
    assert {name for role, name in rights if role == "deploy"} == set(plan.topics)


def test_the_dictionary_holds_all_of_it(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = json.loads(json.dumps(plan_as_dict(plan)))
    assert plan_from_json(json.dumps(found["plan"]).encode()) == plan
    assert found["partitions"] == {"used": partitions_of(plan), "limit": 1000}
    assert found["bytes"]["by_edge"] == {"audit": 30, "limit": 30, "route.high": 55, "route.low": 30}
    assert sum(found["bytes"]["by_edge"].values()) == found["bytes"]["written_per_input_record"]


# ---------------------------------------------------------------- differences


def changes(folder: Path, old: str, new: str) -> list[str]:
    before = planned(folder)
    after = planned(folder, old=old, new=new)
    found = diff_plans(before, after)
    assert found[0] == f"~ pipeline watch: version {before.version} -> {after.version}"
    return found[1:]


def test_equal_plans_do_not_differ(tmp_path: Path) -> None:
    assert diff_plans(planned(tmp_path), planned(tmp_path)) == []


def test_a_new_pipeline_and_one_that_is_gone(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert diff_plans(None, plan) == ["+ pipeline watch"]
    assert diff_plans(plan, None) == ["- pipeline watch"]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("value > 0", "value > 1", ["~ node audit: settings.when: value > 0 -> value > 1"]),
        ("deadline: 2s", "deadline: 3s", ["~ pipeline watch: deadline_ms: 2000 -> 3000"]),
        ("attempts: 2", "attempts: 4", ["~ node route: retry.attempts: 2 -> 4"]),
        (
            "audit: {use: filter.when, from: limit,",
            "check: {use: filter.when, from: limit, isolate: true,",
            [
                "+ stage check",
                "- stage audit",
                "+ node check",
                "- node audit",
                "+ edge check",
                "- edge audit",
                "+ topic watch.check",
                "- topic watch.audit",
            ],
        ),
        (
            "deadline: 2s",
            "edges: {retention: 1h, codec: json}",
            [
                "~ pipeline watch: deadline_ms: 2000 -> 30000",
                "~ edge audit: codec: avro -> json",
                "~ edge limit: codec: avro -> json",
                "~ edge route.high: codec: avro -> json",
                "~ edge route.low: codec: avro -> json",
                "~ topic watch.audit: config.retention.ms: 86400000 -> 3600000",
                "~ topic watch.limit: config.retention.ms: 86400000 -> 3600000",
                "~ topic watch.requests: config.retention.ms: 86400000 -> 3600000",
                "~ topic watch.route.high: config.retention.ms: 86400000 -> 3600000",
                "~ topic watch.route.low: config.retention.ms: 86400000 -> 3600000",
            ],
        ),
    ],
)
def test_what_changed(tmp_path: Path, old: str, new: str, lines: list[str]) -> None:
    assert changes(tmp_path, old, new) == lines


def test_contracts_are_compared_field_by_field(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    edge = plan.edges["readings"]
    wider = Schema.of(value="float32", sensor="string", unit="string")
    other = dataclasses.replace(
        plan, edges={**plan.edges, "readings": dataclasses.replace(edge, schema=wider)}
    )
    other = dataclasses.replace(other, version=digest(other), code_digest="changed")
    assert diff_plans(plan, other)[1:] == [
        "~ pipeline watch: its code",
        "~ edge readings: field value: float64 -> float32",
        "+ edge readings: field unit: string",
    ]


# ---------------------------------------------------------------- estimates


def test_estimates_count_every_copy(tmp_path: Path) -> None:
    estimate = estimate_writes(planned(tmp_path))
    read = record_bytes(Schema.of(sensor="string", value="float64"), "avro")
    copy = record_bytes(Schema.of(sensor="string"), "json")
    assert read == 1 + 12 + 8
    assert copy == len('{"sensor":"xxxxxxxxxxxx"}')
    assert estimate.read_bytes == read
    assert estimate.by_edge["route.high"] == estimate.by_edge["route.low"] + copy
    assert estimate.ratio == pytest.approx(sum(estimate.by_edge.values()) / read)


def test_an_edge_that_is_not_written_costs_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path, old="with: {when: value > 0}", new="write: off, with: {when: value > 0}")
    assert estimate_writes(plan).by_edge["audit"] == 0


SPECIAL = {
    "enum": FieldType("enum", symbols=("low", "high")),
    "decimal": FieldType("decimal", precision=10, scale=2),
    "list": FieldType("list", item=FieldType("string")),
    "record": FieldType("record", fields=Schema.of(a="int32").fields),
}


@pytest.mark.parametrize("codec", ["avro", "json", "arrow"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_has_a_typical_record(kind: str, codec: str) -> None:
    field_type = SPECIAL.get(kind, FieldType(kind))
    assert record_bytes(Schema.of(x=field_type), codec) > 0
    nullable = dataclasses.replace(field_type, nullable=True)
    assert record_bytes(Schema.of(x=nullable), codec) > 0


def test_tensors_are_counted_whole() -> None:
    assert record_bytes(
        Schema.of(x=FieldType("float32", (3, 224, 224))), "avro"
    ) - 4 * 3 * 224 * 224 in range(5)
    assert record_bytes(Schema.of(x=FieldType("float32", (-1, 8))), "avro") >= 4 * 4 * 8
