"""CloudEvents 1.0 at the plain door: an event in, its data is a record; the answer is an event where one was asked for.

Binary mode (headers ``ce-*``), structured mode and batches, by the HTTP protocol binding of CloudEvents 1.0.2.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

import orjson

from dataflow.core.errors import GatewayError
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.http import JSON, Request, Response, parse_json
from dataflow.gateway.infer import RECORD_ID_HEADER, REQUEST_ID_HEADER, whole_of
from dataflow.gateway.plain import run_records

STRUCTURED: Final = b"application/cloudevents+json"
BATCH: Final = b"application/cloudevents-batch+json"
VERSION_HEADER: Final = b"ce-specversion"
ANSWER_TYPE: Final = "dataflow.answer"
ERROR_TYPE: Final = "dataflow.error"
_CONFLICTING: Final = (b"prefer", b"idempotency-key")
_REQUIRED: Final = ("specversion", "id", "source", "type")
_MAX_ATTRIBUTE_CHARACTERS: Final = 4_096

Mode = Literal["plain", "binary", "structured", "batch"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its context attributes as texts, and the record that is its data."""

    attributes: Mapping[str, str]
    data: Any


def is_event(request: Request) -> bool:
    """Whether a request is an event, or asks for one."""
    headers = request.headers
    return (
        VERSION_HEADER in headers
        or headers.get(b"content-type", b"").startswith(b"application/cloudevents")
        or headers.get(b"accept", b"").startswith(b"application/cloudevents")
    )


async def answer_event(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """Run the pipeline on an event or a batch of them. The answer's mode is that of the request, or what it accepts.

    Raises GatewayError: 400 for what is no event; failures of one event as the plain door.
    """
    if any(name in request.headers for name in _CONFLICTING):
        raise GatewayError(
            400, "events are answered at once: no Prefer and no Idempotency-Key goes with them"
        )
    mode, events = read_events(request.headers, body)
    if mode != "batch":
        request.headers = _passed_on(request.headers, events[0])
    whole = mode != "batch" or whole_of(request, default=False)
    records = [event.data for event in events]
    results, record_id = await run_records(exchange, door, request, records, whole=whole, detail=detail)
    accepted = request.headers.get(b"accept", b"")
    if mode != "batch" and accepted.startswith(STRUCTURED):
        mode = "structured"
    shown = ((RECORD_ID_HEADER, record_id),) if record_id else ()
    made = [
        _answer(door, event, result, record_id, "" if mode != "batch" else f"-{row}")
        for row, (event, result) in enumerate(zip(events, results, strict=True))
    ]
    if mode == "batch":
        return Response(200, orjson.dumps([{**e.attributes, "data": e.data} for e in made]), BATCH, shown)
    (answer,) = made
    if mode == "structured":
        return Response(200, orjson.dumps({**answer.attributes, "data": answer.data}), STRUCTURED, shown)
    told = [
        (f"ce-{name}".encode(), quote(value, safe=" !#$&'()*+,/:;=?@[]^`{|}~").encode())
        for name, value in answer.attributes.items()
        if name != "datacontenttype"
    ]
    return Response(200, orjson.dumps(answer.data), JSON, (*shown, *told))


def read_events(headers: Mapping[bytes, bytes], body: bytes) -> tuple[Mode, list[Event]]:
    """The events of a request and their mode; a plain record, for one who only wants an event back, has no attributes."""
    media = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    if media == BATCH:
        said = _loaded(body)
        if not isinstance(said, list) or not said:
            raise GatewayError(400, "a batch must be a JSON list of events")
        return "batch", [_structured(event) for event in said]
    if media == STRUCTURED:
        return "structured", [_structured(_loaded(body))]
    if media.startswith(b"application/cloudevents"):
        shown = media[:100].decode("latin-1")
        raise GatewayError(415, f"events as '{shown}' are not supported", hint="valid: JSON, one or a batch")
    if VERSION_HEADER not in headers:
        return "plain", [Event({}, _loaded(body))]
    attributes = {
        name[3:].decode("latin-1"): unquote(value.decode("latin-1"))
        for name, value in headers.items()
        if name.startswith(b"ce-")
    }
    _check(attributes)
    return "binary", [Event(attributes, _loaded(body))]


def _structured(said: Any) -> Event:
    if not isinstance(said, dict):
        raise GatewayError(400, "an event must be a JSON object")
    attributes = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in said.items()
        if name not in ("data", "data_base64") and value is not None
    }
    _check(attributes)
    media = attributes.get("datacontenttype", "application/json").split(";", 1)[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise GatewayError(415, f"data of type '{media[:100]}' is not supported", hint="use application/json")
    if ("data" in said) == ("data_base64" in said):
        raise GatewayError(400, "an event must have 'data' or 'data_base64'")
    if "data" in said:
        return Event(attributes, said["data"])
    try:
        return Event(attributes, _loaded(base64.b64decode(said["data_base64"], validate=True)))
    except (binascii.Error, TypeError, ValueError):
        raise GatewayError(400, "'data_base64' of the event is not base64") from None


def _check(attributes: Mapping[str, str]) -> None:
    """Raises GatewayError 400 for an event without what each must have."""
    for name in _REQUIRED:
        if not attributes.get(name):
            raise GatewayError(400, f"the event has no '{name}'", hint="all have: " + ", ".join(_REQUIRED))
    if attributes["specversion"] != "1.0":
        raise GatewayError(
            400, f"specversion '{attributes['specversion'][:40]}' is not supported", hint="valid: 1.0"
        )
    if any(len(value) > _MAX_ATTRIBUTE_CHARACTERS for value in attributes.values()):
        raise GatewayError(400, f"an attribute is longer than {_MAX_ATTRIBUTE_CHARACTERS} characters")


def _passed_on(headers: Mapping[bytes, bytes], event: Event) -> Mapping[bytes, bytes]:
    """The headers with what travels with a record: the event's id as the caller's, its trace if there is no other."""
    made = dict(headers)
    event_id, trace = event.attributes.get("id", ""), event.attributes.get("traceparent", "")
    if event_id and event_id.isascii() and len(event_id) <= 256:
        made.setdefault(REQUEST_ID_HEADER, event_id.encode())
    if trace.isascii() and trace:
        made.setdefault(b"traceparent", trace.encode())
    return made


def _answer(door: PipelineDoor, event: Event, result: Any, record_id: bytes, suffix: str) -> Event:
    """The event that answers one; a row without an answer is an event of another type."""
    bad = bool(suffix) and isinstance(result, dict) and {"error", "status"} <= result.keys()
    attributes = {
        "specversion": "1.0",
        "id": (record_id.decode() or event.attributes.get("id", "")) + suffix,
        "source": f"/pipelines/{door.name}",
        "type": ERROR_TYPE if bad else ANSWER_TYPE,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "datacontenttype": "application/json",
        "pipelineversion": door.version,
    }
    if event.attributes:
        attributes["causationid"] = event.attributes["id"]
        attributes["causationsource"] = event.attributes["source"]
    return Event(attributes, result)


def _loaded(body: bytes) -> Any:
    try:
        return parse_json(body)
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error.msg} at byte {error.pos}") from None
