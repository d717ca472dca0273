"""The fingerprint of a contract on the wire: equal exactly when a record's bytes mean the same."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from dataflow.codecs.export import type_to_dict
from dataflow.core.schema import Schema


def fingerprint(schema: Schema, codec: str) -> bytes:
    """16 ASCII hex digits (SHA-256 of the canonical form), b"" for raw.

    Names, order, types and the codec count; docs, units, privacy and event time do not: they change no byte.
    """
    if codec == "raw":
        return b""
    fields = [[f.name, _wire(type_to_dict(f.type))] for f in schema]
    canonical = orjson.dumps([codec, fields], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:16].encode()


def _wire(document: dict[str, Any]) -> dict[str, Any]:
    made = dict(document)
    if "item" in made:
        made["item"] = _wire(made["item"])
    if "fields" in made:
        made["fields"] = [[f["name"], _wire(f["type"])] for f in made["fields"]]
    return made
