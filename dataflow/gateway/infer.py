"""The two doors that wait for an answer: V2 inference and plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core import headers
from dataflow.core.errors import GatewayError
from dataflow.core.limits import MAX_DEADLINE_MS, MAX_REQUEST_ROWS
from dataflow.gateway import v2
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Ask, Exchange
from dataflow.gateway.http import BINARY, JSON, Request, RequestError, Response
from dataflow.gateway.replies import Reply
from dataflow.transport.api import Header

DEADLINE_HEADER: Final = b"x-deadline-ms"
REQUEST_ID_HEADER: Final = b"x-request-id"
# Answered on every request: what `dataflow trace` takes.
RECORD_ID_HEADER: Final = b"df-id"
_MAX_HEADER_BYTES: Final = 256


async def infer(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """One V2 infer request. Raises GatewayError; a row without an answer decides the whole request."""
    call = v2.decode(door.request, door.answer, body, request.headers.get(v2.HEADER_LENGTH))
    caller_id = call.id or _caller_id(request)
    ask = _ask(door, request, exchange.clock_ms(), caller_id, -(-call.timeout_us // 1000))
    pending = await exchange.ask(door, call.columns, call.count, ask)
    replies = answered(pending.record_ids, pending.results, detail)
    record_id = pending.request_id.decode()
    names = {"model_name": door.name, "model_version": door.version, "id": caller_id or record_id}
    answer, header_length = v2.encode(names, door.answer, door.columns(replies), call.outputs)
    shown = ((RECORD_ID_HEADER, pending.request_id),)
    if header_length:
        return Response(
            200, answer, BINARY, (*shown, (b"inference-header-content-length", str(header_length).encode()))
        )
    return Response(200, answer, JSON, shown)


async def plain(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """One object in, one out; or a list in, a list of equal length out, with ``{"error": ...}`` for rows without."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error.msg} at byte {error.pos}") from None
    records = said if isinstance(said, list) else [said]
    if len(records) > MAX_REQUEST_ROWS:
        raise GatewayError(413, f"the request has {len(records)} records, valid: up to {MAX_REQUEST_ROWS}")
    decoded = coerce_records(door.request, records)
    one = not isinstance(said, list)
    if one and decoded.failed:
        cause = decoded.failed[0][1]
        raise GatewayError(400, cause.message, hint=cause.hint)
    results: list[Any] = [None] * len(records)
    for row, cause in decoded.failed:
        results[row] = {"error": str(cause), "status": 400}
    good = decoded.good.tolist()
    caller_id = _caller_id(request)
    shown: tuple[tuple[bytes, bytes], ...] = ()
    if good:
        ask = _ask(door, request, exchange.clock_ms(), caller_id, whole=one)
        pending = await exchange.ask(door, decoded.columns, len(good), ask)
        shown = ((RECORD_ID_HEADER, pending.request_id),)
        if one:
            answered(pending.record_ids, pending.results, detail)
        for row, result in zip(good, _rows(door, pending.record_ids, pending.results, detail), strict=True):
            results[row] = result
    if caller_id:
        shown = (*shown, (REQUEST_ID_HEADER, caller_id.encode("latin-1")))
    return Response(200, orjson.dumps(results[0] if one else results), JSON, shown)


def _rows(
    door: PipelineDoor, record_ids: Sequence[bytes], replies: Sequence[Reply | None], detail: bool
) -> list[Mapping[str, Any]]:
    """What each row's caller is told: the record of the edge that answered, or the error."""
    told: list[Mapping[str, Any]] = [{}] * len(replies)
    by_edge: dict[str, list[int]] = {}
    for row, reply in enumerate(replies):
        if reply is not None and reply.good:
            by_edge.setdefault(reply.edge, []).append(row)
            continue
        error = failure(record_ids, row, reply, detail)
        told[row] = {
            "error": str(error), "status": error.status, "id": error.record_id.decode(), **error.facts,
        }  # fmt: skip
    for edge, rows in by_edge.items():
        columns = door.decoded(edge, [r for r in map(replies.__getitem__, rows) if r is not None])
        records = to_jsonable(door.codecs[edge].schema, columns, len(rows))
        for row, record in zip(rows, records, strict=True):
            told[row] = record
    return told


def answered(record_ids: Sequence[bytes], replies: Sequence[Reply | None], detail: bool) -> list[Reply]:
    """All replies of a whole request, every one good. Raises RequestError of the first row that has none."""
    good: list[Reply] = []
    for reply in replies:
        if reply is not None and reply.good:
            good.append(reply)
    if len(good) == len(replies):
        return good
    bad = (row for row, reply in enumerate(replies) if reply is not None and not reply.good)
    row = next(bad, None)
    if row is None:
        row = next(row for row, reply in enumerate(replies) if reply is None)
    raise failure(record_ids, row, replies[row], detail)


def failure(record_ids: Sequence[bytes], row: int, reply: Reply | None, detail: bool) -> RequestError:
    """What the caller of a row without an answer is told. `detail` names node and error of a failure."""
    record_id = record_ids[row]
    place = f"row {row}: " if len(record_ids) > 1 else ""
    facts: dict[str, Any] = {"row": row} if len(record_ids) > 1 else {}
    if reply is None or reply.status == headers.STATUS_EXPIRED:
        return RequestError(504, f"{place}no answer at the deadline", record_id=record_id, facts=facts)
    why = reply.why()
    reason = str(why.get("reason", "no reason given"))
    if detail and why.get("node"):
        facts["node"] = str(why["node"])
    if reply.status == headers.STATUS_DROPPED:
        return RequestError(422, f"{place}dropped: {reason}", record_id=record_id, facts=facts)
    if not detail:
        message = f"{place}the record failed; it is kept as a dead letter"
        return RequestError(500, message, record_id=record_id, facts=facts)
    error = str(why.get("error") or "error")
    at = f"node '{facts['node']}': " if "node" in facts else ""
    return RequestError(500, f"{place}{at}{error}: {reason}", record_id=record_id, facts=facts)


def _ask(
    door: PipelineDoor, request: Request, now: int, caller_id: str, timeout_ms: int = 0, *, whole: bool = True
) -> Ask:
    """Deadline: header x-deadline-ms or V2 parameter ``timeout``, the sooner one; else the pipeline's. Capped."""
    wait_ms = min(door.plan.deadline_ms, MAX_DEADLINE_MS)
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is not None:
        if not asked.isdigit() or len(asked) > 12 or int(asked) == 0:
            raise GatewayError(
                400,
                f"header x-deadline-ms is '{asked[:40].decode('latin-1')}', expected milliseconds above 0",
            )
        wait_ms = min(int(asked), MAX_DEADLINE_MS)
    if timeout_ms:
        wait_ms = min(timeout_ms, wait_ms if asked is not None else MAX_DEADLINE_MS)
    carried: list[Header] = []
    if caller_id:
        carried.append((headers.CALLER_ID, caller_id.encode()))
    trace = request.headers.get(b"traceparent")
    if trace is not None and len(trace) <= _MAX_HEADER_BYTES:
        carried.append((headers.TRACEPARENT, trace))
        state = request.headers.get(b"tracestate")
        if state is not None and len(state) <= 2 * _MAX_HEADER_BYTES:
            carried.append((headers.TRACESTATE, state))
    return Ask(now + wait_ms, whole, tuple(carried))


def _caller_id(request: Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, b"")
    if len(given) > _MAX_HEADER_BYTES:
        raise GatewayError(400, f"header x-request-id is longer than {_MAX_HEADER_BYTES} bytes")
    return given.decode("latin-1")
