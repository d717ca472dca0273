"""The OpenAPI 3.1 description of the gateway, made from the route table and the plans served now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from dataflow.codecs.export import to_json_schema
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.routes import ROUTES, Route
from dataflow.gateway.v2_types import DATATYPES
from dataflow.planner.plan import Plan

_NAMES: Final = re.compile(r"\{(\w+)\}")

_ERRORS: Final = {
    "400": "the request is wrong: field, expected datatype and shape are named",
    "401": "a token is needed",
    "404": "no such pipeline, edge or version; near names are given",
    "408": "headers or body took too long",
    "413": "too large",
    "415": "content type or encoding not supported",
    "422": "the record was dropped, with the reason",
    "431": "too many headers, or too large; 414 for the address",
    "429": "as many requests are waiting as allowed; Retry-After",
    "500": "the record failed and is kept as a dead letter",
    "503": "the broker is away or full; Retry-After",
    "504": "no answer at the deadline",
}

_TENSOR: Final = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": list(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}

_SCHEMAS: Final[dict[str, Any]] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "id": {"type": "string"}, "row": {"type": "integer"}},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
}

_SCHEMAS_MORE: Final[dict[str, Any]] = {
    "Pending": {
        "type": "object",
        "properties": {
            name: {"type": "string"} for name in ("id", "status", "pipeline", "accepted_at", "deadline")
        },
    },
    "IndexRequest": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    "PredictRequest": {
        "type": "object",
        "properties": {
            "instances": {"type": "array", "items": {}},
            "inputs": {"description": "a list of values per field"},
        },
    },
    "PredictResponse": {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": {}}, "outputs": {}},
    },
}

_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {"data": {"description": "a record"}, "data_base64": {"type": "string"}},
}
# CloudEvents, structured; in binary mode an event is a record with headers.
_EVENTS: Final[dict[str, Any]] = {
    "application/cloudevents+json": {"schema": _EVENT},
    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _EVENT}},
}

_TAP_QUERY: Final = {
    "from": "latest (default), earliest, an offset, an ISO 8601 time, or -5m",
    "id": "only records that are, derive from or answer this id",
    "where": "only records for which this expression is true",
    "limit": "end after this many records",
}

_STATE_QUERY: Final = {
    "key": "the key, where it is not part of the path",
    "raw": "hex or utf8: the key is given as the record key's bytes",
    "partition": "where to look, for records that were not placed by their key",
}


def describe(plans: Mapping[str, Plan], version: str) -> dict[str, Any]:
    """The whole document. Each pipeline that answers has its plain JSON door written out with its contracts."""
    paths: dict[str, dict[str, Any]] = {}
    schemas = {**_SCHEMAS, **_SCHEMAS_MORE}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    for name, plan in sorted(plans.items()):
        if plan.answer is None:
            continue
        door = PipelineDoor.of(plan)
        schemas[f"{name}.request"] = _plain(to_json_schema(door.request, f"{name} request"))
        schemas[f"{name}.answer"] = _plain(to_json_schema(door.answer, f"{name} answer"))
        paths[f"/pipelines/{name}"] = {"post": _pipeline_door(name)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "dataflow gateway", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$schema"}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _failures() -> dict[str, Any]:
    return {
        status: {"description": text, "content": _json(_ref("Error"))} for status, text in _ERRORS.items()
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMES.findall(route.path)
    ]
    made: dict[str, Any] = {"summary": route.summary, "tags": [route.tag], "operationId": _id_of(route)}
    content: dict[str, Any] = _json({})
    if route.handler == "infer":
        made["requestBody"] = {"required": True, "content": _json(_ref("InferRequest"))}
        content = _json(_ref("InferResponse"))
        parameters += [_deadline(), _row_errors("request")]
    elif route.handler == "plain":
        record = {"type": "object"}
        made["requestBody"] = {"required": True, "content": _json(_one_or_list(record)) | _EVENTS}
        content = _json(_one_or_list(record)) | _EVENTS
        parameters += [_deadline(), _row_errors("entry")]
    elif route.handler in ("generate", "generate_stream"):
        made["requestBody"] = {"required": True, "content": _json({"type": "object"})}
        content = _json({"type": "object"})
        if route.handler == "generate_stream":
            content = {"text/event-stream": {"schema": {"type": "string"}}}
        parameters.append(_deadline())
    elif route.handler == "predict":
        made["requestBody"] = {"required": True, "content": _json(_ref("PredictRequest"))}
        content = _json(_ref("PredictResponse"))
        parameters += [_deadline(), _row_errors("request")]
    elif route.handler == "index":
        if route.method == "POST":
            made["requestBody"] = {"required": False, "content": _json(_ref("IndexRequest"))}
        content = _json({"type": "array", "items": {"type": "object"}})
    elif route.handler == "tap":
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in _TAP_QUERY.items()
        ]
        content = {"text/event-stream": {"schema": {"type": "string"}}}
    elif route.handler == "state":
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in _STATE_QUERY.items()
        ]
    elif route.handler == "metrics":
        content = {"text/plain": {"schema": {"type": "string"}}}
    made["responses"] = {"200": {"description": "done", "content": content}, **_failures()}
    if parameters:
        made["parameters"] = parameters
    if route.handler in ("infer", "plain", "predict"):
        _accepting(made)
    elif route.handler == "request":
        made["responses"] |= {"202": _accepted(), "410": {"description": "the contract was changed since"}}
    made["security"] = [] if route.free else [{"token": []}, {}]
    return made


def _pipeline_door(name: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": f"Run {name} on one record or a list of them",
        "tags": ["inference"],
        "operationId": f"run {name}",
        "parameters": [_deadline(), _row_errors("entry")],
        "requestBody": {
            "required": True,
            "content": _json(_one_or_list(_ref(f"{name}.request"))) | _EVENTS,
        },
        "responses": {
            "200": {
                "description": "the answer; in a list, rows without one are errors",
                "content": _json(_answer_or_list(_ref(f"{name}.answer"))) | _EVENTS,
            },
            **_failures(),
        },
        "security": [{"token": []}, {}],
    }
    _accepting(made)
    return made


def _accepting(operation: dict[str, Any]) -> None:
    """What every door that runs a pipeline has besides: the answer may be fetched later, and asked for twice."""
    operation["parameters"] += [
        {
            "name": "prefer",
            "in": "header",
            "description": "respond-async: answer 202 with an id at once; GET /requests/{id} has the answer",
            "schema": {"type": "string"},
        },
        {
            "name": "idempotency-key",
            "in": "header",
            "description": "the same key with the same body is the same request, for a day, per pipeline",
            "schema": {"type": "string", "maxLength": 255},
        },
    ]
    operation["responses"]["202"] = _accepted()


def _accepted() -> dict[str, Any]:
    return {
        "description": "accepted and not yet answered; Location says where to ask",
        "headers": {"location": {"schema": {"type": "string"}}},
        "content": _json(_ref("Pending")),
    }


def _one_or_list(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"oneOf": [item, {"type": "array", "items": item}]}


def _answer_or_list(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Of a list a row without an answer is an error."""
    return {"oneOf": [answer, {"type": "array", "items": {"anyOf": [answer, _ref("Error")]}}]}


def _deadline() -> dict[str, Any]:
    return {
        "name": "x-deadline-ms",
        "in": "header",
        "description": "milliseconds to wait for the answer",
        "schema": {"type": "integer", "minimum": 1},
    }


def _row_errors(default: str) -> dict[str, Any]:
    return {
        "name": "x-row-errors",
        "in": "header",
        "description": "whether one row without an answer fails the request, or is an entry of the answer",
        "schema": {"enum": ["request", "entry"], "default": default},
    }


def _id_of(route: Route) -> str:
    return f"{route.method.lower()} {route.path}"
