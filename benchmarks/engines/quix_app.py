"""Quix Streams' side of `passthrough-peers`. python -m benchmarks.engines.quix_app BOOTSTRAP SOURCE SINK GROUP"""

from __future__ import annotations

import sys

from quixstreams import Application  # type: ignore[import-not-found]


def main(bootstrap: str, source: str, sink: str, group: str) -> None:
    app = Application(
        broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", loglevel="ERROR",
        commit_interval=0.1,
    )  # fmt: skip
    frame = app.dataframe(app.topic(source, value_deserializer="bytes"))
    frame.to_topic(app.topic(sink, value_serializer="bytes"))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
