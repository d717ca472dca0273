"""`rekey`: give records another key, and with it another place."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    NodeContext,
    Out,
    Schema,
    Settings,
    nearest,
    node,
    to_list,
)

from ._expressions import refuse_declarations

EXAMPLE = """
kind: Topic
name: visits
key: visitor
partitions: 2
fields: {visitor: string, shop: string?, spent: float64}
---
kind: Pipeline
name: by-shop
inputs: {visit: visits}
nodes:
  shop: {use: rekey, from: visit, with: {key: shop, partitions: 4, on_null: drop}}
  big: {use: filter.when, from: shop, with: {when: spent > 100}}
tests:
  - name: records stay what they are, but one without a shop has no place
    given: {visit: [{visitor: a, shop: x, spent: 200}, {visitor: b, spent: 300}, {visitor: c, shop: x, spent: 1}]}
    expect:
      shop: [{visitor: a, shop: x}, {visitor: c, shop: x}]
      big: [{visitor: a}]
"""

_WHOLE: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_SHORT: Final = ("int8", "int16", "int32", "uint8", "uint16")
_KEYS: Final = ("string", "enum", "bytes", "bool", "timestamp", "date", "decimal", *_WHOLE)

_NEEDED: Final = {"int32": _SHORT, "int64": (*_WHOLE, "timestamp"), "bytes": ("bytes",)}


class Rekey(Settings):
    """The new key, how its bytes are made, and over how many partitions the records are spread."""

    key: tuple[str, ...] = Setting(
        min_length=1, description="The field, or the fields in order, of the new key."
    )
    encoding: Literal["string", "int32", "int64", "bytes", "composite"] | None = Setting(
        default=None, description="How the key's bytes are made. Default: as for a topic whose `key` is this."
    )
    partitions: int | None = Setting(
        default=None, ge=1, description="Partitions of the new topic. Default: those of the input."
    )
    on_null: Literal["fail", "drop"] = Setting(
        default="fail",
        description='What becomes of a record whose key is null: it fails, or is dropped with the reason "no key".',
    )

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("encoding", mode="before")
    @classmethod
    def _int_is_int64(cls, value: object) -> object:
        return "int64" if value == "int" else value


@node("rekey", settings=Rekey, example=EXAMPLE)
class RekeyRecords:
    """Key records anew, so that all records of one key come together on one partition, in the order of their writing.

    The node's edge is a topic that is keyed by `key`. Each record is written to the partition of its new key (murmur2,
    as everywhere), and what comes next reads it there, in a stage of its own. Ids stay, and so does the way back to a
    waiting caller. Order is kept for each new key as the records were written; records that had one key before and have
    several now are in no order among each other. A key of several fields may hold null; a single field that is null
    makes no key, and `on_null` decides.
    """

    def __init__(self, settings: Rekey, context: NodeContext) -> None:
        del context
        self._key = settings.key
        self._drop = settings.on_null == "drop"

    @staticmethod
    def repartition(settings: Rekey) -> tuple[tuple[str, ...], str, int]:
        return settings.key, settings.encoding or "", settings.partitions or 0

    @staticmethod
    def contract(settings: Rekey, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        for index, name in enumerate(settings.key):
            path = ("with", "key", index) if len(settings.key) > 1 else ("with", "key")
            if name not in context.input:
                raise ContractError(
                    f"key: no field '{name}' in the input", path=path, hint=nearest(name, context.input.names)
                )
            if name in settings.key[:index]:
                raise ContractError(f"key: field '{name}' is there twice", path=path)
            kind = context.input[name].type
            if kind.kind not in _KEYS or kind.shape:
                raise ContractError(
                    f"key: field '{name}' of type {kind.describe()} cannot be a key", path=path,
                    hint="valid: " + ", ".join(_KEYS),
                )  # fmt: skip
        _check_encoding(settings, context.input)
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        if len(self._key) > 1:
            out.emit(batch)
            return
        missing = np.array([value is None for value in to_list(batch[self._key[0]])], dtype=np.bool_)
        if not missing.any():
            out.emit(batch)
            return
        good, without = np.flatnonzero(~missing), np.flatnonzero(missing)
        if len(good):
            out.emit(batch.take(good), rows=good)
        if self._drop:
            out.drop(without, "no key")
        else:
            out.fail(without, f"field '{self._key[0]}' is null: it makes no key", error="NoKey")


def _check_encoding(settings: Rekey, schema: Schema) -> None:
    encoding, path = settings.encoding, ("with", "encoding")
    if encoding in (None, "composite"):
        return
    if len(settings.key) > 1:
        raise ContractError(
            f"encoding: '{encoding}' needs a key of one field", path=path, hint="valid: composite"
        )
    kind = schema[settings.key[0]].type.kind
    needed = _NEEDED.get(str(encoding), _KEYS)
    if kind not in needed:
        raise ContractError(
            f"encoding: '{encoding}' holds no {kind}", path=path, hint="it holds " + ", ".join(needed)
        )
