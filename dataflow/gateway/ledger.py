"""What is written of requests whose callers come back for the answer, and which of several with one key counts. Pure.

Topic ``dataflow.accepted`` (one partition) holds a record per step of a request, keyed by the request's id:

accepted  somebody asked; for a request with an idempotency key it is a claim, and the first in the log's order counts
sent      the request's records are written: nobody has to send them again
failed    they are not: the next who asks with the key may try at once

Of claims of one key, the first counts for IDEMPOTENCY_TTL_MS. A claim whose request was not sent, because its gateway
died, is followed by one with the next `attempt`; the first of those counts in turn.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any, Final, Literal

import orjson

from dataflow.core import ids
from dataflow.core.errors import GatewayError
from dataflow.core.limits import IDEMPOTENCY_LEASE_MS, IDEMPOTENCY_TTL_MS, MAX_IDEMPOTENCY_KEYS

Step = Literal["accepted", "sent", "failed"]
MAX_KEY_CHARACTERS: Final = 255
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


@dataclass(frozen=True, slots=True)
class Accepted:
    """One step of a request.

    form         how the answer is to be written: one, list, instances, inputs (plain and V1 doors) or v2
    outputs      the outputs chosen, each with whether as binary; of form v2 only
    partition    of topic dataflow.results, where the answer goes
    key, body    digests of the idempotency key (with its pipeline) and of the request, "" without a key
    """

    id: str
    step: Step
    pipeline: str = ""
    version: str = ""
    rows: int = 0
    form: str = ""
    whole: bool = True
    outputs: tuple[tuple[str, bool], ...] = ()
    caller_id: str = ""
    time_ms: int = 0
    deadline_ms: int = 0
    partition: int = 0
    key: str = ""
    body: str = ""
    attempt: int = 0

    def record_ids(self) -> list[bytes]:
        """The ids of the request's records, as at the doors that wait."""
        request_id = self.id.encode()
        if self.rows == 1:
            return [request_id]
        return [ids.child(request_id, "gateway", "in", row) for row in range(self.rows)]

    def written(self) -> bytes:
        return orjson.dumps(asdict(self))

    @staticmethod
    def read(value: bytes | None) -> Accepted | None:
        """The step in a record of the topic; None for what somebody else wrote there."""
        try:
            said: Any = orjson.loads(value or b"")
            made = Accepted(
                **{**said, "outputs": tuple((str(n), bool(b)) for n, b in said.get("outputs", ()))}
            )
        except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError):
            return None
        texts = (
            made.id,
            made.step,
            made.pipeline,
            made.version,
            made.form,
            made.caller_id,
            made.key,
            made.body,
        )
        counts = (made.rows, made.time_ms, made.deadline_ms, made.partition, made.attempt)
        good = all(type(t) is str for t in texts) and all(type(c) is int and c >= 0 for c in counts)
        return made if good else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The request that counts for a key. `offset` is where its claim stands in the log."""

    accepted: Accepted
    offset: int
    step: Step = "accepted"

    def left_over(self, now_ms: int) -> bool:
        """Whether its records were not written and nobody is about to."""
        waited = now_ms - self.accepted.time_ms >= IDEMPOTENCY_LEASE_MS
        return self.step == "failed" or (self.step == "accepted" and waited)


class Claims:
    """The claims of the last IDEMPOTENCY_TTL_MS, folded from the topic in its order. Not thread-safe."""

    def __init__(self, ttl_ms: int = IDEMPOTENCY_TTL_MS) -> None:
        self._ttl_ms = ttl_ms
        self._claims: OrderedDict[str, Claim] = OrderedDict()

    def __len__(self) -> int:
        return len(self._claims)

    def take(self, step: Accepted, offset: int) -> None:
        """Fold the next record of the topic in. What does not count changes nothing."""
        if not step.key:
            return
        known = self._claims.get(step.key)
        if step.step != "accepted":
            if known is not None and (known.accepted.id, known.accepted.attempt) == (step.id, step.attempt):
                self._claims[step.key] = replace(known, step=step.step)
            return
        if known is not None and step.time_ms < known.accepted.time_ms + self._ttl_ms:
            follows = step.attempt == known.accepted.attempt + 1 and known.step != "sent"
            if not follows:
                return
        self._claims[step.key] = Claim(step, offset)
        self._claims.move_to_end(step.key)

    def of(self, key: str, now_ms: int) -> Claim | None:
        """The claim that counts for a key now."""
        claim = self._claims.get(key)
        return claim if claim is not None and now_ms < claim.accepted.time_ms + self._ttl_ms else None

    def forget(self, now_ms: int) -> None:
        """Let go of claims whose time is over; in the order of the log, so this stops at the first that is not."""
        while self._claims:
            key, claim = next(iter(self._claims.items()))
            if now_ms < claim.accepted.time_ms + self._ttl_ms:
                return
            del self._claims[key]

    @property
    def full(self) -> bool:
        return len(self._claims) >= MAX_IDEMPOTENCY_KEYS


def parse_key(header: bytes) -> str:
    """The idempotency key in its header: a structured-field string (``"abc"``), or the bare text. GatewayError 400."""
    text = header.decode("latin-1").strip()
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted is not None else text
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise GatewayError(
            400, f"header Idempotency-Key must hold 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
        )
    return key


def digest(*parts: bytes) -> str:
    """A hash of parts that cannot be confused with another division of them."""
    made = blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


def parse_prefer(header: bytes) -> Mapping[str, str]:
    """The preferences of header Prefer (RFC 7240), in lower case; parameters of preferences are ignored."""
    found: dict[str, str] = {}
    for part in header.decode("latin-1").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        if name.strip():
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found
