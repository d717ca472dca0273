"""`route.top_k`: of the records that belong together, the k best go one way and the others another."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    Expression,
    NodeContext,
    Out,
    Row,
    Schema,
    Settings,
    Sides,
    node,
)

from ._expressions import expression, refuse_declarations
from ._ports import emit_where

EXAMPLE = """
kind: Topic
name: searches
fields:
  query: string
  hits: {type: list, items: {type: record, fields: {page: string, score: float32}}}
---
kind: Pipeline
name: best-hits
inputs: {search: searches}
nodes:
  hits: {use: each.split, from: search, with: {field: hits}, keep: [query]}
  best: {use: route.top_k, from: hits, with: {score: score, k: 2}}
tests:
  - name: the two best hits of each search
    given:
      search:
        - {query: cat, hits: [{page: a, score: 0.1}, {page: b, score: 0.9}, {page: c, score: 0.5}]}
        - {query: dog, hits: [{page: d, score: 0.2}]}
    expect:
      best.top: [{query: cat, page: b}, {query: cat, page: c}, {query: dog, page: d}]
      best.rest: [{query: cat, page: a}]
"""


class TopK(Settings):
    """What counts as best, and how many."""

    score: str = Setting(description="A field, or an expression that gives a number: the higher, the better.")
    k: int = Setting(ge=1, description="How many of each group go to the port `top`.")
    per: Literal["parent", "request"] = Setting(
        default="parent",
        description=(
            "What makes a group: the records that were split from one (a record that was not split is its own group), "
            "or all records that come of one record of the stage's input, however often they were split."
        ),
    )


@node("route.top_k", settings=TopK, outputs=("top", "rest"), example=EXAMPLE)
class RouteTopK:
    """Of the records that belong together, send the k with the highest score to `top`, the others to `rest`.

    Records belong together when they were split from one by `each.split`. The node sees all of a group at once, retries
    included; those that were dropped or failed before are not counted. A group of k or fewer goes to `top` as a whole.
    Equal scores: the earlier one is better. Null and NaN are worse than any number. Both ports have the contract of the
    input, and keep its order.
    The split and all nodes up to this one are one stage: how many records belong together is not known elsewhere.
    """

    gathers = True

    def __init__(self, settings: TopK, context: NodeContext) -> None:
        self._score = _score(settings, context.input)
        self._k = settings.k
        self._per_parent = settings.per == "parent"

    @staticmethod
    def contract(settings: TopK, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        _score(settings, context.input)
        return {"top": context.input, "rest": context.input}

    def gather(self, sides: Sides, out: Out) -> None:
        self.process(sides.batches["in"], out)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        groups: dict[tuple[int, bytes], int] = {}
        group = np.array([groups.setdefault(self._group(row), len(groups)) for row in batch.rows])
        column = self._score.evaluate(batch)
        scores = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        worst_last = np.where(np.isnan(scores), np.inf, -scores)
        order = np.lexsort((np.isnan(scores), worst_last, group))  # stable: the earlier of equals is first
        starts = np.searchsorted(group[order], np.arange(len(groups)))
        top = np.zeros(len(batch), dtype=np.bool_)
        top[order[np.arange(len(batch)) - starts[group[order]] < self._k]] = True
        emit_where(batch, out, top, "top")
        emit_where(batch, out, ~top, "rest")

    def _group(self, row: Row) -> tuple[int, bytes]:
        if not self._per_parent:
            return row.source, b""
        return row.source, row.parents[0] if row.parents else row.id


def _score(settings: TopK, schema: Schema) -> Expression:
    made = expression(settings.score, schema, ("with", "score"))
    if not made.type.is_number:
        raise ContractError(
            f"score: '{made.text}' gives {made.type.describe()} where a number is needed",
            path=("with", "score"),
        )
    return made
