"""The typed tree: each part knows the type of its result and how to compute it for a batch.

Inside an expression a result is a `Value`: a numpy array and a mask of the rows that are not null (None: all of
them). The array's first axis is the row; a constant has one row and broadcasts. Where a row is null the array
holds some value of the same sort (0, "", NaT), so that kernels need not look at the mask. Field types and their
arrays inside an expression:

===========================  =======================================================================
bool, ints, floats           array of that dtype, [N] or [N, *shape]
timestamp / date             datetime64[us] / datetime64[D], NaT where null
string, enum                 object array of str
all else                     object array of what the column holds
===========================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from dataflow.core.batch import Batch
from dataflow.core.schema import FLOATS, INTEGERS, NUMBERS, TENSOR_KINDS, Column, FieldType, Schema

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]
Value: TypeAlias = tuple[Array, Mask | None]
Run: TypeAlias = Callable[[Batch], Value]

BOOL: Final = FieldType("bool")
INT64: Final = FieldType("int64")
FLOAT64: Final = FieldType("float64")
STRING: Final = FieldType("string")
TIMESTAMP: Final = FieldType("timestamp")
DATE: Final = FieldType("date")
# What a constant expression is computed on: it reads no column.
# As an array, for numpy's comparison does not take None itself.
_NULL: Final = np.array([None], dtype=object)
_NO_BATCH: Final = Batch(Schema(()), {}, ())


@dataclass(frozen=True, slots=True)
class Typed:
    """An expression's part after type-checking. `type.nullable` says whether a row may be null.

    constant    computed once, from no field: `run` gives one row
    untyped     the word ``null`` by itself: it takes the type of what it stands beside
    """

    type: FieldType
    run: Run
    fields: frozenset[str] = frozenset()
    constant: bool = False
    untyped: bool = False

    @property
    def is_integer(self) -> bool:
        return self.type.kind in INTEGERS and not self.type.shape

    @property
    def is_float(self) -> bool:
        return self.type.kind in FLOATS and not self.type.shape

    @property
    def is_number(self) -> bool:
        return self.type.is_number

    @property
    def is_text(self) -> bool:
        return self.type.kind in ("string", "enum")

    @property
    def is_time(self) -> bool:
        return self.type.kind in ("timestamp", "date")

    @property
    def is_bool(self) -> bool:
        return self.type.kind == "bool" and not self.type.shape

    def single(self) -> Any:
        """A constant's value as a Python scalar, None for null."""
        values, valid = self.run(_NO_BATCH)
        return None if valid is not None and not valid[0] else values.tolist()[0]


def typed(result: FieldType, run: Run, *operands: Typed) -> Typed:
    """A part made of `operands`; one made of constants alone is computed here, once."""
    if operands and all(operand.constant for operand in operands):
        with np.errstate(all="ignore"):
            value = run(_NO_BATCH)
        missing = value[1] is not None and not value[1][0]
        return Typed(replace(result, nullable=missing), lambda _batch: value, frozenset(), constant=True)
    return Typed(result, run, frozenset().union(*(operand.fields for operand in operands)))


def constant(result: FieldType, value: Any) -> Typed:
    """A part that is the same for every row; None is null."""
    found = from_python(replace(result, nullable=value is None), [value])
    return Typed(replace(result, nullable=value is None), lambda _batch: found, constant=True)


def null() -> Typed:
    return replace(constant(BOOL, None), untyped=True)


def nullable(result: FieldType, *operands: Typed) -> FieldType:
    """`result`, nullable where an operand is: null in, null out."""
    return replace(result, nullable=result.nullable or any(operand.type.nullable for operand in operands))


def both(left: Mask | None, right: Mask | None) -> Mask | None:
    """Rows where neither is null."""
    if left is None:
        return right
    return left if right is None else left & right


def every(masks: Iterable[Mask | None]) -> Mask | None:
    """Rows where none is null."""
    found: Mask | None = None
    for mask in masks:
        found = both(found, mask)
    return found


def map_one(result: FieldType, kernel: Callable[[Array], Array], operand: Typed) -> Typed:
    """`kernel` over one operand; null in, null out."""
    inner = operand.run

    def run(batch: Batch) -> Value:
        values, valid = inner(batch)
        return kernel(values), valid

    return typed(nullable(result, operand), run, operand)


def map_two(result: FieldType, kernel: Callable[[Array, Array], Array], left: Typed, right: Typed) -> Typed:
    """`kernel` over two operands, broadcast against each other; null in, null out."""
    first, second = left.run, right.run

    def run(batch: Batch) -> Value:
        a, a_valid = first(batch)
        b, b_valid = second(batch)
        return kernel(a, b), both(a_valid, b_valid)

    return typed(nullable(result, left, right), run, left, right)


def map_partial(result: FieldType, kernel: Callable[..., tuple[Array, Mask]], *operands: Typed) -> Typed:
    """`kernel` gives values and the rows where it has an answer: elsewhere null, as where an operand is."""
    runs = tuple(operand.run for operand in operands)

    def run(batch: Batch) -> Value:
        found = [inner(batch) for inner in runs]
        values, answered = kernel(*(values for values, _ in found))
        return values, every((answered, *(valid for _, valid in found)))

    return typed(replace(result, nullable=True), run, *operands)


def map_rows(
    result: FieldType, function: Callable[..., Any], *operands: Typed, partial: bool = False
) -> Typed:
    """A Python function of one value per operand, row by row (texts and lists have no vectorised form).

    It is not called for rows with a null. With `partial` it may return None for null.
    """
    runs = tuple(operand.run for operand in operands)
    target = replace(nullable(result, *operands), nullable=partial or nullable(result, *operands).nullable)

    def run(batch: Batch) -> Value:
        found = [inner(batch) for inner in runs]
        rows = broadcast_length([values for values, _ in found])
        lists = [as_list(values, rows) for values, _ in found]
        valid = every(mask for _, mask in found)
        if valid is None:
            made = [function(*arguments) for arguments in zip(*lists, strict=True)]
        else:
            present = np.broadcast_to(valid, (rows,)).tolist()
            made = [
                function(*arguments) if ok else None
                for ok, arguments in zip(present, zip(*lists, strict=True), strict=True)
            ]
        return from_python(target, made)

    return typed(target, run, *operands)


def broadcast_length(arrays: Sequence[Array]) -> int:
    """The number of rows of arrays of which some have one row and stand for all."""
    lengths = {len(array) for array in arrays}
    return 1 if lengths == {1} else next(iter(lengths - {1}))


def as_list(values: Array, rows: int) -> list[Any]:
    """One Python value per row (an array where the row is a tensor)."""
    found: list[Any] = values.tolist() if values.ndim == 1 else list(values)
    return found * rows if len(found) == 1 and rows != 1 else found


def objects(values: Sequence[Any]) -> Array:
    """An object array of `values`: element by element, for numpy would make a matrix of equal-length lists."""
    made = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        made[index] = value
    return made


def from_python(result: FieldType, values: Sequence[Any]) -> Value:
    """A value from one Python value per row, None for null."""
    missing = None in values if not result.shape else any(value is None for value in values)
    valid = np.array([value is not None for value in values], dtype=np.bool_) if missing else None
    kind = result.kind
    if result.has_free_dimension or kind not in (*TENSOR_KINDS, "string", "enum", "timestamp", "date"):
        return objects(values), valid
    if kind in ("timestamp", "date"):
        unit = "datetime64[us]" if kind == "timestamp" else "datetime64[D]"
        return np.array([_instant(value) for value in values], dtype=unit), valid
    if kind in ("string", "enum"):
        return objects(["" if value is None else value for value in values] if missing else values), valid
    if result.shape:
        empty = np.zeros(result.shape, dtype=kind)
        rows = [empty if value is None else np.asarray(value, dtype=kind) for value in values]
        return np.array(rows, dtype=kind).reshape((len(values), *result.shape)), valid
    return np.array(
        [0 if value is None else value for value in values] if missing else values, dtype=kind
    ), valid


def _instant(value: Any) -> Any:
    """A date or time as numpy takes it: without a zone, in UTC."""
    if value is None:
        return np.datetime64("NaT")
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def load(name: str, result: FieldType) -> Run:
    """Read the column of a field. `result` is its type in the contract."""
    kind = result.kind
    if kind in ("timestamp", "date"):
        if not result.nullable:
            return lambda batch: (batch.columns[name], None)

        def load_time(batch: Batch) -> Value:
            values = batch.columns[name]
            return values, ~np.isnat(values)

        return load_time
    if not result.nullable:
        return lambda batch: (batch.columns[name], None)
    if result.shape:
        return lambda batch: from_python(result, batch.columns[name].tolist())
    scalar = kind in (*NUMBERS, "bool", "string", "enum")
    fill: Any = "" if kind in ("string", "enum") else 0
    dtype = np.dtype(kind) if kind in TENSOR_KINDS else np.dtype(object)

    def load_nullable(batch: Batch) -> Value:
        values = batch.columns[name]
        if not scalar:
            return values, np.array([value is not None for value in values], dtype=np.bool_)
        valid: Mask = np.not_equal(values, _NULL)
        if valid.all():
            return values.astype(dtype), None
        return np.where(valid, values, fill).astype(dtype), valid

    return load_nullable


def materialise(result: FieldType, value: Value, rows: int) -> Column:
    """The column (see core.schema) of `rows` rows that holds `value`."""
    values, valid = value
    if len(values) != rows:
        values = np.repeat(values, rows, axis=0)
    if valid is not None and len(valid) != rows:
        valid = np.repeat(valid, rows)
    dtype = result.column_dtype
    if dtype.kind == "M":
        values = values.astype(dtype, copy=False)
        return values if valid is None or valid.all() else np.where(valid, values, np.datetime64("NaT"))
    if dtype.kind != "O":
        return values.astype(dtype, copy=False)
    column = objects(list(values)) if values.ndim > 1 else values.astype(object, copy=False)
    if valid is None or valid.all():
        return column
    column = column.copy() if column is values else column
    column[~valid] = None
    return column
