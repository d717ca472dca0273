"""Faust's side of `passthrough-peers`. python -m benchmarks.engines.faust_app BOOTSTRAP SOURCE SINK GROUP"""

from __future__ import annotations

import sys
from typing import Any

import faust


def main(bootstrap: str, source: str, sink: str, group: str) -> None:
    app = faust.App(
        group, broker=f"kafka://{bootstrap}", store="memory://", key_serializer="raw", value_serializer="raw",
        web_enabled=False, topic_disable_leader=True, broker_commit_interval=0.1,
    )  # fmt: skip
    written = app.topic(sink, value_type=bytes)

    @app.agent(app.topic(source, value_type=bytes))
    async def copy(stream: Any) -> None:
        async for value in stream:
            await written.send(value=value)

    faust.Worker(app, loglevel="ERROR").execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:])
