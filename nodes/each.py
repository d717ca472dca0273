"""`each.split`, `each.gather`: one record to n, and n back to one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    Field,
    FieldType,
    NodeContext,
    Out,
    Schema,
    Settings,
    Sides,
    column_of,
    empty_column,
    node,
    to_list,
)

from ._families import Family, gathered
from ._gather import Gather
from ._matching import check_field, check_free

SPLIT_EXAMPLE = """
kind: Topic
name: orders.placed
fields:
  order: string
  lines: {type: list, items: {type: record, fields: {sku: string, pieces: int32}}}
---
kind: Pipeline
name: lines-of-orders
inputs: {order: orders.placed}
nodes:
  lines: {use: each.split, from: order, with: {field: lines}, keep: [order]}
tests:
  - name: a record for each line, and the order itself with their number
    given: {order: [{order: A, lines: [{sku: pen, pieces: 2}, {sku: cap, pieces: 1}]}, {order: B, lines: []}]}
    expect:
      lines:
        - {order: A, sku: pen, pieces: 2, index: 0, count: 2}
        - {order: A, sku: cap, pieces: 1, index: 1, count: 2}
      lines.parents: [{order: A, count: 2}, {order: B, count: 0}]
"""

GATHER_EXAMPLE = """
kind: Topic
name: readings.bundled
fields: {station: string, celsius: {type: list, items: {type: float32}}}
---
kind: Pipeline
name: fahrenheit
inputs: {bundle: readings.bundled}
nodes:
  each:    {use: each.split, from: bundle, with: {field: celsius, as: celsius}}
  convert: {use: transform.select, from: each, with: {set: {fahrenheit: float32(celsius * 1.8 + 32)}}}
  sane:    {use: filter.when, from: convert, with: {when: celsius > -90, reason: impossible}}
  bundle_again:
    use: each.gather
    from: {items: sane, of: each.parents}
    with: {fields: [fahrenheit], on_missing: "null", missing: wrong}
    keep: [station]
tests:
  - name: in order, with null for what was dropped on the way
    given: {bundle: [{station: A, celsius: [0.0, -300.0, 100.0]}, {station: B, celsius: []}]}
    expect:
      bundle_again:
        - {station: A, fahrenheit: [32.0, null, 212.0], wrong: [1]}
        - {station: B, fahrenheit: [], wrong: []}
"""

# What one record may become: its children are in memory together, and each is a record on every edge it passes.
MAX_ITEMS: Final = 10_000
_INT: Final = FieldType("int32")
_INDICES: Final = FieldType("list", item=_INT)
Indices = npt.NDArray[np.intp]


class Split(Settings):
    """What is split, and what the parts are called."""

    field: str = Setting(description="A list, or a tensor, which is split along its first dimension.")
    as_: str | None = Setting(
        default=None,
        alias="as",
        description=(
            "The name of the field that holds the element. Default: that of `field`; but elements that are records are "
            "spread, each of their fields a field of its own."
        ),
    )
    index: str = Setting(
        default="index",
        description="The name of the field, int32, that counts the elements of a record from 0.",
    )
    count: str = Setting(
        default="count",
        description="The name of the field, int32, that says how many elements the record has.",
    )
    max_items: int = Setting(
        default=MAX_ITEMS, ge=1, le=MAX_ITEMS, description="A record with more elements than this fails."
    )


@node("each.split", settings=Split, outputs=("out", "parents"), example=SPLIT_EXAMPLE)
class EachSplit:
    """Make a record of each element of a list or tensor.

    Port `out` has a record for each element: the element, its `index`, the `count`, and the fields of the record that
    `keep:` names. Each has an id of its own, that follows from the record's id and the index, and the record's key.
    Port `parents` has the record itself with the `count`: what `each.gather` needs to put them together again. A record
    without elements (an empty list, or null) appears on `parents` only.
    """

    splits = "out"

    def __init__(self, settings: Split, context: NodeContext) -> None:
        self._settings = settings
        self._keep = context.keep or ()
        self._item = _item_of(settings, context.input)
        self._spread = self._item.kind == "record" and settings.as_ is None

    @staticmethod
    def contract(settings: Split, context: ContractContext) -> dict[str, Schema]:
        _refuse_out(context)
        schema = context.input
        check_field(settings.field, schema, "the input", ("with", "field"))
        index = Field(settings.index, _INT, f"place in {settings.field}, from 0")
        count = Field(settings.count, _INT, f"number of elements of {settings.field}")
        made = Schema(())
        for path, fields in (
            (("with", "as"), _elements(settings, schema)),
            (("with", "index"), (index,)),
            (("with", "count"), (count,)),
            (("keep",), context.kept().fields),
        ):
            for field in fields:
                check_free(field.name, made, path, "as, index and count under with give other names")
                made = Schema((*made.fields, field))
        check_free(
            settings.count, schema, ("with", "count"), f"another name, e.g. count: {settings.field}_count"
        )
        return {"out": made, "parents": Schema((*schema.fields, count))}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        column = batch[self._settings.field]
        counts = np.array([0 if value is None else len(value) for value in column], dtype=np.intp)
        limit = self._settings.max_items
        for row in np.flatnonzero(counts > limit).tolist():
            text = f"{self._settings.field}: {counts[row]} elements, at most {limit} are split"
            out.fail([row], text, error="TooManyItems")
        rows = np.flatnonzero(counts <= limit)
        if not len(rows):
            return
        counts = counts[rows]
        number = counts.astype(np.int32)
        kept = batch.columns if len(rows) == len(batch) else {n: c[rows] for n, c in batch.columns.items()}
        out.emit({**kept, self._settings.count: number}, rows=rows, port="parents")
        parents = np.repeat(rows, counts)
        if not len(parents):
            return
        index = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self._element_columns(column, rows[counts > 0])
        columns[self._settings.index] = index.astype(np.int32)
        columns[self._settings.count] = np.repeat(number, counts)
        columns |= {name: batch[name][parents] for name in self._keep}
        out.emit(columns, rows=parents, children=True)

    def _element_columns(self, column: Column, rows: Indices) -> dict[str, Column]:
        """The elements of these rows, one after another."""
        item = self._item
        name = self._settings.as_ or self._settings.field
        if (
            item.kind != "record"
            and not item.nullable
            and not item.has_free_dimension
            and _is_array(column, rows)
        ):
            return {name: np.concatenate([column[row] for row in rows.tolist()])}
        values = [value for row in rows.tolist() for value in column[row]]
        if not self._spread:
            return {name: column_of(item, values)}
        return {
            field.name: column_of(
                _spread_type(field, item),
                [None if value is None else value.get(field.name) for value in values],
            )
            for field in item.fields
        }


def _is_array(column: Column, rows: Indices) -> bool:
    return isinstance(column[rows[0]], np.ndarray)


def _refuse_out(context: ContractContext) -> None:
    if context.out is not None:
        message = "out: the fields of this kind follow from its input and settings"
        raise ContractError(message, path=("out",), hint="leave it out")


def _item_of(settings: Split, schema: Schema) -> FieldType:
    found = schema[settings.field].type
    if found.shape:
        return replace(found, shape=found.shape[1:], nullable=False)
    if found.kind != "list" or found.item is None:
        raise ContractError(
            f"field: '{settings.field}' is {found.describe()}, which has no elements",
            path=("with", "field"),
            hint="a list, or a tensor",
        )
    return found.item


def _spread_type(field: Field, item: FieldType) -> FieldType:
    return replace(field.type, nullable=True) if item.nullable else field.type


def _elements(settings: Split, schema: Schema) -> tuple[Field, ...]:
    """The fields that an element becomes."""
    whole = schema[settings.field]
    item = _item_of(settings, schema)
    if item.kind == "record" and settings.as_ is None:
        return tuple(
            replace(f, type=_spread_type(f, item), privacy=f.privacy or whole.privacy, event_time=False)
            for f in item.fields
        )
    return (replace(whole, name=settings.as_ or whole.name, type=item),)


@node("each.gather", settings=Gather, inputs=("items", "of"), example=GATHER_EXAMPLE)
class EachGather:
    """Put what became of the elements of a record back into it, in their order.

    `items` is what came of the `out` port of an `each.split`, however many nodes later; `of` is its `parents`. The result
    is the record (the fields that `keep:` names; default: all) with a list of each of `fields`; a field that is a tensor
    of fixed shape is stacked into a tensor whose first dimension is free, unless places may be null. It has the
    record's id, key and headers. Nothing is waited for but what is under way upstream: an item that is missing then
    failed or was dropped. Where the items come of another stage, what is there is kept as state until all of them have
    come or are known not to, or the time to `wait` is over. A record without elements has empty lists. Items whose
    record did not come are dropped, with the reason "no parent"; a record that has an item twice, or one out of range,
    fails.
    """

    gathers = True
    apart: ClassVar[bool] = True
    family: ClassVar[str] = "items"

    def __init__(self, settings: Gather, context: NodeContext) -> None:
        self._settings = settings
        self._items = context.inputs["items"]
        self._result = context.output
        self._kept = context.keep if context.keep is not None else context.inputs["of"].names

    @staticmethod
    def contract(settings: Gather, context: ContractContext) -> dict[str, Schema]:
        _refuse_out(context)
        items, parents = context.inputs["items"], context.inputs["of"]
        for name, schema, port in ((settings.index, items, "items"), (settings.count, parents, "of")):
            setting = "index" if port == "items" else "count"
            found = check_field(name, schema, f"'{port}'", ("with", setting))
            if found.type != _INT:
                raise ContractError(
                    f"{setting}: '{name}' is {found.type.describe()}, not the int32 of each.split",
                    path=("with", setting),
                )
        made = parents
        if context.keep is not None:
            for at, name in enumerate(context.keep):
                check_field(name, parents, "'of'", ("keep", at))
            made = parents.select(context.keep)
        for new, name in settings.collected.items():
            found = check_field(name, items, "'items'", ("with", "fields"))
            check_free(
                new, made, ("with", "fields"), f"fields: {{other_name: {name}}}, or keep: less of 'of'"
            )
            field = replace(found, name=new, type=_collected_type(settings, found.type), event_time=False)
            made = Schema((*made.fields, field))
        if settings.missing is not None:
            check_free(settings.missing, made, ("with", "missing"), "choose another name")
            made = Schema((*made.fields, Field(settings.missing, _INDICES, "items that are missing")))
        return {"out": made}

    def expected(self, batch: Batch) -> list[int]:
        """How many items each record of 'of' has."""
        counts: list[int] = batch[self._settings.count].tolist()
        return counts

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        """One side alone; the engine calls `gather`."""
        self.gather(Sides.of({port: batch}), out)

    def gather(self, sides: Sides, out: Out) -> None:
        parents = sides.batches.get("of")
        items = sides.batches.get("items")
        if items is None:
            items = Batch(self._items, {f.name: empty_column(f.type) for f in self._items}, [])
        first = sides.starts.get("items", 0)
        family = gathered(
            parents.rows if parents is not None else (), items.rows, items[self._settings.index]
        )
        out.drop((first + family.orphans).tolist(), "no parent")
        out.consume(first + family.order)
        if parents is None:
            return
        counts = parents[self._settings.count].tolist()
        good = self._fail(family, counts, out, sides.starts["of"])
        if not len(good):
            return
        columns = {name: parents[name][good] for name in self._kept}
        with_null = self._settings.on_missing == "null"
        for new, name in self._settings.collected.items():
            kind = self._result[new].type
            values = items[name][family.order] if kind.shape else to_list(items[name][family.order])
            places = counts if with_null else None
            columns[new] = column_of(kind, family.lists(values, good.tolist(), places))
        if self._settings.missing is not None:
            lacking = [family.lacking(record, counts[record]) for record in good.tolist()]
            columns[self._settings.missing] = column_of(_INDICES, lacking)
        out.emit(columns, rows=sides.starts["of"] + good)

    def _fail(self, family: Family, counts: list[int], out: Out, first: int) -> Indices:
        """Fail the records that have no result; gives those that have one."""
        good = []
        for record, count in enumerate(counts):
            error, reason = family.fault(record, count)
            lacking = (
                family.lacking(record, count) if not error and self._settings.on_missing == "fail" else []
            )
            if lacking:
                shown = ", ".join(map(str, lacking[:10])) + (", ..." if len(lacking) > 10 else "")
                error, reason = "MissingItems", f"{len(lacking)} of {count} items are missing: {shown}"
            if error:
                out.fail([first + record], reason, error=error)
            else:
                good.append(record)
        return np.array(good, dtype=np.intp)


def _collected_type(settings: Gather, item: FieldType) -> FieldType:
    nullable = item.nullable or settings.on_missing == "null"
    if item.shape and not item.has_free_dimension and not nullable:
        return replace(item, shape=(-1, *item.shape))
    return FieldType("list", item=replace(item, nullable=nullable))
