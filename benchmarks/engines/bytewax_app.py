"""Bytewax' side of `passthrough-peers`: python -m bytewax.run "benchmarks.engines.bytewax_app:flow('BOOTSTRAP', 'SOURCE', 'SINK')"

It commits nothing to Kafka: where it is, it keeps in a store of its own, which is left out here.
"""

from __future__ import annotations

from typing import Any

import bytewax.operators as op  # type: ignore[import-not-found]
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource  # type: ignore[import-not-found]
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found]


def flow(bootstrap: str, source: str, sink: str) -> Any:
    made = Dataflow("passthrough")
    read = op.input("read", made, KafkaSource([bootstrap], [source], batch_size=500))
    copies = op.map("copy", read, lambda m: KafkaSinkMessage(m.key, m.value, headers=m.headers))
    op.output("write", copies, KafkaSink([bootstrap], sink))
    return made
