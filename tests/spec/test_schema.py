from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dataflow.sdk import NodeKind
from dataflow.spec.documents import KINDS
from dataflow.spec.schema import declarations_schema
from tests.planner.kinds import REGISTRY


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return declarations_schema(REGISTRY.kinds())


def test_it_is_json_and_every_reference_is_there(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    for name in re.findall(r'"#/definitions/([^"]+)"', text):
        assert name in schema["definitions"]
    assert "$defs" not in text


def test_every_kind_of_document(schema: dict[str, Any]) -> None:
    rules = {rule["if"].get("properties", {}).get("kind", {}).get("const") for rule in schema["allOf"]}
    assert rules == {"Topic", "Model", "Pipeline", None}
    assert schema["properties"]["kind"] == {"enum": list(KINDS)}


def test_names_are_those_that_users_write(schema: dict[str, Any]) -> None:
    node = schema["definitions"]["NodeSpec"]["properties"]
    assert {"use", "from", "with", "out", "keep", "retry", "isolate", "write"} <= set(node)
    assert set(schema["definitions"]["AnswerSpec"]["anyOf"][1]["properties"]) == {"from", "when", "input"}
    assert schema["definitions"]["PipelineSpec"]["properties"]["deadline"]["default"] == "30s"


def test_settings_follow_the_kind(schema: dict[str, Any]) -> None:
    rules = {
        rule["if"]["properties"]["use"]["const"]: rule["then"]
        for rule in schema["definitions"]["NodeSpec"]["allOf"]
    }
    assert set(rules) == {kind.name for kind in REGISTRY.kinds()}
    assert rules["test.need"]["required"] == ["with"]
    assert "required" not in rules["test.pass"]
    reference = rules["test.need"]["properties"]["with"]["$ref"].rpartition("/")[2]
    assert schema["definitions"][reference]["properties"]["field"]["type"] == "string"


def test_shorthand_and_variables_are_allowed(schema: dict[str, Any]) -> None:
    assert schema["definitions"]["FieldSpec"]["anyOf"][0] == {"type": "string"}
    partitions = schema["definitions"]["TopicSpec"]["properties"]["partitions"]
    assert partitions["anyOf"][1] == {"type": "string", "pattern": r"\$\{"}
    assert partitions["default"] == 1


def test_without_kinds_any_is_allowed() -> None:
    kinds: tuple[NodeKind, ...] = ()
    assert declarations_schema(kinds)["definitions"]["NodeSpec"]["properties"]["use"] == {
        "anyOf": [{"type": "string"}]
    }
