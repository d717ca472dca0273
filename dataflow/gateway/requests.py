"""The door for callers who do not wait, or ask twice: an id at once, the answer by ``GET /requests/{id}``.

What was asked is in topic ``dataflow.accepted``, what became of it in ``dataflow.results``, so any replica answers, also
after a restart. A request with an idempotency key is one of these too, though its caller may wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from dataflow.codecs.values import coerce_records
from dataflow.core import headers, ids
from dataflow.core.errors import GatewayError
from dataflow.core.limits import (
    ASYNC_DEADLINE_MS,
    IDEMPOTENCY_TTL_MS,
    MAX_ASYNC_DEADLINE_MS,
    MAX_REQUEST_ROWS,
)
from dataflow.core.schema import Column
from dataflow.gateway import v2
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.http import JSON, Request, RequestError, Response
from dataflow.gateway.infer import (
    DEADLINE_HEADER,
    KEY_HEADER,
    RECORD_ID_HEADER,
    answered,
    ask_of,
    caller_id_of,
    v2_answer,
    whole_of,
)
from dataflow.gateway.ledger import Accepted, Claim, Claims, digest, parse_key, parse_prefer
from dataflow.gateway.lookup import Found, Lookup
from dataflow.gateway.plain import read_plain, read_v1, records_answer, rows_told, whole_form
from dataflow.gateway.tail import LoopProducer, Record, Tail, unavailable
from dataflow.planner.plan import ACCEPTED, RESULTS
from dataflow.transport.api import Fabric, Header, Message

PREFER: Final = b"prefer"
RESPOND_ASYNC: Final = "respond-async"
# Tells an answer that failed from a gateway that did.
STATUS_HEADER: Final = b"df-request-status"
_REPLAYED: Final = (b"idempotent-replayed", b"true")
# A claim is known when it was read back; a broker that takes longer is away.
_READ_BACK_S: Final = 15.0


@dataclass(frozen=True)
class _Asked:
    """A request, read: rows as columns, and how it is to be answered."""

    columns: Mapping[str, Column]
    accepted: Accepted
    headers: tuple[Header, ...]


class RequestsDoor:
    """Belongs to the gateway's event loop. Its clients are made when the first such request comes."""

    def __init__(self, fabric: Fabric, clock_ms: Callable[[], int]) -> None:
        self._fabric = fabric
        self._clock_ms = clock_ms
        self._producer: LoopProducer | None = None
        self._partitions = 0
        self._claims = Claims()
        self._claims_tail: Tail | None = None
        self._starting = asyncio.Lock()
        self._lookup = Lookup(fabric, clock_ms)

    async def close(self) -> None:
        if self._claims_tail is not None:
            await self._claims_tail.stop()
        if self._producer is not None:
            await self._producer.close()
        await self._lookup.close()

    async def take(
        self, kind: str, exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
    ) -> Response:
        """Take a request that was made with ``Prefer: respond-async`` or an idempotency key; `kind` is its route's handler.

        202 with the id, or the answer where the caller waits. Raises GatewayError: 422 for a key that was used with
        another request, else as the doors that wait.
        """
        if exchange.draining:
            raise unavailable("the gateway is stopping")
        prefer = parse_prefer(request.headers.get(PREFER, b""))
        later = RESPOND_ASYNC in prefer
        key = request.headers.get(KEY_HEADER)
        asked = _read(kind, door, request, body, self._clock_ms(), later=later)
        request.rows = asked.accepted.rows
        await self._start(claims=key is not None)
        replayed = False
        if key is None:
            accepted = await self._send(door, asked)
        else:
            kept = digest(door.name.encode(), parse_key(key).encode())
            header_length = request.headers.get(v2.HEADER_LENGTH, b"")
            said = digest(kind.encode(), header_length, body)
            asked = replace(asked, accepted=replace(asked.accepted, key=kept, body=said))
            accepted, replayed = await self._send_once(door, asked)
        extra = (_REPLAYED,) if replayed else ()
        # Who waits, waits as long as this request says, whoever else asked before.
        wait_ms = min(asked.accepted.deadline_ms, accepted.deadline_ms) - self._clock_ms()
        if later:
            wait_ms = min(wait_ms, _wait_ms(prefer))
        answer = None
        if wait_ms > 0 or not later:
            found = await self._lookup.wait(accepted, wait_ms)
            answer = self._told(door, accepted, found, detail)
        if answer is None and later:
            return _pending(accepted, (*extra, (b"preference-applied", RESPOND_ASYNC.encode())))
        if answer is None:
            message = "no answer at the deadline"
            raise RequestError(
                504, message, hint=f"GET /requests/{accepted.id}", record_id=accepted.id.encode()
            )
        return replace(answer, headers=(*answer.headers, *extra))

    async def find(
        self, request_id: str, request: Request, doors: Callable[[str], PipelineDoor], *, detail: bool
    ) -> Response:
        """What is known of a request: 202 while it runs, its answer, or its failure. Raises GatewayError 400, 404."""
        if ids.malformed([request_id.encode()]):
            raise GatewayError(400, f"'{request_id[:80]}' is no id of a request")
        wait_ms = _wait_ms(parse_prefer(request.headers.get(PREFER, b"")))
        accepted = await self._lookup.accepted(request_id)
        if accepted is None:
            raise GatewayError(
                404, f"no request '{request_id}'", hint="requests are known for a day after they are answered"
            )
        door = doors(accepted.pipeline)
        found = await self._lookup.wait(accepted, min(wait_ms, accepted.deadline_ms - self._clock_ms()))
        over = self._clock_ms() >= accepted.deadline_ms
        if over and not found.over and not any(not reply.good for reply in found.replies.values()):
            await self._lookup.on_edges(door, accepted, found)
        try:
            answer = self._told(door, accepted, found, detail)
        except GatewayError as error:
            if accepted.version == door.version or isinstance(error, RequestError):
                raise
            raise GatewayError(
                410, "the pipeline's contract was changed since", hint="the answer edge's tap still shows it"
            ) from error
        if answer is None and self._clock_ms() < accepted.deadline_ms:
            return _pending(accepted, ())
        if answer is None:
            raise RequestError(
                504,
                "no answer at the deadline",
                record_id=request_id.encode(),
                headers=((STATUS_HEADER, b"failed"),),
            )
        return replace(answer, headers=(*answer.headers, (STATUS_HEADER, b"done")))

    async def _start(self, *, claims: bool) -> None:
        async with self._starting:
            if self._producer is None:
                self._partitions = len(await self._lookup.start())
                self._producer = LoopProducer(await asyncio.to_thread(self._fabric.producer))
            if claims and self._claims_tail is None:
                tail = Tail(self._fabric, (ACCEPTED,), self._take_steps)
                ends = await tail.ends()
                await tail.start(max(self._clock_ms() - IDEMPOTENCY_TTL_MS, 0))
                await tail.reach(ends, _READ_BACK_S)
                self._claims_tail = tail

    def _take_steps(self, messages: Sequence[Message]) -> None:
        for message in messages:
            step = Accepted.read(message.value())
            if step is not None:
                self._claims.take(step, message.offset())
        self._claims.forget(self._clock_ms())

    async def _send(self, door: PipelineDoor, asked: _Asked) -> Accepted:
        """Write what was asked, then its records. Raises RequestError."""
        accepted = self._placed(asked.accepted)
        records = _records(door, asked, accepted)
        await self._write([_step(accepted)])
        await self._write(records)
        return accepted

    async def _send_once(self, door: PipelineDoor, asked: _Asked) -> tuple[Accepted, bool]:
        """The request that counts for the key, and whether somebody else's: then nothing is sent."""
        wanted = asked.accepted
        for _ in range(3):
            now = self._clock_ms()
            known = self._claims.of(wanted.key, now)
            if known is not None and not known.left_over(now):
                return _same(known, wanted), True
            if known is None and self._claims.full:
                raise RequestError(
                    429, "too many idempotency keys are in use", hint="try later", retry_after_s=60
                )
            claim = self._placed(wanted)
            if known is not None:
                claim = replace(claim, attempt=_same(known, wanted).attempt + 1)
            records = _records(door, asked, claim)  # first, so that what cannot be encoded is not claimed
            (offset,) = await self._write([_step(claim)])
            await self._read_back(offset)
            counts = self._claims.of(claim.key, claim.time_ms)
            if counts is not None and counts.offset == offset:
                return await self._send_claimed(claim, records), False
        raise unavailable("others ask with the same key")

    async def _send_claimed(self, claim: Accepted, records: Sequence[Record]) -> Accepted:
        try:
            await self._write(records)
        except RequestError:
            # Whoever asks again with the key need not wait for the lease.
            (offset,) = await self._write([_step(replace(claim, step="failed", outputs=()))])
            await self._read_back(offset)
            raise
        await self._write([_step(replace(claim, step="sent", outputs=()))])
        return claim

    async def _read_back(self, offset: int) -> None:
        """Wait until what was written at `offset` is folded in, and so all before it."""
        assert self._claims_tail is not None, "started"
        await self._claims_tail.reach({(ACCEPTED, 0): offset + 1}, _READ_BACK_S)

    def _placed(self, accepted: Accepted) -> Accepted:
        request_id = ids.mint(accepted.time_ms).decode()
        return replace(accepted, id=request_id, partition=int(request_id[-8:], 16) % self._partitions)

    async def _write(self, records: Sequence[Record]) -> list[int]:
        assert self._producer is not None, "started"
        return await self._producer.write(records)

    def _told(self, door: PipelineDoor, accepted: Accepted, found: Found, detail: bool) -> Response | None:
        """The answer as the doors that wait would give it; None while there is none. Raises GatewayError for a failure."""
        record_ids = accepted.record_ids()
        replies = [found.replies.get(record_id) for record_id in record_ids]
        bad = any(reply is not None and not reply.good for reply in replies)
        if not all(replies) and not (bad and accepted.whole) and self._clock_ms() < accepted.deadline_ms:
            return None
        if not any(replies):
            return None
        request_id = accepted.id.encode()
        try:
            if accepted.form == "v2":
                outputs = [v2.Choice(name, binary) for name, binary in accepted.outputs]
                return v2_answer(
                    door, outputs, accepted.caller_id, request_id, record_ids, replies, detail,
                    whole=accepted.whole,
                )  # fmt: skip
            if accepted.whole:
                answered(record_ids, replies, detail)
            results = rows_told(door, record_ids, replies, detail)
            return records_answer(door, accepted.form, results, request_id, accepted.caller_id)  # type: ignore[arg-type]
        except RequestError as error:
            error.headers = (*error.headers, (STATUS_HEADER, b"failed"))
            raise


def wanted(request: Request) -> bool:
    """Whether a request is for this door. Raises GatewayError 400 for a key that is none."""
    if KEY_HEADER in request.headers:
        return True
    return PREFER in request.headers and RESPOND_ASYNC in parse_prefer(request.headers[PREFER])


def _read(kind: str, door: PipelineDoor, request: Request, body: bytes, now: int, *, later: bool) -> _Asked:
    """Decode a request of any door; a row that cannot be read fails it. Raises GatewayError 400, 413."""
    caller_id, timeout_ms = caller_id_of(request), 0
    outputs: tuple[tuple[str, bool], ...] = ()
    form: Any
    if kind == "infer":
        call = v2.decode(door.request, door.answer, body, request.headers.get(v2.HEADER_LENGTH))
        form, columns, rows = "v2", call.columns, call.count
        whole = whole_of(request, default=True, asked=call.row_errors)
        caller_id, timeout_ms = call.id or caller_id, -(-call.timeout_us // 1000)
        outputs = tuple((choice.name, choice.binary) for choice in call.outputs)
    else:
        form, records = read_plain(body) if kind == "plain" else read_v1(door.request, body)
        if not 0 < len(records) <= MAX_REQUEST_ROWS:
            status = 413 if records else 400
            raise GatewayError(
                status, f"the request has {len(records)} records, valid: 1 to {MAX_REQUEST_ROWS}"
            )
        decoded = coerce_records(door.request, records)
        for row, cause in decoded.failed:
            raise GatewayError(400, f"row {row}: {cause.message}", hint=cause.hint)
        columns, rows, whole = decoded.columns, len(records), whole_form(request, form)
    ask = ask_of(door, request, now, caller_id, timeout_ms)
    deadline_ms = _deadline_ms(request, now, timeout_ms) if later else ask.deadline_ms
    accepted = Accepted(
        "", "accepted", door.name, door.version, rows, form, whole, outputs, caller_id, now, deadline_ms
    )  # fmt: skip
    return _Asked(columns, accepted, ask.headers)


def _deadline_ms(request: Request, now: int, timeout_ms: int) -> int:
    """When a request whose caller comes back is over: the header's (checked before) or the body's time, else an hour."""
    wait_ms = int(request.headers.get(DEADLINE_HEADER, b"0")) or timeout_ms or ASYNC_DEADLINE_MS
    return now + min(wait_ms, MAX_ASYNC_DEADLINE_MS)


def _records(door: PipelineDoor, asked: _Asked, accepted: Accepted) -> list[Record]:
    """The request's records, told to answer to topic dataflow.results. Raises GatewayError 400, 413."""
    values = door.values(asked.columns, accepted.rows)
    keys = door.keys(asked.columns, accepted.rows) if door.key else None
    turn = next(door.turns)
    shared: list[Header] = [(headers.DEADLINE, str(accepted.deadline_ms)), *asked.headers]
    if door.codec.fingerprint:
        shared.append((headers.SCHEMA, door.codec.fingerprint))
    made = []
    for row, record_id in enumerate(accepted.record_ids()):
        reply_to = f"{RESULTS}/{accepted.partition}/{record_id.decode()}"
        key = None if keys is None else keys[row]
        made.append(
            Record(
                door.topic,
                values[row],
                key,
                [(headers.ID, record_id), (headers.REPLY_TO, reply_to), *shared],
                door.partition_of(turn, row) if key is None else -1,
            )
        )
    return made


def _step(accepted: Accepted) -> Record:
    # The record's time is that in the id: it is found by it.
    timestamp_ms = accepted.time_ms if accepted.step == "accepted" else 0
    return Record(ACCEPTED, accepted.written(), accepted.id.encode(), [], 0, timestamp_ms)


def _same(known: Claim, asked: Accepted) -> Accepted:
    """The request that counts for a key. Raises GatewayError 422 if it is not the one that is asked now."""
    if known.accepted.body != asked.body:
        raise GatewayError(
            422,
            "this Idempotency-Key was used with another request",
            hint="a new request needs a new key",
        )
    return known.accepted


def _pending(accepted: Accepted, extra: tuple[tuple[bytes, bytes], ...]) -> Response:
    said = {
        "id": accepted.id,
        "status": "pending",
        "pipeline": accepted.pipeline,
        "accepted_at": _time(accepted.time_ms),
        "deadline": _time(accepted.deadline_ms),
    }
    shown = (
        (b"location", f"/requests/{accepted.id}".encode()),
        (b"retry-after", b"1"),
        (RECORD_ID_HEADER, accepted.id.encode()),
        (STATUS_HEADER, b"pending"),
        *extra,
    )
    return Response(202, orjson.dumps(said), JSON, shown)


def _time(time_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms / 1000))


def _wait_ms(prefer: Mapping[str, str]) -> int:
    """``Prefer: wait=SECONDS`` of one who comes back; as with all preferences, one that is no number is passed over."""
    text = prefer.get("wait", "")
    return int(text) * 1000 if text.isascii() and text.isdigit() and len(text) < 6 else 0
