"""What row-wise functions returned or raised, turned into emissions, drops and failures."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from dataflow.sdk import Batch, Column, Drop, Fail, Out, Schema, coerce_columns, nearest

RETURNED_NONE: Final = "returned None"
RETURNED_NOTHING: Final = "returned no records"
_ABSENT: Final = object()
_INT64: Final = 1 << 63
_PLAIN: Final = {"float64": float, "bool": bool}


@dataclass(frozen=True, slots=True)
class Lost:
    """A row that ends here. `error` is "" for a drop."""

    reason: str
    error: str = ""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What is expected back: `produced` fields from the function, `kept` names from the input, beside one another.

    `silent`: the function returns nothing by annotation; its rows are consumed, or pass on their kept fields.
    """

    call: str
    produced: Schema
    kept: tuple[str, ...]
    silent: bool = False

    def kept_columns(self, batch: Batch, rows: Sequence[int] | None = None) -> dict[str, Column]:
        if rows is None:
            return {name: batch[name] for name in self.kept}
        index = np.asarray(rows, dtype=np.intp)
        return {name: batch[name][index] for name in self.kept}


def lost_by(error: BaseException, folder: Path) -> Lost:
    """How a row ends whose function raised: by its own word (Drop, Fail, Retry), else failed with message and line."""
    if isinstance(error, Drop):
        return Lost(error.reason)
    name = type(error).__name__
    if isinstance(error, Fail):
        return Lost(error.reason, name, error.retryable)
    message = f"no key {error}" if isinstance(error, KeyError) else str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(folder)]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return Lost(f"{message or name}{place}", name)


def settle_rows(shape: Shape, batch: Batch, results: Sequence[Any], out: Out, folder: Path) -> None:
    """Account for every row of `batch` by what the function returned for it (`Lost` where it raised)."""
    columns = _common_case(shape.produced, results)
    if columns is not None:
        out.emit({**columns, **shape.kept_columns(batch)})
        return
    if shape.silent:
        # None is what the annotation promises: a record without fields of its own.
        results = [{} if result is None else result for result in results]
    records, losses = _flatten(results, folder)
    _check_names(shape, records, losses)
    _convert(shape, records, losses)
    report(losses, out)
    if shape.silent and not shape.kept:
        out.consume(sorted({record.row for record in records}))
        return
    for children, group in groupby(records, key=lambda record: record.child):
        run = list(group)
        rows = [record.row for record in run]
        cells = {f.name: [record.fields.get(f.name) for record in run] for f in shape.produced}
        made = coerce_columns(shape.produced, cells, len(run), form="python").columns
        out.emit({**made, **shape.kept_columns(batch, rows)}, rows=rows, children=children)


def settled(shape: Shape, result: Any, folder: Path) -> Any:
    """One result, checked at once: None, a dict, a list of dicts (children), or `Lost`. `settle_rows` emits it.

    What returned None is None here where the function promises nothing, `Lost` without an error elsewhere.
    """
    if isinstance(result, Lost) or (result is None and shape.silent):
        return result
    if type(result) is dict and fits(shape.produced, result):
        return result
    records, losses = _flatten([result], folder)
    _check_names(shape, records, losses)
    _convert(shape, records, losses)
    if losses:
        return losses[0]
    return [record.fields for record in records] if records[0].child else records[0].fields


def fits(schema: Schema, record: Mapping[str, Any]) -> bool:
    """Whether a record fits for certain, told by the Python types of its values alone. False: look closer."""
    if len(record) != len(schema):
        return False
    for field in schema:
        value = record.get(field.name, _ABSENT)
        kind = field.type.kind
        if field.type.shape or (value is None and not field.type.nullable):
            return False
        if value is None or (type(value) is _PLAIN.get(kind)):
            continue
        if kind == "int64" and type(value) is int and -_INT64 <= value < _INT64:
            continue
        if kind != "string" or type(value) is not str or not value.isascii():
            return False
    return True


def _common_case(produced: Schema, results: Sequence[Any]) -> dict[str, Column] | None:
    """The columns when every result is a dict of exactly the fields and every value fits; None when in doubt."""
    if set(map(type, results)) != {dict} or set(map(len, results)) != {len(produced)} or not produced:
        return None
    try:
        cells = {name: [result[name] for result in results] for name in produced.names}
    except KeyError:
        return None
    made = coerce_columns(produced, cells, len(results), form="python")
    return None if made.failed else made.columns


@dataclass(slots=True)
class _Record:
    """One record to emit: the input row it comes from, whether it is one of its children, and its fields."""

    row: int
    child: bool
    fields: Mapping[str, Any]


def _flatten(results: Sequence[Any], folder: Path) -> tuple[list[_Record], dict[int, Lost]]:
    records: list[_Record] = []
    losses: dict[int, Lost] = {}
    for row, result in enumerate(results):
        if result is None:
            losses[row] = Lost(RETURNED_NONE)
            continue
        if isinstance(result, Lost):
            losses[row] = result
            continue
        fields = _fields(result)
        if fields is not None:
            records.append(_Record(row, False, fields))
            continue
        try:
            many = list(_children(result))
        except Exception as error:  # noqa: BLE001  (a generator is user code)
            losses[row] = lost_by(error, folder)
            continue
        if not many:
            losses[row] = Lost(RETURNED_NOTHING)
        records.extend(_Record(row, True, fields) for fields in many)
    return records, losses


def _children(result: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise TypeError(f"returned {shown(result)}, expected a dict, None, or a list of dicts")
    for index, item in enumerate(result):
        fields = _fields(item)
        if fields is None:
            raise TypeError(f"item {index} of what it returned is {shown(item)}, expected a dict")
        yield fields


def _fields(value: Any) -> Mapping[str, Any] | None:
    """The fields of a record however it was made; None if it is none."""
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return None


def _plain(value: Any) -> Any:
    fields = _fields(value)
    return value if fields is None else fields


def shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _check_names(shape: Shape, records: list[_Record], losses: dict[int, Lost]) -> None:
    expected = {f.name: f.type for f in shape.produced}
    for record in records:
        extra = next((name for name in record.fields if name not in expected), None)
        missing = next((n for n, t in expected.items() if n not in record.fields and not t.nullable), None)
        if extra is not None:
            hint = nearest(str(extra), expected)
            reason = f"{shape.call} returned the field '{extra}', which its contract lacks ({hint})"
            losses.setdefault(record.row, Lost(reason, "ContractError"))
        elif missing is not None:
            reason = f"{shape.call} returned no field '{missing}', expected {expected[missing].describe()}"
            losses.setdefault(record.row, Lost(reason, "ContractError"))
    records[:] = [record for record in records if record.row not in losses]


def _convert(shape: Shape, records: list[_Record], losses: dict[int, Lost]) -> None:
    """Find the records whose values do not fit; a row fails with all its records."""
    cells = {f.name: [record.fields.get(f.name) for record in records] for f in shape.produced}
    for index, error in coerce_columns(shape.produced, cells, len(records), form="python").failed:
        losses.setdefault(records[index].row, Lost(f"{shape.call} returned {error}", "ContractError"))
    records[:] = [record for record in records if record.row not in losses]


def report(losses: Mapping[int, Lost], out: Out) -> None:
    dropped: dict[str, list[int]] = {}
    for row, loss in losses.items():
        if loss.error:
            out.fail([row], loss.reason, error=loss.error, retryable=loss.retryable)
        else:
            dropped.setdefault(loss.reason, []).append(row)
    for reason, rows in dropped.items():
        out.drop(rows, reason)
