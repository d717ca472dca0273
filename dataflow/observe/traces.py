"""Traces: one request followed through every hop, exported by OTLP. Off unless an OTLP endpoint is set.

Names and links follow OpenTelemetry's messaging conventions: a batch is one span with links to the contexts of the
records in it. Beside it, every sampled record gets a short span of its own as a child of its request, so that a
request's trace shows each stage it went through, however it was batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dataflow.core import headers
from dataflow.core.batch import Row

ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Links and per-record spans of one batch: enough to follow what is sampled, not a span for each of 500 records.
MAX_TRACED_RECORDS: Final = 32

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans for this process. Thread-safe. `exporter` is for tests; else OTLP over HTTP, by OTEL_* variables."""

    def __init__(self, exporter: SpanExporter | None = None, service: str = "dataflow") -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("dataflow")

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Tracing | None:
        """Tracing if an endpoint is set, else None: then a span costs nothing because there is none."""
        if not any(environ.get(name) for name in ENDPOINT_VARIABLES):
            return None
        return Tracing(service=environ.get("OTEL_SERVICE_NAME", "dataflow"))

    @contextmanager
    def batch(self, stage: str, group: str, topic: str, rows: Sequence[Row]) -> Iterator[None]:
        """Span of one batch in a stage; inside it, node spans are its children."""
        contexts = _contexts(rows)
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": topic,
            "messaging.consumer.group.name": group,
            "messaging.batch.message_count": len(rows),
            "dataflow.stage": stage,
        }
        links = [Link(c) for _, c in contexts]
        with self._tracer.start_as_current_span(
            f"process {topic}", otel_context.Context(), SpanKind.CONSUMER, attributes, links
        ) as span:
            own = [
                self._tracer.start_span(
                    f"stage {stage}",
                    trace.set_span_in_context(trace.NonRecordingSpan(c)),
                    SpanKind.CONSUMER,
                    {"dataflow.stage": stage, "dataflow.record.id": row.id.decode(errors="replace")},
                    [Link(span.get_span_context())],
                )
                for row, c in contexts
            ]
            try:
                yield
            finally:
                for child in own:
                    child.end()

    @contextmanager
    def node(self, node: str, kind: str, records: int) -> Iterator[None]:
        """Span of one call of a node."""
        attributes: dict[str, str | int] = {
            "dataflow.node": node,
            "dataflow.kind": kind,
            "dataflow.records": records,
        }
        with self._tracer.start_as_current_span(f"node {node}", attributes=attributes):
            yield

    def request(self, pipeline: str, traceparent: str) -> RequestSpan:
        """Span of one request at a gateway, child of the caller's own where it sent one."""
        parent = (
            _PROPAGATOR.extract({headers.TRACEPARENT: traceparent}) if traceparent else otel_context.Context()
        )
        attributes = {"dataflow.pipeline": pipeline}
        return RequestSpan(
            self._tracer.start_span(f"request {pipeline}", parent, SpanKind.SERVER, attributes)
        )

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


class RequestSpan:
    """One request, a context manager: `traceparent` goes along with its records, `status` is what it was answered.

    An exception that passes through sets the status it carries, 500 where it carries none.
    """

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.status = 500
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        self.traceparent = carrier.get(headers.TRACEPARENT, "")

    def __enter__(self) -> RequestSpan:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            self.status = int(getattr(error, "status", 500))
        self._span.set_attribute("http.response.status_code", self.status)
        if self.status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _contexts(rows: Sequence[Row]) -> list[tuple[Row, SpanContext]]:
    """The sampled records of a batch with their requests' contexts, at most MAX_TRACED_RECORDS."""
    found: list[tuple[Row, SpanContext]] = []
    for row in rows:
        value = next((v for name, v in row.carry if name == headers.TRACEPARENT), None)
        if value is None:
            continue
        extracted = _PROPAGATOR.extract({headers.TRACEPARENT: value.decode(errors="replace")})
        context = trace.get_current_span(extracted).get_span_context()
        if context.is_valid and context.trace_flags.sampled:
            found.append((row, context))
            if len(found) == MAX_TRACED_RECORDS:
                break
    return found
