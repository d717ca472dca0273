"""V2 inference, and what all doors that wait for an answer share: the deadline, who asks, what a failure is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from dataflow.core import headers
from dataflow.core.errors import GatewayError
from dataflow.core.inprocess import Reply
from dataflow.core.limits import MAX_DEADLINE_MS
from dataflow.core.schema import Column
from dataflow.gateway import v2
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.http import BINARY, JSON, Request, RequestError, Response
from dataflow.gateway.together import Ask
from dataflow.transport.api import Header

DEADLINE_HEADER: Final = b"x-deadline-ms"
REQUEST_ID_HEADER: Final = b"x-request-id"
KEY_HEADER: Final = b"idempotency-key"
ROW_ERRORS_HEADER: Final = b"x-row-errors"
# ... and the parameter of a V2 request and answer.
ROW_ERRORS: Final = "row_errors"
# Answered on every request: what `dataflow trace` takes.
RECORD_ID_HEADER: Final = b"df-id"
_MAX_HEADER_BYTES: Final = 256


async def infer(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """One V2 infer request. Raises GatewayError.

    A row without an answer fails the request, unless it is chosen that the answer's parameter ``row_errors`` names it.
    """
    call = v2.decode(door.request, door.answer, body, request.headers.get(v2.HEADER_LENGTH))
    names, columns, shown = await run_call(exchange, door, request, call, detail)
    return _response(door, call.outputs, names, columns, shown)


# The leading members of an answer, its columns, and the headers that go with it.
Parts = tuple[dict[str, Any], dict[str, Column], tuple[tuple[bytes, bytes], ...]]


async def run_call(
    exchange: Exchange, door: PipelineDoor, request: Request, call: v2.InferRequest, detail: bool
) -> Parts:
    """A decoded V2 request, whatever it came as, run. Raises GatewayError as `infer`."""
    request.rows = call.count
    caller_id = call.id or caller_id_of(request)
    whole = whole_of(request, default=True, asked=call.row_errors)
    ask = ask_of(door, request, exchange.clock_ms(), caller_id, -(-call.timeout_us // 1000), whole=whole)
    pending = await exchange.ask(door, call.columns, call.count, ask)
    if whole and pending.columns is not None:
        names = _names(door, caller_id, pending.request_id)
        return names, dict(pending.columns), ((RECORD_ID_HEADER, pending.request_id),)
    return _parts(
        door, caller_id, pending.request_id, pending.record_ids, pending.results, detail, whole=whole
    )


def v2_answer(
    door: PipelineDoor,
    outputs: Sequence[v2.Choice],
    caller_id: str,
    request_id: bytes,
    record_ids: Sequence[bytes],
    replies: Sequence[Reply | None],
    detail: bool,
    *,
    whole: bool,
) -> Response:
    """The answer to a V2 request from the replies to its rows. Raises GatewayError as `infer`."""
    parts = _parts(door, caller_id, request_id, record_ids, replies, detail, whole=whole)
    return _response(door, outputs, *parts)


def _parts(
    door: PipelineDoor,
    caller_id: str,
    request_id: bytes,
    record_ids: Sequence[bytes],
    replies: Sequence[Reply | None],
    detail: bool,
    *,
    whole: bool,
) -> Parts:
    names = _names(door, caller_id, request_id)
    if whole:
        columns = door.columns(answered(record_ids, replies, detail))
    else:
        good = [reply if reply is not None and reply.good else None for reply in replies]
        errors = [
            {"row": row, **failure_entry(record_ids, row, replies[row], detail)}
            for row, reply in enumerate(good)
            if reply is None
        ]
        columns = door.columns_with_gaps(good)
        # Parameters are texts, numbers or truths.
        names["parameters"] = {ROW_ERRORS: orjson.dumps(errors).decode()}
    return names, columns, ((RECORD_ID_HEADER, request_id),)


def _names(door: PipelineDoor, caller_id: str, request_id: bytes) -> dict[str, Any]:
    return {"model_name": door.name, "model_version": door.version, "id": caller_id or request_id.decode()}


def _response(
    door: PipelineDoor,
    outputs: Sequence[v2.Choice],
    names: Mapping[str, Any],
    columns: Mapping[str, Column],
    shown: tuple[tuple[bytes, bytes], ...],
) -> Response:
    answer, header_length = v2.encode(names, door.answer, columns, outputs)
    if header_length:
        length = (b"inference-header-content-length", str(header_length).encode())
        return Response(200, answer, BINARY, (*shown, length))
    return Response(200, answer, JSON, shown)


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


def failure_entry(record_ids: Sequence[bytes], row: int, reply: Reply | None, detail: bool) -> dict[str, Any]:
    """What is said of a row without an answer where other rows have theirs."""
    error = failure(record_ids, row, reply, detail)
    return {
        "error": str(error), "status": error.status, "id": error.record_id.decode(), **error.facts,
    }  # fmt: skip


def whole_of(request: Request, *, default: bool, asked: str = "") -> bool:
    """Whether one row without an answer fails the request, by header x-row-errors or `asked` (of the body, if any).

    Raises GatewayError 400 for a choice that there is not.
    """
    if not asked and ROW_ERRORS_HEADER not in request.headers:  # the usual case
        return default
    chosen = asked or request.headers.get(ROW_ERRORS_HEADER, b"").decode("latin-1")
    if not chosen:
        return default
    if chosen not in ("request", "entry"):
        raise GatewayError(
            400,
            f"'{chosen[:40]}' is no choice of what a failed row does",
            hint="valid: request (it fails the request), entry (it is an entry of the answer)",
        )
    return chosen == "request"


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


def ask_of(
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


def caller_id_of(request: Request) -> str:
    """The caller's own id of the request, "" if none. Raises GatewayError 400 for one that is too long."""
    given = request.headers.get(REQUEST_ID_HEADER, b"")
    if len(given) > _MAX_HEADER_BYTES:
        raise GatewayError(400, f"header x-request-id is longer than {_MAX_HEADER_BYTES} bytes")
    return given.decode("latin-1")
