"""A type-checked expression over a contract's fields: what nodes, joins and taps use."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dataflow.core.batch import Batch
from dataflow.core.schema import Column, FieldType, Schema
from dataflow.expressions import syntax
from dataflow.expressions.checker import Checker
from dataflow.expressions.grammar import fault
from dataflow.expressions.parser import parse
from dataflow.expressions.typed import Run, materialise


@dataclass(frozen=True)
class Expression:
    """`text` checked against a schema. `type` is the type of the result, `fields` the top-level fields it reads.

    Every operation has an answer for every value, so evaluation raises nothing for a batch that meets the schema.
    Stateless: one expression may serve many threads.
    """

    text: str
    type: FieldType
    fields: frozenset[str]
    _run: Run = field(repr=False, compare=False)
    _field: str = field(default="", repr=False, compare=False)

    def evaluate(self, batch: Batch) -> Column:
        """The result for every row of `batch`, as the column of `type`; do not write into it.

        `batch` has the columns of `fields` at least, as the schema types them.
        """
        if self._field:
            return batch.columns[self._field]
        with np.errstate(all="ignore"):
            return materialise(self.type, self._run(batch), len(batch))

    def matches(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """The rows for which a bool expression is true; null counts as false. Do not write into it."""
        assert self.type.kind == "bool", "ask for type bool before"
        with np.errstate(all="ignore"):
            values, valid = self._run(batch)
        found = values if valid is None else values & valid
        return found if len(found) == len(batch) else np.repeat(found, len(batch))


def parse_expression(text: str, schema: Schema, *, where: str = "") -> Expression:
    """Parse and type-check `text` against `schema`.

    Raises ExpressionError with a 1-based column, whatever the text; `where` (e.g. ``with.when``) begins its message.
    """
    tree = parse(text, where)
    part = Checker(text, schema, where).check(tree)
    if part.untyped:
        hint = "say which: float(null), string(null), timestamp(null), ..."
        raise fault(text, tree.start, tree.end, "null by itself has no type", hint=hint, where=where)
    name = tree.name if isinstance(tree, syntax.Name) else ""
    return Expression(text, part.type, part.fields, part.run, name)
