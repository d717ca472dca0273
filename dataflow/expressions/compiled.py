"""A type-checked expression over a contract's fields. (First cut of the public face; the grammar is in the room.)"""

from __future__ import annotations

from dataclasses import dataclass

from dataflow.core.batch import Batch
from dataflow.core.schema import Column, FieldType, Schema


@dataclass(frozen=True)
class Expression:
    """`text` checked against a schema. `type` is the type of the result, `fields` what it reads."""

    text: str
    type: FieldType
    fields: frozenset[str]

    def evaluate(self, batch: Batch) -> Column:
        """The result for every row of `batch`, as the column of `type`."""
        raise NotImplementedError


def parse_expression(text: str, schema: Schema, *, where: str = "") -> Expression:
    """Parse and type-check `text` against `schema`. Raises ExpressionError with a 1-based column."""
    raise NotImplementedError
