"""Codecs: the bytes of N records to columns at once, and back: avro (default), arrow, json, cloudevents, raw."""

from __future__ import annotations

from typing import Final

from dataflow.codecs.base import Codec, Decoded, EncodedRows
from dataflow.codecs.fingerprints import fingerprint
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import Schema

__all__ = ["CODECS", "Codec", "Decoded", "EncodedRows", "codec_for", "fingerprint"]

CODECS: Final = ("avro", "arrow", "json", "cloudevents", "raw")


def codec_for(
    name: str, schema: Schema, *, writer: Schema | None = None, record_name: str = "Record"
) -> Codec:
    """The codec `name` for records of `schema`.

    `writer` is the contract that the bytes were written with, where it differs: decoding then resolves it to
    `schema` (arrow and json carry names and need it not); encoding is always by `schema`. `record_name` is the
    Avro name. Raises CodecError for an unknown codec, ContractError where the codec cannot carry the contract.
    """
    if name == "raw":
        from dataflow.codecs.raw import RawCodec

        return RawCodec(schema)
    if name == "avro":
        from dataflow.codecs.avro import AvroCodec

        return AvroCodec(schema, fingerprint(schema, name), record_name, writer)
    if name == "json":
        from dataflow.codecs.json import JsonCodec

        return JsonCodec(schema, fingerprint(schema, name))
    if name == "cloudevents":
        from dataflow.codecs.events import EventsCodec

        return EventsCodec(schema, fingerprint(schema, name))
    if name == "arrow":
        from dataflow.codecs.arrow import ArrowCodec

        return ArrowCodec(schema, fingerprint(schema, name))
    raise CodecError(f"unknown codec '{name}'", hint=nearest(name, CODECS))
