from __future__ import annotations

from pathlib import Path

from dataflow.planner.draw import graph_as_dict, graph_as_mermaid, graph_as_text
from dataflow.planner.serial import plan_from_json, plan_to_json
from tests.planner.test_report import planned

TEXT = """\
watch

         ╭─────────────────╮
         │  topic readings │
         ╰─────────────────╯
                  ┆
                  ▼
          ┌───────────────┐
          │     limit     │
          │  join.lookup  │
          │    stage 1    │
          │  table limits │
          └───────────────┘
        ┌─────────┤
        │         └┄┄┄┄┄┄┄┄┄┐
        ▼                   ▼
┌───────────────┐    ┌─────────────┐
│     route     │    │    audit    │
│   route.when  │    │ filter.when │
│    stage 1    │    │   stage 2   │
│ high → alarms │    └─────────────┘
│  low → answer │
└───────────────┘

stages
  1  limit: all that an answer waits for
  2  audit: not on the path to an answer: it must never slow or fail a request
solid lines stay in a stage's memory, dashed ones are read from Kafka; every edge is a topic
"""

MERMAID = """\
flowchart TD
  input_readings(["topic readings"])
  subgraph stage_limit["stage limit"]
    node_limit["limit<br/><i>join.lookup</i>"]
    node_route["route<br/><i>route.when</i>"]
  end
  subgraph stage_audit["stage audit"]
    node_audit["audit<br/><i>filter.when</i>"]
  end
  input_readings -.-> node_limit
  table_limits[("limits")] -.-> node_limit
  node_limit --> node_route
  node_limit -.-> node_audit
  answer{{answer}}
  node_route -->|"low"| answer
  node_route -->|"high"| topic_alarms(["topic alarms"])
"""


def test_text(tmp_path: Path) -> None:
    assert graph_as_text(planned(tmp_path)) == TEXT


def test_mermaid(tmp_path: Path) -> None:
    assert graph_as_mermaid(planned(tmp_path)) == MERMAID


def test_mermaid_names_never_clash(tmp_path: Path) -> None:
    more = "a-b: {use: filter.when, from: limit, with: {when: value > 1}}"
    plan = planned(tmp_path, old="audit: {", new=f"{more}\n          a_b: {{")
    text = graph_as_mermaid(plan)
    assert 'node_a_b["a-b<br/>' in text
    assert 'node_a_b_1["a_b<br/>' in text


def test_a_stored_plan_looks_the_same(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert graph_as_text(plan_from_json(plan_to_json(plan))) == graph_as_text(plan)


def test_dictionary(tmp_path: Path) -> None:
    found = graph_as_dict(planned(tmp_path))
    assert [n["name"] for n in found["nodes"]] == ["limit", "route", "audit"]
    assert [n["stage"] for n in found["nodes"]] == ["limit", "limit", "audit"]
    edges = {e["name"]: e for e in found["edges"]}
    assert edges["limit"] == {
        "name": "limit",
        "from": "limit",
        "to": ["route", "audit"],
        "topics": ["watch.limit"],
        "published": [],
        "answers": False,
    }
    assert edges["route.high"]["published"] == ["alarms"]
    assert edges["route.low"]["answers"]
    assert edges["readings"]["from"] is None
