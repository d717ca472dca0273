"""The port `failed` of a node that declares one: records that failed there for good go on, instead of to the dead letters."""

from __future__ import annotations

from dataclasses import fields

from dataflow.core.errors import ContractError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.planner.plan import FAILED_FIELDS, FAILED_PORT
from dataflow.sdk import ContractContext, NodeKind, Settings


class Failing(NodeKind):
    """A kind with one more port, which the engine and not the node writes."""

    def ports(self, settings: Settings) -> tuple[str, ...]:
        ports = super().ports(settings)
        if FAILED_PORT in ports:
            raise ContractError(f"'{self.name}' has a port '{FAILED_PORT}' of its own", path=("failed",))
        return (*ports, FAILED_PORT)

    def contract(self, settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {**super().contract(settings, context), FAILED_PORT: self._failed(context)}

    def _failed(self, context: ContractContext) -> Schema:
        """The fields of the record as it came in, and why it failed."""
        if self.gathers or self.source or len(context.inputs) != 1:
            raise ContractError(
                f"'{self.name}' does not take its records from one input port: there is no one contract for those that fail",
                path=("failed",),
                hint="leave `failed` out: they go to the dead letters",
            )
        (schema,) = context.inputs.values()
        taken = [name for name in FAILED_FIELDS if name in schema]
        if taken:
            raise ContractError(
                f"the port '{FAILED_PORT}' adds the field '{taken[0]}', which the input has already",
                path=("failed",),
                hint="rename it by transform.select before",
            )
        return Schema((*schema, *(Field(name, FieldType("string")) for name in FAILED_FIELDS)))


def with_failures(kind: NodeKind) -> Failing:
    """The kind as a node has it that declares ``failed: true``."""
    return Failing(**{f.name: getattr(kind, f.name) for f in fields(kind)})
