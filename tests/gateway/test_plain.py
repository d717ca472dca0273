"""Doors of JSON records: V1 predict, and what one failed row does to a request of many, in every door."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers
from dataflow.core.schema import Schema
from dataflow.gateway.app import Gateway
from dataflow.gateway.plain import instances_of, rows_of
from tests.gateway.fixtures import ANSWER, Told, edge, plan_of, talk, tensors, total

PREDICT = "/v1/models/sums:predict"
INFER = "/v2/models/sums/infer"
FAILED = Told(status=headers.STATUS_FAILED, reason={"reason": "no wings"})
ROWS = [{"x": [1, 2, 3], "name": "a"}, {"x": [4, 5, 6], "name": "bad"}, {"x": [7, 8, 9], "name": "c"}]


def bad_fails(record: Mapping[str, Any]) -> Told:
    return FAILED if record["name"] in ("bad", "n1") else total(record)


def post(path: str, body: Any, sent: Mapping[str, str] | None = None, **options: Any) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await client.post(path, content=orjson.dumps(body), headers=dict(sent or {}))

    return talk(steps, **options)


def test_instances_give_predictions_in_order() -> None:
    answer = post(PREDICT, {"instances": [ROWS[0], ROWS[2]], "signature_name": "serving_default"})
    assert answer.status_code == 200
    assert answer.json() == {"predictions": [{"total": 6.0, "label": "A"}, {"total": 24.0, "label": "C"}]}


def test_inputs_give_outputs_by_column() -> None:
    answer = post(PREDICT, {"inputs": {"x": [[1, 2, 3], [7, 8, 9]], "name": ["a", "c"]}})
    assert answer.json() == {"outputs": {"total": [6.0, 24.0], "label": ["A", "C"]}}


def test_one_answer_field_is_given_bare() -> None:
    plan = plan_of(edge("sum", Schema.of(total="float32")))

    def only_total(record: Mapping[str, Any]) -> Told:
        return Told({"total": float(sum(record["x"]))})

    assert post(PREDICT, {"instances": ROWS[:1]}, plan=plan, answer=only_total).json() == {
        "predictions": [6.0]
    }
    inputs = {"inputs": {"x": [[1, 2, 3]], "name": ["a"]}}
    assert post(PREDICT, inputs, plan=plan, answer=only_total).json() == {"outputs": [6.0]}


def test_bytes_have_v1s_form() -> None:
    plan = plan_of(edge("sum", Schema.of(raw="bytes")))
    answer = post(PREDICT, {"instances": ROWS[:1]}, plan=plan, answer=lambda _: Told({"raw": b"\x00\xff"}))
    assert answer.json() == {"predictions": [{"b64": base64.b64encode(b"\x00\xff").decode()}]}
    one = Schema.of(raw="bytes")
    assert instances_of(one, [{"b64": "AP8="}, "AP8="]) == [{"raw": "AP8="}, {"raw": "AP8="}]
    assert rows_of(one, ["AP8="]) == [{"raw": "AP8="}]


@pytest.mark.parametrize(
    "body",
    [{}, [], {"instances": 1}, {"inputs": [1]}, {"inputs": {"x": 1}}, {"inputs": {"x": [1, 2], "name": ["a"]}},
     {"instances": [], "inputs": {}}, {"instances": [7]}, {"instances": [{"x": [1, 2, 3]}]}],
)  # fmt: skip
def test_bodies_that_are_no_v1_request(body: Any) -> None:
    assert post(PREDICT, body).status_code == 400


def test_a_failed_row_fails_a_v1_request_unless_chosen_otherwise() -> None:
    assert post(PREDICT, {"instances": ROWS}, answer=bad_fails).status_code == 500
    answer = post(PREDICT, {"instances": ROWS}, {"x-row-errors": "entry"}, answer=bad_fails)
    first, second, third = answer.json()["predictions"]
    assert (first["label"], second["status"], third["label"]) == ("A", 500, "C")
    columns = {"x": [row["x"] for row in ROWS], "name": [row["name"] for row in ROWS]}
    by_column = post(PREDICT, {"inputs": columns}, {"x-row-errors": "entry"}, answer=bad_fails).json()
    assert by_column["outputs"]["label"] == ["A", None, "C"]
    assert [(error["row"], error["status"]) for error in by_column["errors"]] == [(1, 500)]


def test_a_failed_row_is_an_entry_of_a_plain_list_unless_chosen_otherwise() -> None:
    assert post("/pipelines/sums", ROWS, answer=bad_fails).json()[1]["status"] == 500
    chosen = post("/pipelines/sums", ROWS, {"x-row-errors": "request"}, answer=bad_fails)
    assert (chosen.status_code, chosen.json()["row"]) == (500, 1)
    unread = post("/pipelines/sums", [ROWS[0], 7], {"x-row-errors": "request"})
    assert unread.status_code == 400
    assert unread.json()["error"].startswith("row 1: ")


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_failed_row_can_be_an_entry_of_a_v2_answer(how: str) -> None:
    body, sent = tensors(3), {"x-row-errors": "entry"}
    if how == "parameter":
        body, sent = {**body, "parameters": {"row_errors": "entry"}}, {}
    answer = post(INFER, body, sent, answer=bad_fails)
    assert answer.status_code == 200, answer.text
    outputs = {o["name"]: o for o in answer.json()["outputs"]}
    assert outputs["total"]["data"] == [3.0, 0.0, 21.0]
    assert outputs["label"]["data"] == ["N0", "", "N2"]
    (error,) = orjson.loads(answer.json()["parameters"]["row_errors"])
    assert (error["row"], error["status"]) == (1, 500)
    assert error["error"] == "row 1: the record failed; it is kept as a dead letter"


def test_all_rows_failed_and_none() -> None:
    plan = plan_of(edge("sum", ANSWER), edge("late", Schema.of(total="float32", when="timestamp")))
    sent = {"x-row-errors": "entry"}
    answer = post(INFER, tensors(2), sent, plan=plan, answer=lambda _: FAILED)
    assert [o["shape"] for o in answer.json()["outputs"]] == [[2], [2], [2]]
    assert len(orjson.loads(answer.json()["parameters"]["row_errors"])) == 2
    assert orjson.loads(post(INFER, tensors(2), sent).json()["parameters"]["row_errors"]) == []


@pytest.mark.parametrize("choice", ["", "yes"])
def test_a_choice_that_there_is_not(choice: str) -> None:
    assert post(INFER, tensors(2), {"x-row-errors": choice}).status_code == (400 if choice else 200)
    wrong = {**tensors(2), "parameters": {"row_errors": 1}}
    assert post(INFER, wrong).status_code == 400
