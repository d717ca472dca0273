"""`route.weighted`: send each record to one of several ports, by shares, always the same way."""

from __future__ import annotations

from hashlib import blake2b
from itertools import accumulate
from typing import Final

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    NodeContext,
    Out,
    Schema,
    Settings,
    node,
    to_list,
)

from ._expressions import refuse_declarations
from ._matching import check_field
from ._ports import check_port, emit_where

EXAMPLE = """
kind: Topic
name: visits
fields: {visitor: string, page: string}
---
kind: Pipeline
name: try-a-new-shop
inputs: {visit: visits}
nodes:
  trial: {use: route.weighted, from: visit, with: {weights: {old: 90, new: 10}, by: visitor, salt: trial-1}}
tests:
  - name: a visitor is always sent the same way
    given:
      visit:
        - {visitor: ann, page: home}
        - {visitor: quentin, page: home}
        - {visitor: quentin, page: cart}
    expect:
      trial.old: [{visitor: ann, page: home}]
      trial.new: [{visitor: quentin, page: home}, {visitor: quentin, page: cart}]
"""

ID: Final = "id"
_KINDS: Final = frozenset(
    {"string", "enum", "bytes", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)  # fmt: skip


class Weighted(Settings):
    """Which ports, their shares, and what decides."""

    weights: dict[str, float] = Setting(
        min_length=1,
        description="For each output port its weight; its share is that of the sum. 0 sends nothing there.",
    )
    by: str = Setting(
        default=ID,
        description=(
            "The field whose value decides: equal values go the same way. Default: the record's `id`, so that a record "
            "that is run again, or redriven, goes the way it went."
        ),
    )
    salt: str | None = Setting(
        default=None,
        description=(
            "A text that goes into the hash: nodes of the same salt send the same values the same way. Default: the "
            "pipeline and the node, so that two in a row decide independently."
        ),
    )

    @field_validator("weights")
    @classmethod
    def _weights_are_sound(cls, value: dict[str, float]) -> dict[str, float]:
        for port, weight in value.items():
            check_port(port)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of '{port}' is {weight}, not 0 or more")
        if not sum(value.values()):
            raise ValueError("all weights are 0")
        return value


@node("route.weighted", settings=Weighted, example=EXAMPLE, outputs=())
class RouteWeighted:
    """Send each record to one of several ports, by weight: a canary, a trial of two models.

    The way is a function of the value of `by`, so it is the same on every worker, after a restart and in a replay. Where
    it falls: blake2b (RFC 7693) of salt, a zero byte and the value (text as UTF-8, a whole number as its decimal digits, bool as
    `true` or `false`), 8 bytes long, read as a big-endian number, over 2^64: a fraction from 0 to 1. The ports share that
    range in the order written, so when weights change, only the values at the moved borders change their way. A null
    counts as the record's id. Every port has the contract of the input.
    """

    def __init__(self, settings: Weighted, context: NodeContext) -> None:
        salt = settings.salt if settings.salt is not None else f"{context.pipeline}/{context.node}"
        self._prefix = salt.encode() + b"\0"
        self._by = settings.by
        self._ports = tuple(settings.weights)
        total = sum(settings.weights.values())
        self._borders = np.array(list(accumulate(settings.weights.values()))) / total
        # By rounding the last border could be below 1; and a last port of weight 0 must get nothing.
        last = max(at for at, weight in enumerate(settings.weights.values()) if weight)
        self._borders[last:] = 1.0

    @staticmethod
    def ports(settings: Weighted) -> tuple[str, ...]:
        return tuple(settings.weights)

    @staticmethod
    def contract(settings: Weighted, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        if settings.by != ID or ID in context.input:
            found = check_field(settings.by, context.input, "the input", ("with", "by"))
            if found.type.kind not in _KINDS or found.type.shape:
                raise ContractError(
                    f"by: '{settings.by}' is {found.type.describe()}, which is not hashed",
                    path=("with", "by"),
                    hint="a text, whole number, bool or bytes",
                )
        return dict.fromkeys(settings.weights, context.input)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        ids = [row.id for row in batch.rows]
        keys = ids
        if self._by in batch:
            keys = [
                ids[at] if value is None else _bytes_of(value)
                for at, value in enumerate(to_list(batch[self._by]))
            ]
        digests = b"".join(blake2b(self._prefix + key, digest_size=8).digest() for key in keys)
        fractions = np.frombuffer(digests, dtype=">u8") / 2.0**64
        chosen = np.minimum(np.searchsorted(self._borders, fractions, side="right"), len(self._ports) - 1)
        for at, name in enumerate(self._ports):
            emit_where(batch, out, chosen == at, name)


def _bytes_of(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    return (str(value).lower() if isinstance(value, bool) else str(value)).encode()
