"""The small addresses that only say what is there: health, models, their configuration and counts, pipelines."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import orjson

from dataflow.core.errors import GatewayError
from dataflow.gateway import v2
from dataflow.gateway.http import Request, Response
from dataflow.gateway.model_info import EXTENSIONS, config_of, repository_index, statistics_of
from dataflow.gateway.openapi import describe
from dataflow.planner.plan import Plan

if TYPE_CHECKING:
    from dataflow.gateway.app import Gateway


async def tell(gateway: Gateway, handler: str, request: Request) -> Response:
    """Answer one of these addresses; `handler` is its route's. Raises GatewayError 404 for what is not there."""
    if handler == "index":
        asked = _ready_only(await gateway.small_body(request))
        return _json(200, repository_index(gateway.plans, gateway.ready, ready_only=asked))
    if "name" in request.params:
        return _of_model(gateway, handler, request)
    plans = gateway.plans
    if handler == "live":
        return _json(200, {"live": True})
    if handler == "ready":
        ready = gateway.exchange.healthy and all(map(gateway.ready, plans))
        return _json(200 if ready else 503, {"ready": ready})
    if handler == "server":
        return _json(200, {"name": "dataflow", "version": version_of_us(), "extensions": EXTENSIONS})
    if handler == "models":
        return _json(200, {"models": sorted(n for n, p in plans.items() if p.answer is not None)})
    if handler == "all_stats":
        answering = [(n, p.version) for n, p in sorted(plans.items()) if p.answer is not None]
        counts = [statistics_of(name, gateway.statistics.of(name, v)) for name, v in answering]
        return _json(200, {"model_stats": counts})
    if handler == "pipelines":
        return _json(200, [_pipeline(plan) for _, plan in sorted(plans.items())])
    assert handler == "openapi", handler
    return _json(200, describe(plans, version_of_us()))


def _of_model(gateway: Gateway, handler: str, request: Request) -> Response:
    door = gateway.door(request.params["name"], request.params.get("version"))
    if handler == "model":
        return _json(200, v2.metadata(door.name, door.version, door.request, door.answer))
    if handler == "config":
        return _json(200, config_of(door.name, door.request, door.answer))
    if handler == "stats":
        counts = gateway.statistics.of(door.name, door.version)
        return _json(200, {"model_stats": [statistics_of(door.name, counts)]})
    assert handler == "model_ready", handler
    ready = gateway.ready(door.name)
    return _json(200 if ready else 503, {"name": door.name, "ready": ready})


def _ready_only(body: bytes) -> bool:
    """What the body of an index request asks for: ``{"ready": true}`` leaves out what cannot answer now."""
    try:
        said = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error.msg} at byte {error.pos}") from None
    ready = said.get("ready", False) if isinstance(said, dict) else None
    if type(ready) is not bool:
        raise GatewayError(400, 'the body must be a JSON object such as {"ready": true}, or empty')
    return ready


def _json(status: int, document: Any) -> Response:
    return Response(status, orjson.dumps(document))


def _pipeline(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.pipeline,
        "version": plan.version,
        "delivery": plan.delivery,
        "inputs": dict(plan.inputs),
        "answer": list(plan.answer.edges) if plan.answer is not None else [],
        "edges": {
            name: {
                "topics": list(edge.topics),
                "codec": edge.codec,
                "key": list(edge.key),
                "fields": {f.name: f.type.describe() for f in edge.schema},
            }
            for name, edge in plan.edges.items()
        },
    }


def version_of_us() -> str:
    """The version of the package; "0" where it runs from a bare tree."""
    try:
        return version("kafka-dataflow")
    except PackageNotFoundError:
        return "0"
