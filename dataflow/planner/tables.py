"""Broadcast tables by name: a topic, or a Parquet or CSV file beside the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dataflow.core.errors import ContractError, nearest
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.spec import Project
from dataflow.spec.fields import parse_type

TABLE_FILES: Final = (".parquet", ".csv")

_SCALARS: Final[Mapping[str, str]] = {
    "bool": "bool", "halffloat": "float16", "float": "float32", "double": "float64",
    "string": "string", "large_string": "string", "binary": "bytes", "large_binary": "bytes",
    "date32[day]": "date", "date64[ms]": "date",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


_TABLE_HINT: Final = "a topic with a key, or a .parquet or .csv file beside the pipeline"


@dataclass(frozen=True)
class ResolvedTable:
    """A broadcast table: exactly one of `topic` and `file` (relative to the pipeline's folder) is set.

    A file has no key of its own: `key` is () and the newest row is the last one.
    """

    name: str
    schema: Schema
    key: tuple[str, ...]
    topic: str = ""
    file: str = ""
    codec: str = ""


def is_table_file(name: str) -> bool:
    return name.endswith(TABLE_FILES)


def resolve_table(name: str, project: Project, folder: Path) -> ResolvedTable:
    """Find a table. Raises ContractError for one that is not there or has no key."""
    if is_table_file(name):
        return ResolvedTable(name, table_schema_of(folder / name), (), file=name)
    topic = project.topics.get(name)
    if topic is None:
        near = nearest(name, project.topics)
        hint = near.replace("mean '", "mean the topic '") if near.startswith("did") else _TABLE_HINT
        raise ContractError(f"unknown table '{name}'", hint=hint)
    if not topic.spec.key:
        raise ContractError(
            f"topic '{name}' has no key, so it cannot be a table", hint="declare key: in the topic"
        )
    return ResolvedTable(name, topic.spec.schema(), topic.spec.key, topic=name, codec=topic.spec.codec)


def table_schema_of(file: Path) -> Schema:
    """The contract of a Parquet or CSV file; a column without a null is not nullable. Raises ContractError.

    Of Parquet only the footer is read, CSV is read whole (a broadcast table is in memory anyway).
    """
    if not file.is_file():
        raise ContractError(f"no file '{file.name}' in {file.parent}")
    import pyarrow as pa

    try:
        schema, filled = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    except (OSError, pa.ArrowException) as error:
        raise ContractError(f"cannot read '{file.name}': {str(error).splitlines()[0]}") from error
    fields: list[Field] = []
    for column in schema:
        nullable = bool(column.nullable) and column.name not in filled
        fields.append(
            Field(column.name, _declared(column) or _type(column.type, column.name, nullable=nullable))
        )
    return Schema(tuple(fields))


def _declared(column: Any) -> FieldType | None:
    """The type that a file of ours says in a column's metadata (tensors and enums have no Arrow type of their own)."""
    text = (column.metadata or {}).get(b"type", b"")
    try:
        return parse_type(text.decode()) if text else None
    except (ContractError, UnicodeDecodeError):  # someone else's metadata of that name
        return None


def _parquet(file: Path) -> tuple[Any, frozenset[str]]:
    """The Arrow schema and the names of columns whose statistics say that no value is null."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        groups = [opened.metadata.row_group(index) for index in range(opened.metadata.num_row_groups)]
        columns = [[group.column(i) for group in groups] for i in range(opened.metadata.num_columns)]
        filled = frozenset(
            chunks[0].path_in_schema for chunks in columns if chunks and all(map(_is_filled, chunks))
        )
        return opened.schema_arrow, filled


def _is_filled(chunk: Any) -> bool:
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and statistics.null_count == 0


def _csv(file: Path) -> tuple[Any, frozenset[str]]:
    import pyarrow.csv

    table = pyarrow.csv.read_csv(file)
    filled = (name for name in table.column_names if table.column(name).null_count == 0)
    return table.schema, frozenset(filled)


def _type(arrow: Any, name: str, *, nullable: bool = False) -> FieldType:
    import pyarrow.types

    text = str(arrow)
    if text in _SCALARS:
        return FieldType(_SCALARS[text], nullable=nullable)
    if pyarrow.types.is_timestamp(arrow):
        return FieldType("timestamp", nullable=nullable)
    if pyarrow.types.is_decimal(arrow):
        return FieldType("decimal", nullable=nullable, precision=arrow.precision, scale=arrow.scale)
    if pyarrow.types.is_dictionary(arrow):
        return _type(arrow.value_type, name, nullable=nullable)
    if pyarrow.types.is_list(arrow) or pyarrow.types.is_large_list(arrow):
        inner = arrow.value_field
        return FieldType("list", nullable=nullable, item=_type(inner.type, name, nullable=inner.nullable))
    if pyarrow.types.is_struct(arrow):
        members = tuple(Field(f.name, _type(f.type, f.name, nullable=f.nullable)) for f in arrow)
        return FieldType("record", nullable=nullable, fields=members)
    raise ContractError(f"column '{name}' has the type {text}, which no field can hold", hint="cast it")
