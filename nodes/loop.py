"""`loop.until`: send records round again until they are good, so often and no more."""

from __future__ import annotations

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    ContractContext,
    Expression,
    NodeContext,
    Out,
    Schema,
    Settings,
    node,
    visits_of,
)

from ._expressions import condition, refuse_declarations
from ._ports import emit_where

EXAMPLE = """
kind: Topic
name: numbers
fields: {of: float64, root: float64}
---
kind: Pipeline
name: square-root
doc: Newton's method. The record that a round begins with is the record that a round gives.
inputs: {number: numbers}
nodes:
  newton:
    use: transform.select
    from: [number, good.again]
    with: {set: {root: (root + of / root) / 2}}
  good:
    use: loop.until
    from: newton
    with: {until: abs(root * root - of) < 1e-9 * of, max_visits: 20}
tests:
  - name: some rounds are enough
    given: {number: [{of: 2, root: 1}]}
    expect:
      good.done: [{root: 1.4142135623730951}]
      good.exhausted: []
  - name: what never gets there comes out all the same
    given: {number: [{of: -1, root: 1}]}
    expect: {good.done: [], good.exhausted: [{of: -1}]}
"""


class Until(Settings):
    """When a record is good, and how often it may come by."""

    until: str | bool = Setting(description="An expression; a record for which it is true is done.")
    max_visits: int = Setting(
        ge=1,
        le=1_000_000,
        description="How often a record comes to this node at most; the last time it goes to `exhausted`, if not `done`.",
    )


@node("loop.until", settings=Until, outputs=("again", "done", "exhausted"), example=EXAMPLE)
class LoopUntil:
    """Send a record back to an earlier node until a condition holds, and out with a result when it may not go round again.

    The port `again` feeds the node where a round begins (name it in that node's `from`); its records travel by Kafka, so
    a round survives any crash and others pass while one goes round. `done` has the records for which `until` is true;
    null and NaN are not true. `exhausted` has those that came by `max_visits` times and are not done. All three have the
    contract of the input, and what comes round must have the contract that the first round began with. A record keeps
    its id, its key, its deadline and its caller; the header `df-visits` counts its rounds and goes when it leaves.
    """

    loop = "again"

    def __init__(self, settings: Until, context: NodeContext) -> None:
        self._good: Expression = condition(settings.until, context.input, ("with", "until"))
        self._most = settings.max_visits
        self._name = f"{context.pipeline}/{context.node}"

    @staticmethod
    def contract(settings: Until, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        condition(settings.until, context.input, ("with", "until"))
        return dict.fromkeys(("again", "done", "exhausted"), context.input)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        good = self._good.matches(batch)
        visits = np.array([visits_of(row, self._name) for row in batch.rows], dtype=np.int64) + 1
        emit_where(batch, out, good, "done")
        emit_where(batch, out, ~good & (visits >= self._most), "exhausted")
        emit_where(batch, out, ~good & (visits < self._most), "again")
