"""Doors of records as JSON objects: the plain one, and V1 ``:predict`` as TensorFlow Serving and KServe know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core.errors import GatewayError
from dataflow.core.inprocess import Reply
from dataflow.core.limits import MAX_REQUEST_ROWS
from dataflow.core.schema import Schema
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.http import JSON, Request, Response, parse_json
from dataflow.gateway.infer import (
    RECORD_ID_HEADER,
    REQUEST_ID_HEADER,
    answered,
    ask_of,
    caller_id_of,
    failure_entry,
    whole_of,
)

# What a request of records looked like, and so what its answer does.
Form = Literal["one", "list", "instances", "inputs"]


async def plain(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """One object in, one out; or a list in, a list of equal length out, with ``{"error": ...}`` for rows without."""
    form, records = read_plain(body)
    return await _answer(exchange, door, request, form, records, detail)


async def predict(
    exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
) -> Response:
    """V1: ``instances`` (rows) give ``predictions``, ``inputs`` (columns) give ``outputs``.

    A pipeline of one input field takes its values bare; one of one answer field gives them bare.
    """
    form, records = read_v1(door.request, body)
    return await _answer(exchange, door, request, form, records, detail)


async def _answer(
    exchange: Exchange, door: PipelineDoor, request: Request, form: Form, records: Sequence[Any], detail: bool
) -> Response:
    whole = whole_form(request, form)
    caller_id = caller_id_of(request)
    results, record_id = await run_records(exchange, door, request, records, whole=whole, detail=detail)
    return records_answer(door, form, results, record_id, caller_id)


def whole_form(request: Request, form: Form) -> bool:
    """Whether one failed row fails the request; in a plain list it is an entry unless chosen otherwise."""
    return form == "one" or whole_of(request, default=form != "list")


def records_answer(
    door: PipelineDoor, form: Form, results: Sequence[Any], record_id: bytes, caller_id: str
) -> Response:
    """The answer in the form that was asked in, from what each row is told."""
    shown: list[tuple[bytes, bytes]] = []
    if record_id:
        shown.append((RECORD_ID_HEADER, record_id))
    if caller_id:
        shown.append((REQUEST_ID_HEADER, caller_id.encode("latin-1")))
    return Response(200, orjson.dumps(_document(door, form, results)), JSON, tuple(shown))


def _document(door: PipelineDoor, form: Form, results: Sequence[Any]) -> Any:
    if form in ("one", "list"):
        return results[0] if form == "one" else results
    made = [_v1_values(door, record) for record in results]
    names = door.answer.names
    if form == "instances":
        return {"predictions": [m.get(names[0], m) if len(names) == 1 else m for m in made]}
    if len(names) == 1:
        return {"outputs": [m.get(names[0], m) for m in made]}
    document: dict[str, Any] = {"outputs": {name: [m.get(name) for m in made] for name in names}}
    errors = [{"row": row, **m} for row, m in enumerate(made) if "error" in m and "error" not in names]
    if errors:
        document["errors"] = errors
    return document


def read_plain(body: bytes) -> tuple[Form, list[Any]]:
    """The records of a plain request, and whether it was one or a list. Raises GatewayError 400."""
    said = _loaded(body)
    return ("list", said) if isinstance(said, list) else ("one", [said])


def read_v1(schema: Schema, body: bytes) -> tuple[Form, list[Any]]:
    """The records of a V1 request, and whether they came by row or by column. Raises GatewayError 400."""
    said = _loaded(body)
    if not isinstance(said, dict) or ("instances" in said) == ("inputs" in said):
        raise GatewayError(400, "the body must be a JSON object with 'instances' or 'inputs'")
    if "instances" in said:
        return "instances", instances_of(schema, said["instances"])
    return "inputs", rows_of(schema, said["inputs"])


async def run_records(
    exchange: Exchange,
    door: PipelineDoor,
    request: Request,
    records: Sequence[Any],
    *,
    whole: bool,
    detail: bool,
) -> tuple[list[Any], bytes]:
    """What each record's caller is told, in order: the answer, or the error of that record; and the request's id.

    The id is b"" when no record could be sent. When `whole`, raises GatewayError for the first that has no answer.
    """
    if len(records) > MAX_REQUEST_ROWS:
        raise GatewayError(413, f"the request has {len(records)} records, valid: up to {MAX_REQUEST_ROWS}")
    request.rows = len(records)
    decoded = coerce_records(door.request, records)
    if whole and decoded.failed:
        row, cause = decoded.failed[0]
        place = f"row {row}: " if len(records) > 1 else ""
        raise GatewayError(400, f"{place}{cause.message}", hint=cause.hint)
    results: list[Any] = [None] * len(records)
    for row, cause in decoded.failed:
        results[row] = {"error": str(cause), "status": 400}
    good = decoded.good.tolist()
    if not good:
        return results, b""
    ask = ask_of(door, request, exchange.clock_ms(), caller_id_of(request), whole=whole)
    pending = await exchange.ask(door, decoded.columns, len(good), ask)
    if whole:
        answered(pending.record_ids, pending.results, detail)
    told = rows_told(door, pending.record_ids, pending.results, detail)
    for row, result in zip(good, told, strict=True):
        results[row] = result
    return results, pending.request_id


def rows_told(
    door: PipelineDoor, record_ids: Sequence[bytes], replies: Sequence[Reply | None], detail: bool
) -> list[Mapping[str, Any]]:
    """What each row's caller is told: the record of the edge that answered, or the error."""
    told: list[Mapping[str, Any]] = [{}] * len(replies)
    by_edge: dict[str, list[int]] = {}
    for row, reply in enumerate(replies):
        if reply is not None and reply.good:
            by_edge.setdefault(reply.edge, []).append(row)
        else:
            told[row] = failure_entry(record_ids, row, reply, detail)
    for edge, rows in by_edge.items():
        columns = door.decoded(edge, [r for r in map(replies.__getitem__, rows) if r is not None])
        records = to_jsonable(door.codecs[edge].schema, columns, len(rows))
        for row, record in zip(rows, records, strict=True):
            told[row] = record
    return told


def instances_of(schema: Schema, instances: Any) -> list[Any]:
    """The records of V1's ``instances``: objects, or bare values for the one field there is. Raises GatewayError 400."""
    if not isinstance(instances, list):
        raise GatewayError(400, "'instances' must be a list")
    if len(schema) == 1:
        (name,) = schema.names
        instances = [_bare(name, instance) for instance in instances]
    return [_v1_record(schema, instance) for instance in instances]


def rows_of(schema: Schema, inputs: Any) -> list[Any]:
    """The records of V1's ``inputs``: a list of values per field. Raises GatewayError 400."""
    if not isinstance(inputs, dict):
        if len(schema) != 1:
            raise GatewayError(
                400, "'inputs' must be an object with a list for each of: " + ", ".join(schema.names)
            )
        inputs = {schema.names[0]: inputs}
    lengths = set()
    for name, values in inputs.items():
        if not isinstance(values, list):
            raise GatewayError(400, f"'inputs': field '{name[:200]}' must be a list with a value per row")
        lengths.add(len(values))
    if len(lengths) > 1:
        raise GatewayError(400, "'inputs': the lists of the fields differ in length")
    count = lengths.pop() if lengths else 0
    rows = [{name: values[row] for name, values in inputs.items()} for row in range(count)]
    return [_v1_record(schema, row) for row in rows]


def _bare(name: str, instance: Any) -> Any:
    return instance if isinstance(instance, dict) and name in instance else {name: instance}


def _v1_record(schema: Schema, record: Any) -> Any:
    """A record with V1's form of bytes, ``{"b64": text}``, as the text that we take."""
    if not isinstance(record, dict):
        return record
    taken = {}
    for name, value in record.items():
        encoded = isinstance(value, dict) and value.keys() == {"b64"} and name in schema
        taken[name] = value["b64"] if encoded and schema[name].type.kind == "bytes" else value
    return taken


def _v1_values(door: PipelineDoor, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """An answer with V1's form of bytes."""
    if not any(declared.type.kind == "bytes" for declared in door.answer):
        return record
    return {
        name: {"b64": value}
        if name in door.answer and door.answer[name].type.kind == "bytes" and isinstance(value, str)
        else value
        for name, value in record.items()
    }


def _loaded(body: bytes) -> Any:
    try:
        return parse_json(body)
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error.msg} at byte {error.pos}") from None
