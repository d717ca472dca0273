"""`distinct`: let each record through once."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    Duration,
    KeyedState,
    NodeContext,
    Out,
    Row,
    Schema,
    Settings,
    codec_of,
    headers,
    nearest,
    node,
)

from ._expressions import refuse_declarations

EXAMPLE = """
kind: Topic
name: payments
key: account
fields: {account: string, reference: string, amount: float64}
---
kind: Pipeline
name: paid-once
inputs: {payment: payments}
nodes:
  once: {use: distinct, from: payment, with: {by: [reference], within: 1d}}
tests:
  - name: the second record of a reference is dropped, another account's is not
    given:
      payment:
        - {account: a, reference: r1, amount: 5}
        - {account: a, reference: r1, amount: 5}
        - {account: b, reference: r1, amount: 5}
        - {account: a, reference: r2, amount: 5}
    expect:
      once: [{account: a, reference: r1}, {account: b, reference: r1}, {account: a, reference: r2}]
"""

HOUR_MS: Final = 3_600_000
_REPEATED: Final = "repeated"


class Distinct(Settings):
    """What makes two records the same one, and for how long that is remembered."""

    by: Literal["source", "id"] | tuple[str, ...] = Setting(
        default="source",
        description="`source`: what an agent made of one record, sent again after a crash; `id`: the record's id; or fields.",
    )
    within: Duration = Setting(
        default=HOUR_MS, description="A record that comes again later than this is let through again."
    )


@node("distinct", settings=Distinct, example=EXAMPLE)
class DistinctNode:
    """Let each record through once; one that comes again within the time is dropped as "repeated".

    Records are compared with those of the same key: what must be recognised has to have the same key. By `source` it is
    header `df-source` that counts, which says of which record, and as which output of it, an agent made this one; a
    record without it is known by its id. What is remembered is state: it survives a restart, and a record that is
    processed again after a crash of this stage is let through again, once.
    """

    keyed = True

    def __init__(self, settings: Distinct, context: NodeContext) -> None:
        self._within_ms = settings.within
        self._by = settings.by
        fields = settings.by if isinstance(settings.by, tuple) else ()
        self._codec = codec_of(context.input.select(fields))

    @staticmethod
    def contract(settings: Distinct, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        for index, name in enumerate(settings.by if isinstance(settings.by, tuple) else ()):
            if name not in context.input:
                raise ContractError(
                    f"no field '{name}'", path=("with", "by", index), hint=nearest(name, context.input.names)
                )
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        del port
        fresh, repeated = [], []
        for index, (row, name) in enumerate(zip(batch.rows, self._names(batch), strict=True)):
            key = row.key or b""
            if state.get(key, name) is None:
                state.put(key, name, True, self._within_ms)
                fresh.append(index)
            else:
                repeated.append(index)
        if fresh:
            out.emit(batch.take(fresh), rows=np.array(fresh, dtype=np.intp))
        out.drop(repeated, _REPEATED)

    def _names(self, batch: Batch) -> Sequence[str]:
        """What each record is known by."""
        if self._by == "id":
            return batch.ids
        if self._by == "source":
            return [_source_of(row) for row in batch.rows]
        encoded = self._codec.encode({n: batch[n] for n in self._codec.schema.names}, len(batch))
        return [blake2b(value or b"", digest_size=16).hexdigest() for value in encoded.values]


def _source_of(row: Row) -> str:
    found = next((v for n, v in row.carry if n == headers.SOURCE and v), None)
    return found.decode("utf-8", "replace") if found else row.id.decode()
