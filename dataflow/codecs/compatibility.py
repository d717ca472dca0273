"""Whether records written under one contract are read under another, per codec.

What every codec allows: a nullable field more or less, another order of fields, other docs. The rest follows the
Avro specification's schema resolution, narrowed to what keeps the meaning (a date is no timestamp, though both are
integers on the wire).
"""

from __future__ import annotations

import numpy as np

from dataflow.codecs import CODECS
from dataflow.codecs.avro_schema import is_avro_enum
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import TENSOR_KINDS, Field, FieldType, Schema


def check_compatible(old: Schema, new: Schema, codec: str) -> list[str]:
    """Why a topic of contract `old` cannot become `new`; empty when old and new readers read old and new records.

    Each entry names the field, what changed and what is allowed.
    """
    problems = []
    directions = (
        (old, new, "a reader of the new contract cannot read records already written"),
        (new, old, "a reader of the old contract cannot read new records"),
    )
    for writer, reader, consequence in directions:
        for name, why, allowed in unreadable(writer, reader, codec):
            problems.append(f"field '{name}': {why}; {consequence}; allowed: {allowed}")
    return problems


def unreadable(writer: Schema, reader: Schema, codec: str) -> list[tuple[str, str, str]]:
    """Why records of `writer` cannot be read as `reader`: (field, what differs, what is allowed) each."""
    if codec == "raw":
        return []
    if codec not in CODECS:
        raise CodecError(f"unknown codec '{codec}'", hint=nearest(codec, CODECS))
    return _fields(writer.fields, reader.fields, codec, "")


def _fields(
    writer: tuple[Field, ...], reader: tuple[Field, ...], codec: str, place: str
) -> list[tuple[str, str, str]]:
    written = {f.name: f.type for f in writer}
    found: list[tuple[str, str, str]] = []
    for declared in reader:
        name = f"{place}{declared.name}"
        if declared.name in written:
            found += _types(written[declared.name], declared.type, codec, name)
        elif not declared.type.nullable:
            why = f"{declared.type.describe()} is needed and not in the records"
            found.append((name, why, "add or remove a field only if it is nullable"))
    return found


def _types(writer: FieldType, reader: FieldType, codec: str, name: str) -> list[tuple[str, str, str]]:
    """Members and items first, so that the entry names the innermost field."""
    if writer.nullable and not reader.nullable:
        why = f"written as {writer.describe()}, read as {reader.describe()} where null is not allowed"
        return [(name, why, "keep it nullable or not as it is, or add a field of another name")]
    if writer.kind == reader.kind == "record":
        return _fields(writer.fields, reader.fields, codec, f"{name}.")
    if writer.kind == reader.kind == "list":
        assert writer.item is not None, "a list type has an item type"
        assert reader.item is not None, "a list type has an item type"
        return _types(writer.item, reader.item, codec, f"{name}[]")
    if _same_or_wider(writer, reader, codec):
        return []
    why = f"written as {writer.describe()}, read as {reader.describe()}"
    if writer.kind == reader.kind == "enum":
        missing = sorted(set(writer.symbols) - set(reader.symbols))
        if missing:
            why = f"symbol {', '.join(missing)} is not known to the reader"
        return [(name, why, "keep the symbols, or add a field of another name")]
    return [(name, why, "keep the type, or add a nullable field of another name")]


def _same_or_wider(writer: FieldType, reader: FieldType, codec: str) -> bool:
    avro = codec == "avro"
    if not _shapes(writer, reader, same_form=avro or codec == "arrow"):
        return False
    if writer.kind in TENSOR_KINDS and reader.kind in TENSOR_KINDS:
        if writer.kind == reader.kind:
            return True
        if "bool" in (writer.kind, reader.kind):
            return False
        # In Avro a tensor is bytes of one dtype, and a uint64 is no number but a decimal.
        if avro and (writer.shape or "uint64" in (writer.kind, reader.kind)):
            return False
        return bool(np.can_cast(np.dtype(writer.kind), np.dtype(reader.kind), "safe"))
    if writer.kind == reader.kind == "enum":
        same_form = not avro or is_avro_enum(writer.symbols) == is_avro_enum(reader.symbols)
        return same_form and set(writer.symbols) <= set(reader.symbols)
    if writer.kind == "enum" and reader.kind == "string":
        return not avro or not is_avro_enum(writer.symbols)
    if writer.kind == reader.kind == "decimal":
        return writer.scale == reader.scale and writer.precision <= reader.precision
    return writer.kind == reader.kind


def _shapes(writer: FieldType, reader: FieldType, *, same_form: bool) -> bool:
    """`same_form`: a free dimension is laid out otherwise than a fixed one."""
    if len(writer.shape) != len(reader.shape):
        return False
    if same_form and writer.shape.count(-1) != reader.shape.count(-1):
        return False
    return all(want in (-1, have) for have, want in zip(writer.shape, reader.shape, strict=True))
