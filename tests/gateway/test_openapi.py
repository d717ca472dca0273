"""The description; `attacks.described` holds the answers against it."""

from __future__ import annotations

from dataflow.gateway.openapi import describe
from tests.gateway.fixtures import plan_of


def test_a_list_is_answered_by_answers_and_errors() -> None:
    document = describe({"sums": plan_of()}, "1")
    responses = document["paths"]["/pipelines/sums"]["post"]["responses"]
    one, many = responses["200"]["content"]["application/json"]["schema"]["oneOf"]
    assert one == {"$ref": "#/components/schemas/sums.answer"}
    assert many["items"]["anyOf"] == [one, {"$ref": "#/components/schemas/Error"}]
    assert "status" not in document["components"]["schemas"]["Error"]["required"]


def test_what_a_connection_may_be_told_is_described() -> None:
    document = describe({"sums": plan_of()}, "1")
    for operations in document["paths"].values():
        for operation in operations.values():
            assert {"408", "413", "431", "503", "504"} <= set(operation["responses"])
