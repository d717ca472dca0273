"""`drift.ks`: whether a stream still looks like its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    Field,
    FieldType,
    NodeContext,
    NodeError,
    Out,
    Schema,
    Settings,
    column_of,
    nearest,
    node,
)

from ._ks import CORRECTIONS, LEAST_VALUES, Comparison, Floats, Reference, compare, reference_of

_NUMBERS: Final = frozenset(
    {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"float16", "float32", "float64"}
)


class First(Settings):
    """Take the reference from the stream itself."""

    first: int = Setting(
        ge=LEAST_VALUES, description="So many records, from the start on, are the reference."
    )


class Ks(Settings):
    """What is compared with what, and when it counts as drift."""

    reference: str | First = Setting(
        description=(
            "A Parquet file in the pipeline's folder with the same fields (or a column per component, named as the "
            "feature), or {first: N}: the first N records after each start."
        )
    )
    fields: list[str] | None = Setting(
        default=None,
        description="Fields to watch. Default: all numeric scalars and float tensors of fixed shape.",
    )
    names: dict[str, list[str]] = Setting(
        default_factory=dict,
        description="Names for the components of a tensor field; without, they are x[0], x[1], ...",
    )
    window: int = Setting(
        default=1000, ge=LEAST_VALUES, description="Records of one window; windows do not overlap."
    )
    alpha: float = Setting(
        default=0.01,
        gt=0.0,
        lt=1.0,
        description="Accepted chance of a false alarm, per window over all features.",
    )
    correction: Literal["holm", "bonferroni", "benjamini-hochberg", "none"] = Setting(
        default="holm", description="How p-values are corrected for the number of features."
    )
    min_effect: float = Setting(
        default=0.1,
        ge=0.0,
        description="Least effect, in standard deviations of the reference, that counts as drift, however certain.",
    )


_FEATURE: Final = FieldType(
    "record",
    fields=(
        Field("feature", FieldType("string")),
        Field(
            "statistic", FieldType("float64"), doc="largest distance between the distribution functions, D"
        ),
        Field("p_value", FieldType("float64"), doc="corrected for the number of features"),
        Field(
            "effect", FieldType("float64"), doc="Wasserstein distance in standard deviations of the reference"
        ),
        Field("missing", FieldType("float64"), doc="share of values that are null, NaN or infinite"),
        Field("drifted", FieldType("bool")),
    ),
)
RESULT: Final = Schema(
    (
        Field("window", FieldType("int64"), doc="number of the window since the start, from 0"),
        Field("records", FieldType("int64"), doc="records in the window"),
        Field("drifted", FieldType("bool"), doc="whether any feature drifted"),
        Field("features_tested", FieldType("int32"), doc="features with enough values to test"),
        Field("drifted_features", FieldType("list", item=FieldType("string")), doc="largest effect first"),
        Field("worst_feature", FieldType("string"), doc="the one with the smallest p-value"),
        Field("statistic", FieldType("float64"), doc="D of the worst feature"),
        Field("p_value", FieldType("float64"), doc="corrected p-value of the worst feature"),
        Field("effect", FieldType("float64"), doc="effect of the worst feature"),
        Field("features", FieldType("list", item=_FEATURE)),
        Field("reference", FieldType("string"), doc="where the reference comes from"),
    )
)

EXAMPLE = """
kind: Topic
name: machines.readings
fields:
  temperature: {type: float32, unit: celsius}
  pressure:    {type: float32, unit: bar}
---
kind: Pipeline
name: machine-drift
inputs: {readings: machines.readings}
nodes:
  drift:
    use: drift.ks
    from: readings
    with: {reference: {first: 1000}, window: 500, alpha: 0.01, min_effect: 0.2}
"""


@node("drift.ks", settings=Ks, example=EXAMPLE)
class KsNode:
    """Compare windows of a stream with a reference, feature by feature, and emit one record per window.

    Each numeric scalar and each component of a float tensor is a feature. A feature drifts when the two-sample
    Kolmogorov-Smirnov test is significant after the correction for many features *and* the effect, the Wasserstein
    distance in standard deviations of the reference, is at least `min_effect`: with enough records any difference is
    significant, but not every difference matters. Null, NaN and infinite values are left out, and their share is
    reported; a feature with fewer than 20 values on either side is not tested.

    The record is a child of the window's last record. The open window, and a reference of the first records, are kept
    in memory: a restart begins them anew.
    """

    remembers = True

    def __init__(self, settings: Ks, context: NodeContext) -> None:
        self._settings = settings
        self._folder = context.folder
        self._fields = watched(settings, context.input)
        self._names = [name for f in self._fields for name in components(f, settings.names)]
        self._references: list[Reference] = []
        first = settings.reference.first if isinstance(settings.reference, First) else 0
        self._label = f"first {first} records" if first else str(settings.reference)
        self._buffer: Floats = np.empty((first or settings.window, len(self._names)))
        self._filled = 0
        self._windows = 0

    @staticmethod
    def contract(settings: Ks, context: ContractContext) -> dict[str, Schema]:
        fields = watched(settings, context.input)
        if isinstance(settings.reference, str):
            path = context.folder / settings.reference
            if path.is_file():  # a build may make it later; `open` insists
                _columns_for(path, fields, settings.names)
        return {"out": RESULT}

    def open(self) -> None:
        reference = self._settings.reference
        if isinstance(reference, str):
            path = self._folder / reference
            if not path.is_file():
                raise NodeError(
                    f"drift.ks: no reference file {path}", hint="or take {first: N} records as reference"
                )
            values = read_reference(path, self._fields, self._settings.names)
            self._references = [reference_of(values[:, i]) for i in range(values.shape[1])]

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        values = features(batch, self._fields)
        ends: list[int] = []
        results: list[dict[str, Any]] = []
        position = 0
        while position < len(batch):
            count = min(len(batch) - position, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = values[position : position + count]
            self._filled += count
            position += count
            if self._filled < len(self._buffer):
                continue
            self._filled = 0
            if not self._references:
                self._references = [reference_of(self._buffer[:, i]) for i in range(len(self._names))]
                self._buffer = np.empty((self._settings.window, len(self._names)))
                continue
            results.append(self._result())
            ends.append(position - 1)
        held = np.ones(len(batch), dtype=bool)
        held[ends] = False
        out.consume(np.flatnonzero(held))
        if ends:
            columns = {f.name: column_of(f.type, [r[f.name] for r in results]) for f in RESULT}
            out.emit(columns, rows=ends, children=True)

    def _result(self) -> dict[str, Any]:
        """Test the full buffer. One value per field of `RESULT`."""
        compared = [compare(r, self._buffer[:, i]) for i, r in enumerate(self._references)]
        settings = self._settings
        p_values = _corrected(compared, settings.correction)
        drifted = [
            p <= settings.alpha and c.effect >= settings.min_effect
            for c, p in zip(compared, p_values, strict=True)
        ]
        worst = min(range(len(compared)), key=lambda i: (p_values[i], -compared[i].statistic))
        alarms = [i for i, is_drifted in enumerate(drifted) if is_drifted]
        window, self._windows = self._windows, self._windows + 1
        return {
            "window": window,
            "records": len(self._buffer),
            "drifted": bool(alarms),
            "features_tested": sum(c.tested for c in compared),
            "drifted_features": [self._names[i] for i in sorted(alarms, key=lambda i: -compared[i].effect)],
            "worst_feature": self._names[worst],
            "statistic": compared[worst].statistic,
            "p_value": p_values[worst],
            "effect": compared[worst].effect,
            "features": [
                {
                    "feature": name,
                    "statistic": c.statistic,
                    "p_value": p,
                    "effect": c.effect,
                    "missing": c.missing,
                    "drifted": is_drifted,
                }
                for name, c, p, is_drifted in zip(self._names, compared, p_values, drifted, strict=True)
            ],
            "reference": self._label,
        }


def watched(settings: Ks, schema: Schema) -> list[Field]:
    """The fields to watch, checked. Raises ContractError with a path into the node's `with`."""
    if settings.fields is None:
        fields = [f for f in schema if _by_default(f.type)]
        if not fields:
            raise ContractError(
                "drift.ks: no numeric scalar or float tensor in the input",
                path=("with",),
                hint=f"input fields: {schema.describe() or 'none'}",
            )
    else:
        for index, name in enumerate(settings.fields):
            if name not in schema:
                hint = nearest(name, schema.names)
                raise ContractError(f"no field '{name}'", path=("with", "fields", index), hint=hint)
            if not _possible(schema[name].type):
                raise ContractError(
                    f"field '{name}' is {schema[name].type.describe()}: not a number or a tensor of fixed shape",
                    path=("with", "fields", index),
                )
        if not settings.fields:
            raise ContractError("fields: no field is named", path=("with", "fields"))
        fields = [schema[name] for name in settings.fields]
    for name, given in settings.names.items():
        found = next((f for f in fields if f.name == name and f.type.is_tensor), None)
        if found is None:
            tensors = [f.name for f in fields if f.type.is_tensor]
            raise ContractError(
                f"names: no watched tensor '{name}'",
                path=("with", "names", name),
                hint=nearest(name, tensors),
            )
        size = int(np.prod(found.type.shape))
        if len(given) != size:
            raise ContractError(
                f"names: {len(given)} names for the {size} components of '{name}'",
                path=("with", "names", name),
            )
    return fields


def _possible(field_type: FieldType) -> bool:
    if field_type.is_tensor:
        return not field_type.has_free_dimension and not field_type.nullable
    return field_type.kind in _NUMBERS or field_type.kind in {"bool", "decimal"}


def _by_default(field_type: FieldType) -> bool:
    if field_type.is_tensor:
        return _possible(field_type) and field_type.kind.startswith("float")
    return field_type.is_number


def components(field: Field, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Feature names of one field, in C order of its components."""
    if not field.type.shape:
        return [field.name]
    if field.name in names:
        return list(names[field.name])
    return [f"{field.name}[{','.join(map(str, index))}]" for index in np.ndindex(field.type.shape)]


def features(batch: Batch, fields: Sequence[Field]) -> Floats:
    """One column per feature, null as NaN."""
    parts = [
        batch[f.name].reshape(len(batch), -1).astype(np.float64)
        if f.type.is_tensor
        else batch.floats(f.name)[:, None]
        for f in fields
    ]
    return np.concatenate(parts, axis=1)


def read_reference(path: Path, fields: Sequence[Field], names: Mapping[str, Sequence[str]]) -> Floats:
    """One column per feature from a Parquet file. Raises ContractError for a missing column or a wrong length."""
    from pyarrow import parquet

    wanted = _columns_for(path, fields, names)
    # Not `read_table`: that imports pandas, which costs a worker a second and tens of megabytes.
    with parquet.ParquetFile(path) as file:
        table = file.read(columns=[column for columns in wanted for column in columns])
    parts: list[Column] = []
    for field, columns in zip(fields, wanted, strict=True):
        if columns == [field.name] and field.type.is_tensor:
            values = table.column(field.name).to_pylist()
            try:
                dense = np.array(values, dtype=np.float64).reshape(len(values), -1)
            except (TypeError, ValueError) as error:
                raise ContractError(
                    f"{path}: column '{field.name}' holds no tensors of equal shape: {error}",
                    path=("with", "reference"),
                ) from error
            if dense.shape[1] != int(np.prod(field.type.shape)):
                raise ContractError(
                    f"{path}: column '{field.name}' has {dense.shape[1]} values a row, the field is "
                    f"{field.type.describe()}",
                    path=("with", "reference"),
                )
            parts.append(dense)
        else:
            for column in columns:
                values = table.column(column).to_pylist()
                parts.append(
                    np.array([np.nan if v is None else v for v in values], dtype=np.float64)[:, None]
                )
    return np.concatenate(parts, axis=1)


def _columns_for(path: Path, fields: Sequence[Field], names: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """For each field the columns of the file that hold it: its own, or one per component."""
    from pyarrow import parquet

    try:
        there = parquet.read_schema(path).names
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ContractError(f"{path} is no Parquet file: {error}", path=("with", "reference")) from error
    wanted = []
    for field in fields:
        parts = components(field, names)
        if field.name in there:
            wanted.append([field.name])
        elif all(part in there for part in parts):
            wanted.append(parts)
        else:
            hint = nearest(field.name, there)
            raise ContractError(f"{path} has no column '{field.name}'", path=("with", "reference"), hint=hint)
    return wanted


def _corrected(compared: Sequence[Comparison], correction: str) -> list[float]:
    """Corrected p-values; features that were not tested do not count and stay at 1."""
    made = np.ones(len(compared))
    tested = [i for i, c in enumerate(compared) if c.tested]
    made[tested] = CORRECTIONS[correction](np.array([compared[i].p_value for i in tested], dtype=np.float64))
    values: list[float] = made.tolist()
    return values
