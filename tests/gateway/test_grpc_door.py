from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest

from dataflow.core import headers
from dataflow.core.limits import MAX_BODY_BYTES, MAX_REQUEST_ROWS, MAX_STREAM_REQUESTS
from dataflow.core.schema import FieldType, Schema
from dataflow.gateway.app import GatewaySettings
from dataflow.gateway.grpc_proto import Protocol
from dataflow.gateway.model_info import EXTENSIONS
from tests.conftest import wait_for
from tests.gateway.fixtures import Responder, Told, edge, fabric_for, plan_of, total
from tests.gateway.grpc_fixtures import Client, Served, door, refused, request

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def sums() -> Iterator[Client]:
    """A pipeline that answers."""
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan), door(plan, fabric) as (_, client):
        yield client


def test_health_and_metadata(sums: Client) -> None:
    assert sums.call("ServerLive").live
    assert sums.call("ServerReady").ready
    assert sums.call("ModelReady", name="sums").ready
    assert sums.call("ModelReady", name="sums", version="v7").ready
    assert not sums.call("ModelReady", name="sums", version="v8").ready
    assert not sums.call("ModelReady", name="sms").ready
    server = sums.call("ServerMetadata")
    assert (server.name, tuple(server.extensions)) == ("dataflow", EXTENSIONS)
    model = sums.call("ModelMetadata", name="sums")
    assert (model.name, list(model.versions), model.platform) == ("sums", ["v7"], "dataflow_pipeline")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("x", "FP32", [-1, 3]), ("name", "BYTES", [-1]), ("at", "INT64", [-1]),
    ]  # fmt: skip
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [
        ("total", "FP32", [-1]), ("label", "BYTES", [-1]),
    ]  # fmt: skip


def test_configuration_and_index(sums: Client) -> None:
    config = sums.call("ModelConfig", name="sums").config
    enum = Protocol.load().pool.FindEnumTypeByName("inference.DataType").values_by_number
    assert (config.name, config.max_batch_size) == ("sums", MAX_REQUEST_ROWS)
    assert [(t.name, enum[t.data_type].name, list(t.dims), t.optional) for t in config.input] == [
        ("x", "TYPE_FP32", [3], False), ("name", "TYPE_STRING", [], False), ("at", "TYPE_INT64", [], True),
    ]  # fmt: skip
    index = sums.call("RepositoryIndex").models
    assert [(m.name, m.version, m.state) for m in index] == [("sums", "v7", "READY")]
    code, words, _ = refused(lambda: sums.call("ModelConfig", name="sms"))
    assert (code, "did you mean 'sums'?" in words) == (CODE.NOT_FOUND, True)


def test_statistics_count_requests_and_rows() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan), door(plan, fabric) as (_, client):
        client.infer(request(rows=2))
        client.infer(request(rows=3))
        refused(lambda: client.infer(request(model="sums", model_version="v1")))
        for name in ("", "sums"):
            (stats,) = client.call("ModelStatistics", name=name).model_stats
            assert (stats.name, stats.version) == ("sums", "v7")
            assert (stats.inference_count, stats.execution_count) == (5, 2)
            assert stats.inference_stats.success.count == 2
            assert stats.inference_stats.success.ns > 0
            assert stats.inference_stats.fail.count == 1
            assert stats.last_inference > 0
        code, _, _ = refused(lambda: client.call("ModelStatistics", name="sms"))
        assert code == CODE.NOT_FOUND


def test_raw_inputs_get_raw_outputs(sums: Client) -> None:
    answer = sums.infer(request(rows=2, id="mine"))
    assert (answer.model_name, answer.model_version, answer.id) == ("sums", "v7", "mine")
    assert [(o.name, o.datatype, list(o.shape), o.HasField("contents")) for o in answer.outputs] == [
        ("total", "FP32", [2], False), ("label", "BYTES", [2], False),
    ]  # fmt: skip
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3.0, 12.0]
    assert answer.raw_output_contents[1] == b"\x02\0\0\0N0\x02\0\0\0N1"


def test_typed_inputs_get_typed_outputs(sums: Client) -> None:
    answer = sums.infer(request(rows=2, typed=True))
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [3.0, 12.0]
    assert list(answer.outputs[1].contents.bytes_contents) == [b"N0", b"N1"]


def test_the_form_of_the_answer_can_be_chosen(sums: Client) -> None:
    asked = request(typed=True)
    asked.parameters["binary_data_output"].bool_param = True
    assert len(sums.infer(asked).raw_output_contents) == 2
    asked = request()
    asked.parameters["binary_data_output"].bool_param = False
    assert list(sums.infer(asked).outputs[0].contents.fp32_contents) == [3.0]


def test_outputs_are_chosen(sums: Client) -> None:
    asked = request()
    asked.outputs.add(name="label")
    answer = sums.infer(asked)
    assert [o.name for o in answer.outputs] == ["label"]
    asked.outputs.add(name="labl")
    code, words, _ = refused(lambda: sums.infer(asked))
    assert (code, words) == (CODE.INVALID_ARGUMENT, "no output 'labl' (did you mean 'label'?)")


def test_the_record_id_is_told(sums: Client) -> None:
    body, call = sums.raw("ModelInfer", request().SerializeToString())
    answer = Protocol.load().message("ModelInferResponse").FromString(body)
    assert dict(call.trailing_metadata())["df-id"] == answer.id


def test_what_is_wrong_with_a_request_is_told_as_over_http(sums: Client) -> None:
    def told(asked: Any) -> tuple[Any, str]:
        return refused(lambda: sums.infer(asked))[:2]

    assert told(request(model="sms")) == (
        CODE.NOT_FOUND, "no pipeline 'sms' (did you mean 'sums'?)",
    )  # fmt: skip
    assert told(request(model_version="v8")) == (
        CODE.NOT_FOUND, "pipeline 'sums' has no version 'v8' (valid: v7)",
    )  # fmt: skip
    assert told(request(id="i" * 257))[0] == CODE.INVALID_ARGUMENT
    assert told(request(rows=MAX_REQUEST_ROWS + 1))[0] == CODE.INVALID_ARGUMENT
    code, words, _ = refused(lambda: sums.raw("ModelInfer", b"\xff\xff"))
    assert (code, words) == (CODE.INVALID_ARGUMENT, "the message is no inference.ModelInferRequest")
    code, _, _ = refused(lambda: sums.raw("ModelLoad", b""))
    assert code == CODE.UNIMPLEMENTED


def test_a_message_larger_than_a_body_may_be_is_refused(sums: Client) -> None:
    code, words, _ = refused(lambda: sums.raw("ModelInfer", bytes(MAX_BODY_BYTES + 1)))
    assert code == CODE.RESOURCE_EXHAUSTED
    assert str(MAX_BODY_BYTES) in words


def test_half_floats_have_no_typed_form() -> None:
    schema = Schema.of(total=FieldType("float16", (2,)), label="string")
    plan = plan_of(edge("sum", schema))
    fabric = fabric_for(plan)

    def answer(record: Mapping[str, Any]) -> Told:
        return Told({"total": np.array(record["x"][:2], np.float16), "label": "h"})

    with Responder(fabric, plan, answer), door(plan, fabric) as (_, client):
        answered = client.infer(request(typed=True))
        assert np.frombuffer(answered.raw_output_contents[0], "<f2").tolist() == [0.0, 1.0]
        assert answered.raw_output_contents[1] == b"\x01\0\0\0h"
        asked = request(typed=True)
        asked.outputs.add(name="label")
        assert list(client.infer(asked).outputs[0].contents.bytes_contents) == [b"h"]


@pytest.mark.parametrize("limit", ["deadline", "parameter", "metadata"])
def test_a_request_without_an_answer_ends_at_its_deadline(limit: str) -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    with Served(plan, fabric, None) as served, Client(
        served.address, {"x-deadline-ms": "100"} if limit == "metadata" else None
    ) as client:  # fmt: skip
        asked = request()
        if limit == "parameter":
            asked.parameters["timeout"].int64_param = 100_000
        code, words, told = refused(lambda: client.infer(asked, 0.2 if limit == "deadline" else None))
        assert code == CODE.DEADLINE_EXCEEDED
        if limit != "deadline":  # else it may be the client that ended it
            assert words == "no answer at the deadline"
            assert len(told["df-id"]) > 10
        wait_for(lambda: not len(served.gateway.exchange.pending), "the request to be forgotten")


def test_a_caller_who_goes_away_is_forgotten() -> None:
    plan = plan_of()
    with door(plan, fabric_for(plan)) as (served, client):
        call = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request().SerializeToString()
        )
        wait_for(lambda: len(served.gateway.exchange.pending), "the request")
        call.cancel()
        wait_for(lambda: not len(served.gateway.exchange.pending), "the request to be forgotten")


def test_rows_that_fail_or_are_dropped_have_their_codes() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    def answer(record: Mapping[str, Any]) -> Told:
        if record["name"] == "n1":
            return Told(
                status=headers.STATUS_FAILED, reason={"node": "add", "error": "ValueError", "reason": "no"}
            )
        if record["name"] == "n2":
            return Told(status=headers.STATUS_DROPPED, reason={"reason": "not wanted"})
        return total(record)

    with Responder(fabric, plan, answer), door(plan, fabric, GatewaySettings(detail=True)) as (_, client):
        code, words, told = refused(lambda: client.infer(request(rows=2)))
        assert (code, words) == (CODE.INTERNAL, "row 1: node 'add': ValueError: no")
        assert (told["df-row"], told["df-node"]) == ("1", "add")
        asked = request(rows=3)
        asked.parameters["row_errors"].string_param = "entry"
        answered = client.infer(asked)
        assert np.frombuffer(answered.raw_output_contents[0], "<f4").tolist()[0] == 3.0
        said = answered.parameters["row_errors"].string_param
        assert '"row":1' in said
        assert '"row":2' in said
        one = request(typed=True)
        one.inputs[1].contents.bytes_contents[0] = b"n2"
        code, words, _ = refused(lambda: client.infer(one))
        assert (code, words) == (CODE.FAILED_PRECONDITION, "dropped: not wanted")


def test_a_full_gateway_says_so() -> None:
    plan = plan_of()
    with door(plan, fabric_for(plan), GatewaySettings(max_pending=1)) as (served, client):
        # Of calls beyond the limit gRPC itself says the same.
        calls = [
            client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
                request().SerializeToString()
            )
            for _ in range(2)
        ]
        wait_for(lambda: len(served.gateway.exchange.pending), "a request")
        wait_for(lambda: any(call.done() for call in calls), "the refusal")
        refusal = next(call for call in calls if call.done())
        assert refusal.code() == CODE.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


def test_a_token_is_asked_for() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    settings = GatewaySettings(tokens={"secret": frozenset()})
    with Responder(fabric, plan), Served(plan, fabric, settings) as served:
        with Client(served.address) as stranger:
            assert stranger.call("ServerLive").live
            assert stranger.call("ServerReady").ready
            code, words, _ = refused(lambda: stranger.infer(request()))
            assert (code, words) == (CODE.UNAUTHENTICATED, "a token is needed (Authorization: Bearer TOKEN)")
            code, _, _ = refused(lambda: list(stranger.stream(iter([request()]))))
            assert code == CODE.UNAUTHENTICATED
        with Client(served.address, {"authorization": "Bearer wrong"}) as stranger:
            assert refused(lambda: stranger.call("ServerMetadata"))[0] == CODE.UNAUTHENTICATED
        with Client(served.address, {"authorization": "Bearer secret"}) as friend:
            assert friend.infer(request()).outputs[0].name == "total"


def test_the_same_counts_as_over_http() -> None:
    seen: list[tuple[str, str, int]] = []
    plan = plan_of()
    fabric = fabric_for(plan)

    def observe(name: str, way: str, status: int, _: float) -> None:
        seen.append((name, way, status))

    with Responder(fabric, plan), door(plan, fabric, observe=observe) as (_, client):
        client.infer(request())
        refused(lambda: client.infer(request(model="nobody")))
    assert seen == [("sums", "grpc", 200), ("", "grpc", 404)]


def test_metadata_travel_as_headers_do() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Responder(fabric, plan) as responder, Served(plan, fabric, None) as served:
        with Client(served.address, {"traceparent": trace, "x-request-id": "mine"}) as client:
            assert client.infer(request()).id == "mine"
        carried = dict(responder.seen[0].headers() or ())
    assert carried[headers.TRACEPARENT].decode() == trace
    assert carried[headers.CALLER_ID] == b"mine"


def test_a_stream_answers_in_order_and_goes_on_after_an_error(sums: Client) -> None:
    asked = [request(id=str(i), model="sms" if i == 3 else "sums") for i in range(2 * MAX_STREAM_REQUESTS)]
    answers = list(sums.stream(iter(asked)))
    assert [a.infer_response.id for a in answers] == [a.id for a in asked]
    assert [i for i, a in enumerate(answers) if a.error_message] == [3]
    assert answers[3].error_message == "no pipeline 'sms' (did you mean 'sums'?)"
    assert answers[3].infer_response.model_name == "sms"


def test_a_stream_that_is_broken_off_leaves_nothing() -> None:
    plan = plan_of()
    with door(plan, fabric_for(plan)) as (served, client):
        over = threading.Event()

        def asked() -> Iterator[Any]:
            for _ in range(3):
                yield request()
            over.wait(60)

        call = client.stream(asked())
        wait_for(lambda: len(served.gateway.exchange.pending) == 3, "the requests")
        call.cancel()
        wait_for(lambda: not len(served.gateway.exchange.pending), "the requests to be forgotten")
        over.set()


def test_a_drain_answers_what_is_in_flight_and_ends_streams() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    gate = threading.Event()

    def answer(record: Mapping[str, Any]) -> Told:
        assert gate.wait(60)
        return total(record)

    with Responder(fabric, plan, answer), door(plan, fabric) as (served, client):
        over = threading.Event()

        def asked() -> Iterator[Any]:
            yield request(id="streamed")
            over.wait(60)

        stream = client.stream(asked())
        waiting = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request().SerializeToString(), timeout=60
        )
        wait_for(lambda: len(served.gateway.exchange.pending) == 2, "the requests")
        served.end()
        wait_for(lambda: served.gateway.exchange.draining, "the drain")
        code, _, _ = refused(lambda: client.infer(request(), timeout_s=10))
        assert code == CODE.UNAVAILABLE
        gate.set()
        assert waiting.result(60)
        assert next(stream).infer_response.id == "streamed"
        code, words, _ = refused(lambda: next(stream))
        assert (code, words) == (CODE.UNAVAILABLE, "the gateway is stopping (try later)")
        over.set()
        served.thread.join(60)
        assert not served.thread.is_alive()
