"""Contracts for others: Avro schema and JSON Schema out, Avro schema in, and the lossless document of a contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dataflow.codecs.avro_schema import avro_schema
from dataflow.core.errors import ContractError, nearest
from dataflow.core.schema import INTEGERS, KINDS, Field, FieldType, Schema

_SPECIAL_FLOATS: Final = ["NaN", "Infinity", "-Infinity"]


def to_avsc(schema: Schema, name: str, doc: str = "") -> dict[str, Any]:
    """The Avro schema with which any Avro library reads the records of codec avro; see `avro_schema`."""
    return avro_schema(schema, name, doc)


# ---------------------------------------------------------------- our own document


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """A contract as JSON can say it; `schema_from_dict` reads it back to an equal Schema."""
    return {"fields": [_field_to_dict(f) for f in schema]}


def _field_to_dict(declared: Field) -> dict[str, Any]:
    made: dict[str, Any] = {"name": declared.name, "type": type_to_dict(declared.type)}
    for key in ("doc", "unit", "privacy"):
        if getattr(declared, key):
            made[key] = getattr(declared, key)
    if declared.event_time:
        made["event_time"] = True
    return made


def type_to_dict(field_type: FieldType) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": field_type.kind}
    if field_type.shape:
        made["shape"] = list(field_type.shape)
    if field_type.nullable:
        made["nullable"] = True
    if field_type.item is not None:
        made["item"] = type_to_dict(field_type.item)
    if field_type.fields:
        made["fields"] = [_field_to_dict(f) for f in field_type.fields]
    if field_type.symbols:
        made["symbols"] = list(field_type.symbols)
    for key in ("precision", "scale"):
        if getattr(field_type, key):
            made[key] = getattr(field_type, key)
    return made


def schema_from_dict(document: Mapping[str, Any]) -> Schema:
    """The contract of `schema_to_dict`. Raises ContractError for a document that is none."""
    try:
        return Schema(tuple(_field_from_dict(f) for f in document["fields"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"not a stored contract: {type(error).__name__} {error}") from None


def _field_from_dict(document: Mapping[str, Any]) -> Field:
    return Field(
        name=document["name"],
        type=_type_from_dict(document["type"]),
        doc=document.get("doc", ""),
        unit=document.get("unit", ""),
        privacy=document.get("privacy", ""),
        event_time=document.get("event_time", False),
    )


def _type_from_dict(document: Mapping[str, Any]) -> FieldType:
    item = document.get("item")
    return FieldType(
        kind=document["kind"],
        shape=tuple(document.get("shape", ())),
        nullable=document.get("nullable", False),
        item=None if item is None else _type_from_dict(item),
        fields=tuple(_field_from_dict(f) for f in document.get("fields", ())),
        symbols=tuple(document.get("symbols", ())),
        precision=document.get("precision", 0),
        scale=document.get("scale", 0),
    )


# ---------------------------------------------------------------- JSON Schema


def to_json_schema(schema: Schema, name: str, doc: str = "") -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the objects that codec json and the plain JSON door take."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    if doc:
        made["description"] = doc
    return made | _object_schema(schema.fields)


def _object_schema(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f.name: _property(f) for f in fields},
        "required": [f.name for f in fields if not f.type.nullable],
        "additionalProperties": False,
    }


def _property(declared: Field) -> dict[str, Any]:
    made = _json_type(declared.type)
    if declared.doc:
        made["description"] = declared.doc
    for key in ("unit", "privacy"):
        if getattr(declared, key):
            made[f"x-{key}"] = getattr(declared, key)
    if declared.event_time:
        made["x-event-time"] = True
    return made


def _json_type(field_type: FieldType) -> dict[str, Any]:
    made = _json_present(field_type)
    for size in reversed(field_type.shape):
        made = {"type": "array", "items": made}
        if size != -1:
            made |= {"minItems": size, "maxItems": size}
    if field_type.shape:
        made["x-dtype"] = field_type.kind
    return {"anyOf": [made, {"type": "null"}]} if field_type.nullable else made


def _json_present(field_type: FieldType) -> dict[str, Any]:
    kind = field_type.kind
    if kind in INTEGERS:
        bits = int(kind.removeprefix("u").removeprefix("int"))
        low, high = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return {"type": "integer", "minimum": low, "maximum": high}
    if kind.startswith("float"):
        return {"anyOf": [{"type": "number"}, {"enum": _SPECIAL_FLOATS}]}
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        return {"type": "array", "items": _json_type(field_type.item)}
    if kind == "record":
        return _object_schema(field_type.fields)
    if kind == "enum":
        return {"type": "string", "enum": list(field_type.symbols)}
    if kind == "decimal":
        digits = f"precision {field_type.precision}, scale {field_type.scale}"
        return {"type": "string", "pattern": r"^[+-]?[0-9]+(\.[0-9]+)?$", "$comment": f"decimal, {digits}"}
    return {
        "bool": {"type": "boolean"},
        "string": {"type": "string"},
        "bytes": {"type": "string", "contentEncoding": "base64"},
        "timestamp": {"type": "string", "format": "date-time"},
        "date": {"type": "string", "format": "date"},
    }[kind]


# ---------------------------------------------------------------- Avro schema in

_FROM_AVRO: Final = {
    "boolean": "bool", "int": "int32", "long": "int64", "float": "float32", "double": "float64",
    "string": "string", "bytes": "bytes",
}  # fmt: skip


def from_avsc(document: Mapping[str, Any]) -> Schema:
    """The contract of an Avro record schema: equal to what `to_avsc` exported, the nearest one for others'.

    Raises ContractError for what a contract cannot say: maps, unions of several types, fixed, recursive types and
    logical times of another unit.
    """
    if document.get("type") != "record":
        raise ContractError(
            f"an Avro schema of type {document.get('type')!r} is no contract", hint="use a record"
        )
    return Schema(_fields_from_avro(document, {}))


def _fields_from_avro(document: Mapping[str, Any], named: dict[str, Any]) -> tuple[Field, ...]:
    made = []
    for field in document.get("fields", ()):
        try:
            field_type = _type_from_avro(field["type"], named)
        except ContractError as error:
            raise ContractError(f"field '{field['name']}': {error.message}", hint=error.hint) from None
        event_time = bool(field.get("event_time", False))
        texts = {key: field.get(key, "") for key in ("doc", "unit", "privacy")}
        made.append(Field(field["name"], field_type, event_time=event_time, **texts))
    return tuple(made)


def _type_from_avro(given: Any, named: dict[str, Any]) -> FieldType:
    if isinstance(given, list):
        others = [t for t in given if t != "null"]
        if len(others) != 1:
            raise ContractError(f"a union of {len(others)} types", hint="a contract knows one type, or null")
        inner = type_to_dict(_type_from_avro(others[0], named))
        return _type_from_dict(inner | {"nullable": len(others) < len(given)})
    if isinstance(given, str):
        if given in _FROM_AVRO:
            return FieldType(_FROM_AVRO[given])
        found = named.get(given)
        if found is None:
            raise ContractError(f"unknown or recursive Avro type '{given}'", hint=nearest(given, _FROM_AVRO))
        return _type_from_avro(found, named)
    made = _structured(given, named)
    if "name" in given and given["type"] in ("record", "enum"):
        named[given["name"]] = given
    return made


def _structured(given: Mapping[str, Any], named: dict[str, Any]) -> FieldType:
    base, logical = given["type"], given.get("logicalType")
    if base == "array":
        return FieldType("list", item=_type_from_avro(given["items"], named))
    if base == "record":
        members = {f["name"]: f["type"] for f in given["fields"]}
        data = members.get("data")
        if set(members) == {"shape", "data"} and isinstance(data, Mapping) and "dtype" in data:
            return FieldType(data["dtype"], tuple(data["shape"]))
        return FieldType("record", fields=_fields_from_avro(given, named))
    if base == "enum" or (base == "string" and "symbols" in given):
        return FieldType("enum", symbols=tuple(given["symbols"]))
    dtype = given.get("dtype")
    if dtype is not None and dtype in KINDS:
        return FieldType(dtype, tuple(given.get("shape", ())))
    if logical == "decimal" and base == "bytes":
        return FieldType("decimal", precision=given["precision"], scale=given.get("scale", 0))
    if (base, logical) == ("long", "timestamp-micros"):
        return FieldType("timestamp")
    if (base, logical) == ("int", "date"):
        return FieldType("date")
    if isinstance(base, str) and (logical is None or base == "string"):
        return _type_from_avro(base, named)
    raise ContractError(
        f"an Avro {base} of logical type {logical} has no counterpart",
        hint="use timestamp-micros, date or decimal (bytes)",
    )
