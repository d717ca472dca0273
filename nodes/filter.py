"""`filter.when`: let records through on a condition."""

from __future__ import annotations

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import Batch, ContractContext, NodeContext, Out, Schema, Settings, node

from ._expressions import condition, refuse_declarations

EXAMPLE = """
kind: Topic
name: flights.measured
fields:
  tailnum: {type: string}
  delay:   {type: float32, unit: minute, nullable: true}
---
kind: Pipeline
name: late-flights
inputs: {flight: flights.measured}
nodes:
  late: {use: filter.when, from: flight, with: {when: "delay > 30", reason: on time}}
tests:
  - name: a delay that is not known lets nothing through
    given: {flight: [{tailnum: N1, delay: 45.0}, {tailnum: N2, delay: 5.0}, {tailnum: N3, delay: null}]}
    expect: {late: [{tailnum: N1, delay: 45.0}]}
"""


class Filter(Settings):
    """Which records pass."""

    when: str | bool = Setting(
        description="An expression that is true for the records to pass; null counts as false."
    )
    reason: str = Setting(
        default="filtered",
        min_length=1,
        max_length=100,
        description="Why the others are dropped: a label of the metrics, and what a waiting caller is told.",
    )


@node("filter.when", settings=Filter, example=EXAMPLE)
class FilterWhen:
    """Pass the records for which an expression is true; drop the others with a reason.

    The output has the contract of the input. A record for which the expression is null is dropped.
    """

    def __init__(self, settings: Filter, context: NodeContext) -> None:
        self._when = condition(settings.when, context.input, ("with", "when"))
        self._reason = settings.reason

    @staticmethod
    def contract(settings: Filter, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        condition(settings.when, context.input, ("with", "when"))
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        passed = self._when.matches(batch)
        if passed.all():
            out.emit(batch)
            return
        rows = np.flatnonzero(passed)
        if len(rows):
            out.emit(batch.take(rows), rows=rows)
        out.drop(np.flatnonzero(~passed), self._reason)
