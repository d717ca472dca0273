"""`route.when`: send each record to the port whose condition it meets."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic import Field as Setting

from dataflow.sdk import Batch, ContractContext, Expression, NodeContext, Out, Schema, Settings, node

from ._expressions import condition, refuse_declarations
from ._ports import check_port, emit_where

OTHERWISE: Final = "otherwise"

EXAMPLE = """
kind: Topic
name: flights.predicted
fields:
  tailnum: {type: string}
  delay:   {type: float32, unit: minute, nullable: true}
---
kind: Pipeline
name: triage
inputs: {flight: flights.predicted}
nodes:
  triage: {use: route.when, from: flight, with: {late: delay > 30, unknown: delay is null, on_time: otherwise}}
tests:
  - name: each flight goes one way
    given: {flight: [{tailnum: N1, delay: 45.0}, {tailnum: N2, delay: 5.0}, {tailnum: N3, delay: null}]}
    expect:
      triage.late: [{tailnum: N1, delay: 45.0}]
      triage.unknown: [{tailnum: N3, delay: null}]
      triage.on_time: [{tailnum: N2, delay: 5.0}]
"""


class Route(Settings):
    """Output ports: any names but `match`, each with an expression, and at most one with the word `otherwise`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str | bool] = Setting(init=False)

    match: Literal["first", "all"] = Setting(
        default="first",
        description="Where several conditions are true: `first`, in the order written, or `all` of these ports.",
    )

    @model_validator(mode="after")
    def _ports_are_sound(self) -> Route:
        ports = self.ports
        if not ports:
            raise ValueError("a route needs a port, e.g. late: delay > 30")
        for port in ports:
            check_port(port)
        others = [port for port, text in ports.items() if text == OTHERWISE]
        if len(others) > 1:
            raise ValueError(f"ports {', '.join(others)} all say otherwise: one can")
        return self

    @property
    def ports(self) -> dict[str, str | bool]:
        """Condition, or the word `otherwise`, of each port, as written."""
        return dict(self.__pydantic_extra__)


def _conditions(settings: Route, schema: Schema) -> dict[str, Expression]:
    return {
        port: condition(text, schema, ("with", port))
        for port, text in settings.ports.items()
        if text != OTHERWISE
    }


@node("route.when", settings=Route, example=EXAMPLE, outputs=())
class RouteWhen:
    """Send each record to the port whose expression is true for it; null counts as false.

    Ports are tried in the order written, and `match` says whether the first one has it or all that are true. What
    meets none goes to the port that says `otherwise`, wherever that stands; without one it is dropped with the
    reason "no route". Every port has the contract of the input.
    """

    def __init__(self, settings: Route, context: NodeContext) -> None:
        self._conditions = _conditions(settings, context.input)
        self._otherwise = next((port for port, text in settings.ports.items() if text == OTHERWISE), "")
        self._first = settings.match == "first"

    @staticmethod
    def ports(settings: Route) -> tuple[str, ...]:
        return tuple(settings.ports)

    @staticmethod
    def contract(settings: Route, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        _conditions(settings, context.input)
        return dict.fromkeys(settings.ports, context.input)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        unmatched = np.ones(len(batch), dtype=np.bool_)
        for name, expression in self._conditions.items():
            matched = expression.matches(batch)
            if self._first:
                matched = matched & unmatched
            unmatched &= ~matched
            emit_where(batch, out, matched, name)
            if self._first and not unmatched.any():
                return
        if self._otherwise:
            emit_where(batch, out, unmatched, self._otherwise)
        else:
            out.drop(np.flatnonzero(unmatched), "no route")
