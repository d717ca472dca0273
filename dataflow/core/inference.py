"""A contract from samples: what `dataflow infer` writes for a function without annotations.

This is the one place where user code is run to learn its contract, on a sample that the user gives, by their command.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.loading import load_callable
from dataflow.core.outcomes import Out
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.core.usercode import CallContext, Drop, UserCallable, signature_of

_PYTHON: Final[Sequence[tuple[type, str]]] = (
    (bool, "bool"), (int, "int64"), (float, "float64"), (str, "string"), (bytes, "bytes"),
    (datetime, "timestamp"), (date, "date"),
)  # fmt: skip


def infer_schema(records: Sequence[Mapping[str, Any]]) -> Schema:
    """The contract that all records meet, fields in order of their first appearance.

    Whole numbers and floats together are float64; a field that is None or absent in some records is nullable; arrays
    are tensors, with -1 for a size that differs. Raises ContractError for a field of mixed types or never seen.
    """
    return Schema(_members(records, ""))


def schema_to_yaml_fields(schema: Schema) -> dict[str, str]:
    """Field name -> type in the shorthand of declarations, as it is written under `out:`."""
    return {f.name: f.type.describe() for f in schema}


def _members(records: Sequence[Mapping[str, Any]], place: str) -> tuple[Field, ...]:
    names = list(dict.fromkeys(name for record in records for name in record))
    return tuple(Field(n, _type([r.get(n) for r in records], f"{place}{n}")) for n in names)


def _type(values: Sequence[Any], place: str) -> FieldType:
    present = [_scalar(v) for v in values if v is not None]
    nullable = len(present) < len(values)
    if not present:
        raise ContractError(
            f"field '{place}' has no value in the sample",
            hint="give a longer sample, or declare the field by hand",
        )
    if all(isinstance(v, np.ndarray) for v in present):
        kind, shape = _tensor(present, place)
        return FieldType(kind, shape=shape, nullable=nullable)
    if all(isinstance(v, list | tuple) for v in present):
        items = [item for value in present for item in value]
        return FieldType("list", item=_type(items, f"{place}[]"), nullable=nullable)
    if all(isinstance(v, Mapping) for v in present):
        return FieldType("record", fields=_members(present, f"{place}."), nullable=nullable)
    if all(isinstance(v, Decimal) for v in present):
        scale = max(max(0, -int(v.as_tuple().exponent)) for v in present if v.is_finite())
        return FieldType("decimal", precision=38, scale=scale, nullable=nullable)
    kinds = {_kind(v): v for v in present}
    return FieldType(_common(kinds, place), nullable=nullable)


def _scalar(value: Any) -> Any:
    """A value whose type says what it is: arrays of no dimension as scalars, rows of any make as dicts."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value[()]
    return _fields(value) or value if not isinstance(value, Mapping) else value


def _fields(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        made: Mapping[str, Any] = value._asdict()
        return made
    return None


def _kind(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return "date" if value.dtype == np.dtype("datetime64[D]") else "timestamp"
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.dtype.name
    return next((kind for python, kind in _PYTHON if isinstance(value, python)), f"a {type(value).__name__}")


def _common(kinds: Mapping[str, Any], place: str) -> str:
    unknown = next((k for k in kinds if k.startswith("a ")), None)
    if unknown is not None:
        raise ContractError(
            f"field '{place}' is {unknown}, which no field can hold", hint="return numbers, text, ..."
        )
    if len(kinds) == 1:
        return next(iter(kinds))
    if set(kinds) & {"bool", "string", "bytes", "timestamp", "date"}:
        shown = " and ".join(f"{kind} ({value!r})"[:60] for kind, value in sorted(kinds.items()))
        raise ContractError(f"field '{place}' is of several types: {shown}", hint="return one type")
    return np.result_type(*kinds).name


def _tensor(arrays: Sequence[np.ndarray[Any, Any]], place: str) -> tuple[str, tuple[int, ...]]:
    dimensions = {array.ndim for array in arrays}
    dtypes = {array.dtype.name for array in arrays}
    if len(dimensions) > 1:
        raise ContractError(
            f"field '{place}' has arrays of {sorted(dimensions)} dimensions", hint="reshape them"
        )
    if not all(array.dtype.kind in "biuf" for array in arrays):
        raise ContractError(
            f"field '{place}' has arrays of {sorted(dtypes)}", hint="return numbers, or a list"
        )
    shape = tuple(
        next(iter(sizes)) if len(sizes) == 1 and 0 not in sizes else -1
        for sizes in (set(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    )
    return np.result_type(*dtypes).name, shape


@dataclass(frozen=True)
class Sample:
    """What a function made of a sample: its records, how many rows it dropped, and (row, message) of its failures."""

    records: list[Mapping[str, Any]] = field(default_factory=list)
    dropped: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)


def run_sample(folder: Path, ref: str, batch: Batch, arguments: Mapping[str, Any] | None = None) -> Sample:
    """Run the function or class `ref` over the rows of `batch`, one after the other (array-wise: at once).

    Raises NodeError, with the cause chained, when it cannot be loaded or opened, or fails on the whole batch.
    """
    user = signature_of(folder, ref)
    target = load_callable(folder, ref)
    given = dict(arguments or {})
    loop = asyncio.new_event_loop()
    try:
        instance = target(**given) if isinstance(target, type) else None
        _finish(loop, getattr(instance, "open", _nothing)())
        call: Callable[..., Any] = partial(target, **given)
        if instance is not None:
            call = getattr(instance, "process", instance)

        def bound(*values: Any, **context: Any) -> Any:
            return _finish(loop, call(*values, **context))

        sample = _sample_batch(user, bound, batch) if user.array_wise else _sample_rows(user, bound, batch)
        _finish(loop, getattr(instance, "close", _nothing)())
        return sample
    except Exception as error:
        if isinstance(error, NodeError | ContractError):
            raise
        raise NodeError(f"{ref} failed on the sample: {type(error).__name__}: {error}") from error
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _nothing() -> None:
    pass


def _finish(loop: asyncio.AbstractEventLoop, result: Any) -> Any:
    async def items() -> list[Any]:
        return [item async for item in result]

    if hasattr(result, "__aiter__"):
        return loop.run_until_complete(items())
    return loop.run_until_complete(_await(result)) if inspect.isawaitable(result) else result


async def _await(result: Any) -> Any:
    return await result


def _sample_rows(user: UserCallable, call: Callable[..., Any], batch: Batch) -> Sample:
    records: list[Mapping[str, Any]] = []
    failed: list[tuple[int, str]] = []
    dropped = 0
    for index, (values, row) in enumerate(zip(batch.to_dicts(), batch.rows, strict=True)):
        context = (
            {"context": CallContext(row.id.decode(), row.key, row.attempt)} if user.takes_context else {}
        )
        try:
            made = list(_records(call(values, **context)))
        except Drop:
            made = []
        except Exception as error:  # noqa: BLE001  (user code: anything may come)
            failed.append((index, f"{type(error).__name__}: {error}"))
            continue
        records.extend(made)
        dropped += not made
    return Sample(records, dropped, failed)


def _records(result: Any) -> Iterable[Mapping[str, Any]]:
    if result is None:
        return
    fields = _fields(result)
    if fields is not None:
        yield fields
        return
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise TypeError(f"returned {result!r}, expected a dict, None, or a list of dicts")
    for item in result:
        yield from _records(item)


def _sample_batch(user: UserCallable, call: Callable[..., Any], batch: Batch) -> Sample:
    if user.takes_out:
        out = Out(batch, ("out",))
        call(batch, out)
        parts = [emission.columns for emission in out.emissions]
        lost = [(loss.row, loss.reason) for loss in out.failed]
        return Sample([r for columns in parts for r in _rows(columns)], len(out.dropped), lost)
    result = call(batch)
    if result is None:
        return Sample(dropped=len(batch))
    columns = result.columns if isinstance(result, Batch) else result
    if not isinstance(columns, Mapping):
        raise NodeError(f"{user.ref} returned {type(result).__name__}, expected a dict of columns")
    return Sample(_rows(columns))


def _rows(columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Records of columns; cells keep numpy's types, which say more than Python's."""
    cells = [
        [None if isinstance(v, np.datetime64) and np.isnat(v) else v for v in c] for c in columns.values()
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*cells, strict=True)]
