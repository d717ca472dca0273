"""CloudEvents on Kafka (its protocol binding, 1.0.2): structured events as a codec, and what makes a record an event."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

import orjson

from dataflow.codecs.json import JsonCodec
from dataflow.core.batch import Row
from dataflow.core.errors import CodecError
from dataflow.transport.api import Header

PREFIX: Final = "ce_"
CONTENT_TYPE: Final = "content-type"
_STRUCTURED: Final = b"application/cloudevents+json; charset=UTF-8"
# By codec, of the data alone.
_MEDIA_TYPES: Final = {
    "avro": b"application/avro",
    "arrow": b"application/vnd.apache.arrow.stream",
    "json": b"application/json",
    "raw": b"application/octet-stream",
}


class EventsCodec(JsonCodec):
    """JSON, of which a record may be the data of a structured event. What is encoded is the data alone: see `Events`."""

    name = "cloudevents"

    def load(self, value: bytes) -> Any:
        said = super().load(value)
        if not isinstance(said, dict) or "specversion" not in said or "specversion" in self.schema.names:
            return said
        if "data" in said:
            return said["data"]
        try:
            return super().load(base64.b64decode(said["data_base64"], validate=True))
        except KeyError:
            raise CodecError("an event without data") from None
        except (binascii.Error, TypeError, ValueError) as error:
            raise CodecError(f"an event whose data_base64 holds no JSON: {error}") from error


@dataclass(frozen=True)
class Events:
    """What records become that are events of `type` from `source`: in structured mode with codec ``cloudevents``, else in binary."""

    type: str
    source: str
    codec: str

    @property
    def structured(self) -> bool:
        return self.codec == EventsCodec.name

    def headers(self) -> tuple[Header, ...]:
        """Those that all have; in binary mode each has its id in ``ce_id`` beside them."""
        if self.structured:
            return ((CONTENT_TYPE, _STRUCTURED),)
        return (
            (f"{PREFIX}specversion", b"1.0"),
            (f"{PREFIX}source", self.source.encode()),
            (f"{PREFIX}type", self.type.encode()),
            (CONTENT_TYPE, _MEDIA_TYPES[self.codec]),
        )

    def wrapped(self, value: bytes | None, record_id: bytes) -> bytes | None:
        """The value as it is written; a record without one is none in either mode."""
        if value is None or not self.structured:
            return value
        head = orjson.dumps(
            {
                "specversion": "1.0", "id": record_id.decode(), "source": self.source, "type": self.type,
                "datacontenttype": "application/json",
            }
        )  # fmt: skip
        return b'%b,"data":%b}' % (head[:-1], value)

    def beside(self, row: Row) -> list[Header]:
        """The headers of one record: what it carries, less those of the event that it came from, and its id."""
        kept: list[Header] = [h for h in row.carry if not h[0].startswith(PREFIX) and h[0] != CONTENT_TYPE]
        return kept if self.structured else [*kept, (f"{PREFIX}id", row.id)]
