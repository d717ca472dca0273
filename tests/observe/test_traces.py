from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dataflow.core.batch import Row
from dataflow.core.errors import GatewayError
from dataflow.observe.traces import MAX_TRACED_RECORDS, Tracing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-2] + "00"


def row(index: int, traceparent: str = "") -> Row:
    carry = [("traceparent", traceparent.encode())] if traceparent else []
    return Row(f"id-{index}".encode(), carry=carry)


def spans_of(exporter: InMemorySpanExporter, tracing: Tracing) -> Mapping[str, list[ReadableSpan]]:
    tracing.close()
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def batch_spans(rows: Sequence[Row]) -> Mapping[str, list[ReadableSpan]]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with tracing.batch("score", "group", "topic", rows), tracing.node("model", "model.onnx", len(rows)):
        pass
    return spans_of(exporter, tracing)


def test_off_without_an_endpoint() -> None:
    assert Tracing.from_environment({}) is None


def test_a_request_is_followed_through_a_batch() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with tracing.request("flights", CALLER) as request:
        request.status = 200
    with tracing.batch("score", "group", "topic", [row(0), row(1, request.traceparent)]):
        pass
    spans = spans_of(exporter, tracing)
    (asked,), (stage,), (batch,) = spans["request flights"], spans["stage score"], spans["process topic"]
    assert asked.context is not None
    assert asked.parent is not None
    assert f"{asked.context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{asked.parent.span_id:016x}" == CALLER.split("-")[2]
    assert stage.parent is not None
    assert stage.parent.span_id == asked.context.span_id
    assert stage.attributes is not None
    assert stage.attributes["dataflow.record.id"] == "id-1"
    # The batch belongs to no single request: it links to those in it.
    assert batch.parent is None
    assert [link.context.span_id for link in batch.links] == [asked.context.span_id]


def test_nodes_are_children_of_their_batch() -> None:
    spans = batch_spans([row(0)])
    (batch,), (node,) = spans["process topic"], spans["node model"]
    assert batch.context is not None
    assert node.parent is not None
    assert node.parent.span_id == batch.context.span_id
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 1


@pytest.mark.parametrize("traceparent", ["", UNSAMPLED, "garbage", "00-zz-zz-01"])
def test_what_is_not_sampled_costs_no_span(traceparent: str) -> None:
    assert "stage score" not in batch_spans([row(0, traceparent)])


def test_spans_of_a_batch_are_bounded() -> None:
    assert len(batch_spans([row(i, CALLER) for i in range(500)])["stage score"]) == MAX_TRACED_RECORDS


@pytest.mark.parametrize(("error", "status"), [(GatewayError(504, "late"), 504), (RuntimeError("bug"), 500)])
def test_a_failed_request_says_its_status(error: Exception, status: int) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with pytest.raises(type(error)), tracing.request("flights", ""):
        raise error
    (span,) = spans_of(exporter, tracing)["request flights"]
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert not span.status.is_ok
