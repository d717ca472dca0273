"""Quix Streams' side of `records`: the work of `benchmarks.records`, a record at a time, by Quix's own Avro serializers.

python -m benchmarks.engines.quix_records BOOTSTRAP SOURCE SINK GROUP SCHEMAS   # a file: {"in": AVRO SCHEMA, "out": ...}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.models.serializers.avro import (  # type: ignore[import-not-found]
    AvroDeserializer,
    AvroSerializer,
)


def derived(row: dict[str, Any]) -> dict[str, Any]:
    """As `derived.derived` of ours, which has all rows at once."""
    made = {name: row[name] for name in ("sensor", "site", "at", "count", "ok", "note", "gain")}
    a, b = row["a"], row["b"]
    return {**made, "total": a * b + row["count"], "spread": abs(a - b), "warm": a > 20.0}


def main(bootstrap: str, source: str, sink: str, group: str, schemas: str) -> None:
    schema = json.loads(Path(schemas).read_text())
    app = Application(
        broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", loglevel="ERROR",
        commit_interval=0.1,
    )  # fmt: skip
    frame = app.dataframe(app.topic(source, value_deserializer=AvroDeserializer(schema["in"])))
    frame = frame.apply(derived)
    frame.to_topic(app.topic(sink, value_serializer=AvroSerializer(schema["out"])))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
