"""Topic contracts, and the parts of declarations that all of them share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from dataflow.core.errors import nearest
from dataflow.core.limits import MAX_RECORD_BYTES, MAX_RECORD_BYTES_DECLARED
from dataflow.core.schema import INTEGERS, Schema
from dataflow.spec.fields import FIELD_NAME, FieldSpec, Strict, schema_of
from dataflow.spec.problems import Fault, wrong
from dataflow.spec.units import Retention, Size

Codec = Literal["avro", "arrow", "json", "raw"]
TopicCodec = Codec | Literal["cloudevents"]
KeyEncoding = Literal["string", "int32", "int64", "bytes", "composite"]
Cleanup = Literal["delete", "compact", "compact,delete"]

_KEYABLE: Final = ("string", "enum", "bytes", "bool", "timestamp", "date", "decimal", *INTEGERS)
_INT32_HOLDS: Final = ("int8", "int16", "int32", "uint8", "uint16")
_TOPIC_NAME: Final = r"[A-Za-z0-9._-]{1,249}"
_NAME: Final = r"[A-Za-z][A-Za-z0-9_-]{0,99}"


def one_or_many(value: object) -> object:
    """A single text as a list of one; all else as it is."""
    return [value] if isinstance(value, str) else value


def _topic_name(value: str) -> str:
    if not re.fullmatch(_TOPIC_NAME, value) or value in {".", ".."}:
        raise wrong(f"'{value}' is no topic name", "letters, digits and . _ -, at most 249 of them")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise wrong(f"'{value}' is no valid name", "a letter, then letters, digits, _ and -")
    return value


def _pattern(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


def _field_name(value: str) -> str:
    if not re.fullmatch(FIELD_NAME, value):
        raise wrong(f"'{value}' is no field name", "a letter or _, then letters, digits and _")
    return value


def _known_encoding(value: object) -> object:
    return "int64" if value == "int" else value


ONE_OR_MANY: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}
Names = Annotated[tuple[str, ...], BeforeValidator(one_or_many), WithJsonSchema(ONE_OR_MANY)]
TopicName = Annotated[str, AfterValidator(_topic_name), _pattern(_TOPIC_NAME)]
PlainName = Annotated[str, AfterValidator(_plain_name), _pattern(_NAME)]
Fields = dict[Annotated[str, AfterValidator(_field_name), _pattern(FIELD_NAME)], FieldSpec]


class Document(Strict):
    """A declaration in a file of its own or beside others."""

    def faults(self) -> Iterator[Fault]:
        """What is wrong within this document although every value by itself is valid."""
        return iter(())


class TopicSpec(Document):
    """A topic contract: what its records hold, how they are keyed and encoded, how long they stay.

    `key_encoding` is how the key's bytes are made; tools in any language can make the same (`codecs.keys` does):

    =========  =====================================================  =========================  ===================
    encoding   bytes                                                  the default for            same as
    =========  =====================================================  =========================  ===================
    string     UTF-8 of the value's text                              one field of another type  StringSerializer
    int32      4 bytes, big-endian, two's complement                  -                          IntegerSerializer
    int64      8 bytes of the same; ``int`` means this                one integer or timestamp   LongSerializer
    bytes      the value itself                                       one field of bytes         ByteArraySerializer
    composite  compact UTF-8 JSON array in declared order             several fields             any JSON library
    =========  =====================================================  =========================  ===================

    Timestamps count microseconds since 1970 as a number and are ISO 8601 in UTC as text.
    """

    kind: Literal["Topic"] = "Topic"
    name: TopicName
    doc: str = ""
    owner: str = ""
    key: Names = ()
    key_encoding: Annotated[
        KeyEncoding | None,
        BeforeValidator(_known_encoding),
        WithJsonSchema({"enum": ["int", *get_args(KeyEncoding)]}),
    ] = None
    partitions: int = Field(default=1, ge=1)
    retention_ms: Retention = Field(default=7 * 86_400_000, alias="retention")
    retention_bytes: Size | None = None
    cleanup: Cleanup = "delete"
    codec: TopicCodec = "avro"
    event_type: str = ""
    max_record_bytes: Size = MAX_RECORD_BYTES
    fields: Annotated[Fields, Field(min_length=1)]

    def schema(self) -> Schema:  # type: ignore[override]  # pydantic's own of that name is deprecated
        """The contract of the records' values, in declared order."""
        return schema_of(self.fields)

    @property
    def events(self) -> str:
        """The type of the CloudEvents that pipelines publish here, "" for plain records."""
        return self.event_type or (self.name if self.codec == "cloudevents" else "")

    @property
    def key_bytes(self) -> KeyEncoding:
        """The encoding of the key, declared or by default."""
        if self.key_encoding is not None:
            return self.key_encoding
        if len(self.key) > 1:
            return "composite"
        single = self.fields.get(self.key[0]) if self.key else None
        kind = single.field_type().kind if single is not None else ""
        if kind == "bytes":
            return "bytes"
        return "int64" if kind in {*INTEGERS, "timestamp"} else "string"

    def faults(self) -> Iterator[Fault]:
        for index, name in enumerate(self.key):
            if name not in self.fields:
                yield Fault(("key", index), f"key: no field '{name}'", nearest(name, self.fields))
                continue
            kind = self.fields[name].field_type()
            if kind.kind not in _KEYABLE or kind.shape:
                yield Fault(("key", index), f"key: field '{name}' of type {kind.describe()} cannot be a key")
        yield from self._encoding_faults()
        times = [name for name, spec in self.fields.items() if spec.event_time]
        for name in times:
            if self.fields[name].field_type().kind != "timestamp":
                yield Fault(("fields", name, "event_time"), f"event_time: field '{name}' is no timestamp")
        for name in times[1:]:
            yield Fault(("fields", name, "event_time"), f"event_time: field '{times[0]}' is it already")
        if self.max_record_bytes > MAX_RECORD_BYTES_DECLARED:
            most = f"at most {MAX_RECORD_BYTES_DECLARED // 1_000_000}MB: its dead letter must fit too"
            yield Fault(
                ("max_record_bytes",), f"max_record_bytes: {self.max_record_bytes} bytes are too many", most
            )
        if "compact" in self.cleanup and not self.key:
            yield Fault(("cleanup",), "a compacted topic needs a key", "e.g. key: id")
        kinds = [field.type.kind for field in self.schema()]
        if self.codec == "raw" and kinds != ["bytes"]:
            yield Fault(
                ("codec",),
                "codec: 'raw' carries exactly one field, of type bytes",
                "valid: avro, arrow, json, cloudevents",
            )

    def _encoding_faults(self) -> Iterator[Fault]:
        encoding = self.key_encoding
        if encoding is None:
            return
        if len(self.key) != 1 and encoding != "composite":
            yield Fault(("key_encoding",), f"key_encoding: '{encoding}' needs a key of one field")
            return
        kinds = [self.fields[name].field_type().kind for name in self.key if name in self.fields]
        whole = (*INTEGERS, "timestamp") if encoding == "int64" else INTEGERS
        if encoding in {"int32", "int64"} and any(kind not in whole for kind in kinds):
            yield Fault(("key_encoding",), f"key_encoding: '{encoding}' needs a whole number, not {kinds[0]}")
        elif encoding == "int32" and any(kind not in _INT32_HOLDS for kind in kinds):
            yield Fault(
                ("key_encoding",),
                f"key_encoding: 'int32' takes 4 bytes, which do not hold every {kinds[0]}",
                f"valid: int64, string, composite; or declare '{self.key[0]}' as int32",
            )
        if encoding == "bytes" and any(kind != "bytes" for kind in kinds):
            yield Fault(
                ("key_encoding",), f"key_encoding: 'bytes' needs a field of type bytes, not {kinds[0]}"
            )
